"""Exports: the same scores as the model, in files that stand alone."""

import dataclasses
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_cases import SMALL
from yt8m import __version__, runs
from yt8m.config import (
    DataConfig,
    FrameSelection,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from yt8m.data.records import encode_frame_record, encode_video_record
from yt8m.errors import UserError
from yt8m.export import export, write_directory
from yt8m.registry import get
from yt8m.runs import Run

CLASSES = 7
FRAME_FEATURES = {"rgb": 16, "audio": 4}
VIDEO_FEATURES = {"mean_rgb": 16, "mean_audio": 4}
MODELS = [
    ("NetVLADModel", "float32"),
    ("NetVLADModel", "bfloat16"),
    ("FrameLevelLogisticModel", "float32"),
    ("LogisticModel", "float32"),
    ("MoeModel", "bfloat16"),
]


def make_run(directory, name, precision="float32", frames=None, module=None) -> Run:
    """A run in `directory` whose model has random weights, moving averages too."""
    runs.load_registries(module)
    level = get(name).level
    data = DataConfig(
        level,
        FRAME_FEATURES if level == "frame" else VIDEO_FEATURES,
        num_classes=CLASSES,
        max_frames=6,
        frames=frames or FrameSelection(),
    )
    config = RunConfig(
        ModelConfig(name, SMALL.get(name, {}), module),
        data,
        TrainingConfig("none*.tfrecord", precision=precision),
    )
    model = runs.build_model(config.model, data, precision)
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape))
    for v in model.non_trainable_variables:
        if v.dtype == "float32":
            v.assign(rng.uniform(0.5, 2.0, size=v.shape))
    os.makedirs(directory, exist_ok=True)
    runs.write_config(str(directory), config)
    runs.Checkpoints(str(directory)).save({"model": model}, 5, 50, 10)
    return runs.load_run(str(directory))


def make_batch(level: str, seed: int = 1) -> dict[str, np.ndarray]:
    """A ragged batch: no frame, one, some, all; garbage behind them."""
    rng = np.random.default_rng(seed)
    if level == "video":
        return {
            name: rng.normal(size=(5, size)).astype(np.float32)
            for name, size in VIDEO_FEATURES.items()
        }
    batch = {
        name: rng.integers(0, 256, (5, 6, size), np.uint8)
        for name, size in FRAME_FEATURES.items()
    }
    return batch | {"num_frames": np.array([0, 1, 6, 3, 6], np.int32)}


def make_records(level: str, seed: int = 2) -> tuple[list[bytes], list[dict]]:
    """Serialized records of 1 to 9 frames, and the features they were made from."""
    rng = np.random.default_rng(seed)
    records, features = [], []
    for i, frames in enumerate((3, 1, 9, 6, 0)):
        labels = None if i == 1 else [0, 6]
        key = "video_id" if i == 2 else "id"
        if level == "video":
            values = {
                name: rng.normal(size=size).astype(np.float32)
                for name, size in VIDEO_FEATURES.items()
            }
            records.append(encode_video_record(f"vid{i}", values, labels, key))
        else:
            values = {
                name: rng.integers(0, 256, (frames, size), np.uint8)
                for name, size in FRAME_FEATURES.items()
            }
            records.append(encode_frame_record(f"vid{i}", values, labels, key))
        features.append(values)
    return records, features


def best_classes(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted one by one: higher logit first, then the lower class."""
    classes = np.array(
        [sorted(range(len(row)), key=lambda c: (-row[c], c))[:k] for row in logits]
    )
    chosen = np.take_along_axis(logits.astype(np.float64), classes, axis=1)
    return classes, 1 / (1 + np.exp(-chosen))


def signature(path, name):
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures[name]

    def call(**inputs):
        outputs = function(**{k: tf.constant(v) for k, v in inputs.items()})
        return {k: v.numpy() for k, v in outputs.items()}

    call.loaded = loaded  # its variables live as long as it does
    return call


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Gives the run and the export of a model, made once."""
    made = {}

    def get_export(name, precision="float32"):
        if (name, precision) not in made:
            folder = tmp_path_factory.mktemp("export")
            run = make_run(folder / "run", name, precision)
            export(run, str(folder / "export"), top_k=3)
            made[name, precision] = (run, folder / "export")
        return made[name, precision]

    return get_export


# --- the same scores -----------------------------------------------------------------


@pytest.mark.parametrize("name, precision", MODELS)
def test_tensors_in_give_the_models_own_outputs_on_ragged_batches(
    exported, name, precision
):
    run, path = exported(name, precision)
    serve = signature(path, "serving_default")
    for rows in (slice(None), slice(1, 2)):
        batch = {k: v[rows] for k, v in make_batch(run.model.level).items()}
        expected = run.model(batch)
        served = serve(**batch)
        assert set(served) == {"logits", "predictions", "embedding"}
        assert all(v.dtype == np.float32 for v in served.values())
        tolerance = {"rtol": 1e-5, "atol": 1e-5}
        if precision == "bfloat16":  # its rounding may fall on either side
            tolerance = {"rtol": 2e-2, "atol": 2e-2}
        logits = np.asarray(expected["logits"])
        np.testing.assert_allclose(served["logits"], logits, **tolerance)
        np.testing.assert_allclose(
            served["predictions"],
            1 / (1 + np.exp(-served["logits"].astype(np.float64))),
            rtol=1e-5,
        )
        embedding = np.asarray(tf.cast(expected["embedding"], tf.float32))
        np.testing.assert_allclose(served["embedding"], embedding, **tolerance)


@pytest.mark.parametrize("name", ["NetVLADModel", "MoeModel"])
def test_records_in_give_the_best_classes_that_tensors_in_give(exported, name):
    run, path = exported(name)
    records, features = make_records(run.model.level)
    served = signature(path, "serve_examples")(example_bytes=records)
    assert served["video_id"].tolist() == [b"vid%d" % i for i in range(5)]
    assert served["class_indexes"].dtype == np.int32
    assert served["predictions"].dtype == np.float32
    serve = signature(path, "serving_default")
    for i, values in enumerate(features):
        one = {k: v[None] for k, v in values.items()}
        if run.model.level == "frame":
            one = {k: v[:, :6] for k, v in one.items()}  # max_frames is 6
            one["num_frames"] = np.array([one["rgb"].shape[1]], np.int32)
        classes, scores = best_classes(serve(**one)["logits"], k=3)
        np.testing.assert_array_equal(served["class_indexes"][i], classes[0])
        np.testing.assert_allclose(served["predictions"][i], scores[0], rtol=1e-4)


@pytest.mark.parametrize("name, precision", MODELS)
def test_the_keras_file_reloads_to_the_same_outputs(exported, name, precision):
    run, path = exported(name, precision)
    reloaded = keras.saving.load_model(path / "model.keras")
    assert type(reloaded) is type(run.model)
    assert list(reloaded.features) == list(run.model.features)
    batch = make_batch(run.model.level)
    before, after = run.model(batch), reloaded(batch)
    for key in before:
        np.testing.assert_array_equal(
            np.asarray(tf.cast(before[key], tf.float32)),
            np.asarray(tf.cast(after[key], tf.float32)),
        )


def test_a_process_that_imports_tensorflow_alone_gets_the_same_scores(
    exported, tmp_path
):
    run, path = exported("NetVLADModel")
    batch = make_batch("frame")
    records, _ = make_records("frame")
    np.savez(tmp_path / "in.npz", records=np.array(records, object), **batch)
    script = """
import sys
import numpy as np
import tensorflow as tf
path, folder = sys.argv[1:]
given = dict(np.load(folder + "/in.npz", allow_pickle=True))
records = tf.constant(given.pop("records").tolist())
loaded = tf.saved_model.load(path)
inputs = {k: tf.constant(v) for k, v in given.items()}
logits = loaded.signatures["serving_default"](**inputs)["logits"]
best = loaded.signatures["serve_examples"](example_bytes=records)
assert not any(m.split(".")[0] == "yt8m" for m in sys.modules)
np.savez(folder + "/out.npz", logits=logits, **best)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(path), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = np.load(tmp_path / "out.npz", allow_pickle=True)
    expected = np.asarray(run.model(batch)["logits"])
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-5, atol=1e-5)
    here = signature(path, "serve_examples")(example_bytes=records)
    np.testing.assert_array_equal(out["class_indexes"], here["class_indexes"])
    np.testing.assert_array_equal(out["video_id"], here["video_id"])


# --- options -------------------------------------------------------------------------


def test_records_are_cut_to_the_frames_that_evaluation_takes(tmp_path):
    selection = FrameSelection(count=2, method="random", skip_first=1)
    run = make_run(tmp_path / "run", "FrameLevelLogisticModel", frames=selection)
    export(run, str(tmp_path / "export"))
    records, features = make_records("frame")
    serve = signature(tmp_path / "export", "serve_examples")
    served = serve(example_bytes=records[3:4])
    # Six frames, the first left out: the middles of the halves of the other five.
    taken = {k: v[None, [2, 4]] for k, v in features[3].items()}
    taken["num_frames"] = np.array([2], np.int32)
    classes, scores = best_classes(np.asarray(run.model(taken)["logits"]), CLASSES)
    np.testing.assert_array_equal(served["class_indexes"], classes)
    np.testing.assert_allclose(served["predictions"], scores, rtol=1e-4)
    again = serve(example_bytes=records[3:4])
    np.testing.assert_array_equal(served["predictions"], again["predictions"])


def test_top_k_is_the_number_of_predictions_and_at_most_all_classes(tmp_path):
    run = make_run(tmp_path / "run", "LogisticModel")
    records, _ = make_records("video")
    shapes = []
    for top_k in (1, 4, 20):
        export(run, str(tmp_path / "export"), top_k=top_k)
        serve = signature(tmp_path / "export", "serve_examples")
        shapes.append(serve(example_bytes=records)["predictions"].shape)
    assert shapes == [(5, 1), (5, 4), (5, CLASSES)]


def test_float_frame_features_are_taken_as_they_are(tmp_path):
    run = make_run(tmp_path / "run", "FrameLevelLogisticModel")
    data = dataclasses.replace(run.config.data, float_features=["audio"])
    config = dataclasses.replace(run.config, data=data)
    run = dataclasses.replace(run, config=config)
    export(run, str(tmp_path / "export"))
    rng = np.random.default_rng(3)
    features = {
        "rgb": rng.integers(0, 256, (4, 16), np.uint8),
        "audio": rng.normal(size=(4, 4)).astype(np.float32),
    }
    batch = {k: v[None] for k, v in features.items()}
    batch["num_frames"] = np.array([4], np.int32)
    expected = np.asarray(run.model(batch)["logits"])
    served = signature(tmp_path / "export", "serving_default")(**batch)
    np.testing.assert_allclose(served["logits"], expected, rtol=1e-5, atol=1e-5)
    best = signature(tmp_path / "export", "serve_examples")(
        example_bytes=[encode_frame_record("v", features, None)]
    )
    classes, _ = best_classes(expected, CLASSES)
    np.testing.assert_array_equal(best["class_indexes"], classes)


def test_the_record_beside_the_model_tells_where_it_comes_from(exported):
    run, path = exported("NetVLADModel")
    record = json.loads((path / "export.json").read_text())
    assert RunConfig.from_json(json.dumps(record["config"])) == run.config
    assert record["step"] == 5
    assert record["versions"]["yt8m"] == __version__
    assert record["signatures"]["serving_default"] == {
        "inputs": {
            "rgb": "uint8 [?, ?, 16]",
            "audio": "uint8 [?, ?, 4]",
            "num_frames": "int32 [?]",
        },
        "outputs": {
            "logits": "float32 [?, 7]",
            "predictions": "float32 [?, 7]",
            "embedding": "float32 [?, 8]",
        },
    }
    assert record["signatures"]["serve_examples"] == {
        "inputs": {"example_bytes": "string [?]"},
        "outputs": {
            "video_id": "string [?]",
            "class_indexes": "int32 [?, 3]",
            "predictions": "float32 [?, 3]",
        },
    }


# --- the directory -------------------------------------------------------------------


@pytest.fixture
def small_run(tmp_path):
    return make_run(tmp_path / "run", "LogisticModel")


def test_an_earlier_export_is_replaced_and_nothing_is_left_beside_it(
    small_run, tmp_path
):
    target = tmp_path / "out" / "export"
    target.mkdir(parents=True)  # empty
    export(small_run, str(target))
    (target / "old").write_text("")
    export(small_run, f"{target}/")
    assert not (target / "old").exists()
    assert os.listdir(tmp_path / "out") == ["export"]
    assert (target / "saved_model.pb").exists()


def test_files_of_a_killed_export_get_into_no_other(small_run, tmp_path):
    target, seen = tmp_path / "export", []

    def killed(directory):
        open(f"{directory}/stale", "w").close()
        seen.append(directory)

    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tf.io.gfile, "rmtree", kill)  # nothing is tidied up
        patched.setattr("yt8m.export._replace", kill)
        with pytest.raises(Killed):
            write_directory(str(target), "export.json", killed)
    assert os.listdir(seen[0]) == ["stale"]
    export(small_run, str(target))
    assert not (target / "stale").exists() and os.listdir(seen[0]) == ["stale"]


def test_a_directory_of_something_else_is_refused_untouched(small_run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for target in (other, tmp_path / "run", other / "thesis.tex"):
        with pytest.raises(UserError, match="choose another --output_dir"):
            export(small_run, str(target))
    assert os.listdir(other) == ["thesis.tex"]
    assert (tmp_path / "run" / "config.json").exists()


def test_a_directory_that_cannot_be_written_is_named(small_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/file/export"):
        export(small_run, str(tmp_path / "file" / "export"))


@pytest.mark.parametrize(
    "error, raised",
    [
        (tf.errors.ResourceExhaustedError(None, None, "No space left"), UserError),
        (OSError(28, "No space left"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_export_leaves_the_earlier_one_and_nothing_else(
    small_run, tmp_path, monkeypatch, error, raised
):
    target = tmp_path / "out" / "export"
    export(small_run, str(target))
    before = (target / "export.json").read_bytes()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(type(small_run.model), "save", fail)
    with pytest.raises(raised) as caught:
        export(small_run, str(target))
    if raised is UserError:
        assert f"{target} cannot be written: " in str(caught.value)
        assert "No space left" in str(caught.value)
    assert os.listdir(tmp_path / "out") == ["export"]
    assert (target / "export.json").read_bytes() == before


def test_a_model_that_keras_cannot_save_is_named(small_run, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("\nObject has no get_config.\nMore words.")

    monkeypatch.setattr(type(small_run.model), "save", refuse)
    with pytest.raises(UserError, match="LogisticModel cannot be saved") as caught:
        export(small_run, str(tmp_path / "export"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "export").exists()


def test_a_users_model_without_an_embedding_is_exported(tmp_path):
    module = tmp_path / "my_exported_models.py"
    module.write_text(
        """
import keras

from yt8m.model import VideoLevelModel
from yt8m.registry import register


@register(level="video", paper="none")
class TestExportPlainModel(VideoLevelModel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(self.num_classes)

    def classify(self, video, training=False):
        return {"logits": self.dense(video)}
"""
    )
    run = make_run(tmp_path / "run", "TestExportPlainModel", module=str(module))
    export(run, str(tmp_path / "export"))
    batch = make_batch("video")
    served = signature(tmp_path / "export", "serving_default")(**batch)
    assert set(served) == {"logits", "predictions"}
    np.testing.assert_allclose(
        served["logits"], np.asarray(run.model(batch)["logits"]), rtol=1e-5
    )
