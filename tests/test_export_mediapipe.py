"""The export for MediaPipe: inference's own scores, in the form its graphs take."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from test_export import make_run
from yt8m import runs, schema
from yt8m.cli.main import run as command
from yt8m.config import (
    DataConfig,
    FrameSelection,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from yt8m.data.records import encode_frame_record, parse_frame_batch
from yt8m.errors import UserError
from yt8m.export import export, export_mediapipe
from yt8m.inference.predict import load_saved_model
from yt8m.model import forward

CLASSES = 6
SELECTIONS = {
    "all": FrameSelection(),
    "four": FrameSelection(count=4, method="random"),
    "four later": FrameSelection(count=4, skip_first=2),
    "skipping": FrameSelection(skip_first=3),
    "scenes": FrameSelection(scene_threshold=1.0),
}


def make_mediapipe_run(
    folder, name="NetVLADModel", frames=None, features=None, precision="float32", **data
):
    """A run on the dataset's own features whose model has random weights."""
    data = DataConfig(
        "frame",
        features or dict(schema.FRAME_FEATURES),
        num_classes=CLASSES,
        max_frames=data.pop("max_frames", 20),
        frames=frames or FrameSelection(),
        **data,
    )
    args = {"clusters": 2, "hidden_size": 4} if name == "NetVLADModel" else {}
    config = RunConfig(
        ModelConfig(name, args), data, TrainingConfig("none", precision=precision)
    )
    model = runs.build_model(config.model, data, precision)
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape))
    os.makedirs(folder, exist_ok=True)
    runs.write_config(str(folder), config)
    runs.Checkpoints(str(folder)).save({"model": model}, 5, 50, 10)
    return runs.load_run(str(folder))


def videos(lengths, features=schema.FRAME_FEATURES, seed=1):
    """Bytes of each video, [T, size] a feature."""
    rng = np.random.default_rng(seed)
    return [
        {n: rng.integers(0, 256, (t, size), np.uint8) for n, size in features.items()}
        for t in lengths
    ]


def evaluated(run, given) -> np.ndarray:
    """The probabilities [B, C] of records of these videos, as evaluation reads them."""
    records = [encode_frame_record(f"v{i}", v, None) for i, v in enumerate(given)]
    batch, _ = parse_frame_batch(
        tf.constant(records),
        dataclasses.replace(run.config.data, segments=False),
        float_features=run.config.data.float_features,
    )
    logits = np.asarray(forward(run.model, batch)["logits"], np.float64)
    return 1 / (1 + np.exp(-logits))


def dequantized(video) -> np.ndarray:
    """The frames as MediaPipe has them: float32 [T, D], by the dataset's formula."""
    parts = [v.astype(np.float64) * (4 / 255) + (4 / 512 - 2) for v in video.values()]
    return np.concatenate(parts, axis=1).astype(np.float32)


def padded(given, longest=None) -> dict[str, np.ndarray]:
    """One batch of videos, with garbage behind the shorter ones."""
    frames = [dequantized(video) for video in given]
    longest = longest or max(len(f) for f in frames)
    batch = np.full((len(frames), longest, frames[0].shape[1]), np.nan, np.float32)
    for row, f in zip(batch, frames, strict=True):
        row[: len(f)] = f
    lengths = np.array([[len(f)] for f in frames], np.int32)
    return {"rgb_and_audio": batch, "num_frames": lengths}


class Graph:
    """What MediaPipe's calculators do with a SavedModel, in their own terms.

    A session loaded by the tag `serve`; the tensors of `serving_default` under their
    names in capitals.
    """

    def __init__(self, path):
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        signature = loaded.signature_def["serving_default"]
        self.inputs, self.outputs = (
            {name.upper(): info for name, info in infos.items()}
            for infos in (signature.inputs, signature.outputs)
        )

    def __call__(self, rgb_and_audio, num_frames) -> np.ndarray:
        return self.session.run(
            self.outputs["PREDICTIONS"].name,
            {
                self.inputs["RGB_AND_AUDIO"].name: rgb_and_audio,
                self.inputs["NUM_FRAMES"].name: num_frames,
            },
        )

    def windows(self, frames, size, overlap, batch=32) -> np.ndarray:
        """LappedTensorBufferCalculator, then TensorFlowInferenceCalculator."""
        starts = range(0, len(frames) - size + 1, size - overlap)
        found = [frames[None, s : s + size] for s in starts]
        rows = []
        for first in range(0, len(found), batch):
            part = found[first : first + batch]
            filled = part + [part[0]] * (batch - len(part))
            counts = np.full((batch, 1), size, np.int32)
            rows.append(self(np.concatenate(filled), counts)[: len(part)])
        return np.concatenate(rows)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Gives the run and the export with a frame selection, made once."""
    made = {}

    def get_export(selection="all"):
        if selection not in made:
            folder = tmp_path_factory.mktemp("mediapipe")
            run = make_mediapipe_run(folder / "run", frames=SELECTIONS[selection])
            export_mediapipe(run, str(folder / "saved_model"))
            made[selection] = run, Graph(folder / "saved_model")
        return made[selection]

    return get_export


# --- the signature -------------------------------------------------------------------


def test_the_signature_has_the_names_types_and_shapes_that_the_graphs_feed(exported):
    _, graph = exported()
    assert {
        name: (info.dtype, [d.size for d in info.tensor_shape.dim])
        for name, info in (graph.inputs | graph.outputs).items()
    } == {
        "RGB_AND_AUDIO": (tf.float32.as_datatype_enum, [-1, -1, 1152]),
        "NUM_FRAMES": (tf.int32.as_datatype_enum, [-1, 1]),
        "PREDICTIONS": (tf.float32.as_datatype_enum, [-1, CLASSES]),
    }


def test_zeros_give_probabilities(exported):
    _, graph = exported()
    found = graph(np.zeros((3, 7, 1152)), np.full((3, 1), 7))
    assert found.shape == (3, CLASSES)
    assert np.all((found > 0) & (found < 1))


# --- the same scores -----------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS)
def test_predictions_are_those_of_inference_on_the_same_bytes(exported, selection):
    run, graph = exported(selection)
    given = videos([12, 0, 1, 5, 4, 9])
    expected = evaluated(run, given)
    found = graph(**padded(given))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.1  # not all alike
    for i, video in enumerate(given):
        one = graph(**padded([video]))
        np.testing.assert_allclose(one, expected[i : i + 1], rtol=0, atol=1e-6)


def test_each_selection_of_frames_gives_other_scores(exported):
    batch = padded(videos([12]))
    scores = np.array([exported(s)[1](**batch)[0] for s in SELECTIONS])
    for i, row in enumerate(scores):
        for other in scores[:i]:
            assert np.abs(row - other).max() > 1e-4


def test_a_sliding_window_of_five_frames_is_scored_like_a_video_of_five(exported):
    run, graph = exported("four")
    (video,) = videos([40])
    expected = evaluated(
        run, [{n: v[s : s + 5] for n, v in video.items()} for s in range(36)]
    )
    found = graph.windows(dequantized(video), size=5, overlap=4)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_frames_beyond_the_longest_video_and_counts_beyond_the_frames_are_cut(
    exported,
):
    run, graph = exported()
    given = videos([25])  # max_frames is 20
    expected = evaluated(run, given)
    np.testing.assert_allclose(graph(**padded(given)), expected, rtol=0, atol=1e-6)
    short = padded(videos([3]))
    expected = graph(**short)
    for count, equal in ((4, True), (1000, True), (2, False)):
        found = graph(short["rgb_and_audio"], np.array([[count]]))
        assert np.array_equal(found, expected) == equal
    nothing = graph(short["rgb_and_audio"], np.array([[0]]))
    negative = graph(short["rgb_and_audio"], np.array([[-3]]))
    np.testing.assert_array_equal(negative, nothing)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_trained_on_segments_is_scored_on_its_windows(tmp_path, precision):
    name = "FrameLevelLogisticModel"
    run = make_mediapipe_run(
        tmp_path / "run", name, precision=precision, segments=True, max_frames=300
    )
    export_mediapipe(run, str(tmp_path / "out"))
    given = videos([5, 5, 3])
    found = Graph(tmp_path / "out")(**padded(given))
    tolerance = 1e-6 if precision == "float32" else 1e-2
    np.testing.assert_allclose(found, evaluated(run, given), rtol=0, atol=tolerance)


def test_records_of_a_model_trained_on_segments_are_served_without_ratings(tmp_path):
    run = make_mediapipe_run(tmp_path / "run", "FrameLevelLogisticModel", segments=True)
    export(run, str(tmp_path / "out"))
    given = videos([5, 2])
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    records = [encode_frame_record(f"v{i}", v, None) for i, v in enumerate(given)]
    served = loaded.signatures["serve_examples"](tf.constant(records))
    best = -np.sort(-evaluated(run, given), axis=1)
    np.testing.assert_allclose(served["predictions"], best, rtol=1e-5)


# --- other models --------------------------------------------------------------------


@pytest.mark.parametrize(
    "features", [{"rgb": 1024}, {"audio": 128, "rgb": 1024}, {"own": 3, "other": 2}]
)
def test_other_features_give_their_own_width_in_their_order_and_a_warning(
    tmp_path, caplog, features
):
    run = make_mediapipe_run(
        tmp_path / "run",
        "FrameLevelLogisticModel",
        features=features,
        float_features=["own"] if "own" in features else [],
    )
    export_mediapipe(run, str(tmp_path / "out"))
    assert "MediaPipe's own graphs feed rgb 1024, audio 128" in caplog.text
    for name, size in features.items():
        assert f"{name} {size}" in caplog.text
    record = json.loads((tmp_path / "out" / "export_mediapipe.json").read_text())
    assert record["signatures"] == {
        "serving_default": {
            "inputs": {
                "rgb_and_audio": f"float32 [?, ?, {sum(features.values())}]",
                "num_frames": "int32 [?, 1]",
            },
            "outputs": {"predictions": f"float32 [?, {CLASSES}]"},
        }
    }
    (video,) = videos([4], features)
    batch = padded([video])
    if "own" in features:  # floats are taken as they are
        video = video | {"own": batch["rgb_and_audio"][0, :, :3]}
    found = Graph(tmp_path / "out")(**batch)
    np.testing.assert_allclose(found, evaluated(run, [video]), rtol=0, atol=1e-6)


def test_the_datasets_own_features_give_no_warning(tmp_path, caplog):
    run = make_mediapipe_run(tmp_path / "run", "FrameLevelLogisticModel")
    export_mediapipe(run, str(tmp_path / "out"))
    assert "MediaPipe" not in caplog.text


def test_a_video_level_model_is_refused_in_one_line(tmp_path, capsys):
    make_run(tmp_path / "run", "MoeModel")
    flags = [f"--train_dir={tmp_path}/run", f"--output_dir={tmp_path}/out"]
    assert command("export-mediapipe", flags) == 1
    said = capsys.readouterr().err
    assert "MoeModel, a video-level model" in said
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == ["run"]


# --- the command and its directory ---------------------------------------------------


def test_the_command_writes_the_named_checkpoint_and_replaces_its_own_export(
    tmp_path, capsys
):
    run = make_mediapipe_run(tmp_path / "run", "FrameLevelLogisticModel")
    for v in run.model.trainable_variables:
        v.assign(v * 2)
    runs.Checkpoints(str(tmp_path / "run")).save({"model": run.model}, 9, 90, 10)
    flags = [f"--train_dir={tmp_path}/run/", f"--output_dir={tmp_path}/out/"]
    batch = padded(videos([6]))
    found = {}
    for which in ("latest", "5", "9"):
        assert command("export-mediapipe", [*flags, f"--checkpoint={which}"]) == 0
        found[which] = Graph(tmp_path / "out")(**batch)
        assert "exported for MediaPipe to" in capsys.readouterr().out
    np.testing.assert_array_equal(found["latest"], found["9"])
    assert np.abs(found["5"] - found["9"]).max() > 1e-4
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]
    assert command("export-mediapipe", flags[:1]) == 1
    assert "--output_dir" in capsys.readouterr().err


def test_neither_kind_of_export_replaces_the_other(tmp_path):
    run = make_mediapipe_run(tmp_path / "run", "FrameLevelLogisticModel")
    export(run, str(tmp_path / "serving"))
    export_mediapipe(run, str(tmp_path / "mediapipe"))
    before = {
        p: p.read_bytes()
        for kind in ("serving", "mediapipe")
        for p in (tmp_path / kind).rglob("*.json")
    }
    for target in ("serving", "run"):
        with pytest.raises(UserError, match="choose another --output_dir"):
            export_mediapipe(run, str(tmp_path / target))
    with pytest.raises(UserError, match="choose another --output_dir"):
        export(run, str(tmp_path / "mediapipe"))
    assert all(p.read_bytes() == content for p, content in before.items())


def test_an_export_for_mediapipe_is_no_saved_model_for_inference(tmp_path):
    run = make_mediapipe_run(tmp_path / "run", "FrameLevelLogisticModel")
    export_mediapipe(run, str(tmp_path / "out"))
    with pytest.raises(UserError, match=f"--saved_model={tmp_path}/out cannot be loa"):
        load_saved_model(str(tmp_path / "out"))
