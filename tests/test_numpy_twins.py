"""Whole models and losses against float64 NumPy, written from the published formulas.

No Keras here: a twin takes the bytes of a batch and a dictionary of weights, which the
tests set by hand, and gives probabilities.
"""

import numpy as np
import pytest
import tensorflow as tf

import frame_level_models  # noqa: F401  (registers)
import video_level_models  # noqa: F401  (registers)
from yt8m import losses, registry

C, T = 5, 6
LENGTHS = np.array([0, 1, 3, 6])
FRAME_SIZES = {"rgb": 7, "audio": 3}
VIDEO_SIZES = {"mean_rgb": 7, "mean_audio": 3}
D = 10


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "sigmoid": sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
}


def l2_normalised(x):
    return x / np.sqrt(np.maximum((x**2).sum(-1, keepdims=True), 1e-12))


def video_input(batch):
    return l2_normalised(np.concatenate([batch[k] for k in VIDEO_SIZES], axis=-1))


def frame_input(batch):
    """Bytes to normalised frames, and what is padding to zeros."""
    q = np.concatenate([batch[k] for k in FRAME_SIZES], axis=-1).astype("float64")
    valid = np.arange(q.shape[1]) < batch["num_frames"][:, None]
    return l2_normalised(np.where(valid[..., None], q * (4 / 255) + (4 / 512 - 2), 0))


# Twins: weights by their paths below the model's name.


def logistic(x, w):
    return sigmoid(x @ w["head/kernel"] + w["head/bias"])


def mixture_of_experts(x, w, mixtures=2):
    gates = (x @ w["head/gate_kernel"]).reshape(len(x), C, mixtures + 1)
    gates = np.exp(gates) / np.exp(gates).sum(-1, keepdims=True)
    experts = sigmoid(x @ w["head/expert_kernel"] + w["head/expert_bias"])
    return (gates[..., :mixtures] * experts.reshape(len(x), C, mixtures)).sum(-1)


def batch_normalised(x, w, name):
    """By given moving averages; epsilon is 0.001."""
    w = {
        k: w[f"{name}/{k}"] for k in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    scaled = (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + 1e-3)
    return w["gamma"] * scaled + w["beta"]


def deep_bag_of_frames(batch, w, pooling, activation, add_batch_norm):
    activate = ACTIVATIONS[activation]
    x, pooled = frame_input(batch), []
    for frames, n in zip(x, batch["num_frames"], strict=True):
        frames = frames[:n]
        if add_batch_norm:
            frames = batch_normalised(frames, w, "dbof/input_norm")
        words = frames @ w["dbof/cluster_weights"]
        if add_batch_norm:
            words = batch_normalised(words, w, "dbof/cluster_norm")
        else:
            words = words + w["dbof/cluster_bias"]
        words = activate(words)
        empty = np.zeros(words.shape[1])
        pool = np.max if pooling == "max" else np.mean
        pooled.append(pool(words, axis=0) if n else empty)
    hidden = np.array(pooled) @ w["hidden/kernel"]
    if add_batch_norm:
        hidden = batch_normalised(hidden, w, "hidden_norm")
    else:
        hidden = hidden + w["hidden/bias"]
    return mixture_of_experts(activate(hidden), w)


def stacked_lstm(batch, w, layers=2):
    tops = []
    for frames, n in zip(frame_input(batch), batch["num_frames"], strict=True):
        sequence = list(frames[:n])
        for layer in range(layers):
            kernel, bias = w[f"lstm_{layer}/kernel"], w[f"lstm_{layer}/bias"]
            h = c = np.zeros(len(bias) // 4)
            outputs = []
            for x in sequence:
                i, j, f, o = np.split(np.concatenate([x, h]) @ kernel + bias, 4)
                c = c * sigmoid(f) + sigmoid(i) * np.tanh(j)
                h = np.tanh(c) * sigmoid(o)
                outputs.append(h)
            sequence = outputs
        tops.append(h)
    return mixture_of_experts(np.array(tops), w)


# Batches and weights


def video_batch():
    rng = np.random.default_rng(5)
    return {
        k: rng.normal(size=(4, n)).astype("float32") for k, n in VIDEO_SIZES.items()
    }


def frame_batch():
    """Bytes in all places: what lies beyond a video's length is garbage."""
    rng = np.random.default_rng(6)
    batch = {
        k: rng.integers(0, 256, size=(4, T, n)).astype("uint8")
        for k, n in FRAME_SIZES.items()
    }
    return {**batch, "num_frames": LENGTHS.astype("int32")}


def model_with_weights(name, **args):
    """A model, and the weights that it was given, by their paths."""
    level = registry.get(name).level
    features = {"frame": FRAME_SIZES, "video": VIDEO_SIZES}[level]
    model = registry.create(name, num_classes=C, features=features, **args)
    rng, weights = np.random.default_rng(7), {}
    for variable in model.ensure_built().variables:
        value = rng.normal(scale=0.7, size=variable.shape)
        path = variable.path.split("/", 1)[1]
        if path.endswith("moving_variance"):
            value = np.abs(value) + 0.5
        weights[path] = value.astype("float32").astype("float64")
        variable.assign(weights[path])
    return model, weights


def assert_equal_outputs(model, batch, probabilities):
    logits = model({k: tf.constant(v) for k, v in batch.items()})["logits"].numpy()
    np.testing.assert_allclose(sigmoid(logits), probabilities, rtol=0, atol=1e-5)
    expected = np.log(probabilities) - np.log1p(-probabilities)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert probabilities.std() > 0.05


# Models


def test_the_logistic_model():
    model, weights = model_with_weights("LogisticModel")
    batch = video_batch()
    assert_equal_outputs(model, batch, logistic(video_input(batch), weights))


def test_the_frame_level_logistic_model():
    model, weights = model_with_weights("FrameLevelLogisticModel")
    batch = frame_batch()
    mean = frame_input(batch).sum(axis=1) / np.maximum(LENGTHS, 1)[:, None]
    assert_equal_outputs(model, batch, logistic(mean, weights))


@pytest.mark.parametrize("mixtures", [1, 2, 3])
def test_the_mixture_of_experts(mixtures):
    model, weights = model_with_weights("MoeModel", num_mixtures=mixtures)
    batch = video_batch()
    expected = mixture_of_experts(video_input(batch), weights, mixtures)
    assert_equal_outputs(model, batch, expected)


@pytest.mark.parametrize("add_batch_norm", [False, True])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_the_deep_bag_of_frames(pooling, activation, add_batch_norm):
    args = {
        "pooling": pooling,
        "activation": activation,
        "add_batch_norm": add_batch_norm,
    }
    model, weights = model_with_weights("DbofModel", clusters=8, hidden_size=6, **args)
    batch = frame_batch()
    assert_equal_outputs(model, batch, deep_bag_of_frames(batch, weights, **args))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_lstm(layers):
    model, weights = model_with_weights("LstmModel", cells=4, layers=layers)
    batch = frame_batch()
    assert_equal_outputs(model, batch, stacked_lstm(batch, weights, layers))


# Penalties: a regulariser of scale s is s * sum(w^2) / 2, of the head's kernels alone.


@pytest.mark.parametrize(
    ("name", "args", "kernels"),
    [
        ("LogisticModel", {}, ["head/kernel"]),
        ("MoeModel", {}, ["head/gate_kernel", "head/expert_kernel"]),
        ("FrameLevelLogisticModel", {}, ["head/kernel"]),
        ("DbofModel", {"clusters": 8}, ["head/gate_kernel", "head/expert_kernel"]),
        ("LstmModel", {"cells": 4}, ["head/gate_kernel", "head/expert_kernel"]),
    ],
)
def test_the_penalty_is_half_the_starter_codes_scale_times_the_squares(
    name, args, kernels
):
    model, weights = model_with_weights(name, **args)
    assert set(kernels) <= set(weights)
    expected = sum(1e-8 / 2 * (weights[k] ** 2).sum() for k in kernels)
    np.testing.assert_allclose(float(sum(model.losses)), expected, rtol=1e-5)


# Losses, from a model's probabilities


def starter_cross_entropy(p, y):
    return -(y * np.log(p + 1e-5) + (1 - y) * np.log(1 - p + 1e-5)).sum(-1)


def starter_hinge(p, y):
    return np.maximum(0, 1 - (2 * y - 1) * p).sum(-1)


def starter_softmax(p, y):
    share = y / np.maximum(y.sum(-1, keepdims=True), 1e-7)
    return -(share * np.log(np.exp(p) / np.exp(p).sum(-1, keepdims=True))).sum(-1)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("CrossEntropyLossCompat", starter_cross_entropy),
        ("HingeLossCompat", starter_hinge),
        ("SoftmaxLossCompat", starter_softmax),
        ("CrossEntropyLoss", lambda p, y: -np.log(np.where(y, p, 1 - p)).sum(-1)),
        ("HingeLoss", lambda p, y: starter_hinge(np.log(p / (1 - p)), y)),
        ("SoftmaxLoss", lambda p, y: starter_softmax(np.log(p / (1 - p)), y)),
    ],
)
def test_a_loss_of_the_mixtures_probabilities(name, twin):
    model, weights = model_with_weights("MoeModel")
    batch = video_batch()
    probabilities = mixture_of_experts(video_input(batch), weights)
    labels = np.array([[1, 0, 0, 1, 0], [0] * 5, [1] * 5, [0, 0, 1, 0, 0.0]])
    outputs = model({k: tf.constant(v) for k, v in batch.items()})
    loss = losses.create(name)(tf.constant(labels), outputs)
    np.testing.assert_allclose(loss, twin(probabilities, labels), rtol=1e-5, atol=1e-5)
