"""Losses of pairs: positives before negatives."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from yt8m.losses.cross_entropy import labels_and_logits


class SoftRankingLoss:
    """Ranks the positives of a batch before its hardest negatives.

    log(1 + exp(n - p + 1)), averaged over all pairs of a positive's logit p and an
    extracted negative's logit n; extracted are the highest of each video. A video's
    loss is B / (pairs) times the sum over its own positives, so that the mean over the
    batch of B is the mean over the pairs.

    The batch is what is computed at once: that of all replicas, but each part of an
    accumulated gradient ranks its own videos. Tensors take
    4 * positives * negatives * B * b bytes for the b videos of a replica: 63 MB for a
    batch of 128 on one, 1 GB for 512. Labels of at least 1/2 are positive.

    Args:
        negatives: extracted of each video.
        positives: taken of each video, at most; of more, those of the lowest logits.

    Call arguments:
        gather: gives the rows of all replicas for those of this one, [b, ...] to
            [B, ...], and their gradients back; None where there are no others.

    Reference: Ostyakov et al. 2018, arXiv:1809.04403, section 3, "Loss function
    selection", without the limit of positives.
    """

    of_batch = True

    def __init__(self, negatives: int = 30, positives: int = 32):
        _refuse_none(negatives, positives)
        self.negatives = negatives
        self.positives = positives

    def __call__(
        self,
        labels,
        outputs,
        weights=None,
        gather: Callable[[Any], Any] | None = None,
    ):
        labels, logits = labels_and_logits(labels, outputs)
        positive, negative = positives_negatives(labels, weights)
        p, is_p = _highest(-logits, positive, self.positives)
        n, is_n = _highest(logits, negative, self.negatives)
        num_p = ops.sum(is_p, axis=-1, keepdims=True)
        if gather:  # all in one, of which a device has little to send
            k = n.shape[-1]
            rows = gather(ops.concatenate([n, is_n, num_p], axis=-1))
            rows = ops.reshape(rows, (-1, 2 * k + 1))  # collectives forget the size
            n, is_n, num_p = rows[:, :k], rows[:, k : 2 * k], rows[:, 2 * k :]
        size = ops.cast(ops.shape(n)[0], "float32")
        n, is_n = ops.reshape(n, (1, 1, -1)), ops.reshape(is_n, (1, 1, -1))
        pairs = ops.sum(is_n * ops.softplus(n + p[..., None] + 1.0), axis=-1)
        count = ops.maximum(ops.sum(num_p) * ops.sum(is_n), 1.0)
        return size / count * ops.sum(is_p * pairs, axis=-1)


class HingeRankingLoss:
    """Ranks the positives of each video before its hardest negatives, by a margin.

    max(0, m - p + n), averaged over all pairs of a positive's logit p and an extracted
    negative's logit n of the same video; extracted are the highest. A video without a
    pair has the loss 0. Labels of at least 1/2 are positive.

    Args:
        margin: m.
        negatives: extracted of each video.
        positives: taken of each video, at most; of more, those of the lowest logits.

    Reference: Gong et al. 2014, arXiv:1312.4894, equation 4, of all pairs; Ostyakov et
    al. 2018, arXiv:1809.04403, section 3, "Loss function selection", which reports that
    it harms GAP. Mean and extraction, as those of `SoftRankingLoss`, are our choice.
    """

    def __init__(self, margin: float = 1.0, negatives: int = 30, positives: int = 32):
        if not margin > 0:
            raise ValueError(f"`margin` must be positive. Received: margin={margin}")
        _refuse_none(negatives, positives)
        self.margin = margin
        self.negatives = negatives
        self.positives = positives

    def __call__(self, labels, outputs, weights=None):
        labels, logits = labels_and_logits(labels, outputs)
        positive, negative = positives_negatives(labels, weights)
        p, is_p = _highest(-logits, positive, self.positives)
        n, is_n = _highest(logits, negative, self.negatives)
        cells = ops.relu(self.margin + p[..., :, None] + n[..., None, :])
        pairs = is_p[..., :, None] * is_n[..., None, :]
        count = ops.maximum(ops.sum(pairs, axis=(-2, -1)), 1.0)
        return ops.sum(pairs * cells, axis=(-2, -1)) / count


def positives_negatives(labels: Any, weights: Any) -> tuple[Any, Any]:
    """Which of the cells [..., C] that count are positive, and which are negative."""
    positive, negative = labels >= 0.5, labels < 0.5
    if weights is None:
        return positive, negative
    rated = ops.cast(weights, "float32") > 0
    return positive & rated, negative & rated


def _highest(scores, wanted, count):
    """The highest scores of the wanted cells [..., k], and 1 where there is one."""
    scores = ops.where(wanted, scores, -np.inf)
    scores, _ = ops.top_k(scores, min(count, scores.shape[-1]))
    found = scores != -np.inf  # so that a NaN stays one
    return ops.where(found, scores, 0.0), ops.cast(found, "float32")


def _refuse_none(negatives: int, positives: int) -> None:
    if min(negatives, positives) < 1:
        raise ValueError(
            "`negatives` and `positives` must be positive. "
            f"Received: negatives={negatives}, positives={positives}"
        )
