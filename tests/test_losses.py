"""Losses against hand-computed numbers and float64 twins."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m import losses
from yt8m.errors import UserError

LOGITS = np.array([[0.0, 2.0, -1.0], [-3.0, 0.5, 4.0]])
LABELS = np.array([[1, 0, 1], [0, 0, 1]], "uint8")
P = 1 / (1 + np.exp(-LOGITS))
SIGNS = 2.0 * LABELS - 1.0


def _log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


SHARES = LABELS / LABELS.sum(-1, keepdims=True)
TWINS = {
    "CrossEntropyLoss": -np.log(np.where(LABELS, P, 1 - P)),
    "CrossEntropyLossCompat": -np.log(np.where(LABELS, P, 1 - P) + 1e-5),
    "HingeLoss": np.maximum(0, 1 - SIGNS * LOGITS),
    "HingeLossCompat": np.maximum(0, 1 - SIGNS * P),
    "SoftmaxLoss": -SHARES * _log_softmax(LOGITS),
    "SoftmaxLossCompat": -SHARES * _log_softmax(P),
}


def _loss(name, labels, logits, weights=None):
    outputs = {"logits": tf.constant(logits, tf.float32)}
    return losses.create(name)(tf.constant(labels), outputs, weights)


def test_every_loss_has_a_twin():
    assert set(TWINS) == set(losses.LOSSES)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_a_loss_is_the_sum_of_its_cells_for_each_example(name):
    loss = _loss(name, LABELS, LOGITS)
    assert loss.shape == (2,) and loss.dtype == tf.float32
    np.testing.assert_allclose(loss, TWINS[name].sum(-1), rtol=5e-6)


@pytest.mark.parametrize(
    ("name", "label", "logit", "expected"),
    [
        ("CrossEntropyLoss", 1, 0.0, 0.693147),  # log 2
        ("CrossEntropyLoss", 0, 100.0, 100.0),
        ("CrossEntropyLossCompat", 1, 0.0, 0.693127),  # -log(0.5 + 1e-5)
        ("CrossEntropyLossCompat", 0, 100.0, 11.512925),  # -log(1e-5)
        ("CrossEntropyLossCompat", 1, 100.0, -1e-5),  # below 0, as the starter's
        ("HingeLoss", 1, 0.25, 0.75),
        ("HingeLoss", 0, -2.0, 0.0),
        ("HingeLossCompat", 0, -100.0, 1.0),  # a negative never costs less than 1
        ("HingeLossCompat", 1, 100.0, 0.0),
        ("SoftmaxLoss", 1, 3.0, 0.0),  # one class alone
        ("SoftmaxLossCompat", 1, 3.0, 0.0),
    ],
)
def test_a_single_cell_has_the_value_worked_out_by_hand(name, label, logit, expected):
    loss = _loss(name, [[label]], [[logit]])
    np.testing.assert_allclose(loss, [expected], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_weights_multiply_the_cells(name):
    weights = np.array([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]])
    np.testing.assert_allclose(
        _loss(name, LABELS, LOGITS, weights),
        (TWINS[name] * weights).sum(-1),
        rtol=5e-6,
    )


@pytest.mark.parametrize(
    "name", [n for n in sorted(losses.LOSSES) if not n.startswith("Softmax")]
)
def test_logits_of_unrated_cells_do_not_matter(name):
    weights = np.array([[1, 0, 0], [0, 0, 1]], "uint8")
    other = np.where(weights, LOGITS, LOGITS + 7.0)
    np.testing.assert_array_equal(
        _loss(name, LABELS, LOGITS, weights), _loss(name, LABELS, other, weights)
    )


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_extreme_logits_give_finite_losses_and_gradients(name):
    logits = tf.constant([[100.0, -100.0, 0.0, 1e4, -1e4]])
    for labels in ([[1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0]], [[0.3, 0.3, 0.3, 0.9, 0.9]]):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = losses.create(name)(tf.constant(labels), {"logits": logits})
        assert np.isfinite(loss).all()
        assert np.isfinite(tape.gradient(loss, logits)).all()


def test_the_gradient_of_cross_entropy_is_p_minus_y():
    logits = tf.constant(LOGITS, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.cross_entropy(LABELS, {"logits": logits})
    np.testing.assert_allclose(tape.gradient(loss, logits), P - LABELS, atol=1e-6)


def test_low_precision_logits_are_summed_in_float32():
    logits = keras.ops.full((1, 3862), -7.0, dtype="bfloat16")
    loss = losses.cross_entropy(np.zeros((1, 3862)), {"logits": logits})
    np.testing.assert_allclose(loss, [3862 * np.log1p(np.exp(-7.0))], rtol=1e-5)


@pytest.mark.parametrize("name", ["SoftmaxLoss", "SoftmaxLossCompat"])
def test_a_softmax_loss_without_labels_is_zero(name):
    np.testing.assert_array_equal(_loss(name, np.zeros((1, 3)), LOGITS[:1]), [0.0])


def test_an_unknown_loss_lists_near_matches():
    with pytest.raises(UserError, match="Did you mean HingeLoss"):
        losses.create("HingLoss")
