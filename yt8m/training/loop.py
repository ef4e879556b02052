"""The training loop: one run from its directory to its last checkpoint.

Read from top to bottom: `Trainer.train` is the loop, `StepFunctions` the arithmetic of
a step, `Journal` what is written down.
"""

import csv
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import evaluation, losses, runs
from yt8m.config import RunConfig
from yt8m.data.pipeline import Reader
from yt8m.errors import UserError
from yt8m.events import EventWriter
from yt8m.metrics.ranking import batch_metrics
from yt8m.model import YT8MModel, forward
from yt8m.progress import Progress
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

log = logging.getLogger("yt8m")

# Steps are run in calls of about this many seconds: long enough to hide the cost of a
# call, short enough to answer a signal.
_SECONDS_PER_CALL = 1.0


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
        self.settings = settings = config.training
        self.directory = directory
        self.reader = reader
        self.eval_reader = eval_reader
        self.checkpoints = runs.Checkpoints(directory, settings.keep_checkpoints)
        start = self.checkpoints.latest() if resume else None
        self.step = start.step if start else 0

        # The position in the data follows from the examples seen, not from the steps:
        # the batch size may have changed.
        examples = start.examples if start else 0
        self._ahead = examples // settings.batch_size - self.step
        self.last_step = self._find_last_step()

        with strategy.scope():
            self.model = runs.build_model(config.model, config.data, settings.precision)
            schedule = ExamplesSchedule(
                settings, self.examples(self.last_step), self.step, examples
            )
            self.optimizer = create_optimizer(settings, schedule)
            self.optimizer.build(self.model.trainable_variables)
        self._state = {"model": self.model, "optimizer": self.optimizer}
        self._saved, self._saved_at = -1, time.monotonic()
        self._validated = -1
        if start:
            self.checkpoints.restore(start, self._state)
            self._saved = self.step
            log.info("Resuming from step %d, %s.", self.step, start.path)
        self.steps = StepFunctions(config, self.model, self.optimizer, strategy)

    def batch(self, step: int) -> int:
        """The index, in the data, of the batch that follows step `step`."""
        return step + self._ahead

    def examples(self, step: int) -> int:
        """The number of examples seen after step `step`."""
        return self.batch(step) * self.settings.batch_size

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
        settings, first, validation = self.settings, self.step, None
        iterator = self.steps.iterate(self.reader, self.batch(self.step))
        with _Signals() as signals, Journal(self) as journal:
            count = 1
            while self.step < self.last_step and not signals.received:
                ahead = min(
                    _until_next(self.step, settings.log_steps),
                    _until_next(self.step, settings.eval_steps),
                    _until_next(self.step, settings.save_checkpoint_steps),
                    self.last_step - self.step,
                )
                began, before = time.monotonic(), self.step
                try:
                    outcome = self.steps.run(iterator, min(count, ahead))
                except tf.errors.OutOfRangeError:  # whole batches were left out
                    self.last_step = self.step = int(self.optimizer.iterations)
                    break
                except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as e:
                    self.step = int(self.optimizer.iterations)
                    # Raises what is wrong, unless the record is to be skipped.
                    self.reader.explain(e, self.batch(self.step))
                    iterator = self.steps.iterate(self.reader, self.batch(self.step))
                    continue
                self.step = outcome.step
                if outcome.bad_step is not None:
                    self._refuse_non_finite(outcome.bad_step)
                rate = (self.step - before) / (time.monotonic() - began)
                count = max(1, min(2 * count, int(rate * _SECONDS_PER_CALL)))

                done = self.step == self.last_step
                journal.advance(outcome, self.step - before)
                if done or self.step % settings.log_steps == 0:
                    journal.record_batch(outcome)
                if self._save_due() or done:
                    self._save()
                if self._validation_due():
                    validation = self._validate(journal)
            self._save()
            unseen = self.step not in (first, self._validated)
            if self.eval_reader and unseen and not signals.received:
                validation = self._validate(journal)
        if signals.received:
            log.info("Stopped at step %d; its checkpoint is saved.", self.step)
        return Result(self.step, validation, signals.received)

    def _save_due(self) -> bool:
        every, minutes = (
            self.settings.save_checkpoint_steps,
            self.settings.save_checkpoint_minutes,
        )
        late = minutes and time.monotonic() - self._saved_at >= 60 * minutes
        return bool(late or (every and self.step % every == 0))

    def _validation_due(self) -> bool:
        every = self.settings.eval_steps
        return bool(self.eval_reader and every and self.step % every == 0)

    def _save(self) -> None:
        if self.step != self._saved:
            self.checkpoints.save(
                self._state,
                self.step,
                self.examples(self.step),
                self.settings.batch_size,
            )
            self._saved, self._saved_at = self.step, time.monotonic()

    def _validate(self, journal: "Journal") -> dict[str, Any]:
        """Validates the checkpoint of this step, which is saved first: nothing is lost
        if validation fails."""
        self._save()
        validation = evaluation.evaluate(self.model, self.eval_reader, self.settings)
        rated = validation.pop("rated_classes", None)
        if rated is not None:
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
        runs.write_file(path, "\n".join(ids) + "\n")
        latest = self.checkpoints.latest()
        kept = f"the checkpoint of step {latest.step} is kept" if latest else ""
        raise UserError(
            f"The loss or a gradient is not finite at step {step + 1}, in the batch of "
            f"videos {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''} (all are in "
            f"{path}); {kept or 'there is no checkpoint yet'}. Lower "
            "--base_learning_rate, or look at these videos."
        )


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
        penalty: regularisation penalty of the last step.
        learning_rate: of the last step.
        logits, labels: of the last step's global batch, [B, C].
    """

    step: int
    loss: float
    bad_step: int | None
    penalty: float
    learning_rate: float
    logits: np.ndarray
    labels: np.ndarray


class StepFunctions:
    """The arithmetic of training: gradients, one all-reduce, clipping, the update."""

    def __init__(self, config: RunConfig, model: YT8MModel, optimizer, strategy):
        self.settings = config.training
        self.model = model
        self.optimizer = optimizer
        self.strategy = strategy
        self.loss = losses.create(self.settings.label_loss)
        self._run = tf.function(self._steps, reduce_retracing=True)

    def iterate(self, reader: Reader, start_batch: int):
        """An iterator over the device features of each global batch."""
        dataset = reader.dataset(start_batch).map(lambda batch, host: batch)
        self._label_type = dataset.element_spec["labels"].dtype
        return iter(self.strategy.experimental_distribute_dataset(dataset))

    def run(self, iterator, count: int) -> Outcome:
        """Takes `count` steps in one call."""
        out = self._run(iterator, tf.constant(count, tf.int32))
        step = int(self.optimizer.iterations.numpy())
        bad = int(out["bad"])
        return Outcome(
            step=step,
            loss=float(out["loss"]) / count,
            bad_step=step - count + bad if bad >= 0 else None,
            penalty=float(out["penalty"]),
            learning_rate=float(out["learning_rate"]),
            logits=np.concatenate([x.numpy() for x in out["logits"]]),
            labels=np.concatenate([x.numpy() for x in out["labels"]]),
        )

    def _steps(self, iterator, count):
        """Several steps, and what the last of them computed.

        All steps are of one loop, with outputs or without: TensorFlow optimises each
        copy of a step in its own way, and its roundings would depend on `count`.
        """
        bad, total = tf.constant(-1), tf.constant(0.0)
        penalty, learning_rate = tf.constant(0.0), tf.constant(0.0)
        # Of a size that the graph does not know, as the size of a batch.
        empty = [tf.minimum(count, 0), self.model.num_classes]
        replicas = range(len(self.strategy.extended.worker_devices))
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
            # All replicas computed the same of these.
            loss, finite, penalty = loss[0], finite[0], penalty[0]
            total += loss
            bad = tf.where((bad < 0) & ~finite, i, bad)
        return {
            "loss": total,
            "bad": bad,
            "penalty": penalty,
            "learning_rate": learning_rate,
            "logits": logits,
            "labels": labels,
        }

    def _replica_step(self, batch):
        """One step of one replica; what it returns first is equal on all of them."""
        with tf.control_dependencies(list(batch.values())):
            return self._update(batch)

    def _update(self, batch):
        model, settings = self.model, self.settings
        replicas = tf.distribute.get_replica_context()
        labels = batch["labels"]
        weights = batch.get("label_weights")
        # The mean is over the global batch, however its parts fall on the replicas.
        size = tf.cast(tf.shape(labels)[0], tf.float32)
        size = replicas.all_reduce(tf.distribute.ReduceOp.SUM, size)
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = forward(model, batch, training=True)
            loss = tf.reduce_sum(self.loss(labels, outputs, weights)) / size
            # Every replica adds the same penalties: each takes its part of them.
            penalty = settings.regularization_penalty * tf.add_n(
                [tf.cast(p, tf.float32) for p in model.losses] or [tf.constant(0.0)]
            )
            objective = loss + penalty / replicas.num_replicas_in_sync
        gradients = tape.gradient(objective, [v.value for v in variables])
        gradients = [
            tf.zeros_like(v.value) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, variables, strict=True)
        ]
        gradients, loss = replicas.all_reduce(
            tf.distribute.ReduceOp.SUM, (gradients, loss)
        )
        norms = [tf.norm(g) for g in gradients]
        global_norm = tf.norm(tf.stack(norms))
        finite = tf.math.is_finite(loss) & tf.math.is_finite(global_norm)
        gradients = self._clip(gradients, norms, global_norm)
        self.optimizer.apply(gradients, variables)
        logits = evaluation.rated_logits(outputs["logits"], batch)
        return loss, finite, penalty, logits, labels

    def _clip(self, gradients, norms, global_norm):
        """Clips the reduced gradients: each by its own norm, then all by the global.

        A norm of zero leaves its (zero) gradient as it is.
        """
        each, whole = self.settings.clip_gradient_norm, self.settings.clip_global_norm
        if each > 0:
            factors = [each / tf.maximum(n, each) for n in norms]
            gradients = [g * f for g, f in zip(gradients, factors, strict=True)]
            clipped = [n * f for n, f in zip(norms, factors, strict=True)]
            global_norm = tf.norm(tf.stack(clipped))
        if whole > 0:
            factor = whole / tf.maximum(global_norm, whole)
            gradients = [g * factor for g in gradients]
        return gradients


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
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.received = number
        log.info("Signal %d: saving, then stopping. Again to stop at once.", number)
        for n, handler in self._before.items():
            signal.signal(n, handler)

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Journal:
    """Progress line, `metrics.csv` and TensorBoard events of a run."""

    FIELDS = (
        *("step", "examples", "split", "loss", "hit_at_1", "perr", "gap", "map"),
        *("penalty", "learning_rate", "examples_per_second"),
    )

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.progress = Progress(
            total=trainer.last_step, unit="steps", initial=trainer.step
        )
        self.path = os.path.join(trainer.directory, "metrics.csv")
        self.events = {
            split: EventWriter(os.path.join(trainer.directory, "events", split))
            for split in ("train", "validation")
        }
        self._drop_rows_after(trainer.step)
        self._start_interval()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.progress.close()
        for writer in self.events.values():
            writer.close()

    def _start_interval(self) -> None:
        self._steps, self._loss, self._began = 0, 0.0, time.monotonic()

    def _drop_rows_after(self, step: int) -> None:
        """Leaves out what a killed run wrote past the checkpoint that is resumed."""
        rows = []
        if tf.io.gfile.exists(self.path):
            with tf.io.gfile.GFile(self.path) as f:
                rows = [r for r in csv.DictReader(f) if int(r["step"]) <= step]
        lines = [",".join(self.FIELDS)]
        lines += [",".join(r.get(name) or "" for name in self.FIELDS) for r in rows]
        runs.write_file(self.path, "\n".join(lines) + "\n")

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
            **batch_metrics(outcome.logits, outcome.labels),
            "penalty": outcome.penalty,
            "learning_rate": outcome.learning_rate,
            "examples_per_second": examples / (time.monotonic() - self._began),
        }
        self._write("train", outcome.step, values)
        shown = {"loss": f"{values['loss']:.4g}"}
        for label, name in (("Hit@1", "hit_at_1"), ("PERR", "perr"), ("GAP", "gap")):
            shown[label] = f"{values[name]:.3f}"
        shown["examples/s"] = f"{values['examples_per_second']:.0f}"
        self.progress.update(0, **shown)
        self._start_interval()

    def record_validation(self, step: int, validation: dict[str, Any]) -> None:
        self._write("validation", step, validation)
        log.info("Step %d, validation: %s", step, evaluation.summary_line(validation))
        self._start_interval()

    def _write(self, split: str, step: int, values: dict[str, Any]) -> None:
        row = {"step": step, "examples": self.trainer.examples(step), "split": split}
        row |= {k: f"{v:.6g}" for k, v in values.items() if k in self.FIELDS}
        with tf.io.gfile.GFile(self.path, "a") as f:
            f.write(",".join(str(row.get(name, "")) for name in self.FIELDS) + "\n")
        scalars = {n: values[n] for n in self.FIELDS if n in values}
        self.events[split].write(step, scalars)
