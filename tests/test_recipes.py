"""Recipes and the generated pages: complete, found by name, true to the code."""

import functools
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from yt8m import registry, runs
from yt8m.cli import flags as shared
from yt8m.cli import main, models, recipes, train
from yt8m.errors import UserError
from yt8m.model import VideoLevelModel

ROOT = pathlib.Path(__file__).parent.parent

runs.load_registries(None)

# The published systems that must be there.
SYSTEMS = """
yt8m_frame_logistic yt8m_dbof yt8m_lstm yt8m_hinge yt8m_logistic yt8m_moe2
yt8m_moe2_stats

bof_4096 simple_lstm_residual simple_lstm_2048 simple_lstm_l3_2048 lstm_moe_512
simple_lstm_l3_2048_bal simple_lstm_2048_bal lstm_moe_512_bal

snuvl_lstm snuvl_lstm_m snuvl_lstm_m_o snuvl_lstm_m_o_ln snuvl_cnn_64 snuvl_cnn_256
snuvl_cnn_1024 snuvl_position_encoding snuvl_indirect_clustering snuvl_adaptive_noise
snuvl_many_to_many snuvl_moe2_2layer snuvl_moe16_2layer snuvl_mlp snuvl_mlp_ln
snuvl_label_correlation snuvl_center_loss snuvl_huber snuvl_best

resnetlike resnetlike_mixup resnetlike_soft_labels resnetlike_linear_combinations
resnetlike_soft_ranking attention_net lstm_bi_attention time_distributed_conv
vlad_bow_power resnetlike_rgb resnetlike_audio time_distributed_dense_sorting
early_concat_lstm
time_distributed_dense_max transformer_encoder clusters_10000 bottleneck_4

netvlad_gated_moe spatio_temporal_cnn bilstm_two_stream
segment_context_ignored segment_context_aware

starter_logistic starter_moe starter_frame_logistic starter_dbof starter_lstm
willow_netvlad willow_netrvlad willow_netfv willow_soft_dbow willow_gru willow_lstm
nextvlad nextvlad_mix3 deep_combine_chain lstm_attention_max multiscale_cnn_lstm cnn_dcc
temporal_cnn two_stream_lstm fast_forward_lstm monn multitask_combine_chain ths_mlp
cg_dbof masked_transformer
"""


def test_every_published_system_has_a_recipe():
    assert not set(SYSTEMS.split()) - set(recipes.recipe_names())


@pytest.mark.parametrize("name", recipes.recipe_names())
def test_a_recipe_tells_its_source_command_scores_and_model(name):
    recipe = recipes.read(name)
    for text in (recipe.title, recipe.source, recipe.published, recipe.measured):
        assert text.endswith(".") and "\n" not in text and "#" not in text
    assert recipe.command.startswith(f"python train.py --recipe={name} ")
    assert registry.get(recipe.model).level in registry.LEVELS
    # What the model is called with must be known to it.
    flags = absl_flags.FlagValues()
    train.define(flags)
    flags(["train", *recipe.flags])
    known = registry.arguments(registry.get(recipe.model).cls)
    assert not set(shared.given_model_args(flags)) - set(known)


def write_recipe(folder, text, name="own"):
    (folder / f"{name}.flags").write_text(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    return tmp_path


HEADER = """# A title.
# Source: a paper,
# of 2017.
# Command: python train.py --recipe=own
# Published: GAP 0.8
# (4,716 classes).
# Measured on the dataset: GAP 0.79,
# one seed.
# What is left open.
# And more.
"""


def test_what_a_header_says_goes_on_to_the_next_key(folder):
    write_recipe(folder, HEADER + "--model=MoeModel\n\n--max_steps=5\n")
    assert recipes.read("own") == recipes.Recipe(
        name="own",
        title="A title.",
        source="a paper, of 2017.",
        command="python train.py --recipe=own",
        published="GAP 0.8 (4,716 classes).",
        measured="GAP 0.79, one seed.",
        remarks="What is left open. And more.",
        flags=["--model=MoeModel", "--max_steps=5"],
    )
    assert recipes.read("own").model == "MoeModel"


@pytest.mark.parametrize("key", recipes.KEYS)
def test_a_header_without_a_key_is_refused(folder, key):
    write_recipe(folder, HEADER.replace(f"{key}:", "Something else:"))
    with pytest.raises(UserError, match=f"The recipe own must have .*{key}"):
        recipes.read("own")


def test_a_recipe_without_a_model_is_refused(folder):
    write_recipe(folder, HEADER + "--max_steps=5\n")
    with pytest.raises(UserError, match="The recipe own names no --model"):
        recipes.read("own").model  # noqa: B018


def test_the_table_lists_every_recipe(capsys):
    for form in ("text", "markdown"):
        assert main.run("recipes", [f"--format={form}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        names = [line.lstrip("| ").split(" ")[0] for line in lines]
        assert set(recipes.recipe_names()) <= set(names)
        assert lines[-1] == "Whole pipelines, `yt8m pipeline NAME`: distilled_1gb."
        assert any("NetVLADModel" in x and "frame" in x for x in lines)


def test_a_recipe_is_printed_as_it_is(capsys):
    assert main.run("recipes", ["--show=starter_moe"]) == 0
    printed = capsys.readouterr().out
    assert printed == (ROOT / "yt8m/recipes/starter_moe.flags").read_text()
    assert main.run("recipes", ["--show=starter_mo"]) == 1
    assert "Did you mean starter_moe" in capsys.readouterr().err


def test_tables_of_markdown_keep_their_columns_whatever_a_cell_holds():
    text = recipes.table(["a", "b"], [["x | y", "z"]], "markdown")
    assert text.splitlines() == ["| a | b |", "| --- | --- |", r"| x \| y | z |"]


def test_recipes_are_found_by_an_installed_package(tmp_path):
    """As a wheel has them: the packages and their data alone, in another place."""
    built = tmp_path / "build"
    command = ["setup.py", "-q", "build", f"--build-base={built}", "egg_info"]
    command += [f"--egg-base={tmp_path}"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    there = {p.name for p in (built / "lib/yt8m/recipes").iterdir()}
    flags = {f"{name}.flags" for name in recipes.recipe_names()}
    pipelines = {p.name for p in (ROOT / "yt8m/recipes").glob("*.json")}
    assert pipelines and there == flags | pipelines
    script = (
        f"import sys; sys.path.insert(0, {str(built / 'lib')!r})\n"
        "from yt8m.cli import recipes\n"
        "assert str(recipes._FOLDER).startswith(sys.path[0])\n"
        "print(*recipes.recipe_flags('starter_moe'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--model=MoeModel" in done.stdout


# The page of models


@pytest.mark.parametrize("name", registry.names())
def test_every_argument_of_a_model_is_explained_in_a_docstring(name):
    cls = registry.get(name).cls
    explained = models.explanations(cls)
    for argument in registry.arguments(cls):
        assert explained.get(argument), f"{name}: {argument}"


OURS = [  # other tests register more
    name
    for level in registry.LEVELS
    for name in registry.names(level)
    if registry.get(name).cls.__module__ in ("frame_level_models", "video_level_models")
]


def test_the_page_of_models_has_an_entry_for_each():
    text = (ROOT / "docs/models.md").read_text()
    assert re.findall(r"^### (\w+)$", text, re.M) == OURS


@pytest.mark.parametrize("name", OURS)
def test_a_model_tells_its_flow_and_its_equation_on_the_page_too(name):
    parts = models.sections(registry.get(name).cls)
    _, _, flow = parts[""].partition("\n\n")
    assert " -> " in flow and "[B, C]" in flow
    equation = parts.get("Equation", "")
    # What the head classifies, or what it answers.
    assert re.search(r"^(y|p|logits z) = ", equation, re.M), equation
    text = (ROOT / "docs/models.md").read_text()
    entry = text[text.index(f"### {name}\n") :].partition("\n### ")[0]
    for part in (flow, equation):
        assert f"```text\n{part}\n```\n" in entry, "run `yt8m models`, see the page"


class Base(VideoLevelModel):
    """What it is.

    [B, D] -> something -> [B, C].

    Equation:
        y = x W
        p = sigmoid(y)

    Args:
        size: how large,
            in numbers: H.
        left, right: of the two
            sides.
        rate: of the base.

    Reference:
        Somebody 2017.
    """

    def __init__(self, size=1, left=2, right=3, rate=0.5, **kwargs):
        super().__init__(**kwargs)


class Derived(Base):
    """A derived one.

    Args:
        rate: its own.
        size: as `Base`.
        Others as `Base`.
    """


def test_arguments_are_explained_by_the_class_or_by_its_bases():
    explained = models.explanations(Derived)
    assert explained["size"] == "how large, in numbers: H."
    assert explained["left"] == explained["right"] == "of the two sides."
    assert explained["rate"] == "its own."
    assert explained["num_classes"] == "number of classes C."
    parts = models.sections(Base)
    assert parts[""] == "What it is.\n\n[B, D] -> something -> [B, C]."
    assert parts["Equation"] == "y = x W\np = sigmoid(y)"
    assert parts["Reference"] == "Somebody 2017."


# To count a model is to build it: the tests of the two forms do it once.
counted_once = functools.cache(models.default_cost)


def test_models_are_listed_with_what_they_cost(capsys, monkeypatch):
    monkeypatch.setattr(models, "default_cost", counted_once)
    assert main.run("models", ["--cost"]) == 0
    text = capsys.readouterr().out
    weights = 1024 * 3862 + 3862
    assert f"{weights:,} parameters; 7.91 MFLOPs a video, of its default" in text


def test_the_page_of_models_is_written_to_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "default_cost", counted_once)
    path = tmp_path / "models.md"
    assert main.run("models", ["--format=markdown", f"--output_file={path}"]) == 0
    text = path.read_text()
    entry = text[text.index("### LogisticModel") : text.index("### MoeModel")]
    assert "[B, D] -> L2 -> dense C -> logits [B, C]." in entry
    assert "| `l2_penalty` | `1e-08` | the loss gets" in entry
    assert "Abu-El-Haija" in entry and "`starter_logistic`" in entry
    assert "parameters; " in entry and "FLOPs a video" in entry


@pytest.mark.parametrize(
    ("number", "text"),
    [(12, "12 "), (1500, "1.5 k"), (297.8e6, "297.8 M"), (5.737e9, "5.74 G")],
)
def test_large_numbers_are_read_at_a_glance(number, text):
    assert models.amount(number) == text
