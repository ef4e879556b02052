"""From shards to a submission, as a user goes: commands, resumed runs, bad input."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from yt8m import evaluation, runs
from yt8m.cli import main
from yt8m.data.records import (
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.errors import UserError
from yt8m.events import EventWriter
from yt8m.inference.submission import read_submission

FEATURES = ["--feature_names=rgb,audio", "--feature_sizes=32,32", "--num_classes=12"]
SMALL_NETVLAD = "--model_args=clusters=4,hidden_size=8"


def command(*arguments) -> int:
    """Runs a command in this process."""
    return main.run(arguments[0], [str(a) for a in arguments[1:]])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Folders of tiny shards: train, validate, test (without labels), and video."""
    root = tmp_path_factory.mktemp("shards")
    for name, split, level, videos in (
        ("train", "train", "frame", 90),
        ("validate", "validate", "frame", 25),
        ("test", "test", "frame", 25),
        ("video", "train", "video", 90),
    ):
        assert (
            command(
                "synthesize",
                f"--output_dir={root / name}",
                f"--split={split}",
                f"--level={level}",
                f"--num_videos={videos}",
                "--num_shards=3",
                "--max_frames=20",
                *FEATURES,
            )
            == 0
        )
    return root


def train_flags(shards, directory, *more) -> list[str]:
    return [
        "--model=NetVLADModel",
        SMALL_NETVLAD,
        f"--train_data_pattern={shards}/train/*.tfrecord",
        f"--train_dir={directory}",
        "--batch_size=16",
        "--base_learning_rate=0.01",
        *FEATURES,
        *more,
    ]


def weights(directory, which="latest") -> list[np.ndarray]:
    return [v.numpy() for v in runs.load_run(str(directory), which).model.variables]


def assert_same_weights(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def run_directory(shards, tmp_path_factory):
    """A run of 12 steps, validated twice."""
    directory = tmp_path_factory.mktemp("runs") / "netvlad"
    flags = train_flags(
        shards,
        directory,
        f"--eval_data_pattern={shards}/validate/*.tfrecord",
        "--max_steps=12",
        "--eval_steps=6",
        "--log_steps=4",
    )
    assert command("train", *flags) == 0
    return directory


def test_training_leaves_its_configuration_metrics_events_and_checkpoints(
    run_directory,
):
    config = runs.read_config(str(run_directory))
    assert config.model.args == {"clusters": 4, "hidden_size": 8}
    assert config.data.features == {"rgb": 32, "audio": 32}
    with open(run_directory / "metrics.csv") as f:
        rows = list(csv.DictReader(f))
    assert [(r["step"], r["split"]) for r in rows] == [
        ("4", "train"),
        ("6", "validation"),
        ("8", "train"),
        ("12", "train"),
        ("12", "validation"),
    ]
    assert all(0 <= float(r["gap"]) <= 1 and float(r["loss"]) > 0 for r in rows)
    for split in ("train", "validation"):
        assert os.listdir(run_directory / "events" / split)
    checkpoints = runs.Checkpoints(str(run_directory)).list()
    assert [c.step for c in checkpoints] == [6, 12]
    assert checkpoints[-1].validation["num_examples"] == 25


def test_validations_of_a_training_trace_the_model_once(shards, tmp_path, monkeypatch):
    traced, forward = [], evaluation.forward
    monkeypatch.setattr(
        evaluation, "forward", lambda *args: traced.append(1) or forward(*args)
    )
    flags = [f"--eval_data_pattern={shards}/validate/*.tfrecord", "--eval_steps=1"]
    flags = train_flags(shards, tmp_path / "run", "--max_steps=3", *flags)
    assert command("train", *flags) == 0
    checkpoints = runs.Checkpoints(str(tmp_path / "run")).list()
    losses = [c.validation["loss"] for c in checkpoints]
    assert len(traced) == 1 and len(losses) == len(set(losses)) == 3


@pytest.mark.parametrize("eval_steps", [1, 0])
def test_a_validation_that_was_cut_short_is_made_up_for(
    shards, tmp_path, monkeypatch, capsys, eval_steps
):
    def flags(name):
        pattern = f"--eval_data_pattern={shards}/validate/*.tfrecord"
        more = [pattern, f"--eval_steps={eval_steps}", "--max_steps=3"]
        return ["train", *train_flags(shards, tmp_path / name, *more)]

    def validations(name):
        with open(tmp_path / name / "metrics.csv") as f:
            rows = [r for r in csv.DictReader(f) if r["split"] == "validation"]
        return [(r["step"], r["loss"], r["gap"]) for r in rows]

    assert command(*flags("whole")) == 0
    before, evaluate = [], evaluation.evaluate

    def cut_short(*args, **kwargs):
        before.append(1)
        if len(before) == min(2, 1 + eval_steps):
            raise UserError("cut short")
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate", cut_short)
    assert command(*flags("cut")) == 1
    assert "cut short" in capsys.readouterr().err
    if eval_steps:  # noted in the journal, but not yet in the checkpoint
        with open(tmp_path / "cut" / "metrics.csv", "a") as f:
            f.write("2,32,validation,1,0,0,0,0,0,0,0\n")
    assert command(*flags("cut")) == 0
    assert validations("cut") == validations("whole")
    found = [runs.Checkpoints(str(tmp_path / n)).list() for n in ("cut", "whole")]
    for ours, theirs in zip(*found, strict=True):
        assert ours.step == theirs.step
        assert ours.validation["loss"] == theirs.validation["loss"]


def test_a_run_whose_arguments_are_tuples_goes_on(shards, tmp_path, capsys):
    videos, run = f"{shards}/video/*.tfrecord", f"--train_dir={tmp_path / 'run'}"
    flags = [run, f"--train_data_pattern={videos}"]
    flags += ["--feature_names=mean_rgb,mean_audio", "--feature_sizes=32,32"]
    args = "--model_args=hidden_sizes=(4,3)"
    flags += ["--model=MlpModel", args, "--num_classes=12", "--batch_size=16"]
    for steps in (1, 2):
        assert command("train", *flags, f"--max_steps={steps}") == 0
    assert "Resuming from step 1" in capsys.readouterr().err
    score = [run, "--run_once", f"--eval_data_pattern={videos}"]
    assert command("eval", *score, args) == 0
    assert "hidden_sizes=[4, 3], not" in refuse(
        capsys, "eval", *score, "--model_args=hidden_sizes=(4,4)"
    )


def test_more_epochs_than_before_leave_out_no_video(shards, tmp_path):
    flags = ["train", *train_flags(shards, tmp_path / "run", "--batch_size=40")]
    for epochs, step in ((1, 3), (2, 6)):
        assert command(*flags, f"--num_epochs={epochs}") == 0
        last = runs.Checkpoints(str(tmp_path / "run")).latest()
        # Of 80 videos on, whose last 10 were seen in a batch that is begun anew.
        assert (last.step, last.examples) == (step, 90 * epochs)


def test_a_journal_that_cannot_be_written_is_one_line(
    shards, tmp_path, monkeypatch, capsys
):
    def full(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(EventWriter, "write", full)
    flags = train_flags(shards, tmp_path / "run", "--max_steps=2", "--log_steps=1")
    said = refuse(capsys, "train", *flags)
    assert f"{tmp_path}/run/metrics.csv cannot be written: No space left" in said


def test_evaluation_scores_every_video_once_whatever_the_batch(
    run_directory, shards, capsys
):
    reports = []
    for batch_size in (7, 1024):
        flags = [
            f"--train_dir={run_directory}",
            f"--eval_data_pattern={shards}/validate/*.tfrecord",
            f"--batch_size={batch_size}",
            "--run_once",
        ]
        assert command("eval", *flags) == 0
        assert "25 videos | GAP" in capsys.readouterr().out
        with open(run_directory / "eval" / "step-00000012.json") as f:
            reports.append(json.load(f))
    for name in ("gap", "hit_at_1", "perr", "map", "map_at_20"):
        assert reports[0][name] == reports[1][name]
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], rel=1e-6)
    # The trainer's validation of the same checkpoint says the same.
    trained = runs.Checkpoints(str(run_directory)).latest().validation
    assert trained["gap"] == reports[0]["gap"]
    with open(run_directory / "eval" / "step-00000012-classes.csv") as f:
        table = list(csv.DictReader(f))
    assert [int(r["Index"]) for r in table] == list(range(12))
    found = [float(r["AveragePrecision"]) for r in table if r["AveragePrecision"]]
    assert np.mean(found) == pytest.approx(reports[0]["map"], abs=1e-6)


def test_a_submission_is_valid_complete_and_the_same_from_run_and_export(
    run_directory, shards, tmp_path, capsys
):
    pattern = f"--input_data_pattern={shards}/test/*.tfrecord"
    export = tmp_path / "export"
    run_flag = f"--train_dir={run_directory}"
    assert command("export", run_flag, f"--output_dir={export}") == 0
    files = [tmp_path / "run.csv", tmp_path / "export.csv", tmp_path / "batch.csv.gz"]
    for source, path in zip(
        ([run_flag], [f"--saved_model={export}"], [run_flag, "--batch_size=4"]),
        files,
        strict=True,
    ):
        assert command("inference", *source, pattern, f"--output_file={path}") == 0
        flags = [pattern, "--num_classes=12"]
        assert command("validate-submission", path, *flags) == 0
    capsys.readouterr()
    predictions = [list(read_submission(str(path))) for path in files]
    assert len(predictions[0]) == 25
    for other in predictions[1:]:
        for (a, _, x), (b, _, y) in zip(predictions[0], other, strict=True):
            assert a == b
            np.testing.assert_allclose(x, y, rtol=1e-4)
    # A submission of other videos is refused with line numbers.
    other = f"--input_data_pattern={shards}/train/*.tfrecord"
    assert command("validate-submission", files[0], other, "--num_classes=12") == 1
    assert "line 2" in capsys.readouterr().out


def test_the_same_command_again_resumes_and_ends_with_the_same_weights(
    run_directory, shards, tmp_path
):
    """In steps of odd lengths, without validation, over epochs of 90 videos."""
    directory = tmp_path / "resumed"
    for steps in (1, 3, 7, 12):
        flags = train_flags(shards, directory, f"--max_steps={steps}")
        assert command("train", *flags) == 0
    assert_same_weights(weights(directory), weights(run_directory))


def test_checkpoints_are_saved_by_the_clock_too(shards, tmp_path):
    flags = train_flags(shards, tmp_path / "run", "--max_steps=4", "--log_steps=1")
    flags += ["--save_checkpoint_minutes=1e-9", "--keep_checkpoints=9"]
    assert command("train", *flags) == 0
    found = runs.Checkpoints(str(tmp_path / "run")).list()
    assert [c.step for c in found] == [1, 2, 3, 4]


def test_runs_killed_at_any_moment_end_with_the_same_weights(
    run_directory, shards, tmp_path
):
    """kill -9 as soon as the run reaches one step after another."""
    directory = tmp_path / "killed"
    flags = train_flags(
        shards, directory, "--max_steps=12", "--save_checkpoint_steps=2"
    )
    for kills in range(8):
        process = subprocess.Popen(
            [sys.executable, "train.py", *flags, "--log_steps=1"],
            cwd=os.path.dirname(os.path.dirname(__file__)),
            stderr=subprocess.DEVNULL,
        )
        if kills < 3:
            _wait_for_rows(directory / "metrics.csv", 3 * kills + 2, process)
            process.send_signal(signal.SIGKILL)
        elif kills == 3:
            _wait_for_rows(directory / "metrics.csv", 9, process)
            process.send_signal(signal.SIGTERM)  # saves, says so, ends
        if process.wait() == 0:
            break
        assert process.returncode == (143 if kills == 3 else -signal.SIGKILL)
    assert_same_weights(weights(directory), weights(run_directory))
    with open(directory / "metrics.csv") as f:
        assert [int(r["step"]) for r in csv.DictReader(f)] == list(range(1, 13))


def _wait_for_rows(path, rows: int, process) -> None:
    for _ in range(6000):
        if process.poll() is not None:
            return
        if path.exists() and len(path.read_text().splitlines()) > rows:
            return
        time.sleep(0.01)
    raise TimeoutError(f"{path} has not got {rows} rows")


def test_a_resumed_run_may_change_its_steering_only(run_directory, shards, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(run_directory, directory)
    # Flags that are not given keep their values: the model, its arguments, features.
    assert command("train", f"--train_dir={directory}", "--max_steps=14") == 0
    assert runs.load_run(str(directory)).checkpoint.step == 14
    assert command("train", f"--train_dir={directory}", "--batch_size=5") == 0


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--model=FrameLevelLogisticModel", ("NetVLADModel", "FrameLevelLogistic")),
        ("--model_args=clusters=5", ("'clusters': 4", "'clusters': 5")),
        ("--num_classes=13", ("12", "13")),
        ("--feature_names=rgb", ("audio",)),
        ("--seed=3", ("seed=0", "seed=3")),
    ],
)
def test_a_flag_that_contradicts_the_stored_run_is_refused(
    run_directory, flag, values, capsys
):
    more = ["--feature_sizes=32"] if flag.startswith("--feature") else []
    assert command("train", f"--train_dir={run_directory}", flag, *more) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for value in values:
        assert value in error
    assert runs.Checkpoints(str(run_directory)).latest().step == 12


def test_start_new_model_moves_the_earlier_run_aside(run_directory, shards, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(run_directory, directory)
    flags = train_flags(shards, directory, "--max_steps=1", "--start_new_model")
    assert command("train", *flags) == 0
    assert runs.load_run(str(directory)).checkpoint.step == 1
    (aside,) = tmp_path.glob("run-until-*")
    assert runs.load_run(str(aside)).checkpoint.step == 12
    # A model that cannot be built moves nothing.
    flags[1] = "--model_args=clusters=0"
    assert command("train", *flags) == 1
    assert runs.load_run(str(directory)).checkpoint.step == 1


def test_a_run_that_failed_before_its_first_checkpoint_binds_nobody(
    run_directory, shards, tmp_path, capsys
):
    directory = tmp_path / "run"
    unfit = runs.read_config(str(run_directory))
    model = dataclasses.replace(unfit.model, args={"clusters": 8})
    os.makedirs(directory)
    runs.write_config(str(directory), dataclasses.replace(unfit, model=model))
    assert command("train", *train_flags(shards, directory, "--max_steps=2")) == 0
    assert (
        f"{directory} has no checkpoint: its training begins anew"
        in capsys.readouterr().err
    )
    assert runs.read_config(str(directory)).model.args["clusters"] == 4


def test_a_run_that_lost_its_checkpoints_begins_anew_and_loses_no_figures(
    run_directory, shards, tmp_path, capsys
):
    directory = tmp_path / "run"
    shutil.copytree(run_directory, directory)
    shutil.rmtree(directory / "checkpoints")
    assert command("train", *train_flags(shards, directory, "--max_steps=2")) == 0
    assert "has no checkpoint" in capsys.readouterr().err
    (aside,) = tmp_path.glob("run-until-*")
    assert (aside / "metrics.csv").exists()
    assert runs.Checkpoints(str(directory)).latest().step == 2


def test_video_level_models_train_on_video_level_shards(shards, tmp_path, capsys):
    for model in ("LogisticModel", "MoeModel"):
        directory = tmp_path / model
        flags = [
            f"--model={model}",
            f"--train_data_pattern={shards}/video/*.tfrecord",
            f"--train_dir={directory}",
            "--feature_names=mean_rgb,mean_audio",
            "--feature_sizes=32,32",
            "--num_classes=12",
            "--batch_size=16",
            "--num_epochs=2",
        ]
        assert command("train", *flags) == 0
        # Two epochs of 90 videos, the last batch of 4 included.
        assert runs.load_run(str(directory)).checkpoint.step == 12


def test_evaluation_follows_new_checkpoints(run_directory, shards, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(run_directory, directory)
    shutil.rmtree(directory / "eval", ignore_errors=True)
    process = subprocess.Popen(
        [
            sys.executable,
            "eval.py",
            f"--train_dir={directory}",
            f"--eval_data_pattern={shards}/validate/*.tfrecord",
            "--poll_seconds=0.2",
        ],
        cwd=os.path.dirname(os.path.dirname(__file__)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("step 12 | 25 videos")
        assert command("train", f"--train_dir={directory}", "--max_steps=13") == 0
        assert process.stdout.readline().startswith("step 13 | 25 videos")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130


@pytest.mark.parametrize(
    "options",
    [
        ["--precision=bfloat16", "--frames=5", "--frame_selection=contiguous"],
        ["--frames=5", "--frame_selection=random", "--skip_first_frames=1"],
        ["--optimizer=AdamW", "--optimizer_args=weight_decay=0.01"],
        ["--lr_schedule=cosine", "--warmup_examples=32", "--clip_global_norm=0.1"],
        ["--label_loss=HingeLoss", "--regularization_penalty=0"],
        ["--max_frames=7", "--shuffle_window=4"],
    ],
)
def test_options_of_training_change_the_weights_and_are_remembered(
    run_directory, shards, tmp_path, options
):
    directory = tmp_path / "run"
    flags = train_flags(shards, directory, "--max_steps=4", *options)
    assert command("train", *flags) == 0
    plain = tmp_path / "plain"
    assert command("train", *train_flags(shards, plain, "--max_steps=4")) == 0
    assert any(
        np.abs(a - b).max() > 1e-6
        for a, b in zip(weights(directory), weights(plain), strict=True)
    )
    export = tmp_path / "export"
    run_flag, pattern = f"--train_dir={directory}", f"{shards}/test/*.tfrecord"
    assert command("export", run_flag, f"--output_dir={export}") == 0
    predictions = []
    for source in (run_flag, f"--saved_model={export}"):
        path = tmp_path / f"{len(predictions)}.csv"
        flags = [source, f"--input_data_pattern={pattern}", f"--output_file={path}"]
        assert command("inference", *flags) == 0
        predictions.append(list(read_submission(str(path))))
    for (a, _, x), (b, _, y) in zip(*predictions, strict=True):
        assert a == b
        np.testing.assert_allclose(x, y, atol=1e-3)


def test_own_float_features_and_the_old_id_key_go_the_whole_way(tmp_path):
    """Embeddings of another size and name, ids under video_id, some videos empty."""
    rng, records = np.random.default_rng(0), []
    for i in range(20):
        frames = rng.normal(size=(i % 4, 5)).astype(np.float32)
        features = {"clip": frames}
        records.append(encode_frame_record(f"v{i:03d}", features, [i % 3], "video_id"))
    path, directory = tmp_path / "own.tfrecord", tmp_path / "run"
    write_records(path, records)
    flags = [
        "--model=NetVLADModel",
        SMALL_NETVLAD,
        "--feature_names=clip",
        "--feature_sizes=5",
        "--num_classes=3",
        "--batch_size=8",
        "--num_epochs=2",
        f"--train_data_pattern={path}",
        f"--train_dir={directory}",
    ]
    assert command("train", *flags) == 0
    export, run_flag = tmp_path / "export", f"--train_dir={directory}"
    assert command("export", run_flag, f"--output_dir={export}") == 0
    rows = []
    for source in (run_flag, f"--saved_model={export}"):
        output = tmp_path / f"{len(rows)}.csv"
        flags = [source, f"--input_data_pattern={path}", f"--output_file={output}"]
        assert command("inference", *flags) == 0
        rows.append(output.read_text().splitlines())
    assert [r.split(",")[0] for r in rows[0][1:]] == [f"v{i:03d}" for i in range(20)]
    assert len(rows[1]) == 21


def test_the_readmes_own_model_trains_scores_and_exports(shards, tmp_path):
    readme = os.path.join(os.path.dirname(os.path.dirname(__file__)), "README.md")
    with open(readme) as f:
        code = f.read().split("```python\n")[1].split("```")[0]
    module = tmp_path / "readme_models.py"
    module.write_text(code)
    directory = tmp_path / "run"
    flags = train_flags(shards, directory, "--max_steps=2")
    flags[:2] = [
        f"--model_module={module}",
        "--model=DeepMeanModel",
        "--model_args=hidden_size=16",
    ]
    assert command("train", *flags) == 0
    run_flag = f"--train_dir={directory}"
    pattern = f"{shards}/validate/*.tfrecord"
    score = [run_flag, f"--eval_data_pattern={pattern}", "--run_once"]
    assert command("eval", *score) == 0
    assert command("export", run_flag, f"--output_dir={tmp_path / 'export'}") == 0


# --- bad input: one clear line, a non-zero exit, nothing lost -------------------------


def refuse(capsys, *arguments) -> str:
    assert command(*arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"{arguments[0]}: ")
    return error


def test_unlabelled_videos_are_not_scored_as_zero(run_directory, shards, capsys):
    flags = [
        f"--train_dir={run_directory}",
        f"--eval_data_pattern={shards}/test/*.tfrecord",
    ]
    assert "None of the 25 videos has a label" in refuse(capsys, "eval", *flags)


def test_patterns_without_files_are_named(run_directory, tmp_path, capsys):
    nothing = f"{tmp_path}/nothing*.tfrecord"
    flags = [f"--train_data_pattern={nothing}", f"--train_dir={tmp_path / 'run'}"]
    error = refuse(capsys, "train", *flags)
    assert "--train_data_pattern" in error and nothing in error
    assert not (tmp_path / "run").exists()
    run_flag = f"--train_dir={run_directory}"
    error = refuse(capsys, "eval", run_flag, f"--eval_data_pattern={nothing}")
    assert "--eval_data_pattern" in error


def test_a_vocabulary_of_another_release_is_told(
    run_directory, shards, tmp_path, capsys
):
    vocabulary = tmp_path / "vocabulary.csv"
    flags = [
        f"--train_dir={run_directory}",
        f"--vocabulary={vocabulary}",
        f"--input_data_pattern={shards}/test/*.tfrecord",
        f"--output_file={tmp_path / 'x.csv'}",
        f"--names={tmp_path / 'x.json'}",
    ]
    for last, warned in ((11, False), (12, True)):
        vocabulary.write_text(f"Index,Name\n0,Chess\n{last},Go\n")
        assert command("inference", *flags) == 0
        said = capsys.readouterr().err
        assert ("names class 12, but there are 12 classes" in said) == warned


def test_a_misspelt_feature_has_its_near_match(shards, tmp_path, capsys):
    flags = train_flags(shards, tmp_path / "run", "--max_steps=2")
    misspelt = ("--feature_names=rbg,audio", "--feature_sizes=32,32")
    assert "Did you mean rgb?" in refuse(capsys, "train", *flags, *misspelt)


def test_shards_of_the_wrong_level_or_kind_are_called_what_they_are(
    run_directory, shards, tmp_path, capsys
):
    flags = train_flags(shards, tmp_path / "run")
    flags[2] = f"--train_data_pattern={shards}/video/*.tfrecord"
    assert "video-level" in refuse(capsys, "train", *flags)
    text = tmp_path / "labels.csv"
    text.write_text("VideoId,LabelConfidencePairs\nabcd,1 0.5\n")
    flags[2] = f"--train_data_pattern={text}"
    assert "CSV" in refuse(capsys, "train", *flags)
    assert not (tmp_path / "run").exists()


def test_features_that_are_missing_or_of_another_size_are_listed(
    shards, tmp_path, capsys
):
    flags = train_flags(shards, tmp_path / "run", "--feature_sizes=32,64")
    error = refuse(capsys, "train", *flags)
    assert "32" in error and "64" in error
    flags = train_flags(shards, tmp_path / "run", "--feature_names=rgb,flow")
    error = refuse(capsys, "train", *flags)
    assert "flow" in error and "audio" in error


def video_flags(path, directory, *more) -> list[str]:
    return [
        f"--train_data_pattern={path}",
        f"--train_dir={directory}",
        "--feature_names=mean_rgb",
        "--feature_sizes=4",
        "--num_classes=6",
        "--batch_size=4",
        "--num_epochs=1",
        *more,
    ]


def video_records(count: int, **bad) -> list[bytes]:
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        features = {"mean_rgb": rng.normal(size=4).astype(np.float32)}
        labels = [i % 6]
        if i == 5:
            features |= bad.get("features", {})
            labels = bad.get("labels", labels)
        records.append(encode_video_record(f"v{i:03d}", features, labels))
    return records


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"labels": [6]}, "label 6"),
        ({"features": {"mean_rgb": np.full(4, np.nan, np.float32)}}, "NaN"),
        ({"features": {"mean_rgb": np.zeros(3, np.float32)}}, "3"),
    ],
)
def test_a_bad_record_is_named_or_skipped_and_counted(bad, said, tmp_path, capsys):
    path = tmp_path / "shard.tfrecord"
    write_records(path, video_records(12, **bad))
    error = refuse(capsys, "train", *video_flags(path, tmp_path / "fail"))
    assert str(path) in error and "record 5" in error and "v005" in error
    assert said in error
    skip = video_flags(path, tmp_path / "skip", "--on_bad_record=skip")
    assert command("train", *skip) == 0
    said = capsys.readouterr().err
    assert "record 5" in said and "1 bad record(s) were left out" in said
    assert runs.load_run(str(tmp_path / "skip")).checkpoint.step == 3
    # What training left out, no other command leaves out by itself.
    score = [f"--train_dir={tmp_path / 'skip'}", "--run_once"]
    score += [f"--eval_data_pattern={path}"]
    assert "record 5" in refuse(capsys, "eval", *score)
    assert command("eval", *score, "--on_bad_record=skip") == 0


def test_a_run_that_loses_a_whole_batch_still_ends_with_a_validation(tmp_path):
    path = tmp_path / "shard.tfrecord"
    write_records(path, video_records(12, labels=[6]))
    flags = video_flags(path, tmp_path / "run", "--on_bad_record=skip")
    flags += ["--batch_size=1", f"--eval_data_pattern={path}"]
    assert command("train", *flags) == 0
    (checkpoint,) = runs.Checkpoints(str(tmp_path / "run")).list()
    # A step without examples is one too: positions in the data do not shift.
    assert checkpoint.step == checkpoint.validation["num_examples"] + 1 == 12


def test_a_bad_record_costs_no_other_record_wherever_a_call_meets_it(tmp_path):
    """Steps of one call or of several: the same steps, the same weights."""
    path, ends = tmp_path / "shard.tfrecord", []
    write_records(path, video_records(12, labels=[6]))
    for log_steps in (1, 100):
        directory = tmp_path / str(log_steps)
        flags = video_flags(path, directory, "--on_bad_record=skip", "--batch_size=1")
        flags += [f"--log_steps={log_steps}", "--num_epochs=20", "--seed=3"]
        assert command("train", *flags) == 0
        assert runs.load_run(str(directory)).checkpoint.step == 20 * 12
        ends.append(weights(directory))
    assert_same_weights(*ends)


def test_a_truncated_shard_is_named(tmp_path, capsys):
    path = tmp_path / "shard.tfrecord"
    write_records(path, video_records(12))
    path.write_bytes(path.read_bytes()[:-10])
    error = refuse(capsys, "train", *video_flags(path, tmp_path / "run"))
    assert str(path) in error and "truncated at record 11" in error


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path, capsys
):
    path = tmp_path / "shard.tfrecord"
    write_records(path, video_records(12))
    directory = tmp_path / "run"
    assert command("train", *video_flags(path, directory, "--max_steps=2")) == 0
    # Features are finite and normalised, so it takes an absurd step.
    flags = ["--max_steps=9", "--num_epochs=3", "--base_learning_rate=3e38"]
    error = refuse(capsys, "train", f"--train_dir={directory}", *flags)
    assert "not finite at step" in error and "step 2 is kept" in error
    (listed,) = directory.glob("non-finite-step-*.txt")
    assert "v0" in error and len(listed.read_text().split()) == 4
    assert runs.Checkpoints(str(directory)).latest().step == 2


def test_output_that_cannot_be_written_is_named(
    run_directory, shards, tmp_path, capsys
):
    blocker = tmp_path / "file"
    blocker.write_text("")
    pattern = f"{shards}/test/*.tfrecord"
    flags = train_flags(shards, blocker / "run", "--max_steps=1")
    assert str(blocker) in refuse(capsys, "train", *flags)
    run_flag = f"--train_dir={run_directory}"
    output = f"--output_file={blocker}/out.csv"
    input_flag = f"--input_data_pattern={pattern}"
    assert str(blocker) in refuse(capsys, "inference", run_flag, input_flag, output)
    output = f"--output_dir={blocker}/export"
    assert str(blocker) in refuse(capsys, "export", run_flag, output)


def test_a_foreign_directory_is_not_taken_for_a_run(shards, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("important")
    flags = train_flags(shards, tmp_path, "--start_new_model")
    assert "not a run directory" in refuse(capsys, "train", *flags)
    assert (tmp_path / "thesis.tex").read_text() == "important"


# --- real files -----------------------------------------------------------------------


def test_run_directories_that_cannot_be_are_refused(shards, tmp_path, capsys):
    said = refuse(capsys, "train", *train_flags(shards, ""))
    assert said == "train: No run directory: give --train_dir."
    for name, flag in (
        ("eval", f"--eval_data_pattern={shards}/validate/*"),
        ("inference", f"--input_data_pattern={shards}/test/*"),
        ("export", f"--output_dir={tmp_path / 'x'}"),
    ):
        flags = ["--train_dir=", flag]
        flags += [f"--output_file={tmp_path / 'x.csv'}"] * (name == "inference")
        assert "give --train_dir" in refuse(capsys, name, *flags)
    file = tmp_path / "file"
    file.write_text("")
    said = refuse(capsys, "train", *train_flags(shards, file))
    assert said == f"train: {file} is a file; choose another --train_dir."
    said = refuse(capsys, "train", *train_flags(shards, tmp_path / "run[1]"))
    assert "TensorFlow reads no weights from a path with `[`" in said
    assert not (tmp_path / "run[1]").exists()


def test_a_run_of_somebody_else_is_scored_too(run_directory, shards, tmp_path, capsys):
    """Its directory cannot be written to: the figures are printed."""
    directory = tmp_path / "run"
    shutil.copytree(run_directory, directory)
    shutil.rmtree(directory / "eval", ignore_errors=True)
    (directory / "eval").write_text("no folder can be made here")
    pattern = f"--eval_data_pattern={shards}/validate/*.tfrecord"
    flags = (f"--train_dir={directory}", pattern, "--run_once")
    assert command("eval", *flags) == 0
    output = capsys.readouterr()
    assert "GAP" in output.out
    assert f"{directory}/eval cannot be written to" in output.err
    assert "the figures are only printed" in output.err


def test_flags_without_effect_are_said(shards, tmp_path, capsys):
    path = tmp_path / "shard.tfrecord"
    write_records(path, video_records(12))
    flags = video_flags(path, tmp_path / "run", "--frames=3", "--eval_steps=3")
    assert command("train", *flags) == 0
    said = capsys.readouterr().err
    assert "--frames has no effect: LogisticModel sees no frames." in said
    assert "--eval_steps=3: nothing is evaluated" in said
    for flag, wanted in (
        ("--mined_negative_weight=0.9", "--mined_negatives"),
        ("--learning_rate_decay=0.5", "--lr_schedule=exponential"),
    ):
        more = [flag, "--lr_schedule=constant", "--dry_run"]
        assert command("train", *video_flags(path, tmp_path / "dry", *more)) == 0
        said = capsys.readouterr().err
        assert f"{flag.split('=')[0]} has no effect without {wanted}." in said
    flags = ["--model=FrameLevelLogisticModel", "--frame_selection=contiguous"]
    flags += ["--model_args=", "--dry_run"]
    assert command("train", *train_flags(shards, tmp_path / "dry", *flags)) == 0
    said = capsys.readouterr().err
    assert "--frame_selection has no effect: FrameLevelLogisticModel takes all" in said
    module = tmp_path / "mine.py"
    module.write_text(
        "from yt8m.model import EmbeddingModel\nfrom yt8m.registry import register\n"
        "@register(level='video', paper='')\nclass Mine(EmbeddingModel):\n    pass\n"
    )
    said = refuse(
        capsys,
        "train",
        f"--model_module={module}",
        f"--train_dir={tmp_path / 'other'}",
        f"--train_data_pattern={path}",
    )
    assert "is given without --model" in said


def test_real_shards_train_score_and_make_a_valid_submission(
    real_data, tmp_path, capsys
):
    video, directory = real_data / "video", tmp_path / "logistic"
    train = [
        "--model=LogisticModel",
        "--feature_names=mean_rgb,mean_audio",
        f"--train_data_pattern={video}/validate/validate000[0-3].tfrecord",
        f"--train_dir={directory}",
        "--batch_size=128",
        "--num_epochs=3",
    ]
    assert command("train", *train) == 0
    score = [
        f"--train_dir={directory}",
        f"--eval_data_pattern={video}/validate/validate0100.tfrecord",
        "--run_once",
    ]
    assert command("eval", *score) == 0
    with open(next((directory / "eval").glob("step-*.json"))) as f:
        report = json.load(f)
    assert report["num_examples"] == 293
    assert report["gap"] > 0.25  # the class frequencies alone give less
    pattern = f"--input_data_pattern={video}/test/*.tfrecord"
    output = tmp_path / "submission.csv"
    run_flag = f"--train_dir={directory}"
    assert command("inference", run_flag, pattern, f"--output_file={output}") == 0
    assert command("validate-submission", output, pattern) == 0
    assert "305 videos" in capsys.readouterr().out
