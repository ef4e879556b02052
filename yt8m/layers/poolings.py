"""Poolings by name: layers from frames [B, T, D] and a mask [B, T] to [B, H].

    pooling = create_pooling("netvlad", clusters=64)
    pooled = pooling(frames, mask, training=training)

A model that takes a pooling by its name takes any of these.
"""

from typing import Any

import keras

from yt8m.layers.dbof import DBoF
from yt8m.layers.netvlad import NetVLAD
from yt8m.layers.recurrent import LSTM
from yt8m.registry import create_part

POOLINGS: dict[str, type] = {
    "dbof": DBoF,
    "lstm": LSTM,
    "netvlad": NetVLAD,
}


def create_pooling(pooling: str, **args: Any) -> keras.layers.Layer:
    """Builds the pooling of this name.

    Args:
        pooling: a key of `POOLINGS`.
        args: of its class.

    Raises:
        UserError: the name or an argument is unknown (near matches are listed).
    """
    return create_part("pooling", POOLINGS, pooling, args)
