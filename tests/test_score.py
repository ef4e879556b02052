"""Scores of submissions: by loops over the files' own text, and by the model's own."""

import csv
import gzip
import json

import numpy as np
import pytest

from yt8m.cli.main import run
from yt8m.data.records import encode_frame_record, encode_video_record, write_records
from yt8m.errors import DataError, UserError
from yt8m.inference.scoring import (
    class_table,
    read_ground_truth,
    score_submission,
    summary_line,
)
from yt8m.inference.submission import SubmissionWriter
from yt8m.metrics import VideoMetrics

HEADER = "VideoId,LabelConfidencePairs\n"
C = 12


def write_lines(path, lines, header=HEADER):
    """`lines`: (id, [(class, score text), ...])."""
    text = header + "".join(
        f"{video},{' '.join(f'{c} {s}' for c, s in pairs)}\n" for video, pairs in lines
    )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else b"")
    if path.suffix != ".gz":
        path.write_text(text)
    return str(path)


def write_truth(path, truth, header="VideoId,Labels\n"):
    path.write_text(
        header + "".join(f"{v},{' '.join(map(str, own))}\n" for v, own in truth.items())
    )
    return str(path)


def random_case(num_videos=60, seed=0):
    """Truth and lines with ties, some of 1 and some of more than 6 pairs."""
    rng = np.random.default_rng(seed)
    truth, lines = {}, []
    for i in range(num_videos):
        labels = sorted(rng.choice(C, rng.integers(0, 5), replace=False).tolist())
        truth[f"v{i:03d}"] = labels
        classes = rng.choice(C, rng.integers(1, 10), replace=False).tolist()
        scores = [f"{(rng.integers(0, 8) + 4 * (c in labels)) / 12:g}" for c in classes]
        lines.append((f"v{i:03d}", list(zip(classes, scores, strict=True))))
    return truth, lines


def precision_mean(truths, total):
    found = precisions = 0
    for rank, truth in enumerate(truths, 1):
        if truth:
            found += 1
            precisions += found / rank
    return precisions / total if total else 0.0


def loop_scores(truth, lines, top_k):
    given = dict(lines)
    pooled, hits, perrs = [], {1: [], 5: []}, []
    for record, (video, labels) in enumerate(truth.items()):
        ranked = sorted((-float(s), c) for c, s in given.get(video, []))
        for k, found in hits.items():
            found.append(any(c in labels for _, c in ranked[:k]))
        n = len(labels)
        perrs.append(sum(c in labels for _, c in ranked[:n]) / n if n else 0)
        pooled += [(s, c, record, c in labels) for s, c in ranked[:top_k]]
    pooled.sort()
    totals = [sum(c in labels for labels in truth.values()) for c in range(C)]
    precisions = [
        precision_mean([p[3] for p in pooled if p[1] == c], totals[c])
        for c in range(C)
        if totals[c]
    ]
    return {
        "num_examples": len(truth),
        "gap": precision_mean([p[3] for p in pooled], sum(totals)),
        "hit_at_1": np.mean(hits[1]),
        "hit_at_5": np.mean(hits[5]),
        "perr": np.mean(perrs),
        f"map_at_{top_k}": np.mean(precisions),
    }


# --- the scores ----------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 3, 20])
@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_scores_equal_the_loops(tmp_path, name, top_k, monkeypatch):
    monkeypatch.setattr("yt8m.inference.scoring._LINES", 7)
    truth, lines = random_case()
    path = write_lines(tmp_path / name, lines)
    labels = write_truth(tmp_path / "truth.csv", truth)
    found = score_submission(path, labels, top_k=top_k, num_classes=C)
    assert (found.pop("missing_videos"), found.pop("unknown_videos")) == (0, 0)
    assert found.pop("top_k") == top_k
    assert found == pytest.approx(loop_scores(truth, lines, top_k), abs=1e-12)


def test_the_order_of_lines_and_of_pairs_does_not_matter(tmp_path):
    truth, lines = random_case()
    labels = write_truth(tmp_path / "truth.csv", truth)
    shuffled = [(v, pairs[::-1]) for v, pairs in lines[::-1]]
    first = write_lines(tmp_path / "a.csv", lines)
    second = write_lines(tmp_path / "b.csv", shuffled)
    assert score_submission(first, labels, num_classes=C) == score_submission(
        second, labels, num_classes=C
    )


def test_missing_videos_count_as_missed_and_unknown_ones_are_left_out(tmp_path):
    truth, lines = random_case()
    labels = write_truth(tmp_path / "truth.csv", truth)
    fewer = [*lines[:20], ("unknown", [(3, "0.99")]), *lines[25:], ("x", [(1, "1")])]
    path = write_lines(tmp_path / "s.csv", fewer)
    found = score_submission(path, labels, num_classes=C)
    assert (found.pop("missing_videos"), found.pop("unknown_videos")) == (5, 2)
    del found["top_k"]
    assert found == pytest.approx(loop_scores(truth, fewer, 20), abs=1e-12)
    assert found["gap"] < loop_scores(truth, lines, 20)["gap"]


def test_a_model_s_submission_has_the_scores_of_its_evaluation(tmp_path):
    rng = np.random.default_rng(3)
    labels = (rng.random((80, C)) < 0.2).astype(np.uint8)
    labels[0], labels[1] = 0, 1
    # Probabilities that six digits tell apart.
    scores = (rng.permutation(80 * C).reshape(80, C) + 200.5 * labels) / 2000
    metrics = VideoMetrics(C, top_k=4, hits_at=(1, 5))
    metrics.add(scores, labels)
    expected = metrics.result()
    records = [
        encode_video_record(f"v{i}", {"mean_rgb": np.zeros(4)}, np.flatnonzero(row))
        for i, row in enumerate(labels)
    ]
    write_records(tmp_path / "a.tfrecord", records[:50])
    write_records(tmp_path / "b.tfrecord", records[50:])
    classes = np.argsort(-scores, axis=1)
    with SubmissionWriter(str(tmp_path / "s.csv")) as writer:
        ids = np.array([f"v{i}".encode() for i in range(80)], dtype=object)
        writer.write(ids, classes, np.take_along_axis(scores, classes, axis=1))
    found = score_submission(
        str(tmp_path / "s.csv"), str(tmp_path / "*.tfrecord"), top_k=4, num_classes=C
    )
    for name in ("num_examples", "gap", "hit_at_1", "hit_at_5", "perr", "map_at_4"):
        assert found[name] == pytest.approx(expected[name], abs=1e-12)


def test_scores_are_compared_in_double_precision(tmp_path):
    labels = write_truth(tmp_path / "truth.csv", {"a": [7]})
    lines = [("a", [(3, "0.99999999990"), (7, "0.99999999991")])]
    path = write_lines(tmp_path / "s.csv", lines)
    assert score_submission(path, labels)["gap"] == 1


def test_per_class_and_per_vertical_tables_of_a_submission(tmp_path):
    truth = {"a": [0, 2], "b": [2], "c": []}
    lines = [
        ("a", [(0, "0.9"), (2, "0.4"), (1, "0.3")]),
        ("b", [(0, "0.5"), (1, "0.2")]),
        ("c", [(2, "0.6")]),
    ]
    path = write_lines(tmp_path / "s.csv", lines)
    found = score_submission(
        path,
        read_ground_truth(write_truth(tmp_path / "truth.csv", truth), 4),
        verticals={0: ["X"], 2: ["X", "Y"], 1: ["Y"]},
        per_class=True,
    )
    # Class 2 ranks c, a: one of its two positives at rank 2.
    assert class_table(found) == (
        "Index,AveragePrecisionAt20,Positives\n0,1.000000,1\n1,,0\n2,0.250000,2\n3,,0\n"
    )
    # Of X: 0.9 +, 0.6 -, 0.5 -, 0.4 +. Of Y: 0.6 -, 0.4 +, 0.3 -, 0.2 -.
    assert found["per_vertical"] == {
        "X": {"classes": 2, "positives": 3, "gap": 0.5, "map_at_20": 0.625},
        "Y": {"classes": 1, "positives": 2, "gap": 0.25, "map_at_20": 0.25},
    }


# --- the truth -----------------------------------------------------------------------


def test_tables_with_and_without_header_say_the_same(tmp_path):
    truth, _ = random_case()
    plain = read_ground_truth(write_truth(tmp_path / "a.csv", truth), C)
    bare = read_ground_truth(write_truth(tmp_path / "b.csv", truth, ""), C)
    wide = "Labels,Shard,id\n" + "".join(
        f'"{" ".join(map(str, own))}",s,{v}\n' for v, own in truth.items()
    )
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(wide.encode()))
    for other in (bare, read_ground_truth(str(tmp_path / "c.csv.gz"), C)):
        assert other.rows == plain.rows
        np.testing.assert_array_equal(other.positives, plain.positives)
    assert list(plain.rows) == [v.encode() for v in truth]
    expected = [i * C + c for i, own in enumerate(truth.values()) for c in own]
    assert plain.positives.tolist() == expected


@pytest.mark.parametrize("id_key", ["id", "video_id"])
def test_shards_of_both_levels_say_the_same_as_a_table(tmp_path, id_key):
    truth = {"a": [0, 11], "b": [], "c": [3], "d": [11]}
    table = read_ground_truth(write_truth(tmp_path / "a.csv", truth), C)
    video, frame = [], []
    for i, (v, own) in enumerate(truth.items()):
        labels = own or (None if i % 2 else [])
        rgb = np.full((i, 4), 7, np.uint8)
        frame.append(encode_frame_record(v, {"rgb": rgb}, labels, id_key))
        features = {"mean_rgb": np.zeros(4)}
        video.append(encode_video_record(v, features, labels, id_key))
    for records in (video, frame):
        write_records(tmp_path / "s.tfrecord", records)
        found = read_ground_truth(str(tmp_path / "s.tfrecord"), C)
        assert found.rows == table.rows
        np.testing.assert_array_equal(found.positives, table.positives)


def test_a_label_listed_twice_is_one(tmp_path):
    labels = write_truth(tmp_path / "a.csv", {"a": [3, 3]})
    assert read_ground_truth(labels, C).positives.tolist() == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,1\na,2\n", "video a is there twice"),
        ("a,1\n,2\n", "no id"),
        ("a,12\n", "label 12 of video a is not in 0 .. 11; give --num_classes"),
        ("a,-1\n", "label -1 of video a is not in"),
        ("VideoId,Labels\na,1\nb,x\n", "line 3: expected an id .* found 'b,x'"),
        ("a,1\n\nb\n", "line 3: expected an id .* found 'b'"),
        ("a,b,c\n", "line 1: expected the columns VideoId and Labels, found 'a,b,c'"),
        ("", "line 1: expected the columns"),
        ("VideoId,Labels\n", "none of the 0 videos has a label"),
        ("a,\nb,\n", "none of the 2 videos has a label"),
        (f"a,{10**20}\n", f"{10**20} is no label"),
        ('a,1\n"b,2\n' + "c,3\n" * 40_000, "line .*: field larger than field limit"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_ground_truth(str(tmp_path / "t.csv"), C)
    assert "t.csv" in str(caught.value)


def test_shards_and_tables_may_be_mixed(tmp_path):
    write_truth(tmp_path / "a.csv", {"x": [1]})
    write_truth(tmp_path / "c.csv", {"y": [2]}, "")
    record = encode_video_record("z", {"mean_rgb": np.zeros(4)}, [3])
    write_records(tmp_path / "b.tfrecord", [record])
    found = read_ground_truth(f"{tmp_path}/*.csv,{tmp_path}/b.tfrecord", C)
    assert found.rows == {b"z": 0, b"x": 1, b"y": 2}
    assert found.positives.tolist() == [3, C + 1, 2 * C + 2]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_shard_that_is_cut_short_or_of_something_else_is_named(tmp_path, broken):
    for i in range(3):
        features = {"mean_rgb": np.zeros(4)}
        records = [encode_video_record(f"v{i}{n}", features, [1]) for n in range(3)]
        write_records(tmp_path / f"{i}.tfrecord", records)
    path, pattern = tmp_path / f"{broken}.tfrecord", f"{tmp_path}/*.tfrecord"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        DataError, match=f"/{broken}.tfrecord, record 2: the file is tru"
    ):
        read_ground_truth(pattern, C)
    write_records(path, [b"no example"])
    with pytest.raises(
        DataError, match=f"/{broken}.tfrecord, record 0: it is not a pr"
    ):
        read_ground_truth(pattern, C)


def test_what_is_no_shard_is_refused_with_a_hint(tmp_path):
    (tmp_path / "labels.txt").write_text("a,1\n" * 100)
    with pytest.raises(DataError, match=r"labels.txt is not a TFRecord file.*\.csv"):
        read_ground_truth(str(tmp_path / "labels.txt"), C)
    with pytest.raises(UserError, match="No file matches --labels="):
        read_ground_truth(str(tmp_path / "none*"), C)


# --- the submission ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([("a", [(0, 1)]), ("a", [(0, 1)])], "line 3: video a is there twice"),
        ([("a", [(0, 1), (C, 0.5)])], "line 2: a class is out of range"),
        ([("b", [(0, 1)]), ("a", [(-1, 1), (0, 1)])], "line 3: a class is out of"),
        ([("a", [(4, 1), (2, 0.5), (4, 0.1)])], "line 2: a class is there twice"),
        ([("a", [(4, 1)]), ("b", [(2, "nan"), (3, 1)])], "line 3: a score is not fin"),
        ([("a", [(4, 1)]), ("b", [(2, "-inf")])], "line 3: a score is not finite"),
        ([("a", [(4, 1)]), ("b", [])], "line 3: expected"),
        ([("x", [(0, 1)])], "none of its 1 videos is among the 2 of the labels"),
    ],
)
@pytest.mark.parametrize("lines_at_once", [1, 100])
def test_what_is_wrong_with_a_submission_is_said(
    tmp_path, monkeypatch, lines, message, lines_at_once
):
    monkeypatch.setattr("yt8m.inference.scoring._LINES", lines_at_once)
    labels = write_truth(tmp_path / "truth.csv", {"a": [1], "b": [2]})
    path = write_lines(tmp_path / "s.csv", lines)
    with pytest.raises(UserError, match=rf"s\.csv.*{message}"):
        score_submission(path, labels, num_classes=C)


# --- the command ---------------------------------------------------------------------


def test_the_command_prints_a_line_and_writes_what_is_asked_for(tmp_path, capsys):
    truth, lines = random_case()
    labels = write_truth(tmp_path / "truth.csv", truth)
    path = write_lines(tmp_path / "s.csv", [*lines[1:], ("x", [(1, "1")])])
    (tmp_path / "vocabulary.csv").write_text(
        'Index,Name,Vertical1\n0,"Nike, Inc.",A\n1,Car,B\n4000,Far,B\n'
    )
    status = run(
        "score",
        [
            path,
            f"--labels={labels}",
            "--top_k=3",
            f"--num_classes={C}",
            f"--vocabulary={tmp_path}/vocabulary.csv",
            f"--per_class={tmp_path}/classes.csv",
            f"--output_file={tmp_path}/metrics.json",
        ],
    )
    assert status == 0
    expected = score_submission(
        path, labels, top_k=3, num_classes=C, verticals={0: ["A"], 1: ["B"]}
    )
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
    assert set(expected["per_vertical"]) == {"A", "B"}
    printed, warned = capsys.readouterr()
    assert printed == summary_line(expected) + "\n"
    assert printed.startswith(f"60 videos | GAP@3 {expected['gap']:.4f} | Hit@1 ")
    for name in ("hit_at_5", "perr", "map_at_3"):
        assert f"{expected[name]:.4f}" in printed
    assert warned.splitlines() == [
        f"{path}: 1 video(s) of the labels are missing in it: all missed.",
        f"{path}: 1 video(s) of it are not among the labels: left out.",
    ]
    with open(tmp_path / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Name"] for row in rows[:3]] == ["Nike, Inc.", "Car", "class 2"]
    positives = [sum(c in own for own in truth.values()) for c in range(C)]
    assert [int(row["Positives"]) for row in rows] == positives
    precisions = [float(row["AveragePrecisionAt3"]) for row in rows]
    assert np.mean(precisions) == pytest.approx(expected["map_at_3"], abs=1e-6)


def test_the_command_writes_nothing_unasked(tmp_path, capsys):
    truth, lines = random_case()
    labels = write_truth(tmp_path / "truth.csv", truth)
    path = write_lines(tmp_path / "s.csv", lines)
    assert run("score", [path, f"--labels={labels}"]) == 0
    assert "mAP@20" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "truth.csv"]


def test_the_command_refuses_what_would_have_no_effect(tmp_path, capsys):
    assert run("score", ["s.csv"]) == 1
    assert "give --labels" in capsys.readouterr().err
    assert run("score", ["s.csv", "--labels=x", "--vocabulary=v.csv"]) == 1
    assert "give one of these" in capsys.readouterr().err
    assert run("score", ["--labels=x"]) == 1
    assert "Give the submission file" in capsys.readouterr().err


def test_real_shards_and_the_real_table_of_labels_say_the_same(real_data):
    table = read_ground_truth(str(real_data / "labels" / "validate_labels.csv"))
    shards = read_ground_truth(str(real_data / "video/validate/validate000*.tfrecord"))
    assert len(table.rows) == 59_978
    assert len(table.positives) / 59_978 == pytest.approx(3.009, abs=5e-4)
    assert len(shards.rows) > 2_000
    assert set(shards.rows) <= set(table.rows)
    by_table, by_shards = (
        np.split(t.positives % 3862, np.searchsorted(t.positives // 3862, range(1, n)))
        for t, n in ((table, 59_978), (shards, len(shards.rows)))
    )
    for video, row in shards.rows.items():
        np.testing.assert_array_equal(by_shards[row], by_table[table.rows[video]])
