"""Residual and plain networks on a vector, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.residual import (
    DenseBlock,
    MoNNHead,
    ResidualBlock,
    ResNetLike,
    ResNetLikeHead,
    ThsFeatures,
)

B, D, H, C = 3, 5, 4, 6


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def weights_of(layer, seed=0):
    """Random weights, by their paths below the layer's own name."""
    rng = np.random.default_rng(seed)
    found = {}
    for weight in layer.weights:
        if "seed" in weight.name:
            continue
        value = rng.normal(size=weight.shape)
        if "variance" in weight.name:
            value = rng.uniform(0.5, 2, size=weight.shape)
        weight.assign(value)
        found[weight.path.partition("/")[2]] = value
    return found


def normed(x, w, name):
    scaled = (x - w[f"{name}/moving_mean"]) / np.sqrt(
        w[f"{name}/moving_variance"] + 1e-3
    )
    return w[f"{name}/gamma"] * scaled + w[f"{name}/beta"]


def dense_block(x, w, name, activate=leaky):
    return activate(normed(x @ w[f"{name}/dense/kernel"], w, f"{name}/batch_norm"))


def residual_block(x, w, name):
    inside = dense_block(x, w, f"{name}/block")
    return leaky(x + inside @ w[f"{name}/dense/kernel"] + w[f"{name}/dense/bias"])


def dense(x, w, name):
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(B, D))


def float32(x):
    return tf.constant(x, tf.float32)


def test_a_network_of_two_streams_joins_them(x):
    streams = [x, x[:, :2] ** 2]
    layer = ResNetLike(H, stream_blocks=2, joint_blocks=1, name="resnet")
    layer.build([(None, D), (None, 2)])
    w = weights_of(layer)
    ends = []
    for i, end in enumerate(streams):
        end = dense_block(end, w, f"stream_{i}")
        for j in range(2):
            end = residual_block(end, w, f"stream_{i}_block_{j}")
        ends.append(end)
    joint = residual_block(np.concatenate(ends, axis=-1), w, "joint_0")
    expected = dense_block(joint, w, "end")
    ours = layer([float32(s) for s in streams])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_residual_block_without_its_product_is_a_leaky_rectifier(x):
    layer = ResidualBlock(H)
    layer.build((None, D))
    layer.dense.kernel.assign(np.zeros((H, D)))
    np.testing.assert_allclose(layer(float32(x)), leaky(x), atol=1e-6)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_a_dense_block_normalises_then_activates(x, activation):
    layer = DenseBlock(H, activation, name="block")
    layer.build((None, D))
    w = {f"block/{k}": v for k, v in weights_of(layer).items()}
    activate = {None: lambda v: v, "relu": relu, "leaky_relu": leaky}[activation]
    expected = dense_block(x, w, "block", activate)
    np.testing.assert_allclose(layer(float32(x)), expected, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_alone(x):
    keras.utils.set_random_seed(1)
    layer = DenseBlock(200, None, dropout=0.25)
    share = np.mean(layer(float32(x), training=True) == 0)
    np.testing.assert_allclose(share, 0.25, atol=0.06)
    assert np.all(layer(float32(x)) != 0)


def test_the_head_is_the_network_of_one_stream_and_a_logistic_regression(x):
    head = ResNetLikeHead(C, inner_size=H, joint_blocks=2, name="head")
    head.build((None, D))
    w = weights_of(head)
    end = residual_block(
        dense_block(x, w, "resnet/stream_0"), w, "resnet/stream_0_block_0"
    )
    for j in range(2):
        end = residual_block(end, w, f"resnet/joint_{j}")
    expected = dense_block(end, w, "resnet/end") @ w["kernel"] + w["bias"]
    outputs = head(float32(x))
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-4)


def test_experts_see_a_network_and_gates_its_input(x):
    head = MoNNHead(C, num_mixtures=2, expansions=(3, 1), name="head")
    head.build((None, D))
    w = weights_of(head)
    hidden = relu(dense(x, w, "hidden_0"))
    assert hidden.shape == (B, 3 * D)
    hidden = relu(dense(hidden, w, "hidden_1"))
    gates = np.exp((x @ w["gate_kernel"]).reshape(B, C, 3))
    gates /= gates.sum(-1, keepdims=True)
    experts = hidden @ w["expert_kernel"] + w["expert_bias"]
    experts = sigmoid(experts.reshape(B, C, 2))
    expected = (gates[..., :2] * experts).sum(-1)
    logits = head(float32(x))["logits"].numpy()
    np.testing.assert_allclose(sigmoid(logits), expected, atol=1e-5)


def test_a_mixture_of_networks_has_the_published_widths():
    head = MoNNHead(C)
    head.build((None, 9))
    assert [d.kernel.shape for d in head.hidden] == [(9, 72), (72, 9), (9, 36)]


def test_wide_shortcut_and_residual_parts_stand_side_by_side(x):
    layer = ThsFeatures(units=H, dropout=0.0, name="ths")
    layer.build((None, D))
    w = weights_of(layer)
    z = 2 * sigmoid(dense(x, w, "weight")) * x + 0.1 * np.tanh(dense(x, w, "offset"))
    wide = [x, relu(-z), relu(z), relu(z - 0.5)]

    said = []
    for i in range(4):
        inputs = np.concatenate([*said[-2:], z], axis=-1)
        said.append(relu(dense(inputs, w, f"shortcut_{i}")))

    residual = z
    for i in range(2):
        inside = dense_block(residual, w, f"inner_{i}", relu)
        inside = dense_block(inside, w, f"outer_{i}", lambda v: v)
        residual = relu(normed(residual + inside, w, f"norm_{i}"))
    expected = np.concatenate([*wide, said[-1], residual], axis=-1)
    ours = layer(float32(x))
    assert ours.shape == layer.compute_output_shape((B, D))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseBlock(0), "`units` must be positive"),
        (lambda: DenseBlock(3, "tanh"), "`activation` must be one of leaky_relu"),
        (lambda: ResNetLike(H, stream_blocks=-1), "`stream_blocks` must not be"),
        (lambda: ResNetLike(H, joint_blocks=-1), "`joint_blocks` must not be"),
        (lambda: ResNetLike(H, dropout=1.0), r"`rate` must be in \[0, 1\)"),
        (lambda: MoNNHead(C, expansions=(8, 0)), "`expansions` must be positive"),
        (lambda: MoNNHead(C, num_mixtures=0), "`num_mixtures` must be positive"),
    ],
)
def test_a_network_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        DenseBlock(H, "relu", 0.1),
        ResidualBlock(H, 0.1),
        ResNetLike(H, 2, 3, 0.1),
        ResNetLikeHead(C, H, 2, 3, 0.1),
        MoNNHead(C, 2, (3, 1)),
        ThsFeatures(H, 0.1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_configuration_rebuilds_a_network(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
