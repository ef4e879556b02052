"""Every registered model, through the contract that the rest relies on."""

import json
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import frame_level_models  # noqa: F401  (registers)
import video_level_models  # noqa: F401  (registers)
from model_cases import (
    BATCH_NORM_STACKS,
    EVERY_MODEL,
    GIVEN,
    HEAD_ARGS,
    NUM_CLASSES,
    OPTIONS,
    SEES_ORDER,
    SMALL,
)
from yt8m import losses, registry
from yt8m.config import FrameSelection
from yt8m.errors import UserError
from yt8m.layers.classifiers import HEADS
from yt8m.layers.heads import LogisticHead, MoEHead
from yt8m.layers.preprocessing import dequantize
from yt8m.metrics import gap
from yt8m.model import FrameLevelModel, PoolingModel, VideoLevelModel

C = NUM_CLASSES
LENGTHS = [0, 1, 3, 6]
T = 6
FEATURES = {
    "frame": {"rgb": 16, "audio": 4},
    "video": {"mean_rgb": 16, "mean_audio": 4},
}
NAMES = registry.names()
FRAME_NAMES = registry.names("frame")
POOLING_NAMES = [n for n in NAMES if issubclass(registry.get(n).cls, PoolingModel)]


def make_model(name, **args):
    """A small model, with the same random weights at every call."""
    keras.utils.set_random_seed(1)
    args = {"num_classes": C, **SMALL.get(name, {}), **args}
    args.setdefault("features", FEATURES[registry.get(name).level])
    return registry.create(name, **args).ensure_built()


def make_batch(name, seed=0, length=T, garbage=0, floats=False, features=None):
    """Four videos; frames have lengths 0, 1, 3 and T, and garbage as padding."""
    rng = np.random.default_rng(seed)
    level = registry.get(name).level
    features = features or FEATURES[level]
    if level == "video":
        return {
            k: tf.constant(rng.normal(size=(len(LENGTHS), size)), tf.float32)
            for k, size in features.items()
        }
    mask = np.arange(length) < np.array(LENGTHS)[:, None]
    batch = {"num_frames": tf.constant(LENGTHS)}
    for k, size in features.items():
        x = np.full((len(LENGTHS), length, size), garbage, "float32")
        x[:, :T] = rng.integers(0, 256, size=(len(LENGTHS), T, size))
        x = np.where(mask[..., None], x, garbage)
        batch[k] = tf.constant(x / 255 if floats else x.astype("uint8"), None)
        if floats:
            batch[k] = tf.cast(batch[k], tf.float32)
    return batch


def sizes_unknown(batch):
    """The signature of a graph that knows the sizes of features alone."""

    def spec(x):
        known = [x.shape[-1]] if x.ndim > 1 else []
        return tf.TensorSpec([None] * (x.ndim - len(known)) + known, x.dtype)

    return {name: spec(x) for name, x in batch.items()}


def _step(model, batch, scale=1.0):
    """Outputs, gradients and state after one training step's forward and backward.

    The gradients are computed of the loss times `scale`, and divided by it.
    """
    labels = np.random.default_rng(2).integers(0, 2, size=(len(LENGTHS), C))
    with tf.GradientTape() as tape:
        outputs = model(batch, training=True)
        loss = scale * tf.reduce_sum(losses.cross_entropy(labels, outputs))
    gradients = tape.gradient(loss, model.trainable_weights)
    gradients = [g if g is None else g / scale for g in gradients]
    return outputs, gradients, [w.numpy() for w in model.non_trainable_weights]


def perturb(model, seed=3):
    """Moves every weight away from its initial value."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign_add(rng.uniform(0.0, 0.3, size=weight.shape))


def _is_cancelled(path):
    """Whether a weight is a shift that the next norm takes away; its gradient is 0."""
    bag = "dbof/" in path or "soft_d_bo_w" in path
    return bag and path.endswith("input_norm/beta")


def _assert_all_learn(model, gradients):
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.isfinite(gradient).all(), weight.path
        assert np.any(gradient != 0) or _is_cancelled(weight.path), weight.path


# Contract


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_the_promised_shapes(name, training):
    model = make_model(name)
    outputs = model(make_batch(name), training=training)
    assert outputs["logits"].shape == (len(LENGTHS), C)
    assert outputs["logits"].dtype == tf.float32
    assert outputs["embedding"].shape[0] == len(LENGTHS)
    assert all(np.isfinite(v).all() for v in tf.nest.flatten(outputs))


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_weight_learns(name):
    model = make_model(name)
    perturb(model)
    _, gradients, _ = _step(model, make_batch(name))
    _assert_all_learn(model, gradients)


def make_videos(name, count=32):
    """Learnable videos of 1 to T frames, and their labels, one or two of C classes."""
    rng = np.random.default_rng(0)
    labels = np.eye(C)[rng.integers(0, C, (count, 2))].max(axis=1).astype("float32")
    features = FEATURES[registry.get(name).level]
    scenes = {k: rng.normal(size=(C, size)) for k, size in features.items()}
    lengths = rng.integers(1, T + 1, count)
    batch = {}
    for k, size in features.items():
        means = labels @ scenes[k]
        if registry.get(name).level == "video":
            batch[k] = tf.constant(
                means + rng.normal(size=(count, size)) / 4, "float32"
            )
        else:
            frames = means[:, None] + rng.normal(size=(count, T, size)) / 4
            batch[k] = tf.constant(np.clip(128 + 30 * frames, 0, 255), tf.uint8)
            batch["num_frames"] = tf.constant(lengths, tf.int32)
    return batch, labels


@pytest.mark.parametrize("name", NAMES)
def test_32_videos_are_learned_by_heart(name):
    model, (batch, labels) = make_model(name), make_videos(name)
    # What sorts frames jumps when two change places, and must take smaller steps.
    rate = 0.01 if name == "TimeDistributedDenseSortingModel" else 0.03
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            outputs = model(batch, training=True)
            loss = tf.reduce_mean(
                losses.objective(losses.cross_entropy, labels, outputs)
            )
        values = [v.value for v in model.trainable_variables]
        gradients = tape.gradient(loss, values)
        gradients = [
            tf.zeros_like(v) if g is None else g
            for g, v in zip(gradients, values, strict=True)
        ]
        optimizer.apply(gradients, model.trainable_variables)

    for _ in range(200):
        step()
    assert gap(np.asarray(model(batch)["logits"]), labels) > 0.95


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "floats", "longer"])
@pytest.mark.parametrize("name", FRAME_NAMES)
def test_padding_changes_nothing(name, kind, training):
    floats = kind == "floats"
    clean = make_batch(name, floats=floats)
    dirty = make_batch(
        name,
        length=T + 3 if kind == "longer" else T,
        garbage=np.nan if floats else 255,
        floats=floats,
    )
    if not training:
        model = make_model(name)
        np.testing.assert_allclose(
            model(dirty)["logits"], model(clean)["logits"], atol=1e-5
        )
        return
    expected, expected_gradients, expected_state = _step(make_model(name), clean)
    outputs, gradients, state = _step(make_model(name), dirty)
    np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-4)
    for ours, theirs in zip(
        [*gradients, *state], [*expected_gradients, *expected_state], strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_rest_of_the_batch(name):
    model, batch = make_model(name), make_batch(name)
    whole = model(batch)["logits"]
    for i in range(len(LENGTHS)):
        one = model({k: v[i : i + 1] for k, v in batch.items()})["logits"]
        np.testing.assert_allclose(one[0], whole[i], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inference_leaves_the_weights_alone(name):
    model = make_model(name)
    before = [w.numpy() for w in model.weights]
    model(make_batch(name), training=False)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_covers_every_argument_and_rebuilds_the_model(name):
    model = make_model(name)
    config = json.loads(json.dumps(model.get_config()))
    assert set(config) >= set(registry.arguments(type(model)))
    again = type(model).from_config(config)
    assert again.get_config() == model.get_config()
    assert list(again.features) == list(model.features)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_gives_the_same_outputs(name, tmp_path):
    model, batch = make_model(name), make_batch(name)
    perturb(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert list(again.features) == list(model.features)
    expected = model(batch)
    for key, value in again(batch).items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_low_precision_model_is_near_and_has_float32_logits(
    name, precision, tolerance
):
    """With features of their real sizes, over which sums are long."""
    features = {
        "frame": {"rgb": 1024, "audio": 128},
        "video": {"mean_rgb": 1024, "mean_audio": 128},
    }[registry.get(name).level]
    model, batch = (
        make_model(name, features=features),
        make_batch(name, features=features),
    )
    low = make_model(name, features=features, dtype=f"mixed_{precision}")
    assert all(w.dtype == "float32" for w in low.weights)
    for layer in low._flatten_layers():
        assert layer.dtype_policy.name == f"mixed_{precision}", layer.path

    expected = model(batch)["logits"]
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(low(batch)["logits"], expected, atol=atol)
    outputs, gradients, _ = _step(low, batch, scale=64.0)
    expected, expected_gradients, _ = _step(model, batch)
    assert outputs["logits"].dtype == tf.float32
    # Of the logits in training: those before any have seen no batch statistics yet.
    atol = 2 * tolerance * np.abs(expected["logits"]).max()
    np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=atol)
    whole = tf.linalg.global_norm(expected_gradients)
    if name in BATCH_NORM_STACKS:
        # Each batch norm over so few videos about doubles what was rounded before it.
        pairs = list(zip(gradients, expected_gradients, strict=True))
        product = sum(tf.reduce_sum(a * b) for a, b in pairs)
        cosine = product / (tf.linalg.global_norm(gradients) * whole)
        assert cosine > 1 - 3 * tolerance
        return
    for weight, ours, theirs in zip(
        low.trainable_weights, gradients, expected_gradients, strict=True
    ):
        error = tf.norm(ours - theirs)
        assert error < 2 * tolerance * tf.norm(theirs) + 1e-3 * whole, weight.path


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["FrameLevelLogisticModel", "LogisticModel"])
def test_features_of_any_size_are_normalised_before_they_are_rounded(
    name, precision, scale
):
    """float16 has nothing beyond 65504 and little below 1e-6."""
    batch = {
        k: v if v.dtype == tf.int32 else v * scale
        for k, v in make_batch(name, floats=True).items()
    }
    low = make_model(name, dtype=f"mixed_{precision}")
    expected = make_model(name)(batch)["logits"]
    np.testing.assert_allclose(low(batch)["logits"], expected, atol=0.01)


def test_float16_training_finds_its_loss_scale():
    model, batch = (
        make_model("NetVLADModel", dtype="mixed_float16"),
        make_batch("NetVLADModel"),
    )
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    optimizer.build(model.trainable_variables)
    labels = np.random.default_rng(2).integers(0, 2, size=(len(LENGTHS), C))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                losses.cross_entropy(labels, model(batch, training=True))
            )
            scaled = optimizer.scale_loss(loss)
        values = [v.value for v in model.trainable_variables]
        optimizer.apply(tape.gradient(scaled, values), model.trainable_variables)
        return loss

    values = [float(step()) for _ in range(30)]
    assert np.isfinite(values).all() and values[-1] < values[0]
    assert int(optimizer.iterations) >= 20


@pytest.mark.parametrize(
    ("name", "length"),
    [(n, t) for n in NAMES for t in ([0, 1, T] if n in FRAME_NAMES else [0])],
)
def test_a_part_without_videos_adds_nothing(name, length):
    """As a replica may get it: no row, and any number of frames."""
    model = make_model(name)
    perturb(model)
    batch = {
        k: v[:0, :length] if v.shape.rank == 3 else v[:0]
        for k, v in make_batch(name).items()
    }

    @tf.function(input_signature=[sizes_unknown(batch)])
    def step(batch):
        with tf.GradientTape() as tape:
            outputs = model(batch, training=True)
            labels = tf.zeros_like(outputs["logits"])
            loss = tf.reduce_sum(losses.cross_entropy(labels, outputs))
        values = [v.value for v in model.trainable_variables]
        return loss, outputs["logits"], tape.gradient(loss, values)

    before = {w.path: w.numpy() for w in model.weights}
    loss, logits, gradients = step(batch)
    assert loss == 0 and logits.shape == (0, C)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        np.testing.assert_array_equal(gradient, tf.zeros_like(weight), weight.path)
    for weight in model.weights:
        if weight.name != "steps":
            np.testing.assert_array_equal(weight, before[weight.path], weight.path)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_takes_batches_and_lengths_unknown_beforehand(name):
    model, batch = make_model(name), make_batch(name)
    graph = tf.function(model, input_signature=[sizes_unknown(batch)])
    logits = graph(batch)["logits"]
    np.testing.assert_allclose(logits, model(batch)["logits"], atol=1e-5)


@pytest.mark.parametrize("name", FRAME_NAMES)
def test_a_batch_without_any_frame_is_scored_as_a_video_without_frames(name):
    model, batch = make_model(name), make_batch(name)
    empty = {k: v[:, :0] for k, v in batch.items() if k != "num_frames"}
    empty["num_frames"] = tf.zeros(len(LENGTHS), tf.int32)
    expected = model(batch)["logits"][0]  # its first video has no frame
    for call in (model, tf.function(model, input_signature=[sizes_unknown(empty)])):
        for logits in call(empty)["logits"]:
            np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_every_option_of_every_model_is_tried():
    for name in NAMES:
        arguments = set(registry.arguments(registry.get(name).cls))
        assert set(OPTIONS[name]) == arguments - {"num_classes", "features"}, name


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n in OPTIONS for o in OPTIONS[n]]
)
def test_an_option_changes_the_result(name, option):
    given = GIVEN.get((name, option), GIVEN.get(option, {}))
    given = {k: v for k, v in given.items() if k in OPTIONS[name]}

    def result(**args):
        model = make_model(name, **args)
        batch = model.example_inputs(len(LENGTHS)) | make_batch(name)
        outputs = model(batch, training=True)
        return outputs, float(sum(model.losses))

    outputs, penalty = result(**given)
    other, other_penalty = result(**{**given, option: OPTIONS[name][option]})
    if option == "l2_penalty":
        assert other_penalty > 1000 * penalty > 0
        np.testing.assert_array_equal(other["logits"], outputs["logits"])
        return
    # What training adds to the logits counts too.
    changed = set(other) != set(outputs) or abs(other_penalty - penalty) > 1e-3
    for key in ("logits", "penalty"):
        if key in outputs and key in other:
            changed |= bool(np.abs(other[key] - outputs[key]).max() > 1e-3)
    assert changed


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_classes_sets_the_width(name):
    model = make_model(name, num_classes=5)
    assert model(make_batch(name))["logits"].shape == (len(LENGTHS), 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [{"rgb": 16}, {"b": 4, "own": 3, "a": 5}])
def test_any_list_of_features_is_taken_in_its_order(name, features, tmp_path):
    model = make_model(name, features=features)
    assert list(model.features) == list(features)
    batch = model.example_inputs(3, 4)
    assert set(batch) == set(model.input_names)
    assert model(batch)["logits"].shape == (3, C)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert list(again.features) == list(features)


# Particular models


def test_netvlad_pools_the_first_feature_and_the_others_apart():
    model = make_model("NetVLADModel", features={"b": 4, "own": 3, "a": 5})
    assert [p.centres.shape for p in model.pools] == [(4, 4), (2, 8)]
    model = make_model("NetVLADModel", features={"rgb": 16}, audio_clusters=3)
    assert [p.centres.shape for p in model.pools] == [(4, 16)]


def test_netvlad_has_the_size_of_its_formula():
    k, k2, d, d2, h, c, m = 4, 2, 16, 4, 8, C, 2
    vlads = sum(2 * n * size + 2 * n + 2 * size for n, size in ((k, d), (k2, d2)))
    hidden = (k * d + k2 * d2) * h + h
    gates = h * h + 2 * h + c * c + 2 * c
    moe = h * c * (m + 1) + h * c * m + c * m
    model = make_model("NetVLADModel")
    sizes = [int(np.prod(w.shape)) for w in model.trainable_weights]
    assert sum(sizes) == vlads + hidden + gates + moe


@pytest.mark.parametrize("name", FRAME_NAMES)
def test_the_order_of_frames_is_seen_by_recurrent_models_alone(name):
    model, batch = make_model(name), make_batch(name)
    order = [2, 0, 1, 3, 4, 5]
    shuffled = {k: tf.gather(batch[k], order, axis=1) for k in model.features}
    shuffled["num_frames"] = batch["num_frames"]
    difference = np.abs(model(shuffled)["logits"] - model(batch)["logits"])
    # Row 1 has a single frame, which the shuffle moves out.
    rows = difference.max(axis=1)[[2, 3]]
    assert (rows > 1e-3).all() if name in SEES_ORDER else (rows < 1e-5).all()


def test_averaging_equal_frames_equals_the_video_level_logistic():
    frame_model, video_model = (
        make_model("FrameLevelLogisticModel"),
        make_model("LogisticModel"),
    )
    video_model.set_weights(frame_model.get_weights())
    frames = make_batch("FrameLevelLogisticModel")
    frames = {k: tf.repeat(frames[k][3:, :1], T, axis=1) for k in frame_model.features}
    video = {f"mean_{k}": dequantize(v[:, 0], "float32") for k, v in frames.items()}
    frames["num_frames"] = tf.constant([4])
    np.testing.assert_allclose(
        frame_model(frames)["logits"], video_model(video)["logits"], atol=1e-6
    )


def test_dbof_draws_30_frames_and_the_lstm_reads_all():
    frames = {n: registry.get(n).cls.default_frames for n in FRAME_NAMES}
    assert frames["DbofModel"] == FrameSelection(30, "random")
    assert frames["LstmModel"] == FrameSelection()


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "relu6"])
@pytest.mark.parametrize("add_batch_norm", [False, True])
def test_dbof_of_any_activation_learns(activation, add_batch_norm):
    args = {"activation": activation, "add_batch_norm": add_batch_norm}
    model = make_model("DbofModel", **args)
    perturb(model)
    _, gradients, _ = _step(model, make_batch("DbofModel"))
    _assert_all_learn(model, gradients)


def test_initial_weights_have_the_spread_of_the_starter_code():
    features = {"rgb": 90, "audio": 10}
    dbof = {"clusters": 400, "hidden_size": 100, "features": features}
    model = make_model("DbofModel", **dbof)
    plain = make_model("DbofModel", **dbof, add_batch_norm=False)
    for weight, expected in (
        (model.dbof.cluster_weights, 0.1),
        (plain.dbof.cluster_bias, 0.1),
        (model.hidden.kernel, 0.05),
        (plain.hidden.bias, 0.01),
    ):
        assert abs(np.mean(weight)) < 0.2 * expected
        np.testing.assert_allclose(np.std(weight), expected, rtol=0.15)

    lstm = make_model("LstmModel", cells=60, features=features).stack[0]
    limit = (6 / (100 + 60 + 4 * 60)) ** 0.5
    for part in (lstm.kernel[:100], lstm.kernel[100:]):
        np.testing.assert_allclose([np.min(part), np.max(part)], [-limit, limit], 0.01)
    bias = np.reshape(lstm.bias, (4, 60))  # i, j, f, o
    np.testing.assert_array_equal(bias, np.repeat([[0], [0], [1], [0]], 60, axis=1))


def test_a_frame_model_can_be_entered_after_its_input_transform():
    model, batch = make_model("NetVLADModel"), make_batch("NetVLADModel")
    frames, mask = model.preprocess(batch)
    assert frames.shape == (len(LENGTHS), T, 20)
    norms = np.linalg.norm(frames, axis=-1)
    np.testing.assert_allclose(norms, mask.numpy(), atol=1e-6)
    np.testing.assert_array_equal(
        model.classify(frames, mask)["logits"], model(batch)["logits"]
    )


def test_the_video_vector_is_normalised_as_one():
    model, batch = make_model("LogisticModel"), make_batch("LogisticModel")
    x = np.concatenate([batch["mean_rgb"], batch["mean_audio"]], axis=-1)
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(model.preprocess(batch), expected, atol=1e-6)


# Heads of the pooling models


# Two heads of each model, each head with several; where all models are wanted, all.
PAIRS = [
    (name, head)
    for i, name in enumerate(POOLING_NAMES)
    for j, head in enumerate(sorted(HEADS))
    if EVERY_MODEL or (j - i) % len(HEADS) < 2
]


def test_each_pooling_model_is_tried_with_two_heads_and_each_head_with_several_models():
    for names, count in zip(zip(*PAIRS, strict=True), (2, 3), strict=True):
        assert min(Counter(names).values()) >= count
    assert {name for name, _ in PAIRS} == {*POOLING_NAMES}
    assert {head for _, head in PAIRS} == {*HEADS}


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_heads_learn_on_every_pooling_model_and_are_saved(name, head, tmp_path):
    args = {**SMALL.get(name, {}), "head_args": HEAD_ARGS.get(head)}
    model, batch = make_model(name, **args, head=head), make_batch(name)
    assert type(model.classifier) is HEADS[head]
    perturb(model)
    outputs, gradients, _ = _step(model, batch)
    assert outputs["logits"].shape == (len(LENGTHS), C)
    _assert_all_learn(model, gradients)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(batch)["logits"], model(batch)["logits"])


@pytest.mark.parametrize("name", POOLING_NAMES)
def test_the_weights_of_the_head_come_last_in_checkpoints(name):
    # Restoring is by place.
    places = ["/head/" in v.path for v in make_model(name).variables]
    assert places == sorted(places) and any(places)


@pytest.mark.parametrize(
    ("spelling", "head"), [("LogisticModel", LogisticHead), ("MoeModel", MoEHead)]
)
def test_heads_are_known_by_the_starter_codes_names(spelling, head):
    model = make_model("DbofModel", head=spelling)
    assert type(model.classifier) is head
    assert type(model).from_config(model.get_config()).head == spelling


def test_the_number_of_mixtures_reaches_the_head():
    assert make_model("LstmModel").classifier.num_mixtures == 2
    assert make_model("LstmModel", num_mixtures=3).classifier.num_mixtures == 3


@pytest.mark.parametrize("head", ["logistic", "LogisticModel"])
def test_mixtures_of_a_head_without_any_are_refused(head):
    with pytest.raises(UserError, match=f"head {head} has no mixtures: leave out"):
        registry.create("LstmModel", head=head, num_mixtures=2)


# Registry


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", {})


def test_a_users_own_model_is_found_trained_and_saved(empty_registry, tmp_path):
    @registry.register(level="frame", paper="none")
    class MaxPoolingModel(FrameLevelModel):
        def __init__(self, scale: float = 2.0, **kwargs):
            super().__init__(**kwargs)
            self.scale = scale
            self.head = LogisticHead(self.num_classes, dtype=self.dtype_policy)

        def classify(self, frames, mask, training=False):
            frames = ops.where(mask[..., None], frames, -1.0)
            return self.head(self.scale * ops.max(frames, axis=1))

    model = make_model("MaxPoolingModel", scale=3.0)
    batch = make_batch("MaxPoolingModel")
    _, gradients, _ = _step(model, batch)
    assert len(gradients) == 2
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.scale == 3.0
    np.testing.assert_array_equal(again(batch)["logits"], model(batch)["logits"])


def test_a_users_own_pooling_model_takes_any_head(empty_registry):
    @registry.register(level="frame", paper="none")
    class FirstFrameModel(PoolingModel):
        def pool(self, frames, mask, training=False):
            return frames[:, 0]

    model = make_model("FirstFrameModel", head="logistic")
    outputs, gradients, _ = _step(model, make_batch("FirstFrameModel"))
    assert len(gradients) == 2 and outputs["embedding"].shape == (len(LENGTHS), 20)


def test_a_second_model_of_the_same_name_is_refused(empty_registry):
    def define():
        @registry.register(level="video", paper="none")
        class TwiceModel(VideoLevelModel):
            pass

    define()
    with pytest.raises(ValueError, match="TwiceModel is registered already"):
        define()


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="`level` must be one of"):
        registry.register(level="clip", paper="none")


def test_models_are_listed_by_level():
    assert set(registry.names("video")) >= {"LogisticModel", "MoeModel"}
    assert set(FRAME_NAMES) >= {"FrameLevelLogisticModel", "NetVLADModel"}
    for name in NAMES:
        entry = registry.get(name)
        assert entry.cls.level == entry.level and entry.cls.paper == entry.paper


def test_an_unknown_model_lists_near_matches():
    with pytest.raises(UserError, match="Did you mean NetVLADModel"):
        registry.create("NetvladModl")


def test_an_unknown_argument_lists_near_matches():
    with pytest.raises(UserError, match="no argument cluster. Did you mean clusters"):
        registry.create("NetVLADModel", cluster=8)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("NetVLADModel", {"clusters": 1}, "`clusters` must be at least 2"),
        ("NetVLADModel", {"num_mixtures": 0}, "`num_mixtures` must be positive"),
        ("NetVLADModel", {"head": "mo"}, "Unknown head mo. Did you mean moe"),
        ("DbofModel", {"clusters": 0}, "`clusters` must be positive"),
        ("DbofModel", {"pooling": "none"}, "`pooling` must be one of max, average"),
        ("DbofModel", {"activation": "tanh"}, "`activation` must be one of sigmoid,"),
        ("LstmModel", {"cells": 0}, "`cells` must be positive"),
        ("LstmModel", {"layers": 0}, "`layers` must be positive"),
    ],
)
def test_a_refused_value_is_the_users_error(name, args, message):
    with pytest.raises(UserError, match=message):
        registry.create(name, **args)
