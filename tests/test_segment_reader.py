"""The reader of rated segments: each once, in an order that any batch can resume."""

import json

import numpy as np
import pytest

from yt8m import evaluation
from yt8m.config import (
    DataConfig,
    FrameSelection,
    ModelConfig,
    Part,
    TrainingConfig,
)
from yt8m.data.index import RecordIndex
from yt8m.data.pipeline import Reader
from yt8m.data.records import SegmentRatings, encode_frame_record, write_records
from yt8m.errors import DataError, UserError
from yt8m.runs import build_model

CLASSES = 6
SEGMENTS = DataConfig("frame", {"rgb": 4}, CLASSES, segments=True)
# Segments of each record of each file; a record without any has no rating.
UNEVEN = ((3, 0, 1, 5), (), (0, 0), (2, 2, 2), (1,))


def frames_of(file: int, record: int, count: int) -> np.ndarray:
    """Frames that tell their video and their second."""
    rows = [[file, record, second, 7] for second in range(count)]
    return np.array(rows, np.uint8)


def rated(starts, classes=(0,)) -> SegmentRatings:
    cells = [(start, c) for start in starts for c in classes]
    return SegmentRatings(
        labels=[c for _, c in cells],
        starts=[start for start, _ in cells],
        ends=[],
        scores=[float((start + c) % 2) for start, c in cells],
    )


def make_files(folder, counts=UNEVEN) -> list[str]:
    files = []
    for file, records in enumerate(counts):
        encoded = []
        for record, count in enumerate(records):
            # The last segment of a video ends early.
            length = max(5 * count - 3, 1)
            ratings = rated(range(0, 5 * count, 5), (1, 4)) if count else None
            encoded.append(
                encode_frame_record(
                    f"{file}-{record}",
                    {"rgb": frames_of(file, record, length)},
                    [0],
                    segments=ratings,
                )
            )
        files.append(f"{folder}/{file}.tfrecord")
        write_records(files[-1], encoded)
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("segments"))


def everything(counts=UNEVEN) -> list[str]:
    return [
        f"{file}-{record}:{5 * i}"
        for file, records in enumerate(counts)
        for record, count in enumerate(records)
        for i in range(count)
    ]


def names(batches) -> list[list[str]]:
    return [
        [
            f"{i.decode()}:{start}"
            for i, start in zip(
                host["id"].numpy(), host["segment_start"].numpy(), strict=True
            )
        ]
        for _, host in batches
    ]


def flat(batches) -> list[str]:
    return sum(names(batches), [])


@pytest.mark.parametrize("batch_size", [1, 4, 16, 17, 100])
def test_every_segment_is_read_once_in_file_order(files, batch_size):
    reader = Reader(files, SEGMENTS, batch_size=batch_size)
    assert reader.num_examples == len(everything()) == 16
    batches = list(reader.batches())
    assert flat(batches) == everything()
    assert len(batches) == reader.num_batches == -(-16 // batch_size)


def test_a_segment_holds_its_frames_its_labels_and_its_rated_cells(files):
    for batch, host in Reader(files, SEGMENTS, batch_size=5).batches():
        for i, name in enumerate(names([(batch, host)])[0]):
            video, start = name.split(":")
            file, record = map(int, video.split("-"))
            start, segments = int(start), UNEVEN[file][record]
            count = min(5, 5 * segments - 3 - start)
            assert batch["num_frames"][i] == count
            seconds = np.arange(start, start + count)
            rgb = batch["rgb"][i, :count].numpy()
            np.testing.assert_array_equal(rgb[:, :2], [[file, record]] * count)
            np.testing.assert_array_equal(rgb[:, 2], seconds)
            assert batch["label_weights"][i].numpy().tolist() == [0, 1, 0, 0, 1, 0]
            odd = start % 2
            labels = [0, 1 - odd, 0, 0, odd, 0]
            assert batch["labels"][i].numpy().tolist() == labels


def test_training_shuffles_segments_and_resumes_at_any_batch(files):
    def reader():
        options = {"seed": 3, "num_epochs": 2, "shuffle_window": 5}
        return Reader(files, SEGMENTS, batch_size=3, **options)

    whole = names(reader().dataset())
    assert sorted(sum(whole, [])) == sorted(2 * everything())
    assert sum(whole, [])[:16] not in (everything(), sum(whole, [])[16:])
    for start in range(len(whole) + 1):
        assert names(reader().dataset(start)) == whole[start:]


@pytest.mark.parametrize("total", [2, 3])
def test_the_slices_of_a_batch_of_segments_make_up_the_batch(files, total):
    config = DataConfig(
        "frame", {"rgb": 4}, CLASSES, segments=True, frames=FrameSelection(4)
    )
    options = {"batch_size": 5, "seed": 3, "num_epochs": 2, "shuffle_window": 5}
    reader = Reader(files, config, static_frames=True, **options)
    for start in (0, 4):
        whole = list(reader.dataset(start))
        slices = list(reader.replica_dataset(start, Part(0, total, total)))
        assert len(slices) == total * len(whole)
        for i, (batch, host) in enumerate(whole):
            own = slices[i * total : (i + 1) * total]
            assert sum(names(own), []) == names([(batch, host)])[0]
            for name in ("rgb", "labels", "label_weights", "num_frames"):
                rows = np.concatenate([part[name] for part, _ in own])
                np.testing.assert_array_equal(rows, batch[name])


def test_counts_of_segments_are_kept_beside_those_of_records(files, tmp_path):
    cache = str(tmp_path / "records.json")
    first = Reader(files, SEGMENTS, batch_size=3, index=RecordIndex(cache))
    assert first.num_examples == 16
    videos = DataConfig("frame", {"rgb": 4}, CLASSES)
    records = Reader(files, videos, batch_size=3, index=RecordIndex(cache))
    assert records.num_examples == 10
    stored = json.loads((tmp_path / "records.json").read_text())
    assert sorted(map(str, stored.values())) == sorted(
        map(str, [*map(list, UNEVEN), *map(len, UNEVEN)])
    )
    again = Reader(files, SEGMENTS, batch_size=3, index=RecordIndex(cache))
    assert again.num_examples == 16


BAD = {
    "starts beyond the video": (rated([0, 40]), "segment start time 40"),
    "no frame's number": (rated([-5]), "segment start time -5"),
    "unequal lists": (SegmentRatings([1, 2], [0], [], [1.0]), "differ in length"),
    "a class out of range": (rated([0, 5], [CLASSES]), "6"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_record_with_bad_segments_is_named_or_left_out(tmp_path, kind):
    files = make_files(tmp_path)
    ratings, words = BAD[kind]
    good = encode_frame_record(
        "good", {"rgb": frames_of(9, 9, 9)}, [], segments=rated([5], [2])
    )
    bad = encode_frame_record("bad", {"rgb": frames_of(9, 9, 9)}, [], segments=ratings)
    files.insert(1, str(tmp_path / "bad.tfrecord"))
    write_records(files[1], [good, bad, good])

    with pytest.raises(DataError, match="bad.tfrecord, record 1 .id bad.*") as e:
        list(Reader(files, SEGMENTS, batch_size=3).batches())
    assert words in str(e.value)

    for options in ({}, {"seed": 1, "shuffle_window": 4, "num_epochs": 2}):
        reader = Reader(files, SEGMENTS, batch_size=3, on_bad_record="skip", **options)
        epochs = options.get("num_epochs", 1)
        wanted = epochs * [*everything(), "good:5", "good:5"]
        batches = names(reader.batches())
        assert sorted(sum(batches, [])) == sorted(wanted)
        assert [b.number for b in reader.bad_records] == [1]
        # What is left out keeps its place: later batches are as they were.
        for start in (1, len(batches) - 1):
            again = Reader(
                files, SEGMENTS, batch_size=3, on_bad_record="skip", **options
            )
            assert names(again.batches(start))[-1] == batches[-1]


def test_a_damaged_segment_shard_is_named_or_left_out(tmp_path):
    files = make_files(tmp_path)
    data = bytearray((tmp_path / "3.tfrecord").read_bytes())
    data[-10] ^= 1  # in the last of its records
    (tmp_path / "3.tfrecord").write_bytes(data)
    with pytest.raises(DataError, match="3.tfrecord, record 2.*checksum"):
        list(Reader(files, SEGMENTS, batch_size=4).batches())
    reader = Reader(files, SEGMENTS, batch_size=4, on_bad_record="skip")
    left = [name for name in everything() if not name.startswith("3-2:")]
    assert flat(reader.batches()) == left


def test_shards_without_ratings_are_refused_in_one_line(tmp_path):
    files = make_files(tmp_path, ((0, 0), (0,)))
    with pytest.raises(DataError, match="no rated segment.*--segment_labels"):
        list(Reader(files, SEGMENTS, batch_size=4, seed=1).batches(1))
    with pytest.raises(UserError, match="frame-level"):
        DataConfig("video", {"mean_rgb": 4}, segments=True)


def test_evaluation_counts_rated_cells_alone(files):
    model = build_model(
        ModelConfig("FrameLevelLogisticModel"),
        DataConfig("frame", {"rgb": 4}, CLASSES),
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    training = TrainingConfig(train_data_pattern="")
    reader = Reader(files, SEGMENTS, batch_size=7)
    result = evaluation.evaluate(model, reader, training, per_class=True)
    assert (result["num_examples"], result["unit"]) == (16, "segments")
    assert result["rated_classes"].tolist() == [1, 4]

    # A twin from the definitions, over the rated cells of each segment.
    logits, labels, weights = [], [], []
    for batch, _ in Reader(files, SEGMENTS, batch_size=5).batches():
        inputs = {n: batch[n] for n in model.input_names}
        logits.append(model(inputs)["logits"].numpy())
        labels.append(batch["labels"].numpy())
        weights.append(batch["label_weights"].numpy())
    logits, labels, weights = map(np.concatenate, (logits, labels, weights))
    cells = np.log1p(np.exp(logits)) - labels * logits
    assert result["loss"] == pytest.approx((cells * weights).sum(1).mean(), rel=1e-5)
    assert result["hit_at_1"] == np.mean(
        [labels[i, [1, 4]][np.argmax(logits[i, [1, 4]])] for i in range(16)]
    )
    precisions = []
    for c in (1, 4):
        ranked = labels[np.argsort(-logits[:, c], kind="stable"), c]
        found = np.flatnonzero(ranked) + 1
        precisions.append(np.mean(np.arange(1, len(found) + 1) / found))
    assert result["map"] == pytest.approx(np.mean(precisions), abs=1e-9)
    table = result["per_class"]
    assert table["positives"].tolist() == labels.sum(0).tolist()


def test_random_frames_of_a_segment_are_drawn_from_its_own(files):
    config = DataConfig(
        "frame", {"rgb": 4}, CLASSES, segments=True, frames=FrameSelection(8)
    )
    for batch, host in Reader(files, config, batch_size=4, seed=5).batches():
        assert (batch["num_frames"].numpy() == 8).all()
        starts = host["segment_start"].numpy()[:, None]
        seconds = batch["rgb"].numpy()[..., 2]
        assert ((seconds >= starts) & (seconds < starts + 5)).all()
