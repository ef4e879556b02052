"""Poolings without weights against NumPy, of each video's valid frames alone."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m.errors import UserError
from yt8m.layers.compact_bilinear import CompactBilinear
from yt8m.layers.constants import weights_follow
from yt8m.layers.frame_encoding import (
    AdaptiveNoise,
    IndirectClustering,
    PositionEncoding,
)
from yt8m.layers.simple_poolings import (
    AveragePooling,
    MaxPooling,
    SelfWeightedPooling,
    TopKPooling,
)

D, T = 5, 6
LENGTHS = np.array([0, 1, 3, 6])
LABELS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], "uint8")


def make_frames(garbage=0.0):
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(len(LENGTHS), T, D)).astype("float32")
    frames[3, :, 0] = 0
    mask = np.arange(T) < LENGTHS[:, None]
    return np.where(mask[..., None], frames, np.float32(garbage)), mask


def position_encoding(x):
    n = len(x)
    y = np.zeros(D)
    for i in range(1, n + 1):
        for j in range(1, D + 1):
            weight = (1 - i / n) - (j / D) * (1 - 2 * i / n)
            y[j - 1] += weight * x[i - 1, j - 1]
    return y


def indirect_clustering(x):
    likeness = np.array([sum(a @ b for b in x) for a in x])
    weights = np.exp(likeness - likeness.max())
    return weights / weights.sum() @ x


def self_weighted(x):
    total = np.abs(x).sum(0)
    return (x * np.abs(x)).sum(0) / np.where(total > 0, total, 1)


@pytest.fixture
def counts(tmp_path):
    path = tmp_path / "videos.csv"
    path.write_text("Index,Videos\n0,4\n1,2\n")
    return str(path)


POOLINGS = {
    "average": (AveragePooling, {}, lambda x: x.mean(0)),
    "max": (MaxPooling, {}, lambda x: x.max(0)),
    "self_weighted": (SelfWeightedPooling, {}, self_weighted),
    "top_2": (TopKPooling, {"k": 2}, lambda x: np.sort(x, 0)[::-1][:2].mean(0)),
    "top_5": (TopKPooling, {}, lambda x: np.sort(x, 0)[::-1][:5].mean(0)),
    "position": (PositionEncoding, {}, position_encoding),
    "clustering": (IndirectClustering, {}, indirect_clustering),
    "noise": (AdaptiveNoise, {"num_classes": 3}, lambda x: x.sum(0)),
}


@pytest.fixture(params=list(POOLINGS))
def pooling(request, counts):
    cls, args, twin = POOLINGS[request.param]
    if cls is AdaptiveNoise:
        args = {**args, "class_counts": counts}
    return cls(**args), twin


@pytest.mark.parametrize("garbage", [0.0, 1e4, -1e4])
def test_a_pooling_is_of_the_valid_frames(pooling, garbage):
    layer, twin = pooling
    frames, mask = make_frames(garbage)
    expected = [
        twin(video[:n]) if n else np.zeros(D)
        for video, n in zip(frames.astype("float64"), LENGTHS, strict=True)
    ]
    found = layer(frames, mask)
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    assert layer.compute_output_shape(frames.shape) == found.shape


def test_gradients_reach_the_valid_frames_alone(pooling):
    layer, _ = pooling
    frames, mask = make_frames(1e4)
    x = tf.Variable(frames)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(x, mask)))
    gradient = tape.gradient(loss, x).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


@pytest.mark.parametrize("compiled", [False, True])
def test_graphs_take_any_length_and_none(pooling, compiled):
    layer, _ = pooling
    frames, mask = make_frames()
    expected = layer(frames, mask)
    if compiled:
        graph = tf.function(layer, jit_compile=True)
    else:
        graph = tf.function(
            layer,
            input_signature=[
                tf.TensorSpec([None, None, D], tf.float32),
                tf.TensorSpec([None, None], tf.bool),
            ],
        )
    found = graph(tf.constant(frames), tf.constant(mask))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for rows, length in ((2, 0), (0, T)):
        part = tf.constant(frames[:rows, :length]), tf.constant(mask[:rows, :length])
        np.testing.assert_array_equal(graph(*part), np.zeros((rows, D), "float32"))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_low_precision_pooling_is_near(pooling, policy):
    layer, _ = pooling
    frames, mask = make_frames()
    config = {**layer.get_config(), "dtype": policy}
    low = type(layer).from_config(config)
    found = low(tf.cast(frames, low.compute_dtype), mask)
    assert found.dtype == low.compute_dtype
    expected = layer(frames, mask)
    np.testing.assert_allclose(tf.cast(found, tf.float32), expected, atol=0.1)


def test_likeness_to_many_frames_is_not_rounded():
    """Of 300 frames all but one are alike, so that it has next to no weight."""
    frames = np.zeros((1, 300, D), "float32")
    frames[..., 0], frames[0, 7] = 1, [0, 1, 0, 0, 0]
    layer = IndirectClustering(dtype="mixed_bfloat16")
    found = layer(tf.cast(frames, "bfloat16"), np.ones((1, 300), bool))
    np.testing.assert_allclose(tf.cast(found, "float32"), [[1, 0, 0, 0, 0]], atol=1e-3)


# Adaptive noise: classes 0, 1 have 4 and 2 videos; class 2 is not listed.


def test_noise_grows_with_the_rarity_of_the_labels_and_the_number_of_frames(counts):
    layer = AdaptiveNoise(counts, 3)
    repeats = 4000
    frames, mask = (np.repeat(x, repeats, axis=0) for x in make_frames())
    labels = np.repeat(LABELS, repeats, axis=0)
    quiet = layer(frames, mask)
    noisy = layer(frames, mask, training=True, labels=labels)
    noise = np.reshape(noisy - quiet, (len(LENGTHS), -1))
    scales = np.array([1 / 4, 1 / 2, (1 / 4 + 1 / 2) / 2, 0])
    expected = scales * np.sqrt(LENGTHS)
    np.testing.assert_allclose(noise.std(axis=1), expected, rtol=0.03)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=0.02)


def test_there_is_no_noise_without_labels_or_training(counts):
    layer = AdaptiveNoise(counts, 3)
    frames, mask = make_frames()
    expected = layer(frames, mask)
    for given in ({"training": True}, {"labels": LABELS}):
        np.testing.assert_array_equal(layer(frames, mask, **given), expected)


def test_a_class_that_is_not_counted_makes_no_noise(counts):
    layer = AdaptiveNoise(counts, 3)
    frames, mask = make_frames()
    labels = np.tile([[0, 0, 1]], (len(LENGTHS), 1))
    noisy = layer(frames, mask, training=True, labels=labels)
    np.testing.assert_array_equal(noisy, layer(frames, mask))


def test_the_counts_are_not_read_where_weights_follow():
    with weights_follow():
        layer = AdaptiveNoise("missing.csv", 3)
        layer.build((None, None, D))
    np.testing.assert_array_equal(layer.noise, np.zeros(3))


def test_the_vocabularys_counts_are_taken_too(tmp_path):
    path = tmp_path / "vocabulary.csv"
    path.write_text("Index,TrainVideoCount,Name\n1,8,Game\n0,10,Car\n")
    layer = AdaptiveNoise(str(path), 3)
    layer.build((None, None, D))
    np.testing.assert_allclose(layer.noise, [0.1, 0.125, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Class,Videos\n0,4\n", "has no columns Index and Videos"),
        ("Index,Videos\n0,4\n3,1\n", "counts the class 3; --num_classes=3"),
        ("Index,Videos\n0,many\n", "line 2: needs a class, once"),
        ("Index,Videos\n0\n", "line 2: needs a class, once"),
    ],
)
def test_a_wrong_file_of_counts_is_named(tmp_path, text, message):
    path = tmp_path / "videos.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        AdaptiveNoise(str(path), 3).build((None, None, D))


def test_a_missing_file_of_counts_is_named():
    with pytest.raises(UserError, match="class counts missing.csv cannot be read"):
        AdaptiveNoise("missing.csv", 3).build((None, None, D))


def test_a_size_below_the_least_is_refused():
    with pytest.raises(ValueError, match="`k` must be positive"):
        TopKPooling(0)
    with pytest.raises(ValueError, match="`size` must be at least 2"):
        CompactBilinear(1)


# Compact bilinear features


def sketch(x, places, signs, size):
    y = np.zeros(size)
    for value, place, sign in zip(x, places, signs, strict=True):
        y[place] += sign * value
    return y


def test_compact_bilinear_features_are_the_convolution_of_two_sketches():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 6))
    y[1, 2] = 0
    size = 8
    found = CompactBilinear(size, seed=5)(x.astype("float32"), y.astype("float32"))
    draws = np.random.default_rng(5)
    hashes = [
        (draws.integers(0, size, n), draws.choice([-1.0, 1.0], n)) for n in (4, 6)
    ]
    for i in np.ndindex(2, 3):
        a, b = (sketch(v[i], *h, size) for v, h in zip((x, y), hashes, strict=True))
        z = [sum(a[k] * b[(n - k) % size] for k in range(size)) for n in range(size)]
        z = np.sign(z) * np.sqrt(np.abs(z))
        z /= max(np.linalg.norm(z), 1e-6)
        np.testing.assert_allclose(found[i], z, atol=1e-5)
    assert (found[1, 2].numpy() == 0).all()


def test_products_of_sketches_are_near_the_products_of_the_outer_products():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 1, 1, 200)).astype("float32")
    layer = CompactBilinear(4096)
    near = layer(np.concatenate([x, x + 0.1 * y], 1), np.concatenate([y, y], 1))
    far = layer(np.concatenate([x, -x], 1), np.concatenate([y, y], 1))
    assert np.sum(near[0, 0] * near[0, 1]) > 0.8
    np.testing.assert_allclose(np.sum(far[0, 0] * far[0, 1]), -1, rtol=1e-5)
