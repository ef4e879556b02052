"""Context gating: each value is scaled by a gate that has seen all of them."""

import keras
from keras import ops

from yt8m.layers.normalization import BatchNormalization


class _Gate(keras.layers.Layer):
    """BN(W x), or W x + b without batch norm: the gates' own logits."""

    def __init__(self, add_batch_norm: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.add_batch_norm = add_batch_norm

    def build(self, input_shape):
        size = input_shape[-1]
        self.dense = keras.layers.Dense(
            size,
            use_bias=not self.add_batch_norm,
            kernel_initializer=keras.initializers.RandomNormal(stddev=size**-0.5),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.dense.build(input_shape)
        if self.add_batch_norm:
            self.batch_norm = BatchNormalization(
                dtype=self.dtype_policy, name="batch_norm"
            )
            self.batch_norm.build(input_shape)
        self.built = True

    def gate_logits(self, x, training):
        logits = self.dense(x)
        if self.add_batch_norm:
            logits = self.batch_norm(logits, training=training)
        return logits

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "add_batch_norm": self.add_batch_norm}


@keras.saving.register_keras_serializable(package="yt8m")
class ContextGating(_Gate):
    """x * sigmoid(BN(W x)) for features x.

    Args:
        add_batch_norm: normalise the gates' logits; otherwise they have a bias.

    Call arguments:
        x: [B, H].

    Reference:
        Miech, Laptev, Sivic 2017, arXiv:1706.06905 (context gating).
    """

    def call(self, x, training=False):
        return x * ops.sigmoid(self.gate_logits(x, training))


@keras.saving.register_keras_serializable(package="yt8m")
class SqueezeExcitation(keras.layers.Layer):
    """x * sigmoid(relu(BN(x W)) V): context gating with 2 D^2 / r weights, not D^2.

    Args:
        reduction: r; the gates are computed from D / r values, rounded down.

    Call arguments:
        x: [B, D], or [B, T, D], where each frame has gates of its own.
        mask: bool, the shape of `x` without its last axis: the entries of which the
            batch statistics are taken; None takes all.

    Returns:
        As `x`.

    Reference:
        Hu et al. 2018, arXiv:1709.01507, equation 3; Lin et al. 2018,
        arXiv:1811.05014 (its batch norm, and no biases).
    """

    def __init__(self, reduction: int = 8, **kwargs):
        super().__init__(**kwargs)
        if reduction < 1:
            raise ValueError(
                f"`reduction` must be positive. Received: reduction={reduction}"
            )
        self.supports_masking = True
        self.reduction = reduction

    def build(self, input_shape):
        size = input_shape[-1]
        inner = max(size // self.reduction, 1)

        def dense(units, name):
            return keras.layers.Dense(
                units,
                use_bias=False,
                kernel_initializer="he_normal",
                dtype=self.dtype_policy,
                name=name,
            )

        self.squeeze = dense(inner, "squeeze")
        self.squeeze.build(input_shape)
        self.batch_norm = BatchNormalization(dtype=self.dtype_policy, name="batch_norm")
        self.batch_norm.build((None, inner))
        self.excite = dense(size, "excite")
        self.excite.build((None, inner))
        self.built = True

    def call(self, x, mask=None, training=False):
        inner = self.batch_norm(self.squeeze(x), mask=mask, training=training)
        return x * ops.sigmoid(self.excite(ops.relu(inner)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "reduction": self.reduction}


@keras.saving.register_keras_serializable(package="yt8m")
class ProbabilityGating(_Gate):
    """Context gating of class probabilities, from logits to logits.

    With p = sigmoid(x) and gate s = sigmoid(h), h = BN(W p), the gated probability
    p s has the odds 1 / (exp(-x) + exp(-h) + exp(-x - h)), so that its logit is
    -logsumexp(-x, -h, -x - h): no probability is formed that could round to 0 or 1.

    Args:
        add_batch_norm: normalise the gates' logits; otherwise they have a bias.

    Call arguments:
        logits: [B, C].

    Returns:
        Logits of the gated probabilities, float32 [B, C].

    Reference:
        Miech, Laptev, Sivic 2017, arXiv:1706.06905 (its second context gating,
        after the classifier).
    """

    def __init__(self, add_batch_norm: bool = True, **kwargs):
        # Without autocast, as a low-precision policy would round the logits.
        super().__init__(add_batch_norm, autocast=False, **kwargs)

    def call(self, logits, training=False):
        gates = self.gate_logits(ops.sigmoid(logits), training)
        gates = ops.cast(gates, "float32")
        # logsumexp(-x, -h, -x - h) = log(exp(-x) + exp(-h) * (1 + exp(-x)))
        return -log_add_exp(-logits, ops.softplus(-logits) - gates)


def log_add_exp(a, b):
    """log(exp(a) + exp(b)), with its true gradient where a = b too."""
    return a + ops.softplus(b - a)
