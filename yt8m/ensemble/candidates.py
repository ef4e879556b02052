"""The pairs of video and class on which weights are learned, with their labels.

Of each video the candidates are the best `2 * top_k` classes of every source. The GAP
of their weighted sums is that of the whole ensemble, but for classes that none of the
sources ranks that high.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from yt8m.ensemble.sources import Source, joined
from yt8m.errors import DataError
from yt8m.inference.scoring import GroundTruth
from yt8m.inference.submission import as_text
from yt8m.metrics.best_classes import best_classes
from yt8m.metrics.ranking import PairKeys, class_type

_VIDEOS = 512  # at once


@dataclass(frozen=True)
class Candidates:
    """P candidate pairs of N videos, by M sources.

    Attributes:
        rows: int64 [P], the video of each pair, ascending.
        columns: int64 [P], its number among those of its video, by ascending class.
        classes: int32 [P].
        scores: float32 [P, M].
        hits: bool [P], whether the class is a label of the video.
        num_videos: N.
        total_positives: labels of the videos, candidates or not.
        top_k: pairs of a video that enter GAP.
    """

    rows: np.ndarray
    columns: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    num_videos: int
    total_positives: int
    top_k: int

    def gap(self, weights: np.ndarray) -> float:
        """GAP@top_k of the weighted sums of the scores."""
        return self.gap_of(self.scores @ np.asarray(weights, np.float32))

    def gap_of(self, combined: np.ndarray) -> float:
        """GAP@top_k of one score for each pair, float32 [P]."""
        padded = np.append(combined, np.float32(-np.inf))
        scores = padded[self._places]
        best, _ = best_classes(scores, self.top_k)
        pairs = np.take_along_axis(self._places, best, axis=1)
        classes, hits = np.append(self.classes, 0), np.append(self.hits, False)
        classes = classes.astype(class_type(int(classes.max()) + 1))
        top = PairKeys(padded[pairs], classes[pairs], hits[pairs])
        return top.gap(self.total_positives)

    def part(self, chosen: np.ndarray, num_videos: int) -> "Candidates":
        """The pairs of some videos, each with all of its own.

        Labels of them that are no candidates are not counted: of two GAPs of it the
        higher is the better.

        Args:
            chosen: bool [P].
            num_videos: that the pairs are of, or more.
        """
        rows = np.unique(self.rows[chosen], return_inverse=True)[1]
        names = ("columns", "classes", "scores", "hits")
        kept = {name: getattr(self, name)[chosen] for name in names}
        positives = max(1, int(np.count_nonzero(kept["hits"])))
        return Candidates(
            rows,
            **kept,
            num_videos=num_videos,
            total_positives=positives,
            top_k=self.top_k,
        )

    @cached_property
    def _places(self) -> np.ndarray:
        """The number of each video's pairs, int32 [N, most pairs]; P where none is."""
        width = int(self.columns.max(initial=0)) + 1
        places = np.full((self.num_videos, width), len(self.rows), np.int32)
        places[self.rows, self.columns] = np.arange(len(self.rows))
        return places


def collect(
    sources: Sequence[Source],
    truth: GroundTruth,
    score: Callable[[int, np.ndarray], np.ndarray],
    top_k: int = 20,
    most_videos: int | None = None,
) -> Candidates:
    """Reads the candidates of labelled videos.

    Args:
        sources: of `open_sources`, of videos that all are in the truth.
        truth: the labels.
        score: `Combination.scores`.
        top_k: pairs of a video that enter GAP.
        most_videos: of more videos so many are taken, evenly spaced.

    Raises:
        DataError: a video has no labels in the truth; names it.
    """
    count = len(sources[0])
    places = None
    if most_videos is not None and count > most_videos:
        places = np.linspace(0, count - 1, most_videos).astype(np.int64)
        count = most_videos
    parts, first, positives = [], 0, 0
    for ids, rows in joined(sources, _VIDEOS, places):
        labels = labels_of(sources[0].path, ids, truth)
        parts.append(_block(sources, rows, labels, score, 2 * top_k))
        parts[-1][0] += first
        first += len(ids)
        positives += np.count_nonzero(labels)
    return Candidates(
        *map(np.concatenate, zip(*parts, strict=True)),
        num_videos=count,
        total_positives=positives,
        top_k=top_k,
    )


def labels_of(path: str, ids: list[bytes], truth: GroundTruth) -> np.ndarray:
    """The labels bool [n, C] of videos."""
    labels = np.zeros((len(ids), truth.num_classes), bool)
    for own, video_id in zip(labels, ids, strict=True):
        row = truth.rows.get(video_id)
        if row is None:
            raise DataError(
                f"{path} has predictions of video {as_text(video_id)}, of which "
                "--labels knows nothing; give the labels of the same videos."
            )
        ends = np.array([row, row + 1]) * truth.num_classes
        cells = slice(*np.searchsorted(truth.positives, ends))
        own[truth.positives[cells] - ends[0]] = True
    return labels


def _block(
    sources: Sequence[Source],
    rows: list[np.ndarray],
    labels: np.ndarray,
    score: Callable[[int, np.ndarray], np.ndarray],
    count: int,
) -> list[np.ndarray]:
    """`rows`, `columns`, `classes`, `scores` and `hits` of some videos."""
    cells, scores = candidate_scores(sources, rows, score, count)
    columns = columns_of(cells[0])
    return [cells[0], columns, cells[1].astype(np.int32), scores, labels[cells]]


def columns_of(rows: np.ndarray) -> np.ndarray:
    """The number of each pair among those of its video; `rows` ascend."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows)


def candidate_scores(
    sources: Sequence[Source],
    rows: list[np.ndarray],
    score: Callable[[int, np.ndarray], np.ndarray],
    count: int,
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The candidates of some videos: the best `count` classes of every source.

    Returns:
        Their videos and classes, int64 [P] each, ascending; their scores [P, M].
    """
    probabilities = [
        source.probabilities(own) for source, own in zip(sources, rows, strict=True)
    ]
    chosen = np.zeros(probabilities[0].shape, bool)
    for p in probabilities:
        best, values = best_classes(p, count)
        named = values > 0
        np.put_along_axis(
            chosen, best, named | np.take_along_axis(chosen, best, 1), axis=1
        )
    cells = np.nonzero(chosen)
    scores = [score(i, p)[cells] for i, p in enumerate(probabilities)]
    return cells, np.stack(scores, axis=1).astype(np.float32)


def predicted_blocks(
    sources: Sequence[Source],
    score: Callable[[int, np.ndarray], np.ndarray],
    count: int,
    predict: Callable[..., np.ndarray],
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """All videos in the order of the first source: ids, and float32 [n, C].

    Classes that are no candidates have the probability 0.

    Args:
        sources, score: as `collect`.
        count: best classes of a source that are candidates.
        predict: gives the probability [P] of each pair, from `rows`, `columns`,
            `classes` and `scores` as `Candidates` has them.
    """
    for ids, rows in joined(sources, _VIDEOS):
        cells, scores = candidate_scores(sources, rows, score, count)
        found = np.zeros((len(ids), sources[0].num_classes), np.float32)
        if len(scores):
            found[cells] = predict(cells[0], columns_of(cells[0]), cells[1], scores)
        yield ids, found
