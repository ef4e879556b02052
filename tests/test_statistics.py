"""Video-level shards made of frames, global normalisation, centroids."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from yt8m.cli import main
from yt8m.data import clusters, whitening
from yt8m.data.records import decode_record, encode_frame_record, write_records
from yt8m.data.statistics import Pca, Settings, frame_statistics, write_statistics
from yt8m.errors import DataError, UserError
from yt8m.schema import DEQUANTIZE_OFFSET, DEQUANTIZE_SCALE

ALL = ("mean", "std", "min", "max", "median", "mode", "top3")
LENGTHS = (0, 1, 2, 7)


def dequantized(x):
    return x.astype(np.float64) * DEQUANTIZE_SCALE + DEQUANTIZE_OFFSET


def video(length, size=5, seed=0):
    return np.random.default_rng(seed).integers(0, 6, (length, size)).astype("uint8")


def records(path):
    import tensorflow as tf

    dataset = tf.data.TFRecordDataset(str(path))
    return [decode_record(r) for r in dataset.as_numpy_iterator()]


@pytest.fixture
def shards(tmp_path):
    """Two shards of four videos each; the second one's have no labels."""
    paths = []
    for number in range(2):
        path = tmp_path / "frames" / f"train{number:04d}.tfrecord"
        path.parent.mkdir(exist_ok=True)
        write_records(
            path,
            [
                encode_frame_record(
                    f"v{number}{i}",
                    {
                        "rgb": video(length, 5, seed=i),
                        "audio": video(length, 3, seed=10 + i),
                    },
                    None if number else [i, 7],
                )
                for i, length in enumerate(LENGTHS)
            ],
        )
        paths.append(str(path))
    return paths


# Statistics of a video


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_statistics_are_those_of_the_dequantised_frames(length, floats):
    frames = video(length)
    x = dequantized(frames)
    found = frame_statistics(x if floats else frames, ALL)
    assert all(v.dtype == np.float32 for v in found.values())
    expected = {name: getattr(np, name)(x, axis=0) for name in ALL[:5]}
    expected["mode"] = dequantized(
        np.array([np.bincount(column).argmax() for column in frames.T])
    )
    ordered = np.sort(x, axis=0)[::-1]
    for k in range(3):
        expected[f"top{k + 1}"] = ordered[min(k, length - 1)]
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_a_video_without_frames_has_statistics_of_zero():
    found = frame_statistics(np.zeros((0, 4), np.uint8), ALL)
    assert list(found) == [*ALL[:6], "top1", "top2", "top3"]
    assert all((v == np.zeros(4)).all() for v in found.values())


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (("men",), "Unknown statistic men. Did you mean mean"),
        (("top",), "Unknown statistic top.* takes a number"),
        (("top0",), "Unknown statistic top0"),
        (("mean", "mean"), "must name each statistic once"),
        ((), "must name each statistic once"),
    ],
)
def test_wrong_statistics_are_refused(statistics, message):
    with pytest.raises(UserError, match=message):
        Settings(statistics)


# Shards


def test_shards_keep_ids_labels_and_their_absence(shards, tmp_path):
    output = tmp_path / "videos"
    status = main.run(
        "statistics",
        [
            f"--input_data_pattern={tmp_path}/frames/*.tfrecord",
            f"--output_dir={output}",
            "--statistics=mean,top2",
            "--num_workers=1",
        ],
    )
    assert status == 0
    for number in range(2):
        found = records(output / f"train{number:04d}.tfrecord")
        assert [r.id for r in found] == [f"v{number}{i}" for i in range(4)]
        assert [r.labels for r in found] == [
            None if number else sorted([i, 7]) for i in range(4)
        ]
        for i, (record, length) in enumerate(zip(found, LENGTHS, strict=True)):
            assert set(record.features) == {
                *("mean_rgb", "top1_rgb", "top2_rgb", "num_frames"),
                *("mean_audio", "top1_audio", "top2_audio"),
            }
            assert record.features["num_frames"] == [length]
            assert record.features["top2_rgb"].shape == (5,)
            if length:
                np.testing.assert_allclose(
                    record.features["mean_rgb"],
                    dequantized(video(length, 5, seed=i)).mean(axis=0),
                    atol=1e-6,
                )


def test_a_killed_run_goes_on_with_the_shards_that_it_lacks(shards, tmp_path):
    settings, whole, part = Settings(), tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    write_statistics(shards, str(whole), settings)
    write_statistics(shards[:1], str(part), settings)
    first = part / "train0000.tfrecord"
    before = first.stat().st_mtime_ns
    write_statistics(shards, str(part), settings)
    assert first.stat().st_mtime_ns == before
    names = sorted(p.name for p in whole.iterdir())
    assert names == sorted(p.name for p in part.iterdir())
    for name in names:
        assert (whole / name).read_bytes() == (part / name).read_bytes()


def test_several_processes_write_what_one_writes(shards, tmp_path):
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        write_statistics(shards, str(tmp_path / str(workers)), Settings(), workers)
    for name in ("train0000.tfrecord", "train0001.tfrecord"):
        one, two = (tmp_path / n / name for n in ("1", "2"))
        assert one.read_bytes() == two.read_bytes()


def test_a_directory_with_other_settings_is_refused(shards, tmp_path):
    (tmp_path / "out").mkdir()
    write_statistics(shards, str(tmp_path / "out"), Settings())
    stored = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert stored["statistics"] == ["mean", "std", "top5"]
    with pytest.raises(UserError, match="statistics.json has other settings"):
        write_statistics(shards, str(tmp_path / "out"), Settings(("mean",)))
    for path in (tmp_path / "out").glob("*.tfrecord"):
        path.unlink()
    write_statistics(shards, str(tmp_path / "out"), Settings(("mean",)))


def test_a_directory_with_shards_of_other_files_is_refused(shards, tmp_path):
    write_statistics(shards[:1], str(tmp_path), Settings())
    write_statistics(shards, str(tmp_path), Settings())  # more of them are welcome
    frame = encode_frame_record("v", {"rgb": video(3), "audio": video(3, 3)}, [1])
    write_records(shards[0], [frame])
    with pytest.raises(UserError, match="train0000.tfrecord was made of another file"):
        write_statistics(shards, str(tmp_path), Settings())


def test_a_directory_of_other_centroids_is_refused(shards, tmp_path):
    (tmp_path / "out").mkdir()
    path = str(tmp_path / "c.npz")
    settings = Settings(("mean",), centroids=path)
    for values in (np.ones((2, 3), "f4"), np.zeros((2, 3), "f4")):
        clusters.Centroids({"audio": 3}, values).save(path)
        if values.any():
            write_statistics(shards, str(tmp_path / "out"), settings)
    with pytest.raises(UserError, match="has other settings"):
        write_statistics(shards, str(tmp_path / "out"), settings)


@pytest.mark.parametrize("kind", ["SIGINT", "SIGKILL"])
def test_a_stopped_command_leaves_no_process_and_no_file_behind(tmp_path, kind):
    record = encode_frame_record("v", {"rgb": video(300, 1024)}, [1])
    for i in range(40):
        write_records(tmp_path / f"train{i:04d}.tfrecord", [record] * 20)
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", "from yt8m.cli.main import main; main()", "statistics"]
        + [f"--input_data_pattern={tmp_path}/*.tfrecord", f"--output_dir={output}"]
        + ["--statistics=median", "--num_workers=2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(output.glob("*.tfrecord")):
        assert process.poll() is None
        time.sleep(0.05)
    if kind == "SIGINT":  # as a terminal sends it: to all processes
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    said = process.communicate()[1]
    if kind == "SIGINT":
        assert process.returncode == 130 and said.endswith("interrupted\n")
        assert "Traceback" not in said and "leaked" not in said
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert not list(output.glob("*.tmp"))
    assert 0 < len(list(output.glob("*.tfrecord"))) < 40


def test_shards_are_not_written_over_their_frames(shards, tmp_path):
    with pytest.raises(UserError, match="is where the frames are"):
        write_statistics(shards, str(tmp_path / "frames"), Settings())


def test_a_bad_record_is_named_and_its_shard_is_not_written(shards, tmp_path):
    (tmp_path / "out").mkdir()
    frames = {"rgb": video(3), "audio": video(2)}
    good = encode_frame_record("good", {"rgb": video(3)}, [1])
    write_records(shards[1], [good, encode_frame_record("bad", frames, [1])])
    with pytest.raises(
        DataError, match="train0001.tfrecord, record 1: has features th"
    ):
        write_statistics(shards, str(tmp_path / "out"), Settings())
    assert not (tmp_path / "out" / "train0001.tfrecord").exists()


def test_video_level_shards_have_no_frames(shards, tmp_path):
    write_statistics(shards, str(tmp_path), Settings())
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="record 0: has no frames"):
        write_statistics(
            [str(tmp_path / "train0000.tfrecord")], str(tmp_path / "out"), Settings()
        )


# The dataset's PCA


def test_the_pca_is_undone(tmp_path):
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    eigenvalues = np.sort(rng.random(6))[::-1]
    mean = rng.normal(size=6)
    for name, x in (
        ("mean", mean[:, None]),
        ("eigenvals", eigenvalues[:, None]),
        ("eigenvecs", directions),
    ):
        np.save(tmp_path / f"{name}.npy", x.astype("float32"))
    original = rng.normal(size=(4, 6))
    features = (original - mean) @ directions.T / np.sqrt(eigenvalues + 1e-4)
    np.testing.assert_allclose(Pca(str(tmp_path)).undo(features), original, atol=1e-4)
    kept = features.copy()
    kept[:, 4:] = 0
    np.testing.assert_allclose(
        Pca(str(tmp_path)).undo(features[:, :4]),
        Pca(str(tmp_path)).undo(kept),
        atol=1e-5,
    )
    (tmp_path / "mean.npy").unlink()
    with pytest.raises(UserError, match="mean.npy cannot be read"):
        Pca(str(tmp_path))


# Global normalisation


def test_moments_of_batches_are_those_of_all(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 4)) * [1, 2, 3, 4] + 100
    moments = whitening.fit([x[:1], x[1:20], x[:0], x[20:]], 4)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0))
    np.testing.assert_allclose(moments.scatter / 49, np.cov(x.T))


def test_whitened_vectors_have_unit_covariance(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)) + 3
    path = str(tmp_path / "normalization.npz")
    whitening.save(path, whitening.fit([x], 4), 3)
    stored = np.load(path)
    assert stored["components"].shape == (4, 3)
    assert np.all(np.diff(stored["variance"]) < 0)
    white = (x - stored["mean"]) @ stored["components"] / np.sqrt(stored["variance"])
    np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=1e-4)


def test_the_command_fits_video_level_shards(shards, tmp_path):
    write_statistics(shards, str(tmp_path), Settings(("mean",)))
    output = tmp_path / "normalization.npz"
    arguments = [
        f"--input_data_pattern={tmp_path}/*.tfrecord",
        "--feature_names=mean_audio,mean_rgb",
        "--feature_sizes=3,5",
        f"--output_file={output}",
    ]
    assert main.run("normalization", arguments) == 0
    rows = [r for p in sorted(tmp_path.glob("*.tfrecord")) for r in records(p)]
    x = [
        np.concatenate([r.features["mean_audio"], r.features["mean_rgb"]]) for r in rows
    ]
    np.testing.assert_allclose(np.load(output)["mean"], np.mean(x, axis=0), atol=1e-5)


def test_a_single_video_has_no_covariance():
    with pytest.raises(UserError, match="at least two videos"):
        whitening.fit([np.ones((1, 3))], 3)


# Centroids


def frame_shard(path, centres, videos=20, length=6):
    rng = np.random.default_rng(0)
    write_records(
        path,
        [
            encode_frame_record(
                f"v{i}",
                {
                    "rgb": np.clip(
                        centres[rng.integers(0, len(centres), length)]
                        + rng.integers(-2, 3, (length, 4)),
                        0,
                        255,
                    ).astype("uint8")
                },
                [0],
            )
            for i in range(videos)
        ],
    )


def test_centroids_are_found_and_stand_for_the_frames(tmp_path):
    centres = np.array([[0, 0, 250, 250], [250, 0, 0, 0], [100, 200, 100, 0]])
    frame_shard(tmp_path / "train.tfrecord", centres)
    pattern, output = f"{tmp_path}/*.tfrecord", tmp_path / "centroids.npz"
    arguments = [
        f"--input_data_pattern={pattern}",
        "--feature_names=rgb",
        "--feature_sizes=4",
        "--clusters=3",
        "--frames_per_video=5",
        "--seed=2",
        f"--output_file={output}",
    ]
    assert main.run("clusters", arguments) == 0
    found = clusters.Centroids.load(str(output))
    order = [int(i) for i in found.nearest(dequantized(centres))]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(found.values[order], dequantized(centres), atol=0.05)

    frames = centres[[1, 1, 0, 1]].astype("uint8")
    (rgb,) = found.represent({"rgb": frames}).values()
    assert rgb.shape == (2, 4)
    np.testing.assert_array_equal(rgb, found.values[sorted({order[0], order[1]})])

    status = main.run(
        "statistics",
        [
            f"--input_data_pattern={pattern}",
            f"--output_dir={tmp_path}/videos",
            f"--centroids={output}",
            "--statistics=mean",
            "--num_workers=1",
        ],
    )
    assert status == 0
    record = records(tmp_path / "videos" / "train.tfrecord")[0]
    assert record.features["num_frames"] == [6]
    distances = np.abs(found.values.mean(axis=0) - record.features["mean_rgb"])
    assert distances.max() < 4


def test_too_few_frames_for_the_clusters_are_refused(tmp_path):
    frame_shard(tmp_path / "train.tfrecord", np.array([[0, 0, 250, 250]]), videos=2)
    with pytest.raises(UserError, match="12 frames are fewer than --clusters=13"):
        clusters.fit([str(tmp_path / "train.tfrecord")], {"rgb": 4}, 13)


def test_a_feature_that_is_missing_is_named(tmp_path):
    frame_shard(tmp_path / "train.tfrecord", np.array([[0, 0, 250, 250]]))
    with pytest.raises(DataError, match="record 0: has no feature audio of 3 values"):
        clusters.fit([str(tmp_path / "train.tfrecord")], {"audio": 3}, 2)


def test_another_file_is_no_file_of_centroids(tmp_path):
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(UserError, match="other.npz is no file of centroids"):
        clusters.Centroids.load(str(tmp_path / "other.npz"))
