"""Streams: parts of the features that are pooled apart."""

from collections.abc import Sequence
from typing import Any

from keras import ops


def pool_streams(
    pools: Sequence[Any], first: int, frames: Any, mask: Any, training: bool = False
) -> Any:
    """Pools the first feature and all others apart, and joins the results.

    Args:
        pools: one or two layers from frames [B, T, D] and a mask to [B, H].
        first: size of the first feature, which is the first stream.
        frames: [B, T, D]; `D == first` if there is one pool alone.
        mask: bool [B, T].

    Returns:
        [B, H1 + H2], or [B, H1].
    """
    streams = [frames[..., :first], frames[..., first:]]
    return ops.concatenate(
        [
            pool(stream, mask, training=training)
            for pool, stream in zip(pools, streams, strict=False)
        ],
        axis=-1,
    )
