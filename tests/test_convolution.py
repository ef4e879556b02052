"""Convolutions over time against NumPy, with ragged lengths and garbage padding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.averaging import mean_probability_logits
from yt8m.layers.convolution import (
    ConvolutionPooling,
    FeatureConvolution,
    TemporalConvolution,
    TemporalResidualBlock,
    convolve,
    max_of_pairs,
)

LENGTHS = [0, 1, 3, 6]
T, D = 6, 5
MASK = np.arange(T) < np.array(LENGTHS)[:, None]


def frames_of(garbage=0.0, length=T):
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), T, D))
    x = np.where(MASK[..., None], x, garbage)[:, :length]
    x = np.pad(x, [(0, 0), (0, length - x.shape[1]), (0, 0)], constant_values=garbage)
    return x.astype("float32")


def randomised(layer, *inputs):
    """The layer, built, with weights that are neither 0 nor 1."""
    layer(*inputs)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        value = rng.normal(size=weight.shape)
        weight.assign(abs(value) + 0.5 if "moving_variance" in weight.path else value)
    return layer


def value(weight):
    return np.asarray(weight, "float64")


def normalised(x, norm):
    scaled = (x - value(norm.moving_mean)) / np.sqrt(
        value(norm.moving_variance) + norm.epsilon
    )
    return scaled * value(norm.gamma) + value(norm.beta)


def convolution_of(x, kernel, before):
    """Twin of `convolve`, window by window, of one video [n, D]."""
    width = len(kernel)
    padded = np.pad(x, [(before, width - 1 - before), (0, 0)])
    windows = [padded[t : t + width] for t in range(len(x))]
    return np.array(
        [np.einsum("nd,ndc->c", window, kernel) for window in windows]
    ).reshape(len(x), kernel.shape[2])


@pytest.mark.parametrize(("padding", "before"), [("same", 1), ("causal", 3)])
@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_a_convolution_is_the_sum_over_its_windows(padding, before, length):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, length, 3)).astype("float32")
    kernel = rng.normal(size=(4, 3, 2)).astype("float32")
    y = convolve(tf.constant(x), tf.constant(kernel), padding)
    expected = [convolution_of(each, kernel, before) for each in x]
    np.testing.assert_allclose(y, np.reshape(expected, (2, length, 2)), atol=1e-5)


def test_an_impulse_comes_out_as_the_kernel_in_reverse():
    kernel = np.array([1.0, 2.0, 3.0], "float32").reshape(3, 1, 1)
    x = np.zeros((1, 5, 1), "float32")
    x[0, 2] = 1
    same = convolve(tf.constant(x), tf.constant(kernel), "same")
    np.testing.assert_allclose(same[0, :, 0], [0, 3, 2, 1, 0], atol=1e-6)
    causal = convolve(tf.constant(x), tf.constant(kernel), "causal")
    np.testing.assert_allclose(causal[0, :, 0], [0, 0, 3, 2, 1], atol=1e-6)


@pytest.mark.parametrize("add_batch_norm", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("padding", ["same", "causal"])
def test_a_temporal_convolution_equals_its_twin(padding, activation, add_batch_norm):
    layer = TemporalConvolution(
        [2, 3, 4], [1, 2, 4], padding, activation, add_batch_norm
    )
    dirty = tf.constant(frames_of(garbage=1e6))
    y = randomised(layer, dirty, MASK)(dirty, MASK)
    for b, (x, n) in enumerate(zip(frames_of(), LENGTHS, strict=True)):
        parts = []
        for width, kernel in zip([1, 2, 4], layer.kernels, strict=True):
            before = width - 1 if padding == "causal" else (width - 1) // 2
            parts.append(convolution_of(x[:n], value(kernel), before))
        expected = np.concatenate(parts, axis=-1)
        if add_batch_norm:
            expected = normalised(expected, layer.batch_norm)
        else:
            expected = expected + value(layer.bias)
        expected = np.maximum(expected, 0) if activation else expected
        np.testing.assert_allclose(y[b, :n], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(y[b, n:], np.zeros((T - n, 9)))


def test_statistics_of_a_temporal_convolution_are_of_valid_frames():
    layer = TemporalConvolution(2, 1, activation=None)
    x = frames_of()
    y = layer(tf.constant(x), MASK, training=True)
    valid = x[MASK] @ value(layer.kernels[0])[0]
    expected = (valid - valid.mean(0)) / np.sqrt(valid.var(0) + 1e-3)
    np.testing.assert_allclose(y.numpy()[MASK], expected, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_convolution_pooling_takes_the_greatest_of_the_whole_windows(activation):
    layer = ConvolutionPooling([2, 3], [1, 4], activation)
    dirty = tf.constant(frames_of(garbage=1e6))
    pooled = randomised(layer, dirty, MASK)(dirty, MASK)
    kernels = [value(kernel) for kernel in layer.convolution.kernels]
    bias = np.split(value(layer.convolution.bias), [2])
    np.testing.assert_array_equal(pooled[0], np.zeros(5))
    for b in (1, 2, 3):
        x, expected = frames_of()[b, : LENGTHS[b]].astype("float64"), []
        for kernel, offset in zip(kernels, bias, strict=True):
            width = len(kernel)
            # A video of fewer frames than the width: one window, zeros before it.
            full = np.pad(x, [(max(width - len(x), 0), 0), (0, 0)])
            windows = [full[t : t + width] for t in range(len(full) - width + 1)]
            responses = [np.einsum("nd,ndc->c", w, kernel) + offset for w in windows]
            expected.append(np.max(responses, axis=0))
        expected = np.concatenate(expected)
        expected = np.maximum(expected, 0) if activation else expected
        np.testing.assert_allclose(pooled[b], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [D, 4])
def test_a_residual_block_adds_two_convolutions_to_its_shortcut(channels):
    layer = TemporalResidualBlock(channels, 3)
    dirty = tf.constant(frames_of(garbage=1e6))
    y = randomised(layer, dirty, MASK)(dirty, MASK)
    assert (len(layer.weights) == 18) == (channels != D)
    for b, (x, n) in enumerate(zip(frames_of(), LENGTHS, strict=True)):

        def block(x, convolution):
            y = convolution_of(
                x, value(convolution.kernels[0]), (convolution.widths[0] - 1) // 2
            )
            return normalised(y, convolution.batch_norm)

        inner = np.maximum(block(x[:n], layer.first), 0)
        short = x[:n] if channels == D else block(x[:n], layer.shortcut)
        expected = np.maximum(short + block(inner, layer.second), 0)
        np.testing.assert_allclose(y[b, :n], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(y[b, n:], np.zeros((T - n, channels)))


def test_a_feature_convolution_runs_along_the_features_of_each_frame():
    layer = FeatureConvolution(layers=2, channels=3, width=3)
    x = tf.constant(frames_of())
    y = randomised(layer, x)(x)
    assert y.shape == x.shape
    signal = frames_of()[3, 4][:, None].astype("float64")
    for kernel, bias in zip(layer.kernels, layer.biases, strict=True):
        signal = convolution_of(signal, value(kernel), 1) + value(bias)
        signal = np.where(signal > 0, signal, np.expm1(signal))
    np.testing.assert_allclose(y[3, 4], signal[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [0, 1, 5, 6, 7])
def test_the_greater_of_each_pair_of_valid_frames_goes_on(length):
    mask = np.arange(length) < np.array(LENGTHS)[:, None]
    x = frames_of(garbage=1e6, length=length)
    pooled, valid = max_of_pairs(tf.constant(x), tf.constant(mask))
    half = (length + 1) // 2
    assert pooled.shape == (len(LENGTHS), half, D) and valid.shape == pooled.shape[:2]
    for b, n in enumerate(np.minimum(LENGTHS, length)):
        rows = [x[b, t : min(t + 2, n)].max(0) for t in range(0, n, 2)]
        rows = np.reshape(rows, (len(rows), D))
        np.testing.assert_array_equal(valid[b], np.arange(half) < len(rows))
        np.testing.assert_array_equal(pooled[b, : len(rows)], rows)
        np.testing.assert_array_equal(
            pooled[b, len(rows) :], np.zeros((half - len(rows), D))
        )


def test_a_mean_of_probabilities_is_taken_without_rounding_them():
    logits = [tf.constant([0.3, -2.0, 60.0, -200.0]), tf.constant([1.0, 4, 60, -200])]
    mean = mean_probability_logits(logits)
    p = np.mean([1 / (1 + np.exp(-x.numpy()[:2])) for x in logits], axis=0)
    np.testing.assert_allclose(mean[:2], np.log(p) - np.log1p(-p), rtol=1e-5)
    np.testing.assert_allclose(mean[2:], [60, -200], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemporalConvolution([1, 2], 3), "one for each width"),
        (lambda: TemporalConvolution(0), "`channels` must be positive"),
        (lambda: TemporalConvolution(1, [1, 0]), "`widths` must be positive"),
        (lambda: TemporalConvolution(1, padding="full"), "`padding` must be one of"),
        (lambda: TemporalConvolution(1, activation="elu"), "`activation` must be one"),
        (lambda: FeatureConvolution(layers=0), "`layers` must be positive"),
    ],
)
def test_wrong_arguments_of_a_convolution_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        TemporalConvolution([2, 3], [1, 2], "causal", None, False),
        ConvolutionPooling([2, 3], [1, 2], None, True),
        TemporalResidualBlock(3, 2),
        FeatureConvolution(2, 3, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_convolution_is_rebuilt_from_its_configuration(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    assert layer.compute_output_shape((4, 6, 3)) == again.compute_output_shape(
        (4, 6, 3)
    )
