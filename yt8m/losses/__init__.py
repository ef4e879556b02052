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
| FocalLoss | e, times (1 - p)^g of a positive and p^g of a negative |
| AsymmetricLoss | the same with two g, and no negatives of a low p |
| PseudoHuberLoss | d^2 (sqrt(1 + (e / d)^2) - 1), for a delta d |
| ConfidencePenaltyLoss | e + w (1 - a) p, for a class's accuracy a |
| CorrectedCrossEntropyLoss | e of (1 - m) p + f (1 - p), for rates m, f of errors |
| ReweightedCrossEntropyLoss | e, more of videos whose labels are outranked |
| CenterLoss | e, and the embedding's distance to the labels' centres |
| HingeRankingLoss | of pairs: max(0, m - p + n), for logits n and p of a video |
| SoftRankingLoss | of pairs: log(1 + exp(n - p + 1)), for logits n and p of a batch |

The names that end in `Compat` are the starter code's own formulas, for comparison with
its runs; the others act on the logits, as the papers do. Those that are classes take
arguments (`--label_loss_args=name=value,...`): CrossEntropyLoss `label_smoothing`, the
others what their docstrings say. Labels may lie between 0 and 1, as those of mixup do;
where they are counted or ranked, those of at least 1/2 are positive.

A loss with `of_batch` is of the whole batch, and gets the rows of other replicas (see
`objective`); one with `training_outputs` needs these of a model.
"""

import inspect
from collections.abc import Callable
from typing import Any

from yt8m.argument_types import refuse_wrong_types
from yt8m.errors import UserError, near_matches
from yt8m.losses.center import CenterLoss
from yt8m.losses.cross_entropy import (
    CrossEntropyLoss,
    PseudoHuberLoss,
    cross_entropy,
    cross_entropy_compat,
)
from yt8m.losses.focal import AsymmetricLoss, FocalLoss
from yt8m.losses.hinge import hinge, hinge_compat
from yt8m.losses.noisy_labels import (
    ConfidencePenaltyLoss,
    CorrectedCrossEntropyLoss,
    ReweightedCrossEntropyLoss,
)
from yt8m.losses.objective import Loss, objective
from yt8m.losses.ranking import HingeRankingLoss, SoftRankingLoss
from yt8m.losses.softmax import softmax, softmax_compat
from yt8m.losses.weighted import (
    ClassBalancedCrossEntropyLoss,
    WeightedCrossEntropyLoss,
)

__all__ = ["LOSSES", "Loss", "create", "cross_entropy", "objective"]

LOSSES: dict[str, Callable[..., Any]] = {
    "CrossEntropyLoss": CrossEntropyLoss,
    "CrossEntropyLossCompat": cross_entropy_compat,
    "HingeLoss": hinge,
    "HingeLossCompat": hinge_compat,
    "SoftmaxLoss": softmax,
    "SoftmaxLossCompat": softmax_compat,
    "WeightedCrossEntropyLoss": WeightedCrossEntropyLoss,
    "ClassBalancedCrossEntropyLoss": ClassBalancedCrossEntropyLoss,
    "FocalLoss": FocalLoss,
    "AsymmetricLoss": AsymmetricLoss,
    "PseudoHuberLoss": PseudoHuberLoss,
    "ConfidencePenaltyLoss": ConfidencePenaltyLoss,
    "CorrectedCrossEntropyLoss": CorrectedCrossEntropyLoss,
    "ReweightedCrossEntropyLoss": ReweightedCrossEntropyLoss,
    "CenterLoss": CenterLoss,
    "HingeRankingLoss": HingeRankingLoss,
    "SoftRankingLoss": SoftRankingLoss,
}


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
    refuse_wrong_types(f"--label_loss_args of {loss}", found, args)
    try:
        return found(**args)
    except (ValueError, TypeError) as e:
        given = ", ".join(f"{name}={value!r}" for name, value in args.items())
        raise UserError(f"{loss} cannot be computed with {given}: {e}") from e
