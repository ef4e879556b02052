"""Soft labels: what a teacher's stored predictions say of the videos of a batch."""

import logging
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m.data.predictions import Predictions
from yt8m.errors import UserError

log = logging.getLogger("yt8m")

Batch = dict[str, tf.Tensor]


class SoftLabels:
    """Joins stored predictions to batches, by the ids of the videos, as they are read.

    What is joined is read from disk, nothing else. It stays as compact as it is
    stored: `dense_soft_labels` makes it [B, C] on the device.

    Args:
        path: folder of predictions, see `yt8m.data.predictions`.
        num_classes: classes C of the training.
        on_missing: what to do about a video that the teacher lacks: `"fail"`, or
            `"hard_labels"`, which puts its own labels in their place.

    Attributes:
        missing: examples so far that had none, in all that was read.

    Raises:
        UserError: no predictions are there, or they are of other classes.
    """

    def __init__(self, path: str, num_classes: int, on_missing: str = "fail"):
        self.path = path
        self.missing = 0
        self._fail = on_missing == "fail"
        self._predictions = Predictions(path)
        self._lock = threading.Lock()
        if self._predictions.num_classes != num_classes:
            raise UserError(
                f"--teacher={path} has predictions of {self._predictions.num_classes} "
                f"classes, but --num_classes is {num_classes}."
            )

    def join(self, batch: Batch, host: Batch) -> Batch:
        """`batch` with the soft labels of the videos that `host` names.

        Returns:
            What `batch` has, and `soft_labels` float32 [B, C]; or, of teachers of which
            the K best classes are kept, `soft_label_classes` int32 [B, K] and
            `soft_label_scores` float32 [B, K]. Unless a missing video fails,
            `has_soft_labels` bool [B] too.

        Raises:
            tf.errors.InvalidArgumentError: a video is missing; see `fault`.
        """
        kept = self._predictions.classes_per_video
        if kept is None:
            spec = {"soft_labels": (tf.float32, [self._predictions.num_classes])}
        else:
            spec = {
                "soft_label_classes": (tf.int32, [kept]),
                "soft_label_scores": (tf.float32, [kept]),
            }
        spec["has_soft_labels"] = (tf.bool, [])
        found = tf.numpy_function(
            self._look_up, [host["id"]], [dtype for dtype, _ in spec.values()]
        )
        joined = {
            name: tf.ensure_shape(values, [None, *shape])
            for values, (name, (_, shape)) in zip(found, spec.items(), strict=True)
        }
        if self._fail:
            del joined["has_soft_labels"]
        return batch | joined

    def _look_up(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = self._predictions.rows(ids.tolist())
        found = rows >= 0
        missing = len(rows) - int(found.sum())
        if missing:
            if self._fail:
                raise ValueError("a video has no soft labels")
            with self._lock:
                self.missing += missing
        if self._predictions.classes_per_video is None:
            scores = np.zeros((len(rows), self._predictions.num_classes), np.float32)
            scores[found] = self._predictions.probabilities(rows[found])
            return scores, found
        shape = (len(rows), self._predictions.classes_per_video)
        classes, scores = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        classes[found], scores[found] = self._predictions.sparse(rows[found])
        return classes, scores, found

    def report_missing(self) -> None:
        """Says how many examples had none, if any."""
        if self.missing:
            log.warning(
                "%d of the examples that were read have no soft labels in %s; their "
                "own labels stood for them.",
                self.missing,
                self.path,
            )

    def fault(self, video_id: str) -> str | None:
        """Why `join` fails on a video of this id; None if it does not."""
        if not self._fail or self._predictions.rows([video_id.encode()])[0] >= 0:
            return None
        return (
            f"--teacher={self.path} has no soft labels for it. "
            "--on_missing_soft_labels=hard_labels takes its own labels instead"
        )


def dense_soft_labels(batch: dict[str, Any], num_classes: int) -> Any:
    """The soft labels float32 [B, C] of a batch that `SoftLabels.join` has completed.

    Classes that are not kept have probability 0. A video without soft labels has its
    own labels for them.
    """
    if "soft_labels" in batch:
        soft = batch["soft_labels"]
    else:
        classes, scores = batch["soft_label_classes"], batch["soft_label_scores"]
        rows = tf.range(tf.shape(classes)[0])[:, None]
        cells = tf.stack([tf.broadcast_to(rows, tf.shape(classes)), classes], axis=-1)
        # A sum, as the classes of a missing video are all the same; its scores are 0.
        soft = tf.scatter_nd(cells, scores, [tf.shape(classes)[0], num_classes])
    if "has_soft_labels" in batch:
        labels = tf.cast(batch["labels"], tf.float32)
        soft = tf.where(batch["has_soft_labels"][:, None], soft, labels)
    return soft
