"""Chains of classifiers, against NumPy written from their equations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m import losses
from yt8m.layers.chaining import (
    Chain,
    ChainHead,
    MultiTaskChainHead,
    mean_of_probabilities,
)

B, H, C = 3, 5, 4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def l2(x):
    return x / np.sqrt(np.maximum((x**2).sum(-1, keepdims=True), 1e-12))


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
}


def weights_of(layer, seed=0):
    """Random weights, by their paths below the layer's own name."""
    rng = np.random.default_rng(seed)
    found = {}
    for weight in layer.weights:
        value = rng.normal(size=weight.shape)
        weight.assign(value)
        found[weight.path.partition("/")[2]] = value
    return found


def mixture(x, w, name, mixtures):
    gates, experts = x @ w[f"{name}/gate_kernel"], x @ w[f"{name}/expert_kernel"]
    experts = experts + w[f"{name}/expert_bias"]
    gates = np.exp(gates.reshape(len(x), -1, mixtures + 1))
    gates /= gates.sum(-1, keepdims=True)
    experts = sigmoid(experts.reshape(len(x), -1, mixtures))
    return (gates[..., :mixtures] * experts).sum(-1)


def chain(x, w, stages, mixtures, activation, prefix=""):
    said = []
    for i in range(stages):
        said.append(mixture(x, w, f"{prefix}classifier_{i}", mixtures))
        name = f"{prefix}projection_{i}"
        cells = said[-1] @ w[f"{name}/kernel"] + w[f"{name}/bias"]
        x = np.concatenate([x, l2(ACTIVATIONS[activation](cells))], axis=-1)
    return x, said


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(B, H))


def built(layer):
    layer.build((None, H))
    return layer


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_each_stage_adds_what_it_makes_of_its_classes(x, activation):
    layer = built(Chain(6, 2, 3, num_mixtures=3, activation=activation, name="chain"))
    expected, said = chain(x, weights_of(layer), 2, 3, activation)
    end, logits = layer(tf.constant(x, tf.float32))
    np.testing.assert_allclose(end, expected, atol=1e-5)
    assert end.shape == (B, H + 2 * 3)
    for ours, theirs in zip(logits, said, strict=True):
        np.testing.assert_allclose(sigmoid(ours.numpy()), theirs, atol=1e-5)


def test_the_last_classifier_of_a_chain_is_the_answer(x):
    layer = built(ChainHead(C, stages=2, cells=3, name="head"))
    w = weights_of(layer)
    end, said = chain(x, w, 2, 2, "relu", "chain/")
    outputs = layer(tf.constant(x, tf.float32), training=True)
    np.testing.assert_allclose(
        sigmoid(outputs["logits"].numpy()), mixture(end, w, "classifier", 2), atol=1e-5
    )
    for ours, theirs in zip(outputs["auxiliary_logits"], said, strict=True):
        np.testing.assert_allclose(sigmoid(ours.numpy()), theirs, atol=1e-5)


def test_two_chains_answer_with_the_mean_of_their_four_outputs(x):
    layer = built(
        MultiTaskChainHead(
            C, stages=(2, 1), cells=(3, 2), latent_sizes=(6, 7), name="head"
        )
    )
    w = weights_of(layer)
    mains, supports = [], []
    for i, (stages, activation) in enumerate(((2, "elu"), (1, "leaky_relu"))):
        end, said = chain(x, w, stages, 2, activation, f"chain_{i}/")
        mains.append(mixture(end, w, f"main_{i}", 3))
        supports.append(mixture(np.mean(said, axis=0), w, f"support_{i}", 2))
    outputs = layer(tf.constant(x, tf.float32), training=True)
    assert len(outputs["auxiliary_logits"]) == 4
    for ours, theirs in zip(
        outputs["auxiliary_logits"], [*mains, *supports], strict=True
    ):
        np.testing.assert_allclose(sigmoid(ours.numpy()), theirs, atol=1e-5)
    np.testing.assert_allclose(
        sigmoid(outputs["logits"].numpy()),
        np.mean([*mains, *supports], axis=0),
        atol=1e-5,
    )


@pytest.mark.parametrize("head", [ChainHead, MultiTaskChainHead])
def test_auxiliary_logits_are_given_in_training_alone(x, head):
    x = tf.constant(x, tf.float32)
    assert "auxiliary_logits" in head(C)(x, training=True)
    assert set(head(C)(x)) == {"logits"}


def test_deep_supervision_teaches_a_stage_directly(x):
    layer = built(ChainHead(C, stages=1, cells=2))
    labels = np.eye(B, C)

    def gradient(weight):
        with tf.GradientTape() as tape:
            outputs = layer(tf.constant(x, tf.float32), training=True)
            loss = losses.objective(
                losses.cross_entropy, labels, outputs, deep_supervision_weight=weight
            )
        kernel = layer.chain.classifiers[0].expert_kernel
        return tape.gradient(loss, kernel.value).numpy()

    assert np.abs(gradient(1.0) - gradient(0.0)).max() > 1e-3


def test_a_video_whose_cells_are_all_off_has_finite_gradients():
    layer = built(ChainHead(C, stages=1, cells=2))
    projection = layer.chain.projections[0]
    projection.kernel.assign(-np.ones(projection.kernel.shape))
    with tf.GradientTape() as tape:
        logits = layer(tf.zeros((1, H)))["logits"]
    values = [v.value for v in layer.trainable_variables]
    gradients = tape.gradient(logits, values)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(g).all() for g in gradients if g is not None)


def test_every_kernel_of_a_chain_is_penalised():
    layer = built(ChainHead(C, stages=1, cells=2, l2_penalty=0.1))
    kernels = [w for w in layer.weights if "kernel" in w.name]
    expected = sum(0.1 / 2 * np.sum(np.square(w)) for w in kernels)
    assert len(kernels) == 5
    np.testing.assert_allclose(sum(layer.losses), expected, rtol=1e-5)


def test_the_mean_of_probabilities_neither_saturates_nor_overflows():
    a, b = np.array([0.3, 60, -60, 200]), np.array([-2, 61, -61, -200])
    mean = mean_of_probabilities([tf.constant(v, tf.float32) for v in (a, b)])
    first = (sigmoid(0.3) + sigmoid(-2)) / 2
    log_mean = np.log((np.exp(-60) + np.exp(-61)) / 2)
    expected = [np.log(first / (1 - first)), -log_mean, log_mean, 0]
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChainHead(C, stages=0), "`stages` must be positive"),
        (lambda: ChainHead(C, cells=0), "`cells` must be positive"),
        (lambda: ChainHead(C, num_mixtures=0), "`num_mixtures` must be positive"),
        (lambda: ChainHead(C, activation="tanh"), "`activation` must be one of relu"),
        (lambda: MultiTaskChainHead(C, cells=(1,)), "each of the 2 chains"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        Chain(6, 2, 3, num_mixtures=1, activation="elu", l2_penalty=0.1),
        ChainHead(C, stages=2, cells=3, num_mixtures=1, activation="elu"),
        MultiTaskChainHead(C, (2, 1), (3, 4), (5, 6), num_mixtures=1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_configuration_rebuilds_a_chain(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
