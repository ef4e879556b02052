"""The pipeline of distillation: its commands, what is done anew, a run of it all."""

import io
import json
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import redirect_stdout

import numpy as np
import pytest

from test_export import CLASSES, VIDEO_FEATURES
from yt8m import runs
from yt8m.cli import main, pipeline
from yt8m.data.predictions import Predictions
from yt8m.data.records import encode_video_record, write_records
from yt8m.errors import UserError
from yt8m.inference.submission import read_submission
from yt8m.steps import Step, plan

NAMES = ",".join(VIDEO_FEATURES)
SIZES = ",".join(map(str, VIDEO_FEATURES.values()))


def make_settings(**changes) -> dict:
    return {
        "num_folds": 2,
        "num_classes": CLASSES,
        "train_data_pattern": "train*",
        "test_data_pattern": "test*",
        "training": {
            "feature_names": NAMES,
            "feature_sizes": SIZES,
            "batch_size": 32,
            "base_learning_rate": 0.02,
            "num_epochs": 4,
        },
        "first_level": {
            "moe": {"model": "MoeModel"},
            "logistic": {"model": "LogisticModel", "num_epochs": 1},
        },
        "ensemble": {"learn_weights": "search"},
        "second_level": {
            "net": {"model": "MlpModel", "model_args": "hidden_sizes=(8,),dropout=0"}
        },
        "classifier": {
            "model": "MlpModel",
            "model_args": "hidden_sizes=(),dropout=0",
            "base_learning_rate": 0.02,
            "batch_size": 32,
            "num_epochs": 4,
        },
    } | changes


def planned(**changes) -> dict[str, Step]:
    read = pipeline.read_pipeline(make_settings(**changes), "p.json")
    return {step.name: step for step in plan(read, "out")}


# The commands


def test_the_commands_follow_from_the_file():
    steps = planned(labels="truth.csv")
    assert list(steps)[:7] == [
        "folds",
        "first_level/moe/fold-0",
        "first_level/moe/fold-0.predictions",
        "first_level/moe/fold-1",
        "first_level/moe/fold-1.predictions",
        "first_level/moe.predictions",
        "first_level/moe.scores.json",
    ]
    assert list(steps)[13:] == [
        "ensemble/fold-0.predictions",
        "ensemble/fold-1.predictions",
        "soft_labels.predictions",
        "soft_labels.scores.json",
        "second_level/net/fold-0",
        "model/net-fold-0",
        "second_level/net/fold-1",
        "model/net-fold-1",
        "embeddings/net-fold-0.tfrecord",
        "embeddings/net-fold-1.tfrecord",
        "joined",
        "classifier",
        "model/classifier",
        "export",
        "submission.csv",
        "validate-submission",
        "submission.scores.json",
    ]
    assert steps["folds"].line == (
        "yt8m folds '--input_data_pattern=train*' --num_folds=2 --seed=0 "
        "--output_dir=out/folds"
    )
    assert steps["first_level/logistic/fold-1"].line == (
        f"yt8m train --feature_names={NAMES} --feature_sizes={SIZES} --batch_size=32 "
        "--base_learning_rate=0.02 --num_epochs=1 --model=LogisticModel "
        f"--num_classes={CLASSES} --train_data_pattern=@out/folds/train-1.txt "
        "--train_dir=out/first_level/logistic/fold-1"
    )
    assert steps["first_level/moe/fold-0.predictions"].line == (
        "yt8m inference --train_dir=out/first_level/moe/fold-0 "
        "--input_data_pattern=@out/folds/held-out-0.txt "
        "--output_file=out/first_level/moe/fold-0.predictions"
    )
    net = steps["second_level/net/fold-0"]
    assert "--distillation_weight=1" in net.command
    assert "--teacher=out/soft_labels.predictions" in net.command
    assert net.reads == ("folds", "soft_labels.predictions")
    assert "--train_dir=out/model/net-fold-1" in (
        steps["embeddings/net-fold-1.tfrecord"].command
    )
    assert steps["export"].line == (
        "yt8m export --train_dir=out/model/net-fold-0,out/model/net-fold-1 "
        "--classifier=out/model/classifier --compress=codebook8 --output_dir=out/export"
    )
    assert "--train_data_pattern=out/joined/net-fold-0.tfrecord" in (
        steps["classifier"].command
    )
    assert not any("teacher" in flag for flag in steps["classifier"].command)
    assert "--labels=truth.csv" in steps["submission.scores.json"].command
    # Without a classifier the mean of the nets.
    settings = make_settings()
    del settings["classifier"]
    alone = plan(pipeline.read_pipeline(settings, "p.json"), "out")
    assert [step.name for step in alone[-4:]] == [
        "model/net-fold-1",
        "export",
        "submission.csv",
        "validate-submission",
    ]
    assert alone[-3].line == (
        "yt8m export --train_dir=out/model/net-fold-0,out/model/net-fold-1 "
        "--compress=codebook8 --output_dir=out/export"
    )
    assert alone[-3].reads == ("model/net-fold-0", "model/net-fold-1")
    # What a step reads was made before it.
    before: set[str] = set()
    for step in steps.values():
        assert before.issuperset(step.reads)
        before.add(step.name)
        for other in steps.values():
            if other.output and other is not step:
                mentioned = any(
                    other.output in part.split("=")[-1].split(",")
                    for part in step.command
                )
                assert not mentioned or other.name in step.reads


def test_the_soft_labels_of_a_fold_are_learned_on_the_next():
    pytest.importorskip("lightgbm")
    for settings in (
        {"learn_weights": "greedy"},
        {"method": "lightgbm"},
        {"method": "attention"},
    ):
        steps = planned(num_folds=3, ensemble=settings)
        for i, other in ((0, 1), (1, 2), (2, 0)):
            step = steps[f"ensemble/fold-{i}.predictions"]
            models = [f"out/first_level/{m}/fold" for m in ("moe", "logistic")]
            for flag in (
                "--sources=" + ",".join(f"{m}-{i}.predictions" for m in models),
                "--held_out_sources="
                + ",".join(f"{m}-{other}.predictions" for m in models),
                f"--labels=@out/folds/held-out-{other}.txt",
            ):
                assert flag in step.command
    step = planned(ensemble={"method": "geometric"})["ensemble/fold-0.predictions"]
    assert not any("labels" in flag or "held_out" in flag for flag in step.command)


def test_each_setting_changes_the_commands(monkeypatch):
    def lines(**changes):
        return [step.line for step in planned(**changes).values()]

    base = make_settings()
    classifier = base["classifier"] | {"distillation_weight": 0.5}
    taught = {
        "net": base["second_level"]["net"] | {"distillation_weight": 0.3},
    }
    for change, said in (
        ({"num_folds": 3}, "--num_folds=3"),
        ({"num_classes": 9}, "--num_classes=9"),
        ({"seed": 4}, "--seed=4"),
        ({"by_id": True}, "--seed=0 --by_id --output_dir=out/folds"),
        ({"train_data_pattern": "other*"}, "'--labels=other*'"),
        ({"test_data_pattern": "other*"}, "'--input_data_pattern=other*'"),
        ({"labels": "truth.csv"}, "--labels=truth.csv"),
        ({"training": base["training"] | {"jit_compile": True}}, "--jit_compile=true"),
        ({"compress": {"method": "float16"}}, "--method=float16"),
        ({"classifier": classifier}, "--distillation_weight=0.5"),
        ({"classifier": classifier}, "--flagfile=out/joined/features.flags"),
        ({"second_level": taught}, "--distillation_weight=0.3"),
    ):
        found = lines(**change)
        assert found != lines() and any(said in line for line in found), change
    assert not any("weight=1" in line for line in lines(second_level=taught))
    taught_by = "--teacher=out/soft_labels.predictions"
    assert taught_by in planned(classifier=classifier)["classifier"].command
    # Without a choice, trees if they are there.
    pytest.importorskip("lightgbm")
    for there, said in ((object(), "--method=lightgbm"), (None, "--learn_weights")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, x=there: x)
        step = planned(ensemble={})["ensemble/fold-0.predictions"]
        assert any(flag.startswith(said) for flag in step.command)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"num_fold": 3}, "p.json: unknown num_fold. Did you mean num_folds"),
        ({"num_folds": 1}, "num_folds must be a whole number from 2"),
        ({"by_id": 1}, "p.json: by_id must be true or false"),
        ({"seed": "a"}, "seed must be a whole number from 0"),
        ({"train_data_pattern": ""}, "names no train_data_pattern: give --train_"),
        ({"labels": 3}, "labels must be a pattern"),
        ({"first_level": {}}, "must have first_level"),
        ({"first_level": {"a": {"model": "MoeModel"}}}, "needs two models"),
        ({"second_level": []}, "must have second_level"),
        (
            {"second_level": {"a": {"model": "MeoModel"}}},
            "p.json: second_level.a: Unknown model MeoModel. Did you mean MoeModel",
        ),
        (
            {"second_level": {"a": {"model": "MlpModel", "num_epoch": 3}}},
            "second_level.a: unknown flag num_epoch. Did you mean num_epochs",
        ),
        (
            {"second_level": {"a": {"model_args": "num_mixture=3"}}},
            "has no argument num_mixture. Did you mean num_mixtures",
        ),
        (
            {"second_level": {"a": {"model": "MlpModel", "batch_size": "many"}}},
            "second_level.a: .*batch_size",
        ),
        ({"second_level": {"a": {"batch_size": [3]}}}, "must be a number, a text"),
        ({"second_level": {"a": {"train_dir": "x"}}}, "train_dir is set by the pipe"),
        ({"second_level": {"a/b": {"model": "MlpModel"}}}, "a name has letters"),
        ({"second_level": {"a": {"recipe": "nextvald"}}}, "Did you mean nextvlad"),
        ({"classifier": {"model": "NetVLADModel"}}, "must be a video-level one"),
        ({"classifier": {"feature_names": "x"}}, "feature_names is set by"),
        ({"classifier": {"temperature": 2}}, "--temperature is of a teacher"),
        ({"ensemble": {"methods": "mean"}}, "ensemble: unknown flag methods. Did you"),
        ({"ensemble": {"method": "median"}}, "ensemble: .*median"),
        (
            {"ensemble": {"method": "attention", "learn_weights": "search"}},
            "p.json: ensemble: --method=attention has no such weights",
        ),
        ({"ensemble": {"weights": "1,1,1"}}, "ensemble: --weights=1,1,1 must be 2"),
        ({"ensemble": {"learn_videos": 9}}, "--learn_videos is for learning"),
        (
            {"ensemble": {"method": "attention", "attention_args": "ranks=3"}},
            "ensemble: --attention_args: unknown ranks. Did you mean rank",
        ),
        ({"compress": {"max_bytes": 3}}, "compress: max_bytes is set by"),
    ],
)
def test_what_cannot_be_is_refused_with_near_matches(changes, said):
    if "second_level" in changes and isinstance(changes["second_level"], dict):
        changes["training"] = {}
        for table in changes["second_level"].values():
            if "recipe" not in table:
                table.setdefault("model", "MoeModel")
    with pytest.raises(UserError, match=said):
        pipeline.read_pipeline(make_settings(**changes), "p.json")


def test_models_of_two_levels_are_refused():
    second = {"net": {"model": "NetVLADModel", "feature_names": "rgb"}}
    training = {"num_epochs": 1}
    with pytest.raises(UserError, match="all must read the same shards"):
        pipeline.read_pipeline(
            make_settings(second_level=second, training=training), "p.json"
        )


def test_nets_that_read_other_frames_are_refused_at_once():
    def nets(**other):
        net = {"model": "NetVLADModel", "feature_names": "rgb", "feature_sizes": "16"}
        return {"a": net, "b": net | other}

    frames = {name: {"model": "LstmModel"} for name in ("moe", "logistic")}
    settings = {"first_level": frames, "training": {"batch_size": 8}}
    planned(**settings, second_level=nets())
    for other, said in (({"frames": 30}, "frames"), ({"max_frames": 60}, "max_frames")):
        with pytest.raises(UserError, match=f"second_level.a has {said} .* in one Sav"):
            planned(**settings, second_level=nets(**other))


def test_weights_are_exported_as_they_were_compressed():
    def flag(**compress):
        return planned(compress=compress)["export"].command[3]

    assert flag() == "--compress=codebook8"
    assert flag(method="float16") == "--compress=float16"


def test_a_recipe_gives_flags_that_those_beside_it_override():
    steps = planned(
        training={"num_epochs": 1},
        second_level={"net": {"recipe": "resnetlike_soft_labels"}},
    )
    command = steps["second_level/net/fold-0"].command
    assert "--recipe=resnetlike_soft_labels" in command
    assert "--distillation_weight=1" not in command  # the recipe has its own


def test_the_shipped_pipeline_is_read_and_its_commands_printed(capsys):
    flags = ["--output_dir=out", "--train_data_pattern=a*", "--test_data_pattern=b*"]
    assert main.run("pipeline", ["distilled_1gb", *flags, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 50 and all(line.startswith("yt8m ") for line in lines)
    assert shlex.split(lines[0])[2] == "--input_data_pattern=a*"
    assert not os.path.exists("out")


def test_files_that_hold_no_pipeline_are_refused(tmp_path, capsys):
    for text, said in (
        ("{", "is not JSON"),
        ("[]", "must hold an object"),
        ('{"seed": 1, "seed": 2}', "seed is there twice"),
    ):
        (tmp_path / "p.json").write_text(text)
        assert main.run("pipeline", [f"{tmp_path}/p.json", "--output_dir=out"]) == 1
        assert said in capsys.readouterr().err
    assert main.run("pipeline", ["distiled_1gb", "--output_dir=out"]) == 1
    assert "Did you mean distilled_1gb?" in capsys.readouterr().err
    assert main.run("pipeline", ["distilled_1gb", "--output_dir=a,b"]) == 1
    assert "--output_dir=a,b must be a folder" in capsys.readouterr().err


# What is done, and done anew


def make_steps(folder, flag_of_b="--x=1") -> list[Step]:
    """a; b and c read a, d reads b. a reads the files data*."""
    out = f"{folder}/out"

    def step(name, flag, reads=(), data=()):
        return Step(name, (name, flag), f"{out}/{name}", reads, data)

    return [
        step("a", "--x=1", data=(f"{folder}/data*",)),
        step("b", flag_of_b, ("a",)),
        step("c", "--x=1", ("a",)),
        step("d", "--x=1", ("b",)),
        Step("check", ("check", "d"), None, ("d",), ()),
    ]


class Runner:
    """Makes outputs instead of running commands; fails at one if it is told to."""

    def __init__(self, folder):
        self.folder, self.ran, self.status = str(folder), [], {}

    def __call__(self, command):
        name = command[0]
        self.ran.append(name)
        with open(f"{self.folder}/out/{name}", "a") as f:
            f.write(name)
        return self.status.get(name, 0)

    def run(self, steps) -> list[str]:
        self.ran = []
        self.returned = pipeline.run_steps(
            steps, f"{self.folder}/out", self, "yt8m again"
        )
        return self.ran


@pytest.mark.parametrize(
    "flag",
    ["--a={}", "--model_args=x=1,file={}", "--a_args=x={{'b': [2, {{'c': '{}'}}]}}"],
)
def test_a_file_in_a_flag_that_has_changed_is_seen(tmp_path, flag):
    path = tmp_path / "file"
    step = Step("a", ("a", flag.format(path)), None, (), ())

    def fingerprint():
        return pipeline._fingerprint(step, (), f"{tmp_path}/out")

    path.write_text("1")
    before = fingerprint()
    assert fingerprint() == before
    path.write_text("22")
    assert fingerprint() != before


def test_done_steps_are_passed_over_and_changed_ones_done_anew(tmp_path, caplog):
    (tmp_path / "data0").write_text("1")
    runner, steps = Runner(tmp_path), make_steps(tmp_path)
    assert runner.run(steps) == ["a", "b", "c", "d", "check"]
    assert runner.run(steps) == []
    changed = make_steps(tmp_path, "--x=2")
    assert runner.run(changed) == ["b", "d", "check"]
    assert (tmp_path / "out" / "b").read_text() == "b"  # what was there is removed
    assert "b is made anew" in caplog.text
    (tmp_path / "out" / "c").unlink()
    assert runner.run(changed) == ["c"]
    (tmp_path / "data1").write_text("2")  # another shard: all depends on it
    assert runner.run(changed) == ["a", "b", "c", "d", "check"]
    (tmp_path / "data1").write_text("22")
    assert runner.run(changed)[0] == "a"
    assert runner.run(changed[:1]) == []
    assert "out/d is of no step any more" in caplog.text


def test_a_failed_or_stopped_step_goes_on_with_what_it_had(tmp_path, caplog):
    (tmp_path / "data0").write_text("1")
    runner, steps = Runner(tmp_path), make_steps(tmp_path)
    runner.status = {"b": 1}
    with pytest.raises(UserError, match="step b failed with exit status 1.*yt8m again"):
        runner.run(steps)
    assert runner.ran == ["a", "b"]
    runner.status = {"b": 143}
    assert runner.run(steps) == ["b"] and runner.returned == 143
    assert "Stopped in the step b. Go on with: yt8m again" in caplog.text
    runner.status = {}
    assert runner.run(steps) == ["b", "c", "d", "check"] and runner.returned == 0
    assert (tmp_path / "out" / "b").read_text() == "bbb"  # it went on, as runs do
    # What others have made is not touched.
    (tmp_path / "out" / "steps" / "c.json").unlink()
    with pytest.raises(UserError, match="out/c is there, but was not made by this"):
        runner.run(steps)
    (tmp_path / "out" / "steps" / "c.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a step's record"):
        runner.run(steps)


def test_a_command_is_run_in_a_process_that_holds_the_lock(tmp_path, monkeypatch):
    code = "import sys, time; print(sys.argv[1:]); time.sleep(float(sys.argv[2])); "
    monkeypatch.setattr(pipeline, "_MAIN", code + "sys.exit(7)")
    with pipeline._locked(str(tmp_path)) as lock:
        assert pipeline.run_command(["x", "0"], lock) == 7
        again = pipeline._locked(str(tmp_path))
        with pytest.raises(UserError, match="Another pipeline is at work"), again:
            pass
    with pipeline._locked(str(tmp_path)):
        pass
    # A signal is passed on, once, and the step's end is waited for.
    code = (
        "import signal, sys, time\n"
        "def save(number, frame):\n"
        "    open(sys.argv[1], 'w').write(str(number)); sys.exit(3)\n"
        "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, save)\n"
        "open(sys.argv[2], 'w').close()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(pipeline, "_MAIN", code)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            saved, ready = (
                f"{tmp_path}/{name}-{number}" for name in ("saved", "ready")
            )

            def send(ready=ready, number=number):
                while not os.path.exists(ready):
                    time.sleep(0.01)
                time.sleep(0.2)  # until the child is waited for
                os.kill(os.getpid(), number)

            thread = threading.Thread(target=send)
            with pipeline._locked(str(tmp_path)) as lock:
                thread.start()
                assert pipeline.run_command([saved, ready], lock) == 128 + number
            thread.join()
            with open(saved) as f:
                assert f.read() == str(int(number))
    finally:
        signal.signal(signal.SIGTERM, before)


# All of it


def write_shards(folder) -> None:
    """Videos whose class is a direction of their features, with noise."""
    rng = np.random.default_rng(3)
    centres = {n: rng.normal(size=(CLASSES, s)) for n, s in VIDEO_FEATURES.items()}
    for shard, count in (("train0", 60), ("train1", 50), ("train2", 40), ("test0", 40)):
        records = []
        for i in range(count):
            label = int(rng.integers(CLASSES))
            features = {
                name: (c[label] + 0.7 * rng.normal(size=c.shape[1])).astype("float32")
                for name, c in centres.items()
            }
            records.append(encode_video_record(f"{shard}-{i}", features, [label]))
        write_records(f"{folder}/{shard}.tfrecord", records)


def test_the_whole_pipeline(tmp_path, monkeypatch, capsys):
    write_shards(tmp_path)
    ran = []

    def run_here(command, lock):
        ran.append(command[0])
        return main.run(command[0], list(command[1:]))

    monkeypatch.setattr(pipeline, "run_command", run_here)
    settings = make_settings(
        train_data_pattern=f"{tmp_path}/train*.tfrecord",
        test_data_pattern=f"{tmp_path}/test*.tfrecord",
    )
    file, out = tmp_path / "p.json", tmp_path / "out"
    file.write_text(json.dumps(settings))
    flags = [str(file), f"--output_dir={out}", f"--labels={tmp_path}/test*.tfrecord"]
    assert main.run("pipeline", flags) == 0
    said = capsys.readouterr()
    assert f"# 1/30 folds\nyt8m folds '--input_data_pattern={tmp_path}" in said.out
    assert len(ran) == 30

    # The soft labels are those of all training videos, none by a model that saw it.
    soft = Predictions(f"{out}/soft_labels.predictions")
    assert len(soft) == 150
    config = runs.read_config(f"{out}/second_level/net/fold-0")
    assert config.training.teacher == f"{out}/soft_labels.predictions"
    assert config.training.distillation_weight == 1
    for i in range(2):
        held_out = Predictions(f"{out}/first_level/moe/fold-{i}.predictions").ids()
        trained = (out / "folds" / f"train-{i}.txt").read_text()
        assert not any(v.decode().split("-")[0] in trained for v in held_out)
    classifier = runs.read_config(f"{out}/model/classifier")
    assert classifier.data.features == {"embedding_0": 8, "embedding_1": 8}
    submission = {v for v, *_ in read_submission(f"{out}/submission.csv")}
    assert len(submission) == 40
    scores = json.loads((out / "submission.scores.json").read_text())
    assert scores["gap"] > 0.6
    table = (out / "scores.md").read_text().splitlines()
    assert table[-1].startswith(f"| submission | test | {scores['gap']:.5f} |")
    assert [line.split(" | ")[0] for line in table[2:-1]] == [
        "| first_level/moe",
        "| first_level/logistic",
        "| soft_labels",
    ]
    sizes = [
        sum(f.stat().st_size for f in (out / name).rglob("*") if f.is_file())
        for name in ("model", "export")
    ]
    assert f"The final model: {sizes[1]:,} bytes, 3 runs as one SavedModel" in said.out

    # Again: nothing to do; too large; another classifier alone is trained.
    before = list(ran)
    assert main.run("pipeline", flags) == 0 and ran == before
    assert main.run("pipeline", [*flags, f"--max_bytes={max(sizes) - 1}"]) == 1
    assert f"takes {max(sizes):,} bytes so far" in capsys.readouterr().err
    settings["classifier"]["num_epochs"] = 1
    file.write_text(json.dumps(settings))
    assert main.run("pipeline", flags) == 0
    assert ran[len(before) :] == [
        *("train", "compress", "export", "inference", "validate-submission", "score")
    ]


def test_a_failing_command_says_why_and_how_to_go_on(tmp_path, capfd):
    write_shards(tmp_path)
    settings = make_settings(
        train_data_pattern=f"{tmp_path}/train*.tfrecord",
        test_data_pattern=f"{tmp_path}/test*.tfrecord",
        num_folds=9,
    )
    (tmp_path / "p.json").write_text(json.dumps(settings))
    flags = [f"{tmp_path}/p.json", f"--output_dir={tmp_path}/out"]
    with redirect_stdout(io.StringIO()):
        assert main.run("pipeline", flags) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("folds: --num_folds=9 is more than the 3 shard(s)")
    assert second.startswith("pipeline: The step folds failed with exit status 1")
    assert second.endswith(
        f"go on with: yt8m pipeline {tmp_path}/p.json --output_dir={tmp_path}/out"
    )
