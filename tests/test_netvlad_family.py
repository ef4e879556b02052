"""Poolings by soft assignment against float64 twins; padding is ragged garbage."""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.fisher_vector import NetFV
from yt8m.layers.netvlad import NetRVLAD, NetVLAD
from yt8m.layers.soft_dbow import SoftDBoW
from yt8m.layers.streams import pool_streams
from yt8m.layers.vlad_bow import VladBoW

LENGTHS = [0, 1, 3, 6]
T, D, K = 6, 5, 3
MASK = np.arange(T) < np.array(LENGTHS)[:, None]
LAYERS = {
    "netrvlad": lambda **args: NetRVLAD(K, **args),
    "netfv": lambda **args: NetFV(K, **args),
    "soft_dbow": lambda **args: SoftDBoW(K, **args),
    "soft_dbow_max": lambda **args: SoftDBoW(K, max_pooling=True, **args),
    "soft_dbow_gated": lambda **args: SoftDBoW(K, gated=True, **args),
    "vlad_bow": lambda **args: VladBoW(K, **args),
}


def make_frames(garbage=0.0):
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), T, D)) + 0.5
    return np.where(MASK[..., None], x, garbage).astype("float32")


def make_layer(kind, **args):
    layer = LAYERS[kind](**args)
    layer.build((None, T, D))
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        value = rng.normal(size=weight.shape)
        weight.assign(abs(value) + 0.5 if "moving_variance" in weight.path else value)
    if kind == "vlad_bow":
        layer.power.assign(0.63)
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


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def project(layer, x, training):
    """Frames after their norm, and the logits of their assignments."""
    if layer.input_batch_norm:
        x = normalised(x, layer.input_norm, x[MASK] if training else None)
    logits = x @ value(layer.cluster_weights)
    if not layer.add_batch_norm:
        return x, logits + value(layer.cluster_bias)
    return x, normalised(logits, layer.cluster_norm, logits[MASK] if training else None)


def rvlad(layer, x, a, training):
    return [
        unit(unit(np.einsum("tk,td->kd", a[b, :n], x[b, :n])).ravel())
        for b, n in enumerate(LENGTHS)
    ]


def fisher_vectors(layer, x, a, training):
    centres, deviations = value(layer.centres), value(layer.deviation_roots) ** 2 + 1e-6
    pooled = np.zeros((len(x), 2, K, D))
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            for k in range(K):
                z = (x[b, t] - centres[k]) / deviations[k]
                pooled[b, 0, k] += a[b, t, k] * z
                pooled[b, 1, k] += a[b, t, k] * (z**2 - 1)
    return unit(unit(pooled).reshape(len(x), 2, -1)).reshape(len(x), -1)


def soft_words(layer, x, a, training):
    sums, greatest = np.zeros((len(x), K)), np.zeros((len(x), K))
    for b, n in enumerate(LENGTHS):
        if n:
            sums[b], greatest[b] = a[b, :n].sum(0), unit(a[b, :n].max(0))
    if layer.gated:
        gates = greatest @ value(layer.gate_reduction) @ value(layer.gate_weights)
        if layer.add_batch_norm:
            gates = normalised(gates, layer.gate_norm, gates if training else None)
        else:
            gates = gates + value(layer.gate_bias)
        sums = sums / (1 + np.exp(-gates))
    parts = [unit(sums), greatest] if layer.max_pooling else [unit(sums)]
    return np.concatenate(parts, axis=-1)


def twin(kind, layer, training):
    """One video at a time, of the frames that it has."""
    x, logits = project(layer, make_frames().astype("float64"), training)
    if kind == "vlad_bow":
        a = softmax(np.maximum(logits, 0) ** 0.63)
        return [unit(a[b, :n].sum(0)) for b, n in enumerate(LENGTHS)]
    pool = {"netrvlad": rvlad, "netfv": fisher_vectors}.get(kind, soft_words)
    return pool(layer, x, softmax(logits), training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("input_batch_norm", [False, True])
@pytest.mark.parametrize("add_batch_norm", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_pooling_equals_its_sum_over_frames_and_clusters(
    kind, add_batch_norm, input_batch_norm, training
):
    layer = make_layer(
        kind, add_batch_norm=add_batch_norm, input_batch_norm=input_batch_norm
    )
    expected = np.array(twin(kind, layer, training))
    y = layer(tf.constant(make_frames(9.0)), tf.constant(MASK), training=training)
    assert y.shape == expected.shape
    assert y.shape == layer.compute_output_shape((len(LENGTHS), T, D))
    np.testing.assert_allclose(y, expected, atol=3e-5)
    np.testing.assert_array_equal(y[0], np.zeros(y.shape[1]))
    assert expected[2].std() > 0.01


def step(kind, garbage):
    layer = make_layer(kind, input_batch_norm=True)
    with tf.GradientTape() as tape:
        frames, mask = tf.constant(make_frames(garbage)), tf.constant(MASK)
        y = layer(frames, mask, training=True)
        loss = tf.reduce_sum(y**2 * tf.range(float(y.shape[1])))
    gradients = tape.gradient(loss, layer.trainable_weights)
    return [y, *gradients, *layer.non_trainable_weights]


@pytest.mark.parametrize("kind", LAYERS)
def test_padding_leaves_gradients_and_averages_alone(kind):
    for clean, dirty in zip(step(kind, 0.0), step(kind, 50.0), strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_allclose(dirty, clean, rtol=1e-3, atol=1e-4)


def test_netrvlad_is_netvlad_with_its_centres_at_the_origin():
    plain, light = NetVLAD(K, input_batch_norm=True), make_layer("netrvlad")
    light = make_layer("netrvlad", input_batch_norm=True)
    plain.build((None, T, D))
    sources = {w.path.split("/", 1)[1]: w for w in light.weights}
    for weight in plain.weights:
        weight.assign(sources.get(weight.path.split("/", 1)[1], 0.0 * weight))
    frames, mask = tf.constant(make_frames()), tf.constant(MASK)
    assert len(light.weights) == len(plain.weights) - 1
    np.testing.assert_allclose(light(frames, mask), plain(frames, mask), atol=1e-6)


def test_the_power_of_vlad_bow_starts_at_one_and_learns_from_dead_words_too():
    layer = make_layer("vlad_bow", add_batch_norm=False)
    layer.power.assign(0.5)
    layer.cluster_weights.assign(tf.zeros((D, K)))
    layer.cluster_bias.assign([0.0, -1.0, 1e-9])
    with tf.GradientTape() as tape:
        y = layer(tf.constant(make_frames()), tf.constant(MASK))
        loss = tf.reduce_sum(y * tf.range(3.0))
    for gradient in tape.gradient(loss, layer.trainable_weights):
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(y[3], np.full(K, 3**-0.5), atol=1e-6)
    fresh = VladBoW(K)
    fresh.build((None, T, D))
    assert float(fresh.power) == 1.0 and fresh.power.trainable


def test_the_deviations_of_netfv_start_near_one():
    layer = NetFV(64)
    layer.build((None, T, 256))
    assert abs(np.mean(layer.deviation_roots) - 1) < 0.01
    np.testing.assert_allclose(np.std(layer.deviation_roots), 1 / 16, rtol=0.1)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_pooling_of_a_batch_without_frames_or_videos_is_nothing(kind):
    layer = make_layer(kind, input_batch_norm=True)
    for shape in ((2, 0), (0, 4), (0, 0)):
        frames, mask = tf.zeros((*shape, D)), tf.zeros(shape, tf.bool)
        y = layer(frames, mask, training=True)
        np.testing.assert_array_equal(y, np.zeros((shape[0], y.shape[1])))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_pooling_is_rebuilt_from_its_configuration(kind):
    layer = LAYERS[kind](add_batch_norm=False, input_batch_norm=True)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer) and again.get_config() == layer.get_config()
    for name in list(inspect.signature(type(layer)).parameters)[:-1]:
        assert getattr(again, name) == getattr(layer, name)


@pytest.mark.parametrize("kind", [NetRVLAD, NetFV, SoftDBoW, VladBoW])
def test_a_single_cluster_is_refused(kind):
    with pytest.raises(ValueError, match="`clusters` must be at least 2"):
        kind(1)


def test_streams_are_pooled_apart_and_joined():
    frames, mask = make_frames(), tf.constant(MASK)

    def total(x, mask, training):
        assert training
        return tf.reduce_sum(tf.where(mask[..., None], x, 0.0), axis=1)

    both = pool_streams([total, total], 2, tf.constant(frames), mask, training=True)
    np.testing.assert_allclose(both, frames.sum(1), atol=1e-5)
    one = pool_streams([total], D, tf.constant(frames), mask, training=True)
    np.testing.assert_allclose(one, frames.sum(1), atol=1e-5)
