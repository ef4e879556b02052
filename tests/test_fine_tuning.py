"""Runs that begin with another's weights, parts that stand still or learn slower, and
runs that stop early."""

import csv
import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m import runs, whole_files
from yt8m.cli import main
from yt8m.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from yt8m.errors import UserError
from yt8m.training.early_stopping import EarlyStopping
from yt8m.training.fine_tuning import (
    freeze,
    learning_rate_factors,
    load_weights,
    match,
    path_of,
)
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

FEATURES = ["--feature_names=rgb,audio", "--feature_sizes=32,32"]
DATA = DataConfig("frame", {"rgb": 32, "audio": 32}, num_classes=12)
SMALL = {"clusters": 4, "hidden_size": 6}
NETVLAD = ModelConfig("NetVLADModel", SMALL)


def command(*arguments) -> int:
    return main.run(arguments[0], [str(a) for a in arguments[1:]])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    flags = ["--num_videos=48", "--num_shards=2", "--max_frames=12", "--num_classes=12"]
    assert command("synthesize", f"--output_dir={folder}", *flags, *FEATURES) == 0
    return folder


def train(shards, directory, *more, steps=2) -> int:
    return command(
        "train",
        "--model=NetVLADModel",
        "--model_args=clusters=4,hidden_size=6",
        f"--train_data_pattern={shards}/*.tfrecord",
        "--num_classes=12",
        f"--max_steps={steps}",
        f"--train_dir={directory}",
        "--batch_size=16",
        *FEATURES,
        *more,
    )


def values(model) -> dict[str, np.ndarray]:
    return {path_of(v): keras.ops.convert_to_numpy(v).copy() for v in model.variables}


def weights(directory) -> dict[str, np.ndarray]:
    """As they are evaluated."""
    return values(runs.load_run(str(directory)).model)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run with moving averages of its weights, which are 0.125 everywhere."""
    directory = str(tmp_path_factory.mktemp("source") / "run")
    config = RunConfig(NETVLAD, DATA, TrainingConfig("*", ema_decay=0.5))
    whole_files.make_directory(directory)
    runs.write_config(directory, config)
    model = runs.build_model(NETVLAD, DATA)
    averages = [
        tf.Variable(tf.fill(tuple(v.shape), 0.125)) for v in model.trainable_variables
    ]
    state = {"model": model, "ema": SimpleNamespace(variables=averages)}
    runs.Checkpoints(directory).save(state, 2, 32, 16)
    return directory


def changed(before: dict, after: dict) -> set[str]:
    return {p for p in before if not np.array_equal(before[p], after[p])}


def test_a_run_begins_with_the_averages_of_another_and_freezes_what_is_named(
    shards, source, tmp_path, capsys
):
    flags = [f"--init_from={source}", "--freeze=pool_*,hidden", "--ema_decay=0.9"]
    assert train(shards, tmp_path / "run", *flags) == 0
    said = capsys.readouterr().err
    assert "41 of 41 variables begin with the averages of weights" in said
    assert "pool_0 (12 variables), pool_1 (12), hidden (2), context_gating (6)" in said
    assert "Frozen: 14 variables, by pool_*,hidden." in said
    before, after = weights(source), weights(tmp_path / "run")
    assert changed(before, after) == {
        p for p in before if not p.startswith(("pool_", "hidden"))
    }
    config = runs.read_config(str(tmp_path / "run")).training
    assert (config.init_from, config.init_checkpoint) == (source, "2")
    # Going on neither loads again nor forgets what is frozen.
    assert train(shards, tmp_path / "run", *flags, steps=3) == 0
    said = capsys.readouterr().err
    assert "begin with" not in said and "Resuming from step 2" in said
    later = weights(tmp_path / "run")
    assert changed(before, later) == changed(after, later) == changed(before, after)


def test_another_number_of_classes_gets_a_new_classifier(source):
    model = runs.build_model(NETVLAD, dataclasses.replace(DATA, num_classes=13))
    first = values(model)
    loaded = load_weights(model, source, "latest")
    _, why, rest = loaded.lines()
    assert why == "New, as the run has 12 classes: head (9 variables)."
    assert rest == "Not taken over from there: head (9 variables)."
    trained = weights(source)
    for path, value in values(model).items():
        expected = first if path.startswith("head/") else trained
        np.testing.assert_array_equal(value, expected[path])


@pytest.mark.parametrize(
    ("args", "new_classifier", "why"),
    [
        ({}, True, "--new_classifier says"),
        # The gating of the probabilities has the same shape.
        ({"num_mixtures": 3}, False, "the run has another classifier"),
    ],
)
def test_a_classifier_is_new_as_a_whole(source, args, new_classifier, why):
    model = runs.build_model(ModelConfig("NetVLADModel", {**SMALL, **args}), DATA)
    first = values(model)
    loaded = load_weights(model, source, "latest", new_classifier)
    assert {p for p in loaded.new if loaded.new[p] == why} == {
        p for p in first if p.startswith("head/")
    }
    assert changed(first, values(model)) <= set(loaded.loaded)
    assert "hidden/kernel" in changed(first, values(model))


def test_a_layer_of_another_size_is_new(source):
    args = {**SMALL, "hidden_size": 7}
    model = runs.build_model(ModelConfig("NetVLADModel", args), DATA)
    loaded = load_weights(model, source, "2")
    assert "as the run has them in other shapes: hidden (2 variables)" in str(
        loaded.lines()
    )
    assert "pool_0/centres" in loaded.loaded and "hidden/kernel" in loaded.unused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init_from=/nowhere"], "--init_from=/nowhere is not a run directory"),
        (["--init_from={run}", "--init_checkpoint=best"], "no checkpoint 'best'"),
        (["--new_classifier"], "--new_classifier is of --init_from"),
        (["--freeze=pol_0"], "no weight is called pol_0. Did you mean pool_0"),
        (["--freeze=*"], "--freeze=* leaves no weight that learns"),
        (["--learning_rate_multipliers=head"], "head must be a pattern and a positive"),
        (["--learning_rate_multipliers=head=0"], "--freeze is for what stands still"),
        (["--learning_rate_multipliers=hed=2"], "no weight is called hed"),
        (["--early_stopping=2"], "give --eval_data_pattern and --eval_steps"),
    ],
)
def test_what_cannot_be_is_refused(shards, source, tmp_path, capsys, flags, message):
    flags = [flag.format(run=source) for flag in flags]
    assert train(shards, tmp_path / "run", *flags) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_of_which_nothing_fits_is_refused(shards, source, tmp_path, capsys):
    flags = ["--model=LstmModel", "--model_args=cells=3", f"--init_from={source}"]
    assert train(shards, tmp_path / "run", *flags) == 1
    assert "none of the weights of its NetVLADModel fits" in capsys.readouterr().err


def test_patterns_are_paths_or_their_beginnings():
    paths = ["pool_0/norm/gamma", "pool_0/kernel", "pool_1/kernel", "hidden/kernel"]
    assert match("pool_0", paths, "freeze") == paths[:2]
    assert match("pool_*", paths, "freeze") == paths[:3]
    assert match("*/kernel", paths, "freeze") == paths[1:]
    assert match("pool_0/norm", paths, "freeze") == paths[:1]
    with pytest.raises(UserError, match="Did you mean hidden/kernel"):
        match("hiden/kernel", paths, "freeze")


def test_a_frozen_batch_norm_keeps_its_statistics_and_uses_them():
    model = runs.build_model(NETVLAD, DATA)
    inputs = model.example_inputs(3, 5)
    inputs["rgb"] = (
        np.random.default_rng(0).integers(0, 255, (3, 5, 32)).astype(np.uint8)
    )
    apart = freeze(model, "pool_0/cluster_norm/gamma")
    assert apart == ["pool_0/cluster_norm/gamma"]
    frozen = freeze(model, "pool_0/input_norm, context_gating")
    assert frozen == [
        "context_gating/batch_norm/beta",
        "context_gating/batch_norm/gamma",
        "context_gating/dense/kernel",
        "pool_0/input_norm/beta",
        "pool_0/input_norm/gamma",
    ]
    before = values(model)
    model(inputs, training=True)
    moved = changed(before, values(model))
    assert "pool_0/cluster_norm/moving_mean" in moved
    assert not [p for p in moved if p.startswith(("pool_0/input", "context"))]


def test_rates_are_multiplied_by_the_last_pattern_that_means_a_weight():
    model = runs.build_model(NETVLAD, DATA)
    assert learning_rate_factors(model, "") is None
    freeze(model, "pool_1")
    factors = learning_rate_factors(model, "*=0.5, hidden=2,pool_1=3")
    paths = [path_of(v) for v in model.trainable_variables]
    assert dict(zip(paths, factors, strict=True)) == {
        p: 2.0 if p.startswith("hidden") else 0.5 for p in paths
    }


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_is_as_much_longer(precision):
    config = TrainingConfig("*", optimizer="SGD", precision=precision)
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer = create_optimizer(config, ExamplesSchedule(config, 1), [0.5, 2.0])
    optimizer.build(variables)
    gradients = [tf.constant([1.0, -1.0]), tf.constant([1.0])]
    optimizer.apply([optimizer.scale_loss(g) for g in gradients], variables)
    rate = config.base_learning_rate
    for variable, wanted in zip(
        variables, ([1 - 0.5 * rate, 2 + 0.5 * rate], [3 - 2 * rate]), strict=True
    ):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), wanted)


def test_validations_are_counted_since_the_best():
    stopping = EarlyStopping(2, segments=True)
    for step, value, over in ((1, 0.5, False), (2, 0.5, False), (3, 0.6, False)):
        stopping.add(step, {"map": value, "gap": 1 / step})
        assert stopping.is_over is over
    stopping.add(4, {"map": 0.6, "gap": 1.0})
    assert not stopping.is_over and stopping.best_step == 3
    stopping.add(5, {"map": 0.60000001, "gap": 1.0})  # the same in metrics.csv
    assert stopping.is_over and stopping.best_step == 3
    assert "mAP is 0.6000 at step 3" in str(stopping)
    rows = [{"step": str(i), "split": "validation", "gap": "0.25"} for i in range(3)]
    resumed = EarlyStopping(2, False, [{"step": "0", "split": "train"}, *rows])
    assert resumed.is_over and not EarlyStopping(0, False, rows).is_over


def test_a_run_stops_early_and_stays_so(shards, tmp_path, capsys):
    flags = [
        *("--model=FrameLevelLogisticModel", "--model_args="),
        f"--eval_data_pattern={shards}/*.tfrecord",
        *("--eval_steps=1", "--early_stopping=2", "--base_learning_rate=1e-30"),
    ]
    for _ in range(2):
        assert train(shards, tmp_path / "run", *flags, steps=9) == 0
        assert "Stopped early: GAP is" in capsys.readouterr().err
        with open(tmp_path / "run" / "metrics.csv") as f:
            steps = [r["step"] for r in csv.DictReader(f) if r["split"] != "train"]
        assert steps == ["1", "2", "3"]
    assert runs.Checkpoints(str(tmp_path / "run")).find("best").step == 1
    # More patience lets it go on.
    assert train(shards, tmp_path / "run", *flags, "--early_stopping=4", steps=9) == 0
    assert runs.Checkpoints(str(tmp_path / "run")).latest().step == 5


def test_the_best_checkpoint_of_segments_is_that_of_the_highest_map(tmp_path):
    model = runs.build_model(NETVLAD, DATA)
    checkpoints = runs.Checkpoints(str(tmp_path))
    for step, values in ((1, (0.2, 0.9)), (2, (0.8, 0.3))):
        validation = dict(zip(("gap", "map"), values, strict=True), unit="segments")
        checkpoints.save({"model": model}, step, step, 1, validation)
    assert checkpoints.best().step == 1


def test_settings_of_fine_tuning_are_in_the_configuration():
    with pytest.raises(UserError, match="--early_stopping must be at least 0"):
        TrainingConfig("x", early_stopping=-1)
