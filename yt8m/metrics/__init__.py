"""Hit@1, PERR, GAP and mAP: of one batch, and exactly over a whole evaluation."""

from yt8m.metrics.ranking import (
    average_precision,
    batch_metrics,
    gap,
    hit_at_one,
    perr,
)
from yt8m.metrics.video_metrics import VideoMetrics

__all__ = [
    "VideoMetrics",
    "average_precision",
    "batch_metrics",
    "gap",
    "hit_at_one",
    "perr",
]
