"""The starter code's command lines and flags: `docs/migrating.md` is true."""

import json
import os
import pathlib
import re
import shlex

import pytest
from absl import flags as absl_flags

from yt8m.cli import eval as eval_command
from yt8m.cli import inference as inference_command
from yt8m.cli import main
from yt8m.cli import train as train_command

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "migrating.md"


def table_rows() -> list[tuple[str, str]]:
    """The table of commands: the starter code's, and what is said of it here."""
    text = PAGE.read_text()
    section = text[text.index("## Commands") : text.index("Not Python, or")]
    rows = re.findall(r"^\| `(python .*?)` \| (.*) \|$", section, re.M)
    return rows


def command_here(starter: str, here: str) -> str:
    return starter if here.startswith("the same") else re.search("`(.*?)`", here)[1]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A home directory with shards where the starter code's README has them."""
    home = tmp_path_factory.mktemp("home")
    frames, features = home / "frames", home / "features"

    def write(folder, split, name, *flags):
        arguments = [
            f"--output_dir={folder}",
            f"--split={split}",
            "--num_videos=24",
            "--num_shards=2",
            "--max_frames=12",
            *flags,
        ]
        assert main.run("synthesize", arguments) == 0
        for i, path in enumerate(sorted(pathlib.Path(folder).glob("*.tfrecord"))):
            path.rename(pathlib.Path(folder) / f"{name}{i:04d}.tfrecord")

    write(home / "yt8m/2/frame/train", "train", "train")
    write(home / "yt8m/3/frame/validate", "validate", "validate", "--segments")
    write(home / "yt8m/3/frame/test", "test", "test", "--segments")
    for split in ("train", "validate"):
        for folder, level in ((frames, "frame"), (features, "video")):
            part = home / "parts" / level / split
            write(part, split, split, f"--level={level}")
            folder.mkdir(exist_ok=True)
            for path in part.glob("*.tfrecord"):
                path.rename(folder / path.name)
    models = home / "models"
    models.mkdir()
    (home / "tmp").mkdir()
    line = {"video_id": ["ab12"], "class_indexes": [3, 5], "predictions": [0.2, 0.9]}
    (models / "predictions0.json").write_text(json.dumps(line) + "\n")
    return home


def test_every_command_of_the_table_runs_and_writes_its_files(
    shards, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(shards))
    monkeypatch.setenv("MODEL_DIR", str(shards / "models"))
    rows = table_rows()
    assert len(rows) == 20
    for starter, here in rows:
        line = command_here(starter, here).replace("/path/to", str(shards))
        words = [
            os.path.expanduser(w) if w.startswith("~") else os.path.expandvars(w)
            for w in shlex.split(line)
        ]
        program, name, *arguments = words
        command = name.removesuffix(".py") if program == "python" else name
        if command == "eval" and not any("run_once" in a for a in arguments):
            arguments.append("--run_once")  # it would wait for the next checkpoint
        status = main.run(command, arguments)
        captured = capsys.readouterr()
        assert status == 0, f"{line}\n{captured.err}"
        for path in written_by(command, arguments):
            assert path.exists(), f"{line} has not written {path}"
        if command == "score-segments":
            printed = captured.out
    # Two ways to the same figure: the ranking in the CSV, and the evaluation.
    (report,) = (shards / "yt8m/models/frame/sample_model").glob("eval-segments/*.json")
    mean_ap = re.search(r"mAP@100000: ([\d.]+)", printed)[1]
    assert float(mean_ap) == pytest.approx(
        json.loads(report.read_text())["map"], abs=1e-6
    )

    # An export knows the classes of segments too.
    sample = f"{shards}/yt8m/models/frame/sample_model"
    exported = str(shards / "exported")
    assert (
        main.run("export", [f"--train_dir={sample}", f"--output_dir={exported}"]) == 0
    )
    again = [
        f"--input_data_pattern={shards}/yt8m/3/frame/test/test*",
        "--segment_labels",
    ]
    again += [f"--saved_model={exported}", f"--output_file={shards}/again.csv"]
    assert main.run("inference", again) == 0
    solution = (shards / "tmp/kaggle_solution.csv").read_text()
    assert (shards / "again.csv").read_text() == solution

    models = shards / "models"
    bundled = (models / "bundled.csv").read_text()
    assert bundled == (models / "unbundled.csv").read_text()
    assert len(bundled.splitlines()) == 25
    assert (models / "converted.csv").read_text().splitlines()[1] == "ab12,5 0.9 3 0.2"
    assert solution.startswith("Class,Segments\n")
    stored = json.loads((models / "dbof/config.json").read_text())
    assert stored["model"]["args"]["clusters"] == 64
    assert stored["data"]["frames"]["count"] == 10
    assert stored["data"]["frames"]["method"] == "contiguous"


def written_by(command: str, arguments: list[str]) -> list[pathlib.Path]:
    """The files that a command must have written, from its flags."""
    joined = " ".join(arguments).replace("--train_dir ", "--train_dir=")
    values = dict(re.findall(r"--(\w+)=(\S*)", joined))
    run = pathlib.Path(values.get("train_dir") or "/nowhere")
    if command == "train":
        return [run / "config.json", run / "metrics.csv", run / "checkpoints"]
    if command == "eval":
        folder = "eval-segments" if "segment_labels" in joined else "eval"
        assert list((run / folder).glob("step-*.json"))
        return [run / folder / "events"]
    named = ("output_file", "output_model_tgz", "label_cache", "csv_output_file")
    paths = [pathlib.Path(values[name]) for name in named if name in values]
    if command == "export-mediapipe":
        paths = [pathlib.Path(values["output_dir"]) / "saved_model.pb"]
    assert paths
    return paths


MODEL_FLAGS = (
    "moe_num_mixtures iterations dbof_add_batch_norm sample_random_frames "
    "dbof_cluster_size dbof_hidden_size dbof_pooling_method dbof_activation "
    "video_level_classifier_model lstm_cells lstm_layers "
    # the 2017 winner's
    "netvlad_cluster_size netvlad_hidden_size netvlad_relu netvlad_add_batch_norm "
    "gating moe_prob_gating moe_l2"
)
STARTER_FLAGS = {
    train_command: "train_dir train_data_pattern feature_names feature_sizes "
    "frame_features segment_labels model start_new_model num_gpu batch_size "
    "label_loss regularization_penalty base_learning_rate learning_rate_decay "
    "learning_rate_decay_examples num_epochs max_steps export_model_steps num_readers "
    f"optimizer clip_gradient_norm log_device_placement {MODEL_FLAGS}",
    eval_command: "train_dir eval_data_pattern segment_labels batch_size num_readers "
    f"run_once top_k model frame_features feature_names feature_sizes {MODEL_FLAGS}",
    inference_command: "train_dir input_data_pattern input_model_tgz untar_model_dir "
    "segment_labels segment_max_pred segment_label_ids_file output_file "
    "output_model_tgz top_k batch_size num_readers model frame_features feature_names "
    "feature_sizes",
}


@pytest.mark.parametrize("command", STARTER_FLAGS, ids=lambda c: c.__name__)
def test_every_flag_of_the_starter_code_is_accepted(command):
    flags = absl_flags.FlagValues()
    command.define(flags)
    for name in STARTER_FLAGS[command].split():
        assert name in flags, name


def refused(capsys, *arguments) -> str:
    assert main.run("train", ["--train_data_pattern=nothing", *arguments]) == 1
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    return line


def test_a_flag_of_another_model_or_given_twice_is_an_error(capsys):
    assert "--lstm_cells is a flag of LstmModel, not of DbofModel" in refused(
        capsys, "--model=DbofModel", "--lstm_cells=4"
    )
    assert "--model_args and --dbof_cluster_size both set clusters" in refused(
        capsys,
        "--model=DbofModel",
        "--model_args=clusters=5",
        "--dbof_cluster_size=4",
    )
    assert "--sample_random_frames and --frame_selection" in refused(
        capsys,
        "--model=DbofModel",
        "--sample_random_frames",
        "--frame_selection=even",
    )


def test_repeated_flags_are_checked_against_the_run(shards, tmp_path, capsys):
    run = f"--train_dir={tmp_path}/run"
    data = f"--train_data_pattern={shards}/features/train*"
    assert main.run("train", [run, data, "--max_steps=1"]) == 0
    score = [run, f"--eval_data_pattern={shards}/features/validate*", "--run_once"]
    same = ["--model=LogisticModel", "--feature_names=mean_rgb", "--moe_l2=1e-8"]
    assert main.run("eval", [*score, *same]) == 0
    capsys.readouterr()
    for flag, words in (
        ("--model=MoeModel", "model=LogisticModel, not model=MoeModel"),
        ("--feature_names=mean_audio", "features="),
        ("--model_args=l2_penalty=1", "l2_penalty=1e-08, not l2_penalty=1"),
        ("--moe_num_mixtures=2", "num_mixtures=None, not num_mixtures=2"),
        ("--num_classes=7", "num_classes=3862, not num_classes=7"),
    ):
        assert main.run("eval", [*score, flag]) == 1
        assert words in capsys.readouterr().err
