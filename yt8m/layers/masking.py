"""Masks of valid frames, and reductions that respect them."""

from typing import Any

from keras import ops


def length_mask(num_frames: Any, length: int) -> Any:
    """Which of `length` frames are valid: bool [B, T] from `num_frames` [B]."""
    positions = ops.arange(length, dtype="int32")
    return ops.less(positions[None, :], ops.cast(num_frames, "int32")[:, None])


def masked_mean(x: Any, mask: Any) -> Any:
    """Mean over the valid frames.

    Args:
        x: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, D]; zeros where no frame is valid.
    """
    # A product with the 0/1 mask sums without a copy of x.
    total = ops.matmul(ops.cast(mask, x.dtype)[:, None, :], x)[:, 0, :]
    count = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
    mean = ops.cast(total, "float32") / ops.maximum(count, 1.0)
    return ops.cast(mean, x.dtype)


def last_frame(x: Any, mask: Any) -> Any:
    """The last valid frame.

    Args:
        x: [B, T, D]; padding may hold anything.
        mask: bool [B, T], true up to the end of each video.

    Returns:
        [B, D]; zeros where no frame is valid.
    """
    last = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True) - 1
    chosen = ops.equal(ops.arange(ops.shape(x)[1], dtype="int32")[None, :], last)
    return ops.sum(ops.where(chosen[..., None], x, 0.0), axis=1)
