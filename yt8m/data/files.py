"""The files that a pattern names, and what their first record says of them."""

import difflib
import functools
import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import tensorflow as tf

from yt8m import remote, schema, whole_files
from yt8m.config import DataConfig
from yt8m.data import index
from yt8m.data.records import decode_record
from yt8m.errors import DataError, UserError, reason

log = logging.getLogger("yt8m")

_SNIFFED_RECORDS = 100
_THREADS = 16  # the time goes by in waiting for answers
_MAGIC = {
    b"\x1f\x8b": "gzip data, unpack it first",
    b"PK\x03\x04": "a zip archive, unpack it first",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"<": "HTML or XML, perhaps an error page of a failed download",
    b"{": "JSON",
}


@dataclass(frozen=True)
class Sniffed:
    """What a file's first readable record holds.

    Attributes:
        level: `"frame"` or `"video"`.
        features: `"bytes"` or `"float"`, and the size, of each feature.
        id_key: the key of the id, or None.
        has_labels: whether there is a key `labels`.
    """

    level: str
    features: dict[str, tuple[str, int]]
    id_key: str | None
    has_labels: bool


def list_files(pattern: str, flag: str, folders: bool = False) -> list[str]:
    """The files that match comma-separated globs, sorted, each once.

    `{0000..0099}` in a glob stands for these numbers, for web servers list no files.
    `@FILE` stands for the globs that a text file holds, one a line.

    Args:
        pattern: the globs.
        flag: names them in messages (`--train_data_pattern`).
        folders: whether a folder may be named, as that of predictions.

    Raises:
        UserError: a glob matches nothing or is a folder, or its file system cannot be
            used; the message names `flag`.
    """
    remote.prepare(pattern, flag)
    globs = [part.strip() for part in pattern.split(",") if part.strip()]
    globs = [name for part in globs for name in _listed(part, flag)]
    globs = [name for part in globs for name in _with_numbers(part, flag)]
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(functools.partial(_find, flag=flag), globs))
    except tf.errors.OpError as e:
        raise UserError(f"{flag}={pattern} cannot be read: {reason(e)}") from e
    if not globs:
        raise UserError(f"No file matches {flag}={pattern}.")
    for glob, files in zip(globs, found, strict=True):
        if not files:
            of = f": there is no {glob}" if glob != pattern else ""
            raise UserError(f"No file matches {flag}={pattern}{of}.{_brackets(glob)}")
        if files == [glob] and not folders and tf.io.gfile.isdir(glob):
            raise UserError(f"{flag}={glob} is a folder: give {_within(glob)}.")
    return sorted({path for files in found for path in files})


def _listed(part: str, flag: str) -> list[str]:
    """The globs that `part` stands for: itself, or the lines of the file in `@FILE`."""
    if not part.startswith("@"):
        return [part]
    path = part[1:]
    remote.prepare(path, flag)
    try:
        with tf.io.gfile.GFile(path) as f:
            lines = [line.strip() for line in f.read().splitlines() if line.strip()]
    except (tf.errors.OpError, OSError, UnicodeDecodeError) as e:
        raise UserError(f"{flag}={part} cannot be read as a list: {reason(e)}.") from e
    if not lines:
        raise UserError(f"{flag}={part}: the file lists nothing.")
    # One for each file system: an error names it, and not all lines.
    for line in {line.partition("://")[0]: line for line in lines}.values():
        remote.prepare(line, flag)
    return lines


def _with_numbers(glob: str, flag: str) -> list[str]:
    """The globs that one with ranges of numbers, `{08..11}`, stands for."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", glob)
    if not span:
        return [glob]
    first, last = span.groups()
    if int(first) > int(last):
        raise UserError(f"{flag}={glob}: the range {span[0]} is empty.")
    return [
        f"{glob[: span.start()]}{number:0{len(first)}}{rest}"
        for number in range(int(first), int(last) + 1)
        for rest in _with_numbers(glob[span.end() :], flag)
    ]


def _find(glob: str, flag: str) -> list[str]:
    if remote.is_url(glob):
        remote.check_url(glob, flag)
        return [glob]
    if not re.search(r"[*?[\\]", glob):  # a bucket would be listed for each name
        return [glob] if tf.io.gfile.exists(glob) else []
    found = tf.io.gfile.glob(glob)
    cut = [path for path in found if whole_files.is_temporary(path)]
    if cut:
        log.warning(
            "%s%s is left out: it is still being written, or its writer was killed.",
            cut[0],
            f", as {len(cut) - 1} others," if cut[1:] else "",
        )
    return [path for path in found if path not in cut]


def _brackets(glob: str) -> str:
    """Says so if files are there whose names have the brackets of a glob."""
    if "[" not in glob or remote.is_url(glob):
        return ""
    try:
        found = tf.io.gfile.exists(glob) or tf.io.gfile.glob(re.sub(r"[][]", "?", glob))
    except tf.errors.OpError:
        return ""
    if not found:
        return ""
    return (
        " Brackets stand for one of the characters between them; files of that very "
        f"name are there: write ? for each bracket, {re.sub(r'[][]', '?', glob)}."
    )


def _within(folder: str) -> str:
    """The glob of the shards in a folder, or in those within it."""
    folder = folder.rstrip("/")
    for glob in (f"{folder}/*.tfrecord", f"{folder}/*/*.tfrecord"):
        if tf.io.gfile.glob(glob):
            return glob
    return f"{folder}/*.tfrecord"


def sniff(path: str) -> Sniffed | None:
    """Reads the first record that can be read and has frames.

    Returns:
        None if the file is empty or holds no such record; damaged records are
        reported when they are reached.

    Raises:
        DataError: the file cannot be opened, or is of another kind.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as f:
            start = f.read(512)
    except (tf.errors.OpError, OSError) as e:
        raise DataError(f"{path} cannot be read: {reason(e)}") from e
    if start and not index.is_header(start) and (guess := _guess(start)):
        raise DataError(f"{path} is not a TFRecord file; it looks like {guess}.")
    sniffed = None
    for offset in index.first_offsets(path, _SNIFFED_RECORDS):
        try:
            record = decode_record(index.read_record(path, offset))
        except (DataError, tf.errors.OpError):
            continue
        kinds = {
            name: ("bytes" if array.dtype == "uint8" else "float", array.shape[-1])
            for name, array in record.features.items()
        }
        sniffed = Sniffed(record.level, kinds, record.id_key, record.labels is not None)
        if kinds and all(size for _, size in kinds.values()):
            break
    return sniffed


def sniff_first(files: list[str]) -> tuple[str, Sniffed]:
    """The first file that holds a readable record, and what `sniff` says of it."""
    for path in files:
        sniffed = sniff(path)
        if sniffed is not None:
            return path, sniffed
    raise DataError(
        f"{files[0]} holds no record that can be read: it is empty, damaged or not a "
        f"TFRecord file{', and so are all the others' if files[1:] else ''}."
    )


def refuse_unlabelled(files: list[str], flag: str) -> None:
    """Raises `DataError` if no record at the start of the first file has labels.

    Training would take all of its classes for absent. `flag` names the files.
    """
    path, _ = sniff_first(files)
    for offset in index.first_offsets(path, _SNIFFED_RECORDS):
        try:
            record = decode_record(index.read_record(path, offset))
        except (DataError, tf.errors.OpError):
            continue  # reported when it is reached
        if record.labels is not None:
            return
    raise DataError(
        f"{flag}: {path} has no labels (no key {schema.LABELS_KEY}), as the dataset's "
        "test split; give shards of the training or validation split."
    )


def check_files(
    files: list[str], config: DataConfig, wanted_by: str = "the model"
) -> list[str]:
    """Checks the first file that is not empty against what is wanted of it.

    The records of the other files are checked as they come.

    Args:
        files: paths.
        config: the level, names and sizes that are wanted.
        wanted_by: who wants them, for the message.

    Returns:
        The files that are not empty.

    Raises:
        DataError: the first is no TFRecord file, or none holds a readable record.
        UserError: it holds records of the other level, lacks features, or has them
            in other sizes.
    """
    filled = leave_out_empty(files)
    path, sniffed = sniff_first(filled)
    _check(path, sniffed, config, wanted_by)
    return filled


def leave_out_empty(files: list[str]) -> list[str]:
    """The files that are not empty; the others are warned of.

    Raises:
        DataError: all are empty, or one is not there.
    """
    try:
        sizes = index.sizes(files)
    except tf.errors.OpError as e:  # the message names the file
        raise DataError(f"A file cannot be read: {reason(e)}") from e
    filled = [path for path, size in zip(files, sizes, strict=True) if size]
    for path in sorted(set(files) - set(filled)):
        log.warning("%s is empty and is left out.", path)
    if not filled:
        sniff_first(files)  # which says so
    return filled


def _check(path: str, sniffed: Sniffed, config: DataConfig, wanted_by: str):
    found = {name: size for name, (_, size) in sniffed.features.items()}
    if sniffed.level != config.level:
        raise UserError(
            f"{path} holds {sniffed.level}-level records ({describe(found)}), but "
            f"{wanted_by} wants {config.level}-level records "
            f"({describe(config.features)})."
        )
    # The size of a feature without frames is 0: not known.
    if any(found.get(n, -1) not in (0, size) for n, size in config.features.items()):
        raise UserError(
            f"{path} has the features {describe(found) or 'none'}, but {wanted_by} "
            f"wants {describe(config.features)}; give --feature_names and "
            f"--feature_sizes.{_similar(config.features, found)}"
        )
    for name in config.features:
        if config.level == "video" and sniffed.features[name][0] != "float":
            raise UserError(f"{path} has {name} as bytes; a video-level one is floats.")


def _similar(wanted: Iterable[str], found: Iterable[str]) -> str:
    """A question for the first name that is not there and much like one that is."""
    for name in wanted:
        close = difflib.get_close_matches(name, found, n=1)
        if close and close[0] != name:
            return f" Did you mean {close[0]}?"
    return ""


def describe(features: dict[str, int]) -> str:
    """`rgb 1024, audio 128`."""
    return ", ".join(f"{name} {size}" for name, size in features.items())


def _guess(start: bytes) -> str | None:
    """What a file that is no TFRecord file looks like."""
    for magic, kind in _MAGIC.items():
        if start.lstrip().startswith(magic):
            return kind
    try:
        text = start[: start.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        return None
    if not all(c.isprintable() or c in "\r\n\t" for c in text):
        return None
    line = text.splitlines()[0] if text.strip() else ""
    return "CSV text" if "," in line else "text"
