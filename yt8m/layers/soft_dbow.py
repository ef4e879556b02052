"""Soft-DBoW: a bag of learned words in which each frame counts for several."""

import keras
from keras import ops

from yt8m.layers.assignment import SoftAssignment
from yt8m.layers.normalization import BatchNormalization
from yt8m.layers.preprocessing import l2_normalize


@keras.saving.register_keras_serializable(package="yt8m")
class SoftDBoW(SoftAssignment):
    """Sums the assignments of all frames to each cluster.

    With assignments a = softmax(BN(x W)), s = sum_t a(x_t) and m = max_t a(x_t):
    y = s, or, gated, s * sigmoid(BN(normalised(m) U V)); y is L2-normalised.

    Args:
        clusters, add_batch_norm, input_batch_norm: as `SoftAssignment`; without
            `add_batch_norm` the gates have a bias too.
        max_pooling: give the L2-normalised m beside y.
        gated: as above; the rank of U V is D.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, K], of norm 1, or [B, 2 K] with `max_pooling`; zeros for a video without
        frames.

    Reference:
        Miech, Laptev, Sivic 2017, arXiv:1706.06905 (Soft-DBoW); the maxima and gates
        are those of its authors' code.
    """

    def __init__(
        self,
        clusters: int,
        add_batch_norm: bool = True,
        input_batch_norm: bool = False,
        max_pooling: bool = False,
        gated: bool = False,
        **kwargs,
    ):
        super().__init__(clusters, add_batch_norm, input_batch_norm, **kwargs)
        self.max_pooling = max_pooling
        self.gated = gated

    def build_clusters(self, size):
        if not self.gated:
            return
        clusters = self.clusters
        self.gate_reduction = self.add_normal("gate_reduction", (clusters, size), size)
        self.gate_weights = self.add_normal("gate_weights", (size, clusters), size)
        if self.add_batch_norm:
            self.gate_norm = BatchNormalization(
                dtype=self.dtype_policy, name="gate_norm"
            )
            self.gate_norm.build((None, clusters))
        else:
            self.gate_bias = self.add_normal("gate_bias", (clusters,), size)

    def call(self, frames, mask, training=False):
        assignments, _, _ = self.assign(frames, mask, training)
        words = ops.sum(assignments, axis=1)
        if self.max_pooling or self.gated:
            # At least 0, which a video without frames gets.
            greatest = l2_normalize(ops.max(assignments, axis=1, initial=0.0))
        if self.gated:
            words = words * ops.sigmoid(self._gate_logits(greatest, training))
        words = l2_normalize(words)
        if self.max_pooling:
            words = ops.concatenate([words, greatest], axis=-1)
        return ops.cast(words, self.compute_dtype)

    def _gate_logits(self, greatest, training):
        logits = ops.cast(greatest, self.compute_dtype)
        for weights in (self.gate_reduction, self.gate_weights):
            logits = ops.matmul(logits, ops.cast(weights, self.compute_dtype))
        logits = ops.cast(logits, "float32")
        if not self.add_batch_norm:
            return logits + self.gate_bias
        gain, shift = self.gate_norm.affine(logits, training=training)
        return logits * gain + shift

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], self.clusters * (2 if self.max_pooling else 1))

    def get_config(self):
        return {
            **super().get_config(),
            "max_pooling": self.max_pooling,
            "gated": self.gated,
        }
