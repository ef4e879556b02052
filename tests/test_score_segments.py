"""MAP@K of segments: hand-computed, from shards and caches, of any submission."""

import numpy as np
import pytest

from yt8m.cli.main import run
from yt8m.data.records import SegmentRatings, encode_frame_record, write_records
from yt8m.errors import DataError
from yt8m.inference.segments import segment_average_precisions

HEADER = "Class,Segments\n"
RATINGS = {
    7: {b"a:0": 1, b"a:5": 0, b"b:0": 1, b"c:10": 1},
    3: {b"a:0": 0, b"b:0": 1},
    9: {b"a:0": 0},
    5: {b"c:0": 1},
}


def precisions(tmp_path, text, ratings=RATINGS, **kwargs):
    (tmp_path / "s.csv").write_text(text)
    return segment_average_precisions(str(tmp_path / "s.csv"), ratings, **kwargs)


def test_average_precision_by_hand(tmp_path):
    # Class 7: rated segments rank b:0 (1), a:5 (0), a:0 (1); three positives.
    # Class 3: a:0 (0), b:0 (1); one positive. Class 5 is not in the file.
    text = HEADER + "7,x:0 b:0 a:5 c:0 a:0\n9,a:0\n3,a:0 b:0 c:0\n8,a:0\n"
    found = precisions(tmp_path, text)
    assert list(found.items()) == [
        (3, pytest.approx(1 / 2)),
        (5, 0.0),
        (7, pytest.approx((1 / 1 + 2 / 3) / 3)),
    ]


def test_the_ranking_is_cut_before_unrated_segments_are_dropped(tmp_path):
    text = HEADER + "7,x:0 b:0 a:5 c:0 a:0 c:10\n"
    expected = {0: (1 + 2 / 3 + 3 / 4) / 3, 1: 0, 2: 1 / 3, 5: (1 + 2 / 3) / 3}
    expected |= {6: expected[0], 100_000: expected[0]}
    for top_n, value in expected.items():
        assert precisions(tmp_path, text, top_n=top_n)[7] == pytest.approx(value)


def test_it_is_the_loop_over_all_ranks(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"v{i}:{j * 5}" for i in range(40) for j in range(5)]
    ratings, lines, expected = {}, [], {}
    for label in range(20):
        rated = rng.choice(names, 30, replace=False)
        scores = rng.integers(0, 2, 30)
        ratings[label] = {
            n.encode(): int(s) for n, s in zip(rated, scores, strict=True)
        }
        ranking = rng.permutation(names)
        lines.append(f"{label},{' '.join(ranking)}\n")
        seen = found = total = 0
        for name in ranking[:120]:
            rating = ratings[label].get(name.encode())
            seen += rating is not None
            found += rating == 1
            total += found / seen if rating == 1 else 0
        expected[label] = total / scores.sum()
    result = precisions(tmp_path, "".join(lines), ratings, top_n=120)
    assert result == pytest.approx(expected)


def test_what_is_listed_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"s\.csv has two lines of class 7"):
        precisions(tmp_path, HEADER + "7,a:0\n7,b:0\n")
    with pytest.raises(DataError, match="lists segment b:0 twice for class 7"):
        precisions(tmp_path, HEADER + "7,b:0 a:0 b:0\n")


# --- the command ---------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path) -> str:
    """Two shards with the ratings above."""
    frames = np.zeros((20, 4), np.uint8)
    for shard, videos in enumerate([["a", "none"], ["b", "c"]]):
        records = []
        for video in videos:
            rated = [
                (label, int(name.split(b":")[1]), float(score))
                for label, ratings in RATINGS.items()
                for name, score in ratings.items()
                if name.startswith(video.encode() + b":")
            ]
            lists = [list(column) for column in zip(*rated, strict=True)]
            segments = None
            if lists:
                labels, starts, scores = lists
                ends = [start + 5 for start in starts]
                segments = SegmentRatings(labels, starts, ends, scores)
            records.append(
                encode_frame_record(video, {"rgb": frames}, [], segments=segments)
            )
        write_records(tmp_path / f"validate{shard}.tfrecord", records)
    return f"{tmp_path}/validate*.tfrecord"


TEXT = HEADER + "7,x:0 b:0 a:5 c:0 a:0\n9,a:0\n3,a:0 b:0 c:0\n"
MEAN = (1 / 2 + 0 + (1 / 1 + 2 / 3) / 3) / 3


def score(tmp_path, *flags, text=TEXT) -> int:
    path = tmp_path / "submission.csv"
    path.write_text(text, newline="")
    return run("score-segments", [f"--submission_file={path}", *flags])


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.removeprefix(HEADER),
        TEXT.replace("Class,Segments", "Class Id,Segment Ids"),
    ],
    ids=["header", "no header", "the other header"],
)
def test_the_command_prints_the_starters_line(tmp_path, shards, capsys, text):
    assert score(tmp_path, f"--eval_data_pattern={shards}", text=text) == 0
    assert capsys.readouterr().out == f"Num classes: 3 | mAP@100000: {MEAN:.6f}\n"
    assert score(tmp_path, f"--eval_data_pattern={shards}", "--top_n=2", text=text) == 0
    mean = (1 / 2 + 0 + 1 / 3) / 3
    assert capsys.readouterr().out == f"Num classes: 3 | mAP@2: {mean:.6f}\n"


def test_the_last_segment_of_a_line_counts_and_a_submission_of_all_scores_1(
    tmp_path, shards, capsys
):
    text = HEADER + "7,b:0 a:0 c:10\n3,b:0\n5,c:0\n"
    assert score(tmp_path, f"--eval_data_pattern={shards}", text=text) == 0
    assert capsys.readouterr().out.endswith("mAP@100000: 1.000000\n")


def test_classes_can_be_chosen_by_a_file(tmp_path, shards, capsys):
    (tmp_path / "ids.csv").write_text("Index\n7\n9\n1000\n")
    flag = f"--segment_label_ids_file={tmp_path}/ids.csv"
    assert score(tmp_path, f"--eval_data_pattern={shards}", flag) == 0
    mean = (1 / 1 + 2 / 3) / 3
    assert capsys.readouterr().out == f"Num classes: 1 | mAP@100000: {mean:.6f}\n"


def test_the_table_of_classes_has_names_and_counts(tmp_path, shards):
    (tmp_path / "names.csv").write_text('label_id,label_name\n3,Car\n7,"Game, video"\n')
    flags = [
        f"--eval_data_pattern={shards}",
        f"--per_class={tmp_path}/classes.csv",
        f"--vocabulary={tmp_path}/names.csv",
    ]
    assert score(tmp_path, *flags) == 0
    assert (tmp_path / "classes.csv").read_text() == (
        "class,name,average_precision,positives,ratings\n"
        "3,Car,0.500000,1,2\n"
        "5,class 5,0.000000,1,1\n"
        '7,"Game, video",0.555556,3,4\n'
    )


def test_the_cache_is_written_once_and_then_read_in_the_place_of_the_shards(
    tmp_path, shards, capsys
):
    cache = tmp_path / "cache.csv"
    flags = [f"--eval_data_pattern={shards}", f"--label_cache={cache}"]
    assert score(tmp_path, *flags) == 0
    first = capsys.readouterr().out
    lines = cache.read_text().splitlines()
    assert sorted(lines) == sorted(
        f"{name.decode()},{label},{rating}.0"
        for label, ratings in RATINGS.items()
        for name, rating in ratings.items()
    )
    assert score(tmp_path, "--eval_data_pattern=none", f"--label_cache={cache}") == 0
    assert capsys.readouterr().out == first
    cache.write_text("b:0,7,1.0\n")
    assert score(tmp_path, *flags) == 0
    assert capsys.readouterr().out == "Num classes: 1 | mAP@100000: 1.000000\n"


def test_the_starters_caches_are_read_also_those_with_shown_bytes(tmp_path, capsys):
    cache = tmp_path / "cache.csv"
    cache.write_text("b'a':0,7,1.0\nb'a':5,7,0.0\n" + 'b"b":0,7,1.0\nc:10,7,1.0\n')
    assert score(tmp_path, f"--label_cache={cache}") == 0
    mean = (1 / 1 + 2 / 3) / 3
    assert capsys.readouterr().out == f"Num classes: 1 | mAP@100000: {mean:.6f}\n"


@pytest.mark.parametrize(
    "line", ["a:0,7", "a:0,x,1.0", "a:0,7,x", "a,7,1.0", "a:0,7,1.0,2", "", "a b:0,7,1"]
)
def test_a_bad_line_of_a_cache_is_named(tmp_path, capsys, line):
    cache = tmp_path / "cache.csv"
    cache.write_text(f"b:0,7,1.0\n{line}\n")
    assert score(tmp_path, f"--label_cache={cache}") == 1
    error = capsys.readouterr().err
    assert f"{cache}, line 2: expected `video:start,class,rating`" in error


def test_ratings_of_other_videos_are_pointed_out(tmp_path, shards, capsys):
    text = HEADER + "7,x:0 y:5\n"
    assert score(tmp_path, f"--eval_data_pattern={shards}", text=text) == 0
    assert "No positive segment is listed" in capsys.readouterr().err


def test_wrong_flags_are_one_line(tmp_path, shards, capsys):
    (tmp_path / "cache.csv").write_text("a:0,7,0.0\n")
    assert run("score-segments", [f"--eval_data_pattern={shards}"]) == 1
    assert "give --submission_file" in capsys.readouterr().err
    for flags, message in (
        ([], "give --eval_data_pattern"),
        ([f"--label_cache={tmp_path}/none.csv"], "give --eval_data_pattern"),
        ([f"--label_cache={tmp_path}/cache.csv"], "No class has a positive rating"),
        ([f"--eval_data_pattern={tmp_path}/none*"], "No file matches"),
        (
            [f"--eval_data_pattern={shards}", f"--vocabulary={tmp_path}/v.csv"],
            "give --per_class",
        ),
    ):
        assert score(tmp_path, *flags) == 1
        assert message in capsys.readouterr().err


# --- the check of submissions --------------------------------------------------------


def check(path, *flags) -> int:
    return run("validate-submission", [str(path), *flags])


def test_the_check_recognises_submissions_of_segments(tmp_path, shards, capsys):
    path = tmp_path / "s.csv"
    path.write_text(HEADER + "7,a:0 b:5\n3,c:10\n")
    (tmp_path / "ids.csv").write_text("Index\n7\n3\n")
    known = f"--segment_label_ids_file={tmp_path}/ids.csv"
    assert check(path, f"--input_data_pattern={shards}", known) == 0
    assert capsys.readouterr().out == f"{path}: 2 classes, well formed.\n"
    path.write_text(HEADER + "7,a:0 b:5 x:0\n4,c:10\n")
    flags = [f"--input_data_pattern={shards}", known, "--segment_max_pred=2"]
    assert check(path, *flags) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}, line 2: 3 segments, at most 2 are allowed.",
        f"{path}, line 2: the video of segment x:0 is not in the shards.",
        f"{path}, line 3: class 4 is not known.",
    ]
    path.write_text("7,a:0\n")
    assert check(path) == 1
    assert "the header must be Class,Segments" in capsys.readouterr().out


def test_the_check_refuses_flags_of_the_other_format(tmp_path, capsys):
    path = tmp_path / "s.csv"
    path.write_text(HEADER + "7,a:0\n")
    assert check(path, "--top_k=5") == 1
    assert "--top_k is of no use" in capsys.readouterr().err
    path.write_text("VideoId,LabelConfidencePairs\na,1 0.5\n")
    assert check(path, "--segment_max_pred=5") == 1
    assert "--segment_max_pred is of no use" in capsys.readouterr().err
    assert check(path, "--top_k=5") == 0
