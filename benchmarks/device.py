"""Steps of training where there is JAX alone, timed in turn with what bounds them.

`python -m benchmarks --device=gpu --backend=jax` runs this and prints it. A step is
taken with all batches on the device and with batches that come from host memory; the
floors are products of square matrices in the model's precision and copies of a batch.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

import frame_level_models  # noqa: F401  registers the models
from yt8m import losses, registry
from yt8m.config import TrainingConfig
from yt8m.errors import UserError
from yt8m.model import YT8MModel
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

Batch = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is measured, and for how long.

    Attributes:
        model, args: a registered model and its arguments.
        videos, frames: B of a step and T of each video.
        matrix: rows of the square matrices.
        pool: batches that take turns, lest one stays in a cache.
        rounds, seconds: repetitions of each measurement, and about how long each is.
    """

    model: str
    args: dict[str, Any]
    videos: int
    frames: int
    matrix: int
    pool: int
    rounds: int
    seconds: float


def training_flops(model: YT8MModel, frames: int) -> int:
    """Floating-point operations of a training step's matrix products, for each video.

    A product of [m, n] by [n, k] has 2 m n k. A step takes each three times: forward
    and for the gradient of either factor. Those with the frames it takes twice, since
    data need no gradient. Sums, norms and the update of weights are not counted.

    Args:
        model: a built `NetVLADModel` or `DbofModel` with the head `moe`.
        frames: T, of each video.
    """
    first, *others = model.features.values()
    hidden, classes = model.hidden_size, model.num_classes
    if hasattr(model, "pools"):
        sizes = [first, sum(others)]
        pooled = sum(d * p.clusters for d, p in zip(sizes, model.pools, strict=False))
        with_frames = 2 * frames * pooled  # the assignments; the sums of residuals
    else:
        pooled = model.clusters
        with_frames = frames * (first + sum(others)) * pooled
    with_weights = pooled * hidden
    with_weights += hidden * classes * (2 * model.classifier.num_mixtures + 1)
    if getattr(model, "gating", False):
        with_weights += hidden * hidden
    if model.gating_probabilities:
        with_weights += classes * classes
    return 2 * (2 * with_frames + 3 * with_weights)


def generated_batches(model: YT8MModel, case: Case) -> Batch:
    """Random batches as the reader gives them, stacked: each array [pool, B, ...]."""
    rng, videos = np.random.default_rng(0), (case.pool, case.videos)
    batches = {
        name: rng.integers(0, 256, (*videos, case.frames, size), np.uint8)
        for name, size in model.features.items()
    }
    batches["num_frames"] = np.full(videos, case.frames, np.int32)
    chance = 3 / model.num_classes  # 3 labels a video, as in the dataset
    batches["labels"] = rng.random((*videos, model.num_classes)) < chance
    return batches


class JaxEngine:
    """Training by JAX."""

    def __init__(self, device: str):
        import jax

        # A RuntimeError where there is none.
        self.jax, self.device = jax, jax.devices(device)[0]
        self.on_gpu, self.device_name = device == "gpu", self.device.device_kind
        self.scope = jax.default_device(self.device)

    def unstack(self, batches: Batch) -> list[Batch]:
        count = len(batches["labels"])
        return [{name: v[i] for name, v in batches.items()} for i in range(count)]

    def put(self, batch: Batch) -> Batch:
        return self.jax.device_put(batch, self.device)

    def wait(self, result: Any) -> None:
        self.jax.block_until_ready(result)

    def stream(self, batches: Batch) -> Iterator[Batch]:
        ahead = None
        for batch in itertools.cycle(self.unstack(batches)):
            now, ahead = ahead, self.put(batch)  # while the device computes
            if now:
                yield now

    def train_step(self, model: YT8MModel, optimizer, loss) -> Callable[[Batch], Any]:
        def update(state, batch):
            weights, others, slots = state

            def objective(weights):
                inputs = {name: batch[name] for name in model.input_names}
                outputs, new, penalties = model.stateless_call(
                    weights, others, inputs, training=True, return_losses=True
                )
                value = ops.mean(loss(batch["labels"], outputs)) + sum(penalties)
                return value, new

            gradient = self.jax.value_and_grad(objective, has_aux=True)
            (value, others), gradients = gradient(weights)
            weights, slots = optimizer.stateless_apply(slots, gradients, weights)
            return [weights, others, slots], value

        update = self.jax.jit(update, donate_argnums=0)
        parts = model.trainable_variables, model.non_trainable_variables
        state = [[v.value for v in part] for part in (*parts, optimizer.variables)]

        def step(batch):
            nonlocal state
            state, value = update(state, batch)
            return value

        return step


def repeated_rates(
    runs: dict[str, Callable[[], Any]], wait: Callable[[Any], None], case: Case
) -> dict[str, np.ndarray]:
    """How often a second each of `runs` runs: a number for each round, all in turn."""

    def rate(run: Callable[[], Any], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            result = run()
        wait(result)
        return count / (time.perf_counter() - start)

    for run in runs.values():
        rate(run, 1)  # compiles
    counts = {name: 1 + int(case.seconds * rate(run, 1)) for name, run in runs.items()}
    rounds = [
        [rate(run, counts[name]) for name, run in runs.items()]
        for _ in range(case.rounds)
    ]
    return dict(zip(runs, np.transpose(rounds), strict=True))


def measure(
    engine, case: Case, precision: str
) -> tuple[YT8MModel, int, dict[str, np.ndarray]]:
    """Times the steps of one model and its floors.

    Returns:
        The model, the bytes of a batch, and how often a second, by round, each of these
        ran: `matmul`; `copy`; `resident` and `streaming`, steps on data on the device
        and on data from the host.

    Raises:
        UserError: the loss is not finite.
    """
    policy = precision if precision == "float32" else f"mixed_{precision}"
    model = registry.create(case.model, dtype=policy, **case.args).ensure_built()
    config = TrainingConfig("", batch_size=case.videos, base_learning_rate=2e-4)
    optimizer = create_optimizer(config, ExamplesSchedule(config, 10**9))
    optimizer.build(model.trainable_variables)
    step = engine.train_step(model, optimizer, losses.create("CrossEntropyLoss"))

    batches = generated_batches(model, case)
    host = engine.unstack(batches)
    resident = itertools.cycle([engine.put(batch) for batch in host])
    streaming = engine.stream(batches)
    matrix = np.random.default_rng(0).normal(size=(case.matrix, case.matrix))
    matrix = ops.convert_to_tensor(matrix, dtype=precision)
    target = {name: v[0].copy() for name, v in batches.items()}

    def copy():
        if engine.on_gpu:
            return engine.put(host[0])
        # Host and device have the same memory: a copy within it.
        return [np.copyto(target[name], v[0]) for name, v in batches.items()]

    runs = {
        "matmul": lambda: ops.matmul(matrix, matrix),
        "copy": copy,
        "resident": lambda: step(next(resident)),
        "streaming": lambda: step(next(streaming)),
    }
    rates = repeated_rates(runs, engine.wait, case)
    if not math.isfinite(float(step(next(resident)))):
        raise UserError(f"{case.model} in {precision}: the loss is not finite.")
    return model, sum(v.nbytes for v in target.values()), rates
