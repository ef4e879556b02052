"""Calibrates predictions: says of each class how often it is right when it is named.

    yt8m calibrate --source=train.predictions --labels='train*.tfrecord' \\
        --output_file=calibrated.predictions

A slope and a shift of each class's logits are fitted to labels that the model was not
trained on: those of out-of-fold predictions, or of others of the same model.

    yt8m calibrate --source=test.csv --held_out_source=validate.predictions \\
        --labels='validate*.tfrecord' --output_file=submission.csv

The order of videos within a class stays, that of classes within a video does not: what
a model knows of a class, it says as surely as it is right. GAP gains where classes were
sure to different degrees, and so do students of soft labels.
"""

from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared

_VIDEOS = 512  # at once


def define(flags: shared.FlagValues) -> None:
    string = absl_flags.DEFINE_string
    string(
        "source",
        "",
        "The predictions to calibrate: a folder of predictions, or a submission.",
        flag_values=flags,
    )
    string(
        "held_out_source",
        "",
        "The same model's predictions of the videos of --labels (default: --source, "
        "which must then be out of fold).",
        flag_values=flags,
    )
    string(
        "labels",
        "",
        "The labels to fit: globs of shards, or of tables, as `yt8m score` takes them.",
        flag_values=flags,
    )
    string(
        "output_file",
        "",
        "A folder of predictions if it ends in .predictions, else a submission, "
        "gzipped if it ends in .gz.",
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "strength",
        1.0,
        "How much the slope and shift of a class are drawn to those of all classes.",
        1e-6,
        flag_values=flags,
    )
    shared.top_k(
        flags,
        "Predictions written for each video (in a folder of predictions as many as the "
        "source has, unless given), and those that GAP looks at.",
    )
    absl_flags.DEFINE_integer(
        "num_classes", schema.NUM_CLASSES, "Number of classes.", 1, flag_values=flags
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m.data.predictions import ENDING
    from yt8m.ensemble.calibration import fit_calibration
    from yt8m.ensemble.output import write_combined
    from yt8m.ensemble.sources import open_sources
    from yt8m.inference.scoring import read_ground_truth
    from yt8m.metrics import VideoMetrics
    from yt8m.progress import Progress

    shared.require(flags, "source", "Nothing to calibrate")
    shared.require(flags, "labels", "Nothing to fit")
    shared.require(flags, "output_file", "No file to write")
    held_out = flags.held_out_source or flags.source
    shared.prepare_output(flags, "output_file", [flags.source, held_out])
    (source,) = open_sources([flags.source], flags.num_classes)
    fitted = source
    if held_out != flags.source:
        (fitted,) = open_sources([held_out], flags.num_classes)
    truth = read_ground_truth(flags.labels, flags.num_classes)

    calibration = fit_calibration(
        _with_labels(fitted, truth), flags.num_classes, flags.strength
    )
    before, after = (
        VideoMetrics(flags.num_classes, top_k=flags.top_k, with_map=False)
        for _ in range(2)
    )
    for probabilities, labels in _with_labels(fitted, truth):
        before.add(probabilities, labels)
        after.add(calibration(probabilities), labels)
    gaps = [metrics.result()["gap"] for metrics in (before, after)]
    print(
        f"GAP {gaps[0]:.5f} before and {gaps[1]:.5f} after, of the {len(fitted):,} "
        "videos that it was fitted to"
    )

    kept = flags.top_k
    if flags.output_file.endswith(ENDING) and not shared.given(flags, "top_k"):
        kept = getattr(source, "classes_per_video", flags.top_k) or flags.num_classes
    with Progress(total=len(source)) as progress:
        count = write_combined(
            ((ids, calibration(p)) for ids, p in _blocks(source)),
            flags.output_file,
            flags.num_classes,
            kept,
            written_by=f"calibration of {flags.source}",
            progress=progress,
        )
    print(f"{count:,} videos: {flags.output_file}")
    return 0


def _blocks(source: Any) -> Iterator[tuple[list[bytes], Any]]:
    """Ids and probabilities [n, C] of all videos, some at once."""
    import numpy as np

    for start in range(0, len(source), _VIDEOS):
        rows = np.arange(start, min(start + _VIDEOS, len(source)))
        yield source.ids(start, start + len(rows)), source.probabilities(rows)


def _with_labels(source: Any, truth: Any) -> Iterator[tuple[Any, Any]]:
    """Probabilities [n, C] of all videos and their labels."""
    from yt8m.ensemble.candidates import labels_of

    for ids, probabilities in _blocks(source):
        yield probabilities, labels_of(source.path, ids, truth)
