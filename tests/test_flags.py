"""The command line: parsing, near matches, exit codes, help, recipes."""

import subprocess
import sys

import pytest
from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.cli import main, recipes
from yt8m.cli.recipes import recipe_flags, recipe_names, recipe_title
from yt8m.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("clusters=128,hidden_size=512", {"clusters": 128, "hidden_size": 512}),
        ("a=1e-3, b=True ,c=none", {"a": 1e-3, "b": True, "c": None}),
        ("head=moe", {"head": "moe"}),
        ("sizes=[1,2],name='a,b'", {"sizes": [1, 2], "name": "a,b"}),
        ('{"clusters": 8, "gating": false}', {"clusters": 8, "gating": False}),
        ("sizes=(1,2),of={'a': (3,)}", {"sizes": [1, 2], "of": {"a": [3]}}),
    ],
)
def test_model_arguments_are_python_literals_or_strings(text, value):
    assert shared.parse_arguments(text, "--model_args") == value


@pytest.mark.parametrize(
    "text", ["clusters", "a=1,a=2", "=3", "a b=1", "{", "a={1,2}", "a=b'1'"]
)
def test_malformed_arguments_are_refused(text):
    with pytest.raises(UserError, match="--model_args"):
        shared.parse_arguments(text, "--model_args")


def test_feature_sizes_are_known_for_the_datasets_own_features():
    assert shared.parse_features("rgb, audio", None) == {"rgb": 1024, "audio": 128}
    assert shared.parse_features("clip", "512") == {"clip": 512}


@pytest.mark.parametrize(
    ("names", "sizes", "named"),
    [
        ("clip", None, "clip"),
        ("rgb,rgb", None, "once"),
        ("rgb", "1024,128", "differ in length"),
        ("rgb", "many", "whole numbers"),
        ("", None, "--feature_names"),
    ],
)
def test_feature_lists_that_do_not_fit_are_refused(names, sizes, named):
    with pytest.raises(UserError, match=named):
        shared.parse_features(names, sizes)


@pytest.mark.parametrize(
    ("command", "arguments", "code", "said"),
    [
        ("train", ["--modle=x"], 2, "model"),
        ("train", ["--batch_size=many"], 2, "batch_size"),
        ("train", ["stray"], 1, "'stray' is not a flag"),
        ("train", ["--model=NetVLADModle"], 1, "Did you mean NetVLADModel"),
        ("train", ["--recipe=willow_netvald"], 1, "Did you mean willow_netvlad"),
        ("train", [], 1, "--train_data_pattern"),
        ("eval", [], 1, "--eval_data_pattern"),
        ("inference", [], 1, "--input_data_pattern"),
        ("export", [], 1, "--output_dir"),
        ("expand", [], 1, "--input_data_pattern"),
        ("synthesize", [], 1, "--output_dir"),
        ("validate-submission", [], 1, "submission"),
        ("synthesize", ["--output_dir=x", "--kinds=breif"], 1, "Did you mean brief"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(
    command, arguments, code, said, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    directory = [f"--train_dir={tmp_path / 'run'}"] if command == "train" else []
    assert main.run(command, [*arguments, *directory]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith(f"{command}: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", main.command_names())
def test_every_command_explains_itself_with_a_line_to_paste(command, capsys):
    assert main.run(command, ["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"yt8m {command}: ")
    assert f"yt8m {command}" in text or f"python {command}" in text
    # Every flag has a help of its own.
    for i, line in enumerate(lines := text.splitlines()):
        if line.startswith("  --"):
            assert lines[i + 1].strip()


def test_the_console_entry_lists_the_commands(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["yt8m", "--help"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in main.command_names())
    monkeypatch.setattr("sys.argv", ["yt8m", "trian"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert "Did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_states_its_source_and_its_flags_are_known(name):
    from yt8m.cli import train

    text = recipe_title(name)
    assert text and text[0].isupper()
    flags = absl_flags.FlagValues()
    train.define(flags)
    flags(["train", *recipe_flags(name)])
    shared.parse_arguments(flags.model_args, "--model_args")
    assert shared.given(flags, "model")


def _with_recipe(*arguments):
    from yt8m.cli import train

    flags = absl_flags.FlagValues()
    train.define(flags)
    flags(["train", *arguments])
    recipes.follow(flags, train.define)
    return flags


def test_flags_beside_a_recipe_override_its_own():
    flags = _with_recipe("--batch_size=7", "--recipe=willow_netvlad")
    assert flags.batch_size == 7
    assert flags.model == "NetVLADModel"
    assert shared.given(flags, "model") and not shared.given(flags, "seed")


def test_arguments_beside_a_recipe_override_its_own_one_by_one():
    flags = _with_recipe(
        *("--recipe=early_concat_lstm", "--model_args=cell=gru", "--head=moe"),
        "--optimizer_args=beta_1=0.8",
    )
    args = shared.model_args(flags)
    assert args.pop("cell") == "gru" and args.pop("head") == "moe"
    assert args == {
        "cells": 1024,
        "layers": 2,
        "read_out": "states",
        "hidden_layers": [[2048, "relu"]],
    }
    assert flags.optimizer_args == "beta_1=0.8"
    flags = _with_recipe("--recipe=snuvl_best", "--pooling_args=outputs=states")
    assert shared.model_args(flags)["pooling_args"] == {
        "cells": 1152,
        "dropout": 0.8,
        "read_out": "memory_inputs_outputs",
        "outputs": "states",
    }
    flags = _with_recipe("--recipe=snuvl_best", "--optimizer_args=epsilon=1e-4")
    assert shared.parse_arguments(flags.optimizer_args, "")["beta_2"] == 0.999
    assert shared.training_config(flags).optimizer_args["epsilon"] == 1e-4


@pytest.mark.parametrize(
    "given, left, kept",
    [
        (["--head=mlp"], "num_mixtures", "pooling_args"),
        (["--model_args=head=mlp"], "num_mixtures", "pooling_args"),
        (["--pooling=average"], "pooling_args", "num_mixtures"),
        (["--model=DbofModel"], "pooling_args", None),
        (["--head=moe"], None, "num_mixtures"),
        (["--moe_num_mixtures=3"], None, "pooling_args"),
    ],
)
def test_what_a_recipe_says_of_its_parts_is_not_said_of_others(given, left, kept):
    args = shared.model_args(_with_recipe("--recipe=snuvl_best", *given))
    assert left not in args
    assert kept is None or kept in args
    if "--moe_num_mixtures=3" in given:
        assert args["num_mixtures"] == 3


def test_another_loss_or_optimizer_has_its_own_arguments():
    flags = _with_recipe("--recipe=snuvl_best", "--label_loss=HingeLoss")
    assert not shared.given(flags, "label_loss_args")
    assert flags.optimizer_args
    flags = _with_recipe("--recipe=snuvl_best", "--optimizer=SGD")
    assert not shared.given(flags, "optimizer_args")
    assert flags.label_loss_args == "delta=0.5"


def test_the_list_of_models_has_level_arguments_and_paper(capsys):
    assert main.run("train", ["--list_models"]) == 0
    text = capsys.readouterr().out
    assert "NetVLADModel (frame level)" in text and "1706.06905" in text
    assert "    clusters=64" in text


def test_the_help_names_every_optimizer():
    from yt8m.training.optimizers import _OPTIMIZERS

    flags = absl_flags.FlagValues()
    shared.training(flags)
    assert flags["optimizer"].help == f"{', '.join(_OPTIMIZERS)}."


def test_no_help_waits_for_tensorflow():
    code = (
        "import sys\n"
        "from yt8m.cli import main\n"
        "for name in main.command_names():\n"
        "    assert main.run(name, ['--help']) == 0\n"
        "    assert 'tensorflow' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "from yt8m.cli.main import main; import sys; sys.argv[1:] = ['recipes']; main()"
    )
    command = f'{sys.executable} -c "{code}" | head -c 10'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(done.stdout) == 10


def test_a_mixture_s_branches_have_the_head():
    flags = _with_recipe("--model=MixtureNeXtVLADModel", "--head=chain", "--moe_l2=0")
    assert shared.given_model_args(flags) == {
        "branch_args": {"head": "chain", "l2_penalty": 0.0}
    }


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("train", ["--train_dir", "--model=X"], "--train_dir has no value: write"),
        ("train", ["--train_dir=--model"], "--train_dir has no value: write"),
        ("train", ["--batch_size", "--model=X"], "--batch_size has no value: write"),
        ("count", ["--per_class"], "--per_class has no value: write --per_class=FILE"),
        ("count", ["--per_class", "--segments"], "write --per_class=FILE"),
        ("eval", ["--run_once=maybe"], "--run_once=maybe"),
        ("eval", ["--run_once", "false"], "write --run_once=false"),
        ("count", ["."], "--input_data_pattern='./*.tfrecord'"),
    ],
)
def test_a_value_that_is_missing_or_misplaced_is_said(command, arguments, said, capsys):
    assert main.run(command, arguments) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_negative_numbers_are_values():
    from yt8m.cli import inference

    flags = absl_flags.FlagValues()
    inference.define(flags)
    main._refuse_forgotten_values(flags, ["--segment_shifts", "-2,-1,0"])


@pytest.mark.parametrize("command", main.command_names())
def test_every_command_takes_the_short_flag_for_help(command, capsys):
    assert main.run(command, ["-h"]) == 0
    assert capsys.readouterr().out.startswith(f"yt8m {command}: ")


def test_the_console_entry_says_its_version(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["yt8m", "--version"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("yt8m ")
