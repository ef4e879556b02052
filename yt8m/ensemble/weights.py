"""Weights of an ensemble, learned on videos that no member was trained on.

Both ways raise the GAP itself, draw nothing at random and, of equal ones, keep the
first. Weights are not negative and sum to 1.
"""

from collections.abc import Callable

import numpy as np

from yt8m.ensemble.candidates import Candidates

_STEPS = (0.3, 0.1, 0.03, 0.01)
_LEAST_GAIN = 1e-9


def search_weights(candidates: Candidates) -> np.ndarray:
    """Climbs from equal weights, so that the result is never worse than the mean.

    One weight at a time is raised or lowered by a step, and all are divided by their
    sum; what raises the GAP stays. Where no weight does any more, the step gets
    smaller.

    Returns:
        float64 [M].
    """
    count = candidates.scores.shape[1]
    weights = np.full(count, 1 / count)
    best = candidates.gap(weights)
    for step in _STEPS:
        tried = 0
        at = 0
        while tried < 2 * count:
            number, direction = at // 2 % count, 1 - 2 * (at % 2)
            trial = weights.copy()
            trial[number] = max(0, trial[number] + direction * step)
            at, tried = at + 1, tried + 1
            if not trial.any() or trial[number] == weights[number]:
                continue
            trial /= trial.sum()
            gap = candidates.gap(trial)
            if gap > best + _LEAST_GAIN:
                weights, best, tried = trial, gap, 0
    return weights


def greedy_weights(candidates: Candidates, rounds: int = 50) -> np.ndarray:
    """Forward selection of members, with replacement.

    Each round adds to the bag that member with which the mean over the bag has the
    highest GAP; weights are the shares of the members in the bag that was best.

    Args:
        candidates: of the members.
        rounds: members added at most.

    Returns:
        float64 [M].

    Reference: Caruana et al., "Ensemble selection from libraries of models", ICML
    2004.
    """
    count = candidates.scores.shape[1]
    bag = np.zeros(count, np.int64)
    best, chosen = -1.0, bag
    for size in range(1, rounds + 1):
        gaps = [candidates.gap((bag + one) / size) for one in np.eye(count)]
        number = int(np.argmax(gaps))
        bag = bag + (np.arange(count) == number)
        if gaps[number] > best + _LEAST_GAIN:
            best, chosen = gaps[number], bag
    return chosen / chosen.sum()


LEARNERS: dict[str, Callable[[Candidates], np.ndarray]] = {
    "search": search_weights,
    "greedy": greedy_weights,
}
