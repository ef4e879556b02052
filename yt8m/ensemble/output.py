"""What an ensemble says, as a submission or as stored predictions."""

from collections.abc import Iterable

import numpy as np

from yt8m.data.predictions import ENDING, PredictionsWriter
from yt8m.inference.submission import SubmissionWriter
from yt8m.metrics.best_classes import best_classes
from yt8m.progress import Progress


def write_combined(
    blocks: Iterable[tuple[list[bytes], np.ndarray]],
    path: str,
    num_classes: int,
    top_k: int,
    written_by: str = "",
    progress: Progress | None = None,
) -> int:
    """Writes blocks of ids and probabilities [n, C].

    Args:
        blocks: lazy.
        path: a folder of predictions if it ends in `.predictions`, else a CSV file.
        num_classes: C.
        top_k: best classes of a video that are written.
        written_by: what stored predictions say of their origin.
        progress: is told of the videos.

    Returns:
        The number of videos.

    Raises:
        UserError: it cannot be written.
    """
    top_k = min(top_k, num_classes)
    if path.endswith(ENDING):
        writer = PredictionsWriter(path, num_classes, top_k, written_by)
    else:
        writer = SubmissionWriter(path)
    with writer:
        for ids, probabilities in blocks:
            if isinstance(writer, PredictionsWriter):
                writer.write(ids, probabilities)
            else:
                writer.write(ids, *best_classes(probabilities, top_k))
            if progress:
                progress.update(len(ids))
    return writer.count
