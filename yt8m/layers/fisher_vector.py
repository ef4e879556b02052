"""NetFV: Fisher vectors whose clusters are learned."""

import keras
from keras import ops

from yt8m.layers.assignment import SoftAssignment, sum_by_cluster
from yt8m.layers.preprocessing import l2_normalize

_LEAST_DEVIATION = 1e-6


@keras.saving.register_keras_serializable(package="yt8m")
class NetFV(SoftAssignment):
    """Pools each cluster's deviations of first and second order from its Gaussian.

    With assignments a = softmax(BN(x W)), centres c and deviations s = w^2 + 1e-6:
    first_k = sum_t a_k(x_t) (x_t - c_k) / s_k;
    second_k = sum_t a_k(x_t) ((x_t - c_k)^2 / s_k^2 - 1);
    each vector is L2-normalised, then all of its order together.

    Args:
        clusters, add_batch_norm, input_batch_norm: as `SoftAssignment`.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, 2 K D], first order and second, each of norm 1; zeros for a video without
        frames.

    Reference:
        Miech, Laptev, Sivic 2017, arXiv:1706.06905 (NetFV, with centres that are not
        coupled to W); Perronnin and Dance 2007, CVPR (Fisher vectors).
    """

    def build_clusters(self, size):
        shape = (self.clusters, size)
        self.centres = self.add_normal("centres", shape, size)
        self.deviation_roots = self.add_normal("deviation_roots", shape, size, mean=1.0)

    def call(self, frames, mask, training=False):
        assignments, scale, offset = self.assign(frames, mask, training)
        mass = ops.sum(assignments, axis=1)[:, :, None]  # [B, K, 1]
        # Of (x * scale + offset - centre), whose square is taken apart, so that
        # nothing of the size [B, T, K, D] is formed.
        sums = sum_by_cluster(assignments, frames) * scale
        # In float32: float16 cannot hold the squares of small frames.
        squares = ops.square(ops.cast(frames, "float32"))
        squares = sum_by_cluster(assignments, squares) * ops.square(scale)
        origin = offset - self.centres
        deviations = ops.square(self.deviation_roots) + _LEAST_DEVIATION
        first = (sums + mass * origin) / deviations
        second = squares + 2.0 * origin * sums + mass * ops.square(origin)
        second = second / ops.square(deviations) - mass
        size = self.clusters * frames.shape[-1]
        orders = [
            l2_normalize(ops.reshape(l2_normalize(order), (-1, size)))
            for order in (first, second)
        ]
        return ops.cast(ops.concatenate(orders, axis=-1), self.compute_dtype)

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], 2 * self.clusters * frames_shape[-1])
