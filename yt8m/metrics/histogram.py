"""Ranks within each class in bounded memory: exact at the top, counted in bins below.

A misplaced negative moves a precision by the relative change of the rank. So the
first `EXACT_RANKS` videos of every class are kept one by one, and below them, where a
bin holds a small part of the videos above it, scores are only counted. Positives are
few and known one by one; where in their bin they rank is estimated:

*   Positives of equal scores are taken to be tied with the bin's negatives too (scores
    saturate, are clamped or coarse): they rank in record order, which was counted.
*   Others are spread evenly among the bin's negatives, their expected places.

The mAP is within 2e-5 of the exact one for logits (normal, heavy-tailed, saturated,
clamped, bfloat16) and for probabilities. It loses accuracy when nearly all scores of
a class lie in a few bins: 2e-4 at a standard deviation of 0.2 around -7, and 1e-2 at
0.02.
"""

from itertools import pairwise

import numpy as np

from yt8m.metrics.exact import KeptLogits
from yt8m.metrics.keys import rank_keys, scores_of_keys
from yt8m.metrics.ranking import class_type

EXACT_RANKS = 256

# Bins are those of the float |score| + 2**-12 with 9 bits of mantissa, up to 256:
# even steps of 2**-21 near zero, elsewhere of 1/1024 to 1/512 of the score (1/64 at a
# logit of -12). They do not depend on the data, so that histograms of different
# videos can be added.
_OFFSET = np.float32(2.0**-12)
_DROPPED_BITS = 23 - 9
_BINS_PER_SIGN = (12 + 8) << 9
_NUM_BINS = 2 * _BINS_PER_SIGN + 1  # the first is that of -inf, which is not ranked

_NO_KEY = np.uint64(2**64 - 1)  # after every key of a score
_LOWEST = np.finfo(np.float32).min


def bin_index(scores: np.ndarray) -> np.ndarray:
    """int64 bin of each float32 score (none of them -0.0), rising with the score."""
    bins = (np.abs(scores) + _OFFSET).view(np.int32)
    bins -= _OFFSET.view(np.int32)
    bins >>= _DROPPED_BITS
    np.minimum(bins, _BINS_PER_SIGN - 1, out=bins)
    bins ^= scores.view(np.int32) >> 31  # -1 - bin for a negative score
    bins += _BINS_PER_SIGN + 1
    if scores.min(initial=0) == -np.inf:
        bins[scores == -np.inf] = 0
    return bins.astype(np.intp)


class RankHistogram:
    """Per class, the first `EXACT_RANKS` videos, binned negatives, and the positives.

    Takes 84 kB for a class, 324 MB for 3,862, and 14 bytes for a positive.
    """

    def __init__(self, num_classes: int):
        self._counts = np.zeros((num_classes, _NUM_BINS), np.int32)
        self._first = np.full((num_classes, EXACT_RANKS), _NO_KEY)
        self._entry_scores = np.full(num_classes, _LOWEST, np.float32)
        self._class_type = class_type(num_classes)
        # Of each positive: class, key, negatives of earlier records in its bin.
        self._positives: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def fold(self, kept: KeptLogits) -> None:
        """Takes in the videos of `kept`, all of later records than those before."""
        records = kept.records()
        for first_class, block, positives in kept.by_class():
            classes = slice(first_class, first_class + len(block))
            self._count(first_class, block, positives, records)
            bounds = self._entry_scores[classes, None]
            last = block.shape[1] - EXACT_RANKS
            if last > 0 and (bounds == _LOWEST).any():  # all would enter, and leave
                own = np.partition(block, last, axis=1)[:, last, None]
                bounds = np.maximum(bounds, own)
            enters = block >= bounds
            rows, columns = np.divmod(np.flatnonzero(enters), block.shape[1])
            found = np.bincount(rows, minlength=len(block))
            within_row = np.arange(len(rows)) - (np.cumsum(found) - found)[rows]
            keys = np.full((len(block), found.max()), _NO_KEY)
            keys[rows, within_row] = rank_keys(block[rows, columns], records[columns])
            self._enter(classes, keys)

    def _count(
        self,
        first_class: int,
        block: np.ndarray,
        positives: list[np.ndarray],
        records: np.ndarray,
    ) -> None:
        """Counts the negatives of a block of classes and records its positives."""
        earlier = []
        one = np.int32(1)
        for row, (bins, places) in enumerate(
            zip(bin_index(block), positives, strict=True)
        ):
            counts = self._counts[first_class + row]
            start = 0
            for place in places.tolist():
                np.add.at(counts, bins[start:place], one)
                earlier.append(counts[bins[place]])
                start = place + 1
            np.add.at(counts, bins[start:], one)
        rows = np.repeat(np.arange(len(positives)), [len(p) for p in positives])
        places = np.concatenate(positives)
        self._positives.append(
            (
                (first_class + rows).astype(self._class_type),
                rank_keys(block[rows, places], records[places]),
                np.array(earlier, np.int32),
            )
        )

    def merge(self, other: "RankHistogram", record_offset: int) -> None:
        """Adds `other`'s videos, their records renumbered by `record_offset`."""
        for classes, keys, earlier in other._positives:
            bins = bin_index(scores_of_keys(keys))
            self._positives.append(
                (
                    classes,
                    keys + np.uint64(record_offset),
                    earlier + self._counts[classes, bins],
                )
            )
        self._counts += other._counts
        renumbered = other._first + np.uint64(record_offset)
        renumbered[other._first == _NO_KEY] = _NO_KEY
        self._enter(slice(None), renumbered)

    def _enter(self, classes: slice, keys: np.ndarray) -> None:
        """Keeps the first `EXACT_RANKS` of those kept and `keys` [classes, n]."""
        first = np.concatenate([self._first[classes], keys], axis=1)
        first = np.partition(first, EXACT_RANKS - 1, axis=1)[:, :EXACT_RANKS]
        self._first[classes] = first
        last = first.max(axis=1)
        full = last != _NO_KEY
        self._entry_scores[classes] = np.where(full, scores_of_keys(last), _LOWEST)

    def positive_ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """Class and 1-based rank within the class of each positive, both ascending.

        Ranks up to `EXACT_RANKS` are exact, those beyond are estimates (float64).
        """
        classes, keys, earlier = map(np.concatenate, zip(*self._positives, strict=True))
        by_class = np.argsort(classes, kind="stable")
        ends = np.cumsum(np.bincount(classes, minlength=len(self._counts)))
        ranks = []
        for c, (start, end) in enumerate(pairwise([0, *ends])):
            own = by_class[start:end]
            own = own[np.argsort(keys[own])]
            exact = np.searchsorted(np.sort(self._first[c]), keys[own]) + 1
            estimated = self._estimated_ranks(c, keys[own], earlier[own])
            ranks.append(np.where(exact <= EXACT_RANKS, exact, estimated))
        return classes[by_class], np.concatenate(ranks)

    def _estimated_ranks(
        self, c: int, keys: np.ndarray, earlier: np.ndarray
    ) -> np.ndarray:
        scores = scores_of_keys(keys)
        bins = bin_index(scores)
        positives = np.bincount(bins, minlength=_NUM_BINS)
        negatives = self._counts[c]
        order = np.arange(1, len(keys) + 1)
        order_in_bin = order - (len(keys) - np.cumsum(positives))[bins]
        spread = negatives[bins] * order_in_bin / (positives[bins] + 1)
        _, own, times = np.unique(scores, return_inverse=True, return_counts=True)
        before_in_bin = np.where(times[own] > 1, earlier, spread)
        negatives_above = (negatives.sum() - np.cumsum(negatives))[bins]
        return np.maximum(order + negatives_above + before_in_bin, EXACT_RANKS + 1)
