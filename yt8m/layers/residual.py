"""Residual and plain networks on the vector of a video."""

from typing import Any

import keras
from keras import ops

from yt8m.layers.dropout import Dropout
from yt8m.layers.heads import Head, mixture_logits
from yt8m.layers.normalization import BatchNormalization


def leaky_relu(x: Any) -> Any:
    """max(x, 0.01 x)."""
    return ops.leaky_relu(x, negative_slope=0.01)


ACTIVATIONS = {"leaky_relu": leaky_relu, "relu": ops.relu, None: lambda x: x}


@keras.saving.register_keras_serializable(package="yt8m")
class DenseBlock(keras.layers.Layer):
    """dropout(activation(BN(x W))).

    Args:
        units: size of the result.
        activation: `leaky_relu` (of slope 0.01), `relu` or None.
        dropout: the share that is dropped.

    Call arguments:
        x: [B, H].

    Returns:
        [B, units].

    Reference:
        Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.2 (batch norm between the
        product and the activation, without a bias). As a part of `ResNetLike`:
        Ostyakov et al. 2018, arXiv:1809.04403, figure 3.
    """

    def __init__(
        self,
        units: int,
        activation: str | None = "leaky_relu",
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"`units` must be positive. Received: units={units}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"`activation` must be one of {', '.join(map(str, ACTIVATIONS))}. "
                f"Received: activation={activation}"
            )
        self.units = units
        self.activation = activation
        self.rate = dropout
        self.dense = keras.layers.Dense(
            units, use_bias=False, dtype=self.dtype_policy, name="dense"
        )
        self.batch_norm = BatchNormalization(dtype=self.dtype_policy, name="batch_norm")
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.batch_norm.build((None, self.units))
        self.built = True

    def call(self, x, training=False):
        x = self.batch_norm(self.dense(x), training=training)
        return self.dropout(ACTIVATIONS[self.activation](x), training=training)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "activation": self.activation,
            "dropout": self.rate,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class ResidualBlock(keras.layers.Layer):
    """leaky_relu(x + block(x) V + b), with a `DenseBlock` to [B, units].

    Args:
        units: between the two products.
        dropout: of the block.

    Call arguments:
        x: [B, H].

    Returns:
        [B, H].

    Reference:
        He et al. 2016, arXiv:1512.03385, equation 1. As a part of `ResNetLike`:
        Ostyakov et al. 2018, arXiv:1809.04403, figure 3.
    """

    def __init__(self, units: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.rate = dropout
        self.block = DenseBlock(
            units, dropout=dropout, dtype=self.dtype_policy, name="block"
        )

    def build(self, input_shape):
        self.dense = keras.layers.Dense(
            input_shape[-1], dtype=self.dtype_policy, name="dense"
        )
        self.block.build(input_shape)
        self.dense.build((None, self.units))
        self.built = True

    def call(self, x, training=False):
        return leaky_relu(x + self.dense(self.block(x, training=training)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "units": self.units, "dropout": self.rate}


@keras.saving.register_keras_serializable(package="yt8m")
class ResNetLike(keras.layers.Layer):
    """Residual blocks of each stream apart, then of all together.

    Each stream: a dense block to H, `stream_blocks` residual blocks. Their results,
    concatenated to [B, S * H] for S streams: `joint_blocks` residual blocks with H
    units inside, a dense block to H.

    Args:
        inner_size: H.
        stream_blocks, joint_blocks: numbers of residual blocks.
        dropout: the share that is dropped in each dense block.

    Call arguments:
        streams: a list of [B, D_i], such as the features of rgb and of audio.

    Returns:
        [B, H].

    Reference:
        Ostyakov et al. 2018, "Label Denoising with Large Ensembles of Heterogeneous
        Neural Networks", arXiv:1809.04403, section 3 and figure 3.
    """

    def __init__(
        self,
        inner_size: int = 2048,
        stream_blocks: int = 1,
        joint_blocks: int = 1,
        dropout: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in (
            ("stream_blocks", stream_blocks),
            ("joint_blocks", joint_blocks),
        ):
            if value < 0:
                raise ValueError(
                    f"`{name}` must not be negative. Received: {name}={value}"
                )
        self.inner_size = inner_size
        self.stream_blocks = stream_blocks
        self.joint_blocks = joint_blocks
        self.dropout = dropout
        self.end = self._dense_block("end")

    def _dense_block(self, name):
        return DenseBlock(
            self.inner_size, dropout=self.dropout, dtype=self.dtype_policy, name=name
        )

    def _residual_block(self, name):
        return ResidualBlock(
            self.inner_size, dropout=self.dropout, dtype=self.dtype_policy, name=name
        )

    def build(self, streams_shape):
        self.streams = [
            [
                self._dense_block(f"stream_{i}"),
                *(
                    self._residual_block(f"stream_{i}_block_{j}")
                    for j in range(self.stream_blocks)
                ),
            ]
            for i in range(len(streams_shape))
        ]
        self.joint = [
            *(self._residual_block(f"joint_{j}") for j in range(self.joint_blocks)),
            self.end,
        ]
        for blocks, shape in zip(self.streams, streams_shape, strict=True):
            for block in blocks:
                block.build(shape)
                shape = (None, self.inner_size)
        for block in self.joint:
            block.build((None, len(streams_shape) * self.inner_size))
        self.built = True

    def call(self, streams, training=False):
        ends = []
        for blocks, x in zip(self.streams, streams, strict=True):
            for block in blocks:
                x = block(x, training=training)
            ends.append(x)
        x = ops.concatenate(ends, axis=-1)
        for block in self.joint:
            x = block(x, training=training)
        return x

    def compute_output_shape(self, streams_shape):
        return (streams_shape[0][0], self.inner_size)

    def get_config(self):
        return {
            **super().get_config(),
            "inner_size": self.inner_size,
            "stream_blocks": self.stream_blocks,
            "joint_blocks": self.joint_blocks,
            "dropout": self.dropout,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class ResNetLikeHead(Head):
    """`ResNetLike` on one vector, and a logistic regression for each class.

    The logits are ResNetLike(x) W + b, with x [B, H], one stream, to [B, inner_size].

    Args:
        num_classes: number of classes C.
        inner_size, stream_blocks, joint_blocks, dropout: of `ResNetLike`.
        Others as `Head`.

    Call arguments, returns:
        As `Head`.

    Reference:
        Ostyakov et al. 2018, arXiv:1809.04403, section 2 (on linear combinations of
        frames), section 3 and figure 3.
    """

    def __init__(
        self,
        num_classes: int,
        inner_size: int = 2048,
        stream_blocks: int = 1,
        joint_blocks: int = 1,
        dropout: float = 0.5,
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        self.inner_size = inner_size
        self.stream_blocks = stream_blocks
        self.joint_blocks = joint_blocks
        self.dropout = dropout
        self.resnet = ResNetLike(
            inner_size,
            stream_blocks=stream_blocks,
            joint_blocks=joint_blocks,
            dropout=dropout,
            dtype=self.dtype_policy,
            name="resnet",
        )

    def build(self, input_shape):
        self.resnet.build([input_shape])
        self.kernel = self.add_kernel("kernel", self.inner_size, self.num_classes)
        self.bias = self.add_bias("bias", self.num_classes)
        super().build(input_shape)

    def class_logits(self, x, training=False):
        x = self.resnet([x], training=training)
        return ops.cast(ops.matmul(x, self.kernel), "float32") + self.bias

    def get_config(self):
        return {
            **super().get_config(),
            "inner_size": self.inner_size,
            "stream_blocks": self.stream_blocks,
            "joint_blocks": self.joint_blocks,
            "dropout": self.dropout,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class MoNNHead(Head):
    """A mixture of neural networks: gates see the input, experts a network on it.

    As `MoEHead`, but the experts are logistic regressions on the last of a stack of
    dense layers with ReLUs.

    Args:
        num_classes: number of classes C.
        num_mixtures: experts M of each class, without the dummy.
        expansions: sizes of the dense layers, in multiples of the input's size H.
        Others as `Head`.

    Reference:
        The model MoNN3Lw of the team Y8M, fifth of the challenge of 2017.
    """

    def __init__(
        self,
        num_classes: int,
        num_mixtures: int = 3,
        expansions: tuple[int, ...] = (8, 1, 4),
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        if num_mixtures < 1:
            raise ValueError(
                "`num_mixtures` must be positive. "
                f"Received: num_mixtures={num_mixtures}"
            )
        if not expansions or min(expansions) < 1:
            raise ValueError(
                "`expansions` must be positive numbers. "
                f"Received: expansions={expansions}"
            )
        self.num_mixtures = num_mixtures
        self.expansions = tuple(expansions)

    def build(self, input_shape):
        size, experts = input_shape[-1], self.num_classes * self.num_mixtures
        self.hidden = []
        width = size
        for i, expansion in enumerate(self.expansions):
            dense = keras.layers.Dense(
                expansion * size,
                activation="relu",
                kernel_regularizer=keras.regularizers.L2(self.l2_penalty / 2),
                dtype=self.dtype_policy,
                name=f"hidden_{i}",
            )
            dense.build((None, width))
            self.hidden.append(dense)
            width = expansion * size
        self.gate_kernel = self.add_kernel(
            "gate_kernel", size, experts + self.num_classes
        )
        self.expert_kernel = self.add_kernel("expert_kernel", width, experts)
        self.expert_bias = self.add_bias("expert_bias", experts)
        super().build(input_shape)

    def class_logits(self, x, training=False):
        gates = ops.cast(ops.matmul(x, self.gate_kernel), "float32")
        for dense in self.hidden:
            x = dense(x)
        experts = ops.cast(ops.matmul(x, self.expert_kernel), "float32")
        return mixture_logits(
            self._by_mixture(gates), self._by_mixture(experts + self.expert_bias)
        )

    def _by_mixture(self, x):
        """Class-major columns [B, C * m] to a list of m tensors [B, C]."""
        x = ops.reshape(x, (-1, self.num_classes, x.shape[-1] // self.num_classes))
        return ops.unstack(ops.transpose(x, (2, 0, 1)), axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "num_mixtures": self.num_mixtures,
            "expansions": self.expansions,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class ThsFeatures(keras.layers.Layer):
    """What the THS residual MLP makes of a vector, for a linear classifier.

    z = dropout(2 sigmoid(W x + b) x + 0.1 tanh(V x + c)), a correction of the input;
    wide: [x; relu(-z); relu(z); relu(z - 0.5)];
    shortcut: s_i = relu(dense([s_{i-1}; s_{i-2}; z])), the last of 4;
    residual: twice relu(BN(z + BN(dense(relu(BN(dense(z))))))).
    The three are concatenated.

    Args:
        units: of the dense layers of the shortcut.
        dropout: of the corrected input.

    Call arguments:
        x: [B, D].

    Returns:
        [B, 5 D + units].

    Reference:
        The model THSModel, 59th of the challenge of 2018.
    """

    def __init__(self, units: int = 1024, dropout: float = 0.05, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.rate = dropout
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        size = input_shape[-1]

        def dense(units, activation, name, inputs):
            layer = keras.layers.Dense(
                units, activation=activation, dtype=self.dtype_policy, name=name
            )
            layer.build((None, inputs))
            return layer

        def block(activation, name):
            layer = DenseBlock(size, activation, dtype=self.dtype_policy, name=name)
            layer.build(input_shape)
            return layer

        self.weight = dense(size, "sigmoid", "weight", size)
        self.offset = dense(size, "tanh", "offset", size)
        inputs = [size, self.units + size] + 2 * [2 * self.units + size]
        self.shortcut = [
            dense(self.units, "relu", f"shortcut_{i}", width)
            for i, width in enumerate(inputs)
        ]
        self.residual = [
            (block("relu", f"inner_{i}"), block(None, f"outer_{i}")) for i in range(2)
        ]
        self.norms = [
            BatchNormalization(dtype=self.dtype_policy, name=f"norm_{i}")
            for i in range(2)
        ]
        for norm in self.norms:
            norm.build(input_shape)
        self.built = True

    def call(self, x, training=False):
        z = 2.0 * self.weight(x) * x + 0.1 * self.offset(x)
        z = self.dropout(z, training=training)
        parts = [x, ops.relu(-z), ops.relu(z), ops.relu(z - 0.5)]

        said = []
        for dense in self.shortcut:
            said.append(dense(ops.concatenate([*said[-2:], z], axis=-1)))
        parts.append(said[-1])

        for (inner, outer), norm in zip(self.residual, self.norms, strict=True):
            inside = outer(inner(z, training=training), training=training)
            z = ops.relu(norm(z + inside, training=training))
        return ops.concatenate([*parts, z], axis=-1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 5 * input_shape[-1] + self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "dropout": self.rate}
