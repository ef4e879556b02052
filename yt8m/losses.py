"""Losses by name: `(labels, outputs, weights) -> per-example loss [B]`.

Losses sum over the classes, as the starter code's do, so that its learning rates and
L2 penalties carry over; the trainer averages over the examples. With p = sigmoid(x)
and the cross-entropy e of a cell:

| name | each cell, for label y and logit x |
| --- | --- |
| CrossEntropyLoss | -y log p - (1 - y) log(1 - p), exact at any x |
| CrossEntropyLossCompat | the same with 1e-5 added inside the logarithms |
| HingeLoss | max(0, 1 - (2 y - 1) x) |
| HingeLossCompat | max(0, 1 - (2 y - 1) p) |
| SoftmaxLoss | -y / sum(y) log softmax(x) |
| SoftmaxLossCompat | -y / sum(y) log softmax(p) |
| WeightedCrossEntropyLoss | -a y log p - (1 - y) log(1 - p), for a weight a |
| ClassBalancedCrossEntropyLoss | the same, with a weight for each class |
| PseudoHuberLoss | d^2 (sqrt(1 + (e / d)^2) - 1), for a delta d |
| CenterLoss | e, and the embedding's distance to the labels' centres |
| SoftRankingLoss | of pairs: log(1 + exp(n - p + 1)), for logits n and p of a batch |

The names that end in `Compat` are the starter code's own formulas, for comparison with
its runs; the others act on the logits, as the papers do. The last five take arguments
(`--label_loss_args=name=value,...`).
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from yt8m.class_counts import read_class_counts
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
    return _sum_classes(_cross_entropy_cells(labels, logits), weights)


def _cross_entropy_cells(labels: Any, logits: Any) -> Any:
    return ops.softplus(logits) - labels * logits


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


class WeightedCrossEntropyLoss:
    """Binary cross-entropy in which a positive weighs `positive_weight` as much.

    -a y log p - (1 - y) log(1 - p), summed over classes.

    Args:
        positive_weight: a.

    Reference: the loss with alpha of the NetVLAD system for segments of 2019, which
    reports no gain from a > 1.
    """

    def __init__(self, positive_weight: float):
        if not positive_weight > 0:
            raise ValueError(
                "`positive_weight` must be positive. "
                f"Received: positive_weight={positive_weight}"
            )
        self.positive_weight = positive_weight

    def __call__(self, labels, outputs, weights=None):
        labels, logits = _labels_logits(labels, outputs)
        cells = _cross_entropy_cells(labels, logits)
        more = self._positive_weights(logits) - 1.0
        cells = cells + more * labels * ops.softplus(-logits)
        return _sum_classes(cells, weights)

    def _positive_weights(self, logits: Any) -> Any:
        """What a positive weighs, as a number or float32 [C]."""
        return self.positive_weight


class ClassBalancedCrossEntropyLoss(WeightedCrossEntropyLoss):
    """Binary cross-entropy in which a positive costs inversely to its class's count.

    -w_c y log p - (1 - y) log(1 - p), summed over classes, with
        w_c = mean(n) / n_c
    for n_c videos of class c, the mean over the classes that have any: a positive of
    the counted videos weighs 1 on average. A class without videos counts as one with 1.

    Args:
        class_counts: file with the number of videos of each class, as `yt8m count
            --per_class=FILE` or the dataset's vocabulary.csv gives it; read once.

    Raises:
        UserError: the file cannot be used, or, when the loss is first computed, has a
            class that the model does not have.

    Reference: the penalised loss of the BoF, LSTM and LSTM-MoE systems of 2017 (false
    negatives cost inversely to the number of labels in the training set); the scale is
    our choice.
    """

    def __init__(self, class_counts: str):
        self.class_counts = class_counts
        counts = read_class_counts(class_counts)
        mean = counts[counts > 0].mean() if counts.any() else 1.0
        self.class_weights = (mean / np.maximum(counts, 1)).astype("float32")
        self._of_the_others = float(mean)

    def _positive_weights(self, logits):
        num_classes, known = logits.shape[-1], len(self.class_weights)
        if known > num_classes:
            raise UserError(
                f"{self.class_counts} counts class {known - 1}, but the classes are 0 "
                f"to {num_classes - 1}: take a file of the same classes."
            )
        rest = np.full(num_classes - known, self._of_the_others, "float32")
        return ops.convert_to_tensor(np.append(self.class_weights, rest))


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
        labels, logits = _labels_logits(labels, outputs)
        cells = self._huber(_cross_entropy_cells(labels, logits))
        return _sum_classes(cells, weights)

    def _huber(self, x):
        # d^2 (sqrt(1 + z^2) - 1) for z = x / d, without a difference of near values.
        z = x / self.delta
        return self.delta * x * z / (1.0 + ops.sqrt(1.0 + ops.square(z)))


class CenterLoss:
    """Cross-entropy, and the embedding's squared distance to the centres of its labels.

    L = L_s + center_weight * 1/N sum_k ||e - c_k||^2
    over the N labels k of a video. The centres are weights of the model, which learns
    them by the same gradient; it gives them in training only, so that the loss of an
    evaluation is the cross-entropy L_s. Labels between 0 and 1 weigh as much as they
    are; a video without labels has the cross-entropy alone.

    Args:
        center_weight: the paper's lambda.

    Call arguments:
        outputs: with `embedding` [B, H] and, in training, `centers` [C, H] too.

    Reference: Na et al. 2017, arXiv:1706.07960, equations 21 and 22; Wen et al. 2016,
    ECCV.
    """

    training_outputs = ("centers", "embedding")

    def __init__(self, center_weight: float = 0.001):
        if not center_weight >= 0:
            raise ValueError(
                "`center_weight` must not be negative. "
                f"Received: center_weight={center_weight}"
            )
        self.center_weight = center_weight

    def __call__(self, labels, outputs, weights=None):
        loss = cross_entropy(labels, outputs, weights)
        if "centers" not in outputs:
            return loss
        labels = ops.cast(labels, "float32")
        if weights is not None:  # a class that was not rated draws nothing
            labels = labels * ops.cast(weights, "float32")
        count = ops.sum(labels, axis=-1)
        shares = labels / ops.maximum(count, 1e-7)[..., None]
        embedding = ops.cast(outputs["embedding"], "float32")
        if len(labels.shape) == 3:  # [B, 1, C], of a video's frames
            embedding = embedding[:, None]
        centers = ops.cast(outputs["centers"], "float32")
        # sum_k share_k ||e - c_k||^2, without a tensor [B, C, H].
        distance = (
            ops.sum(ops.square(embedding), axis=-1)
            - 2.0 * ops.sum(embedding * ops.matmul(shares, centers), axis=-1)
            + ops.matmul(shares, ops.sum(ops.square(centers), axis=-1))
        )
        return loss + self.center_weight * ops.where(count > 0, distance, 0.0)


class SoftRankingLoss:
    """Ranks the positives of a batch before its hardest negatives.

    log(1 + exp(n - p + 1)), averaged over all pairs of a positive's logit p and an
    extracted negative's logit n; extracted are the highest of each video. A video's
    loss is B / (pairs) times the sum over its own positives, so that the mean over the
    batch of B is the mean over the pairs.

    The batch is what is computed at once: each replica, and each part of an accumulated
    gradient, ranks its own videos. Tensors take 4 * positives * negatives * B^2 bytes:
    63 MB for 128 videos, 1 GB for 512. Labels of at least 1/2 are positive.

    Args:
        negatives: extracted of each video.
        positives: taken of each video, at most; of more, those of the lowest logits.

    Reference: the 4th place of 2018 (its soft ranking loss), without the limit of
    positives.
    """

    of_batch = True

    def __init__(self, negatives: int = 30, positives: int = 32):
        if min(negatives, positives) < 1:
            raise ValueError(
                "`negatives` and `positives` must be positive. "
                f"Received: negatives={negatives}, positives={positives}"
            )
        self.negatives = negatives
        self.positives = positives

    def __call__(self, labels, outputs, weights=None):
        labels, logits = _labels_logits(labels, outputs)
        positive, negative = labels >= 0.5, labels < 0.5
        if weights is not None:
            rated = ops.cast(weights, "float32") > 0
            positive, negative = positive & rated, negative & rated
        p, is_p = self._extract(-logits, positive, self.positives)
        n, is_n = self._extract(logits, negative, self.negatives)
        n, is_n = ops.reshape(n, (1, 1, -1)), ops.reshape(is_n, (1, 1, -1))
        pairs = ops.sum(is_n * ops.softplus(n + p[..., None] + 1.0), axis=-1)
        count = ops.maximum(ops.sum(is_p) * ops.sum(is_n), 1.0)
        size = ops.cast(ops.shape(logits)[0], "float32")
        return size / count * ops.sum(is_p * pairs, axis=-1)

    @staticmethod
    def _extract(scores, wanted, count):
        """The highest scores of the wanted cells [B, k], and 1 where there is one."""
        scores = ops.where(wanted, scores, -np.inf)
        scores, _ = ops.top_k(scores, min(count, scores.shape[-1]))
        found = scores != -np.inf  # so that a NaN stays one
        return ops.where(found, scores, 0.0), ops.cast(found, "float32")


LOSSES: dict[str, Callable[..., Any]] = {
    "CrossEntropyLoss": cross_entropy,
    "CrossEntropyLossCompat": cross_entropy_compat,
    "HingeLoss": hinge,
    "HingeLossCompat": hinge_compat,
    "SoftmaxLoss": softmax,
    "SoftmaxLossCompat": softmax_compat,
    "WeightedCrossEntropyLoss": WeightedCrossEntropyLoss,
    "ClassBalancedCrossEntropyLoss": ClassBalancedCrossEntropyLoss,
    "PseudoHuberLoss": PseudoHuberLoss,
    "CenterLoss": CenterLoss,
    "SoftRankingLoss": SoftRankingLoss,
}


def objective(
    loss: Loss,
    labels: Any,
    outputs: dict[str, Any],
    weights: Any = None,
    deep_supervision_weight: float = 0.0,
) -> Any:
    """What training minimises, for each example, of all that a model gives out.

    The loss of `logits`; or, if there are `frame_logits`, the mean of the losses of the
    frames, weighted by `frame_weights`. To it come `deep_supervision_weight` times the
    mean of the losses of the `auxiliary_logits`, and the model's own `penalty`. Other
    outputs than logits enter the loss once.

    Args:
        loss: of one classifier's logits, see `create`.
        labels, outputs, weights: as those of the losses.
        deep_supervision_weight: see above.

    Returns:
        float32 [B].

    Raises:
        UserError: the loss needs an output that the model does not have, or is one of
            the batch and the model's logits are of frames.
    """
    for name in getattr(loss, "training_outputs", ()):
        if name not in outputs:
            raise UserError(
                f"{type(loss).__name__} needs a model that gives {name} in training: "
                "take another --label_loss, or look at the model's arguments."
            )
    if "frame_logits" in outputs:
        if getattr(loss, "of_batch", False):
            raise UserError(
                f"{type(loss).__name__} is of a batch of videos, but the model is "
                "trained on the logits of frames: take another --label_loss."
            )
        frames = ops.cast(outputs["frame_weights"], "float32")
        total = ops.maximum(ops.sum(frames, axis=1), 1e-7)

        def every_frame(x):
            return None if x is None else ops.expand_dims(x, 1)

        each = loss(
            every_frame(labels),
            {**outputs, "logits": outputs["frame_logits"]},
            every_frame(weights),
        )
        value = ops.sum(frames * each, axis=1) / total
    else:
        value = loss(labels, outputs, weights)
    auxiliary = outputs.get("auxiliary_logits")
    if auxiliary:
        for logits in auxiliary:
            each = loss(labels, {"logits": logits}, weights)
            value = value + deep_supervision_weight / len(auxiliary) * each
    if "penalty" in outputs:
        value = value + ops.cast(outputs["penalty"], "float32")
    return value


def create(loss: str, /, **args: Any) -> Loss:
    """The loss of this name, with its arguments.

    Raises:
        UserError: there is no such loss or argument (near matches are listed), one that
            it needs is missing, or a value that it refuses.
    """
    if loss not in LOSSES:
        raise UserError(f"Unknown loss {loss}. {near_matches(loss, LOSSES)}")
    found = LOSSES[loss]
    known = inspect.signature(found).parameters if inspect.isclass(found) else {}
    for name in args:
        if name not in known:
            raise UserError(
                f"{loss} has no argument {name}. {near_matches(name, known)}"
            )
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in args:
            raise UserError(f"{loss} needs {name}: give --label_loss_args={name}=...")
    if not inspect.isclass(found):
        return found
    try:
        return found(**args)
    except (ValueError, TypeError) as e:
        given = ", ".join(f"{name}={value!r}" for name, value in args.items())
        raise UserError(f"{loss} cannot be computed with {given}: {e}") from e
