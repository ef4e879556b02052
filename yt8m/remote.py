"""Paths that are not on this machine: their file systems are made ready before use.

TensorFlow has a file system for `gs://` itself. Those for `http(s)://`, `s3://`,
`az://` and `hdfs://` are in tensorflow-io, which is loaded when a path needs it.
"""

import functools
import importlib
import re
import ssl
import urllib.error
import urllib.request
import warnings

from yt8m.errors import UserError

# What tensorflow-io 0.37.1 registers.
_OF_TENSORFLOW_IO = ("http", "https", "s3", "az", "hdfs", "viewfs", "har", "oss")
_GCS_URL = "https://www.googleapis.com/storage/v1/b"
_SECONDS = 30


def prepare(paths: str, flag: str) -> None:
    """Makes the file systems of `paths`, separated by commas, ready for use.

    Raises:
        UserError: there is no such file system, tensorflow-io is missing or does not
            load, or Google Cloud Storage cannot be reached. Names `flag`.
    """
    import tensorflow as tf

    for scheme in re.findall(r"(?:^|,)\s*(\w[\w+.-]*)://", paths):
        if scheme in _OF_TENSORFLOW_IO and not _is_registered(scheme):
            reason = _load_tensorflow_io()
            if not _is_registered(scheme):
                raise UserError(
                    f"{flag}={paths}: {scheme}:// is read by tensorflow-io, which "
                    f"{reason}; `pip install -e .[io]` brings it and TensorFlow 2.16, "
                    "the last one that it loads with."
                )
        if not _is_registered(scheme):
            raise UserError(
                f"{flag}={paths}: TensorFlow {tf.__version__} knows no {scheme}:// ."
            )
        if scheme == "gs" and (reason := _gcs_problem()):
            raise UserError(
                f"{flag}={paths}: Google Cloud Storage cannot be reached: {reason}."
            )


def is_url(path: str) -> bool:
    """Whether `path` is read over HTTP, where nothing can be listed or written."""
    return path.startswith(("http://", "https://"))


def check_url(url: str, flag: str) -> None:
    """Checks that parts of a file on a web server can be read.

    Raises:
        UserError: `url` has a wildcard, cannot be read, or is served only as a whole.
    """
    if re.search(r"[*[\]]", url):
        raise UserError(
            f"{flag}: a web server lists no files, so {url} cannot be expanded; write "
            "the numbers as http://host/train{0000..0099}.tfrecord, or URLs separated "
            "by commas."
        )
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            status = answer.status
    except urllib.error.HTTPError as e:
        e.close()
        if e.code != 416:  # the answer for a file without a first byte
            raise UserError(f"{flag}: {url} cannot be read: {e}.") from e
        status = 206
    except (OSError, ValueError) as e:
        raise UserError(f"{flag}: {url} cannot be read: {_reason(e)}.") from e
    if status != 206:
        raise UserError(
            f"{flag}: the server of {url} does not honour Range requests, by which "
            "shards are read; copy them to a disk or bucket, or use another server."
        )


def _is_registered(scheme: str) -> bool:
    import tensorflow as tf

    return scheme in tf.io.gfile.get_registered_schemes()


def _load_tensorflow_io() -> str:
    """Why its file systems are not there, if after this they are not."""
    import tensorflow as tf

    try:
        with warnings.catch_warnings():  # it warns of each library that does not load
            warnings.simplefilter("ignore")
            importlib.import_module("tensorflow_io")
    except ImportError:
        return "is not installed"
    return f"does not load with TensorFlow {tf.__version__}"


@functools.cache
def _gcs_problem() -> str | None:
    """Why no request reaches Google Cloud Storage; TensorFlow would try for minutes."""
    try:
        # Not `urlopen`, which keeps the proxies of its first call.
        urllib.request.build_opener().open(_GCS_URL, timeout=_SECONDS).close()
    except urllib.error.HTTPError as e:
        e.close()  # it answers; whether we may read is TensorFlow's to find out
    except OSError as e:
        if not isinstance(getattr(e, "reason", e), ssl.SSLError):  # own certificates
            return _reason(e)
    return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", error))
