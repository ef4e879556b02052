"""Poolings by name: layers from frames [B, T, D] and a mask [B, T] to [B, H].

    pooling = create_pooling("netvlad", clusters=64)
    pooled = pooling(frames, mask, training=training)

A model that takes a pooling by its name takes any of these.
"""

from typing import Any

import keras

from yt8m.layers.attention import AttentionPooling, StackedAttention
from yt8m.layers.convolution import ConvolutionPooling
from yt8m.layers.dbof import DBoF
from yt8m.layers.fisher_vector import NetFV
from yt8m.layers.frame_combinations import LinearCombinations
from yt8m.layers.frame_encoding import (
    AdaptiveNoise,
    IndirectClustering,
    PositionEncoding,
)
from yt8m.layers.netvlad import NetRVLAD, NetVLAD
from yt8m.layers.nextvlad import NeXtVLAD
from yt8m.layers.recurrent import GRU, LSTM
from yt8m.layers.recurrent_stack import (
    ContextMemoryLSTM,
    FastForwardPooling,
    LinearPooling,
    RecurrentPooling,
)
from yt8m.layers.simple_poolings import (
    AveragePooling,
    MaxPooling,
    SelfWeightedPooling,
    TopKPooling,
)
from yt8m.layers.soft_dbow import SoftDBoW
from yt8m.layers.statistics import FrameStatistics
from yt8m.layers.transformer import TransformerEncoder
from yt8m.layers.vlad_bow import VladBoW
from yt8m.registry import create_part

POOLINGS: dict[str, type] = {
    "adaptive_noise": AdaptiveNoise,
    "attention": AttentionPooling,
    "average": AveragePooling,
    "context_memory_lstm": ContextMemoryLSTM,
    "dbof": DBoF,
    "fast_forward": FastForwardPooling,
    "gru": GRU,
    "indirect_clustering": IndirectClustering,
    "linear": LinearPooling,
    "linear_combinations": LinearCombinations,
    "lstm": LSTM,
    "max": MaxPooling,
    "netfv": NetFV,
    "netrvlad": NetRVLAD,
    "netvlad": NetVLAD,
    "nextvlad": NeXtVLAD,
    "position_encoding": PositionEncoding,
    "recurrent": RecurrentPooling,
    "self_weighted": SelfWeightedPooling,
    "soft_dbow": SoftDBoW,
    "stacked_attention": StackedAttention,
    "statistics": FrameStatistics,
    "temporal_cnn": ConvolutionPooling,
    "top_k": TopKPooling,
    "transformer": TransformerEncoder,
    "vlad_bow": VladBoW,
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
