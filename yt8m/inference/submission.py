"""Submissions as Kaggle took them in 2017 and 2018: written, read, checked.

    VideoId,LabelConfidencePairs
    xv4a,3 0.998 1071 0.25 12 1e-05

A line a video: its id, then classes and scores in turn, best first. A name that ends
in `.gz` is compressed. Paths may be remote (`gs://`).
"""

import contextlib
import gzip
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from yt8m import runs, schema
from yt8m.data.labels import read_labels
from yt8m.data.predictions import Predictions
from yt8m.errors import DataError, UserError
from yt8m.inference.replaced_file import FILE_ERRORS, ReplacedFile

HEADER = b"VideoId,LabelConfidencePairs"

_BLOCK_BYTES = 1 << 17
# 3,862 pairs take about 60 kB: a longer line is that of another kind of file.
_MAX_LINE_BYTES = 1 << 20
_SHOWN_PER_KIND = 5
_LARGEST_CLASS = 2**31 - 1  # what an int32 holds


class SubmissionWriter:
    """Writes a submission batch by batch; the file appears only when it is complete.

    Attributes:
        count: videos written.
    """

    def __init__(self, path: str):
        self._file = ReplacedFile(path)
        self.count = 0

    def __enter__(self) -> "SubmissionWriter":
        self._file.__enter__()
        self._file.write(HEADER + b"\n")
        return self

    def __exit__(self, *exception) -> None:
        self._file.__exit__(*exception)

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
        self._file.write(b"".join([line % tuple(row) for row in rows.tolist()]))
        self.count += batch


def _refuse_bad_values(ids: list[bytes], scores: np.ndarray) -> None:
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        raise DataError(
            f"The scores of video {as_text(ids[int(finite.argmin())])} are not finite "
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
    for _, video_id, classes, scores in _parsed_lines(path):
        yield video_id, np.array(classes, np.int32), np.array(scores)


def _parsed_lines(path: str) -> Iterator[tuple[bytes, bytes, list[int], list[float]]]:
    """Each line after the header, and the id, classes and scores in it."""
    lines = read_lines(path, _MAX_LINE_BYTES)
    _, header = next(lines, (1, b""))
    if header.rstrip() != HEADER:
        raise DataError(f"{path}, line 1: {header_fault(HEADER, header)}")
    for number, line in lines:
        try:
            yield line, *_parse(line)
        except ValueError:
            raise DataError(f"{path}, line {number}: {_line_fault(line)}") from None


def read_lines(path: str, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file, compressed if it ends in `.gz`.

    Yields:
        The line's number, from 1, and the line with its end.

    Raises:
        DataError: a line is longer than `max_bytes`.
        UserError: the file cannot be read.
    """
    count, size, pieces = 0, 0, []
    with contextlib.ExitStack() as files:
        try:
            file = files.enter_context(tf.io.gfile.GFile(path, "rb"))
            if path.endswith(".gz"):
                file = files.enter_context(gzip.GzipFile(fileobj=file))
            while block := file.read(_BLOCK_BYTES):
                pieces.append(block)
                size += len(block)
                # A line of segments is as long as many blocks, and joined once.
                if b"\n" in block or b"\r" in block:
                    lines = b"".join(pieces).splitlines(keepends=True)
                    pieces = [] if lines[-1].endswith(b"\n") else [lines.pop()]
                    yield from enumerate(lines, count + 1)
                    count, size = count + len(lines), sum(map(len, pieces))
                if size > max_bytes:
                    raise DataError(
                        f"{path}, line {count + 1}: longer than {max_bytes} bytes; "
                        "this is not a submission."
                    )
        except FILE_ERRORS as e:
            raise UserError(f"{path} cannot be read: {runs.reason(e)}") from e
        yield from enumerate(b"".join(pieces).splitlines(keepends=True), count + 1)


def _parse(line: bytes) -> tuple[bytes, list[int], list[float]]:
    """Id, classes and scores of a line; `ValueError` if it has another form."""
    video_id, _, pairs = line.rstrip(b"\r\n").partition(b",")
    values = pairs.split(b" ")
    # Python's own notation of numbers allows underscores.
    if not video_id or len(values) % 2 or b"_" in pairs:
        raise ValueError
    classes = [int(c) for c in values[::2]]
    if max(map(abs, classes)) > _LARGEST_CLASS:
        raise ValueError
    return video_id, classes, [float(s) for s in values[1::2]]


def header_fault(header: bytes, found: bytes) -> str:
    """What to say of a first line that is not `header`."""
    return f"the header must be {as_text(header)}, found {quoted(found)}."


def _line_fault(line: bytes) -> str:
    return f"expected `id,class score class score ...`, found {quoted(line)}."


def as_text(value: bytes) -> str:
    """For messages: any bytes, readable."""
    return value.decode(errors="backslashreplace")


def quoted(line: bytes) -> str:
    """For messages: the start of a line, in quotation marks."""
    start = line.rstrip(b"\r\n")
    return repr(as_text(start[:60])) + ("..." if len(start) > 60 else "")


def read_ids(files: Iterable[str]) -> Iterator[bytes]:
    """The ids of the videos in TFRecord files of either level, in file order.

    Raises:
        DataError: a file cannot be read to its end, or a record has no id; names
            file and record.
    """
    for block in read_labels(list(files)):
        yield from block.ids


# --- merging -------------------------------------------------------------------------


def merge_submissions(paths: Sequence[str], output_file: str) -> int:
    """Writes one submission of several, line by line, in the order of `paths`.

    Memory grows by about 100 bytes a video, for the ids seen.

    Args:
        paths: files of the 2017 and 2018 format.
        output_file: compressed if it ends in `.gz`.

    Returns:
        The number of videos written.

    Raises:
        DataError: a file is no submission, or a video is there twice; names files and
            lines.
        UserError: a file cannot be read or written.
    """
    numbers: dict[bytes, int] = {}  # of the line, over all files
    firsts: list[int] = []  # of each file

    def place(number: int) -> str:
        file = bisect_right(firsts, number) - 1
        return f"{paths[file]}, line {number - firsts[file] + 2}"

    with ReplacedFile(output_file) as output:
        output.write(HEADER + b"\n")
        for path in paths:
            firsts.append(len(numbers))
            for line, video_id, _, _ in _parsed_lines(path):
                number = len(numbers)
                earlier = numbers.setdefault(video_id, number)
                if earlier != number:
                    raise DataError(
                        f"{place(number)}: video {as_text(video_id)} is in "
                        f"{place(earlier)} already; give every part once."
                    )
                output.write(line.rstrip(b"\r\n") + b"\n")
    return len(numbers)


def submission_of(paths: Sequence[str], output_file: str, top_k: int = 20) -> int:
    """Writes one submission of the stored predictions in several folders, in order.

    Memory grows by about 100 bytes a video, for the ids seen.

    Args:
        paths: folders of `yt8m.data.predictions`.
        output_file: compressed if it ends in `.gz`.
        top_k: pairs written for each video, if as many are kept.

    Returns:
        The number of videos written.

    Raises:
        DataError: a video is there twice.
        UserError: a folder cannot be read, or the file not written.
    """
    parts = [Predictions(path) for path in paths]
    seen: set[bytes] = set()
    with SubmissionWriter(output_file) as writer:
        for part in parts:
            for rows in part.row_blocks():
                ids = part.ids(rows[0], rows[-1] + 1)
                again = seen.intersection(ids)
                if again:
                    raise DataError(
                        f"{part.path}: video {as_text(min(again))} is in another "
                        "folder already; give every part once."
                    )
                seen.update(ids)
                writer.write(ids, *part.best(rows, top_k))
    return writer.count


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


class Problems:
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
    problems = Problems(path)
    # The line in which each id was seen, 0 for one that is only expected.
    seen: dict[bytes, int] = {} if ids is None else dict.fromkeys(ids, 0)
    lines = read_lines(path, _MAX_LINE_BYTES)
    number, line = next(lines, (0, b""))
    if line.rstrip() != HEADER:
        problems.add("wrong header", header_fault(HEADER, line), 1)
    for number, line in lines:
        try:
            video_id, classes, scores = _parse(line)
        except ValueError:
            problems.add("malformed line", _line_fault(line), number)
            continue
        earlier = seen.get(video_id)
        if earlier:
            text = f"video {as_text(video_id)} is in line {earlier} already."
            problems.add("repeated video", text, number)
        else:
            if earlier is None and ids is not None:
                text = f"video {as_text(video_id)} is not in the shards."
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
            problems.add("missing video", f"video {as_text(video_id)} is missing.")
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
