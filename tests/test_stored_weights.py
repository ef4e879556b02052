"""SavedModels whose weights take fewer bytes: what they hold, and what they predict."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from test_export import (
    CLASSES,
    VIDEO_FEATURES,
    make_batch,
    make_records,
    make_run,
    signature,
)
from yt8m import evaluation, runs
from yt8m.cli.main import run as command
from yt8m.compression import METHODS
from yt8m.config import TrainingConfig
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_video_record, write_records
from yt8m.ensemble.model import combine
from yt8m.inference.predict import load_saved_model
from yt8m.inference.submission import read_submission


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch):
    monkeypatch.setattr("yt8m.compression._LEAST_VALUES", 8)


def export(runs_, output, *flags) -> int:
    names = ",".join(str(run) for run in runs_)
    return command("export", [f"--train_dir={names}", f"--output_dir={output}", *flags])


def save_small(run, directory) -> None:
    """The run as it is in memory."""
    directory.mkdir()
    runs.write_config(str(directory), run.config)
    checkpoints = runs.Checkpoints(str(directory))
    checkpoints.save_compressed(run.model, run.checkpoint, "float16")


@pytest.mark.parametrize("names", [("MoeModel", "LogisticModel"), ("MoeModel",)])
def test_the_export_says_what_compression_costs(tmp_path, capsys, names):
    members = [make_run(tmp_path / name, name) for name in names]
    rng, shard = np.random.default_rng(0), str(tmp_path / "a.tfrecord")
    records = [
        encode_video_record(
            f"v{i}",
            {n: rng.normal(size=s).astype("f") for n, s in VIDEO_FEATURES.items()},
            [i % CLASSES],
        )
        for i in range(60)
    ]
    write_records(shard, records)
    directories = [tmp_path / name for name in names]
    flags = [f"--eval_data_pattern={shard}", "--compress=codebook8"]
    out = tmp_path / "export"
    assert export(directories, out, *flags, "--batch_size=7") == 0
    found = json.loads((out / "export.json").read_text())["compression"]
    said = f"GAP {found['gap_before']:.5f} before, {found['gap']:.5f} after"
    assert said in capsys.readouterr().out
    model, data = members[0].model, members[0].config.data
    if len(members) > 1:
        model, data, _ = combine(members)
    for scored, gap in (
        (model, found["gap_before"]),
        (load_saved_model(str(out)), found["gap"]),
    ):
        reader = Reader([shard], data, batch_size=60)
        expected = evaluation.evaluate(scored, reader, TrainingConfig(""))["gap"]
        assert gap == pytest.approx(expected, abs=1e-6)
    assert 0 < abs(found["gap"] - found["gap_before"]) < 0.1
    for wrong, error in (
        (flags[:1], "says what compression costs: give --compress too"),
        ([flags[1], "--batch_size=7"], "--batch_size is of the evaluation"),
    ):
        assert export(directories, out, *wrong) == 1
        assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, precision, method",
    [
        *(("MoeModel", "float32", method) for method in METHODS),
        ("NetVLADModel", "bfloat16", "codebook8"),
    ],
)
def test_it_predicts_what_a_compressed_run_predicts(tmp_path, name, precision, method):
    run = make_run(tmp_path / "run", name, precision)
    small, out = tmp_path / "small", tmp_path / "export"
    flags = [f"--train_dir={tmp_path / 'run'}", f"--output_dir={small}"]
    assert command("compress", [*flags, f"--method={method}"]) == 0
    assert export([tmp_path / "run"], out, f"--compress={method}") == 0
    batch = make_batch(run.model.level)
    compressed = np.asarray(runs.load_run(str(small)).model(batch)["logits"])
    served = signature(out, "serving_default")(**batch)
    near = 2e-2 if precision == "bfloat16" else 1e-5
    np.testing.assert_allclose(served["logits"], compressed, rtol=near, atol=near)
    assert np.abs(compressed - np.asarray(run.model(batch)["logits"])).max() > 1e-4
    assert not (out / "model.keras").exists()
    record = json.loads((out / "export.json").read_text())
    assert record["compression"] == {"method": method}
    # A compressed run is stored as it is, by the method that it was compressed by.
    assert export([small], tmp_path / "again", f"--compress={method}") == 0
    again = signature(tmp_path / "again", "serving_default")(**batch)
    np.testing.assert_array_equal(again["logits"], served["logits"])


def test_its_bytes_are_those_of_the_codes(tmp_path, capsys):
    make_run(tmp_path / "run", "LogisticModel")
    sizes = {}
    for method in ("codebook8", "float16"):
        out = tmp_path / method
        assert export([tmp_path / "run"], out, f"--compress={method}") == 0
        said = capsys.readouterr().out
        sizes[method] = sum(
            os.path.getsize(os.path.join(folder, f))
            for folder, _, files in os.walk(out)
            for f in files
        )
        assert f"exported to {out}: {sizes[method]:,} bytes" in said
        loaded = tf.saved_model.load(str(out))
        assert (
            sorted(v.dtype.name for v in loaded.stored)
            == {
                "codebook8": ["float32", "uint8"],
                "float16": ["float16"],
            }[method]
        )
        assert sum(v.shape.num_elements() for v in loaded.kept) == CLASSES
        reader = tf.train.load_checkpoint(str(out / "variables" / "variables"))
        saved = reader.get_variable_to_dtype_map().values()
        assert sum(dtype == tf.float32 for dtype in saved) == len(loaded.kept) + (
            method == "codebook8"
        )
    flags = ["--compress=float16", f"--max_bytes={sizes['float16'] - 2000}"]
    assert export([tmp_path / "run"], tmp_path / "none", *flags) == 1
    error = capsys.readouterr().err
    assert re.search(r"takes [\d,]+ bytes with weights as float16, more than", error)
    assert not (tmp_path / "none").exists()
    assert export([tmp_path / "run"], tmp_path / "none", "--max_bytes=1furlong") == 1
    assert "--max_bytes=1furlong is no number of bytes" in capsys.readouterr().err


def test_two_in_one_process_do_not_share_weights(tmp_path):
    batch, served = make_batch("video"), []
    for name in ("a", "b"):
        run = make_run(tmp_path / name, "LogisticModel")
        for variable in run.model.trainable_variables:
            variable.assign(variable * (1.0 if name == "a" else -1.0))
        save_small(run, tmp_path / f"{name}-small")
        out = tmp_path / f"{name}-export"
        assert export([tmp_path / f"{name}-small"], out, "--compress=float16") == 0
    functions = [signature(tmp_path / f"{n}-export", "serving_default") for n in "ab"]
    functions.append(signature(tmp_path / "a-export", "serving_default"))
    served = [np.asarray(f(**batch)["logits"]) for f in functions]
    np.testing.assert_array_equal(served[0], served[2])
    np.testing.assert_allclose(served[0], -served[1], rtol=1e-5, atol=1e-5)


_SERVER = """
import sys, numpy as np, tensorflow as tf
graph = tf.Graph()
with tf.compat.v1.Session(graph=graph) as session:
    loaded = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
    served = loaded.signature_def["serving_default"]
    batch = dict(np.load(sys.argv[2]))
    fed = {tensor.name: batch[name] for name, tensor in served.inputs.items()}
    np.save(sys.argv[3], session.run(served.outputs["logits"].name, fed))
"""


def test_servers_that_run_the_initializer_of_the_graph_have_the_weights(tmp_path):
    make_run(tmp_path / "run", "MoeModel")
    assert export([tmp_path / "run"], tmp_path / "out", "--compress=codebook8") == 0
    batch = make_batch("video")
    np.savez(tmp_path / "batch.npz", **batch)
    paths = [tmp_path / "out", tmp_path / "batch.npz", tmp_path / "found.npy"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": ""}
    subprocess.run(
        [sys.executable, "-c", _SERVER, *map(str, paths)], check=True, env=environment
    )
    expected = signature(tmp_path / "out", "serving_default")(**batch)["logits"]
    np.testing.assert_allclose(np.load(paths[2]), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """Gives two nets, a shard, and a classifier of the nets' embeddings, by level."""
    made = {}

    def make(name):
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp("stacked")
        directories = [folder / "a", folder / "b"]
        for i, directory in enumerate(directories):
            run = make_run(folder / f"net-{i}", name)
            for variable in run.model.trainable_variables:
                variable.assign(variable * (1 - 0.5 * i))
            save_small(run, directory)
        shard = folder / "shard.tfrecord"
        write_records(str(shard), make_records(run.model.level)[0])
        for i, directory in enumerate(directories):
            flags = [f"--train_dir={directory}", "--output=embeddings"]
            flags += [f"--input_data_pattern={shard}"]
            flags += [f"--output_file={folder / f'{i}.tfrecord'}"]
            assert command("inference", flags) == 0
        flags = [f"--input_files={folder / f'{i}.tfrecord'}" for i in range(2)]
        assert command("join", [*flags, f"--output_dir={folder / 'joined'}"]) == 0
        flags = [f"--flagfile={folder / 'joined' / 'features.flags'}"]
        flags += [f"--train_data_pattern={folder / 'joined'}/*.tfrecord"]
        flags += ["--model=LogisticModel", f"--num_classes={CLASSES}"]
        flags += [f"--train_dir={folder / 'classifier'}", "--num_epochs=2"]
        assert command("train", [*flags, "--batch_size=4"]) == 0
        made[name] = folder, directories
        return made[name]

    return make


@pytest.mark.parametrize("name", ["MlpModel", "NetVLADModel"])
def test_a_classifier_of_embeddings_and_its_nets_are_one_model(stacked, tmp_path, name):
    folder, directories = stacked(name)
    by_hand, whole, out = tmp_path / "hand.csv", tmp_path / "whole.csv", tmp_path / "o"
    flags = [f"--train_dir={folder / 'classifier'}", f"--top_k={CLASSES}"]
    flags += [f"--input_data_pattern={folder / 'joined'}/*.tfrecord"]
    assert command("inference", [*flags, f"--output_file={by_hand}"]) == 0
    assert export(directories, out, f"--classifier={folder / 'classifier'}") == 0
    flags = [f"--saved_model={out}", f"--top_k={CLASSES}"]
    flags += [f"--input_data_pattern={folder / 'shard.tfrecord'}"]
    assert command("inference", [*flags, f"--output_file={whole}"]) == 0
    for own, other in zip(
        read_submission(str(by_hand)), read_submission(str(whole)), strict=True
    ):
        assert own[0] == other[0]
        scores = [dict(zip(x[1].tolist(), x[2], strict=True)) for x in (own, other)]
        assert scores[1] == pytest.approx(scores[0], rel=1e-4, abs=1e-7)
    record = json.loads((out / "export.json").read_text())["ensemble"]
    assert record["method"] == "stacked" and len(record["members"]) == 2
    assert record["classifier"]["config"]["model"]["name"] == "LogisticModel"


def test_nets_that_the_classifier_does_not_fit_are_refused(stacked, tmp_path, capsys):
    folder, directories = stacked("MlpModel")
    classifier = f"--classifier={folder / 'classifier'}"
    make_run(tmp_path / "ths", "ThsModel")
    for nets, flags, said in (
        (directories[:1], [], "reads 2 embeddings (embedding_0, embedding_1), but"),
        (directories, ["--weights=1,2"], "--weights is of a mean of runs"),
        (directories, ["--method=mean"], "--method is of a mean of runs"),
        ([directories[0], tmp_path / "ths"], [], "ths has size"),
    ):
        assert export(nets, tmp_path / "none", classifier, *flags) == 1
        assert said in capsys.readouterr().err
    net = [f"--classifier={make_frame_run(tmp_path)}"]
    assert export(directories, tmp_path / "none", *net) == 1
    assert "must be a run of a video-level model" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def make_frame_run(folder):
    make_run(folder / "frames", "FrameLevelLogisticModel")
    return folder / "frames"


def test_the_order_of_the_nets_matters(stacked, tmp_path):
    folder, directories = stacked("MlpModel")
    batch, found = make_batch("video"), []
    for nets in (directories, directories[::-1]):
        out = tmp_path / nets[0].name
        assert export(nets, out, f"--classifier={folder / 'classifier'}") == 0
        found.append(np.asarray(signature(out, "serving_default")(**batch)["logits"]))
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_members_may_read_different_features_of_a_record(tmp_path):
    both = make_run(tmp_path / "both", "LogisticModel")
    one = both.config.data.features["mean_rgb"]
    flags = ["--model=LogisticModel", f"--num_classes={CLASSES}", "--batch_size=4"]
    flags += ["--feature_names=mean_rgb", f"--feature_sizes={one}", "--num_epochs=1"]
    records, _ = make_records("video")
    shard = tmp_path / "shard.tfrecord"
    write_records(str(shard), records)
    flags += [f"--train_data_pattern={shard}", f"--train_dir={tmp_path / 'rgb'}"]
    assert command("train", flags) == 0
    directories = [tmp_path / "rgb", tmp_path / "both"]
    out = tmp_path / "export"
    assert export(directories, out, "--method=geometric") == 0
    batch = make_batch("video")
    rgb = runs.load_run(str(tmp_path / "rgb")).model
    logits = [
        np.asarray(rgb({"mean_rgb": batch["mean_rgb"]})["logits"]),
        np.asarray(both.model(batch)["logits"]),
    ]
    served = signature(out, "serving_default")(**batch)["logits"]
    np.testing.assert_allclose(served, np.mean(logits, 0), rtol=1e-4, atol=1e-4)
    csv = [f"--saved_model={out}", f"--input_data_pattern={shard}"]
    assert command("inference", [*csv, f"--output_file={tmp_path / 'o.csv'}"]) == 0
