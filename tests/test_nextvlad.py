"""NeXtVLAD, reverse whitening and mixtures of branches, against float64 twins."""

import json
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags

import frame_level_models  # noqa: F401  (registers)
import video_level_models  # noqa: F401  (registers)
from yt8m import losses, registry
from yt8m.cli import flags as shared
from yt8m.cli import recipes, train
from yt8m.errors import UserError
from yt8m.layers.constants import weights_follow
from yt8m.layers.mixture import Branch, LogitMixture
from yt8m.layers.nextvlad import NeXtVLAD
from yt8m.layers.preprocessing import ReverseWhitening, read_eigenvalues

LENGTHS = [0, 1, 3, 6]
T, D, K, G, EXPANSION = 6, 6, 3, 4, 2
MASK = np.arange(T) < np.array(LENGTHS)[:, None]
C = 5
FEATURES = {"rgb": 16, "audio": 4}
SMALL = {
    "num_classes": C,
    "features": FEATURES,
    "clusters": 4,
    "groups": 2,
    "hidden_size": 8,
    "gating_reduction": 2,
    "dropout": 0.0,
}


def make_frames(garbage=0.0):
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), T, D)) + 0.5
    return np.where(MASK[..., None], x, garbage).astype("float32")


def randomise(layer):
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        value = rng.normal(size=weight.shape)
        weight.assign(abs(value) + 0.5 if "moving_variance" in weight.path else value)
    return layer


def value(weight):
    return np.asarray(weight, "float64")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def normalised(x, norm, statistics=None):
    if statistics is None:
        mean, variance = value(norm.moving_mean), value(norm.moving_variance)
    else:
        mean, variance = statistics.mean(0), statistics.var(0)
    scaled = (x - mean) / np.sqrt(variance + norm.epsilon)
    return scaled * value(norm.gamma) + value(norm.beta)


# The layer


def nextvlad(layer, x, training):
    """One video, frame and group at a time."""
    z = x @ value(layer.expand.kernel) + value(layer.expand.bias)
    attention = sigmoid(z @ value(layer.attention.kernel) + value(layer.attention.bias))
    logits = z @ value(layer.cluster.kernel)
    statistics = logits[MASK] if training else None
    logits = normalised(logits, layer.cluster_norm, statistics)
    size = EXPANSION * D // G
    pooled = np.zeros((len(x), K, size))
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            for g in range(G):
                a = softmax(logits[b, t, g * K : (g + 1) * K]) * attention[b, t, g]
                part = z[b, t, g * size : (g + 1) * size]
                pooled[b] += a[:, None] * (part - value(layer.centres))
        if n:
            pooled[b] /= np.linalg.norm(pooled[b], axis=-1, keepdims=True)
    pooled = pooled.reshape(len(x), -1)
    return normalised(pooled, layer.vlad_norm, pooled if training else None)


def make_layer():
    layer = NeXtVLAD(K, groups=G, expansion=EXPANSION)
    layer.build((None, T, D))
    return randomise(layer)


@pytest.mark.parametrize("training", [False, True])
def test_nextvlad_equals_its_sum_over_frames_groups_and_clusters(training):
    layer = make_layer()
    expected = nextvlad(layer, make_frames().astype("float64"), training)
    y = layer(tf.constant(make_frames(30.0)), tf.constant(MASK), training=training)
    assert y.shape == layer.compute_output_shape((len(LENGTHS), T, D))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-4)
    assert expected.std() > 0.1


def test_padding_leaves_nextvlad_its_gradients_and_its_averages_alone():
    def step(garbage):
        layer = make_layer()
        with tf.GradientTape() as tape:
            frames, mask = tf.constant(make_frames(garbage)), tf.constant(MASK)
            y = layer(frames, mask, training=True)
            loss = tf.reduce_sum(y**3)
        gradients = tape.gradient(loss, layer.trainable_weights)
        return [y, *gradients, *layer.non_trainable_weights]

    for clean, dirty in zip(step(0.0), step(50.0), strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_allclose(dirty, clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 0), (0, 4), (0, 0)])
def test_nextvlad_takes_a_batch_without_frames_or_videos(shape):
    layer = make_layer()
    graph = tf.function(
        lambda x, mask: layer(x, mask, training=True),
        input_signature=[
            tf.TensorSpec([None, None, D]),
            tf.TensorSpec([None, None], tf.bool),
        ],
    )
    y = graph(tf.zeros((*shape, D)), tf.zeros(shape, tf.bool))
    assert y.shape == (shape[0], K * EXPANSION * D // G) and np.isfinite(y).all()


def test_groups_that_do_not_divide_the_features_are_refused():
    with pytest.raises(UserError, match="groups=5 must divide 2 times the size 6"):
        NeXtVLAD(3, groups=5).build((None, T, D))
    for name, wrong in (("clusters", 1), ("groups", 0), ("expansion", 0)):
        with pytest.raises(ValueError, match=f"`{name}` must be at least"):
            NeXtVLAD(**{"clusters": 3, name: wrong})


@pytest.mark.parametrize(
    "layer",
    [
        NeXtVLAD(3, groups=4, expansion=3),
        LogitMixture(temperature=2.0, distillation_weight=0.5),
        ReverseWhitening("eigenvalues.npy"),
        Branch(registry.create("NeXtVLADModel", **SMALL)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_is_rebuilt_from_its_configuration(layer):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer) and again.get_config() == layer.get_config()


# The number of parameters


def parameters(
    classes, clusters, groups, hidden, reduction, sizes=(1024, 128), expansion=2
):
    """Trainable ones, by the formula."""
    total = pooled = 0
    for i, size in enumerate(sizes):
        k, g, wide = clusters // (1 + i), groups // (1 + i), expansion * size
        expand, attention = size * wide + wide, wide * g + g
        assignment, centres = wide * g * k + 2 * g * k, k * wide // g
        total += expand + attention + assignment + centres + 2 * centres
        pooled += centres
    dense = pooled * hidden + 2 * hidden
    gates = 2 * hidden * (hidden // reduction) + 2 * (hidden // reduction)
    return total + dense + gates + hidden * classes + classes


def trainable(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@pytest.mark.parametrize("clusters", [4, 6])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("reduction", [1, 4])
def test_nextvlad_has_the_size_of_its_formula(clusters, groups, reduction):
    args = {**SMALL, "clusters": clusters, "groups": groups}
    args["gating_reduction"] = reduction
    model = registry.create("NeXtVLADModel", **args).ensure_built()
    formula = parameters(C, clusters, groups, 8, reduction, FEATURES.values())
    assert trainable(model) == formula
    assert parameters(3862, 128, 8, 2048, 8) == 88_889_378


def shaped(name, **args):
    """A model with the weights' shapes, but no memory for them."""
    model = registry.create(name, features={"rgb": 1024, "audio": 128}, **args)
    inputs = {
        "rgb": keras.KerasTensor((2, 4, 1024), dtype="uint8"),
        "audio": keras.KerasTensor((2, 4, 128), dtype="uint8"),
        "num_frames": keras.KerasTensor((2,), dtype="int32"),
    }
    with keras.StatelessScope(initialize_variables=False):
        model(inputs)
    return model


@pytest.mark.parametrize(
    ("name", "args", "count"),
    [
        ("NeXtVLADModel", {}, 88_889_378),
        ("NeXtVLADModel", {"clusters": 112}, 79_167_714),
        ("MixtureNeXtVLADModel", {"branch_args": {"clusters": 112}}, 237_508_905),
        (
            "MixtureNeXtVLADModel",
            {"branch_args": {"clusters": 112, "gating_reduction": 16}},
            235_935_273,
        ),
    ],
)
def test_whole_models_have_the_published_numbers_of_parameters(name, args, count):
    """89 M with 128 clusters; 79 M with 112, and 237 M for three of them.

    The submission halves their gates; with moving statistics it takes 944 MB.
    """
    assert trainable(shaped(name, **args)) == count


def test_the_recipe_cg_dbof_has_the_published_number_of_parameters():
    """36 M for the segments' 1,000 classes, with or without batch norms' averages."""
    flags = absl_flags.FlagValues()
    train.define(flags)
    flags(["train", *recipes.recipe_flags("cg_dbof")])
    model = shaped(flags.model, num_classes=1000, **shared.given_model_args(flags))
    assert trainable(model) == 36_022_432
    assert sum(int(np.prod(w.shape)) for w in model.weights) == 36_051_365


def test_a_mixture_has_the_parameters_of_its_branches_and_its_gate():
    args = dict(SMALL)
    own = {name: args.pop(name) for name in ("num_classes", "features")}
    model = registry.create("MixtureNeXtVLADModel", branches=3, branch_args=args, **own)
    model.ensure_built()
    branch = parameters(C, 4, 2, 8, 2, FEATURES.values())
    assert trainable(model) == 3 * branch + 2 * 20 + 20 * 3 + 3
    paths = [w.path for w in model.weights]
    assert len(set(paths)) == len(paths)


# Reverse whitening


def test_reverse_whitening_multiplies_by_the_standard_deviations(tmp_path):
    eigenvalues = np.array([[9.0], [7.0], [4.0], [0.25]], "float32")
    np.save(tmp_path / "eigenvalues.npy", eigenvalues)
    layer = ReverseWhitening(str(tmp_path / "eigenvalues.npy"))
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    y = layer(tf.constant(x))
    expected = (x - 0.0078125) * (np.sqrt([9.0, 7.0, 4.0]) + 1e-4)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert layer.trainable_weights == [] and layer.eigenvalues.shape == (3,)


@pytest.mark.parametrize("text", ["3 2\n1\n", "3,2,1", "3.0\n2.0\n1.0"])
def test_eigenvalues_are_read_from_a_text(text, tmp_path):
    (tmp_path / "eigenvalues.txt").write_text(text)
    values = read_eigenvalues(str(tmp_path / "eigenvalues.txt"))
    np.testing.assert_array_equal(values, [3, 2, 1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.npy", None, "cannot be read: No such file"),
        ("few.txt", "2 1", r"have the shape \[2\]; the model needs \[3\]"),
        ("words.txt", "1 two 3", "are no numbers in .npy or text"),
        ("negative.txt", "1 -2 3", "holds no eigenvalues"),
        ("nan.txt", "1 nan 3", "holds no eigenvalues"),
        ("broken.npy", "no array", "are no numbers in .npy or text"),
    ],
)
def test_a_file_without_eigenvalues_is_the_users_error(
    name, content, message, tmp_path
):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} {message}"):
        ReverseWhitening(str(tmp_path / name)).build((None, 3))


@pytest.fixture
def eigenvalues(tmp_path):
    path = tmp_path / "eigenvalues.npy"
    np.save(path, np.linspace(4.0, 0.5, 2048, dtype="float32"))
    return path


def make_batch(garbage=0):
    rng = np.random.default_rng(3)
    batch = {"num_frames": tf.constant(LENGTHS)}
    for name, size in FEATURES.items():
        x = rng.integers(0, 256, size=(len(LENGTHS), T, size))
        x = np.where(MASK[..., None], x, garbage)
        batch[name] = tf.constant(x.astype("uint8"))
    return batch


@pytest.mark.parametrize("order", [("rgb", "audio"), ("audio", "rgb")])
def test_the_model_whitens_rgb_back_and_leaves_audio_alone(order, eigenvalues):
    features = {name: FEATURES[name] for name in order}
    model = registry.create(
        "NeXtVLADModel",
        **{**SMALL, "features": features, "pca_eigenvalues": str(eigenvalues)},
    ).ensure_built()
    batch = make_batch(garbage=200)
    frames, mask = model.preprocess(batch)
    x = {n: batch[n].numpy() * (4 / 255) + (4 / 512 - 2) for n in order}
    spread = np.sqrt(np.linspace(4.0, 0.5, 2048)[:16]) + 1e-4
    x["rgb"] = (x["rgb"] - 4 / 512) * spread
    expected = np.concatenate([x[n] for n in order], axis=-1) * MASK[..., None]
    np.testing.assert_allclose(frames, expected, atol=1e-5)
    np.testing.assert_array_equal(mask, MASK)


def test_a_saved_model_needs_the_file_of_eigenvalues_no_more(eigenvalues, tmp_path):
    args = {**SMALL, "pca_eigenvalues": str(eigenvalues)}
    model = registry.create("NeXtVLADModel", **args).ensure_built()
    model.save(tmp_path / "model.keras")
    expected = model(make_batch())["logits"]
    eigenvalues.unlink()
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(make_batch())["logits"], expected)
    with weights_follow():
        empty = registry.create("NeXtVLADModel", **args).ensure_built()
    empty.set_weights(model.get_weights())
    np.testing.assert_array_equal(empty(make_batch())["logits"], expected)


def test_eigenvalues_are_of_the_feature_rgb_alone(eigenvalues):
    with pytest.raises(UserError, match="of the feature rgb, which is not among audio"):
        registry.create(
            "NeXtVLADModel",
            **{**SMALL, "features": {"audio": 4}, "pca_eigenvalues": str(eigenvalues)},
        )


def test_a_model_without_eigenvalues_says_so_once_and_how_to_give_them(
    caplog, eigenvalues
):
    cls = registry.get("NeXtVLADModel").cls
    cls._say_that_frames_are_normalised.cache_clear()
    with caplog.at_level(logging.INFO, "yt8m"):
        args = {**SMALL, "pca_eigenvalues": str(eigenvalues)}
        registry.create("NeXtVLADModel", **args).ensure_built()
        assert not caplog.messages
        for _ in range(2):
            model = registry.create("NeXtVLADModel", **SMALL).ensure_built()
    (message,) = caplog.messages
    assert "--pca_eigenvalues=FILE" in message
    frames, mask = model.preprocess(make_batch())
    np.testing.assert_allclose(np.linalg.norm(frames, axis=-1), mask, atol=1e-6)


# Mixtures


@pytest.mark.parametrize("training", [False, True])
def test_a_mixture_weighs_the_logits_and_pulls_the_branches_to_them(training):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, D))
    logits = [rng.normal(size=(4, C)) for _ in range(3)]
    layer = LogitMixture(temperature=2.0, distillation_weight=0.5)
    inputs = [tf.constant(each, tf.float32) for each in logits]
    layer(tf.constant(x, tf.float32), inputs)
    randomise(layer)
    outputs = layer(tf.constant(x, tf.float32), inputs, training=training)

    seen = normalised(x, layer.batch_norm, x if training else None)
    gates = softmax(seen @ value(layer.gate.kernel) + value(layer.gate.bias))
    mixed = np.einsum("bk,kbc->bc", gates, logits)
    np.testing.assert_allclose(outputs["logits"], mixed, rtol=1e-5, atol=1e-5)
    if not training:
        assert set(outputs) == {"logits"}
        return
    teacher = softmax(mixed / 2)
    expected = (
        0.5
        * 4
        * sum(
            (teacher * np.log(teacher / softmax(each / 2))).sum(-1) for each in logits
        )
    )
    np.testing.assert_allclose(outputs["penalty"], expected, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(outputs["auxiliary_logits"], inputs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_mixture_without_distillation_has_no_penalty():
    layer = LogitMixture(distillation_weight=0.0)
    outputs = layer(tf.ones((2, D)), [tf.ones((2, C))] * 2, training=True)
    assert set(outputs) == {"logits", "auxiliary_logits"}
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        LogitMixture(temperature=0.0)


def make_mixture(**args):
    keras.utils.set_random_seed(1)
    return registry.create(
        "MixtureNeXtVLADModel", num_classes=C, features=FEATURES, **args
    ).ensure_built()


@pytest.mark.parametrize(
    ("branch", "branch_args"),
    [
        ("NeXtVLADModel", {n: SMALL[n] for n in ("clusters", "groups", "hidden_size")}),
        ("NetVLADModel", {"clusters": 4, "hidden_size": 8, "head": "logistic"}),
    ],
)
def test_the_loss_of_a_mixture_is_that_of_all_its_parts(branch, branch_args):
    model = make_mixture(branch=branch, branches=2, branch_args=branch_args)
    outputs = model(make_batch(), training=True)
    labels = np.random.default_rng(2).integers(0, 2, size=(len(LENGTHS), C))
    loss = losses.objective(
        losses.cross_entropy, labels, outputs, deep_supervision_weight=2.0
    )
    each = [
        losses.cross_entropy(labels, {"logits": logits})
        for logits in (outputs["logits"], *outputs["auxiliary_logits"])
    ]
    np.testing.assert_allclose(loss, sum(each) + outputs["penalty"], rtol=1e-5)
    assert len(outputs["auxiliary_logits"]) == 2
    assert outputs["embedding"].shape == (len(LENGTHS), 2 * branch_args["hidden_size"])
    assert set(model(make_batch())) == {"logits", "embedding"}


def test_temperature_and_weight_change_the_penalty_alone():
    args = {"branches": 2, "branch_args": {"clusters": 4, "groups": 2}}
    results = [
        make_mixture(**args, **each)(make_batch(), training=True)
        for each in ({}, {"temperature": 1.0}, {"distillation_weight": 2.0})
    ]
    (plain, hot, heavy) = results
    assert np.abs(hot["penalty"] - plain["penalty"]).max() > 1e-3
    np.testing.assert_allclose(heavy["penalty"], 2 * plain["penalty"], rtol=1e-5)


def test_a_mixture_reads_the_frames_as_its_branches_do(eigenvalues):
    args = {"clusters": 4, "groups": 2, "pca_eigenvalues": str(eigenvalues)}
    model = make_mixture(branches=2, branch_args=args)
    own = model.parts[0].model.preprocess(make_batch())[0]
    np.testing.assert_array_equal(model.preprocess(make_batch())[0], own)
    assert np.linalg.norm(own, axis=-1).max() > 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"branch": "NextVladModel"}, "Did you mean NeXtVLADModel"),
        ({"branch": "LogisticModel"}, "branch=LogisticModel is no model that pools"),
        ({"branches": 0}, "`branches` must be positive"),
        ({"branch_args": {"cluster": 3}}, "no argument cluster. Did you mean clusters"),
    ],
)
def test_a_branch_that_cannot_be_is_the_users_error(args, message):
    with pytest.raises(UserError, match=message):
        registry.create("MixtureNeXtVLADModel", **args)
