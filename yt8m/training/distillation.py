"""Distillation: a student learns what a teacher says of a video, beside its labels.

The teacher is a trained run, which sees the batches of the student (online), or its
predictions that were stored (offline, see `yt8m.data.soft_labels`). Classes are
independent here, so that the softmax of the source is a sigmoid: with the teacher's
logits z, the student's x, the temperature T, and the weight L of the soft labels q,

    q = sigmoid(z / T)
    loss = (1 - L) loss(labels, x) + L T^2 sum_c CE(q_c, sigmoid(x_c / T))

T^2 keeps the gradients of the second term as large at any T. Paper 002's students have
L = 1 and T = 1.

Reference:
    Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2; Ostyakov et al. 2018,
    arXiv:1809.04403, section 3 (soft labels from an ensemble).
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import ops

from yt8m import losses, runs
from yt8m.config import DataConfig, FrameSelection, RunConfig, TrainingConfig
from yt8m.data.frames import even_frames, first_frames
from yt8m.data.predictions import is_predictions
from yt8m.data.soft_labels import SoftLabels, dense_soft_labels
from yt8m.errors import UserError
from yt8m.model import forward

Batch = dict[str, Any]

SOFT_LABELS = "soft_labels"  # the key of a batch that a teacher has seen


# --- the loss ------------------------------------------------------------------------


def soften(probabilities: Any, temperature: float) -> Any:
    """Probabilities p as they are at a temperature T: sigmoid(log(p / (1 - p)) / T).

    0 and 1 stay what they are.

    Args:
        probabilities: float32 of any shape, in [0, 1].
        temperature: T.
    """
    if temperature == 1:
        return probabilities
    logits = ops.log(probabilities) - ops.log1p(-probabilities)
    return ops.sigmoid(logits / temperature)


class SoftCrossEntropy:
    """Cross-entropy with soft labels at a temperature: T^2 sum_c CE(q_c, x_c / T).

    Args:
        temperature: T, at which the soft labels q are.

    Reference: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature

    def __call__(self, labels, outputs, weights=None):
        logits = ops.cast(outputs["logits"], "float32") / self.temperature
        loss = losses.cross_entropy(labels, {"logits": logits}, weights)
        return self.temperature**2 * loss


def objective(
    loss: losses.Loss,
    batch: Batch,
    outputs: Batch,
    settings: TrainingConfig,
    gather: Callable[[Any], Any] | None = None,
) -> Any:
    """What training minimises: `losses.objective` with hard labels, soft ones, or both.

    The soft labels take the place of the others in all of it: for the logits of frames
    and the auxiliary ones too. The model's own penalty counts once.

    Args:
        loss: of the hard labels.
        batch: with `labels`, those of a teacher, if there is one, at the temperature,
            and, of segments, `label_weights`, which weigh both terms.
        outputs: of the model, in training.
        settings: the weights and the temperature.
        gather: as that of `losses.objective`.

    Returns:
        float32 [B].
    """

    def value(loss, labels):
        return losses.objective(
            loss,
            labels,
            outputs,
            batch.get("label_weights"),
            settings.deep_supervision_weight,
            gather,
        )

    share = settings.distillation_weight if SOFT_LABELS in batch else 0
    if share == 0:
        return value(loss, batch["labels"])
    soft = value(SoftCrossEntropy(settings.temperature), batch[SOFT_LABELS])
    if share == 1:
        return soft
    return (1 - share) * value(loss, batch["labels"]) + share * soft


# --- teachers ------------------------------------------------------------------------


def find_teacher(
    settings: TrainingConfig, data: DataConfig
) -> tuple[TrainingConfig, SoftLabels | None]:
    """Looks for the teacher that the settings name, before anything is built.

    Returns:
        The settings, in which the checkpoint of a run is named by its step, and the
        soft labels for the reader, if the teacher is predictions.

    Raises:
        UserError: there is none, or a setting cannot apply to it.
    """
    path = settings.teacher
    if runs.is_run(path):
        if settings.on_missing_soft_labels != "fail":
            raise UserError(
                "--on_missing_soft_labels is of stored predictions; the run "
                f"--teacher={path} sees every example: leave it out."
            )
        found = runs.Checkpoints(path).find(settings.teacher_checkpoint)
        changed = {**vars(settings), "teacher_checkpoint": str(found.step)}
        return TrainingConfig(**changed), None
    if not is_predictions(path):
        raise UserError(
            f"--teacher={path} is neither a run directory nor a folder of predictions "
            "(any more); give the place where the teacher is."
        )
    if settings.teacher_checkpoint != "latest":
        raise UserError(
            f"--teacher_checkpoint is of a run, and --teacher={path} is predictions: "
            "leave it out."
        )
    if data.segments:
        raise UserError(
            f"--teacher={path} has predictions of whole videos: give the run that made "
            "them, or leave out --segment_labels."
        )
    return settings, SoftLabels(path, data.num_classes, settings.on_missing_soft_labels)


class Teacher:
    """Gives a batch the soft labels at the temperature of the loss.

    Made under the scope of the strategy, after the student: what is random in making
    the student must not depend on the teacher. Nothing of it is trained or saved.

    Args:
        config: of the student.
        stored: whether the batches come with what the teacher said; else it is a run.

    Raises:
        UserError: the run is no longer there, or reads what the student does not.
    """

    def __init__(self, config: RunConfig, stored: bool):
        self._settings, self._num_classes = config.training, config.data.num_classes
        self._model, self._frames = None, None
        if not stored:
            path = self._settings.teacher
            taught_by = runs.read_config(path)
            _refuse_other_data(taught_by.data, config.data, path)
            _refuse_other_embeddings(taught_by, config, path)
            self._frames = _frames_of(taught_by.data, config.data, path)
            self._model = runs.load_run(path, self._settings.teacher_checkpoint).model
        self._predict = self._part_logits
        if self._settings.jit_compile:
            self._predict = tf.function(self._part_logits, jit_compile=True)

    @property
    def variables(self) -> list[Any]:
        """Those that are held in memory for it."""
        return self._model.variables if self._model else []

    def teach(self, batch: Batch) -> Batch:
        """`batch` with `soft_labels` float32 [B, C]; what they come from is left out.

        At the weight 0 there are none.
        """
        taught = {
            name: x
            for name, x in batch.items()
            if name not in (SOFT_LABELS, "has_soft_labels")
            and not name.startswith("soft_label_")
        }
        if not self._settings.distillation_weight:
            return taught
        temperature = self._settings.temperature
        if self._model:
            taught[SOFT_LABELS] = ops.sigmoid(self._logits(batch) / temperature)
        else:
            soft = dense_soft_labels(batch, self._num_classes)
            taught[SOFT_LABELS] = soften(soft, temperature)
        return taught

    def _logits(self, batch: Batch) -> tf.Tensor:
        """Those of the teacher [B, C], in as many parts as the student's gradients."""
        parts = self._settings.gradient_accumulation_steps
        rows, logits = tf.shape(batch["labels"])[0], []
        for i in range(parts):
            first, end = rows * i // parts, rows * (i + 1) // parts
            part = {name: batch[name][first:end] for name in self._model.input_names}
            with tf.control_dependencies(logits[-1:]):  # one after the other
                part = tf.nest.map_structure(tf.identity, part)
            logits.append(self._predict(part))
        return tf.concat(logits, axis=0)

    def _part_logits(self, batch: Batch) -> tf.Tensor:
        if self._frames:
            batch = self._with_own_frames(batch)
        return forward(self._model, batch)["logits"]

    def _with_own_frames(self, batch: Batch) -> Batch:
        """The frames that the teacher takes in evaluation, of those of a whole video.

        There are as many places as frames may be, whatever the batch, so that shapes
        are as static as they were.
        """
        selection, most = self._frames
        num_frames = tf.minimum(batch["num_frames"], most)
        skipped = tf.where(num_frames > selection.skip_first, selection.skip_first, 0)
        available = num_frames - skipped
        batch = dict(batch)
        for name in self._model.features:
            if selection.count:
                indices = even_frames(available, selection.count)
            else:
                indices = first_frames(available, tf.shape(batch[name])[1])
            indices = skipped[:, None] + indices
            batch[name] = tf.gather(batch[name], indices, batch_dims=1)
        if selection.count:
            available = tf.minimum(available, selection.count)
        batch["num_frames"] = available
        return batch


def _refuse_other_data(teacher: DataConfig, student: DataConfig, path: str) -> None:
    """Raises `UserError` if the teacher cannot read the batches of the student."""
    instead = "; or give its predictions for these videos instead"
    if teacher.level != student.level:
        raise UserError(
            f"--teacher={path} reads {teacher.level}-level records, this run "
            f"{student.level}-level ones: take a teacher of this level{instead}."
        )
    if teacher.num_classes != student.num_classes:
        raise UserError(
            f"--teacher={path} has {teacher.num_classes} classes, but --num_classes is "
            f"{student.num_classes}."
        )
    missing = [n for n, s in teacher.features.items() if student.features.get(n) != s]
    if missing:
        wanted = ", ".join(f"{n} ({teacher.features[n]})" for n in missing)
        raise UserError(
            f"--teacher={path} reads {wanted}, which this run does not: add it to "
            f"--feature_names{instead}."
        )
    for name in teacher.features if teacher.level == "frame" else ():
        kinds = [
            "floats" if name in data.float_features else "bytes"
            for data in (teacher, student)
        ]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"--teacher={path} was trained on {name} as {kinds[0]}, but the "
                f"training shards hold {kinds[1]}{instead}."
            )


def _refuse_other_embeddings(teacher: RunConfig, student: RunConfig, path: str) -> None:
    """Raises `UserError` if the teacher reads embeddings that the student does not."""
    wanted, size = (
        run.model.args.get("video_embedding_size") or 0 for run in (teacher, student)
    )
    if wanted not in (0, size):
        raise UserError(
            f"--teacher={path} reads embeddings of whole videos, of {wanted} numbers, "
            "which this run does not: take a teacher that sees segments alone."
        )


def _frames_of(
    teacher: DataConfig, student: DataConfig, path: str
) -> tuple[FrameSelection, int] | None:
    """Which frames the teacher takes of those that a batch holds; None for all.

    A student that draws frames as the teacher was trained with shows it those; one
    that reads whole videos, those that the teacher is evaluated on.

    Returns:
        The teacher's selection, and the frames of a video of which it takes them.

    Raises:
        UserError: the teacher reads frames that the student does not.
    """
    if student.level == "video":
        return None

    def drawn(frames):
        taken = frames.count, frames.count and frames.method, frames.scene_threshold
        return *taken, 0 if student.segments else frames.skip_first

    most = teacher.max_frames
    segments = teacher.segments and student.segments
    context = teacher.segment_context_frames, student.segment_context_frames
    same_cut = not segments or context[0] == context[1]
    alike = drawn(teacher.frames) == drawn(student.frames) and same_cut
    if alike and (most == student.max_frames or student.segments):
        return None
    whole = student.frames.count is None and student.frames.skip_first == 0
    # Where scenes end is found by the reader, which cuts segments too.
    scenes = teacher.frames.scene_threshold, student.frames.scene_threshold
    whole = whole and same_cut and scenes == (None, None)
    if whole and (most <= student.max_frames or student.segments):
        return teacher.frames.evaluated(), most
    raise UserError(
        f"--teacher={path} reads {_in_words(teacher)}, this run {_in_words(student)}: "
        "give the teacher's flags of frames and segments, or --frames=0 and its "
        "--max_frames, or its predictions for these videos instead."
    )


def _in_words(data: DataConfig) -> str:
    frames, most = data.frames, f"of the first {data.max_frames}"
    taken = f"{frames.count} ({frames.method})" if frames.count else "all"
    later = f" after {frames.skip_first}" if frames.skip_first else ""
    if frames.scene_threshold is not None:
        later += f" of different scenes (--scene_threshold={frames.scene_threshold})"
    if data.segments and data.segment_context_frames:
        later += f" with {data.segment_context_frames} around each segment"
    return f"{taken} {most} frames{later}"
