"""Hit@k, PERR, GAP, mAP, MAP@K: of NumPy arrays, and over a whole evaluation.

This package can be used alone: `VideoMetrics` adds up batches in bounded memory, the
functions take whole arrays.

Letters: N or B videos, C classes; `labels` are positive where > 0. Scores may be
logits or probabilities, except where `probabilities` are asked for.
"""

from yt8m.metrics.bucketed import bucketed_average_precisions
from yt8m.metrics.by_class import (
    bucketed_mean_average_precision,
    class_average_precisions,
    mean_average_precision,
    mean_average_precision_at_k,
    mean_of_classes,
)
from yt8m.metrics.ranking import (
    average_precision,
    average_precision_at_k,
    batch_metrics,
    gap,
    hit_at_k,
    hit_at_one,
    perr,
)
from yt8m.metrics.video_metrics import VideoMetrics

__all__ = [
    "VideoMetrics",
    "average_precision",
    "average_precision_at_k",
    "batch_metrics",
    "bucketed_average_precisions",
    "bucketed_mean_average_precision",
    "class_average_precisions",
    "gap",
    "hit_at_k",
    "hit_at_one",
    "mean_average_precision",
    "mean_average_precision_at_k",
    "mean_of_classes",
    "perr",
]
