"""The metrics against loops written from the formulas, known values, and each other."""

import csv
import heapq
import math
import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from yt8m.errors import UserError
from yt8m.metrics import (
    VideoMetrics,
    average_precision,
    average_precision_at_k,
    batch_metrics,
    bucketed_average_precisions,
    bucketed_mean_average_precision,
    class_average_precisions,
    gap,
    hit_at_k,
    hit_at_one,
    mean_average_precision,
    mean_average_precision_at_k,
    perr,
)
from yt8m.metrics.best_classes import best_classes
from yt8m.metrics.exact import KeptBatch, KeptLogits
from yt8m.metrics.ranking import TopRanked, rank_top

# ---- twins: lists, loops and sorted tuples, nothing shared with the code tested


def ranked_classes(row):
    candidates = [c for c in range(len(row)) if row[c] > -math.inf]
    return sorted(candidates, key=lambda c: (-float(row[c]), c))


def precision_mean(truths, total):
    found = precisions = 0
    for rank, truth in enumerate(truths, 1):
        if truth:
            found += 1
            precisions += found / rank
    return precisions / total if total else 0.0


def loop_hits(scores, labels, k=1):
    return [
        float(any(truth[c] for c in ranked_classes(row)[:k]))
        for row, truth in zip(scores, labels, strict=True)
    ]


def loop_perrs(scores, labels):
    values = []
    for row, truth in zip(scores, labels, strict=True):
        n = sum(1 for t in truth if t)
        found = sum(1 for c in ranked_classes(row)[:n] if truth[c])
        values.append(found / n if n else 0.0)
    return values


def pooled(scores, labels, top_k):
    """(-score, class, record, truth) of the top classes of every video, ranked."""
    return sorted(
        (-float(row[c]), c, record, bool(labels[record][c]))
        for record, row in enumerate(scores)
        for c in ranked_classes(row)[:top_k]
    )


def loop_gap(scores, labels, top_k):
    truths = [pair[3] for pair in pooled(scores, labels, top_k)]
    return precision_mean(truths, int(np.count_nonzero(labels)))


def loop_class_precisions(scores, labels, top_k):
    pairs = pooled(scores, labels, top_k)
    values = []
    for c in range(len(scores[0])):
        total = sum(1 for truth in labels if truth[c])
        truths = [pair[3] for pair in pairs if pair[1] == c]
        values.append(precision_mean(truths, total) if total else math.nan)
    return values


def mean_of_classes(values):
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else 0.0


# ---- inputs


def uint8(condition):
    return np.asarray(condition).astype(np.uint8)


def random_case(num_videos, num_classes, seed=0, positive=0.1):
    rng = np.random.default_rng(seed)
    labels = uint8(rng.random((num_videos, num_classes)) < positive)
    scores = rng.normal(-4, 2, labels.shape) + 3 * labels
    return scores.astype(np.float32), labels


def tied_case():
    scores, labels = random_case(60, 30, seed=1)
    return np.round(scores / 3), labels


def signed_zeros_case():
    scores, labels = random_case(40, 12, seed=2)
    return np.where(scores < -4, np.float32(-0.0), np.float32(0.0)), labels


def infinite_case():
    scores, labels = random_case(30, 25, seed=3)
    scores[scores < -2] = -np.inf  # some positives too
    scores[scores > 0] = np.inf
    scores[3], scores[4, 1:] = -np.inf, -np.inf
    return scores, labels


def no_positives_case():
    scores, labels = random_case(20, 25, seed=4)
    return scores, np.zeros_like(labels)


def mixed_case():
    """Some videos without labels, one with more labels than GAP takes classes."""
    scores, labels = random_case(30, 40, seed=5, positive=0.03)
    labels[7, :33] = 1
    return scores, labels


CASES = {
    "random": lambda: random_case(50, 40),
    "tied": tied_case,
    "all equal": lambda: (np.zeros((30, 25), np.float32), random_case(30, 25)[1]),
    "signed zeros": signed_zeros_case,
    "infinite": infinite_case,
    "no positives": no_positives_case,
    "all positives": lambda: (random_case(20, 25)[0], np.ones((20, 25), np.uint8)),
    "mixed": mixed_case,
    "one video": lambda: random_case(1, 40, seed=6),
    "one class": lambda: random_case(50, 1, seed=7),
    "fewer classes than top_k": lambda: random_case(40, 5, seed=8),
}

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def evaluated(scores, labels, batch_size=16, losses=None, **arguments):
    metrics = VideoMetrics(scores.shape[1], **arguments)
    for start in range(0, len(scores), batch_size):
        rows = slice(start, start + batch_size)
        batch_losses = None if losses is None else losses[rows]
        metrics.add(scores[rows], labels[rows], batch_losses)
    return metrics


# ---- one batch


@all_cases
def test_batch_metrics_equal_the_loops(case):
    scores, labels = case()
    np.testing.assert_allclose(
        hit_at_one(scores, labels), loop_hits(scores, labels), atol=1e-12
    )
    np.testing.assert_allclose(
        perr(scores, labels), loop_perrs(scores, labels), atol=1e-12
    )
    for k in (1, 3, 20):
        expected = loop_gap(scores, labels, k)
        assert gap(scores, labels, k) == pytest.approx(expected, abs=1e-9)
        np.testing.assert_array_equal(
            hit_at_k(scores, labels, k), loop_hits(scores, labels, k)
        )


def test_one_ranking_gives_the_three_batch_metrics():
    scores, labels = mixed_case()
    assert batch_metrics(scores, labels, top_k=7) == {
        "hit_at_1": np.mean(hit_at_one(scores, labels)),
        "perr": np.mean(perr(scores, labels)),
        "gap": gap(scores, labels, top_k=7),
    }


def test_average_precision_of_worked_examples():
    # Hits at ranks 1 and 3 of 3 positives: (1/1 + 2/3) / 3.
    scores, labels = [0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]
    assert average_precision(scores, labels, 3) == pytest.approx(5 / 9, abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(5 / 6, abs=1e-12)
    assert average_precision([0.6, 0.9, 0.7], [0, 1, 0], 2) == 0.5
    assert average_precision([1, 2], [0, 0]) == 0.0
    assert average_precision([], []) == 0.0
    # Equal scores keep their order: hits at 2 and 3, then at 1 and 3.
    assert average_precision([5, 5, 5], [0, 1, 1]) == pytest.approx(7 / 12, abs=1e-12)
    assert average_precision([5, 5, 5], [1, 0, 1]) == pytest.approx(5 / 6, abs=1e-12)


def test_average_precision_at_k_of_worked_examples():
    hits = [True, False, True, False, True]
    assert average_precision_at_k(hits, 3, 5) == pytest.approx(34 / 45, abs=1e-12)
    # The cut loses the third hit, but P stays: k does not cap it.
    assert average_precision_at_k(hits, 3, 4) == pytest.approx(5 / 9, abs=1e-12)
    assert average_precision_at_k(hits, 3, 1) == pytest.approx(1 / 3, abs=1e-12)
    # The second and the last item are cut or taken out: 1/1, 2/2.
    rated = [True, False, True, True, True]
    found = average_precision_at_k(hits, 3, 4, rated)
    assert found == pytest.approx(2 / 3, abs=1e-12)
    assert average_precision_at_k([], 3, 4) == 0
    assert average_precision_at_k([False], 0, 4) == 0


def test_map_at_k_counts_absent_classes_as_zero_and_leaves_empty_ones_out():
    hits = {7: [True, False, True], 9: [False, True], 5: [False]}
    positives = {7: 2, 9: 1, 5: 0, 8: 4}
    assert mean_average_precision_at_k(hits, positives, 3) == pytest.approx(
        ((1 + 2 / 3) / 2 + 1 / 2 + 0) / 3, abs=1e-12
    )
    assert mean_average_precision_at_k(hits, positives, 1) == pytest.approx(
        (1 / 2 + 0 + 0) / 3, abs=1e-12
    )
    assert mean_average_precision_at_k({}, {5: 0}, 3) == 0


def test_metrics_of_a_worked_batch():
    scores = np.array([[3.0, 2.0, 1.0], [0.5, 4.0, 2.5]])
    labels = np.array([[1, 0, 1], [1, 0, 0]])
    assert hit_at_one(scores, labels).tolist() == [1, 0]
    assert perr(scores, labels).tolist() == [0.5, 0]
    # Ranked 4 -, 3 +, 2.5 -, 2 -, 1 +, 0.5 +.
    expected = (1 / 2 + 2 / 5 + 3 / 6) / 3
    assert gap(scores, labels) == pytest.approx(expected, abs=1e-12)
    # With one class a video: 4 -, 3 +; still three positives.
    assert gap(scores, labels, top_k=1) == pytest.approx(1 / 2 / 3, abs=1e-12)


def test_equal_scores_rank_by_class_then_by_record():
    scores = np.ones((2, 2), np.float32)
    # Order: class 0 of video 0, of video 1, then class 1 of video 0, of video 1.
    for labels, rank in (
        ([[1, 0], [0, 0]], 1),
        ([[0, 0], [1, 0]], 2),
        ([[0, 1], [0, 0]], 3),
        ([[0, 0], [0, 1]], 4),
    ):
        labels = uint8(labels)
        assert gap(scores, labels) == 1 / rank
        assert evaluated(scores, labels).result()["gap"] == 1 / rank


def test_logits_are_not_squashed_before_ranking():
    # The float32 sigmoid of both is 1.
    scores, labels = np.array([[40.0, 50.0]]), np.array([[0, 1]])
    assert hit_at_one(scores, labels).tolist() == [1]


# ---- mAP in three definitions


@all_cases
def test_class_average_precisions_equal_the_loops(case):
    scores, labels = case()
    for top_k in (None, 1, 3, 20):
        expected = loop_class_precisions(scores, labels, top_k or len(labels[0]))
        found = class_average_precisions(scores, labels, top_k)
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert mean_average_precision(scores, labels, top_k) == pytest.approx(
            mean_of_classes(expected), abs=1e-9
        )


def loop_bucketed_precision(probabilities, truths):
    """Equations 8 to 10 of arXiv:1609.08675, threshold by threshold."""
    rounded = [round(float(p) * 10_000) / 10_000 for p in probabilities]
    scored = [(p, t) for p, t in zip(rounded, truths, strict=True) if p > 0]
    total = sum(1 for t in truths if t)
    if not total:
        return math.nan

    def reached(j):
        return [t for p, t in scored if p >= j / 10_000]

    # Between two scores neither precision nor recall changes.
    thresholds = sorted({round(p * 10_000) for p, _ in scored})
    area = 0.0
    for j, following in zip(thresholds, [*thresholds[1:], 10_001], strict=True):
        above, beyond = reached(j), reached(following)
        precision = sum(map(bool, above)) / len(above)
        area += precision * (sum(map(bool, above)) - sum(map(bool, beyond))) / total
    return area


def probability_case():
    """Many buckets, one crowded bucket, saturated ones, and some that round to 0."""
    scores, labels = random_case(200, 4, seed=20, positive=0.2)
    scores[:, 1] = np.round(scores[:, 1] / 4)
    scores[:, 2] = scores[:, 2] * 3 - 8
    scores[:5] = np.array([[30], [-30], [-9.9], [-9.91], [-np.inf]])
    labels[:5] = 1
    labels[:, 3] = 0
    return scores, labels, 1 / (1 + np.exp(-scores.astype(np.float64)))


def test_bucketed_precisions_equal_the_paper_s_sum_over_thresholds():
    _, labels, probabilities = probability_case()
    expected = [
        loop_bucketed_precision(p, t)
        for p, t in zip(probabilities.T, labels.T, strict=True)
    ]
    found = bucketed_average_precisions(probabilities, labels)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert math.isnan(expected[3])
    assert bucketed_mean_average_precision(probabilities, labels) == pytest.approx(
        mean_of_classes(expected), abs=1e-12
    )


def test_bucketed_precision_of_a_worked_example():
    # Thresholds 0.9 (1 of 1), 0.5 (2 of 3); 0.00004 rounds to 0: 3 positives, 2 found.
    probabilities = np.array([[0.9], [0.50001], [0.49999], [0.00004]])
    labels = np.array([[1], [1], [0], [1]])
    found = bucketed_average_precisions(probabilities, labels)
    assert found == pytest.approx([(1 + 2 / 3) / 3], abs=1e-12)


def test_probabilities_outside_0_to_1_are_refused():
    for wrong in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=f"Received: {wrong}"):
            bucketed_average_precisions(np.array([[0.5, wrong]]), np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"labels.shape=\(1, 3\)"):
        bucketed_average_precisions(np.zeros((1, 2)), np.ones((1, 3)))


def test_accumulated_bucketed_map_is_that_of_the_whole_arrays():
    scores, labels, probabilities = probability_case()
    expected = bucketed_average_precisions(probabilities, labels)
    single = evaluated(scores, labels, with_bucketed_map=True)
    merged = VideoMetrics(4, with_bucketed_map=True)
    for part in (slice(0, 3), slice(3, 120), slice(120, None)):
        merged.merge(evaluated(scores[part], labels[part], with_bucketed_map=True))
    for metrics in (single, merged):
        table = metrics.per_class()
        np.testing.assert_allclose(table["ap_bucketed"], expected, atol=1e-12)
        found = metrics.result()
        assert found["map_bucketed"] == pytest.approx(mean_of_classes(expected))
        assert found["map_bucketed"] != found["map"]
    alone = evaluated(scores, labels, with_bucketed_map=True, with_map=False).result()
    assert alone["map_bucketed"] == single.result()["map_bucketed"]
    assert "map" not in alone


# ---- classes that are no candidates


def rated_case(num_videos=60, num_classes=12, rated=0.2, seed=30):
    """Logits with -inf where a cell is not rated; labels are rated ones only."""
    scores, labels = random_case(num_videos, num_classes, seed=seed, positive=0.3)
    scores[:, 0] = np.round(scores[:, 0])
    mask = np.random.default_rng(seed).random(labels.shape) < rated
    return np.where(mask, scores, -np.inf).astype(np.float32), labels * mask, mask


@pytest.mark.parametrize(("limit", "method"), [(60, "exact"), (0, "histogram")])
def test_cells_of_minus_infinity_count_as_if_they_were_not_there(limit, method):
    scores, labels, mask = rated_case()
    hits, perrs, cells = [], [], []
    for video in range(len(scores)):
        own = [
            (-float(scores[video, c]), c, bool(labels[video, c]))
            for c in range(12)
            if mask[video, c]
        ]
        truths = [truth for _, _, truth in sorted(own)]
        n = sum(truths)
        hits.append(float(any(truths[:1])))
        perrs.append(sum(truths[:n]) / n if n else 0.0)
        cells += [(score, c, video, truth) for score, c, truth in own]
    cells.sort()
    expected = {
        "hit_at_1": np.mean(hits),
        "perr": np.mean(perrs),
        "gap": precision_mean([cell[3] for cell in cells], int(labels.sum())),
        "map": mean_of_classes(
            [
                precision_mean([x[3] for x in cells if x[1] == c], labels[:, c].sum())
                for c in range(12)
            ]
        ),
    }
    found = evaluated(scores, labels, exact_map_limit=limit).result()
    assert found["map_method"] == method
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("small_folds")
def test_map_by_histogram_of_few_rated_cells_is_the_exact_one():
    scores, labels, _ = rated_case(12_000, 6, rated=0.05)
    scores[:, 5] *= 200  # below the last bin, in which -inf must not be counted
    exact = evaluated(scores, labels, 1_000).result()
    binned = evaluated(scores, labels, 1_000, exact_map_limit=100).result()
    assert binned["map_method"] == "histogram"
    assert binned["map"] == pytest.approx(exact["map"], abs=2e-4)
    # Fewer rated cells than are ranked one by one: the same, to the digit.
    few, few_labels, _ = rated_case(12_000, 6, rated=0.01)
    exact = evaluated(few, few_labels, 1_000).result()
    binned = evaluated(few, few_labels, 1_000, exact_map_limit=100)
    assert binned.result()["map"] == exact["map"]
    merged = VideoMetrics(6, exact_map_limit=100)
    for part in (slice(0, 5_000), slice(5_000, None)):
        merged.merge(evaluated(few[part], few_labels[part], 700, exact_map_limit=100))
    assert merged.result() == binned.result()


def test_a_label_of_minus_infinity_is_missed():
    scores, labels = np.array([[-np.inf, 1.0], [-np.inf, -np.inf]]), np.ones((2, 2))
    assert hit_at_k(scores, labels, 2).tolist() == [1, 0]
    assert perr(scores, labels).tolist() == [0.5, 0]
    assert gap(scores, labels) == 0.25
    assert class_average_precisions(scores, labels).tolist() == [0, 0.5]
    assert average_precision(scores[0], labels[0]) == 0.5
    for limit in (0, 100):
        assert evaluated(scores, labels, exact_map_limit=limit).result()["map"] == 0.25


# ---- accumulated


# With so few videos the histogram keeps them all one by one, and is exact too.
@pytest.mark.parametrize(("limit", "method"), [(60, "exact"), (0, "histogram")])
@pytest.mark.parametrize("top_k", [2, 20])
@all_cases
def test_accumulated_metrics_equal_the_loops(case, top_k, limit, method):
    scores, labels = case()
    losses = np.linspace(0, 1, len(scores))
    metrics = evaluated(
        scores, labels, losses=losses, top_k=top_k, exact_map_limit=limit
    )
    found, table = metrics.result(), metrics.per_class()
    top_precisions = loop_class_precisions(scores, labels, top_k)
    precisions = loop_class_precisions(scores, labels, top_k=len(labels[0]))
    expected = {
        "num_examples": len(scores),
        "hit_at_1": np.mean(loop_hits(scores, labels)),
        "perr": np.mean(loop_perrs(scores, labels)),
        "gap": loop_gap(scores, labels, top_k),
        f"map_at_{top_k}": mean_of_classes(top_precisions),
        "map": mean_of_classes(precisions),
        "loss": np.mean(losses),
    }
    assert found.pop("map_method") == method
    assert found == pytest.approx(expected, abs=1e-9)
    np.testing.assert_array_equal(table["positives"], np.sum(labels, axis=0))
    np.testing.assert_allclose(table[f"ap_at_{top_k}"], top_precisions, atol=1e-9)
    np.testing.assert_allclose(table["ap"], precisions, atol=1e-9)


def test_map_is_left_out_on_request():
    scores, labels = random_case(30, 25)
    metrics = evaluated(scores, labels, with_map=False)
    full = evaluated(scores, labels)
    assert metrics.result() == {
        k: v for k, v in full.result().items() if k not in ("map", "map_method")
    }
    assert "ap" not in metrics.per_class()


def test_hits_are_counted_at_every_rank_asked_for():
    scores, labels = mixed_case()
    found = evaluated(scores, labels, hits_at=(1, 5, 30), top_k=2).result()
    for k in (1, 5, 30):
        assert found[f"hit_at_{k}"] == np.mean(loop_hits(scores, labels, k))
    merged = VideoMetrics(40, top_k=2, hits_at=(5,))
    for part in (slice(0, 9), slice(9, None)):
        merged.merge(evaluated(scores[part], labels[part], hits_at=(5,), top_k=2))
    assert merged.result()["hit_at_5"] == found["hit_at_5"]
    assert "hit_at_1" not in merged.result()


def test_metrics_of_verticals_are_those_of_their_classes_alone():
    scores, labels = mixed_case()
    labels[:, 4] = 0
    verticals = {0: ["A"], 3: ["B", "A"], 4: ["B"], 9: ["B"], 5: ["C"], 4000: ["D"]}
    labels[:, 5] = 0
    metrics = evaluated(scores, labels, top_k=6, with_bucketed_map=True)
    found, table = metrics.per_vertical(verticals), metrics.per_class()
    assert list(found) == ["A", "B", "C"]
    for name, classes in (("A", [0, 3]), ("B", [3, 4, 9]), ("C", [5])):
        pairs = [p for p in pooled(scores, labels, 6) if p[1] in classes]
        total = int(labels[:, classes].sum())
        assert found[name] == pytest.approx(
            {
                "classes": sum(1 for c in classes if labels[:, c].any()),
                "positives": total,
                "gap": precision_mean([p[3] for p in pairs], total),
                "map_at_6": mean_of_classes(table["ap_at_6"][classes]),
                "map": mean_of_classes(table["ap"][classes]),
                "map_bucketed": mean_of_classes(table["ap_bucketed"][classes]),
            },
            abs=1e-12,
        )


def test_heads_of_rankings_can_be_added_where_no_full_ranking_is_asked_for():
    scores, labels = mixed_case()
    metrics = VideoMetrics(40, with_map=False)
    metrics.add_ranked(rank_top(scores, labels, 20))
    assert metrics.result() == evaluated(scores, labels, with_map=False).result()
    for arguments in ({}, {"with_map": False, "with_bucketed_map": True}):
        with pytest.raises(ValueError, match="`with_map`"):
            VideoMetrics(40, **arguments).add_ranked(rank_top(scores, labels, 20))


def test_double_precision_scores_are_not_rounded_to_single():
    # In float32 all three are 1, and the class would decide.
    scores = np.array([[1 - 2e-10, 1 - 1e-10, 1.0]])
    top = TopRanked(
        scores=scores[:, ::-1],
        classes=np.array([[2, 1, 0]]),
        hits=np.array([[True, False, False]]),
        num_positives=np.array([1]),
        positive_rows=np.array([0]),
        positive_classes=np.array([2]),
    )
    metrics = VideoMetrics(3, with_map=False)
    metrics.add_ranked(top)
    assert metrics.result()["gap"] == 1


def test_results_follow_videos_added_after_a_result():
    scores, labels = random_case(40, 25)
    metrics = evaluated(scores[:30], labels[:30])
    early = metrics.result()
    metrics.add(scores[30:], labels[30:])
    assert metrics.result() == evaluated(scores, labels).result() != early


def test_arrays_may_be_reused_after_they_were_added():
    scores, labels = random_case(40, 25)
    losses = np.ones(40)
    metrics = VideoMetrics(25)
    reused, reused_labels = scores.copy(), labels.copy()
    metrics.add(reused, reused_labels, losses)
    reused[:], reused_labels[:], losses[:] = 0, 0, 0
    assert metrics.result() == {**evaluated(scores, labels).result(), "loss": 1}


@pytest.fixture
def small_folds(monkeypatch):
    monkeypatch.setattr("yt8m.metrics.video_metrics._FOLD_VIDEOS", 1_500)


def big_case(num_videos=12_000):
    """Enough videos for many small folds of the histogram; many equal scores."""
    scores, labels = random_case(num_videos, 5, seed=9, positive=0.2)
    scores[:, 1] = np.round(scores[:, 1])
    scores[:, 2] = np.maximum(scores[:, 2], -3)
    return scores, labels


@pytest.mark.usefixtures("small_folds")
@pytest.mark.parametrize("limit", [4_000, 50_000])
def test_the_size_of_batches_leaves_no_trace_in_the_result(limit):
    scores, labels = big_case()
    losses = np.random.default_rng(0).random(len(scores))
    first, *others = (
        evaluated(scores, labels, size, losses, exact_map_limit=limit).result()
        for size in (777, 4_096, len(scores))
    )
    assert first["map_method"] == ("histogram" if limit == 4_000 else "exact")
    for other in others:
        assert other == first


@pytest.mark.usefixtures("small_folds")
@pytest.mark.parametrize(
    ("limit", "cuts"),
    [
        (50_000, (5_000, 5_100)),
        (4_000, (5_000, 5_100)),  # histogram, exact, histogram
        (4_000, (100, 2_000)),  # exact, exact, histogram
        (7_000, (3_000, 6_000)),  # all exact, together too many
        (4_000, (0, 12_000)),  # none, histogram, none
        (0, (3_000, 3_100)),  # histograms, one of few videos
    ],
)
def test_merged_shards_equal_a_single_pass(limit, cuts):
    scores, labels = big_case()
    single = evaluated(scores, labels, 1_000, exact_map_limit=limit)
    merged = VideoMetrics(5, exact_map_limit=limit)
    for start, stop in zip((0, *cuts), (*cuts, len(scores)), strict=True):
        part = slice(start, stop)
        merged.merge(
            evaluated(scores[part], labels[part], 1_000, exact_map_limit=limit)
        )
    assert merged.result() == single.result()
    for name, column in single.per_class().items():
        np.testing.assert_array_equal(merged.per_class()[name], column)


def test_losses_are_merged():
    scores, labels = random_case(30, 25)
    merged = evaluated(scores[:10], labels[:10], losses=np.ones(10))
    merged.merge(evaluated(scores[10:], labels[10:], losses=np.full(20, 4.0)))
    assert merged.result()["loss"] == 3


# ---- mAP by histogram


def spread_labels(rng, num_videos, num_classes):
    """Classes of 0.4 down to 0.02 of the videos, each with one positive at least."""
    frequency = 0.4 / np.arange(1, num_classes + 1)
    labels = uint8(rng.random((num_videos, num_classes)) < frequency)
    labels[rng.integers(0, num_videos, num_classes), np.arange(num_classes)] = 1
    return labels


def rare_labels(rng, num_videos, num_classes):
    labels = np.zeros((num_videos, num_classes), np.uint8)
    for c in range(num_classes):
        labels[rng.choice(num_videos, 1 + c % 5, replace=False), c] = 1
    return labels


def gaussian(rng, labels):
    shift = rng.normal(-7, 2, labels.shape[1])
    gain = rng.uniform(1, 7, labels.shape[1])
    return rng.normal(shift, 2, labels.shape) + gain * labels


def heavy_tailed(rng, labels):
    gain = rng.uniform(1, 30, labels.shape[1])
    return rng.standard_cauchy(labels.shape) - 5 + gain * labels


def saturated(rng, labels):
    return np.minimum(rng.normal(0, 3, labels.shape) + 3 * labels, 2)


def clamped(rng, labels):
    gain = rng.uniform(0, 4, labels.shape[1])
    return np.maximum(rng.normal(-11.5, 2, labels.shape) + gain * labels, -12)


def coarse(rng, labels):
    """As from a bfloat16 model: 8 bits of mantissa, so ties everywhere."""
    bits = gaussian(rng, labels).astype(np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def probabilities(rng, labels):
    return 1 / (1 + np.exp(-gaussian(rng, labels)))


@pytest.mark.usefixtures("small_folds")
@pytest.mark.parametrize(
    ("make_labels", "make_scores"),
    [
        (spread_labels, gaussian),
        (rare_labels, gaussian),
        (spread_labels, heavy_tailed),
        (spread_labels, saturated),
        (rare_labels, saturated),
        (spread_labels, clamped),
        (rare_labels, clamped),
        (spread_labels, coarse),
        (spread_labels, probabilities),
    ],
)
def test_map_by_histogram_is_within_1e_4_of_the_exact_one(make_labels, make_scores):
    rng = np.random.default_rng(10)
    labels = make_labels(rng, 30_000, 20)
    scores = make_scores(rng, labels).astype(np.float32)
    exact = evaluated(scores, labels, 4_000).result()
    binned = evaluated(scores, labels, 4_000, exact_map_limit=10_000).result()
    assert (exact.pop("map_method"), binned.pop("map_method")) == ("exact", "histogram")
    assert binned.pop("map") == pytest.approx(exact.pop("map"), abs=1e-4)
    assert binned == exact


def test_map_by_histogram_is_exact_where_positives_rank_first():
    # 5 of 9,000 negatives rank between the positives; the rest is far below.
    scores = np.linspace(-20, -10, 9_010, dtype=np.float32)[:, None]
    labels = np.zeros((9_010, 1), np.uint8)
    labels[[-1, -3, -8]] = 1
    metrics = evaluated(scores, labels, 1_000, exact_map_limit=0)
    assert metrics.result()["map_method"] == "histogram"
    assert metrics.result()["map"] == pytest.approx((1 + 2 / 3 + 3 / 8) / 3, abs=1e-12)


@pytest.mark.usefixtures("small_folds")
def test_map_by_histogram_is_exact_for_equal_scores_in_record_order():
    labels = spread_labels(np.random.default_rng(11), 12_000, 8)
    levels = np.random.default_rng(12).integers(0, 3, labels.shape)
    scores = np.array([-2.0, -0.0, 0.0], np.float32)[levels]  # two zeros, equal
    exact = evaluated(scores, labels, 1_000).result()
    binned = evaluated(scores, labels, 1_000, exact_map_limit=100).result()
    assert binned["map_method"] == "histogram"
    assert binned["map"] == pytest.approx(exact["map"], abs=1e-12)


def test_the_histogram_begins_one_video_above_the_limit():
    scores, labels = random_case(101, 10, positive=0.3)
    for num_videos, method in ((100, "exact"), (101, "histogram")):
        for batch_size in (1, 64, 101):
            found = evaluated(
                scores[:num_videos],
                labels[:num_videos],
                batch_size,
                exact_map_limit=100,
            ).result()
            expected = mean_of_classes(
                loop_class_precisions(scores[:num_videos], labels[:num_videos], 10)
            )
            assert found["map_method"] == method
            # Fewer videos than are ranked one by one: exact either way.
            assert found["map"] == pytest.approx(expected, abs=1e-9)


# ---- refusals


def test_no_video_at_all_is_refused():
    metrics = VideoMetrics(5)
    metrics.add(np.zeros((0, 5)), np.zeros((0, 5)))
    with pytest.raises(UserError, match="No video was evaluated"):
        metrics.result()
    with pytest.raises(UserError, match="No video was evaluated"):
        metrics.per_class()
    with pytest.raises(ValueError, match="must not be empty"):
        hit_at_one(np.zeros((0, 5)), np.zeros((0, 5)))


def test_nan_scores_are_refused_and_located():
    scores, labels = random_case(4, 5)
    scores[2, 3] = np.nan
    for call in (
        lambda: hit_at_one(scores, labels),
        lambda: perr(scores, labels),
        lambda: gap(scores, labels),
        lambda: VideoMetrics(5).add(scores, labels),
    ):
        with pytest.raises(ValueError, match=r"NaN at \[2, 3\]"):
            call()
    with pytest.raises(ValueError, match=r"NaN at \[3\]"):
        average_precision(scores[2], labels[2])


def test_a_refused_batch_leaves_the_metrics_as_they_were():
    scores, labels = random_case(20, 5)
    metrics = evaluated(scores, labels, losses=np.ones(20))
    before = metrics.result()
    for refused in (
        (np.full((2, 5), np.nan), labels[:2], np.ones(2)),
        (scores[:2], labels[:3], np.ones(2)),
        (scores[:2], labels[:2], np.ones(3)),
        (scores[:2], labels[:2], None),
        (scores[:2, :4], labels[:2, :4], np.ones(2)),
    ):
        with pytest.raises(ValueError, match="must"):
            metrics.add(*refused)
    assert metrics.result() == before
    assert evaluated(scores, labels, losses=np.ones(20)).result() == before


def test_wrong_arguments_are_refused_by_name():
    scores, labels = random_case(4, 5)
    for call, message in (
        (lambda: gap(scores, labels, top_k=0), "top_k=0"),
        (lambda: gap(scores, labels[:, :4]), r"labels.shape=\(4, 4\)"),
        (lambda: average_precision(scores, labels), r"scores.shape=\(4, 5\)"),
        (lambda: VideoMetrics(0), "num_classes=0"),
        (lambda: VideoMetrics(5, top_k=0), "top_k=0"),
        (lambda: VideoMetrics(5, hits_at=(1, 0)), "hits_at=0"),
        (lambda: hit_at_k(scores, labels, 0), "top_k=0"),
        (lambda: average_precision_at_k([True], 1, 0), "k=0"),
        (lambda: VideoMetrics(5).merge(VideoMetrics(6)), "num_classes=6"),
        (lambda: VideoMetrics(5).merge(VideoMetrics(5, hits_at=(5,))), "hits_at="),
        (lambda: VideoMetrics(5).merge(VideoMetrics(5, top_k=3)), "top_k=3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---- real scores and published values

# The published values of this file come from calculators in which chance settles
# ties: NumPy's partition takes any of the classes tied at a cut (what it takes
# depends on the processor), and a seeded shuffle orders equal scores. These are what
# the partition took. In 12 videos more than 20 classes share the score 1:
CLASSES_TAKEN = {
    9: "12 31 34 35 38 41 44 47 48 61 62 88 97 150 170 186 567 610 697 987",
    51: "4 103 120 145 166 167 231 288 320 321 334 371 442 506 521 777 780 817 830 835",
    61: "0 4 8 33 103 108 127 162 231 248 253 260 335 405 540 550 717 776 832 966",
    64: "3 13 16 26 58 60 83 116 119 138 469 494 539 549 583 607 671 680 683 693",
    77: "14 22 31 75 125 153 209 230 235 250 258 346 450 564 757 769 862 886 902 919",
    98: "23 30 52 53 91 113 189 238 286 328 437 441 454 513 518 543 549 690 741 795",
    156: "8 14 15 17 25 32 158 163 185 223 427 452 519 626 661 750 822 852 939 964",
    174: "38 42 54 55 75 140 143 174 199 239 275 328 425 426 556 591 623 656 671 978",
    190: "8 39 52 53 55 63 102 127 335 392 405 411 414 447 613 636 639 643 652 905",
    210: "1 3 4 13 19 68 83 96 150 195 197 206 237 288 294 407 466 556 661 992",
    232: "35 89 102 123 155 182 195 221 232 246 273 291 340 356 406 553 562 565 607 "
    "868",
    267: "0 3 8 11 13 17 34 52 128 192 209 218 287 366 398 646 692 709 868 905",
}
# and of the classes tied at the rank of their number of labels, these videos lost
# one positive more than by the order of classes.
VIDEOS_WITH_ONE_HIT_LESS = (8, 35, 68, 77, 81, 103, 111, 117, 156, 235, 263)


@pytest.fixture
def logistic_scores(real_data):
    with np.load(real_data / "metrics" / "logistic_rgb_scores.npz") as arrays:
        return arrays["scores"], arrays["labels"]


def taken_classes(scores):
    """The 20 classes of each video that entered the published GAP."""
    taken = [ranked_classes(row)[:20] for row in scores]
    for video, classes in CLASSES_TAKEN.items():
        taken[video] = [int(c) for c in classes.split()]
        # Only a choice among ties, or this would prove nothing.
        assert len(set(taken[video])) == 20
        assert (scores[video, taken[video]] == scores[video].max()).all()
    return taken


@dataclass(order=True)
class Pair:
    score: float
    truth: int
    place: tuple[int, int] = field(compare=False)  # video and class


def shuffled_ranking(scores, labels, places):
    """The places in the published order: a heap, a seeded shuffle, a stable sort."""
    heap = []
    for place in places:
        heapq.heappush(heap, Pair(float(scores[place]), int(labels[place]), place))
    order = random.Random(0).sample(range(len(heap)), len(heap))
    ranked = sorted((heap[i] for i in order), key=lambda p: p.score, reverse=True)
    return [pair.place for pair in ranked]


def descending_scores(shape, ranked_places):
    """Scores that rank `ranked_places` in this order and before everything else."""
    scores = np.full(shape, -1, np.float32)
    for rank, place in enumerate(ranked_places):
        scores[place] = 1e6 - rank
    return scores


def test_hit_at_one_of_real_scores_is_the_published_one(logistic_scores):
    scores, labels = logistic_scores
    expected = pytest.approx(0.4782608695652174, abs=1e-9)
    assert np.mean(hit_at_one(scores, labels)) == expected
    assert np.mean(hit_at_k(scores, labels, 1)) == expected
    assert np.mean(hit_at_k(scores, labels, 5)) > 0.4782608695652174


def test_perr_of_real_scores_differs_from_the_published_one_by_ties_alone(
    logistic_scores,
):
    scores, labels = logistic_scores
    values = perr(scores, labels)
    for video in VIDEOS_WITH_ONE_HIT_LESS:
        n = int(labels[video].sum())
        last, next_ = np.sort(scores[video])[[-n, -n - 1]]
        assert last == next_
        values[video] -= 1 / n
    assert np.mean(values) == pytest.approx(0.3026282493673798, abs=1e-9)


def test_gap_of_real_scores_differs_from_the_published_one_by_ties_alone(
    logistic_scores,
):
    scores, labels = logistic_scores
    by_class = sorted(
        (c, video)
        for video, classes in enumerate(taken_classes(scores))
        for c in classes
    )
    ranking = shuffled_ranking(scores, labels, [(video, c) for c, video in by_class])
    untied = descending_scores(scores.shape, ranking)
    expected = pytest.approx(0.09392046079864769, abs=1e-9)
    assert gap(untied, labels, top_k=20) == expected
    assert evaluated(untied, labels, 64).result()["gap"] == expected
    ranked = [scores[place] for place in ranking]
    assert ranked == sorted(ranked, reverse=True)


def test_map_at_20_of_real_scores_differs_from_the_published_one_by_ties_alone(
    logistic_scores,
):
    scores, labels = logistic_scores
    taken = taken_classes(scores)
    rankings = (
        shuffled_ranking(
            scores, labels, [(video, c) for video in range(276) if c in taken[video]]
        )
        for c in range(1000)
    )
    untied = descending_scores(
        scores.shape, [place for ranking in rankings for place in ranking]
    )
    expected = pytest.approx(0.10889816234686145, abs=1e-9)
    assert evaluated(untied, labels, 64).result()["map_at_20"] == expected
    assert mean_average_precision(untied, labels, top_k=20) == expected


def test_real_top_10_lists_give_the_published_values(real_data):
    def rows(*path):
        with open(real_data.joinpath(*path), newline="") as file:
            return list(csv.DictReader(file))

    truths = {
        row["VideoId"]: set(row["Labels"].split())
        for row in rows("labels", "validate_labels.csv")
    }
    precisions, hits, totals = [], {}, {}
    for row in rows("metrics", "bilstm_top10_validate0000-0099.csv"):
        video = row["VideoId"]
        hits[video] = [c in truths[video] for c in row["Label"].split()]
        # That study divides by no more than 10.
        totals[video] = min(len(truths[video]), 10)
        precisions.append(
            average_precision(range(10, 0, -1), hits[video], totals[video])
        )
    assert len(hits) == 28_792
    expected = pytest.approx(0.9609921144544539, abs=1e-9)
    assert np.mean(precisions) == expected
    assert mean_average_precision_at_k(hits, totals, 10) == expected
    assert np.mean([found[0] for found in hits.values()]) == pytest.approx(
        0.9640872464573492, abs=1e-9
    )


# ---- parts of the metrics

_CHANGES = {
    "none": lambda s, rng: s,
    "many equal": lambda s, rng: np.round(s),
    "all equal": lambda s, rng: np.zeros_like(s),
    "zeros of either sign": lambda s, rng: s * rng.integers(0, 2, s.shape),
    "few rated": lambda s, rng: np.where(rng.random(s.shape) < 0.98, -np.inf, s),
    "infinite": lambda s, rng: np.where(rng.random(s.shape) < 0.02, np.inf, s),
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("num_classes", [1, 20, 129, 700])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_best_classes_are_those_of_a_stable_sort(change, num_classes, k):
    rng = np.random.default_rng(num_classes + k)
    for rows in (0, 1, 13, 2500):  # the last are more than are looked at at once
        rows = min(rows, 1_000_000 // num_classes)
        scores = rng.standard_normal((rows, num_classes))
        scores = _CHANGES[change](scores, rng).astype(np.float32)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        classes, values = best_classes(scores, k)
        np.testing.assert_array_equal(classes, expected)
        np.testing.assert_array_equal(
            values, np.take_along_axis(scores, expected, axis=1)
        )


@pytest.mark.parametrize("nan", [np.float32(np.nan), -np.float32(np.nan)])
@pytest.mark.parametrize("num_classes", [30, 700])
def test_nan_ranks_first_so_that_it_is_seen(nan, num_classes):
    scores = np.random.default_rng(0).standard_normal((4, num_classes), np.float32)
    scores[2, 17] = nan
    classes, values = best_classes(scores, 3)
    assert classes[2, 0] == 17 and np.isnan(values[2, 0])
    assert np.isnan(values).sum() == 1
    with pytest.raises(ValueError, match=r"NaN at \[2, 17\]"):
        rank_top(scores, np.zeros_like(scores), 3)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_exact_ranks_do_not_depend_on_the_number_of_threads(monkeypatch, threads):
    rng = np.random.default_rng(1)
    logits = np.round(rng.standard_normal((90, 5)), 1).astype(np.float32)
    labels = rng.random((90, 5)) < 0.2
    labels[:, 3] = False
    kept = KeptLogits()
    for first in (0, 40):
        own = np.s_[first : first + (40 if first == 0 else 50)]
        kept.append(KeptBatch(first, logits[own], *np.nonzero(labels[own])))
    monkeypatch.setattr("os.cpu_count", lambda: threads)
    classes, ranks = kept.positive_ranks()
    for c in range(5):
        order = ranked_classes(logits[:, c])
        expected = [r for r, video in enumerate(order, 1) if labels[video, c]]
        assert ranks[classes == c].tolist() == expected
    assert classes.tolist() == sorted(classes.tolist())
