"""The sweep of the recipes: one of each family passes, and a failure is shown."""

import json
import pathlib
import re

import pytest
import tensorflow as tf

from benchmarks import sweep
from yt8m import registry, runs
from yt8m.cli import recipes
from yt8m.config import DataConfig
from yt8m.data.predictions import Predictions
from yt8m.data.records import read_id
from yt8m.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent

runs.load_registries(None)

HEADER = """# A title.
# Source: none.
# Command: python train.py --recipe=own --train_data_pattern='train*.tfrecord' {more}
# Published: no score.
# Measured on the dataset: not measured.
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return sweep.Material(tmp_path_factory.mktemp("material"))


@pytest.fixture
def own_recipe(tmp_path, monkeypatch):
    """Writes a recipe called `own`, the only one there is."""
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)

    def write(*flags, more=""):
        text = HEADER.format(more=more) + "\n".join(flags)
        (tmp_path / "own.flags").write_text(text)

    return write


@pytest.mark.parametrize("name", sweep.FAMILIES.values(), ids=list(sweep.FAMILIES))
def test_a_recipe_of_each_family_trains_scores_predicts_and_exports(name, material):
    sweep.sweep(name, material)


def test_the_page_of_recipes_lists_every_one_and_all_passed():
    rows = [
        re.split(r"(?<!\\)\|", line)[1:-1]
        for line in sweep.PAGE.read_text().splitlines()
        if line.startswith("| [")
    ]
    names = [re.match(r" \[(\w+)\]", row[0])[1] for row in rows]
    assert names == recipes.recipe_names()
    assert {row[5].strip() for row in rows} == {"ok"}
    for row in rows:
        recipe = recipes.read(re.match(r" \[(\w+)\]", row[0])[1])
        assert row[3].strip().replace("\\|", "|") == recipe.published
        assert row[4].strip() == recipe.measured


def test_large_numbers_of_a_model_its_head_and_its_pooling_are_reduced():
    args = {"hidden_size": 4096, "relu": True, "head_args": {"num_mixtures": 40}}
    small = sweep.small_args("NetVLADModel", args)
    assert small == {
        "hidden_size": 16,
        "relu": True,
        "head_args": {"num_mixtures": 16},
        "clusters": 16,  # its default is larger
    }
    assert sweep.reduced([4096, (2, {"units": 512}), 0.4, "max", None, False]) == [
        16,
        [2, {"units": 16}],
        0.4,
        "max",
        None,
        False,
    ]


def test_the_settings_are_those_of_the_recipe_and_of_its_command(own_recipe):
    own_recipe(
        "--model=NetVLADModel",
        "--model_args=clusters=256",
        "--frames=300",
        "--num_classes=4716",
        "--moe_num_mixtures=4",
        more="--label_loss_args=class_counts=videos.csv --feature_names=rgb",
    )
    settings = sweep.read_settings("own")
    assert settings.args == {"clusters": 256, "num_mixtures": 4}
    assert settings.loss_args == {"class_counts": "videos.csv"}
    assert settings.data.features == {"rgb": 1024}
    gates, experts = 1024 * 4716 * 5, 1024 * 4716 * 4 + 4716 * 4
    assert settings.cost().parameters > gates + experts + 256 * 1024 * 1024


def test_a_teacher_that_its_command_names_is_made_for_a_recipe(
    own_recipe, material, monkeypatch
):
    own_recipe(
        *("--model=LogisticModel", "--distillation_weight=1"),
        more="--teacher=train.predictions",
    )
    assert sweep.read_settings("own").teacher == "train.predictions"
    ran = []
    monkeypatch.setattr(sweep, "command", lambda *words: ran.append(words))
    sweep.sweep("own", material)
    (given,) = (w for w in ran[0] if w.startswith("--teacher="))
    predictions = Predictions(given.partition("=")[2])
    assert (len(predictions), predictions.num_classes) == (sweep.VIDEOS, sweep.CLASSES)
    labelled = next(w for w in ran[0] if w.startswith("--train_data_pattern="))
    records = tf.data.TFRecordDataset(labelled.partition("=")[2])
    ids = [read_id(r.numpy()).encode() for r in records]
    assert sorted(predictions.ids()) == sorted(ids)


def test_files_that_a_recipe_names_are_made(material):
    data = DataConfig("video", {"mean_rgb": 4}, num_classes=sweep.CLASSES)
    args = {
        "class_counts": "a",
        "more": {"correlation": "b"},
        "normalization": "c",
        "pca_eigenvalues": None,
    }
    found = material.with_files(args, data)
    assert pathlib.Path(found["class_counts"]).read_text().startswith("Index,Videos\n")
    for path in (found["more"]["correlation"], found["normalization"]):
        assert pathlib.Path(path).stat().st_size > 0
    assert found["pca_eigenvalues"] is None


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--model=NetVLADModle"], "Did you mean NetVLADModel"),
        (["--model=MoeModel", "--no_such_flag=1"], "no_such_flag"),
        (["--model=MoeModel", "--label_loss=Crass"], "Unknown loss Crass"),
        (["--model=MoeModel", "--optimizer_args=speed=1"], "speed"),
    ],
)
def test_a_recipe_that_fails_is_shown_with_its_error(own_recipe, flags, error, capsys):
    own_recipe(*flags)
    assert sweep.main_command(["--only=own"]) == 1
    out, err = capsys.readouterr()
    assert error in err and error in out
    assert "0 of 1 passed" in out
    assert "| ok |" not in out


def test_an_exception_is_an_error_line_too(own_recipe, monkeypatch, material):
    own_recipe("--model=MoeModel")

    def fail(*args, **kwargs):
        raise RuntimeError("many\nlines")

    monkeypatch.setattr(sweep.train, "run", fail)
    with pytest.raises(sweep.Failure, match="^train: RuntimeError: many lines$"):
        sweep.sweep("own", material)


def test_a_command_that_was_stopped_stops_the_sweep(own_recipe, monkeypatch, material):
    own_recipe("--model=MoeModel")
    monkeypatch.setattr(sweep.main, "run", lambda name, flags: 143)
    with pytest.raises(SystemExit, match="143"):
        sweep.sweep("own", material)


def test_a_part_of_the_recipes_is_chosen_by_name_or_family():
    assert sweep.choose("starter_moe,starter_lstm", False) == [
        "starter_moe",
        "starter_lstm",
    ]
    assert sweep.choose(None, True) == list(sweep.FAMILIES.values())
    assert sweep.choose(None, False) == recipes.recipe_names()
    with pytest.raises(UserError, match="Did you mean starter_moe"):
        sweep.choose("starter_mo", False)


def test_families_are_different_models():
    used = [recipes.read(name).model for name in sweep.FAMILIES.values()]
    assert len(set(used)) == len(used)
    assert {registry.get(model).level for model in used} == {"frame", "video"}


def test_a_whole_sweep_writes_the_page(own_recipe, monkeypatch, tmp_path):
    own_recipe("--model=MoeModel", "--model_args=" + json.dumps({"num_mixtures": 3}))
    monkeypatch.setattr(sweep, "PAGE", tmp_path / "recipes.md")
    assert sweep.main_command([]) == 0
    text = (tmp_path / "recipes.md").read_text()
    assert "1 of 1 passed" in text
    weights = 1024 * 3862 * 7 + 3862 * 3
    assert f"| ok | {weights:,} | {2 * 1024 * 3862 * 7 / 1e6:.3g} MFLOPs |" in text
