"""Configurations: JSON both ways, validation, what a resumed run may change."""

import dataclasses

import pytest

from yt8m.config import (
    CHANGEABLE,
    DataConfig,
    FrameSelection,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from yt8m.errors import UserError, near_matches


def run_config(**training) -> RunConfig:
    return RunConfig(
        model=ModelConfig("NetVLADModel", {"clusters": 8}),
        data=DataConfig("frame", {"rgb": 16, "audio": 4}, frames=FrameSelection(30)),
        training=TrainingConfig("train*", **training),
    )


def test_json_brings_every_field_back():
    config = run_config(max_steps=7, optimizer_args={"beta_1": 0.8})
    assert RunConfig.from_json(config.to_json()) == config
    # The order of the features is that of their concatenation.
    assert list(RunConfig.from_json(config.to_json()).data.features) == ["rgb", "audio"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"modell": {}}', "Did you mean model?"),
        ('{"model": {"name": "A"}}', "incomplete"),
    ],
)
def test_a_broken_configuration_is_refused_by_name(text, named):
    with pytest.raises(UserError, match=named.replace("?", r"\?")):
        RunConfig.from_json(text)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: TrainingConfig("t", batch_size=0), "--batch_size"),
        (lambda: TrainingConfig("t", precision="float8"), "--precision"),
        (lambda: TrainingConfig("t", lr_schedule="cosin"), "Did you mean cosine"),
        (lambda: TrainingConfig("t", num_epochs=0), "Training without end"),
        (lambda: TrainingConfig("t", base_learning_rate=-1), "--base_learning_rate"),
        (lambda: DataConfig("clip", {"rgb": 1}), "frame or video"),
        (lambda: DataConfig("frame", {}), "--feature_names"),
        (lambda: DataConfig("frame", {"rgb": 0}), "rgb"),
        (lambda: DataConfig("frame", {"rgb": 1}, num_classes=0), "--num_classes"),
        (lambda: FrameSelection(0), "count"),
        (lambda: FrameSelection(3, "evenly"), "Did you mean even"),
        (lambda: FrameSelection(skip_first=-1), "skip_first"),
    ],
)
def test_values_out_of_range_are_refused_by_name(build, named):
    with pytest.raises(UserError, match=named):
        build()


def test_a_resumed_run_may_change_what_steers_it():
    stored, new = run_config(), run_config(max_steps=9, batch_size=8, log_steps=3)
    changes = stored.refuse_changes(new)
    assert sorted(c.split()[0] for c in changes) == [
        "batch_size",
        "log_steps",
        "max_steps",
    ]
    fields = {f.name for f in dataclasses.fields(TrainingConfig)}
    assert fields >= CHANGEABLE


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"model": ModelConfig("MoeModel", {})}, ("NetVLADModel", "MoeModel")),
        ({"model": ModelConfig("NetVLADModel", {"clusters": 9})}, ("8", "9")),
        ({"data": DataConfig("frame", {"rgb": 16})}, ("audio", "rgb")),
        ({"training": TrainingConfig("train*", seed=3)}, ("seed=0", "seed=3")),
    ],
)
def test_what_makes_it_another_run_is_refused_with_both_values(change, values):
    new = dataclasses.replace(run_config(), **change)
    with pytest.raises(UserError) as error:
        run_config().refuse_changes(new)
    for value in values:
        assert value in str(error.value)


def test_near_matches_ignore_case():
    assert "Did you mean NetVLADModel?" in near_matches(
        "netvladmodel", ["NetVLADModel"]
    )
    assert near_matches("x", []) == "Known: none."
