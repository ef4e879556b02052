"""Recurrent models against float64 NumPy, and what they give to the loss."""

import numpy as np
import pytest
import tensorflow as tf

from test_numpy_twins import (
    LENGTHS,
    C,
    T,
    frame_batch,
    frame_input,
    model_with_weights,
    sigmoid,
)
from yt8m import losses, registry
from yt8m.errors import UserError


def lstm_states(x, w, name):
    """Of one video [n, D]."""
    kernel, bias = w[f"{name}/kernel"], w[f"{name}/bias"]
    h = c = np.zeros(len(bias) // 4)
    states = []
    for frame in x:
        i, j, f, o = np.split(np.concatenate([frame, h]) @ kernel + bias, 4)
        c = c * sigmoid(f) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        states.append(h)
    return np.array(states).reshape(-1, len(h))


def videos(batch):
    return [x[:n] for x, n in zip(frame_input(batch), LENGTHS, strict=True)]


def logits_of(model, batch, training=False):
    inputs = {k: tf.constant(v) for k, v in batch.items()}
    return model(inputs, training=training)


def test_the_best_attention_of_each_class_counts():
    model, w = model_with_weights(
        "LstmAttentionMaxModel", cells=4, layers=1, attentions=3, head="logistic"
    )
    batch, expected = frame_batch(), []
    for x in videos(batch):
        h = lstm_states(x, w, "lstm_0")
        scores = np.exp(np.concatenate([x, h], axis=1) @ w["scores/kernel"])
        pooled = (scores / scores.sum(axis=0)).T @ h  # [3, 4]; zeros without frames
        each = pooled @ w["head/kernel"] + w["head/bias"]
        expected.append(each.max(axis=0))
    assert len({int(k) for k in each.argmax(axis=0)}) > 1
    logits = logits_of(model, batch)["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_every_frame_is_classified_in_training_and_the_last_one_scored():
    model, w = model_with_weights(
        "FrameSupervisedLstmModel", cells=4, layers=1, head="logistic"
    )
    batch = frame_batch()
    outputs = logits_of(model, batch, training=True)
    assert outputs["frame_logits"].shape == (len(LENGTHS), T, C)
    for b, x in enumerate(videos(batch)):
        n, h = len(x), lstm_states(x, w, "lstm_0")
        each = h @ w["head/kernel"] + w["head/bias"]
        np.testing.assert_allclose(outputs["frame_logits"][b, :n], each, atol=1e-5)
        rising = [(t + 1) / n for t in range(n)] + [0.0] * (T - n)
        np.testing.assert_allclose(outputs["frame_weights"][b], rising, atol=1e-6)
        last = each[-1] if n else w["head/bias"]
        np.testing.assert_allclose(outputs["logits"][b], last, atol=1e-5)
    inference = logits_of(model, batch)
    assert set(inference) == {"logits", "embedding"}
    np.testing.assert_allclose(inference["logits"], outputs["logits"], atol=1e-6)


def test_the_loss_of_the_frames_is_their_weighted_mean():
    model, _ = model_with_weights("FrameSupervisedLstmModel", cells=4)
    outputs = logits_of(model, frame_batch(), training=True)
    labels = np.random.default_rng(2).integers(0, 2, size=(len(LENGTHS), C))
    value = losses.objective(losses.cross_entropy, labels, outputs)
    x, weights = (np.asarray(outputs[f"frame_{k}"]) for k in ("logits", "weights"))
    each = (np.logaddexp(0, x) - labels[:, None] * x).sum(axis=-1)
    expected = (each * weights).sum(axis=1) / np.maximum(np.sum(weights, axis=1), 1e-7)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_two_streams_are_read_apart():
    model, w = model_with_weights(
        "TwoStreamRecurrentModel",
        cells=4,
        audio_cells=3,
        bidirectional_layers=0,
        projections=[[6, "tanh"], [5, "tanh"]],
        dropout=0.0,
        hidden_layers=[[8, "relu"]],
    )
    batch, expected = frame_batch(), []
    for x in videos(batch):
        pooled = []
        for i, stream in enumerate((x[:, :7], x[:, 7:])):
            kernel, bias = (w[f"projection_{i}/{k}"] for k in ("kernel", "bias"))
            h = lstm_states(np.tanh(stream @ kernel + bias), w, f"pool_{i}/lstm_0")
            scores = np.exp(h @ w[f"pool_{i}/attention/scores/kernel"])
            pooled.append((scores / scores.sum(axis=0)).T[0] @ h)
        hidden = np.concatenate(pooled) @ w["hidden_0/kernel"] + w["hidden_0/bias"]
        logits = np.maximum(hidden, 0) @ w["head/kernel"] + w["head/bias"]
        expected.append(logits)
    logits = logits_of(model, batch)["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("RecurrentModel", {"cell": "rnn"}, "`cell` must be one of lstm, gru"),
        ("RecurrentModel", {"layer_norm": True}, "`layer_norm` is for the cell lstm"),
        ("TwoStreamRecurrentModel", {"layers": 0}, "`layers` must be positive"),
        ("FastForwardModel", {"read_out": "mean"}, "must be max or attention"),
        ("LstmAttentionMaxModel", {"attentions": 0}, "must be positive"),
        ("FrameSupervisedLstmModel", {"layers": 0}, "`layers` must be positive"),
    ],
)
def test_a_refused_value_is_the_users_error(name, args, message):
    with pytest.raises(UserError, match=message):
        registry.create(name, **args)
