"""Heads against float64 twins in NumPy; the mixture's numerics are in test_layers."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.errors import UserError
from yt8m.layers.classifiers import HEADS, create_head
from yt8m.layers.heads import LogisticHead, MLPHead, MoEHead, MultiLayerMoEHead
from yt8m.registry import arguments

C, D, B = 7, 5, 6
# Arguments that make a head small.
SMALL = {"mlp": {"hidden_size": 6}, "multilayer_moe": {"hidden_size": 4}}
OWN = ("logistic", "mlp", "moe", "multilayer_moe")
# Every argument of a head, with a value other than its default, and what that needs.
OPTIONS = [
    ("moe", {"num_mixtures": 3}, {}),
    ("moe", {"dummy_expert": False}, {}),
    ("moe", {"shared_gates": True}, {}),
    ("moe", {"gate_batch_norm": True}, {}),
    ("moe", {"gate_rank": 2}, {}),
    ("moe", {"expert_rank": 2}, {}),
    ("multilayer_moe", {"num_mixtures": 3}, {}),
    ("multilayer_moe", {"hidden_size": 3}, {}),
    ("multilayer_moe", {"activation": "relu"}, {}),
    ("mlp", {"layers": 2}, {}),
    ("mlp", {"hidden_size": 8}, {}),
    ("mlp", {"normalization": "layer"}, {}),
    ("mlp", {"normalization": "batch"}, {"normalization": "layer"}),
    ("mlp", {"dropout": 0.5}, {}),
]
INPUT = np.random.default_rng(1).normal(size=(B, D)) + 0.3


def make(name, **args):
    keras.utils.set_random_seed(0)
    head = create_head(name, C, **{**SMALL.get(name, {}), **args})
    head.build((None, D))
    return head


def randomise(head, seed=0):
    rng = np.random.default_rng(seed)
    for w in head.weights:
        if w.dtype == "float32":
            value = rng.normal(size=w.shape)
            w.assign(abs(value) + 0.5 if "variance" in w.path else value)
    return head


def value(weight):
    return np.asarray(weight, "float64")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def probabilities(head, training=False):
    logits = head(tf.constant(INPUT, tf.float32), training=training)["logits"]
    assert logits.shape == (B, C) and logits.dtype == tf.float32
    return sigmoid(value(logits))


# Mixtures


@pytest.mark.parametrize("num_mixtures", [1, 3])
@pytest.mark.parametrize("dummy_expert", [True, False])
@pytest.mark.parametrize("shared_gates", [True, False])
@pytest.mark.parametrize("ranks", [(None, None), (2, None), (None, 2), (3, 2)])
@pytest.mark.parametrize("gate_batch_norm", [True, False])
def test_moe_options_give_the_probabilities_of_the_mixture(
    num_mixtures, dummy_expert, shared_gates, ranks, gate_batch_norm
):
    head = MoEHead(
        C,
        num_mixtures,
        dummy_expert=dummy_expert,
        shared_gates=shared_gates,
        gate_batch_norm=gate_batch_norm,
        gate_rank=ranks[0],
        expert_rank=ranks[1],
    )
    head.build((None, D))
    randomise(head)
    gates = experts = INPUT
    if ranks[0]:
        gates = gates @ value(head.gate_projection)
    if ranks[1]:
        experts = experts @ value(head.expert_projection)
    gates = gates @ value(head.gate_kernel)
    if gate_batch_norm:
        norm = head.gate_norm
        gates = (gates - value(norm.moving_mean)) * value(norm.gamma)
        gates = gates / np.sqrt(value(norm.moving_variance) + 1e-3) + value(norm.beta)
    classes = 1 if shared_gates else C
    gates = softmax(gates.reshape(B, classes, num_mixtures + dummy_expert))
    experts = experts @ value(head.expert_kernel) + value(head.expert_bias)
    experts = sigmoid(experts.reshape(B, C, num_mixtures))
    expected = (gates[..., :num_mixtures] * experts).sum(-1)
    np.testing.assert_allclose(probabilities(head), expected, atol=1e-6)


def test_gates_are_normalised_by_the_batch_in_training():
    head = randomise(make("moe", gate_batch_norm=True))
    gates = INPUT @ value(head.gate_kernel)
    gates = (gates - gates.mean(0)) / np.sqrt(gates.var(0) + 1e-3)
    gates = gates * value(head.gate_norm.gamma) + value(head.gate_norm.beta)
    experts = INPUT @ value(head.expert_kernel) + value(head.expert_bias)
    mixed = softmax(gates.reshape(B, C, 3))[..., :2] * sigmoid(experts.reshape(B, C, 2))
    np.testing.assert_allclose(probabilities(head, True), mixed.sum(-1), atol=1e-5)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("num_mixtures", [2, 3])
def test_a_multi_layer_mixture_has_a_hidden_layer_for_each_expert_and_gate(
    activation, num_mixtures
):
    head = randomise(
        make("multilayer_moe", num_mixtures=num_mixtures, activation=activation)
    )
    size = 4

    def outputs(hidden_kernel, hidden_bias, kernel, bias):
        found = []
        for m in range(num_mixtures):
            rows = slice(m * size, (m + 1) * size)
            hidden = INPUT @ value(hidden_kernel)[:, rows] + value(hidden_bias)[rows]
            if activation:
                hidden = np.maximum(hidden, 0)
            own = slice(m * C, (m + 1) * C)
            found.append(hidden @ value(kernel)[rows] + value(bias)[own])
        return np.stack(found, axis=-1)

    gates = softmax(outputs(*head.gate_weights))
    expected = (gates * sigmoid(outputs(*head.expert_weights))).sum(-1)
    np.testing.assert_allclose(probabilities(head), expected, atol=1e-6)


# Multi-layer perceptron


@pytest.mark.parametrize("normalization", [None, "layer", "batch"])
@pytest.mark.parametrize("layers", [1, 3])
def test_an_mlp_is_its_layers_one_after_another(normalization, layers):
    head = randomise(make("mlp", normalization=normalization, layers=layers))
    x = INPUT
    for i, (kernel, bias) in enumerate(head.hidden):
        x = x @ value(kernel) + value(bias)
        if normalization == "layer":
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
                x.var(-1, keepdims=True) + head.norms[i].epsilon
            )
        elif normalization == "batch":
            norm = head.norms[i]
            x = x - value(norm.moving_mean)
            x = x / np.sqrt(value(norm.moving_variance) + norm.epsilon)
        if normalization:
            x = x * value(head.norms[i].gamma) + value(head.norms[i].beta)
        x = np.maximum(x, 0)
    expected = x @ value(head.kernel) + value(head.bias)
    logits = head(tf.constant(INPUT, tf.float32))["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_of_training_only():
    head = make("mlp", dropout=0.5, hidden_size=50)
    x = tf.constant(INPUT, tf.float32)
    first, second = (head(x, training=True)["logits"] for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(head(x)["logits"], head(x)["logits"])
    several = [head(x, training=True)["logits"] for _ in range(300)]
    plain = np.abs(head(x)["logits"])
    assert np.abs(np.mean(several, axis=0) - head(x)["logits"]).mean() < plain.mean()


def test_hidden_layers_keep_the_spread_of_their_input():
    keras.utils.set_random_seed(0)
    head = MLPHead(3, hidden_size=200)
    head.build((None, 100))
    x = np.random.default_rng(0).normal(size=(50, 100))
    for kernel, _ in head.hidden:
        x = np.maximum(x @ value(kernel), 0)
    np.testing.assert_allclose(np.mean(x**2), 1, rtol=0.3)


# All heads


@pytest.mark.parametrize("name", OWN)
def test_l2_penalties_are_half_the_sum_of_squares_of_kernels(name):
    args = {"gate_rank": 2, "expert_rank": 3} if name == "moe" else {}
    head = randomise(make(name, l2_penalty=0.1, **args))
    kernels = [w for w in head.weights if w.name.endswith("kernel")]
    expected = sum(0.05 * (value(w) ** 2).sum() for w in kernels)
    assert len(kernels) == (1 if name == "logistic" else 4)
    np.testing.assert_allclose(sum(head.losses), expected, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_head_gates_its_probabilities_on_request(name):
    head = randomise(make(name, gating_probabilities=True))
    x = tf.constant(INPUT, tf.float32)
    before, _ = head.all_logits(x)
    after = head(x)["logits"]
    np.testing.assert_array_equal(after, head.gating(before))
    # A gate of 1, to float32, leaves a logit as it is.
    assert (after.numpy() <= before.numpy()).all()
    assert (after.numpy() < before.numpy()).any()


@pytest.mark.parametrize(("name", "changed", "given"), OPTIONS)
def test_an_option_changes_the_result_and_every_weight_learns(name, changed, given):
    results = []
    for args in (given, {**given, **changed}):
        head = randomise(make(name, **args))
        with tf.GradientTape() as tape:
            logits = head(tf.constant(INPUT, tf.float32), training=True)["logits"]
            loss = tf.reduce_sum(tf.sin(logits))
        results.append(logits.numpy())
        gradients = tape.gradient(loss, [w.value for w in head.trainable_weights])
        for w, gradient in zip(head.trainable_weights, gradients, strict=True):
            assert np.isfinite(gradient).all() and np.any(gradient != 0), w.path
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_every_option_of_the_own_heads_is_tried():
    for name in ("moe", "multilayer_moe", "mlp"):
        tried = {n for head, changed, _ in OPTIONS if head == name for n in changed}
        assert tried == set(arguments(HEADS[name])) - set(arguments(LogisticHead))


@pytest.mark.parametrize("scale", [0.0, 100.0])
@pytest.mark.parametrize("name", OWN)
def test_zero_and_large_vectors_have_finite_logits_and_gradients(name, scale):
    head = make(name)
    with tf.GradientTape() as tape:
        logits = head(tf.constant(scale * INPUT, tf.float32))["logits"]
        loss = tf.reduce_sum(tf.nn.softplus(logits))
    assert np.isfinite(logits).all()
    for gradient in tape.gradient(loss, head.trainable_weights):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("moe", {"shared_gates": True, "gate_batch_norm": True, "gate_rank": 2}),
        ("multilayer_moe", {"activation": "relu"}),
        ("mlp", {"normalization": "layer"}),
        ("mlp", {"normalization": "batch", "dropout": 0.0}),
    ],
)
def test_a_head_runs_in_graphs_with_xla_and_in_low_precision(name, args):
    head = make(name, **args)
    x = tf.constant(INPUT, tf.float32)
    expected = head(x)["logits"]
    signature = [tf.TensorSpec([None, D])]
    graph = tf.function(lambda x: head(x)["logits"], input_signature=signature)
    compiled = tf.function(lambda x: head(x)["logits"], jit_compile=True)
    for call in (graph, compiled):
        np.testing.assert_allclose(call(x), expected, rtol=1e-5, atol=1e-5)
    assert graph(x[:0]).shape == (0, C)
    low = make(name, **args, dtype="mixed_bfloat16")
    logits = low(x)["logits"]
    assert logits.dtype == tf.float32
    assert all(w.dtype == "float32" for w in low.trainable_weights)
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    "head",
    [
        MoEHead(
            *(C, 3),
            dummy_expert=False,
            shared_gates=True,
            gate_batch_norm=True,
            gate_rank=2,
            expert_rank=3,
        ),
        MultiLayerMoEHead(C, 3, hidden_size=4, activation="tanh"),
        MLPHead(C, 2, hidden_size=4, normalization="layer", dropout=0.1),
        LogisticHead(C),
    ],
    ids=lambda head: type(head).__name__,
)
def test_a_head_is_rebuilt_from_its_configuration_and_saved(head, tmp_path):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(head)))
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == head.get_config()
    inputs = keras.Input((D,))
    model = keras.Model(inputs, head(inputs))
    randomise(head)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = tf.constant(INPUT, tf.float32)
    np.testing.assert_array_equal(again(x)["logits"], model(x)["logits"])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("moe", {"gate_rank": 0}, "`gate_rank` must be positive"),
        ("moe", {"expert_rank": -1}, "`expert_rank` must be positive"),
        ("multilayer_moe", {"num_mixtures": 0}, "`num_mixtures` must be positive"),
        ("multilayer_moe", {"hidden_size": 0}, "`hidden_size` must be positive"),
        ("multilayer_moe", {"activation": "rleu"}, "rleu"),
        ("mlp", {"layers": 0}, "`layers` must be positive"),
        ("mlp", {"hidden_size": 0}, "`hidden_size` must be positive"),
        ("mlp", {"normalization": "lyer"}, "one of layer, batch or None. Received"),
        ("mlp", {"dropout": 1.0}, r"`rate` must be in \[0, 1\)"),
    ],
)
def test_a_refused_value_is_named(name, args, message):
    with pytest.raises(ValueError, match=message):
        create_head(name, C, **args)


def test_an_unknown_argument_lists_near_matches_and_an_mlp_has_no_mixtures():
    with pytest.raises(UserError, match="no argument gate_ranks. Did you mean gate_r"):
        create_head("moe", C, gate_ranks=1)
    with pytest.raises(UserError, match="head mlp has no mixtures: leave out"):
        create_head("mlp", C, num_mixtures=2)
    assert create_head("multilayer_moe", C, num_mixtures=16).num_mixtures == 16
