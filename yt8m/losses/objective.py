"""What training minimises of all that a model gives out."""

from collections.abc import Callable
from typing import Any

from keras import ops

from yt8m.errors import UserError

Loss = Callable[..., Any]


def objective(
    loss: Loss,
    labels: Any,
    outputs: dict[str, Any],
    weights: Any = None,
    deep_supervision_weight: float = 0.0,
    gather: Callable[[Any], Any] | None = None,
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
        gather: gives a loss of the batch the rows of all replicas for those of this
            one, and their gradients back; None where there are no others.

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
    of_batch = getattr(loss, "of_batch", False)
    more = {"gather": gather} if of_batch else {}
    if "frame_logits" in outputs:
        if of_batch:
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
        value = loss(labels, outputs, weights, **more)
    auxiliary = outputs.get("auxiliary_logits")
    if auxiliary:
        for logits in auxiliary:
            each = loss(labels, {"logits": logits}, weights, **more)
            value = value + deep_supervision_weight / len(auxiliary) * each
    if "penalty" in outputs:
        value = value + ops.cast(outputs["penalty"], "float32")
    return value
