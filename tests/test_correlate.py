"""`yt8m correlate`: which labels appear together, from shards of either level."""

import numpy as np
import pytest

from yt8m.cli import correlate
from yt8m.cli.main import run
from yt8m.data.records import encode_frame_record, encode_video_record, write_records
from yt8m.layers.label_processing import read_correlation

RGB = np.zeros((2, 4), np.uint8)
MEAN = {"mean_rgb": np.zeros(4, np.float32)}
FEATURES = ["--feature_names=rgb", "--feature_sizes=4", "--num_classes=5"]
LABELS = [[0, 1], [1, 0, 2], [1], [], None, [1, 1], [4]]


@pytest.fixture(params=["frame", "video"])
def shards(tmp_path, request) -> str:
    def encode(labels):
        if request.param == "frame":
            return encode_frame_record("v", {"rgb": RGB}, labels)
        return encode_video_record("v", MEAN, labels)

    records = [encode(labels) for labels in LABELS]
    write_records(tmp_path / "a0.tfrecord", records[:3])
    write_records(tmp_path / "a1.tfrecord", records[3:])
    return f"--train_data_pattern={tmp_path}/a*.tfrecord"


def test_videos_of_each_pair_of_labels_are_counted(shards, tmp_path, capsys):
    path = tmp_path / "labels.npz"
    flags = [shards, f"--output_file={path}", "--num_classes=5"]
    assert run("correlate", flags) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: 4 of 5 classes, 3 pairs of them appear together"
    ]
    with np.load(path) as file:
        assert file["num_classes"] == 5
        pairs = {
            tuple(p): n for p, n in zip(file["indices"], file["counts"], strict=True)
        }
    assert pairs == {
        **{(0, 0): 2, (1, 1): 4, (2, 2): 1, (4, 4): 1},
        **{(0, 1): 2, (0, 2): 1, (1, 2): 1},
    }
    expected = np.zeros((5, 5))
    expected[0, [1, 2]] = 2 / 4, 1
    expected[1, [0, 2]] = 1, 1
    expected[2, [0, 1]] = 1 / 2, 1 / 4
    np.testing.assert_array_equal(read_correlation(str(path)), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("a0.tfrecord", "a1.tfrecord", "labels.npz")
    ]


def test_the_counts_do_not_depend_on_how_many_pairs_are_added_at_once(
    tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    labels = [rng.choice(30, rng.integers(0, 6), replace=False) for _ in range(200)]
    records = [encode_frame_record("v", {"rgb": RGB}, row) for row in labels]
    write_records(tmp_path / "a", records)
    videos = np.zeros((200, 30), int)
    for video, row in zip(videos, labels, strict=True):
        video[row] = 1
    for size in (1, 7, 1 << 16):
        monkeypatch.setattr(correlate, "_PAIRS_AT_ONCE", size)
        together = correlate._count_together([str(tmp_path / "a")], 30)
        np.testing.assert_array_equal(together, np.triu(videos.T @ videos))


def test_the_number_of_classes_is_the_datasets_own_by_default(shards, tmp_path):
    path = tmp_path / "labels.npz"
    assert run("correlate", [shards, f"--output_file={path}"]) == 0
    assert read_correlation(str(path)).shape == (3862, 3862)
    assert path.stat().st_size < 2000


def test_what_cannot_be_used_is_named_and_nothing_is_written(shards, tmp_path, capsys):
    output = tmp_path / "labels.npz"
    (tmp_path / "bad").write_bytes((tmp_path / "a0.tfrecord").read_bytes()[:-3])
    write_records(tmp_path / "negative", [encode_frame_record("v", {"rgb": RGB}, [-1])])
    to = f"--output_file={output}"
    for flags, message in (
        ([to], "give --train_data_pattern"),
        ([shards], "give --output_file"),
        ([f"--train_data_pattern={tmp_path}/no*", to], "No file matches"),
        ([f"--train_data_pattern={tmp_path}/bad", to], f"{tmp_path}/bad"),
        (
            [shards, to, "--num_classes=2"],
            "a0.tfrecord, record 1 (id v): label 2 is outside 0..1; give --num_classes",
        ),
        (
            [f"--train_data_pattern={tmp_path}/negative", to],
            "negative, record 0 (id v): label -1 is negative",
        ),
        (
            [shards, f"--output_file={tmp_path}/bad/folder"],
            "bad/folder cannot be writt",
        ),
    ):
        assert run("correlate", flags) == 1
        assert message in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if "labels" in p.name]


@pytest.mark.parametrize("shards", ["frame"], indirect=True)
def test_a_model_trains_with_the_file_and_then_needs_it_no_more(
    shards, tmp_path, capsys
):
    path, directory = tmp_path / "labels.npz", f"--train_dir={tmp_path}/run"
    assert run("correlate", [shards, f"--output_file={path}", FEATURES[-1]]) == 0
    flags = [
        *(shards, directory, "--model=FrameLevelLogisticModel", *FEATURES),
        "--model_args=label_processing=correlation,"
        f'label_processing_args={{"correlation": "{path}", "weights": [1, 0.1, 0.1]}}',
        *("--batch_size=7", "--max_steps=3"),
    ]
    assert run("train", flags) == 0
    path.unlink()
    evaluated = shards.replace("train_data", "eval_data")
    assert run("eval", [directory, evaluated, "--run_once"]) == 0
    assert run("train", [directory, "--max_steps=5"]) == 0
    capsys.readouterr()
    assert run("train", [*flags, f"--train_dir={tmp_path}/other"]) == 1
    message = f"train: The label correlations {path} cannot be read: No such file"
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
