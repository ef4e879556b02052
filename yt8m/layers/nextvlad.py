"""NeXtVLAD: NetVLAD of groups of features, which share their clusters."""

import keras
from keras import ops

from yt8m.errors import UserError
from yt8m.layers.columns import scale_and_shift
from yt8m.layers.normalization import BatchNormalization
from yt8m.layers.preprocessing import l2_normalize


@keras.saving.register_keras_serializable(package="yt8m")
class NeXtVLAD(keras.layers.Layer):
    """Pools groups of expanded features into one residual vector for each cluster.

    z = x E + e, of size lambda D, cut into G groups z_g of size lambda D / G;
    attention of a group alpha_g = sigmoid(z A + b)_g, 0 at padding;
    assignment a_gk = softmax over clusters of BN(z W)_gk;
    v_k = sum_t sum_g alpha_g a_gk (z_g - c_k), with centres that the groups share;
    each v_k is L2-normalised, then all values are batch-normalised.

    Args:
        clusters: number of clusters K.
        groups: G; must divide `expansion` times the size of the frames.
        expansion: lambda.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, K * lambda D / G].

    Raises:
        UserError: in `build`, if the groups do not divide the expanded size.

    Reference:
        Lin et al. 2018, arXiv:1811.05014; the batch norms are those of
        its authors' code.
    """

    def __init__(self, clusters: int, groups: int = 8, expansion: int = 2, **kwargs):
        super().__init__(**kwargs)
        for name, value, least in (
            ("clusters", clusters, 2),
            ("groups", groups, 1),
            ("expansion", expansion, 1),
        ):
            if value < least:
                raise ValueError(
                    f"`{name}` must be at least {least}. Received: {name}={value}"
                )
        self.supports_masking = True
        self.clusters = clusters
        self.groups = groups
        self.expansion = expansion

    def build(self, frames_shape, mask_shape=None):
        expanded = self.expansion * frames_shape[-1]
        if expanded % self.groups:
            raise UserError(
                f"groups={self.groups} must divide {self.expansion} times the size "
                f"{frames_shape[-1]} of the frames: take another number of groups."
            )
        self.group_size = expanded // self.groups

        def dense(size, units, name, use_bias=True):
            layer = keras.layers.Dense(
                units,
                use_bias=use_bias,
                kernel_initializer="he_normal",
                dtype=self.dtype_policy,
                name=name,
            )
            layer.build(
                (None, None, expanded if name != "expand" else frames_shape[-1])
            )
            return layer

        def batch_norm(size, name):
            layer = BatchNormalization(dtype=self.dtype_policy, name=name)
            layer.build((None, size))
            return layer

        self.expand = dense(frames_shape[-1], expanded, "expand")
        self.attention = dense(expanded, self.groups, "attention")
        pairs = self.groups * self.clusters
        self.cluster = dense(expanded, pairs, "cluster", use_bias=False)
        self.cluster_norm = batch_norm(pairs, "cluster_norm")
        self.centres = self.add_weight(
            name="centres",
            shape=(self.clusters, self.group_size),
            initializer=keras.initializers.VarianceScaling(2.0, "fan_out"),
            autocast=False,
        )
        self.vlad_norm = batch_norm(self.clusters * self.group_size, "vlad_norm")
        self.built = True

    def call(self, frames, mask, training=False):
        expanded = self.expand(frames)
        attention = ops.sigmoid(ops.cast(self.attention(expanded), "float32"))
        attention = ops.where(mask[..., None], attention, 0.0)  # [B, T, G]

        logits = self.cluster(expanded)
        gain, shift = self.cluster_norm.affine(logits, mask, training)
        logits = scale_and_shift(logits, gain, shift)
        shape = (*ops.shape(frames)[:2], self.groups)
        assignments = ops.softmax(ops.reshape(logits, (*shape, self.clusters)), axis=-1)
        assignments = assignments * attention[..., None]  # [B, T, G, K]

        mass = ops.sum(assignments, axis=(1, 2))[..., None]
        grouped = ops.reshape(expanded, (*shape, self.group_size))
        sums = ops.einsum(
            "btgk,btgd->bkd", ops.cast(assignments, grouped.dtype), grouped
        )
        residuals = ops.cast(sums, "float32") - mass * self.centres
        size = self.clusters * self.group_size
        vlad = ops.reshape(l2_normalize(residuals), (-1, size))
        return self.vlad_norm(vlad, training=training)

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        size = self.expansion * frames_shape[-1] // self.groups
        return (frames_shape[0], self.clusters * size)

    def get_config(self):
        return {
            **super().get_config(),
            "clusters": self.clusters,
            "groups": self.groups,
            "expansion": self.expansion,
        }
