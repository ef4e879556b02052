"""Average precision by class, and its mean over classes (mAP), of whole arrays."""

from collections.abc import Mapping, Sequence

import numpy as np

from yt8m.metrics.bucketed import bucketed_average_precisions
from yt8m.metrics.exact import KeptBatch, KeptLogits
from yt8m.metrics.ranking import (
    PairKeys,
    average_precision_at_k,
    average_precisions_of_ranks,
    rank_top,
)


def class_average_precisions(
    scores: np.ndarray, labels: np.ndarray, top_k: int | None = None
) -> np.ndarray:
    """Average precision of every class over the ranking of all videos.

    Args:
        scores: [N, C].
        labels: [N, C]; positive where > 0.
        top_k: only the `top_k` classes of every video are ranked, as in the starter
            code; the positives are all counted all the same. By default all are.

    Returns:
        float64 [C]; NaN for a class without positives.
    """
    top = rank_top(scores, labels, top_k or 1)
    totals = np.bincount(top.positive_classes, minlength=np.shape(scores)[1])
    if top_k is not None:
        head = np.s_[:, :top_k]
        pairs = PairKeys(top.scores[head], top.classes[head], top.hits[head])
        return average_precisions_of_ranks(*pairs.positives_by_class(), totals)
    scores = np.asarray(scores, np.float32) + np.float32(0)  # turns -0.0 into 0.0
    rows, classes = top.positive_rows, top.positive_classes
    ranked = scores[rows, classes] > -np.inf
    kept = KeptLogits()
    kept.append(KeptBatch(0, scores, rows[ranked], classes[ranked]))
    return average_precisions_of_ranks(*kept.positive_ranks(), totals)


def mean_of_classes(average_precisions: np.ndarray) -> float:
    """The unweighted mean over the classes that have positives; 0 if none has.

    Args:
        average_precisions: [C]; NaN for a class without positives.
    """
    with_positives = average_precisions[~np.isnan(average_precisions)]
    return float(np.mean(with_positives)) if len(with_positives) else 0.0


def mean_average_precision(
    scores: np.ndarray, labels: np.ndarray, top_k: int | None = None
) -> float:
    """The mean over classes of `class_average_precisions`.

    Without `top_k` this is the true mAP, over the full ranking of every class. With
    it, the starter code's: a lower bound of the true one, which grows with `top_k`.
    """
    return mean_of_classes(class_average_precisions(scores, labels, top_k))


def bucketed_mean_average_precision(
    probabilities: np.ndarray, labels: np.ndarray
) -> float:
    """The paper's mAP: the mean over classes of `bucketed_average_precisions`."""
    return mean_of_classes(bucketed_average_precisions(probabilities, labels))


def mean_average_precision_at_k(
    hits: Mapping[int, Sequence[bool] | np.ndarray],
    positives: Mapping[int, int],
    k: int,
) -> float:
    """MAP@K: the mean over classes of `average_precision_at_k` of their rankings.

    Args:
        hits: for each class, whether each item of its ranking is a positive, best
            first. A class of `positives` that is absent here counts as 0.
        positives: the number of all positives of each class. Classes without any are
            left out of the mean, as they have no average precision.
        k: each ranking is cut after so many items (100,000 in Kaggle's 2019).

    Returns:
        The mean; 0 if no class has a positive.
    """
    return mean_of_classes(
        np.array(
            [
                average_precision_at_k(hits.get(c, []), total, k)
                for c, total in positives.items()
                if total
            ]
        )
    )
