"""Which frames of each video are taken: small pure functions of the frame counts.

All take `available` int32 [B], the frames that may be taken of each video, and give
indices int32 [B, n] below it; the rows of a video that has fewer than n are padding
(their index repeats the last frame). The letters: B videos, n frames taken.
"""

import tensorflow as tf

from yt8m.config import FrameSelection


def select_frames(
    num_frames: tf.Tensor, selection: FrameSelection, seed: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses frames of each video.

    `random` draws with replacement and always gives `count` frames; the other ways
    give min(count, frames) of them, in the order of time. A video without frames
    gives none. `skip_first` leaves out the first frames of the videos that have
    more than that.

    Args:
        num_frames: int32 [B].
        selection: how many and by which method.
        seed: int [2] for the random methods; None takes evenly spaced frames, as
            evaluation does, whatever the method.

    Returns:
        indices int32 [B, n] into the frames, where n is the largest number taken of
        a video, and the numbers taken int32 [B].
    """
    skipped = tf.where(num_frames > selection.skip_first, selection.skip_first, 0)
    available = num_frames - skipped
    count = selection.count
    if count is None:
        count = tf.reduce_max(available)
        indices = first_frames(available, count)
    elif seed is None:
        indices = even_frames(available, count)
    else:
        indices = _METHODS[selection.method](available, count, seed)
    if seed is not None and selection.count and selection.method == "random":
        taken = tf.where(available > 0, count, 0)
    else:
        taken = tf.minimum(available, count)
    return (skipped[:, None] + indices)[:, : tf.reduce_max(taken)], taken


def first_frames(available: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """0, 1, 2, ..."""
    return _clip(tf.range(count)[None, :], available)


def even_frames(available: tf.Tensor, count: int) -> tf.Tensor:
    """The middle frames of `count` equal stretches; all frames of a shorter video."""
    middles = (2 * tf.range(count)[None, :] + 1) * available[:, None] // (2 * count)
    long = available[:, None] >= count
    return tf.where(long, middles, first_frames(available, count))


def random_frames(available: tf.Tensor, count: int, seed: tf.Tensor) -> tf.Tensor:
    """Independent uniform draws with replacement, in the order drawn."""
    uniform = tf.random.stateless_uniform([tf.size(available), count], seed)
    scaled = uniform * tf.cast(available, tf.float32)[:, None]
    return _clip(tf.cast(scaled, tf.int32), available)


def random_frames_without_replacement(
    available: tf.Tensor, count: int, seed: tf.Tensor
) -> tf.Tensor:
    """A uniform subset of `count` frames, in the order of time."""
    length = tf.maximum(tf.reduce_max(available), count)
    keys = tf.random.stateless_uniform([tf.size(available), length], seed)
    position = tf.range(length)[None, :]
    exists = position < available[:, None]
    _, drawn = tf.math.top_k(tf.where(exists, keys, -1.0), count)
    # Frames that do not exist sort last.
    drawn = tf.where(drawn < available[:, None], drawn, length)
    return _clip(tf.sort(drawn, axis=1), available)


def contiguous_frames(available: tf.Tensor, count: int, seed: tf.Tensor) -> tf.Tensor:
    """`count` frames in a row from a uniformly drawn start."""
    starts = tf.maximum(available - count, 0) + 1
    first = random_frames(starts, 1, seed)
    return _clip(first + tf.range(count)[None, :], available)


def _clip(indices: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
    return tf.minimum(indices, tf.maximum(available - 1, 0)[:, None])


_METHODS = {
    "random": random_frames,
    "random_without_replacement": random_frames_without_replacement,
    "contiguous": contiguous_frames,
    "even": lambda available, count, seed: even_frames(available, count),
}
