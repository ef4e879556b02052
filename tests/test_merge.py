"""Merging: parts joined are what one run would have written, byte for byte."""

import gzip
import os
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from yt8m.cli.main import run
from yt8m.data.records import write_records
from yt8m.errors import DataError, UserError
from yt8m.inference import segments
from yt8m.inference.segments import SegmentRanking, is_ranking, merge_rankings
from yt8m.inference.submission import (
    SubmissionWriter,
    merge_submissions,
    read_submission,
)

HEADER = "VideoId,LabelConfidencePairs\n"
CLASSES = np.array([40, 3, 7])


def part(number, num_videos=30, distinct=6):
    """Ids, rows, starts and logits of a part, with many equal scores."""
    rng = np.random.default_rng(number)
    rows = np.repeat(np.arange(num_videos), rng.integers(0, 6, num_videos))
    starts = np.concatenate(
        [np.zeros(0, int), *(np.arange(n) * 5 for n in np.bincount(rows))]
    )
    logits = np.float32(rng.integers(-distinct, distinct, (len(rows), 3)))
    return [b"p%d-%d" % (number, i) for i in range(num_videos)], rows, starts, logits


def rankings(tmp_path, parts, limit) -> tuple[list[str], bytes]:
    """A file of each part, and the CSV file of one ranking of all."""
    whole, paths = SegmentRanking(CLASSES, limit), []
    for number, data in enumerate(parts):
        ranking = SegmentRanking(CLASSES, limit)
        ranking.add(*data)
        whole.add(*data)
        paths.append(str(tmp_path / f"part-{number}.tfrecord"))
        ranking.write(paths[-1])
    whole.write_csv(str(tmp_path / "whole.csv"))
    return paths, (tmp_path / "whole.csv").read_bytes()


def merge(inputs, output, *flags) -> int:
    return run("merge", [f"--input_files={inputs}", f"--output_file={output}", *flags])


# --- segments ------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 5, 60, 100_000])
@pytest.mark.parametrize("block_values", [8, 1 << 20])
def test_merged_rankings_are_the_unsharded_one(
    tmp_path, monkeypatch, limit, block_values
):
    monkeypatch.setattr(segments, "_BLOCK_VALUES", block_values)
    paths, whole = rankings(tmp_path, [part(i) for i in range(4)], limit)
    merged = merge_rankings(paths, str(tmp_path / "merged.csv"), limit)
    assert (tmp_path / "merged.csv").read_bytes() == whole
    assert merged.num_segments == sum(len(part(i)[1]) for i in range(4))


def test_rankings_may_be_merged_to_fewer_segments_and_one_alone(tmp_path):
    paths, _ = rankings(tmp_path, [part(0), part(1)], 50)
    (tmp_path / "few").mkdir()
    _, whole = rankings(tmp_path / "few", [part(0), part(1)], 9)
    merge_rankings(paths, str(tmp_path / "merged.csv"), 9)
    assert (tmp_path / "merged.csv").read_bytes() == whole
    _, whole = rankings(tmp_path / "few", [part(1)], 50)
    merge_rankings(paths[1:], str(tmp_path / "one.csv"), 50)
    assert (tmp_path / "one.csv").read_bytes() == whole


def test_a_part_without_segments_changes_nothing(tmp_path):
    empty = part(5, num_videos=0)
    paths, whole = rankings(tmp_path, [empty, part(0), empty, part(1)], 20)
    merge_rankings(paths, str(tmp_path / "merged.csv"), 20)
    assert (tmp_path / "merged.csv").read_bytes() == whole


def test_the_order_of_the_parts_settles_ties(tmp_path):
    data = part(0, distinct=1), part(1, distinct=1)
    paths, whole = rankings(tmp_path, data, 20)
    merge_rankings(paths[::-1], str(tmp_path / "merged.csv"), 20)
    merged = (tmp_path / "merged.csv").read_bytes()
    assert merged != whole
    (tmp_path / "other").mkdir()
    assert merged == rankings(tmp_path / "other", data[::-1], 20)[1]


def test_the_buffers_hold_the_limit_whatever_the_number_of_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_BLOCK_VALUES", 8)
    paths, _ = rankings(tmp_path, [part(i) for i in range(8)], 10)
    merged = merge_rankings(paths, str(tmp_path / "merged.csv"), 10)
    assert merged._keys.shape == (3, 15) and merged._counts.max() <= 15


def test_parts_that_share_a_segment_are_named(tmp_path):
    paths, _ = rankings(tmp_path, [part(0), part(1), part(2)], 20)
    again = SegmentRanking(CLASSES, 20)
    again.add([b"new", b"p1-3"], np.array([0, 1]), np.array([0, 0]), np.zeros((2, 3)))
    again.write(str(tmp_path / "again.tfrecord"))
    assert b"p1-3" in [part(1)[0][r] for r in part(1)[1]]
    with pytest.raises(DataError) as error:
        merge_rankings([*paths, f"{tmp_path}/again.tfrecord"], f"{tmp_path}/m.csv", 20)
    assert str(error.value) == (
        f"Segment p1-3:0 in {tmp_path}/again.tfrecord is in {paths[1]} already; give "
        "every shard once."
    )
    with pytest.raises(DataError, match="part-0.tfrecord is in .*part-0.tfrecord"):
        merge_rankings([paths[0], paths[0]], f"{tmp_path}/m.csv", 20)
    assert not (tmp_path / "m.csv").exists()


def test_rankings_that_do_not_fit_together_are_refused(tmp_path):
    paths, _ = rankings(tmp_path, [part(0)], 20)
    other = SegmentRanking(np.array([3, 7]), 20)
    other.add([b"x"], np.array([0]), np.array([0]), np.zeros((1, 2)))
    other.write(str(tmp_path / "other.tfrecord"))
    with pytest.raises(UserError, match=r"other.tfrecord ranks other classes than "):
        merge_rankings([*paths, f"{tmp_path}/other.tfrecord"], f"{tmp_path}/m.csv", 20)
    with pytest.raises(UserError, match="part-0.tfrecord keeps 20 segments .* 21 are"):
        merge_rankings(paths, f"{tmp_path}/m.csv", 21)
    with pytest.raises(ValueError, match="`paths` must not be empty"):
        merge_rankings([], f"{tmp_path}/m.csv", 20)


def test_other_and_damaged_records_are_refused_with_their_file(tmp_path):
    paths, _ = rankings(tmp_path, [part(0)], 20)
    records = [r.numpy() for r in tf.data.TFRecordDataset(paths[0])]
    assert len(records) == 2 + 3
    path = str(tmp_path / "bad.tfrecord")
    for bad, message in (
        ([b""], "holds records, but no ranking"),
        ([records[0].replace(b"ranking", b"rankinG")], "holds records, but no ranking"),
        (records[:1], "is cut short"),
        (records[:4], "is cut short"),
    ):
        write_records(path, bad)
        with pytest.raises(DataError, match=f"{path} {message}"):
            merge_rankings([path], f"{tmp_path}/m.csv", 20)
    with open(paths[0], "rb") as whole, open(path, "wb") as cut:
        cut.write(whole.read()[:-9])
    with pytest.raises(DataError, match=f"{path}, record 4: the file is truncated"):
        merge_rankings([path], f"{tmp_path}/m.csv", 20)


def test_a_ranking_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_VERSION", 2)
    paths, _ = rankings(tmp_path, [part(0)], 20)
    monkeypatch.undo()
    with pytest.raises(DataError, match="another version"):
        merge_rankings(paths, f"{tmp_path}/m.csv", 20)


# --- videos --------------------------------------------------------------------------


def submission(path, *ids, text=None) -> str:
    body = "".join(f"{i},3 0.5 1 0.25\n" for i in ids)
    path.write_text(HEADER + body if text is None else text, newline="")
    return str(path)


def test_submissions_are_joined_in_order_under_one_header(tmp_path):
    first = submission(tmp_path / "b.csv", "b1", "a1")
    second = submission(tmp_path / "a.csv", text=HEADER)
    third = str(tmp_path / "c.csv.gz")
    with SubmissionWriter(third) as writer:
        writer.write([b"c1"], np.array([[9]]), np.array([[1e-5]]))
    assert merge_submissions([first, second, third], f"{tmp_path}/m.csv") == 3
    body = "b1,3 0.5 1 0.25\na1,3 0.5 1 0.25\nc1,9 1e-05\n"
    assert (tmp_path / "m.csv").read_text() == HEADER + body
    merge_submissions([first, third], f"{tmp_path}/m.csv.gz")
    text = gzip.decompress((tmp_path / "m.csv.gz").read_bytes()).decode()
    assert text == HEADER + body


def test_scores_are_copied_as_they_are_and_line_ends_are_made_alike(tmp_path):
    text = "VideoId,LabelConfidencePairs\r\na,1 0.50000000001 2 1.0e-3\r\nb,2 .5"
    path = submission(tmp_path / "s.csv", text=text)
    other = submission(tmp_path / "t.csv", "c")
    merge_submissions([path, other], f"{tmp_path}/m.csv")
    assert (tmp_path / "m.csv").read_bytes() == (
        HEADER.encode() + b"a,1 0.50000000001 2 1.0e-3\nb,2 .5\nc,3 0.5 1 0.25\n"
    )


def test_a_video_in_two_parts_is_named_with_files_and_lines(tmp_path):
    first = submission(tmp_path / "1.csv", "a", "b")
    empty = submission(tmp_path / "2.csv", text=HEADER)
    third = submission(tmp_path / "3.csv", "c", "d")
    for ids, line, earlier in (
        (["e", "b"], 3, f"{first}, line 3"),
        (["c"], 2, f"{third}, line 2"),
        (["e", "f", "e"], 4, f"{tmp_path}/4.csv, line 2"),
    ):
        last = submission(tmp_path / "4.csv", *ids)
        with pytest.raises(DataError) as error:
            merge_submissions([first, empty, third, last], f"{tmp_path}/m.csv")
        assert str(error.value) == (
            f"{last}, line {line}: video {ids[-1]} is in {earlier} already; give every "
            "part once."
        )
        assert not [name for name in os.listdir(tmp_path) if "m.csv" in name]


def test_a_part_that_is_not_there_or_not_whole_is_named(tmp_path, capsys):
    submission(tmp_path / "s-00000-of-00003.csv", "a")
    submission(tmp_path / "s-00001-of-00003.csv.12-0123abcd.tmp", "b")
    submission(tmp_path / "s-00002-of-00003.csv", "c")
    submission(tmp_path / "t-1-of-1.csv", "d")  # of somebody who counts from 1
    assert merge(f"{tmp_path}/s*", tmp_path / "m.csv") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "1 of the 3 parts" in said and "number 1 for one" in said
    submission(tmp_path / "s-00001-of-00003.csv", "b")
    assert merge(f"{tmp_path}/*-of-*", tmp_path / "m.csv") == 0
    assert [i for i, *_ in read_submission(str(tmp_path / "m.csv"))] == [
        b"a",
        b"b",
        b"c",
        b"d",
    ]


def test_a_malformed_part_is_named_and_nothing_is_left_behind(tmp_path):
    good = submission(tmp_path / "1.csv", "a")
    for text, message in (
        (HEADER + "b,1 0.5\nc,1 0.5 2", "2.csv, line 3: expected"),
        ("b,1 0.5\n", "2.csv, line 1: the header must be"),
    ):
        bad = submission(tmp_path / "2.csv", text=text)
        with pytest.raises(DataError, match=message):
            merge_submissions([good, bad], f"{tmp_path}/m.csv")
        assert not [name for name in os.listdir(tmp_path) if "m.csv" in name]


def test_the_memory_of_a_merge_is_that_of_the_ids(tmp_path):
    paths = []
    for i in range(4):
        body = "".join(f"v{i}{j:05d},{'3 0.5 ' * 19}3 0.5\n" for j in range(5000))
        paths.append(submission(tmp_path / f"{i}.csv", text=HEADER + body))
    merge_submissions(paths[:1], f"{tmp_path}/m.csv")
    tracemalloc.start()
    try:
        assert merge_submissions(paths, f"{tmp_path}/m.csv") == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000 * 200 + 1_500_000


# --- the command ---------------------------------------------------------------------


def test_the_command_joins_parts_by_the_numbers_in_their_names(tmp_path, capsys):
    for i in range(12):
        submission(tmp_path / f"part-{i}.csv", f"v{i}")
    submission(tmp_path / "first.csv", "w")
    inputs = f"{tmp_path}/first.csv, {tmp_path}/part-*.csv,{tmp_path}/part-3.csv"
    assert merge(inputs, tmp_path / "m.csv") == 0
    lines = (tmp_path / "m.csv").read_text().splitlines()[1:]
    found = [line.split(",")[0] for line in lines]
    assert found == ["w", *(f"v{i}" for i in range(12))]
    assert "13 videos from 13 files" in capsys.readouterr().out


def test_the_command_tells_rankings_by_their_content(tmp_path, capsys):
    paths, whole = rankings(tmp_path, [part(0), part(1)], 20)
    assert is_ranking(paths[0]) and not is_ranking(f"{tmp_path}/whole.csv")
    os.rename(paths[0], tmp_path / "part-0.csv")
    os.rename(paths[1], tmp_path / "part-1.csv")
    output = tmp_path / "m.csv"
    assert merge(f"{tmp_path}/part-?.csv", output, "--segment_max_pred=20") == 0
    assert output.read_bytes() == whole
    assert "the best of 1" in capsys.readouterr().out
    few = tmp_path / "few.csv"
    assert merge(f"{tmp_path}/part-?.csv", few, "--segment_max_pred=2") == 0
    assert len(few.read_text().splitlines()[1].split()) == 2


def test_the_command_refuses_what_it_cannot_merge_in_one_line(tmp_path, capsys):
    paths, _ = rankings(tmp_path, [part(0)], 200)
    csv_file, output = submission(tmp_path / "s.csv", "a"), f"{tmp_path}/m.csv"
    no_scores = f"{tmp_path}/whole.csv"
    for inputs, target, message in (
        ("", output, "give --input_files"),
        (csv_file, "", "give --output_file"),
        (f"{tmp_path}/none*", output, "No file matches --input_files="),
        (f"{paths[0]},{csv_file}", output, f"{paths[0]} is a ranking of segments and"),
        (csv_file, csv_file, "is also an input, which it would replace"),
        (no_scores, output, "has no scores"),
        (str(tmp_path), output, "cannot be read"),
    ):
        assert merge(inputs, target) == 1
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert merge(csv_file, output, "--segment_max_pred=5") == 1
    assert "but no part ranks segments" in capsys.readouterr().err
    assert not os.path.exists(output)
