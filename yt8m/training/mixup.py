"""Mixup: each example of a batch is blended with another of it, labels too."""

from typing import Any

import tensorflow as tf

from yt8m.layers.preprocessing import dequantize


def mix(batch: dict[str, tf.Tensor], alpha: float, seed: Any) -> dict[str, tf.Tensor]:
    """Blends example i with example i + 1, the last with the first.

    x_i <- l_i x_i + (1 - l_i) x_(i+1) with l_i drawn from Beta(alpha, alpha), of every
    feature and of the labels, hard and soft. Of two videos of different length the
    frames that only one of them has stay as they are.

    Args:
        batch: a batch as the reader gives it; bytes are dequantised.
        alpha: of the Beta distribution, positive.
        seed: int [2].

    Returns:
        A batch of the same shapes, whose features and labels are float32.

    Reference:
        Zhang et al. 2018, arXiv:1710.09412, section 2.
    """
    rows = tf.shape(batch["labels"])[0]
    draws = tf.random.stateless_gamma([2, rows], seed, alpha)
    # Small alpha: both draws may be too small for float32.
    share = (draws[0] + 1e-30) / (draws[0] + draws[1] + 2e-30)

    def other(x):
        return tf.roll(x, -1, axis=0)

    def blend(x, y, share):
        share = tf.reshape(share, [-1] + [1] * (x.shape.rank - 1))
        return share * x + (1.0 - share) * y

    mixed = dict(batch)
    lengths = batch.get("num_frames")
    if lengths is not None and lengths.shape.rank != 1:
        lengths = None  # a feature of videos, of that name
    for name, x in batch.items():
        if name == "num_frames" and lengths is not None:
            mixed[name] = tf.maximum(x, other(x))
        elif name in ("labels", "soft_labels"):
            x = tf.cast(x, tf.float32)
            mixed[name] = blend(x, other(x), share)
        else:
            x = dequantize(x, "float32")
            mixed[name] = blend(x, other(x), share)
            if lengths is not None and x.shape.rank == 3:
                frames = tf.range(tf.shape(x)[1])
                mine = (frames < lengths[:, None])[..., None]
                mixed[name] = tf.where(other(mine), mixed[name], x)
                mixed[name] = tf.where(mine, mixed[name], other(x))
    return mixed
