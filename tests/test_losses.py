"""Losses against hand-computed numbers and float64 twins."""

import inspect
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m import evaluation, losses, runs
from yt8m.class_figures import read_class_counts
from yt8m.cli.main import run
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_video_record, write_records
from yt8m.errors import UserError

COUNTS = "Index,Videos\n0,10\n2,50\n"
ACCURACIES = "Index,AveragePrecision,Positives\n0,0.25,3\n1,,0\n2,0.75,9\n"
# What a loss needs to be created.
ARGS = {
    "WeightedCrossEntropyLoss": {"positive_weight": 3.0},
    "ClassBalancedCrossEntropyLoss": {"class_counts": "counts.csv"},
    "AsymmetricLoss": {"gamma_positive": 1.0},
    "PseudoHuberLoss": {"delta": 0.7},
    "ConfidencePenaltyLoss": {"class_accuracies": "accuracies.csv"},
    "CorrectedCrossEntropyLoss": {
        "false_negative_rate": 0.3,
        "false_positive_rate": 0.1,
    },
    "SoftRankingLoss": {"negatives": 2},
}
LOGITS = np.array([[0.0, 2.0, -1.0], [-3.0, 0.5, 4.0]])
LABELS = np.array([[1, 0, 1], [0, 0, 1]], "uint8")
P = 1 / (1 + np.exp(-LOGITS))
SIGNS = 2.0 * LABELS - 1.0


def _log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


SHARES = LABELS / LABELS.sum(-1, keepdims=True)
CROSS_ENTROPY = -np.log(np.where(LABELS, P, 1 - P))
SHIFTED = np.maximum(P - 0.05, 0)
OBSERVED = 0.7 * P + 0.1 * (1 - P)
TWINS = {
    "CrossEntropyLoss": CROSS_ENTROPY,
    "CrossEntropyLossCompat": -np.log(np.where(LABELS, P, 1 - P) + 1e-5),
    "HingeLoss": np.maximum(0, 1 - SIGNS * LOGITS),
    "HingeLossCompat": np.maximum(0, 1 - SIGNS * P),
    "SoftmaxLoss": -SHARES * _log_softmax(LOGITS),
    "SoftmaxLossCompat": -SHARES * _log_softmax(P),
    "WeightedCrossEntropyLoss": np.where(LABELS, 3, 1) * CROSS_ENTROPY,
    # The mean of 10 and 50 is 30; class 1 has no video and counts as one.
    "ClassBalancedCrossEntropyLoss": np.where(LABELS, [[3, 30, 0.6]], 1)
    * CROSS_ENTROPY,
    "PseudoHuberLoss": 0.49 * (np.sqrt(1 + (CROSS_ENTROPY / 0.7) ** 2) - 1),
    "FocalLoss": np.where(LABELS, 0.25 * (1 - P) ** 2, 0.75 * P**2) * CROSS_ENTROPY,
    "AsymmetricLoss": np.where(
        LABELS, (1 - P) * CROSS_ENTROPY, SHIFTED**4 * -np.log(1 - SHIFTED)
    ),
    # Class 1 has no positives: it counts as one of the others' mean accuracy.
    "ConfidencePenaltyLoss": CROSS_ENTROPY + 0.1 * np.array([0.75, 0.5, 0.25]) * P,
    "CorrectedCrossEntropyLoss": -np.log(np.where(LABELS, OBSERVED, 1 - OBSERVED)),
    "CenterLoss": CROSS_ENTROPY,  # of a model that gives no centres
}
# Those that are no sums of cells have their twins below.
OF_PAIRS = {"SoftRankingLoss", "HingeRankingLoss", "ReweightedCrossEntropyLoss"}
NAMES = sorted(losses.LOSSES)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    (tmp_path / "counts.csv").write_text(COUNTS)
    (tmp_path / "accuracies.csv").write_text(ACCURACIES)
    monkeypatch.chdir(tmp_path)


def _create(name, **args):
    return losses.create(name, **{**ARGS.get(name, {}), **args})


def _loss(name, labels, logits, weights=None):
    outputs = {"logits": tf.constant(logits, tf.float32)}
    return _create(name)(tf.constant(labels), outputs, weights)


def test_every_loss_has_a_twin():
    assert set(TWINS) == set(NAMES) - OF_PAIRS


@pytest.mark.parametrize("name", sorted(TWINS))
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
        ("FocalLoss", 1, 0.0, 0.0433217),  # 1/4 of 1/4 of log 2
        ("FocalLoss", 0, 100.0, 75.0),
        ("AsymmetricLoss", 0, -3.0, 0.0),  # p = 0.047, below the margin
        ("AsymmetricLoss", 0, 0.0, 0.0245151),  # 0.45^4 of -log 0.55
        ("AsymmetricLoss", 0, 100.0, 2.4400427),  # 0.95^4 of -log 0.05
        ("CorrectedCrossEntropyLoss", 1, 100.0, 0.3566749),  # -log 0.7
        ("CorrectedCrossEntropyLoss", 0, -100.0, 0.1053605),  # -log 0.9
        ("SoftmaxLoss", 1, 3.0, 0.0),  # one class alone
        ("SoftmaxLossCompat", 1, 3.0, 0.0),
    ],
)
def test_a_single_cell_has_the_value_worked_out_by_hand(name, label, logit, expected):
    loss = _loss(name, [[label]], [[logit]])
    np.testing.assert_allclose(loss, [expected], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(TWINS))
def test_weights_multiply_the_cells(name):
    weights = np.array([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]])
    np.testing.assert_allclose(
        _loss(name, LABELS, LOGITS, weights),
        (TWINS[name] * weights).sum(-1),
        rtol=5e-6,
    )


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("Softmax")])
def test_logits_of_unrated_cells_do_not_matter(name):
    weights = np.array([[1, 0, 0], [0, 0, 1]], "uint8")
    other = np.where(weights, LOGITS, LOGITS + 7.0)
    np.testing.assert_array_equal(
        _loss(name, LABELS, LOGITS, weights), _loss(name, LABELS, other, weights)
    )


@pytest.mark.parametrize(
    ("name", "args"),
    [
        *((name, {}) for name in NAMES),
        ("FocalLoss", {"gamma": 0.5}),
        ("AsymmetricLoss", {"margin": 0.0}),
        ("AsymmetricLoss", {"gamma_negative": 0.5, "margin": 1e-9}),
        ("AsymmetricLoss", {"gamma_negative": 0.0, "margin": 0.0}),
        ("CorrectedCrossEntropyLoss", {"false_negative_rate": 0.0}),
        ("CorrectedCrossEntropyLoss", {"false_positive_rate": 0.0}),
    ],
)
def test_extreme_logits_give_finite_losses_and_gradients(name, args):
    logits = tf.constant([[100.0, -100.0, 0.0, 1e4, -1e4]])
    for labels in ([[1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0]], [[0.3, 0.3, 0.3, 0.9, 0.9]]):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = _create(name, **args)(tf.constant(labels), {"logits": logits})
        assert loss.shape == (1,) and np.isfinite(loss).all()
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


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_gives_the_same_with_and_without_xla_and_without_videos(name):
    loss = _create(name)

    def call(labels, logits):
        return loss(labels, {"logits": logits})

    x = tf.constant(LABELS), tf.constant(LOGITS, tf.float32)
    signature = [tf.TensorSpec([None, 3], v.dtype) for v in x]
    graph = tf.function(call, input_signature=signature)
    for function in (graph, tf.function(call, jit_compile=True)):
        np.testing.assert_allclose(function(*x), call(*x), rtol=1e-6)
    assert graph(*[v[:0] for v in x]).shape == (0,)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "SoftRankingLoss"])
def test_the_frames_of_a_video_have_its_labels(name):
    frames = np.stack([LOGITS, LOGITS[::-1], -LOGITS], axis=1)
    each = [_loss(name, LABELS, frames[:, t]) for t in range(3)]
    outputs = {
        "frame_logits": tf.constant(frames, tf.float32),
        "frame_weights": tf.constant([[1.0, 1.0, 2.0], [0.0, 1.0, 0.0]]),
        "logits": tf.constant(LOGITS, tf.float32),
        "embedding": tf.zeros([2, 4]),
        "centers": tf.zeros([3, 4]),
    }
    value = losses.objective(_create(name), tf.constant(LABELS), outputs)
    expected = [(each[0][0] + each[1][0] + 2 * each[2][0]) / 4, each[1][1]]
    np.testing.assert_allclose(value, expected, rtol=1e-6)


# Every argument of a loss, with two values of it.
TWO_VALUES = {
    ("CrossEntropyLoss", "label_smoothing"): (0.0, 0.1),
    ("WeightedCrossEntropyLoss", "positive_weight"): (1.0, 2.0),
    ("ClassBalancedCrossEntropyLoss", "class_counts"): ("counts.csv", "others.csv"),
    ("FocalLoss", "gamma"): (0.0, 2.0),
    ("FocalLoss", "alpha"): (0.25, 0.5),
    ("AsymmetricLoss", "gamma_positive"): (0.0, 1.0),
    ("AsymmetricLoss", "gamma_negative"): (0.0, 1.0),
    ("AsymmetricLoss", "margin"): (0.0, 0.05),
    ("PseudoHuberLoss", "delta"): (0.5, 1.0),
    ("PseudoHuberLoss", "of_sum"): (False, True),
    ("ConfidencePenaltyLoss", "class_accuracies"): ("accuracies.csv", "others.csv"),
    ("ConfidencePenaltyLoss", "penalty_weight"): (0.0, 0.1),
    ("CorrectedCrossEntropyLoss", "false_negative_rate"): (0.0, 0.3),
    ("CorrectedCrossEntropyLoss", "false_positive_rate"): (0.0, 0.1),
    ("ReweightedCrossEntropyLoss", "misprediction_weight"): (0.0, 1.0),
    ("CenterLoss", "center_weight"): (0.0, 0.1),
    ("HingeRankingLoss", "margin"): (1.0, 2.0),
    ("HingeRankingLoss", "negatives"): (1, 2),
    ("HingeRankingLoss", "positives"): (1, 2),
    ("SoftRankingLoss", "negatives"): (1, 2),
    ("SoftRankingLoss", "positives"): (1, 2),
}


def test_every_argument_changes_the_loss(tmp_path):
    text = "Index,Videos,AveragePrecision\n0,10,0.5\n1,20,0.5\n2,50,0.1\n"
    (tmp_path / "others.csv").write_text(text)
    outputs = {k: tf.constant(v, tf.float32) for k, v in _center_outputs(4).items()}
    labels = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0]])
    for (name, argument), values in TWO_VALUES.items():
        first, second = (
            _create(name, **{argument: value})(labels, outputs) for value in values
        )
        assert np.abs(first - second).max() > 1e-3, (name, argument)
    arguments = {
        (name, argument)
        for name, loss in losses.LOSSES.items()
        if inspect.isclass(loss)
        for argument in inspect.signature(loss).parameters
    }
    assert arguments == set(TWO_VALUES)


@pytest.mark.parametrize(
    "name",
    [n for n in NAMES if "CrossEntropy" in n]
    + ["FocalLoss", "AsymmetricLoss", "ConfidencePenaltyLoss"],
)
def test_a_soft_label_costs_the_mean_of_both(name):
    labels = np.array([[0.6, 0.8, 0.0], [0.3, 1.0, 0.2]])
    one, none = np.ones_like(labels), np.zeros_like(labels)
    logits = LOGITS[:, None, :] * np.ones((1, 3, 1))  # a row for each cell
    cell = np.eye(3)
    yes, no, mixed = (
        _loss(name, y[:, None, :] * np.ones((1, 3, 1)), logits, cell)
        for y in (one, none, labels)
    )
    np.testing.assert_allclose(mixed, labels * yes + (1 - labels) * no, rtol=1e-5)


def test_smoothed_labels_are_nearer_to_one_half():
    smoothed = 0.8 * LABELS + 0.1
    expected = -smoothed * np.log(P) - (1 - smoothed) * np.log(1 - P)
    loss = losses.create("CrossEntropyLoss", label_smoothing=0.2)
    value = loss(LABELS, {"logits": tf.constant(LOGITS, tf.float32)})
    np.testing.assert_allclose(value, expected.sum(-1), rtol=1e-6)


def test_an_asymmetric_loss_of_equal_powers_without_a_margin_is_a_focal_loss():
    outputs = {"logits": tf.constant(LOGITS, tf.float32)}
    args = {"gamma_positive": 2.0, "gamma_negative": 2.0, "margin": 0.0}
    value = losses.create("AsymmetricLoss", **args)(LABELS, outputs)
    focal = losses.create("FocalLoss", gamma=2.0, alpha=0.5)(LABELS, outputs)
    np.testing.assert_allclose(value, 2.0 * focal, rtol=1e-6)


def test_an_asymmetric_loss_draws_nothing_of_easy_negatives():
    logits = tf.constant([[-4.0, -2.0]])  # p of 0.02 and 0.12
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.create("AsymmetricLoss", gamma_negative=1.0)(
            np.zeros((1, 2)), {"logits": logits}
        )
    slope = tape.gradient(loss, logits)[0]
    assert slope[0] == 0 and slope[1] > 0.005


# Weighted positives


def test_a_positive_weight_of_one_is_the_cross_entropy():
    np.testing.assert_array_equal(
        _create("WeightedCrossEntropyLoss", positive_weight=1.0)(
            LABELS, {"logits": tf.constant(LOGITS, tf.float32)}
        ),
        _loss("CrossEntropyLoss", LABELS, LOGITS),
    )


def test_a_positive_of_the_counted_videos_weighs_one_on_average(tmp_path):
    counts = np.array([1, 40, 0, 900, 3])
    text = "".join(f"{c},{n},name\n" for c, n in enumerate(counts))
    (tmp_path / "own.csv").write_text("Index,TrainVideoCount,Name\n" + text)
    loss = losses.create("ClassBalancedCrossEntropyLoss", class_counts="own.csv")
    weights = loss.class_weights.astype("float64")
    np.testing.assert_allclose(counts @ weights / counts.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(weights * np.maximum(counts, 1), 236, rtol=1e-6)


def test_the_counts_are_read_once(tmp_path):
    loss = _create("ClassBalancedCrossEntropyLoss")
    (tmp_path / "counts.csv").unlink()
    outputs = {"logits": tf.constant(LOGITS, tf.float32)}
    expected = TWINS["ClassBalancedCrossEntropyLoss"].sum(-1)
    np.testing.assert_allclose(loss(LABELS, outputs), expected, rtol=1e-5)


def test_classes_after_the_last_that_was_counted_count_as_without_videos(tmp_path):
    (tmp_path / "counts.csv").write_text("Index,PositiveSegments,RatedSegments\n0,8,9")
    loss = _create("ClassBalancedCrossEntropyLoss")
    value = loss(np.eye(3), {"logits": tf.zeros([3, 3])})
    np.testing.assert_allclose(value, np.log(2) * np.array([3, 10, 10]), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label_id,label_name\n0,Game\n", "counts.csv has no columns Index and Videos"),
        ("", "counts.csv has no columns Index and Videos"),
        ("Index,Videos\n0,10\n1,many\n", "counts.csv, line 3: needs a class, once,"),
        ("Index,Videos\n0,10\n0,10\n", "counts.csv, line 3: needs a class, once,"),
        ("Index,Videos\n-1,10\n", "counts.csv, line 2: needs a class, once, and"),
        ("Index,Videos\n1\n", "counts.csv, line 2: needs a class, once, and the"),
    ],
)
def test_a_file_without_class_counts_is_named(tmp_path, text, message):
    (tmp_path / "counts.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        _create("ClassBalancedCrossEntropyLoss")


def test_class_figures_are_read_from_any_file_system(tmp_path):
    (tmp_path / "counts.csv").write_text("Index,Videos\n1,7\n", "utf-8-sig")
    for scheme in ("", "file://"):
        counts = read_class_counts(f"{scheme}{tmp_path}/counts.csv")
        assert counts.tolist() == [0, 7]
    with pytest.raises(UserError, match="class counts file:///no/file cannot be read"):
        read_class_counts("file:///no/file")
    with pytest.raises(UserError, match="knows no nowhere://"):
        read_class_counts("nowhere://counts.csv")


def test_a_file_that_cannot_be_read_or_counts_more_classes_is_named(tmp_path):
    with pytest.raises(UserError, match="class counts /no/file cannot be read: No su"):
        _create("ClassBalancedCrossEntropyLoss", class_counts="/no/file")
    (tmp_path / "counts.csv").write_bytes(b"Index,Videos\n\xff,1\n")
    with pytest.raises(UserError, match="class counts counts.csv cannot be read"):
        _create("ClassBalancedCrossEntropyLoss")
    (tmp_path / "counts.csv").write_text("Index,Videos\n3,1\n")
    with pytest.raises(UserError, match="has the class 3, but the classes are 0 to 2"):
        _loss("ClassBalancedCrossEntropyLoss", LABELS, LOGITS)


# Pseudo-Huber


def test_pseudo_huber_of_the_sum_takes_the_sum_first():
    loss = _create("PseudoHuberLoss", of_sum=True)
    weights = np.array([[1.0, 0.0, 1.0], [0.5, 1.0, 0.0]])
    value = loss(LABELS, {"logits": tf.constant(LOGITS, tf.float32)}, weights)
    total = (CROSS_ENTROPY * weights).sum(-1)
    expected = 0.49 * (np.sqrt(1 + (total / 0.7) ** 2) - 1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_pseudo_huber_keeps_small_losses_and_does_not_square_large_ones():
    value = [_loss("PseudoHuberLoss", [[0]], [[x]])[0] for x in (-12.0, 1e4)]
    small = np.log1p(np.exp(-12.0)) ** 2 / 2
    np.testing.assert_allclose(value, [small, 0.7 * 1e4], rtol=1e-4)


# Wrong and missing labels


def test_a_correction_without_errors_is_the_cross_entropy():
    loss = losses.create("CorrectedCrossEntropyLoss", false_negative_rate=0)
    value = loss(LABELS, {"logits": tf.constant(LOGITS, tf.float32)})
    np.testing.assert_allclose(value, CROSS_ENTROPY.sum(-1), rtol=1e-6)


def test_a_correction_learns_what_is_there_of_labels_that_are_mostly_missing():
    # 0.6 of the videos have a class of which 0.9 of the labels are missing, and 0.05 of
    # those that do not are labelled: 0.06 + 0.02 of the labels.
    p = np.array([[0.5], [0.6], [0.7]])
    logits, labels = tf.constant(np.log(p / (1 - p)), tf.float32), np.full((3, 1), 0.08)
    loss = losses.create(
        "CorrectedCrossEntropyLoss", false_negative_rate=0.9, false_positive_rate=0.05
    )
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, {"logits": logits})
    below, at, above = tape.gradient(value, logits).numpy().ravel()
    assert below < -1e-4 and abs(at) < 1e-7 and above > 1e-4


def test_rates_of_errors_may_be_of_each_class(tmp_path):
    (tmp_path / "m.csv").write_text("Index,FalseNegativeRate\n1,0.5\n")
    (tmp_path / "f.csv").write_text("Index,FalsePositiveRate\n0,0.2\n1,\n2,0.1\n")
    loss = losses.create(
        "CorrectedCrossEntropyLoss",
        false_negative_rate="m.csv",
        false_positive_rate="f.csv",
    )
    m, f = np.array([0, 0.5, 0]), np.array([0.2, 0, 0.1])
    observed = (1 - m) * P + f * (1 - P)
    expected = -np.log(np.where(LABELS, observed, 1 - observed)).sum(-1)
    for file in ("m.csv", "f.csv"):
        (tmp_path / file).unlink()  # they are read once
    value = loss(LABELS, {"logits": tf.constant(LOGITS, tf.float32)})
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "args", "text", "message"),
    [
        (
            "ConfidencePenaltyLoss",
            {"class_accuracies": "own.csv"},
            "Index,Videos\n0,3\n",
            "own.csv has no columns Index and AveragePrecision: take a file that has",
        ),
        (
            "ConfidencePenaltyLoss",
            {"class_accuracies": "own.csv"},
            "Index,AveragePrecision\n0,0.5\n1,1.5\n",
            "own.csv, line 3: needs a class, once, and a number from 0 to 1 in the",
        ),
        (
            "ConfidencePenaltyLoss",
            {"class_accuracies": "own.csv"},
            "Index,AveragePrecision\n0,\n",
            "own.csv gives no class an AveragePrecision: take the table of an",
        ),
        (
            "ConfidencePenaltyLoss",
            {"class_accuracies": "own.csv"},
            "Index,AveragePrecision\n3,1\n",
            "own.csv has the class 3, but the classes are 0 to 2",
        ),
        (
            "CorrectedCrossEntropyLoss",
            {"false_negative_rate": "own.csv"},
            "Index,FalseNegativeRate\n0\n",
            "own.csv, line 2: needs a class, once, and a number from 0 to 1 in the",
        ),
        (
            "CorrectedCrossEntropyLoss",
            {"false_negative_rate": "own.csv", "false_positive_rate": 0.5},
            "Index,FalseNegativeRate\n1,0.5\n",
            "of class 1 must add up to less than 1. Received: 1$",
        ),
        (
            "CorrectedCrossEntropyLoss",
            {"false_negative_rate": "/no/file"},
            "",
            "The class figures /no/file cannot be read: No such file",
        ),
    ],
)
def test_a_file_of_class_figures_that_cannot_be_used_is_named(
    tmp_path, name, args, text, message
):
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        losses.create(name, **args)(LABELS, {"logits": tf.zeros([2, 3])})


def test_a_video_weighs_more_for_its_labels_that_are_outranked():
    logits = np.array([[3.0, 1.0, 2.0, 0.0]] * 5)
    labels = np.array(
        [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0.5, 0.4, 0.9]]
    )
    share = np.array([1 / 2, 0, 0, 0, 1])
    plain = (np.log1p(np.exp(logits)) - labels * logits).sum(-1)
    loss = losses.create("ReweightedCrossEntropyLoss", misprediction_weight=3.0)
    x = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(labels, {"logits": x})
    np.testing.assert_allclose(value, (1 + 3 * share) * plain, rtol=1e-6)
    slope = (1 + 3 * share)[:, None] * (1 / (1 + np.exp(-logits)) - labels)
    np.testing.assert_allclose(tape.gradient(value, x), slope, rtol=1e-5)
    # Class 2, which outranks a label of the first video, was not rated.
    rated = np.array([[1, 1, 0, 1]] * 5, "uint8")
    value = loss(labels, {"logits": x}, rated)
    plain = losses.cross_entropy(labels, {"logits": x}, rated)
    np.testing.assert_allclose(value / plain, [1, 1, 1, 1, 4], rtol=1e-6)


# Centres


def _center_outputs(seed=0, videos=3, classes=4, size=5):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(size=(videos, classes)),
        "embedding": rng.normal(size=(videos, size)),
        "centers": rng.normal(size=(classes, size)),
    }


def _tensors(outputs):
    return {k: tf.constant(v, tf.float32) for k, v in outputs.items()}


CENTER_LABELS = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], "float64")


def _center_twin(labels, outputs, weight):
    logits, e, c = (outputs[k] for k in ("logits", "embedding", "centers"))
    loss = (np.log1p(np.exp(logits)) - labels * logits).sum(-1)
    squares = ((e[:, None] - c[None]) ** 2).sum(-1)
    count = labels.sum(-1)
    return loss + weight * (labels * squares).sum(-1) / np.where(count, count, 1)


def test_the_center_loss_is_the_mean_squared_distance_to_the_labels_centers():
    outputs = _center_outputs()
    value = losses.create("CenterLoss", center_weight=0.3)(
        tf.constant(CENTER_LABELS), _tensors(outputs)
    )
    expected = _center_twin(CENTER_LABELS, outputs, 0.3)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    default = losses.create("CenterLoss")(CENTER_LABELS, _tensors(outputs))
    expected = _center_twin(CENTER_LABELS, outputs, 0.001)
    np.testing.assert_allclose(default, expected, rtol=1e-5)


def test_soft_labels_weigh_their_centers_and_unrated_ones_do_not():
    outputs, labels = _center_outputs(), 0.3 * CENTER_LABELS
    labels[0, 0] = 0.9
    value = losses.create("CenterLoss", center_weight=0.3)(labels, _tensors(outputs))
    expected = _center_twin(labels, outputs, 0.3)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    rated = np.array([[1, 1, 0, 0]] * 3, "uint8")
    value = losses.create("CenterLoss", center_weight=0.3)(
        CENTER_LABELS, _tensors(outputs), rated
    )
    distance = ((outputs["embedding"][0] - outputs["centers"][0]) ** 2).sum()
    plain = losses.cross_entropy(CENTER_LABELS, _tensors(outputs), rated)
    np.testing.assert_allclose(value[0] - plain[0], 0.3 * distance, rtol=1e-5)


def test_the_gradient_draws_embedding_and_center_together():
    outputs = _tensors(_center_outputs())
    e, c = outputs["embedding"], outputs["centers"]
    with tf.GradientTape() as tape:
        tape.watch([e, c])
        loss = losses.create("CenterLoss", center_weight=1.0)(CENTER_LABELS, outputs)
    of_e, of_c = tape.gradient(loss, [e, c])
    np.testing.assert_allclose(of_e[2], 2 * (e[2] - c[1]), rtol=1e-5)
    np.testing.assert_allclose(of_c[1], 2 * (c[1] - e[2]), rtol=1e-5)
    np.testing.assert_array_equal(of_e[1], np.zeros(5))  # a video without labels


def test_centers_enter_once_beside_frames_and_auxiliary_logits():
    outputs = _center_outputs()
    frames = np.stack([outputs["logits"]] * 2, axis=1)
    loss = losses.create("CenterLoss", center_weight=0.3)
    given = {
        **outputs,
        "frame_logits": frames,
        "frame_weights": np.ones((3, 2)),
        "auxiliary_logits": [outputs["logits"]],
    }
    given = {
        k: tf.nest.map_structure(lambda x: tf.constant(x, tf.float32), v)
        for k, v in given.items()
    }
    value = losses.objective(loss, CENTER_LABELS, given, deep_supervision_weight=0.5)
    expected = _center_twin(CENTER_LABELS, outputs, 0.3)
    expected = expected + 0.5 * _center_twin(CENTER_LABELS, outputs, 0.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_model_without_centers_is_refused_in_training_only():
    outputs = _tensors(_center_outputs())
    del outputs["centers"]
    loss = losses.create("CenterLoss")
    np.testing.assert_allclose(
        loss(CENTER_LABELS, outputs), losses.cross_entropy(CENTER_LABELS, outputs)
    )
    with pytest.raises(UserError, match="CenterLoss needs a model that gives centers"):
        losses.objective(loss, CENTER_LABELS, outputs)


# Ranking


def _ranking_twin(labels, logits, rated, negatives):
    pairs = []
    extracted = []
    for y, x, r in zip(labels, logits, rated, strict=True):
        extracted += sorted(x[(y < 0.5) & r])[::-1][:negatives]
    for y, x, r in zip(labels, logits, rated, strict=True):
        pairs.append(
            [np.log1p(np.exp(n - p + 1)) for p in x[(y >= 0.5) & r] for n in extracted]
        )
    count = sum(map(len, pairs))
    return np.array([sum(p) for p in pairs]) * len(labels) / max(count, 1)


@pytest.mark.parametrize("negatives", [1, 3, 30])
@pytest.mark.parametrize("all_rated", [True, False])
def test_the_ranking_loss_is_the_mean_over_the_pairs_of_a_batch(negatives, all_rated):
    rng = np.random.default_rng(negatives)
    logits = rng.normal(size=(5, 8))
    labels = rng.integers(0, 2, size=(5, 8))
    labels[1], labels[2] = 0, 1  # nothing to rank in these videos alone
    rated = np.ones((5, 8), bool) if all_rated else rng.random((5, 8)) < 0.7
    loss = losses.create("SoftRankingLoss", negatives=negatives)
    value = loss(
        tf.constant(labels, tf.uint8),
        {"logits": tf.constant(logits, tf.float32)},
        None if all_rated else rated.astype("uint8"),
    )
    expected = _ranking_twin(labels, logits, rated, negatives)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_ranking_loss_of_parts_that_are_gathered_is_that_of_the_batch():
    rng = np.random.default_rng(3)
    logits = tf.constant(rng.normal(size=(5, 8)), tf.float32)
    labels = rng.integers(0, 2, size=(5, 8))
    loss, parts, sent = _create("SoftRankingLoss"), (slice(0, 2), slice(2, 5)), []
    for rows in parts:
        loss(
            labels[rows], {"logits": logits[rows]}, None, lambda x: sent.append(x) or x
        )

    @tf.function
    def part(labels, logits):
        def gather(rows):  # as collectives give them: of a size that no graph knows
            return tf.compat.v1.placeholder_with_default(tf.concat(sent, 0), [None] * 2)

        return losses.objective(loss, labels, {"logits": logits}, gather=gather)

    found = tf.concat([part(labels[rows], logits[rows]) for rows in parts], 0)
    np.testing.assert_allclose(found, loss(labels, {"logits": logits}), rtol=1e-6)


def test_of_many_positives_the_worst_are_ranked():
    logits = np.array([[3.0, -1.0, 2.0, 0.5]])
    value = losses.create("SoftRankingLoss", positives=1)(
        np.array([[1, 1, 1, 0]]), {"logits": tf.constant(logits, tf.float32)}
    )
    np.testing.assert_allclose(value, [np.log1p(np.exp(0.5 + 1 + 1))], rtol=1e-6)


@pytest.mark.parametrize("label", [0.0, 0.4, 0.5, 1.0])
def test_without_pairs_there_is_no_ranking_loss_and_no_gradient(label):
    logits = tf.constant(LOGITS, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.create("SoftRankingLoss")(
            np.full((2, 3), label), {"logits": logits}
        )
    np.testing.assert_array_equal(loss, [0, 0])
    np.testing.assert_array_equal(tape.gradient(loss, logits), np.zeros((2, 3)))


def test_a_nan_is_not_ranked_away():
    logits = tf.constant([[np.nan, 1.0, 2.0]])
    assert np.isnan(_create("SoftRankingLoss")(LABELS[:1], {"logits": logits})).all()


def test_the_ranking_loss_takes_no_frames():
    outputs = {"frame_logits": tf.zeros([2, 3, 3]), "frame_weights": tf.ones([2, 3])}
    with pytest.raises(UserError, match="SoftRankingLoss is of a batch of videos"):
        losses.objective(_create("SoftRankingLoss"), LABELS, outputs)


def _hinge_ranking_twin(labels, logits, rated, margin, negatives, positives):
    values = []
    for y, x, r in zip(labels, logits, rated, strict=True):
        p = sorted(x[(y >= 0.5) & r])[:positives]
        n = sorted(x[(y < 0.5) & r])[::-1][:negatives]
        pairs = [max(0, margin - a + b) for a in p for b in n]
        values.append(np.mean(pairs) if pairs else 0)
    return values


@pytest.mark.parametrize("all_rated", [True, False])
@pytest.mark.parametrize(
    "args",
    [
        {"margin": 1.0, "negatives": 30, "positives": 32},
        {"margin": 0.3, "negatives": 2, "positives": 1},
    ],
)
def test_the_hinge_ranking_loss_is_the_mean_over_the_pairs_of_a_video(args, all_rated):
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(6, 8)), rng.random((6, 8))
    labels[1], labels[2] = 0, 1  # videos without a pair
    rated = np.ones((6, 8), bool) if all_rated else rng.random((6, 8)) < 0.7
    x = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = losses.create("HingeRankingLoss", **args)(
            tf.constant(labels), {"logits": x}, None if all_rated else rated
        )
    expected = _hinge_ranking_twin(labels, logits, rated, **args)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.any(value > 0) and np.all(value[1:3] == 0)
    slope = tape.gradient(value, x).numpy()
    np.testing.assert_array_equal(slope[1:3], 0)
    np.testing.assert_allclose(slope.sum(-1), np.zeros(6), atol=1e-6)


# By name


def test_an_unknown_loss_lists_near_matches():
    with pytest.raises(UserError, match="Did you mean HingeLoss"):
        losses.create("HingLoss")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("PseudoHuberLoss", {"dleta": 1}, "no argument dleta. Did you mean delta"),
        ("HingeLoss", {"delta": 1}, "has no argument delta. Known: none"),
        ("CrossEntropyLoss", {"label_smoothing": 1}, "must be at least 0 and below 1"),
        ("FocalLoss", {"gamma": -1}, "`gamma` must not be negative"),
        ("FocalLoss", {"alpha": 1}, "`alpha` must lie between 0 and 1"),
        ("AsymmetricLoss", {"gamma_negative": -1}, "must not be negative. Received"),
        ("AsymmetricLoss", {"margin": 1}, "`margin` must be at least 0 and below 1"),
        ("ConfidencePenaltyLoss", {}, "needs class_accuracies: give"),
        (
            "ConfidencePenaltyLoss",
            {"class_accuracies": "accuracies.csv", "penalty_weight": -1},
            "`penalty_weight` must not be negative",
        ),
        ("CorrectedCrossEntropyLoss", {}, "needs false_negative_rate: give"),
        (
            "CorrectedCrossEntropyLoss",
            {"false_negative_rate": 0.6, "false_positive_rate": 0.4},
            "must add up to less than 1. Received: 1$",
        ),
        (
            "CorrectedCrossEntropyLoss",
            {"false_negative_rate": -0.1},
            "A rate must be at least 0 and below 1",
        ),
        (
            "ReweightedCrossEntropyLoss",
            {"misprediction_weight": -1},
            "`misprediction_weight` must not be negative",
        ),
        ("HingeRankingLoss", {"margin": 0}, "`margin` must be positive"),
        ("HingeRankingLoss", {"positives": 0}, "must be positive. Received: negatives"),
        ("PseudoHuberLoss", {"delta": 0}, "delta=0: `delta` must be positive"),
        ("PseudoHuberLoss", {"delta": "a"}, "delta=a must be a number"),
        ("CenterLoss", {"center_weight": -1}, "`center_weight` must not be negative"),
        ("SoftRankingLoss", {"negatives": 0}, "must be positive. Received: negatives"),
        (
            "WeightedCrossEntropyLoss",
            {},
            "needs positive_weight: give --label_loss_args=positive_weight=...",
        ),
        ("WeightedCrossEntropyLoss", {"positive_weight": 0}, "must be positive"),
        ("ClassBalancedCrossEntropyLoss", {}, "needs class_counts: give"),
    ],
)
def test_arguments_that_a_loss_does_not_have_or_take_are_refused(name, args, message):
    with pytest.raises(UserError, match=message):
        losses.create(name, **args)


# In a run


@pytest.fixture
def shards(tmp_path) -> list[str]:
    rng, records = np.random.default_rng(0), []
    for i in range(30):
        mean = {"mean_rgb": rng.normal(size=4).astype(np.float32)}
        records.append(encode_video_record(f"v{i}", mean, [i % 3, i % 2]))
    write_records(tmp_path / "data", records)
    return [
        f"--train_data_pattern={tmp_path}/data",
        f"--train_dir={tmp_path}/run",
        *("--model=LogisticModel", "--feature_sizes=4", "--feature_names=mean_rgb"),
        *("--num_classes=3", "--batch_size=10", "--max_steps=2"),
    ]


def test_a_run_remembers_its_loss_and_evaluation_takes_the_same(
    shards, tmp_path, monkeypatch, capsys
):
    loss = ["--label_loss=ClassBalancedCrossEntropyLoss", "--class_counts=counts.csv"]
    assert run("train", [*shards, *loss]) == 0
    config = runs.read_config(str(tmp_path / "run"))
    counts = f"{tmp_path}/counts.csv"
    assert config.training.label_loss_args == {"class_counts": counts}
    # A run that goes on takes over what is not given again.
    assert run("train", [*shards, loss[0], "--max_steps=3"]) == 0
    pattern = f"--eval_data_pattern={tmp_path}/data"
    directory = f"--train_dir={tmp_path}/run"
    assert run("eval", [directory, pattern, "--run_once"]) == 0
    measured = json.loads((tmp_path / "run/eval/step-00000003.json").read_text())
    trained = runs.load_run(str(tmp_path / "run"))
    score = evaluation.score_function(trained.model, config.training)
    batches = Reader([str(tmp_path / "data")], config.data, batch_size=30).batches()
    (batch, _), *_ = batches
    _, expected = score(batch)
    np.testing.assert_allclose(measured["loss"], np.mean(expected), rtol=1e-5)
    logits = trained.model(batch)["logits"]
    own = np.mean(losses.cross_entropy(batch["labels"], {"logits": logits}))
    assert abs(own - measured["loss"]) > 0.1
    # Also from another folder; without the file it says what it needs it for.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("eval", [directory, pattern, "--run_once"]) == 0
    os.remove(counts)
    assert run("eval", [directory, pattern, "--run_once"]) == 1
    (said,) = capsys.readouterr().err.splitlines()[-1:]
    assert f"class counts {counts} cannot be read" in said
    assert "Evaluation reports the run's loss, ClassBalancedCrossEntropyLoss" in said
    # What asks for no loss needs no file.
    output = f"--output_dir={tmp_path}/small"
    assert run("compress", [directory, output, pattern]) == 0


def test_arguments_of_the_loss_change_what_is_learned(shards, tmp_path):
    weights = []
    for i, args in enumerate(("delta=0.1", "delta=3.0", "of_sum=true")):
        flags = ["--label_loss=PseudoHuberLoss", f"--label_loss_args={args}"]
        flags += [f"--train_dir={tmp_path}/{i}", "--seed=1", "--optimizer=SGD"]
        assert run("train", [*shards, *flags]) == 0
        weights.append(runs.load_run(str(tmp_path / str(i))).model.get_weights()[0])
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(weights[i] - weights[j]).max() > 1e-5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--label_loss=CenterLoss"],
            "train: CenterLoss needs a model that gives centers in training: take "
            "another --label_loss, or look at the model's arguments.",
        ),
        (
            ["--label_loss=PseudoHuberLoss", "--label_loss_args=dleta=1"],
            "train: PseudoHuberLoss has no argument dleta. Did you mean delta? Known: "
            "delta, of_sum.",
        ),
        (
            ["--label_loss_args=class_counts=a", "--class_counts=b"],
            "train: --label_loss_args and --class_counts both set class_counts.",
        ),
        (
            ["--label_loss=ClassBalancedCrossEntropyLoss", "--class_counts=big.csv"],
            "train: {folder}/big.csv has the class 7, but the classes are 0 to 2: take "
            "a file of the same classes.",
        ),
    ],
)
def test_a_loss_that_cannot_be_used_is_one_line(
    shards, tmp_path, capsys, flags, message
):
    (tmp_path / "big.csv").write_text("Index,Videos\n7,1\n")
    assert run("train", [*shards, *flags]) == 1
    message = message.format(folder=tmp_path)
    assert capsys.readouterr().err.splitlines()[-1] == message
