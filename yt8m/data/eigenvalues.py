"""The eigenvalues of the PCA that made the dataset's rgb, from a web server.

    path = download("http://data.yt8m.org/yt8m_pca.tgz")

They are checked once and kept in a cache of the user, not in the run directory: all
runs take the same ones, a run directory may be remote, and its checkpoints hold the
numbers themselves.
"""

import hashlib
import io
import logging
import os
import tarfile
import zlib

import numpy as np

from yt8m import schema
from yt8m.data.download import Client
from yt8m.errors import DataError, UserError

log = logging.getLogger("yt8m")

COUNT = schema.FRAME_FEATURES["rgb"]  # components that the dataset keeps of 2,048
FILE_NAME = "eigenvals.npy"  # in the published yt8m_pca.tgz

_MOST_BYTES = 1 << 26  # the published archive, with eigenvectors, takes 16 MB
_RETRIES = 3


def download(url: str, client: Client | None = None) -> str:
    """The path of a local copy, `.npy`, of the first 1,024 eigenvalues at `url`.

    It is downloaded once; later calls take the copy.

    Args:
        url: of `.npy`, of text with blanks or commas between the numbers, or of a
            `.tgz` with an `eigenvals.npy`.
        client: by which it is read.

    Raises:
        UserError: it cannot be read, or the cache cannot be written.
        DataError: it holds anything else.
    """
    name = f"eigenvalues-{hashlib.sha256(url.encode()).hexdigest()[:16]}.npy"
    path = os.path.join(_cache(), name)
    if os.path.exists(path):
        return path
    content = (client or Client(retries=_RETRIES)).read(url, _MOST_BYTES)
    values = parse(content, url)
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(_cache(), exist_ok=True)
        with open(temporary, "wb") as file:
            np.save(file, values)
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(
            f"{path} cannot be written: {e.strerror}; download {url} yourself, and "
            "give the file."
        ) from e
    log.info("%s: %d eigenvalues, kept as %s.", url, len(values), path)
    return path


def parse(content: bytes, source: str) -> np.ndarray:
    """The first 1,024 eigenvalues; `source` is named in errors.

    Raises:
        DataError: they are fewer, no numbers, not positive, or not in order.
    """
    try:
        if content.startswith(b"\x1f\x8b"):
            content = _from_archive(content)
        if content.startswith(b"\x93NUMPY"):
            values = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            values = np.array(content.decode().replace(",", " ").split())
        values = values.astype("float32").reshape(-1)
    except (ValueError, EOFError, OSError, tarfile.TarError, zlib.error) as e:
        raise DataError(
            f"{source} is neither .npy nor text nor a .tgz with {FILE_NAME}: {e}."
        ) from e
    if len(values) < COUNT:
        raise DataError(
            f"{source} has {len(values):,} numbers; {COUNT:,} eigenvalues are needed."
        )
    values = values[:COUNT]
    if not (np.isfinite(values) & (values > 0)).all() or (np.diff(values) > 0).any():
        raise DataError(
            f"{source} holds no eigenvalues, which are positive and the greatest first."
        )
    return values


def _from_archive(content: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            if member.isfile() and os.path.basename(member.name) == FILE_NAME:
                return archive.extractfile(member).read()
    raise ValueError(f"it has no {FILE_NAME}")


def _cache() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "yt8m")
