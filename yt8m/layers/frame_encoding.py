"""Poolings that weigh, or disturb, the frames before they add them up."""

import keras
import numpy as np
from keras import ops

from yt8m.class_figures import read_class_counts
from yt8m.errors import UserError
from yt8m.layers.constants import from_file
from yt8m.layers.dropout import SeedGenerator
from yt8m.layers.simple_poolings import Pooling
from yt8m.schema import NUM_CLASSES


@keras.saving.register_keras_serializable(package="yt8m")
class PositionEncoding(Pooling):
    """The sum of frames whose dimensions are weighted by the frame's place.

    y_j = sum_i L_ij x_ij, L_ij = (1 - i/n) - (j/D) (1 - 2 i/n), of the video's n
    valid frames i = 1..n and dimensions j = 1..D.

    With A = sum_i (1 - i/n) x_i and B = sum_i (1 - 2 i/n) x_i this is
    A_j - (j/D) B_j, so that L is never formed.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        [B, D]; zeros for a video without frames.

    Reference:
        Na et al. 2017, arXiv:1706.07960, equations 8 and 9; Sukhbaatar et al. 2015,
        arXiv:1503.08895, section 4.1 (of words).
    """

    def call(self, frames, mask, training=False):
        number = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
        place = ops.arange(1, ops.shape(frames)[1] + 1, dtype="float32")
        place = place[None, :] / ops.maximum(number, 1.0)
        weights = ops.stack([1.0 - place, 1.0 - 2.0 * place], axis=1)  # [B, 2, T]
        weights = ops.where(mask[:, None, :], weights, 0.0)
        sums = ops.matmul(ops.cast(weights, frames.dtype), frames)
        sums = ops.cast(sums, "float32")
        size = frames.shape[-1]
        share = ops.arange(1, size + 1, dtype="float32") / size
        return ops.cast(sums[:, 0] - share * sums[:, 1], self.compute_dtype)


@keras.saving.register_keras_serializable(package="yt8m")
class IndirectClustering(Pooling):
    """The sum of the frames, weighted by how much each is like all of them.

    p = softmax_t(sum_i x_t . x_i); y = sum_t p_t x_t.

    The sum over i goes inside the product, so that no two frames are compared.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, D]; zeros for a video without frames.

    Reference:
        Na et al. 2017, arXiv:1706.07960, equation 10.
    """

    def call(self, frames, mask, training=False):
        # The likeness to 300 frames is up to 300, which bfloat16 rounds by up to 1.
        x = ops.where(mask[..., None], ops.cast(frames, "float32"), 0.0)
        total = ops.sum(x, axis=1, keepdims=True)
        likeness = ops.where(mask, ops.sum(x * total, axis=-1), -1e9)
        weights = ops.where(mask, ops.softmax(likeness, axis=-1), 0.0)
        pooled = ops.matmul(weights[:, None, :], x)[:, 0]
        return ops.cast(pooled, self.compute_dtype)


@keras.saving.register_keras_serializable(package="yt8m")
class AdaptiveNoise(Pooling):
    """The sum of the frames, with more noise the rarer the video's classes are.

    In training y = sum_t (x_t + g z_t), where z_t is normal and g the mean of
    1 / S(c) over the video's classes c, of which class c has S(c) videos; otherwise
    y = sum_t x_t. The sum of n normal draws is drawn at once, as sqrt(n) z.

    Args:
        class_counts: a CSV file with the header Index,Videos and a line for each
            class, as `yt8m count --per_class=FILE` writes it. It is read when the
            layer is new; a class that it lacks makes no noise.
        num_classes: number of classes C.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].
        labels: [B, C] of 0 and 1, in training; None makes no noise.

    Returns:
        [B, D]; zeros for a video without frames.

    Reference:
        Na et al. 2017, arXiv:1706.07960, equations 11 and 12.
    """

    #: What a model gives to the layer in training, by the keys of a batch.
    training_input_names = ("labels",)

    def __init__(
        self,
        class_counts: str | None = None,
        num_classes: int = NUM_CLASSES,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not class_counts:
            raise ValueError(
                "`class_counts` must be a file with the number of videos of each "
                "class, as `yt8m count --per_class=FILE` writes it. "
                f"Received: class_counts={class_counts}"
            )
        self.class_counts = class_counts
        self.num_classes = num_classes
        self.seed_generator = SeedGenerator()

    def build(self, frames_shape, mask_shape=None):
        def inverse(path):
            counts = read_class_counts(path)
            if len(counts) > self.num_classes:
                raise UserError(
                    f"{path} counts the class {len(counts) - 1}; --num_classes="
                    f"{self.num_classes} ends before it."
                )
            counts = np.pad(counts, (0, self.num_classes - len(counts)))
            return np.where(counts > 0, 1.0 / np.maximum(counts, 1.0), 0.0)

        self.noise = self.add_weight(
            name="noise",
            shape=(self.num_classes,),
            initializer=from_file(self.class_counts, "class counts", inverse),
            trainable=False,
            autocast=False,
        )
        self.built = True

    def call(self, frames, mask, training=False, labels=None):
        weights = ops.cast(mask, frames.dtype)[:, None, :]
        pooled = ops.cast(ops.matmul(weights, frames)[:, 0], "float32")
        if training and labels is not None:
            labels = ops.cast(labels, "float32")
            classes = ops.maximum(ops.sum(labels, axis=-1), 1.0)
            noise = ops.sum(labels * self.noise, axis=-1) / classes
            noise *= ops.sqrt(ops.sum(ops.cast(mask, "float32"), axis=1))
            draws = keras.random.normal(
                ops.shape(pooled), dtype="float32", seed=self.seed_generator
            )
            pooled += noise[:, None] * draws
        return ops.cast(pooled, self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "class_counts": self.class_counts,
            "num_classes": self.num_classes,
        }
