"""Recurrent layers and stacks, against float64 NumPy and automatic gradients."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.recurrent import GRU, LSTM, Bidirectional, create_recurrent
from yt8m.layers.recurrent_stack import (
    ContextMemoryLSTM,
    FastForwardPooling,
    LinearPooling,
    RecurrentPooling,
)

LENGTHS = [0, 1, 3, 6]
T, D, H = 6, 5, 3
MASK = np.arange(T) < np.array(LENGTHS)[:, None]


def make_frames(garbage=0.0, size=D):
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), T, size))
    return np.where(MASK[..., None], x, garbage).astype("float32")


def randomise(layer, frames_shape=(None, T, D)):
    layer.build(frames_shape)
    rng = np.random.default_rng(1)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(scale=0.7, size=weight.shape))
    return layer


def value(weight):
    return np.asarray(weight, "float64")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalised(x):
    x = x - x.mean()
    return x / np.sqrt((x**2).mean() + 1e-5)


# Twins: one video (its valid frames, [n, D]) at a time.


def lstm_twin(layer, x, projection=True):
    """h, c and tanh(j) at each frame."""
    size = x.shape[1] if projection else 0
    w, u = np.split(value(layer.kernel), [size])
    bias = value(layer.bias)
    h = c = np.zeros(layer.cells)
    steps = []
    for frame in x:
        below, before = frame @ w if projection else frame, h @ u
        if layer.layer_norm:
            below = normalised(below) * value(layer.input_gain)
            before = normalised(before) * value(layer.recurrent_gain)
        i, j, f, o = np.split(below + before + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(j)
        shown = c
        if layer.layer_norm:
            shown = normalised(c) * value(layer.cell_gain) + value(layer.cell_offset)
        h = sigmoid(o) * np.tanh(shown)
        steps.append((h, c, np.tanh(j)))
    return [np.array(s).reshape(-1, layer.cells) for s in zip(*steps, strict=True)] or [
        np.zeros((0, layer.cells))
    ] * 3


def gru_twin(layer, x, projection=True):
    """h at each frame."""
    size = x.shape[1] if projection else 0
    kernel, bias, cells = value(layer.kernel), value(layer.bias), layer.cells
    h, states = np.zeros(cells), []
    for frame in x:
        below = (frame @ kernel[:size] if projection else frame) + bias
        gates = sigmoid(below[: 2 * cells] + h @ kernel[size:, : 2 * cells])
        r, u = np.split(gates, 2)
        new = np.tanh(below[2 * cells :] + (r * h) @ kernel[size:, 2 * cells :])
        h = u * h + (1 - u) * new
        states.append(h)
    return [np.array(states).reshape(-1, cells)]


def twin(layer, x, projection=True):
    run = lstm_twin if isinstance(layer, LSTM) else gru_twin
    if not layer.go_backwards:
        return run(layer, x, projection)
    return [steps[::-1] for steps in run(layer, x[::-1], projection)]


def each_video(frames):
    return [x[:n].astype("float64") for x, n in zip(frames, LENGTHS, strict=True)]


# LSTM and GRU

LAYERS = [
    (LSTM, {}),
    (LSTM, {"layer_norm": True}),
    (GRU, {}),
    (LSTM, {"input_projection": False}),
    (GRU, {"input_projection": False}),
]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("cls", "args"), LAYERS)
def test_a_layer_runs_over_the_valid_frames_of_each_video(cls, args, backwards):
    projection = args.get("input_projection", True)
    size = D if projection else cls.num_gates * H
    options = {"go_backwards": backwards, "return_states": True, **args}
    layer = randomise(cls(H, return_sequences=True, **options), (None, T, size))
    frames, mask = make_frames(garbage=1e4, size=size), tf.constant(MASK)
    sequence, *states = layer(tf.constant(frames), mask)
    assert len(states) == cls.num_states and sequence.shape == (len(LENGTHS), T, H)
    for b, video in enumerate(each_video(frames)):
        n, (h, *others) = len(video), twin(layer, video, projection)
        np.testing.assert_allclose(sequence[b, :n], h, atol=1e-5)
        at_padding = h[-1] if n and not backwards else np.zeros(H)
        np.testing.assert_allclose(sequence[b, n:] - at_padding, 0, atol=1e-5)
        last = 0 if backwards else -1
        ends = [s[last] if n else np.zeros(H) for s in (h, *others[:1])]
        ends += [steps.sum(axis=0) for steps in others[1:]]  # of all tanh(j)
        for state, expected in zip(states, ends, strict=True):
            np.testing.assert_allclose(state[b], expected, atol=1e-5)
    layer.return_sequences, layer.return_states = False, False
    np.testing.assert_array_equal(layer(tf.constant(frames), mask), states[0])


def stepwise(layer, frames):
    """The layer's results by differentiable single steps."""
    dtype = frames.dtype
    kernel, bias = layer.kernel.value, layer.bias.value
    size = frames.shape[-1] if layer.input_projection else 0
    w, u = kernel[:size], kernel[size:]

    def norm(x):
        x = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        return x / tf.sqrt(tf.reduce_mean(x * x, axis=-1, keepdims=True) + 1e-5)

    h = c = total = tf.zeros((len(LENGTHS), H), dtype)
    states = [None] * T
    for t in reversed(range(T)) if layer.go_backwards else range(T):
        below, valid = frames[:, t] @ w if size else frames[:, t], MASK[:, t, None]
        if isinstance(layer, GRU):
            below = below + bias
            gates = tf.sigmoid(below[:, : 2 * H] + h @ u[:, : 2 * H])
            r, z = tf.split(gates, 2, axis=1)
            new = tf.tanh(below[:, 2 * H :] + (r * h) @ u[:, 2 * H :])
            h = tf.where(valid, z * h + (1 - z) * new, h)
        else:
            before = h @ u
            if layer.layer_norm:
                below = norm(below) * layer.input_gain.value
                before = norm(before) * layer.recurrent_gain.value
            i, j, f, o = tf.split(below + before + bias, 4, axis=1)
            new_c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(j)
            shown = new_c
            if layer.layer_norm:
                shown = norm(new_c) * layer.cell_gain.value + layer.cell_offset.value
            h = tf.where(valid, tf.sigmoid(o) * tf.tanh(shown), h)
            c = tf.where(valid, new_c, c)
            total = tf.where(valid, total + tf.tanh(j), total)
        states[t] = h
    ends = (h,) if isinstance(layer, GRU) else (h, c, total)
    return tf.stack(states, axis=1), *ends


def gradients(layer, call, frames):
    frames = tf.convert_to_tensor(frames)
    sources = [frames, *(w.value for w in layer.trainable_weights)]
    with tf.GradientTape() as tape:
        tape.watch(frames)
        results = call(frames)
        loss = 0.0
        for k, y in enumerate(results):
            factors = tf.range(float(np.prod(y.shape))) / (k + 1.0) - 2.0
            loss += tf.reduce_sum(y * tf.reshape(factors, y.shape))
    return [*results, *tape.gradient(loss, sources)]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("cls", "args"), LAYERS)
def test_the_gradient_of_a_layer_is_that_of_its_steps(
    cls, args, backwards, jit_compile
):
    size = D if args.get("input_projection", True) else cls.num_gates * H
    options = {"go_backwards": backwards, "return_sequences": True, **args}
    layer = randomise(cls(H, return_states=True, **options), (None, T, size))

    @tf.function(jit_compile=jit_compile)
    def ours(frames):
        return gradients(layer, lambda x: layer(x, tf.constant(MASK)), frames)

    results = ours(tf.constant(make_frames(garbage=2.0, size=size)))
    frames = make_frames(size=size)
    expected = gradients(layer, lambda x: stepwise(layer, x), frames)
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [LSTM, GRU])
def test_the_last_state_alone_has_the_gradient_of_the_sequences_end(cls):
    layer, mask = randomise(cls(H)), tf.constant(MASK)
    frames = make_frames()
    short = gradients(layer, lambda x: [layer(x, mask)], frames)
    layer.return_sequences = True
    long = gradients(layer, lambda x: [layer(x, mask)[:, -1]], frames)
    for ours, theirs in zip(short, long, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_gru_agrees_with_keras():
    layer, other = randomise(GRU(H)), keras.layers.GRU(H, reset_after=False)
    other.build((None, T, D))
    r, u, j = np.split(value(layer.kernel), 3, axis=1)
    kernel = np.concatenate([u, r, j], axis=1)  # the order of Keras
    r, u, j = np.split(value(layer.bias), 3)
    other.set_weights([kernel[:D], kernel[D:], np.concatenate([u, r, j])])
    frames, mask = tf.constant(make_frames()), tf.constant(MASK)
    np.testing.assert_allclose(layer(frames, mask), other(frames, mask=mask), atol=1e-6)


def test_a_gru_remembers_over_hundreds_of_frames_in_low_precision():
    """Every frame moves h by 0.002 of what is left: bfloat16 alone would stop."""
    layer = GRU(1, dtype="mixed_bfloat16")
    layer.build((None, 300, 1))
    layer.kernel.assign(np.zeros((2, 3)))
    layer.bias.assign([20.0, np.log(0.998 / 0.002), 20.0])
    y = layer(tf.zeros((1, 300, 1)), tf.ones((1, 300), tf.bool))
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float32), [[1 - 0.998**300]], rtol=0.02)


def test_the_gates_of_a_gru_start_open_for_what_it_has():
    layer = GRU(H)
    layer.build((None, T, D))
    bias = np.reshape(layer.bias, (3, H))  # r, u, j
    np.testing.assert_array_equal(bias, np.repeat([[1], [1], [0]], H, axis=1))


@pytest.mark.parametrize("length", [0, T])
def test_a_layer_takes_batches_without_videos_or_frames(length):
    for cls, args in LAYERS[:3]:
        layer = randomise(cls(H, return_sequences=True, return_states=True, **args))
        shape = tf.TensorSpec((None, None, D)), tf.TensorSpec((None, None), tf.bool)
        graph = tf.function(layer, input_signature=shape)
        for batch in (0, 2):
            frames = tf.ones((batch, length, D))
            sequence, *states = graph(frames, tf.zeros((batch, length), tf.bool))
            assert sequence.shape == (batch, length, H)
            for state in states:
                np.testing.assert_array_equal(state, np.zeros((batch, H)))


@pytest.mark.parametrize(("cell", "count"), [("lstm", 3), ("gru", 1)])
def test_both_directions_start_at_the_ends_of_each_video(cell, count):
    layer = Bidirectional(cell, H, return_sequences=True, return_states=True)
    randomise(layer)
    frames = make_frames(garbage=1e4)
    results = layer(tf.constant(frames), tf.constant(MASK))
    assert len(results) == 1 + count
    shapes = layer.compute_output_shape((len(LENGTHS), T, D))
    assert [tuple(r.shape) for r in results] == list(shapes)
    for b, video in enumerate(each_video(frames)):
        n = len(video)
        there, back = (twin(side, video)[0] for side in layer.directions)
        expected = np.concatenate([there, back], axis=1)
        np.testing.assert_allclose(results[0][b, :n], expected, atol=1e-5)
        if n:
            expected = np.concatenate([there[-1], back[0]])
            np.testing.assert_allclose(results[1][b], expected, atol=1e-5)


# Read-outs and stacks


def test_linear_weights_rise_with_the_place_of_a_frame():
    frames = make_frames(garbage=9.0)
    y = LinearPooling(max_frames=8)(tf.constant(frames), tf.constant(MASK))
    for b, video in enumerate(each_video(frames)):
        expected = sum(((i + 1) / 8 * x for i, x in enumerate(video)), np.zeros(D))
        np.testing.assert_allclose(y[b], expected, atol=1e-5)


def attended(x, scores):
    weights = np.exp(scores) / np.exp(scores).sum()
    return weights @ x


def stack_twin(layer, x):
    """One video; what `RecurrentPooling` gives for it."""
    states, given = [], x
    for i, recurrent in enumerate(layer.stack):
        sides = getattr(recurrent, "directions", [recurrent])
        runs = [twin(side, given) for side in sides]
        ends = [0 if side.go_backwards else -1 for side in sides]
        for k in range(min(len(runs[0]), 2)):  # h, c
            states.append(
                np.concatenate(
                    [run[k][end] for run, end in zip(runs, ends, strict=True)]
                )
            )
        below, given = given, np.concatenate([run[0] for run in runs], axis=1)
        if layer.residual == "concatenate":
            given = np.concatenate([below, given], axis=1)
        if layer.residual == "add" and i < len(layer.shortcuts):
            shortcut = layer.shortcuts[i]
            if shortcut.weights:
                below = below @ value(shortcut.kernel)
            given = given + below
    return {
        "last": lambda: states[-2 if layer.cell == "lstm" else -1],
        "memory": lambda: states[-1],
        "states": lambda: np.concatenate(states),
        "linear": lambda: (np.arange(1, len(x) + 1) / layer.max_frames) @ given,
        "mean": lambda: given.mean(axis=0),
        "max": lambda: given.max(axis=0),
        "attention": lambda: attended(
            given, (given @ value(layer.reader.scores.kernel))[:, 0]
        ),
    }[layer.read_out]()


STACKS = [
    {"read_out": "last"},
    {"read_out": "last", "cell": "gru", "layers": 3},
    {"read_out": "memory", "bidirectional_layers": 2},
    {"read_out": "states", "layer_norm": True, "residual": "concatenate"},
    {"read_out": "states", "cell": "gru", "bidirectional_layers": 1},
    {"read_out": "linear", "residual": "add", "max_frames": 9},
    {"read_out": "linear", "residual": "add", "cells": D, "layers": 1},
    {"read_out": "mean", "cell": "gru"},
    {"read_out": "max", "bidirectional_layers": 1, "residual": "add"},
    {"read_out": "attention", "bidirectional_layers": 2, "residual": "concatenate"},
]


@pytest.mark.parametrize("args", STACKS, ids=str)
def test_a_stack_is_read_out_as_its_formula_says(args):
    layer = randomise(RecurrentPooling(**{"cells": H, **args}))
    frames = make_frames(garbage=50.0)
    y = layer(tf.constant(frames), tf.constant(MASK))
    for b, video in enumerate(each_video(frames)):
        expected = stack_twin(layer, video) if len(video) else np.zeros(y.shape[1])
        np.testing.assert_allclose(y[b], expected, atol=1e-5)


@pytest.mark.parametrize("read_out", ["last", "mean"])
def test_dropout_follows_each_layer_of_a_stack(read_out):
    keras.utils.set_random_seed(3)
    layer = RecurrentPooling("gru", 400, 1, dropout=0.25, read_out=read_out)
    frames, mask = tf.constant(make_frames()), tf.constant(MASK)
    plain, dropped = layer(frames, mask), layer(frames, mask, training=True)
    one_frame = np.asarray(dropped)[1] / np.asarray(plain)[1]
    np.testing.assert_allclose(one_frame[one_frame != 0], 1 / 0.75, rtol=1e-5)
    np.testing.assert_allclose((one_frame == 0).mean(), 0.25, atol=0.08)
    two = RecurrentPooling("gru", 4, 2, dropout=0.5)
    assert len({id(drop) for drop in two.drops}) == 2


@pytest.mark.parametrize("read_out", ["max", "attention"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fast_forward_layers_add_a_linear_path_and_change_direction(cell, read_out):
    layer = randomise(FastForwardPooling(cell, H, 3, read_out))
    frames = make_frames(garbage=50.0)
    y = layer(tf.constant(frames), tf.constant(MASK))
    assert [side.go_backwards for side in layer.stack] == [False, True, False]
    np.testing.assert_array_equal(y[0], np.zeros(y.shape[1]))
    for b, given in list(enumerate(each_video(frames)))[1:]:
        for path, recurrent in zip(layer.paths, layer.stack, strict=True):
            bias = value(path.bias) if path.use_bias else 0.0
            forwarded = given @ value(path.kernel) + bias
            states = twin(recurrent, forwarded, projection=False)[0]
            given = np.concatenate([forwarded, states], axis=1)
        if read_out == "max":
            expected = given.max(axis=0)
        else:
            scores = (states @ value(layer.reader.scores.kernel))[:, 0]
            expected = attended(states, scores)
        np.testing.assert_allclose(y[b], expected, atol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("outputs", ["candidates", "states"])
@pytest.mark.parametrize("read_out", ["last", "memory_inputs", "memory_inputs_outputs"])
def test_context_memory_joins_states_inputs_and_outputs(read_out, outputs, layer_norm):
    args = {"read_out": read_out, "outputs": outputs, "layer_norm": layer_norm}
    layer = randomise(ContextMemoryLSTM(H, layers=2, **args))
    frames = make_frames(garbage=50.0)
    y = layer(tf.constant(frames), tf.constant(MASK))
    np.testing.assert_array_equal(y[0], np.zeros(y.shape[1]))
    for b, video in list(enumerate(each_video(frames)))[1:]:
        h, c, g = twin(layer.stack[1], twin(layer.stack[0], video)[0])
        parts = [c[-1], h[-1]]
        if read_out != "last":
            parts.append(video.sum(axis=0))
        if read_out == "memory_inputs_outputs":
            parts.append((g if outputs == "candidates" else h).sum(axis=0))
        np.testing.assert_allclose(y[b], np.concatenate(parts), atol=1e-5)


def test_dropout_of_context_memory_leaves_the_sum_of_inputs_whole():
    keras.utils.set_random_seed(3)
    layer = ContextMemoryLSTM(200, read_out="memory_inputs_outputs", dropout=0.8)
    frames, mask = tf.constant(make_frames()), tf.constant(MASK)
    plain, dropped = layer(frames, mask), layer(frames, mask, training=True)
    share = np.asarray(dropped)[3] / np.asarray(plain)[3]
    np.testing.assert_allclose(share[400 : 400 + D], 1.0, rtol=1e-5)
    others = np.delete(share, slice(400, 400 + D))
    np.testing.assert_allclose((others == 0).mean(), 0.8, atol=0.06)
    np.testing.assert_allclose(others[others != 0], 5.0, rtol=1e-4)


# Arguments


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GRU(0), "`cells` must be positive"),
        (lambda: create_recurrent("rnn", 3), "`cell` must be one of lstm, gru"),
        (lambda: create_recurrent("gru", 3, layer_norm=True), "`layer_norm` is for"),
        (lambda: RecurrentPooling(layers=0), "`layers` must be positive"),
        (lambda: RecurrentPooling(residual="sum"), "`residual` must be add,"),
        (lambda: RecurrentPooling(read_out="best"), "`read_out` must be one of last,"),
        (lambda: RecurrentPooling("gru", read_out="memory"), "lstm alone"),
        (lambda: RecurrentPooling(bidirectional_layers=3), "must be in 0 to 2"),
        (
            lambda: RecurrentPooling(read_out="linear", max_frames=0),
            "`max_frames` must be positive",
        ),
        (lambda: FastForwardPooling(layers=0), "`layers` must be positive"),
        (lambda: FastForwardPooling(read_out="last"), "must be max or attention"),
        (lambda: ContextMemoryLSTM(layers=0), "`layers` must be positive"),
        (lambda: ContextMemoryLSTM(read_out="c"), "`read_out` must be one of last,"),
        (lambda: ContextMemoryLSTM(outputs="c"), "`outputs` must be one of cand"),
        (
            lambda: GRU(3, input_projection=False).build((None, T, 8)),
            "must have 9 values",
        ),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "layer",
    [
        LSTM(3, layer_norm=True, return_states=True, go_backwards=True),
        GRU(3, input_projection=False, return_sequences=True),
        Bidirectional("lstm", 3, True, True, True),
        LinearPooling(7),
        RecurrentPooling("lstm", 3, 2, 1, "add", True, 0.1, "linear", 9),
        FastForwardPooling("gru", 3, 2, "attention"),
        ContextMemoryLSTM(3, 2, "memory_inputs_outputs", "states", True, 0.1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_is_rebuilt_from_its_configuration(layer):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
