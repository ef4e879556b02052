"""The training loop: one run from its directory to its last checkpoint.

Read from top to bottom: `Trainer.train` is the loop, `StepFunctions` the arithmetic of
a step, `Journal` what is written down.
"""

import contextlib
import csv
import functools
import logging
import math
import os
import resource
import signal as signal_module
import threading
import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from yt8m import evaluation, losses, runs, whole_files
from yt8m.config import RunConfig
from yt8m.data.pipeline import Reader
from yt8m.distribution import (
    EachReplica,
    is_chief,
    on_the_host,
    part_of,
    worker_count,
)
from yt8m.errors import UserError
from yt8m.events import EventWriter
from yt8m.layers.dropout import drawing_for
from yt8m.layers.normalization import set_synchronized
from yt8m.metrics.ranking import batch_metrics
from yt8m.model import YT8MModel, forward
from yt8m.progress import Progress
from yt8m.training import distillation, fine_tuning
from yt8m.training.augmentation import as_trained_on
from yt8m.training.early_stopping import EarlyStopping
from yt8m.training.mined_negatives import with_mined_negatives
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

log = logging.getLogger("yt8m")

# Steps are run in calls of about this many seconds: long enough to hide the cost of a
# call, short enough to answer a signal.
_SECONDS_PER_CALL = 1.0
_STEPS_PER_CALL_OF_WORKERS = 10


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended.

    Attributes:
        step: the last step taken.
        validation: metrics of the last validation, if there was one.
        stopped_by: the signal that ended the run early, or None.
    """

    step: int
    validation: dict[str, Any] | None
    stopped_by: int | None


class Trainer:
    """One run: trains from the latest checkpoint, if there is one, to the end.

    Args:
        config: the run's configuration, as stored in `directory`.
        directory: the run directory; exists.
        reader: the training data, in batches of `config.training.batch_size`.
        eval_reader: the validation data, or None.
        strategy: where to compute.
        resume: whether to go on from the directory's latest checkpoint.

    Nothing is written before `train` is called.

    Raises:
        UserError: a checkpoint that does not fit the model.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: str,
        reader: Reader,
        eval_reader: Reader | None,
        strategy: tf.distribute.Strategy,
        resume: bool = True,
    ):
        self.config = config
        self.settings = settings = config.training
        self.directory = directory
        self.reader = reader
        self.eval_reader = eval_reader
        self.strategy = strategy
        if settings.jit_compile and part_of(strategy).total > 1:
            # Batch norm's moving averages are reduced over replicas, which XLA's
            # functions cannot do.
            raise UserError(
                "--jit_compile compiles the step of one device; leave it out, or give "
                "--strategy=one_device."
            )
        if settings.mixup and config.data.segments:
            raise UserError("--mixup mixes whole videos: leave out --segment_labels.")
        rows = settings.batch_size // part_of(strategy).total
        if settings.mixup and rows < 2:
            raise UserError(
                "--mixup blends the videos of a replica's batch with one another: give "
                f"--batch_size=2 at least, not {rows}."
            )
        self.chief = is_chief(strategy)
        self.checkpoints = runs.Checkpoints(
            directory, settings.keep_checkpoints, writes=self.chief
        )
        start = self.checkpoints.latest() if resume else None
        self.step = start.step if start else 0
        # A validation may have been cut short after its checkpoint was written.
        self._unvalidated = bool(start and start.validation is None)

        # The position in the data follows from the examples seen, not from the steps:
        # the batch size may have changed.
        examples = start.examples if start else 0
        self._ahead = examples // settings.batch_size - self.step
        self.last_step = self._find_last_step()

        with strategy.scope():
            self.model = runs.build_model(
                config.model, config.data, settings.precision, restored=bool(start)
            )
            if settings.init_from and not start:
                loaded = fine_tuning.load_weights(
                    self.model,
                    settings.init_from,
                    settings.init_checkpoint,
                    settings.new_classifier,
                )
                for line in loaded.lines():
                    log.info("%s", line)
            self.averages = None
            if settings.ema_decay:
                # Also of what is frozen: evaluation, which knows of no such thing,
                # expects one of each weight.
                self.averages = MovingAverages(self.model, settings.ema_decay)
            if settings.freeze:
                frozen = fine_tuning.freeze(self.model, settings.freeze)
                log.info("Frozen: %d variables, by %s.", len(frozen), settings.freeze)
            factors = fine_tuning.learning_rate_factors(
                self.model, settings.learning_rate_multipliers
            )
            schedule = ExamplesSchedule(
                settings, self.examples(self.last_step), self.step, examples
            )
            self.optimizer = create_optimizer(settings, schedule, factors)
            self.optimizer.build(self.model.trainable_variables)
            if settings.sync_batch_norm:
                set_synchronized(self.model, True)
            self.teacher = None
            if settings.teacher:
                self.teacher = distillation.Teacher(config, bool(reader.soft_labels))
        self._state = {"model": self.model, "optimizer": self.optimizer}
        if self.averages:
            self._state["ema"] = self.averages
        self._saved, self._validated, self._saved_at = -1, -1, time.monotonic()
        if start:
            self.checkpoints.restore(start, self._state)
            self._saved = self.step
            log.info("Resuming from step %d, %s.", self.step, start.path)
        self.steps = StepFunctions(
            config,
            self.model,
            self.optimizer,
            strategy,
            self.averages,
            self.step,
            self.teacher,
        )

    def describe(self) -> str:
        """What is trained, and on what."""
        part, devices = self.steps.part, self.strategy.extended.worker_devices
        names = ", ".join(d[d.rindex("device:") + 7 :] for d in devices)
        of_all = f", {part.total} replicas in all" if part.total > part.count else ""
        return f"{self.model.count_params():,} weights, on {names}{of_all}"

    def rehearse(self) -> list[str]:
        """Takes two steps, and says in lines what a run takes; nothing is written."""
        iterator = self.steps.iterate(self.reader, 0)
        element = tf.nest.flatten(self.steps.slice_spec)
        rows = -(-self.settings.batch_size // self.steps.part.total)
        frames = self.config.data.frames.count or self.config.data.max_frames
        batch = sum(_num_bytes(spec, rows, frames) for spec in element)
        state = [v.value for owner in self._state.values() for v in owner.variables]
        state += [v.value for v in self.teacher.variables] if self.teacher else []
        held = sum(_num_bytes(v) for v in state)
        gradients = sum(_num_bytes(v.value) for v in self.model.trainable_variables)
        lines = [
            f"{self.config.model.name}: {self.describe()}",
            f"batch: {self.settings.batch_size} examples in all, "
            f"{rows} a replica, {_megabytes(batch)} a replica at most",
            f"memory of a replica: {_megabytes(held)} of weights and optimiser, "
            f"{_megabytes(gradients)} of gradients, activations beside them",
            f"steps: {-(-self.reader.num_examples // self.settings.batch_size):,} an "
            f"epoch, {self.last_step:,} in all",
        ]
        began = time.monotonic()
        first = self.steps.run(iterator, 1)
        compiled = time.monotonic()
        second = self.steps.run(iterator, 1)
        seconds = time.monotonic() - compiled
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        for device in tf.config.list_logical_devices("GPU"):
            peak = tf.config.experimental.get_memory_info(device.name)["peak"]
            lines.append(f"peak on {device.name}: {_megabytes(peak)}")
            peak = 0
        if peak:
            lines.append(f"peak of the process: {_megabytes(peak)}")
        lines.append(
            f"two steps: loss {first.loss:.6g}, {second.loss:.6g}; the first took "
            f"{compiled - began:.1f} s, the second {seconds:.2f} s "
            f"({self.settings.batch_size / seconds:.0f} examples/s)"
        )
        return lines

    def batch(self, step: int) -> int:
        """The index, in the data, of the batch that follows step `step`."""
        return step + self._ahead

    def examples(self, step: int) -> int:
        """The number of examples seen after step `step`; the last batch is smaller."""
        examples = self.batch(step) * self.settings.batch_size
        if not self.settings.num_epochs:
            return examples
        return min(examples, self.settings.num_epochs * self.reader.num_examples)

    def _find_last_step(self) -> int:
        ends = [self.settings.max_steps] if self.settings.max_steps else []
        if self.settings.num_epochs:
            ends.append(self.reader.num_batches - self._ahead)
        return max(self.step, min(ends))

    def train(self) -> Result:
        """Trains to the end, or until a signal asks to stop.

        Raises:
            UserError: bad data, a loss that is not finite, or a checkpoint that cannot
                be written.
        """
        settings, first = self.settings, self.step
        alone, stopped_by = worker_count(self.strategy) == 1, 0
        iterator = self.steps.iterate(self.reader, self.batch(self.step))
        with _Signals() as signals, Journal(self) as journal:
            count, (patience, validation) = 1, self._earlier_validations(journal)
            while self.step < self.last_step and not stopped_by:
                if patience.is_over:
                    log.info("Stopped early: %s.", patience)
                    break
                ahead = min(
                    _until_next(self.step, settings.log_steps),
                    _until_next(self.step, settings.eval_steps),
                    _until_next(self.step, settings.save_checkpoint_steps),
                    _until_next(self.step, self._steps_per_loop),
                    self.last_step - self.step,
                )
                began, before = time.monotonic(), self.step
                try:
                    outcome = self.steps.run(
                        iterator, min(count, ahead), signals.received or 0
                    )
                except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as e:
                    self.step = self.steps.taken
                    # Raises what is wrong, unless the record is to be skipped.
                    self.reader.explain(e, self.batch(self.step))
                    iterator = self.steps.iterate(self.reader, self.batch(self.step))
                    continue
                except tf.errors.OpError as e:
                    if alone:
                        raise
                    raise UserError(
                        f"Another worker has stopped: {runs.reason(e)} Start all of "
                        "them again: they go on from the last checkpoint."
                    ) from e
                self.step = outcome.step
                # Several workers stop when all of them know of the signal.
                stopped_by = signals.received if alone else outcome.signal
                if outcome.bad_step is not None:
                    self._refuse_non_finite(outcome.bad_step)
                rate = (self.step - before) / (time.monotonic() - began)
                count = max(1, min(2 * count, int(rate * _SECONDS_PER_CALL)))
                if self._steps_per_loop:
                    count = self._steps_per_loop

                done = self.step == self.last_step
                journal.advance(outcome, self.step - before)
                if done or self.step % settings.log_steps == 0:
                    journal.record_batch(outcome)
                if self._save_due() or done:
                    self._save()
                if self._validation_due():
                    validation = self._validate(journal)
                    patience.add(self.step, validation)
            self._save()
            unseen = self.step not in (first, self._validated)
            if self.eval_reader and unseen and not stopped_by:
                validation = self._validate(journal)
            self.checkpoints.wait()
        if stopped_by:
            log.info("Stopped at step %d; its checkpoint is saved.", self.step)
        return Result(self.step, validation, stopped_by or None)

    def _earlier_validations(
        self, journal: "Journal"
    ) -> tuple[EarlyStopping, dict[str, Any] | None]:
        """What counts the validations, with those before a resume, and the last one if
        it is made up for now."""
        segments = bool(self.eval_reader and self.eval_reader.config.segments)
        patience = EarlyStopping(
            self.settings.early_stopping, segments, journal.rows_so_far()
        )
        if not self.validation_missing:
            return patience, None
        validation = self._validate(journal)
        patience.add(self.step, validation)
        return patience, validation

    @property
    def _steps_per_loop(self) -> int:
        """Steps of a call, if it is fixed; several workers must agree on it."""
        default = _STEPS_PER_CALL_OF_WORKERS if worker_count(self.strategy) > 1 else 0
        return self.settings.steps_per_loop or default

    def _save_due(self) -> bool:
        every, minutes = (
            self.settings.save_checkpoint_steps,
            self.settings.save_checkpoint_minutes,
        )
        late = minutes and time.monotonic() - self._saved_at >= 60 * minutes
        return bool(late or (every and self.step % every == 0))

    @property
    def validation_missing(self) -> bool:
        """Whether the checkpoint that is gone on from is still to be validated."""
        due = self._validation_due() or self.step >= self.last_step
        return bool(self.eval_reader and self._unvalidated and due)

    def _validation_due(self) -> bool:
        every = self.settings.eval_steps
        return bool(self.eval_reader and every and self.step % every == 0)

    def _save(self) -> None:
        if self.step != self._saved:
            self.checkpoints.save_async(
                self._state,
                self.step,
                self.examples(self.step),
                self.settings.batch_size,
            )
            self._saved, self._saved_at = self.step, time.monotonic()

    @functools.cached_property
    def _scorer(self) -> EachReplica:
        """Of all validations: a large model takes seconds to trace."""
        return evaluation.create_scorer(
            self.model, self.eval_reader, self.settings, self.strategy
        )

    def _validate(self, journal: "Journal") -> dict[str, Any]:
        """Validates the checkpoint of this step, which is saved first: nothing is lost
        if validation fails."""
        self._save()
        with self.averages.used() if self.averages else contextlib.nullcontext():
            validation = evaluation.evaluate(
                self.model,
                self.eval_reader,
                self.settings,
                strategy=self.strategy,
                scorer=self._scorer,
            )
        rated = validation.pop("rated_classes", None)
        if rated is not None and self.chief:
            evaluation.write_rated_classes(self.directory, rated)
        journal.record_validation(self.step, validation)
        self.checkpoints.set_validation(self.step, validation)
        self._validated = self.step
        return validation

    def _refuse_non_finite(self, step: int) -> None:
        """Names the step and its batch, whose ids go to a file, and stops the run."""
        dataset = self.reader.dataset(self.batch(step)).take(1)
        ids = [i.decode() for _, host in dataset for i in host["id"].numpy()]
        path = os.path.join(self.directory, f"non-finite-step-{step + 1}.txt")
        if self.chief:
            whole_files.write_file(path, "\n".join(ids) + "\n")
        self.checkpoints.wait()
        latest = self.checkpoints.latest()
        kept = f"the checkpoint of step {latest.step} is kept" if latest else ""
        raise UserError(
            f"The loss or a gradient is not finite at step {step + 1}, in the batch of "
            f"videos {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''} (all are in "
            f"{path}); {kept or 'there is no checkpoint yet'}. Lower "
            "--base_learning_rate, or look at these videos."
        )


def chief_says(strategy: tf.distribute.Strategy, value: bool) -> bool:
    """What the chief's `value` is, on all workers; they wait for one another."""
    if worker_count(strategy) == 1:
        return value

    @tf.function
    def reduce(mine):
        def replica(mine):
            context = tf.distribute.get_replica_context()
            mine = tf.identity(mine)  # so that it has a device
            return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        return strategy.run(replica, args=(mine,))

    mine = tf.constant(int(value and is_chief(strategy)), tf.int32)
    return bool(int(strategy.experimental_local_results(reduce(mine))[0]))


def _num_bytes(tensor: Any, rows: int = 0, frames: int = 0) -> int:
    """Bytes of a tensor, or of a spec whose first unknown sizes are rows and frames."""
    sizes = [s or (rows, frames)[min(i, 1)] for i, s in enumerate(tensor.shape)]
    return math.prod(sizes) * tensor.dtype.size


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _until_next(step: int, every: int) -> int:
    """Steps to the next multiple of `every`; very many if `every` is 0 (never)."""
    return every - step % every if every else 1 << 30


@dataclass(frozen=True)
class Outcome:
    """What a call of several steps brings to the host.

    Attributes:
        step: the step reached.
        loss: mean loss of the steps, per example, without penalties.
        bad_step: the steps taken before the first whose loss or gradient is not
            finite; None if all are.
        signal: the signal that asked a worker to stop, or 0.
        penalty: regularisation penalty of the last step.
        learning_rate: of the last step.
        logits, labels: of the last step's global batch, [B, C].
    """

    step: int
    loss: float
    bad_step: int | None
    signal: int
    penalty: float
    learning_rate: float
    logits: np.ndarray
    labels: np.ndarray


class MovingAverages:
    """Exponential moving averages of a model's weights.

    After step n an average moves by 1 - min(decay, (1 + n) / (10 + n)) of its distance
    to the weight, so that the first weights are soon forgotten.

    Args:
        model: a built model; this is called under the strategy's scope.
        decay: of a step.
    """

    def __init__(self, model: YT8MModel, decay: float):
        self.decay = decay
        self._weights = [v.value for v in model.trainable_variables]
        self._averages = [
            tf.Variable(w, trainable=False, aggregation=_FIRST) for w in self._weights
        ]
        self._steps = tf.Variable(0.0, trainable=False, aggregation=_FIRST)

    @property
    def variables(self) -> list[tf.Variable]:
        return [*self._averages, self._steps]

    def update(self, strategy: tf.distribute.Strategy) -> None:
        """Moves the averages; called outside of the replicas, after each step."""
        self._steps.assign_add(1.0)
        warm_up = (1.0 + self._steps) / (10.0 + self._steps)
        rate = 1.0 - tf.minimum(self.decay, warm_up)

        def move(average, weight, rate):
            difference = tf.cast(weight, average.dtype) - average
            average.assign_add(tf.cast(rate, average.dtype) * difference)

        for average, weight in zip(self._averages, self._weights, strict=True):
            strategy.extended.update(average, move, args=(weight, rate), group=False)

    @contextlib.contextmanager
    def used(self):
        """The model has the averages for weights, within the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for average, weight in zip(self._averages, self._weights, strict=True):
            kept = weight.numpy()
            weight.assign(average.numpy())
            average.assign(kept)


_FIRST = tf.VariableAggregation.ONLY_FIRST_REPLICA


class StepFunctions:
    """The arithmetic of training: gradients, one all-reduce, clipping, the update.

    Args:
        config: the run's configuration.
        model, optimizer: built under the scope of `strategy`.
        strategy: where to compute.
        averages: moved after each step, or None.
        first_step: the steps taken before.
        teacher: gives soft labels, or None.
    """

    def __init__(
        self,
        config: RunConfig,
        model: YT8MModel,
        optimizer,
        strategy: tf.distribute.Strategy,
        averages: MovingAverages | None = None,
        first_step: int = 0,
        teacher: distillation.Teacher | None = None,
    ):
        self.settings = config.training
        self.model = model
        self.optimizer = optimizer
        self.strategy = strategy
        self.averages = averages
        self.teacher = teacher
        self.part = part_of(strategy)
        self.loss = losses.create(
            self.settings.label_loss, **self.settings.label_loss_args
        )
        # The optimiser's own counter stands still where loss scaling skips a step.
        with strategy.scope():
            self._taken = tf.Variable(first_step, dtype=tf.int64, aggregation=_FIRST)
        self._run = tf.function(self._steps, reduce_retracing=True)
        self._compute = self._gradients
        if self.settings.jit_compile:
            self._compute = tf.function(self._gradients, jit_compile=True)

    @property
    def taken(self) -> int:
        """The steps taken so far."""
        return int(self._taken.numpy())

    def iterate(self, reader: Reader, start_batch: int):
        """An iterator over each replica's slice of the global batches."""

        def features(context):
            dataset = reader.replica_dataset(start_batch, self.part)
            return dataset.map(lambda batch, host: batch)

        if on_the_host(self.strategy):
            # It is where it is wanted; distributed, two more batches would wait.
            dataset = features(None)
        else:
            dataset = self.strategy.distribute_datasets_from_function(features)
        # Where there are several replicas, a spec for each of them, all alike.
        spec = tf.nest.map_structure(
            lambda s: s._value_specs[0] if hasattr(s, "_value_specs") else s,
            dataset.element_spec,
        )
        self.slice_spec = spec
        self._label_type = spec["labels"].dtype
        return iter(dataset)

    def run(self, iterator, count: int, signal: int = 0) -> Outcome:
        """Takes `count` steps in one call.

        Args:
            iterator: of `iterate`.
            count: the same for all workers.
            signal: the signal that asks this worker to stop, or 0.
        """
        before = self.taken
        out = self._run(iterator, tf.constant(count, tf.int32), tf.constant(signal))
        bad = int(out["bad"])
        return Outcome(
            step=self.taken,
            loss=float(out["loss"]) / count,
            bad_step=before + bad if bad >= 0 else None,
            signal=int(out["signal"]),
            penalty=float(out["penalty"]),
            learning_rate=float(out["learning_rate"]),
            logits=np.concatenate([x.numpy() for x in out["logits"]]),
            labels=np.concatenate([x.numpy() for x in out["labels"]]),
        )

    def _steps(self, iterator, count, signal):
        """Several steps, and what the last of them computed.

        All steps are of one loop, with outputs or without: TensorFlow optimises each
        copy of a step in its own way, and its roundings would depend on `count`.
        """
        bad, total = tf.constant(-1), tf.constant(0.0)
        penalty, learning_rate = tf.constant(0.0), tf.constant(0.0)
        # Of a size that the graph does not know, as the size of a batch.
        empty = [tf.minimum(count, 0), self.model.num_classes]
        replicas = range(self.part.count)
        logits = tuple(tf.zeros(empty) for _ in replicas)
        labels = tuple(tf.zeros(empty, self._label_type) for _ in replicas)
        for i in tf.range(count):
            # When the data fails, the steps before are whole, and this one has not
            # begun: none runs ahead, and none before its batch is there (below).
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            learning_rate = tf.convert_to_tensor(self.optimizer.learning_rate)
            results = self.strategy.run(self._replica_step, args=(next(iterator),))
            loss, finite, penalty, logits, labels = (
                self.strategy.experimental_local_results(r) for r in results
            )
            loss, finite = loss[0], finite[0]  # all replicas computed the same
            penalty = tf.reduce_mean(tf.stack(penalty))
            total += loss
            bad = tf.where((bad < 0) & ~finite, i, bad)
            with tf.control_dependencies([loss]):
                if self.averages:
                    self.averages.update(self.strategy)
                self._taken.assign_add(1)
        return {
            "loss": total,
            "bad": bad,
            "signal": self._any_signal(signal),
            "penalty": penalty,
            "learning_rate": learning_rate,
            "logits": logits,
            "labels": labels,
        }

    def _any_signal(self, signal):
        """The largest of the workers' signals, so that all of them stop at one step."""
        if worker_count(self.strategy) == 1:
            return signal

        def reduce(signal):
            # A sum is what every strategy can do; place by place no two are mixed up.
            mine = tf.one_hot(signal, signal_module.NSIG, dtype=tf.int32)
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        summed = self.strategy.run(reduce, args=(signal,))
        (counts, *_) = self.strategy.experimental_local_results(summed)
        numbers = tf.range(signal_module.NSIG)
        return tf.reduce_max(tf.where(counts > 0, numbers, 0))

    def _replica_step(self, batch):
        """One step of one replica; what it returns first is equal on all of them."""
        with tf.control_dependencies(list(batch.values())):
            return self._update(batch)

    def _update(self, batch):
        replicas = tf.distribute.get_replica_context()
        total = tf.distribute.ReduceOp.SUM
        # The mean is over the global batch, however its parts fall on the replicas.
        # It may be empty, where every record of it was left out.
        size = tf.cast(tf.shape(batch["labels"])[0], tf.float32)
        size = tf.maximum(replicas.all_reduce(total, size), 1.0)
        seen = self.teacher.teach(batch) if self.teacher else batch
        seen = as_trained_on(seen, self.model.features, self.settings, self._taken)
        gradients, loss, penalty, logits = self._compute(seen, size)
        gradients, loss = replicas.all_reduce(total, (gradients, loss))
        # Less than half of the time of `tf.norm`, which writes all squares down.
        norms = [tf.sqrt(2 * tf.nn.l2_loss(g)) for g in gradients]
        global_norm = tf.norm(tf.stack(norms))
        finite = tf.math.is_finite(loss)
        if not self._scales_loss:  # which meets infinite gradients by a smaller scale
            finite &= tf.math.is_finite(global_norm)
        gradients = self._clip(gradients, norms, global_norm)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        logits = evaluation.rated_logits(logits, batch)
        return loss, finite, penalty, logits, batch["labels"]

    @property
    def _scales_loss(self) -> bool:
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _gradients(self, batch, size):
        """This replica's gradients, in as many parts as the settings say.

        Args:
            batch: the replica's slice of the global batch.
            size: float32, number of examples in the global batch.

        Returns:
            The gradients, summed over the slice and divided by `size`, the loss alike,
            the penalty, and the logits.
        """
        parts = self.settings.gradient_accumulation_steps
        if parts == 1:
            return self._part_gradients(batch, size)
        rows = tf.shape(batch["labels"])[0]
        summed, collected = None, []
        for i in range(parts):
            first, end = rows * i // parts, rows * (i + 1) // parts
            part = {name: values[first:end] for name, values in batch.items()}
            if summed is not None:  # one after the other: that is what saves memory
                with tf.control_dependencies([summed[1]]):
                    part = tf.nest.map_structure(tf.identity, part)
            gradients, loss, penalty, logits = self._part_gradients(part, size)
            collected.append(logits)
            if summed is None:
                summed = gradients, loss
            else:
                summed = tf.nest.map_structure(tf.add, summed, (gradients, loss))
        return *summed, penalty, tf.concat(collected, axis=0)

    def _part_gradients(self, batch, size):
        settings, variables = self.settings, self.model.trainable_variables
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        drawing = drawing_for(context.replica_id_in_sync_group)
        gather = None
        if replicas > 1:
            gather = functools.partial(context.all_gather, axis=0)
        with tf.GradientTape() as tape, drawing:
            outputs = forward(self.model, batch, training=True)
            if settings.mined_negatives:
                batch = with_mined_negatives(
                    batch,
                    outputs["logits"],
                    settings.mined_negatives,
                    settings.mined_negative_weight,
                )
            loss = distillation.objective(self.loss, batch, outputs, settings, gather)
            loss = tf.reduce_sum(loss) / size
            # Every part of every replica adds the same penalties: each takes its share.
            penalty = settings.regularization_penalty * tf.add_n(
                [tf.cast(p, tf.float32) for p in self.model.losses]
                or [tf.constant(0.0)]
            )
            share = replicas * settings.gradient_accumulation_steps
            objective = self.optimizer.scale_loss(loss + penalty / share)
        gradients = tape.gradient(objective, [v.value for v in variables])
        gradients = [
            tf.zeros_like(v.value) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, variables, strict=True)
        ]
        return gradients, loss, penalty, outputs["logits"]

    def _clip(self, gradients, norms, global_norm):
        """Clips the reduced gradients: each by its own norm, then all by the global.

        A norm of zero leaves its (zero) gradient as it is.
        """
        each, whole = self.settings.clip_gradient_norm, self.settings.clip_global_norm
        # Gradients of a scaled loss are clipped at as many times the norm.
        scale = self.optimizer.loss_scale_factor or 1.0
        if self._scales_loss:
            scale = self.optimizer.dynamic_scale
        if each > 0:
            each = each * scale
            factors = [each / tf.maximum(n, each) for n in norms]
            gradients = [
                _shortened(g, f) for g, f in zip(gradients, factors, strict=True)
            ]
            clipped = [n * f for n, f in zip(norms, factors, strict=True)]
            global_norm = tf.norm(tf.stack(clipped))
        if whole > 0:
            whole = whole * scale
            factor = whole / tf.maximum(global_norm, whole)
            gradients = [_shortened(g, factor) for g in gradients]
        return gradients


def _shortened(gradient: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """The product, for which nothing is written where the factor is 1."""
    return tf.cond(factor < 1, lambda: gradient * factor, lambda: gradient)


class _Signals:
    """Notes SIGINT and SIGTERM instead of dying, until the second of them.

    Signals reach the main thread only; elsewhere (a notebook's worker, a test) the
    handlers stay as they are.
    """

    def __init__(self):
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal_module.SIGINT, signal_module.SIGTERM):
                self._before[number] = signal_module.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.received = number
        log.info("Signal %d: saving, then stopping. Again to stop at once.", number)
        for n, handler in self._before.items():
            signal_module.signal(n, handler)

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal_module.signal(number, handler)


def read_rows(path: str, step: int) -> list[dict[str, str]]:
    """The rows of `metrics.csv` up to `step`; none if there is no such file."""
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path) as f:
        return [row for row in csv.DictReader(f) if int(row["step"]) <= step]


class Journal:
    """Progress line, `metrics.csv` and TensorBoard events of a run.

    Of several workers the chief alone writes them.
    """

    FIELDS = (
        *("step", "examples", "split", "loss", "hit_at_1", "perr", "gap", "map"),
        *("penalty", "learning_rate", "examples_per_second"),
    )

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.progress = Progress(
            total=trainer.last_step, unit="steps", initial=trainer.step
        )
        self.path = os.path.join(trainer.directory, runs.METRICS_FILE)
        self.events = {}
        if trainer.chief:
            self.events = {
                split: EventWriter(os.path.join(trainer.directory, "events", split))
                for split in ("train", "validation")
            }
            self._drop_later_rows()
        self._start_interval()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.progress.close()
        for writer in self.events.values():
            # What could not be written was said when it was to be.
            with contextlib.suppress(OSError, tf.errors.OpError):
                writer.close()

    def _start_interval(self) -> None:
        self._steps, self._loss, self._began = 0, 0.0, time.monotonic()

    def rows_so_far(self) -> list[dict[str, str]]:
        """Those up to the checkpoint that is resumed."""
        step = self.trainer.step
        rows = read_rows(self.path, step)
        if self.trainer.validation_missing:  # or not noted in the checkpoint
            missing = (str(step), "validation")
            rows = [r for r in rows if (r["step"], r["split"]) != missing]
        return rows

    def _drop_later_rows(self) -> None:
        """Leaves out what a killed run wrote past the checkpoint that is resumed."""
        rows = self.rows_so_far()
        lines = [",".join(self.FIELDS)]
        lines += [",".join(r.get(name) or "" for name in self.FIELDS) for r in rows]
        whole_files.write_file(self.path, "\n".join(lines) + "\n")

    def advance(self, outcome: Outcome, steps: int) -> None:
        """Notes that `steps` steps were taken at the mean loss of `outcome`."""
        self._steps += steps
        self._loss += steps * outcome.loss
        self.progress.update(steps, loss=f"{outcome.loss:.4g}")

    def record_batch(self, outcome: Outcome) -> None:
        """Writes the mean loss since the last record and this batch's metrics."""
        examples = self._steps * self.trainer.settings.batch_size
        values = {
            "loss": self._loss / self._steps,
            # Every record of the batch may have been left out.
            **(
                batch_metrics(outcome.logits, outcome.labels)
                if len(outcome.labels)
                else {}
            ),
            "penalty": outcome.penalty,
            "learning_rate": outcome.learning_rate,
            "examples_per_second": examples / (time.monotonic() - self._began),
        }
        self._write("train", outcome.step, values)
        shown = {"loss": f"{values['loss']:.4g}"}
        for label, name in (("Hit@1", "hit_at_1"), ("PERR", "perr"), ("GAP", "gap")):
            if name in values:
                shown[label] = f"{values[name]:.3f}"
        shown["examples/s"] = f"{values['examples_per_second']:.0f}"
        self.progress.update(0, **shown)
        self._start_interval()

    def record_validation(self, step: int, validation: dict[str, Any]) -> None:
        self._write("validation", step, validation)
        log.info("Step %d, validation: %s", step, evaluation.summary_line(validation))
        self._start_interval()

    def _write(self, split: str, step: int, values: dict[str, Any]) -> None:
        if not self.trainer.chief:
            return
        try:
            self._append(split, step, values)
        except (OSError, tf.errors.OpError) as e:
            raise UserError(f"{self.path} cannot be written: {runs.reason(e)}") from e

    def _append(self, split: str, step: int, values: dict[str, Any]) -> None:
        row = {"step": step, "examples": self.trainer.examples(step), "split": split}
        row |= {k: f"{v:.6g}" for k, v in values.items() if k in self.FIELDS}
        with tf.io.gfile.GFile(self.path, "a") as f:
            f.write(",".join(str(row.get(name, "")) for name in self.FIELDS) + "\n")
        scalars = {n: values[n] for n in self.FIELDS if n in values}
        self.events[split].write(step, scalars)
