"""One job on any number of replicas and machines: the same training."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from replicas import mirrored
from yt8m import runs, whole_files
from yt8m.cli import main
from yt8m.config import (
    DataConfig,
    FrameSelection,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_frame_record, write_records
from yt8m.errors import UserError
from yt8m.training.loop import MovingAverages, StepFunctions, Trainer
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

CLASSES = 6
SIZES = {"rgb": 8, "audio": 4}
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Videos whose classes show in their frames, of 0 to 9 frames."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(CLASSES, 12))
    files = []
    for file in range(4):
        records = []
        for i in range(16):
            labels = sorted(rng.choice(CLASSES, rng.integers(1, 3), replace=False))
            count = rng.integers(0, 10)
            mean = 128 + 40 * prototypes[labels].sum(0)
            frames = mean + rng.normal(size=(count, 12)) * 30
            frames = np.clip(frames, 0, 255).astype(np.uint8)
            features = {"rgb": frames[:, :8], "audio": frames[:, 8:]}
            records.append(encode_frame_record(f"{file}-{i}", features, labels))
        files.append(str(folder / f"{file}.tfrecord"))
        write_records(files[-1], records)
    return files


def strategy_of(replicas: int) -> tf.distribute.Strategy:
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    return mirrored(replicas)


def make_trainer(
    files, directory, replicas=1, model="NetVLADModel", args=None, **values
):
    defaults = {"batch_size": 12, "max_steps": 50, "num_epochs": 0, "log_steps": 1}
    defaults |= {"lr_schedule": "constant", "base_learning_rate": 1e-3}
    training = TrainingConfig("unused", **(defaults | values))
    data = DataConfig("frame", SIZES, CLASSES, frames=FrameSelection(5))
    config = RunConfig(ModelConfig(model, args or {}), data, training)
    whole_files.make_directory(str(directory))
    runs.write_config(str(directory), config)
    reader = Reader(
        files,
        data,
        batch_size=training.batch_size,
        seed=training.seed,
        num_epochs=None,
    )
    keras.utils.set_random_seed(training.seed)
    strategy = strategy_of(replicas)
    return Trainer(config, str(directory), reader, None, strategy, resume=True)


def losses_of(directory) -> list[float]:
    with open(directory / "metrics.csv") as f:
        return [float(row["loss"]) for row in csv.DictReader(f)]


def curve(files, directory, **options) -> np.ndarray:
    make_trainer(files, directory, **options).train()
    return np.array(losses_of(directory))


NETVLAD = {"clusters": 4, "hidden_size": 8}


@pytest.mark.parametrize(
    ("replicas", "options"),
    [
        ([2, 4], {"args": NETVLAD, "optimizer": "Adam"}),
        ([2, 4], {"args": NETVLAD, "optimizer": "SGD", "base_learning_rate": 0.05}),
        (
            [2, 4],
            {
                "model": "FrameLevelLogisticModel",
                "args": {"l2_penalty": 0.1},
                "optimizer": "SGD",
                "base_learning_rate": 0.05,
            },
        ),
        (
            [2, 4],
            {
                "model": "DbofModel",
                "args": {"clusters": 16, "hidden_size": 8},
                "optimizer": "Adam",
                "clip_global_norm": 0.5,
            },
        ),
    ],
    ids=["netvlad-adam", "netvlad-sgd", "penalty", "dbof-clipped"],
)
def test_any_number_of_replicas_has_the_same_loss_curve(
    files, tmp_path, replicas, options
):
    one, *others = (
        curve(files, tmp_path / str(n), replicas=n, sync_batch_norm=True, **options)
        for n in (1, *replicas)
    )
    assert len(one) == 50 and one[-12:].mean() < one[:12].mean()
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-5)


def test_batch_norm_without_synchronising_differs(files, tmp_path):
    options = {"args": NETVLAD, "max_steps": 5}
    one = curve(files, tmp_path / "1", **options)
    two = curve(files, tmp_path / "2", replicas=2, **options)
    assert np.abs(two / one - 1).max() > 1e-4


def test_a_checkpoint_is_resumed_on_another_number_of_replicas(files, tmp_path):
    options = {"args": NETVLAD, "sync_batch_norm": True}
    whole = curve(files, tmp_path / "whole", max_steps=12, **options)
    for replicas, steps in ((2, 5), (1, 8), (4, 12)):
        curve(files, tmp_path / "cut", replicas=replicas, max_steps=steps, **options)
    np.testing.assert_allclose(losses_of(tmp_path / "cut"), whole, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 5])
def test_a_batch_in_parts_gives_the_same_steps(files, tmp_path, parts):
    options = {"model": "FrameLevelLogisticModel", "args": {"l2_penalty": 0.1}}
    options |= {"max_steps": 8}
    whole = curve(files, tmp_path / "whole", **options)
    cut = curve(files, tmp_path / "cut", gradient_accumulation_steps=parts, **options)
    np.testing.assert_allclose(cut, whole, rtol=1e-5)
    both = curve(
        files,
        tmp_path / "both",
        replicas=2,
        gradient_accumulation_steps=parts,
        **options,
    )
    np.testing.assert_allclose(both, whole, rtol=1e-5)


@pytest.mark.parametrize("model", ["NetVLADModel", "LstmModel"])
def test_a_compiled_step_is_the_same_step(files, tmp_path, model):
    args = NETVLAD if model == "NetVLADModel" else {"cells": 8, "layers": 2}
    options = {"model": model, "args": args, "max_steps": 6}
    plain = curve(files, tmp_path / "plain", **options)
    compiled = curve(files, tmp_path / "xla", jit_compile=True, **options)
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)


def test_compiling_the_step_of_several_replicas_is_refused(files, tmp_path):
    with pytest.raises(UserError, match="--strategy=one_device"):
        make_trainer(files, tmp_path, replicas=2, jit_compile=True)


@pytest.mark.parametrize("replicas", [1, 2])
def test_moving_averages_follow_the_weights(files, tmp_path, replicas):
    options = {"model": "FrameLevelLogisticModel", "base_learning_rate": 0.1}
    options |= {"ema_decay": 0.7, "replicas": replicas}
    trainer = make_trainer(files, tmp_path, max_steps=6, **options)
    weights = trainer.model.trainable_variables
    expected = [w.numpy().astype(np.float64) for w in weights]
    iterator = trainer.steps.iterate(trainer.reader, 0)
    for step in range(1, 7):
        trainer.steps.run(iterator, 1)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * w.numpy()
            for e, w in zip(expected, weights, strict=True)
        ]
    *averages, steps = trainer.averages.variables
    assert steps.numpy() == 6
    for average, value in zip(averages, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), value, rtol=1e-5, atol=1e-7)
    before = [w.numpy() for w in weights]
    with trainer.averages.used():
        for w, value in zip(weights, expected, strict=True):
            np.testing.assert_allclose(w.numpy(), value, rtol=1e-5, atol=1e-7)
    for w, value in zip(weights, before, strict=True):
        np.testing.assert_array_equal(w.numpy(), value)


def test_evaluation_and_resuming_take_the_averages_from_the_checkpoint(files, tmp_path):
    options = {"model": "FrameLevelLogisticModel", "base_learning_rate": 0.1}
    options |= {"ema_decay": 0.7}
    make_trainer(files, tmp_path / "whole", max_steps=6, **options).train()
    for steps in (2, 6):
        trainer = make_trainer(files, tmp_path / "cut", max_steps=steps, **options)
        trainer.train()
    whole, cut = (runs.load_run(str(tmp_path / name)) for name in ("whole", "cut"))
    averages = trainer.averages.variables[:-1]
    for a, b, average in zip(
        whole.model.trainable_variables,
        cut.model.trainable_variables,
        averages,
        strict=True,
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        np.testing.assert_array_equal(a.numpy(), average.numpy())
    assert isinstance(trainer.averages, MovingAverages)


def test_float16_trains_and_survives_an_overflow(files, tmp_path):
    options = {"args": NETVLAD, "base_learning_rate": 0.01, "precision": "float16"}
    trainer = make_trainer(files, tmp_path, max_steps=40, **options)
    # So large that the first steps overflow: they are skipped, and counted.
    trainer.optimizer.dynamic_scale.assign(2.0**30)
    trainer.train()
    losses = losses_of(tmp_path)
    assert trainer.step == len(losses) == 40
    assert int(trainer.optimizer.iterations) < 40
    assert float(trainer.optimizer.dynamic_scale) < 2.0**30
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_steps_per_loop_changes_nothing_but_the_calls(files, tmp_path):
    options = {"model": "FrameLevelLogisticModel", "max_steps": 7, "log_steps": 7}
    curves = [
        curve(files, tmp_path / str(n), steps_per_loop=n, **options) for n in (0, 2, 5)
    ]
    assert curves[0] == curves[1] == curves[2]


RANKING = {"label_loss": "SoftRankingLoss", "label_loss_args": {"negatives": 2}}


def one_step(batch, slices, **settings):
    """The loss of a step, and how far it moves each weight.

    Args:
        batch: the features of all examples.
        slices: the rows of each replica.
    """
    training = TrainingConfig(
        "unused",
        deep_supervision_weight=0.5,
        optimizer="SGD",
        base_learning_rate=1.0,
        **settings,
    )
    data = DataConfig("video", {"mean_rgb": 5}, CLASSES)
    model_config = ModelConfig("DeepCombineChainModel", {"head_args": {"stages": 1}})
    strategy = strategy_of(len(slices))
    with strategy.scope():
        keras.utils.set_random_seed(1)
        model = runs.build_model(model_config, data, "float32")
        optimizer = create_optimizer(training, ExamplesSchedule(training, 1000))
        optimizer.build(model.trainable_variables)
    config = RunConfig(model_config, data, training)
    steps = StepFunctions(config, model, optimizer, strategy)

    def part(context):
        rows = slices[context.replica_id_in_sync_group]
        return {name: tf.constant(values[rows]) for name, values in batch.items()}

    @tf.function
    def step(parts):
        return strategy.run(steps._replica_step, args=(parts,))

    before = [v.numpy() for v in model.trainable_variables]
    parts = strategy.experimental_distribute_values_from_function(part)
    loss, *_ = strategy.experimental_local_results(step(parts)[0])
    after = [v.numpy() for v in model.trainable_variables]
    return [loss.numpy(), *(a - b for a, b in zip(after, before, strict=True))]


@pytest.mark.parametrize(
    ("weighted", "parts", "slices"),
    [
        (True, 1, [[0, 1, 2], [3], [], [4, 5, 6, 7]]),
        # Each part is of the same videos as that of one replica.
        (False, 2, [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ],
    ids=["segments", "in parts"],
)
def test_a_loss_of_the_batch_ranks_the_videos_of_all_replicas(weighted, parts, slices):
    rng = np.random.default_rng(0)
    batch = {
        "mean_rgb": rng.normal(size=(8, 5)).astype("float32"),
        "labels": rng.integers(0, 2, (8, CLASSES)).astype("uint8"),
    }
    if weighted:
        batch["label_weights"] = rng.integers(0, 2, (8, CLASSES)).astype("uint8")
    settings = {**RANKING, "gradient_accumulation_steps": parts}
    expected = one_step(batch, [list(range(8))], **settings)
    assert all(np.abs(x).max() > 1e-5 for x in expected)
    found = one_step(batch, slices, **settings)
    for ours, of_one in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, of_one, rtol=1e-4, atol=1e-6)


# --- through train.py ----------------------------------------------------------------


def command_flags(files, directory, *more) -> list[str]:
    return [
        f"--train_data_pattern={','.join(files)}",
        f"--train_dir={directory}",
        "--model=NetVLADModel",
        "--model_args=clusters=4,hidden_size=8",
        "--feature_names=rgb,audio",
        "--feature_sizes=8,4",
        f"--num_classes={CLASSES}",
        "--frames=5",
        "--sync_batch_norm",
        "--global_batch_size=12",
        "--num_epochs=0",
        "--max_steps=12",
        "--log_steps=1",
        "--save_checkpoint_steps=3",
        "--base_learning_rate=0.001",
        *more,
    ]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start_workers(count: int, flags: list[str], log) -> list[subprocess.Popen]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    workers = []
    for i in range(count):
        task = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": i},
        }
        with open(f"{log}-{i}", "w") as stderr:
            worker = subprocess.Popen(
                [sys.executable, "train.py", *flags],
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        workers.append(worker)
    return workers


def wait_all(workers, log) -> list[int]:
    codes = [worker.wait(timeout=300) for worker in workers]
    for i, code in enumerate(codes):
        if code:
            print(pathlib.Path(f"{log}-{i}").read_text()[-2000:])
    return codes


def weights(directory) -> list[np.ndarray]:
    return [v.numpy() for v in runs.load_run(str(directory)).model.variables]


@pytest.fixture(scope="module")
def single(files, tmp_path_factory):
    directory = tmp_path_factory.mktemp("single") / "run"
    assert main.run("train", command_flags(files, directory)) == 0
    return directory


@pytest.mark.parametrize("count", [2, 3])
def test_several_machines_train_as_one_does(files, tmp_path, single, count):
    flags = command_flags(files, tmp_path / "run")
    workers = start_workers(count, flags, tmp_path / "log")
    assert wait_all(workers, tmp_path / "log") == [0] * count
    np.testing.assert_allclose(
        losses_of(tmp_path / "run"), losses_of(single), rtol=1e-5
    )
    for a, b in zip(weights(tmp_path / "run"), weights(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_worker_killed_in_mid_run_costs_nothing_but_time(files, tmp_path):
    flags = command_flags(files, tmp_path / "whole")
    assert wait_all(start_workers(2, flags, tmp_path / "a"), tmp_path / "a") == [0, 0]

    directory = tmp_path / "killed"
    flags = command_flags(files, directory)
    workers = start_workers(2, flags, tmp_path / "b")
    wait_for_rows(directory / "metrics.csv", 5, workers)
    workers[1].send_signal(signal.SIGKILL)
    workers[1].wait()
    # The other says so in one line, and ends.
    assert workers[0].wait(timeout=300) == 1
    said = (tmp_path / "b-0").read_text()
    assert "Another worker has stopped" in said and "Traceback" not in said
    assert runs.Checkpoints(str(directory)).latest().step < 12
    assert wait_all(start_workers(2, flags, tmp_path / "c"), tmp_path / "c") == [0, 0]
    for a, b in zip(weights(directory), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sigterm_to_one_worker_stops_all_at_one_step(files, tmp_path):
    directory = tmp_path / "run"
    flags = command_flags(files, directory, "--max_steps=100000")
    workers = start_workers(2, flags, tmp_path / "log")
    wait_for_rows(directory / "metrics.csv", 3, workers)
    workers[1].send_signal(signal.SIGTERM)
    assert wait_all(workers, tmp_path / "log") == [143, 143]
    step = runs.Checkpoints(str(directory)).latest().step
    assert 3 <= step < 100_000
    assert len(losses_of(directory)) == step


def wait_for_rows(path, rows: int, workers) -> None:
    for _ in range(12_000):
        assert all(worker.poll() is None for worker in workers)
        if path.exists() and len(path.read_text().splitlines()) > rows:
            return
        time.sleep(0.01)
    raise TimeoutError(f"{path} has not got {rows} rows")


def test_a_dry_run_says_what_a_run_takes_and_writes_nothing(files, tmp_path, capsys):
    directory = tmp_path / "run"
    assert main.run("train", command_flags(files, directory, "--dry_run")) == 0
    said = capsys.readouterr().out
    assert not directory.exists()
    for words in (
        "NetVLADModel",
        "weights",
        "CPU:0",
        "12 examples in all",
        "of weights and optimiser",
        "steps: 6 an epoch, 12 in all",
        "two steps: loss",
    ):
        assert words in said


def test_the_batch_is_that_of_each_replica_or_of_all(files, tmp_path, capsys):
    def batch_size(name, *flags) -> int:
        arguments = command_flags(files, tmp_path / name, *flags)
        arguments.remove("--global_batch_size=12")
        assert main.run("train", [*arguments, "--max_steps=1"]) == 0
        config = json.loads((tmp_path / name / "config.json").read_text())
        return config["training"]["batch_size"]

    devices = len(tf.config.list_logical_devices("CPU"))
    mirrored = "--strategy=mirrored"
    assert batch_size("one", "--batch_size=4", "--strategy=one_device") == 4
    assert batch_size("all", "--batch_size=4", mirrored) == 4 * devices
    assert batch_size("global", "--global_batch_size=8", mirrored) == 8
    # A resumed run keeps its batch, whatever the number of replicas.
    assert batch_size("all", "--strategy=one_device", "--max_steps=2") == 4 * devices
    both = command_flags(files, tmp_path / "both", "--batch_size=4")
    assert main.run("train", both) == 1
    assert "--global_batch_size" in capsys.readouterr().err
