"""Transformer encoders whose frames attend to the valid frames alone."""

import math

import keras
from keras import ops

from yt8m.layers.attention import AttentionPooling, masked_softmax
from yt8m.layers.dropout import Dropout
from yt8m.layers.masking import masked_mean

ACTIVATIONS = ("gelu", "relu")
POSITIONS = ("none", "learned", "sinusoidal")
POOLINGS = ("mean", "first", "attention")


def sinusoids(length, size):
    """Sines and cosines of positions: float32 [T, D].

    The first half of the values are sin(t / 10000^(2 i / D)), the second the cosines.
    """
    half = (size + 1) // 2
    rates = ops.exp(ops.arange(half, dtype="float32") * (-math.log(10000) / half))
    angles = ops.cast(ops.arange(length), "float32")[:, None] * rates
    both = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
    return both[:, :size]


@keras.saving.register_keras_serializable(package="yt8m")
class SelfAttention(keras.layers.Layer):
    """Multi-head attention of the frames of a video to each other.

    For each head: softmax(Q K' / sqrt(d)) V over the valid frames, with Q, K and V
    linear in the frames; then a linear layer of all heads together. K has no bias,
    which the softmax would cancel.

    Args:
        heads: how many, A; d is the greatest whole number up to D / A.
        dropout: of the attention's weights.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, T, D]; any finite value at padding.

    Reference:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
    """

    def __init__(self, heads: int = 8, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        if heads < 1:
            raise ValueError(f"`heads` must be positive. Received: heads={heads}")
        self.supports_masking = True
        self.heads = heads
        self.dropout = dropout
        self.drop = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, frames_shape, mask_shape=None):
        size = frames_shape[-1]
        self.head_size = max(size // self.heads, 1)
        inner = self.heads * self.head_size

        def add(name, units, input_size, use_bias=True):
            layer = keras.layers.Dense(
                units, use_bias=use_bias, dtype=self.dtype_policy, name=name
            )
            layer.build((None, None, input_size))
            return layer

        self.query = add("query", inner, size)
        self.key = add("key", inner, size, use_bias=False)
        self.value = add("value", inner, size)
        self.output_projection = add("output", size, inner)
        self.built = True

    def call(self, frames, mask, training=False):
        batch, length, _ = ops.shape(frames)

        def split(x):  # [B, A, T, d]
            x = ops.reshape(x, (batch, length, self.heads, self.head_size))
            return ops.transpose(x, (0, 2, 1, 3))

        query = split(self.query(frames)) * self.head_size**-0.5
        keys = ops.transpose(split(self.key(frames)), (0, 1, 3, 2))
        weights = masked_softmax(ops.matmul(query, keys), mask[:, None, None, :])
        weights = self.drop(ops.cast(weights, frames.dtype), training=training)
        x = ops.matmul(weights, split(self.value(frames)))
        x = ops.transpose(x, (0, 2, 1, 3))
        x = ops.reshape(x, (batch, length, self.heads * self.head_size))
        return self.output_projection(x)

    def compute_mask(self, frames, previous_mask=None):
        return None  # masks go by argument

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return frames_shape

    def get_config(self):
        return {
            **super().get_config(),
            "heads": self.heads,
            "dropout": self.dropout,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class TransformerBlock(keras.layers.Layer):
    """Self-attention, then two dense layers, each with a shortcut and a layer norm.

    y = LN(x + SelfAttention(x)); z = LN(y + W_2 f(W_1 y + b_1) + b_2).

    Args:
        heads: of the attention.
        ffn_size: size of the inner dense layer.
        dropout: of the attention's weights and of what is added to the shortcuts.
        activation: f, `gelu` or `relu`.

    Call arguments, returns:
        As `SelfAttention`.

    Reference:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.1; Devlin et al. 2019,
        arXiv:1810.04805, section 3 (GELU).
    """

    def __init__(
        self,
        heads: int = 8,
        ffn_size: int = 2048,
        dropout: float = 0.1,
        activation: str = "gelu",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"`activation` must be one of {', '.join(ACTIVATIONS)}. "
                f"Received: activation={activation}"
            )
        self.supports_masking = True
        self.heads = heads
        self.ffn_size = ffn_size
        self.dropout = dropout
        self.activation = activation

    def build(self, frames_shape, mask_shape=None):
        size, policy = frames_shape[-1], self.dtype_policy
        self.attention = SelfAttention(
            self.heads, self.dropout, dtype=policy, name="attention"
        )
        self.inner = keras.layers.Dense(self.ffn_size, dtype=policy, name="inner")
        self.outer = keras.layers.Dense(size, dtype=policy, name="outer")
        self.drop = Dropout(self.dropout, dtype=policy, name="dropout")
        norm = keras.layers.LayerNormalization
        self.attention_norm = norm(epsilon=1e-6, dtype=policy, name="attention_norm")
        self.ffn_norm = norm(epsilon=1e-6, dtype=policy, name="ffn_norm")
        for layer in (self.attention, self.inner, self.attention_norm, self.ffn_norm):
            layer.build(frames_shape)
        self.outer.build((*frames_shape[:-1], self.ffn_size))
        self.built = True

    def call(self, frames, mask, training=False):
        y = self.drop(
            self.attention(frames, mask, training=training), training=training
        )
        y = self.attention_norm(frames + y)
        inner = self.inner(y)
        if self.activation == "gelu":
            inner = ops.gelu(inner, approximate=False)
        else:
            inner = ops.relu(inner)
        z = self.drop(self.outer(inner), training=training)
        return self.ffn_norm(y + z)

    def compute_mask(self, frames, previous_mask=None):
        return None  # masks go by argument

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return frames_shape

    def get_config(self):
        return {
            **super().get_config(),
            "heads": self.heads,
            "ffn_size": self.ffn_size,
            "dropout": self.dropout,
            "activation": self.activation,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class TransformerEncoder(keras.layers.Layer):
    """A stack of transformer blocks over the frames, and one vector of what they give.

    The frames are multiplied by sqrt(D), get the code of their position, if there is
    one, pass the blocks and are pooled.

    Args:
        layers: number of blocks.
        heads, ffn_size, dropout, activation: as `TransformerBlock`.
        position: `none`, `learned` or `sinusoidal`.
        pooling: `mean` over the valid frames, the `first` one's vector, or `attention`,
            a mean with learned weights.
        max_frames: positions with a code of their own, for `learned`; frames beyond
            them get none.

    Call arguments:
        frames: [B, T, D], of norm 1; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        [B, D]; zeros for a video without frames.

    Reference:
        Vaswani et al. 2017, arXiv:1706.03762, sections 3.1, 3.4 and 3.5.
    """

    def __init__(
        self,
        layers: int = 2,
        heads: int = 8,
        ffn_size: int = 2048,
        dropout: float = 0.1,
        activation: str = "gelu",
        position: str = "none",
        pooling: str = "mean",
        max_frames: int = 300,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if layers < 1:
            raise ValueError(f"`layers` must be positive. Received: layers={layers}")
        for name, value, known in (
            ("position", position, POSITIONS),
            ("pooling", pooling, POOLINGS),
        ):
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)}. "
                    f"Received: {name}={value}"
                )
        self.supports_masking = True
        self.num_layers = layers
        self.heads = heads
        self.ffn_size = ffn_size
        self.dropout = dropout
        self.activation = activation
        self.position = position
        self.pooling = pooling
        self.max_frames = max_frames
        self.blocks = [
            TransformerBlock(
                heads,
                ffn_size,
                dropout,
                activation,
                dtype=self.dtype_policy,
                name=f"block_{i}",
            )
            for i in range(layers)
        ]
        self.drop = Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        if pooling == "attention":
            self.attention = AttentionPooling(
                1, dtype=self.dtype_policy, name="attention"
            )

    def build(self, frames_shape, mask_shape=None):
        if self.position == "learned":
            self.positions = self.add_weight(
                name="positions",
                shape=(self.max_frames, frames_shape[-1]),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
                autocast=False,
            )
        for block in self.blocks:
            block.build(frames_shape)
        if self.pooling == "attention":
            self.attention.build(frames_shape)
        self.built = True

    def call(self, frames, mask, training=False):
        length, size = ops.shape(frames)[1], frames.shape[-1]
        x = ops.cast(frames, "float32") * size**0.5
        if self.position == "learned":
            codes = self.positions[:length]
            x += ops.pad(codes, [[0, length - ops.shape(codes)[0]], [0, 0]])
        elif self.position == "sinusoidal":
            x += sinusoids(length, size)
        x = self.drop(ops.cast(x, self.compute_dtype), training=training)
        for block in self.blocks:
            x = block(x, mask, training=training)
        if self.pooling == "attention":
            return self.attention(x, mask)
        if self.pooling == "first":
            mask = ops.logical_and(mask, ops.equal(ops.arange(length), 0))
        return masked_mean(x, mask)

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], frames_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "layers": self.num_layers,
            "heads": self.heads,
            "ffn_size": self.ffn_size,
            "dropout": self.dropout,
            "activation": self.activation,
            "position": self.position,
            "pooling": self.pooling,
            "max_frames": self.max_frames,
        }
