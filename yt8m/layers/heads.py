"""Classifiers: from an embedding [B, H] to the logits of C classes.

A head is found by name, so that any model may take any of them:

    head = create_head("moe", num_classes=3862, num_mixtures=4)
    outputs = head(embedding)  # a dictionary with the logits

The starter code's class names, `MoeModel` and `LogisticModel`, are known too.
"""

from typing import Any

import keras
from keras import ops

from yt8m.errors import UserError
from yt8m.layers.gating import ProbabilityGating, log_add_exp
from yt8m.layers.label_processing import create_label_processing
from yt8m.registry import arguments, create_part


class Head(keras.layers.Layer):
    """Base of the classifiers; a subclass defines `build` and `class_logits`.

    One with classifiers that help it to learn defines `all_logits` instead.

    Args:
        num_classes: number of classes C.
        l2_penalty: the loss gets l2_penalty * sum(w^2) / 2 of each kernel, as in the
            starter code.
        label_processing: what the logits pass through, see
            `yt8m.layers.label_processing`; None leaves them as they are.
        label_processing_args: its arguments, by name.
        gating_probabilities: gate the probabilities by `ProbabilityGating`, last.

    Call arguments:
        x: [B, H].

    Returns:
        Dictionary with `logits`, float32 [B, C] whatever the dtype policy (bfloat16
        would tie them), and in training the `auxiliary_logits`, if there are any.
    """

    def __init__(
        self,
        num_classes: int,
        l2_penalty: float = 1e-8,
        label_processing: str | None = None,
        label_processing_args: dict[str, Any] | None = None,
        gating_probabilities: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.l2_penalty = l2_penalty
        self.label_processing = label_processing
        self.label_processing_args = label_processing_args
        self.gating_probabilities = gating_probabilities
        if label_processing:
            self.processing = create_label_processing(
                label_processing,
                **(label_processing_args or {}),
                dtype=self.dtype_policy,
                name="label_processing",
            )

    def build(self, input_shape):
        if self.label_processing:
            self.processing.build((None, self.num_classes))
        if self.gating_probabilities:
            self.gating = ProbabilityGating(dtype=self.dtype_policy, name="gating")
            self.gating.build((None, self.num_classes))
        self.built = True

    def class_logits(self, x: Any, training: bool = False) -> Any:
        """Logits [B, C] before label processing and gating."""
        raise NotImplementedError

    def all_logits(self, x: Any, training: bool = False) -> tuple[Any, list[Any]]:
        """`class_logits` and a list of auxiliary logits [B, C]."""
        return self.class_logits(x, training=training), []

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
        logits, auxiliary = self.all_logits(x, training=training)
        if self.label_processing:
            logits = self.processing(logits, training=training)
        if self.gating_probabilities:
            logits = self.gating(logits, training=training)
        outputs = {"logits": logits}
        if training and auxiliary:
            outputs["auxiliary_logits"] = auxiliary
        return outputs

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "l2_penalty": self.l2_penalty,
            "label_processing": self.label_processing,
            "label_processing_args": self.label_processing_args,
            "gating_probabilities": self.gating_probabilities,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class LogisticHead(Head):
    """One logistic regression for each class; arguments as `Head`."""

    def build(self, input_shape):
        self.kernel = self.add_kernel("kernel", input_shape[-1], self.num_classes)
        self.bias = self.add_bias("bias", self.num_classes)
        super().build(input_shape)

    def class_logits(self, x, training=False):
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

    def class_logits(self, x, training=False):
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
