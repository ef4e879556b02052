"""The models of four free components, and those that classify single frames."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import frame_level_models  # noqa: F401  (registers)
from yt8m import losses, registry
from yt8m.config import FrameSelection
from yt8m.errors import UserError
from yt8m.layers.classifiers import HEADS
from yt8m.layers.frame_scores import classify_frames
from yt8m.layers.heads import LogisticHead
from yt8m.layers.poolings import POOLINGS
from yt8m.model import forward

C, T = 5, 6
LENGTHS = np.array([0, 1, 3, 6])
FEATURES = {"rgb": 7, "audio": 3}
# Arguments without which a pooling cannot be built, or would be large.
ARGS = {
    "attention": {"attentions": 2},
    "context_memory_lstm": {"cells": 4, "read_out": "memory_inputs"},
    "dbof": {"clusters": 4},
    "fast_forward": {"cells": 4, "layers": 2},
    "linear_combinations": {"combinations": 2, "max_frames": 4},
    "lstm": {"cells": 4},
    "netvlad": {"clusters": 2},
    "recurrent": {"cells": 4, "bidirectional_layers": 1, "residual": "concatenate"},
    "stacked_attention": {"layers": 1, "units": 4},
    "transformer": {"layers": 1, "heads": 2, "ffn_size": 4},
}
WEIGHTLESS = ["average", "indirect_clustering", "max", "position_encoding"]
WEIGHTLESS += ["self_weighted", "statistics", "top_k"]


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, "float64")))


def make_batch(garbage=0):
    rng = np.random.default_rng(1)
    mask = np.arange(T) < LENGTHS[:, None]
    batch = {"num_frames": tf.constant(LENGTHS, tf.int32)}
    for name, size in FEATURES.items():
        x = rng.integers(0, 256, size=(len(LENGTHS), T, size))
        batch[name] = tf.constant(np.where(mask[..., None], x, garbage), tf.uint8)
    labels = rng.integers(0, 2, size=(len(LENGTHS), C))
    return {**batch, "labels": tf.constant(labels, tf.uint8)}


def make_model(name="SnuvlModel", features=FEATURES, **args):
    keras.utils.set_random_seed(1)
    model = registry.create(name, num_classes=C, features=features, **args)
    return model.ensure_built()


@pytest.fixture
def counts(tmp_path):
    path = tmp_path / "videos.csv"
    path.write_text("Index,Videos\n" + "".join(f"{c},{c + 1}\n" for c in range(C)))
    return str(path)


# Components


@pytest.mark.parametrize("pooling", [*ARGS, *WEIGHTLESS])
@pytest.mark.parametrize("head", ["logistic", "moe"])
def test_poolings_and_heads_combine_freely(pooling, head):
    args = {"pooling_args": ARGS.get(pooling)}
    model = make_model(pooling=pooling, head=head, **args)
    assert type(model.pooling_layer) is POOLINGS[pooling]
    assert type(model.classifier) is HEADS[head]
    batch = make_batch()
    with tf.GradientTape() as tape:
        outputs = forward(model, batch, training=True)
        loss = tf.reduce_sum(
            losses.objective(losses.cross_entropy, **step(batch, outputs))
        )
    gradients = tape.gradient(loss, model.trainable_weights)
    assert all(np.isfinite(g).all() for g in gradients)
    assert outputs["logits"].shape == (len(LENGTHS), C)
    pooled = model.pooling_layer.compute_output_shape((None, None, 10))
    assert outputs["embedding"].shape == (len(LENGTHS), pooled[-1])
    again = type(model).from_config(model.get_config())
    assert again.pooling_args == model.pooling_args == (ARGS.get(pooling) or {})


def step(batch, outputs):
    return {"labels": batch["labels"], "outputs": outputs}


def test_the_embedding_is_the_pooled_concatenation_of_the_features():
    model, batch = make_model(), make_batch()
    frames, mask = model.preprocess(batch)
    expected = POOLINGS["indirect_clustering"]()(frames, mask)
    np.testing.assert_allclose(model(batch)["embedding"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"pooling": "maximum"}, "Unknown pooling maximum. Did you mean max"),
        ({"pooling_args": {"k": 3}}, "pooling indirect_clustering has no argument k"),
        ({"pooling": "top_k", "pooling_args": {"k": 0}}, "`k` must be positive"),
        ({"pooling": "adaptive_noise"}, "`class_counts` must be a file with the"),
        ({"head": "moee"}, "Unknown head moee. Did you mean moe"),
        ({"bilinear_size": 8, "features": {"rgb": 7}}, "needs two features at least"),
    ],
)
def test_wrong_components_are_the_users_error(args, message):
    with pytest.raises(UserError, match=message):
        make_model(**args)


# Center loss


def test_centres_are_given_out_in_training_alone():
    model, batch = make_model(center_loss=True), make_batch()
    assert "centers" not in forward(model, batch)
    outputs = forward(model, batch, training=True)
    assert outputs["centers"].shape == (C, 10) and outputs["embedding"].shape[1] == 10
    np.testing.assert_array_equal(outputs["centers"], np.zeros((C, 10)))
    plain = forward(make_model(), batch, training=True)
    assert "centers" not in plain
    np.testing.assert_array_equal(outputs["logits"], plain["logits"])


def test_centres_learn_from_the_embeddings_of_their_classes():
    model, batch = make_model(center_loss=True), make_batch()
    with tf.GradientTape() as tape:
        outputs = forward(model, batch, training=True)
        distance = outputs["embedding"][2] - outputs["centers"][1]
        loss = tf.reduce_sum(tf.square(distance))
    gradient = tf.convert_to_tensor(tape.gradient(loss, model.centers.value))
    np.testing.assert_allclose(gradient[1], -2 * outputs["embedding"][2], atol=1e-6)
    assert not np.delete(gradient, 1, axis=0).any()


def test_the_centres_have_the_size_of_any_embedding():
    for pooling, args in ARGS.items():
        model = make_model(pooling=pooling, pooling_args=args, center_loss=True)
        outputs = forward(model, make_batch(), training=True)
        assert outputs["centers"].shape[1] == outputs["embedding"].shape[1]


# Labels as an input of training


def test_adaptive_noise_gets_the_labels_in_training(counts, tmp_path):
    args = {"pooling": "adaptive_noise", "pooling_args": {"class_counts": counts}}
    model, batch = make_model(**args), make_batch()
    assert model.training_input_names == ("labels",)
    for whole, part in (
        ("MixtureNeXtVLADModel", "branch"),
        ("ContextAwareModel", "encoder"),
    ):
        with pytest.raises(UserError, match=f"{part}=SnuvlModel, .* takes labels in"):
            make_model(whole, **{part: "SnuvlModel", f"{part}_args": args})
    quiet = forward(model, batch)["embedding"]
    noisy = forward(model, batch, training=True)["embedding"]
    labelled = np.asarray(batch["labels"]).any(axis=1) & (LENGTHS > 0)
    assert labelled.any()
    difference = np.abs(noisy - quiet).max(axis=1)
    np.testing.assert_array_equal(difference > 1e-3, labelled)
    model.save(tmp_path / "model.keras")
    (tmp_path / "videos.csv").unlink()
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.pooling_layer.noise, 1 / np.arange(1, C + 1, dtype="float32")
    )
    np.testing.assert_array_equal(forward(again, batch)["embedding"], quiet)


def test_other_poolings_read_no_labels():
    assert make_model().training_input_names == ()


# Compact bilinear features


def test_bilinear_features_take_the_place_of_the_frames():
    model = make_model(bilinear_size=16, pooling="average", head="logistic")
    batch = make_batch(garbage=200)
    frames, mask = model.preprocess(batch)
    products = model.bilinear(frames[..., :7], frames[..., 7:])
    expected = [
        products[i, :n].numpy().mean(axis=0) for i, n in enumerate(LENGTHS) if n
    ]
    embedding = forward(model, batch)["embedding"]
    np.testing.assert_allclose(embedding[1:], expected, atol=1e-5)
    np.testing.assert_array_equal(embedding[0], np.zeros(16))
    again = type(model).from_config(model.get_config()).ensure_built()
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(forward(again, batch)["embedding"], embedding)


# Scores of single frames


@pytest.mark.parametrize("garbage", [0.0, 1e4])
def test_the_video_gets_the_mean_probability_of_its_frames(garbage):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(len(LENGTHS), T, 4)).astype("float32")
    mask = np.arange(T) < LENGTHS[:, None]
    head = LogisticHead(C)
    head.build((None, 4))
    head.kernel.assign(rng.normal(size=(4, C)))
    head.bias.assign(rng.normal(size=C))
    kernel, bias = np.asarray(head.kernel), np.asarray(head.bias)
    found = classify_frames(head, np.where(mask[..., None], x, garbage), mask)
    for i, n in enumerate(LENGTHS):
        frames = x[i, :n] if n else np.zeros((1, 4))
        p = sigmoid(frames @ kernel + bias).mean(axis=0)
        np.testing.assert_allclose(sigmoid(found["logits"][i]), p, atol=1e-6)
        kept = found["frame_logits"][i].numpy()[found["frame_weights"][i].numpy() > 0]
        np.testing.assert_allclose(kept, frames @ kernel + bias, rtol=1e-5, atol=1e-5)


def test_frames_that_are_certain_leave_a_finite_logit():
    head = LogisticHead(1)
    head.build((None, 1))
    head.kernel.assign([[1.0]])
    x = np.array([[[-500.0], [-500.0]], [[500.0], [500.0]], [[-500.0], [500.0]]])
    with tf.GradientTape() as tape:
        logits = classify_frames(head, x.astype("float32"), np.ones((3, 2), bool))[
            "logits"
        ]
    np.testing.assert_allclose(logits, [[-500], [500], [0]], atol=1e-3)
    assert np.isfinite(tape.gradient(logits, head.trainable_weights)[0]).all()


def test_each_frame_is_taught_the_videos_labels():
    model, batch = make_model("FrameLogisticModel"), make_batch(garbage=77)
    kernel = np.random.default_rng(3).normal(size=(10, C))
    model.classifier.kernel.assign(kernel)
    frames, _ = model.preprocess(batch)
    outputs = forward(model, batch, training=True)
    found = losses.objective(losses.cross_entropy, **step(batch, outputs))
    labels = np.asarray(batch["labels"], "float64")
    for i, n in enumerate(LENGTHS):
        x = frames[i, :n].numpy() @ kernel if n else np.zeros((1, C))
        each = (np.logaddexp(0, x) - labels[i] * x).sum(axis=-1)
        np.testing.assert_allclose(found[i], each.mean(), rtol=1e-5)
    assert set(forward(model, batch)) == {"logits", "embedding"}


def test_the_frame_logistic_learns_from_20_frames_and_scores_all():
    frames = registry.get("FrameLogisticModel").cls.default_frames
    assert frames == FrameSelection(20, "random", evaluation="all")
    assert frames.evaluated().count is None


def test_many_to_many_averages_what_is_said_at_each_state():
    model, batch = make_model("ManyToManyModel", cells=4), make_batch(garbage=77)
    frames, mask = model.preprocess(batch)
    states = model.lstm(frames, mask).numpy()
    kernel, bias = (np.asarray(w) for w in model.classifier.trainable_weights)
    outputs = forward(model, batch)
    for i, n in enumerate(LENGTHS):
        x = states[i, :n] if n else np.zeros((1, 4))
        p = sigmoid(x @ kernel + bias).mean(axis=0)
        np.testing.assert_allclose(sigmoid(outputs["logits"][i]), p, atol=1e-6)
    assert "frame_logits" not in forward(model, batch, training=True)


def test_many_to_many_drops_states_in_training():
    batch = make_batch()
    outputs = [
        forward(make_model("ManyToManyModel", cells=8, dropout=rate), batch, True)
        for rate in (0.0, 0.8)
    ]
    zeros = [float(np.mean(o["embedding"][1:2] == 0)) for o in outputs]
    assert zeros[0] == 0 and zeros[1] > 0.3


# LSTM, sparse mixture of experts, LSTM


def make_lstm_moe(**args):
    sizes = {"cells": 4, "experts": 4, "active": 2, "expert_size": 5}
    return make_model("LstmMoeModel", **{**sizes, **args})


def test_the_mixture_stands_between_the_lstms_and_later_frames_weigh_more():
    model, batch = make_lstm_moe(max_frames=8), make_batch(garbage=77)
    frames, mask = model.preprocess(batch)
    first, second = model.stack
    states = second(model.moe(first(model.input_norm(frames, mask), mask), mask), mask)
    weights = np.arange(1, T + 1) / 8
    for i, n in enumerate(LENGTHS):
        expected = weights[:n] @ states[i, :n].numpy()
        np.testing.assert_allclose(
            model(batch)["embedding"][i], expected, rtol=1e-4, atol=1e-6
        )


def test_the_losses_of_importance_and_load_join_the_models_in_training():
    model, batch = make_lstm_moe(importance_weight=2.0, load_weight=3.0), make_batch()
    forward(model, batch)
    penalties = float(sum(model.losses))
    forward(model, batch, training=True)
    assert float(sum(model.losses)) > penalties + 0.01
    quiet = make_lstm_moe(importance_weight=0.0, load_weight=0.0)
    forward(quiet, batch, training=True)
    np.testing.assert_allclose(float(sum(quiet.losses)), penalties, rtol=1e-5)


def test_each_expert_has_two_layers():
    model = make_lstm_moe()
    shapes = {w.name: tuple(w.shape) for w in model.moe.trainable_weights}
    assert shapes == {
        "gate_kernel": (4, 4),
        "noise_kernel": (4, 4),
        "hidden_kernel": (4, 4, 5),
        "hidden_bias": (4, 5),
        "output_kernel": (4, 5, 5),
        "output_bias": (4, 5),
    }
