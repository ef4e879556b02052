"""Losses by name: `(labels, outputs, weights) -> per-example loss [B]`.

Losses sum over the classes, as the starter code's do, so that its learning rates and
L2 penalties carry over; the trainer averages over the examples. With p = sigmoid(x):

| name | each cell, for label y and logit x |
| --- | --- |
| CrossEntropyLoss | -y log p - (1 - y) log(1 - p), exact at any x |
| CrossEntropyLossCompat | the same with 1e-5 added inside the logarithms |
| HingeLoss | max(0, 1 - (2 y - 1) x) |
| HingeLossCompat | max(0, 1 - (2 y - 1) p) |
| SoftmaxLoss | -y / sum(y) log softmax(x) |
| SoftmaxLossCompat | -y / sum(y) log softmax(p) |

The names that end in `Compat` are the starter code's own formulas, for comparison with
its runs; the others act on the logits, as the papers do.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from yt8m.errors import UserError, near_matches

Loss = Callable[[Any, dict[str, Any], Any], Any]

_COMPAT_EPSILON = 1e-5  # the starter code's, inside the logarithms


def _sum_classes(cells: Any, weights: Any) -> Any:
    if weights is not None:
        cells = cells * ops.cast(weights, cells.dtype)
    return ops.sum(cells, axis=-1)


def _labels_logits(labels: Any, outputs: dict[str, Any]) -> tuple[Any, Any]:
    return ops.cast(labels, "float32"), ops.cast(outputs["logits"], "float32")


def cross_entropy(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """Binary cross-entropy, summed over classes: -y log p - (1 - y) log(1 - p).

    Args:
        labels: [B, C] in [0, 1], of any dtype.
        outputs: a model's outputs, with `logits` [B, C].
        weights: [B, C], multiplies each cell; segments give 1 to rated cells and 0
            to the others.

    Returns:
        float32 [B].
    """
    labels, logits = _labels_logits(labels, outputs)
    return _sum_classes(ops.softplus(logits) - labels * logits, weights)


def cross_entropy_compat(
    labels: Any, outputs: dict[str, Any], weights: Any = None
) -> Any:
    """The starter code's cross-entropy: 1e-5 is added inside both logarithms.

    A cell lies between -1e-5 and 11.5, and a badly wrong one has next to no gradient.
    Arguments and result as those of `cross_entropy`.
    """
    labels, logits = _labels_logits(labels, outputs)
    yes = ops.log(ops.sigmoid(logits) + _COMPAT_EPSILON)
    no = ops.log(ops.sigmoid(-logits) + _COMPAT_EPSILON)
    return _sum_classes(-labels * yes - (1.0 - labels) * no, weights)


def hinge(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """max(0, 1 - (2y - 1) * logit), summed over classes.

    Reference: Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.3.2, with b = 1.
    """
    labels, logits = _labels_logits(labels, outputs)
    return _sum_classes(ops.relu(1.0 - (2.0 * labels - 1.0) * logits), weights)


def hinge_compat(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """The starter code's hinge loss: the score is the probability.

    A negative therefore costs between 1 and 2, however low its score.
    """
    labels, logits = _labels_logits(labels, outputs)
    scores = ops.sigmoid(logits)
    return _sum_classes(ops.relu(1.0 - (2.0 * labels - 1.0) * scores), weights)


def softmax(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """Cross-entropy of the softmax over classes with the labels, scaled to sum to 1.

    A video without labels has the loss 0.
    """
    labels, logits = _labels_logits(labels, outputs)
    return _softmax_cross_entropy(labels, logits, weights)


def softmax_compat(labels: Any, outputs: dict[str, Any], weights: Any = None) -> Any:
    """The starter code's softmax loss: the softmax is over the probabilities.

    They lie in [0, 1], so that no class can get more than e times another's share.
    """
    labels, logits = _labels_logits(labels, outputs)
    return _softmax_cross_entropy(labels, ops.sigmoid(logits), weights)


def _softmax_cross_entropy(labels: Any, scores: Any, weights: Any) -> Any:
    total = ops.maximum(ops.sum(labels, axis=-1, keepdims=True), 1e-7)
    return _sum_classes(-labels / total * ops.log_softmax(scores, axis=-1), weights)


LOSSES: dict[str, Loss] = {
    "CrossEntropyLoss": cross_entropy,
    "CrossEntropyLossCompat": cross_entropy_compat,
    "HingeLoss": hinge,
    "HingeLossCompat": hinge_compat,
    "SoftmaxLoss": softmax,
    "SoftmaxLossCompat": softmax_compat,
}


def create(name: str) -> Loss:
    """The loss `name`. Raises `UserError` with near matches if there is none."""
    if name not in LOSSES:
        raise UserError(f"Unknown loss {name}. {near_matches(name, LOSSES)}")
    return LOSSES[name]
