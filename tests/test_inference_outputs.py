"""Inference writes more than submissions: parts, listings, embeddings."""

import csv
import io
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from test_export import CLASSES, VIDEO_FEATURES, make_run
from test_predict import Batches, make_shards, read_records
from yt8m.cli import main
from yt8m.data.predictions import Predictions, PredictionsWriter
from yt8m.data.records import (
    decode_record,
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.errors import DataError, UserError
from yt8m.export import export
from yt8m.inference.embeddings import write_embeddings
from yt8m.inference.listing import ListingWriter, merge_windows
from yt8m.inference.predict import ExportedModel, shard_files, shard_path
from yt8m.inference.submission import read_submission
from yt8m.model import forward
from yt8m.progress import Progress

NAMES = {1: "Game", 2: 'Cooking, "slow"', 3: "Žižkov"}


def name_of(c: int) -> str:
    return NAMES.get(c, f"class {c}")


def run_command(name, *arguments) -> int:
    return main.run(name, [str(a) for a in arguments])


def silent() -> Progress:
    return Progress(stream=io.StringIO())


@pytest.fixture(scope="module")
def frame_run(tmp_path_factory):
    """A frame-level run and its shards."""
    folder = tmp_path_factory.mktemp("frame")
    return make_run(folder / "run", "NetVLADModel"), make_shards(folder, "frame")


@pytest.fixture(scope="module")
def video_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    return make_run(folder / "run", "MoeModel"), make_shards(folder, "video")


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocabulary.csv"
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([("Index", "Name"), *NAMES.items()])
    return path


def flags_of(run, files, output) -> list[str]:
    return [
        f"--train_dir={run.directory}",
        f"--input_data_pattern={','.join(files)}",
        f"--output_file={output}",
        "--batch_size=4",
    ]


# --- parts of the files --------------------------------------------------------------


@pytest.mark.parametrize("count, shards", [(1, 1), (7, 1), (7, 3), (10, 4), (5, 5)])
def test_parts_of_the_files_are_contiguous_complete_and_balanced(count, shards):
    files = [f"f{i:02d}" for i in range(count)]
    parts = [shard_files(files, shards, i) for i in range(shards)]
    assert sum(parts, []) == files
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)


@pytest.mark.parametrize(
    "shards, index, said",
    [(3, 3, "must be 0 .. 2"), (3, -1, "must be 0 .. 2"), (5, 0, "--num_shards=4")],
)
def test_parts_that_cannot_be_are_refused(shards, index, said):
    with pytest.raises(UserError, match=said):
        shard_files(["a", "b", "c", "d"], shards, index)


@pytest.mark.parametrize(
    "given, path",
    [
        ("out/s.csv", "out/s-00003-of-00010.csv"),
        ("gs://b/run.2/s.csv.gz", "gs://b/run.2/s-00003-of-00010.csv.gz"),
        ("run.2/scores", "run.2/scores-00003-of-00010"),
        ("s3.csv", "s3-00003-of-00010.csv"),
        ("s-3-of-10.csv", "s-3-of-10.csv"),
        ("s-00003-of-00010.csv", "s-00003-of-00010.csv"),
    ],
)
def test_a_part_writes_under_its_own_number(given, path):
    assert shard_path(given, 10, 3) == path
    assert shard_path(given, 1, 0) == given


def test_the_name_of_another_part_is_refused():
    with pytest.raises(UserError, match="s-2-of-10.csv is the name of another shard"):
        shard_path("s-2-of-10.csv", 10, 3)


def test_parts_one_after_the_other_are_the_whole_submission(
    video_run, tmp_path, vocabulary, capsys
):
    run, files = video_run
    flags = flags_of(run, files, tmp_path / "s.csv")
    flags += [f"--vocabulary={vocabulary}", f"--names={tmp_path / 'names.json'}"]
    flags.append("--batch_size=1")  # the last digit depends on a video's neighbours
    assert run_command("inference", *flags) == 0
    whole = (tmp_path / "s.csv").read_text().splitlines()
    listed = (tmp_path / "names.json").read_text()
    lines, names = [], ""
    for i in range(2):
        part = ["--num_shards=2", f"--shard_index={i}"]
        assert run_command("inference", *flags, *part) == 0
        path = tmp_path / f"s-0000{i}-of-00002.csv"
        assert str(path) in capsys.readouterr().out
        header, *rows = path.read_text().splitlines()
        assert header == whole[0] and rows
        lines += rows
        names += (tmp_path / f"names-0000{i}-of-00002.json").read_text()
    assert lines == whole[1:] and len(lines) == 23
    assert names == listed


# --- listings ------------------------------------------------------------------------


def test_windows_of_a_class_in_a_row_become_one_span_with_its_best_score():
    windows = [
        (0, 5, [1, 2], [0.9, 0.5]),
        (5, 10, [2, 1], [0.8, 0.2]),
        (10, 15, [2, 3], [0.6, 0.1]),
        (15, 17, [1, 3], [0.4, 0.3]),
    ]
    assert merge_windows(windows) == [
        (0, 10, 1, 0.9),
        (0, 15, 2, 0.8),
        (10, 17, 3, 0.3),
        (15, 17, 1, 0.4),
    ]
    assert merge_windows([]) == []


def test_a_video_listing_has_a_row_for_each_prediction(tmp_path):
    path = str(tmp_path / "readable.csv")
    with ListingWriter(path, name_of) as listing:
        for ids in ([b"a", b"b"], [b"c,d"]):
            classes = np.array([[2, 0], [3, 1]])[: len(ids)]
            scores = np.array([[0.98765432, 0.5], [1, 1e-7]], np.float32)[: len(ids)]
            listing.write_videos(ids, classes, scores)
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.reader(f))
    assert rows == [
        ["VideoId", "Rank", "Class", "Name", "Score"],
        ["a", "1", "2", 'Cooking, "slow"', "0.987654"],
        ["a", "2", "0", "class 0", "0.5"],
        ["b", "1", "3", "Žižkov", "1"],
        ["b", "2", "1", "Game", "1e-07"],
        ["c,d", "1", "2", 'Cooking, "slow"', "0.987654"],
        ["c,d", "2", "0", "class 0", "0.5"],
    ]
    assert os.listdir(tmp_path) == ["readable.csv"]


def pieces() -> list[tuple[np.ndarray, ...]]:
    """Windows of videos 0 (7 s), 1 (none) and 2 (3 s), cut within video 0."""
    columns = [
        np.array(c)
        for c in (
            [0, 0, 2],
            [0, 5, 0],
            [5, 7, 3],
            [[1], [1], [3]],
            [[0.5], [0.75], [1]],
        )
    ]
    return [tuple(c[:1] for c in columns), tuple(c[1:] for c in columns)]


def test_a_timeline_has_a_row_for_each_span(tmp_path):
    path = str(tmp_path / "readable.csv")
    with ListingWriter(path, name_of, segments=True) as listing:
        listing.write_segments([b"a", b"b", b"c"], pieces())
    with open(path, encoding="utf-8", newline="") as f:
        assert list(csv.reader(f)) == [
            ["VideoId", "Start", "End", "Class", "Name", "Score"],
            ["a", "0", "7", "1", "Game", "0.75"],
            ["c", "0", "3", "3", "Žižkov", "1"],
        ]


@pytest.mark.parametrize("extension", ["json", "jsonl"])
def test_a_json_listing_has_an_object_for_each_video(tmp_path, extension):
    path = tmp_path / f"readable.{extension}"
    with ListingWriter(str(path), name_of, segments=True) as listing:
        listing.write_segments([b"a", b"b", b"c"], pieces())
    game = {"start": 0, "end": 7, "class": 1, "name": "Game", "score": 0.75}
    zizkov = {"start": 0, "end": 3, "class": 3, "name": "Žižkov", "score": 1.0}
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        {"video_id": "a", "segments": [game]},
        {"video_id": "b", "segments": []},
        {"video_id": "c", "segments": [zizkov]},
    ]
    with ListingWriter(str(path), name_of) as listing:
        listing.write_videos([b"a"], np.array([[2]]), np.array([[0.25]]))
    cooking = {"rank": 1, "class": 2, "name": 'Cooking, "slow"', "score": 0.25}
    assert json.loads(path.read_text("utf-8")) == {
        "video_id": "a",
        "classes": [cooking],
    }


def test_a_listing_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="readable.txt must end in .csv"):
        ListingWriter(str(tmp_path / "readable.txt"), name_of)


def test_a_listing_that_cannot_be_written_is_named_and_nothing_is_left(
    tmp_path, known_temporary_names
):
    with pytest.raises(UserError, match=r"none/r\.csv cannot be written"):
        ListingWriter(str(tmp_path / "none" / "r.csv"), name_of).__enter__()
    os.symlink("/dev/full", tmp_path / "r.json.tmp")
    line = np.arange(1000)[None]
    with (
        pytest.raises(UserError, match=r"r\.json cannot be written: .*No space"),
        ListingWriter(str(tmp_path / "r.json"), name_of) as listing,
    ):
        for _ in range(200):
            listing.write_videos([b"a"], line, line)
    assert os.listdir(tmp_path) == []


def test_the_command_lists_what_the_submission_holds(
    frame_run, tmp_path, vocabulary, capsys
):
    run, files = frame_run
    flags = flags_of(run, files, tmp_path / "s.csv")
    names = [f"--vocabulary={vocabulary}", f"--names={tmp_path / 'r.csv'}"]
    assert run_command("inference", *flags, *names, "--top_k=2") == 0
    with open(tmp_path / "r.csv", encoding="utf-8", newline="") as f:
        _, *rows = csv.reader(f)
    expected = [
        [video.decode(), str(rank), str(c), name_of(c), f"{score:g}"]
        for video, classes, scores in read_submission(str(tmp_path / "s.csv"))
        for rank, (c, score) in enumerate(zip(classes, scores, strict=True), 1)
    ]
    assert rows == expected and len(rows) == 46


def test_the_command_lists_the_best_classes_of_each_window_as_a_timeline(
    frame_run, tmp_path, vocabulary, capsys
):
    run, files = frame_run
    (tmp_path / "ids.csv").write_text("Index\n6\n1\n3\n")
    flags = [
        *flags_of(run, files, tmp_path / "s.csv"),
        "--segment_labels",
        f"--segment_label_ids_file={tmp_path / 'ids.csv'}",
        f"--vocabulary={vocabulary}",
        f"--names={tmp_path / 'r.json'}",
        "--top_k=1",
    ]
    assert run_command("inference", *flags) == 0
    assert "no effect" not in capsys.readouterr().err
    lines = (tmp_path / "r.json").read_text("utf-8").splitlines()
    listed = [json.loads(line) for line in lines]
    records = read_records(files)
    assert [video["video_id"] for video in listed] == [r.id for r in records]
    for video, record in zip(listed, records, strict=True):
        frames = len(record.features["rgb"])
        best = []
        for start in range(0, frames, 5):
            window = {k: v[None, start : start + 5] for k, v in record.features.items()}
            length = min(5, frames - start)
            window["num_frames"] = np.array([length], np.int32)
            logits = forward(run.model, window)["logits"].numpy()[0]
            c = max((1, 3, 6), key=lambda c: logits[c])
            best.append((start, start + length, c, 1 / (1 + np.exp(-logits[c]))))
        if len(best) == 2 and best[0][2] == best[1][2]:
            best = [(0, frames, best[0][2], max(best[0][3], best[1][3]))]
        assert [(s["start"], s["end"], s["class"]) for s in video["segments"]] == [
            b[:3] for b in best
        ]
        for span, b in zip(video["segments"], best, strict=True):
            assert span["name"] == name_of(b[2])
            assert span["score"] == pytest.approx(b[3], rel=1e-4)


# --- embeddings ----------------------------------------------------------------------


@pytest.mark.parametrize("exported", [False, True])
def test_embeddings_are_the_models_in_file_order_with_the_labels(
    frame_run, tmp_path, exported, capsys
):
    run, files = frame_run
    flags = flags_of(run, files, tmp_path / "e.tfrecord")
    if exported:
        export(run, str(tmp_path / "export"))
        flags.append(f"--saved_model={tmp_path / 'export'}")
    assert run_command("inference", *flags, "--output=embeddings") == 0
    said = capsys.readouterr().out
    assert "23 embeddings" in said
    assert "--feature_names=embedding --feature_sizes=8" in said
    found, records = read_records([str(tmp_path / "e.tfrecord")]), read_records(files)
    assert [r.id for r in found] == [r.id for r in records]
    for embedded, record in zip(found, records, strict=True):
        one = {k: v[None] for k, v in record.features.items()}
        one["num_frames"] = np.array([len(record.features["rgb"])], np.int32)
        expected = forward(run.model, one)["embedding"].numpy()[0]
        assert embedded.level == "video" and embedded.labels == record.labels
        assert list(embedded.features) == ["embedding"]
        np.testing.assert_allclose(
            embedded.features["embedding"], expected, rtol=1e-4, atol=1e-5
        )


def test_a_video_level_model_trains_on_embeddings(frame_run, tmp_path, capsys):
    run, files = frame_run
    path = tmp_path / "e.tfrecord"
    flags = flags_of(run, files, path)
    assert run_command("inference", *flags, "--output=embeddings") == 0
    train = [
        "--model=LogisticModel",
        "--feature_names=embedding",
        "--feature_sizes=8",
        f"--num_classes={CLASSES}",
        f"--train_data_pattern={path}",
        f"--train_dir={tmp_path / 'again'}",
        "--batch_size=8",
        "--num_epochs=1",
    ]
    assert run_command("train", *train) == 0
    assert (tmp_path / "again" / "checkpoints" / "step-00000003").exists()


@pytest.mark.parametrize(
    "given, written",
    [
        ([None, None], [None, None]),
        ([[], [2]], [[], [2]]),
        ([[2], []], [[2], []]),
        ([None, [0, 3]], [None, [0, 3]]),
        ([[CLASSES + 7], [1]], [[CLASSES + 7], [1]]),  # of a larger vocabulary
    ],
)
def test_embeddings_have_labels_where_the_input_has_them(tmp_path, given, written):
    run = make_run(tmp_path / "run", "LogisticModel")
    values = {n: np.ones(size, np.float32) for n, size in VIDEO_FEATURES.items()}
    records = [encode_video_record(f"v{i}", values, own) for i, own in enumerate(given)]
    write_records(str(tmp_path / "in.tfrecord"), records)
    flags = flags_of(run, [str(tmp_path / "in.tfrecord")], tmp_path / "out.tfrecord")
    assert run_command("inference", *flags, "--output=embeddings") == 0
    found = read_records([str(tmp_path / "out.tfrecord")])
    assert [r.labels for r in found] == written


class NoEmbedding:
    input_names = ("mean_rgb", "mean_audio")

    def __call__(self, inputs, training):
        return {"logits": inputs["mean_rgb"]}


class Infinite(NoEmbedding):
    def __call__(self, inputs, training):
        return {"logits": 0, "embedding": inputs["mean_rgb"] / 0}


class FiledBatches(Batches):
    """Ready batches that look as if read from a file."""

    def __init__(self, path, *args):
        super().__init__(*args)
        self.files = [path]

    def batches(self):
        for batch, host in super().batches():
            yield batch | {"labels": tf.zeros([5, CLASSES], tf.uint8)}, host


@pytest.mark.parametrize(
    "model, error, kind, said",
    [
        (NoEmbedding(), None, UserError, "gives no `embedding`"),
        (Infinite(), None, DataError, "video b0v0 is not finite"),
        (None, KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_embeddings_are_written_whole_or_not_at_all(
    video_run, tmp_path, model, error, kind, said
):
    run, files = video_run
    reader = FiledBatches(files[0], 9, error)
    with pytest.raises(kind, match=said):
        write_embeddings(
            model or run.model, reader, str(tmp_path / "e.tfrecord"), silent()
        )
    assert os.listdir(tmp_path) == []


def test_a_full_disk_and_a_bad_path_of_embeddings_are_named(
    video_run, tmp_path, known_temporary_names
):
    run, files = video_run
    reader = FiledBatches(files[0], 300)
    path = str(tmp_path / "none" / "e.tfrecord")
    with pytest.raises(UserError, match="e.tfrecord cannot be written"):
        write_embeddings(run.model, reader, path, silent())
    assert reader.produced == 0
    os.symlink("/dev/full", tmp_path / "e.tfrecord.tmp")
    path = str(tmp_path / "e.tfrecord")
    with pytest.raises(UserError, match="e.tfrecord cannot be written: .*No space"):
        write_embeddings(run.model, reader, path, silent())
    assert os.listdir(tmp_path) == []


# --- options that contradict ---------------------------------------------------------


@pytest.mark.parametrize(
    "given, said",
    [
        (["--num_shards=3"], "give --shard_index"),
        (["--num_shards=3", "--shard_index=3"], "must be 0 .. 2"),
        (["--shard_index=1"], "must be 0 .. 0"),
        (["--num_shards=4", "--shard_index=0"], "give --num_shards=3 at most"),
        (["--names=r.csv"], "--vocabulary"),
        (["--vocabulary=v.csv"], "--names"),
        (["--names=r.csv", "--output_file=r.csv", "--vocabulary=v"], "both r.csv"),
        (["--names=r.txt", "--vocabulary={vocabulary}"], "must end in .csv"),
        (["--segment_max_pred=5"], "without --segment_labels"),
        (["--segment_label_ids_file=ids.csv"], "without --segment_labels"),
        (["--output_format=tfrecord"], "needs --segment_labels"),
        (
            [
                "--segment_labels",
                "--num_shards=2",
                "--shard_index=1",
                "--output_format=csv",
            ],
            "could be merged",
        ),
        (["--segment_labels", "--eval_frames=random"], "are not drawn"),
        (["--output=embeddings", "--segment_labels"], "--segment_labels is of no use"),
        (["--output=embeddings", "--top_k=3"], "--top_k is of no use"),
        (
            ["--output=embeddings", "--names=r.csv", "--vocabulary=v.csv"],
            "--names is of no use",
        ),
        (["--output=embeddings", "--output_format=csv"], "as a TFRecord file only"),
        (
            ["--output=embeddings", "--output_file=a.predictions"],
            "goes with none of --output=embeddings",
        ),
    ],
)
def test_options_that_contradict_are_refused_in_one_line(
    video_run, tmp_path, vocabulary, capsys, given, said
):
    run, files = video_run
    flags = flags_of(run, files, tmp_path / "s.csv")
    given = [flag.format(vocabulary=vocabulary) for flag in given]
    assert run_command("inference", *flags, *given) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("inference: ") and said in lines[0]
    assert os.listdir(tmp_path) == ["vocabulary.csv"]


def test_an_output_that_is_a_directory_is_refused_before_anything_is_read(
    video_run, tmp_path, capsys
):
    run, files = video_run
    assert run_command("inference", *flags_of(run, files, tmp_path)) == 1
    assert f"{tmp_path} is a directory" in capsys.readouterr().err


def test_a_shard_that_is_read_is_not_replaced(video_run, capsys):
    run, files = video_run
    before = pathlib.Path(files[0]).read_bytes()
    assert run_command("inference", *flags_of(run, files, files[0])) == 1
    assert "is one of the shards to predict" in capsys.readouterr().err
    assert pathlib.Path(files[0]).read_bytes() == before


@pytest.mark.parametrize("flag", ["output_file", "names", "output_model_tgz"])
def test_what_is_read_is_not_replaced(video_run, tmp_path, vocabulary, capsys, flag):
    run, files = video_run
    config = pathlib.Path(run.directory, "config.json")
    before = config.read_bytes()
    flags = dict(f.split("=", 1) for f in flags_of(run, files, tmp_path / "x.csv"))
    flags |= {"--names": tmp_path / "x.json", "--vocabulary": vocabulary}
    checkpoint = pathlib.Path(run.checkpoint.path, "state.index")
    for path, said in (
        (config, "is a file of the model"),
        (checkpoint, "is a file of the model"),
        (files[0], "is one of the shards to predict"),
        (vocabulary, "is the file of --vocabulary"),
    ):
        given = flags | {f"--{flag}": path}
        assert run_command("inference", *(f"{k}={v}" for k, v in given.items())) == 1
        output = capsys.readouterr().err
        assert f"--{flag}={path} {said}" in output
        assert output.count("\n") == 1
    assert config.read_bytes() == before and not (tmp_path / "x.csv").exists()


def test_an_export_needs_no_run(video_run, tmp_path, capsys):
    run, files = video_run
    export(run, str(tmp_path / "export"))
    flags = flags_of(run, files, tmp_path / "x.csv")
    flags.append(f"--saved_model={tmp_path / 'export'}")
    assert run_command("inference", *flags) == 0
    said = capsys.readouterr().err
    assert "--train_dir has no effect beside --saved_model." in said
    assert run_command("inference", *flags[1:]) == 0


def test_records_that_an_export_does_not_take_are_refused_in_one_line(
    frame_run, tmp_path, capsys
):
    run, _ = frame_run
    export(run, str(tmp_path / "export"))
    assert ExportedModel(str(tmp_path / "export")).config == run.config.data
    features = {
        "rgb": np.zeros((3, 16), np.uint8),
        "audio": np.zeros((3, 4), np.float32),
    }
    path = str(tmp_path / "floats.tfrecord")
    write_records(path, [encode_frame_record("v", features, None)])
    assert decode_record(next(iter(tf.data.TFRecordDataset(path))).numpy()).id == "v"
    flags = flags_of(run, [path], tmp_path / "s.csv")
    saved = f"--saved_model={tmp_path / 'export'}"
    assert run_command("inference", *flags, saved) == 1
    error = capsys.readouterr().err
    assert f"inference: {saved} takes audio as uint8, but the records hold" in error


# --- stored predictions --------------------------------------------------------------


def test_stored_predictions_are_those_of_the_submission_found_by_id(
    video_run, tmp_path, capsys
):
    run, files = video_run
    flags = flags_of(run, files, tmp_path / "s.csv")
    assert run_command("inference", *flags, f"--top_k={CLASSES}") == 0
    stored = {}
    for name, more in (("all", []), ("three", ["--top_k=3"])):
        path = tmp_path / f"{name}.predictions"
        flags = flags_of(run, files, path)
        for _ in range(2):  # again in place of the earlier ones
            assert run_command("inference", *flags, *more) == 0
        assert (
            f"23 videos predicted by {run.checkpoint.path}" in capsys.readouterr().out
        )
        stored[name] = Predictions(str(path))
        assert stored[name].written_by == run.checkpoint.path
    assert stored["all"].classes_per_video is None
    assert stored["three"].classes_per_video == 3
    lines = list(read_submission(str(tmp_path / "s.csv")))
    ids = [video_id for video_id, _, _ in lines]
    assert stored["all"].ids() == stored["three"].ids() == ids
    dense = stored["all"].probabilities(stored["all"].rows(ids))
    for row, (_, classes, scores) in zip(dense, lines, strict=True):
        np.testing.assert_allclose(row[classes], scores, rtol=2e-3, atol=1e-6)
    best = stored["three"].sparse(np.arange(23))
    for mine, expected in zip(best, stored["all"].best(np.arange(23), 3), strict=True):
        np.testing.assert_array_equal(mine, expected)
    # A prediction by an export, in parts that are merged, is the same.
    export(run, str(tmp_path / "export"))
    flags = flags_of(run, files, tmp_path / "part.predictions")
    for i in range(2):
        part = ["--num_shards=2", f"--shard_index={i}", "--top_k=3"]
        saved = [f"--saved_model={tmp_path / 'export'}"]
        assert run_command("inference", *flags, *part, *saved) == 0
    merged = tmp_path / "merged.predictions"
    merge = [f"--input_files={tmp_path}/part-*.predictions", f"--output_file={merged}"]
    assert run_command("merge", *merge) == 0
    found = Predictions(str(merged))
    assert found.ids() == ids
    np.testing.assert_allclose(
        found.probabilities(np.arange(23)),
        stored["three"].probabilities(np.arange(23)),
        rtol=2e-3,
        atol=1e-6,
    )


def test_stored_predictions_become_a_submission_and_are_scored_alike(
    video_run, tmp_path, capsys
):
    run, files = video_run
    path = tmp_path / "a.predictions"
    assert run_command("inference", *flags_of(run, files, path)) == 0
    submission = tmp_path / "s.csv.gz"
    merge = ["merge", f"--input_files={path}", f"--output_file={submission}"]
    assert run_command(*merge, "--top_k=5") == 0
    assert "23 videos from 1 folders" in capsys.readouterr().out
    stored = Predictions(str(path))
    classes, scores = stored.best(np.arange(23), 5)
    lines = list(read_submission(str(submission)))
    assert [line[0] for line in lines] == stored.ids()
    np.testing.assert_array_equal([line[1] for line in lines], classes)
    np.testing.assert_allclose([line[2] for line in lines], scores, rtol=1e-5)
    results = []
    for given in (path, submission):
        score = [f"--labels={','.join(files)}", "--top_k=5"]
        score.append(f"--output_file={tmp_path / 'score.json'}")
        assert run_command("score", given, *score, f"--num_classes={CLASSES}") == 0
        results.append(json.loads((tmp_path / "score.json").read_text()))
    assert 0 < results[0]["gap"] == pytest.approx(results[1]["gap"], abs=1e-9)
    assert run_command("score", path, f"--labels={files[0]}") == 1
    assert "is of 7 classes, not 3862" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, said",
    [
        (["--input_files={a},{s}", "--output_file=o.csv"], "a.predictions is a folder"),
        (["--input_files={a},{b}", "--output_file=o.csv"], "is in another folder"),
        (["--input_files={a},{b}", "--output_file=o.predictions"], "predicted twice"),
        (
            ["--input_files={a}", "--output_file=o.predictions", "--top_k=3"],
            "leave it out",
        ),
        (
            ["--input_files={a}", "--output_file=o.csv", "--segment_max_pred=3"],
            "no part ranks segments",
        ),
        (["--input_files={s}", "--output_file=o.predictions"], "s.csv is none"),
        (["--input_files={s}", "--output_file=o.csv", "--top_k=3"], "s.csv is none"),
    ],
)
def test_merges_that_cannot_be_are_refused(tmp_path, monkeypatch, capsys, given, said):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        with PredictionsWriter(f"{name}.predictions", 3) as writer:
            writer.write([b"x"], np.full((1, 3), 0.5, np.float32))
    (tmp_path / "s.csv").write_text("VideoId,LabelConfidencePairs\nx,1 0.5\n")
    names = {"a": "a.predictions", "b": "b.predictions", "s": "s.csv"}
    assert run_command("merge", *(flag.format(**names) for flag in given)) == 1
    assert said in capsys.readouterr().err
    assert sorted(os.listdir()) == sorted(names.values())
