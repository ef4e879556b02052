"""Bad records: each is named in one line, or left out, and nothing else is lost."""

import functools
import logging
import os
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from yt8m.config import DataConfig, Part
from yt8m.data import index, order, pipeline
from yt8m.data.index import RecordIndex, scan
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_frame_record, encode_video_record, write_records
from yt8m.errors import DataError

COUNTS = (7, 12, 5)
BAD = (1, 4)  # the file and the number of the record that is spoiled
FRAMES = DataConfig("frame", {"rgb": 4, "audio": 2}, 10)
VIDEOS = DataConfig("video", {"mean_rgb": 4}, 10)


def frame_record(video_id, labels=(1,), rgb=(3, 4), audio=(3, 2)) -> bytes:
    features = {"rgb": np.ones(rgb, np.uint8), "audio": np.ones(audio, np.uint8)}
    return encode_frame_record(video_id, features, labels)


def video_record(video_id, labels=(1,), mean=(0, 1, 2, 3), name="mean_rgb") -> bytes:
    return encode_video_record(video_id, {name: np.asarray(mean, "f")}, labels)


def one_odd_frame(video_id) -> bytes:
    message = tf.train.SequenceExample.FromString(frame_record(video_id))
    message.feature_lists.feature_list["rgb"].feature[2].bytes_list.value[0] = b"12"
    return message.SerializeToString()


def bytes_video(video_id) -> bytes:
    message = tf.train.Example.FromString(video_record(video_id))
    message.features.feature["mean_rgb"].bytes_list.value.append(b"1234")
    return message.SerializeToString()


# What takes the record's place, and what is said of it.
SPOILED = {
    "frame": {
        "label": (
            frame_record("1-4", [3, 5000]),
            r"label 5000 is outside 0\.\.9 \(--num_classes=10\)",
        ),
        "negative": (frame_record("1-4", [-1]), r"label -1 is outside 0\.\.9"),
        "size": (
            frame_record("1-4", rgb=(3, 8)),
            "feature rgb has 8 bytes a frame, 4 wanted; features found: audio 2, rgb 8",
        ),
        "odd": (
            one_odd_frame("1-4"),
            "frame 2 of rgb has 2 bytes, where frame 0 has 4",
        ),
        "lengths": (
            frame_record("1-4", audio=(2, 2)),
            "its features differ in their number of frames: rgb 3, audio 2",
        ),
        "level": (
            video_record("1-4"),
            r"it is a video-level record \(mean_rgb 4\), where frame-level ones",
        ),
        "floats": (
            encode_frame_record(
                "1-4", {"rgb": np.ones((3, 4)), "audio": np.ones((3, 2), "u1")}, [1]
            ),
            "feature rgb holds floats, bytes wanted",
        ),
        "missing": (
            encode_frame_record("1-4", {"rgb": np.ones((3, 4), "u1")}, [1]),
            "feature audio is missing; features found: rgb 4",
        ),
        "garbage": (b"not a protobuf at all", "it is not a protobuf"),
        "empty": (b"", "the record is empty"),
    },
    "video": {
        "label": (video_record("1-4", [10]), r"label 10 is outside 0\.\.9"),
        "NaN": (video_record("1-4", mean=[0, 1, np.nan, 3]), "mean_rgb holds NaN"),
        "inf": (video_record("1-4", mean=[0, np.inf, 2, 3]), "an infinite value"),
        "size": (
            video_record("1-4", mean=[0, 1]),
            "feature mean_rgb has 2 values, 4 wanted; features found: mean_rgb 2",
        ),
        "missing": (
            video_record("1-4", name="mean_audio"),
            "feature mean_rgb is missing; features found: mean_audio 4",
        ),
        "bytes": (bytes_video("1-4"), "feature mean_rgb holds bytes, floats wanted"),
        "level": (frame_record("1-4"), "it is a frame-level record"),
        "garbage": (b"not a protobuf at all", "it is not a protobuf"),
        "empty": (b"", "the record is empty"),
    },
}
SPOILED_CASES = [(level, name) for level in SPOILED for name in SPOILED[level]]


def make_files(folder, level, spoiled=None, counts=COUNTS) -> list[str]:
    make = frame_record if level == "frame" else video_record
    files = []
    for file, count in enumerate(counts):
        records = [make(f"{file}-{number}") for number in range(count)]
        if file == BAD[0] and spoiled is not None:
            records[BAD[1]] = spoiled
        files.append(f"{folder}/{file}.tfrecord")
        write_records(files[-1], records)
    return files


def make_reader(files, level, seed, on_bad_record="skip", **kwargs) -> Reader:
    config = FRAMES if level == "frame" else VIDEOS
    options = {"batch_size": 4, "num_epochs": 2, "shuffle_window": 6} | kwargs
    return Reader(files, config, seed=seed, on_bad_record=on_bad_record, **options)


def ids(batches) -> list[list[str]]:
    return [[i.decode() for i in host["id"].numpy()] for _, host in batches]


@functools.cache
def healthy_ids(seed, counts=COUNTS) -> list[list[str]]:
    """The ids of the batches, where nothing is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(folder, "video", counts=counts)
        return ids(make_reader(files, "video", seed).batches())


def without(batches, lost) -> list[list[str]]:
    kept = [[i for i in batch if i not in lost] for batch in batches]
    return [batch for batch in kept if batch]


def check_both_ways(files, level, said, video_id="", counts=COUNTS, seeds=(None, 1)):
    """Reads `files`, where record 4 of file 1 is bad, in both modes and orders."""
    for seed in seeds:
        with pytest.raises(DataError, match=r"/1\.tfrecord, record 4") as error:
            list(make_reader(files, level, seed, "fail").batches())
        assert error.match(said)
        assert "\n" not in str(error.value)

        reader = make_reader(files, level, seed)
        expected = without(healthy_ids(seed, counts), ["1-4"])
        assert ids(reader.batches()) == expected
        (bad,) = reader.bad_records
        assert (bad.path, bad.number, bad.id) == (files[1], 4, video_id)


@pytest.mark.parametrize(("level", "name"), SPOILED_CASES)
def test_a_record_that_cannot_be_parsed_is_named_or_left_out(tmp_path, level, name):
    spoiled, said = SPOILED[level][name]
    files = make_files(tmp_path, level, spoiled)
    video_id = "" if name in ("garbage", "empty") else "1-4"
    seeds = (None, 1) if name in ("label", "level") else (1,)
    check_both_ways(files, level, said, video_id, seeds=seeds)


def spoil_byte(path, position):
    with open(path, "r+b") as f:
        f.seek(position)
        byte = f.read(1)[0]
        f.seek(position)
        f.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize(
    ("within", "said"),
    [
        (20, r"the record is corrupted \(checksum\)"),
        (-1, r"the record is corrupted \(checksum\)"),
        (0, r"corrupted \(checksum of its length, byte \d+\)"),
        (7, r"corrupted \(checksum of its length, byte \d+\)"),
        (9, r"the record is corrupted \(checksum\)"),
    ],
)
def test_a_flipped_bit_costs_one_record(tmp_path, within, said):
    level = "frame" if within % 2 else "video"
    files = make_files(tmp_path, level)
    offsets = scan(files[1]).offsets
    spoil_byte(files[1], int(offsets[4] + within if within >= 0 else offsets[5] - 1))
    check_both_ways(files, level, said)


def truncate(path, number, kept) -> int:
    """Cuts the file `kept` bytes after the start of a record; gives that start."""
    offset = int(scan(path).offsets[number])
    os.truncate(path, offset + kept)
    return offset


@pytest.mark.parametrize("kept", [12, 30])
def test_a_truncated_file_gives_what_it_still_holds(tmp_path, kept):
    files = make_files(tmp_path, "frame")
    offset = truncate(files[1], 4, kept)
    said = rf"the file is truncated at record 4 \(byte {offset}\)"
    # As if the file ended with record 4, and only that were bad.
    check_both_ways(files, "frame", said, counts=(COUNTS[0], 5, COUNTS[2]))


@pytest.mark.parametrize("kept", [1, 11])
def test_a_file_cut_within_a_header_is_found_by_the_counts(tmp_path, kept):
    # TensorFlow's reader takes such a rest for the end of the file.
    files = make_files(tmp_path, "frame")
    offset = truncate(files[1], 4, kept)
    with pytest.raises(DataError, match=rf"truncated at record 4 \(byte {offset}\)"):
        _ = make_reader(files, "frame", 1, "fail").num_batches
    expected = healthy_ids(1, (COUNTS[0], 4, COUNTS[2]))
    reader = make_reader(files, "frame", 1)
    assert ids(reader.dataset()) == expected
    assert reader.num_batches == len(expected)
    assert [bad.number for bad in reader.bad_records] == [4]
    assert ids(reader.dataset()) == expected
    assert ids(reader.dataset(2)) == expected[2:]


@pytest.mark.parametrize("level", ["frame", "video"])
def test_a_record_without_an_id_is_bad_where_ids_are_needed(tmp_path, level):
    make = frame_record if level == "frame" else video_record
    files = make_files(tmp_path, level, make(""))
    assert sum(ids(make_reader(files, level, None).batches()), []).count("") == 2
    said = r"1\.tfrecord, record 4: it has no id \(no key id or video_id\)\. --on_bad"
    with pytest.raises(DataError, match=said):
        list(make_reader(files, level, 1, "fail", needs_id=True).batches())
    reader = make_reader(files, level, None, needs_id=True)
    assert ids(reader.batches()) == without(healthy_ids(None), ["1-4"])
    assert [bad.number for bad in reader.bad_records] == [4]


def test_the_first_record_of_all_may_be_bad(tmp_path):
    files = make_files(tmp_path, "frame")
    spoil_byte(files[0], 3)
    reader = make_reader(files, "frame", None)
    read = sum(ids(reader.batches()), [])
    assert read == 2 * [i for i in all_ids() if i != "0-0"]
    assert [bad.number for bad in reader.bad_records] == [0]


def all_ids() -> list[str]:
    return [f"{file}-{i}" for file, count in enumerate(COUNTS) for i in range(count)]


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 24])
def test_many_bad_records_are_all_left_out(tmp_path, caplog, seed, batch_size):
    bad = {"0-0", "0-6", "1-1", "1-2", "1-3", "2-4"}
    files = []
    for file, count in enumerate(COUNTS):
        names = [f"{file}-{number}" for number in range(count)]
        records = [video_record(n, [99] if n in bad else [1]) for n in names]
        files.append(f"{tmp_path}/{file}")
        write_records(files[-1], records)
    spoil_byte(files[1], int(scan(files[1]).offsets[7]) + 14)
    reader = make_reader(files, "video", seed, batch_size=batch_size)
    with caplog.at_level(logging.WARNING):
        read = sum(ids(reader.batches()), [])
    kept = sorted(set(all_ids()) - bad - {"1-7"})
    assert sorted(read) == sorted(2 * kept)
    assert sorted(record.id for record in reader.bad_records) == ["", *sorted(bad)]
    assert sum("Left out: " in r.getMessage() for r in caplog.records) == 7


def test_a_trainer_restarts_after_what_explain_accepts(tmp_path):
    files = make_files(tmp_path, "video", video_record("1-4", [77]))
    spoil_byte(files[2], int(scan(files[2]).offsets[3]) + 14)
    reader = make_reader(files, "video", 1)
    done, failures = [], 0
    iterator = iter(reader.dataset())
    while True:
        try:
            _, host = next(iterator)
        except StopIteration:
            break
        except tf.errors.OpError as e:
            failures += 1
            reader.explain(e, len(done))
            iterator = iter(reader.dataset(len(done)))
            continue
        done.append([i.decode() for i in host["id"].numpy()])
    expected = without(healthy_ids(1), ["1-4", "2-3"])
    assert done == expected
    assert failures == len(reader.bad_records) == 2
    # What is known to be bad is left out without a new failure.
    assert ids(reader.dataset()) == expected
    # A later run that knows of nothing finds the same batches in the same places.
    later = make_reader(files, "video", 1)
    assert ids(later.batches(9)) == expected[9:]


def read_part(reader: Reader, part: Part, start: int = 0) -> list[list[list[str]]]:
    """The ids of the own slices of each step; restarts as a trainer does."""
    steps: list[list[list[str]]] = []
    while True:
        own, iterator = [], iter(reader.replica_dataset(start + len(steps), part))
        try:
            for i, (_, host) in enumerate(iterator):
                own.append([i.decode() for i in host["id"].numpy()])
                if (i + 1) % part.count == 0:
                    steps.append(own)
                    own = []
            return steps
        except tf.errors.OpError as e:
            reader.explain(e, start + len(steps))


def cut(batches, total) -> list[list[list[str]]]:
    return [
        [
            batch[len(batch) * i // total : len(batch) * (i + 1) // total]
            for i in range(total)
        ]
        for batch in batches
    ]


@pytest.mark.parametrize(
    ("seed", "splits"),
    [(None, ((0, 1), (1, 2))), (1, ((0, 1), (1, 1))), (1, ((0, 4),))],
)
def test_processes_agree_on_the_slices_though_each_meets_its_own_bad_records(
    tmp_path, seed, splits
):
    # Two that cannot be parsed, in different slices of a batch, and a damaged one.
    files = make_files(tmp_path, "video")
    bad = {"0-1", "0-2", "1-4"}
    for file, count in enumerate(COUNTS):
        names = [f"{file}-{number}" for number in range(count)]
        records = [video_record(n, [99] if n in bad else [1]) for n in names]
        write_records(files[file], records)
    spoil_byte(files[2], int(scan(files[2]).offsets[3]) + 14)
    lost = bad | {"2-3"}
    total = splits[-1][0] + splits[-1][1]
    expected = [
        [[i for i in part if i not in lost] for part in parts]
        for parts in cut(healthy_ids(seed), total)
    ]
    slices = [
        read_part(make_reader(files, "video", seed), Part(*split, total))
        for split in splits
    ]
    for step, parts in enumerate(expected):
        assert sum((own[step] for own in slices), []) == parts
    assert all(len(own) == len(expected) for own in slices)
    # A process that was restarted has forgotten what is bad. Where others wait for
    # it, it sees no error.
    own, again = Part(*splits[-1], total), make_reader(files, "video", seed)
    if len(splits) > 1:
        rest = ids(again.replica_dataset(2, own))
        assert again.bad_records
    else:
        rest = sum(read_part(again, own, 2), [])
    assert rest == sum(slices[-1][2:], [])


def test_a_bad_record_stops_only_the_process_that_has_its_slice(tmp_path):
    files = make_files(tmp_path, "video", video_record("1-4", [77]))
    # In file order it is the last record of batch 2.
    readers = [make_reader(files, "video", None, "fail", num_epochs=1) for _ in "12"]
    first = read_part(readers[0], Part(0, 1, 2))
    assert first == [parts[:1] for parts in cut(healthy_ids(None)[:6], 2)]
    with pytest.raises(DataError, match="label 77"):
        read_part(readers[1], Part(1, 1, 2))


@pytest.mark.parametrize(("level", "seed"), [("frame", 1), ("video", None)])
def test_a_batch_of_bad_records_is_an_empty_step_of_every_replica(
    tmp_path, level, seed
):
    healthy = healthy_ids(seed)
    lost = set(healthy[2])
    make = frame_record if level == "frame" else video_record
    files = []
    for file, count in enumerate(COUNTS):
        names = [f"{file}-{number}" for number in range(count)]
        records = [make(n, [99] if n in lost else [1]) for n in names]
        files.append(f"{tmp_path}/{file}")
        write_records(files[-1], records)
    kept = [[i for i in batch if i not in lost] for batch in healthy]
    steps = read_part(make_reader(files, level, seed), Part(0, 2, 2))
    assert len(steps) == len(healthy) == 12
    assert steps[2] == [[], []]
    assert [sum(own, []) for own in steps] == kept
    # So a position after it is the same, whoever knows of the bad records.
    for start in (2, 3):
        again = read_part(make_reader(files, level, seed), Part(0, 2, 2), start)
        assert again == steps[start:]
    reader = make_reader(files, level, seed)
    assert ids(reader.batches()) == [batch for batch in kept if batch]
    assert ids(reader.dataset()) == [batch for batch in kept if batch]
    assert ids(reader.replica_dataset(0, Part())) == kept


def test_explain_raises_what_it_cannot_explain(tmp_path):
    reader = make_reader(make_files(tmp_path, "video"), "video", 1)
    error = tf.errors.DataLossError(None, None, "of another cause")
    for batch in (0, 11, 12, 99):
        with pytest.raises(tf.errors.DataLossError, match="of another cause"):
            reader.explain(error, batch)


def test_damage_is_reported_with_the_counts(tmp_path):
    files = make_files(tmp_path, "video")
    spoil_byte(files[1], int(scan(files[1]).offsets[4]))
    cache = str(tmp_path / "counts.json")
    for _ in range(2):  # the cache does not hide it
        counts = RecordIndex(cache)
        with pytest.raises(DataError, match=r"1\.tfrecord, record 4: .*checksum"):
            _ = make_reader(files, "video", None, "fail", index=counts).num_examples
        reader = make_reader(files, "video", None, index=RecordIndex(cache))
        assert reader.num_examples == sum(COUNTS)
        assert len(reader.bad_records) == 1


def test_the_search_goes_on_past_its_block_to_the_next_record(tmp_path, monkeypatch):
    path = str(tmp_path / "a")
    write_records(path, [bytes([i]) * 300 for i in range(6)])
    offsets = scan(path).offsets
    spoil_byte(path, int(offsets[2]) + 1)
    for block in (12, 13, 50, 299, 1 << 20):
        monkeypatch.setattr(index, "_SEARCH_BYTES", block)
        found = scan(path)
        assert found.offsets.tolist() == [*offsets[:2], -1, *offsets[3:]]
        assert list(found.faults) == [2]


def test_left_out_records_cost_no_reading_of_their_neighbours(tmp_path):
    files = make_files(tmp_path, "video")
    shard = scan(files[1])
    runs = pipeline._find_runs(shard, np.ones(shard.count, int), {0, 3, 4, 11})
    start = shard.offsets.tolist()
    assert runs == [
        (0, 0, 0, 1),
        (start[1], 2, start[3] - start[1], 2),
        (start[5], 6, start[11] - start[5], 1),
    ]
    assert pipeline._find_runs(shard, np.ones(12, int), set(range(12))) == [
        (0, 0, 0, 12)
    ]


def test_groups_of_one_file_find_their_bad_records_too(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "GROUP_FILES", 1)
    files = make_files(tmp_path, "frame", frame_record("1-4", [77]))
    reader = make_reader(files, "frame", 1, batch_size=5)
    read = sum(ids(reader.batches()), [])
    assert sorted(read) == sorted(2 * [i for i in all_ids() if i != "1-4"])
