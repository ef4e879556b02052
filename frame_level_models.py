"""The models that read frames. Add yours here: see README.md."""

import keras
from keras import ops

from yt8m.layers.gating import ContextGating
from yt8m.layers.heads import LogisticHead, create_head
from yt8m.layers.masking import masked_mean
from yt8m.layers.netvlad import NetVLAD
from yt8m.model import FrameLevelModel
from yt8m.registry import register


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.1")
class FrameLevelLogisticModel(FrameLevelModel):
    """Logistic regression on the mean of the L2-normalised frames.

    [B, T, D] -> mean over valid frames [B, D] -> dense C -> logits [B, C].

    Args:
        l2_penalty: the loss gets l2_penalty * sum(w^2) / 2.
    """

    def __init__(self, l2_penalty: float = 1e-8, **kwargs):
        super().__init__(**kwargs)
        self.l2_penalty = l2_penalty
        self.head = LogisticHead(
            self.num_classes,
            l2_penalty=l2_penalty,
            dtype=self.dtype_policy,
            name="head",
        )

    def classify(self, frames, mask, training=False):
        mean = masked_mean(frames, mask)
        return {"logits": self.head(mean, training=training), "embedding": mean}


@register(level="frame", paper="Miech, Laptev, Sivic 2017, arXiv:1706.06905")
class NetVLADModel(FrameLevelModel):
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
        gating_probabilities: context gating of the class probabilities, whose
            weights are C x C.
        head: name of the classifier, see `yt8m.layers.heads`.
        num_mixtures: experts of each class; for the head `moe` alone.
        l2_penalty: the loss gets l2_penalty * sum(w^2) / 2 of the head's kernels.
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
        head: str = "moe",
        num_mixtures: int = 2,
        l2_penalty: float = 1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.clusters = clusters
        self.audio_clusters = audio_clusters
        self.hidden_size = hidden_size
        self.add_batch_norm = add_batch_norm
        self.input_batch_norm = input_batch_norm
        self.relu = relu
        self.gating = gating
        self.gating_probabilities = gating_probabilities
        self.head = head
        self.num_mixtures = num_mixtures
        self.l2_penalty = l2_penalty

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
        mixtures = {"num_mixtures": num_mixtures} if head == "moe" else {}
        self.classifier = create_head(
            head,
            self.num_classes,
            l2_penalty=l2_penalty,
            gating_probabilities=gating_probabilities,
            dtype=self.dtype_policy,
            name="head",
            **mixtures,
        )

    def classify(self, frames, mask, training=False):
        first, *_ = self.features.values()
        streams = [frames[..., :first], frames[..., first:]]
        pooled = [
            pool(stream, mask, training=training)
            for pool, stream in zip(self.pools, streams, strict=False)
        ]
        embedding = self.hidden(ops.concatenate(pooled, axis=-1))
        if self.gating:
            embedding = self.context_gating(embedding, training=training)
        logits = self.classifier(embedding, training=training)
        return {"logits": logits, "embedding": embedding}
