"""Several trained models as one, and its export as one SavedModel.

mean        logit of sum_i w_i sigmoid(x_i), by
            logsumexp_i(log w_i + log sigmoid(x_i))
            - logsumexp_i(log w_i + log sigmoid(-x_i)), so that no probability
            rounds to 0 or 1
geometric   sum_i w_i x_i
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from yt8m import export, runs
from yt8m.errors import UserError
from yt8m.layers.averaging import mean_probability_logits
from yt8m.model import YT8MModel, forward
from yt8m.runs import Run

METHODS = ("mean", "geometric")


class EnsembleModel:
    """Called like a model; gives `logits` alone.

    Args:
        members: built models that read the same features.
        weights: [M], which sum to 1.
        method: one of `METHODS`.
    """

    def __init__(
        self, members: Sequence[YT8MModel], weights: np.ndarray, method: str = "mean"
    ):
        # A member of weight 0 adds nothing but bytes.
        self.members = [m for m, w in zip(members, weights, strict=True) if w]
        self.weights = np.array([w for w in weights if w], np.float32)
        self.method = method
        self.level = members[0].level
        self.num_classes = members[0].num_classes
        self.input_names = members[0].input_names

    @property
    def variables(self) -> list[Any]:
        return [v for member in self.members for v in member.variables]

    def __call__(self, inputs: dict[str, Any], training: bool = False):
        logits = [forward(m, inputs, training)["logits"] for m in self.members]
        if self.method == "mean":
            return {"logits": mean_probability_logits(logits, self.weights)}
        stacked = keras.ops.stack(logits, axis=-1)
        return {"logits": keras.ops.sum(stacked * self.weights, axis=-1)}


def export_ensemble(
    members: Sequence[Run],
    output_dir: str,
    weights: np.ndarray | None = None,
    method: str = "mean",
    top_k: int = 20,
) -> None:
    """Writes the ensemble of several runs as `yt8m.export` writes a run.

    There is no `model.keras`. `export.json` names the members, and has the
    configuration of the first of them where that of the run is.

    Args:
        members: restored runs that read the same.
        output_dir: as for `export.export`.
        weights: [M], which sum to 1; None weighs all alike.
        method: one of `METHODS`.
        top_k: as for `export.export`.

    Raises:
        UserError: the runs read different features, frames or classes, or the export
            cannot be written.
    """
    refuse_different_data(members)
    if weights is None:
        weights = np.full(len(members), 1 / len(members))
    first = members[0]
    model = EnsembleModel([run.model for run in members], weights, method)
    module, signatures = export.serving_module(model, first.config.data, top_k)
    ensemble = {
        "method": method,
        "members": [
            {
                "run": run.checkpoint.path,
                "weight": float(weight),
                "config": dataclasses.asdict(run.config),
            }
            for run, weight in zip(members, weights, strict=True)
        ],
    }

    def write(directory: str) -> None:
        tf.saved_model.save(module, directory, signatures)
        classes = os.path.join(first.directory, runs.SEGMENT_CLASSES_FILE)
        if tf.io.gfile.exists(classes):
            copy = os.path.join(directory, runs.SEGMENT_CLASSES_FILE)
            tf.io.gfile.copy(classes, copy)
        record = os.path.join(directory, runs.EXPORT_FILE)
        export.write_record(first, signatures, record, ensemble=ensemble)

    export.write_directory(output_dir, runs.EXPORT_FILE, write)


def refuse_different_data(members: Sequence[Run]) -> None:
    """Raises `UserError` if two runs do not read the same of a record."""
    first = members[0]
    for run in members[1:]:
        for field in dataclasses.fields(first.config.data):
            own = getattr(first.config.data, field.name)
            other = getattr(run.config.data, field.name)
            # In order: a dictionary's equality says nothing of that.
            if str(own) != str(other) and field.name != "segments":
                raise UserError(
                    f"{first.directory} and {run.directory} cannot be one graph: the "
                    f"one has {field.name} {own}, the other {other}; combine their "
                    "predictions by `yt8m ensemble` instead."
                )
