"""Cross-entropy in which cells that are nearly right count less."""

from typing import Any

from keras import ops

from yt8m.losses.cross_entropy import labels_and_logits, sum_classes


class FocalLoss:
    """Cross-entropy of a cell times how wrong it is, to a power, summed over classes.

    -a y (1 - p)^g log p - (1 - a) (1 - y) p^g log(1 - p)

    A label between 0 and 1 costs the mean of a positive and a negative, as one that is
    positive with this probability.

    Args:
        gamma: g; with 0 and an alpha of 1/2 it is half the cross-entropy.
        alpha: a.

    Reference: Lin et al. 2017, arXiv:1708.02002, equation 5 and section 4.1.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25):
        if not gamma >= 0:
            raise ValueError(f"`gamma` must not be negative. Received: gamma={gamma}")
        if not 0 < alpha < 1:
            raise ValueError(
                f"`alpha` must lie between 0 and 1. Received: alpha={alpha}"
            )
        self.gamma = gamma
        self.alpha = alpha

    def __call__(self, labels, outputs, weights=None):
        labels, logits = labels_and_logits(labels, outputs)
        yes = self.alpha * labels * _focal(logits, self.gamma)
        no = (1.0 - self.alpha) * (1.0 - labels) * _focal(-logits, self.gamma)
        return sum_classes(yes + no, weights)


class AsymmetricLoss:
    """Focal loss with a power for positives and one for negatives, of which it leaves
    out those of a low probability; summed over classes.

    -y (1 - p)^g log p - (1 - y) q^h log(1 - q), with q = max(p - m, 0)

    A label between 0 and 1 costs the mean of a positive and a negative, as that of
    `FocalLoss`.

    Args:
        gamma_positive: g.
        gamma_negative: h.
        margin: m, a probability.

    Reference: Ridnik et al. 2021, arXiv:2009.14119, equations 4 to 7.
    """

    def __init__(
        self,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
    ):
        if not min(gamma_positive, gamma_negative) >= 0:
            raise ValueError(
                "`gamma_positive` and `gamma_negative` must not be negative. Received: "
                f"gamma_positive={gamma_positive}, gamma_negative={gamma_negative}"
            )
        if not 0 <= margin < 1:
            raise ValueError(
                f"`margin` must be at least 0 and below 1. Received: margin={margin}"
            )
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.margin = margin

    def __call__(self, labels, outputs, weights=None):
        labels, logits = labels_and_logits(labels, outputs)
        yes = labels * _focal(logits, self.gamma_positive)
        no = (1.0 - labels) * self._negative(logits)
        return sum_classes(yes + no, weights)

    def _negative(self, logits):
        if not self.margin:
            return _focal(-logits, self.gamma_negative)
        shifted = ops.sigmoid(logits) - self.margin
        counts = shifted > 0
        # A power has no slope at 0, where these cells are not to have any.
        q = ops.where(counts, shifted, 0.5)
        cells = -(q**self.gamma_negative) * ops.log(ops.sigmoid(-logits) + self.margin)
        return ops.where(counts, cells, 0.0)


def _focal(logits: Any, gamma: float) -> Any:
    """-(1 - p)^gamma log p, without a logarithm of p, which may be 0."""
    return ops.exp(-gamma * ops.softplus(logits)) * ops.softplus(-logits)
