"""Cross-entropy of a softmax over the classes."""

from typing import Any

from keras import ops

from yt8m.losses.cross_entropy import labels_and_logits, sum_classes


def softmax(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """Cross-entropy of the softmax over classes with the labels, scaled to sum to 1.

    -sum_c y_c / (sum of all y) log softmax(x)_c; a video without labels has the loss 0.
    Arguments and result as those of `cross_entropy`.

    Reference: Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.1.2 (the loss of a
    softmax layer); that labels are scaled is the starter code's (SoftmaxLoss).
    """
    labels, logits = labels_and_logits(labels, outputs)
    return _softmax_cross_entropy(labels, logits, weights)


def softmax_compat(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """The starter code's softmax loss: the softmax is over the probabilities.

    -sum_c y_c / (sum of all y) log softmax(p)_c, with p = sigmoid(x), which lie in
    [0, 1], so that no class can get more than e times another's share. Arguments and
    result as those of `cross_entropy`.

    Reference: google/youtube-8m, losses.py, SoftmaxLoss.
    """
    labels, logits = labels_and_logits(labels, outputs)
    return _softmax_cross_entropy(labels, ops.sigmoid(logits), weights)


def _softmax_cross_entropy(labels: Any, scores: Any, weights: Any) -> Any:
    total = ops.maximum(ops.sum(labels, axis=-1, keepdims=True), 1e-7)
    return sum_classes(-labels / total * ops.log_softmax(scores, axis=-1), weights)
