"""Calibration: what a model's probabilities are worth, class by class.

Platt's logistic regression of labels on logits: with z the logit of a probability, the
calibrated one is sigmoid(a_c z + b_c), for a slope a_c and a shift b_c of each class c
(Platt 1999, Probabilistic outputs for support vector machines). Those of a class with
few labels would be noise, so all are drawn towards the slope and shift that fit all
classes together.

The pairs of a class are counted in narrow bins of the logit, so that memory does not
grow with the number of videos. Pairs of probability 0, which a source does not name,
are not looked at and stay 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_FLOOR = 1e-7  # of probabilities
_MOST_LOGIT = 17.0  # a float32 next to 1 has 16.6
_BINS = 128
_BLOCK = 512  # videos at once
_STEPS = 100  # of Newton's method; ten are usual
_LONGEST_STEP = 1.0


def logits_of(probabilities: np.ndarray, floor: float) -> np.ndarray:
    """Logits float32 of probabilities, which are taken within [floor, 1 - 2^-24]."""
    p = np.clip(probabilities.astype(np.float64), floor, 1 - 2**-24)
    return (np.log(p) - np.log1p(-p)).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Slopes and shifts of C classes.

    Attributes:
        slopes: float64 [C], none negative.
        shifts: float64 [C].
    """

    slopes: np.ndarray
    shifts: np.ndarray

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities float32 [n, C] of others [n, C]; 0 stays 0."""
        logits = self.slopes * logits_of(probabilities, _FLOOR) + self.shifts
        found = 1 / (1 + np.exp(-logits))
        return np.where(probabilities > 0, found, 0).astype(np.float32)


def fit_calibration(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
    strength: float = 1.0,
) -> Calibration:
    """Fits slopes and shifts to labels that the model was not trained on.

    Args:
        blocks: probabilities [n, C] and labels bool [n, C] of some videos each.
        num_classes: C.
        strength: weight of the squared distances, halved, of a class's slope and
            shift from those of all classes together, against the log loss of its
            pairs; more than 0.

    Raises:
        ValueError: `strength` is not positive.
    """
    if not strength > 0:
        raise ValueError(f"`strength` must be positive. Received: strength={strength}")
    counts, sums, positives = np.zeros((3, num_classes * _BINS))
    for probabilities, labels in blocks:
        for start in range(0, len(labels), _BLOCK):
            rows = slice(start, start + _BLOCK)
            _count(probabilities[rows], labels[rows], counts, sums, positives)
    # The mean logit of a bin stands for its pairs.
    logits = sums / np.maximum(counts, 1)
    own = (x.reshape(num_classes, _BINS) for x in (logits, counts, positives))
    every = (x.reshape(1, -1) for x in (logits, counts, positives))
    # Of all pairs; a distance from the identity keeps it where there are few.
    common = _fit(*every, np.array([[1.0, 0.0]]), strength)
    fitted = _fit(*own, np.repeat(common, num_classes, axis=0), strength)
    return Calibration(fitted[:, 0], fitted[:, 1])


def _count(
    probabilities: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray,
    sums: np.ndarray,
    positives: np.ndarray,
) -> None:
    """Adds named pairs to the bins of their classes."""
    rows, classes = np.nonzero(probabilities > 0)
    logits = logits_of(probabilities[rows, classes], _FLOOR)
    bins = ((logits + _MOST_LOGIT) * (_BINS / 2 / _MOST_LOGIT)).astype(np.int64)
    cells = classes * _BINS + np.minimum(bins, _BINS - 1)
    size = len(counts)
    counts += np.bincount(cells, minlength=size)
    sums += np.bincount(cells, logits, minlength=size)
    positives += np.bincount(cells[labels[rows, classes]], minlength=size)


def _fit(
    logits: np.ndarray,
    counts: np.ndarray,
    positives: np.ndarray,
    centre: np.ndarray,
    strength: float,
) -> np.ndarray:
    """Slope and shift [R, 2] of each row of bins [R, n], by Newton's method.

    Args:
        logits, counts, positives: of the bins.
        centre: [R, 2], what they are drawn to.
        strength: see `fit_calibration`.
    """
    found = centre.copy()
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-(found[:, :1] * logits + found[:, 1:])))
        error, weight = counts * p - positives, counts * p * (1 - p)
        drawn = strength * (found - centre)
        gradient = np.stack([(error * logits).sum(1), error.sum(1)], axis=1) + drawn
        aa = (weight * logits**2).sum(1) + strength
        ab, bb = (weight * logits).sum(1), weight.sum(1) + strength
        determinant = aa * bb - ab**2  # positive, for strength is
        step = np.stack(
            [
                bb * gradient[:, 0] - ab * gradient[:, 1],
                aa * gradient[:, 1] - ab * gradient[:, 0],
            ],
            axis=1,
        )
        step /= determinant[:, None]
        # At a slope of 0 that would go on falling, the shift alone is fitted.
        pinned = (found[:, 0] <= 0) & (step[:, 0] > 0)
        alone = np.stack([np.zeros_like(bb), gradient[:, 1] / bb], axis=1)
        step = np.where(pinned[:, None], alone, step)
        length = np.abs(step).max(axis=1, keepdims=True)
        step *= np.minimum(1, _LONGEST_STEP / np.maximum(length, 1e-12))
        after = found - step
        after[:, 0] = np.maximum(after[:, 0], 0)  # or it would turn rankings around
        moved = np.abs(after - found).max()
        found = after
        if moved < 1e-9:
            break
    return found
