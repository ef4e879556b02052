"""The choice of frames: hand-computed indices, and what every choice must obey."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m.config import SELECTION_METHODS, FrameSelection
from yt8m.data import frames

LENGTHS = np.array([0, 1, 2, 4, 5, 6, 9, 300, 301], np.int32)


def select(count, method, seed, skip_first=0, lengths=LENGTHS):
    indices, taken = frames.select_frames(
        tf.constant(lengths), FrameSelection(count, method, skip_first), seed
    )
    return indices.numpy(), taken.numpy()


@pytest.mark.parametrize("method", SELECTION_METHODS)
@pytest.mark.parametrize("count", [1, 5, 400])
@pytest.mark.parametrize("skip_first", [0, 4])
def test_every_choice_lies_within_its_video(method, count, skip_first):
    for seed in (None, [1, 2], [3, 4]):
        indices, taken = select(count, method, seed, skip_first)
        skipped = np.minimum(skip_first, LENGTHS) * (skip_first < LENGTHS)
        available = LENGTHS - skipped
        with_replacement = method == "random" and seed is not None
        expected = np.minimum(available, count)
        if with_replacement:
            expected = np.where(available > 0, count, 0)
        np.testing.assert_array_equal(taken, expected)
        assert indices.shape == (len(LENGTHS), taken.max())
        for row, n, first, length in zip(indices, taken, skipped, LENGTHS, strict=True):
            chosen = row[:n]
            assert ((chosen >= first) & (chosen < length)).all()
            if not with_replacement:
                assert (np.diff(chosen) > 0).all()
            if method == "contiguous" and seed is not None:
                assert (np.diff(chosen) == 1).all()


def test_even_frames_are_the_middles_of_equal_stretches():
    indices, taken = select(3, "even", None, lengths=[10, 3, 2, 300])
    np.testing.assert_array_equal(
        indices, [[1, 5, 8], [0, 1, 2], [0, 1, 1], [50, 150, 250]]
    )
    assert taken.tolist() == [3, 3, 2, 3]


def test_evaluation_takes_even_frames_whatever_the_method():
    even = select(4, "even", None)
    for method in SELECTION_METHODS:
        for got, expected in zip(select(4, method, None), even, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_a_model_may_be_evaluated_on_all_frames_though_trained_on_some():
    selection = FrameSelection(2, "random", skip_first=1, evaluation="all")
    lengths = tf.constant([4, 2])
    indices, taken = frames.select_frames(lengths, selection, None)
    np.testing.assert_array_equal(indices, [[1, 2, 3], [1, 1, 1]])
    assert taken.numpy().tolist() == [3, 1]
    assert frames.select_frames(lengths, selection, [1, 2])[0].shape == (2, 2)


def test_all_frames_but_the_first_may_be_taken():
    indices, taken = select(None, "random", None, skip_first=2, lengths=[2, 3, 5])
    np.testing.assert_array_equal(indices, [[0, 1, 1], [2, 2, 2], [2, 3, 4]])
    assert taken.tolist() == [2, 1, 3]


@pytest.mark.parametrize(
    "method", ["random", "random_without_replacement", "contiguous"]
)
def test_random_choices_depend_on_the_seed_and_reach_every_frame(method):
    lengths = np.full(200, 7, np.int32)
    indices, _ = select(3, method, [1, 2], lengths=lengths)
    again, _ = select(3, method, [1, 2], lengths=lengths)
    other, _ = select(3, method, [1, 3], lengths=lengths)
    np.testing.assert_array_equal(indices, again)
    assert (indices != other).any()
    assert set(indices.ravel().tolist()) == set(range(7))
    repeated = [len(set(row)) < 3 for row in indices]
    assert any(repeated) == (method == "random")


@pytest.mark.parametrize("method", SELECTION_METHODS)
@pytest.mark.parametrize("skip_first", [0, 4])
def test_a_part_of_a_batch_gets_the_frames_that_the_whole_gives_it(method, skip_first):
    selection = FrameSelection(5, method, skip_first)

    def chosen(rows):
        indices, taken = frames.select_frames(
            tf.constant(LENGTHS[rows]),
            selection,
            [1, 2],
            rows=(tf.constant(rows), len(LENGTHS)),
            max_frames=301,
        )
        return [r[:n].tolist() for r, n in zip(indices.numpy(), taken, strict=True)]

    whole = chosen(np.arange(len(LENGTHS)))
    for first, end in ((0, 4), (2, 7), (8, 9)):
        assert chosen(np.arange(first, end)) == whole[first:end]
    assert any(len(set(row)) > 1 for row in whole)


@pytest.mark.parametrize("method", SELECTION_METHODS)
@pytest.mark.parametrize("count", [None, 3])
def test_no_videos_have_no_frames(method, count):
    for seed in (None, [1, 2]):
        indices, taken = select(count, method, seed, lengths=np.zeros(0, np.int32))
        assert indices.shape == (0, 0)
        assert taken.shape == (0,)


def test_draws_are_uniform():
    lengths = np.full(4000, 5, np.int32)
    for method in ("random", "random_without_replacement"):
        indices, _ = select(2, method, [5, 6], lengths=lengths)
        counts = np.bincount(indices.ravel(), minlength=5)
        # Five standard deviations of a binomial of 8,000 and 1/5.
        assert abs(counts - 1600).max() < 5 * np.sqrt(8000 * 0.2 * 0.8)
    first, _ = select(3, "contiguous", [5, 6], lengths=lengths)
    counts = np.bincount(first[:, 0], minlength=3)
    assert abs(counts - 4000 / 3).max() < 5 * np.sqrt(4000 * 2 / 9)
