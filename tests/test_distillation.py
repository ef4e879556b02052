"""Students of a trained run or of stored predictions, against values by hand."""

import dataclasses
import json
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from replicas import mirrored
from yt8m import losses, runs, whole_files
from yt8m.cli import main
from yt8m.config import (
    DataConfig,
    FrameSelection,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from yt8m.data.frames import select_frames
from yt8m.data.pipeline import Reader
from yt8m.data.predictions import PredictionsWriter
from yt8m.data.records import encode_frame_record, encode_video_record, write_records
from yt8m.data.soft_labels import SoftLabels, dense_soft_labels
from yt8m.errors import DataError, UserError
from yt8m.training import loop
from yt8m.training.distillation import (
    SoftCrossEntropy,
    Teacher,
    _frames_of,
    _refuse_other_embeddings,
    objective,
    soften,
)
from yt8m.training.loop import StepFunctions
from yt8m.training.mixup import mix
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

CLASSES, SIZE, BATCH, VIDEOS = 5, 6, 8, 21
DATA = DataConfig("video", {"mean_rgb": SIZE}, num_classes=CLASSES)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


# The loss


def test_probabilities_are_softened_as_their_logits_are():
    # 0.2 is the logit -2 log 2, 0.9 is 2 log 3.
    softened = soften(tf.constant([0, 0.2, 0.5, 0.9, 1]), 2.0)
    np.testing.assert_allclose(softened, [0, 1 / 3, 0.5, 0.75, 1], atol=1e-6)
    sharp = soften(tf.constant([0.5, 0.7, 1e-7]), 0.005)
    np.testing.assert_allclose(sharp, [0.5, 1, 0], atol=1e-6)
    same = tf.constant([0.1, 1e-9])
    np.testing.assert_array_equal(soften(same, 1.0), same)


def test_the_loss_at_a_temperature_is_the_value_by_hand():
    logits, soft = [[2 * np.log(3.0), 0.0]], [[1 / 3, 0.5]]
    # Half the logits are log 3, of probability 3/4, and 0, of 1/2.
    by_hand = -np.log(0.75) / 3 - 2 * np.log(0.25) / 3 + np.log(2)
    value = SoftCrossEntropy(2.0)(soft, {"logits": logits})
    np.testing.assert_allclose(value, [4 * by_hand], rtol=1e-6)
    weighted = SoftCrossEntropy(2.0)(soft, {"logits": logits}, [[0, 1]])
    np.testing.assert_allclose(weighted, [4 * np.log(2)], rtol=1e-6)


def made_outputs(rng):
    logits, auxiliary = rng.normal(size=(2, 3, CLASSES)).astype("float32")
    penalty = np.array([1.0, 2.0, 3.0], "float32")
    return {"logits": logits, "auxiliary_logits": [auxiliary], "penalty": penalty}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_hard_and_soft_labels_share_the_whole_objective(share):
    rng = np.random.default_rng(0)
    outputs, soft = made_outputs(rng), rng.random((3, CLASSES)).astype("float32")
    labels = (rng.random((3, CLASSES)) < 0.4).astype("float32")
    weights = (rng.random((3, CLASSES)) < 0.6).astype("float32")
    settings = TrainingConfig(
        *("unused", "", 8),
        distillation_weight=share,
        temperature=3.0,
        deep_supervision_weight=0.5,
    )
    batch = {"labels": labels, "soft_labels": soft, "label_weights": weights}
    value = objective(losses.hinge, batch, outputs, settings)

    def hard(x):
        return (weights * np.maximum(0, 1 - (2 * labels - 1) * x)).sum(1)

    def at_temperature(x):
        p = sigmoid(x / 3)
        return -9 * (weights * (soft * np.log(p) + (1 - soft) * np.log(1 - p))).sum(1)

    expected = outputs["penalty"].astype("float64")
    for weight, x in ((1, outputs["logits"]), (0.5, outputs["auxiliary_logits"][0])):
        expected += weight * ((1 - share) * hard(x) + share * at_temperature(x))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_at_the_ends_the_other_labels_are_not_even_looked_at():
    rng = np.random.default_rng(1)
    outputs, nothing = made_outputs(rng), np.full((3, CLASSES), np.nan, "float32")
    some = rng.random((3, CLASSES)).astype("float32")
    hard, soft = (
        objective(
            losses.cross_entropy,
            batch,
            outputs,
            TrainingConfig("unused", distillation_weight=share),
        )
        for share, batch in (
            (0.0, {"labels": some, "soft_labels": nothing}),
            (1.0, {"labels": nothing, "soft_labels": some}),
        )
    )
    # At the temperature 1 the two losses are one.
    np.testing.assert_array_equal(hard, soft)
    assert np.isfinite(hard).all()


# Soft labels in batches


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A file of videos `v000` .. with random features and labels."""
    rng = np.random.default_rng(0)
    path = str(tmp_path_factory.mktemp("videos") / "train.tfrecord")
    write_records(
        path,
        [
            encode_video_record(
                f"v{i:03d}",
                {"mean_rgb": rng.normal(size=SIZE)},
                np.flatnonzero(rng.random(CLASSES) < 0.3).tolist(),
            )
            for i in range(VIDEOS)
        ],
    )
    return path


def write_predictions(path, probabilities, kept=None, left_out=()):
    """Predictions of the videos of `shard`, in another order than theirs."""
    order = [
        i for i in np.random.default_rng(1).permutation(VIDEOS) if i not in left_out
    ]
    with PredictionsWriter(str(path), CLASSES, kept) as writer:
        writer.write([b"v%03d" % i for i in order], probabilities[order])
    return str(path)


@pytest.fixture(scope="module")
def probabilities():
    return np.random.default_rng(2).random((VIDEOS, CLASSES)).astype("float32")


def read(shard, soft_labels, **options):
    options = {"batch_size": BATCH, "soft_labels": soft_labels} | options
    return Reader([shard], DATA, **options)


@pytest.mark.parametrize("kept", [None, 2])
def test_stored_soft_labels_are_joined_by_id(shard, tmp_path, probabilities, kept):
    path = write_predictions(tmp_path / "teacher", probabilities, kept)
    soft_labels = SoftLabels(path, CLASSES)
    expected = probabilities.copy()
    if kept:
        expected[expected < np.sort(expected, axis=1)[:, -kept, None]] = 0
    seen = 0
    reader = read(shard, soft_labels, seed=5)
    for batch, host in reader.dataset():
        rows = [int(i[1:]) for i in host["id"].numpy()]
        soft = dense_soft_labels(batch, CLASSES)
        np.testing.assert_allclose(soft, expected[rows], atol=1e-3)
        compact = {"soft_label_classes", "soft_label_scores"} if kept else None
        assert set(batch) == {"mean_rgb", "labels"} | (compact or {"soft_labels"})
        seen += len(rows)
    assert seen == VIDEOS and soft_labels.missing == 0


@pytest.mark.parametrize("on_bad_record", ["fail", "skip"])
def test_a_video_that_the_teacher_lacks_is_named(
    shard, tmp_path, probabilities, on_bad_record
):
    path = write_predictions(tmp_path / "teacher", probabilities, left_out=[13])
    reader = read(shard, SoftLabels(path, CLASSES), on_bad_record=on_bad_record)
    said = rf"train.tfrecord, record 13 \(id v013\): --teacher={path} has no soft lab"
    with pytest.raises(DataError, match=said):
        list(reader.batches())


@pytest.mark.parametrize("kept", [None, 2])
def test_its_own_labels_may_stand_for_it_and_are_counted(
    shard, tmp_path, probabilities, kept, caplog
):
    left_out = [3, 13, 20]
    path = write_predictions(tmp_path / "teacher", probabilities, kept, left_out)
    soft_labels = SoftLabels(path, CLASSES, "hard_labels")
    for batch, host in read(shard, soft_labels).batches():
        soft = dense_soft_labels(batch, CLASSES).numpy()
        rows = np.array([int(i[1:]) for i in host["id"].numpy()])
        own = np.isin(rows, left_out)
        np.testing.assert_array_equal(soft[own], batch["labels"].numpy()[own])
        # Hard labels are so at any temperature.
        np.testing.assert_array_equal(soften(soft[own], 3.0), soft[own])
        assert np.all(soft[~own].max(axis=1) < 1)
    assert soft_labels.missing == 3
    soft_labels.report_missing()
    assert "3 of the examples that were read have no soft labels in" in caplog.text


def test_a_broken_record_is_left_out_beside_soft_labels(shard, tmp_path, probabilities):
    path = str(tmp_path / "broken.tfrecord")
    records = [encode_video_record("v001", {"mean_rgb": np.zeros(SIZE)}, [1])]
    records.append(encode_video_record("v002", {"mean_rgb": np.zeros(2)}, [1]))
    write_records(path, records)
    soft_labels = SoftLabels(
        write_predictions(tmp_path / "teacher", probabilities, left_out=[2]), CLASSES
    )
    reader = read(path, soft_labels, on_bad_record="skip")
    ((_, host),) = reader.batches()
    assert host["id"].numpy().tolist() == [b"v001"]
    assert [bad.number for bad in reader.bad_records] == [1]


def test_mixup_blends_soft_labels_as_the_others():
    rng = np.random.default_rng(3)
    soft = rng.random((4, CLASSES)).astype("float32")
    batch = {"labels": tf.eye(4, CLASSES), "soft_labels": tf.constant(soft)}
    batch["num_frames"] = tf.constant([2, 3, 1, 3])
    batch["rgb"] = tf.zeros((4, 3, 2), tf.uint8)
    mixed = mix(batch, 0.4, tf.constant([1, 2]))
    share = np.diag(mixed["labels"])[:, None]
    np.testing.assert_allclose(
        mixed["soft_labels"], share * soft + (1 - share) * np.roll(soft, -1, 0), 1e-5
    )


# The step


def write_run(directory, data=DATA, name="LogisticModel", seed=7, scale=30.0, **args):
    """A run with random weights, large enough to be sure of something."""
    config = RunConfig(ModelConfig(name, args), data, TrainingConfig("unused"))
    whole_files.make_directory(str(directory))
    runs.write_config(str(directory), config)
    keras.utils.set_random_seed(seed)
    model = runs.build_model(config.model, data)
    model.trainable_variables[0].assign(scale * model.trainable_variables[0])
    runs.Checkpoints(str(directory)).save({"model": model}, 3, 30, 10)
    return str(directory)


@pytest.fixture(scope="module")
def run_teacher(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "teacher")


def made_training(**values) -> TrainingConfig:
    values = {"optimizer": "SGD", "batch_size": BATCH, "clip_gradient_norm": 0} | values
    values = {"lr_schedule": "constant", "base_learning_rate": 0.1} | values
    return TrainingConfig("unused", **values)


def make_steps(settings, stored=False, strategy=None, data=DATA, model=None):
    model = model or ModelConfig("LogisticModel", {"l2_penalty": 0.1})
    config = RunConfig(model, data, settings)
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        keras.utils.set_random_seed(1)
        built = runs.build_model(config.model, data)
        schedule = ExamplesSchedule(settings, total_examples=1000)
        optimizer = create_optimizer(settings, schedule)
        optimizer.build(built.trainable_variables)
        teacher = Teacher(config, stored) if settings.teacher else None
    return StepFunctions(config, built, optimizer, strategy, teacher=teacher)


def weights_after(steps, reader, count, compiled=False):
    """After some steps, which take less time than their compilation."""
    iterator = steps.iterate(reader, 0)
    tf.config.run_functions_eagerly(not compiled)
    try:
        outcome = steps.run(iterator, count)
    finally:
        tf.config.run_functions_eagerly(False)
    return outcome, [v.numpy() for v in steps.model.variables]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_with_a_teacher_is_the_formula(shard, run_teacher):
    settings = made_training(
        teacher=run_teacher, distillation_weight=0.7, temperature=2.0
    )
    steps = make_steps(settings)
    kernel, bias = (v.numpy().astype(np.float64) for v in steps.model.variables)
    outcome, after = weights_after(steps, read(shard, None), 1)

    batch = next(iter(read(shard, None).dataset()))[0]
    x, labels = batch["mean_rgb"].numpy(), batch["labels"].numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    theirs = [v.numpy() for v in runs.load_run(run_teacher).model.variables]
    q = sigmoid((x @ theirs[0] + theirs[1]) / 2)
    assert np.ptp(q) > 0.5
    p, soft = sigmoid(x @ kernel + bias), sigmoid((x @ kernel + bias) / 2)
    hard_loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1)
    soft_loss = -4 * (q * np.log(soft) + (1 - q) * np.log(1 - soft)).sum(1)
    loss = (0.3 * hard_loss + 0.7 * soft_loss).mean()
    assert outcome.loss == pytest.approx(loss, rel=1e-5)
    # The derivative of T^2 CE(q, x / T) is T (p - q).
    error = (0.3 * (p - labels) + 0.7 * 2 * (soft - q)) / BATCH
    np.testing.assert_allclose(
        after[0], kernel - 0.1 * (x.T @ error + 0.1 * kernel), atol=1e-6
    )
    np.testing.assert_allclose(after[1], bias - 0.1 * error.sum(0), atol=1e-6)
    np.testing.assert_array_equal(outcome.labels, labels)


def test_at_weight_0_no_bit_changes_and_at_1_no_label_matters(
    shard, run_teacher, tmp_path, probabilities
):
    options = {"mixup": 0.4}
    stored = SoftLabels(write_predictions(tmp_path / "t", probabilities), CLASSES)
    zero = made_training(teacher=run_teacher, distillation_weight=0.0, **options)
    alone, online, offline = (
        weights_after(make_steps(settings, bool(given)), read(shard, given), 2, True)[1]
        for settings, given in (
            (made_training(**options), None),
            (zero, None),
            (zero, stored),
        )
    )
    assert_same(alone, online)
    assert_same(alone, offline)

    other = str(tmp_path / "unlabelled.tfrecord")
    batches = list(read(shard, None).batches())
    write_records(
        other,
        [
            encode_video_record(video_id, {"mean_rgb": x}, [])
            for batch, host in batches
            for video_id, x in zip(
                host["id"].numpy(), batch["mean_rgb"].numpy(), strict=True
            )
        ],
    )
    one = made_training(teacher=run_teacher, distillation_weight=1.0, **options)
    ours, theirs = (
        weights_after(make_steps(one), read(path, None), 2)[1]
        for path in (shard, other)
    )
    assert_same(ours, theirs)
    assert np.abs(ours[0] - alone[0]).max() > 1e-3


def test_a_run_and_its_stored_predictions_teach_alike(shard, run_teacher, tmp_path):
    model = runs.load_run(run_teacher).model
    said = [
        sigmoid(model({"mean_rgb": batch["mean_rgb"]})["logits"])
        for batch, _ in read(shard, None).dataset()
    ]
    path = write_predictions(tmp_path / "teacher", np.concatenate(said).astype("f"))
    settings = made_training(
        teacher=run_teacher, distillation_weight=1.0, temperature=2.0
    )
    _, online = weights_after(make_steps(settings), read(shard, None), 3)
    reader = read(shard, SoftLabels(path, CLASSES))
    _, offline = weights_after(make_steps(settings, True), reader, 3)
    np.testing.assert_allclose(online[0], offline[0], atol=1e-3)
    np.testing.assert_allclose(online[1], offline[1], atol=1e-3)


@pytest.mark.parametrize("stored", [False, True], ids=["online", "offline"])
def test_replicas_parts_and_compiled_steps_are_taught_as_one_device_is(
    shard, run_teacher, tmp_path, probabilities, stored
):
    """Also in a last batch of 5, which two replicas cannot share evenly."""
    soft_labels = None
    if stored:
        path = write_predictions(tmp_path / "teacher", probabilities, 3, [4, 19])
        soft_labels = SoftLabels(path, CLASSES, "hard_labels")
    options = {"teacher": run_teacher, "temperature": 2.0, "distillation_weight": 0.6}
    strategy = mirrored(2)

    def after(strategy=None, **more):
        steps = make_steps(made_training(**options, **more), stored, strategy)
        return weights_after(steps, read(shard, soft_labels), 3, compiled=True)

    outcome, one = after()
    others = [after(strategy)]
    if not stored:
        others.append(after(gradient_accumulation_steps=2, jit_compile=True))
    for other, weights in others:
        assert other.loss == pytest.approx(outcome.loss, rel=1e-5)
        for a, b in zip(one, weights, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_the_student_of_a_perfect_teacher_approaches_it(shard, run_teacher):
    """On shards whose own labels say something else."""
    settings = made_training(
        teacher=run_teacher,
        distillation_weight=1.0,
        optimizer="Adam",
        base_learning_rate=0.3,
    )
    plain = ModelConfig("LogisticModel", {"l2_penalty": 0.0})
    steps = make_steps(settings, model=plain)
    reader = read(shard, None, num_epochs=None)
    taught = runs.load_run(run_teacher).model
    batch = next(iter(read(shard, None, batch_size=VIDEOS).dataset()))[0]

    def distance():
        inputs = {"mean_rgb": batch["mean_rgb"]}
        theirs, ours = (sigmoid(m(inputs)["logits"]) for m in (taught, steps.model))
        return np.abs(theirs - ours).max()

    assert distance() > 0.4
    steps.run(steps.iterate(reader, 0), 400)
    assert distance() < 0.05


# Frames


def frame_data(features=("rgb",), **values):
    return DataConfig("frame", {n: 4 for n in features}, CLASSES, **values)


@pytest.mark.parametrize(
    "frames",
    [
        FrameSelection(),
        FrameSelection(3),
        FrameSelection(3, skip_first=2),
        FrameSelection(3, skip_first=1, evaluation="all"),
    ],
)
@pytest.mark.parametrize("segments", [False, True])
def test_a_teacher_of_frames_sees_what_it_is_evaluated_on(tmp_path, frames, segments):
    own = frame_data(max_frames=6, frames=frames)
    path = write_run(tmp_path / "teacher", own, "FrameLevelLogisticModel")
    student = frame_data(max_frames=9, segments=segments)
    settings = made_training(teacher=path, temperature=2.0)
    config = RunConfig(ModelConfig("FrameLevelLogisticModel"), student, settings)
    rng = np.random.default_rng(0)
    longest = 5 if segments else 9
    batch = {
        "rgb": tf.constant(rng.integers(0, 256, (5, longest, 4)), tf.uint8),
        "num_frames": tf.constant([0, 1, 4, 5, longest]),
        "labels": tf.zeros((5, CLASSES), tf.uint8),
    }
    soft = Teacher(config, stored=False).teach(batch)["soft_labels"]

    indices, taken = select_frames(tf.minimum(batch["num_frames"], 6), frames, None)
    inputs = {"rgb": tf.gather(batch["rgb"], indices, batch_dims=1)}
    model = runs.load_run(path).model
    logits = model({**inputs, "num_frames": taken})["logits"]
    np.testing.assert_allclose(soft, sigmoid(logits / 2), atol=1e-6)
    assert np.ptp(soft) > 0.2


def test_a_student_that_draws_as_its_teacher_shows_it_what_it_drew(tmp_path):
    own = frame_data(max_frames=9, frames=FrameSelection(3))
    path = write_run(tmp_path / "teacher", own, "FrameLevelLogisticModel")
    config = RunConfig(
        ModelConfig("DbofModel"),
        dataclasses.replace(own, features={"rgb": 4, "audio": 2}),
        made_training(teacher=path),
    )
    rng = np.random.default_rng(0)
    inputs = {
        "rgb": tf.constant(rng.integers(0, 256, (2, 3, 4)), tf.uint8),
        "num_frames": tf.constant([3, 2]),
    }
    batch = {
        **inputs,
        "audio": tf.zeros((2, 3, 2), tf.uint8),
        "labels": tf.zeros((2, CLASSES)),
    }
    soft = Teacher(config, stored=False).teach(batch)["soft_labels"]
    logits = runs.load_run(path).model(inputs)["logits"]
    np.testing.assert_allclose(soft, sigmoid(logits), atol=1e-6)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (DATA, "reads frame-level records, this run video-level ones"),
        (frame_data(["rgb", "audio"], max_frames=9), None),
        (frame_data(["audio"]), r"reads rgb \(4\), which this run does not: add it to"),
        (DataConfig("frame", {"rgb": 5}, CLASSES), r"reads rgb \(4\)"),
        (DataConfig("frame", {"rgb": 4}, 9), "has 5 classes, but --num_classes is 9"),
        (
            frame_data(float_features=["rgb"]),
            "was trained on rgb as bytes, but the training shards hold floats",
        ),
        (
            frame_data(max_frames=8),
            "reads all of the first 9 frames, this run all of the first 8 frames",
        ),
        (
            frame_data(max_frames=9, frames=FrameSelection(3, skip_first=1)),
            r"this run 3 \(random\) of the first 9 frames after 1: give the teacher's",
        ),
        (
            frame_data(max_frames=9, frames=FrameSelection(scene_threshold=0.3)),
            r"this run all of the first 9 frames of different scenes \(--scene_thresh",
        ),
    ],
)
def test_a_teacher_that_reads_what_the_student_does_not_is_refused(
    tmp_path, student, said
):
    own = frame_data(max_frames=9)
    path = write_run(tmp_path / "teacher", own, "FrameLevelLogisticModel")
    config = RunConfig(ModelConfig("unused"), student, made_training(teacher=path))
    if said is None:
        Teacher(config, stored=False)
        return
    with pytest.raises(UserError, match=f"--teacher={path} .*{said}"):
        Teacher(config, stored=False)


def test_a_teacher_of_scenes_or_other_cuts_is_refused(tmp_path):
    scenes = frame_data(frames=FrameSelection(scene_threshold=0.3))
    cuts = [frame_data(segments=True, segment_context_frames=n) for n in (0, 3)]
    for own, student in ((scenes, frame_data()), cuts, cuts[::-1]):
        path = str(tmp_path / "teacher")
        assert _frames_of(own, own, path) is None
        with pytest.raises(UserError, match=f"--teacher={path} reads "):
            _frames_of(own, student, path)


def test_a_teacher_that_sees_the_whole_video_is_refused(tmp_path):
    data, training = frame_data(segments=True), made_training(teacher="t")
    teacher = RunConfig(ModelConfig("A", {"video_embedding_size": 7}), data, training)
    student = dataclasses.replace(teacher, model=ModelConfig("B"))
    with pytest.raises(UserError, match="reads embeddings of whole videos, of 7"):
        _refuse_other_embeddings(teacher, student, "t")
    _refuse_other_embeddings(student, teacher, "t")


def test_ratings_of_segments_weigh_what_a_teacher_says_too(tmp_path):
    own = frame_data(max_frames=9)
    path = write_run(tmp_path / "teacher", own, "FrameLevelLogisticModel")
    settings = made_training(teacher=path, distillation_weight=1.0)
    student = RunConfig(
        ModelConfig("unused"), frame_data(segments=True, max_frames=9), settings
    )
    batch = {
        "rgb": tf.fill((2, 5, 4), tf.constant(200, tf.uint8)),
        "num_frames": tf.constant([5, 5]),
        "labels": tf.zeros((2, CLASSES)),
        "label_weights": tf.constant([[1, 0, 0, 0, 0], [0] * 5], tf.uint8),
    }
    taught = Teacher(student, stored=False).teach(batch)
    logits = tf.constant(np.full((2, CLASSES), 0.3, "f"))
    value = objective(losses.cross_entropy, taught, {"logits": logits}, settings)
    q, p = float(taught["soft_labels"][0, 0]), sigmoid(0.3)
    expected = -q * np.log(p) - (1 - q) * np.log(1 - p)
    np.testing.assert_allclose(value, [expected, 0], rtol=1e-5)


# Mixtures that teach their branches


def test_branches_of_a_mixture_learn_by_the_weights_of_both_losses(tmp_path):
    """By --deep_supervision_weight and the mixture's own distillation_weight."""
    data, rng = frame_data(max_frames=4), np.random.default_rng(0)
    path = str(tmp_path / "train.tfrecord")
    frames = rng.integers(0, 256, (BATCH, 4, 4)).astype("uint8")
    write_records(
        path,
        [
            encode_frame_record(f"{i}", {"rgb": x}, [i % CLASSES])
            for i, x in enumerate(frames)
        ],
    )
    branch = {"clusters": 2, "hidden_size": 3, "head": "logistic", "l2_penalty": 0.0}
    args = {"branch": "NetVLADModel", "branches": 2, "branch_args": branch}
    mixture = {"temperature": 2.0, "distillation_weight": 3.0}
    model = ModelConfig("MixtureNeXtVLADModel", args | mixture)
    settings = made_training(deep_supervision_weight=2.0)
    reader = Reader([path], data, batch_size=BATCH)
    batch = next(iter(reader.dataset()))[0]
    steps = make_steps(settings, data=data, model=model)
    inputs = {name: batch[name] for name in ("rgb", "num_frames")}
    outputs = steps.model(inputs, training=True)

    def cross_entropy(x):
        labels = batch["labels"].numpy()
        return -(labels * np.log(sigmoid(x)) + (1 - labels) * np.log(sigmoid(-x)))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)

    logits = outputs["logits"].numpy().astype("float64")
    branches = [x.numpy().astype("float64") for x in outputs["auxiliary_logits"]]
    mixed = softmax(logits / 2)
    loss = cross_entropy(logits).sum(-1)
    for x in branches:
        loss += 2.0 / 2 * cross_entropy(x).sum(-1)
        loss += 3.0 * 4 * (mixed * np.log(mixed / softmax(x / 2))).sum(-1)
    before = [v.numpy() for v in steps.model.trainable_variables]
    outcome, _ = weights_after(steps, reader, 1)
    assert outcome.loss == pytest.approx(loss.mean(), rel=1e-4)
    for old, new in zip(before, steps.model.trainable_variables, strict=True):
        assert np.abs(old - new.numpy()).max() > 0, new.path


# Commands


def command(*arguments) -> int:
    return main.run(arguments[0], [str(a) for a in arguments[1:]])


def train(shard, directory, *more) -> int:
    return command(
        *("train", "--model=MoeModel", f"--train_data_pattern={shard}"),
        *(f"--train_dir={directory}", f"--feature_sizes={SIZE}", "--num_epochs=0"),
        *("--feature_names=mean_rgb", f"--num_classes={CLASSES}", "--batch_size=8"),
        *more,
    )


def weights_of(directory):
    return [v.numpy() for v in runs.load_run(str(directory)).model.variables]


@pytest.fixture(scope="module", params=["online", "offline"])
def teacher(request, run_teacher, tmp_path_factory, probabilities):
    if request.param == "online":
        return run_teacher
    folder = tmp_path_factory.mktemp("predictions")
    return write_predictions(folder / "teacher", probabilities, kept=3)


def test_a_taught_run_goes_on_bit_for_bit(shard, teacher, tmp_path):
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    flags = [f"--teacher={copy}", "--temperature=2", "--distillation_weight=0.8"]
    flags += ["--mixup=0.3"]
    assert train(shard, tmp_path / "whole", *flags, "--max_steps=6") == 0
    assert train(shard, tmp_path / "parts", *flags, "--max_steps=3") == 0
    if runs.is_run(teacher):  # whose latest checkpoint is another now
        run = runs.load_run(teacher)
        checkpoints = runs.Checkpoints(str(copy))
        run.model.trainable_variables[0].assign_add(
            tf.ones_like(run.model.trainable_variables[0])
        )
        checkpoints.save({"model": run.model}, 4, 40, 10)
        assert checkpoints.latest().step == 4
    assert train(shard, tmp_path / "parts", *flags, "--max_steps=6") == 0
    assert_same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))

    config = runs.read_config(str(tmp_path / "whole")).training
    assert (config.teacher, config.temperature) == (str(copy), 2.0)
    assert config.distillation_weight == 0.8
    assert config.teacher_checkpoint == ("3" if runs.is_run(teacher) else "latest")
    # Nothing of the teacher is saved: the student and its optimiser alone are.
    info = runs.Checkpoints(str(tmp_path / "whole")).latest()
    saved = tf.train.list_variables(f"{info.path}/state")
    assert {n.partition("/")[0] for n, _ in saved} == {
        *("model", "optimizer", "_CHECKPOINTABLE_OBJECT_GRAPH")
    }


def test_a_teacher_that_has_vanished_may_have_moved(
    shard, run_teacher, tmp_path, capsys
):
    place, moved, run = (tmp_path / name for name in ("teacher", "moved", "run"))
    shutil.copytree(run_teacher, place)
    assert train(shard, run, f"--teacher={place}", "--max_steps=1") == 0
    place.rename(moved)
    capsys.readouterr()
    assert train(shard, run, "--max_steps=2") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--teacher={place} is neither a run directory nor a folder" in error
    assert "(any more); give the place where the teacher is" in error
    assert train(shard, run, f"--teacher={moved}", "--max_steps=2") == 0
    assert runs.read_config(str(run)).training.teacher == str(moved)
    for flag in ("--teacher=", "--temperature=2", "--distillation_weight=0"):
        assert train(shard, run, flag, "--max_steps=3") == 1
        assert "The run was started with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--temperature=2"], "--temperature is of a teacher: give --teacher"),
        (["--distillation_weight=0.5"], "--distillation_weight is of a teacher"),
        (["--on_missing_soft_labels=fail"], "--on_missing_soft_labels is of a teacher"),
        (["--teacher=nowhere"], "--teacher=nowhere is neither a run directory nor"),
        (["--teacher=RUN", "--temperature=0"], "--temperature must be positive"),
        (["--teacher=RUN", "--distillation_weight=2"], "distillation_weight"),
        (["--teacher=OWN"], "is the run itself"),
        (["--teacher=RUN", "--num_classes=7"], "has 5 classes, but --num_classes is 7"),
        (["--teacher=SOFT", "--num_classes=7"], "of 5 classes, but --num_classes is 7"),
        (["--teacher=RUN", "--teacher_checkpoint=9"], "has no checkpoint '9'"),
        (["--teacher=SOFT", "--teacher_checkpoint=9"], "--teacher_checkpoint is of a"),
        (
            ["--teacher=RUN", "--on_missing_soft_labels=hard_labels"],
            "--on_missing_soft_labels is of stored predictions",
        ),
        (
            [
                *("--teacher=SOFT", "--model=FrameLevelLogisticModel"),
                *("--segment_labels", "--feature_names=rgb"),
            ],
            "has predictions of whole videos: give the run that made them",
        ),
        (["--teacher=FEW"], "(id v004): --teacher="),
    ],
)
def test_what_a_teacher_cannot_do_is_refused_in_one_line(
    shard, run_teacher, tmp_path, probabilities, flags, said, capsys
):
    own = tmp_path / "run"
    places = {"RUN": run_teacher, "OWN": own}
    for name, left_out in (("SOFT", ()), ("FEW", (4,))):
        places[name] = tmp_path / name
        write_predictions(places[name], probabilities, 3, left_out)
    for name, place in places.items():
        flags = [f.replace(f"--teacher={name}", f"--teacher={place}") for f in flags]
    assert train(shard, own, "--max_steps=3", *flags) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error


def test_videos_without_soft_labels_are_reported(
    shard, tmp_path, probabilities, capsys
):
    path = write_predictions(tmp_path / "teacher", probabilities, 3, [4, 7])
    flags = [f"--teacher={path}", "--on_missing_soft_labels=hard_labels"]
    assert train(shard, tmp_path / "run", *flags, "--num_epochs=1") == 0
    said = f"2 of the examples that were read have no soft labels in {path}"
    assert said in capsys.readouterr().err
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["training"]["on_missing_soft_labels"] == "hard_labels"


def test_a_loss_that_nothing_is_learned_by_and_a_blend_with_itself_are_named(
    shard, run_teacher, tmp_path, capsys
):
    def said(*flags) -> str:
        train(shard, tmp_path / "run", "--dry_run", "--max_steps=1", *flags)
        return capsys.readouterr().err

    taught, loss = f"--teacher={run_teacher}", "--label_loss=HingeLoss"
    warning = "--label_loss=HingeLoss is of evaluation only"
    assert warning in said(taught, loss, "--distillation_weight=1")
    assert warning not in said(taught, loss, "--distillation_weight=0.9")
    assert warning not in said(loss)
    assert "is of evaluation only" not in said(taught, "--distillation_weight=1")
    for strategy in ("one_device", "mirrored"):
        flags = ["--mixup=0.3", "--batch_size=1", f"--strategy={strategy}"]
        assert "--batch_size=2 at least, not 1" in said(*flags)


def test_a_dry_run_counts_the_teachers_weights(
    shard, run_teacher, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "_megabytes", lambda count: f"{count} bytes")
    held = []
    for flags in ([], [f"--teacher={run_teacher}"]):
        assert train(shard, tmp_path / "run", "--dry_run", "--max_steps=2", *flags) == 0
        said = capsys.readouterr().out
        held.append(int(re.search(r"replica: (\d+) bytes of weights", said)[1]))
    assert held[1] - held[0] == 4 * (SIZE * CLASSES + CLASSES)
    assert not (tmp_path / "run").exists()
