"""The heads, by name, so that any model may take any of them.

    head = create_head("moe", num_classes=3862, num_mixtures=4)
    outputs = head(embedding)  # a dictionary with the logits

The starter code's class names, `MoeModel` and `LogisticModel`, are known too.
"""

from typing import Any

from yt8m.errors import UserError
from yt8m.layers.chaining import ChainHead, MultiTaskChainHead
from yt8m.layers.heads import Head, LogisticHead, MLPHead, MoEHead, MultiLayerMoEHead
from yt8m.layers.residual import MoNNHead, ResNetLikeHead
from yt8m.registry import arguments, create_part

HEADS: dict[str, type[Head]] = {
    "logistic": LogisticHead,
    "moe": MoEHead,
    "multilayer_moe": MultiLayerMoEHead,
    "mlp": MLPHead,
    "chain": ChainHead,
    "multitask_chain": MultiTaskChainHead,
    "resnetlike": ResNetLikeHead,
    "monn": MoNNHead,
}

# The starter code named its heads by the video-level models that they are.
_SPELLINGS = {"LogisticModel": "logistic", "MoeModel": "moe"}


def create_head(
    head: str, num_classes: int, num_mixtures: int | None = None, **args: Any
) -> Head:
    """Builds the head named `head`.

    Args:
        head: a key of `HEADS`, or the starter code's name for it.
        num_classes: number of classes C.
        num_mixtures: experts of each class; None takes the head's own number.
        args: as of `Head`.

    Raises:
        UserError: the head is unknown or has no such argument (near matches are
            listed), or has no mixtures although `num_mixtures` is given.
    """
    name = _SPELLINGS.get(head, head)
    if num_mixtures is not None:
        if name in HEADS and "num_mixtures" not in arguments(HEADS[name]):
            raise UserError(
                f"The head {head} has no mixtures: leave out num_mixtures="
                f"{num_mixtures}, or take the head moe."
            )
        args["num_mixtures"] = num_mixtures
    return create_part("head", HEADS, name, {"num_classes": num_classes, **args})
