"""Soft assignment of frames to learned clusters, of which several poolings are made."""

import keras
from keras import ops

from yt8m.layers.columns import scale_and_shift, shift_by
from yt8m.layers.normalization import BatchNormalization


class SoftAssignment(keras.layers.Layer):
    """Base of the poolings that assign each frame to K clusters in part.

    a = softmax(BN(x W)) over clusters, 0 at padding. A subclass pools with `assign`,
    and creates weights of its own in `build_clusters`.

    Args:
        clusters: number of clusters K.
        add_batch_norm: normalise the assignments' logits over the valid frames;
            otherwise they have a bias.
        input_batch_norm: normalise the frames over the valid frames first. It is
            folded into W, and by the subclass into what it sums, which is exact and
            spares two copies of the frames and two products with them in the gradient.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].
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
        self.cluster_weights = self.add_normal(
            "cluster_weights", (size, self.clusters), size
        )
        self.build_clusters(size)
        if self.add_batch_norm:
            self.cluster_norm = BatchNormalization(
                dtype=self.dtype_policy, name="cluster_norm"
            )
            self.cluster_norm.build((None, None, self.clusters))
        else:
            self.cluster_bias = self.add_normal("cluster_bias", (self.clusters,), size)
        if self.input_batch_norm:
            self.input_norm = BatchNormalization(
                dtype=self.dtype_policy, name="input_norm"
            )
            self.input_norm.build(frames_shape)
        self.built = True

    def build_clusters(self, size: int) -> None:
        """Creates what a subclass knows of its clusters, for frames of this size."""

    def add_normal(self, name: str, shape: tuple, size: int, mean: float = 0.0):
        # A new initialiser each time: one used twice gives the same numbers.
        normal = keras.initializers.RandomNormal(mean, stddev=size**-0.5)
        return self.add_weight(
            name=name, shape=shape, initializer=normal, autocast=False
        )

    def assignment_logits(self, frames, mask, training=False):
        """Logits float32 [B, T, K], and the scale and offset of the input norm.

        Frames x stand for x * scale + offset, which is never formed: both are [D], or
        the numbers 1 and 0 without an input norm.
        """
        weights, scale, offset, shift = self.cluster_weights, 1.0, 0.0, 0.0
        if self.input_batch_norm:
            scale, offset = self.input_norm.affine(frames, mask, training)
            shift, weights = ops.matmul(offset, weights), weights * scale[:, None]
        if not self.add_batch_norm:
            # One vector is added. Two that follow each other TensorFlow adds up first
            # where it knows all shapes, and in a batch of another shape does not.
            shift = shift + self.cluster_bias
        logits = ops.matmul(frames, ops.cast(weights, frames.dtype))
        if not self.add_batch_norm:
            return shift_by(logits, shift), scale, offset
        gain, shift = self.cluster_norm.affine(logits, mask, training, shift=shift)
        return scale_and_shift(logits, gain, shift), scale, offset

    def assign(self, frames, mask, training=False):
        """Assignments float32 [B, T, K], and scale and offset as above."""
        logits, scale, offset = self.assignment_logits(frames, mask, training)
        assignments = ops.where(mask[..., None], ops.softmax(logits, axis=-1), 0.0)
        return assignments, scale, offset

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def get_config(self):
        return {
            **super().get_config(),
            "clusters": self.clusters,
            "add_batch_norm": self.add_batch_norm,
            "input_batch_norm": self.input_batch_norm,
        }


def sum_by_cluster(assignments, frames):
    """Sums of the frames of each cluster, sum_t a_k(t) x_t: float32 [B, K, D].

    The products [B, T, K, D] are never formed.
    """
    assignments = ops.cast(assignments, frames.dtype)
    return ops.cast(ops.einsum("btk,btd->bkd", assignments, frames), "float32")
