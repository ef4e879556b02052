"""One SavedModel of several runs: the mean of what its members predict."""

import json

import numpy as np
import pytest
import tensorflow as tf

from test_export import CLASSES, make_batch, make_records, make_run, signature
from yt8m.cli.main import run as command
from yt8m.config import FrameSelection
from yt8m.data.records import write_records
from yt8m.inference.submission import read_submission
from yt8m.layers.averaging import mean_probability_logits


def export(runs, output, *flags) -> int:
    names = ",".join(str(run) for run in runs)
    return command("export", [f"--train_dir={names}", f"--output_dir={output}", *flags])


def sigmoid(x) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_weighted_means_of_probabilities_by_a_twin():
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(3, 5)).astype(np.float32) for _ in range(3)]
    weights = np.float32([0.5, 0.3, 0.2])
    p = sum(w * sigmoid(x) for w, x in zip(weights, logits, strict=True))
    found = np.asarray(mean_probability_logits(logits, weights))
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-5, atol=1e-6)
    # Where a probability would round to 1: (1 - p) is 0.7 e^-60.
    far = [np.float32([60]), np.float32([90])]
    found = np.asarray(mean_probability_logits(far, np.float32([0.7, 0.3])))
    np.testing.assert_allclose(found, 60 - np.log(0.7), rtol=1e-6)


@pytest.mark.parametrize(
    "names",
    [("NetVLADModel", "FrameLevelLogisticModel"), ("MoeModel", "LogisticModel")],
)
def test_the_graph_is_the_mean_of_its_members(tmp_path, names):
    members = [make_run(tmp_path / name, name) for name in names]
    batch = make_batch(members[0].model.level)
    logits = [np.asarray(m.model(batch)["logits"]) for m in members]
    directories = [tmp_path / name for name in names]
    p = [sigmoid(x) for x in logits]
    geometric = sigmoid(0.75 * logits[0] + 0.25 * logits[1])
    cases = [
        ([], (p[0] + p[1]) / 2),
        (["--weights=3,1", "--method=geometric"], geometric),
        (["--weights=3,1"], 0.75 * p[0] + 0.25 * p[1]),
        (["--weights=0,2"], p[1]),
    ]
    if names[0] == "NetVLADModel":  # its graph takes long to make
        cases = cases[:1]
    for flags, expected in cases:
        assert export(directories, tmp_path / "export", *flags) == 0
        served = signature(tmp_path / "export", "serving_default")(**batch)
        assert set(served) == {"logits", "predictions"}
        np.testing.assert_allclose(
            served["predictions"], expected, rtol=2e-4, atol=1e-7
        )
    loaded = tf.saved_model.load(str(tmp_path / "export"))
    # Of a member of weight 0 there is nothing.
    kept = members[1:] if len(cases) > 1 else members
    count = sum(len(member.model.variables) for member in kept)
    assert len(loaded.kept) == count


def test_inference_predicts_with_it_and_the_record_names_the_members(tmp_path, capsys):
    names = ("MoeModel", "LogisticModel")
    members = [make_run(tmp_path / name, name) for name in names]
    out = tmp_path / "export"
    assert export([tmp_path / n for n in names], out, "--weights=1,3") == 0
    record = json.loads((out / "export.json").read_text())
    assert record["ensemble"]["method"] == "mean"
    found = record["ensemble"]["members"]
    assert [m["weight"] for m in found] == [0.25, 0.75]
    assert [m["config"]["model"]["name"] for m in found] == list(names)
    assert [m["run"] for m in found] == [m.checkpoint.path for m in members]

    records, features = make_records("video")
    shard = str(tmp_path / "a.tfrecord")
    write_records(shard, records)
    flags = [f"--saved_model={out}", f"--input_data_pattern={shard}"]
    flags += [f"--output_file={tmp_path / 'o.csv'}", f"--top_k={CLASSES}"]
    assert command("inference", flags) == 0, capsys.readouterr().err
    for (_, classes, scores), values in zip(
        read_submission(str(tmp_path / "o.csv")), features, strict=True
    ):
        one = {k: v[None] for k, v in values.items()}
        p = [sigmoid(m.model(one)["logits"])[0] for m in members]
        expected = 0.25 * p[0] + 0.75 * p[1]
        np.testing.assert_allclose(scores, expected[classes], rtol=1e-3, atol=1e-6)


def test_runs_that_read_other_data_are_refused(tmp_path, capsys):
    names = ("FrameLevelLogisticModel", "LogisticModel")
    for name in names:
        make_run(tmp_path / name, name)
    make_run(tmp_path / "few", names[0], frames=FrameSelection(count=2))
    for other, said in (
        (names[1], "the one has level frame, the other video"),
        ("few", "the one has frames FrameSelection(count=None"),
    ):
        runs = [tmp_path / names[0], tmp_path / other]
        assert export(runs, tmp_path / "export") == 1
        error = capsys.readouterr().err
        assert said in error and f"{runs[0]} and {runs[1]} cannot be one" in error
    for flag in ("--weights=1", "--method=geometric"):
        assert export([tmp_path / names[0]], tmp_path / "export", flag) == 1
        assert "is for several runs: give --train_dir=RUN1,RUN2" in (
            capsys.readouterr().err
        )
    pair = [tmp_path / names[1]] * 2
    assert export(pair, tmp_path / "export", "--weights=1,2,3") == 1
    assert "--weights=1,2,3 must be 2 numbers" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_a_directory_with_a_comma_is_one_run(tmp_path):
    make_run(tmp_path / "a,b", "LogisticModel")
    assert export([tmp_path / "a,b"], tmp_path / "export") == 0
    assert (tmp_path / "export" / "model.keras").exists()


def test_inference_needs_no_class_of_the_exported_model(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", "LogisticModel")
    assert export([tmp_path / "run"], tmp_path / "export") == 0
    records, _ = make_records("video")
    shard = str(tmp_path / "a.tfrecord")
    write_records(shard, records)
    # As in a process of its own, where no model has been registered yet.
    monkeypatch.setattr("yt8m.registry._ENTRIES", {})
    flags = [f"--saved_model={tmp_path / 'export'}", f"--input_data_pattern={shard}"]
    flags += [f"--output_file={tmp_path / 'o.csv'}"]
    assert command("inference", flags) == 0, capsys.readouterr().err
    assert command("inference", [*flags, "--model_args=no_such=1"]) == 1
    assert "with no argument no_such, not no_such=1" in capsys.readouterr().err
