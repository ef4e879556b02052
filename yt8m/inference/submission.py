"""Submissions as Kaggle took them in 2017 and 2018: written, read, checked.

    VideoId,LabelConfidencePairs
    xv4a,3 0.998 1071 0.25 12 1e-05

A line a video: its id, then classes and scores in turn, best first. A name that ends
in `.gz` is compressed. Paths may be remote (`gs://`).
"""

import contextlib
import gzip
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from yt8m import runs, schema
from yt8m.errors import DataError, UserError

HEADER = b"VideoId,LabelConfidencePairs"

# Level 3 keeps up with the writer; level 9 is six times slower and saves 5 %.
_GZIP_LEVEL = 3
_RECORDS_PER_BLOCK = 256
_BLOCK_BYTES = 1 << 17
# 3,862 pairs take about 60 kB: a longer line is that of another kind of file.
_MAX_LINE_BYTES = 1 << 20
_SHOWN_PER_KIND = 5
_FILE_ERRORS = (OSError, EOFError, zlib.error, tf.errors.OpError)


class SubmissionWriter:
    """Writes a submission batch by batch; the file appears only when it is complete.

    It is written under a temporary name in the same folder, renamed at the end, and
    removed if the `with` block is left by an exception.

    Raises:
        UserError: the file cannot be written (no such folder, disk full, ...).
    """

    def __init__(self, path: str):
        self.path = path
        self.count = 0  # videos written
        self._temporary = f"{path}.tmp"

    def __enter__(self) -> "SubmissionWriter":
        self._raw = self._file = tf.io.gfile.GFile(self._temporary, "wb")
        with self._explained():
            self._raw.write(b"")  # opens it, so that a bad path is found at once
            if self.path.endswith(".gz"):
                # Neither name nor time: equal scores give equal bytes.
                self._file = gzip.GzipFile("", "wb", _GZIP_LEVEL, self._raw, mtime=0)
            self._file.write(HEADER + b"\n")
        return self

    def write(
        self, ids: Sequence[bytes], classes: np.ndarray, scores: np.ndarray
    ) -> None:
        """Appends a batch.

        Args:
            ids: B video ids.
            classes: integers [B, k], those of the highest scores first.
            scores: probabilities [B, k].

        Raises:
            DataError: a score is not finite, or an id cannot stand in a CSV file;
                names the video.
            UserError: the file cannot be written.
        """
        batch, k = scores.shape
        rows = np.empty((batch, 1 + 2 * k), dtype=object)
        rows[:, 0] = ids
        rows[:, 1::2] = classes
        rows[:, 2::2] = scores
        _refuse_bad_values(rows[:, 0].tolist(), scores)
        line = b"%s," + b" ".join([b"%i %g"] * k) + b"\n"
        text = b"".join([line % tuple(row) for row in rows.tolist()])
        with self._explained():
            self._file.write(text)
        self.count += batch

    def __exit__(self, kind, *exception) -> None:
        if kind is not None:
            self._discard()
            return
        with self._explained():
            self._close()
            tf.io.gfile.rename(self._temporary, self.path, overwrite=True)

    def _close(self) -> None:
        if self._file is not self._raw:
            self._file.close()
        self._raw.close()

    def _discard(self) -> None:
        # What made the file unwritable may strike again here, and is known already.
        for remove in (self._close, self._raw.close):
            with contextlib.suppress(*_FILE_ERRORS):
                remove()
        with contextlib.suppress(*_FILE_ERRORS):
            tf.io.gfile.remove(self._temporary)

    @contextlib.contextmanager
    def _explained(self):
        """Leaves nothing behind an error, and words it if the user can mend it."""
        try:
            yield
        except BaseException as e:
            self._discard()
            if isinstance(e, _FILE_ERRORS):
                reason = runs.reason(e)
                raise UserError(f"{self.path} cannot be written: {reason}") from e
            raise


def _refuse_bad_values(ids: list[bytes], scores: np.ndarray) -> None:
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        raise DataError(
            f"The scores of video {_text(ids[int(finite.argmin())])} are not finite "
            "numbers; the model's weights or the video's features are not either."
        )
    joined = b"".join(ids)
    if all(ids) and not any(mark in joined for mark in _BAD_IN_IDS):
        return
    bad = next(i for i in ids if not i or any(mark in i for mark in _BAD_IN_IDS))
    raise DataError(
        f"The video id {bad!r} cannot stand in a submission: it is empty or holds a "
        "comma, a quotation mark or a line end."
    )


_BAD_IN_IDS = (b",", b'"', b"\n", b"\r")


# --- reading -------------------------------------------------------------------------


def read_submission(path: str) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """Reads a submission line by line.

    Yields:
        The video's id, its classes int32 [k] and their scores float64 [k], as written.

    Raises:
        DataError: not a submission; names file and line.
        UserError: the file cannot be read.
    """
    lines = _lines(path)
    _, header = next(lines, (1, b""))
    if header.rstrip() != HEADER:
        raise DataError(f"{path}, line 1: {_header_fault(header)}")
    for number, line in lines:
        try:
            video_id, classes, scores = _parse(line)
        except ValueError:
            raise DataError(f"{path}, line {number}: {_line_fault(line)}") from None
        yield video_id, np.array(classes, np.int32), np.array(scores)


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and lines with their ends."""
    count, rest = 0, b""
    with contextlib.ExitStack() as files:
        try:
            file = files.enter_context(tf.io.gfile.GFile(path, "rb"))
            if path.endswith(".gz"):
                file = files.enter_context(gzip.GzipFile(fileobj=file))
            while block := file.read(_BLOCK_BYTES):
                lines = (rest + block).splitlines(keepends=True)
                rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
                yield from enumerate(lines, count + 1)
                count += len(lines)
                if len(rest) > _MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}, line {count + 1}: longer than {_MAX_LINE_BYTES} "
                        "bytes; this is not a submission."
                    )
        except _FILE_ERRORS as e:
            raise UserError(f"{path} cannot be read: {runs.reason(e)}") from e
        if rest:
            yield count + 1, rest


def _parse(line: bytes) -> tuple[bytes, list[int], list[float]]:
    """Id, classes and scores of a line; `ValueError` if it has another form."""
    video_id, _, pairs = line.rstrip(b"\r\n").partition(b",")
    values = pairs.split(b" ")
    # Python's own notation of numbers allows underscores.
    if not video_id or len(values) % 2 or b"_" in pairs:
        raise ValueError
    return video_id, [int(c) for c in values[::2]], [float(s) for s in values[1::2]]


def _header_fault(line: bytes) -> str:
    return f"the header must be {_text(HEADER)}, found {_quoted(line)}."


def _line_fault(line: bytes) -> str:
    return f"expected `id,class score class score ...`, found {_quoted(line)}."


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _quoted(line: bytes) -> str:
    start = line.rstrip(b"\r\n")
    return repr(_text(start[:60])) + ("..." if len(start) > 60 else "")


def read_ids(files: Iterable[str]) -> Iterator[bytes]:
    """The ids of the videos in TFRecord files of either level, in file order.

    Raises:
        DataError: a file cannot be read to its end; names it.
    """
    # A SequenceExample begins as an Example does, so one parser serves both levels.
    spec = {k: tf.io.FixedLenFeature([], tf.string, "") for k in schema.ID_KEYS}
    key, other_key = schema.ID_KEYS
    for path in files:
        try:
            for records in tf.data.TFRecordDataset(path).batch(_RECORDS_PER_BLOCK):
                found = tf.io.parse_example(records, spec)
                ids = tf.where(found[key] != "", found[key], found[other_key])
                yield from ids.numpy().tolist()
        except tf.errors.OpError as e:
            raise DataError(f"{path} cannot be read: {runs.reason(e)}") from e


# --- checking ------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What `validate` found.

    Attributes:
        path: the file.
        count: number of its lines without the header.
        problems: one line each, with file and line number; the first few of each
            kind, then how many more there are.
        faults: number of problems of each kind.
    """

    path: str
    count: int
    problems: list[str]
    faults: dict[str, int]

    @property
    def ok(self) -> bool:
        return not self.faults


class _Problems:
    """Collects the problems of a file, however many there are, in bounded memory."""

    def __init__(self, path: str):
        self.path = path
        self.faults: Counter[str] = Counter()
        self.shown: list[str] = []

    def add(self, kind: str, text: str, line: int | None = None) -> None:
        self.faults[kind] += 1
        if self.faults[kind] <= _SHOWN_PER_KIND:
            where = self.path if line is None else f"{self.path}, line {line}"
            self.shown.append(f"{where}: {text}")

    def report(self, count: int) -> Report:
        more = [
            f"{self.path}: {n - _SHOWN_PER_KIND:,} more of this kind: {kind}."
            for kind, n in self.faults.items()
            if n > _SHOWN_PER_KIND
        ]
        return Report(self.path, count, self.shown + more, dict(self.faults))


def validate(
    path: str,
    *,
    num_classes: int = schema.NUM_CLASSES,
    top_k: int = 20,
    ids: Iterable[bytes] | None = None,
) -> Report:
    """Checks a submission.

    The header; the form of each line; ids unique and, if `ids` are given, complete and
    none unknown; classes in range and unique in their line; scores in [0, 1], best
    first; at most `top_k` pairs; the last line ended.

    Args:
        path: the file.
        num_classes: classes are 0 .. num_classes - 1.
        top_k: the most pairs in a line.
        ids: the ids of the videos that should be there.

    Raises:
        UserError: the file cannot be read.
    """
    problems = _Problems(path)
    # The line in which each id was seen, 0 for one that is only expected.
    seen: dict[bytes, int] = {} if ids is None else dict.fromkeys(ids, 0)
    lines = _lines(path)
    number, line = next(lines, (0, b""))
    if line.rstrip() != HEADER:
        problems.add("wrong header", _header_fault(line), 1)
    for number, line in lines:
        try:
            video_id, classes, scores = _parse(line)
        except ValueError:
            problems.add("malformed line", _line_fault(line), number)
            continue
        earlier = seen.get(video_id)
        if earlier:
            text = f"video {_text(video_id)} is in line {earlier} already."
            problems.add("repeated video", text, number)
        else:
            if earlier is None and ids is not None:
                text = f"video {_text(video_id)} is not in the shards."
                problems.add("unknown video", text, number)
            seen[video_id] = number
        for kind, text in _pair_faults(classes, scores, num_classes, top_k):
            problems.add(kind, text, number)
    if line and not line.endswith(b"\n"):
        problems.add("cut short", "the file does not end with a line end.", number)
    if number < 2:
        problems.add("empty", "there is no prediction.")
    for video_id, at in seen.items():
        if not at:
            problems.add("missing video", f"video {_text(video_id)} is missing.")
    return problems.report(max(number - 1, 0))


def _pair_faults(
    classes: list[int], scores: list[float], num_classes: int, top_k: int
) -> Iterator[tuple[str, str]]:
    """Kind and description of each fault in the pairs of one line."""
    if len(classes) > top_k:
        yield "too many pairs", f"{len(classes)} pairs, at most {top_k} are allowed."
    if not 0 <= min(classes) <= max(classes) < num_classes:
        bad = next(c for c in classes if not 0 <= c < num_classes)
        yield "class out of range", f"class {bad} is not in 0 .. {num_classes - 1}."
    if len(set(classes)) < len(classes):
        bad = next(c for c, n in Counter(classes).items() if n > 1)
        yield "repeated class", f"class {bad} is there twice."
    # The sum shows a NaN among them, which no comparison would.
    if not (math.isfinite(sum(scores)) and min(scores) >= 0 and max(scores) <= 1):
        bad = next(s for s in scores if not 0 <= s <= 1)
        yield "score out of range", f"score {bad:g} is not in [0, 1]."
    elif scores != sorted(scores, reverse=True):
        at = next(i for i in range(1, len(scores)) if scores[i] > scores[i - 1])
        yield (
            "wrong order",
            f"score {scores[at]:g} follows {scores[at - 1]:g}; the best must be first.",
        )
