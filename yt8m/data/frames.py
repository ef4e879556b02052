"""Which frames of each video are taken: small pure functions of the frame counts.

All take `available` int32 [B], the frames that may be taken of each video, and give
indices int32 [B, n] below it; the rows of a video that has fewer than n are padding
(their index repeats the last frame). The letters: B videos, n frames taken.
"""

from collections.abc import Callable

import tensorflow as tf

from yt8m.config import FrameSelection

# Uniform draws from [0, 1) for each video: float32 [B, width].
Uniform = Callable[[int | tf.Tensor], tf.Tensor]


def select_frames(
    num_frames: tf.Tensor,
    selection: FrameSelection,
    seed: tf.Tensor | None,
    *,
    rows: tuple[tf.Tensor, int] | None = None,
    max_frames: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses frames of each video.

    `random` draws with replacement and always gives `count` frames; the other ways
    give min(count, frames) of them, in the order of time. A video without frames
    gives none. `skip_first` leaves out the first frames of the videos that have
    more than that.

    Args:
        num_frames: int32 [B].
        selection: how many and by which method.
        seed: int [2] for the random methods; None takes evenly spaced frames, or all,
            as the selection says of evaluation, whatever the method.
        rows: int32 [B], which rows of a larger batch these videos are, and the size
            of that batch. With `max_frames`, the frames drawn of a video are then
            those that the whole batch would give it.
        max_frames: the most that `num_frames` may be; the longest video by default.

    Returns:
        indices int32 [B, n] into the frames, where n is the largest number taken of
        a video, and the numbers taken int32 [B].
    """
    if seed is None:
        selection = selection.evaluated()
    skipped = tf.where(num_frames > selection.skip_first, selection.skip_first, 0)
    available = num_frames - skipped
    count = selection.count
    if count is None:
        count = _largest(available)
        indices = first_frames(available, count)
    elif seed is None:
        indices = even_frames(available, count)
    else:

        def uniform(width):
            places, size = rows or (None, tf.size(available))
            drawn = tf.random.stateless_uniform([size, width], seed)
            return drawn if places is None else tf.gather(drawn, places)

        longest = _largest(available) if max_frames is None else max_frames
        indices = _METHODS[selection.method](available, count, uniform, longest)
    if seed is not None and selection.count and selection.method == "random":
        taken = tf.where(available > 0, count, 0)
    else:
        taken = tf.minimum(available, count)
    return (skipped[:, None] + indices)[:, : _largest(taken)], taken


def first_frames(available: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """0, 1, 2, ..."""
    return _clip(tf.range(count)[None, :], available)


def even_frames(available: tf.Tensor, count: int) -> tf.Tensor:
    """The middle frames of `count` equal stretches; all frames of a shorter video."""
    middles = (2 * tf.range(count)[None, :] + 1) * available[:, None] // (2 * count)
    long = available[:, None] >= count
    return tf.where(long, middles, first_frames(available, count))


def random_frames(
    available: tf.Tensor, count: int, uniform: Uniform, longest: int = 0
) -> tf.Tensor:
    """Independent uniform draws with replacement, in the order drawn."""
    scaled = uniform(count) * tf.cast(available, tf.float32)[:, None]
    return _clip(tf.cast(scaled, tf.int32), available)


def random_frames_without_replacement(
    available: tf.Tensor, count: int, uniform: Uniform, longest: int | tf.Tensor
) -> tf.Tensor:
    """A uniform subset of `count` frames, in the order of time."""
    length = tf.maximum(longest, count)
    position = tf.range(length)[None, :]
    exists = position < available[:, None]
    _, drawn = tf.math.top_k(tf.where(exists, uniform(length), -1.0), count)
    # Frames that do not exist sort last.
    drawn = tf.where(drawn < available[:, None], drawn, length)
    return _clip(tf.sort(drawn, axis=1), available)


def contiguous_frames(
    available: tf.Tensor, count: int, uniform: Uniform, longest: int = 0
) -> tf.Tensor:
    """`count` frames in a row from a uniformly drawn start."""
    starts = tf.maximum(available - count, 0) + 1
    first = random_frames(starts, 1, uniform)
    return _clip(first + tf.range(count)[None, :], available)


def _clip(indices: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
    return tf.minimum(indices, tf.maximum(available - 1, 0)[:, None])


def _largest(counts: tf.Tensor) -> tf.Tensor:
    """The largest count; 0 of none."""
    return tf.maximum(tf.reduce_max(counts), 0)


_METHODS = {
    "random": random_frames,
    "random_without_replacement": random_frames_without_replacement,
    "contiguous": contiguous_frames,
    "even": lambda available, count, *_: even_frames(available, count),
}
