"""Centroids of frames, found by k-means on shards too large for memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from yt8m import schema
from yt8m.data.array_files import load_arrays, save_arrays
from yt8m.data.labels import read_each
from yt8m.data.records import Record
from yt8m.errors import DataError, UserError
from yt8m.progress import Progress

# Frames of a step of k-means; at least as many as there are clusters.
_FRAMES_PER_STEP = 16384


@dataclass(frozen=True)
class Centroids:
    """Centroids [K, D] of dequantised frames.

    Attributes:
        features: name and size of each feature, in the order of their concatenation.
        values: float32 [K, D].
    """

    features: dict[str, int]
    values: np.ndarray

    def save(self, path: str) -> None:
        """Writes the file under a temporary name and renames it."""
        save_arrays(
            path,
            values=self.values,
            names=list(self.features),
            sizes=list(self.features.values()),
        )

    @classmethod
    def load(cls, path: str) -> "Centroids":
        """Reads a file of `save`. Raises `UserError` if it is none."""
        try:
            stored = load_arrays(path)
            sizes = [int(s) for s in stored["sizes"]]
            names = [str(n) for n in stored["names"]]
            return cls(dict(zip(names, sizes, strict=True)), stored["values"])
        except (UserError, IndexError, KeyError, ValueError) as e:
            raise UserError(f"{path} is no file of centroids: {e}") from e

    def nearest(self, frames: np.ndarray) -> np.ndarray:
        """The number of the centroid nearest to each frame: int64 [T] from [T, D]."""
        # |x - c|^2 without |x|^2, which is the same for all centroids.
        norms = np.square(self.values).sum(axis=1)
        return np.argmin(norms - 2.0 * (frames @ self.values.T), axis=1)

    def represent(self, frames: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The centroids nearest to any of a video's frames, each once.

        Args:
            frames: each feature [T, size], uint8 or float32.

        Returns:
            Each feature float32 [U, size], of U different centroids.

        Raises:
            DataError: a feature that is missing or of another size.
        """
        joined = concatenate(frames, self.features)
        found = self.values[np.unique(self.nearest(joined))]
        ends = np.cumsum(list(self.features.values()))
        parts = np.split(found, ends[:-1], axis=1)
        return dict(zip(self.features, parts, strict=True))


def concatenate(frames: dict[str, np.ndarray], features: dict[str, int]) -> np.ndarray:
    """The dequantised features of frames, side by side: float32 [T, D].

    Raises:
        DataError: a feature that is missing or of another size.
    """
    parts = []
    for name, size in features.items():
        values = frames.get(name)
        fits = values is not None and values.ndim == 2
        if not fits or (values.size and values.shape[1] != size):
            raise DataError(f"has no feature {name} of {size} values a frame")
        if values.dtype == np.uint8:
            values = values * np.float32(schema.DEQUANTIZE_SCALE)
            values += np.float32(schema.DEQUANTIZE_OFFSET)
        parts.append(values.reshape(-1, size))
    if len({len(part) for part in parts}) > 1:
        raise DataError("has features that differ in their number of frames")
    return np.concatenate(parts, axis=1)


def fit(
    files: Iterable[str],
    features: dict[str, int],
    clusters: int,
    frames_per_video: int = 10,
    seed: int = 0,
) -> Centroids:
    """Finds centroids by mini-batch k-means, in one pass over the shards.

    Args:
        files: frame-level shards.
        features: name and size of each feature.
        clusters: how many centroids K.
        frames_per_video: frames drawn at random from each video; 0 takes all.
        seed: of the draws and of the start.

    Raises:
        UserError: scikit-learn is not installed, or there are fewer frames than
            clusters.
        DataError: a file or record that cannot be used; names both.

    Reference:
        Sculley 2010, "Web-scale k-means clustering", WWW.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as e:
        raise UserError(
            "k-means needs scikit-learn: `pip install -e .[clusters]` brings it."
        ) from e
    size = max(_FRAMES_PER_STEP, clusters)
    means = MiniBatchKMeans(
        clusters, init="random", n_init=1, batch_size=size, random_state=seed
    )
    rng = np.random.default_rng(seed)
    waiting, count, fitted = [], 0, False
    with Progress() as progress:
        for frames in _frames(files, features, frames_per_video, rng):
            waiting.append(frames)
            count += len(frames)
            progress.update(1)
            if count >= size:
                means.partial_fit(np.concatenate(waiting))
                waiting, count, fitted = [], 0, True
    if not fitted and count < clusters:
        raise UserError(
            f"{count:,} frames are fewer than --clusters={clusters}: give more shards, "
            "a larger --frames_per_video, or fewer clusters."
        )
    if count and (not fitted or count >= clusters):
        means.partial_fit(np.concatenate(waiting))
    return Centroids(features, means.cluster_centers_.astype(np.float32))


def _frames(
    files: Iterable[str],
    features: dict[str, int],
    frames_per_video: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Frames float32 [n, D] of each video in turn."""

    def drawn(record: Record) -> np.ndarray:
        frames = concatenate(record.features, features)
        if 0 < frames_per_video < len(frames):
            chosen = rng.choice(len(frames), frames_per_video, replace=False)
            frames = frames[np.sort(chosen)]
        if not np.isfinite(frames).all():
            raise DataError("has a value that is not finite")
        return frames

    for path in files:
        yield from read_each(path, drawn)
