"""Evaluation and inference on any number of replicas: the same, bit for bit."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from model_cases import one_a_family
from test_distributed_training import free_ports, strategy_of
from test_export import CLASSES, FRAME_FEATURES, make_run
from test_predict import make_shards, reader_of, silent
from test_segment_reader import rated
from yt8m import distribution, registry, runs
from yt8m.cli import main
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_frame_record, write_records
from yt8m.distribution import EachReplica
from yt8m.evaluation import evaluate
from yt8m.export import export
from yt8m.inference import predict as predict_module
from yt8m.inference.embeddings import write_embeddings
from yt8m.inference.predict import load_saved_model, predict, predict_segments
from yt8m.inference.segments import SegmentRanking

runs.load_registries()
ROOT = pathlib.Path(__file__).parent.parent
# The shards hold 23 videos: 6 batches of 4, the last of 3. Neither 2 nor 4 divides 23,
# nor 4 the batches.
REPLICAS = (1, 2, 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Gives the directory of a model's run and shards for it, made once."""
    made = {}

    def get_trained(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("distributed")
            make_run(folder / "run", name)
            made[name] = (folder / "run", make_shards(folder, registry.get(name).level))
        return made[name]

    return get_trained


def load_run(directory, strategy):
    with strategy.scope():
        return runs.load_run(str(directory))


def comparable(metrics) -> dict:
    """Metrics that `==` compares, without the rate."""
    metrics = tf.nest.map_structure(
        lambda x: x.tolist() if isinstance(x, np.ndarray) else x, metrics
    )
    assert metrics.pop("examples_per_second") > 0
    return metrics


def score(run, reader, strategy=None, **options) -> dict:
    training = run.config.training
    return comparable(
        evaluate(run.model, reader, training, strategy=strategy, **options)
    )


# --- the same results ----------------------------------------------------------------


@pytest.mark.parametrize("name", one_a_family(registry.names()))
def test_metrics_and_submissions_are_the_same_for_any_number_of_replicas(
    trained, tmp_path, name
):
    directory, files = trained(name)
    found = []
    for strategy in map(strategy_of, REPLICAS):
        run, path = load_run(directory, strategy), tmp_path / "file.csv"
        metrics = score(run, reader_of(run, files), strategy, per_class=True)
        reader = reader_of(run, files)
        predict(run.model, reader, str(path), progress=silent(), strategy=strategy)
        found.append((metrics, path.read_bytes()))
    assert found[0][0]["num_examples"] == 23 and found[0][1].count(b"\n") == 24
    assert found[1] == found[0] and found[2] == found[0]


@pytest.mark.parametrize("name", ["NetVLADModel", "MoeModel"])
def test_embeddings_are_the_same_for_any_number_of_replicas(trained, tmp_path, name):
    directory, files = trained(name)
    found = []
    for strategy in map(strategy_of, REPLICAS):
        run, path = load_run(directory, strategy), tmp_path / "file"
        reader = reader_of(run, files)
        options = {"progress": silent(), "strategy": strategy}
        counts = write_embeddings(run.model, reader, str(path), **options)
        found.append((counts, path.read_bytes()))
    assert found[0][0][0] == 23
    assert found[1] == found[0] and found[2] == found[0]


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """Shards of 5 videos with 17 segments in all; the first one has no frame."""
    rng = np.random.default_rng(3)
    files = []
    for shard, lengths in enumerate(((0, 7), (23, 1, 48))):
        records = []
        for i, frames in enumerate(lengths):
            features = {
                name: rng.integers(0, 256, (frames, size), np.uint8)
                for name, size in FRAME_FEATURES.items()
            }
            ratings = rated(range(0, frames - 4, 5), (1, 4))
            name = f"s{shard}v{i}"
            records.append(encode_frame_record(name, features, [1], segments=ratings))
        files.append(str(tmp_path_factory.mktemp("segments") / f"{shard}.tfrecord"))
        write_records(files[-1], records)
    return files


def segment_data(run, segments: bool):
    return predict_module.DataConfig(
        "frame", FRAME_FEATURES, CLASSES, max_frames=60, segments=segments
    )


def test_segments_are_the_same_for_any_number_of_replicas(
    trained, segments, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict_module, "_WINDOWS_AT_ONCE", 3)
    directory, _ = trained("NetVLADModel")
    found = []
    for strategy in map(strategy_of, REPLICAS):
        run = load_run(directory, strategy)
        rated_reader = Reader(segments, segment_data(run, True), batch_size=3)
        metrics = score(run, rated_reader, strategy)
        ranking = SegmentRanking(np.array([1, 2, 5]))
        reader = Reader(segments, segment_data(run, False), batch_size=1)
        count = predict_segments(
            run.model, reader, ranking, progress=silent(), strategy=strategy
        )
        ranking.write(str(tmp_path / "scores"))
        found.append((metrics, count, (tmp_path / "scores").read_bytes()))
    metrics, count, _ = found[0]
    assert (metrics["num_examples"], count, ranking.num_segments) == (14, 5, 18)
    assert found[1] == found[0] and found[2] == found[0]


@pytest.mark.parametrize("name", ["NetVLADModel", "MoeModel"])
def test_an_export_predicts_the_same_on_replicas(trained, tmp_path, name):
    directory, files = trained(name)
    export(runs.load_run(str(directory)), str(tmp_path / "export"))
    texts = []
    for strategy in map(strategy_of, REPLICAS):
        with strategy.scope():
            model = load_saved_model(str(tmp_path / "export"))
        reader = Reader(files, model.config, batch_size=4)
        path = tmp_path / "file"
        predict(model, reader, str(path), progress=silent(), strategy=strategy)
        texts.append(path.read_bytes())
    assert texts[0].count(b"\n") == 24
    assert texts[1] == texts[0] and texts[2] == texts[0]


# --- batches for each replica --------------------------------------------------------


def numbered(sizes):
    """Batches of these sizes; None for none."""
    first = 0
    for i, size in enumerate(sizes):
        batch = None if size is None else {"x": tf.range(first, first + size)}
        first += size or 0
        yield i, batch


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize(
    "sizes", [[], [None], [3], [3] * 8, [3, 3, 3, 3, 2], [None, 3, None, 3, 1, None]]
)
def test_each_batch_has_its_results_in_order(replicas, sizes):
    function = EachReplica(
        lambda b: (b["x"], {"sq": b["x"] ** 2}), strategy_of(replicas)
    )
    found = list(function.map(numbered(sizes)))
    assert [kept for kept, _ in found] == list(range(len(sizes)))
    first = 0
    for size, (_, results) in zip(sizes, found, strict=True):
        if size is None:
            assert results is None
            continue
        expected = np.arange(first, first + size)
        assert results[0].numpy().tolist() == expected.tolist()
        assert results[1]["sq"].numpy().tolist() == (expected**2).tolist()
        first += size


def test_batches_are_taken_as_they_are_wanted():
    taken = []

    def batches():
        for i in range(100):
            taken.append(i)
            yield i, {"x": tf.constant([i])}

    results = EachReplica(lambda b: b["x"], strategy_of(4)).map(batches())
    assert not taken
    for _ in range(5):
        next(results)
    assert len(taken) == 8


@pytest.mark.parametrize("replicas", REPLICAS)
def test_a_replica_computes_whole_batches_of_any_size_in_one_trace(replicas):
    traced = []

    def rows(batch):
        traced.append({name: x.shape.as_list() for name, x in batch.items()})
        size, frames = tf.unstack(tf.shape(batch["rgb"])[:2])
        return tf.fill([size], size), tf.fill([size], frames)

    batches = [
        (None, {"rgb": tf.zeros((size, frames, 2)), "mean": tf.zeros((size, 3))})
        for size, frames in [(4, 9), (4, 7), (4, 9), (4, 8), (3, 5)]
    ]
    found = EachReplica(rows, strategy_of(replicas)).map(batches)
    found = [(a.numpy().tolist(), b.numpy().tolist()) for _, (a, b) in found]
    assert found == [
        ([n] * n, [t] * n) for n, t in [(4, 9), (4, 7), (4, 9), (4, 8), (3, 5)]
    ]
    assert traced == [{"rgb": [None, None, 2], "mean": [None, 3]}] * replicas


@pytest.mark.parametrize("replicas", REPLICAS)
def test_where_shapes_must_be_static_batches_are_padded_and_the_padding_dropped(
    trained, tmp_path, monkeypatch, replicas
):
    monkeypatch.setattr(distribution, "wants_static_shapes", bool)
    shapes = []

    def spy(batch):
        shapes.append(tuple(batch["x"].shape))
        return batch["x"] + 1

    function = EachReplica(spy, strategy_of(replicas), rows=4)
    found = [r.numpy().tolist() for _, r in function.map(numbered([4, 4, 1, 4, 2]))]
    assert found == [[1, 2, 3, 4], [5, 6, 7, 8], [9], [10, 11, 12, 13], [14, 15]]
    assert set(shapes) == {(4,)}

    directory, files = trained("NetVLADModel")
    run = load_run(directory, strategy_of(replicas))
    padded = score(run, reader_of(run, files), strategy_of(replicas))
    expected = score(run, reader_of(run, files))
    names = [name for name in expected if isinstance(expected[name], float)]
    assert "loss" in names and padded["num_examples"] == 23
    for name in names:
        assert padded[name] == pytest.approx(expected[name], rel=1e-5), name


# --- the commands --------------------------------------------------------------------


def flags_of(directory, pattern_flag, files) -> list[str]:
    return [f"--train_dir={directory}", f"--{pattern_flag}={','.join(files)}"]


def test_the_commands_write_the_same_on_four_replicas(trained, tmp_path, capsys):
    directory, files = trained("FrameLevelLogisticModel")
    reports, csvs = [], []
    for name, devices in (
        ("one_device", "CPU:0"),
        ("mirrored", "CPU:0, CPU:1, CPU:2, CPU:3"),
    ):
        more = [f"--strategy={name}", "--batch_size=3"]
        arguments = flags_of(directory, "eval_data_pattern", files)
        assert main.run("eval", [*arguments, "--run_once", *more]) == 0
        report = json.loads((directory / "eval" / "step-00000005.json").read_text())
        reports.append(comparable(report))
        arguments = flags_of(directory, "input_data_pattern", files)
        output = f"--output_file={tmp_path / 'file.csv'}"
        assert main.run("inference", [*arguments, output, *more]) == 0
        csvs.append((tmp_path / "file.csv").read_text())
        assert capsys.readouterr().err.count(f"Computing on {devices}:") == 2
    assert reports[0] == reports[1] and csvs[0] == csvs[1]


def test_bad_records_are_left_out_on_replicas_too(trained, tmp_path, capsys):
    directory, files = trained("FrameLevelLogisticModel")
    bad = str(tmp_path / "bad.tfrecord")
    features = {"rgb": np.zeros((3, 16), np.uint8), "audio": np.zeros((2, 4), np.uint8)}
    write_records(bad, [encode_frame_record("bad", features, [1])] * 5)
    arguments = flags_of(directory, "input_data_pattern", [files[0], bad, files[2]])
    arguments += ["--batch_size=2", "--on_bad_record=skip"]
    texts = []
    for name in ("one_device", "mirrored"):
        output = tmp_path / f"{name}.csv"
        more = [f"--strategy={name}", f"--output_file={output}"]
        assert main.run("inference", [*arguments, *more]) == 0
        assert "5 bad record(s) were left out" in capsys.readouterr().err
        texts.append(output.read_text())
    assert texts[0] == texts[1] and texts[0].count("\n") == 23


def test_workers_of_a_cluster_are_told_what_to_do_instead(
    trained, tmp_path, monkeypatch, capsys
):
    directory, files = trained("FrameLevelLogisticModel")
    cluster = {"worker": ["localhost:1", "localhost:2"], "evaluator": ["localhost:3"]}

    def run(role, command, *more):
        task = {"cluster": cluster, "task": {"type": role, "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
        pattern = {"eval": "eval_data_pattern", "inference": "input_data_pattern"}
        arguments = [*flags_of(directory, pattern[command], files), *more]
        return main.run(command, arguments), capsys.readouterr().err

    output = f"--output_file={tmp_path / 'file.csv'}"
    for name in ("auto", "multi_worker"):
        code, said = run("worker", "inference", output, f"--strategy={name}")
        assert code == 1 and "TF_CONFIG names 2 workers" in said
        assert "--num_shards and --shard_index" in said
        code, said = run("worker", "eval", "--run_once", f"--strategy={name}")
        assert code == 1 and "as its evaluator, or give --strategy=mirrored" in said
    assert os.listdir(tmp_path) == []
    # Each for itself is what they may do.
    assert run("evaluator", "eval", "--run_once")[0] == 0
    assert run("worker", "eval", "--run_once", "--strategy=one_device")[0] == 0
    shard = ("--num_shards=2", "--shard_index=1")
    assert run("worker", "inference", output, *shard)[0] == 0
    assert os.listdir(tmp_path) == ["file-00001-of-00002.csv"]


WORKER = """
import json, sys

from yt8m.distribution import create_strategy
strategy = create_strategy()
from yt8m import runs
from yt8m.data.pipeline import Reader
from yt8m.evaluation import evaluate

directory, files, output = sys.argv[1:]
with strategy.scope():
    run = runs.load_run(directory)
reader = Reader(files.split(","), run.config.data, batch_size=5)
metrics = evaluate(run.model, reader, run.config.training, strategy=strategy)
json.dump(metrics, open(output, "w"))
"""


def test_workers_share_an_evaluation_and_all_get_the_same_metrics(trained, tmp_path):
    directory, files = trained("NetVLADModel")
    run = runs.load_run(str(directory))
    expected = score(run, reader_of(run, files, 5))
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    workers = []
    for i in range(2):
        task = {"cluster": cluster, "task": {"type": "worker", "index": i}}
        output = str(tmp_path / f"{i}.json")
        arguments = [str(directory), ",".join(files), output]
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, *arguments],
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    for i, worker in enumerate(workers):
        assert worker.returncode == 0, errors[i][-3000:]
        metrics = json.loads((tmp_path / f"{i}.json").read_text())
        assert comparable(metrics) == expected
