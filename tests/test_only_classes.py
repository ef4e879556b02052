"""Training on the videos of some classes: what is read, counted and resumed."""

import numpy as np
import pytest

from yt8m.cli import main
from yt8m.config import DataConfig
from yt8m.data.index import RecordIndex
from yt8m.data.pipeline import Reader
from yt8m.data.records import (
    SegmentRatings,
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.data.segments import write_class_ids
from yt8m.errors import DataError

CONFIGS = {
    "video": DataConfig("video", {"mean_rgb": 2}, 8),
    "frame": DataConfig("frame", {"rgb": 2}, 8),
    "segment": DataConfig("frame", {"rgb": 2}, 8, segments=True),
}
# The labels of each video of each file, and those that are wanted.
LABELS = (([1], [2, 3], [5], []), ([0], [0, 7]), ([3], [6], [2], [3, 5], [1, 3]))
ONLY = (3, 7)
WANTED = ["0-1", "1-1", "2-0", "2-3", "2-4"]


def make_files(folder, kind) -> list[str]:
    files = []
    for file, videos in enumerate(LABELS):
        records = []
        for number, labels in enumerate(videos):
            name = f"{file}-{number}"
            if kind == "video":
                features = {"mean_rgb": np.zeros(2, "f")}
                records.append(encode_video_record(name, features, labels))
                continue
            ratings = None
            if kind == "segment":
                ratings = SegmentRatings([1, 1], [0, 5], [], [1.0, 0.0])
            features = {"rgb": np.zeros((9, 2), np.uint8)}
            records.append(encode_frame_record(name, features, labels, "id", ratings))
        files.append(f"{folder}/{file}.tfrecord")
        write_records(files[-1], records)
    return files


def ids(reader, start=0) -> list[str]:
    batches = reader.batches(start)
    return [i.decode() for _, host in batches for i in host["id"].numpy()]


@pytest.mark.parametrize("kind", CONFIGS)
def test_other_videos_are_neither_read_nor_counted(tmp_path, kind):
    files = make_files(tmp_path, kind)
    times = 2 if kind == "segment" else 1
    index = RecordIndex(f"{tmp_path}/index.json")
    options = {"batch_size": 2, "only_classes": ONLY, "index": index}
    reader = Reader(files, CONFIGS[kind], **options)
    assert ids(reader) == [name for name in WANTED for _ in range(times)]
    assert reader.num_examples == 5 * times
    # The counts that are kept are not those of other classes, nor of all.
    index = RecordIndex(f"{tmp_path}/index.json")
    every = Reader(files, CONFIGS[kind], batch_size=2, index=index)
    assert every.num_examples == 11 * times
    other = Reader(files, CONFIGS[kind], batch_size=2, index=index, only_classes=[6])
    assert (other.num_examples, set(ids(other))) == (times, {"2-1"})


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_goes_on_at_any_batch(tmp_path, kind):
    files = make_files(tmp_path, kind)
    options = {"batch_size": 2, "only_classes": ONLY, "seed": 3, "num_epochs": 3}
    options["shuffle_window"] = 3
    whole = ids(Reader(files, CONFIGS[kind], **options))
    times = 2 if kind == "segment" else 1
    assert sorted(whole) == sorted(WANTED * 3 * times)
    for start in (1, 3, 6):
        found = ids(Reader(files, CONFIGS[kind], **options), start)
        assert found == whole[2 * start :]


def test_a_bad_record_keeps_its_place_and_is_named(tmp_path):
    good = {"mean_rgb": np.zeros(2, "f")}
    records = [
        encode_video_record("other", good, [1]),
        encode_video_record("bad", {"mean_rgb": np.zeros(3, "f")}, [3]),
        encode_video_record("good", good, [3]),
        # What is wrong with a video that is not wanted is not looked for.
        encode_video_record("unwanted", {"mean_rgb": np.zeros(3, "f")}, [1]),
    ]
    path = f"{tmp_path}/a.tfrecord"
    write_records(path, records)
    options = {"batch_size": 2, "only_classes": [3]}
    with pytest.raises(DataError, match="record 1 .id bad."):
        ids(Reader([path], CONFIGS["video"], **options))
    reader = Reader([path], CONFIGS["video"], on_bad_record="skip", **options)
    assert (ids(reader), reader.num_examples) == (["good"], 2)
    assert [bad.number for bad in reader.bad_records] == [1]
    reader = Reader([path], CONFIGS["video"], batch_size=2, only_classes=[4])
    with pytest.raises(DataError, match="no video of the classes of --only_classes"):
        reader.num_examples  # noqa: B018


def test_a_run_takes_as_many_steps_as_there_are_such_videos(tmp_path, capsys):
    make_files(tmp_path, "video")
    write_class_ids(f"{tmp_path}/only.csv", ONLY)
    flags = [f"--train_data_pattern={tmp_path}/*.tfrecord", "--num_classes=8"]
    flags += ["--feature_names=mean_rgb", "--feature_sizes=2", "--batch_size=2"]
    flags += [f"--train_dir={tmp_path}/run", "--num_epochs=2"]
    only = f"--only_classes={tmp_path}/only.csv"
    assert main.run("train", [*flags, only]) == 0
    assert "Trained to step 5." in capsys.readouterr().err
    # Other videos would be another run.
    assert main.run("train", [*flags, "--only_classes="]) == 1
    assert "was started with only_classes=" in capsys.readouterr().err
    write_class_ids(f"{tmp_path}/only.csv", [8])
    assert main.run("train", [*flags, only]) == 1
    assert "class 8 is not one of --num_classes=8" in capsys.readouterr().err
