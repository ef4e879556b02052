"""Large batches are parsed a piece at a time, and are what they are without that."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m.config import DataConfig, FrameAugmentation, FrameSelection, Part
from yt8m.data import pieces, pipeline
from yt8m.data.pipeline import Reader
from yt8m.data.records import SegmentRatings, encode_frame_record, write_records
from yt8m.errors import DataError

SIZES = {"rgb": 8, "audio": 3}
COUNT = 31


def config(sizes=SIZES, **options) -> DataConfig:
    return DataConfig("frame", sizes, 10, **options)


def make_file(folder, dtype=np.uint8, longest=9, sizes=SIZES) -> str:
    rng = np.random.default_rng(0)
    records = []
    for number in range(COUNT):
        length = rng.integers(0, longest + 1) if number else longest
        features = {
            name: rng.integers(0, 256, (length, size)).astype(dtype)
            for name, size in sizes.items()
        }
        # Rated segments are read if they are asked for.
        ratings = SegmentRatings([1], [0], [], [1.0]) if length else None
        labels = [number % 10]
        records.append(
            encode_frame_record(f"{number:04d}", features, labels, segments=ratings)
        )
    path = f"{folder}/shard.tfrecord"
    write_records(path, records)
    return path


def in_pieces(monkeypatch) -> list[int]:
    """From now on all batches of frames are large; the numbers of examples parsed."""

    def count(serialized, *arguments, **options):
        tf.py_function(lambda n: seen.append(int(n)), [tf.size(serialized)], [])
        return parse(serialized, *arguments, **options)

    seen: list[int] = []
    parse = pipeline.parse_batch
    monkeypatch.setattr(pipeline, "parse_batch", count)
    monkeypatch.setattr(pipeline, "_LARGE_BATCH", 0)
    monkeypatch.setattr(pieces, "_EXAMPLES", 4)
    return seen


def assert_equal(some, others):
    assert len(some) == len(others)
    for (batch, host), (other, other_host) in zip(some, others, strict=True):
        assert batch.keys() == other.keys()
        assert host.keys() == other_host.keys()
        for name in host:
            np.testing.assert_array_equal(host[name], other_host[name])
        valid = None
        for name in batch:
            a, b = np.asarray(batch[name]), np.asarray(other[name])
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            if a.ndim == 3:
                valid = np.arange(a.shape[1]) < np.asarray(batch["num_frames"])[:, None]
                a, b = a[valid], b[valid]
            np.testing.assert_array_equal(a, b)
        assert valid is not None


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({}, {}),
        ({}, {"max_frames": 7}),  # some videos are longer
        ({}, {"max_frames": 40}),  # none is as long
        ({"static_frames": True}, {"max_frames": 40}),
        ({"seed": 3}, {"frames": FrameSelection(3, "random")}),
        ({"seed": 3}, {"frames": FrameSelection(12, "random_without_replacement")}),
        ({"frame_seed": 3}, {"frames": FrameSelection(3, evaluation="all")}),
        ({}, {"frames": FrameSelection(3, evaluation="all")}),
        ({}, {"frames": FrameSelection(3, skip_first=2, scene_threshold=0.1)}),
        (
            {"seed": 3, "augmentation": FrameAugmentation((0.3, 0.9), 1.5)},
            {"max_frames": 20},
        ),
        ({}, {"segments": True, "segment_context_frames": 1}),
    ],
)
def test_a_batch_in_pieces_is_the_batch(tmp_path, monkeypatch, dtype, options, data):
    path = make_file(tmp_path, dtype)
    read = {"batch_size": 10, **options}
    whole = list(Reader([path], config(**data), **read).dataset())
    seen = in_pieces(monkeypatch)
    reader = Reader([path], config(**data), **read)
    assert_equal(list(reader.dataset()), whole)
    assert max(seen) == 4
    assert sum(seen) == reader.num_examples


@pytest.mark.parametrize("size", [1, 2, 4, 6, 16])
def test_rows_of_any_number_of_bytes_are_copied(tmp_path, monkeypatch, size):
    path = make_file(tmp_path, sizes={"rgb": size})
    data = config({"rgb": size}, max_frames=9)
    whole = list(Reader([path], data, batch_size=COUNT).dataset())
    in_pieces(monkeypatch)
    assert_equal(list(Reader([path], data, batch_size=COUNT).dataset()), whole)


def test_slices_of_several_replicas_have_pieces(tmp_path, monkeypatch):
    path = make_file(tmp_path)
    data = config(frames=FrameSelection(3, "random"))
    read = {"batch_size": 29, "seed": 1, "static_frames": True}
    part = Part(0, 3, 3)  # the last batch has 2 records: one of its slices is empty
    whole = list(Reader([path], data, **read).replica_dataset(0, part))
    in_pieces(monkeypatch)
    slices = list(Reader([path], data, **read).replica_dataset(0, part))
    assert_equal(slices, whole)
    assert [len(host["id"]) for _, host in slices] == [9, 10, 10, 0, 1, 1]


def test_a_bad_record_in_a_piece_is_named_or_left_out(tmp_path, monkeypatch):
    path = make_file(tmp_path)
    records = [r.numpy() for r in tf.data.TFRecordDataset(path)]
    frames = {name: np.zeros((2, size), np.uint8) for name, size in SIZES.items()}
    records[13] = encode_frame_record("0013", frames, [77])
    write_records(path, records)
    in_pieces(monkeypatch)
    with pytest.raises(DataError, match=r"record 13 \(id 0013\): label 77 is outside"):
        list(Reader([path], config(), batch_size=10).batches())
    reader = Reader([path], config(), batch_size=10, on_bad_record="skip")
    ids = [i for _, host in reader.batches() for i in host["id"].numpy()]
    assert ids == [b"%04d" % i for i in range(COUNT) if i != 13]
    assert [bad.number for bad in reader.bad_records] == [13]
