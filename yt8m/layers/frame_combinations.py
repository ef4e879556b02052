"""Videos as a few vectors of their frames' size: sums by position, or the surest."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="yt8m")
class LinearCombinations(keras.layers.Layer):
    """Sums of the frames with learned weights that belong to their positions.

    v_k = sum_t w_tk x_t over the valid frames. The weights start around
    1 / max_frames, where each v_k is near the mean of a long video.

    Args:
        combinations: how many sums, K.
        max_frames: positions with a weight; frames beyond them are left out.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, K * D]; zeros for a video without frames.

    Reference:
        Ostyakov et al. 2018, arXiv:1809.04403, section 2.
    """

    def __init__(self, combinations: int = 5, max_frames: int = 300, **kwargs):
        super().__init__(**kwargs)
        for name, value in (("combinations", combinations), ("max_frames", max_frames)):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {value}")
        self.supports_masking = True
        self.combinations = combinations
        self.max_frames = max_frames

    def build(self, frames_shape, mask_shape=None):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.max_frames, self.combinations),
            initializer=keras.initializers.RandomNormal(
                mean=1 / self.max_frames, stddev=1 / self.max_frames
            ),
            autocast=False,
        )
        self.built = True

    def call(self, frames, mask, training=False):
        frames, mask = frames[:, : self.max_frames], mask[:, : self.max_frames]
        weights = self.kernel[: ops.shape(frames)[1]]
        weights = ops.where(mask[:, None, :], ops.transpose(weights), 0.0)
        sums = ops.matmul(ops.cast(weights, frames.dtype), frames)
        return ops.reshape(sums, (-1, self.combinations * frames.shape[-1]))

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], self.combinations * frames_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "combinations": self.combinations,
            "max_frames": self.max_frames,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class SurestFrames(keras.layers.Layer):
    """The frames of highest confidence, highest first, each scaled by it.

    With the confidences s_t = sigmoid(w' x_t + b) and t_1, t_2, ... the valid frames
    by falling s: [s_t1 x_t1; s_t2 x_t2; ...; s_tN x_tN].

    Args:
        count: how many frames are kept, N; a video of fewer gets zeros after them.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, N * D]; zeros for a video without frames.

    Reference:
        Ostyakov et al. 2018, arXiv:1809.04403, section 3 (sorting by confidence, in
        words).
    """

    def __init__(self, count: int = 10, **kwargs):
        super().__init__(**kwargs)
        if count < 1:
            raise ValueError(f"`count` must be positive. Received: count={count}")
        self.supports_masking = True
        self.count = count

    def build(self, frames_shape, mask_shape=None):
        def add(name, shape, initializer):
            return self.add_weight(
                name=name, shape=shape, initializer=initializer, autocast=False
            )

        self.kernel = add("kernel", (frames_shape[-1], 1), "glorot_uniform")
        self.bias = add("bias", (), "zeros")
        self.built = True

    def call(self, frames, mask, training=False):
        wide = ops.cast(frames, "float32")
        confidences = ops.sigmoid(ops.matmul(wide, self.kernel)[..., 0] + self.bias)
        confidences = ops.where(mask, confidences, 0.0)
        frames = frames * ops.cast(confidences, frames.dtype)[..., None]
        # Rows that are none, so that there are always `count` to choose from.
        padded = ops.pad(confidences, [[0, 0], [0, self.count]])
        _, chosen = ops.top_k(padded, self.count)
        positions = ops.arange(ops.shape(frames)[1], dtype="int32")
        # A product with 0 and 1 gathers the rows, and its gradient scatters them.
        rows = ops.equal(ops.cast(chosen, "int32")[..., None], positions)
        scaled = ops.matmul(ops.cast(rows, frames.dtype), frames)
        return ops.reshape(scaled, (-1, self.count * frames.shape[-1]))

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], self.count * frames_shape[-1])

    def get_config(self):
        return {**super().get_config(), "count": self.count}
