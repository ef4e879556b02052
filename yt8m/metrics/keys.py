"""Scores as unsigned numbers that sort as the scores rank, ties included."""

import numpy as np


def descending_bits(scores: np.ndarray) -> np.ndarray:
    """uint32 numbers in ascending order where the `scores` descend.

    Those of float64 scores are their ranks among each other, one for equal scores.
    """
    if scores.dtype == np.float64:
        _, ascending = np.unique(scores, return_inverse=True)
        return (ascending.max(initial=0) - ascending).astype(np.uint32)
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.uint32)  # no -0.0
    return _flip_if_positive(bits)


def _flip_if_positive(bits: np.ndarray) -> np.ndarray:
    # Negative floats already rise in bits as they fall in value; the 31 lower bits
    # of the others are inverted. The sign bit stays, so this undoes itself.
    return bits ^ ((~(bits.view(np.int32) >> 31)).view(np.uint32) >> np.uint32(1))


def rank_keys(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """uint64 keys whose ascending order is by score descending, then by `order`.

    Args:
        scores: float32 or float64, any shape; not NaN.
        order: integers in [0, 2**32) that settle ties, lower first.
    """
    keys = descending_bits(scores).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= order.astype(np.uint64)
    return keys


def scores_of_keys(keys: np.ndarray) -> np.ndarray:
    """The float32 scores in `rank_keys`' result."""
    return _flip_if_positive((keys >> np.uint64(32)).astype(np.uint32)).view(np.float32)
