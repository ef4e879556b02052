"""Classifiers: from an embedding [B, H] to the logits of C classes.

`yt8m.layers.classifiers` finds them, and those of other files, by name.
"""

from typing import Any

import keras
from keras import ops

from yt8m.layers.dropout import Dropout
from yt8m.layers.gating import ProbabilityGating, log_add_exp
from yt8m.layers.label_processing import create_label_processing
from yt8m.layers.normalization import BatchNormalization


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

    def add_kernel(
        self, name: str, rows: int, columns: int, stddev: float | None = None
    ):
        """A penalised weight; `stddev` of its initial values, else Glorot's."""
        normal = stddev and keras.initializers.RandomNormal(stddev=stddev)
        # Keras' L2(s) is s * sum(w^2): half of the starter code's regulariser.
        return self.add_weight(
            name=name,
            shape=(rows, columns),
            initializer=normal or "glorot_uniform",
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
    """One logistic regression for each class.

    The logits are x W + b, with x [B, H] and W [H, C].

    Args:
        All as `Head`.

    Reference:
        Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.3.1, equation 3.
    """

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
        dummy_expert: whether there is a dummy.
        shared_gates: all classes have the same gates.
        gate_batch_norm: batch norm of the gates.
        gate_rank, expert_rank: the gates, or the experts, see a linear projection of x
            to this size; None is x itself.
        Others as `Head`.

    Weights (columns are class-major, as in the starter code):
        gate_kernel: [H, C * (M + 1)], without bias; column c * (M + 1) + m.
        expert_kernel, expert_bias: [H, C * M] and [C * M]; column c * M + m.

    Reference:
        Jordan and Jacobs 1994, Neural Computation 6(2); Abu-El-Haija et al. 2016,
        arXiv:1609.08675, section 4.3.3.
    """

    def __init__(
        self,
        num_classes: int,
        num_mixtures: int = 2,
        dummy_expert: bool = True,
        shared_gates: bool = False,
        gate_batch_norm: bool = False,
        gate_rank: int | None = None,
        expert_rank: int | None = None,
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        for name, value in (
            ("num_mixtures", num_mixtures),
            ("gate_rank", gate_rank),
            ("expert_rank", expert_rank),
        ):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        self.num_mixtures = num_mixtures
        self.dummy_expert = dummy_expert
        self.shared_gates = shared_gates
        self.gate_batch_norm = gate_batch_norm
        self.gate_rank = gate_rank
        self.expert_rank = expert_rank
        if gate_batch_norm:
            self.gate_norm = BatchNormalization(
                dtype=self.dtype_policy, name="gate_norm"
            )

    def build(self, input_shape):
        size, experts = input_shape[-1], self.num_classes * self.num_mixtures
        gates = self.num_mixtures + self.dummy_expert
        if not self.shared_gates:
            gates *= self.num_classes
        self.gate_projection, rows = self._projection("gate", size, self.gate_rank)
        self.gate_kernel = self.add_kernel("gate_kernel", rows, gates)
        self.expert_projection, rows = self._projection(
            "expert", size, self.expert_rank
        )
        self.expert_kernel = self.add_kernel("expert_kernel", rows, experts)
        self.expert_bias = self.add_bias("expert_bias", experts)
        if self.gate_batch_norm:
            self.gate_norm.build((None, gates))
        super().build(input_shape)

    def _projection(self, name, size, rank):
        if rank is None:
            return None, size
        return self.add_kernel(f"{name}_projection_kernel", size, rank), rank

    def class_logits(self, x, training=False):
        gates, experts = (
            ops.matmul(x if p is None else ops.matmul(x, p), kernel)
            for p, kernel in (
                (self.gate_projection, self.gate_kernel),
                (self.expert_projection, self.expert_kernel),
            )
        )
        if self.gate_batch_norm:
            gates = self.gate_norm(gates, training=training)
        experts = ops.cast(experts, "float32") + self.expert_bias
        return mixture_logits(
            self._by_mixture(gates, self.num_mixtures + self.dummy_expert),
            self._by_mixture(experts, self.num_mixtures),
        )

    def _by_mixture(self, x, mixtures):
        """Class-major columns [B, C * m] to a list of m tensors float32 [B, C]."""
        classes = x.shape[-1] // mixtures  # 1 where they are shared
        x = ops.reshape(ops.cast(x, "float32"), (-1, classes, mixtures))
        # Transposed first: arithmetic with a last axis of 2 or 3 is slow.
        return ops.unstack(ops.transpose(x, (2, 0, 1)), axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "num_mixtures": self.num_mixtures,
            "dummy_expert": self.dummy_expert,
            "shared_gates": self.shared_gates,
            "gate_batch_norm": self.gate_batch_norm,
            "gate_rank": self.gate_rank,
            "expert_rank": self.expert_rank,
        }


def mixture_logits(gates: list[Any], experts: list[Any]) -> Any:
    """The logit of sum_m softmax(gates)_m * sigmoid(expert_m), see `MoEHead`.

    Args:
        gates: logits float32 [B, C]; one more than experts where there is a dummy.
        experts: logits float32 [B, C].
    """
    log_yes, log_no = None, gates[-1] if len(gates) > len(experts) else None
    for gate, expert in zip(gates, experts, strict=False):
        no = gate - ops.softplus(expert)
        yes = no + expert  # log sigmoid(e) = e + log sigmoid(-e)
        log_yes = yes if log_yes is None else log_add_exp(log_yes, yes)
        log_no = no if log_no is None else log_add_exp(log_no, no)
    return log_yes - log_no


@keras.saving.register_keras_serializable(package="yt8m")
class MultiLayerMoEHead(Head):
    """Mixture of experts whose gates and experts each have a hidden layer of their own.

    e_m = sigmoid(v_m^T (W_m x + b'_m) + b_m) and g = softmax_m(u_m^T (U_m x + d'_m) +
    d_m); p = sum_m g_m e_m. The hidden layers of the M experts and M gates are shared
    by the classes, v_m and u_m are of each class. There is no dummy expert.

    Args:
        num_mixtures: M.
        hidden_size: of each hidden layer.
        activation: of the hidden layers, by Keras's name; None, as in the paper's
            equations, makes the two layers one of low rank.
        Others as `Head`.

    Reference:
        Na et al. 2017, arXiv:1706.07960, equations 16 and 17 (2-layer MoE-2, MoE-16),
        which leave open the hidden size, and whether the classes share the layers.
    """

    def __init__(
        self,
        num_classes: int,
        num_mixtures: int = 2,
        hidden_size: int = 512,
        activation: str | None = None,
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        for name, value in (
            ("num_mixtures", num_mixtures),
            ("hidden_size", hidden_size),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        self.num_mixtures = num_mixtures
        self.hidden_size = hidden_size
        self.activation = activation
        self._activate = keras.activations.get(activation)

    def build(self, input_shape):
        size, hidden = input_shape[-1], self.num_mixtures * self.hidden_size
        outputs = self.num_mixtures * self.num_classes

        def add(name):
            return (
                self.add_kernel(f"{name}_hidden_kernel", size, hidden, size**-0.5),
                self.add_bias(f"{name}_hidden_bias", hidden),
                self.add_kernel(
                    f"{name}_kernel", hidden, self.num_classes, self.hidden_size**-0.5
                ),
                self.add_bias(f"{name}_bias", outputs),
            )

        self.gate_weights, self.expert_weights = add("gate"), add("expert")
        super().build(input_shape)

    def class_logits(self, x, training=False):
        return mixture_logits(
            self._by_mixture(x, *self.gate_weights),
            self._by_mixture(x, *self.expert_weights),
        )

    def _by_mixture(self, x, hidden_kernel, hidden_bias, kernel, bias):
        """A list of M tensors float32 [B, C]."""
        mixtures, size = self.num_mixtures, self.hidden_size
        hidden = ops.matmul(x, hidden_kernel) + ops.cast(hidden_bias, x.dtype)
        hidden = ops.reshape(self._activate(hidden), (-1, mixtures, size))
        kernel = ops.reshape(kernel, (mixtures, size, self.num_classes))
        logits = ops.matmul(ops.transpose(hidden, (1, 0, 2)), kernel)  # [M, B, C]
        bias = ops.reshape(bias, (mixtures, 1, self.num_classes))
        return ops.unstack(ops.cast(logits, "float32") + bias, axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "num_mixtures": self.num_mixtures,
            "hidden_size": self.hidden_size,
            "activation": self.activation,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class MLPHead(Head):
    """Multi-layer perceptron: hidden layers, then one logistic regression a class.

    x_{i+1} = dropout(relu(norm(x_i W_i + b_i))); the logits are x_n W + b.

    Args:
        layers: number of hidden layers.
        hidden_size: of each.
        normalization: `layer`, `batch` or None.
        dropout: of each hidden layer.
        Others as `Head`.

    Reference:
        Na et al. 2017, arXiv:1706.07960, section 2.3.3 (3-layer MLP-4096 and its
        variant with layer normalisation, Ba et al. 2016, arXiv:1607.06450).
    """

    def __init__(
        self,
        num_classes: int,
        layers: int = 3,
        hidden_size: int = 4096,
        normalization: str | None = None,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        for name, value in (("layers", layers), ("hidden_size", hidden_size)):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        if normalization not in (None, *NORMALIZATIONS):
            raise ValueError(
                f"`normalization` must be one of {', '.join(NORMALIZATIONS)} or None. "
                f"Received: normalization={normalization}"
            )
        self.layers = layers
        self.hidden_size = hidden_size
        self.normalization = normalization
        self.dropout = dropout
        self.norms = [
            NORMALIZATIONS[normalization](
                dtype=self.dtype_policy, name=f"{normalization}_norm_{i}"
            )
            for i in range(layers if normalization else 0)
        ]
        self.drops = [
            Dropout(dropout, dtype=self.dtype_policy, name=f"dropout_{i}")
            for i in range(layers)
        ]

    def build(self, input_shape):
        size, self.hidden = input_shape[-1], []
        for i in range(self.layers):
            stddev = (2.0 / size) ** 0.5  # keeps the variance through a ReLU
            kernel = self.add_kernel(
                f"hidden_{i}_kernel", size, self.hidden_size, stddev
            )
            size = self.hidden_size
            self.hidden.append((kernel, self.add_bias(f"hidden_{i}_bias", size)))
        for layer in (*self.norms, *self.drops):
            layer.build((None, size))
        self.kernel = self.add_kernel("kernel", size, self.num_classes)
        self.bias = self.add_bias("bias", self.num_classes)
        super().build(input_shape)

    def class_logits(self, x, training=False):
        for i, (kernel, bias) in enumerate(self.hidden):
            x = ops.matmul(x, kernel)
            x = x + ops.cast(bias, x.dtype)
            if self.normalization == "batch":
                x = self.norms[i](x, training=training)
            elif self.normalization:
                x = self.norms[i](x)
            x = self.drops[i](ops.relu(x), training=training)
        return ops.cast(ops.matmul(x, self.kernel), "float32") + self.bias

    def get_config(self):
        return {
            **super().get_config(),
            "layers": self.layers,
            "hidden_size": self.hidden_size,
            "normalization": self.normalization,
            "dropout": self.dropout,
        }


NORMALIZATIONS = {
    "layer": keras.layers.LayerNormalization,
    "batch": BatchNormalization,
}
