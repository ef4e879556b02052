"""Attention over the frames of a video: weights that the frames themselves give."""

from typing import Any

import keras
from keras import ops

from yt8m.layers.masking import masked_mean
from yt8m.layers.preprocessing import l2_normalize

COMBINATIONS = ("concat", "mean", "max")


def masked_softmax(logits: Any, mask: Any, axis: int = -1) -> Any:
    """Softmax over the entries that count, in float32.

    Args:
        logits: of any shape; other entries may hold any finite value.
        mask: bool, of a shape that broadcasts to that of `logits`.
        axis: which adds up to 1.

    Returns:
        float32; zeros for other entries, and everywhere if none counts.
    """
    lowest = -1e9
    logits = ops.where(mask, ops.cast(logits, "float32"), lowest)
    highest = ops.max(logits, axis=axis, keepdims=True, initial=lowest)
    shares = ops.where(mask, ops.exp(logits - ops.stop_gradient(highest)), 0.0)
    total = ops.sum(shares, axis=axis, keepdims=True)
    # Not a maximum with 1: a single entry sums to 1, where its slope would be halved.
    return shares / ops.where(ops.greater(total, 0.0), total, 1.0)


def frame_weights(scores: Any, mask: Any) -> Any:
    """Softmax of scores [B, T, A] over the valid frames, as float32 [B, A, T]."""
    scores = ops.transpose(ops.cast(scores, "float32"), (0, 2, 1))
    return masked_softmax(scores, mask[:, None, :])


@keras.saving.register_keras_serializable(package="yt8m")
class AttentionPooling(keras.layers.Layer):
    """Weighted means of the frames, whose weights are learned functions of them.

    v_a = sum_t softmax_t(s_a(x_t)) x_t over the valid frames, with the scores
    s(x) = x W; with `hidden_size` tanh(x V + b) W; and `gated`,
    (tanh(x V + b) * sigmoid(x U + c)) W. A bias of s would cancel in the softmax.
    With `shift` each becomes (alpha_a v_a + beta_a) / (sqrt(A) |alpha_a v_a + beta_a|),
    which lets the attentions of a cluster differ.

    Args:
        attentions: how many weighted means, A.
        hidden_size: of the layer before the scores; None leaves it out.
        gated: multiply that layer by gates.
        shift: the shifting operation.
        combination: of the A vectors: `concat`, `mean` or `max`.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, A * D], or [B, D] for `mean` and `max`; zeros for a video without frames.

    Reference:
        Ilse, Tomczak, Welling 2018, arXiv:1802.04712, equations 8 and 9 (gated); Long
        et al. 2018, arXiv:1711.09550, section 3 (clusters, shifting operation).
    """

    def __init__(
        self,
        attentions: int = 8,
        hidden_size: int | None = None,
        gated: bool = False,
        shift: bool = False,
        combination: str = "concat",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if attentions < 1:
            raise ValueError(
                f"`attentions` must be positive. Received: attentions={attentions}"
            )
        if gated and not hidden_size:
            raise ValueError(
                f"`gated` needs a `hidden_size`. Received: hidden_size={hidden_size}"
            )
        if combination not in COMBINATIONS:
            raise ValueError(
                f"`combination` must be one of {', '.join(COMBINATIONS)}. "
                f"Received: combination={combination}"
            )
        self.supports_masking = True
        self.attentions = attentions
        self.hidden_size = hidden_size
        self.gated = gated
        self.shift = shift
        self.combination = combination

    def build(self, frames_shape, mask_shape=None):
        def add(name, units, input_shape, **options):
            layer = keras.layers.Dense(
                units, **options, dtype=self.dtype_policy, name=name
            )
            layer.build(input_shape)
            return layer

        inner = frames_shape
        if self.hidden_size:
            inner = (*frames_shape[:-1], self.hidden_size)
            self.hidden = add(
                "hidden", self.hidden_size, frames_shape, activation="tanh"
            )
        if self.gated:
            self.gate = add(
                "gate", self.hidden_size, frames_shape, activation="sigmoid"
            )
        self.scores = add("scores", self.attentions, inner, use_bias=False)
        if self.shift:
            shape = (self.attentions, 1)
            self.scale, self.offset = (
                self.add_weight(
                    name=name, shape=shape, initializer=initial, autocast=False
                )
                for name, initial in (("scale", "ones"), ("offset", "zeros"))
            )
        self.built = True

    def call(self, frames, mask, training=False):
        hidden = self.hidden(frames) if self.hidden_size else frames
        if self.gated:
            hidden = hidden * self.gate(frames)
        weights = frame_weights(self.scores(hidden), mask)
        pooled = ops.matmul(ops.cast(weights, frames.dtype), frames)  # [B, A, D]
        if self.shift:
            shifted = ops.cast(pooled, "float32") * self.scale + self.offset
            shifted = l2_normalize(shifted) * self.attentions**-0.5
            shifted = ops.where(ops.any(mask, axis=1)[:, None, None], shifted, 0.0)
            pooled = ops.cast(shifted, frames.dtype)
        if self.combination == "mean":
            return ops.mean(pooled, axis=1)
        if self.combination == "max":
            return ops.max(pooled, axis=1)
        return ops.reshape(pooled, (-1, self.attentions * frames.shape[-1]))

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        count = self.attentions if self.combination == "concat" else 1
        return (frames_shape[0], count * frames_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "attentions": self.attentions,
            "hidden_size": self.hidden_size,
            "gated": self.gated,
            "shift": self.shift,
            "combination": self.combination,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class StackedAttention(keras.layers.Layer):
    """Layers that each tell every frame what one attention saw in the whole video.

    With h the frames, each layer takes c = sum_t softmax_t(w' tanh(V h_t + b)) h_t
    over the valid frames and gives relu(W [h_t; c] + d); the mean of the last one's
    vectors over the valid frames is the result.

    Args:
        layers: how many.
        units: size of each layer's vectors and of its attention's hidden layer.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, units]; zeros for a video without frames.

    Reference:
        The stacked attention model of "Label Denoising with Large Ensembles of
        Heterogeneous Neural Networks", Ostyakov et al. 2018, arXiv:1809.04403,
        section 3, which gives it in words.
    """

    def __init__(self, layers: int = 3, units: int = 1024, **kwargs):
        super().__init__(**kwargs)
        for name, value in (("layers", layers), ("units", units)):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {value}")
        self.supports_masking = True
        self.num_layers = layers
        self.units = units

    def build(self, frames_shape, mask_shape=None):
        self.attentions, self.own, self.shared = [], [], []
        for i in range(self.num_layers):
            size = self.units if i else frames_shape[-1]
            attention = AttentionPooling(
                1, self.units, dtype=self.dtype_policy, name=f"attention_{i}"
            )
            # The two halves of W, for h and c: c is not repeated for every frame.
            own, shared = (
                keras.layers.Dense(
                    self.units,
                    use_bias=use_bias,
                    dtype=self.dtype_policy,
                    name=f"{name}_{i}",
                )
                for name, use_bias in (("own", True), ("shared", False))
            )
            attention.build((None, None, size))
            own.build((None, None, size))
            shared.build((None, size))
            self.attentions.append(attention)
            self.own.append(own)
            self.shared.append(shared)
        self.built = True

    def call(self, frames, mask, training=False):
        for attention, own, shared in zip(
            self.attentions, self.own, self.shared, strict=True
        ):
            context = shared(attention(frames, mask))
            frames = ops.relu(own(frames) + context[:, None, :])
        return masked_mean(frames, mask)

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "layers": self.num_layers,
            "units": self.units,
        }
