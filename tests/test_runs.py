"""Run directories: configuration, checkpoints saved, kept, restored, refused."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from yt8m import runs, whole_files
from yt8m.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from yt8m.errors import UserError

DATA = DataConfig("video", {"mean_rgb": 4}, num_classes=3)


def make_run(directory, model="LogisticModel", **args):
    """A run directory with its configuration; returns the model and its checkpoints."""
    config = RunConfig(ModelConfig(model, args), DATA, TrainingConfig("train*"))
    whole_files.make_directory(str(directory))
    runs.write_config(str(directory), config)
    return runs.build_model(config.model, DATA), runs.Checkpoints(str(directory), 2)


def save(checkpoints, model, step, gap=None):
    validation = None if gap is None else {"gap": gap}
    return checkpoints.save({"model": model}, step, 8 * step, 8, validation)


def test_a_run_is_built_and_restored_from_its_directory_alone(tmp_path):
    model, checkpoints = make_run(tmp_path, "MoeModel", num_mixtures=3)
    save(checkpoints, model, 5)
    run = runs.load_run(str(tmp_path))
    assert run.config.model == ModelConfig("MoeModel", {"num_mixtures": 3})
    assert (run.checkpoint.step, run.checkpoint.examples) == (5, 40)
    assert run.model.num_mixtures == 3
    for a, b in zip(model.variables, run.model.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    model, checkpoints = make_run(tmp_path)
    for step, gap in ((1, 0.2), (2, 0.9), (3, 0.9), (4, 0.5), (5, None), (6, None)):
        save(checkpoints, model, step, gap)
    assert [c.step for c in checkpoints.list()] == [2, 5, 6]
    assert checkpoints.latest().step == 6
    assert checkpoints.best().step == 2  # the earliest of equals
    assert runs.load_run(str(tmp_path), "best").checkpoint.validation == {"gap": 0.9}
    assert runs.load_run(str(tmp_path), "5").checkpoint.step == 5
    checkpoints.set_validation(6, {"gap": 0.95})
    assert checkpoints.best().step == 6
    assert [c.step for c in checkpoints.list()] == [5, 6]


def test_a_checkpoint_that_is_asked_for_and_missing_is_named(tmp_path):
    model, checkpoints = make_run(tmp_path)
    with pytest.raises(UserError, match="none yet"):
        runs.load_run(str(tmp_path))
    save(checkpoints, model, 5)
    with pytest.raises(UserError, match="'best'.* Steps: 5"):
        runs.load_run(str(tmp_path), "best")


def test_a_checkpoint_cut_short_is_ignored_and_removed_by_the_next(tmp_path):
    model, checkpoints = make_run(tmp_path)
    save(checkpoints, model, 5)
    cut_short = save(checkpoints, model, 7)
    os.remove(os.path.join(cut_short.path, runs.RECORD_FILE))
    assert checkpoints.latest().step == 5
    save(checkpoints, model, 9)
    assert not os.path.exists(cut_short.path)
    assert [c.step for c in checkpoints.list()] == [5, 9]


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    model, checkpoints = make_run(tmp_path, "MoeModel", num_mixtures=3)
    info = save(checkpoints, model, 5)
    other, _ = make_run(tmp_path / "other", "MoeModel", num_mixtures=2)
    with pytest.raises(UserError, match="does not fit the model") as error:
        checkpoints.restore(info, {"model": other}, partial=True)
    assert "\n" not in str(error.value)


def test_an_unreadable_checkpoint_is_refused_in_one_line(tmp_path):
    model, checkpoints = make_run(tmp_path)
    info = save(checkpoints, model, 5)
    for name in os.listdir(info.path):
        if name != runs.RECORD_FILE:
            with open(os.path.join(info.path, name), "wb") as f:
                f.write(b"rubbish")
    with pytest.raises(UserError, match="step-00000005"):
        checkpoints.restore(info, {"model": model})


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, monkeypatch):
    model, checkpoints = make_run(tmp_path)
    save(checkpoints, model, 5)

    def full(self, path):
        with open(f"{path}.data-00000-of-00001", "wb") as f:
            f.write(b"half of it")
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", full)
    with pytest.raises(UserError, match="No space left.*the last one is of step 5"):
        save(checkpoints, model, 7)
    assert [c.step for c in checkpoints.list()] == [5]
    assert not os.path.exists(tmp_path / "checkpoints" / "step-00000007")


def test_an_unwritable_directory_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        whole_files.make_directory(str(blocker / "run"))


@pytest.mark.parametrize("name", ["rename", "remove"])
def test_workers_that_write_at_once_do_not_disturb_one_another(
    tmp_path, monkeypatch, name
):
    """The second does all of its part just before the first's last call."""
    call, path = getattr(tf.io.gfile, name), str(tmp_path / "file")

    def write(text):
        whole_files.make_directory(str(tmp_path))
        whole_files.write_file(path, text)

    def second_comes_between(*args, **kwargs):
        monkeypatch.undo()
        write("second")
        return call(*args, **kwargs)

    monkeypatch.setattr(tf.io.gfile, name, second_comes_between)
    write("first")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "first"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt, KeyboardInterrupt),
        (tf.errors.ResourceExhaustedError(None, None, "No space left"), UserError),
    ],
)
def test_a_file_that_is_not_completed_leaves_nothing(
    tmp_path, monkeypatch, error, raised
):
    whole_files.write_file(str(tmp_path / "file"), "whole")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(tf.io.gfile, "rename", fail)
    with pytest.raises(raised):
        whole_files.write_file(str(tmp_path / "file"), "new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


def test_only_a_run_of_ours_is_moved_aside(tmp_path):
    assert runs.start_anew(str(tmp_path / "none")) is None
    run = tmp_path / "run"
    make_run(run)
    aside = runs.start_anew(str(run))
    assert not run.exists()
    assert os.path.exists(os.path.join(aside, runs.CONFIG_FILE))
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_text("")
    for refuse in (runs.start_anew, runs.refuse_foreign):
        with pytest.raises(UserError, match="not a run directory"):
            refuse(str(foreign))
    assert (foreign / "cat.jpg").exists()


def test_a_broken_configuration_file_is_named(tmp_path):
    make_run(tmp_path)
    path = tmp_path / runs.CONFIG_FILE
    stored = json.loads(path.read_text())
    stored["model"]["nam"] = "x"
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match="config.json.*Did you mean name"):
        runs.read_config(str(tmp_path))
    with pytest.raises(UserError, match="not a run directory"):
        runs.read_config(str(tmp_path / "nowhere"))


def test_models_of_another_level_than_the_data_are_refused():
    with pytest.raises(UserError, match="frame-level"):
        runs.build_model(ModelConfig("NetVLADModel"), DATA)


USER_MODEL = """
from yt8m.layers.heads import LogisticHead
from yt8m.model import VideoLevelModel
from yt8m.registry import register

@register(level="video", paper="mine")
class {name}(VideoLevelModel):
    def __init__(self, scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.head = LogisticHead(self.num_classes)

    def classify(self, video, training=False):
        return self.head(video * self.scale)
"""


def test_a_users_file_of_models_is_loaded_once_and_remembered(tmp_path):
    module = tmp_path / "users_models.py"
    module.write_text(USER_MODEL.format(name="UsersModel"))
    config = ModelConfig("UsersModel", {"scale": 2.0}, str(module))
    assert runs.build_model(config, DATA).scale == 2.0
    assert runs.build_model(config, DATA).scale == 2.0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("missing.py", None, "There is no file"),
        ("clash.py", USER_MODEL.format(name="MoeModel"), "registered already"),
        ("json.py", "", "must be a Python file"),
        ("models.txt", "", "must be a Python file"),
    ],
)
def test_a_users_file_that_cannot_be_used_is_named(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        runs.load_registries(str(path))


def test_two_differing_copies_of_a_registry_are_refused(tmp_path, monkeypatch):
    (tmp_path / "frame_level_models.py").write_text("# edited in vain")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="differing copies"):
        runs.load_registries()
