"""Hinge losses of cells."""

from typing import Any

from keras import ops

from yt8m.losses.cross_entropy import labels_and_logits, sum_classes


def hinge(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """max(0, 1 - (2y - 1) * logit), summed over classes.

    Reference: Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.3.2, with b = 1.
    """
    labels, logits = labels_and_logits(labels, outputs)
    return sum_classes(ops.relu(1.0 - (2.0 * labels - 1.0) * logits), weights)


def hinge_compat(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """The starter code's hinge loss: the score is the probability.

    A negative therefore costs between 1 and 2, however low its score.
    """
    labels, logits = labels_and_logits(labels, outputs)
    scores = ops.sigmoid(logits)
    return sum_classes(ops.relu(1.0 - (2.0 * labels - 1.0) * scores), weights)
