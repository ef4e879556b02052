"""The mean of several rankings of segments."""

import numpy as np
import pytest

from yt8m.cli import main
from yt8m.ensemble.segment_rankings import average_rankings
from yt8m.errors import UserError
from yt8m.inference.segments import (
    SegmentRanking,
    merge_rankings,
    read_segment_submission,
)

CLASSES = np.array([40, 3])
IDS = [b"a", b"b", b"c"]
ROWS, STARTS = np.array([0, 0, 1, 2, 2]), np.array([0, 5, 0, 0, 5])


def write(path, logits, limit=100, ids=IDS, rows=ROWS, starts=STARTS, classes=CLASSES):
    ranking = SegmentRanking(classes, limit)
    ranking.add(ids, rows, starts, np.asarray(logits, np.float32))
    ranking.write(str(path))
    return str(path)


def probabilities(*columns):
    p = np.array(columns).T
    return np.log(p) - np.log1p(-p)


ONE = probabilities([0.9, 0.5, 0.4, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5])
TWO = probabilities([0.1, 0.6, 0.3, 0.1, 0.8], [0.1, 0.2, 0.3, 0.4, 0.5])


def read(path) -> dict[int, list[str]]:
    found = read_segment_submission(str(path))
    return {label: [s.decode() for s in segments] for label, segments in found}


def test_probabilities_are_averaged_by_hand_whatever_the_order(tmp_path):
    other = [4, 0, 2, 3, 1]  # of the segments in the second file, videos as well
    paths = [
        write(tmp_path / "1", ONE),
        write(
            tmp_path / "2",
            TWO[other],
            ids=IDS[::-1],
            rows=2 - ROWS[other],
            starts=STARTS[other],
        ),
    ]
    out = tmp_path / "mean.csv"
    assert (
        main.run(
            "ensemble", [f"--sources={paths[0]},{paths[1]}", f"--output_file={out}"]
        )
        == 0
    )
    # Means of class 40: .5, .55, .35, .15, .45.
    assert read(out) == {
        3: ["c:5", "c:0", "b:0", "a:5", "a:0"],
        40: ["a:5", "a:0", "c:5", "b:0", "c:0"],
    }
    flags = [f"--sources={','.join(paths)}", "--weights=3,1", "--segment_max_pred=2"]
    assert main.run("ensemble", [*flags, f"--output_file={out}.tfrecord"]) == 0
    # .7, .525, .375, .175, .275; with scores, which are logits of the means.
    merge_rankings([f"{out}.tfrecord"], str(out), 2)
    assert read(out)[40] == ["a:0", "a:5"]


def test_means_are_fine_near_one(tmp_path):
    high = np.array([[20, 0], [25, 0], [30, 0], [35, 0], [40, 0]])
    paths = [write(tmp_path / "1", high), write(tmp_path / "2", high)]
    ranking = average_rankings(paths, [0.5, 0.5])
    ranking.write_csv(str(tmp_path / "out.csv"))
    assert read(tmp_path / "out.csv")[40] == ["c:5", "c:0", "b:0", "a:5", "a:0"]


def test_a_segment_that_a_file_does_not_rank_has_the_probability_0_there(tmp_path):
    paths = [write(tmp_path / "1", ONE), write(tmp_path / "2", TWO, limit=1)]
    average_rankings(paths, [0.5, 0.5]).write_csv(str(tmp_path / "out.csv"))
    # .45, .25, .2, .1, .45 (.05 + .4): of equals the first.
    assert read(tmp_path / "out.csv")[40] in (
        ["a:0", "c:5", "a:5", "b:0", "c:0"],
        ["c:5", "a:0", "a:5", "b:0", "c:0"],
    )


def test_what_does_not_fit_together_is_refused(tmp_path, capsys):
    one = write(tmp_path / "1", ONE)
    classes = write(tmp_path / "2", ONE, classes=np.array([40, 4]))
    with pytest.raises(UserError, match="ranks other classes than"):
        average_rankings([one, classes], [0.5, 0.5])
    for change in ({"starts": STARTS + 5}, {"ids": [b"a", b"b", b"d"]}):
        other = write(tmp_path / "3", ONE, **change)
        with pytest.raises(UserError, match="ranks other segments than"):
            average_rankings([one, other], [0.5, 0.5])
    (tmp_path / "a.csv").write_text("Class,Segments\n3,a:0\n")
    out = f"--output_file={tmp_path}/out.csv"
    for flags, message in (
        ([f"--sources={one},{tmp_path}/a.csv"], "a.csv is none"),
        ([f"--sources={tmp_path}/a.csv"], "has no scores that could be averaged"),
        ([f"--sources={one},{one}", "--method=rank"], "--method=rank is of videos"),
        ([f"--sources={one},{one}", "--top_k=3"], "--top_k=3 is of videos"),
    ):
        assert main.run("ensemble", [*flags, out]) == 1
        assert message in capsys.readouterr().err
