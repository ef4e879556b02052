"""Mixup of videos and of frames."""

import numpy as np
import tensorflow as tf

from yt8m.layers.preprocessing import dequantize
from yt8m.training.mixup import mix

SEED = tf.constant([3, 4])


def test_every_video_is_blended_with_the_next_as_its_labels_are():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    labels = np.eye(5, dtype="uint8")
    mixed = mix({"mean_rgb": tf.constant(x), "labels": tf.constant(labels)}, 0.4, SEED)
    share = np.diag(mixed["labels"])
    assert np.all((share >= 0) & (share <= 1)) and np.ptp(share) > 0.1
    expected = (
        share[:, None] * np.eye(5) + (1 - share)[:, None] * np.eye(5)[[1, 2, 3, 4, 0]]
    )
    np.testing.assert_allclose(mixed["labels"], expected, atol=1e-6)
    blended = share[:, None] * x + (1 - share)[:, None] * np.roll(x, -1, axis=0)
    np.testing.assert_allclose(mixed["mean_rgb"], blended, atol=1e-6)


def test_shares_have_the_spread_of_the_beta_distribution():
    labels = tf.constant(np.arange(20000).reshape(-1, 1) % 2, tf.float32)
    share = mix({"labels": labels}, 0.3, SEED)["labels"].numpy()
    share = np.where(np.arange(20000) % 2, share[:, 0], 1 - share[:, 0])
    np.testing.assert_allclose(np.mean(share), 0.5, atol=0.01)
    np.testing.assert_allclose(np.var(share), 1 / (4 * (2 * 0.3 + 1)), atol=0.005)


def test_frames_that_only_one_video_has_stay_as_they_are():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 3)).astype("uint8")
    batch = {
        "rgb": tf.constant(frames),
        "num_frames": tf.constant([1, 3]),
        "labels": tf.constant([[1], [0]], tf.uint8),
    }
    mixed = mix(batch, 0.4, SEED)
    np.testing.assert_array_equal(mixed["num_frames"], [3, 3])
    x = dequantize(tf.constant(frames), "float32").numpy()
    share = mixed["labels"].numpy()[0, 0]
    np.testing.assert_allclose(
        mixed["rgb"][0, 0], share * x[0, 0] + (1 - share) * x[1, 0], atol=1e-6
    )
    for video in (0, 1):
        np.testing.assert_array_equal(mixed["rgb"][video, 1:3], x[1, 1:3])


def test_the_number_of_frames_may_be_a_feature_of_videos():
    batch = {"num_frames": tf.constant([[10.0], [20.0]]), "labels": tf.eye(2)}
    mixed = mix(batch, 0.4, SEED)
    share = mixed["labels"].numpy().diagonal()
    np.testing.assert_allclose(
        mixed["num_frames"][:, 0], share * [10, 20] + (1 - share) * [20, 10], rtol=1e-6
    )


def test_equal_seeds_draw_equal_shares():
    batch = {"labels": tf.constant(np.eye(6), tf.float32)}
    first, again = mix(batch, 0.4, SEED), mix(batch, 0.4, SEED)
    np.testing.assert_array_equal(first["labels"], again["labels"])
    other = mix(batch, 0.4, tf.constant([3, 5]))["labels"]
    assert np.any(other != first["labels"])


def test_a_batch_without_videos_stays_empty():
    batch = {"mean_rgb": tf.zeros((0, 4)), "labels": tf.zeros((0, 3))}
    assert mix(batch, 0.4, SEED)["mean_rgb"].shape == (0, 4)
