"""Inference: every video once, its best classes first, or no file at all."""

import io
import json
import os
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from test_export import (
    CLASSES,
    FRAME_FEATURES,
    VIDEO_FEATURES,
    best_classes,
    make_batch,
    make_run,
    signature,
)
from yt8m.data.pipeline import Reader
from yt8m.data.records import (
    decode_record,
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.distribution import EachReplica
from yt8m.errors import DataError, UserError
from yt8m.evaluation import evaluate
from yt8m.export import export
from yt8m.inference import predict as predict_file
from yt8m.inference.predict import (
    ExportedModel,
    best_of_logits,
    load_saved_model,
    logits_function,
    model_inputs,
    predict,
    predict_function,
)
from yt8m.inference.submission import SubmissionWriter, read_submission, validate
from yt8m.progress import Progress
from yt8m.registry import get


def make_shards(folder, level: str) -> list[str]:
    """Three shards of 9, 1 and 13 videos of 1 to 6 frames."""
    rng = np.random.default_rng(4)
    files = []
    for shard, count in enumerate((9, 1, 13)):
        records = []
        for i in range(count):
            labels = sorted({int(c) for c in rng.integers(0, CLASSES, 2)})
            if level == "video":
                features = {
                    name: rng.normal(size=size).astype(np.float32)
                    for name, size in VIDEO_FEATURES.items()
                }
                encode = encode_video_record
            else:
                frames = int(rng.integers(1, 7))
                features = {
                    name: rng.integers(0, 256, (frames, size), np.uint8)
                    for name, size in FRAME_FEATURES.items()
                }
                encode = encode_frame_record
            records.append(encode(f"s{shard}v{i}", features, labels))
        files.append(str(folder / f"{level}{shard}.tfrecord"))
        write_records(files[-1], records)
    return files


def read_records(files: list[str]) -> list:
    return [decode_record(r.numpy()) for r in tf.data.TFRecordDataset(files)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Gives a run and shards for a model, made once."""
    made = {}

    def get_trained(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("predict")
            run = make_run(folder / "run", name)
            made[name] = (run, make_shards(folder, get(name).level))
        return made[name]

    return get_trained


def reader_of(run, files, batch_size=4) -> Reader:
    return Reader(files, run.config.data, batch_size=batch_size)


def silent() -> Progress:
    return Progress(stream=io.StringIO())


def submission(path) -> dict[str, tuple[list[int], list[float]]]:
    return {
        i.decode(): (c.tolist(), s.tolist()) for i, c, s in read_submission(str(path))
    }


class Batches:
    """A reader of ready batches, which may end in an error."""

    def __init__(self, count: int, error: BaseException | None = None):
        self.num_examples, self.batch_size = 5 * count, 5
        self.produced = 0
        self.count, self.error = count, error

    def batches(self):
        for i in range(self.count):
            self.produced += 1
            batch = {k: tf.constant(v) for k, v in make_batch("video", seed=i).items()}
            yield batch, {"id": tf.constant([f"b{i}v{j}" for j in range(5)])}
        if self.error:
            raise self.error


# --- what is written -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, file", [("NetVLADModel", "s.csv"), ("MoeModel", "s.csv.gz")]
)
def test_each_video_gets_its_best_classes_as_if_scored_alone(
    trained, tmp_path, name, file
):
    run, files = trained(name)
    count = predict(run.model, reader_of(run, files), str(tmp_path / file), 3, silent())
    records = read_records(files)
    found = submission(tmp_path / file)
    assert count == len(records) == 23
    assert list(found) == [r.id for r in records]
    for record in records:
        one = {k: v[None] for k, v in record.features.items()}
        if record.level == "frame":
            one["num_frames"] = np.array([len(record.features["rgb"])], np.int32)
        classes, scores = best_classes(np.asarray(run.model(one)["logits"]), 3)
        assert found[record.id][0] == classes[0].tolist()
        np.testing.assert_allclose(found[record.id][1], scores[0], rtol=1e-4)
    report = validate(
        str(tmp_path / file),
        num_classes=CLASSES,
        top_k=3,
        ids=[r.id.encode() for r in records],
    )
    assert report.ok
    assert os.listdir(tmp_path) == [file]


def test_the_batch_size_does_not_change_the_predictions(trained, tmp_path):
    run, files = trained("FrameLevelLogisticModel")
    found = []
    for batch_size in (1, 7, 64):
        predict(
            run.model,
            reader_of(run, files, batch_size),
            str(tmp_path / "s.csv"),
            progress=silent(),
        )
        found.append(submission(tmp_path / "s.csv"))
    for other in found[1:]:
        assert list(other) == list(found[0])
        for video, (classes, scores) in other.items():
            assert classes == found[0][video][0]
            np.testing.assert_allclose(scores, found[0][video][1], rtol=1e-4)


@pytest.mark.parametrize("top_k, pairs", [(1, 1), (5, 5), (20, CLASSES)])
def test_top_k_pairs_are_written_or_as_many_as_there_are_classes(
    trained, tmp_path, top_k, pairs
):
    run, files = trained("MoeModel")
    path = tmp_path / "s.csv"
    predict(run.model, reader_of(run, files), str(path), top_k, silent())
    assert {len(c) for c, _ in submission(path).values()} == {pairs}


def test_equal_logits_are_ranked_by_class_and_saturated_ones_by_logit(tmp_path):
    run = make_run(tmp_path / "run", "LogisticModel")
    files = make_shards(tmp_path, "video")[1:2]
    kernel, bias = run.model.trainable_variables
    kernel.assign(tf.zeros(kernel.shape))
    # The probabilities of 40, 50 and 60 are all 1 in float32.
    bias.assign([-1.0, 40.0, 2.0, 60.0, 2.0, 50.0, 2.0])
    predict(run.model, reader_of(run, files), str(tmp_path / "s.csv"), 20, silent())
    assert (tmp_path / "s.csv").read_text() == (
        "VideoId,LabelConfidencePairs\n"
        "s1v0,3 1 5 1 1 1 2 0.880797 4 0.880797 6 0.880797 0 0.268941\n"
    )


def test_the_gap_of_the_file_is_the_gap_that_evaluation_finds(trained, tmp_path):
    run, files = trained("FrameLevelLogisticModel")
    scored = evaluate(run.model, reader_of(run, files), run.config.training, top_k=3)
    predict(run.model, reader_of(run, files), str(tmp_path / "s.csv"), 3, silent())
    labels = {r.id: set(r.labels) for r in read_records(files)}
    pairs = [
        (score, c in labels[video])
        for video, (classes, scores) in submission(tmp_path / "s.csv").items()
        for c, score in zip(classes, scores, strict=True)
    ]
    pairs.sort(key=lambda pair: -pair[0])
    hits, gap = 0, 0.0
    for rank, (_, correct) in enumerate(pairs, 1):
        hits += correct
        gap += correct * hits / rank
    gap /= sum(map(len, labels.values()))
    assert scored["gap"] == pytest.approx(gap, abs=1e-6)


def test_only_the_best_classes_leave_the_device(trained):
    run, _ = trained("MoeModel")
    batch = model_inputs(run.model, make_batch("video"))
    classes, scores = predict_function(run.model, 2)(batch)
    assert (classes.shape, classes.dtype) == ((5, 2), tf.int32)
    assert (scores.shape, scores.dtype) == ((5, 2), tf.float32)


def test_processors_rank_what_accelerators_would_have_ranked(trained):
    run, _ = trained("MoeModel")
    batch = model_inputs(run.model, make_batch("video"))
    classes, scores = predict_function(run.model, 4)(batch)
    (logits,) = logits_function(run.model)(batch)
    own_classes, own_scores = best_of_logits(logits.numpy(), 4)
    np.testing.assert_array_equal(own_classes, classes)
    np.testing.assert_allclose(own_scores, scores, rtol=1e-7)
    assert (own_classes.dtype, own_scores.dtype) == (np.int32, np.float32)


def test_an_accelerator_writes_what_a_processor_writes(trained, tmp_path, monkeypatch):
    run, files = trained("MoeModel")
    predict(run.model, reader_of(run, files), str(tmp_path / "a.csv"), 3, silent())
    monkeypatch.setattr("yt8m.inference.predict.on_processors", lambda strategy: False)
    predict(run.model, reader_of(run, files), str(tmp_path / "b.csv"), 3, silent())
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_batches_of_many_shapes_are_traced_a_few_times_only():
    class Mean:
        input_names = ("rgb", "num_frames")
        traces = 0

        def __call__(self, inputs, training):
            assert set(inputs) == set(self.input_names) and training is False
            self.traces += 1
            return {"logits": tf.reduce_mean(tf.cast(inputs["rgb"], tf.float32), 1)}

    def batches():
        rng = np.random.default_rng(0)
        for batch, frames in ((4, 9), (4, 7), (4, 8), (4, 2), (3, 5), (2, 1), (1, 6)):
            rgb = rng.integers(0, 256, (batch, frames, 6), np.uint8)
            lengths = tf.fill([batch], frames)
            yield rgb, {"rgb": tf.constant(rgb), "num_frames": lengths}

    model = Mean()
    for rgb, (classes, _) in EachReplica(predict_function(model, 2)).map(batches()):
        assert classes.numpy()[:, 0].tolist() == rgb.mean(1).argmax(1).tolist()
    assert model.traces <= 3


def test_progress_counts_every_video_and_is_closed(trained, tmp_path):
    run, files = trained("MoeModel")
    stream = io.StringIO()
    progress = Progress(total=23, stream=stream)
    predict(run.model, reader_of(run, files), str(tmp_path / "s.csv"), 3, progress)
    assert progress.done == 23
    assert stream.getvalue().startswith("23 of 23 videos (100.0%)")


def test_progress_goes_to_standard_error_unless_told(trained, tmp_path, capsys):
    run, files = trained("MoeModel")
    predict(run.model, reader_of(run, files), str(tmp_path / "s.csv"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "23 of 23 videos (100.0%)" in captured.err


# --- nothing half done ---------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_or_an_interruption_while_reading_leaves_no_file(
    trained, tmp_path, error
):
    run, _ = trained("MoeModel")
    threads = threading.active_count()
    with pytest.raises(error):
        predict(run.model, Batches(9, error()), str(tmp_path / "s.csv"), 3, silent())
    assert os.listdir(tmp_path) == []
    assert threading.active_count() == threads


def test_a_full_disk_stops_the_reading_and_names_the_file(
    trained, tmp_path, known_temporary_names
):
    run, _ = trained("MoeModel")
    os.symlink("/dev/full", tmp_path / "s.csv.tmp")
    reader = Batches(1000)
    with pytest.raises(UserError, match=r"s\.csv cannot be written: .*No space"):
        predict(run.model, reader, str(tmp_path / "s.csv"), CLASSES, silent())
    assert os.listdir(tmp_path) == []


def test_a_bad_output_path_is_found_before_anything_is_read(trained, tmp_path):
    run, _ = trained("MoeModel")
    reader = Batches(3)
    with pytest.raises(UserError, match="cannot be written"):
        predict(run.model, reader, str(tmp_path / "none" / "s.csv"), 3, silent())
    assert reader.produced == 0


def test_weights_that_are_not_finite_are_found_and_the_video_named(tmp_path):
    run = make_run(tmp_path / "run", "LogisticModel")
    bias = run.model.trainable_variables[1]
    bias.assign([0.0, 0.0, np.nan, 0.0, 0.0, 0.0, 0.0])
    with pytest.raises(DataError, match="video b0v0 are not finite"):
        predict(run.model, Batches(3), str(tmp_path / "s.csv"), 3, silent())
    assert os.listdir(tmp_path) == ["run"]


def test_a_slow_disk_holds_back_the_reader(trained, tmp_path, monkeypatch):
    run, _ = trained("MoeModel")
    reader, ahead, written = Batches(60), [], []
    write = SubmissionWriter.write

    def slow_write(self, *args):
        threading.Event().wait(0.005)
        write(self, *args)
        written.append(1)
        ahead.append(reader.produced - len(written))

    monkeypatch.setattr(SubmissionWriter, "write", slow_write)
    predict(run.model, reader, str(tmp_path / "s.csv"), 3, silent())
    assert len(written) == 60
    assert max(ahead) <= 6


def test_top_k_must_be_positive(trained, tmp_path):
    run, _ = trained("MoeModel")
    with pytest.raises(UserError, match="--top_k must be at least 1, not 0"):
        predict(run.model, Batches(1), str(tmp_path / "s.csv"), 0, silent())


# --- from an export ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NetVLADModel", "MoeModel"])
def test_an_export_predicts_what_its_run_predicts(trained, tmp_path, name):
    run, files = trained(name)
    export(run, str(tmp_path / "export"), top_k=3)
    model = load_saved_model(str(tmp_path / "export"))
    assert model.config == run.config.data
    assert sorted(model.input_names) == sorted(run.model.input_names)
    for source, path in ((run.model, "run.csv"), (model, "export.csv")):
        reader = Reader(files, run.config.data, batch_size=5)
        predict(source, reader, str(tmp_path / path), 3, silent())
    expected = submission(tmp_path / "run.csv")
    found = submission(tmp_path / "export.csv")
    assert list(found) == list(expected)

    records = [r.numpy() for r in tf.data.TFRecordDataset(files)]
    served = signature(tmp_path / "export", "serve_examples")(example_bytes=records)
    assert [i.decode() for i in served["video_id"]] == list(expected)
    for i, (video, (classes, scores)) in enumerate(expected.items()):
        assert found[video][0] == served["class_indexes"][i].tolist() == classes
        np.testing.assert_allclose(found[video][1], scores, rtol=1e-4)
        np.testing.assert_allclose(served["predictions"][i], scores, rtol=1e-4)


def test_what_is_no_export_is_refused_in_one_line(trained, tmp_path):
    run, _ = trained("MoeModel")
    export(run, str(tmp_path / "good"))
    for damage in ("record", "json", "config", "graph", "variables"):
        path = tmp_path / damage
        shutil.copytree(tmp_path / "good", path)
        if damage == "record":
            (path / "export.json").unlink()
        elif damage == "json":
            (path / "export.json").write_text("{")
        elif damage == "config":
            record = json.loads((path / "export.json").read_text())
            record["config"]["data"]["colour"] = 1
            (path / "export.json").write_text(json.dumps(record))
        elif damage == "graph":
            (path / "saved_model.pb").write_bytes(b"no graph")
        else:
            shutil.rmtree(path / "variables")
        with pytest.raises(UserError, match=f"--saved_model={path} cannot") as caught:
            load_saved_model(str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="give the --output_dir"):
        load_saved_model(str(tmp_path / "missing"))


def test_records_of_another_type_than_the_export_takes_are_refused(trained, tmp_path):
    run, _ = trained("FrameLevelLogisticModel")
    export(run, str(tmp_path / "export"))
    model = ExportedModel(str(tmp_path / "export"))
    batch = make_batch("frame")
    batch["audio"] = batch["audio"].astype(np.float32)
    batch = {k: tf.constant(v) for k, v in batch.items()}
    with pytest.raises(UserError, match="takes audio as uint8, but .* hold float32"):
        model(batch)


def test_videos_that_are_in_the_shards_twice_are_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(predict_file.log, "propagate", True)
    ids = [np.array([b"a", b"bb"]), np.array([b"ccc", b"bb", b"a"])]
    predict_file._warn_of_repeated(ids, "x.csv")
    assert "x.csv: 2 video(s) are in the shards more than once, the first a" in (
        caplog.text
    )
    caplog.clear()
    predict_file._warn_of_repeated([ids[0]], "x.csv")
    predict_file._warn_of_repeated([], "x.csv")
    assert not caplog.text
