"""Rankings of segments: equal to a full sort, bounded, exact bytes, read, checked."""

import gzip
import os

import numpy as np
import pytest

from yt8m.errors import DataError, UserError
from yt8m.inference import segments
from yt8m.inference.segments import (
    SegmentRanking,
    is_segment_submission,
    read_segment_submission,
    validate_segments,
)

HEADER = "Class,Segments\n"


def generated(num_videos, num_classes, seed=0, distinct=None):
    """Ids, and rows, starts and logits of 0 to 6 segments of each video."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(num_videos), rng.integers(0, 7, num_videos))
    starts = np.concatenate([np.arange(n) * 5 for n in np.bincount(rows)])
    logits = rng.normal(size=(len(rows), num_classes)).astype(np.float32)
    if distinct:
        logits = np.float32(rng.integers(distinct, size=logits.shape))
    return [b"v%d" % i for i in range(num_videos)], rows, starts, logits


def sorted_text(classes, limit, ids, rows, starts, logits) -> str:
    """The submission by Python's own stable sort of all segments of each class."""
    names = [f"{ids[r].decode()}:{s}" for r, s in zip(rows, starts, strict=True)]
    lines = []
    for label, scores in sorted(zip(classes, logits.T.tolist(), strict=True)):
        order = sorted(range(len(names)), key=lambda i, scores=scores: -scores[i])
        lines.append(f"{label},{' '.join(names[i] for i in order[:limit])}\n")
    return HEADER + "".join(lines)


def written(tmp_path, ranking) -> str:
    ranking.write_csv(str(tmp_path / "s.csv"))
    return (tmp_path / "s.csv").read_text()


def ranked(classes, limit, data, batch=10_000) -> SegmentRanking:
    """A ranking to which `data` were added some segments at a time."""
    ranking = SegmentRanking(np.array(classes), limit)
    ids, rows, starts, logits = data
    for at in range(0, len(rows), batch):
        some = slice(at, at + batch)
        ranking.add(ids, rows[some], starts[some], logits[some])
    return ranking


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few segments, so that buffers fill and are selected from often."""
    monkeypatch.setattr(segments, "_BLOCK_VALUES", 16)


# --- the ranking ---------------------------------------------------------------------


@pytest.mark.parametrize("distinct", [None, 2, 5], ids=["distinct", "2", "5 values"])
@pytest.mark.parametrize("limit", [1, 2, 9, 40, 1000])
def test_the_ranking_is_that_of_a_full_sort(tmp_path, small_blocks, limit, distinct):
    classes = [7, 3, 3861, 0]
    data = generated(100, 4, distinct=distinct)
    assert 40 < len(data[1]) < 1000  # cut short, and fewer segments than the limit
    text = written(tmp_path, ranked(classes, limit, data))
    assert text == sorted_text(classes, limit, *data)


@pytest.mark.parametrize("block_values", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("batch", [1, 13, 10_000])
def test_blocks_and_batches_do_not_change_the_bytes(
    tmp_path, monkeypatch, block_values, batch
):
    monkeypatch.setattr(segments, "_BLOCK_VALUES", block_values)
    data = generated(60, 3, seed=1, distinct=20)
    text = written(tmp_path, ranked([2, 1, 5], 11, data, batch))
    assert text == sorted_text([2, 1, 5], 11, *data)


@pytest.mark.parametrize("rising", [True, False])
def test_scores_that_only_rise_or_fall_are_ranked_right(tmp_path, small_blocks, rising):
    ids, rows, starts, logits = generated(80, 2)
    logits[:] = np.linspace(-50, 50, len(rows))[:, None] * (1 if rising else -1)
    data = ids, rows, starts, logits
    assert written(tmp_path, ranked([0, 1], 5, data)) == sorted_text([0, 1], 5, *data)


def test_the_buffers_do_not_grow_with_the_number_of_segments(small_blocks):
    ranking = SegmentRanking(np.arange(4), 20)
    for part in range(50):
        ids, rows, starts, logits = generated(40, 4, seed=part, distinct=9)
        ranking.add([b"%d-%s" % (part, i) for i in ids], rows, starts, logits)
        assert ranking._keys.shape == (4, 20 + 10)
        assert ranking._counts.max() <= 30
    assert ranking.num_segments > 5000


def test_a_small_limit_has_room_for_a_block():
    ranking = SegmentRanking(np.arange(1000), 1)
    ids, starts = [b"a"], np.arange(3000)
    for rising in (1, -1):
        logits = np.tile(np.float32(rising * starts)[:, None], 1000)
        ranking.add(ids, np.zeros(3000, int), starts, logits)
        ids = [b"b"]
        assert ranking._keys.shape == (1000, 1 + 1048)
        assert ranking._table.pairs[ranking._best(999) & 0xFFFFFFFF] == [2999]


def test_few_segments_take_little_memory_whatever_the_limit():
    ranking = ranked([0, 1], 10**9, generated(100, 2))
    assert ranking._keys.shape == (2, ranking.num_segments)


def test_zero_and_minus_zero_are_equal_and_the_first_added_wins(tmp_path):
    logits = np.array([[-0.0], [0.0], [-0.0], [1e-30]], np.float32)
    ranking = SegmentRanking(np.array([4]), 3)
    ranking.add([b"ab"], np.zeros(4, int), np.arange(4) * 5, logits)
    assert written(tmp_path, ranking) == HEADER + "4,ab:15 ab:0 ab:5\n"


def test_probabilities_and_logits_of_any_size_are_ranked_as_float32(tmp_path):
    logits = np.array([[3e38], [-3e38], [1e-45], [0.5], [-1e-45]], np.float32)
    ranking = SegmentRanking(np.array([0]), 10)
    ranking.add([b"a"], np.zeros(5, int), np.arange(5) * 5, logits)
    assert written(tmp_path, ranking) == HEADER + "0,a:0 a:15 a:10 a:20 a:5\n"


def test_videos_without_segments_and_calls_without_any_change_nothing(tmp_path):
    ranking = SegmentRanking(np.array([1]), 5)
    empty = np.zeros(0, int)
    ranking.add([b"none"], empty, empty, np.zeros((0, 1), np.float32))
    ranking.add([], empty, empty, np.zeros((0, 1), np.float32))
    assert (ranking.num_segments, written(tmp_path, ranking)) == (0, HEADER + "1,\n")
    ranking.add([b"x", b"some"], np.array([1]), np.array([0]), np.ones((1, 1)))
    assert written(tmp_path, ranking) == HEADER + "1,some:0\n"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused_with_its_segment(bad):
    ranking = SegmentRanking(np.array([1, 2]))
    logits = np.zeros((3, 2), np.float32)
    logits[1, 1] = bad
    with pytest.raises(DataError, match="segment b:10 are not finite"):
        ranking.add([b"a", b"b"], np.array([0, 1, 1]), np.array([0, 10, 15]), logits)


@pytest.mark.parametrize("bad", [b"", b"a b", b"a,b", b'a"b', b"a\nb", b"a\0"])
def test_an_id_that_would_break_the_file_is_refused(bad):
    ranking = SegmentRanking(np.array([1]))
    with pytest.raises(DataError, match="cannot stand in a submission"):
        ranking.add([b"a", bad], np.array([1]), np.array([0]), np.zeros((1, 1)))


def test_ids_of_any_length_and_with_colons_are_written_whole(tmp_path):
    ids = [b"a", b"-_long:id:5-" * 9, "\u00e9t\u00e9".encode()]
    ranking = SegmentRanking(np.array([0]))
    ranking.add(ids, np.arange(3), np.array([5, 0, 3600]), np.zeros((3, 1)))
    expected = f"0,a:5 {ids[1].decode()}:0 \u00e9t\u00e9:3600\n"
    ranking.write_csv(str(tmp_path / "s.csv"))
    assert (tmp_path / "s.csv").read_bytes() == (HEADER + expected).encode()
    ((_, found),) = read_segment_submission(str(tmp_path / "s.csv"))
    assert found[1] == ids[1] + b":0"


def test_a_segment_that_comes_twice_is_refused_but_not_a_video():
    ranking = SegmentRanking(np.array([1]))
    zeros = np.zeros((2, 1))
    ranking.add([b"a", b"b"], np.array([0, 1]), np.array([5, 5]), zeros)
    ranking.add([b"b", b"a"], np.array([0, 1]), np.array([0, 10]), zeros)
    for ids, starts in (([b"c", b"a"], [0, 10]), ([b"a", b"b"], [15, 0])):
        with pytest.raises(DataError, match="Segment [ab]:(10|0) is there twice"):
            ranking.add(ids, np.array([0, 1]), np.array(starts), zeros)
    with pytest.raises(DataError, match="Segment d:0 is there twice"):
        ranking.add([b"d"], np.array([0, 0]), np.array([0, 0]), zeros)


def test_wrong_arguments_are_refused():
    for classes in (np.zeros(0), np.array([1, 1]), np.zeros((2, 2)), np.array(3)):
        with pytest.raises(ValueError, match="`classes` must"):
            SegmentRanking(classes)
    with pytest.raises(ValueError, match="`limit` must be positive"):
        SegmentRanking(np.arange(2), 0)
    ranking = SegmentRanking(np.arange(2))
    for shape in ((1, 3), (2, 2)):
        with pytest.raises(ValueError, match="`logits` must be"):
            ranking.add([b"a"], np.array([0]), np.array([0]), np.zeros(shape))


def test_a_gz_name_gives_the_same_text_and_the_same_bytes_always(tmp_path):
    ranking = ranked([0, 1], 100, generated(30, 2))
    text = written(tmp_path, ranking)
    for name in ("a.csv.gz", "b.csv.gz"):
        ranking.write_csv(str(tmp_path / name))
    compressed = (tmp_path / "a.csv.gz").read_bytes()
    assert gzip.decompress(compressed).decode() == text
    assert (tmp_path / "b.csv.gz").read_bytes() == compressed


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    ranking = ranked([0, 1], 100, generated(30, 2))
    path = str(tmp_path / "missing" / "s.csv")
    for write in (ranking.write_csv, ranking.write):
        with pytest.raises(UserError, match=f"{path} cannot be written: "):
            write(path)
    assert os.listdir(tmp_path) == []


# --- reading -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "3,a:0 b:5\n12,c:0\n",
        "Class Id,Segment Ids\n3,a:0 b:5\n12,c:0\n",
        "3,a:0 b:5\n12,c:0\n",
        "3,a:0 b:5 \n12,c:0\n",
        HEADER.replace("\n", "\r\n") + "3,a:0 b:5\r\n12,c:0",
    ],
    ids=["ours", "the other header", "no header", "a space at the end", "Windows"],
)
def test_submissions_are_read_with_and_without_header(tmp_path, text):
    path = tmp_path / "s.csv"
    path.write_text(text, newline="")
    assert is_segment_submission(str(path))
    expected = [(3, [b"a:0", b"b:5"]), (12, [b"c:0"])]
    assert list(read_segment_submission(str(path))) == expected
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert list(read_segment_submission(str(tmp_path / "s.csv.gz"))) == expected


def test_what_was_written_is_read_back(tmp_path):
    data = generated(2000, 2)
    text = written(tmp_path, ranked([9, 4], 100_000, data))
    found = list(read_segment_submission(str(tmp_path / "s.csv")))
    assert [c for c, _ in found] == [4, 9]
    assert text == HEADER + "".join(f"{c},{b' '.join(s).decode()}\n" for c, s in found)


def test_a_line_of_100_000_long_ids_is_read(tmp_path):
    names = [b"abcdefghijk_%06d:295" % i for i in range(100_000)]
    path = tmp_path / "s.csv"
    path.write_bytes(HEADER.encode() + b"5," + b" ".join(names) + b"\n")
    assert path.stat().st_size > 2_000_000
    assert list(read_segment_submission(str(path))) == [(5, names)]
    assert validate_segments(str(path)).ok


@pytest.mark.parametrize("line", ["x,a:0", "3", "3,a:0,b:5", "", "-1,a:0", "1.5,a:0"])
def test_a_malformed_line_stops_the_reader_with_its_number(tmp_path, line):
    path = tmp_path / "s.csv"
    path.write_text(f"{HEADER}1,a:0\n{line}\n")
    with pytest.raises(DataError, match=f"{path}, line 3: expected `class,video:start"):
        list(read_segment_submission(str(path)))


@pytest.mark.parametrize(
    "line", ["VideoId,LabelConfidencePairs", "ab,1 0.5", "", "12,3 0.5"]
)
def test_other_files_are_told_apart_by_their_first_line(tmp_path, line):
    path = tmp_path / "s.csv"
    path.write_text(f"{line}\n")
    assert not is_segment_submission(str(path))


# --- checking ------------------------------------------------------------------------

GOOD = HEADER + "3,a:0 b:295\n12,b:0\n"


def check(tmp_path, text, **kwargs):
    path = tmp_path / "s.csv"
    path.write_text(text, newline="")
    return validate_segments(str(path), **{"limit": 3, **kwargs})


def test_a_good_file_has_no_problem(tmp_path):
    report = check(tmp_path, GOOD, classes=[12, 3, 4], ids=[b"a", b"b", b"c"])
    assert report.ok and report.count == 2 and report.problems == []
    written(tmp_path, ranked([5, 1], 50, generated(30, 2)))
    report = validate_segments(str(tmp_path / "s.csv"), classes=np.array([1, 5]))
    assert report.ok and report.count == 2


@pytest.mark.parametrize(
    "kind, line, text, message",
    [
        ("wrong header", 1, GOOD.replace("Class", "Klass"), "must be Class,Segments"),
        ("wrong header", 1, GOOD.removeprefix(HEADER), "found '3,a:0 b:295'"),
        ("wrong header", 1, "Class Id,Segment Ids\n3,a:0\n", "found 'Class Id"),
        ("malformed line", 4, GOOD + "x,a:0\n", "expected `class,video:start"),
        ("malformed line", 4, GOOD + "4,a:0,b:0\n", "expected `class,video:start"),
        ("repeated class", 4, GOOD + "3,a:5\n", "class 3 is in line 2 already"),
        ("unknown class", 4, GOOD + "5,a:0\n", "class 5 is not known"),
        ("no segment", 4, GOOD + "4,\n", "there is no segment"),
        ("too many segments", 4, GOOD + "4,a:0 a:5 b:0 b:5\n", "4 segments, at most 3"),
        ("repeated segment", 4, GOOD + "4,a:0 b:0 a:0\n", "a:0 is there twice"),
        ("malformed segment", 4, GOOD + "4,a:0 b\n", "found 'b'"),
        ("malformed segment", 4, GOOD + "4,a:-5\n", "found 'a:-5'"),
        ("malformed segment", 4, GOOD + "4,a:05\n", "found 'a:05'"),
        ("malformed segment", 4, GOOD + "4,:5\n", "found ':5'"),
        ("malformed segment", 4, GOOD + "4,b:0.5\n", "found 'b:0.5'"),
        ("wrong start", 4, GOOD + "4,a:0 b:7\n", "b:7 does not start at a multiple"),
        ("unknown video", 4, GOOD + "4,c:0\n", "the video of segment c:0 is not"),
        ("cut short", 3, GOOD.removesuffix("\n"), "does not end with a line end"),
    ],
)
def test_each_fault_is_found_and_named_by_its_line(tmp_path, kind, line, text, message):
    report = check(tmp_path, text, classes=[3, 4, 12], ids=[b"a", b"b"])
    assert report.faults == {kind: 1} and not report.ok
    assert len(report.problems) == 1 and message in report.problems[0]
    assert report.problems[0].startswith(f"{tmp_path / 's.csv'}, line {line}: ")


@pytest.mark.parametrize("text", [HEADER, ""])
def test_a_file_without_classes_is_a_problem(tmp_path, text):
    report = check(tmp_path, text)
    assert report.faults["empty"] == 1 and report.count == 0


def test_a_file_without_header_has_all_its_lines_checked(tmp_path):
    report = check(tmp_path, "3,a:1\n4,a:0\n")
    assert report.faults == {"wrong header": 1, "wrong start": 1}
    assert report.count == 2


def test_many_problems_are_counted_but_few_are_listed(tmp_path):
    many = " ".join(f"v{i}:3" for i in range(1000))
    report = check(tmp_path, f"{HEADER}3,{many}\n", limit=1000, ids=[])
    assert report.faults == {"wrong start": 1000}
    assert len(report.problems) == 6 and "995 more of this kind" in report.problems[-1]
