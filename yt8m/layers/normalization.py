"""Batch normalisation that respects masks and is right after few steps.

Each replica normalises by its own part of a batch, or, where `set_synchronized` says
so, by the whole of it.
"""

import threading
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from yt8m.layers.columns import scale_and_shift, sum_squares

_LEAST_VARIANCE = 1e-12


@keras.saving.register_keras_serializable(package="yt8m")
class BatchNormalization(keras.layers.Layer):
    """Batch normalisation over all axes but the last, of the valid entries.

    Differs from `keras.layers.BatchNormalization` in three ways. Statistics are
    taken over valid entries only, and a batch without any leaves the moving
    averages alone. The moving averages' momentum is min(momentum, (1+n) / (10+n))
    at step n, so that a model evaluated after a few hundred steps is not
    normalised by its initial values. And `affine` gives the normalisation as a
    scale and an offset, which a caller may fold into a matrix product.

    On several replicas each takes the statistics of its own part of the batch, and
    the moving averages move by the mean of the replicas' steps; a replica without a
    valid entry makes none. Where `synchronized` is set, statistics and gradients are
    those of the whole global batch, however unevenly its entries are shared out.

    Args:
        momentum, epsilon: the defaults are those of the starter code.

    Attributes:
        synchronized: see `set_synchronized`; not part of the configuration, since it
            belongs to a training run and not to the model.

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
        self.synchronized = False

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

    def affine(
        self,
        x: Any,
        mask: Any = None,
        training: bool = False,
        factor: Any = 1.0,
        shift: Any = 0.0,
    ) -> Any:
        """The scale and offset, float32 [D], that normalise `x`.

        Args:
            x, mask, training: as in a call.
            factor, shift: float32 [D]; `x` stands for x * factor + shift, which need
                never be formed. The averages are those of what it stands for, scale and
                offset those of `x` itself.
        """
        if training and self.trainable:
            mean, variance = self._update(x, mask, factor, shift)
        else:
            mean = ops.convert_to_tensor(self.moving_mean)
            variance = ops.convert_to_tensor(self.moving_variance)
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return scale * factor, self.beta + (shift - mean) * scale

    def _update(self, x, mask, factor, shift):
        x = ops.reshape(ops.cast(x, "float32"), (-1, x.shape[-1]))
        if mask is None:
            weights = ops.ones_like(x[:, 0])
        else:
            weights = ops.cast(ops.reshape(mask, (-1,)), "float32")
        sums = ops.append(ops.matmul(weights, x), ops.sum(weights))
        sums = self._over_replicas(sums)
        # Not max(count, 1): the mean over replicas may be a fraction.
        any_valid = ops.greater(sums[-1], 0.0)
        count = ops.where(any_valid, sums[-1], 1.0)
        mean = sums[:-1] / count
        squares = sum_squares(x, mean, weights / count)
        variance = self._over_replicas(squares) * factor * factor
        mean = mean * factor + shift

        warm_up = (1.0 + self.steps) / (10.0 + self.steps)
        rate = 1.0 - ops.minimum(self.momentum, warm_up)
        rate = ops.where(any_valid, rate, 0.0)
        self.moving_mean.assign_add(rate * (mean - self.moving_mean))
        self.moving_variance.assign_add(rate * (variance - self.moving_variance))
        self.steps.assign_add(1.0)
        return mean, variance

    def _over_replicas(self, x):
        return mean_over_replicas(x) if self.synchronized else x

    def call(self, x, mask=None, training=False):
        scale, offset = self.affine(x, mask, training)
        return ops.cast(scale_and_shift(x, scale, offset), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


def mean_over_replicas(x: Any) -> Any:
    """The mean over replicas of a vector; its gradient goes to all of them."""
    mean, _ = ops.moments(x[None], axes=[0], synchronized=True)
    return mean


@keras.saving.register_keras_serializable(package="yt8m")
class Centring(keras.layers.Layer):
    """Subtracts the mean over the training examples, which it estimates on the way.

    y = (x - m) (d / rms(d))^emphasis, with the mean m [D] and the standard deviation
    d [D] of each dimension, and rms(d) the root of the mean of the d^2.

    The mean is a moving average with the momentum of `BatchNormalization`, in training
    as otherwise, and so is that of the squares, from which the standard deviation of
    each dimension follows; no gradient goes through them. On several replicas they move
    by the mean of the replicas' steps, or, where `synchronized` is set, by that of the
    whole global batch.

    Args:
        momentum: as that of `BatchNormalization`.
        emphasis: what a dimension counts for: -1 makes all of one variance, 0 leaves
            them as they are, more favours those that vary most.

    Attributes:
        synchronized: see `set_synchronized`.

    Call arguments:
        x: [B, D].

    Returns:
        float32 [B, D], whatever the dtype policy.

    Reference:
        Our own. The mean is taken off by Abu-El-Haija et al. 2016, arXiv:1609.08675,
        section 4.2.2, too, who then whiten (emphasis -1, of principal components).
    """

    def __init__(self, momentum: float = 0.999, emphasis: float = 0.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.momentum = momentum
        self.emphasis = emphasis
        self.synchronized = False

    def build(self, input_shape):
        def add(name, shape):
            return self.add_weight(
                name=name,
                shape=shape,
                initializer="zeros",
                trainable=False,
                autocast=False,
                aggregation="mean",  # over replicas
            )

        self.moving_mean = add("moving_mean", (input_shape[-1],))
        if self.emphasis:
            self.moving_square = add("moving_square", (input_shape[-1],))
        self.steps = add("steps", ())
        self.built = True

    def call(self, x, training=False):
        x = ops.cast(x, "float32")
        weights = [self.moving_mean]
        if self.emphasis:
            weights.append(self.moving_square)
        # Copies: a later assignment must not change them.
        moments = ops.stack([ops.copy(weight) for weight in weights])
        if training and self.trainable:
            rows = ops.cast(ops.shape(x)[0], "float32")
            sums = [ops.sum(x**power, axis=0) for power in (1, 2)[: len(weights)]]
            sums = ops.append(ops.concatenate(sums), rows)
            if self.synchronized:
                sums = mean_over_replicas(sums)
            # Not max(rows, 1): the mean over replicas may be a fraction.
            any_row = ops.greater(sums[-1], 0.0)
            rows = ops.where(any_row, sums[-1], 1.0)
            warm_up = (1.0 + self.steps) / (10.0 + self.steps)
            rate = 1.0 - ops.minimum(self.momentum, warm_up)
            rate = ops.where(any_row, rate, 0.0)
            found = ops.reshape(sums[:-1] / rows, (len(weights), -1))
            step = rate * (found - moments)
            moments = moments + step
            for weight, change in zip(
                weights, ops.unstack(step, len(weights)), strict=True
            ):
                weight.assign_add(change)
            self.steps.assign_add(1.0)
        moments = ops.stop_gradient(moments)
        x = x - moments[0]
        if self.emphasis:
            # At least 0, but for rounding: both moments have the same weights.
            variance = ops.maximum(moments[1] - moments[0] ** 2, _LEAST_VARIANCE)
            x = x * (variance / ops.mean(variance)) ** (self.emphasis / 2)
        return x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = {"momentum": self.momentum, "emphasis": self.emphasis}
        return {**super().get_config(), **own}


def set_synchronized(model: keras.Model, synchronized: bool = True) -> None:
    """Says whether what a model computes over a batch is over that of all replicas.

    That is the statistics of its batch norms, and the loads of sparse experts. Keras's
    own layers have such an option too and are set alike. Each norm reduces
    two vectors over the replicas in the forward pass, and two in the gradient. Only
    on TensorFlow; in a replica's step, not inside a loop or a function of its own.

    Args:
        model: a model with weights, before a graph of its training is made.
        synchronized: over all replicas, or each over its own part of the batch.

    Raises:
        ValueError: the model is not built: some layers are not there yet.
    """
    if not model.built:
        raise ValueError(f"{model.name} must be built before it is synchronised.")
    for layer in model._flatten_layers():
        if hasattr(layer, "synchronized"):
            layer.synchronized = synchronized
        if synchronized:
            # As a plain attribute: Keras would track what is set in another way.
            object.__setattr__(layer, "_losses", _LossesOfThread())


class _LossesOfThread(threading.local):
    """The list of losses that a Keras layer keeps, one for each thread.

    Replicas of a process are threads, which take turns whenever they wait for one
    another. Where they do so within a model, Keras's one list would have the losses
    (of `add_loss`) of all, or lose those that the first had before.
    """

    def __init__(self):
        self._losses = []

    def extend(self, losses: Iterable[Any]) -> None:
        self._losses.extend(losses)

    def clear(self) -> None:
        self._losses.clear()

    def __getitem__(self, which: slice) -> list[Any]:
        return self._losses[which]
