"""`yt8m count`: videos and labels, rated segments and the classes of their ratings."""

import numpy as np
import pytest

from yt8m.cli.main import run
from yt8m.data.records import (
    SegmentRatings,
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.data.segments import load_class_ids

RGB = np.zeros((12, 4), np.uint8)


def frame_record(labels, cells=None, video_id="v") -> bytes:
    """A record rated by (start, class, score)."""
    ratings = None
    if cells:
        starts, classes, scores = (list(c) for c in zip(*cells, strict=True))
        ratings = SegmentRatings(classes, starts, [s + 5 for s in starts], scores)
    return encode_frame_record(video_id, {"rgb": RGB}, labels, segments=ratings)


@pytest.fixture
def shards(tmp_path) -> str:
    first = [
        frame_record([3, 3, 0], [(0, 3, 1.0), (0, 7, 0.0), (5, 3, 0.0)], "one"),
        frame_record(None, None, "none"),
    ]
    second = [
        frame_record([3861, 3], [(10, 3861, 1.0)], "two"),
        frame_record([], None, "empty"),
    ]
    write_records(tmp_path / "a0.tfrecord", first)
    write_records(tmp_path / "a1.tfrecord", second)
    return f"--input_data_pattern={tmp_path}/a*.tfrecord"


def test_videos_and_labels_are_counted(shards, capsys):
    assert run("count", [shards]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "files: 2, of frame level with rgb 4",
        "videos: 4, of which 2 (50.0%) unlabelled",
        "labels: 4 of 3 classes; 2 to 2 a labelled video, 2.000 on average",
        "class 3: 2 videos",
        "class 0: 1 videos",
        "class 3861: 1 videos",
    ]


def test_video_level_shards_without_labels_are_counted(tmp_path, capsys):
    mean = {"mean_rgb": np.zeros(4, np.float32)}
    path = tmp_path / "t"
    write_records(path, [encode_video_record("v", mean, None) for _ in range(130)])
    assert run("count", [f"--input_data_pattern={path}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "files: 1, of video level with mean_rgb 4",
        "videos: 130, of which 130 (100.0%) unlabelled",
    ]


def test_rated_segments_are_counted_and_their_classes_written(shards, tmp_path, capsys):
    ids = str(tmp_path / "ids.csv")
    assert run("count", [shards, "--segments", f"--output_file={ids}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "files: 2, of frame level with rgb 4",
        "rated segments: 3 in 2 videos, 1.500 on average",
        "ratings: 4 of 3 classes; 2 (50.0%) are positive",
        "class 3: 1 positive segments, 2 rated segments",
        "class 3861: 1 positive segments, 1 rated segments",
    ]
    assert load_class_ids(ids).tolist() == [3, 7, 3861]


def test_the_classes_can_be_written_with_their_names(shards, tmp_path, capsys):
    names, table = tmp_path / "vocabulary.csv", tmp_path / "table.csv"
    names.write_text('Index,Name\n0,Game\n3,"Car, red"\n')
    flags = [shards, f"--per_class={table}"]
    assert run("count", flags) == 0
    assert table.read_text() == "Index,Videos\n0,1\n3,2\n3861,1\n"
    flags.append(f"--vocabulary={names}")
    capsys.readouterr()
    assert run("count", flags) == 0
    assert "class 3 (Car, red): 2 videos" in capsys.readouterr().out
    assert table.read_text() == (
        'Index,Videos,Name\n0,1,Game\n3,2,"Car, red"\n3861,1,class 3861\n'
    )
    assert run("count", [*flags, "--segments"]) == 0
    assert table.read_text() == (
        "Index,PositiveSegments,RatedSegments,Name\n"
        '3,1,2,"Car, red"\n7,0,1,class 7\n3861,1,1,class 3861\n'
    )


def test_only_the_most_frequent_classes_are_printed(tmp_path, capsys):
    write_records(tmp_path / "a", [frame_record(range(n)) for n in range(40)])
    assert run("count", [f"--input_data_pattern={tmp_path}/a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:] == [f"class {c}: {39 - c} videos" for c in range(10)]


def test_a_bad_record_is_named(tmp_path, capsys):
    good = [frame_record([1])] * 70
    path = tmp_path / "a"
    write_records(path, [*good, b"no protobuf at all", *good])
    assert run("count", [f"--input_data_pattern={path}"]) == 1
    assert f"{path}, record 70: it is not a protobuf" in capsys.readouterr().err
    write_records(path, good)
    with open(path, "r+b") as f:
        f.truncate(f.seek(0, 2) - 3)
    assert run("count", [f"--input_data_pattern={path}"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"{path}, record 69: the file is truncated" in message


def test_what_cannot_be_counted_is_one_clear_line(shards, tmp_path, capsys):
    (tmp_path / "b.csv").write_text("id,labels\na,1 2\n")
    write_records(tmp_path / "b", [frame_record([1])])
    (tmp_path / "c1").symlink_to(tmp_path / "none")
    (tmp_path / "d1").mkdir()
    for flags, message in (
        ([], "give --input_data_pattern"),
        ([f"--input_data_pattern={tmp_path}/no*"], "No file matches"),
        ([f"--input_data_pattern={tmp_path}/b.csv"], "looks like CSV text"),
        ([shards, f"--output_file={tmp_path}/ids.csv"], "add --segments"),
        ([f"--input_data_pattern={tmp_path}/b", "--segments"], "without rated segment"),
        ([f"{shards},{tmp_path}/c?"], f"{tmp_path}/c1 cannot be read"),
        ([f"{shards},{tmp_path}/d?"], f"{tmp_path}/d1 cannot be read"),
    ):
        assert run("count", flags) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "ids.csv").exists()
