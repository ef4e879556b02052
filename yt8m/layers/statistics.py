"""Statistics of a video's frames, by which video-level models see them."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from yt8m.layers.masking import masked_mean
from yt8m.layers.preprocessing import dequantize
from yt8m.schema import DEQUANTIZE_OFFSET, DEQUANTIZE_SCALE

STATISTICS = ("mean", "std", "min", "max", "median", "mode", "top_k", "length")


@keras.saving.register_keras_serializable(package="yt8m")
class FrameStatistics(keras.layers.Layer):
    """Statistics of each dimension over the valid frames, concatenated.

    mean; std, sqrt(mean((x - mean)^2)); min; max; median, the mean of the two middle
    values where their number is even; mode, the commonest value and of several the
    lowest; top_k, the k highest values in falling order, of which the lowest is
    repeated where there are fewer frames; length, the number of valid frames.

    The mode is that of the dataset's bytes: floats are first rounded to the nearest
    of the 256 numbers that bytes stand for, which leaves those numbers as they are.
    It has no gradient.

    Args:
        statistics: names from `STATISTICS`, in the order of concatenation.
        k: of `top_k`.

    Call arguments:
        frames: [B, T, D], floats, or uint8, which is dequantised; padding may hold
            any finite value.
        mask: bool [B, T].

    Returns:
        [B, sum of sizes], where `top_k` has D * k columns (dimension d's p-th highest
        value is column d * k + p), `length` 1 and each other D; zeros for a video
        without frames.

    Reference:
        Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.2.1 (mean, standard
        deviation, the top 5); Ostyakov et al. 2018, arXiv:1809.04403, section 2
        (the others).
    """

    def __init__(
        self, statistics: Sequence[str] = ("mean", "std"), k: int = 5, **kwargs
    ):
        # Without autocast: a low-precision policy would round the bytes' numbers.
        super().__init__(autocast=False, **kwargs)
        unknown = [name for name in statistics if name not in STATISTICS]
        if unknown or not statistics or len(set(statistics)) < len(statistics):
            raise ValueError(
                f"`statistics` must be some of {', '.join(STATISTICS)}, each once. "
                f"Received: statistics={list(statistics)}"
            )
        if k < 1:
            raise ValueError(f"`k` must be positive. Received: k={k}")
        self.supports_masking = True
        self.statistics = tuple(statistics)
        self.k = k

    def call(self, frames, mask, training=False):
        frames = dequantize(frames, "float32")
        number = ops.sum(ops.cast(mask, "int32"), axis=1)
        ordered = None
        if {"median", "mode"} & set(self.statistics):
            # Padding last, so that place i has the i-th lowest of the valid values.
            ordered = ops.sort(ops.where(mask[..., None], frames, _HIGHEST), axis=1)
        parts = []
        for name in self.statistics:
            if name == "mean":
                part = masked_mean(frames, mask)
            elif name == "std":
                part = _deviation(frames, mask)
            elif name == "min":
                part = -masked_max(-frames, mask)
            elif name == "max":
                part = masked_max(frames, mask)
            elif name == "median":
                middle = _at(ordered, (number - 1) // 2) + _at(ordered, number // 2)
                part = middle / 2
            elif name == "mode":
                part = _mode(ordered, mask)
            elif name == "top_k":
                part = self._highest(frames, mask, number)
            else:
                part = ops.cast(number, "float32")[:, None]
            parts.append(ops.where(number[:, None] > 0, part, 0.0))
        return ops.cast(ops.concatenate(parts, axis=-1), self.compute_dtype)

    def _highest(self, frames, mask, number):
        highest = top_values(frames, mask, self.k)
        missing = ops.arange(self.k)[None, None, :] >= number[:, None, None]
        lowest = -masked_max(-frames, mask)
        highest = ops.where(missing, lowest[..., None], highest)
        return ops.reshape(highest, (-1, frames.shape[-1] * self.k))

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        sizes = {"length": 1, "top_k": self.k * frames_shape[-1]}
        size = sum(sizes.get(name, frames_shape[-1]) for name in self.statistics)
        return (frames_shape[0], size)

    def get_config(self):
        return {
            **super().get_config(),
            "statistics": list(self.statistics),
            "k": self.k,
        }


# Stands for padding where values are compared; in the range of float32 and bfloat16.
_HIGHEST = 1e30


def masked_max(x: Any, mask: Any) -> Any:
    """Maximum over the valid frames.

    Args:
        x: float32 [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, D]; zeros where no frame is valid.
    """
    highest = ops.max(
        ops.where(mask[..., None], x, -_HIGHEST), axis=1, initial=-_HIGHEST
    )
    return ops.where(ops.any(mask, axis=1)[:, None], highest, 0.0)


def top_values(x: Any, mask: Any, k: int) -> Any:
    """The k highest values of each dimension over the valid frames.

    Args:
        x: float32 [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].
        k: how many.

    Returns:
        [B, D, k] in falling order; zeros where there are fewer frames.
    """
    x = ops.where(mask[..., None], x, -_HIGHEST)
    x = ops.pad(x, [[0, 0], [0, k], [0, 0]], constant_values=-_HIGHEST)
    values, _ = ops.top_k(ops.transpose(x, (0, 2, 1)), k)
    number = ops.sum(ops.cast(mask, "int32"), axis=1)
    found = ops.arange(k)[None, None, :] < number[:, None, None]
    return ops.where(found, values, 0.0)


def _deviation(frames, mask):
    mean = masked_mean(frames, mask)
    variance = masked_mean(ops.square(frames - mean[:, None, :]), mask)
    positive = variance > 0  # the root has no gradient at 0
    return ops.where(positive, ops.sqrt(ops.where(positive, variance, 1.0)), 0.0)


def _at(ordered, place):
    """The values [B, D] at a place [B] of `ordered` [B, T, D]."""
    # A sum, not a gather: T may be 0, and a product would be rounded on a GPU.
    here = ops.arange(ops.shape(ordered)[1], dtype="int32") == place[:, None]
    return ops.sum(ops.where(here[..., None], ordered, 0.0), axis=1)


def _mode(ordered, mask):
    # One frame of padding, as XLA does not take a loop over none.
    ordered = ops.pad(ordered, [[0, 0], [0, 1], [0, 0]])
    valid = ops.transpose(ops.pad(mask, [[0, 0], [0, 1]]))[..., None]
    levels = ops.round((ordered - DEQUANTIZE_OFFSET) / DEQUANTIZE_SCALE)
    levels = ops.transpose(ops.clip(levels, 0, 255), (1, 0, 2))

    def step(carry, t):
        last, run, longest, mode = carry
        level = levels[t]
        run = ops.where(level == last, run + 1, ops.ones_like(run))
        longer = ops.logical_and(run > longest, valid[t])
        longest = ops.where(longer, run, longest)
        return (level, run, longest, ops.where(longer, level, mode)), None

    zeros = ops.zeros_like(levels[0])
    start = (zeros - 1, zeros, zeros, zeros)
    (_, _, _, mode), _ = ops.scan(step, start, ops.arange(ops.shape(levels)[0]))
    return ops.stop_gradient(mode) * DEQUANTIZE_SCALE + DEQUANTIZE_OFFSET
