"""Video-level models with a trunk or a head of their own."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import video_level_models  # noqa: F401  (registers)
from yt8m import registry
from yt8m.errors import UserError
from yt8m.layers.chaining import ChainHead, MultiTaskChainHead
from yt8m.layers.heads import LogisticHead, MoEHead
from yt8m.layers.residual import MoNNHead, ResNetLikeHead

C, B = 7, 4
FEATURES = {"mean_rgb": 16, "mean_audio": 4}
SMALL = {
    "DeepCombineChainModel": {"head_args": {"stages": 2, "cells": 4}},
    "MlpModel": {"hidden_sizes": (8, 6)},
    "MonnModel": {"head_args": {"expansions": (2, 1)}},
    "MultiTaskCombineChainModel": {
        "head_args": {"stages": (2, 1), "cells": (4, 5), "latent_sizes": (6, 3)}
    },
    "ResNetLikeModel": {"inner_size": 8},
    "ThsModel": {"hidden_size": 6},
}


def make(name, features=FEATURES, **args):
    keras.utils.set_random_seed(1)
    args = {**SMALL[name], **args}
    model = registry.create(name, num_classes=C, features=dict(features), **args)
    return model.ensure_built()


def make_batch(features=FEATURES, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: tf.constant(rng.normal(size=(B, size)), tf.float32)
        for name, size in features.items()
    }


def joined(batch):
    return np.concatenate(list(batch.values()), axis=-1)


def l2(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def normalization(tmp_path):
    """A file and the function that it stands for."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=20), rng.uniform(0.5, 2, size=20)
    components, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    path = str(tmp_path / "normalization.npz")
    np.savez(path, mean=mean, components=components, variance=variance)
    return path, lambda x: l2((x - mean) @ components / np.sqrt(variance + 1e-4))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DeepCombineChainModel", l2),
        ("MultiTaskCombineChainModel", l2),
        ("MlpModel", lambda x: x),
        ("MonnModel", lambda x: x),
        ("ResNetLikeModel", lambda x: x),
        ("ThsModel", lambda x: x),
    ],
)
def test_a_model_normalises_its_input_as_its_source_does(name, expected):
    batch = make_batch()
    ours = make(name).preprocess(batch)
    np.testing.assert_allclose(ours, expected(joined(batch)), atol=1e-6)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_file_of_statistics_takes_the_place_of_that(name, normalization):
    path, whiten = normalization
    batch = make_batch()
    model = make(name, normalization=path)
    np.testing.assert_allclose(
        model.preprocess(batch), whiten(joined(batch)), atol=1e-5
    )
    model = make(name, normalization=path, normalization_size=9)
    assert model(batch)["logits"].shape == (B, C)


@pytest.mark.parametrize("name", ["ResNetLikeModel", "MonnModel"])
def test_a_saved_model_keeps_the_statistics(name, normalization, tmp_path):
    path, _ = normalization
    model, batch = make(name, normalization=path), make_batch()
    model.save(tmp_path / "model.keras")
    os.remove(path)
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(batch)["logits"], model(batch)["logits"])


def test_a_new_model_needs_the_file(tmp_path):
    with pytest.raises(UserError, match="nothing.npz cannot be read"):
        make("MlpModel", normalization=str(tmp_path / "nothing.npz"))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("DeepCombineChainModel", ChainHead),
        ("MlpModel", LogisticHead),
        ("MonnModel", MoNNHead),
        ("MultiTaskCombineChainModel", MultiTaskChainHead),
        ("ResNetLikeModel", LogisticHead),
        ("ThsModel", LogisticHead),
    ],
)
def test_a_model_has_its_sources_head_or_any_other(name, head):
    assert type(make(name).classifier) is head
    other = make(name, head="moe", head_args={})
    assert type(other.classifier) is MoEHead
    other = make(name, head="resnetlike", head_args={"inner_size": 5})
    assert type(other.classifier) is ResNetLikeHead
    assert other(make_batch())["logits"].shape == (B, C)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_weights_of_a_video_models_head_come_last(name):
    # Restoring is by place.
    places = ["/head/" in v.path for v in make(name).variables]
    assert places == sorted(places) and any(places)


def test_a_resnet_has_a_stream_for_each_feature():
    model = make("ResNetLikeModel", dropout=0.0)
    assert [s[0].dense.kernel.shape for s in model.resnet.streams] == [(16, 8), (4, 8)]
    assert model.resnet.end.dense.kernel.shape == (16, 8)
    one = make("ResNetLikeModel", features={"mean_audio": 4})
    assert one.resnet.end.dense.kernel.shape == (8, 8)

    # The first stream does not see the second feature.
    batch = make_batch()
    other = {**batch, "mean_audio": -batch["mean_audio"]}
    for x in (batch, other):
        streams = model.streams(model.preprocess(x))
        np.testing.assert_array_equal(streams[0], batch["mean_rgb"])


def test_whitened_features_are_one_stream(normalization):
    model = make("ResNetLikeModel", normalization=normalization[0])
    assert [s[0].dense.kernel.shape for s in model.resnet.streams] == [(20, 8)]


def test_a_resnet_has_the_size_of_its_formula():
    def dense_block(inputs):
        return inputs * 8 + 2 * 8

    def residual_block(size):
        return dense_block(size) + 8 * size + size

    model = make("ResNetLikeModel", stream_blocks=3, joint_blocks=2)
    streams = dense_block(16) + dense_block(4) + 2 * 3 * residual_block(8)
    joint = 2 * residual_block(16) + dense_block(16)
    sizes = [int(np.prod(w.shape)) for w in model.trainable_weights]
    assert sum(sizes) == streams + joint + 8 * C + C


def test_the_stages_of_a_chain_are_supervised():
    model = make("DeepCombineChainModel")
    outputs = model(make_batch(), training=True)
    assert [x.shape for x in outputs["auxiliary_logits"]] == 2 * [(B, C)]
    assert "auxiliary_logits" not in model(make_batch())


def test_noise_is_added_in_training_alone():
    batch = make_batch()
    model = make("ThsModel", noise=0.5, dropout=0.0)
    np.testing.assert_array_equal(model(batch)["logits"], model(batch)["logits"])
    quiet = make("ThsModel", noise=0.0, dropout=0.0)
    quiet.set_weights(model.get_weights())
    np.testing.assert_allclose(quiet(batch)["logits"], model(batch)["logits"])
    first = model(batch, training=True)["logits"].numpy()
    assert np.abs(first - model(batch, training=True)["logits"]).max() > 1e-3


def test_each_feature_is_normalised_alone_after_the_noise():
    batch = make_batch()
    model = make("ThsModel", noise=0.0, dropout=0.0)
    scaled = {**batch, "mean_audio": 100 * batch["mean_audio"]}
    np.testing.assert_allclose(
        model(scaled)["logits"], model(batch)["logits"], atol=1e-5
    )


def test_the_number_of_frames_is_scaled_and_nothing_else():
    features = {"mean_rgb": 3, "std_rgb": 3, "num_frames": 1}
    batch = make_batch(features)
    batch["num_frames"] = tf.constant([[300.0], [150.0], [0.0], [3.0]])
    ours = make("MonnModel", features).preprocess(batch)
    np.testing.assert_allclose(ours[:, -1], [1, 0.5, 0, 0.01])
    np.testing.assert_allclose(ours[:, :-1], joined(batch)[:, :-1])


def test_an_mlp_normalises_its_features_by_the_batch():
    model, batch = make("MlpModel", dropout=0.0), make_batch()
    shifted = {k: 3 * v + 1 for k, v in batch.items()}
    np.testing.assert_allclose(
        model(batch, training=True)["logits"],
        model(shifted, training=True)["logits"],
        atol=1e-2,
    )


def test_the_defaults_are_those_of_the_sources():
    def defaults(cls):
        return registry.arguments(cls)

    resnet = defaults(registry.get("ResNetLikeModel").cls)
    assert resnet["inner_size"] == 2048 and resnet["dropout"] == 0.5
    assert resnet["stream_blocks"] == resnet["joint_blocks"] == 1
    assert defaults(registry.get("MlpModel").cls)["hidden_sizes"] == 3 * (4096,)
    assert defaults(registry.get("ThsModel").cls)["noise"] == 0.05
    assert defaults(MultiTaskChainHead)["latent_sizes"] == (512, 736)
    assert defaults(MoNNHead)["expansions"] == (8, 1, 4)
    for name in SMALL:
        assert registry.get(name).cls.default_features() == {
            "mean_rgb": 1024,
            "mean_audio": 128,
        }
