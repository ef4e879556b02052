"""Segments at inference: every window once, as if it were a video of 5 frames."""

import dataclasses
import io
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from test_export import CLASSES, FRAME_FEATURES, make_run
from yt8m import runs
from yt8m.cli import main
from yt8m.config import FrameSelection
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_frame_record, write_records
from yt8m.data.segments import write_class_ids
from yt8m.errors import DataError
from yt8m.export import export
from yt8m.inference import predict as predict_module
from yt8m.inference.predict import (
    gather_windows,
    load_saved_model,
    predict_segments,
    segment_function,
)
from yt8m.inference.segments import SegmentRanking, merge_rankings
from yt8m.inference.windows import cut_windows
from yt8m.model import forward
from yt8m.progress import Progress
from yt8m.registry import get

runs.load_registries()
# Frames of the videos in each of three shards.
SHARDS = ((7, 0, 5), (1,), (13, 6, 0, 12, 4))
MAX_FRAMES = 13
WANTED = np.array([1, 2, 5])


def make_videos() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(6)
    return {
        f"s{shard}v{i}": {
            name: rng.integers(0, 256, (frames, size), np.uint8)
            for name, size in FRAME_FEATURES.items()
        }
        for shard, lengths in enumerate(SHARDS)
        for i, frames in enumerate(lengths)
    }


VIDEOS = make_videos()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("shards")
    files = []
    for shard in range(len(SHARDS)):
        files.append(str(folder / f"{shard}.tfrecord"))
        own = [(i, v) for i, v in VIDEOS.items() if i.startswith(f"s{shard}")]
        write_records(files[-1], [encode_frame_record(i, v, [1]) for i, v in own])
    return files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Gives the run of a model, made once; its weights are those of a trained one."""
    made = {}

    def get_trained(name):
        if name not in made:
            made[name] = make_segment_run(tmp_path_factory.mktemp("run"), name)
        return made[name]

    return get_trained


def make_segment_run(directory, name, frames=None):
    run = make_run(directory, name, frames=frames)
    for v in run.model.trainable_variables:
        v.assign(v / np.sqrt(v.shape[0]))
    data = dataclasses.replace(run.config.data, max_frames=MAX_FRAMES, segments=True)
    runs.write_config(str(directory), dataclasses.replace(run.config, data=data))
    runs.Checkpoints(str(directory)).save({"model": run.model}, 6, 60, 10)
    return runs.load_run(str(directory))


def silent() -> Progress:
    return Progress(stream=io.StringIO())


def reader_of(run, files, batch_size=4, **changes) -> Reader:
    whole = {"frames": FrameSelection(), "segments": False, **changes}
    data = dataclasses.replace(run.config.data, **whole)
    return Reader(files, data, batch_size=batch_size)


def windows_of(frames: int) -> list[tuple[int, int]]:
    """Start and length of each, counted one by one."""
    found = []
    while (start := 5 * len(found)) < frames:
        found.append((start, min(5, frames - start)))
    return found


def cut_alone(features: dict[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
    return {name: values[start : start + 5] for name, values in features.items()}


def read_alone(run, folder, selection: FrameSelection) -> dict[str, np.ndarray]:
    """Logits [C] of every window, written as a video of its own and read alone."""
    path = str(folder / "windows.tfrecord")
    windows = [
        encode_frame_record(f"{video}:{start}", cut_alone(features, start), [1])
        for video, features in VIDEOS.items()
        for start, _ in windows_of(len(features["rgb"]))
    ]
    write_records(path, windows)
    reader = reader_of(run, [path], batch_size=1, frames=selection)
    return {
        host["id"].numpy()[0].decode(): forward(run.model, batch)["logits"].numpy()[0]
        for batch, host in reader.batches()
    }


class Kept:
    """A ranking that keeps everything."""

    def __init__(self, classes):
        self.classes, self.found, self.sizes = classes, {}, []

    def add(self, video_ids, rows, starts, logits, dropped=False):
        self.sizes.append(len(rows))
        for row, start, values in zip(rows, starts, logits, strict=True):
            self.found[f"{video_ids[row].decode()}:{start}"] = values


def command(*arguments) -> int:
    return main.run("inference", [str(a) for a in arguments])


# --- what is predicted ---------------------------------------------------------------


def test_windows_are_cut_by_hand():
    rows, starts, lengths = cut_windows(np.array([0, 1, 12, 5, 0, 6]))
    assert rows.tolist() == [1, 2, 2, 2, 3, 5, 5]
    assert starts.tolist() == [0, 0, 5, 10, 0, 0, 5]
    assert lengths.tolist() == [1, 5, 5, 2, 5, 5, 1]


@pytest.mark.parametrize("frames", [[], [0, 0]])
def test_videos_without_frames_have_no_window(frames):
    assert [len(column) for column in cut_windows(np.array(frames, int))] == [0, 0, 0]


@pytest.mark.parametrize(
    "name", ["FrameLevelLogisticModel", "NetVLADModel", "DbofModel", "LstmModel"]
)
def test_a_window_is_predicted_as_a_video_of_its_frames_read_alone(
    trained, shards, tmp_path, monkeypatch, name
):
    run = trained(name)
    expected = read_alone(run, tmp_path, FrameSelection())
    assert len(expected) == 13
    for batch_size, at_once in ((1, 512), (4, 3), (64, 512)):
        monkeypatch.setattr(predict_module, "_WINDOWS_AT_ONCE", at_once)
        kept = Kept(WANTED)
        reader = reader_of(run, shards, batch_size)
        count = predict_segments(run.model, reader, kept, progress=silent())
        assert count == len(VIDEOS)
        assert list(kept.found) == list(expected)
        for segment, logits in kept.found.items():
            wanted = expected[segment][WANTED]
            np.testing.assert_allclose(logits, wanted, rtol=1e-6, atol=1e-6)


def test_an_export_predicts_the_windows_that_its_run_predicts(
    trained, shards, tmp_path
):
    run = trained("NetVLADModel")
    export(run, str(tmp_path / "export"))
    found = []
    for model in (run.model, load_saved_model(str(tmp_path / "export"))):
        kept = Kept(WANTED)
        predict_segments(model, reader_of(run, shards), kept, progress=silent())
        found.append(kept.found)
    assert list(found[0]) == list(found[1])
    for segment, logits in found[0].items():
        np.testing.assert_allclose(found[1][segment], logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_a_model_of_few_frames_takes_them_evenly_from_each_window(
    trained, shards, tmp_path, count
):
    run = trained("FrameLevelLogisticModel")
    expected = read_alone(run, tmp_path, FrameSelection(count))
    every = read_alone(run, tmp_path, FrameSelection())
    kept = Kept(np.arange(CLASSES))
    reader = reader_of(run, shards)
    predict_segments(run.model, reader, kept, most_frames=count, progress=silent())
    differ = 0
    for segment, logits in kept.found.items():
        np.testing.assert_allclose(logits, expected[segment], rtol=1e-6, atol=1e-6)
        differ += not np.allclose(logits, every[segment], atol=1e-4)
    assert bool(differ) == (count < 5)


def test_garbage_in_the_padding_and_floats_are_dealt_with(trained):
    run = trained("FrameLevelLogisticModel")
    rng = np.random.default_rng(0)
    rgb = rng.normal(size=(2, 7, 16)).astype(np.float32)
    audio = rng.integers(0, 256, (2, 7, 4), np.uint8)
    lengths = np.array([6, 2], np.int32)
    windows = cut_windows(lengths)
    function = segment_function(run.model, WANTED)
    found = []
    for garbage in (0.0, np.nan):
        rgb[0, 6:], rgb[1, 2:] = garbage, garbage
        batch = {"rgb": rgb, "audio": audio, "num_frames": lengths}
        batch = {name: tf.constant(values) for name, values in batch.items()}
        inputs = gather_windows(batch, *map(tf.constant, windows))
        found.append(function(inputs).numpy())
    assert found[0].shape == (3, 3)
    np.testing.assert_array_equal(found[0], found[1])


def test_windows_reach_the_model_in_chunks_whatever_the_batch(shards, monkeypatch):
    class Mean:
        input_names = ("rgb", "audio", "num_frames")

        def __call__(self, inputs, training):
            assert inputs["rgb"].dtype == tf.uint8
            rgb = tf.ensure_shape(inputs["rgb"], (None, 5, 16))
            rgb = tf.cast(rgb, tf.float32)
            return {"logits": tf.reduce_mean(rgb, 1)}

    monkeypatch.setattr(predict_module, "_WINDOWS_AT_ONCE", 5)
    kept = Kept(WANTED)
    data = dataclasses.replace(
        runs.default_data_config("FrameLevelLogisticModel"),
        features=FRAME_FEATURES,
        num_classes=CLASSES,
    )
    reader = Reader(shards, data, batch_size=64)
    predict_segments(Mean(), reader, kept, progress=silent())
    assert kept.sizes == [5, 5, 3]


def test_progress_counts_videos_those_without_frames_too(trained, shards):
    run = trained("FrameLevelLogisticModel")
    for batch_size in (1, 64):
        progress = silent()
        predict_segments(
            run.model,
            reader_of(run, shards, batch_size),
            Kept(WANTED),
            progress=progress,
        )
        assert progress.done == len(VIDEOS) == 9


def test_weights_that_are_not_finite_are_found_and_the_segment_named(
    trained, shards, tmp_path
):
    run = make_segment_run(tmp_path, "FrameLevelLogisticModel")
    run.model.trainable_variables[1].assign(np.full(CLASSES, np.nan))
    ranking = SegmentRanking(WANTED)
    with pytest.raises(DataError, match="s0v0:0 are not finite"):
        predict_segments(run.model, reader_of(run, shards), ranking, progress=silent())


# --- the command ---------------------------------------------------------------------


def expected_ranking(run, folder, most=None) -> str:
    """The submission, from windows read alone and sorted one by one."""
    logits = read_alone(run, folder, FrameSelection())
    lines = ["Class,Segments"]
    for c in WANTED:
        best = sorted(logits, key=lambda s: -logits[s][c])[:most]
        lines.append(f"{c},{' '.join(best)}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def segment_run(trained):
    return trained("FrameLevelLogisticModel")


@pytest.fixture
def flags(segment_run, shards, tmp_path):
    write_class_ids(str(tmp_path / "ids.csv"), [5, 1, 2])
    pattern = f"{os.path.dirname(shards[0])}/*.tfrecord"
    return [
        "--segment_labels",
        f"--input_data_pattern={pattern}",
        f"--train_dir={segment_run.directory}",
        f"--output_file={tmp_path / 'segments.csv'}",
        "--batch_size=2",
    ]


def test_the_command_writes_the_whole_ranking_of_the_classes_of_a_file(
    segment_run, flags, tmp_path, capsys
):
    ids = f"--segment_label_ids_file={tmp_path / 'ids.csv'}"
    assert command(*flags, ids) == 0
    text = (tmp_path / "segments.csv").read_text()
    assert text == expected_ranking(segment_run, tmp_path)
    captured = capsys.readouterr()
    assert "13 segments of 9 videos predicted by" in captured.out
    assert f"3 classes of segments, from {tmp_path / 'ids.csv'}" in captured.err
    assert command(*flags, ids, "--segment_max_pred=4") == 0
    text = (tmp_path / "segments.csv").read_text()
    assert text == expected_ranking(segment_run, tmp_path, 4)


def test_the_classes_may_be_those_that_the_run_saw(segment_run, flags, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(segment_run.directory, copy)
    write_class_ids(str(copy / runs.SEGMENT_CLASSES_FILE), WANTED)
    assert command(*flags, f"--train_dir={copy}/") == 0
    text = (tmp_path / "segments.csv").read_text()
    assert text == expected_ranking(segment_run, tmp_path)


def test_without_classes_one_line_says_how_to_give_them(flags, tmp_path, capsys):
    assert command(*flags) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    for way in (
        "--segment_label_ids_file",
        "yt8m count --segments --output_file=",
        "eval.py --segment_labels",
    ):
        assert way in error
    assert not (tmp_path / "segments.csv").exists()


def test_a_class_that_the_model_does_not_have_is_named(flags, tmp_path, capsys):
    write_class_ids(str(tmp_path / "ids.csv"), [3, CLASSES])
    assert command(*flags, f"--segment_label_ids_file={tmp_path / 'ids.csv'}") == 1
    assert f"class {CLASSES} is not one of the model's 7" in capsys.readouterr().err


def test_an_export_and_a_model_of_few_frames_rank_segments_too(
    segment_run, flags, shards, tmp_path
):
    export(segment_run, str(tmp_path / "export"))
    saved = [f"--saved_model={tmp_path / 'export'}"]
    ids = f"--segment_label_ids_file={tmp_path / 'ids.csv'}"
    assert command(*flags, *saved, ids) == 0
    text = (tmp_path / "segments.csv").read_text()
    assert text == expected_ranking(segment_run, tmp_path)

    few = make_segment_run(
        tmp_path / "few", "FrameLevelLogisticModel", FrameSelection(2, skip_first=3)
    )
    assert command(*flags, f"--train_dir={few.directory}", ids) == 0
    logits = read_alone(few, tmp_path, FrameSelection(2))
    best = max(logits, key=lambda s: logits[s][5])
    line = (tmp_path / "segments.csv").read_text().splitlines()[-1]
    assert line.startswith(f"5,{best} ")
    text = (tmp_path / "segments.csv").read_text()
    assert (
        command(*flags, f"--train_dir={few.directory}", ids, "--eval_frames=all") == 0
    )
    assert text != (tmp_path / "segments.csv").read_text()


def test_shards_are_merged_to_the_ranking_of_all(segment_run, flags, tmp_path, capsys):
    flags.append(f"--segment_label_ids_file={tmp_path / 'ids.csv'}")
    parts = []
    for i in range(2):
        assert command(*flags, "--num_shards=2", f"--shard_index={i}") == 0
        parts.append(str(tmp_path / f"segments-0000{i}-of-00002.csv"))
        said = capsys.readouterr().out
        assert parts[-1] in said and "with scores for `yt8m merge`" in said
    assert not (tmp_path / "segments.csv").exists()
    merge = [f"--input_files={','.join(parts)}", f"--output_file={tmp_path}/merged.csv"]
    assert main.run("merge", merge) == 0
    text = (tmp_path / "merged.csv").read_text()
    assert text == expected_ranking(segment_run, tmp_path)
    whole = f"--output_file={tmp_path / 'whole.tfrecord'}"
    assert command(*flags, whole, "--output_format=tfrecord") == 0
    merge_rankings([str(tmp_path / "whole.tfrecord")], str(tmp_path / "again.csv"))
    assert (tmp_path / "again.csv").read_text() == text


def test_top_k_changes_nothing_and_is_said_to(flags, tmp_path, capsys):
    flags.append(f"--segment_label_ids_file={tmp_path / 'ids.csv'}")
    texts = []
    for more in ([], ["--top_k=1"]):
        assert command(*flags, *more) == 0
        texts.append((tmp_path / "segments.csv").read_text())
        said = "--top_k=1 has no effect on segments" in capsys.readouterr().err
        assert said == bool(more)
    assert texts[0] == texts[1]


def test_a_video_level_model_is_refused(flags, tmp_path, capsys):
    run = make_run(tmp_path / "video", "MoeModel")
    assert get("MoeModel").level == "video"
    assert command(*flags, f"--train_dir={run.directory}") == 1
    error = capsys.readouterr().err
    assert "--segment_labels needs a frame-level model" in error
    assert run.checkpoint.path in error


def test_an_error_leaves_neither_ranking_nor_listing(flags, shards, tmp_path, capsys):
    bad = tmp_path / "bad.tfrecord"
    features = {"rgb": np.zeros((3, 16), np.uint8), "audio": np.zeros((2, 4), np.uint8)}
    write_records(str(bad), [encode_frame_record("bad", features, None)])
    (tmp_path / "names.csv").write_text("Index,Name\n1,Game\n")
    before = sorted(os.listdir(tmp_path))
    assert (
        command(
            *flags,
            f"--input_data_pattern={shards[0]},{bad}",
            f"--segment_label_ids_file={tmp_path / 'ids.csv'}",
            f"--vocabulary={tmp_path / 'names.csv'}",
            f"--names={tmp_path / 'readable.csv'}",
        )
        == 1
    )
    assert "record 0 (id bad)" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before
