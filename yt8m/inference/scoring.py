"""Scores submissions of 2017 and 2018, whoever wrote them, against the ground truth.

The truth is that of shards of either level, or of a table:

    VideoId,Labels
    xv4a,3 12 1071

What a submission does not say counts as missed: a video without a line, and classes
outside its pairs. So Hit@k, PERR, GAP and the starter code's mAP are those of the
model that wrote it, up to the rounding of its scores, if there are enough pairs; the
true mAP needs the scores of all classes. Lines of videos that are not in the truth
are left out.
"""

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yt8m import schema
from yt8m.data.files import list_files
from yt8m.data.labels import read_labels
from yt8m.data.predictions import Predictions, is_predictions
from yt8m.errors import DataError, UserError
from yt8m.inference import submission
from yt8m.metrics.ranking import TopRanked
from yt8m.metrics.video_metrics import VideoMetrics

HITS_AT = (1, 5)

_TABLE_ENDS = (".csv", ".csv.gz")
_ID_COLUMNS = ("videoid", "video_id", "id")
_LABEL_COLUMNS = ("labels", "label")
_MAX_LINE_BYTES = 1 << 20
_LINES = 4096  # ranked at once


@dataclass(frozen=True)
class GroundTruth:
    """The labels of N videos.

    Attributes:
        rows: the number of each video, in the order in which they were read.
        positives: int64 [P], `row * num_classes + class` of each label, ascending.
        num_classes: C.
    """

    rows: dict[bytes, int]
    positives: np.ndarray
    num_classes: int


def read_ground_truth(
    pattern: str, num_classes: int = schema.NUM_CLASSES
) -> GroundTruth:
    """Reads the labels of shards, or of tables: files named `.csv` or `.csv.gz`.

    Of shards only ids and labels are parsed. A table has two columns, the video's id
    and its labels with blanks between them, with or without a header; one with more
    columns needs a header that names them (`VideoId` or `id`, `Labels`).

    Args:
        pattern: comma-separated globs.
        num_classes: labels are 0 .. num_classes - 1.

    Raises:
        UserError: no file matches, or one cannot be read.
        DataError: a record or line that cannot be used, a video that is there twice,
            or no label at all; names file and place.
    """
    rows: dict[bytes, int] = {}
    cells = []
    files = list_files(pattern, "--labels")
    tables = [path for path in files if path.endswith(_TABLE_ENDS)]
    shards = [path for path in files if path not in tables]
    for path, ids, counts, labels in itertools.chain(
        _read_shards(shards, num_classes), *map(_read_table, tables)
    ):
        owners = np.repeat(np.arange(len(ids)), counts)
        wrong = (labels < 0) | (labels >= num_classes)
        if wrong.any():
            at = int(wrong.argmax())
            video = submission.as_text(ids[owners[at]])
            raise DataError(
                f"{path}: label {labels[at]} of video {video} is not in "
                f"0 .. {num_classes - 1}; give --num_classes."
            )
        first = len(rows)
        for i, video_id in enumerate(ids, first):
            if not video_id or rows.setdefault(video_id, i) != i:
                video = submission.as_text(video_id)
                problem = f"video {video} is there twice" if video else "no id"
                raise DataError(f"{path}: {problem}; each video needs its own.")
        cells.append((first + owners) * num_classes + labels)
    positives = np.unique(np.concatenate(cells)) if cells else np.empty(0, np.int64)
    if not len(positives):
        raise DataError(
            f"--labels={pattern}: none of the {len(rows)} videos has a label, so there "
            "is nothing to score; the dataset's test split has none."
        )
    return GroundTruth(rows, positives, num_classes)


_Block = tuple[str, list[bytes], Sequence[int] | np.ndarray, np.ndarray]


def _read_shards(files: list[str], num_classes: int) -> Iterator[_Block]:
    """A file, ids, numbers of labels, and the labels one video after another."""
    try:
        for block in read_labels(files, num_classes) if files else ():
            yield block.path, block.ids, block.counts, block.labels
    except DataError as e:
        if "not a TFRecord file" not in str(e):
            raise
        raise DataError(f"{e} A table of labels is named .csv or .csv.gz.") from e


def _read_table(path: str) -> Iterator[_Block]:
    """As `_read_shards`."""
    lines = submission.read_lines(path, _MAX_LINE_BYTES)
    text = (line.decode(errors="surrogateescape") for _, line in lines)
    rows = _parsed(path, csv.reader(text))
    first = next(rows, [])
    columns = _columns(path, first)
    # Without a header the first row is one like the others.
    head = [first] if first and _is_labels(first[-1]) else []
    numbered = enumerate(itertools.chain(head, rows), 2 - len(head))
    while block := list(itertools.islice(numbered, _LINES)):
        ids, labels = [], []
        for line, row in block:
            if not row:
                continue
            try:
                ids.append(row[columns[0]].encode(errors="surrogateescape"))
                labels.append([int(label) for label in row[columns[1]].split()])
            except (IndexError, ValueError):
                raise DataError(
                    f"{path}, line {line}: expected an id and its labels, found "
                    f"{','.join(row)[:60]!r}."
                ) from None
        every = list(itertools.chain.from_iterable(labels))
        if max(every, default=0) > np.iinfo(np.int64).max:
            raise DataError(f"{path}: {max(every)} is no label; labels are indices.")
        flat = np.array(every, np.int64)
        yield path, ids, [len(own) for own in labels], flat


def _parsed(path: str, rows: Any) -> Iterator[list[str]]:
    """The rows of a `csv.reader`, whose errors get the names of file and line."""
    try:
        yield from rows
    except csv.Error as e:
        raise DataError(f"{path}, line {rows.line_num}: {e}.") from e


def _columns(path: str, first: list[str]) -> tuple[int, int]:
    """The columns of ids and of labels, by the header if there is one."""
    names = [name.strip().lower() for name in first]
    found = [
        next((names.index(name) for name in known if name in names), None)
        for known in (_ID_COLUMNS, _LABEL_COLUMNS)
    ]
    if None not in found:
        return found[0], found[1]
    if len(first) == 2:
        return 0, 1
    raise DataError(
        f"{path}, line 1: expected the columns VideoId and Labels, found "
        f"{','.join(first)[:60]!r}."
    )


def _is_labels(text: str) -> bool:
    return all(part.lstrip("-").isdigit() for part in text.split())


def score_submission(
    path: str,
    labels: str | GroundTruth,
    *,
    top_k: int = 20,
    num_classes: int = schema.NUM_CLASSES,
    verticals: Mapping[int, Sequence[str]] | None = None,
    per_class: bool = False,
) -> dict[str, Any]:
    """Scores a submission.

    Equal scores rank by class, then by the order of the truth, so that the order of
    the lines does not matter. Of a line with more than `top_k` pairs the best enter.
    Scores are ranked in double precision and need not be probabilities.

    Args:
        path: the submission; one whose name ends in `.gz` is compressed. Or a folder
            of stored predictions.
        labels: the truth, or a pattern for `read_ground_truth`.
        top_k: pairs of each video that are scored.
        num_classes: classes are 0 .. num_classes - 1; a truth knows its own.
        verticals: the groups of each class, for `per_vertical`.
        per_class: whether to add `per_class`, as `VideoMetrics.per_class`.

    Returns:
        `num_examples`, the videos of the truth; `top_k`, `gap`, `hit_at_1`,
        `hit_at_5`, `perr`, `map_at_20` (or another `top_k`); `missing_videos`, those
        without a line, which count as videos without predictions: their labels stay
        among the positives that GAP and mAP are divided by; `unknown_videos`, lines
        of other videos, left out; with `verticals` also `per_vertical`, as
        `VideoMetrics.per_vertical`.

    Raises:
        UserError: a file cannot be read, or no line is of a video of the truth.
        DataError: what is no submission or no truth; names file and line.
    """
    if isinstance(labels, str):
        labels = read_ground_truth(labels, num_classes)
    num_classes = labels.num_classes
    count = len(labels.rows)
    most_labels = int(np.bincount(labels.positives // num_classes).max())
    width = min(max(top_k, *HITS_AT, most_labels), num_classes)  # PERR looks so far
    scores = np.full((count, width), -np.inf)
    classes = np.zeros((count, width), np.int32)
    written_in = np.zeros(count, np.int32)  # line; 0: none yet
    unknown = 0
    blocks = (
        _stored_blocks(path, num_classes, width)
        if is_predictions(path)
        else _blocks(path, num_classes)
    )
    for first_line, ids, block_classes, block_scores in blocks:
        rows = np.array([labels.rows.get(i, -1) for i in ids])
        known = np.flatnonzero(rows >= 0)
        unknown += len(ids) - len(known)
        rows, lines = rows[known], first_line + known
        again = np.ones(len(rows), bool)
        again[np.unique(rows, return_index=True)[1]] = False
        again |= written_in[rows] > 0
        if again.any():
            at = int(again.argmax())
            video = submission.as_text(ids[known[at]])
            raise DataError(f"{path}, line {lines[at]}: video {video} is there twice.")
        written_in[rows] = lines
        kept = min(width, block_scores.shape[1])
        scores[rows, :kept] = block_scores[known, :kept]
        classes[rows, :kept] = block_classes[known, :kept]
    missing = int(np.count_nonzero(written_in == 0))
    if missing == count:
        raise UserError(
            f"{path}: none of its {unknown} videos is among the {count} of the labels."
        )
    metrics = VideoMetrics(num_classes, top_k, with_map=False, hits_at=HITS_AT)
    for start in range(0, count, _LINES):
        rows = slice(start, start + _LINES)
        metrics.add_ranked(_ranked(labels, start, scores[rows], classes[rows]))
    result = {
        **metrics.result(),
        "top_k": top_k,
        "missing_videos": missing,
        "unknown_videos": unknown,
    }
    if verticals is not None:
        result["per_vertical"] = metrics.per_vertical(verticals)
    if per_class:
        result["per_class"] = metrics.per_class()
    return result


def _blocks(
    path: str, num_classes: int
) -> Iterator[tuple[int, list[bytes], np.ndarray, np.ndarray]]:
    """Reads a submission, checks it, and ranks the pairs of each line.

    Yields:
        The number of the first of B lines; their ids; classes int32 [B, K] and scores
        float64 [B, K], the best first, -inf where a line has fewer pairs than K.
    """
    lines = submission.read_submission(path)
    first_line = 2  # after the header
    while block := list(itertools.islice(lines, _LINES)):
        ids = [video_id for video_id, _, _ in block]
        counts = np.array([len(own) for _, own, _ in block])
        given = np.arange(counts.max()) < counts[:, None]
        classes = np.full(given.shape, num_classes, np.int32)
        scores = np.full(given.shape, -np.inf)
        classes[given] = np.concatenate([own for _, own, _ in block])
        scores[given] = np.concatenate([own for _, _, own in block])
        order = np.argsort(classes, axis=1, kind="stable")
        classes = np.take_along_axis(classes, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
        in_range = (classes >= 0) & (classes < num_classes)
        unused = classes == num_classes
        for wrong, what in (
            (given.sum(axis=1) != in_range.sum(axis=1), "a class is out of range"),
            (
                ((classes[:, 1:] == classes[:, :-1]) & ~unused[:, 1:]).any(axis=1),
                "a class is there twice",
            ),
            ((~np.isfinite(scores) & ~unused).any(axis=1), "a score is not finite"),
        ):
            if wrong.any():
                line = first_line + int(wrong.argmax())
                raise DataError(f"{path}, line {line}: {what}.")
        classes[unused] = 0
        order = np.argsort(-scores, axis=1, kind="stable")
        yield (
            first_line,
            ids,
            np.take_along_axis(classes, order, axis=1),
            np.take_along_axis(scores, order, axis=1),
        )
        first_line += len(block)


def _stored_blocks(
    path: str, num_classes: int, width: int
) -> Iterator[tuple[int, list[bytes], np.ndarray, np.ndarray]]:
    """As `_blocks`, of stored predictions; a row is a line."""
    stored = Predictions(path)
    if stored.num_classes != num_classes:
        raise UserError(
            f"{path} is of {stored.num_classes} classes, not {num_classes}; give "
            "--num_classes."
        )
    for rows in stored.row_blocks(_LINES):
        yield (
            int(rows[0]) + 1,
            stored.ids(rows[0], rows[-1] + 1),
            *stored.best(rows, width),
        )


def _ranked(
    truth: GroundTruth, start: int, scores: np.ndarray, classes: np.ndarray
) -> TopRanked:
    """What is known of the rankings of the videos from number `start` on."""
    ends = np.array([start, start + len(scores)]) * truth.num_classes
    own = slice(*np.searchsorted(truth.positives, ends))
    positives = truth.positives[own] - ends[0]
    cells = np.arange(len(scores))[:, None] * truth.num_classes + classes
    rows, positive_classes = np.divmod(positives, truth.num_classes)
    return TopRanked(
        scores=scores,
        classes=classes,
        hits=np.isin(cells, positives) & (scores > -np.inf),
        num_positives=np.bincount(rows, minlength=len(scores)),
        positive_rows=rows,
        positive_classes=positive_classes,
    )


def summary_line(result: Mapping[str, Any]) -> str:
    """The metrics of `score_submission` in one line for a person."""
    k = result["top_k"]
    hits = " | ".join(f"Hit@{k} {result[f'hit_at_{k}']:.4f}" for k in HITS_AT)
    return (
        f"{result['num_examples']} videos | GAP@{k} {result['gap']:.4f} | {hits} | "
        f"PERR {result['perr']:.4f} | mAP@{k} {result[f'map_at_{k}']:.4f}"
    )


def class_table(
    result: Mapping[str, Any], class_name: Callable[[int], str] | None = None
) -> str:
    """The `per_class` of `score_submission` as CSV, with names if there are any.

    A class without positives has no average precision: the field is empty.
    """
    k, table, text = result["top_k"], result["per_class"], io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    header = ["Index", f"AveragePrecisionAt{k}", "Positives"]
    rows.writerow([*header, "Name"] if class_name else header)
    columns = zip(table[f"ap_at_{k}"], table["positives"], strict=True)
    for i, (precision, positives) in enumerate(columns):
        row = [i, f"{precision:.6f}" if positives else "", positives]
        rows.writerow([*row, class_name(i)] if class_name else row)
    return text.getvalue()
