"""Classifiers of single frames, and what they say of a video together."""

from typing import Any

from keras import ops

from yt8m.layers.heads import Head


def classify_frames(
    head: Head, frames: Any, mask: Any, training: bool = False
) -> dict[str, Any]:
    """Classifies each frame, and averages the probabilities over the valid ones.

    p = mean_t sigmoid(x_t), whose logit is
    logsumexp_t(log sigmoid(x_t)) - logsumexp_t(log sigmoid(-x_t)): no probability is
    formed that could round to 0 or 1. A video without frames is scored as one zero
    frame. Batch statistics of the head, if it takes any, count padding as frames.

    Args:
        head: the classifier.
        frames: [B, T, H]; padding may hold any finite value.
        mask: bool [B, T].
        training: of the head.

    Returns:
        `logits` float32 [B, C], `frame_logits` [B, T + 1, C] of a zero frame and then
        the frames, their `frame_weights` [B, T + 1], 0 or 1, and the head's
        `auxiliary_logits`, if any, averaged like the logits.
    """
    batch, length, size = *ops.shape(frames)[:2], frames.shape[-1]
    # Zeros: whatever the padding holds, a head's batch statistics are the same.
    frames = ops.where(mask[..., None], frames, 0)
    frames = ops.pad(frames, [[0, 0], [1, 0], [0, 0]])
    empty = ops.logical_not(ops.any(mask, axis=1, keepdims=True))
    valid = ops.concatenate([empty, mask], axis=1)
    outputs = head(ops.reshape(frames, (-1, size)), training=training)

    def by_frame(logits):
        return ops.reshape(logits, (batch, length + 1, logits.shape[-1]))

    def average(logits):
        no = ops.where(valid[..., None], -ops.softplus(logits), -1e9)
        yes = ops.where(valid[..., None], no + logits, -1e9)
        return ops.logsumexp(yes, axis=1) - ops.logsumexp(no, axis=1)

    each = by_frame(outputs["logits"])
    found = {
        "logits": average(each),
        "frame_logits": each,
        "frame_weights": ops.cast(valid, "float32"),
    }
    if "auxiliary_logits" in outputs:
        found["auxiliary_logits"] = [
            average(by_frame(x)) for x in outputs["auxiliary_logits"]
        ]
    return found
