"""The best classes of every video, on the host.

In a third of the time of `tf.math.top_k` on a processor, which reads scores one by one,
and without TensorFlow.
"""

import numpy as np

from yt8m.metrics.keys import rank_keys, scores_of_keys

# Classes are dealt into groups: the k-th of the groups' maxima bounds the k-th score
# from below, and few scores reach it. Groups are small, since the maxima are taken of
# as many columns at once as there are groups.
_CLASSES_PER_GROUP = 6
_LEAST_GROUPS = 64
_GROUPS_PER_WANTED = 3
# Rows in which more scores than these reach the bound, because many are equal, are
# ranked in another way.
_LEAST_REACHED = 64
_REACHED_PER_WANTED = 4
# Scores that are looked at twice while they are in the cache: 2 MB.
_SCORES_AT_ONCE = 1 << 19

_NO_KEY = np.uint64(2**64 - 1)  # after every key of a score
_ORDER_BITS = np.uint64(2**32 - 1)


def best_classes(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k classes of highest score, best first; the lower class first among equals.

    Args:
        scores: float32 [B, C]. NaN ranks before all else, so that it is seen.
        k: how many, at least 1; all C if there are fewer.

    Returns:
        classes int32 [B, k], and their scores float32 [B, k].
    """
    scores = np.ascontiguousarray(scores, np.float32)
    num_rows, num_classes = scores.shape
    k = min(k, num_classes)
    groups = max(
        _LEAST_GROUPS, _GROUPS_PER_WANTED * k, num_classes // _CLASSES_PER_GROUP
    )
    if num_rows and num_classes >= 2 * groups:
        step = max(_SCORES_AT_ONCE // num_classes, 1)
        keys = np.concatenate(
            [
                _keys_above_bound(scores[first : first + step], k, groups)
                for first in range(0, num_rows, step)
            ]
        )
    else:
        keys = _first_keys(scores, k)
    classes = (keys & _ORDER_BITS).astype(np.int32)
    return classes, scores_of_keys(keys)


def _keys_above_bound(scores: np.ndarray, k: int, groups: int) -> np.ndarray:
    """`rank_keys` [B, k], ascending."""
    num_rows, num_classes = scores.shape
    even = num_classes - num_classes % groups
    highest = scores[:, :even].reshape(num_rows, -1, groups).max(axis=1)
    rest = scores[:, even:]
    own = highest[:, : rest.shape[1]]
    np.maximum(own, rest, out=own)
    bound = np.partition(highest, groups - k, axis=1)[:, groups - k]
    odd = np.isnan(highest).any(axis=1) | (bound == -np.inf)
    bound[odd] = np.nan  # which nothing reaches
    places = np.flatnonzero(scores >= bound[:, None])
    rows = places // num_classes
    counts = np.bincount(rows, minlength=num_rows)
    many = counts > max(_LEAST_REACHED, _REACHED_PER_WANTED * k)
    if many.any():
        places, rows = (x[~many[rows]] for x in (places, rows))
        counts[many] = 0
        odd |= many
    within_row = np.arange(len(places)) - (np.cumsum(counts) - counts)[rows]
    keys = np.full((num_rows, max(k, counts.max())), _NO_KEY)
    classes = places - rows * num_classes
    keys[rows, within_row] = rank_keys(scores.ravel()[places], classes)
    keys.sort(axis=1)
    keys = keys[:, :k]
    if odd.any():
        keys[odd] = _first_keys(scores[odd], k)
    return keys


def _first_keys(scores: np.ndarray, k: int) -> np.ndarray:
    """`rank_keys` [B, k], ascending, whatever the scores are."""
    # Those that processors make have their sign bit set, and would rank last.
    scores = np.where(np.isnan(scores), np.float32(np.nan), scores)
    keys = rank_keys(scores, np.arange(scores.shape[1], dtype=np.uint32))
    return np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1)
