"""Submissions: exact bytes, all or nothing on the disk, every fault found."""

import gzip
import os
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from yt8m.data.records import encode_frame_record, encode_video_record, write_records
from yt8m.errors import DataError, UserError
from yt8m.inference.submission import (
    SubmissionWriter,
    read_ids,
    read_submission,
    validate,
)

HEADER = "VideoId,LabelConfidencePairs\n"


def ids(*names: str) -> np.ndarray:
    return np.array([n.encode() for n in names], dtype=object)


def write(path, *batches) -> None:
    with SubmissionWriter(str(path)) as writer:
        for batch in batches:
            writer.write(*batch)


def small_batch():
    classes = np.array([[3, 0, 11], [7, 8, 9]], np.int32)
    scores = np.array([[1.0, 0.5, 1e-5], [0.123456789, 1e-10, 0.0]], np.float32)
    return ids("abcd", "x_-9"), classes, scores


# --- writing -------------------------------------------------------------------------


def test_a_small_file_has_exactly_these_bytes(tmp_path):
    path = tmp_path / "s.csv"
    write(path, small_batch(), (ids("last"), np.array([[1]]), np.array([[0.25]])))
    assert path.read_bytes() == (
        b"VideoId,LabelConfidencePairs\n"
        b"abcd,3 1 0 0.5 11 1e-05\n"
        b"x_-9,7 0.123457 8 1e-10 9 0\n"
        b"last,1 0.25\n"
    )


def test_every_score_is_written_as_pythons_percent_g(tmp_path):
    rng = np.random.default_rng(0)
    scores = -np.sort(-(rng.random((64, 20)) ** 9).astype(np.float32), axis=1)
    classes = rng.permuted(np.tile(np.arange(3862), (64, 1)), axis=1)[:, :20]
    names = [f"v{i}" for i in range(64)]
    write(tmp_path / "s.csv", (ids(*names), classes.astype(np.int32), scores))
    expected = HEADER
    for name, row, values in zip(names, classes, scores, strict=True):
        pairs = " ".join(
            "%i %g" % pair  # noqa: UP031
            for pair in zip(row, values, strict=True)
        )
        expected += f"{name},{pairs}\n"
    assert (tmp_path / "s.csv").read_text() == expected


def test_a_gz_name_gives_the_same_text_compressed_and_the_same_bytes_always(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = tmp_path / "s.csv.gz", tmp_path / "other" / "t.csv.gz"
    write(tmp_path / "s.csv", small_batch())
    write(first, small_batch())
    write(second, small_batch())
    assert gzip.decompress(first.read_bytes()) == (tmp_path / "s.csv").read_bytes()
    assert first.read_bytes() == second.read_bytes()


def test_no_batch_gives_the_header_alone(tmp_path):
    write(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == HEADER


def test_the_file_appears_only_at_the_end_and_replaces_an_old_one(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("old")
    with SubmissionWriter(str(path)) as writer:
        writer.write(*small_batch())
        assert path.read_text() == "old"
        assert writer.count == 2
    assert path.read_text().startswith(HEADER)
    assert os.listdir(tmp_path) == ["s.csv"]


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_writer_leaves_nothing_new(tmp_path, name, error):
    (tmp_path / name).write_text("old")
    with pytest.raises(error), SubmissionWriter(str(tmp_path / name)) as writer:
        writer.write(*small_batch())
        raise error
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "old"


def test_two_writers_of_one_file_do_not_damage_each_other(tmp_path):
    path, batch = tmp_path / "s.csv", small_batch()
    with SubmissionWriter(str(path)) as one:
        one.write(*batch)
        write(path, batch)
        whole = path.read_bytes()
        one.write(ids("last"), np.array([[1]]), np.array([[0.25]]))
    assert path.read_bytes() == whole + b"last,1 0.25\n"
    assert os.listdir(tmp_path) == ["s.csv"]


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_a_full_disk_is_one_line_that_names_the_file(
    tmp_path, name, known_temporary_names
):
    os.symlink("/dev/full", tmp_path / f"{name}.tmp")
    classes = np.tile(np.arange(20), (512, 1))
    scores = np.random.default_rng(0).random((512, 20))
    many = ids(*[f"video{i}" for i in range(512)])
    with (
        pytest.raises(UserError, match="No space left on device") as caught,
        SubmissionWriter(str(tmp_path / name)) as writer,
    ):
        for _ in range(20):
            writer.write(many, classes, scores)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_noticed_at_the_end_of_a_small_file_too(
    tmp_path, known_temporary_names
):
    os.symlink("/dev/full", tmp_path / "s.csv.tmp")
    with pytest.raises(UserError, match="No space left on device"):
        write(tmp_path / "s.csv", small_batch())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_a_folder_that_cannot_be_written_is_found_before_any_prediction(tmp_path, name):
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        path = tmp_path / folder / name
        with (
            pytest.raises(UserError, match=f"{path} cannot be written: "),
            SubmissionWriter(str(path)),
        ):
            raise RuntimeError("not reached")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_with_the_videos_id(tmp_path, bad):
    names, classes, scores = small_batch()
    scores[1, 2] = bad
    with pytest.raises(DataError, match="video x_-9 are not finite"):
        write(tmp_path / "s.csv", (names, classes, scores))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bad", ["", "a,b", "a\nb", 'a"b', "a\rb"])
def test_an_id_that_would_break_the_file_is_refused(tmp_path, bad):
    _, classes, scores = small_batch()
    with pytest.raises(DataError, match="cannot stand in a submission"):
        write(tmp_path / "s.csv", (ids("good", bad), classes, scores))


def test_memory_does_not_grow_with_the_file(tmp_path):
    classes = np.tile(np.arange(20), (256, 1))
    scores = np.sort(np.random.default_rng(0).random((256, 20)))[:, ::-1]
    path = tmp_path / "s.csv"

    def round_trip(batches: int) -> int:
        tracemalloc.reset_peak()
        with SubmissionWriter(str(path)) as writer:
            for i in range(batches):
                writer.write(ids(*[f"{i}-{j}" for j in range(256)]), classes, scores)
        assert sum(1 for _ in read_submission(str(path))) == 256 * batches
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        small, large = round_trip(8), round_trip(32)
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 1_500_000
    assert large < 1.2 * small


# --- reading -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_what_was_written_is_read_back_in_order(tmp_path, name):
    path = tmp_path / name
    rng = np.random.default_rng(1)
    batches = []
    for b in range(3):  # more than one block of the reader
        scores = -np.sort(-rng.random((2048, 20)), axis=1)
        classes = rng.integers(0, 3862, (2048, 20))
        batches.append((ids(*[f"{b}-{i}" for i in range(2048)]), classes, scores))
    write(path, *batches)
    read = list(read_submission(str(path)))
    assert [r[0] for r in read] == [i for batch in batches for i in batch[0]]
    np.testing.assert_array_equal(
        np.stack([r[1] for r in read]), np.concatenate([b[1] for b in batches])
    )
    np.testing.assert_allclose(
        np.stack([r[2] for r in read]),
        np.concatenate([b[2] for b in batches]),
        rtol=5e-6,
    )


def test_windows_line_ends_and_a_missing_last_one_are_read(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"VideoId,LabelConfidencePairs\r\na,1 0.5\r\nb,2 0.25")
    read = [(i, c.tolist(), s.tolist()) for i, c, s in read_submission(str(path))]
    assert read == [(b"a", [1], [0.5]), (b"b", [2], [0.25])]


MALFORMED = [
    "abcd",
    "abcd,",
    "abcd,1",
    "abcd,1 0.5 2",
    "abcd,1.5 0.5",
    "abcd,one 0.5",
    "abcd,1 half",
    "abcd,1_0 0.5",
    "abcd,1  0.5",
    ",1 0.5",
    "",
]


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_stops_the_reader_with_its_number(tmp_path, line):
    path = tmp_path / "s.csv"
    path.write_text(f"{HEADER}good,1 0.5\n{line}\n")
    with pytest.raises(DataError, match=f"{path}, line 3: expected"):
        list(read_submission(str(path)))


def test_the_reader_refuses_another_header_and_an_empty_file(tmp_path):
    path = tmp_path / "s.csv"
    for text in ("Class,Segments\n", "", "abcd,1 0.5\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="line 1: the header must be"):
            list(read_submission(str(path)))


def test_a_cut_gz_file_and_one_that_is_no_gz_are_named(tmp_path):
    write(tmp_path / "s.csv.gz", small_batch())
    whole = (tmp_path / "s.csv.gz").read_bytes()
    damaged = bytearray(whole)
    damaged[20] ^= 0xFF
    for data in (whole[:-12], b"plain text", bytes(damaged)):
        (tmp_path / "s.csv.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"s\.csv\.gz cannot be read"):
            list(read_submission(str(tmp_path / "s.csv.gz")))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="/no/such/file.csv cannot be read"):
        validate("/no/such/file.csv")


def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"x" * 5_000_000)
    with pytest.raises(DataError, match="not a submission"):
        validate(str(path))


# --- ids of shards -------------------------------------------------------------------


def test_ids_of_shards_of_both_levels_and_both_keys_are_read_in_file_order(tmp_path):
    frames, video = np.ones((3, 16), np.uint8), np.ones(16, np.float32)
    write_records(
        tmp_path / "a.tfrecord",
        [encode_frame_record(f"f{i}", {"rgb": frames}, [1]) for i in range(300)],
    )
    write_records(
        tmp_path / "b.tfrecord",
        [
            encode_video_record("v0", {"mean_rgb": video}, None),
            encode_video_record("v1", {"mean_rgb": video}, [2], id_key="video_id"),
        ],
    )
    files = [str(tmp_path / n) for n in ("b.tfrecord", "a.tfrecord")]
    expected = [b"v0", b"v1", *(f"f{i}".encode() for i in range(300))]
    assert list(read_ids(files)) == expected


def test_an_unreadable_shard_is_named_while_ids_are_read(tmp_path):
    record = encode_video_record("v0", {"mean_rgb": np.ones(16, np.float32)}, [1])
    write_records(tmp_path / "cut.tfrecord", [record] * 3)
    data = (tmp_path / "cut.tfrecord").read_bytes()
    (tmp_path / "cut.tfrecord").write_bytes(data[:-5])
    with pytest.raises(DataError, match=r"cut\.tfrecord, record 2: the file is trunc"):
        list(read_ids([str(tmp_path / "cut.tfrecord")]))
    with tf.io.TFRecordWriter(str(tmp_path / "text.tfrecord")) as writer:
        writer.write(b"no protobuf at all")
    with pytest.raises(DataError, match=r"text\.tfrecord, record 0: it is no"):
        list(read_ids([str(tmp_path / "text.tfrecord")]))


# --- validating ----------------------------------------------------------------------


def check(tmp_path, text: str, **kwargs):
    path = tmp_path / "s.csv"
    path.write_text(text, newline="")
    return validate(str(path), **{"num_classes": 10, "top_k": 3, **kwargs})


GOOD = f"{HEADER}abcd,3 0.9 1 0.5 2 0.5\nefgh,0 1 9 1e-05\nijkl,4 0\n"


def test_a_good_file_has_no_problem(tmp_path):
    report = check(tmp_path, GOOD, ids=[b"ijkl", b"abcd", b"efgh"])
    assert report.ok
    assert (report.count, report.problems, report.faults) == (3, [], {})


def test_a_written_file_is_valid(tmp_path):
    write(tmp_path / "s.csv.gz", small_batch())
    report = validate(str(tmp_path / "s.csv.gz"), ids=[b"abcd", b"x_-9"])
    assert report.ok and report.count == 2


@pytest.mark.parametrize(
    "kind, line, text, message",
    [
        ("wrong header", 1, GOOD.replace("VideoId", "Video"), "must be VideoId,Label"),
        ("wrong header", 1, "a,1 0.5\n", "found 'a,1 0.5'"),
        *(
            ("malformed line", 5, f"{GOOD}{bad}\n", "expected `id,class score")
            for bad in MALFORMED
        ),
        ("repeated video", 5, f"{GOOD}abcd,1 0.5\n", "abcd is in line 2 already"),
        ("class out of range", 5, f"{GOOD}m,10 0.5\n", "class 10 is not in 0 .. 9"),
        ("class out of range", 5, f"{GOOD}m,-1 0.5\n", "class -1 is not in 0 .. 9"),
        ("repeated class", 5, f"{GOOD}m,1 0.5 1 0.4\n", "class 1 is there twice"),
        ("score out of range", 5, f"{GOOD}m,1 1.5\n", "score 1.5 is not in"),
        ("score out of range", 5, f"{GOOD}m,1 -0.5\n", "score -0.5 is not in"),
        ("score out of range", 5, f"{GOOD}m,1 1 2 nan 3 0.5\n", "score nan"),
        ("score out of range", 5, f"{GOOD}m,1 inf\n", "score inf"),
        ("wrong order", 5, f"{GOOD}m,1 0.9 2 0.1 3 0.2\n", "0.2 follows 0.1"),
        ("too many pairs", 5, f"{GOOD}m,1 .4 2 .3 3 .2 4 .1\n", "4 pairs, at most 3"),
        ("cut short", 4, GOOD.removesuffix("\n"), "does not end with a line end"),
    ],
)
def test_each_fault_is_found_and_named_by_its_line(tmp_path, kind, line, text, message):
    report = check(tmp_path, text)
    assert kind in report.faults and not report.ok
    found = [p for p in report.problems if message in p]
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path / 's.csv'}, line {line}: ")
    assert "\n" not in found[0]
    if text.startswith(HEADER):
        assert report.faults == {kind: 1}


def test_videos_missing_and_unknown_to_the_shards_are_named(tmp_path):
    report = check(tmp_path, GOOD, ids=[b"abcd", b"wxyz", b"efgh"])
    path = tmp_path / "s.csv"
    assert report.faults == {"unknown video": 1, "missing video": 1}
    assert report.problems == [
        f"{path}, line 4: video ijkl is not in the shards.",
        f"{path}: video wxyz is missing.",
    ]


@pytest.mark.parametrize("text", [HEADER, ""])
def test_a_file_without_predictions_is_a_problem(tmp_path, text):
    report = check(tmp_path, text)
    assert report.faults["empty"] == 1 and report.count == 0


def test_many_problems_are_counted_but_few_are_listed(tmp_path):
    text = HEADER + "".join(f"v{i},99 0.5 1 2\n" for i in range(1000))
    report = check(tmp_path, text, ids=[b"w%i" % i for i in range(400)])
    assert report.faults == {
        "unknown video": 1000,
        "class out of range": 1000,
        "score out of range": 1000,
        "missing video": 400,
    }
    assert len(report.problems) == 4 * 6
    more = f"{tmp_path / 's.csv'}: 395 more of this kind: missing video."
    assert more in report.problems
