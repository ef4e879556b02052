"""Cross-entropy for labels that are wrong or missing, as those of YouTube-8M are.

The paper of these ideas tried them without a gain and gives no formulas: they are off
unless chosen. Reference: Ostyakov et al. 2018, arXiv:1809.04403, section 3, "Loss
function selection".
"""

from typing import Any

import numpy as np
from keras import ops

from yt8m.class_figures import of_all_classes, read_class_rates
from yt8m.errors import UserError
from yt8m.losses.cross_entropy import (
    cross_entropy,
    cross_entropy_cells,
    labels_and_logits,
    sum_classes,
)
from yt8m.losses.ranking import positives_negatives


class ConfidencePenaltyLoss:
    """Cross-entropy, and a price of the confidence in classes that are often wrong.

    e + w (1 - a_c) p, summed over classes,
    for a class's accuracy a_c: the less accurate it is, the lower its scores.

    Args:
        class_accuracies: CSV file with the columns Index and AveragePrecision, which
            is the accuracy: the table of classes that `yt8m eval` wrote for another
            run. A class without a figure has the mean of the others. Read once.
        penalty_weight: w.

    Raises:
        UserError: the file cannot be used, or, when the loss is first computed, has a
            class that the model does not have.

    Reference: see the top of the file, idea 1. Formula, weight and measure of accuracy
    are our choice.
    """

    def __init__(self, class_accuracies: str, penalty_weight: float = 0.1):
        if not penalty_weight >= 0:
            raise ValueError(
                "`penalty_weight` must not be negative. "
                f"Received: penalty_weight={penalty_weight}"
            )
        self.penalty_weight = penalty_weight
        self.class_accuracies = class_accuracies
        accuracies = read_class_rates(class_accuracies, "AveragePrecision")
        if np.isnan(accuracies).all():
            raise UserError(
                f"{class_accuracies} gives no class an AveragePrecision: take the "
                "table of an evaluation on labelled videos."
            )
        self._of_the_others = np.nanmean(accuracies)
        self._accuracies = np.nan_to_num(accuracies, nan=self._of_the_others)

    def __call__(self, labels, outputs, weights=None):
        labels, logits = labels_and_logits(labels, outputs)
        accuracies = of_all_classes(
            self._accuracies,
            logits.shape[-1],
            self._of_the_others,
            self.class_accuracies,
        )
        prices = self.penalty_weight * (1.0 - accuracies)
        cells = cross_entropy_cells(labels, logits) + prices * ops.sigmoid(logits)
        return sum_classes(cells, weights)


class CorrectedCrossEntropyLoss:
    """Cross-entropy of the label that a video would get of people who err.

    -y log q - (1 - y) log(1 - q), summed over classes, with
        q = (1 - m) p + f (1 - p)
    for m, how often a class that is there is not labelled, and f, how often one that is
    not there is labelled. So the model's own p is that of what is there.

    Args:
        false_negative_rate: m, a number, or a CSV file with that of each class, in the
            columns Index and FalseNegativeRate; a class without one has 0. Read once.
        false_positive_rate: f, likewise, of the column FalsePositiveRate.

    Raises:
        UserError: a file cannot be used, or, when the loss is first computed, has a
            class that the model does not have.
        ValueError: m + f of a class is 1 or more: its labels would say the opposite.

    Reference: Patrini et al. 2017, arXiv:1609.03683, theorem 2 (forward correction),
    applied to each class by itself, which is our choice. Of what people saw in videos
    of YouTube-8M 14.5% was labelled, so that m = 0.855: Abu-El-Haija et al. 2016,
    arXiv:1609.08675, section 3.5.
    """

    def __init__(
        self,
        false_negative_rate: float | str,
        false_positive_rate: float | str = 0.0,
    ):
        self.false_negative_rate = false_negative_rate
        self.false_positive_rate = false_positive_rate
        self._missed = _rates(false_negative_rate, "FalseNegativeRate")
        self._added = _rates(false_positive_rate, "FalsePositiveRate")
        size = max(self._missed.size, self._added.size)
        total = _padded(self._missed, size) + _padded(self._added, size)
        if (total >= 1).any():
            which = f" of class {np.argmax(total >= 1)}" if size > 1 else ""
            raise ValueError(
                f"`false_negative_rate` and `false_positive_rate`{which} must add up "
                f"to less than 1. Received: {total.max():g}"
            )

    def __call__(self, labels, outputs, weights=None):
        labels, logits = labels_and_logits(labels, outputs)
        missed, added = self._missed, self._added
        if missed.ndim:
            file = self.false_negative_rate
            missed = of_all_classes(missed, logits.shape[-1], 0.0, file)
        if added.ndim:
            file = self.false_positive_rate
            added = of_all_classes(added, logits.shape[-1], 0.0, file)
        there, not_there = ops.log_sigmoid(logits), ops.log_sigmoid(-logits)
        # log q and log(1 - q), where p or 1 - p may be too small for a float.
        yes = ops.logaddexp(_log(1.0 - missed) + there, _log(added) + not_there)
        no = ops.logaddexp(_log(missed) + there, _log(1.0 - added) + not_there)
        return sum_classes(-labels * yes - (1.0 - labels) * no, weights)


def _rates(given: float | str, column: str) -> np.ndarray:
    """float64 [C] of a file, or []."""
    if isinstance(given, str):
        return np.nan_to_num(read_class_rates(given, column), nan=0.0)
    if not 0 <= given < 1:
        raise ValueError(f"A rate must be at least 0 and below 1. Received: {given}")
    return np.float64(given)[...]


def _padded(rates: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rates, (0, size - rates.size)) if rates.ndim else rates


def _log(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(x).astype("float32")


class ReweightedCrossEntropyLoss:
    """Cross-entropy in which a video weighs more, the more of its labels are missed.

    (1 + w n / N) e
    for the n of a video's N labels that do not score above all of its other classes.
    The weight has no gradient. Labels of at least 1/2 are those of the video.

    Args:
        misprediction_weight: w.

    Reference: see the top of the file, "reweighting"; what is mispredicted is that of
    its section 4, "Error analysis". The weight of a video is our choice.
    """

    def __init__(self, misprediction_weight: float = 1.0):
        if not misprediction_weight >= 0:
            raise ValueError(
                "`misprediction_weight` must not be negative. "
                f"Received: misprediction_weight={misprediction_weight}"
            )
        self.misprediction_weight = misprediction_weight

    def __call__(self, labels, outputs, weights=None):
        loss = cross_entropy(labels, outputs, weights)
        labels, logits = labels_and_logits(labels, outputs)
        positive, negative = positives_negatives(labels, weights)
        highest = ops.max(ops.where(negative, logits, -np.inf), axis=-1, keepdims=True)
        missed = _count(positive & (logits <= highest))
        share = missed / ops.maximum(_count(positive), 1.0)
        return (1.0 + self.misprediction_weight * ops.stop_gradient(share)) * loss


def _count(cells: Any) -> Any:
    return ops.sum(ops.cast(cells, "float32"), axis=-1)
