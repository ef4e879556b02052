"""Sums of frames by position, and the surest frames, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.frame_combinations import LinearCombinations, SurestFrames

LENGTHS = [0, 1, 3, 6]
T, D = 6, 5
MASK = np.arange(T) < np.array(LENGTHS)[:, None]


def frames_of(garbage=0.0):
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), T, D))
    return np.where(MASK[..., None], x, garbage).astype("float32")


@pytest.mark.parametrize("max_frames", [4, 6, 9])
def test_linear_combinations_weight_frames_by_their_position(max_frames):
    layer = LinearCombinations(3, max_frames)
    x = tf.constant(frames_of(garbage=1e6))
    layer(x, MASK)
    weights = np.random.default_rng(1).normal(size=(max_frames, 3))
    layer.kernel.assign(weights)
    for b, n in enumerate(np.minimum(LENGTHS, max_frames)):
        expected = weights[:n].T @ frames_of()[b, :n]
        np.testing.assert_allclose(
            layer(x, MASK)[b], expected.reshape(-1), rtol=1e-4, atol=1e-5
        )


def test_linear_combinations_start_near_the_mean():
    layer = LinearCombinations(2, 100)
    x = tf.ones((1, 100, 3))
    pooled = layer(x, np.ones((1, 100), bool))
    np.testing.assert_allclose(pooled, np.ones((1, 6)), atol=0.5)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_surest_frames_come_first_and_are_scaled_by_their_confidence(count):
    layer = SurestFrames(count)
    x = tf.constant(frames_of(garbage=1e3))
    layer(x, MASK)
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(D, 1)), rng.normal()
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
    for b, n in enumerate(LENGTHS):
        frames = frames_of()[b, :n]
        sure = 1 / (1 + np.exp(-(frames @ kernel + bias)))
        scaled = (frames * sure)[np.argsort(-sure[:, 0])][:count]
        expected = np.zeros((count, D))
        expected[: len(scaled)] = scaled
        np.testing.assert_allclose(
            layer(x, MASK)[b], expected.reshape(-1), rtol=1e-4, atol=1e-5
        )


def test_the_confidence_learns_from_the_frames_that_are_kept():
    layer = SurestFrames(2)
    x = tf.constant(frames_of())
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.square(layer(x, MASK)))
    for gradient in tape.gradient(total, layer.trainable_weights):
        assert np.isfinite(gradient).all() and np.any(gradient != 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearCombinations(0), "`combinations` must be positive"),
        (lambda: LinearCombinations(1, 0), "`max_frames` must be positive"),
        (lambda: SurestFrames(0), "`count` must be positive"),
    ],
)
def test_wrong_arguments_of_a_combination_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [LinearCombinations(2, 4), SurestFrames(3)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_combination_is_rebuilt_from_its_configuration(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    x = tf.constant(frames_of())
    assert again(x, MASK).shape == layer.compute_output_shape(x.shape)
