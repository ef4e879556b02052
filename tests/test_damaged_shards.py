"""Shards that are damaged or of another kind: every command names file and record."""

import os

import numpy as np
import pytest
import tensorflow as tf

from test_bad_records import spoil_byte
from yt8m import schema
from yt8m.cli import main
from yt8m.data.index import scan
from yt8m.data.records import (
    SegmentRatings,
    encode_frame_record,
    encode_video_record,
    write_records,
)

COUNT = 5
BAD = 2  # the number of the record that is spoiled
RATINGS = SegmentRatings([1, 2], [0, 0], [5, 5], [1.0, 0.0])

COMMANDS = {
    "count": "count --input_data_pattern={shards}",
    "correlate": "correlate --train_data_pattern={shards} --output_file={out}.npz",
    "folds": "folds --by_id --num_folds=2 --input_data_pattern={shards} "
    "--output_dir={out}",
    "join": "join --input_files={shards} --input_files={good} --output_dir={out}",
    "join second": "join --input_files={good} --input_files={shards} "
    "--output_dir={out}",
    "score": "score {submission} --labels={shards}",
    "score-segments": "score-segments --submission_file={segments} "
    "--eval_data_pattern={shards}",
    "ensemble": "ensemble --sources={submission} --learn_weights=greedy "
    "--labels={shards} --output_file={out}.csv",
    "validate-submission": "validate-submission {submission} "
    "--input_data_pattern={shards}",
}
IDLESS = tf.train.Example(
    features=tf.train.Features(
        feature={
            "labels": tf.train.Feature(int64_list=tf.train.Int64List(value=[1])),
            "mean_rgb": tf.train.Feature(
                float_list=tf.train.FloatList(value=[0, 0, 0, 0])
            ),
        }
    )
).SerializeToString()


def video_record(video_id, labels=(1, 2), name="mean_rgb") -> bytes:
    return encode_video_record(video_id, {name: np.zeros(4, "f")}, labels)


def frame_record(video_id) -> bytes:
    rgb = np.zeros((6, 4), np.uint8)
    return encode_frame_record(video_id, {"rgb": rgb}, [1, 2], segments=RATINGS)


def with_feature(record: bytes, key: str, **values) -> bytes:
    """The record with other values of one of its features."""
    message = tf.train.SequenceExample.FromString(record)
    ((kind, value),) = values.items()
    feature = message.context.feature[key]
    feature.Clear()
    getattr(feature, kind).value.extend(value)
    return message.SerializeToString()


# What is done to the record in the middle, and what is said of it.
SPOILED = {
    "labels of bytes": (
        lambda r: with_feature(r, schema.LABELS_KEY, bytes_list=[b"1"]),
        "(id v2): labels holds bytes, integers wanted",
    ),
    "labels of floats": (
        lambda r: with_feature(r, schema.LABELS_KEY, float_list=[1.0]),
        "(id v2): labels holds floats, integers wanted",
    ),
    "negative label": (
        lambda r: with_feature(r, schema.LABELS_KEY, int64_list=[-3]),
        "(id v2): label -3 is negative",
    ),
    "no id": (
        lambda r: with_feature(r, "id", bytes_list=[]),
        "it has no id (no key id or video_id)",
    ),
    "id of a number": (
        lambda r: with_feature(r, "id", int64_list=[7]),
        "id holds integers, bytes wanted",
    ),
    "garbage": (lambda r: b"not a protobuf at all", "it is not a protobuf"),
    "empty": (lambda r: b"", "the record is empty"),
}


def flip_data(path):
    spoil_byte(path, int(scan(path).offsets[BAD]) + 20)


def flip_checksum(path):
    spoil_byte(path, int(scan(path).offsets[BAD]) + 9)


def flip_length(path):
    spoil_byte(path, int(scan(path).offsets[BAD]))


def cut(number, kept):
    return lambda path: os.truncate(path, int(scan(path).offsets[number]) + kept)


def replace_by(content):
    def replace(path):
        with open(path, "wb") as f:
            f.write(content)

    return replace


# What is done to the file, and what is said of it.
DAMAGED = {
    "data": (flip_data, ", record 2: the record is corrupted (checksum)"),
    "checksum": (flip_checksum, ", record 2: the record is corrupted (checksum)"),
    "length": (flip_length, ", record 2: the record is corrupted (checksum of its"),
    "cut": (cut(4, 30), ", record 4: the file is truncated at record 4"),
    "cut in a header": (cut(4, 7), ", record 4: the file is truncated at record 4"),
    "text": (replace_by(b"id,labels\nv0,1 2\n"), " is not a TFRecord file; it looks"),
    "noise": (replace_by(bytes(range(1, 250))), ", record 0: the record is corrupted"),
}


def write_inputs(folder) -> dict[str, str]:
    """What the commands read beside the shards that are at fault."""
    ids = [f"v{i}" for i in range(2 * COUNT)]
    names = {name: f"{folder}/{name}" for name in ("good", "submission", "segments")}
    write_records(names["good"], [video_record(i, name="other") for i in ids])
    lines = ["VideoId,LabelConfidencePairs", *(f"{i},1 0.5 2 0.25" for i in ids)]
    with open(names["submission"], "w") as f:
        f.write("\n".join(lines) + "\n")
    with open(names["segments"], "w") as f:
        f.write("Class,Segments\n1,v0:0 v1:0\n")
    return names


def make_shards(folder, command) -> list[str]:
    make = frame_record if command == "score-segments" else video_record
    paths = [f"{folder}/a.tfrecord", f"{folder}/b.tfrecord"]
    for number, path in enumerate(paths):
        names = [f"v{COUNT * number + i}" for i in range(COUNT)]
        write_records(path, list(map(make, names)))
    return paths


def run(command, folder, capsys) -> tuple[int, str]:
    """Runs a command of `COMMANDS`: its exit status and what it says."""
    folders = {"shards": f"{folder}/?.tfrecord", "out": f"{folder}/out"}
    words = COMMANDS[command].format(**write_inputs(folder), **folders).split()
    capsys.readouterr()
    status = main.run(words[0], words[1:])
    return status, capsys.readouterr().err


def check_refused(command, path, said, folder, capsys):
    before = set(os.listdir(folder))
    status, error = run(command, folder, capsys)
    (line,) = [
        part for part in error.splitlines() if part.startswith(command.split()[0])
    ]
    assert status == 1
    assert path + said in line or (path in line and said in line), line
    assert "node" not in error and "{{" not in error and "Op:" not in error
    left = set(os.listdir(folder)) - before - {"good", "submission", "segments", "out"}
    assert not left


@pytest.mark.parametrize("command", COMMANDS)
def test_healthy_shards_are_taken(tmp_path, capsys, command):
    make_shards(tmp_path, command)
    status, error = run(command, tmp_path, capsys)
    assert status == 0, error


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_record_is_named(tmp_path, capsys, command, kind):
    _, path = make_shards(tmp_path, command)
    spoil, said = SPOILED[kind]
    records = [r.numpy() for r in tf.data.TFRecordDataset(path)]
    # Ids go from v5 on in this file.
    records[BAD] = spoil(records[BAD])
    write_records(path, records)
    said = f", record {BAD}" + (" " if "(id v2)" in said else ": ") + said
    check_refused(command, path, said.replace("v2", "v7"), tmp_path, capsys)


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_file_is_named(tmp_path, capsys, command, kind):
    _, path = make_shards(tmp_path, command)
    damage, said = DAMAGED[kind]
    damage(path)
    check_refused(command, path, said, tmp_path, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_empty_files_are_left_out_with_a_warning(tmp_path, capsys, command):
    paths = make_shards(tmp_path, command)
    os.truncate(paths[0], 0)
    _, error = run(command, tmp_path, capsys)
    assert f"{paths[0]} is empty and is left out." in error
    os.truncate(paths[1], 0)
    status, error = run(command, tmp_path, capsys)
    assert status == 1
    assert f"{paths[0]} holds no record that can be read" in error


@pytest.mark.parametrize("flag", ["train_data_pattern", "eval_data_pattern"])
def test_training_refuses_shards_without_labels(tmp_path, capsys, flag):
    paths = {}
    for name, labels in (("labelled", [1]), ("test", None)):
        paths[name] = f"{tmp_path}/{name}"
        records = [video_record(f"v{i}", labels) for i in range(COUNT)]
        write_records(paths[name], records)
    patterns = dict.fromkeys(("train_data_pattern", "eval_data_pattern"), "labelled")
    patterns[flag] = "test"
    flags = [f"--{name}={paths[which]}" for name, which in patterns.items()]
    flags += ["--feature_names=mean_rgb", "--feature_sizes=4", "--num_classes=3"]
    assert main.run("train", [*flags, f"--train_dir={tmp_path}/run"]) == 1
    assert f"--{flag}: {paths['test']} has no labels" in capsys.readouterr().err
    assert not os.path.exists(f"{tmp_path}/run")
