"""Predictions to combine, and their join by the ids of videos.

A source is a folder of stored predictions or a submission, in any order of videos. A
class that a source does not name for a video has the probability 0 there.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from yt8m.data.predictions import Predictions, is_predictions
from yt8m.errors import DataError, UserError
from yt8m.inference import submission

_LINES = 4096  # read at once
_IDS = 1 << 16  # looked up at once
_PAIR = np.dtype([("class", "<i4"), ("score", "<f4")])


class Submission:
    """A submission that can be read at any video, as `Predictions` can.

    Its pairs are kept in a temporary file, 8 bytes each, its ids in memory.

    Args:
        path: the CSV file, compressed if it ends in `.gz`.
        num_classes: C.

    Raises:
        UserError: the file cannot be read.
        DataError: it is no submission of C classes, a score is no probability, or a
            class or video is there twice; names file and video.
    """

    def __init__(self, path: str, num_classes: int):
        self.path, self.num_classes = path, num_classes
        ids: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        # Its name is gone when it is closed; what is mapped of it stays.
        with tempfile.TemporaryFile() as file:
            for block in self._read_blocks():
                ids.append(block[0])
                counts.append(block[1])
                file.write(block[2].tobytes())
            if not ids:
                raise DataError(f"{path} has no predictions.")
            file.flush()
            self._pairs = np.memmap(file, _PAIR, "r").view(np.ndarray)
        self._ids = np.concatenate(ids)
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        self._order = np.argsort(self._ids, kind="stable")
        self._sorted = self._ids[self._order]
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(twice):
            video = submission.as_text(self._sorted[twice[0]])
            raise DataError(f"{path}: video {video} is there twice.")

    def _read_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Ids of some lines, their numbers of pairs, and the pairs."""
        lines = submission.read_submission(self.path)
        while block := list(itertools.islice(lines, _LINES)):
            ids = np.array([video_id for video_id, _, _ in block])
            counts = np.array([len(classes) for _, classes, _ in block])
            pairs = np.empty(counts.sum(), _PAIR)
            pairs["class"] = np.concatenate([classes for _, classes, _ in block])
            pairs["score"] = np.concatenate([scores for _, _, scores in block])
            rows = np.repeat(np.arange(len(ids)), counts)
            self._check_scores(ids, rows, pairs["score"])
            self._check_classes(ids, rows, pairs["class"])
            yield ids, counts, pairs

    def _check_scores(
        self, ids: np.ndarray, rows: np.ndarray, scores: np.ndarray
    ) -> None:
        right = (scores >= 0) & (scores <= 1)  # not so for NaN
        if not right.all():
            at = int(right.argmin())
            raise DataError(
                f"{self.path}: video {submission.as_text(ids[rows[at]])} has the score "
                f"{scores[at]:g}, which is no probability."
            )

    def _check_classes(
        self, ids: np.ndarray, rows: np.ndarray, classes: np.ndarray
    ) -> None:
        wrong = (classes < 0) | (classes >= self.num_classes)
        if wrong.any():
            at = int(wrong.argmax())
            raise DataError(
                f"{self.path}: video {submission.as_text(ids[rows[at]])} has the class "
                f"{classes[at]}, not one of 0 .. {self.num_classes - 1}; give "
                "--num_classes."
            )
        cells = np.sort(rows * self.num_classes + classes)
        twice = np.flatnonzero(cells[1:] == cells[:-1])
        if len(twice):
            row, label = divmod(int(cells[twice[0]]), self.num_classes)
            raise DataError(
                f"{self.path}: video {submission.as_text(ids[row])} has class {label} "
                "twice."
            )

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """As `Predictions.ids`."""
        return self._ids[start:stop].tolist()

    def rows(self, ids: Sequence[bytes]) -> np.ndarray:
        """As `Predictions.rows`."""
        wanted = np.array(ids)
        places = np.searchsorted(self._sorted, wanted)
        places[places == len(self._sorted)] = 0
        found = self._order[places]
        return np.where(self._ids[found] == wanted, found, -1)

    def probabilities(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """As `Predictions.probabilities`."""
        rows = np.asarray(rows, np.int64)
        counts = self._starts[rows + 1] - self._starts[rows]
        own = np.repeat(np.arange(len(rows)), counts)
        # The places of a row's pairs follow one another.
        within = np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs = self._pairs[np.repeat(self._starts[rows], counts) + within]
        dense = np.zeros((len(rows), self.num_classes), np.float32)
        dense[own, pairs["class"]] = pairs["score"]
        return dense


Source = Predictions | Submission


def open_sources(paths: Sequence[str], num_classes: int) -> list[Source]:
    """Opens sources and checks that all are of the same videos.

    Args:
        paths: folders of predictions, or submissions.
        num_classes: C.

    Raises:
        UserError: one cannot be read, or is of other classes.
        DataError: a video is missing in one of them; names both.
    """
    sources: list[Source] = []
    for path in paths:
        if is_predictions(path):
            stored = Predictions(path)
            if stored.num_classes != num_classes:
                raise UserError(
                    f"{path} is of {stored.num_classes} classes, not {num_classes}; "
                    "give --num_classes."
                )
            sources.append(stored)
        else:
            sources.append(Submission(path, num_classes))
    if not len(sources[0]):
        raise DataError(f"{paths[0]} has no predictions.")
    for other in sources[1:]:
        _refuse_missing(sources[0], other)
        if len(other) != len(sources[0]):
            _refuse_missing(other, sources[0])
    return sources


def _refuse_missing(source: Source, other: Source) -> None:
    """Raises `DataError` if `other` lacks a video of `source`."""
    for start in range(0, len(source), _IDS):
        ids = source.ids(start, start + _IDS)
        missing = other.rows(ids) < 0
        if missing.any():
            video = submission.as_text(ids[int(missing.argmax())])
            raise DataError(
                f"{other.path} has no predictions of video {video}, which "
                f"{source.path} has; combine predictions of the same videos."
            )


def joined(
    sources: Sequence[Source], size: int, places: np.ndarray | None = None
) -> Iterator[tuple[list[bytes], list[np.ndarray]]]:
    """The videos in the order of the first source, some at once.

    Args:
        sources: of `open_sources`.
        size: how many at once.
        places: ascending numbers of the videos that are wanted; all by default.

    Yields:
        Their ids, and their rows in each of the sources.
    """
    first = sources[0]
    count = len(first) if places is None else len(places)
    for start in range(0, count, size):
        end = min(start + size, count)
        rows = np.arange(start, end) if places is None else places[start:end]
        ids = first.ids(int(rows[0]), int(rows[-1]) + 1)
        ids = [ids[i] for i in rows - rows[0]]
        yield ids, [rows, *(source.rows(ids) for source in sources[1:])]
