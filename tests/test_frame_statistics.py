"""Statistics of frames against NumPy, of each video's valid frames alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.statistics import STATISTICS, FrameStatistics
from yt8m.schema import DEQUANTIZE_OFFSET, DEQUANTIZE_SCALE

D, T, K = 3, 7, 3
LENGTHS = np.array([0, 1, 2, 4, 7])


def make_bytes():
    """Few levels, so that some come twice; what is beyond a length is garbage."""
    rng = np.random.default_rng(0)
    frames = rng.integers(100, 104, size=(len(LENGTHS), T, D)).astype("uint8")
    mask = np.arange(T) < LENGTHS[:, None]
    return np.where(mask[..., None], frames, 255).astype("uint8"), mask


def numbers(frames):
    return frames.astype("float64") * DEQUANTIZE_SCALE + DEQUANTIZE_OFFSET


def mode(column):
    values, counts = np.unique(column, return_counts=True)
    return values[counts.argmax()]


def top(x):
    ordered = np.sort(x, axis=0)[::-1]
    rows = [ordered[min(i, len(x) - 1)] for i in range(K)]
    return np.stack(rows, axis=1).reshape(-1)


TWINS = {
    "mean": lambda x: x.mean(0),
    "std": lambda x: x.std(0),
    "min": lambda x: x.min(0),
    "max": lambda x: x.max(0),
    "median": lambda x: np.median(x, axis=0),
    "mode": lambda x: np.apply_along_axis(mode, 0, x),
    "top_k": top,
    "length": lambda x: np.array([len(x)]),
}


def twin(name, frames):
    size = {"top_k": K * D, "length": 1}.get(name, D)
    x = numbers(frames)
    return np.stack(
        [
            TWINS[name](video[:n]) if n else np.zeros(size)
            for video, n in zip(x, LENGTHS, strict=True)
        ]
    )


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_of_the_valid_frames(name):
    frames, mask = make_bytes()
    found = FrameStatistics([name], k=K)(frames, mask)
    np.testing.assert_allclose(found, twin(name, frames), atol=1e-6)


def test_statistics_are_concatenated_in_the_order_asked_for():
    frames, mask = make_bytes()
    names = list(reversed(STATISTICS))
    layer = FrameStatistics(names, k=K)
    found = layer(frames, mask)
    expected = np.concatenate([twin(name, frames) for name in names], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert layer.compute_output_shape(frames.shape) == found.shape
    again = FrameStatistics.from_config(layer.get_config())
    np.testing.assert_array_equal(again(frames, mask), found)


def test_of_equally_common_values_the_lowest_is_the_mode():
    frames = np.array([[[9], [7], [9], [7], [8]]], "uint8")
    found = FrameStatistics(["mode"])(frames, np.ones((1, 5), bool))
    np.testing.assert_allclose(found, numbers(np.array([[7]])), atol=1e-6)


def test_the_mode_of_floats_is_that_of_the_nearest_bytes():
    bytes_ = np.array([[[0], [10], [10], [200], [255]]], "uint8")
    # Two that are near level 10, and two beyond the ends, which are clipped.
    floats = numbers(bytes_) + np.array([[[-5], [0.003], [-0.003], [0], [5]]])
    mask = np.ones((1, 5), bool)
    expected = FrameStatistics(["mode"])(bytes_, mask)
    np.testing.assert_allclose(expected, numbers(np.array([[10]])), atol=1e-6)
    found = FrameStatistics(["mode"])(floats.astype("float32"), mask)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_statistics_under_a_low_precision_policy_are_rounded_once():
    frames, mask = make_bytes()
    names = [name for name in STATISTICS if name != "length"]
    exact = FrameStatistics(names)(frames, mask)
    low = FrameStatistics(names, dtype="mixed_bfloat16")(
        tf.cast(numbers(frames), tf.float32), mask
    )
    assert low.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(low, tf.float32), exact, rtol=0.004, atol=1e-6)


def test_gradients_are_finite_where_a_video_stands_still_or_is_empty():
    frames, mask = make_bytes()
    x = tf.Variable(numbers(np.repeat(frames[:, :1], T, axis=1)).astype("float32"))
    names = [name for name in STATISTICS if name not in ("mode", "length")]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(FrameStatistics(names)(x, mask))
    gradient = tape.gradient(loss, x).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


@pytest.mark.parametrize("compiled", [False, True])
def test_graphs_take_any_length_and_none(compiled):
    frames, mask = make_bytes()
    layer = FrameStatistics(STATISTICS, k=K)
    expected = layer(frames, mask)
    if compiled:
        graph = tf.function(layer, jit_compile=True)
    else:
        graph = tf.function(
            layer,
            input_signature=[
                tf.TensorSpec([None, None, D], tf.uint8),
                tf.TensorSpec([None, None], tf.bool),
            ],
        )
    found = graph(tf.constant(frames), tf.constant(mask))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for rows, length in ((2, 0), (0, T)):
        part = tf.constant(frames[:rows, :length]), tf.constant(mask[:rows, :length])
        np.testing.assert_array_equal(
            graph(*part), np.zeros((rows, expected.shape[1]), "float32")
        )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"statistics": ["mean", "maen"]}, "`statistics` must be some of mean, std"),
        ({"statistics": ["mean", "mean"]}, "each once"),
        ({"statistics": []}, "each once"),
        ({"k": 0}, "`k` must be positive"),
    ],
)
def test_wrong_arguments_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        FrameStatistics(**args)


def test_statistics_are_saved_with_a_model(tmp_path):
    frames = keras.Input((T, D))
    mask = keras.Input((T,), dtype="bool")
    model = keras.Model(
        [frames, mask], FrameStatistics(["max", "median"])(frames, mask)
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    given, mask = make_bytes()
    given = numbers(given).astype("float32")
    np.testing.assert_array_equal(again([given, mask]), model([given, mask]))
