"""Scores a model on a reader's videos: every one exactly once, in file order."""

import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from yt8m import losses, runs
from yt8m.config import TrainingConfig
from yt8m.data.pipeline import Reader
from yt8m.errors import UserError
from yt8m.events import EventWriter
from yt8m.metrics.video_metrics import VideoMetrics
from yt8m.model import YT8MModel, forward
from yt8m.progress import Progress

log = logging.getLogger("yt8m")


def evaluate(
    model: YT8MModel,
    reader: Reader,
    training: TrainingConfig,
    *,
    top_k: int = 20,
    exact_map_limit: int | None = None,
    progress: bool = False,
    per_class: bool = False,
) -> dict[str, Any]:
    """Scores `model` on the videos of `reader`.

    Args:
        model: a built model.
        reader: in file order (`seed=None`).
        training: names the loss.
        top_k: predictions of a video that enter GAP and the starter code's mAP.
        exact_map_limit: videos up to which mAP is exact; None: the metric's default.
        progress: whether to show a progress line.
        per_class: whether to add `per_class`, the table of
            `VideoMetrics.per_class`.

    Returns:
        `num_examples`, `loss`, `hit_at_1`, `perr`, `gap`, `map`, `map_method`,
        `map_at_{top_k}`, `examples_per_second`.

    Raises:
        UserError: bad data, no video, or none with labels.
    """
    loss = losses.create(training.label_loss)

    @tf.function(reduce_retracing=True)
    def score(batch):
        outputs = forward(model, batch)
        weights = batch.get("label_weights")
        return outputs["logits"], loss(batch["labels"], outputs, weights)

    limit = {} if exact_map_limit is None else {"exact_map_limit": exact_map_limit}
    metrics = VideoMetrics(model.num_classes, top_k=top_k, **limit)
    bar = Progress(total=reader.num_examples, unit="videos") if progress else None
    began = time.monotonic()
    # Metrics of one batch are computed while the device scores the next.
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for batch, _ in reader.batches():
            logits, loss_values = score(batch)
            arrays = (logits.numpy(), batch["labels"].numpy(), loss_values.numpy())
            if pending:
                pending.result()
            pending = pool.submit(metrics.add, *arrays)
            if bar:
                bar.update(len(arrays[0]))
        if pending:
            pending.result()
    if bar:
        bar.close()
    result, table = metrics.result(), metrics.per_class()
    if not table["positives"].any():
        raise UserError(
            f"None of the {result['num_examples']} videos has a label, so there is "
            "nothing to score; the dataset's test split has none."
        )
    seconds = time.monotonic() - began
    result["examples_per_second"] = result["num_examples"] / max(seconds, 1e-9)
    if per_class:
        result["per_class"] = table
    return result


def summary_line(metrics: dict[str, Any]) -> str:
    """The metrics in one line for a person."""
    return (
        f"{metrics['num_examples']} videos | GAP {metrics['gap']:.4f} | "
        f"Hit@1 {metrics['hit_at_1']:.4f} | PERR {metrics['perr']:.4f} | "
        f"mAP {metrics['map']:.4f} ({metrics['map_method']}) | "
        f"loss {metrics['loss']:.4f}"
    )


def write_report(directory: str, step: int, metrics: dict[str, Any]) -> str:
    """Writes metrics of a checkpoint beside the run.

    `eval/step-N.json` holds the figures, `eval/step-N-classes.csv` each class's
    average precision and positives, `eval/events` the same for TensorBoard.

    Returns:
        The path of the JSON file.
    """
    folder = os.path.join(directory, "eval")
    runs.make_directory(folder)
    metrics = dict(metrics)
    table = metrics.pop("per_class", None)
    if table:
        rows = ["Index,AveragePrecision,Positives"]
        columns = zip(table["ap"], table["positives"], strict=True)
        for i, (ap, positives) in enumerate(columns):
            # A class without positives has no average precision.
            rows.append(f"{i},{f'{ap:.6f}' if positives else ''},{positives}")
        runs.write_file(
            os.path.join(folder, f"step-{step:08d}-classes.csv"), "\n".join(rows) + "\n"
        )
    with EventWriter(os.path.join(folder, "events")) as events:
        events.write(step, {k: v for k, v in metrics.items() if isinstance(v, float)})
    path = os.path.join(folder, f"step-{step:08d}.json")
    runs.write_file(path, json.dumps({"step": step, **metrics}, indent=2) + "\n")
    return path
