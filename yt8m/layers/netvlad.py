"""NetVLAD: a learned vocabulary of visual words, pooled as residuals."""

import keras
from keras import ops

from yt8m.layers.normalization import BatchNormalization
from yt8m.layers.preprocessing import l2_normalize


@keras.saving.register_keras_serializable(package="yt8m")
class NetVLAD(keras.layers.Layer):
    """Pools frames into one residual vector for each cluster.

    a = softmax(BN(x W)) over clusters, 0 at padding;
    v_k = sum_t a_k(x_t) (x_t - c_k); each v_k is L2-normalised, then all together.

    Args:
        clusters: number of clusters K.
        add_batch_norm: normalise the assignments' logits over the valid frames;
            otherwise they have a bias.
        input_batch_norm: normalise the frames over the valid frames first. It is
            folded into W and into the sums of residuals, which is exact and spares
            two copies of the frames and two products with them in the gradient.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, K * D], of norm 1; zeros for a video without frames.

    Reference:
        Arandjelovic et al. 2016, arXiv:1511.07247, section 3.1, equation 4;
        Miech, Laptev, Sivic 2017, arXiv:1706.06905 (for videos, in two streams).
    """

    def __init__(
        self,
        clusters: int,
        add_batch_norm: bool = True,
        input_batch_norm: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if clusters < 2:
            raise ValueError(
                f"`clusters` must be at least 2. Received: clusters={clusters}"
            )
        self.supports_masking = True
        self.clusters = clusters
        self.add_batch_norm = add_batch_norm
        self.input_batch_norm = input_batch_norm

    def build(self, frames_shape, mask_shape=None):
        size = frames_shape[-1]

        def add(name, shape):
            # A new initialiser each time: one used twice gives the same numbers.
            normal = keras.initializers.RandomNormal(stddev=size**-0.5)
            return self.add_weight(
                name=name, shape=shape, initializer=normal, autocast=False
            )

        self.cluster_weights = add("cluster_weights", (size, self.clusters))
        self.centres = add("centres", (self.clusters, size))
        if self.add_batch_norm:
            self.cluster_norm = BatchNormalization(
                dtype=self.dtype_policy, name="cluster_norm"
            )
            self.cluster_norm.build((None, None, self.clusters))
        else:
            self.cluster_bias = add("cluster_bias", (self.clusters,))
        if self.input_batch_norm:
            self.input_norm = BatchNormalization(
                dtype=self.dtype_policy, name="input_norm"
            )
            self.input_norm.build(frames_shape)
        self.built = True

    def call(self, frames, mask, training=False):
        # Frames x stand for x * scale + offset, which is never formed.
        scale, offset = ops.ones(frames.shape[-1]), ops.zeros(frames.shape[-1])
        if self.input_batch_norm:
            scale, offset = self.input_norm.affine(frames, mask, training)
        weights = ops.cast(self.cluster_weights * scale[:, None], frames.dtype)
        logits = ops.cast(ops.matmul(frames, weights), "float32")
        logits += ops.matmul(offset, self.cluster_weights)
        if self.add_batch_norm:
            gain, shift = self.cluster_norm.affine(logits, mask, training)
            logits = logits * gain + shift
        else:
            logits += self.cluster_bias
        assignments = ops.where(mask[..., None], ops.softmax(logits, axis=-1), 0.0)

        # The residuals [B, T, K, D] are never formed either.
        mass = ops.sum(assignments, axis=1)[:, :, None]  # [B, K, 1]
        sums = ops.einsum("btk,btd->bkd", ops.cast(assignments, frames.dtype), frames)
        residuals = ops.cast(sums, "float32") * scale + mass * (offset - self.centres)
        size = self.clusters * frames.shape[-1]
        vlad = ops.reshape(l2_normalize(residuals), (-1, size))
        return ops.cast(l2_normalize(vlad), self.compute_dtype)

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], self.clusters * frames_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "clusters": self.clusters,
            "add_batch_norm": self.add_batch_norm,
            "input_batch_norm": self.input_batch_norm,
        }
