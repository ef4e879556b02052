"""Poolings of each dimension by itself, without weights."""

import keras
from keras import ops

from yt8m.layers.masking import masked_mean
from yt8m.layers.statistics import masked_max, top_values


class Pooling(keras.layers.Layer):
    """Base of poolings without weights, from [B, T, D] to [B, D]."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], frames_shape[-1])


@keras.saving.register_keras_serializable(package="yt8m")
class AveragePooling(Pooling):
    """The mean of the valid frames: y = 1/N sum_t x_t.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, D]; zeros for a video without frames.

    Reference:
        Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.2.1 (its mu).
    """

    def call(self, frames, mask, training=False):
        return masked_mean(frames, mask)


@keras.saving.register_keras_serializable(package="yt8m")
class MaxPooling(Pooling):
    """The greatest value of each dimension over the valid frames: y_d = max_t x_td.

    Call arguments and result as those of `AveragePooling`.

    Reference:
        The BoF model (2017), beside Simple_LSTM and LSTM_MoE: section 4.1;
        Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.1.2 (of DBoF's words).
    """

    def call(self, frames, mask, training=False):
        pooled = masked_max(ops.cast(frames, "float32"), mask)
        return ops.cast(pooled, self.compute_dtype)


@keras.saving.register_keras_serializable(package="yt8m")
class SelfWeightedPooling(Pooling):
    """The mean of each dimension, weighted by its own absolute value.

    y = sum_t x_t |x_t| / sum_t |x_t|: between the mean and the extreme. A dimension
    that is 0 in all frames stays 0.

    Call arguments and result as those of `AveragePooling`.

    Reference:
        The `swap` pooling of the DBoF in TensorFlow's Model Garden (yt8m, 2020).
    """

    def call(self, frames, mask, training=False):
        x = ops.where(mask[..., None], ops.cast(frames, "float32"), 0.0)
        size = ops.abs(x)
        total = ops.sum(size, axis=1)
        pooled = ops.sum(x * size, axis=1) / ops.where(total > 0, total, 1.0)
        return ops.cast(pooled, self.compute_dtype)


@keras.saving.register_keras_serializable(package="yt8m")
class TopKPooling(Pooling):
    """The mean of the k greatest values of each dimension over the valid frames.

    y_d = 1/n sum of the n greatest x_td, n = min(k, N): of fewer frames than k it is
    the mean of all.

    Args:
        k: how many.

    Call arguments and result as those of `AveragePooling`.

    Reference:
        Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.2.1, equation 2, which has
        the k values themselves; to take their mean is our own.
    """

    def __init__(self, k: int = 5, **kwargs):
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"`k` must be positive. Received: k={k}")
        self.k = k

    def call(self, frames, mask, training=False):
        highest = top_values(ops.cast(frames, "float32"), mask, self.k)
        number = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
        number = ops.clip(number, 1.0, self.k)
        return ops.cast(ops.sum(highest, axis=-1) / number, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "k": self.k}
