"""DBoF's poolings and the gates of each frame, against float64 twins."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.dbof import POOLINGS, DBoF
from yt8m.layers.gating import SqueezeExcitation

LENGTHS = [0, 1, 3, 6]
T, D, K = 6, 5, 4
MASK = np.arange(T) < np.array(LENGTHS)[:, None]


def make_frames(garbage=0.0):
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), T, D)) + 0.5
    return np.where(MASK[..., None], x, garbage).astype("float32")


def randomise(layer):
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        value = rng.normal(size=weight.shape)
        weight.assign(abs(value) + 0.5 if "moving_variance" in weight.path else value)
    return layer


def value(weight):
    return np.asarray(weight, "float64")


def normalised(x, norm, statistics=None):
    if statistics is None:
        mean, variance = value(norm.moving_mean), value(norm.moving_variance)
    else:
        mean, variance = statistics.mean(0), statistics.var(0)
    scaled = (x - mean) / np.sqrt(variance + norm.epsilon)
    return scaled * value(norm.gamma) + value(norm.beta)


def gated(x, gating, statistics):
    """Twin of squeeze and excitation; `statistics` picks what the norm sees."""
    inner = x @ value(gating.squeeze.kernel)
    inner = normalised(inner, gating.batch_norm, statistics and statistics(inner))
    logits = np.maximum(inner, 0) @ value(gating.excite.kernel)
    return x / (1 + np.exp(-logits))


def pooled(layer, x, training):
    def valid(words):
        return words[MASK]

    see = valid if training else None
    x = normalised(x, layer.input_norm, see and see(x))
    words = x @ value(layer.cluster_weights)
    words = normalised(words, layer.cluster_norm, see and see(words))
    words = np.maximum(words, 0)
    if layer.gating_reduction is not None:
        words = gated(words, layer.frame_gating, see)
    rows = []
    for b, n in enumerate(LENGTHS):
        z = words[b, : max(n, 1)] * (n > 0)
        rows.append(
            {
                "max": z.max(0),
                "average": z.mean(0),
                "self_weighted": (z * abs(z)).sum(0) / np.maximum(abs(z).sum(0), 1e-9),
                "average_max": np.concatenate([z.mean(0), z.max(0)]),
            }[layer.pooling]
        )
    return np.array(rows)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gating_reduction", [None, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_dbof_pools_the_gated_words_of_valid_frames(
    pooling, gating_reduction, training
):
    layer = DBoF(
        K, pooling=pooling, activation="relu", gating_reduction=gating_reduction
    )
    layer.build((None, T, D))
    randomise(layer)
    expected = pooled(layer, make_frames().astype("float64"), training)
    y = layer(tf.constant(make_frames(1e3)), tf.constant(MASK), training=training)
    assert y.shape == layer.compute_output_shape((len(LENGTHS), T, D))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(y[0], np.zeros(y.shape[1]))
    assert (expected[1:] != 0).any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_leaves_the_gradients_of_gated_dbof_alone(pooling):
    def gradients(garbage):
        layer = DBoF(K, pooling=pooling, activation="relu", gating_reduction=2)
        layer.build((None, T, D))
        randomise(layer)
        with tf.GradientTape() as tape:
            y = layer(
                tf.constant(make_frames(garbage)), tf.constant(MASK), training=True
            )
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, layer.trainable_weights) + layer.weights

    for clean, dirty in zip(gradients(0.0), gradients(20.0), strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_allclose(dirty, clean, rtol=1e-3, atol=1e-4)


def test_the_self_weighted_average_lies_between_average_and_maximum():
    words = {p: DBoF(K, p, add_batch_norm=False) for p in POOLINGS[:3]}
    y = {}
    for pooling, layer in words.items():
        layer.build((None, T, D))
        y[pooling] = randomise(layer)(tf.constant(make_frames()), tf.constant(MASK))
    assert (y["average"][2:] < y["self_weighted"][2:]).numpy().all()
    assert (y["self_weighted"][2:] < y["max"][2:]).numpy().all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("shape", [(2, 0), (0, 4)])
def test_dbof_of_a_batch_without_frames_or_videos_is_nothing(pooling, shape):
    layer = DBoF(K, pooling, activation="relu", gating_reduction=2)
    y = layer(tf.zeros((*shape, D)), tf.zeros(shape, tf.bool), training=True)
    np.testing.assert_array_equal(y, np.zeros((shape[0], y.shape[1])))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_squeeze_and_excitation_scales_by_gates_of_few_inner_values(masked, training):
    x = make_frames().astype("float64")
    layer = SqueezeExcitation(2)
    layer.build((None, T, D))
    randomise(layer)
    assert layer.squeeze.kernel.shape == (D, D // 2)

    def seen(inner):
        return inner[MASK] if masked else inner.reshape(-1, inner.shape[-1])

    expected = gated(x, layer, seen if training else None)
    mask = tf.constant(MASK) if masked else None
    y = layer(tf.constant(x, tf.float32), mask=mask, training=training)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_squeeze_and_excitation_keeps_an_inner_value_and_refuses_no_reduction():
    layer = SqueezeExcitation(100)
    layer.build((None, D))
    assert layer.squeeze.kernel.shape == (D, 1)
    with pytest.raises(ValueError, match="`reduction` must be positive"):
        SqueezeExcitation(0)


@pytest.mark.parametrize(
    "layer",
    [DBoF(3, "self_weighted", gating_reduction=2), SqueezeExcitation(3)],
    ids=["dbof", "squeeze_excitation"],
)
def test_a_layer_is_rebuilt_with_its_gates(layer):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer) and again.get_config() == layer.get_config()
    for name in ("gating_reduction", "pooling", "reduction"):
        assert getattr(again, name, None) == getattr(layer, name, None)
