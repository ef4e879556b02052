"""Scores a model on a reader's videos: every one exactly once, in file order."""

import csv
import io
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import losses, runs, whole_files
from yt8m.config import TrainingConfig
from yt8m.data.pipeline import Reader
from yt8m.data.segments import write_class_ids
from yt8m.data.vocabulary import Vocabulary
from yt8m.distribution import EachReplica
from yt8m.errors import UserError
from yt8m.events import EventWriter
from yt8m.metrics.video_metrics import VideoMetrics
from yt8m.model import YT8MModel, forward
from yt8m.progress import Progress

log = logging.getLogger("yt8m")

_SCORED = ("labels", "label_weights")  # what a batch has beside the model's inputs


def evaluate(
    model: YT8MModel,
    reader: Reader,
    training: TrainingConfig,
    *,
    top_k: int = 20,
    exact_map_limit: int | None = None,
    progress: bool = False,
    per_class: bool = False,
    bucketed_map: bool = False,
    verticals: Mapping[int, Sequence[str]] | None = None,
    strategy: tf.distribute.Strategy | None = None,
    scorer: EachReplica | None = None,
) -> dict[str, Any]:
    """Scores `model` on the videos of `reader`, or on its rated segments.

    Of a segment only the classes that it was rated for count. No bit of the result
    depends on the number of replicas. Several workers must all call it: each computes
    its part, and all get the metrics.

    Args:
        model: a built model.
        reader: in file order (`seed=None`).
        training: names the loss.
        top_k: predictions of a video that enter GAP and the starter code's mAP.
        exact_map_limit: videos up to which mAP is exact; None: the metric's default.
        progress: whether to show a progress line.
        per_class: whether to add `per_class`, the table of
            `VideoMetrics.per_class`.
        bucketed_map: whether to add `map_bucketed`, the mAP of the YouTube-8M paper.
        verticals: the verticals of each class; adds `per_vertical`, the table of
            `VideoMetrics.per_vertical`.
        strategy: under whose scope the model was built; None for the default device.
        scorer: of `create_scorer`, for a model that is scored more than once: it is
            traced the first time alone.

    Returns:
        `num_examples`, `unit` (`videos` or `segments`), `loss`, `hit_at_1`,
        `hit_at_5`, `perr`, `gap`, `map`, `map_method`, `map_at_{top_k}`,
        `examples_per_second`; for segments also `rated_classes`, the classes that any
        was rated for, int [K] ascending.

    Raises:
        UserError: bad data, no video, or none with labels.
    """
    scorer = scorer or create_scorer(model, reader, training, strategy)
    names = [*model.input_names, *_SCORED]
    limit = {} if exact_map_limit is None else {"exact_map_limit": exact_map_limit}
    metrics = VideoMetrics(
        model.num_classes,
        top_k=top_k,
        hits_at=(1, 5),
        with_bucketed_map=bucketed_map,
        **limit,
    )
    unit = "segments" if reader.config.segments else "videos"
    bar = Progress(total=reader.num_examples, unit=unit) if progress else None
    rated = np.zeros(model.num_classes, bool)
    began = time.monotonic()

    def add(batch, logits, loss_values) -> None:
        # Tensors do not change: nothing need be copied.
        metrics.add(
            *(x.numpy() for x in (logits, batch["labels"], loss_values)), copy=False
        )

    batches = (
        (batch, {name: batch[name] for name in names if name in batch})
        for batch, _ in reader.batches()
    )
    # Metrics of one batch are computed while the device scores the next.
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for batch, outputs in scorer.map(batches):
            if "label_weights" in batch:
                rated |= batch["label_weights"].numpy().any(axis=0)
            if pending:
                pending.result()
            pending = pool.submit(add, batch, *outputs)
            if bar:
                bar.update(len(batch["labels"]))
        if pending:
            pending.result()
    if bar:
        bar.close()
    result, table = metrics.result(), metrics.per_class()
    if not table["positives"].any():
        raise UserError(
            f"None of the {result['num_examples']} {unit} has a label, so there is "
            "nothing to score; the dataset's test split has none."
        )
    seconds = time.monotonic() - began
    result["examples_per_second"] = result["num_examples"] / max(seconds, 1e-9)
    result["unit"] = unit
    if reader.config.segments:
        result["rated_classes"] = np.flatnonzero(rated)
    if per_class:
        result["per_class"] = table
    if verticals is not None:
        result["per_vertical"] = metrics.per_vertical(verticals)
    return result


def create_scorer(
    model: YT8MModel,
    reader: Reader,
    training: TrainingConfig,
    strategy: tf.distribute.Strategy | None = None,
) -> EachReplica:
    """What `evaluate` computes on the device, of batches of the reader's size."""
    return EachReplica(score_function(model, training), strategy, reader.batch_size)


def score_function(
    model: YT8MModel, training: TrainingConfig
) -> Callable[[dict[str, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]]:
    """The function, not compiled, that scores a batch with its labels.

    Args:
        model: with weights.
        training: names the loss and its arguments.

    Returns:
        A function of what the model reads, `labels` and, of segments, `label_weights`
        that gives `rated_logits` [B, C] and the losses [B].

    Raises:
        UserError: the loss cannot be made; a file that it reads is not there, say.
    """
    try:
        loss = losses.create(training.label_loss, **training.label_loss_args)
    except UserError as e:
        raise UserError(
            f"{e} Evaluation reports the run's loss, {training.label_loss}: put the "
            "file there, or name another in `label_loss_args` of its config.json."
        ) from e

    def score(batch):
        outputs = forward(model, batch)
        weights = batch.get("label_weights")
        return rated_logits(outputs["logits"], batch), loss(
            batch["labels"], outputs, weights
        )

    return score


def rated_logits(logits: tf.Tensor, batch: dict[str, tf.Tensor]) -> tf.Tensor:
    """Logits [B, C] in which the cells that were not rated rank below all others."""
    weights = batch.get("label_weights")
    return logits if weights is None else tf.where(weights > 0, logits, -np.inf)


def summary_line(metrics: dict[str, Any]) -> str:
    """The metrics in one line for a person."""
    return (
        f"{metrics['num_examples']} {metrics['unit']} | GAP {metrics['gap']:.4f} | "
        f"Hit@1 {metrics['hit_at_1']:.4f} | PERR {metrics['perr']:.4f} | "
        f"mAP {metrics['map']:.4f} ({metrics['map_method']}) | "
        f"loss {metrics['loss']:.4f}"
    )


def report_folder(directory: str, segments: bool) -> str:
    """The folder of a run in which the reports of `write_report` lie, made if need be.

    Raises:
        UserError: it cannot be written to.
    """
    folder = os.path.join(directory, "eval-segments" if segments else "eval")
    whole_files.make_directory(folder)
    return folder


def write_report(
    directory: str,
    step: int,
    metrics: dict[str, Any],
    vocabulary: Vocabulary | None = None,
) -> str:
    """Writes metrics of a checkpoint beside the run.

    `eval/step-N.json` holds the figures, `eval/step-N-classes.csv` each class's
    average precision and positives, `eval/events` the same for TensorBoard. Those of
    segments are in the folder `eval-segments`, and the classes they were rated for in
    `segment_label_ids.csv`, for inference.

    Args:
        directory: the run directory.
        step: of the checkpoint.
        metrics: of `evaluate`.
        vocabulary: names the classes in the table.

    Returns:
        The path of the JSON file.
    """
    metrics = dict(metrics)
    rated = metrics.pop("rated_classes", None)
    if rated is not None:
        write_rated_classes(directory, rated)
    folder = report_folder(directory, segments=rated is not None)
    table = metrics.pop("per_class", None)
    if table:
        path = os.path.join(folder, f"step-{step:08d}-classes.csv")
        whole_files.write_file(path, _classes_csv(table, vocabulary))
    with EventWriter(os.path.join(folder, "events")) as events:
        events.write(step, {k: v for k, v in metrics.items() if isinstance(v, float)})
    path = os.path.join(folder, f"step-{step:08d}.json")
    whole_files.write_file(path, json.dumps({"step": step, **metrics}, indent=2) + "\n")
    return path


def write_rated_classes(directory: str, classes: np.ndarray) -> None:
    """Notes in the run directory which classes segments are rated for."""
    write_class_ids(os.path.join(directory, runs.SEGMENT_CLASSES_FILE), classes)


def _classes_csv(table: dict[str, np.ndarray], vocabulary: Vocabulary | None) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    header = ["Index", "AveragePrecision", "Positives"]
    rows.writerow([*header, "Name"] if vocabulary else header)
    columns = zip(table["ap"], table["positives"], strict=True)
    for i, (ap, positives) in enumerate(columns):
        # A class without positives has no average precision.
        row = [i, f"{ap:.6f}" if positives else "", positives]
        rows.writerow([*row, vocabulary.name(i)] if vocabulary else row)
    return text.getvalue()
