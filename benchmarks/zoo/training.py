"""Training and scoring of a model on arrays in memory, on any Keras backend."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.zoo.rows import Row
from benchmarks.zoo.videos import Videos
from yt8m import losses, registry
from yt8m.metrics import VideoMetrics
from yt8m.model import YT8MModel, forward

_SCORED_VIDEOS = 250  # of a batch


class Learner(keras.Model):
    """A model with its objective, as `fit` wants it.

    Call arguments:
        batch: dictionary of the model's inputs and, in training, `labels`.

    Returns:
        The model's outputs in training, its logits otherwise.
    """

    def __init__(self, model: YT8MModel, row: Row):
        super().__init__(autocast=False)
        self.model = model.ensure_built()
        self.deep_supervision_weight = row.deep_supervision_weight
        self.label_loss = losses.create(row.label_loss, **row.label_loss_args)
        self.ranking_weight = row.ranking_weight
        self.ranking = losses.create("SoftRankingLoss") if row.ranking_weight else None
        self.built = True

    def call(self, batch, training=False):
        outputs = forward(self.model, batch, training=training)
        return outputs if training else outputs["logits"]

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        value = losses.objective(
            self.label_loss,
            y,
            y_pred,
            deep_supervision_weight=self.deep_supervision_weight,
        )
        if self.ranking:
            value += self.ranking_weight * losses.objective(self.ranking, y, y_pred)
        return ops.mean(value) + sum(self.losses)


class Batches(keras.utils.PyDataset):
    """Random batches, each epoch in another order.

    Args:
        videos: to draw from.
        names: the inputs that are needed.
        batch_size, steps, seed: of the batches.
        mixup: alpha of the Beta distribution; 0 mixes nothing. Only of features of
            whole videos.
    """

    def __init__(
        self,
        videos: Videos,
        names: list[str],
        batch_size: int,
        steps: int,
        seed: int,
        mixup: float = 0.0,
    ):
        super().__init__()
        self.videos, self.names, self.mixup = videos, names, mixup
        rng = np.random.default_rng(seed)
        epochs = -(-steps * batch_size // len(videos.labels))
        order = [rng.permutation(len(videos.labels)) for _ in range(epochs)]
        order = np.concatenate(order)[: steps * batch_size]
        self.rows = order.reshape(steps, batch_size)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        rows = self.rows[index]
        labels = self.videos.labels[rows]
        inputs = {name: self.videos.inputs[name][rows] for name in self.names}
        if self.mixup:
            rng = np.random.default_rng(rows)
            share = rng.beta(self.mixup, self.mixup, (len(rows), 1)).astype("float32")

            def mixed(x):
                x = x.astype("float32")
                return share * x + (1 - share) * np.roll(x, -1, axis=0)

            inputs = {name: mixed(values) for name, values in inputs.items()}
            labels = mixed(labels)
        return {**inputs, "labels": labels}, labels


class Adam(keras.optimizers.Adam):
    """Adam; `use_ema` keeps averages of the weights, by `ema_momentum`, and no more.

    Keras's own overwrites the weights with them at the end of each `fit`, of which a
    training here has many.
    """

    def finalize_variable_values(self, var_list):
        pass

    @contextlib.contextmanager
    def averages_in(self, variables: list):
        """With the averages, if they are kept, in the place of the trained weights."""
        averages = self._model_variables_moving_average if self.use_ema else []
        trained = [ops.convert_to_numpy(v) for v in variables[: len(averages)]]
        for variable, average in zip(variables, averages, strict=False):
            variable.assign(average)
        yield
        for variable, value in zip(variables, trained, strict=False):
            variable.assign(value)


class Trained:
    """A row's model, compiled once and trained anew for each seed.

    Args:
        row: what to train.
        sizes: of the features.
        num_classes: C.
        steps: of a whole training.
    """

    def __init__(self, row: Row, sizes: dict[str, int], num_classes: int, steps: int):
        self.row, self.steps = row, steps
        self._create: Callable[[], YT8MModel] = lambda: registry.create(
            row.model,
            num_classes=num_classes,
            features={name: sizes[name] for name in row.features},
            **row.args,
        )
        keras.utils.set_random_seed(0)
        self.learner = Learner(self._create(), row)
        rate = row.rate
        if row.schedule == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(rate, steps)
        # As the trainer's: epsilon, and each gradient clipped at a norm of 1.
        self.optimizer = Adam(
            rate, **{"epsilon": 1e-8, "clipnorm": 1.0, **row.optimizer_args}
        )
        self.optimizer.build(self.learner.trainable_variables)
        self._fresh_slots = [ops.convert_to_numpy(v) for v in self.optimizer.variables]
        # TensorFlow would take XLA where it can, which is slow to compile on a CPU.
        self.learner.compile(
            self.optimizer, jit_compile=keras.backend.backend() == "jax"
        )

    def start(self, seed: int) -> None:
        """Forgets all training and draws new weights."""
        keras.utils.set_random_seed(seed)
        fresh = self._create().ensure_built().variables
        model = self.learner.model.variables
        for variable, value in zip(model, fresh, strict=True):
            variable.assign(value)
        for variable, value in zip(
            self.optimizer.variables, self._fresh_slots, strict=True
        ):
            variable.assign(value)

    def epochs(
        self, videos: Videos, seed: int, count: int = 1
    ) -> Iterator[dict[str, Any]]:
        """Trains from new weights, in `count` equal parts; yields after each."""
        self.start(seed)
        names = self.learner.model.input_names
        row = self.row
        batches = Batches(videos, names, row.batch_size, self.steps, seed, row.mixup)
        rows = batches.rows
        for part in range(count):
            start = time.monotonic()
            first, last = (len(rows) * k // count for k in (part, part + 1))
            batches.rows = rows[first:last]
            history = self.learner.fit(batches, shuffle=False, verbose=0)
            yield {
                "loss": history.history["loss"][-1],
                "seconds": time.monotonic() - start,
            }

    def logits(self, videos: Videos) -> np.ndarray:
        """Of all videos, float32 [N, C]."""
        names = self.learner.model.input_names
        inputs = {name: videos.inputs[name] for name in names}
        with self.optimizer.averages_in(self.learner.trainable_variables):
            return self.learner.predict(inputs, batch_size=_SCORED_VIDEOS, verbose=0)


def score(logits: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """GAP, and the average precision of each class, NaN where it has no positive."""
    metrics = VideoMetrics(truth.shape[1])
    metrics.add(logits, truth)
    return metrics.result()["gap"], metrics.per_class()["ap"]
