"""Video-level records made frame-level: the mean is kept, and all else."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from yt8m import schema
from yt8m.data import expansion
from yt8m.data.expansion import expand, expand_record
from yt8m.data.records import (
    Record,
    decode_record,
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.data.synthetic import SyntheticConfig, write_dataset
from yt8m.errors import DataError, UserError

LOW = schema.DEQUANTIZE_OFFSET
STEP = schema.DEQUANTIZE_SCALE
HIGH = LOW + 255 * STEP


def read(path) -> list[Record]:
    dataset = tf.data.TFRecordDataset(os.fspath(path))
    return [decode_record(serialized) for serialized in dataset.as_numpy_iterator()]


def assert_expands(video: Record, frames: Record):
    """The same id, labels and means: by half a step over the number of frames."""
    assert (frames.level, frames.id, frames.labels) == ("frame", video.id, video.labels)
    assert frames.id_key == video.id_key
    means = {name.removeprefix("mean_"): m for name, m in video.features.items()}
    assert set(frames.features) == set(means)
    assert len({len(f) for f in frames.features.values()}) == 1
    for name, expanded in frames.features.items():
        assert expanded.dtype == np.uint8
        values = expanded.astype(np.float64) * STEP + LOW
        difference = np.abs(values.mean(axis=0) - means[name])
        assert difference.max() <= STEP * (0.5 / len(expanded) + 1e-4)


def record(**features) -> Record:
    arrays = {name: np.asarray(f, np.float32) for name, f in features.items()}
    return Record("a1B2", "id", "video", [1], arrays)


@pytest.mark.parametrize("split", ["train", "test"])
def test_synthetic_video_records_expand_to_frames_of_the_same_mean(tmp_path, split):
    settings = SyntheticConfig(num_classes=12, features={"rgb": 64, "audio": 32})
    paths = write_dataset(settings, tmp_path / "video", split, 12, 2, "video")
    new = expand(paths, tmp_path / "frame", max_frames=20)
    assert new == [str(tmp_path / "frame" / os.path.basename(p)) for p in paths]
    assert sorted(os.listdir(tmp_path / "frame")) == [os.path.basename(p) for p in new]
    lengths = set()
    for source, path in zip(paths, new, strict=True):
        for video, frames in zip(read(source), read(path), strict=True):
            assert_expands(video, frames)
            assert (frames.labels is None) == (split == "test")
            lengths.add(len(frames.features["rgb"]))
    assert len(lengths) > 2 and max(lengths) <= 21


def test_real_records_expand_to_frames_of_the_same_mean(real_data):
    path = real_data / "video" / "validate" / "validate00.tfrecord"
    for video in read(path)[:50]:
        features = expand_record(video, max_frames=30, seed=0)
        frames = Record(video.id, video.id_key, "frame", video.labels, features)
        assert_expands(video, frames)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 30, 301])
def test_the_mean_is_kept_at_any_length_and_at_the_ends_of_the_range(
    monkeypatch, num_frames
):
    monkeypatch.setattr(expansion, "draw_length", lambda rng, most: num_frames)
    mean = np.concatenate([[LOW, HIGH], np.linspace(LOW, HIGH, 62)])
    video = record(mean_rgb=mean)
    features = expand_record(video, max_frames=300, seed=0)
    assert features["rgb"].shape == (num_frames, 64)
    assert set(features["rgb"][:, 0]) == {0}
    assert set(features["rgb"][:, 1]) == {255}
    assert_expands(video, Record(video.id, "id", "frame", [1], features))


def test_frames_vary_and_neighbours_are_alike():
    frames = expand_record(record(mean_rgb=np.zeros(64)), 300, seed=0)["rgb"]
    values = frames * STEP + LOW
    assert values.std(axis=0).min() > 0.1
    neighbours = np.abs(np.diff(values, axis=0)).mean()
    strangers = np.abs(values - np.roll(values, len(values) // 2, axis=0)).mean()
    assert neighbours < 0.9 * strangers


def test_frames_are_a_function_of_seed_and_id():
    video = record(mean_rgb=np.zeros(32), mean_audio=np.ones(32))
    first = expand_record(video, 50, seed=0)
    again = expand_record(video, 50, seed=0)
    other_seed = expand_record(video, 50, seed=1)
    other_id = expand_record(
        Record("zz00", "id", "video", [1], video.features), 50, seed=0
    )
    for name in ("rgb", "audio"):
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other_seed[name])
        assert not np.array_equal(first[name], other_id[name])


def test_features_of_other_names_and_ids_under_another_key_are_kept(tmp_path):
    features = {
        "mean_clip": np.linspace(-1, 1, 5).astype(np.float32),
        "depth": np.zeros(3, np.float32),
    }
    source = str(tmp_path / "mine.tfrecord")
    write_records(source, [encode_video_record("a", features, [2], "video_id")])
    (path,) = expand([source], tmp_path / "frame", max_frames=10)
    (frames,) = read(path)
    assert frames.id_key == "video_id"
    assert sorted(frames.features) == ["clip", "depth"]
    assert_expands(read(source)[0], frames)


def shard(tmp_path, *records: bytes) -> str:
    path = str(tmp_path / "shard.tfrecord")
    write_records(path, records)
    return path


def video_bytes(*values: float) -> bytes:
    return encode_video_record("a", {"mean_rgb": np.array(values, np.float32)}, [0])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            encode_frame_record("b", {"rgb": np.zeros((2, 4), np.uint8)}, [0]),
            "has frames already",
        ),
        (video_bytes(0, 2.5), "mean_rgb has the value 2.5; .* -1.992 to 2.008"),
        (video_bytes(0, -2), "mean_rgb has the value -2; "),
        (video_bytes(0, float("nan")), "mean_rgb has the value nan; "),
        (encode_video_record("b", {}, [0]), "has no float features"),
        (b"\xff\xff", "not a protobuf"),
    ],
)
def test_a_bad_record_is_named_and_leaves_no_file(tmp_path, second, message):
    path = shard(tmp_path, video_bytes(0, 1), second)
    with pytest.raises(DataError, match=f"shard.tfrecord, record 1: .*{message}"):
        expand([path], tmp_path / "frame")
    assert os.listdir(tmp_path / "frame") == []


# Less than 12 bytes of a record, TensorFlow takes for the end of the file.
@pytest.mark.parametrize("short", [5, len(video_bytes(1, 2)) + 16 - 6])
def test_a_truncated_file_is_named_with_the_record(tmp_path, short):
    path = shard(tmp_path, video_bytes(0, 1), video_bytes(1, 2))
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - short)
    with pytest.raises(DataError, match="shard.tfrecord, record 1: .*truncated") as e:
        expand([path], tmp_path / "frame")
    assert "\n" not in str(e.value)
    assert os.listdir(tmp_path / "frame") == []


def test_nothing_is_overwritten(tmp_path):
    path = shard(tmp_path, video_bytes(0, 1))
    before = pathlib.Path(path).read_bytes()
    with pytest.raises(UserError, match="shard.tfrecord exists already"):
        expand([path], tmp_path)
    assert pathlib.Path(path).read_bytes() == before


def test_what_cannot_be_done_is_one_clear_line(tmp_path):
    path = shard(tmp_path, video_bytes(0, 1))
    with pytest.raises(UserError, match="No file"):
        expand([], tmp_path / "frame")
    with pytest.raises(UserError, match="none.tfrecord does not exist"):
        expand([tmp_path / "none.tfrecord"], tmp_path / "frame")
    with pytest.raises(UserError, match="max_frames"):
        expand([path], tmp_path / "frame", max_frames=0)
    with pytest.raises(UserError, match="seed"):
        expand([path], tmp_path / "frame", seed=-1)
    with pytest.raises(UserError, match="same name"):
        expand([path, path], tmp_path / "frame")
    with pytest.raises(UserError, match="cannot be written to"):
        expand([path], tmp_path / "shard.tfrecord" / "frame")
