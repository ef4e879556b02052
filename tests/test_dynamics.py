"""What changes in a video: the mean removed, and the wavelet's high-pass filter."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m import registry, runs
from yt8m.errors import UserError
from yt8m.layers import dynamics
from yt8m.layers.masking import length_mask
from yt8m.layers.preprocessing import dequantize

LENGTHS = [0, 1, 2, 3, 5, 9]


def published_filter() -> np.ndarray:
    """Daubechies' low-pass filter in closed form, mirrored with changing signs."""
    a, b = math.sqrt(10), math.sqrt(5 + 2 * math.sqrt(10))
    h = [1 + a + b, 5 + a + 3 * b, 10 - 2 * a + 2 * b]
    h += [10 - 2 * a - 2 * b, 5 + a - 3 * b, 1 + a - b]
    low = np.array(h) / (16 * math.sqrt(2))
    return np.array([-1, 1, -1, 1, -1, 1]) * low


def test_the_filter_is_daubechies_own():
    g = np.array(dynamics.DB3)
    np.testing.assert_allclose(g, published_filter(), atol=1e-12)
    for power in range(3):  # vanishing moments
        assert abs((g * np.arange(6.0) ** power).sum()) < 1e-12


def make_frames(seed=0):
    frames = np.random.default_rng(seed).normal(size=(6, 9, 4)).astype("float32")
    return frames, np.arange(9)[None, :] < np.array(LENGTHS)[:, None]


def twin(name, x):
    """The transform of one video without padding, in float64."""
    x = x.astype("float64")
    if name == "minus_mean":
        return x - x.mean(axis=0) if len(x) else x
    if not len(x):
        return x
    # A mirror at both ends; "full" has y_t at t + 5, for x_t .. x_(t-5).
    mirrored = np.pad(x, ((5, 5), (0, 0)), mode="symmetric")
    filtered = [np.convolve(column, published_filter()) for column in mirrored.T]
    return np.stack(filtered, axis=1)[7 : 7 + len(x)]


@pytest.mark.parametrize("name", dynamics.DYNAMICS)
def test_transforms_are_their_twins_whatever_the_padding_holds(name):
    frames, mask = make_frames()
    got = keras.ops.convert_to_numpy(dynamics.find_dynamics(name)(frames, mask))
    for i, length in enumerate(LENGTHS):
        expected = twin(name, frames[i, :length])
        np.testing.assert_allclose(got[i, :length], expected, atol=1e-5)
        assert not got[i, length:].any()
    other = np.where(mask[..., None], frames, 1e3).astype("float32")
    again = keras.ops.convert_to_numpy(dynamics.find_dynamics(name)(other, mask))
    np.testing.assert_array_equal(again, got)
    assert dynamics.find_dynamics(name)(frames[:, :0], mask[:, :0]).shape == (6, 0, 4)


@pytest.mark.parametrize("name", dynamics.DYNAMICS)
def test_transforms_compile_with_xla(name):
    transform, (frames, mask) = dynamics.find_dynamics(name), make_frames()
    compiled = tf.function(transform, jit_compile=True)(frames, tf.constant(mask))
    np.testing.assert_allclose(compiled, transform(frames, mask), atol=1e-5)


@pytest.mark.parametrize("name", dynamics.DYNAMICS)
def test_still_videos_are_exactly_zero(name):
    frames = np.full((2, 300, 3), 0.1234567, "float32")
    mask = length_mask(np.array([300, 7]), 300)
    assert not np.any(dynamics.find_dynamics(name)(frames, mask))


def test_the_mean_and_the_filter_of_three_frames_by_hand():
    frames = np.array([[[1.0], [2.0], [6.0]]], "float32")
    mask = np.ones((1, 3), bool)
    np.testing.assert_allclose(
        np.ravel(dynamics.minus_mean(frames, mask)), [-2, -1, 3], atol=1e-6
    )
    # y_0 = g_0 x_2 + g_1 x_1 + g_2 x_0 + g_3 x_0 + g_4 x_1 + g_5 x_2, in the mirror.
    g = published_filter()
    y = np.ravel(dynamics.wavelet_high_pass(frames, mask))
    np.testing.assert_allclose(y[0], g @ [6, 2, 1, 1, 2, 6], atol=1e-5)
    np.testing.assert_allclose(y[1], g @ [6, 6, 2, 1, 1, 2], atol=1e-5)


@pytest.mark.parametrize("name", dynamics.DYNAMICS)
def test_a_model_sees_the_dynamics_and_a_saved_one_too(name, tmp_path):
    runs.load_registries(None)
    rng = np.random.default_rng(1)
    inputs = {
        "rgb": rng.integers(0, 256, (6, 9, 3)).astype("uint8"),
        "audio": rng.integers(0, 256, (6, 9, 2)).astype("uint8"),
        "num_frames": np.array(LENGTHS, "int32"),
    }
    args = {"features": {"rgb": 3, "audio": 2}, "num_classes": 4, "dynamics": name}
    model = registry.create("FrameLevelLogisticModel", **args).ensure_built()
    frames, _ = model.preprocess(inputs)
    joined = np.concatenate(
        [dequantize(inputs[n], "float32") for n in ("rgb", "audio")], axis=-1
    )
    for i, length in enumerate(LENGTHS):
        x = twin(name, joined[i, :length])
        norms = np.linalg.norm(x, axis=-1, keepdims=True)
        expected = np.where(norms > 1e-6, x / np.maximum(norms, 1e-6), 0)
        np.testing.assert_allclose(frames[i, :length], expected, atol=1e-4)
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    assert loaded.dynamics == name
    np.testing.assert_allclose(
        loaded(inputs)["logits"], model(inputs)["logits"], atol=1e-6
    )


def test_a_mixture_gives_its_dynamics_to_every_branch():
    runs.load_registries(None)
    args = {"features": {"rgb": 3}, "num_classes": 4, "branches": 2}
    args |= {"branch": "NetVLADModel"}
    small = {"clusters": 2, "hidden_size": 4}
    model = registry.create(
        "MixtureNeXtVLADModel", branch_args=small, dynamics="minus_mean", **args
    )
    inputs = {"rgb": np.full((1, 4, 3), 200, "uint8"), "num_frames": np.array([4])}
    assert not np.any(model.preprocess(inputs)[0])
    with pytest.raises(UserError, match="give it once"):
        registry.create(
            "MixtureNeXtVLADModel",
            branch_args={**small, "dynamics": "wavelet"},
            dynamics="minus_mean",
            **args,
        )


def test_unknown_dynamics_list_near_matches():
    with pytest.raises(UserError, match="Did you mean wavelet"):
        dynamics.find_dynamics("wavelets")
