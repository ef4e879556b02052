"""The sparse mixture of experts against NumPy that computes every expert."""

from math import erf

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.sparse_moe import SparseMixtureOfExperts, variation

D, T, E, K, H, F = 3, 6, 5, 2, 4, 7
LENGTHS = np.array([0, 1, 3, 6])


def make_layer(**args):
    sizes = {"hidden_size": H, "output_size": F}
    layer = SparseMixtureOfExperts(E, K, **{**sizes, **args})
    layer.build((None, None, D))
    rng = np.random.default_rng(1)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer


def make_frames(garbage=0.0):
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(len(LENGTHS), T, D)).astype("float32")
    mask = np.arange(T) < LENGTHS[:, None]
    return np.where(mask[..., None], frames, np.float32(garbage)), mask


def values(layer):
    return {w.name: np.asarray(w, "float64") for w in layer.trainable_weights}


def gates_of(logits):
    """Softmax over the K highest of each row, 0 at the others."""
    gates = np.zeros_like(logits)
    for row, out in zip(logits, gates, strict=True):
        top = np.argsort(-row)[:K]
        weights = np.exp(row[top] - row[top].max())
        out[top] = weights / weights.sum()
    return gates


def dense(x, w):
    """Every expert of every row, mixed by the gates."""
    hidden = np.einsum("nd,edh->neh", x, w["hidden_kernel"]) + w["hidden_bias"]
    hidden = np.maximum(hidden, 0)
    y = np.einsum("neh,ehf->nef", hidden, w["output_kernel"]) + w["output_bias"]
    return np.einsum("ne,nef->nf", gates_of(x @ w["gate_kernel"]), y)


def coefficient(x):
    return x.std() / x.mean()


@pytest.mark.parametrize("garbage", [0.0, 1e4])
def test_each_frame_is_the_mixture_of_its_experts(garbage):
    layer = make_layer()
    frames, mask = make_frames(garbage)
    expected = np.zeros((*mask.shape, F))
    expected[mask] = dense(frames[mask].astype("float64"), values(layer))
    found = layer(frames, mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert layer.compute_output_shape(frames.shape) == found.shape
    assert not layer.losses


@pytest.mark.parametrize("favoured", range(E))
def test_experts_that_all_frames_choose_have_room_for_them(favoured):
    layer = make_layer()
    kernel = values(layer)["gate_kernel"]
    frames, mask = make_frames()
    frames[..., 0] = 1
    kernel[0, favoured] += 50
    kernel[0, (favoured + 2) % E] += 40
    layer.gate_kernel.assign(kernel)
    expected = np.zeros((*mask.shape, F))
    expected[mask] = dense(frames[mask].astype("float64"), values(layer))
    np.testing.assert_allclose(layer(frames, mask), expected, atol=1e-5)


def test_many_frames_in_random_batches_are_all_computed():
    layer = make_layer()
    rng = np.random.default_rng(3)
    for _ in range(5):
        frames = rng.normal(size=(3, int(rng.integers(1, 60)), D)).astype("float32")
        mask = rng.random(frames.shape[:2]) < 0.8
        expected = np.zeros((*mask.shape, F))
        expected[mask] = dense(frames[mask].astype("float64"), values(layer))
        np.testing.assert_allclose(layer(frames, mask), expected, atol=1e-4)


def test_gradients_are_those_of_the_dense_mixture():
    layer = make_layer()
    frames, mask = make_frames(1e4)
    x = tf.Variable(frames)

    def dense_in_tensorflow():
        logits = tf.einsum("btd,de->bte", x, layer.gate_kernel)
        kth = tf.math.top_k(logits, K).values[..., -1:]
        gates = tf.nn.softmax(tf.where(logits >= kth, logits, -1e9))
        hidden = tf.einsum("btd,edh->bteh", x, layer.hidden_kernel)
        hidden = tf.nn.relu(hidden + layer.hidden_bias)
        y = tf.einsum("bteh,ehf->btef", hidden, layer.output_kernel)
        y = tf.einsum("bte,btef->btf", gates, y + layer.output_bias)
        return tf.where(mask[..., None], y, 0)

    results = []
    weights = [w for w in layer.trainable_weights if w.name != "noise_kernel"]
    sources = [x, *(w.value for w in weights)]
    for call in (lambda: layer(x, mask), dense_in_tensorflow):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(call()))
        results.append([tf.convert_to_tensor(g) for g in tape.gradient(loss, sources)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        assert np.any(ours != 0)


def training_logits(layer, frames, mask, seed):
    """The logits before and after the layer's own noise, of the valid frames."""
    w = values(layer)
    x = frames[mask].astype("float64")
    layer.seed_generator.state.assign([seed, 0])
    draws = keras.random.normal((mask.size, E), seed=layer.seed_generator)
    layer.seed_generator.state.assign([seed, 0])
    draws = np.reshape(draws, (*mask.shape, E))[mask]
    clean = x @ w["gate_kernel"]
    spread = np.logaddexp(0, x @ w["noise_kernel"])
    return clean, spread, clean + spread * draws


def stays_active(clean, spread, noisy):
    """Of each row and expert: how likely a new draw for it alone keeps it active."""
    stays = np.zeros_like(clean)
    for row in range(len(clean)):
        for e in range(E):
            others = np.sort(np.delete(noisy[row], e))[::-1]
            scaled = (clean[row, e] - others[K - 1]) / spread[row, e]
            stays[row, e] = 0.5 * (1 + erf(scaled / 2**0.5))
    return stays


def test_the_losses_are_those_of_importance_and_load():
    frames, mask = make_frames(1e4)
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.2)):
        layer = make_layer(importance_weight=weights[0], load_weight=weights[1])
        clean, spread, noisy = training_logits(layer, frames, mask, seed=4)
        layer(frames, mask, training=True)
        (loss,) = layer.losses
        importance = coefficient(gates_of(noisy).sum(0))
        load = coefficient(stays_active(clean, spread, noisy).sum(0)) ** 2
        expected = weights[0] * importance + weights[1] * load
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_the_load_is_the_share_of_new_draws_that_keep_an_expert_active():
    rng = np.random.default_rng(5)
    clean, spread = rng.normal(size=(1, E)), np.abs(rng.normal(size=(1, E)))
    noisy = clean + spread * rng.normal(size=(1, E))
    expected = stays_active(clean, spread, noisy)[0]
    for e in range(E):
        drawn = np.repeat(noisy, 20000, axis=0)
        drawn[:, e] = clean[0, e] + spread[0, e] * rng.normal(size=20000)
        active = (np.argsort(-drawn, axis=1)[:, :K] == e).any(axis=1)
        np.testing.assert_allclose(active.mean(), expected[e], atol=0.02)


def test_training_draws_other_experts_each_time():
    layer = make_layer()
    frames, mask = make_frames()
    first, second = (layer(frames, mask, training=True) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    quiet = make_layer(noisy=False)
    assert len(quiet.trainable_weights) == len(layer.trainable_weights) - 1
    once, again = (quiet(frames, mask, training=True) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_the_losses_take_frames_from_a_favourite():
    layer = make_layer(importance_weight=1.0, load_weight=1.0)
    frames = np.random.default_rng(6).normal(size=(8, 30, D)).astype("float32")
    frames[..., 0] = 1
    mask = np.ones(frames.shape[:2], bool)
    kernel = np.zeros((D, E))
    kernel[0, 1] = 3
    layer.gate_kernel.assign(kernel)
    layer.noise_kernel.assign(np.zeros((D, E)))
    gates = [layer.gate_kernel, layer.noise_kernel]  # what the losses depend on
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(gates)
    losses = []
    for _ in range(30):
        with tf.GradientTape() as tape:
            layer(frames, mask, training=True)
            loss = sum(layer.losses)
        gradients = tape.gradient(loss, [w.value for w in gates])
        optimizer.apply(gradients, gates)
        losses.append(float(loss))
    assert losses[0] > 1 and np.mean(losses[-5:]) < 0.5 * losses[0]


def test_the_gates_begin_without_a_favourite():
    layer = SparseMixtureOfExperts(E, K, H, F)
    layer.build((None, None, D))
    for weight in (layer.gate_kernel, layer.noise_kernel):
        np.testing.assert_array_equal(weight, np.zeros((D, E)))
    limit = (6 / (D + H)) ** 0.5
    assert 0.8 * limit < np.abs(layer.hidden_kernel).max() <= limit


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_graphs_take_any_length_and_none(compiled, training):
    # XLA draws other numbers of the same seed.
    layer = make_layer(noisy=not compiled)
    frames, mask = make_frames()

    def call(frames, mask):
        if layer.noisy:
            layer.seed_generator.state.assign([4, 0])
        return layer(frames, mask, training=training), sum(layer.losses)

    expected, expected_loss = call(frames, mask)
    if compiled:
        graph = tf.function(call, jit_compile=True)
    else:
        graph = tf.function(
            call,
            input_signature=[
                tf.TensorSpec([None, None, D], tf.float32),
                tf.TensorSpec([None, None], tf.bool),
            ],
        )
    found, loss = graph(tf.constant(frames), tf.constant(mask))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    for rows, length in ((2, 0), (0, T)):
        part = tf.constant(frames[:rows, :length]), tf.constant(mask[:rows, :length])
        found, loss = graph(*part)
        assert found.shape == (rows, length, F) and loss == 0


def test_a_batch_without_a_valid_frame_adds_nothing():
    layer = make_layer()
    frames, mask = make_frames(1e4)
    with tf.GradientTape() as tape:
        y = layer(frames, np.zeros_like(mask), training=True)
        loss = tf.reduce_sum(y) + sum(layer.losses)
    assert loss == 0
    for gradient in tape.gradient(loss, layer.trainable_weights):
        if gradient is not None:
            np.testing.assert_array_equal(gradient, tf.zeros_like(gradient))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_low_precision_mixture_is_near(policy):
    layer, low = make_layer(), make_layer(dtype=policy)
    frames, mask = make_frames()
    found = low(tf.cast(frames, low.compute_dtype), mask)
    assert found.dtype == low.compute_dtype
    # What is rounded may choose another expert: of frames that are exact it cannot.
    exact = tf.cast(tf.cast(frames, low.compute_dtype), tf.float32)
    expected = layer(exact, mask).numpy()
    error = np.abs(tf.cast(found, tf.float32) - expected)
    assert error.max() < 0.02 * np.abs(expected).max()


def test_equal_numbers_do_not_vary():
    x = tf.Variable([2.0, 2.0, 2.0])
    with tf.GradientTape() as tape:
        value = variation(x)
    assert value == 0
    np.testing.assert_array_equal(tape.gradient(value, x), [0, 0, 0])
    np.testing.assert_allclose(variation(np.array([1.0, 3.0])), 0.5)


@pytest.mark.parametrize("active", [0, E])
def test_a_wrong_number_of_active_experts_is_refused(active):
    with pytest.raises(ValueError, match="`active` must be at least 1 and less than"):
        SparseMixtureOfExperts(E, active)


def test_the_configuration_rebuilds_the_layer():
    layer = make_layer(noisy=False, importance_weight=0.5, load_weight=0.25)
    again = SparseMixtureOfExperts.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
