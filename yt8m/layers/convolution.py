"""Convolutions over the frames of a video, and what is pooled of them."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from yt8m.layers.columns import scale_and_shift
from yt8m.layers.normalization import BatchNormalization
from yt8m.layers.statistics import masked_max

ACTIVATIONS = (None, "relu")
PADDINGS = ("same", "causal")


def convolve(x: Any, kernel: Any, padding: str = "same") -> Any:
    """Convolution over the middle axis, with zeros beyond both of its ends.

    y_t = sum_j x_{t + j - s} W_j, where s is (N - 1) // 2 for `same`, and N - 1 for
    `causal`, whose windows end at t.

    Args:
        x: [B, T, D].
        kernel: [N, D, C].
        padding: `same` or `causal`.

    Returns:
        float32 [B, T, C].
    """
    width, size, channels = kernel.shape
    before = width - 1 if padding == "causal" else (width - 1) // 2
    # One product gives what a frame adds to all windows that it is in: no copies of
    # the frames are made, and nothing depends on the number of frames or videos.
    columns = ops.reshape(ops.transpose(kernel, (1, 0, 2)), (size, width * channels))
    parts = ops.matmul(x, ops.cast(columns, x.dtype))
    parts = ops.pad(parts, [[0, 0], [before, width - 1 - before], [0, 0]])
    length, total = ops.shape(x)[1], 0.0
    for j, part in enumerate(ops.split(parts, width, axis=-1)):
        total = total + ops.cast(part[:, j : j + length], "float32")
    return total


def max_of_pairs(x: Any, mask: Any) -> tuple[Any, Any]:
    """The greater value of each two neighbouring frames.

    Args:
        x: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        [B, ceil(T / 2), D], zeros at padding, and its mask; a last frame without a
        neighbour stays as it is.
    """
    length = ops.shape(x)[1]
    x = ops.pad(x, [[0, 0], [0, 1], [0, 0]])
    valid = ops.pad(mask, [[0, 0], [0, 1]], constant_values=False)
    first, second = x[:, :length:2], x[:, 1 : length + 1 : 2]
    both, mask = valid[:, 1 : length + 1 : 2], valid[:, :length:2]
    greater = ops.where(both[..., None], ops.maximum(first, second), first)
    return ops.where(mask[..., None], greater, 0), mask


@keras.saving.register_keras_serializable(package="yt8m")
class TemporalConvolution(keras.layers.Layer):
    """Convolutions over time of one or several widths, side by side.

    y_t = f(BN(sum_j x_{t + j - s} W_j)), or without batch norm f(... + b), where x is
    zero before a video's first frame and after its last.

    Args:
        channels: number of filters C; one for each width, or a single one.
        widths: how many frames a filter sees; one or several.
        padding: `same` centres the windows at their frame, `causal` ends them there.
        activation: f, `relu` or None.
        add_batch_norm: normalise over the valid frames; otherwise there is a bias.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, T, sum of C]; zeros at padding.

    Reference:
        Kim 2014, arXiv:1408.5882, section 2 (filters of several widths).
    """

    def __init__(
        self,
        channels: int | Sequence[int],
        widths: int | Sequence[int] = 3,
        padding: str = "same",
        activation: str | None = "relu",
        add_batch_norm: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.widths = [widths] if isinstance(widths, int) else list(widths)
        if isinstance(channels, int):
            channels = [channels] * len(self.widths)
        self.channels = list(channels)
        if not self.widths or len(self.channels) != len(self.widths):
            raise ValueError(
                "`channels` must be one number, or one for each width. Received: "
                f"channels={self.channels}, widths={self.widths}"
            )
        for name, values in (("channels", self.channels), ("widths", self.widths)):
            if min(values) < 1:
                raise ValueError(f"`{name}` must be positive. Received: {values}")
        for name, value, known in (
            ("padding", padding, PADDINGS),
            ("activation", activation, ACTIVATIONS),
        ):
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(str, known))}. "
                    f"Received: {name}={value}"
                )
        self.padding = padding
        self.activation = activation
        self.add_batch_norm = add_batch_norm

    def build(self, frames_shape, mask_shape=None):
        self.kernels = [
            self.add_weight(
                name=f"kernel_{i}",
                shape=(width, frames_shape[-1], channels),
                initializer="glorot_uniform",
                autocast=False,
            )
            for i, (width, channels) in enumerate(
                zip(self.widths, self.channels, strict=True)
            )
        ]
        size = sum(self.channels)
        if self.add_batch_norm:
            self.batch_norm = BatchNormalization(
                dtype=self.dtype_policy, name="batch_norm"
            )
            self.batch_norm.build((None, None, size))
        else:
            self.bias = self.add_weight(
                name="bias", shape=(size,), initializer="zeros", autocast=False
            )
        self.built = True

    def call(self, frames, mask, training=False):
        frames = ops.where(mask[..., None], frames, 0)
        y = ops.concatenate(
            [
                convolve(frames, ops.convert_to_tensor(kernel), self.padding)
                for kernel in self.kernels
            ],
            axis=-1,
        )
        if self.add_batch_norm:
            scale, offset = self.batch_norm.affine(y, mask, training)
            y = scale_and_shift(y, scale, offset)
        else:
            y = y + self.bias
        if self.activation:
            y = ops.relu(y)
        return ops.cast(ops.where(mask[..., None], y, 0.0), self.compute_dtype)

    def compute_mask(self, frames, previous_mask=None):
        return None  # masks go by argument

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (*frames_shape[:-1], sum(self.channels))

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "widths": self.widths,
            "padding": self.padding,
            "activation": self.activation,
            "add_batch_norm": self.add_batch_norm,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class ConvolutionPooling(keras.layers.Layer):
    """The greatest response of each filter over a video's windows of frames.

    o_k = max_t f(sum_j x_{t + j} W_jk + b_k) over the windows that lie within the
    video; one of fewer frames than a filter is wide has one window, filled with
    zeros before its first frame.

    Args:
        channels, widths, activation, add_batch_norm: as `TemporalConvolution`.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        [B, sum of C]; zeros for a video without frames.

    Reference:
        Na et al. 2017, arXiv:1706.07960, section 2.2.2, equation 7; Kim 2014,
        arXiv:1408.5882.
    """

    def __init__(
        self,
        channels: int | Sequence[int] = 256,
        widths: int | Sequence[int] = 5,
        activation: str | None = "relu",
        add_batch_norm: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.convolution = TemporalConvolution(
            channels,
            widths,
            padding="causal",
            activation=activation,
            add_batch_norm=add_batch_norm,
            dtype=self.dtype_policy,
            name="convolution",
        )

    def build(self, frames_shape, mask_shape=None):
        self.convolution.build(frames_shape, mask_shape)
        self.built = True

    def call(self, frames, mask, training=False):
        y = self.convolution(frames, mask, training=training)
        pairs = zip(self.convolution.widths, self.convolution.channels, strict=True)
        first = [width - 1 for width, channels in pairs for _ in range(channels)]
        # A window ends at its frame: at the last one, in a video that it exceeds.
        last = ops.sum(ops.cast(mask, "int32"), axis=1) - 1
        first = ops.minimum(ops.convert_to_tensor(first, "int32"), last[:, None])
        positions = ops.arange(ops.shape(frames)[1], dtype="int32")
        whole = positions[None, :, None] >= first[:, None, :]
        greatest = masked_max(ops.where(whole, ops.cast(y, "float32"), -1e30), mask)
        return ops.cast(greatest, self.compute_dtype)

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], sum(self.convolution.channels))

    def get_config(self):
        own = ("channels", "widths", "activation", "add_batch_norm")
        convolution = self.convolution.get_config()
        return {**super().get_config(), **{name: convolution[name] for name in own}}


@keras.saving.register_keras_serializable(package="yt8m")
class TemporalResidualBlock(keras.layers.Layer):
    """Two convolutions over time beside a shortcut.

    y = relu(x + BN(W_2 * relu(BN(W_1 * x)))); where x has another size than C, it is
    brought to it by BN(W_3 x), frame by frame.

    Args:
        channels: number of filters C, of each convolution.
        width: how many frames a filter sees.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, T, C]; zeros at padding.

    Reference:
        Li et al. 2017, arXiv:1707.04555 (temporal residual networks); He et al. 2016,
        arXiv:1512.03385, section 3.2 (the shortcut).
    """

    def __init__(self, channels: int, width: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.channels = channels
        self.width = width

        def convolution(name, width, activation):
            return TemporalConvolution(
                channels,
                width,
                activation=activation,
                dtype=self.dtype_policy,
                name=name,
            )

        self.first = convolution("first", width, "relu")
        self.second = convolution("second", width, None)
        self.shortcut = convolution("shortcut", 1, None)

    def build(self, frames_shape, mask_shape=None):
        inner_shape = (*frames_shape[:-1], self.channels)
        self.first.build(frames_shape, mask_shape)
        self.second.build(inner_shape, mask_shape)
        if frames_shape[-1] != self.channels:
            self.shortcut.build(frames_shape, mask_shape)
        self.built = True

    def call(self, frames, mask, training=False):
        y = self.first(frames, mask, training=training)
        y = self.second(y, mask, training=training)
        if frames.shape[-1] != self.channels:
            frames = self.shortcut(frames, mask, training=training)
        return ops.where(mask[..., None], ops.relu(frames + y), 0)

    def compute_mask(self, frames, previous_mask=None):
        return None  # masks go by argument

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (*frames_shape[:-1], self.channels)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "width": self.width,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class FeatureConvolution(keras.layers.Layer):
    """Convolutions over the features of each frame, as over a signal of one channel.

    Each layer is elu(W * x + b) with zeros beyond the ends; the last one leaves one
    channel, so that a frame keeps its size. Features have both signs, of which a ReLU
    would drop one.

    Args:
        layers: how many.
        channels: number of filters of all layers but the last.
        width: how many neighbouring features a filter sees.

    Call arguments:
        frames: [B, T, D].

    Returns:
        [B, T, D].

    Reference:
        Gauthier and Lu 2017, "YouTube-8M Video Classification", Stanford, as Huang,
        "YouTube-8M Video Understanding", section 2 describes it.
    """

    def __init__(self, layers: int = 3, channels: int = 8, width: int = 3, **kwargs):
        super().__init__(**kwargs)
        for name, value in (
            ("layers", layers),
            ("channels", channels),
            ("width", width),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {value}")
        self.num_layers = layers
        self.channels = channels
        self.width = width

    def build(self, frames_shape):
        sizes = [1, *[self.channels] * (self.num_layers - 1), 1]
        self.kernels, self.biases = [], []
        for i in range(self.num_layers):
            self.kernels.append(
                self.add_weight(
                    name=f"kernel_{i}",
                    shape=(self.width, sizes[i], sizes[i + 1]),
                    initializer="he_uniform",
                    autocast=False,
                )
            )
            self.biases.append(
                self.add_weight(
                    name=f"bias_{i}",
                    shape=(sizes[i + 1],),
                    initializer="zeros",
                    autocast=False,
                )
            )
        self.built = True

    def call(self, frames):
        x = ops.reshape(frames, (-1, frames.shape[-1], 1))
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            y = convolve(x, ops.convert_to_tensor(kernel)) + bias
            x = ops.cast(ops.elu(y), self.compute_dtype)
        return ops.reshape(x, ops.shape(frames))

    def compute_output_shape(self, frames_shape):
        return frames_shape

    def get_config(self):
        return {
            **super().get_config(),
            "layers": self.num_layers,
            "channels": self.channels,
            "width": self.width,
        }
