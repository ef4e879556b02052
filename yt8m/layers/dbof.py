"""DBoF: a deep bag of frames, pooled in a space of many learned words."""

import keras
from keras import ops

from yt8m.layers.columns import scale_and_shift, shift_by
from yt8m.layers.gating import SqueezeExcitation
from yt8m.layers.masking import masked_mean
from yt8m.layers.normalization import BatchNormalization

ACTIVATIONS = ("sigmoid", "relu", "relu6")
POOLINGS = ("max", "average", "self_weighted", "average_max")


@keras.saving.register_keras_serializable(package="yt8m")
class DBoF(keras.layers.Layer):
    """Projects each frame up to K values and pools each of them over the frames.

    With words z = activation(BN(BN(x) W)), or without batch norm activation(x W + b),
    over the valid frames:

    | pooling | y_k |
    | --- | --- |
    | max | max_t z_k |
    | average | mean_t z_k |
    | self_weighted | sum_t z_k |z_k| / sum_t |z_k|, also known as swap |
    | average_max | both the first two: averages, then maxima |

    The batch norm of the frames is folded into W, which is exact and spares two
    copies of the frames and, in the gradient, a product as large as the projection.

    Args:
        clusters: number of values K.
        pooling: one of the table.
        activation: `sigmoid`, `relu` or `relu6`.
        add_batch_norm: normalise the frames and the projections over the valid
            frames; otherwise the projections have a bias.
        gating_reduction: gate the words of each frame by `SqueezeExcitation` with this
            reduction; None has no gates.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, K], or [B, 2 K] for `average_max`; zeros for a video without frames.

    Reference:
        Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.1.2; defaults and
        initial values as in the starter code. The self-weighted average is that of
        the TensorFlow Model Garden.
    """

    def __init__(
        self,
        clusters: int,
        pooling: str = "max",
        activation: str = "sigmoid",
        add_batch_norm: bool = True,
        gating_reduction: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if clusters < 1:
            raise ValueError(
                f"`clusters` must be positive. Received: clusters={clusters}"
            )
        for name, value, known in (
            ("pooling", pooling, POOLINGS),
            ("activation", activation, ACTIVATIONS),
        ):
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)}. "
                    f"Received: {name}={value}"
                )
        self.supports_masking = True
        self.clusters = clusters
        self.pooling = pooling
        self.activation = activation
        self.add_batch_norm = add_batch_norm
        self.gating_reduction = gating_reduction
        if gating_reduction is not None:
            self.frame_gating = SqueezeExcitation(
                gating_reduction, dtype=self.dtype_policy, name="frame_gating"
            )

    def build(self, frames_shape, mask_shape=None):
        size = frames_shape[-1]

        def add(name, shape):
            # A new initialiser each time: one used twice gives the same numbers.
            normal = keras.initializers.RandomNormal(stddev=size**-0.5)
            return self.add_weight(
                name=name, shape=shape, initializer=normal, autocast=False
            )

        self.cluster_weights = add("cluster_weights", (size, self.clusters))
        if self.add_batch_norm:
            self.input_norm = BatchNormalization(
                dtype=self.dtype_policy, name="input_norm"
            )
            self.input_norm.build(frames_shape)
            self.cluster_norm = BatchNormalization(
                dtype=self.dtype_policy, name="cluster_norm"
            )
            self.cluster_norm.build((None, None, self.clusters))
        else:
            self.cluster_bias = add("cluster_bias", (self.clusters,))
        if self.gating_reduction is not None:
            self.frame_gating.build((None, None, self.clusters))
        self.built = True

    def call(self, frames, mask, training=False):
        weights = ops.convert_to_tensor(self.cluster_weights)
        only_max = self.pooling == "max" and self.gating_reduction is None
        if self.add_batch_norm:
            # Frames x stand for x * scale + offset, which is never formed, and words
            # for what they are without a sign, plus a shift.
            scale, offset = self.input_norm.affine(frames, mask, training)
            shift, sign = ops.matmul(offset, weights), 1.0
            if only_max:
                # Turned so that the norm rises with each word.
                sign = ops.where(self.cluster_norm.gamma < 0, -1.0, 1.0)
            words = self._project(frames, weights * scale[:, None] * sign)
            gain, shift = self.cluster_norm.affine(
                words, mask, training, factor=sign, shift=shift
            )
        else:
            words = self._project(frames, weights)
            gain, shift = None, self.cluster_bias
        activate = getattr(ops, self.activation)
        if only_max:
            # The greatest of a rising function is the function of the greatest. At the
            # lowest value it is 0, which a video without frames gets.
            lowest = -1e9
            words = ops.where(mask[..., None], words, lowest)
            greatest = ops.max(words, axis=1, initial=lowest)
            pooled = greatest + shift if gain is None else greatest * gain + shift
            some = ops.any(mask, axis=1, keepdims=True)
            pooled = activate(ops.where(some, pooled, lowest))
        else:
            if gain is None:
                words = shift_by(words, shift)
            else:
                words = scale_and_shift(words, gain, shift)
            words = activate(words)
            if self.gating_reduction is not None:
                words = self.frame_gating(words, mask=mask, training=training)
                words = ops.cast(words, "float32")
            pooled = self._pool(words, mask)
        return ops.cast(pooled, self.compute_dtype)

    def _pool(self, words, mask):
        if self.pooling == "average":
            return masked_mean(words, mask)
        words = ops.where(mask[..., None], words, 0.0)  # none is below 0
        if self.pooling == "self_weighted":
            weights = ops.maximum(ops.sum(words, axis=1), 1e-9)
            return ops.sum(ops.square(words), axis=1) / weights
        greatest = ops.max(words, axis=1, initial=0.0)
        if self.pooling == "max":
            return greatest
        return ops.concatenate([masked_mean(words, mask), greatest], axis=-1)

    def _project(self, frames, weights):
        words = ops.matmul(frames, ops.cast(weights, frames.dtype))
        return ops.cast(words, "float32")

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        parts = 2 if self.pooling == "average_max" else 1
        return (frames_shape[0], parts * self.clusters)

    def get_config(self):
        return {
            **super().get_config(),
            "clusters": self.clusters,
            "pooling": self.pooling,
            "activation": self.activation,
            "add_batch_norm": self.add_batch_norm,
            "gating_reduction": self.gating_reduction,
        }
