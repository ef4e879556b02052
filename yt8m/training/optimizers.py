"""Optimisers by name, with learning-rate schedules counted in examples."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from yt8m.argument_types import refuse_wrong_types
from yt8m.config import TrainingConfig
from yt8m.errors import UserError, near_matches

# Update rules with TensorFlow 1's constants where Keras's differ: recipes carry over.
_OPTIMIZERS: dict[str, tuple[type, dict[str, Any]]] = {
    "Adam": (keras.optimizers.Adam, {"epsilon": 1e-8}),
    "AdamW": (keras.optimizers.AdamW, {"epsilon": 1e-8}),
    "SGD": (keras.optimizers.SGD, {}),
    "Momentum": (keras.optimizers.SGD, {"momentum": 0.9}),
    "RMSProp": (keras.optimizers.RMSprop, {"rho": 0.9, "epsilon": 1e-10}),
    "Adagrad": (keras.optimizers.Adagrad, {"initial_accumulator_value": 0.1}),
}

# What an optimiser of Keras takes that --optimizer_args do not set.
_AVERAGES = ("use_ema", "ema_momentum", "ema_overwrite_frequency")
_OURS = ("learning_rate", "name", "kwargs", *_AVERAGES)

# The starter code took class names of tf.train.
_SPELLINGS = {f"{name}Optimizer": name for name in _OPTIMIZERS} | {
    "GradientDescentOptimizer": "SGD",
    "AdaGrad": "Adagrad",
    "RMSprop": "RMSProp",
}


class ExamplesSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate as a function of the number of examples seen.

    With e examples seen, E in the whole run and W of warm-up, times
    `base_learning_rate`:

    - `exponential`: decay^floor(e / decay_examples), as the starter code.
    - `constant`: 1.
    - `cosine`: (1 + cos(pi (e - W) / (E - W))) / 2 (Loshchilov & Hutter 2017,
      arXiv:1608.03983, equation 5, one cycle down to zero).
    - `slanted_triangular`: up linearly for W examples (a tenth of E if W is 0), then
      down linearly to 1/32 (Howard & Ruder 2018, arXiv:1801.06146, equation 3).

    The first three are multiplied by min(1, e / W) where W is given.

    Args:
        config: the run's training configuration.
        total_examples: E.
        first_step: the step at which this schedule starts to count.
        first_examples: examples seen before `first_step`.
    """

    def __init__(
        self,
        config: TrainingConfig,
        total_examples: int,
        first_step: int = 0,
        first_examples: int = 0,
    ):
        self.config = config
        self.total_examples = max(total_examples, 1)
        self.first_step = first_step
        self.first_examples = first_examples

    def __call__(self, step):
        taken = ops.cast(step - self.first_step, "float32")
        examples = self.first_examples + taken * self.config.batch_size
        return self.config.base_learning_rate * self._factor(examples)

    def _factor(self, examples):
        config, total = self.config, float(self.total_examples)
        warmup = float(config.warmup_examples)
        if config.lr_schedule == "slanted_triangular":
            peak = warmup or 0.1 * total
            rise = examples / peak
            fall = 1 - (examples - peak) / max(total - peak, 1.0)
            share = ops.clip(ops.minimum(rise, fall), 0.0, 1.0)
            return (1 + share * 31) / 32
        if config.lr_schedule == "cosine":
            done = (examples - warmup) / max(total - warmup, 1.0)
            factor = (1 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0))) / 2
        elif config.lr_schedule == "exponential":
            periods = ops.floor(examples / config.learning_rate_decay_examples)
            factor = ops.power(config.learning_rate_decay, periods)
        else:
            factor = ops.ones_like(examples)
        if warmup:
            # The first step already moves: e counts the batch that it takes.
            factor *= ops.minimum((examples + config.batch_size) / warmup, 1.0)
        return factor

    def get_config(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "total_examples": self.total_examples,
            "first_step": self.first_step,
            "first_examples": self.first_examples,
        }


def _adam_step(
    optimizer: keras.optimizers.Adam, gradient: Any, variable: Any, learning_rate: Any
) -> None:
    """What `Adam.update_step` does, in one pass over the weights instead of a dozen.

    A model of hundreds of millions of weights spends as much time on them as on its
    products of matrices.
    """
    import tensorflow as tf  # only where it is Keras's backend

    index = optimizer._get_variable_index(variable)
    dtype = variable.dtype
    step = tf.cast(optimizer.iterations + 1, dtype)
    beta_1, beta_2 = (tf.cast(b, dtype) for b in (optimizer.beta_1, optimizer.beta_2))
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=optimizer._momentums[index].value.handle,
        v=optimizer._velocities[index].value.handle,
        beta1_power=beta_1**step,
        beta2_power=beta_2**step,
        lr=tf.cast(learning_rate, dtype),
        beta1=beta_1,
        beta2=beta_2,
        epsilon=tf.cast(optimizer.epsilon, dtype),
        grad=tf.cast(gradient, dtype),
    )


def create_optimizer(
    config: TrainingConfig,
    schedule: ExamplesSchedule,
    factors: Sequence[float] | None = None,
) -> keras.optimizers.Optimizer:
    """The optimiser `config` names, which takes gradients that are already reduced.

    Keras's optimisers sum the gradients over replicas after clipping them; the trainer
    reduces first and clips the reduced gradient, so that clipping means the same at
    any number of replicas. Their own sum is therefore taken out.

    Args:
        config: names it and its arguments.
        schedule: the learning rate.
        factors: by which it is multiplied for each of the variables that the optimiser
            will be built for, in their order; AdamW's weight decay is not. None: 1.

    Raises:
        UserError: unknown optimiser or argument.
    """
    name = _SPELLINGS.get(config.optimizer, config.optimizer)
    if name not in _OPTIMIZERS:
        raise UserError(
            f"Unknown --optimizer={config.optimizer}. {near_matches(name, _OPTIMIZERS)}"
        )
    base, defaults = _OPTIMIZERS[name]

    args = config.optimizer_args
    if "learning_rate" in args:
        raise UserError(
            f"--optimizer_args: learning_rate={args['learning_rate']} is a flag of its "
            "own, --base_learning_rate."
        )
    for argument in _AVERAGES:
        if argument in args:
            raise UserError(
                f"--optimizer_args: {argument}={args[argument]} has an effect on "
                "nothing that is evaluated; --ema_decay keeps averages of the weights."
            )
    known = [n for n in inspect.signature(base).parameters if n not in _OURS]
    for argument in args:
        if argument not in known:
            raise UserError(
                f"--optimizer_args: {name} has no argument {argument}. "
                f"{near_matches(argument, known)}"
            )
    refuse_wrong_types(f"--optimizer_args of {name}", base, args, by_default=True)

    class ReducedGradients(base):
        def _all_reduce_sum_gradients(self, grads_and_vars):
            return grads_and_vars

        def update_step(self, gradient, variable, learning_rate):
            if factors is not None:
                learning_rate *= factors[self._get_variable_index(variable)]
            fused = isinstance(self, keras.optimizers.Adam) and not self.amsgrad
            if fused and keras.backend.backend() == "tensorflow":
                _adam_step(self, gradient, variable, learning_rate)
            else:
                super().update_step(gradient, variable, learning_rate)

    try:
        optimizer = ReducedGradients(
            learning_rate=schedule, name=name, **{**defaults, **config.optimizer_args}
        )
    except (TypeError, ValueError) as e:
        raise UserError(f"--optimizer_args: {name} refuses them: {e}") from e
    if config.precision == "float16":
        # Scales the loss so that small gradients do not vanish, and skips a step whose
        # gradients overflowed.
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
