"""Rankings: the order of scores, precision along it, and the metrics of one batch.

The order is the same everywhere: higher score first, then lower class index, then
earlier record. Scores are ranked as float32 and may be logits, which rank like
probabilities but do not saturate. A score of -inf says that the class is no candidate
(a segment was not rated for it, say): it is not ranked, and if it is a label, that
label was missed.

Sources: Abu-El-Haija et al., "YouTube-8M", 2016, arXiv:1609.08675, section 5.1
(Hit@k, PERR, mAP); the Kaggle competitions of 2017 and 2018 (GAP@20) and of 2019
(MAP@K).
"""

from dataclasses import dataclass

import numpy as np

from yt8m.metrics.best_classes import best_classes
from yt8m.metrics.keys import rank_keys


def precision_sum(ranks: np.ndarray) -> float:
    """Sum of the precisions at the positives, given their ascending 1-based ranks."""
    return float(np.sum(np.arange(1, len(ranks) + 1) / ranks))


def average_precision(
    scores: np.ndarray, labels: np.ndarray, total_positives: int | None = None
) -> float:
    """Average precision of one ranking, without interpolation.

    `1/P * sum of (positives among the first i) / i` over the ranks i of positives;
    equal scores rank in the order given.

    Args:
        scores: [N].
        labels: [N]; positive where > 0.
        total_positives: P, if some positives are not among the N, or if P is capped
            (some divide by min(positives, k) at a cut k). Counted by default.

    Returns:
        The average precision; 0 if P is 0.

    Raises:
        ValueError: shapes differ or a score is NaN.
    """
    scores, labels = _alike(scores, labels, dimensions=1)
    _refuse_nan(scores)
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    ranks = np.flatnonzero((labels & (scores > -np.inf))[order]) + 1
    total = np.count_nonzero(labels) if total_positives is None else total_positives
    return precision_sum(ranks) / total if total else 0.0


def average_precision_at_k(
    hits: np.ndarray,
    total_positives: int,
    k: int,
    rated: np.ndarray | None = None,
) -> float:
    """Average precision of the first `k` items of a ranked list.

    `1/P * sum of (hits among the first i) / i` over the ranks i <= k of hits. P is
    `total_positives`, which `k` does not cap (Kaggle 2019 divided by all positive
    segments of a class).

    Args:
        hits: bool [n], best first.
        total_positives: P, hits and missed ones.
        k: the list is cut after so many.
        rated: bool [n]; items whose truth is unknown are taken out of the list,
            after the cut. By default all are known.

    Returns:
        The average precision; 0 if P is 0.

    Raises:
        ValueError: `k` < 1.
    """
    if k < 1:
        raise ValueError(f"`k` must be positive. Received: k={k}")
    hits = np.asarray(hits, bool)[:k]
    if rated is not None:
        hits = hits[np.asarray(rated, bool)[:k]]
    ranks = np.flatnonzero(hits) + 1
    return precision_sum(ranks) / total_positives if total_positives else 0.0


@dataclass(frozen=True)
class TopRanked:
    """The head of every video's ranking, and all its positives.

    Attributes:
        scores: float32 or float64 [B, K], descending; K is `top_k`, or the most
            labels of a video if that is more, or all classes if these are fewer.
        classes: int32 [B, K].
        hits: bool [B, K], whether the class is a positive of the video and ranked
            (its score is not -inf).
        num_positives: int64 [B].
        positive_rows: int64 [P], the video of each positive, ascending.
        positive_classes: int64 [P], its class.
    """

    scores: np.ndarray
    classes: np.ndarray
    hits: np.ndarray
    num_positives: np.ndarray
    positive_rows: np.ndarray
    positive_classes: np.ndarray

    def hit_at(self, k: int) -> np.ndarray:
        return self.hits[:, :k].any(axis=1).astype(np.float64)

    def perr(self) -> np.ndarray:
        counted = np.arange(self.hits.shape[1]) < self.num_positives[:, None]
        found = np.count_nonzero(self.hits & counted, axis=1)
        return found / np.maximum(self.num_positives, 1)


def rank_top(scores: np.ndarray, labels: np.ndarray, top_k: int) -> TopRanked:
    """Ranks the classes of every video, as far down as Hit@k, PERR and GAP look.

    Args:
        scores: [B, C], B > 0.
        labels: [B, C]; positive where > 0.
        top_k: the least number of classes to rank.

    Raises:
        ValueError: shapes differ, no video or class, `top_k` < 1, or a NaN score.
    """
    scores, labels = _alike(scores, labels, dimensions=2)
    if not scores.size:
        raise ValueError(
            f"`scores` must not be empty. Received: scores.shape={scores.shape}"
        )
    if top_k < 1:
        raise ValueError(f"`top_k` must be positive. Received: top_k={top_k}")
    rows, classes = np.divmod(np.flatnonzero(labels), scores.shape[1])
    num_positives = np.bincount(rows, minlength=len(scores))
    indices, values = best_classes(scores, max(top_k, num_positives.max()))
    if np.isnan(values[:, 0]).any():
        _refuse_nan(scores)
    return TopRanked(
        scores=values,
        classes=indices,
        hits=np.take_along_axis(labels, indices, axis=1) & (values > -np.inf),
        num_positives=num_positives,
        positive_rows=rows,
        positive_classes=classes,
    )


def _alike(
    scores: np.ndarray, labels: np.ndarray, dimensions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Contiguous float32 scores and bool labels of the same shape."""
    scores = np.ascontiguousarray(scores, np.float32)
    labels = np.ascontiguousarray(labels)
    if scores.ndim != dimensions or scores.shape != labels.shape:
        raise ValueError(
            f"`scores` and `labels` must have the same {dimensions}-D shape. "
            f"Received: scores.shape={scores.shape}, labels.shape={labels.shape}"
        )
    return scores, labels if labels.dtype == bool else labels > 0


def _refuse_nan(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        place = np.argwhere(np.isnan(scores))[0].tolist()
        raise ValueError(f"`scores` must not be NaN. Received: NaN at {place}")


def hit_at_k(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """1 for every video with a label among its `k` first-ranked classes, else 0.

    Args:
        scores: [B, C].
        labels: [B, C]; positive where > 0.
        k: classes of each video that are looked at.

    Returns:
        float64 [B]; 0 for a video without labels. Hit@k is its mean (arXiv:1609.08675,
        equation 11).
    """
    return rank_top(scores, labels, k).hit_at(k)


def hit_at_one(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`hit_at_k` for k = 1: whether the first-ranked class is a label."""
    return hit_at_k(scores, labels, 1)


def perr(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Precision at equal recall rate: precision at rank n for a video of n labels.

    Args:
        scores: [B, C].
        labels: [B, C]; positive where > 0.

    Returns:
        float64 [B]; 0 for a video without labels. PERR is its mean, as in the starter
        code; the paper (arXiv:1609.08675, section 5.1) leaves such videos out of it.
    """
    return rank_top(scores, labels, 1).perr()


def gap(scores: np.ndarray, labels: np.ndarray, top_k: int = 20) -> float:
    """Global average precision of a batch.

    The `top_k` classes of every video are pooled and ranked together:
    `1/P * sum of (hits among the first i pairs) / i` over the ranks i of hits, where
    P is the number of all positives, also of those outside the ranking.

    Args:
        scores: [B, C].
        labels: [B, C]; positive where > 0.
        top_k: classes of each video that enter the ranking.
    """
    return batch_metrics(scores, labels, top_k)["gap"]


def batch_metrics(
    scores: np.ndarray, labels: np.ndarray, top_k: int = 20
) -> dict[str, float]:
    """`hit_at_1`, `perr` and `gap` of a batch, from one ranking of its classes.

    Args:
        scores: [B, C].
        labels: [B, C]; positive where > 0.
        top_k: classes of each video that enter GAP.
    """
    top = rank_top(scores, labels, top_k)
    pairs = PairKeys(top.scores[:, :top_k], top.classes[:, :top_k], top.hits[:, :top_k])
    return {
        "hit_at_1": float(np.mean(top.hit_at(1))),
        "perr": float(np.mean(top.perr())),
        "gap": pairs.gap(len(top.positive_rows)),
    }


def class_type(num_classes: int) -> type:
    """The type in which class indices are kept; 16 bits are sorted by radix, faster."""
    return np.uint16 if num_classes <= 1 << 16 else np.int32


class PairKeys:
    """Pooled (class, score) pairs as sortable numbers, for GAP and per-class ranks.

    A key holds the score's bits, then the pair's place when all are arranged by
    class and record, then whether the pair is a positive. So sorting the numbers
    ranks the pairs, ties included. There is room for 2**31 pairs.

    Args:
        scores: float32 or float64 [N, K] or [N * K], records in order.
        classes: integers, same shape.
        hits: bool, same shape.
    """

    def __init__(self, scores: np.ndarray, classes: np.ndarray, hits: np.ndarray):
        classes = classes.ravel()
        by_class = np.argsort(classes, kind="stable")
        self.class_counts = np.bincount(classes)
        place = np.arange(len(by_class), dtype=np.uint32) << np.uint32(1)
        place |= hits.ravel()[by_class]
        self.keys = rank_keys(scores.ravel()[by_class], place)

    def positives_by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """Class and 1-based rank within the class of each positive, both ascending."""
        keys = self.keys.copy()
        ends = np.cumsum(self.class_counts)
        starts = ends - self.class_counts
        for start, end in zip(starts, ends, strict=True):
            keys[start:end].sort()
        places = np.flatnonzero(keys & np.uint64(1))
        classes = np.searchsorted(ends, places, side="right")
        return classes, places - starts[classes] + 1

    def gap(self, total_positives: int, members: np.ndarray | None = None) -> float:
        """Average precision of the whole ranking; 0 without positives.

        Args:
            total_positives: those outside the ranking included.
            members: bool [C], the classes whose pairs are ranked; all by default.
        """
        keys = self.keys
        if members is not None:
            counted = members[: len(self.class_counts)]
            keys = keys[np.repeat(counted, self.class_counts)]
        ranks = np.flatnonzero(np.sort(keys) & np.uint64(1)) + 1
        return precision_sum(ranks) / total_positives if total_positives else 0.0


def average_precisions_of_ranks(
    classes: np.ndarray, ranks: np.ndarray, total_positives: np.ndarray
) -> np.ndarray:
    """Average precision of every class, from the ranks of its positives.

    Args:
        classes: [P] class of each positive, ascending.
        ranks: [P] its 1-based rank within the class, ascending in each class.
        total_positives: [C] positives of each class, ranked or not.

    Returns:
        float64 [C]; NaN for a class without positives.
    """
    found = np.bincount(classes, minlength=len(total_positives))
    starts = np.cumsum(found) - found
    precisions = (np.arange(1, len(classes) + 1) - starts[classes]) / ranks
    sums = np.bincount(classes, weights=precisions, minlength=len(total_positives))
    return np.divide(
        sums,
        total_positives,
        out=np.full(len(total_positives), np.nan),
        where=total_positives > 0,
    )
