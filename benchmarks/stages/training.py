"""Steps of training, and training with its input."""

import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.stages.products import seconds_of, step_products
from benchmarks.stages.timing import Row, in_turn, shares
from yt8m import registry, schema
from yt8m.config import DataConfig, ModelConfig, Part, RunConfig, TrainingConfig
from yt8m.cost import Product
from yt8m.data.pipeline import Reader
from yt8m.data.synthetic import draw_length
from yt8m.errors import UserError
from yt8m.training.loop import StepFunctions
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

_POOL = 2  # batches that take turns, lest one stays in a cache
_SECONDS = 2.0  # about how long the steps of a round take


@dataclass(frozen=True)
class Case:
    """A model whose steps are timed.

    Attributes:
        name: of the stage.
        model, args: a registered model and its arguments.
        videos, frames: B of a step, and T; None for a video-level model.
        real_lengths: whether videos have as many frames as the dataset's, else all T.
        bars: the shares of the products in float32 that are wanted, by precision.
        unfolded: whether the products are those without the input norm folded into
            the projection: one more, for the gradient of the frames.
    """

    name: str
    model: str
    args: dict[str, Any]
    videos: int
    frames: int | None = None
    real_lengths: bool = False
    bars: dict[str, float] = field(default_factory=dict)
    unfolded: bool = False


_VIDEO = {"features": schema.VIDEO_FEATURES}
CASES = [
    Case("Logistic", "LogisticModel", _VIDEO, 1024),
    Case(
        "MoE-2",
        "MoeModel",
        {**_VIDEO, "num_mixtures": 2},
        1024,
        bars={"float32": 0.7, "bfloat16": 1.0},
    ),
    Case("FrameLevelLogistic", "FrameLevelLogisticModel", {}, 128, 300, True),
    Case(
        "DBoF",
        "DbofModel",
        {"clusters": 8192, "hidden_size": 1024, "num_mixtures": 2},
        *(128, 30),
        bars={"float32": 1.0, "bfloat16": 1.35},
        unfolded=True,
    ),
    Case(
        "LSTM 2 x 1024",
        "LstmModel",
        {"cells": 1024, "layers": 2},
        *(64, 300, True),
        bars={"float32": 0.75},
    ),
    Case(
        "NetVLAD K=256",
        "NetVLADModel",
        {"clusters": 256, "hidden_size": 1024, "num_mixtures": 2},
        *(80, 300),
        bars={"float32": 0.6},
    ),
    Case("NeXtVLAD", "NeXtVLADModel", {}, 80, 300),
]
# Sizes at which all of it only shows that it runs.
_QUICK = {
    "LstmModel": {"cells": 8},
    "DbofModel": {"clusters": 16, "hidden_size": 8},
    "NetVLADModel": {"clusters": 8, "hidden_size": 8},
    "NeXtVLADModel": {"clusters": 8, "hidden_size": 8},
}


def quick(case: Case) -> Case:
    args = {**case.args, **_QUICK.get(case.model, {}), "num_classes": 20}
    frames = case.frames and 6
    return replace(case, args=args, videos=4, frames=frames)


class _Memory:
    """Gives stacked batches over and over, in the place of a reader."""

    def __init__(self, batches: dict[str, np.ndarray]):
        self._batches = batches

    def replica_dataset(self, start_batch: int, part: Part) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(self._batches).repeat()
        return dataset.map(
            lambda batch: ({name: _of_any_size(x) for name, x in batch.items()}, {})
        ).prefetch(2)


def _of_any_size(x: tf.Tensor) -> tf.Tensor:
    """`x` [B, D] or [B, T, D] with B and T unknown to TensorFlow, as the reader's."""
    shape = [None] * max(x.shape.rank - 1, 1) + x.shape[1:][-1:]
    return tf.compat.v1.placeholder_with_default(x, shape)


class Steps:
    """A model, its step, and batches in memory.

    Args:
        case: which.
        precision: `float32` or `bfloat16`.
    """

    def __init__(self, case: Case, precision: str):
        self.case, self.precision = case, precision
        policy = precision if precision == "float32" else f"mixed_{precision}"
        model = registry.create(case.model, dtype=policy, **case.args)
        self.model = model.ensure_built()
        settings = TrainingConfig(
            "", batch_size=case.videos, base_learning_rate=2e-4, precision=precision
        )
        level = "frame" if case.frames else "video"
        self.data = DataConfig(level, self.model.features, self.model.num_classes)
        config = RunConfig(ModelConfig(case.model, case.args), self.data, settings)
        optimizer = create_optimizer(settings, ExamplesSchedule(settings, 10**9))
        optimizer.build(self.model.trainable_variables)
        # The strategy of a run on one device.
        strategy = tf.distribute.get_strategy()
        self.functions = StepFunctions(config, self.model, optimizer, strategy)
        batches = self._batches()
        self._spec = {
            name: tf.TensorSpec(v.shape[1:], v.dtype) for name, v in batches.items()
        }
        self._iterator = self.functions.iterate(_Memory(batches), 0)
        self.count = 1

    def _batches(self) -> dict[str, np.ndarray]:
        """As the reader gives them, stacked: each array [pool, B, ...]."""
        case, rng = self.case, np.random.default_rng(0)
        videos = (_POOL, case.videos)
        if case.frames:
            found = {
                name: rng.integers(0, 256, (*videos, case.frames, size), np.uint8)
                for name, size in self.model.features.items()
            }
            lengths = np.full(videos, case.frames)
            if case.real_lengths:
                drawn = [draw_length(rng, case.frames) for _ in range(lengths.size)]
                lengths = np.reshape(drawn, videos)
            found["num_frames"] = lengths.astype(np.int32)
        else:
            found = {
                name: rng.normal(size=(*videos, size)).astype(np.float32)
                for name, size in self.model.features.items()
            }
        chance = 3 / self.model.num_classes  # 3 labels a video, as in the dataset
        shape = (*videos, self.model.num_classes)
        found["labels"] = (rng.random(shape) < chance).astype(np.uint8)
        return found

    def products(self) -> Counter[Product]:
        """Of a step; where the case says so, of one that forms normalised frames."""
        size = float(self.case.videos)
        found = step_products(
            lambda batch: self.functions._part_gradients(batch, size)[0], self._spec
        )
        if self.case.unfolded:
            rows = self.case.videos * self.case.frames
            clusters = self.case.args["clusters"]
            size = sum(self.model.features.values())
            found[Product(1, rows, clusters, size, (False, True))] += 1
        return found

    def run(self) -> float:
        """Takes some steps; the number of videos."""
        outcome = self.functions.run(self._iterator, self.count)
        if not math.isfinite(outcome.loss):
            raise UserError(f"{self.case.model} in {self.precision}: not finite.")
        return self.count * self.case.videos

    def take_steps_for(self, seconds: float) -> None:
        """Chooses how many steps a round has."""
        self.run()
        (rate,) = in_turn({"": self.run}, 1)[""]
        self.count = max(1, int(seconds * rate / self.case.videos))


def measure_steps(
    cases: list[Case], precisions: list[str], rounds: int, quick: bool
) -> Iterator[Row]:
    """The rate of each model's steps, as a share of the products' in float32."""
    for case in cases:
        for precision in precisions:
            steps = Steps(case, precision)
            found = steps.products()
            steps.take_steps_for(0 if quick else _SECONDS)
            rates, floors = [], []
            for _ in range(rounds):
                rates += in_turn({"": steps.run}, 1)[""]
                floors.append(case.videos / seconds_of(found, "float32"))
            yield Row(
                f"{case.name}, step of {case.videos}, {precision}",
                rates,
                floor="its matrix products in float32"
                + (", frames not folded" if case.unfolded else ""),
                shares=shares(rates, floors),
                bar=case.bars.get(precision),
            )
            del steps


def measure_with_input(paths: list[str], rounds: int, batch_size: int) -> Iterator[Row]:
    """FrameLevelLogistic trained from shards, beside its reader and its step alone."""
    case = Case("", "FrameLevelLogisticModel", {}, batch_size, 300, True)
    steps = Steps(case, "float32")
    data = steps.data
    reader = functools.partial(
        Reader, paths, data, batch_size=batch_size, seed=0, num_epochs=None
    )
    videos = Reader(paths, data, batch_size=batch_size).num_examples
    count = videos // batch_size
    alone = iter(reader().dataset())
    together = steps.functions.iterate(reader(), 0)
    steps.count = count

    def read() -> float:
        return sum(len(next(alone)[1]["id"]) for _ in range(count))

    def train() -> float:
        steps.functions.run(together, count)
        return count * batch_size

    rates = in_turn({"read": read, "step": steps.run, "train": train}, rounds)
    slower = np.minimum(rates["read"], rates["step"]).tolist()
    yield Row(
        "FrameLevelLogistic trained from shards",
        rates["train"],
        floor="the slower of its reader and its step",
        shares=shares(rates["train"], slower),
        bar=0.85,
    )
