"""Negatives that nobody rated: classes of which a segment most likely shows nothing.

People rated a segment for few classes, nearly always ones that its video has, so that a
model of segments never learns what the classes of other videos are not. A class that is
neither rated in the segment nor a label of its video is most likely absent. Of these
the N that the model is surest of at the step, the hardest, count as negatives, at a
weight below that of a rating: the labels of a video are a machine's, and miss some.

Source: the 7th of the 3rd YouTube-8M Video Understanding Challenge, 2019 (ceshine),
whose negatives are "absent from video and segment labels", weight 0.5. To take the
hardest of them, by the model as it is, is our choice.
"""

from typing import Any

from keras import ops

VIDEO_LABELS = "video_labels"  # the key of a batch


def with_mined_negatives(
    batch: dict[str, Any], logits: Any, count: int, weight: float
) -> dict[str, Any]:
    """`batch` with weights for the hardest of the classes that are most likely absent.

    Args:
        batch: of segments, with `label_weights` and `video_labels` [B, C].
        logits: of the model at this step, [B, C]; no gradient goes through the choice.
        count: N, of each segment; fewer if there are no more.
        weight: of each of them; a rating has 1.

    Returns:
        The batch, whose `label_weights` are float32 [B, C]; `labels` are 0 there
        already.
    """
    rated = ops.cast(batch["label_weights"], "float32")
    free = ops.logical_and(ops.equal(rated, 0), ops.equal(batch[VIDEO_LABELS], 0))
    scores = ops.cast(ops.stop_gradient(logits), "float32")
    lowest = -3e38
    scores = ops.where(free, ops.maximum(scores, lowest / 2), lowest)
    _, hardest = ops.top_k(scores, min(count, logits.shape[-1]))
    chosen = ops.sum(ops.one_hot(hardest, logits.shape[-1], dtype="float32"), axis=1)
    weights = ops.where(free, weight * chosen, rated)
    return {**batch, "label_weights": weights}
