"""One model of several checkpoints of a run: the mean of their weights."""

import itertools
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from yt8m.config import TrainingConfig
from yt8m.data.pipeline import Reader
from yt8m.errors import UserError
from yt8m.layers.dropout import drawing_for
from yt8m.model import YT8MModel, forward
from yt8m.progress import Progress
from yt8m.runs import CheckpointInfo, Checkpoints
from yt8m.training.augmentation import as_trained_on
from yt8m.training.fine_tuning import freeze

# Steps after which the warm-up of `yt8m.layers.normalization` is over, and to which
# float32 adds no more.
_LATE = float(1 << 24)


def average_weights(
    checkpoints: Checkpoints, infos: Sequence[CheckpointInfo], model: YT8MModel
) -> None:
    """Gives a model the mean of its weights in several checkpoints.

    What is averaged is what is evaluated: of a run with moving averages of the
    weights these. Batch statistics are averaged like weights; whole numbers, the
    states of random draws, are those of the last checkpoint.

    Args:
        checkpoints: of the run.
        infos: which, at least one.
        model: of the run, with weights. Memory is 8 bytes for each beside it.

    Raises:
        UserError: a checkpoint does not fit the model.

    Reference:
        Izmailov et al. 2018, arXiv:1803.05407, algorithm 1.
    """
    floats = [v for v in model.variables if keras.backend.is_float_dtype(v.dtype)]
    sums = [np.zeros(v.shape, np.float64) for v in floats]
    for info in infos:
        checkpoints.restore_for_evaluation(info, model)
        for total, variable in zip(sums, floats, strict=True):
            total += keras.ops.convert_to_numpy(variable)
    for total, variable in zip(sums, floats, strict=True):
        variable.assign(total / len(infos))


def refresh_statistics(
    model: YT8MModel,
    reader: Reader,
    steps: int,
    settings: TrainingConfig,
    progress: Progress | None = None,
) -> int:
    """Takes a model's batch statistics anew, as means over batches of training data.

    After batch n a statistic is the mean of those of n batches; nothing else of the
    model changes, nor do statistics that were frozen in training.

    Args:
        model: a built one, of which no graph of training is made yet; what was frozen
            is so afterwards.
        reader: the training data, in the order of training.
        steps: batches; fewer if there are no more.
        settings: of the training.
        progress: None shows one on standard error.

    Returns:
        The number of batches.

    Raises:
        UserError: the model has no batch statistics, or all are frozen; bad data.

    Reference:
        Izmailov et al. 2018, arXiv:1803.05407, section 3.2.
    """
    if settings.freeze:
        freeze(model, settings.freeze)
    layers = [
        layer
        for layer in model._flatten_layers()
        if hasattr(layer, "moving_mean")
        and hasattr(layer, "momentum")
        and layer.trainable
    ]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no batch normalisation, or none that is not "
            "frozen, whose statistics could be refreshed: leave out --refresh_steps."
        )
    refreshed = {
        id(getattr(layer, name))
        for layer in layers
        for name in ("moving_mean", "moving_variance", "moving_square")
        if hasattr(layer, name)
    }
    kept = [
        (v, keras.ops.convert_to_numpy(v))
        for v in model.variables
        if id(v) not in refreshed
    ]
    momenta = [layer.momentum for layer in layers]

    @tf.function(reduce_retracing=True)
    def step(batch, number):
        for layer in layers:
            layer.momentum = tf.cast(number, tf.float32) / tf.cast(
                number + 1, "float32"
            )
        batch = as_trained_on(batch, model.features, settings, number)
        forward(model, batch, training=True)

    done = 0
    try:
        for layer in layers:
            if hasattr(layer, "steps"):
                layer.steps.assign(_LATE)
        with (
            drawing_for(0),
            progress or Progress(total=steps, unit="batches") as progress,
        ):
            for batch, _ in itertools.islice(reader.batches(), steps):
                step(batch, tf.constant(done, tf.int64))
                done += 1
                progress.update(1)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for variable, value in kept:
            variable.assign(value)
    return done
