"""The models that read frames. Add yours here: see README.md."""

import keras
from keras import ops

from yt8m.config import FrameSelection
from yt8m.layers.dbof import DBoF
from yt8m.layers.gating import ContextGating
from yt8m.layers.masking import masked_mean
from yt8m.layers.netvlad import NetVLAD
from yt8m.layers.normalization import BatchNormalization
from yt8m.layers.recurrent import LSTM
from yt8m.model import PoolingModel
from yt8m.registry import register


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.1")
class FrameLevelLogisticModel(PoolingModel):
    """Logistic regression on the mean of the L2-normalised frames.

    [B, T, D] -> mean over valid frames [B, D] -> head -> logits [B, C].

    Args:
        head: name of the classifier, see `yt8m.layers.heads`.
        Others as `PoolingModel`.
    """

    def __init__(self, head: str = "logistic", **kwargs):
        super().__init__(head=head, **kwargs)

    def pool(self, frames, mask, training=False):
        return masked_mean(frames, mask)


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.2")
class DbofModel(PoolingModel):
    """Deep bag of frames: an up-projection of sampled frames, pooled, a hidden layer.

    [B, T, D] -> DBoF K -> dense H -> activation -> head -> logits [B, C].

    Args:
        clusters: K, the size of the up-projection.
        hidden_size: H.
        pooling: over the frames, `max` or `average`.
        activation: `sigmoid`, `relu` or `relu6`, of both layers.
        add_batch_norm: of the frames and of both layers, which otherwise have biases.
        Others as `PoolingModel`.
    """

    default_frames = FrameSelection(30, "random")

    def __init__(
        self,
        clusters: int = 8192,
        hidden_size: int = 1024,
        pooling: str = "max",
        activation: str = "sigmoid",
        add_batch_norm: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.clusters = clusters
        self.hidden_size = hidden_size
        self.pooling = pooling
        self.activation = activation
        self.add_batch_norm = add_batch_norm

        self.dbof = DBoF(
            clusters,
            pooling=pooling,
            activation=activation,
            add_batch_norm=add_batch_norm,
            dtype=self.dtype_policy,
            name="dbof",
        )
        normal = keras.initializers.RandomNormal
        self.hidden = keras.layers.Dense(
            hidden_size,
            use_bias=not add_batch_norm,
            kernel_initializer=normal(stddev=clusters**-0.5),
            bias_initializer=normal(stddev=0.01),
            dtype=self.dtype_policy,
            name="hidden",
        )
        if add_batch_norm:
            self.hidden_norm = BatchNormalization(
                dtype=self.dtype_policy, name="hidden_norm"
            )

    def pool(self, frames, mask, training=False):
        hidden = self.hidden(self.dbof(frames, mask, training=training))
        if self.add_batch_norm:
            hidden = self.hidden_norm(hidden, training=training)
        return getattr(ops, self.activation)(hidden)


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.3")
class LstmModel(PoolingModel):
    """A stack of LSTMs; the top one's state at the last frame is classified.

    [B, T, D] -> LSTMs of H cells -> h at the last valid frame [B, H] -> head ->
    logits [B, C]. The starter code recommends a learning rate of 0.001.

    Args:
        cells: H, of each layer.
        layers: how many are stacked.
        Others as `PoolingModel`.
    """

    def __init__(self, cells: int = 1024, layers: int = 2, **kwargs):
        super().__init__(**kwargs)
        if layers < 1:
            raise ValueError(f"`layers` must be positive. Received: layers={layers}")
        self.cells = cells
        self.num_layers = layers  # `layers` is Keras's own attribute
        self.stack = [
            LSTM(
                cells,
                return_sequences=i + 1 < layers,
                dtype=self.dtype_policy,
                name=f"lstm_{i}",
            )
            for i in range(layers)
        ]

    def pool(self, frames, mask, training=False):
        for lstm in self.stack:
            frames = lstm(frames, mask)
        return frames

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


@register(level="frame", paper="Miech, Laptev, Sivic 2017, arXiv:1706.06905")
class NetVLADModel(PoolingModel):
    """Gated NetVLAD of two streams, the winner of the 2017 challenge.

    [B, T, D] -> NetVLAD of each stream -> dense H -> context gating -> mixture of
    experts -> gating of the probabilities -> logits [B, C]. The first feature is one
    stream; all others together are the second.

    Args:
        clusters: of the first stream.
        audio_clusters: of the second stream; None takes half of `clusters`, at least 2.
        hidden_size: H.
        add_batch_norm: in the cluster assignments.
        input_batch_norm: of the frames.
        relu: after the dense layer.
        gating: context gating after the dense layer.
        gating_probabilities, l2_penalty and others: as `PoolingModel`.
    """

    def __init__(
        self,
        clusters: int = 64,
        audio_clusters: int | None = None,
        hidden_size: int = 1024,
        add_batch_norm: bool = True,
        input_batch_norm: bool = True,
        relu: bool = False,
        gating: bool = True,
        gating_probabilities: bool = True,
        l2_penalty: float = 1e-6,
        **kwargs,
    ):
        super().__init__(
            gating_probabilities=gating_probabilities, l2_penalty=l2_penalty, **kwargs
        )
        self.clusters = clusters
        self.audio_clusters = audio_clusters
        self.hidden_size = hidden_size
        self.add_batch_norm = add_batch_norm
        self.input_batch_norm = input_batch_norm
        self.relu = relu
        self.gating = gating

        if audio_clusters is None:
            audio_clusters = max(clusters // 2, 2)
        streams = [clusters, audio_clusters][: len(self.features)]
        self.pools = [
            NetVLAD(
                count,
                add_batch_norm=add_batch_norm,
                input_batch_norm=input_batch_norm,
                dtype=self.dtype_policy,
                name=f"pool_{i}",
            )
            for i, count in enumerate(streams)
        ]
        self.hidden = keras.layers.Dense(
            hidden_size,
            activation="relu" if relu else None,
            # The pooled vectors have norm 1, which Glorot's variance would lose.
            kernel_initializer=keras.initializers.RandomNormal(stddev=clusters**-0.5),
            dtype=self.dtype_policy,
            name="hidden",
        )
        if gating:
            self.context_gating = ContextGating(
                dtype=self.dtype_policy, name="context_gating"
            )

    def pool(self, frames, mask, training=False):
        first, *_ = self.features.values()
        streams = [frames[..., :first], frames[..., first:]]
        pooled = [
            pool(stream, mask, training=training)
            for pool, stream in zip(self.pools, streams, strict=False)
        ]
        embedding = self.hidden(ops.concatenate(pooled, axis=-1))
        if self.gating:
            embedding = self.context_gating(embedding, training=training)
        return embedding
