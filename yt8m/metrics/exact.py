"""Exact ranks within each class, from logits kept in memory."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from yt8m.metrics.keys import rank_keys

# Scores that are transposed at once, 4 MB: the more, the less often threads wait for
# one another, and the more of a line of the cache is of use.
_BLOCK_SCORES = 1 << 20
# Of tied positives; to sort all scores with their records takes longer than to count
# the equal ones before each of a few.
_MOST_COUNTED = 32
_MOST_THREADS = 16  # more wait for the memory


class KeptBatch(NamedTuple):
    """A batch of consecutive records.

    Attributes:
        first_record: number of the first.
        logits: float32 [B, C], not NaN.
        rows: int [P], the video of each ranked positive, in [0, B), ascending; one
            of logit -inf is not ranked.
        classes: int [P], its class.
    """

    first_record: int
    logits: np.ndarray
    rows: np.ndarray
    classes: np.ndarray


class KeptLogits:
    """Logits and positives of N videos, batch by batch."""

    def __init__(self):
        self._batches: list[KeptBatch] = []
        self.num_videos = 0

    def append(self, batch: KeptBatch) -> None:
        """Keeps `batch`; nothing is copied."""
        self._batches.append(batch)
        self.num_videos += len(batch.logits)

    def extend(self, other: "KeptLogits", record_offset: int) -> None:
        """Appends what `other` keeps, its records renumbered by `record_offset`."""
        for batch in other._batches:
            first_record = batch.first_record + record_offset
            self.append(batch._replace(first_record=first_record))

    def pop(self, num_videos: int) -> "KeptLogits":
        """Removes the first batches, at least `num_videos` or all, and returns them."""
        popped = KeptLogits()
        while self._batches and popped.num_videos < num_videos:
            popped.append(self._batches.pop(0))
        self.num_videos -= popped.num_videos
        return popped

    def records(self) -> np.ndarray:
        """Record number of every video, uint32 [N], ascending."""
        return np.concatenate(
            [
                np.arange(len(b.logits), dtype=np.uint32) + np.uint32(b.first_record)
                for b in self._batches
            ]
        )

    def by_class(
        self, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, np.ndarray, list[np.ndarray]]]:
        """Yields blocks of classes, all in the same memory.

        Args:
            first, end: only those from `first` to before `end`; None for all.

        Yields:
            The block's first class; its scores, float32 [classes, N], none of them
            -0.0; and for each of its classes the places in [0, N) of the positives,
            ascending.
        """
        starts = np.cumsum([0] + [len(b.logits) for b in self._batches])
        classes = np.concatenate([b.classes for b in self._batches])
        places = np.concatenate(
            [b.rows + s for b, s in zip(self._batches, starts, strict=False)]
        )[np.argsort(classes, kind="stable")]
        ends = np.cumsum(np.bincount(classes, minlength=self._num_classes)).tolist()
        positives = [places[a:b] for a, b in pairwise([0, *ends])]
        end = self._num_classes if end is None else end
        step = max(1, _BLOCK_SCORES // self.num_videos)
        blocks = np.empty((step, self.num_videos), np.float32)
        for low in range(first, end, step):
            high = min(low + step, end)
            block = blocks[: high - low]
            for b, start in zip(self._batches, starts, strict=False):
                # A sum: it turns -0.0 into 0.0.
                own = block[:, start : start + len(b.logits)]
                np.add(b.logits[:, low:high].T, np.float32(0), out=own)
            yield low, block, positives[low:high]

    @property
    def _num_classes(self) -> int:
        return self._batches[0].logits.shape[1]

    def positive_ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """Class and 1-based rank within the class of each positive, both ascending."""
        # NumPy sorts without holding Python's lock.
        threads = min(os.cpu_count() or 1, _MOST_THREADS, self._num_classes)
        ends = np.linspace(0, self._num_classes, threads + 1).astype(int).tolist()
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(self._ranks_of_classes, ends[:-1], ends[1:]))
        return tuple(map(np.concatenate, zip(*parts, strict=True)))

    def _ranks_of_classes(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        classes, ranks = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        records, sorted_blocks = self.records(), None
        for first_class, block, positives in self.by_class(first, end):
            if sorted_blocks is None:
                sorted_blocks = np.empty_like(block)
            ascending = sorted_blocks[: len(block)]
            np.copyto(ascending, block)
            ascending.sort(axis=1)
            for row, places in enumerate(positives):
                if len(places):
                    found = _ranks(block[row], ascending[row], places, records)
                    classes.append(np.full(len(places), first_class + row))
                    ranks.append(found)
        return np.concatenate(classes), np.concatenate(ranks)


def _ranks(
    scores: np.ndarray, ascending: np.ndarray, places: np.ndarray, records: np.ndarray
) -> np.ndarray:
    """The 1-based ranks of the positives of a class, ascending.

    Args:
        scores: float32 [N].
        ascending: the same, sorted.
        places: [P], of the positives.
        records: of all, which settle ties.
    """
    own = scores[places]
    right = np.searchsorted(ascending, own, side="right")
    tied = np.flatnonzero(np.searchsorted(ascending, own) != right - 1)
    if len(tied) > _MOST_COUNTED:
        keys = rank_keys(scores, records)
        return np.searchsorted(np.sort(keys), np.sort(keys[places])) + 1
    ranks = len(scores) - right + 1
    for i in tied.tolist():
        ranks[i] += np.count_nonzero(scores[: places[i]] == own[i])
    return np.sort(ranks)
