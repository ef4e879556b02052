"""Hinge losses of cells."""

from typing import Any

from keras import ops

from yt8m.losses.cross_entropy import labels_and_logits, sum_classes


def hinge(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """max(0, 1 - (2y - 1) x) for the logit x, summed over classes.

    Arguments and result as those of `cross_entropy`.

    Reference: Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.3.2, equation 4,
    with b = 1.
    """
    labels, logits = labels_and_logits(labels, outputs)
    return sum_classes(ops.relu(1.0 - (2.0 * labels - 1.0) * logits), weights)


def hinge_compat(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """The starter code's hinge loss: the score is the probability.

    max(0, 1 - (2y - 1) p) with p = sigmoid(x), summed over classes. A negative
    therefore costs between 1 and 2, however low its score. Arguments and result as
    those of `cross_entropy`.

    Reference: google/youtube-8m, losses.py, HingeLoss, with b = 1.
    """
    labels, logits = labels_and_logits(labels, outputs)
    scores = ops.sigmoid(logits)
    return sum_classes(ops.relu(1.0 - (2.0 * labels - 1.0) * scores), weights)
