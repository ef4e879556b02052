"""One prediction of several: means of probabilities, of logits, or of ranks.

With p_i the probability that source i gives a class, and weights w_i that sum to 1:

    mean        sum_i w_i p_i
    geometric   prod_i p_i^w_i / (prod_i p_i^w_i + prod_i (1 - p_i)^w_i), the normalised
                geometric mean: the sigmoid of the mean logit. Each p_i is taken to be
                at least `floor`; a class that no source names stays at 0.
    rank        sum_i w_i r_i. The best `top_k` classes of each video are ranked
                together over all videos, as GAP ranks them; r_i is the share of them
                that ranks below, and half of those that are equal; 0 for other pairs.
                Only the order within a source counts, not how sure it is.
"""

from collections.abc import Sequence

import numpy as np

from yt8m.ensemble.calibration import logits_of
from yt8m.ensemble.sources import Source, joined
from yt8m.metrics.best_classes import best_classes

METHODS = ("mean", "geometric", "rank")

_VIDEOS = 512  # at once: their scores take 8 MB for 3,862 classes
_MOST_LOGIT = 20.0  # of ranks; a float32 next to 1 has 16.6
_RANK_BINS = 1 << 20  # 4e-5 of a logit each


class RankTable:
    """The share of a source's best pairs that rank below a probability.

    The ranking is that of all videos, from counts of the logits in narrow bins: pairs
    in one bin are equal.

    Args:
        source: all of it is read.
        top_k: pairs of each video.
    """

    def __init__(self, source: Source, top_k: int):
        self.top_k = top_k
        counts = np.zeros(_RANK_BINS, np.int64)
        for start in range(0, len(source), _VIDEOS):
            rows = np.arange(start, min(start + _VIDEOS, len(source)))
            p = source.probabilities(rows)
            _, best = best_classes(p, top_k)
            counts += np.bincount(_rank_bins(best[best > 0]), minlength=_RANK_BINS)
        below = np.cumsum(counts) - counts
        self._shares = ((below + counts / 2) / max(counts.sum(), 1)).astype(np.float32)

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The shares [n, C] of probabilities [n, C]; 0 outside the best of a row."""
        best, values = best_classes(probabilities, self.top_k)
        shares = np.where(values > 0, self._shares[_rank_bins(values)], 0)
        found = np.zeros_like(probabilities)
        np.put_along_axis(found, best, shares, axis=1)
        return found


def _rank_bins(probabilities: np.ndarray) -> np.ndarray:
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    scaled = (np.log(p) - np.log1p(-p) + _MOST_LOGIT) * (_RANK_BINS / 2 / _MOST_LOGIT)
    return np.clip(scaled, 0, _RANK_BINS - 1).astype(np.int64)


class Combination:
    """What is made of the predictions of several sources.

    Scores of a source are what is averaged: `scores`, from which `probabilities` makes
    the result.

    Args:
        method: one of `METHODS`.
        sources: of `open_sources`; for ranks all are read.
        floor: of the geometric mean.
        top_k: of ranks.
    """

    def __init__(
        self,
        method: str,
        sources: Sequence[Source],
        floor: float = 1e-4,
        top_k: int = 20,
    ):
        self.method, self.sources, self.floor = method, list(sources), floor
        self._tables = []
        if method == "rank":
            self._tables = [RankTable(source, top_k) for source in sources]

    def scores(self, number: int, probabilities: np.ndarray) -> np.ndarray:
        """The scores float32 [n, C] of a source's probabilities [n, C]."""
        if self.method == "geometric":
            return logits_of(probabilities, self.floor)
        return self._tables[number](probabilities) if self._tables else probabilities

    def probabilities(self, rows: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
        """The combined probabilities float32 [n, C].

        Args:
            rows: of the n videos in each source, as `joined` gives them.
            weights: [M], which sum to 1; a source of weight 0 is not read.
        """
        shape = (len(rows[0]), self.sources[0].num_classes)
        total, named = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for number, weight in enumerate(weights):
            if weight:
                p = self.sources[number].probabilities(rows[number])
                total += np.float32(weight) * self.scores(number, p)
                if self.method == "geometric":
                    named |= p > 0
        if self.method == "geometric":
            return np.where(named, 1 / (1 + np.exp(-total)), 0).astype(np.float32)
        return np.minimum(total, 1)  # a rounding beyond it

    def blocks(self, weights: np.ndarray):
        """All videos in the order of the first source: ids, and as `probabilities`."""
        for ids, rows in joined(self.sources, _VIDEOS):
            yield ids, self.probabilities(rows, weights)
