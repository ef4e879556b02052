"""Batch normalisation that respects masks and is right after few steps."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="yt8m")
class BatchNormalization(keras.layers.Layer):
    """Batch normalisation over all axes but the last, of the valid entries.

    Differs from `keras.layers.BatchNormalization` in three ways. Statistics are
    taken over valid entries only, and a batch without any leaves the moving
    averages alone. The moving averages' momentum is min(momentum, (1+n) / (10+n))
    at step n, so that a model evaluated after a few hundred steps is not
    normalised by its initial values. And `affine` gives the normalisation as a
    scale and an offset, which a caller may fold into a matrix product.

    Args:
        momentum, epsilon: the defaults are those of the starter code.

    Call arguments:
        x: [..., D]; masked entries may hold any finite value.
        mask: bool, the shape of `x` without its last axis; None takes all.

    Reference:
        Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """

    def __init__(self, momentum: float = 0.999, epsilon: float = 1e-3, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        def add(name, initializer, shape, trainable):
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                trainable=trainable,
                autocast=False,
                aggregation="mean",  # over replicas
            )

        size = (input_shape[-1],)
        self.gamma = add("gamma", "ones", size, trainable=True)
        self.beta = add("beta", "zeros", size, trainable=True)
        self.moving_mean = add("moving_mean", "zeros", size, trainable=False)
        self.moving_variance = add("moving_variance", "ones", size, trainable=False)
        self.steps = add("steps", "zeros", (), trainable=False)
        self.built = True

    def affine(self, x: Any, mask: Any = None, training: bool = False) -> Any:
        """The scale and offset, float32 [D], that normalise `x`."""
        if training and self.trainable:
            mean, variance = self._update(x, mask)
        else:
            mean = ops.convert_to_tensor(self.moving_mean)
            variance = ops.convert_to_tensor(self.moving_variance)
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return scale, self.beta - mean * scale

    def _update(self, x, mask):
        x = ops.reshape(ops.cast(x, "float32"), (-1, x.shape[-1]))
        if mask is None:
            weights = ops.ones_like(x[:, 0])
        else:
            weights = ops.cast(ops.reshape(mask, (-1,)), "float32")
        count = ops.sum(weights)
        weights = weights / ops.maximum(count, 1.0)
        mean = ops.matmul(weights, x)
        variance = ops.matmul(weights, ops.square(x - mean))

        warm_up = (1.0 + self.steps) / (10.0 + self.steps)
        rate = 1.0 - ops.minimum(self.momentum, warm_up)
        rate = ops.where(ops.greater(count, 0.0), rate, 0.0)
        self.moving_mean.assign_add(rate * (mean - self.moving_mean))
        self.moving_variance.assign_add(rate * (variance - self.moving_variance))
        self.steps.assign_add(1.0)
        return mean, variance

    def call(self, x, mask=None, training=False):
        scale, offset = self.affine(x, mask, training)
        return ops.cast(ops.cast(x, "float32") * scale + offset, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }
