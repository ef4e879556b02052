"""Layers against float64 twins in NumPy, with ragged lengths and garbage padding."""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.errors import UserError
from yt8m.layers import preprocessing
from yt8m.layers.classifiers import HEADS, create_head
from yt8m.layers.dbof import ACTIVATIONS, DBoF
from yt8m.layers.gating import ContextGating, ProbabilityGating
from yt8m.layers.heads import LogisticHead, MoEHead
from yt8m.layers.masking import length_mask, masked_mean
from yt8m.layers.netvlad import NetVLAD
from yt8m.layers.normalization import BatchNormalization, Centring
from yt8m.layers.preprocessing import (
    dequantize,
    l2_normalize,
    mean_of_normalized,
)
from yt8m.layers.recurrent import LSTM

LENGTHS = [0, 1, 3, 6]
T, D = 6, 5
MASK = np.arange(T) < np.array(LENGTHS)[:, None]


def _frames(seed=0, garbage=0.0):
    x = np.random.default_rng(seed).normal(size=(len(LENGTHS), T, D)) + 0.5
    return np.where(MASK[..., None], x, garbage).astype("float32")


def _randomise(layer, seed=0):
    """Gives every weight a value that is neither 0 nor 1; variances stay positive."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        value = rng.normal(size=weight.shape)
        weight.assign(abs(value) + 0.5 if "moving_variance" in weight.path else value)


def _value(weight):
    return np.asarray(weight, "float64")


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _normalized(x, norm, statistics=None):
    """Twin of batch norm: by `statistics` [N, D] of the batch, or moving averages."""
    if statistics is None:
        mean, variance = _value(norm.moving_mean), _value(norm.moving_variance)
    else:
        mean, variance = statistics.mean(0), statistics.var(0)
    scaled = (x - mean) / np.sqrt(variance + norm.epsilon)
    return scaled * _value(norm.gamma) + _value(norm.beta)


# Masking


def test_a_length_mask_marks_the_first_frames():
    mask = length_mask(tf.constant([0, 1, 3]), 3)
    assert mask.dtype == tf.bool
    np.testing.assert_array_equal(mask, [[0, 0, 0], [1, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("garbage", [0.0, 1e6])
def test_a_masked_mean_is_the_mean_of_the_valid_frames(garbage):
    mean = masked_mean(tf.constant(_frames(garbage=garbage)), tf.constant(MASK))
    x = _frames()
    expected = [x[b, : max(n, 1)].mean(0) for b, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    np.testing.assert_array_equal(mean[0], np.zeros(D))


# Preprocessing


def test_bytes_are_dequantised_to_the_bit_in_float32():
    q = np.arange(256, dtype="uint8")
    x = dequantize(tf.constant(q), "float32").numpy()
    scale, offset = np.float32(4 / 255), np.float32(4 / 512 - 2)
    np.testing.assert_array_equal(x, q.astype("float32") * scale + offset)
    assert x[0] == -1.9921875 and x[255] == 2.0078125


def test_floats_are_only_cast():
    x = dequantize(tf.constant([-3.0, 0.5]), "bfloat16")
    assert x.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(x, tf.float32), [-3.0, 0.5])


@pytest.mark.parametrize("axis", [-1, 1])
def test_l2_normalised_vectors_have_norm_one(axis):
    x = _frames() + 1.0
    expected = x / np.linalg.norm(x, axis=axis, keepdims=True)
    np.testing.assert_allclose(l2_normalize(tf.constant(x), axis), expected, rtol=1e-6)


def test_l2_normalisation_of_zeros_gives_zeros_and_zero_gradients():
    x = tf.constant([[0.0, 0.0], [3.0, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = l2_normalize(x)
    np.testing.assert_allclose(y, [[0, 0], [0.6, 0.8]], rtol=1e-6)
    gradient = tape.gradient(y, x, output_gradients=tf.constant([[1.0, 0]] * 2))
    # (1 - y1^2) / norm and -y1 y2 / norm
    np.testing.assert_allclose(gradient, [[0, 0], [0.128, -0.096]], atol=1e-7)


def test_l2_normalisation_scales_tiny_vectors_by_the_epsilon():
    y = l2_normalize(tf.constant([[3e-8, 4e-8]]))
    np.testing.assert_allclose(y, [[0.03, 0.04]], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_l2_normalisation_in_low_precision_does_not_overflow(dtype):
    y = l2_normalize(tf.cast([[3000.0, 4000.0]], dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(tf.cast(y, tf.float32), [[0.6, 0.8]], rtol=5e-3)


def test_l2_normalisation_rounds_after_it_has_scaled():
    y = l2_normalize(tf.constant([[3e-6, 4e-6], [3e6, 4e6]]), dtype="float16")
    assert y.dtype == tf.float16
    np.testing.assert_allclose(tf.cast(y, tf.float32), [[0.6, 0.8]] * 2, rtol=1e-3)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 21])
@pytest.mark.parametrize("kind", ["bytes", "floats", "both"])
@pytest.mark.parametrize("at_once", [18, 36])
def test_the_mean_of_normalised_frames_is_taken_in_parts(
    monkeypatch, kind, length, at_once, static
):
    # One, two or four videos at a time, of 5; or all.
    monkeypatch.setattr(preprocessing, "_FRAMES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    lengths = np.array([0, 1, length // 2, length, length + 3], "int32")
    features, floats = [], []
    for size in (4, 3):
        frames = rng.integers(0, 256, (len(lengths), length, size))
        frames[:, :1] = 0  # a frame like any other; of floats it has no direction
        if kind == "bytes" or (kind == "both" and size == 4):
            features.append(frames.astype("uint8"))
            floats.append(frames * (4 / 255) + (4 / 512 - 2))
        else:
            valid = np.arange(length) < lengths[:, None]
            features.append(
                np.where(valid[..., None], frames, np.nan).astype("float32")
            )
            floats.append(frames)
    expected = np.zeros((len(lengths), 7))
    frames = np.concatenate(floats, axis=-1)
    for row, count in enumerate(np.minimum(lengths, length)):
        norms = np.linalg.norm(frames[row, :count], axis=-1, keepdims=True)
        if count:
            expected[row] = (frames[row, :count] / np.maximum(norms, 1e-6)).mean(axis=0)
    shape = [None, length if static else None]
    specs = [tf.TensorSpec([*shape, x.shape[-1]], x.dtype) for x in features]
    signature = [specs, tf.TensorSpec([None], tf.int32)]
    mean = tf.function(mean_of_normalized, input_signature=signature)
    np.testing.assert_allclose(
        mean([tf.constant(x) for x in features], tf.constant(lengths)),
        expected,
        rtol=1e-5,
        atol=1e-6,
    )
    nothing = mean([tf.constant(x[:0]) for x in features], tf.constant(lengths[:0]))
    assert nothing.shape == (0, 7)


# Batch normalisation


def test_batch_norm_takes_the_statistics_of_valid_entries_only():
    norm = BatchNormalization()
    norm.build((None, T, D))
    norm.gamma.assign(np.linspace(0.5, 2, D))
    norm.beta.assign(np.linspace(-1, 1, D))
    x = _frames()
    y = norm(tf.constant(_frames(garbage=1e6)), mask=MASK, training=True)
    np.testing.assert_allclose(
        y.numpy()[MASK], _normalized(x, norm, x[MASK])[MASK], atol=1e-5
    )
    # The first step's momentum is 1 / 10.
    np.testing.assert_allclose(norm.moving_mean, 0.9 * x[MASK].mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        norm.moving_variance, 0.1 + 0.9 * x[MASK].var(0), rtol=1e-5
    )


def test_batch_norm_agrees_with_keras_at_full_momentum():
    ours, keras_norm = (
        BatchNormalization(momentum=0.9),
        keras.layers.BatchNormalization(momentum=0.9),
    )
    x = tf.constant(_frames(3))
    for norm in (ours, keras_norm):
        norm.build(x.shape)
    ours.steps.assign(1000.0)
    np.testing.assert_allclose(
        ours(x, mask=MASK, training=True).numpy()[MASK],
        keras_norm(x, mask=MASK, training=True).numpy()[MASK],
        atol=1e-5,
    )
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(keras_norm, name), rtol=1e-5
        )
    np.testing.assert_allclose(ours(x), keras_norm(x), atol=1e-5)


def test_batch_norm_without_valid_entries_keeps_its_averages():
    norm = BatchNormalization()
    norm.build((None, T, D))
    y = norm(tf.constant(_frames()), mask=np.zeros_like(MASK), training=True)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(D))
    np.testing.assert_array_equal(norm.moving_variance, np.ones(D))


def test_batch_norm_knows_its_data_after_few_steps():
    norm = BatchNormalization()
    norm.build((None, 1))
    rng = np.random.default_rng(0)
    for _ in range(30):
        norm(tf.constant(rng.normal(5, 0.03, (64, 1)), tf.float32), training=True)
    np.testing.assert_allclose(norm.moving_mean, [5.0], atol=0.01)
    np.testing.assert_allclose(norm.moving_variance, [0.0009], rtol=0.1)


def test_centring_takes_away_the_mean_as_it_is_after_the_batch():
    layer = Centring()
    layer(np.zeros((2, 1), "float32"))
    # The warm-up's rates are 0.9 and 9/11: 0 -> 1.8 -> 1.8 + 9/11 (4 - 1.8) = 3.6.
    x = np.array([[[1.0], [3.0]], [[4.0], [4.0]]], "float32")
    for batch, mean in zip(x, (1.8, 3.6), strict=True):
        found = layer(batch, training=True)
        np.testing.assert_allclose(found, batch - mean, atol=1e-5)
        np.testing.assert_allclose(_value(layer.moving_mean), [mean], rtol=1e-5)
    np.testing.assert_allclose(layer(x[0]), x[0] - 3.6, atol=1e-5)


def test_emphasis_favours_the_dimensions_that_vary_most():
    x = np.array([[1.0, 0.0], [3.0, 8.0]], "float32")
    for emphasis in (1.0, 2.0, -1.0):
        layer = Centring(emphasis=emphasis)
        y = np.asarray(layer(x, training=True))
        # 0.9 of each moment of the batch: means 1.8 and 3.6, squares 4.5 and 28.8.
        deviation = np.sqrt([4.5 - 1.8**2, 28.8 - 3.6**2])
        share = deviation / np.sqrt(np.mean(deviation**2))
        expected = (x - [1.8, 3.6]) * share**emphasis
        np.testing.assert_allclose(y, expected, rtol=1e-5)
        np.testing.assert_allclose(layer(x), expected, rtol=1e-5)
    untrained = Centring(emphasis=2.0)
    np.testing.assert_allclose(untrained(x), x, rtol=1e-6)


def test_frozen_batch_norm_uses_and_keeps_its_averages():
    norm = BatchNormalization()
    norm.build((None, D))
    _randomise(norm)
    norm.trainable = False
    x, before = _frames()[3], _value(norm.moving_mean)
    y = norm(tf.constant(x), training=True)
    np.testing.assert_allclose(y, _normalized(x, norm), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(norm.moving_mean, before.astype("float32"))


# NetVLAD


def _netvlad_twin(layer, x, training):
    """One video, frame and cluster at a time; `x` [B, T, D] float64."""
    if layer.input_batch_norm:
        x = _normalized(x, layer.input_norm, x[MASK] if training else None)
    logits = x @ _value(layer.cluster_weights)
    if layer.add_batch_norm:
        statistics = logits[MASK] if training else None
        logits = _normalized(logits, layer.cluster_norm, statistics)
    else:
        logits = logits + _value(layer.cluster_bias)
    centres = _value(layer.centres)
    pooled = np.zeros((len(x), layer.clusters, x.shape[-1]))
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            weights = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
            for k in range(layer.clusters):
                pooled[b, k] += weights[k] * (x[b, t] - centres[k])
        if n:
            pooled[b] /= np.linalg.norm(pooled[b], axis=-1, keepdims=True)
            pooled[b] /= np.linalg.norm(pooled[b])
    return pooled.reshape(len(x), -1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("input_batch_norm", [False, True])
@pytest.mark.parametrize("add_batch_norm", [False, True])
@pytest.mark.parametrize("clusters", [2, 3])
def test_netvlad_equals_its_sum_over_frames_and_clusters(
    clusters, add_batch_norm, input_batch_norm, training
):
    layer = NetVLAD(clusters, add_batch_norm, input_batch_norm)
    layer.build((None, T, D))
    _randomise(layer)
    expected = _netvlad_twin(layer, _frames().astype("float64"), training)
    y = layer(tf.constant(_frames()), tf.constant(MASK), training=training)
    assert y.shape == (len(LENGTHS), clusters * D)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_array_equal(y[0], np.zeros(clusters * D))


def _netvlad_step(garbage):
    layer = NetVLAD(3, input_batch_norm=True)
    layer.build((None, T, D))
    _randomise(layer)
    frames, mask = tf.constant(_frames(garbage=garbage)), tf.constant(MASK)
    with tf.GradientTape() as tape:
        y = layer(frames, mask, training=True)
        loss = tf.reduce_sum(y**2 * tf.range(15.0))
    gradients = tape.gradient(loss, layer.trainable_weights)
    return [y, *gradients, *layer.non_trainable_weights]


def test_padding_leaves_netvlad_its_gradients_and_its_averages_alone():
    for clean, dirty in zip(_netvlad_step(0.0), _netvlad_step(100.0), strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_allclose(dirty, clean, rtol=1e-4, atol=1e-5)


def test_the_folded_input_norm_equals_one_applied_to_the_frames():
    folded = NetVLAD(3, input_batch_norm=True)
    folded.build((None, T, D))
    _randomise(folded)
    norm, plain = BatchNormalization(), NetVLAD(3)
    norm.build((None, T, D))
    plain.build((None, T, D))
    for ours, theirs in ((norm, folded.input_norm), (plain, folded)):
        for weight in ours.weights:
            source = {w.path.split("/", 1)[1]: w for w in theirs.weights}
            weight.assign(source.get(weight.path.split("/", 1)[1], weight))
    norm.set_weights(folded.input_norm.get_weights())

    frames, mask = tf.constant(_frames()), tf.constant(MASK)
    factors = tf.range(15.0)
    with tf.GradientTape() as tape:
        y = folded(frames, mask, training=True)
        loss = tf.reduce_sum(y**2 * factors)
    shared = [folded.cluster_weights, folded.centres, folded.input_norm.gamma]
    gradients = tape.gradient(loss, shared)
    with tf.GradientTape() as tape:
        expected = plain(norm(frames, mask=mask, training=True), mask, training=True)
        loss = tf.reduce_sum(expected**2 * factors)
    expected_gradients = tape.gradient(
        loss, [plain.cluster_weights, plain.centres, norm.gamma]
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_netvlad_refuses_a_single_cluster():
    with pytest.raises(ValueError, match="`clusters` must be at least 2"):
        NetVLAD(1)


# DBoF

ACTIVATION_TWINS = {
    "sigmoid": _sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
}


def _dbof(add_batch_norm=True, **args):
    layer = DBoF(4, add_batch_norm=add_batch_norm, **args)
    layer.build((None, T, D))
    _randomise(layer)
    if add_batch_norm:  # both signs: max and rescaling do not commute
        layer.cluster_norm.gamma.assign([2.0, -2.0, 0.5, -0.5])
    return layer


def _dbof_twin(layer, x, training):
    """One video and one cluster at a time; `x` [B, T, D] float64."""
    weights = _value(layer.cluster_weights)
    if layer.add_batch_norm:
        x = _normalized(x, layer.input_norm, x[MASK] if training else None)
        words = x @ weights
        words = _normalized(
            words, layer.cluster_norm, words[MASK] if training else None
        )
    else:
        words = x @ weights + _value(layer.cluster_bias)
    words = ACTIVATION_TWINS[layer.activation](words)
    pooled = np.zeros((len(x), layer.clusters))
    for b, n in enumerate(LENGTHS):
        for k in range(layer.clusters if n else 0):
            column = words[b, :n, k]
            pooled[b, k] = column.max() if layer.pooling == "max" else column.mean()
    return pooled


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("add_batch_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_dbof_pools_the_activations_of_valid_frames(
    pooling, activation, add_batch_norm, training
):
    layer = _dbof(add_batch_norm, pooling=pooling, activation=activation)
    expected = _dbof_twin(layer, _frames().astype("float64"), training)
    garbage = tf.constant(_frames(garbage=1e4))
    y = layer(garbage, tf.constant(MASK), training=training)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y[0], np.zeros(4))
    assert (expected[1:] != 0).any()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_the_folded_norm_of_dbof_equals_one_applied_to_the_frames(pooling, training):
    """Outputs, gradients and moving averages, against the layers one by one."""
    layer, plain = _dbof(pooling=pooling), _dbof(pooling=pooling)
    frames, mask = tf.constant(_frames(garbage=9.0)), tf.constant(MASK)
    factors = tf.reshape(tf.range(1.0, 17.0), (4, 4))

    def folded_pool():
        return layer(frames, mask, training=training)

    def plain_pool():
        x = plain.input_norm(frames, mask=mask, training=training)
        x = tf.matmul(x, plain.cluster_weights.value)
        words = tf.sigmoid(plain.cluster_norm(x, mask=mask, training=training))
        words = tf.where(mask[..., None], words, 0.0)
        if pooling == "max":
            return tf.reduce_max(words, axis=1)
        return tf.reduce_sum(words, axis=1) / np.maximum(LENGTHS, 1.0)[:, None]

    results = []
    for owner, pool in ((layer, folded_pool), (plain, plain_pool)):
        with tf.GradientTape() as tape:
            y = pool()
            loss = tf.reduce_sum(y * factors)
        gradients = tape.gradient(loss, [v.value for v in owner.trainable_weights])
        results.append([y, *gradients, *owner.non_trainable_weights])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


# LSTM


def _lstm_twin(layer, x):
    """One video and one frame at a time; `x` [B, T, D] float64."""
    kernel, bias = _value(layer.kernel), _value(layer.bias)
    states = np.zeros((*x.shape[:2], layer.cells))
    for b, n in enumerate(LENGTHS):
        h = c = np.zeros(layer.cells)
        for t in range(x.shape[1]):
            if t < n:
                gates = np.concatenate([x[b, t], h]) @ kernel + bias
                i, j, f, o = np.split(gates, 4)
                c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(j)
                h = _sigmoid(o) * np.tanh(c)
            states[b, t] = h
    return states


def _lstm(**args):
    layer = LSTM(3, **args)
    layer.build((None, T, D))
    _randomise(layer)
    return layer


@pytest.mark.parametrize("return_sequences", [False, True])
def test_an_lstm_runs_to_the_last_valid_frame(return_sequences):
    layer = _lstm(return_sequences=return_sequences)
    y = layer(tf.constant(_frames(garbage=1e4)), tf.constant(MASK))
    expected = _lstm_twin(layer, _frames().astype("float64"))
    if not return_sequences:
        expected = expected[:, -1]
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_array_equal(y[0], np.zeros_like(expected[0]))


def _lstm_gradients(layer, call, frames):
    frames = tf.convert_to_tensor(frames)
    sources = [frames, layer.kernel.value, layer.bias.value]
    with tf.GradientTape() as tape:
        tape.watch(frames)
        y = call(frames)
        factors = tf.reshape(tf.range(float(np.prod(y.shape))), y.shape)
        loss = tf.reduce_sum(y * factors)
    return [y, *tape.gradient(loss, sources)]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_the_gradient_of_an_lstm_is_that_of_its_steps(return_sequences, jit_compile):
    layer = _lstm(return_sequences=return_sequences)

    def stepwise(frames):
        h = c = tf.zeros((len(LENGTHS), 3))
        states = []
        for t in range(T):
            x = tf.concat([frames[:, t], h], axis=1)
            gates = tf.matmul(x, layer.kernel.value) + layer.bias.value
            i, j, f, o = tf.split(gates, 4, axis=1)
            valid = MASK[:, t, None]
            c = tf.where(valid, tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(j), c)
            h = tf.where(valid, tf.sigmoid(o) * tf.tanh(c), h)
            states.append(h)
        return tf.stack(states, axis=1) if return_sequences else h

    @tf.function(jit_compile=jit_compile)
    def ours(frames):
        return _lstm_gradients(layer, lambda x: layer(x, tf.constant(MASK)), frames)

    results = ours(tf.constant(_frames(garbage=2.0)))
    expected = _lstm_gradients(layer, stepwise, _frames())
    for value, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-4)


def test_an_lstm_agrees_with_keras():
    layer, other = _lstm(), keras.layers.LSTM(3)
    other.build((None, T, D))
    i, j, f, o = np.split(_value(layer.kernel), 4, axis=1)
    kernel = np.concatenate([i, f, j, o], axis=1)  # the order of Keras
    i, j, f, o = np.split(_value(layer.bias), 4)
    other.set_weights([kernel[:D], kernel[D:], np.concatenate([i, f, j, o])])
    frames, mask = tf.constant(_frames()), tf.constant(MASK)
    np.testing.assert_allclose(layer(frames, mask), other(frames, mask=mask), atol=1e-6)


def test_an_lstm_remembers_over_hundreds_of_frames_in_low_precision():
    """A cell that counts frames: bfloat16 alone would stop at 256 thousandths."""
    layer = LSTM(1, dtype="mixed_bfloat16")
    layer.build((None, 300, 1))
    layer.kernel.assign(np.zeros((2, 4)))
    # Input gate open for 1 / 1000 of tanh's 1, nothing forgotten, output open.
    layer.bias.assign([np.log(0.001 / 0.999), 20.0, 20.0, 20.0])
    y = layer(tf.zeros((1, 300, 1)), tf.ones((1, 300), tf.bool))
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float32), [[np.tanh(0.3)]], rtol=0.02)


# Gating


def _gate_twin(layer, x, training):
    h = x @ _value(layer.dense.kernel)
    if layer.add_batch_norm:
        return _sigmoid(_normalized(h, layer.batch_norm, h if training else None))
    return _sigmoid(h + _value(layer.dense.bias))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("add_batch_norm", [False, True])
def test_context_gating_scales_by_a_sigmoid_of_all_features(add_batch_norm, training):
    layer = ContextGating(add_batch_norm)
    layer.build((None, D))
    _randomise(layer)
    x = _frames()[3].astype("float64")
    expected = x * _gate_twin(layer, x, training)
    y = layer(tf.constant(x, tf.float32), training=training)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("add_batch_norm", [False, True])
def test_probability_gating_gives_the_logit_of_p_times_s(add_batch_norm, training):
    layer = ProbabilityGating(add_batch_norm)
    layer.build((None, D))
    _randomise(layer)
    x = 3 * _frames()[3].astype("float64")
    p = _sigmoid(x) * _gate_twin(layer, _sigmoid(x), training)
    y = layer(tf.constant(x, tf.float32), training=training)
    np.testing.assert_allclose(y, np.log(p / (1 - p)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [-100.0, 0.0, 100.0])
def test_probability_gating_is_exact_at_extreme_logits(bias):
    layer = ProbabilityGating(add_batch_norm=False)
    layer.build((None, 3))
    layer.dense.kernel.assign(np.zeros((3, 3)))
    layer.dense.bias.assign(np.full(3, bias))
    x = tf.constant([[-100.0, 0.0, 100.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    x64 = x.numpy().astype("float64")
    log_p = -np.logaddexp(0, -x64) - np.logaddexp(0, -bias)
    log_not = np.logaddexp(
        -np.logaddexp(0, x64), -np.logaddexp(0, -x64) - np.logaddexp(0, bias)
    )
    np.testing.assert_allclose(y, log_p - log_not, rtol=1e-6)
    assert np.isfinite(tape.gradient(y, x)).all()


def test_probability_gating_keeps_float32_logits_in_low_precision():
    layer = ProbabilityGating(dtype="mixed_bfloat16")
    x = tf.constant([[-3.001, 5.0007]])
    y = layer(x)
    # By its initial averages the gate is nearly independent of rounding.
    assert y.dtype == tf.float32
    nearby = layer(x + 1e-3)
    assert (y.numpy() != nearby.numpy()).all()


# Heads


def _moe_twin(head, x):
    """Probabilities by the starter code's formula: softmax over class-major gates."""
    c, m = head.num_classes, head.num_mixtures
    gates = (x @ _value(head.gate_kernel)).reshape(len(x), c, m + 1)
    gates = np.exp(gates) / np.exp(gates).sum(-1, keepdims=True)
    experts = x @ _value(head.expert_kernel) + _value(head.expert_bias)
    return (gates[..., :m] * _sigmoid(experts.reshape(len(x), c, m))).sum(-1)


@pytest.mark.parametrize("num_mixtures", [1, 2, 4])
def test_moe_gives_the_probabilities_of_the_mixture(num_mixtures):
    head = MoEHead(7, num_mixtures)
    head.build((None, D))
    _randomise(head)
    x = _frames()[3]
    y = head(tf.constant(x))["logits"]
    assert y.shape == (T, 7) and y.dtype == tf.float32
    np.testing.assert_allclose(tf.sigmoid(y), _moe_twin(head, x), atol=1e-6)


def test_moe_columns_are_class_major_and_the_last_gate_is_the_dummy():
    head = MoEHead(2, num_mixtures=1)
    head.build((None, 1))
    head.gate_kernel.assign([[0.0, np.log(3.0), np.log(4.0), 0.0]])
    head.expert_kernel.assign([[0.0, 50.0]])
    p = tf.sigmoid(head(tf.constant([[1.0]]))["logits"])
    # Class 0: gate 1/4, expert 1/2. Class 1: gate 4/5, expert 1.
    np.testing.assert_allclose(p, [[0.125, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("gate", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("expert", [-100.0, 0.0, 100.0])
def test_moe_is_exact_at_extreme_gates_and_experts(gate, expert):
    head = MoEHead(1, num_mixtures=2)
    head.build((None, 1))
    head.gate_kernel.assign([[gate, 0.0, 0.0]])
    head.expert_kernel.assign([[expert, -1.0]])
    with tf.GradientTape() as tape:
        y = head(tf.constant([[1.0]]))["logits"]
    gradients = tape.gradient(y, head.trainable_weights)
    g, e = np.array([gate, 0.0]), np.array([expert, -1.0])
    log_yes = np.logaddexp.reduce(g - np.logaddexp(0, -e))
    log_no = np.logaddexp.reduce([*(g - np.logaddexp(0, e)), 0.0])
    np.testing.assert_allclose(y, [[log_yes - log_no]], rtol=1e-6)
    assert all(np.isfinite(g).all() for g in gradients)


def test_moe_of_a_zero_vector_has_even_gradients():
    # Where all experts are equal, max-based formulas give one of them everything.
    head = MoEHead(1, num_mixtures=2)
    head.build((None, 1))
    with tf.GradientTape() as tape:
        y = head(tf.constant([[0.0]]))["logits"]
    np.testing.assert_allclose(tf.sigmoid(y), [[1 / 3]], rtol=1e-6)
    # d logit / d p = 1 / (p (1 - p)) = 9/2; d p / d e_m = 1/3 * 1/4.
    np.testing.assert_allclose(
        tape.gradient(y, head.expert_bias), [0.375, 0.375], rtol=1e-6
    )


def test_the_logistic_head_is_a_dense_layer():
    head = LogisticHead(7)
    head.build((None, D))
    _randomise(head)
    x = _frames()[3]
    expected = x @ _value(head.kernel) + _value(head.bias)
    np.testing.assert_allclose(head(tf.constant(x))["logits"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spelling", "name"), [("LogisticModel", "logistic"), ("MoeModel", "moe")]
)
def test_a_head_is_found_by_the_starter_codes_name(spelling, name):
    assert type(create_head(spelling, 7)) is HEADS[name]


def test_the_number_of_mixtures_is_the_heads_own_unless_given():
    assert create_head("moe", 7).num_mixtures == 2
    assert create_head("moe", 7, num_mixtures=5).num_mixtures == 5
    with pytest.raises(UserError, match="head logistic has no mixtures"):
        create_head("logistic", 7, num_mixtures=5)


def test_an_unknown_head_lists_near_matches():
    with pytest.raises(UserError, match="Did you mean logistic"):
        create_head("logistics", 7)


# All layers


@pytest.mark.parametrize(
    "layer",
    [
        BatchNormalization(momentum=0.9, epsilon=1e-4),
        NetVLAD(3, add_batch_norm=False, input_batch_norm=True),
        DBoF(3, pooling="average", activation="relu6", add_batch_norm=False),
        LSTM(3, return_sequences=True),
        ContextGating(add_batch_norm=False),
        ProbabilityGating(add_batch_norm=False),
        LogisticHead(7, l2_penalty=0.1, gating_probabilities=True),
        MoEHead(7, num_mixtures=3, l2_penalty=0.1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_is_rebuilt_from_its_configuration(layer):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    for cls in type(layer).__mro__[:2]:
        for name in list(inspect.signature(cls.__init__).parameters)[1:-1]:
            assert getattr(again, name) == getattr(layer, name)
