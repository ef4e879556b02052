"""Cross-entropy in which positives weigh more."""

from typing import Any

import numpy as np
from keras import ops

from yt8m.class_figures import of_all_classes, read_class_counts
from yt8m.losses.cross_entropy import (
    cross_entropy_cells,
    labels_and_logits,
    sum_classes,
)


class WeightedCrossEntropyLoss:
    """Binary cross-entropy in which a positive weighs `positive_weight` as much.

    -a y log p - (1 - y) log(1 - p), summed over classes. Call arguments and result as
    those of `cross_entropy`.

    Args:
        positive_weight: a.

    Reference: Huang, "YouTube-8M Video Understanding", Stanford, section 5 (its alpha),
    which reports no gain from a > 1.
    """

    def __init__(self, positive_weight: float):
        if not positive_weight > 0:
            raise ValueError(
                "`positive_weight` must be positive. "
                f"Received: positive_weight={positive_weight}"
            )
        self.positive_weight = positive_weight

    def __call__(self, labels, outputs, weights=None):
        labels, logits = labels_and_logits(labels, outputs)
        cells = cross_entropy_cells(labels, logits)
        more = self._positive_weights(logits) - 1.0
        cells = cells + more * labels * ops.softplus(-logits)
        return sum_classes(cells, weights)

    def _positive_weights(self, logits: Any) -> Any:
        """What a positive weighs, as a number or float32 [C]."""
        return self.positive_weight


class ClassBalancedCrossEntropyLoss(WeightedCrossEntropyLoss):
    """Binary cross-entropy in which a positive costs inversely to its class's count.

    -w_c y log p - (1 - y) log(1 - p), summed over classes, with
        w_c = mean(n) / n_c
    for n_c videos of class c, the mean over the classes that have any: a positive of
    the counted videos weighs 1 on average. A class without videos counts as one with 1.
    Call arguments and result as those of `cross_entropy`.

    Args:
        class_counts: file with the number of videos of each class, as `yt8m count
            --per_class=FILE` or the dataset's vocabulary.csv gives it; read once.

    Raises:
        UserError: the file cannot be used, or, when the loss is first computed, has a
            class that the model does not have.

    Reference: the paper of BoF_4096, Simple_LSTM and LSTM_MoE, 2017, section 5 (false
    negatives cost inversely to the number of labels in the training set), without a
    formula; the scale is our choice.
    """

    def __init__(self, class_counts: str):
        self.class_counts = class_counts
        counts = read_class_counts(class_counts)
        mean = counts[counts > 0].mean() if counts.any() else 1.0
        self.class_weights = (mean / np.maximum(counts, 1)).astype("float32")
        self._of_the_others = float(mean)

    def _positive_weights(self, logits):
        return ops.convert_to_tensor(
            of_all_classes(
                self.class_weights,
                logits.shape[-1],
                self._of_the_others,
                self.class_counts,
            )
        )
