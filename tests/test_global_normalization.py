"""Whitening by the statistics of a dataset: its numbers, its file, its keeping."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.errors import UserError
from yt8m.layers.constants import weights_follow
from yt8m.layers.global_normalization import GlobalNormalization

D = 6


@pytest.fixture
def statistics():
    rng = np.random.default_rng(0)
    components, _ = np.linalg.qr(rng.normal(size=(D, D)))
    return {
        "mean": rng.normal(size=D),
        "components": components,
        "variance": np.array([9, 4, 2, 1, 0.1, 0]),
    }


@pytest.fixture
def file(statistics, tmp_path):
    np.savez(tmp_path / "normalization.npz", **statistics)
    return str(tmp_path / "normalization.npz")


def whitened(x, statistics, size=D):
    x = (x - statistics["mean"]) @ statistics["components"][:, :size]
    x = x / np.sqrt(statistics["variance"][:size] + 1e-4)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("size", [None, 2])
def test_the_mean_is_subtracted_and_the_components_are_whitened(file, statistics, size):
    x = np.random.default_rng(1).normal(size=(4, D))
    layer = GlobalNormalization(file, size)
    ours = layer(tf.constant(x, tf.float32))
    expected = whitened(x, statistics, size or D)
    assert ours.shape == layer.compute_output_shape((4, D)) == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_what_was_whitened_has_the_covariance_of_noise(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, D)) @ rng.normal(size=(D, D)) + rng.normal(size=D)
    variance, components = np.linalg.eigh(np.cov(x.T))
    np.savez(
        tmp_path / "n.npz", mean=x.mean(0), components=components, variance=variance
    )
    y = GlobalNormalization(str(tmp_path / "n.npz"))(tf.constant(x, tf.float32))
    np.testing.assert_allclose(np.cov(y.numpy().T), np.eye(D) / D, atol=0.02)


def test_the_mean_itself_becomes_zero_and_has_a_finite_gradient(file, statistics):
    layer = GlobalNormalization(file)
    x = tf.constant(statistics["mean"][None], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    np.testing.assert_array_equal(y, np.zeros((1, D)))
    assert np.isfinite(tape.gradient(y, x)).all()


def test_a_low_precision_layer_computes_in_float32(file, statistics):
    x = 1e3 * np.random.default_rng(1).normal(size=(4, D))
    layer = GlobalNormalization(file, dtype="mixed_float16")
    y = layer(tf.constant(x, tf.float32))
    assert y.dtype == tf.float16
    np.testing.assert_allclose(y, whitened(x, statistics), atol=1e-3)


def test_nothing_of_it_is_trained(file):
    layer = GlobalNormalization(file)
    layer.build((None, D))
    assert len(layer.weights) == 3 and not layer.trainable_weights


def test_a_layer_whose_weights_follow_needs_no_file():
    layer = GlobalNormalization("/nowhere.npz")
    with weights_follow():
        layer.build((None, D))
    np.testing.assert_array_equal(layer.mean, np.zeros(D))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"text", "is no file of global normalisation"),
        ({"mean": np.zeros(D)}, "is no file of global normalisation"),
        (
            {"mean": np.zeros(D + 1), "components": np.eye(D), "variance": np.ones(D)},
            r"have the shape \[7\]; the model needs \[6\]",
        ),
        (
            {"mean": np.zeros(D), "components": np.eye(D, 3), "variance": np.ones(3)},
            r"have the shape \[6, 3\]; the model needs \[6, 6\]",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_the_users_error(tmp_path, content, message):
    path = tmp_path / "n.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        np.savez(path, **content)
    with pytest.raises(UserError, match=message):
        GlobalNormalization(str(path)).build((None, D))


def test_a_size_that_cannot_be_is_refused(file):
    with pytest.raises(ValueError, match="`size` must be positive"):
        GlobalNormalization(file, 0)


def test_the_configuration_rebuilds_the_layer(file):
    layer = GlobalNormalization(file, 3, epsilon=0.1)
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
