"""Predictions for people to read: names of classes, and a timeline for segments.

A name that ends in `.csv` gives a row for each prediction,

    VideoId,Rank,Class,Name,Score            of videos
    VideoId,Start,End,Class,Name,Score       of segments, in seconds

one that ends in `.json` or `.jsonl` an object for each video, on a line of its own:
`{"video_id": .., "classes": [{"rank": .., "class": .., "name": .., "score": ..}]}`, or
`"segments"`, with `start` and `end` in the place of `rank`.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from yt8m.errors import UserError
from yt8m.inference.replaced_file import ReplacedFile

_JSON_EXTENSIONS = (".json", ".jsonl")
_FIRST_COLUMNS = {"classes": ["rank"], "segments": ["start", "end"]}
_LAST_COLUMNS = ["class", "name", "score"]

Windows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class ListingWriter:
    """Writes a listing batch by batch; the file appears only when it is complete.

    Args:
        path: ends in `.csv`, `.json` or `.jsonl`; may be remote.
        class_name: gives the name of a class.
        segments: whether segments of videos are listed, not videos.

    Raises:
        UserError: another ending, or the file cannot be written.
    """

    def __init__(
        self, path: str, class_name: Callable[[int], str], segments: bool = False
    ):
        self._json = path.endswith(_JSON_EXTENSIONS)
        if not self._json and not path.endswith(".csv"):
            raise UserError(f"--names={path} must end in .csv, .json or .jsonl.")
        self._class_name = class_name
        self._key = "segments" if segments else "classes"
        self._columns = _FIRST_COLUMNS[self._key] + _LAST_COLUMNS
        self._file = ReplacedFile(path, lambda p: tf.io.gfile.GFile(p, "w"))

    def __enter__(self) -> "ListingWriter":
        self._file.__enter__()
        header = ["VideoId", *(name.capitalize() for name in self._columns)]
        # Written even if empty: this opens it, so that a bad path is found at once.
        self._file.write("" if self._json else ",".join(header) + "\n")
        return self

    def __exit__(self, *exception) -> None:
        self._file.__exit__(*exception)

    def write_videos(
        self, ids: Sequence[bytes], classes: np.ndarray, scores: np.ndarray
    ) -> None:
        """Appends a batch.

        Args:
            ids: B video ids.
            classes: integers [B, k], those of the highest scores first.
            scores: probabilities [B, k].
        """
        rows = zip(classes.tolist(), scores.tolist(), strict=True)
        self._write(
            ids,
            (
                [(rank, *pair) for rank, pair in enumerate(zip(*row, strict=True), 1)]
                for row in rows
            ),
        )

    def write_segments(self, ids: Sequence[bytes], windows: Iterable[Windows]) -> None:
        """Appends a batch as a timeline; see `merge_windows`.

        Args:
            ids: B video ids.
            windows: in pieces of n windows each, ordered by video and start: the
                number of the video in the batch, start and end in seconds, all
                integers [n]; classes [n, k], -1 for none, and their probabilities
                [n, k].
        """
        of_video: list[list] = [[] for _ in ids]
        for piece in windows:
            for row, *window in zip(*(c.tolist() for c in piece), strict=True):
                of_video[row].append(window)
        self._write(ids, map(merge_windows, of_video))

    def _write(self, ids: Sequence[bytes], predictions: Iterable[list[tuple]]) -> None:
        """Appends videos with their rows, each of which ends in class and score."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        for video_id, rows in zip(ids, predictions, strict=True):
            name = video_id.decode(errors="replace")
            values = [
                (*first, c, self._class_name(c), f"{score:g}")
                for *first, c, score in rows
            ]
            if self._json:
                found = [
                    dict(zip(self._columns, (*row[:-1], float(row[-1])), strict=True))
                    for row in values
                ]
                line = {"video_id": name, self._key: found}
                text.write(json.dumps(line, ensure_ascii=False) + "\n")
            else:
                table.writerows((name, *row) for row in values)
        self._file.write(text.getvalue())


def merge_windows(
    windows: Iterable[tuple[int, int, list[int], list[float]]],
) -> list[tuple[int, int, int, float]]:
    """Spans of time in which a class is among the best of every window.

    Args:
        windows: start, end, classes and scores of each window of a video, by time;
            windows may overlap. The class -1 is none.

    Returns:
        Start, end, class and highest score of each span; by start, then by score.
    """
    spans: list[list] = []
    latest: dict[int, list] = {}
    for start, end, classes, scores in windows:
        for c, score in zip(classes, scores, strict=True):
            if c < 0:
                continue
            span = latest.get(c)
            if span and span[1] >= start:
                span[1], span[3] = max(span[1], end), max(span[3], score)
            else:
                latest[c] = [start, end, c, score]
                spans.append(latest[c])
    return [tuple(s) for s in sorted(spans, key=lambda s: (s[0], -s[3], s[2]))]
