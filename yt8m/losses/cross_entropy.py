"""Binary cross-entropy, and what every loss of cells is made of."""

from typing import Any

from keras import ops

_COMPAT_EPSILON = 1e-5  # the starter code's, inside the logarithms


def sum_classes(cells: Any, weights: Any) -> Any:
    """Cells [..., C], times their weights if they have any, summed over classes."""
    if weights is not None:
        cells = cells * ops.cast(weights, cells.dtype)
    return ops.sum(cells, axis=-1)


def labels_and_logits(labels: Any, outputs: dict[str, Any]) -> tuple[Any, Any]:
    """Both in float32."""
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

    Reference: Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.3.3, equation 5
    (the log-loss of one class).
    """
    labels, logits = labels_and_logits(labels, outputs)
    return sum_classes(cross_entropy_cells(labels, logits), weights)


def cross_entropy_cells(labels: Any, logits: Any) -> Any:
    """-y log p - (1 - y) log(1 - p) = log(1 + exp(x)) - y x of logits x."""
    return ops.softplus(logits) - labels * logits


class CrossEntropyLoss:
    """Binary cross-entropy with smoothed labels, summed over classes.

    y <- (1 - s) y + s / 2

    Args:
        label_smoothing: s; with 0 the labels are as they are.

    Reference: Szegedy et al. 2016, arXiv:1512.00567, section 7, with yes and no as the
    two equally likely outcomes of each class.
    """

    def __init__(self, label_smoothing: float = 0.0):
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                "`label_smoothing` must be at least 0 and below 1. "
                f"Received: label_smoothing={label_smoothing}"
            )
        self.label_smoothing = label_smoothing

    def __call__(self, labels, outputs, weights=None):
        if self.label_smoothing:
            labels = ops.cast(labels, "float32")
            labels = (1.0 - self.label_smoothing) * labels + self.label_smoothing / 2.0
        return cross_entropy(labels, outputs, weights)


def cross_entropy_compat(
    labels: Any, outputs: dict[str, Any], weights: Any = None
) -> Any:
    """The starter code's cross-entropy: 1e-5 is added inside both logarithms.

    A cell lies between -1e-5 and 11.5, and a badly wrong one has next to no gradient.
    Arguments and result as those of `cross_entropy`.

    Reference: google/youtube-8m, losses.py, CrossEntropyLoss.
    """
    labels, logits = labels_and_logits(labels, outputs)
    yes = ops.log(ops.sigmoid(logits) + _COMPAT_EPSILON)
    no = ops.log(ops.sigmoid(-logits) + _COMPAT_EPSILON)
    return sum_classes(-labels * yes - (1.0 - labels) * no, weights)


class PseudoHuberLoss:
    """Pseudo-Huber function of the cross-entropy e: d^2 (sqrt(1 + (e / d)^2) - 1).

    It is e^2 / 2 for a small e and d e for a large one: cells that are nearly right
    count less, and very wrong ones, as of wrong labels, not more than d times as much.

    Args:
        delta: d.
        of_sum: take the function of the sum over classes; otherwise of the
            cross-entropy of each class, and sum then.

    Reference: Na et al. 2017, arXiv:1706.07960, equation 23, which leaves open of which
    of the two.
    """

    def __init__(self, delta: float = 0.5, of_sum: bool = False):
        if not delta > 0:
            raise ValueError(f"`delta` must be positive. Received: delta={delta}")
        self.delta = delta
        self.of_sum = of_sum

    def __call__(self, labels, outputs, weights=None):
        if self.of_sum:
            return self._huber(cross_entropy(labels, outputs, weights))
        labels, logits = labels_and_logits(labels, outputs)
        cells = self._huber(cross_entropy_cells(labels, logits))
        return sum_classes(cells, weights)

    def _huber(self, x):
        # d^2 (sqrt(1 + z^2) - 1) for z = x / d, without a difference of near values.
        z = x / self.delta
        return self.delta * x * z / (1.0 + ops.sqrt(1.0 + ops.square(z)))
