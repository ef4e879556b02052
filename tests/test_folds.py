"""Folds: each shard is held out once, and what is predicted was not trained on."""

import hashlib
import os
import re

import numpy as np
import pytest

from test_export import CLASSES, make_run
from test_predict import make_shards, read_records
from yt8m.cli import main
from yt8m.cli.folds import fold_of, split
from yt8m.data.files import list_files
from yt8m.data.predictions import Predictions
from yt8m.data.records import encode_video_record, write_records
from yt8m.errors import UserError


def run_command(name, *arguments) -> int:
    return main.run(name, [str(a) for a in arguments])


@pytest.mark.parametrize("count, folds", [(2, 2), (10, 3), (23, 5)])
def test_each_shard_is_in_one_fold_of_nearly_equal_ones(count, folds):
    files = [f"gs://a/train{i:04d}.tfrecord" for i in range(count)]
    found = split(files, folds)
    assert sorted(sum(found, [])) == files and len(found) == folds
    sizes = [len(fold) for fold in found]
    assert max(sizes) - min(sizes) <= 1
    assert all(fold == sorted(fold) for fold in found)


def test_the_split_follows_seed_and_names_and_not_the_folder():
    files = [f"train{i:04d}.tfrecord" for i in range(20)]
    assert split(files, 4) == split(files[::-1], 4) != split(files, 4, seed=1)
    moved = split([f"/b/{f}" for f in files], 4)
    assert [[os.path.basename(f) for f in fold] for fold in moved] == split(files, 4)
    # Dealt in turn, in the order of the digests.
    digests = {n: hashlib.sha256(f"0/{n}".encode()).hexdigest() for n in "abc"}
    first, second, third = sorted("abc", key=digests.get)
    assert split(["a", "b", "c"], 2) == [sorted([first, third]), [second]]


def test_patterns_take_lists_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a1", "a2", "b1", "c"):
        (tmp_path / name).write_text("")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/b1\n\n  {tmp_path}/a*\n")
    a1, a2, b1, c = (f"{tmp_path}/{name}" for name in ("a1", "a2", "b1", "c"))
    assert list_files("@list.txt", "--x") == [a1, a2, b1]
    assert list_files(f"{c}, @list.txt,{a1}", "--x") == [a1, a2, b1, c]
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.txt").write_text("a1\nnone\n")
    (tmp_path / "strange.txt").write_text("a1\nnone://a\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    for pattern, said in (
        ("@none.txt", "--x=@none.txt cannot be read as a list: .*none.txt"),
        ("@empty.txt", "--x=@empty.txt: the file lists nothing"),
        ("@wrong.txt", "No file matches --x=@wrong.txt: there is no none"),
        ("@strange.txt", "knows no none://"),
        ("@binary.txt", "cannot be read as a list"),
        ("@", "cannot be read as a list"),
    ):
        with pytest.raises(UserError, match=said):
            list_files(pattern, "--x")


def test_folds_are_written_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        (tmp_path / f"t{i}").write_text("")
    flags = [f"--input_data_pattern={tmp_path}/t*", "--output_dir=folds"]
    flags.append("--num_folds=2")
    for _ in range(2):
        assert run_command("folds", *flags) == 0
    said = capsys.readouterr().out
    assert "fold 0: 3 shards held out, 2 to train on" in said
    assert "--train_data_pattern=@folds/train-0.txt" in said
    folds = [list_files(f"@folds/held-out-{i}.txt", "--x") for i in range(2)]
    assert folds == split([f"{tmp_path}/t{i}" for i in range(5)], 2)
    for i in range(2):
        assert list_files(f"@folds/train-{i}.txt", "--x") == folds[1 - i]
    for other in (["--seed=1"], ["--num_folds=3"]):
        assert run_command("folds", *flags, *other) == 1
        assert "folds holds another split" in capsys.readouterr().err
    assert run_command("folds", *flags, "--num_folds=6") == 1
    assert "more than the 5 shard(s)" in capsys.readouterr().err


def test_out_of_fold_predictions_are_of_the_run_that_did_not_see_the_video(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    files = make_shards(tmp_path, "video")
    (tmp_path / "again").mkdir()
    flags = [f"--input_data_pattern={','.join(files)}", "--output_dir=folds"]
    assert run_command("folds", *flags, "--num_folds=2") == 0
    train = [
        "--model=LogisticModel",
        "--feature_names=mean_rgb,mean_audio",
        "--feature_sizes=16,4",
        f"--num_classes={CLASSES}",
        "--train_data_pattern=@folds/train-0.txt",
        "--train_dir=run-0",
        "--batch_size=4",
        "--max_steps=1",
    ]
    assert run_command("train", *train) == 0
    make_run("run-1", "LogisticModel")  # as if it were trained
    alone = {}
    for i in range(2):
        predict = [
            f"--train_dir=run-{i}",
            f"--input_data_pattern=@folds/held-out-{i}.txt",
            f"--output_file=fold-{i}.predictions",
        ]
        assert run_command("inference", *predict) == 0
        alone[i] = Predictions(f"fold-{i}.predictions")
    merge = ["--input_files=fold-*.predictions", "--output_file=all.predictions"]
    assert run_command("merge", *merge) == 0
    found = Predictions("all.predictions")
    ids = [r.id.encode() for r in read_records(files)]
    assert len(found) == len(ids) == 23 and (found.rows(ids) >= 0).all()
    for i in range(2):
        held_out = list_files(f"@folds/held-out-{i}.txt", "--x")
        own = [r.id.encode() for r in read_records(held_out)]
        assert alone[i].ids() == own
        np.testing.assert_array_equal(
            found.probabilities(found.rows(own)),
            alone[i].probabilities(np.arange(len(own))),
        )


def test_videos_are_dealt_by_their_ids_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = make_shards(tmp_path, "video")
    flags = ["--output_dir=folds", "--num_folds=3", "--by_id"]
    pattern = f"--input_data_pattern={','.join(files)}"
    for _ in range(2):  # the same again
        assert run_command("folds", pattern, *flags) == 0
    assert re.search(
        r"fold 0: (\d+) videos held out, (\d+) to", capsys.readouterr().out
    )
    everything = {r.id: r for r in read_records(files)}
    seen = []
    for i in range(3):
        held_out = read_records(list_files(f"@folds/held-out-{i}.txt", "--x"))
        others = read_records(list_files(f"@folds/train-{i}.txt", "--x"))
        own = [r.id for r in held_out]
        assert own and all(fold_of(video, 3) == i for video in own)
        assert sorted(own + [r.id for r in others]) == sorted(everything)
        for record in held_out:
            assert record.labels == everything[record.id].labels
            np.testing.assert_array_equal(
                record.features["mean_rgb"], everything[record.id].features["mean_rgb"]
            )
        seen += own
    assert sorted(seen) == sorted(everything)
    # As many shards more or less, in another order: the same folds.
    other = ["--output_dir=other", "--num_folds=3", "--by_id"]
    reverse = f"--input_data_pattern={files[-1]}"
    assert run_command("folds", reverse, *other) == 0
    for i in range(3):
        for record in read_records(list_files(f"@other/held-out-{i}.txt", "--x")):
            assert fold_of(record.id, 3) == i
    assert run_command("folds", pattern, *flags, "--seed=1") == 1
    assert "folds holds another split" in capsys.readouterr().err
    assert any(fold_of(video, 3) != fold_of(video, 3, seed=1) for video in everything)


def test_what_cannot_be_dealt_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mean = {"mean_rgb": np.zeros(4, "f")}
    write_records("ids", [encode_video_record(f"v{i}", mean, [0]) for i in range(40)])
    write_records("none", [encode_video_record("", mean, [0])])
    whole = (tmp_path / "ids").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-9])
    flags = ["--output_dir=folds", "--by_id"]
    for name, folds, said in (
        ("none", 2, "none, record 0: it has no id"),
        ("cut", 2, "cut"),
        ("ids", 100, "None of 40 videos falls into fold"),
    ):
        arguments = [f"--input_data_pattern={name}", f"--num_folds={folds}", *flags]
        assert run_command("folds", *arguments) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in error
        assert os.listdir("folds") == []
    assert (
        run_command("folds", "--input_data_pattern=ids", "--num_folds=2", *flags) == 0
    )
    (own,) = list_files("@folds/held-out-0.txt", "--x")
    again = [f"--input_data_pattern={own}", "--num_folds=2", *flags]
    assert run_command("folds", *again) == 1
    assert "is an input; choose another --output_dir" in capsys.readouterr().err
