"""What comes between logits and ranking: the video's probability, class relevance."""

import numpy as np
import pytest

from yt8m.data.predictions import PredictionsWriter
from yt8m.errors import DataError, UserError
from yt8m.inference.class_relevance import load_class_relevance
from yt8m.inference.rescoring import (
    Rescoring,
    VideoPrior,
    log_sigmoid,
    logit_of_log,
)
from yt8m.inference.segments import SegmentRanking
from yt8m.inference.windows import Windows

CLASSES = np.array([1, 3, 4])
IDS = [b"a", b"b"]
VIDEOS = np.array([[0.9, 0.5, 0, 0.25, 0.001], [0.1, 1, 0, 0.125, 0]], np.float32)
SEGMENTS = Windows(*(np.array(c, np.int32) for c in ([0, 0, 1], [0, 5, 0], [5, 2, 5])))
LOGITS = np.array([[0, 1, -2], [3, -30, 90], [-1, 2, 0]], np.float32)


@pytest.fixture
def predictions(tmp_path) -> str:
    path = str(tmp_path / "videos.predictions")
    with PredictionsWriter(path, 5) as writer:
        writer.write(IDS, VIDEOS)
    return path


def log_p() -> np.ndarray:
    return -np.logaddexp(0, -LOGITS.astype(np.float64))


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_a_segments_probability_is_multiplied_by_that_of_its_video(predictions, power):
    scored = Rescoring(CLASSES, VideoPrior(predictions, CLASSES, power))
    found = scored(IDS, SEGMENTS, LOGITS)
    p = np.exp(log_p()) * VIDEOS[[0, 0, 1]][:, CLASSES].astype(np.float64) ** power
    np.testing.assert_allclose(1 / (1 + np.exp(-found.astype(float))), p, rtol=2e-3)
    assert found[2, 2] == -np.inf  # the video's probability is 0


def test_classes_below_the_cutoff_are_dropped_and_a_power_of_zero_only_cuts(
    predictions,
):
    scored = Rescoring(CLASSES, VideoPrior(predictions, CLASSES, 0, 0.2))
    found = scored(IDS, SEGMENTS, LOGITS)
    kept = np.array([[True, True, False], [True, True, False], [True, False, False]])
    assert ((found > -np.inf) == kept).all()
    np.testing.assert_allclose(found[kept], LOGITS[kept], rtol=1e-6, atol=1e-6)


def test_logarithms_are_exact_at_both_ends():
    x = np.array([-500, -90, -1, 0, 1, 20, 80], np.float32)
    expected = -np.logaddexp(0, -x.astype(np.float64))
    np.testing.assert_allclose(log_sigmoid(x), expected, rtol=1e-6)
    np.testing.assert_allclose(logit_of_log(log_sigmoid(x)), x, rtol=1e-5, atol=1e-6)
    ends = logit_of_log(np.array([-np.inf, 0], np.float32))
    assert ends[0] == -np.inf and 80 < ends[1] < np.inf


def test_dropped_segments_are_not_ranked_and_emptied_classes_not_written(tmp_path):
    ranking = SegmentRanking(CLASSES)
    scores = LOGITS.copy()
    scores[:, 0] = scores[1, 1] = -np.inf
    ranking.add(IDS, SEGMENTS.rows, SEGMENTS.starts, scores, dropped=True)
    ranking.write_csv(str(tmp_path / "s.csv"))
    text = (tmp_path / "s.csv").read_text()
    assert text == "Class,Segments\n3,b:0 a:0\n4,a:5 b:0 a:0\n"
    for bad in (np.nan, np.inf):
        scores[0, 2] = bad
        with pytest.raises(DataError, match="a:0 are not finite"):
            SegmentRanking(CLASSES).add(
                IDS, SEGMENTS.rows, SEGMENTS.starts, scores, dropped=True
            )


def test_a_video_without_predictions_is_named(predictions):
    prior = VideoPrior(predictions, CLASSES)
    with pytest.raises(DataError, match=r"videos.predictions has no video c; write it"):
        prior.probabilities([b"a", b"c"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((CLASSES, -1.0), "--video_power=-1.0 must be"),
        ((CLASSES, 1.0, 1.5), "--video_cutoff=1.5 must be"),
        ((np.array([2, 5]),), "class 5, which is to be ranked, is not one of its 5"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(predictions, arguments, message):
    with pytest.raises(UserError, match=message):
        VideoPrior(predictions, *arguments)


# --- class relevance -----------------------------------------------------------------


def written(tmp_path, text: str, name: str = "relevance.csv") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_table_adds_what_other_classes_of_the_segment_say(tmp_path):
    path = written(tmp_path, "Class,Other,Weight\n4,1,2\n4,3,-1\n1,4,0.5\n")
    scored = Rescoring(CLASSES, relevance=load_class_relevance(path, CLASSES))
    found = scored(IDS, SEGMENTS, LOGITS)
    p, expected = np.exp(log_p()), LOGITS.astype(np.float64)
    expected[:, 2] += 2 * p[:, 0] - p[:, 1]
    expected[:, 0] += 0.5 * p[:, 2]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


HOOK = """
import numpy as np

def class_relevance(c):
    assert c.classes.tolist() == [1, 3, 4] and list(c.video_ids) == [b"a", b"b"]
    assert c.ends.tolist() == [5, 7, 5] and c.logits.shape == c.scores.shape
    scores = c.scores - c.starts[:, None]
    scores[:, 0] += c.video_probabilities[c.rows, 0]
    scores[:, 1] = -np.inf
    return scores
"""


def test_a_function_of_ones_own_sees_segments_and_videos(tmp_path, predictions):
    path = written(tmp_path, HOOK, "own.py")
    relevance = load_class_relevance(path, CLASSES)
    scored = Rescoring(CLASSES, VideoPrior(predictions, CLASSES), relevance)
    assert scored.whole_videos
    found = scored(IDS, SEGMENTS, LOGITS)
    before = Rescoring(CLASSES, VideoPrior(predictions, CLASSES))(IDS, SEGMENTS, LOGITS)
    assert (found[:, 1] == -np.inf).all()
    np.testing.assert_allclose(
        found[:, 0],
        before[:, 0] - [0, 5, 0] + VIDEOS[[0, 0, 1], 1],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("r.txt", "", "r.txt must end in .csv or .py"),
        ("r.csv", "Index\n", "line 1: the header must be Class,Other,Weight"),
        ("r.csv", "Class,Other,Weight\n", "holds no weight"),
        ("r.csv", "Class,Other,Weight\n1,3\n", "line 2: expected two classes"),
        ("r.csv", "Class,Other,Weight\n1,3,nan\n", "line 2: expected two classes"),
        ("r.csv", "Class,Other,Weight\n1,2,1\n", "line 2: class 2 is not one of the 3"),
        ("r.csv", "Class,Other,Weight\n1,3,1\n1,3,2\n", "line 3: .* is there twice"),
        ("r.py", "x = 1\n", r"must define a function class_relevance\(candidates\)"),
        ("r.py", "import nothing_of_this_name\n", "No module named"),
        ("r.py", "def f(:\n", "r.py, line 1: SyntaxError: invalid"),
    ],
)
def test_a_file_that_describes_no_step_is_refused(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_class_relevance(written(tmp_path, text, name), CLASSES)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_are_named(tmp_path):
    for name, message in (("no.csv", "cannot be read"), ("no.py", "no such file")):
        with pytest.raises(UserError, match=message):
            load_class_relevance(str(tmp_path / name), CLASSES)


@pytest.mark.parametrize(
    "result, message",
    [
        ("c.scores[:, :1]", r"scores of the shape \(3, 1\) for \(3, 3\)"),
        ("c.scores * float('nan')", "scores that are not numbers"),
        ("[[1, 2], [3]]", "gave no array of numbers"),
    ],
)
def test_what_a_function_gives_is_looked_at(tmp_path, result, message):
    text = f"def class_relevance(c):\n    return {result}\n"
    relevance = load_class_relevance(written(tmp_path, text, "own.py"), CLASSES)
    with pytest.raises(UserError, match=message):
        Rescoring(CLASSES, relevance=relevance)(IDS, SEGMENTS, LOGITS)
