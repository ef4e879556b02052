"""Which windows segments are made of: planned by hand, averaged in any pieces."""

import numpy as np
import pytest

from yt8m.errors import UserError
from yt8m.inference.windows import (
    Averager,
    SegmentOptions,
    mean_logits,
    plan_segments,
    sigmoid,
)


def named(windows) -> list[tuple[int, int, int]]:
    columns = (windows.rows, windows.starts, windows.lengths)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def plan(frames, **options):
    return plan_segments(np.array(frames, np.int32), SegmentOptions(**options))


def members_of(found) -> list[list[tuple[int, int, int]]]:
    """The windows of each segment, by name."""
    windows = named(found.windows)
    return [[windows[i] for i in row] for row in found.members.tolist()]


def test_by_default_every_segment_is_its_own_window():
    found = plan([7, 0, 5])
    assert named(found.segments) == [(0, 0, 5), (0, 5, 2), (2, 0, 5)]
    assert named(found.windows) == named(found.segments)
    assert found.members.tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("frames", [[], [0, 0]])
def test_without_frames_there_is_nothing_to_plan(frames):
    for shifts in ((0,), (-1, 0, 1)):
        found = plan(frames, shifts=shifts, stride=2, drop_first=1)
        assert len(found.segments) == len(found.windows) == 0
        assert found.members.shape == (0, len(shifts))


def test_a_smaller_stride_gives_overlapping_segments():
    found = plan([7], stride=2)
    assert named(found.segments) == [(0, 0, 5), (0, 2, 5), (0, 4, 3), (0, 6, 1)]


def test_segments_at_both_ends_are_dropped_in_fives():
    starts = [start for _, start, _ in named(plan([22, 9], drop_first=1).segments)]
    assert starts == [5, 10, 15, 20, 5]
    found = plan([22, 9], drop_first=1, drop_last=2)
    assert named(found.segments) == [(0, 5, 5), (0, 10, 5)]
    found = plan([22], stride=4, drop_first=1, drop_last=2)
    assert [start for _, start, _ in named(found.segments)] == [8, 12]


def test_shifted_windows_stay_within_the_video():
    found = plan([12], shifts=(-3, 0, 4))
    assert members_of(found) == [
        [(0, 0, 5), (0, 0, 5), (0, 4, 5)],
        [(0, 2, 5), (0, 5, 5), (0, 7, 5)],  # 9 would leave 3 frames
        [(0, 7, 5), (0, 10, 2), (0, 10, 2)],  # the segment itself has no more
    ]
    assert members_of(plan([3], shifts=(-1, 1))) == [[(0, 0, 3), (0, 0, 3)]]


@pytest.mark.parametrize("stride", [1, 2, 5, 7])
def test_no_window_is_computed_twice_and_none_for_nothing(stride):
    frames = [23, 0, 4, 31]
    found = plan(frames, stride=stride, shifts=(-2, -1, 0, 1, 2), drop_last=1)
    windows = named(found.windows)
    assert windows == sorted(set(windows))
    assert set(found.members.ravel().tolist()) == set(range(len(windows)))
    for row, start, length in windows:
        assert length == min(5, frames[row] - start) > 0
    for segment, members in zip(named(found.segments), members_of(found), strict=True):
        assert all(row == segment[0] for row, _, _ in members)
        assert abs(np.mean([s for _, s, _ in members]) - segment[1]) <= 2
    if stride == 1:  # segments and shifts share all
        assert len(windows) <= sum(frames)
    for edge in (found.members.min(axis=1), found.members.max(axis=1)):
        assert (np.diff(edge) >= 0).all()


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("whole_videos", [False, True])
def test_pieces_of_any_size_give_the_same_means(average, whole_videos):
    rng = np.random.default_rng(0)
    found = plan([23, 0, 4, 17, 1], stride=3, shifts=(-2, 0, 1))
    logits = rng.normal(0, 4, (len(found.windows), 6)).astype(np.float32)
    expected = mean_logits(logits, found.members, average)
    rows = found.segments.rows
    for size in (1, 4, 7, len(logits)):
        averager, seen = Averager(found, average, whole_videos), []
        for first in range(0, len(logits), size):
            which, means = averager.push(logits[first : first + size])
            assert which.stop - which.start == len(means)
            assert which.start == len(seen)
            seen.extend(means)
            if whole_videos and 0 < which.stop < len(rows):
                assert rows[which.stop - 1] != rows[which.stop]
        np.testing.assert_array_equal(np.array(seen), expected)


def test_means_are_those_of_float64():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 8, (9, 50)).astype(np.float32)
    members = rng.integers(0, 9, (20, 5))
    exact = logits.astype(np.float64)
    p = (1 / (1 + np.exp(-exact)))[members].mean(axis=1)
    q = (1 / (1 + np.exp(exact)))[members].mean(axis=1)
    found = mean_logits(logits, members, "probabilities")
    np.testing.assert_allclose(found, np.log(p / q), rtol=1e-5, atol=1e-5)
    found = mean_logits(logits, members, "logits")
    np.testing.assert_allclose(found, exact[members].mean(axis=1), rtol=1e-5, atol=1e-5)
    alone = mean_logits(logits, members[:, :1], "probabilities")
    np.testing.assert_array_equal(alone, logits[members[:, 0]])


def test_sigmoids_of_large_values_are_finite():
    x = np.array([-500, -90, -1, 0, 1, 90, 500], np.float32)
    assert ((sigmoid(x) > 0) & (sigmoid(x) <= 1)).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stride": 0}, "--segment_stride must be at least 1"),
        ({"drop_last": -1}, "--segment_drop_last must be at least 0"),
        ({"shifts": ()}, "--segment_shifts must name at least one"),
        ({"shifts": (1, 1)}, "each once, not 1,1"),
        ({"average": "ranks"}, "--segment_average=ranks must be one of"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(UserError, match=message):
        SegmentOptions(**options)
