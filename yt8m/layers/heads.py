"""Classifiers: from an embedding [B, H] to the logits of C classes.

A head is found by name, so that any model may take any of them:

    create_head("moe", num_classes=3862, num_mixtures=4)

The starter code's class names, `MoeModel` and `LogisticModel`, are known too.
"""

import inspect
from typing import Any

import keras
from keras import ops

from yt8m.errors import UserError, near_matches
from yt8m.layers.gating import ProbabilityGating, log_add_exp


class Head(keras.layers.Layer):
    """Base of the classifiers; a subclass defines `build` and `class_logits`.

    Args:
        num_classes: number of classes C.
        l2_penalty: the loss gets l2_penalty * sum(w^2) / 2 of each kernel, as in the
            starter code.
        gating_probabilities: gate the probabilities by `ProbabilityGating`.

    Call arguments:
        x: [B, H].

    Returns:
        Logits, float32 [B, C], whatever the dtype policy: bfloat16 would tie them.
    """

    def __init__(
        self,
        num_classes: int,
        l2_penalty: float = 1e-8,
        gating_probabilities: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.l2_penalty = l2_penalty
        self.gating_probabilities = gating_probabilities

    def build(self, input_shape):
        if self.gating_probabilities:
            self.gating = ProbabilityGating(dtype=self.dtype_policy, name="gating")
            self.gating.build((None, self.num_classes))
        self.built = True

    def class_logits(self, x: Any) -> Any:
        """Logits [B, C] before the gating."""
        raise NotImplementedError

    def add_kernel(self, name: str, rows: int, columns: int):
        # Keras' L2(s) is s * sum(w^2): half of the starter code's regulariser.
        return self.add_weight(
            name=name,
            shape=(rows, columns),
            initializer="glorot_uniform",
            regularizer=keras.regularizers.L2(self.l2_penalty / 2),
        )

    def add_bias(self, name: str, size: int):
        return self.add_weight(
            name=name, shape=(size,), initializer="zeros", autocast=False
        )

    def call(self, x, training=False):
        logits = self.class_logits(x)
        if self.gating_probabilities:
            logits = self.gating(logits, training=training)
        return logits

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_classes)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "l2_penalty": self.l2_penalty,
            "gating_probabilities": self.gating_probabilities,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class LogisticHead(Head):
    """One logistic regression for each class; arguments as `Head`."""

    def build(self, input_shape):
        self.kernel = self.add_kernel("kernel", input_shape[-1], self.num_classes)
        self.bias = self.add_bias("bias", self.num_classes)
        super().build(input_shape)

    def class_logits(self, x):
        return ops.cast(ops.matmul(x, self.kernel), "float32") + self.bias


@keras.saving.register_keras_serializable(package="yt8m")
class MoEHead(Head):
    """Mixture of experts: p = sum_m softmax(gates)_m * sigmoid(expert_m).

    Each class has M logistic experts, and M + 1 gates, of which the last goes to a
    dummy expert that always says no. With gates g and experts e the logit is
        logsumexp_m(g_m + log sigmoid(e_m))
        - logsumexp(logsumexp_m(g_m + log sigmoid(-e_m)), g_M),
    log p - log(1 - p) in which the softmax's denominator has cancelled.

    Args:
        num_mixtures: experts M of each class, without the dummy.
        Others as `Head`.

    Weights (columns are class-major, as in the starter code):
        gate_kernel: [H, C * (M + 1)], without bias; column c * (M + 1) + m.
        expert_kernel, expert_bias: [H, C * M] and [C * M]; column c * M + m.

    Reference:
        Jordan and Jacobs 1994, Neural Computation 6(2); Abu-El-Haija et al. 2016,
        arXiv:1609.08675, section 4.3.3.
    """

    def __init__(self, num_classes: int, num_mixtures: int = 2, **kwargs):
        super().__init__(num_classes, **kwargs)
        if num_mixtures < 1:
            raise ValueError(
                "`num_mixtures` must be positive. "
                f"Received: num_mixtures={num_mixtures}"
            )
        self.num_mixtures = num_mixtures

    def build(self, input_shape):
        size, experts = input_shape[-1], self.num_classes * self.num_mixtures
        self.gate_kernel = self.add_kernel(
            "gate_kernel", size, experts + self.num_classes
        )
        self.expert_kernel = self.add_kernel("expert_kernel", size, experts)
        self.expert_bias = self.add_bias("expert_bias", experts)
        super().build(input_shape)

    def class_logits(self, x):
        gates = self._by_mixture(ops.matmul(x, self.gate_kernel))
        experts = ops.cast(ops.matmul(x, self.expert_kernel), "float32")
        experts = self._by_mixture(experts + self.expert_bias)
        log_yes, log_no = None, gates[-1]
        for gate, expert in zip(gates, experts, strict=False):
            no = gate - ops.softplus(expert)
            yes = no + expert  # log sigmoid(e) = e + log sigmoid(-e)
            log_yes = yes if log_yes is None else log_add_exp(log_yes, yes)
            log_no = log_add_exp(log_no, no)
        return log_yes - log_no

    def _by_mixture(self, x):
        """Class-major columns [B, C * m] to a list of m tensors float32 [B, C]."""
        mixtures = x.shape[-1] // self.num_classes
        x = ops.reshape(ops.cast(x, "float32"), (-1, self.num_classes, mixtures))
        # Transposed first: arithmetic with a last axis of 2 or 3 is slow.
        return ops.unstack(ops.transpose(x, (2, 0, 1)), axis=0)

    def get_config(self):
        return {**super().get_config(), "num_mixtures": self.num_mixtures}


HEADS = {"logistic": LogisticHead, "moe": MoEHead}

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
        UserError: the head is unknown (near matches are listed), or has no mixtures
            although `num_mixtures` is given.
    """
    name = _SPELLINGS.get(head, head)
    if name not in HEADS:
        raise UserError(f"Unknown head {head}. {near_matches(head, HEADS)}")
    if num_mixtures is not None:
        if "num_mixtures" not in inspect.signature(HEADS[name]).parameters:
            raise UserError(
                f"The head {head} has no mixtures: leave out num_mixtures="
                f"{num_mixtures}, or take the head moe."
            )
        args["num_mixtures"] = num_mixtures
    return HEADS[name](num_classes, **args)
