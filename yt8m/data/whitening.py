"""Global normalisation: the mean and the PCA of video-level features, over shards."""

from collections.abc import Iterable

import numpy as np

from yt8m.data.array_files import save_arrays
from yt8m.errors import UserError


class Moments:
    """Mean and covariance of vectors that come in batches, in float64.

    Memory is two matrices [D, D], however many vectors come.

    Args:
        size: D.

    Reference:
        Chan, Golub and LeVeque 1983, The American Statistician 37(3), equation 2.1b.
    """

    def __init__(self, size: int):
        self.count = 0
        self.mean = np.zeros(size)
        self.scatter = np.zeros((size, size))

    def add(self, x: np.ndarray) -> None:
        """Takes in vectors [n, D]."""
        if not len(x):
            return
        x = x.astype(np.float64)
        mean = x.mean(axis=0)
        centred = x - mean
        total = self.count + len(x)
        shift = mean - self.mean
        self.scatter += centred.T @ centred
        self.scatter += np.outer(shift, shift) * (self.count * len(x) / total)
        self.mean += shift * (len(x) / total)
        self.count = total


def principal_components(
    moments: Moments, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The directions of greatest variance, and the variance along each.

    Args:
        moments: of at least two vectors.
        count: how many are kept; None keeps all D.

    Returns:
        components [D, count], whose columns have norm 1, and variance [count], greatest
        first. Each column's entry of greatest size is positive, so that the result
        does not depend on the machine.
    """
    variance, vectors = np.linalg.eigh(moments.scatter / (moments.count - 1))
    order = np.argsort(variance)[::-1][:count]
    components = vectors[:, order]
    largest = np.abs(components).argmax(axis=0)
    components *= np.sign(components[largest, np.arange(len(order))])
    return components, np.maximum(variance[order], 0.0)


def fit(batches: Iterable[np.ndarray], size: int) -> Moments:
    """The moments of all batches [n, D]. Raises `UserError` below two videos."""
    moments = Moments(size)
    for x in batches:
        moments.add(x)
    if moments.count < 2:
        raise UserError("A normalisation needs at least two videos.")
    return moments


def save(path: str, moments: Moments, count: int | None = None) -> None:
    """Writes `mean` [D], `components` [D, D'] and `variance` [D'] to an .npz file."""
    components, variance = principal_components(moments, count)
    save_arrays(
        path,
        mean=moments.mean.astype(np.float32),
        components=components.astype(np.float32),
        variance=variance.astype(np.float32),
    )
