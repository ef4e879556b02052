"""Ensembles: joined by id, combined by hand-worked numbers, weighed by their GAP."""

import gzip
import re

import numpy as np
import pytest

from yt8m.cli.main import run as command
from yt8m.data.predictions import Predictions, PredictionsWriter
from yt8m.ensemble import attention
from yt8m.ensemble import candidates as candidate_pairs
from yt8m.ensemble import combination as combinations
from yt8m.ensemble.boosting import features, first_level_score
from yt8m.ensemble.candidates import collect
from yt8m.ensemble.combination import Combination
from yt8m.ensemble.sources import Submission, joined, open_sources
from yt8m.ensemble.weights import greedy_weights, search_weights
from yt8m.errors import DataError, UserError
from yt8m.inference.scoring import read_ground_truth, score_submission
from yt8m.inference.submission import read_submission
from yt8m.metrics import gap

HEADER = "VideoId,LabelConfidencePairs\n"
CLASSES = 12
VIDEOS = 300


def write_csv(path, lines) -> str:
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return str(path)


def write_stored(path, ids, probabilities, kept=None) -> str:
    with PredictionsWriter(str(path), probabilities.shape[1], kept) as writer:
        writer.write(ids, probabilities)
    return str(path)


def rows_of(path) -> dict[bytes, dict[int, float]]:
    return {
        video: dict(zip(classes.tolist(), scores.tolist(), strict=True))
        for video, classes, scores in read_submission(str(path))
    }


def ensemble(sources, output, *flags, classes=CLASSES) -> int:
    return command(
        "ensemble",
        [
            f"--sources={','.join(map(str, sources))}",
            f"--output_file={output}",
            f"--num_classes={classes}",
            *flags,
        ],
    )


# --- sources -------------------------------------------------------------------------


def test_submissions_are_read_at_any_video_as_stored_predictions_are(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("yt8m.ensemble.sources._LINES", 2)
    lines = ["b,3 0.5 0 0.25", "longer_id,11 1", "a,7 0.125 2 0 1 0"]
    source = Submission(write_csv(tmp_path / "a.csv", lines), CLASSES)
    with gzip.open(tmp_path / "b.csv.gz", "wt") as f:
        f.write(HEADER + "\n".join(lines) + "\n")
    assert len(source) == 3 and source.ids(1) == [b"longer_id", b"a"]
    rows = source.rows([b"a", b"x", b"zz", b"b", b"longer_id", b"longer_i"])
    assert rows.tolist() == [2, -1, -1, 0, 1, -1]
    expected = np.zeros((4, CLASSES), np.float32)
    expected[0, 7], expected[1, [3, 0]], expected[2, 11] = 0.125, [0.5, 0.25], 1
    expected[3] = expected[0]
    for own in (source, Submission(str(tmp_path / "b.csv.gz"), CLASSES)):
        np.testing.assert_array_equal(own.probabilities([2, 0, 1, 2]), expected)
    stored = Predictions(
        write_stored(tmp_path / "c.predictions", [b"b"], expected[1:2])
    )
    np.testing.assert_array_equal(stored.probabilities([0]), expected[1:2])


@pytest.mark.parametrize(
    "lines, said",
    [
        (["a,1 0.5", "b,2 0.1", "a,3 0.5"], "video a is there twice"),
        (["a,1 0.5 1 0.25"], "video a has class 1 twice"),
        (["a,1 0.5", "b,12 0.5"], r"video b has the class 12, not one of 0 \.\. 11"),
        (["a,1 0.5", "b,1 1.5"], r"video b has the score 1\.5, which is no probab"),
        (["a,1 nan"], "video a has the score nan"),
        ([], "has no predictions"),
    ],
)
def test_bad_submissions_are_named(tmp_path, lines, said):
    path = write_csv(tmp_path / "bad.csv", lines)
    with pytest.raises(DataError, match=said) as caught:
        Submission(path, CLASSES)
    assert str(caught.value).startswith(path)


def test_a_video_that_a_source_lacks_is_named_with_the_source(tmp_path):
    whole = write_csv(tmp_path / "whole.csv", ["a,1 0.5", "b,1 0.5", "c,1 0.5"])
    less = write_csv(tmp_path / "less.csv", ["c,1 0.5", "a,1 0.5"])
    for order in ((whole, less), (less, whole), (whole, whole, less)):
        with pytest.raises(DataError, match=f"{less} has no .* video b, which {whole}"):
            open_sources(order, CLASSES)
    stored = write_stored(tmp_path / "p.predictions", [b"a"], np.zeros((1, 5)))
    with pytest.raises(UserError, match="p.predictions is of 5 classes, not 12"):
        open_sources([stored], CLASSES)
    with PredictionsWriter(str(tmp_path / "none.predictions"), CLASSES):
        pass
    with pytest.raises(DataError, match="none.predictions has no predictions"):
        open_sources([str(tmp_path / "none.predictions")], CLASSES)


def test_sources_are_joined_in_the_order_of_the_first(tmp_path):
    first = write_csv(tmp_path / "a.csv", ["c,1 0.1", "a,1 0.2", "b,1 0.3"])
    other = write_csv(tmp_path / "b.csv", ["a,1 0.4", "b,1 0.5", "c,1 0.6"])
    sources = open_sources([first, other], CLASSES)
    found = [(ids, [r.tolist() for r in rows]) for ids, rows in joined(sources, 2)]
    assert found == [([b"c", b"a"], [[0, 1], [2, 0]]), ([b"b"], [[2], [1]])]
    ((ids, rows),) = joined(sources, 9, places=np.array([0, 2]))
    assert (ids, rows[1].tolist()) == ([b"c", b"b"], [2, 1])


# --- numbers -------------------------------------------------------------------------


def test_means_worked_out_by_hand(tmp_path):
    a = write_csv(tmp_path / "a.csv", ["v,0 0.8 1 0.5", "w,2 0.9"])
    b = write_csv(tmp_path / "b.csv", ["w,2 0.5", "v,1 0.1 0 0.2"])
    out = tmp_path / "out.csv"
    assert ensemble([a, b], out, "--top_k=2") == 0
    found = rows_of(out)
    assert list(found) == [b"v", b"w"]
    assert found[b"v"] == pytest.approx({0: 0.5, 1: 0.3})
    assert found[b"w"] == pytest.approx({2: 0.7, 0: 0})
    assert ensemble([a, b], out, "--top_k=2", "--weights=3,1") == 0
    assert rows_of(out)[b"v"] == pytest.approx({0: 0.65, 1: 0.4})
    # sqrt(0.8 0.2) / (sqrt(0.8 0.2) + sqrt(0.2 0.8)), and 1/3 for odds 1 and 1/9.
    assert ensemble([a, b], out, "--top_k=2", "--method=geometric") == 0
    assert rows_of(out)[b"v"] == pytest.approx({0: 0.5, 1: 0.25}, rel=1e-5)
    assert rows_of(out)[b"w"] == pytest.approx({2: 0.75, 0: 0}, rel=1e-5)


def test_the_geometric_mean_takes_what_is_not_named_at_the_floor(tmp_path):
    a = write_csv(tmp_path / "a.csv", ["v,0 0.5 1 1"])
    b = write_csv(tmp_path / "b.csv", ["v,1 0.5"])
    found = {}
    for floor in (0.01, 0.2):
        assert (
            ensemble(
                [a, b], tmp_path / "o.csv", "--method=geometric", f"--floor={floor}"
            )
            == 0
        )
        found[floor] = rows_of(tmp_path / "o.csv")[b"v"]
        odds = np.sqrt(floor / (1 - floor))
        assert found[floor][0] == pytest.approx(odds / (1 + odds), rel=1e-5)
        assert found[floor][2] == 0
        # A probability of 1 is finite odds, of 2^24.
        assert found[floor][1] == pytest.approx(1 - 2**-12, abs=1e-5)


def test_ranks_worked_out_by_hand_and_by_a_twin(tmp_path):
    # Best first: 0.9; 0.5 twice; 0.2. Shares 7/8, 4/8 twice (half of equals), 1/8.
    a = write_csv(tmp_path / "a.csv", ["v,0 0.9 1 0.5 2 0.1", "w,1 0.5 3 0.2"])
    # Another model that is unsure of all ranks the same.
    b = write_csv(tmp_path / "b.csv", ["v,0 0.04 1 0.03", "w,1 0.03 3 0.02"])
    shares = {b"v": {0: 0.875, 1: 0.5}, b"w": {1: 0.5, 3: 0.125}}
    for sources in ([a], [a, b]):
        flags = ["--method=rank", "--top_k=2"]
        assert ensemble(sources, tmp_path / "o.csv", *flags) == 0
        assert rows_of(tmp_path / "o.csv") == shares  # class 2 of v is its third

    rng = np.random.default_rng(0)
    p = rng.uniform(1e-4, 1, (40, CLASSES)).astype(np.float32)
    ids = [b"%d" % i for i in range(40)]
    (source,) = open_sources(
        [write_stored(tmp_path / "p.predictions", ids, p)], CLASSES
    )
    p = source.probabilities(np.arange(40))
    best = np.argsort(-p, axis=1, kind="stable")[:, :5]
    values = np.take_along_axis(p, best, axis=1)
    below = (values.ravel() < values[..., None]).sum(-1)
    equal = (values.ravel() == values[..., None]).sum(-1)
    found = combinations.RankTable(source, 5)(p)
    np.testing.assert_allclose(
        np.take_along_axis(found, best, axis=1), (below + equal / 2) / 200, atol=1e-6
    )
    assert np.count_nonzero(found) == 200


# --- learning ------------------------------------------------------------------------


class Problem:
    """Two sources that see half of the classes each, one of noise, and the labels."""

    def __init__(self, folder, seed):
        rng = np.random.default_rng(seed)
        self.ids = [b"v%03d" % i for i in range(VIDEOS)]
        self.labels = rng.uniform(size=(VIDEOS, CLASSES)) < 0.2
        signal = np.where(self.labels, 1.5, -1.5)
        halves = np.arange(CLASSES) < CLASSES // 2
        logits = [
            signal * halves + rng.normal(size=signal.shape) - 1,
            signal * ~halves + rng.normal(size=signal.shape) - 1,
            rng.normal(size=signal.shape) * 3 - 1,
        ]
        self.p = [(1 / (1 + np.exp(-z))).astype(np.float32) for z in logits]
        shuffled = rng.permutation(VIDEOS)
        self.paths = [
            write_stored(folder / "0.predictions", self.ids, self.p[0]),
            write_stored(
                folder / "1.predictions",
                [self.ids[i] for i in shuffled],
                self.p[1][shuffled],
                kept=10,
            ),
            write_csv(
                folder / "2.csv",
                [
                    f"{i.decode()}," + " ".join(f"{c} {s:.6g}" for c, s in enumerate(p))
                    for i, p in zip(self.ids, self.p[2], strict=True)
                ],
            ),
        ]
        rows = [" ".join(map(str, np.flatnonzero(row))) for row in self.labels]
        self.table = folder / "labels.csv"
        self.table.write_text(
            "".join(f"{i.decode()},{r}\n" for i, r in zip(self.ids, rows, strict=True))
        )

    def collect(self, method="mean", **options):
        sources = open_sources(self.paths, CLASSES)
        truth = read_ground_truth(str(self.table), CLASSES)
        combination = Combination(method, sources)
        return collect(sources, truth, combination.scores, **options)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return [Problem(tmp_path_factory.mktemp("problem"), seed) for seed in (0, 1)]


@pytest.mark.parametrize("top_k", [3, 20])
def test_the_gap_of_candidates_is_that_of_all_scores(problems, monkeypatch, top_k):
    monkeypatch.setattr(candidate_pairs, "_VIDEOS", 77)
    problem = problems[0]
    found = problem.collect(top_k=top_k)
    assert found.total_positives == problem.labels.sum()
    source = open_sources(problem.paths, CLASSES)
    own = [s.probabilities(s.rows(problem.ids)) for s in source]
    for weights in ([1, 0, 0], [0.2, 0.7, 0.1]):
        combined = sum(np.float32(w) * p for w, p in zip(weights, own, strict=True))
        expected = gap(combined, problem.labels, top_k)
        # Beyond 2 * 3 candidates of each source, a sum can name another class.
        tolerance = 1e-6 if top_k == 20 else 2e-3
        assert found.gap(np.array(weights)) == pytest.approx(expected, abs=tolerance)


def test_fewer_videos_are_taken_evenly(problems):
    few = problems[0].collect(most_videos=4)
    whole = problems[0].collect()
    assert few.num_videos == 4 and whole.num_videos == VIDEOS
    for row, place in enumerate((0, 99, 199, 299)):
        a, b = few.rows == row, whole.rows == place
        np.testing.assert_array_equal(few.scores[a], whole.scores[b])
        np.testing.assert_array_equal(few.hits[a], whole.hits[b])
    assert few.total_positives == problems[0].labels[[0, 99, 199, 299]].sum()


def test_a_video_without_labels_is_named(problems, tmp_path):
    truth = read_ground_truth(str(problems[0].table), CLASSES)
    path = write_csv(tmp_path / "a.csv", ["v001,1 0.5", "other,1 0.5"])
    with pytest.raises(DataError, match=r"a\.csv has predictions of video other"):
        collect(open_sources([path], CLASSES), truth, lambda i, p: p)


@pytest.mark.parametrize("method", ["mean", "geometric", "rank"])
def test_learned_weights_are_never_worse_than_equal_ones(problems, method):
    found = problems[0].collect(method)
    equal = found.gap(np.full(3, 1 / 3))
    weights = search_weights(found)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    assert found.gap(weights) > equal + 0.01
    assert weights[2] < 0.15  # noise
    assert min(weights[:2]) > 0.3
    np.testing.assert_array_equal(weights, search_weights(found))
    # On other videos too.
    other = problems[1].collect(method)
    assert other.gap(weights) > other.gap(np.full(3, 1 / 3)) + 0.01


def test_forward_selection_is_the_papers(problems):
    found = problems[0].collect()
    dense = np.zeros((3, VIDEOS, CLASSES), np.float32)
    for i in range(3):
        dense[i, found.rows, found.classes] = found.scores[:, i]
    bag, history = [], []
    for _ in range(12):  # a twin without counts, candidates or pairs
        trials = [
            gap(np.mean(dense[[*bag, i]], 0), problems[0].labels) for i in (0, 1, 2)
        ]
        bag.append(int(np.argmax(trials)))
        history.append(max(trials))
    best = bag[: int(np.argmax(history)) + 1]
    expected = [best.count(i) / len(best) for i in (0, 1, 2)]
    np.testing.assert_allclose(greedy_weights(found, rounds=12), expected)
    alone = greedy_weights(found, rounds=1)
    assert sorted(alone) == [0, 0, 1]
    assert found.gap(greedy_weights(found)) > max(map(found.gap, np.eye(3)))


@pytest.mark.parametrize("learner", ["search", "greedy"])
def test_weights_learned_on_held_out_videos_are_those_of_the_result(
    problems, tmp_path, capsys, learner
):
    learn, test = problems
    flags = [f"--learn_weights={learner}", f"--labels={learn.table}"]
    flags += [f"--held_out_sources={','.join(learn.paths)}", "--top_k=12"]
    assert ensemble(test.paths, tmp_path / "a.csv", *flags) == 0
    said = capsys.readouterr().out
    assert said.count("GAP") == 5 and f"of {VIDEOS} videos with --weights=" in said
    weights = said.partition("--weights=")[2].split()[0]
    assert ensemble(test.paths, tmp_path / "b.csv", f"--weights={weights}") == 0
    a, b = (rows_of(tmp_path / name) for name in ("a.csv", "b.csv"))
    for video in a:
        assert a[video] == pytest.approx(b[video], abs=1e-3)
    assert ensemble(test.paths, tmp_path / "c.predictions", f"--weights={weights}") == 0
    stored = Predictions(str(tmp_path / "c.predictions"))
    assert stored.ids() == test.ids
    assert stored.written_by == f"mean of {','.join(test.paths)}"
    one = stored.probabilities([5])[0]
    assert b[test.ids[5]] == pytest.approx(dict(enumerate(one)), rel=1e-3)
    scored = score_submission(str(tmp_path / "a.csv"), str(test.table), num_classes=12)
    for path in test.paths:
        alone = score_submission(path, str(test.table), num_classes=12)
        assert scored["gap"] > alone["gap"] + 0.02
    # Fewer videos teach other weights.
    capsys.readouterr()
    assert ensemble(test.paths, tmp_path / "d.csv", *flags, "--learn_videos=20") == 0
    assert "of 20 videos" in capsys.readouterr().out
    assert (tmp_path / "d.csv").read_bytes() != (tmp_path / "a.csv").read_bytes()


# --- boosted trees -------------------------------------------------------------------


def test_features_worked_out_by_hand():
    rows, columns = np.array([4, 4, 4, 6]), np.array([0, 1, 2, 0])
    scores = np.float32([[1, 0], [3, 0], [2, 8], [5, 7]])
    expected = [
        [1, 0, 2, 1, 0.5],
        [3, 0, 0, 2, 1.5],
        [2, 8, 1, 0, 5],
        [5, 7, 0, 0, 6],
    ]
    np.testing.assert_array_equal(features(rows, columns, scores), expected)


def test_boosted_trees_beat_the_mean_where_sources_differ(problems, tmp_path, capsys):
    pytest.importorskip("lightgbm")
    learn, test = problems
    flags = ["--method=lightgbm", f"--labels={learn.table}"]
    flags += [f"--held_out_sources={','.join(learn.paths)}"]
    small = "--lightgbm_args=num_iterations=30,num_leaves=7,num_threads=1"
    for name in ("a", "b"):
        assert ensemble(test.paths, tmp_path / f"{name}.csv", *flags, small) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    mean = tmp_path / "mean.csv"
    assert ensemble(test.paths, mean) == 0
    gaps = [
        score_submission(str(path), str(test.table), num_classes=CLASSES)["gap"]
        for path in (tmp_path / "a.csv", mean)
    ]
    assert gaps[0] > gaps[1] + 0.02
    for name in ("num_iterations", "n_estimators"):
        other = f"--lightgbm_args={name}=3,num_threads=1"
        assert ensemble(test.paths, tmp_path / f"{name}.csv", *flags, other) == 0
    few = (tmp_path / "num_iterations.csv").read_bytes()
    assert (tmp_path / "n_estimators.csv").read_bytes() == few
    assert (tmp_path / "a.csv").read_bytes() != few
    capsys.readouterr()
    for wrong, said in (
        ("seed=3", "--lightgbm_args: seed is always 0; leave it out."),
        ("random_state=3", "--lightgbm_args: random_state is always 0; leave it out."),
        ("application=mape", "application is always binary; leave it out."),
        ("num_leafs=3", "unknown num_leafs. Did you mean num_leaves"),
        ("num_leaves=3,max_leaves=9", "num_leaves and max_leaves are the same; give"),
        ("num_leaves=many", "LightGBM refuses --lightgbm_args: "),
    ):
        bad = f"--lightgbm_args={wrong}"
        assert ensemble(test.paths, tmp_path / "c.csv", *flags, bad) == 1
        assert said in capsys.readouterr().err


def test_without_lightgbm_the_extra_is_named(problems, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    paths = problems[0].paths
    flags = ["--method=lightgbm", f"--labels={problems[0].table}"]
    flags += [f"--held_out_sources={','.join(paths)}"]
    assert ensemble(paths, tmp_path / "o.csv", *flags) == 1
    assert "pip install -e .[ensemble]" in capsys.readouterr().err


def test_first_level_scores_are_logits():
    p = np.float32([0.5, 0.9, 0])
    expected = [0, np.log(9), np.log(1e-6 / (1 - 1e-6))]
    np.testing.assert_allclose(first_level_score(0, p), expected, rtol=1e-6)


# --- attention -----------------------------------------------------------------------


def test_attention_beats_every_weight_where_sources_know_other_classes(
    problems, tmp_path, capsys
):
    learn, test = problems
    flags = ["--method=attention", f"--labels={learn.table}"]
    flags += [f"--held_out_sources={','.join(learn.paths)}"]

    def args(**changes):
        given = {"learning_rate": 0.2, "num_epochs": 10} | changes
        text = ",".join(f"{name}={value}" for name, value in given.items())
        return f"--attention_args={text}"

    for name in ("a", "b"):
        assert ensemble(test.paths, tmp_path / f"{name}.csv", *flags, args()) == 0
    assert re.search(
        r"with equal weights, 0\.\d+ after epoch [1-9]", capsys.readouterr().out
    )
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    searched = ["--learn_weights=search", *flags[1:]]
    assert ensemble(test.paths, tmp_path / "w.csv", *searched) == 0
    gaps = [
        score_submission(str(path), str(test.table), num_classes=CLASSES)["gap"]
        for path in (tmp_path / "a.csv", tmp_path / "w.csv")
    ]
    assert gaps[0] > gaps[1] + 0.02
    for change in (
        {"rank": 1},
        {"learning_rate": 0.01},
        {"num_epochs": 3},
        {"l2_penalty": 1},
    ):
        changed = args(**change)
        assert ensemble(test.paths, tmp_path / "o.csv", *flags, changed) == 0
        assert (tmp_path / "a.csv").read_bytes() != (tmp_path / "o.csv").read_bytes()


def test_attention_that_learns_nothing_is_the_mean(problems, tmp_path):
    learn, test = problems
    flags = ["--method=attention", f"--labels={learn.table}"]
    flags += [f"--held_out_sources={','.join(learn.paths)}"]
    flags += ["--attention_args=learning_rate=1e-9,num_epochs=1"]
    assert ensemble(test.paths, tmp_path / "a.csv", *flags) == 0
    assert ensemble(test.paths, tmp_path / "m.csv") == 0
    for a, m in zip(
        read_submission(str(tmp_path / "a.csv")),
        read_submission(str(tmp_path / "m.csv")),
        strict=True,
    ):
        np.testing.assert_allclose(a[2], m[2], rtol=1e-4)


def test_the_weights_of_attention_worked_out_by_a_twin():
    rng = np.random.default_rng(0)
    model = attention.AttentionMean(6, 3, 2, 0.0)
    model.build()
    weights = [rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()]
    model.set_weights(weights)
    e, f, g, w, b = weights
    rows, columns = np.array([0, 0, 1]), np.array([0, 1, 0])
    classes, scores = np.array([2, 5, 1]), rng.uniform(size=(3, 3)).astype(np.float32)
    found = model.predict(attention._padded(rows, columns, classes, scores), verbose=0)
    for video, pairs in ((0, [0, 1]), (1, [2])):
        seen = sum(scores[i].mean() * f[classes[i]] for i in pairs)
        gate = 1 / (1 + np.exp(-(g + seen)))
        for i in pairs:
            a = np.exp(b + (e[classes[i]] * gate) @ w)
            expected = (a / a.sum()) @ scores[i]
            assert found[video, columns[i]] == pytest.approx(expected, rel=1e-5)
    assert found[1, 1] == 0


@pytest.mark.parametrize(
    "args, said",
    [
        ("ranks=3", "--attention_args: unknown ranks. Did you mean rank"),
        ("rank=0", "rank must be a whole number from 1, not 0"),
        ("rank=1.5", "rank must be a whole number from 1, not 1.5"),
        ("learning_rate=fast", "learning_rate must be a number from 1e-09"),
        ("l2_penalty=-1", "l2_penalty must be a number from 0, not -1"),
    ],
)
def test_bad_arguments_of_attention_are_refused(problems, tmp_path, capsys, args, said):
    learn = problems[0]
    flags = ["--method=attention", f"--labels={learn.table}"]
    flags += [f"--held_out_sources={','.join(learn.paths)}", f"--attention_args={args}"]
    assert ensemble(learn.paths, tmp_path / "a.csv", *flags) == 1
    assert said in capsys.readouterr().err


def test_attention_needs_a_video_to_be_checked_on(problems, tmp_path, capsys):
    learn = problems[0]
    flags = ["--method=attention", f"--labels={learn.table}", "--learn_videos=4"]
    flags += [f"--held_out_sources={','.join(learn.paths)}"]
    assert ensemble(learn.paths, tmp_path / "a.csv", *flags) == 1
    assert "of 4 video(s), but attention is learned on 5" in capsys.readouterr().err


# --- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--weights=1"], "--weights=1 must be 2 numbers"),
        (["--weights=1,-1"], "--weights=1,-1 must be 2 numbers"),
        (["--weights=1,nan"], "must be 2 numbers"),
        (["--weights=0,0"], "one must be positive"),
        (["--weights=1,1", "--learn_weights=greedy"], "both set the weights"),
        (["--learn_weights=greedy"], "give --labels"),
        (["--labels=x"], "--labels is for learning"),
        (["--learn_videos=3"], "--learn_videos is for learning"),
        (["--held_out_sources=a,b"], "--held_out_sources is for learning"),
        (["--floor=0.1"], "--floor is of --method=geometric"),
        (["--lightgbm_args=seed=1"], "--lightgbm_args is of --method=lightgbm"),
        (["--method=lightgbm", "--weights=1,1"], "has no such weights"),
        (["--method=lightgbm", "--labels=x"], "needs --held_out_sources"),
        (
            ["--learn_weights=search", "--labels=x", "--held_out_sources=a"],
            "--held_out_sources are 1, --sources 2",
        ),
        (["--output_file={a}"], "is also a source"),
        (["--output_file="], "give --output_file"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tmp_path, capsys, flags, said):
    a = write_csv(tmp_path / "a.csv", ["v,0 0.8"])
    flags = [flag.format(a=a) for flag in flags]
    before = (tmp_path / "a.csv").read_bytes()
    assert ensemble([a, a], tmp_path / "o.csv", *flags) == 1
    assert said in capsys.readouterr().err
    assert (tmp_path / "a.csv").read_bytes() == before
    assert not (tmp_path / "o.csv").exists()
