"""Cross-entropy of a softmax over the classes."""

from typing import Any

from keras import ops

from yt8m.losses.cross_entropy import labels_and_logits, sum_classes


def softmax(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """Cross-entropy of the softmax over classes with the labels, scaled to sum to 1.

    A video without labels has the loss 0.
    """
    labels, logits = labels_and_logits(labels, outputs)
    return _softmax_cross_entropy(labels, logits, weights)


def softmax_compat(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """The starter code's softmax loss: the softmax is over the probabilities.

    They lie in [0, 1], so that no class can get more than e times another's share.
    """
    labels, logits = labels_and_logits(labels, outputs)
    return _softmax_cross_entropy(labels, ops.sigmoid(logits), weights)


def _softmax_cross_entropy(labels: Any, scores: Any, weights: Any) -> Any:
    total = ops.maximum(ops.sum(labels, axis=-1, keepdims=True), 1e-7)
    return sum_classes(-labels / total * ops.log_softmax(scores, axis=-1), weights)
