"""Means of what several classifiers say."""

from typing import Any

from keras import ops


def mean_probability_logits(logits: list[Any], weights: Any = None) -> Any:
    """The logit of the mean of sigmoid(x) over several x.

    logsumexp_i(log w_i + log sigmoid(x_i)) - logsumexp_i(log w_i + log sigmoid(-x_i)),
    in which the number of them has cancelled, and no probability is formed that could
    round to 0 or 1.

    Args:
        logits: float32 tensors of one shape.
        weights: positive w [number of tensors]; None weighs all alike.

    Returns:
        float32, of their shape.
    """
    x = ops.stack(logits)
    no = -ops.softplus(x)
    if weights is not None:
        no = no + ops.reshape(ops.log(weights), (-1, *[1] * (len(x.shape) - 1)))
    return ops.logsumexp(no + x, axis=0) - ops.logsumexp(no, axis=0)
