"""Averages of checkpoints: by hand, and taken by all that takes a run."""

import dataclasses
import io
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from test_export import make_run
from test_predict import make_shards
from yt8m import runs
from yt8m.cli import main
from yt8m.config import TrainingConfig
from yt8m.errors import UserError
from yt8m.layers.normalization import BatchNormalization, Centring
from yt8m.progress import Progress
from yt8m.training.checkpoint_averages import average_weights, refresh_statistics


def run_command(name, *arguments) -> int:
    return main.run(name, [str(a) for a in arguments])


def silent() -> Progress:
    return Progress(stream=io.StringIO())


def values_of(model) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]


def save_more(directory, model, steps, ema=False) -> dict[int, list[np.ndarray]]:
    """Saves the model at each step with other weights; gives those evaluated."""
    checkpoints, saved = runs.Checkpoints(str(directory), keep=9), {}
    for step in steps:
        rng = np.random.default_rng(step)
        for v in model.variables:
            if v.dtype == "float32":
                v.assign(rng.uniform(0.5, 2.0, v.shape))
        objects = {"model": model}
        if ema:
            averages = [
                tf.Variable(rng.uniform(-1, 1, v.shape).astype("float32"))
                for v in model.trainable_variables
            ]
            objects["ema"] = SimpleNamespace(variables=[*averages, tf.Variable(1.0)])
        checkpoints.save(objects, step, 10 * step, 10)
        if ema:
            for v, average in zip(model.trainable_variables, averages, strict=True):
                v.assign(average)
        saved[step] = values_of(model)
    return saved


@pytest.fixture(scope="module")
def video_run(tmp_path_factory):
    """A run with batch norm and checkpoints of steps 5, 10, 20, 40, and its shards."""
    folder = tmp_path_factory.mktemp("video")
    run = make_run(folder / "run", "MlpModel")
    files = make_shards(folder, "video")
    training = dataclasses.replace(
        run.config.training, train_data_pattern=",".join(files), batch_size=8
    )
    config = dataclasses.replace(run.config, training=training)
    runs.write_config(run.directory, config)
    saved = {
        5: values_of(run.model),
        **save_more(run.directory, run.model, (10, 20, 40)),
    }
    runs.Checkpoints(run.directory, keep=9).set_validation(10, {"gap": 0.7})
    return run, files, saved


def average_of(saved, steps) -> list[np.ndarray]:
    columns = zip(*(saved[step] for step in steps), strict=True)
    return [np.mean(np.stack(c).astype("float64"), axis=0) for c in columns]


@pytest.mark.parametrize("ema", [False, True])
def test_weights_and_statistics_are_means_and_states_the_last(tmp_path, ema):
    run = make_run(tmp_path / "run", "LogisticModel")
    saved = save_more(run.directory, run.model, (10, 20, 40), ema)
    checkpoints = runs.Checkpoints(run.directory)
    infos = checkpoints.list()[-2:]
    assert [i.step for i in infos] == [20, 40] and infos[0].ema == ema
    average_weights(checkpoints, infos, run.model)
    expected = average_of(saved, (20, 40))
    for value, mean in zip(values_of(run.model), expected, strict=True):
        np.testing.assert_allclose(value, mean, rtol=1e-6)


def test_whole_numbers_are_not_averaged(tmp_path):
    class Counted(keras.Model):
        def __init__(self):
            super().__init__()
            self.count = self.add_weight(shape=(), dtype="int64", trainable=False)
            self.weight = self.add_weight(shape=(2,))
            self.built = True

    model, checkpoints = Counted(), runs.Checkpoints(str(tmp_path))
    for step, weight in ((3, 1.0), (4, 4.0)):
        model.count.assign(step)
        model.weight.assign([weight, -weight])
        checkpoints.save({"model": model}, step, step, 1)
    model.count.assign(9)
    average_weights(checkpoints, checkpoints.list(), model)
    assert int(model.count.numpy()) == 4
    assert model.weight.numpy().tolist() == [2.5, -2.5]


# --- statistics ----------------------------------------------------------------------


class Normalised(keras.Model):
    """x, its mean taken away, doubled, and normalised by batch, in two ways."""

    features = input_names = ("x",)
    training_input_names = ()

    def __init__(self):
        super().__init__()
        self.centring = Centring(name="centring")
        self.emphasised = Centring(emphasis=1.0, name="emphasised")
        self.norm = BatchNormalization(name="norm")
        self.keras_norm = keras.layers.BatchNormalization(name="keras_norm")
        self.dropped = keras.layers.Dropout(0.5)
        self.ensure = self({"x": np.zeros((2, 3), "float32")})

    def call(self, inputs, training=False):
        self.emphasised(inputs["x"], training=training)
        x = 2 * self.centring(inputs["x"], training=training)
        x = self.norm(x, training=training), self.keras_norm(x, training=training)
        return self.dropped(x[0] + x[1], training=training)


class Given:
    """A reader of given batches."""

    def __init__(self, batches):
        self._batches = batches

    def batches(self):
        return ((batch, {}) for batch in self._batches)


def refresh(model, reader, steps, **settings) -> int:
    settings = TrainingConfig("", **settings)
    return refresh_statistics(model, reader, steps, settings, silent())


def test_refreshed_statistics_are_means_over_the_batches_and_nothing_else_changes():
    model = Normalised()
    for v in model.variables:
        if v.dtype == "float32":
            v.assign(np.full(v.shape, 3.0))
    data = np.random.default_rng(0).normal(2, 3, (4, 5, 3)).astype("float32")
    before = {v.path: v.numpy() for v in model.variables}
    reader = Given([{"x": tf.constant(x)} for x in data])
    assert refresh(model, reader, 3) == 3
    # The mean that is taken away in batch n is that of n batches.
    means = np.cumsum(data[:3].mean(axis=1), axis=0) / np.arange(1, 4)[:, None]
    centred = 2 * (data[:3] - means[:, None])
    expected = {
        "centring": (means[-1], None),
        "norm": (centred.mean(axis=(0, 1)), centred.var(axis=1).mean(axis=0)),
    }
    expected["keras_norm"] = expected["norm"]
    for name, (mean, variance) in expected.items():
        layer = getattr(model, name)
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-5)
        if variance is not None:
            np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4)
    squares = np.square(data[:3]).mean(axis=(0, 1))
    np.testing.assert_allclose(model.emphasised.moving_square, squares, rtol=1e-4)
    np.testing.assert_allclose(model.emphasised.moving_mean, means[-1], rtol=1e-4)
    assert isinstance(model.norm.momentum, float) and model.norm.momentum == 0.999
    for v in model.variables:
        if "moving" not in v.path:
            np.testing.assert_array_equal(v.numpy(), before[v.path])
    assert refresh(model, reader, 9) == 4


def test_augmented_and_mixed_examples_give_other_statistics():
    def statistics(**settings):
        model = Normalised()
        x = tf.constant(np.random.default_rng(0).normal(size=(6, 3)), tf.float32)
        batches = [{"x": x, "labels": tf.zeros([6, 2], tf.uint8)}] * 2
        refresh(model, Given(batches), 2, seed=7, **settings)
        return model.norm.moving_variance.numpy()

    plain, mixed = statistics(), statistics(mixup=0.4)
    assert (mixed < plain).all()
    np.testing.assert_array_equal(statistics(mixup=0.4), mixed)
    assert (statistics(feature_noise=3.0) > plain + 4).all()
    assert (statistics(feature_dropout=0.9) < plain).all()


def test_frozen_statistics_are_not_refreshed():
    model, x = Normalised(), tf.ones([6, 3])
    before = {v.path: v.numpy() for v in model.variables}
    frozen = "centring/moving_mean,keras_norm"
    refresh(model, Given([{"x": x, "labels": tf.zeros([6, 2])}]), 1, freeze=frozen)
    for v in model.variables:
        changed = not np.array_equal(v.numpy(), before[v.path])
        moves = "moving" in v.path and not re.search("centring|keras", v.path)
        assert changed == moves, v.path


def test_a_model_without_statistics_has_none_to_refresh(tmp_path):
    run = make_run(tmp_path / "run", "LogisticModel")
    with pytest.raises(UserError, match="LogisticModel has no batch normalisation"):
        refresh(run.model, Given([]), 3)


def arguments_of(command, files, tmp_path) -> list[str]:
    """What a command that takes a run wants beside it."""
    return {
        "eval": ["--run_once", f"--eval_data_pattern={files[0]}"],
        "inference": [
            f"--input_data_pattern={files[0]}",
            f"--output_file={tmp_path}/s.predictions",
        ],
        "export": [f"--output_dir={tmp_path / 'export'}"],
    }[command]


# --- the command ---------------------------------------------------------------------


def test_an_averaged_run_is_taken_as_a_run(video_run, tmp_path, capsys):
    run, files, saved = video_run
    output = tmp_path / "average"
    flags = [f"--train_dir={run.directory}", f"--output_dir={output}"]
    assert run_command("average", *flags, "--last=2") == 0
    assert f"steps 20, 40 of {run.directory}: {output}" in capsys.readouterr().out
    averaged = runs.load_run(str(output))
    expected = average_of(saved, (20, 40))
    for value, mean in zip(values_of(averaged.model), expected, strict=True):
        np.testing.assert_allclose(value, mean, rtol=1e-6)
    assert (averaged.checkpoint.step, averaged.checkpoint.examples) == (40, 400)
    assert averaged.config == runs.read_config(run.directory)
    for name, more in (
        ("eval", ["--run_once", f"--eval_data_pattern={files[0]}"]),
        (
            "inference",
            [f"--input_data_pattern={files[0]}", f"--output_file={tmp_path}/s"],
        ),
        ("export", [f"--output_dir={tmp_path / 'export'}"]),
    ):
        for given in ([], ["--checkpoint=40"]):
            assert run_command(name, f"--train_dir={output}", *given, *more) == 0
    capsys.readouterr()
    assert run_command("train", f"--train_dir={output}", "--num_epochs=9") == 1
    assert "holds weights alone" in capsys.readouterr().err
    assert run_command("average", *flags, "--last=2") == 1
    assert "average is not empty" in capsys.readouterr().err


def test_an_average_that_is_cut_short_can_be_taken_again(
    video_run, tmp_path, monkeypatch
):
    output = tmp_path / "average"
    flags = [f"--train_dir={video_run[0].directory}", f"--output_dir={output}"]

    def kill(self, info):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs.Checkpoints, "_write_record", kill)
        patched.setattr(tf.io.gfile, "rmtree", lambda path: None)  # as when killed
        assert run_command("average", *flags) != 0
    assert not output.exists()
    assert run_command("average", *flags) == 0


def test_checkpoints_are_named_and_statistics_refreshed(video_run, tmp_path):
    run, _, saved = video_run
    found = {}
    for name, more in (
        ("named", ["--checkpoints=40,best"]),
        ("refreshed", ["--checkpoints=10,40", "--refresh_steps=3"]),
        ("again", ["--checkpoints=latest,10", "--refresh_steps=3"]),
        ("all", []),
    ):
        output = tmp_path / name
        flags = [f"--train_dir={run.directory}", f"--output_dir={output}"]
        assert run_command("average", *flags, *more) == 0
        found[name] = runs.load_run(str(output)).model
    for name, steps in (("named", (10, 40)), ("all", (5, 10, 20, 40))):
        expected = average_of(saved, steps)
        for value, mean in zip(values_of(found[name]), expected, strict=True):
            np.testing.assert_allclose(value, mean, rtol=1e-6)
    pairs = zip(*(values_of(found[n]) for n in ("refreshed", "again")), strict=True)
    for value, same in pairs:
        np.testing.assert_array_equal(value, same)
    for variable, mean in zip(
        found["refreshed"].variables, average_of(saved, (10, 40)), strict=True
    ):
        changed = not np.allclose(variable.numpy(), mean, rtol=1e-6)
        assert changed == ("moving_" in variable.path)


def test_statistics_are_refreshed_on_the_classes_and_crops_of_the_run(tmp_path):
    files = make_shards(tmp_path, "frame")
    (tmp_path / "two.csv").write_text("Index\n1\n4\n")
    run = make_run(tmp_path / "run", "NetVLADModel")
    found = []
    for changes in ({}, {"only_classes": str(tmp_path / "two.csv")}, {"crop": "0.3"}):
        training = dataclasses.replace(
            run.config.training, train_data_pattern=",".join(files), **changes
        )
        config = dataclasses.replace(run.config, training=training)
        runs.write_config(run.directory, config)
        output = tmp_path / f"average{len(found)}"
        flags = [f"--train_dir={run.directory}", f"--output_dir={output}"]
        assert run_command("average", *flags, "--refresh_steps=1") == 0
        found.append(values_of(runs.load_run(str(output)).model))
    for other in found[1:]:
        pairs = zip(found[0], other, strict=True)
        assert not all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("command", ["eval", "inference", "export"])
def test_the_best_checkpoint_is_taken_on_request(video_run, tmp_path, capsys, command):
    run, files, saved = video_run
    more = arguments_of(command, files, tmp_path)
    flags = [f"--train_dir={run.directory}", "--checkpoint=best"]
    assert run_command(command, *flags, *more) == 0
    said = capsys.readouterr().out
    assert ("step 10 |" if command == "eval" else "step-00000010") in said
    best = runs.load_run(run.directory, "best")
    for value, expected in zip(values_of(best.model), saved[10], strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    "given, said",
    [
        (["--last=5"], "has no 5 checkpoint(s) to average. Steps: 5, 10, 20, 40"),
        (["--last=1", "--checkpoints=10"], "exclude each other"),
        (["--checkpoints=10,best"], "each once"),
        (["--checkpoints=,"], "each once"),
        (["--checkpoints=7"], "has no checkpoint '7'"),
        (["--train_data_pattern=a"], "without --refresh_steps"),
        (["--video_embeddings=a"], "without --refresh_steps"),
        (["--refresh_steps=2", "--train_data_pattern=none"], "No file matches"),
    ],
)
def test_averages_that_cannot_be_are_refused(video_run, tmp_path, capsys, given, said):
    flags = [f"--train_dir={video_run[0].directory}", f"--output_dir={tmp_path}/a"]
    assert run_command("average", *flags, *given) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
