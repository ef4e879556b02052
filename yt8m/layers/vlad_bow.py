"""VLAD-BoW: a soft bag of words whose projections have a learned power."""

import keras
from keras import ops

from yt8m.layers.assignment import SoftAssignment
from yt8m.layers.preprocessing import l2_normalize

_LEAST = 1e-6


@keras.saving.register_keras_serializable(package="yt8m")
class VladBoW(SoftAssignment):
    """Sums the frames' assignments by the rectified projections, to a learned power.

    y = max(x W + b, 0)^p, a = softmax(y), bow_k = sum_t a_k(y_t), L2-normalised. The
    power p starts at 1.

    Args:
        clusters: number of words K.
        add_batch_norm: normalise the projections, which otherwise have the bias b.
        input_batch_norm: as `SoftAssignment`.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, K], of norm 1; zeros for a video without frames.

    Reference:
        Ostyakov et al. 2018, "Label Denoising with Large Ensembles of Heterogeneous
        Neural Networks", arXiv:1809.04403, section 3 (which found p = 0.628); the norm
        is that of Soft-DBoW.
    """

    def __init__(
        self,
        clusters: int,
        add_batch_norm: bool = False,
        input_batch_norm: bool = False,
        **kwargs,
    ):
        super().__init__(clusters, add_batch_norm, input_batch_norm, **kwargs)

    def build_clusters(self, size):
        self.power = self.add_weight(
            name="power", shape=(), initializer="ones", autocast=False
        )

    def call(self, frames, mask, training=False):
        words, _, _ = self.assignment_logits(frames, mask, training)
        # A power below 1 has no finite gradient at 0.
        powers = ops.power(ops.maximum(words, _LEAST), self.power)
        assignments = ops.softmax(ops.where(words > _LEAST, powers, 0.0), axis=-1)
        bag = ops.sum(ops.where(mask[..., None], assignments, 0.0), axis=1)
        return ops.cast(l2_normalize(bag), self.compute_dtype)

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], self.clusters)
