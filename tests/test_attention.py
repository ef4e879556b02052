"""Attention and transformers against NumPy, with ragged lengths and garbage padding."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.attention import (
    AttentionPooling,
    StackedAttention,
    masked_softmax,
)
from yt8m.layers.transformer import (
    SelfAttention,
    TransformerBlock,
    TransformerEncoder,
    sinusoids,
)

LENGTHS = [0, 1, 3, 6]
T, D = 6, 5
MASK = np.arange(T) < np.array(LENGTHS)[:, None]


def frames_of(garbage=0.0):
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), T, D))
    return np.where(MASK[..., None], x, garbage).astype("float32")


def randomised(layer):
    layer(tf.constant(frames_of()), MASK)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer


def value(weight):
    return np.asarray(weight, "float64")


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(x, layer):
    y = x @ value(layer.kernel)
    return y if layer.bias is None else y + value(layer.bias)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def assert_equals_twin(layer, twin, size):
    """Each video alone, as [n, D], through the twin; zeros for the empty one."""
    y = layer(tf.constant(frames_of(garbage=1e3)), MASK)
    np.testing.assert_array_equal(y[0], np.zeros(size))
    for b in (1, 2, 3):
        expected = twin(frames_of()[b, : LENGTHS[b]].astype("float64"))
        np.testing.assert_allclose(y[b], expected, rtol=1e-4, atol=1e-4)


def attended(x, layer):
    """Twin of `AttentionPooling`: [A, D] of one video."""
    hidden = x
    if layer.hidden_size:
        hidden = np.tanh(dense(x, layer.hidden))
    if layer.gated:
        hidden = hidden * sigmoid(dense(x, layer.gate))
    pooled = softmax(hidden @ value(layer.scores.kernel), axis=0).T @ x
    if layer.shift:
        pooled = pooled * value(layer.scale) + value(layer.offset)
        norms = np.linalg.norm(pooled, axis=1, keepdims=True)
        pooled = pooled / norms / np.sqrt(layer.attentions)
    return pooled


def test_a_masked_softmax_adds_up_to_1_where_anything_counts():
    logits = np.array([[1.0, 2.0, 1e5], [3.0, 3.0, 3.0]], "float32")
    mask = np.array([[True, True, False], [False, False, False]])
    shares = masked_softmax(tf.constant(logits), mask)
    e = np.exp([1.0, 2.0])
    np.testing.assert_allclose(shares, [[*(e / e.sum()), 0], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("hidden", "gated"), [(None, False), (4, False), (4, True)])
def test_attention_pooling_equals_its_twin(hidden, gated, shift):
    layer = randomised(AttentionPooling(3, hidden, gated, shift))
    assert_equals_twin(layer, lambda x: attended(x, layer).reshape(-1), 3 * D)


@pytest.mark.parametrize(
    ("combination", "reduce"), [("mean", np.mean), ("max", np.max)]
)
def test_attended_vectors_are_combined(combination, reduce):
    layer = randomised(AttentionPooling(3, combination=combination))
    assert_equals_twin(layer, lambda x: reduce(attended(x, layer), axis=0), D)


def test_a_shifted_cluster_has_norm_1():
    layer = randomised(AttentionPooling(4, shift=True))
    norms = np.linalg.norm(layer(tf.constant(frames_of()), MASK), axis=1)
    np.testing.assert_allclose(norms, [0, 1, 1, 1], atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_stacked_attention_equals_its_twin(layers):
    stack = randomised(StackedAttention(layers, units=4))

    def twin(x):
        for i in range(layers):
            context = attended(x, stack.attentions[i])[0]
            kernel = np.concatenate(
                [value(stack.own[i].kernel), value(stack.shared[i].kernel)]
            )
            joined = np.concatenate([x, np.tile(context, (len(x), 1))], axis=1)
            x = np.maximum(joined @ kernel + value(stack.own[i].bias), 0)
        return x.mean(axis=0)

    assert_equals_twin(stack, twin, 4)


def self_attended(x, layer):
    query, key, value_ = (dense(x, p) for p in (layer.query, layer.key, layer.value))
    size, parts = layer.head_size, []
    for a in range(layer.heads):
        q, k, v = (p[:, a * size : (a + 1) * size] for p in (query, key, value_))
        parts.append(softmax(q @ k.T / np.sqrt(size)) @ v)
    return dense(np.concatenate(parts, axis=1), layer.output_projection)


def layer_normed(x, norm):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + norm.epsilon
    )
    return scaled * value(norm.gamma) + value(norm.beta)


def block_of(x, block):
    activate = {"gelu": gelu, "relu": lambda x: np.maximum(x, 0)}[block.activation]
    y = layer_normed(x + self_attended(x, block.attention), block.attention_norm)
    inner = dense(activate(dense(y, block.inner)), block.outer)
    return layer_normed(y + inner, block.ffn_norm)


@pytest.mark.parametrize("heads", [1, 2, 5, 7])
def test_frames_attend_to_the_valid_frames_of_their_video(heads):
    layer = randomised(SelfAttention(heads))
    y = layer(tf.constant(frames_of(garbage=1e3)), MASK)
    assert np.isfinite(y).all()
    for b in (1, 2, 3):
        expected = self_attended(frames_of()[b, : LENGTHS[b]], layer)
        np.testing.assert_allclose(y[b, : LENGTHS[b]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_transformer_block_equals_its_twin(activation):
    layer = randomised(TransformerBlock(2, 7, 0.0, activation))
    y = layer(tf.constant(frames_of(garbage=1e3)), MASK)
    for b in (1, 2, 3):
        expected = block_of(frames_of()[b, : LENGTHS[b]], layer)
        np.testing.assert_allclose(y[b, : LENGTHS[b]], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "first", "attention"])
@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal"])
def test_a_transformer_encoder_equals_its_twin(position, pooling):
    # Fewer learned positions than frames: the last ones get no code.
    layer = randomised(
        TransformerEncoder(2, 2, 7, 0.0, "gelu", position, pooling, max_frames=4)
    )

    def twin(x):
        x = x * np.sqrt(D)
        if position == "learned":
            x[:4] += value(layer.positions)[: len(x)]
        elif position == "sinusoidal":
            x = x + np.asarray(sinusoids(len(x), D))
        for block in layer.blocks:
            x = block_of(x, block)
        if pooling == "attention":
            return attended(x, layer.attention)[0]
        return x[0] if pooling == "first" else x.mean(axis=0)

    assert_equals_twin(layer, twin, D)


def test_sinusoids_are_sines_and_cosines_of_falling_rates():
    rates = 10000.0 ** -(np.arange(4) / 4)
    angles = np.arange(3)[:, None] * rates
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(sinusoids(3, 8), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionPooling(0), "`attentions` must be positive"),
        (lambda: AttentionPooling(gated=True), "`gated` needs a `hidden_size`"),
        (lambda: AttentionPooling(combination="sum"), "`combination` must be one of"),
        (lambda: StackedAttention(0), "`layers` must be positive"),
        (lambda: SelfAttention(0), "`heads` must be positive"),
        (lambda: TransformerBlock(activation="elu"), "`activation` must be one of"),
        (lambda: TransformerEncoder(0), "`layers` must be positive"),
        (lambda: TransformerEncoder(position="sine"), "`position` must be one of"),
        (lambda: TransformerEncoder(pooling="last"), "`pooling` must be one of"),
    ],
)
def test_wrong_arguments_of_attention_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        AttentionPooling(3, 4, True, True, "max"),
        StackedAttention(2, 4),
        SelfAttention(2, 0.1),
        TransformerBlock(2, 7, 0.2, "relu"),
        TransformerEncoder(1, 2, 7, 0.2, "relu", "learned", "first", 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_attention_is_rebuilt_from_its_configuration(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    x = tf.constant(frames_of())
    assert again(x, MASK).shape == layer.compute_output_shape(x.shape)
