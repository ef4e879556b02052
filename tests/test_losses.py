"""Losses against hand-computed numbers and float64 twins."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m import evaluation, losses, runs
from yt8m.cli.main import run
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_video_record, write_records
from yt8m.errors import UserError

COUNTS = "Index,Videos\n0,10\n2,50\n"
# What a loss needs to be created.
ARGS = {
    "WeightedCrossEntropyLoss": {"positive_weight": 3.0},
    "ClassBalancedCrossEntropyLoss": {"class_counts": "counts.csv"},
    "PseudoHuberLoss": {"delta": 0.7},
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
    "CenterLoss": CROSS_ENTROPY,  # of a model that gives no centres
}
NAMES = sorted(losses.LOSSES)


@pytest.fixture(autouse=True)
def counts_file(tmp_path, monkeypatch):
    (tmp_path / "counts.csv").write_text(COUNTS)
    monkeypatch.chdir(tmp_path)


def _create(name, **args):
    return losses.create(name, **{**ARGS.get(name, {}), **args})


def _loss(name, labels, logits, weights=None):
    outputs = {"logits": tf.constant(logits, tf.float32)}
    return _create(name)(tf.constant(labels), outputs, weights)


def test_every_loss_has_a_twin():
    assert set(TWINS) == set(NAMES) - {"SoftRankingLoss"}  # which has its own, below


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


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_give_finite_losses_and_gradients(name):
    logits = tf.constant([[100.0, -100.0, 0.0, 1e4, -1e4]])
    for labels in ([[1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0]], [[0.3, 0.3, 0.3, 0.9, 0.9]]):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = _create(name)(tf.constant(labels), {"logits": logits})
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


def test_a_file_that_cannot_be_read_or_counts_more_classes_is_named(tmp_path):
    with pytest.raises(UserError, match="class counts /no/file cannot be read: No su"):
        _create("ClassBalancedCrossEntropyLoss", class_counts="/no/file")
    (tmp_path / "counts.csv").write_bytes(b"Index,Videos\n\xff,1\n")
    with pytest.raises(UserError, match="class counts counts.csv cannot be read"):
        _create("ClassBalancedCrossEntropyLoss")
    (tmp_path / "counts.csv").write_text("Index,Videos\n3,1\n")
    with pytest.raises(UserError, match="counts class 3, but the classes are 0 to 2"):
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


# By name


def test_an_unknown_loss_lists_near_matches():
    with pytest.raises(UserError, match="Did you mean HingeLoss"):
        losses.create("HingLoss")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("PseudoHuberLoss", {"dleta": 1}, "no argument dleta. Did you mean delta"),
        ("CrossEntropyLoss", {"delta": 1}, "has no argument delta. Known: none"),
        ("PseudoHuberLoss", {"delta": 0}, "delta=0: `delta` must be positive"),
        ("PseudoHuberLoss", {"delta": "a"}, "cannot be computed with delta='a'"),
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


def test_a_run_remembers_its_loss_and_evaluation_takes_the_same(shards, tmp_path):
    loss = ["--label_loss=ClassBalancedCrossEntropyLoss", "--class_counts=counts.csv"]
    assert run("train", [*shards, *loss]) == 0
    config = runs.read_config(str(tmp_path / "run"))
    assert config.training.label_loss_args == {"class_counts": "counts.csv"}
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
            "train: big.csv counts class 7, but the classes are 0 to 2: take a file of "
            "the same classes.",
        ),
    ],
)
def test_a_loss_that_cannot_be_used_is_one_line(
    shards, tmp_path, capsys, flags, message
):
    (tmp_path / "big.csv").write_text("Index,Videos\n7,1\n")
    assert run("train", [*shards, *flags]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == message
