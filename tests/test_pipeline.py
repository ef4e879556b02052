"""The pipeline: every record once, in an order that any batch can resume."""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from yt8m.config import DataConfig, FrameSelection, Part
from yt8m.data import index as index_module
from yt8m.data import order
from yt8m.data.files import list_files
from yt8m.data.index import RecordIndex, scan
from yt8m.data.order import Order
from yt8m.data.pipeline import Reader
from yt8m.data.records import (
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.errors import DataError, UserError

UNEVEN = (0, 3, 50, 1, 17, 30, 5, 0, 11, 2)
FRAMES = DataConfig("frame", {"rgb": 4}, 10, frames=FrameSelection(3))
VIDEOS = DataConfig("video", {"mean_rgb": 4}, 10)


def make_files(folder, counts=UNEVEN, level="frame") -> list[str]:
    """Shards of small records whose ids are `file-number`."""
    rng = np.random.default_rng(len(counts))
    files = []
    for file, count in enumerate(counts):
        records = []
        for number in range(count):
            video_id, labels = f"{file}-{number}", [number % 10]
            if level == "frame":
                rgb = rng.integers(0, 256, (rng.integers(0, 9), 4), np.uint8)
                records.append(encode_frame_record(video_id, {"rgb": rgb}, labels))
            else:
                mean = rng.normal(size=4).astype(np.float32)
                records.append(
                    encode_video_record(video_id, {"mean_rgb": mean}, labels)
                )
        files.append(f"{folder}/{file:02d}.tfrecord")
        write_records(files[-1], records)
    return files


@pytest.fixture(scope="module")
def frame_files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("frame"))


@pytest.fixture(scope="module")
def video_files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("video"), level="video")


def all_ids(counts=UNEVEN) -> list[str]:
    return [f"{file}-{i}" for file, count in enumerate(counts) for i in range(count)]


def ids(batches) -> list[list[str]]:
    return [[i.decode() for i in host["id"].numpy()] for _, host in batches]


def flat(batches) -> list[str]:
    return sum(ids(batches), [])


def assert_equal_batches(some, others):
    assert len(some) == len(others)
    for (batch, host), (other_batch, other_host) in zip(some, others, strict=True):
        assert batch.keys() == other_batch.keys()
        np.testing.assert_array_equal(host["id"], other_host["id"])
        for name in batch:
            np.testing.assert_array_equal(batch[name], other_batch[name])


def joined(slices, total) -> list[tuple[dict, dict]]:
    """The global batches whose `total` slices follow one another."""
    assert len(slices) % total == 0
    return [
        tuple(
            {name: np.concatenate([part[k][name] for part in parts]) for name in whole}
            for k, whole in enumerate(parts[0])
        )
        for parts in (slices[i : i + total] for i in range(0, len(slices), total))
    ]


def without_padding(batches) -> list[tuple[dict, dict]]:
    """With zeros in place of what stands behind the frames."""
    return [
        (
            batch
            | {
                "rgb": np.where(
                    np.arange(batch["rgb"].shape[1])[:, None]
                    < np.asarray(batch["num_frames"])[:, None, None],
                    batch["rgb"],
                    0,
                )
            },
            host,
        )
        for batch, host in batches
    ]


@pytest.mark.parametrize("batch_size", [1, 7, 118, 119, 120, 1000])
def test_evaluation_reads_every_record_once_in_file_order(frame_files, batch_size):
    reader = Reader(frame_files, FRAMES, batch_size=batch_size)
    batches = list(reader.batches())
    assert flat(batches) == all_ids()
    sizes = [len(batch) for batch in ids(batches)]
    assert all(size == batch_size for size in sizes[:-1])
    assert len(sizes) == reader.num_batches == -(-119 // batch_size)
    assert reader.num_examples == 119
    assert flat(reader.dataset()) == all_ids()


def test_evaluation_may_start_anywhere(frame_files):
    whole = list(Reader(frame_files, FRAMES, batch_size=7).dataset())
    again = Reader(frame_files, FRAMES, batch_size=7)
    for start in (1, 8, 16, 17, 18):
        assert_equal_batches(list(again.dataset(start)), whole[start:])


def test_evaluation_takes_even_frames_and_training_random_ones(tmp_path):
    rgb = np.arange(10, dtype=np.uint8)[:, None]
    files = [str(tmp_path / "a")]
    write_records(files[0], [encode_frame_record("a", {"rgb": rgb}, [0])])
    config = DataConfig("frame", {"rgb": 1}, frames=FrameSelection(3))

    def taken(seed):
        reader = Reader(files, config, batch_size=1, seed=seed, num_epochs=2)
        return [batch["rgb"].numpy().ravel().tolist() for batch, _ in reader.dataset()]

    assert taken(None) == [[1, 5, 8]] * 2
    first, second = taken(1)
    assert first != second
    assert taken(1) == [first, second]
    assert taken(2) != [first, second]


@pytest.mark.parametrize(
    ("level", "group", "window"),
    [("frame", 16, 13), ("frame", 3, 1000), ("video", 1, 5), ("video", 4, 1)],
)
def test_a_restart_at_any_batch_equals_the_whole_run(
    request, monkeypatch, level, group, window
):
    monkeypatch.setattr(order, "GROUP_FILES", group)
    files = request.getfixturevalue(f"{level}_files")
    config = FRAMES if level == "frame" else VIDEOS
    rng = np.random.default_rng(group * window)
    for batch_size, num_epochs in ((int(rng.integers(5, 40)), 2), (50, 3)):

        def reader(batch_size=batch_size, num_epochs=num_epochs, **kwargs):
            return Reader(
                files,
                config,
                batch_size=batch_size,
                seed=3,
                num_epochs=num_epochs,
                shuffle_window=window,
                **kwargs,
            )

        whole = list(reader().dataset())
        assert len(whole) == reader().num_batches
        for epoch in range(num_epochs):
            epoch_ids = flat(whole)[epoch * 119 : (epoch + 1) * 119]
            assert sorted(epoch_ids) == sorted(all_ids())
        starts = [1, *rng.integers(2, len(whole), 2), len(whole) + 1]
        for start in starts:
            rest = reader(num_readers=int(start) % 3 + 1).dataset(int(start))
            assert_equal_batches(list(rest), whole[start:])


def test_an_endless_reader_starts_anywhere(frame_files):
    reader = Reader(frame_files, FRAMES, batch_size=50, seed=1, num_epochs=None)
    whole = list(reader.dataset().take(9))
    assert_equal_batches(list(reader.dataset(6).take(3)), whole[6:])
    with pytest.raises(ValueError, match="`num_epochs` must be a number"):
        _ = reader.num_batches


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else(
    frame_files, monkeypatch
):
    def run(seed=1, **kwargs):
        return flat(
            Reader(
                frame_files, FRAMES, batch_size=119, seed=seed, num_epochs=2, **kwargs
            ).dataset()
        )

    tf.random.set_seed(1)
    first = run(num_readers=1)
    tf.random.set_seed(2)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)  # so that all readers are used
    assert run(num_readers=2) == run(num_readers=16) == first
    assert first[:119] != first[119:]
    assert run(seed=2) != first
    assert run(shuffle_window=5) != first


def test_the_shuffle_mixes_files_and_records(frame_files):
    first = flat(Reader(frame_files, FRAMES, batch_size=20, seed=1).dataset().take(1))
    assert len({video_id.split("-")[0] for video_id in first}) > 2
    assert first != sorted(first)


def test_sequence_names_the_records_that_a_group_delivers(frame_files, monkeypatch):
    monkeypatch.setattr(order, "GROUP_FILES", 4)
    delivered = flat(
        Reader(
            frame_files, FRAMES, batch_size=9, seed=5, num_epochs=2, shuffle_window=6
        ).dataset()
    )
    twin, counts = Order(len(frame_files), 5, 6), np.asarray(UNEVEN)
    named = [
        f"{file}-{number}"
        for group in range(2 * twin.groups_per_epoch)
        for file, number in twin.sequence(group, counts)
    ]
    assert named == delivered
    between = [row for _, rows in twin.between(100, 160, counts) for row in rows]
    assert [f"{file}-{number}" for file, number in between] == delivered[100:160]


@pytest.mark.parametrize(
    ("method", "total"),
    [("random", 2), ("random_without_replacement", 3), ("contiguous", 4)],
)
def test_the_slices_of_a_batch_make_up_the_batch(frame_files, method, total):
    config = DataConfig("frame", {"rgb": 4}, 10, frames=FrameSelection(3, method))
    # The last batch, of 238 % 47 = 3 records, leaves one of four slices empty.
    options = {"batch_size": 47, "seed": 6, "num_epochs": 2, "static_frames": True}
    reader = Reader(frame_files, config, **options)
    for start in (0, 4):
        whole = list(reader.dataset(start))
        assert len(whole) == 6 - start
        slices = list(reader.replica_dataset(start, Part(0, total, total)))
        assert_equal_batches(
            without_padding(joined(slices, total)), without_padding(whole)
        )
        sizes = [len(host["id"]) for _, host in slices[-total:]]
        assert sizes == [3 * (i + 1) // total - 3 * i // total for i in range(total)]
    # Two processes, the first with one replica, the second with the others.
    own = [
        list(reader.replica_dataset(4, part))
        for part in (Part(0, 1, total), Part(1, total - 1, total))
    ]
    assert_equal_batches(own[0], slices[::total])
    others = [s for i, s in enumerate(slices) if i % total]
    assert_equal_batches(own[1], others)


def test_one_part_of_one_is_the_whole(frame_files):
    reader = Reader(frame_files, FRAMES, batch_size=50, seed=6)
    slices = list(reader.replica_dataset(1, Part()))
    assert_equal_batches(slices, list(reader.dataset(1)))


@pytest.mark.parametrize(
    ("frames", "static"), [(FrameSelection(), True), (FrameSelection(2), False)]
)
def test_a_slice_without_records_has_the_shapes_of_the_others(
    frame_files, video_files, frames, static
):
    config = DataConfig("frame", {"rgb": 4}, 10, frames=frames)
    options = {"batch_size": 2, "seed": 1, "static_frames": static}
    for reader in (
        Reader(frame_files, config, **options),
        Reader(video_files, VIDEOS, **options),
    ):
        (batch, host), (one, _) = reader.replica_dataset(0, Part(0, 2, 4)).take(2)
        assert host["id"].shape == (0,)
        assert batch["labels"].shape == (0, 10)
        for name in batch.keys() - {"rgb"}:
            assert batch[name].shape[1:] == one[name].shape[1:]
            assert batch[name].dtype == one[name].dtype
        if "rgb" in batch:
            length = (frames.count or 300) if static else 0
            assert batch["rgb"].shape == (0, length, 4)


def test_static_frames_give_every_batch_one_shape(frame_files):
    config = DataConfig("frame", {"rgb": 4}, 10, max_frames=6)
    reader = Reader(frame_files, config, batch_size=10, static_frames=True)
    assert {batch["rgb"].shape[1] for batch, _ in reader.dataset()} == {6}
    assert reader.dataset().element_spec[0]["rgb"].shape[1] == 6


def test_float_frames_are_recognised_by_the_first_record(tmp_path):
    own = np.ones((2, 3), np.float32)
    path = str(tmp_path / "a")
    write_records(path, [encode_frame_record("a", {"own": own}, [0])])
    reader = Reader([path], DataConfig("frame", {"own": 3}), batch_size=2)
    ((batch, _),) = reader.batches()
    assert batch["own"].dtype == tf.float32


def test_files_without_records_are_an_error(tmp_path):
    files = make_files(tmp_path, (0, 0))
    with pytest.raises(DataError, match="no record"):
        Reader(files, FRAMES, batch_size=2)


def test_another_way_with_bad_records_is_refused(frame_files):
    with pytest.raises(ValueError, match="`on_bad_record` must be"):
        Reader(frame_files, FRAMES, batch_size=2, on_bad_record="ignore")


@pytest.mark.parametrize("size, read_at_most", [(200_000, 0.04), (1000, 1.01)])
def test_the_index_reads_headers_of_large_records_and_small_ones_in_blocks(
    tmp_path, monkeypatch, size, read_at_most
):
    path = str(tmp_path / "a")
    write_records(path, [bytes(size + i) for i in range(50)])
    read = []
    original = index_module._read
    monkeypatch.setattr(
        index_module,
        "_read",
        lambda *args: read.append(original(*args)) or read[-1],
    )
    assert RecordIndex().counts([path]) == [50]
    assert sum(map(len, read)) < read_at_most * os.path.getsize(path)
    assert len(read) == 1 or size > 1000
    starts = np.cumsum([0] + [size + i + 16 for i in range(49)])
    np.testing.assert_array_equal(scan(path).offsets, starts)


def test_the_index_remembers_counts_until_a_file_changes(tmp_path, monkeypatch):
    cache = str(tmp_path / "counts.json")
    files = make_files(tmp_path, (3, 0, 5))
    assert RecordIndex(cache).counts(files) == [3, 0, 5]
    assert sorted(json.loads(pathlib.Path(cache).read_text()).values()) == [0, 3, 5]

    scanned = []
    original = index_module.scan
    monkeypatch.setattr(
        index_module, "scan", lambda path: scanned.append(path) or original(path)
    )
    assert RecordIndex(cache).counts(files) == [3, 0, 5]
    assert scanned == []
    write_records(files[2], [b"x"])
    assert RecordIndex(cache).counts(files) == [3, 0, 1]
    assert scanned == files[2:]


def test_an_unusable_cache_is_done_without(tmp_path):
    files = make_files(tmp_path, (3, 4))
    cache = tmp_path / "counts.json"
    cache.write_text("[not json")
    assert RecordIndex(str(cache)).counts(files) == [3, 4]
    assert RecordIndex(str(tmp_path / "none" / "counts.json")).counts(files) == [3, 4]
    assert RecordIndex("/dev/null/counts.json").counts(files) == [3, 4]


def test_real_validation_shard_holds_312_records(real_data):
    files = list_files(f"{real_data}/video/validate/validate00.tfrecord", "--data")
    config = DataConfig("video", {"mean_rgb": 1024, "mean_audio": 128})
    reader = Reader(files, config, batch_size=100)
    labels = [batch["labels"].numpy() for batch, _ in reader.batches()]
    assert reader.num_examples == 312
    assert [len(part) for part in labels] == [100, 100, 100, 12]
    assert (np.concatenate(labels).sum(axis=1) >= 1).all()
    shuffled = flat(Reader(files, config, batch_size=100, seed=0).dataset())
    assert len(set(shuffled)) == 312
    assert sorted(shuffled) == sorted(flat(reader.dataset()))


def test_real_test_shard_holds_305_records_without_labels(real_data):
    files = list_files(f"{real_data}/video/test/test0z.tfrecord", "--data")
    config = DataConfig("video", {"mean_rgb": 1024, "mean_audio": 128})
    batches = list(Reader(files, config, batch_size=100).batches())
    assert len(flat(batches)) == len(set(flat(batches))) == 305
    assert not any(batch["labels"].numpy().any() for batch, _ in batches)


def test_a_folder_and_brackets_in_names_get_a_hint(tmp_path):
    inner = tmp_path / "a[1]"
    inner.mkdir()
    (inner / "x.tfrecord").write_bytes(b"")
    for pattern, said in (
        (tmp_path, f"--x={tmp_path} is a folder: give {tmp_path}/*/*.tfrecord."),
        (f"{inner}/*.tfrecord", f"write ? for each bracket, {tmp_path}/a?1?/*.tf"),
        (f"{inner}/x.tfrecord", f"write ? for each bracket, {tmp_path}/a?1?/x.tf"),
        (f"{tmp_path}/b[1]", "b[1]."),
    ):
        with pytest.raises(UserError) as error:
            list_files(str(pattern), "--x")
        assert said in str(error.value)
        assert ("Brackets" in str(error.value)) == ("a[1]" in str(pattern))
    assert list_files(f"{tmp_path}/a?1?/*", "--x") == [f"{inner}/x.tfrecord"]
    assert list_files(str(tmp_path), "--x", folders=True) == [str(tmp_path)]
