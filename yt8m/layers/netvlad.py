"""NetVLAD: a learned vocabulary of visual words, pooled as residuals."""

import keras
from keras import ops

from yt8m.layers.assignment import SoftAssignment, sum_by_cluster
from yt8m.layers.preprocessing import inverse_norm


@keras.saving.register_keras_serializable(package="yt8m")
class NetVLAD(SoftAssignment):
    """Pools frames into one residual vector for each cluster.

    a = softmax(BN(x W)) over clusters, 0 at padding;
    v_k = sum_t a_k(x_t) (x_t - c_k); each v_k is L2-normalised, then all together.

    Args:
        clusters, add_batch_norm, input_batch_norm: as `SoftAssignment`.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, K * D], of norm 1; zeros for a video without frames.

    Reference:
        Arandjelovic et al. 2016, arXiv:1511.07247, section 3.1, equation 4;
        Miech, Laptev, Sivic 2017, arXiv:1706.06905 (for videos, in two streams).
    """

    has_centres = True

    def build_clusters(self, size):
        if self.has_centres:
            self.centres = self.add_normal("centres", (self.clusters, size), size)

    def call(self, frames, mask, training=False):
        assignments, scale, offset = self.assign(frames, mask, training)
        mass = ops.sum(assignments, axis=1)[:, :, None]  # [B, K, 1]
        origin = offset - self.centres if self.has_centres else offset
        residuals = sum_by_cluster(assignments, frames) * scale + mass * origin
        # Both norms in one pass: the second is that of what the first leaves of each.
        squared = ops.sum(ops.square(residuals), axis=-1, keepdims=True)
        each = inverse_norm(squared)
        whole = inverse_norm(ops.sum(squared * each * each, axis=1, keepdims=True))
        vlad = residuals * (each * whole)
        size = self.clusters * frames.shape[-1]
        return ops.cast(ops.reshape(vlad, (-1, size)), self.compute_dtype)

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], self.clusters * frames_shape[-1])


@keras.saving.register_keras_serializable(package="yt8m")
class NetRVLAD(NetVLAD):
    """NetVLAD of the frames themselves, not of their residuals: it has no centres.

    v_k = sum_t a_k(x_t) x_t; all else as `NetVLAD`.

    Reference:
        Miech, Laptev, Sivic 2017, arXiv:1706.06905 (NetRVLAD, LightVLAD in its code).
    """

    has_centres = False
