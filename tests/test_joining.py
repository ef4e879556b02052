"""Records joined by id: features side by side, whatever order the files are in."""

import io
import os

import numpy as np
import pytest

from test_export import CLASSES, make_run
from test_predict import make_shards, read_records
from yt8m.cli import main
from yt8m.data import joining
from yt8m.data.joining import RecordsById, join_records
from yt8m.data.records import encode_frame_record, encode_video_record, write_records
from yt8m.errors import DataError, UserError
from yt8m.progress import Progress


def run_command(name, *arguments) -> int:
    return main.run(name, [str(a) for a in arguments])


def silent() -> Progress:
    return Progress(stream=io.StringIO())


def write(path, ids, value, labels=None, **sizes) -> str:
    """Records whose features are `value` plus the number in their id."""
    sizes = sizes or {"embedding": 2}
    records = [
        encode_video_record(
            f"v{i}",
            {n: np.full(size, value + i, np.float32) for n, size in sizes.items()},
            labels and labels.get(i),
            "video_id" if i == 3 else "id",
        )
        for i in ids
    ]
    write_records(str(path), records)
    return str(path)


@pytest.mark.parametrize("equal_hashes", [False, True])
def test_features_are_joined_by_id_in_the_order_of_the_first(
    tmp_path, monkeypatch, equal_hashes
):
    if equal_hashes:
        monkeypatch.setattr(
            joining, "hash_ids", lambda ids: np.zeros(len(ids), np.uint64)
        )
    labels = {i: [i % 3] for i in range(9)}
    first = [
        write(tmp_path / "a0", [3, 0, 5], 100, {0: [2], 3: []}),
        write(tmp_path / "a1", [4, 1], 100),
    ]
    second = [
        write(tmp_path / "b0", [8, 1, 3], 200, labels, embedding=3, mean_rgb=1),
        write(tmp_path / "b1", [0, 4, 5], 200, labels, embedding=3, mean_rgb=1),
    ]
    third = [write(tmp_path / "c", range(9), 300)]
    (tmp_path / "out").mkdir()
    joined = join_records(
        [first, second, third], str(tmp_path / "out"), progress=silent()
    )
    assert joined.features == {
        **{"embedding_0": 2, "embedding_1": 3, "mean_rgb": 1},
        "embedding_2": 2,
    }
    assert joined.paths == [str(tmp_path / "out" / name) for name in ("a0", "a1")]
    assert (joined.count, joined.missing) == (5, 0)
    found = [r for path in joined.paths for r in read_records([path])]
    assert [r.id for r in found] == ["v3", "v0", "v5", "v4", "v1"]
    assert [r.labels for r in found] == [[], [2], [2], [1], [1]]
    assert [r.id_key for r in found] == ["video_id"] + ["id"] * 4
    for record in found:
        i = int(record.id[1:])
        expected = {
            "embedding_0": [100 + i] * 2,
            "embedding_1": [200 + i] * 3,
            "embedding_2": [300 + i] * 2,
            "mean_rgb": [200 + i],
        }
        assert {n: v.tolist() for n, v in record.features.items()} == expected


def test_a_video_that_an_input_lacks_is_named_or_left_out(tmp_path):
    first = [write(tmp_path / "a", [0, 1, 2], 1)]
    second = [write(tmp_path / "b", [2, 0], 2)]
    (tmp_path / "out").mkdir()
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match="a, record 1: video v1 is not in .*b or"):
        join_records([first, second], out, progress=silent())
    assert os.listdir(out) == []
    joined = join_records([first, second], out, skip_missing=True, progress=silent())
    assert (joined.count, joined.missing) == (2, 1)
    assert [r.id for r in read_records(joined.paths)] == ["v0", "v2"]


def test_inputs_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    out = str(tmp_path / "other")
    a, b = write(tmp_path / "a", [0, 1], 1), write(tmp_path / "other" / "b", [1], 1)
    (tmp_path / "more").mkdir()
    again = write(tmp_path / "more" / "a", [2], 1)
    frames = str(tmp_path / "frames")
    features = {"rgb": np.zeros((2, 3), np.uint8)}
    write_records(frames, [encode_frame_record("v0", features, None)])
    uneven = (2, np.ones(2, np.float32)), (0, np.ones(4, np.float32))
    both = [encode_video_record(f"v{i}", {"embedding": e}, None) for i, e in uneven]
    write_records(str(tmp_path / "uneven"), both)
    uneven = str(tmp_path / "uneven")
    clash = write(tmp_path / "clash", [0, 1], 1, embedding_0=2)
    twice, v0 = write(tmp_path / "twice", [0, 1, 0], 1), write(tmp_path / "v0", [0], 1)
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "a").read_bytes()[:-5])
    wrong = tmp_path / "wrong"
    right = encode_video_record("v0", {"embedding": np.ones(2, np.float32)}, None)
    write_records(str(wrong), [right, b"\xff\xff"])
    for inputs, kind, said in (
        ([[a, again], [a]], UserError, "the same name"),
        ([[b], [again, b]], UserError, "is where an input is"),
        ([[a], [frames]], UserError, "frames is frame-level"),
        ([[a], [a], [clash]], UserError, "equal names: embedding_0, embedding_1, emb"),
        ([[a], [a, b]], DataError, "Video v1 is twice in .*a and .*b;"),
        (
            [[twice], [a]],
            DataError,
            "twice, record 2: video v0 is in the first input t",
        ),
        ([[a, v0], [a]], DataError, "v0, record 0: video v0 is in the first input twi"),
        ([[a], [uneven]], DataError, "video v0 has 4 floats of embedding, and others"),
        ([[a], [str(cut)]], DataError, "cut, record 1: the file is truncated"),
        ([[str(cut)], [a]], DataError, "cut, record 1: the file is truncated"),
        ([[str(wrong)], [a]], DataError, "wrong, record 1: it is not a protobuf"),
    ):
        with pytest.raises(kind, match=said):
            join_records(inputs, out, progress=silent())
    # Of two shards the first was whole before the second was read.
    assert sorted(os.listdir(out)) == ["a", "b"]


def test_a_full_disk_is_named(tmp_path, known_temporary_names):
    (tmp_path / "out").mkdir()
    os.symlink("/dev/full", tmp_path / "out" / "a.tmp")
    inputs = [[write(tmp_path / "a", [0], 1)]] * 2
    with pytest.raises(UserError, match="out/a cannot be written: .*No space"):
        join_records(inputs, str(tmp_path / "out"), progress=silent())


def test_records_are_read_from_more_files_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "_OPEN_FILES", 2)
    files = [write(tmp_path / f"f{i}", [i], 10) for i in range(6)]
    with RecordsById(files) as records:
        for i in (5, 0, 3, 3, 1):
            found = records.find(f"v{i}")["embedding"].float_list.value
            assert list(found) == [10 + i] * 2
        assert records.find("v6") is None


def test_a_model_trains_on_the_embeddings_of_two_runs_side_by_side(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = {"moe": "MoeModel", "netvlad": "NetVLADModel"}
    for name, model in names.items():
        run = make_run(tmp_path / name, model)
        shards = make_shards(tmp_path, "video" if name == "moe" else "frame")
        arguments = [
            f"--train_dir={run.directory}",
            f"--input_data_pattern={','.join(shards)}",
            f"--output_file={name}.tfrecord",
            "--output=embeddings",
        ]
        assert run_command("inference", *arguments) == 0
    join = [
        f"--input_files={pattern}" for pattern in ("moe.tfrecord", "netvlad.tfrecord")
    ]
    assert run_command("join", *join[:1], "--output_dir=joined") == 1
    assert "twice at least" in capsys.readouterr().err
    assert run_command("join", *join, "--output_dir=joined") == 0
    said = capsys.readouterr().out.splitlines()
    assert "23 records in 1 shards" in said[0]
    assert said[1:] == [
        "--feature_names=embedding_0,embedding_1",
        "--feature_sizes=20,8",
    ]
    with open("joined/features.flags") as f:
        assert f.read().splitlines() == said[1:]
    own = {
        name: {r.id: r for r in read_records([f"{name}.tfrecord"])} for name in names
    }
    joined = read_records(["joined/moe.tfrecord"])
    assert [r.id for r in joined] == list(own["moe"])
    for record in joined:
        for i, name in enumerate(names):
            expected = own[name][record.id]
            np.testing.assert_array_equal(
                record.features[f"embedding_{i}"], expected.features["embedding"]
            )
        assert record.labels == own["moe"][record.id].labels
    train = [
        "--model=MoeModel",
        *said[1:],
        f"--num_classes={CLASSES}",
        "--train_data_pattern=joined/*.tfrecord",
        "--train_dir=stacked",
        "--batch_size=8",
        "--max_steps=1",
    ]
    assert run_command("train", *train) == 0
    assert os.path.isdir("stacked/checkpoints/step-00000001")
