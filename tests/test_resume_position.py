"""Resuming within an epoch of many files looks at the group of its batch alone."""

import os

import numpy as np
import pytest
import tensorflow as tf

from yt8m.config import DataConfig, FrameSelection, Part
from yt8m.data import order, pipeline
from yt8m.data.index import RecordIndex
from yt8m.data.order import Order
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_frame_record, encode_video_record, write_records

CONFIGS = {
    "frame": DataConfig("frame", {"rgb": 2}, 3, frames=FrameSelection(2)),
    "video": DataConfig("video", {"mean_rgb": 2}, 3),
}


def make_files(folder, level, counts) -> list[str]:
    files = []
    for file, count in enumerate(counts):
        names = [f"{file}-{number}" for number in range(count)]
        if level == "frame":
            rgb = np.arange(12, dtype=np.uint8).reshape(6, 2)
            records = [encode_frame_record(name, {"rgb": rgb}, [0]) for name in names]
        else:
            mean = np.zeros(2, "f")
            records = [encode_video_record(n, {"mean_rgb": mean}, [0]) for n in names]
        files.append(f"{folder}/{file:03d}")
        write_records(files[-1], records)
    return files


def ids(batches) -> list[list[str]]:
    return [[i.decode() for i in host["id"].numpy()] for _, host in batches]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("num_files", [1, 16, 17, 95])
def test_a_position_is_found_as_by_walking_from_the_start(num_files, seed):
    rng = np.random.default_rng(num_files)
    counts = rng.integers(0, 4, num_files)
    counts[0] = 2
    twin, walked = Order(num_files, seed, 5), []
    for group in range(3 * twin.groups_per_epoch):
        files = twin.files(tf.constant(group, tf.int64)).numpy()
        walked += [(group, place) for place in range(counts[files].sum())]
    assert len(walked) == 3 * counts.sum()
    step = max(1, len(walked) // 60)
    for position in [*range(0, len(walked), step), len(walked) - 1]:
        assert twin.find(position, counts) == walked[position]


def test_one_permutation_finds_a_position_among_4000_files(monkeypatch):
    calls = []
    permutation = Order._permutation
    monkeypatch.setattr(
        Order, "_permutation", lambda *args: calls.append(args) or permutation(*args)
    )
    counts = np.full(4000, 30)
    for seed, group_files in ((None, 1), (7, order.GROUP_FILES)):
        calls.clear()
        group, place = Order(4000, seed, 100).find(3 * 120_000 + 100_000, counts)
        per_group = 30 * group_files
        assert group == 3 * (120_000 // per_group) + 100_000 // per_group
        assert place == 100_000 % per_group
        assert len(calls) == 1


@pytest.mark.parametrize("level", CONFIGS)
def test_the_files_before_are_not_opened_when_a_run_resumes(
    tmp_path, monkeypatch, level
):
    monkeypatch.setattr(order, "GROUP_FILES", 3)
    files = make_files(tmp_path, level, [5] * 12)
    options = {"batch_size": 4, "seed": 2, "shuffle_window": 6}
    whole = ids(Reader(files, CONFIGS[level], **options).dataset())
    reader = Reader(files, CONFIGS[level], **options)
    assert reader.num_batches == len(whole) == 15
    scanned = []
    scan = pipeline.scan
    monkeypatch.setattr(
        pipeline, "scan", lambda path: scanned.append(path) or scan(path)
    )
    # Batch 9 begins with example 36, in the third of four groups.
    twin = Order(12, 2, 6)
    for group in (0, 1):
        for file in twin.files(tf.constant(group, tf.int64)).numpy():
            os.remove(files[file])
    assert ids(reader.dataset(9)) == whole[9:]
    group = [files[f] for f in twin.files(tf.constant(2, tf.int64)).numpy()]
    assert sorted(scanned) == (sorted(group) if level == "frame" else [])


def test_parts_resume_where_the_whole_does_also_with_remembered_counts(tmp_path):
    files = make_files(tmp_path, "frame", [4, 0, 7, 1, 9, 3])
    cache = str(tmp_path / "records.json")

    def reader(index=None):
        options = {"batch_size": 7, "seed": 4, "num_epochs": 3, "shuffle_window": 5}
        return Reader(files, CONFIGS["frame"], index=index, **options)

    whole = ids(reader().dataset())
    assert reader(RecordIndex(cache)).num_batches == len(whole) == 11
    for start in (1, 4, 10, 11):
        for first in range(3):
            part = Part(first, 1, 3)
            again = reader(RecordIndex(cache))
            slices = ids(again.replica_dataset(start, part))
            expected = []
            for batch in whole[start:]:
                n = len(batch)
                expected.append(batch[n * first // 3 : n * (first + 1) // 3])
            assert slices == expected


@pytest.mark.parametrize("level", CONFIGS)
def test_large_batches_are_the_same_with_fewer_under_way(tmp_path, monkeypatch, level):
    files = make_files(tmp_path, level, [3, 5, 4])

    def read() -> list[dict[str, np.ndarray]]:
        reader = Reader(files, CONFIGS[level], batch_size=5, seed=1, num_epochs=2)
        return [
            {name: values.numpy() for name, values in (batch | host).items()}
            for batch, host in reader.dataset(1)
        ]

    usual = read()
    monkeypatch.setattr(pipeline, "_LARGE_BATCH", 0)
    fewer = read()
    assert len(usual) == len(fewer) == 4
    for own, other in zip(usual, fewer, strict=True):
        assert own.keys() == other.keys()
        for name, values in own.items():
            np.testing.assert_array_equal(values, other[name])
