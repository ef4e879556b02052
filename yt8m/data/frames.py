"""Which frames of each video are taken: small pure functions of the frame counts.

All take `available` int32 [B], the frames that may be taken of each video, and give
indices int32 [B, n] below it; the rows of a video that has fewer than n are padding
(their index repeats the last frame). The letters: B videos, n frames taken.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from yt8m.config import FrameAugmentation, FrameSelection
from yt8m.schema import DEQUANTIZE_OFFSET, DEQUANTIZE_SCALE

# Streams of draws beside that of the method.
_CROP, _BOOTSTRAP = 1, 2

# Uniform draws from [0, 1) for each video: float32 [B, width].
Uniform = Callable[[int | tf.Tensor], tf.Tensor]


def select_frames(
    num_frames: tf.Tensor,
    selection: FrameSelection,
    seed: tf.Tensor | None,
    *,
    rows: tuple[tf.Tensor, int] | None = None,
    max_frames: int | None = None,
    breaks: tf.Tensor | None = None,
    augmentation: FrameAugmentation | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses frames of each video.

    `random` draws with replacement and always gives `count` frames; the other ways
    give min(count, frames) of them, in the order of time. A video without frames
    gives none. `skip_first` leaves out the first frames of the videos that have
    more than that. Of what is left, `breaks` leaves one frame a scene, and the
    augmentation's crop a stretch, both of at least one frame; its bootstrap draws again
    among the frames that were chosen.

    Args:
        num_frames: int32 [B].
        selection: how many and by which method; its scenes are those of `breaks`.
        seed: int [2] for the random methods; None takes evenly spaced frames, or all,
            as the selection says of evaluation, whatever the method.
        rows: int32 [B], which rows of a larger batch these videos are, and the size
            of that batch. With `max_frames`, the frames drawn of a video are then
            those that the whole batch would give it.
        max_frames: the most that `num_frames` may be; the longest video by default.
        breaks: bool [B, T], where scenes begin, see `scene_breaks`.
        augmentation: of training; without a seed there is none.

    Returns:
        indices int32 [B, n] into the frames, where n is the largest number taken of
        a video, and the numbers taken int32 [B].
    """
    if seed is None:
        selection = selection.evaluated()
    skipped = tf.where(num_frames > selection.skip_first, selection.skip_first, 0)
    first, available = skipped, num_frames - skipped
    places = None
    if breaks is not None:
        places, available = scene_frames(breaks, skipped, num_frames)
        first = tf.zeros_like(skipped)
    longest = _largest(available) if max_frames is None else max_frames

    def uniform(width, seed=seed):
        drawn_rows, size = rows or (None, tf.size(available))
        drawn = tf.random.stateless_uniform([size, width], seed)
        return drawn if drawn_rows is None else tf.gather(drawn, drawn_rows)

    if seed is None:
        augmentation = None
    if augmentation and augmentation.crop:
        draws = uniform(2, tf.random.fold_in(seed, _CROP))
        start, available = crop(available, augmentation.crop, draws)
        first += start
    count = selection.count
    if count is None:
        count = tf.maximum(_largest(available), 1)  # which a bootstrap looks at
        indices = first_frames(available, count)
    elif seed is None:
        indices = even_frames(available, count)
    else:
        indices = _METHODS[selection.method](available, count, uniform, longest)
    if seed is not None and selection.count and selection.method == "random":
        taken = tf.where(available > 0, count, 0)
    else:
        taken = tf.minimum(available, count)
    if augmentation and augmentation.bootstrap:
        width = selection.count or longest
        draws = uniform(width, tf.random.fold_in(seed, _BOOTSTRAP))
        again, taken = bootstrap(taken, augmentation.bootstrap, draws)
        indices = tf.gather(indices, again, batch_dims=1)
    indices = (first[:, None] + indices)[:, : _largest(taken)]
    if places is not None:
        indices = tf.gather(places, indices, batch_dims=1)
    return indices, taken


def crop(
    available: tf.Tensor, shares: tuple[float, float], draws: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """A stretch of each video, of a share of its frames rounded up.

    Args:
        available: int32 [B].
        shares: the least and the greatest; the share is uniform between them.
        draws: float32 [B, 2] from [0, 1), for the share and the place.

    Returns:
        The first frame of the stretch and its length, int32 [B].
    """
    least, greatest = shares
    share = least + (greatest - least) * draws[:, 0]
    exact = share * tf.cast(available, tf.float32)
    # A share of 0.1 is a little above it in float32: of 10 frames it is one, not two.
    length = tf.cast(tf.math.ceil(exact - 1e-4), tf.int32)
    length = tf.clip_by_value(length, tf.minimum(available, 1), available)
    starts = tf.cast(available - length + 1, tf.float32)
    start = tf.cast(draws[:, 1] * starts, tf.int32)
    return tf.minimum(start, available - length), length


def bootstrap(
    taken: tf.Tensor, share: float, draws: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws among the frames of each video with replacement, in the order of time.

    What averages the frames then sees an average weighted by the numbers of draws, of
    a random subset of them.

    Args:
        taken: int32 [B], the frames of each video.
        share: of their number that is drawn, rounded up.
        draws: float32 [B, W] from [0, 1), with W no less than any of `taken`.

    Returns:
        int32 [B, W], which of the frames, and their numbers, int32 [B].

    Reference:
        Efron 1979, Annals of Statistics 7(1); Ostyakov et al. 2018, arXiv:1809.04403,
        section 4 (a bootstrap over the frames).
    """
    number = tf.cast(tf.math.ceil(share * tf.cast(taken, tf.float32) - 1e-4), tf.int32)
    number = tf.clip_by_value(number, tf.minimum(taken, 1), taken)
    drawn = _clip(tf.cast(draws * tf.cast(taken, tf.float32)[:, None], tf.int32), taken)
    width = tf.shape(draws)[1]
    drawn = tf.where(tf.range(width)[None, :] < number[:, None], drawn, width)
    return _clip(tf.sort(drawn, axis=1), taken), number


def scene_breaks(
    features: Sequence[tf.Tensor], threshold: float, max_frames: int
) -> tf.Tensor:
    """Where a new scene begins: frames far from the one before.

    The distance of neighbours is |a/|a| - b/|b||^2 / 2, which is 1 - cos(a, b); with a
    frame of zeros it is 1/2, and 0 between two of them.

    Args:
        features: the video's features [B, T, D_i], uint8 or float32; bytes are
            dequantised. A frame is all of them side by side.
        threshold: a distance above it is a break.
        max_frames: frames beyond are not looked at.

    Returns:
        bool [B, max_frames]; false at the first frame. Of padding it may say anything.

    Reference:
        Ostyakov et al. 2018, arXiv:1809.04403, section 2 ("scenes", by thresholding
        cosine distances between neighbouring frames).
    """

    def of_video(video):
        parts = []
        for x in video:
            x = x[:max_frames]
            if x.dtype == tf.uint8:
                x = tf.cast(x, tf.float32) * DEQUANTIZE_SCALE + DEQUANTIZE_OFFSET
            parts.append(x)
        frames = tf.math.l2_normalize(tf.concat(parts, axis=-1), axis=-1)
        steps = tf.reduce_sum(tf.square(frames[1:] - frames[:-1]), axis=-1) / 2
        far = tf.pad(steps > threshold, [[1, max_frames - 1 - tf.size(steps)]])
        return tf.ensure_shape(far, [max_frames])

    # One video after the other: as floats, all of a batch would take gigabytes.
    return tf.map_fn(
        of_video,
        tuple(features),
        fn_output_signature=tf.TensorSpec([max_frames], tf.bool),
    )


def scene_frames(
    breaks: tf.Tensor, skipped: tf.Tensor, num_frames: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The middle frame of each scene.

    Args:
        breaks: bool [B, T], where scenes begin.
        skipped: int32 [B], the first frame that counts.
        num_frames: int32 [B].

    Returns:
        The frames int32 [B, T], of which the last is repeated, and the number of
        scenes int32 [B].
    """
    length = tf.shape(breaks)[1]
    time = tf.range(length)[None, :]
    begins = (breaks & (time > skipped[:, None])) | (time == skipped[:, None])
    begins &= time < num_frames[:, None]
    number = tf.reduce_sum(tf.cast(begins, tf.int32), axis=1)
    end = num_frames[:, None]
    starts = tf.minimum(tf.sort(tf.where(begins, time, length), axis=1), end)
    ends = tf.concat([starts, end], axis=1)[:, 1:]
    places = starts + (ends - starts) // 2
    last = tf.maximum(number - 1, 0)[:, None]
    return tf.gather(places, tf.minimum(time, last), batch_dims=1), number


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
