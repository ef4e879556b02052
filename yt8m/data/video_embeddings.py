"""Embeddings of whole videos on disk, joined to batches by the ids of the videos.

    NAME.embeddings/     as NAME.predictions, see `yt8m.data.predictions`, but for
        scores.npy       float32 [N, H], an embedding a row

A video is embedded once, whatever number of its segments are read: it is what a segment
stands in, for `ContextAwareModel`.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from yt8m.data.predictions import Predictions, PredictionsWriter
from yt8m.errors import UserError

FORMAT = "yt8m embeddings"
ENDING = ".embeddings"  # of the names of folders to write
FEATURE = "video_embedding"  # the key of a batch

Batch = dict[str, tf.Tensor]


class EmbeddingsWriter(PredictionsWriter):
    """Writes embeddings batch by batch; the folder appears when it is complete.

    Args:
        path: the folder.
        size: H.
        written_by: what wrote it, for people.
    """

    format = FORMAT
    score_type = np.float32

    def __init__(self, path: str, size: int, written_by: str = ""):
        super().__init__(path, size, written_by=written_by)

    def write(self, ids: Sequence[bytes], embeddings: np.ndarray) -> None:
        """Appends the embeddings float32 [n, H] of n videos."""
        self._check_shape(ids, embeddings, self.num_classes)
        self._append(ids, None, embeddings)


class Embeddings(Predictions):
    """Embeddings of N videos on disk. `num_classes` is their size H."""

    format = FORMAT
    score_type = np.float32
    written_with = "inference.py --output=embeddings --output_file=NAME.embeddings"

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, H] of rows [n]."""
        return np.asarray(self._scores[self._checked(rows)])


class VideoEmbeddings:
    """Joins stored embeddings to batches, as they are read.

    Args:
        paths: folders, separated by commas; a video is looked for in each in turn.

    Attributes:
        size: H.

    Raises:
        UserError: a folder holds no embeddings, or they differ in size.
        DataError: a folder is damaged.
    """

    def __init__(self, paths: str):
        self.paths = [path.strip() for path in paths.split(",") if path.strip()]
        if not self.paths:
            raise UserError("--video_embeddings names no folder.")
        self._parts = [Embeddings(path) for path in self.paths]
        self.size = self._parts[0].num_classes
        for part in self._parts:
            if part.num_classes != self.size:
                raise UserError(
                    f"{part.path} has embeddings of {part.num_classes} numbers, "
                    f"{self.paths[0]} of {self.size}: give those of one run."
                )

    def join(self, batch: Batch, host: Batch) -> Batch:
        """`batch` with `video_embedding` float32 [B, H] of the videos of `host`.

        Raises:
            tf.errors.InvalidArgumentError: a video is missing; see `fault`.
        """
        found = tf.numpy_function(self._look_up, [host["id"]], tf.float32)
        return batch | {FEATURE: tf.ensure_shape(found, [None, self.size])}

    def _look_up(self, ids: np.ndarray) -> np.ndarray:
        vectors = np.zeros((len(ids), self.size), np.float32)
        missing = np.ones(len(ids), bool)
        for part in self._parts:
            rows = part.rows(ids.tolist())
            here = missing & (rows >= 0)
            vectors[here] = part.vectors(rows[here])
            missing &= ~here
        if missing.any():
            raise ValueError("a video has no embedding")
        return vectors

    def fault(self, video_id: str) -> str | None:
        """Why `join` fails on a video of this id; None if it does not."""
        try:
            self._look_up(np.array([video_id.encode()], object))
        except ValueError:
            return (
                f"--video_embeddings={','.join(self.paths)} has no embedding of it; "
                "give a folder of these videos too"
            )
        return None
