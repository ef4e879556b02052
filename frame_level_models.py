"""The models that read frames. Add yours here: see README.md."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from yt8m import registry
from yt8m.config import FrameSelection
from yt8m.errors import UserError
from yt8m.layers.attention import AttentionPooling, StackedAttention, frame_weights
from yt8m.layers.averaging import mean_probability_logits
from yt8m.layers.compact_bilinear import CompactBilinear
from yt8m.layers.convolution import (
    ConvolutionPooling,
    FeatureConvolution,
    TemporalConvolution,
    TemporalResidualBlock,
    max_of_pairs,
)
from yt8m.layers.dbof import DBoF
from yt8m.layers.dropout import Dropout
from yt8m.layers.fisher_vector import NetFV
from yt8m.layers.frame_combinations import LinearCombinations, SurestFrames
from yt8m.layers.frame_scores import classify_frames
from yt8m.layers.gating import ContextGating, SqueezeExcitation
from yt8m.layers.masking import last_frame, masked_mean
from yt8m.layers.mixture import Branch, Encoder, LogitMixture
from yt8m.layers.netvlad import NetRVLAD, NetVLAD
from yt8m.layers.nextvlad import NeXtVLAD
from yt8m.layers.normalization import BatchNormalization
from yt8m.layers.poolings import POOLINGS, create_pooling
from yt8m.layers.preprocessing import (
    ReverseWhitening,
    dequantize,
    l2_normalize,
    mean_of_normalized,
)
from yt8m.layers.recurrent import LSTM, Bidirectional
from yt8m.layers.recurrent_stack import (
    FastForwardPooling,
    LinearPooling,
    RecurrentPooling,
    rising_weights,
)
from yt8m.layers.soft_dbow import SoftDBoW
from yt8m.layers.sparse_moe import SparseMixtureOfExperts
from yt8m.layers.statistics import masked_max
from yt8m.layers.streams import pool_streams
from yt8m.layers.transformer import TransformerEncoder
from yt8m.layers.vlad_bow import VladBoW
from yt8m.model import FrameLevelModel, PoolingModel, YT8MModel
from yt8m.registry import arguments, register

log = logging.getLogger("yt8m")

_VIDEO_EMBEDDING = "video_embedding"  # as `yt8m.data.video_embeddings` names it


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.1")
class FrameLevelLogisticModel(PoolingModel):
    """Logistic regression on the mean of the L2-normalised frames.

    [B, T, D] -> mean over valid frames [B, D] -> head -> logits [B, C].

    Equation:
        y = mean_t x_t
        p = sigmoid(y W + b), the model in the paper's equation 3

    Args:
        head: name of the classifier, see `yt8m.layers.heads`.
        Others as `PoolingModel`.
    """

    def __init__(self, head: str = "logistic", **kwargs):
        super().__init__(head=head, **kwargs)

    def call(self, inputs, training=False):
        if self.dynamics:
            return super().call(inputs, training=training)
        # As `preprocess` and `classify`, without the normalised frames in between.
        features = [inputs[name] for name in self.features]
        mean = mean_of_normalized(features, inputs["num_frames"])
        return self._classify_mean(ops.cast(mean, self.compute_dtype), training)

    def pool(self, frames, mask, training=False):
        return masked_mean(frames, mask)

    def _classify_mean(self, mean, training):
        outputs = self.classifier(mean, training=training)
        return {**outputs, "embedding": mean}

    def classify(self, frames, mask, training=False):
        return self._classify_mean(self.pool(frames, mask), training)


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.2")
class DbofModel(PoolingModel):
    """Deep bag of frames: an up-projection of sampled frames, pooled, a hidden layer.

    [B, T, D] -> DBoF K -> dense H -> activation -> head -> logits [B, C].

    Equation:
        z_t = f(BN(BN(x_t) W)), f the activation (in the paper ReLU), or f(x_t W + b)
        u = max_t z_t, or by `pooling`
        y = f(BN(u V)), or f(u V + c)

    Args:
        clusters: K, the size of the up-projection.
        hidden_size: H.
        pooling: over the frames, `max`, `average`, `self_weighted` or `average_max`
            (2 K values), see `DBoF`.
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
    logits [B, C]. The starter code recommends a learning rate of 0.001. Beside the
    outputs of every model it gives `layer_outputs` [B, layers * H], the h of all layers
    at the last valid frame, bottom first: features for other datasets (section 5.3).

    Equation:
        [i, j, f, o] = [x_t; h_{t-1}] W + b
        c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(j)
        h_t = sigmoid(o) tanh(c_t), which is x_t of the next layer
        y = h_N of the top layer

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
        return self._last_outputs(frames, mask)[-1]

    def classify(self, frames, mask, training=False):
        each = self._last_outputs(frames, mask)
        outputs = self.classifier(each[-1], training=training)
        layers = ops.concatenate(each, axis=-1)
        return {**outputs, "embedding": each[-1], "layer_outputs": layers}

    def _last_outputs(self, frames, mask):
        """h [B, H] of each layer at the last valid frame; 0 where there is none."""
        each = []
        for lstm in self.stack[:-1]:
            frames = lstm(frames, mask)
            each.append(last_frame(frames, mask))
        return [*each, self.stack[-1](frames, mask)]

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


# Pooled over clusters


class TwoStreamModel(PoolingModel):
    """Base of the models that pool two streams over clusters; as the winner did.

    The first feature is one stream; all others together are the second. A subclass
    ends its constructor with `create_layers`.

    Args:
        clusters: of the first stream.
        audio_clusters: of the second stream; None takes `clusters` divided by the
            class's `audio_share`, at least 2.
        hidden_size: H.
        add_batch_norm: in the cluster assignments.
        input_batch_norm: of the frames.
        relu: after the dense layer.
        gating: context gating after the dense layer.
        gating_probabilities, l2_penalty and others: as `PoolingModel`.
    """

    audio_share = 2

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

    def create_layers(self, pooling: type, *stream_args: dict[str, Any]) -> None:
        """Creates a `pooling` for each stream, with further arguments, and the rest."""
        audio_clusters = self.audio_clusters
        if audio_clusters is None:
            audio_clusters = max(self.clusters // self.audio_share, 2)
        counts = [self.clusters, audio_clusters][: len(self.features)]
        self.pools = [
            pooling(
                count,
                add_batch_norm=self.add_batch_norm,
                input_batch_norm=self.input_batch_norm,
                **args,
                dtype=self.dtype_policy,
                name=f"pool_{i}",
            )
            for i, (count, args) in enumerate(
                zip(counts, stream_args or ({}, {}), strict=False)
            )
        ]
        self.hidden = keras.layers.Dense(
            self.hidden_size,
            activation="relu" if self.relu else None,
            # The pooled vectors have norm 1, which Glorot's variance would lose.
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=self.clusters**-0.5
            ),
            dtype=self.dtype_policy,
            name="hidden",
        )
        if self.gating:
            self.context_gating = ContextGating(
                dtype=self.dtype_policy, name="context_gating"
            )

    def pool(self, frames, mask, training=False):
        first, *_ = self.features.values()
        pooled = pool_streams(self.pools, first, frames, mask, training)
        embedding = self.hidden(pooled)
        if self.gating:
            embedding = self.context_gating(embedding, training=training)
        return embedding


@register(level="frame", paper="Miech, Laptev, Sivic 2017, arXiv:1706.06905")
class NetVLADModel(TwoStreamModel):
    """Gated NetVLAD of two streams, the winner of the 2017 challenge.

    [B, T, D] -> NetVLAD of each stream -> dense H -> context gating -> mixture of
    experts -> gating of the probabilities -> logits [B, C].

    Equation:
        Of each stream, with x_t batch-normalised:
        a(x) = softmax(BN(x W))
        v_k = sum_t a_k(x_t) (x_t - c_k): arXiv:1511.07247, equation 4
        v = l2([l2(v_1); ...; l2(v_K)])
        Of both:
        u = [v; v'] V + b
        y = u sigmoid(BN(u G))
        p = q sigmoid(BN(q P)), q the head's probabilities

    Args:
        clusters: of the first stream.
        Others as `TwoStreamModel`.
    """

    def __init__(self, clusters: int = 64, **kwargs):
        super().__init__(clusters, **kwargs)
        self.create_layers(NetVLAD)


@register(level="frame", paper="Miech, Laptev, Sivic 2017, arXiv:1706.06905")
class NetRVLADModel(TwoStreamModel):
    """Gated NetRVLAD of two streams: NetVLAD without centres.

    [B, T, D] -> NetRVLAD of each stream -> dense H -> context gating -> head ->
    gating of the probabilities -> logits [B, C].

    Equation:
        Of each stream, with x_t batch-normalised:
        a(x) = softmax(BN(x W))
        v_k = sum_t a_k(x_t) x_t
        v = l2([l2(v_1); ...; l2(v_K)])
        Of both:
        u = [v; v'] V + b
        y = u sigmoid(BN(u G))
        p = q sigmoid(BN(q P)), q the head's probabilities

    Args:
        clusters and others: as `TwoStreamModel`.
    """

    def __init__(self, clusters: int = 256, **kwargs):
        super().__init__(clusters, **kwargs)
        self.create_layers(NetRVLAD)


@register(level="frame", paper="Miech, Laptev, Sivic 2017, arXiv:1706.06905")
class NetFVModel(TwoStreamModel):
    """Gated NetFV of two streams: learned Fisher vectors of first and second order.

    [B, T, D] -> NetFV of each stream -> dense H -> context gating -> head -> gating
    of the probabilities -> logits [B, C].

    Equation:
        Of each stream, with x_t batch-normalised:
        a(x) = softmax(BN(x W)); s_k = w_k^2 + 1e-6
        f_k = sum_t a_k(x_t) (x_t - c_k) / s_k
        g_k = sum_t a_k(x_t) ((x_t - c_k)^2 / s_k^2 - 1)
        v = [l2([l2(f_1); ...; l2(f_K)]); l2([l2(g_1); ...; l2(g_K)])]
        Of both:
        u = [v; v'] V + b
        y = u sigmoid(BN(u G))
        p = q sigmoid(BN(q P)), q the head's probabilities

    Args:
        clusters and others: as `TwoStreamModel`.
    """

    def __init__(self, clusters: int = 128, **kwargs):
        super().__init__(clusters, **kwargs)
        self.create_layers(NetFV)


@register(level="frame", paper="Miech, Laptev, Sivic 2017, arXiv:1706.06905")
class SoftDBoWModel(TwoStreamModel):
    """Soft-DBoW of two streams: how much of each learned word the frames have.

    [B, T, D] -> Soft-DBoW of each stream -> dense H -> head -> logits [B, C].

    Equation:
        Of each stream, with x_t batch-normalised:
        a(x) = softmax(BN(x W)); s = sum_t a(x_t); m = l2(max_t a(x_t))
        v = l2(s), or, `gated`, l2(s sigmoid(BN(m A B))) of the first stream; with
            `max_pooling` [v; m]
        Of both:
        y = [v; v'] V + b

    Args:
        clusters: of the first stream; the second has an eighth by default.
        max_pooling: the greatest assignments beside their sums, of both streams.
        gated: the first stream's sums are gated by its greatest assignments.
        gating, gating_probabilities and others: as `TwoStreamModel`.
    """

    audio_share = 8

    def __init__(
        self,
        clusters: int = 8000,
        max_pooling: bool = False,
        gated: bool = False,
        gating: bool = False,
        gating_probabilities: bool = False,
        **kwargs,
    ):
        super().__init__(
            clusters,
            gating=gating,
            gating_probabilities=gating_probabilities,
            **kwargs,
        )
        self.max_pooling = max_pooling
        self.gated = gated
        second = {"max_pooling": max_pooling}
        self.create_layers(SoftDBoW, {**second, "gated": gated}, second)


@register(level="frame", paper="Ostyakov et al. 2018, arXiv:1809.04403, 3")
class VladBowModel(TwoStreamModel):
    """VLAD-BoW of two streams: soft words of projections to a learned power.

    [B, T, D] -> VLAD-BoW of each stream -> dense H -> head -> logits [B, C].

    Equation:
        Of each stream, with x_t batch-normalised:
        u_t = max(x_t W + b, 0)^p, p learned
        v = l2(sum_t softmax(u_t)); the paper's, which has no number, ends with the sum
        Of both:
        y = [v; v'] V + c

    Args:
        clusters: of the first stream; the second has an eighth by default.
        add_batch_norm: of the projections, which otherwise have biases.
        gating, gating_probabilities and others: as `TwoStreamModel`.
    """

    audio_share = 8

    def __init__(
        self,
        clusters: int = 4096,
        add_batch_norm: bool = False,
        gating: bool = False,
        gating_probabilities: bool = False,
        **kwargs,
    ):
        super().__init__(
            clusters,
            add_batch_norm=add_batch_norm,
            gating=gating,
            gating_probabilities=gating_probabilities,
            **kwargs,
        )
        self.create_layers(VladBoW)


@register(level="frame", paper="Lin et al. 2018, arXiv:1811.05014")
class NeXtVLADModel(PoolingModel):
    """NeXtVLAD of two streams, the best single model of the 2018 challenge's third.

    [B, T, D] -> NeXtVLAD of each stream -> dropout -> dense H -> batch norm ->
    squeeze and excitation -> head -> logits [B, C]. The first feature is one stream;
    all others together are the second, with half the groups.

    Equation:
        Of each stream, with sums over frames t and groups g of the parts z_g of z:
        z = x_t E + e; alpha_g = sigmoid(z A + b)_g; a_gk = softmax_k(BN(z W)_gk)
        v_k = sum_tg alpha_g a_gk (z_g - c_k)
        v = BN([l2(v_1); ...; l2(v_K)])
        Of both:
        u = BN(drop([v; v']) V)
        y = u sigmoid(relu(BN(u S)) U): arXiv:1709.01507, equation 3

    Args:
        clusters: K of the first stream.
        audio_clusters: of the second stream; None takes half of `clusters`, at least 2.
        groups: G of the first stream.
        expansion: lambda, of both streams.
        hidden_size: H.
        gating_reduction: of the gates' inner size.
        dropout: of the pooled vector.
        pca_eigenvalues: file of the eigenvalues of the PCA that made `rgb`, see
            `ReverseWhitening`. With it `rgb` gets its spread back and frames are not
            normalised; without it each frame is L2-normalised.
        head, l2_penalty and others: as `PoolingModel`.

    Raises:
        UserError: eigenvalues for a model without the feature rgb, or of a file
            without them.
    """

    def __init__(
        self,
        clusters: int = 128,
        audio_clusters: int | None = None,
        groups: int = 8,
        expansion: int = 2,
        hidden_size: int = 2048,
        gating_reduction: int = 8,
        dropout: float = 0.5,
        pca_eigenvalues: str | None = None,
        head: str = "logistic",
        l2_penalty: float = 1e-5,
        **kwargs,
    ):
        super().__init__(head=head, l2_penalty=l2_penalty, **kwargs)
        self.clusters = clusters
        self.audio_clusters = audio_clusters
        self.groups = groups
        self.expansion = expansion
        self.hidden_size = hidden_size
        self.gating_reduction = gating_reduction
        self.dropout = dropout
        self.pca_eigenvalues = pca_eigenvalues
        if pca_eigenvalues and "rgb" not in self.features:
            raise UserError(
                f"pca_eigenvalues={pca_eigenvalues} are of the feature rgb, which is "
                f"not among {', '.join(self.features)}: leave them out."
            )

        own = {"dtype": self.dtype_policy}
        if audio_clusters is None:
            audio_clusters = max(clusters // 2, 2)
        sizes = [(clusters, groups), (audio_clusters, max(groups // 2, 1))]
        self.pools = [
            NeXtVLAD(count, parts, expansion, name=f"pool_{i}", **own)
            for i, (count, parts) in enumerate(sizes[: len(self.features)])
        ]
        self.drop = Dropout(dropout, name="drop", **own)
        self.hidden = keras.layers.Dense(
            hidden_size,
            use_bias=False,
            kernel_initializer="he_normal",
            name="hidden",
            **own,
        )
        self.hidden_norm = BatchNormalization(name="hidden_norm", **own)
        self.gating = SqueezeExcitation(gating_reduction, name="gating", **own)
        if pca_eigenvalues:
            self.reverse_whitening = ReverseWhitening(
                pca_eigenvalues, name="reverse_whitening", **own
            )

    def build(self, input_shapes):
        if self.pca_eigenvalues:
            self.reverse_whitening.build((None, None, self.features["rgb"]))
        else:
            self._say_that_frames_are_normalised()
        super().build(input_shapes)

    @staticmethod
    @functools.cache  # a mixture builds several
    def _say_that_frames_are_normalised() -> None:
        log.info(
            "NeXtVLADModel normalises each frame to length 1. Its authors undo "
            "the whitening of rgb: for that give --pca_eigenvalues=FILE, the "
            "eigenvalues of the features' PCA (eigenvals.npy of yt8m_pca)."
        )

    def preprocess(self, inputs):
        if not self.pca_eigenvalues:
            return super().preprocess(inputs)
        parts = {n: dequantize(inputs[n], "float32") for n in self.features}
        parts["rgb"] = self.reverse_whitening(parts["rgb"])
        frames, mask = self.join(list(parts.values()), inputs["num_frames"])
        return ops.cast(frames, self.compute_dtype), mask

    def pool(self, frames, mask, training=False):
        first, *_ = self.features.values()
        pooled = pool_streams(self.pools, first, frames, mask, training)
        hidden = self.hidden(self.drop(pooled, training=training))
        hidden = self.hidden_norm(hidden, training=training)
        return self.gating(hidden, training=training)


@register(level="frame", paper="Lin et al. 2018, arXiv:1811.05014")
class MixtureNeXtVLADModel(FrameLevelModel):
    """Several NeXtVLADs, or other models, whose logits are mixed by a gate.

    [B, T, D] -> each branch's logits [B, C] -> weighted by softmax(dense(batch
    norm(mean frame))) -> logits [B, C]. In training the branches' logits are auxiliary,
    and the penalty pulls them to the mixture, see `LogitMixture`. For the authors' sum
    of the losses of mixture and branches, take the number of branches as
    --deep_supervision_weight.

    Equation:
        g = softmax(BN(mean_t x_t) W + b)
        logits z = sum_k g_k z_k, z_k those of branch k
        penalty w T^2 sum_k KL(softmax(z / T) || softmax(z_k / T)), in training

    Args:
        branch: name of the registered model that each branch is, a `PoolingModel`.
        branches: how many.
        branch_args: arguments of each, by name; the head's are among them.
        temperature, distillation_weight: as `LogitMixture`.
        dynamics: as `FrameLevelModel`, of all branches.

    Raises:
        UserError: `branch` is unknown, refuses its arguments or is no such model.
    """

    def __init__(
        self,
        branch: str = "NeXtVLADModel",
        branches: int = 3,
        branch_args: dict[str, Any] | None = None,
        temperature: float = 3.0,
        distillation_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if branches < 1:
            raise ValueError(f"`branches` must be positive. Received: {branches}")
        if not issubclass(registry.get(branch).cls, PoolingModel):
            raise UserError(
                f"branch={branch} is no model that pools frames and classifies the "
                "result; NeXtVLADModel and NetVLADModel are."
            )
        if self.dynamics and "dynamics" in (branch_args or {}):
            raise UserError(
                "dynamics of the mixture are those of all branches: give it once, "
                "there or in branch_args."
            )
        dynamics = {"dynamics": self.dynamics} if self.dynamics else {}
        self.branch = branch
        self.branches = branches
        self._branch_args = tuple((branch_args or {}).items())
        self.temperature = temperature
        self.distillation_weight = distillation_weight
        self.parts = [
            Branch(
                registry.create(
                    branch,
                    num_classes=self.num_classes,
                    features=self.features,
                    dtype=self.dtype_policy,
                    **dynamics,
                    **self.branch_args,
                ),
                name=f"branch_{i}",
            )
            for i in range(branches)
        ]
        _refuse_training_inputs("branch", branch, self.parts[0].model)
        self.mixture = LogitMixture(
            temperature, distillation_weight, dtype=self.dtype_policy, name="mixture"
        )

    @property
    def branch_args(self) -> dict[str, Any]:
        return dict(self._branch_args)

    def build(self, input_shapes):
        for part in self.parts:
            part.build((None, None, sum(self.features.values())))
        self.built = True

    def preprocess(self, inputs):
        return self.parts[0].model.preprocess(inputs)  # the same in all

    def classify(self, frames, mask, training=False):
        each = [part(frames, mask, training=training) for part in self.parts]
        outputs = self.mixture(
            masked_mean(frames, mask),
            [branch["logits"] for branch in each],
            training=training,
        )
        embeddings = [branch["embedding"] for branch in each]
        return {**outputs, "embedding": ops.concatenate(embeddings, axis=-1)}


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.2")
class CgDbofModel(PoolingModel):
    """Context-gated deep bag of frames: words with gates, averages and maxima.

    [B, T, D] -> DBoF K with gates of each frame -> [average, maximum] -> batch norm
    -> dropout -> dense H -> ReLU -> gates -> head -> logits [B, C].

    Equation:
        z_t = relu(BN(BN(x_t) W))
        s_t = z_t sigmoid(relu(BN(z_t A)) B): arXiv:1709.01507, equation 3
        v = relu(drop(BN([mean_t s_t; max_t s_t])) V)
        y = v sigmoid(relu(BN(v C)) E)

    Args:
        clusters: K.
        hidden_size: H.
        pooling: over the frames, see `DBoF`.
        frame_gating_reduction: of the gates of each frame's words; None has none.
        gating_reduction: of the gates after the dense layer; None has none.
        dropout: of the pooled vector.
        Others as `PoolingModel`.
    """

    default_frames = FrameSelection(150, "random")

    def __init__(
        self,
        clusters: int = 4096,
        hidden_size: int = 2048,
        pooling: str = "average_max",
        frame_gating_reduction: int | None = 8,
        gating_reduction: int | None = 4,
        dropout: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.clusters = clusters
        self.hidden_size = hidden_size
        self.pooling = pooling
        self.frame_gating_reduction = frame_gating_reduction
        self.gating_reduction = gating_reduction
        self.dropout = dropout

        own = {"dtype": self.dtype_policy}
        self.dbof = DBoF(
            clusters,
            pooling=pooling,
            activation="relu",
            gating_reduction=frame_gating_reduction,
            name="dbof",
            **own,
        )
        self.pooled_norm = BatchNormalization(name="pooled_norm", **own)
        self.drop = Dropout(dropout, name="drop", **own)
        self.hidden = keras.layers.Dense(
            hidden_size,
            activation="relu",
            use_bias=False,
            kernel_initializer="he_normal",
            name="hidden",
            **own,
        )
        if gating_reduction is not None:
            self.gating = SqueezeExcitation(gating_reduction, name="gating", **own)

    def pool(self, frames, mask, training=False):
        pooled = self.dbof(frames, mask, training=training)
        pooled = self.pooled_norm(pooled, training=training)
        hidden = self.hidden(self.drop(pooled, training=training))
        if self.gating_reduction is None:
            return hidden
        return self.gating(hidden, training=training)


@register(level="frame", paper="BoF_4096 of 2017, beside Simple_LSTM and LSTM_MoE")
class BofModel(PoolingModel):
    """Bag of frames: the greatest value of each feature, and two dense layers.

    [B, T, D] -> maximum over frames [B, D] -> batch norm -> dropout -> dense H ->
    batch norm -> ReLU -> dropout -> dense H -> batch norm -> ReLU -> head -> logits
    [B, C].

    Equation:
        u = relu(BN(drop(BN(max_t x_t)) W))
        y = relu(BN(drop(u) V))

    Args:
        hidden_size: H, of both layers.
        dropout: of the pooled frames and of the first layer.
        head and others: as `PoolingModel`.
    """

    def __init__(
        self,
        hidden_size: int = 4096,
        dropout: float = 0.3,
        head: str = "logistic",
        **kwargs,
    ):
        super().__init__(head=head, **kwargs)
        self.hidden_size = hidden_size
        self.dropout = dropout

        own = {"dtype": self.dtype_policy}
        self.input_norm = BatchNormalization(name="input_norm", **own)
        self.drops = [Dropout(dropout, name=f"drop_{i}", **own) for i in range(2)]
        self.dense = [
            keras.layers.Dense(
                hidden_size,
                use_bias=False,
                kernel_initializer="he_normal",
                name=f"hidden_{i}",
                **own,
            )
            for i in range(2)
        ]
        self.norms = [
            BatchNormalization(name=f"hidden_norm_{i}", **own) for i in range(2)
        ]

    def pool(self, frames, mask, training=False):
        lowest = -6e4  # in float16 too
        greatest = ops.where(mask[..., None], frames, lowest)
        greatest = ops.max(greatest, axis=1, initial=lowest)
        x = ops.where(ops.any(mask, axis=1)[:, None], greatest, 0.0)
        x = self.input_norm(x, training=training)
        for drop, dense, norm in zip(self.drops, self.dense, self.norms, strict=True):
            x = dense(drop(x, training=training))
            x = ops.relu(norm(x, training=training))
        return x


# Recurrent


# Sizes and activations.
DenseLayers = Sequence[tuple[int, str]]


def _refuse_training_inputs(name: str, value: str, model: YT8MModel) -> None:
    """Raises an error for a part that would train without what it asks for."""
    if names := model.training_input_names:
        raise UserError(
            f"{name}={value}, with these arguments, takes {', '.join(names)} in "
            "training, which a model that is part of another one does not get; the "
            "pooling adaptive_noise does so."
        )


def _dense_layers(layers: DenseLayers, dtype: Any) -> list[keras.layers.Layer]:
    return [
        keras.layers.Dense(size, activation, dtype=dtype, name=f"hidden_{i}")
        for i, (size, activation) in enumerate(layers)
    ]


@register(level="frame", paper="Miech, Laptev, Sivic 2017, arXiv:1706.06905")
class RecurrentModel(PoolingModel):
    """A stack of LSTMs or GRUs over all features together, and what is read out of it.

    [B, T, D] -> batch norm -> stack -> read-out [B, H'] -> dense layers -> head ->
    logits [B, C]. The defaults are the 2017 winner's GRU.

    Equation:
        GRU: arXiv:1406.1078, equations 5 to 8; the LSTM is that of `LstmModel`.
        [r, u] = sigmoid([x_t; h_{t-1}] W + b)
        j = tanh(x_t V + (r h_{t-1}) U + c)
        h_t = u h_{t-1} + (1 - u) j; drop(h_t) is x_t of the next layer
        y = drop(h_N) of the top layer; by the read-out `linear`
        y = sum_t (t / max_frames) drop(h_t): Simple_LSTM of 2017, equations 1 and 2

    Args:
        cell, cells, layers, bidirectional_layers, residual, layer_norm, dropout,
            read_out, max_frames: of the stack, see `RecurrentPooling`.
        input_batch_norm: normalise the frames over the valid ones.
        hidden_layers: of the dense layers the size and activation, bottom first.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        cell: str = "gru",
        cells: int = 1200,
        layers: int = 2,
        bidirectional_layers: int = 0,
        residual: str | None = None,
        layer_norm: bool = False,
        dropout: float = 0.0,
        read_out: str = "last",
        max_frames: int = 300,
        input_batch_norm: bool = False,
        hidden_layers: DenseLayers = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.cell = cell
        self.cells = cells
        self.num_layers = layers  # `layers` is Keras's own attribute
        self.bidirectional_layers = bidirectional_layers
        self.residual = residual
        self.layer_norm = layer_norm
        self.dropout = dropout
        self.read_out = read_out
        self.max_frames = max_frames
        self.input_batch_norm = input_batch_norm
        self.hidden_layers = tuple(map(tuple, hidden_layers))

        policy = self.dtype_policy
        if input_batch_norm:
            self.input_norm = BatchNormalization(dtype=policy, name="input_norm")
        self.pooling = RecurrentPooling(
            cell,
            cells,
            layers,
            bidirectional_layers,
            residual,
            layer_norm,
            dropout,
            read_out,
            max_frames,
            dtype=policy,
            name="pooling",
        )
        self.hidden = _dense_layers(hidden_layers, policy)

    def pool(self, frames, mask, training=False):
        if self.input_batch_norm:
            frames = self.input_norm(frames, mask, training=training)
        embedding = self.pooling(frames, mask, training=training)
        for hidden in self.hidden:
            embedding = hidden(embedding)
        return embedding

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


@register(level="frame", paper="Li et al. 2017, arXiv:1707.04555")
class TwoStreamRecurrentModel(PoolingModel):
    """Bidirectional LSTMs or GRUs over rgb and audio apart, with attention.

    Each stream [B, T, D'] -> dense layer -> stack -> read-out; together -> batch norm
    -> dense layers -> head -> logits [B, C]. The first feature is one stream; all
    others together are the second.

    Equation:
        Of each stream, with the LSTM of `LstmModel`:
        u_t = tanh(x_t P + q)
        h_t = drop([forward LSTM(u)_t; backward LSTM(u)_t])
        v = sum_t softmax_t(h_t . w) h_t
        Of both, by the default activations:
        y = tanh(relu([v; v'] W + b) V + c)

    Args:
        cell, layers, bidirectional_layers, residual, dropout, read_out: of both stacks,
            see `RecurrentPooling`; by default all layers run both ways.
        cells, audio_cells: of the first stream's layers and directions and of the
            second's; None takes `cells`.
        projections: of the dense layer of each stream its size and activation; none
            leaves them out.
        batch_norm: of the two vectors together.
        hidden_layers: of the dense layers the size and activation, bottom first.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        cell: str = "lstm",
        cells: int = 1024,
        audio_cells: int | None = None,
        layers: int = 1,
        bidirectional_layers: int | None = None,
        residual: str | None = None,
        dropout: float = 0.5,
        read_out: str = "attention",
        projections: DenseLayers = ((512, "tanh"), (512, "tanh")),
        batch_norm: bool = False,
        hidden_layers: DenseLayers = ((8192, "relu"), (4096, "tanh")),
        head: str = "logistic",
        **kwargs,
    ):
        super().__init__(head=head, **kwargs)
        self.cell = cell
        self.cells = cells
        self.audio_cells = audio_cells
        self.num_layers = layers  # `layers` is Keras's own attribute
        self.bidirectional_layers = bidirectional_layers
        self.residual = residual
        self.dropout = dropout
        self.read_out = read_out
        self.projections = tuple(map(tuple, projections))
        self.batch_norm = batch_norm
        self.hidden_layers = tuple(map(tuple, hidden_layers))

        policy = self.dtype_policy
        sizes = [cells, audio_cells or cells][: len(self.features)]
        # Frames have norm 1, which Glorot's variance would lose.
        self.projecting = [
            keras.layers.Dense(
                size,
                activation,
                kernel_initializer=keras.initializers.RandomNormal(stddev=1.0),
                dtype=policy,
                name=f"projection_{i}",
            )
            for i, (size, activation) in enumerate(projections[: len(sizes)])
        ]
        self.pools = [
            RecurrentPooling(
                cell,
                size,
                layers,
                layers if bidirectional_layers is None else bidirectional_layers,
                residual,
                dropout=dropout,
                read_out=read_out,
                dtype=policy,
                name=f"pool_{i}",
            )
            for i, size in enumerate(sizes)
        ]
        if batch_norm:
            self.norm = BatchNormalization(dtype=policy, name="norm")
        self.hidden = _dense_layers(hidden_layers, policy)

    def pool(self, frames, mask, training=False):
        first, *_ = self.features.values()
        streams = [frames[..., :first], frames[..., first:]][: len(self.pools)]
        for i, projection in enumerate(self.projecting):
            streams[i] = projection(streams[i])
        pooled = [
            pool(stream, mask, training=training)
            for pool, stream in zip(self.pools, streams, strict=True)
        ]
        embedding = ops.concatenate(pooled, axis=-1)
        if self.batch_norm:
            embedding = self.norm(embedding, training=training)
        for hidden in self.hidden:
            embedding = hidden(embedding)
        return embedding

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


@register(level="frame", paper="Li et al. 2017, arXiv:1707.04555")
class FastForwardModel(PoolingModel):
    """A deep stack of LSTMs or GRUs with a linear path beside them.

    [B, T, D] -> stack -> read-out [B, H'] -> dense layers -> head -> logits [B, C].

    Equation:
        f_1 = x W_1; f_k = [f_{k-1}; h_{k-1}] W_k + b_k
        [i, j, f, o] of layer k = f_k,t + h_k,t-1 U_k + c_k; the rest as `LstmModel`, in
            every second layer from the last frame to the first
        u = max_t [f_K,t; h_K,t]
        y = u V + d

    Args:
        cell, cells, layers, read_out: see `FastForwardPooling`.
        hidden_layers: of the dense layers the size and activation, bottom first.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        cell: str = "lstm",
        cells: int = 512,
        layers: int = 7,
        read_out: str = "max",
        hidden_layers: DenseLayers = ((2048, "linear"),),
        head: str = "logistic",
        **kwargs,
    ):
        super().__init__(head=head, **kwargs)
        self.cell = cell
        self.cells = cells
        self.num_layers = layers  # `layers` is Keras's own attribute
        self.read_out = read_out
        self.hidden_layers = tuple(map(tuple, hidden_layers))
        self.pooling = FastForwardPooling(
            cell, cells, layers, read_out, dtype=self.dtype_policy, name="pooling"
        )
        self.hidden = _dense_layers(hidden_layers, self.dtype_policy)

    def pool(self, frames, mask, training=False):
        embedding = self.pooling(frames, mask, training=training)
        for hidden in self.hidden:
            embedding = hidden(embedding)
        return embedding

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


@register(level="frame", paper="Wang et al. 2017, arXiv:1706.05150")
class LstmAttentionMaxModel(PoolingModel):
    """Several attentions over an LSTM's states; each class takes its best one.

    [B, T, D] -> LSTMs of H cells -> K attentions [B, K, H] -> one head for all ->
    the greatest of the K, class by class -> logits [B, C].

    Equation:
        h = LSTMs(x)
        a_k = softmax_t(w_k . [x_t; h_t])
        v_k = sum_t a_k,t h_t
        logits z = max_k head(v_k), class by class

    Args:
        cells: H, of each layer.
        layers: how many are stacked.
        attentions: K.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        cells: int = 1024,
        layers: int = 2,
        attentions: int = 8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if layers < 1 or attentions < 1:
            raise ValueError(
                "`layers` and `attentions` must be positive. "
                f"Received: layers={layers}, attentions={attentions}"
            )
        self.cells = cells
        self.num_layers = layers  # `layers` is Keras's own attribute
        self.attentions = attentions
        policy = self.dtype_policy
        self.stack = [
            LSTM(cells, return_sequences=True, dtype=policy, name=f"lstm_{i}")
            for i in range(layers)
        ]
        self.scores = keras.layers.Dense(
            attentions,
            use_bias=False,
            # Frames have norm 1: by Glorot's variance the attentions would start alike.
            kernel_initializer=keras.initializers.RandomNormal(stddev=1.0),
            dtype=policy,
            name="scores",
        )

    def pool(self, frames, mask, training=False):
        states = frames
        for lstm in self.stack:
            states = lstm(states, mask)
        scores = self.scores(ops.concatenate([frames, states], axis=-1))
        weights = ops.cast(frame_weights(scores, mask), states.dtype)
        return ops.reshape(
            ops.matmul(weights, states), (-1, self.attentions * self.cells)
        )

    def classify(self, frames, mask, training=False):
        embedding = self.pool(frames, mask, training=training)
        each = ops.reshape(embedding, (-1, self.cells))
        outputs = self.classifier(each, training=training)

        def greatest(logits):
            logits = ops.reshape(logits, (-1, self.attentions, self.num_classes))
            return ops.max(logits, axis=1)

        outputs = keras.tree.map_structure(greatest, outputs)
        return {**outputs, "embedding": embedding}

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.3")
class FrameSupervisedLstmModel(PoolingModel):
    """A stack of LSTMs that classifies at every frame, and is scored at the last.

    [B, T, D] -> LSTMs of H cells -> head at each frame -> logits of the last valid one
    [B, C]. In training the loss is of all frames, with weights that rise linearly from
    1 / N to 1 for the last of N frames. Batch statistics of the head, if it takes any,
    count padding as frames.

    Equation:
        z_t = head(h_t), h that of `LstmModel`
        loss = sum_t (t / N) e(z_t) / sum_t (t / N), e that of the labels
        logits z = z_N

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
                return_sequences=True,
                return_states=True,
                dtype=self.dtype_policy,
                name=f"lstm_{i}",
            )
            for i in range(layers)
        ]

    def classify(self, frames, mask, training=False):
        for lstm in self.stack:
            frames, last, *_ = lstm(frames, mask)
        if not training:
            return {**self.classifier(last), "embedding": last}
        # The last state once more after the frames, for a batch without any.
        states = ops.concatenate([frames, last[:, None]], axis=1)
        batch, length = ops.shape(states)[0], ops.shape(states)[1]
        each = ops.reshape(states, (-1, self.cells))
        every = keras.tree.map_structure(
            lambda logits: ops.reshape(logits, (batch, length, self.num_classes)),
            self.classifier(each, training=True),
        )
        outputs = keras.tree.map_structure(lambda logits: logits[:, -1], every)
        count = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
        return {
            **outputs,
            "frame_logits": every["logits"][:, :-1],
            "frame_weights": rising_weights(mask, ops.maximum(count, 1.0)),
            "embedding": last,
        }

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


# Convolutions, attention and combinations of frames


@register(level="frame", paper="Wang et al. 2017, arXiv:1706.05150")
class MultiscaleCnnLstmModel(PoolingModel):
    """Convolutions and an LSTM at several time scales, whose predictions are averaged.

    At each scale [B, T, D] -> convolutions of several widths -> BN -> ReLU -> LSTM ->
    its memory at the last valid frame -> head -> logits [B, C]; the greater of each two
    neighbouring frames go on to the next scale. The probability is the mean of the
    scales'; in training each of them is an auxiliary classifier.

    Equation:
        At scale s, with the LSTM of `LstmModel`:
        u_t = relu(BN([u_t,w of each width w])); u_t,w = sum_{j<w} x_{t-j} W_w,j
        p_s = head_s(c_N), c the cells of LSTM(u)
        x_t of scale s + 1 = max(u_{2t-1}, u_{2t})
        Of all:
        p = (p_1 + ... + p_S) / S

    Args:
        scales: how many.
        channels, widths: of the convolutions, one number for each width.
        cells: of each LSTM.
        Others as `PoolingModel`; every scale has a head of its own.
    """

    def __init__(
        self,
        scales: int = 4,
        channels: tuple[int, ...] = (256, 256, 512),
        widths: tuple[int, ...] = (1, 2, 3),
        cells: int = 1024,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if scales < 1:
            raise ValueError(f"`scales` must be positive. Received: scales={scales}")
        self.scales = scales
        self.channels = tuple(channels)
        self.widths = tuple(widths)
        self.cells = cells
        policy = self.dtype_policy
        self.convolutions = [
            TemporalConvolution(
                channels, widths, "causal", dtype=policy, name=f"convolution_{i}"
            )
            for i in range(scales)
        ]
        self.lstms = [
            LSTM(cells, return_states=True, dtype=policy, name=f"lstm_{i}")
            for i in range(scales)
        ]

    def build(self, input_shapes):
        self.other_classifiers = [
            type(head).from_config({**head.get_config(), "name": f"head_{i}"})
            for i, head in enumerate([self._create_classifier()] * (self.scales - 1))
        ]
        super().build(input_shapes)  # the last scale's

    def pool(self, frames, mask, training=False):
        memories = []
        for convolution, lstm in zip(self.convolutions, self.lstms, strict=True):
            frames = convolution(frames, mask, training=training)
            _, _, memory, _ = lstm(frames, mask)
            memories.append(ops.cast(memory, self.compute_dtype))
            frames, mask = max_of_pairs(frames, mask)
        return ops.concatenate(memories, axis=-1)

    def classify(self, frames, mask, training=False):
        embedding = self.pool(frames, mask, training=training)
        classifiers = [*self.other_classifiers, self.classifier]
        outputs = [
            classifier(memory, training=training)
            for classifier, memory in zip(
                classifiers, ops.split(embedding, self.scales, axis=-1), strict=True
            )
        ]
        logits = [each["logits"] for each in outputs]
        result = {"logits": mean_probability_logits(logits), "embedding": embedding}
        if training:
            of_heads = [each.get("auxiliary_logits", []) for each in outputs]
            result["auxiliary_logits"] = sum(of_heads, logits)
        return result


@register(level="frame", paper="Wang et al. 2017, arXiv:1706.05150")
class CnnDccModel(PoolingModel):
    """Convolutions over time, the greatest response of each, and a chain of experts.

    [B, T, D] -> [mean; L2(max over time of convolutions)] -> chain -> logits [B, C].

    Equation:
        o_k = max_t f(sum_j x_{t+j} W_jk + b_k); f(x) = x, or relu as in
            arXiv:1706.07960, equation 7
        y = [mean_t x_t; l2(o)]
        Chain, from y_0 = y: p_i = MoE_i(y_i); y_{i+1} = [y_i; l2(relu(p_i V_i + c_i))]
        p = MoE_S(y_S)

    Args:
        channels, widths: of the convolutions, one number for each width.
        activation: `relu` or None, of the convolutions.
        add_mean: put the mean of the frames before the responses.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (640, 640, 1280),
        widths: tuple[int, ...] = (1, 2, 3),
        activation: str | None = None,
        add_mean: bool = True,
        head: str = "chain",
        **kwargs,
    ):
        super().__init__(head=head, **kwargs)
        self.channels = tuple(channels)
        self.widths = tuple(widths)
        self.activation = activation
        self.add_mean = add_mean
        self.convolution = ConvolutionPooling(
            channels, widths, activation, dtype=self.dtype_policy, name="convolution"
        )

    def pool(self, frames, mask, training=False):
        pooled = l2_normalize(self.convolution(frames, mask, training=training))
        if self.add_mean:
            pooled = ops.concatenate([masked_mean(frames, mask), pooled], axis=-1)
        return pooled


@register(level="frame", paper="Li et al. 2017, arXiv:1707.04555")
class TemporalCnnModel(PoolingModel):
    """Residual convolutions over time, a bidirectional LSTM, attention over its states.

    [B, T, D] -> blocks -> LSTM in both directions -> attention [B, H] -> head ->
    logits [B, C].

    Equation:
        With * over time and the LSTM of `LstmModel`:
        x <- relu(x + BN(W_2 * relu(BN(W_1 * x)))): arXiv:1512.03385, equation 1; where
            sizes differ BN(x W_3) for the first x, its equation 2
        h_t = [forward LSTM(x)_t; backward LSTM(x)_t]
        y = sum_t softmax_t(h_t . w) h_t

    Args:
        blocks: how many residual blocks, of two convolutions each.
        channels: number of filters.
        width: how many frames a filter sees.
        cells: of the LSTM, in each direction.
        attention_size: hidden layer of the attention; None takes a linear one.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        blocks: int = 9,
        channels: int = 1024,
        width: int = 3,
        cells: int = 1024,
        attention_size: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_blocks = blocks
        self.channels = channels
        self.width = width
        self.cells = cells
        self.attention_size = attention_size
        policy = self.dtype_policy
        self.blocks = [
            TemporalResidualBlock(channels, width, dtype=policy, name=f"block_{i}")
            for i in range(blocks)
        ]
        self.lstm = Bidirectional(
            "lstm", cells, return_sequences=True, dtype=policy, name="lstm"
        )
        self.attention = AttentionPooling(
            1, attention_size, dtype=policy, name="attention"
        )

    def pool(self, frames, mask, training=False):
        for block in self.blocks:
            frames = block(frames, mask, training=training)
        frames = self.lstm(frames, mask)
        return self.attention(frames, mask)

    def get_config(self):
        return {**super().get_config(), "blocks": self.num_blocks}


@register(level="frame", paper="Ostyakov et al. 2018, arXiv:1809.04403, 3")
class TimeDistributedConvModel(PoolingModel):
    """Convolutions and max pooling over time, of two streams apart.

    [B, T, D] -> for each stream (convolution -> BN -> ReLU -> greater of each two
    neighbours) x L -> max over time; joined -> head -> logits [B, C]. The first feature
    is one stream; all others together are the second.

    Equation:
        Of each stream, with * over time:
        u = relu(BN(W * x)); x_t of the next layer = max(u_{2t-1}, u_{2t})
        v = max_t x_t after the last
        Of both:
        y = drop([v; v'])

    Args:
        channels: number of filters of each layer of the first stream.
        audio_channels: of the second stream; None takes a quarter, at least 1.
        width: how many frames a filter sees.
        dropout: of the joined vector.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (512, 512, 1024),
        audio_channels: tuple[int, ...] | None = None,
        width: int = 3,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = tuple(channels)
        self.audio_channels = audio_channels and tuple(audio_channels)
        self.width = width
        self.dropout = dropout
        if audio_channels is None:
            audio_channels = [max(count // 4, 1) for count in channels]
        streams = [channels, audio_channels][: len(self.features)]
        self.stacks = [
            [
                TemporalConvolution(
                    count, width, dtype=self.dtype_policy, name=f"stream_{i}_layer_{j}"
                )
                for j, count in enumerate(stream)
            ]
            for i, stream in enumerate(streams)
        ]
        self.drop = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def pool(self, frames, mask, training=False):
        first, *_ = self.features.values()
        pooled = []
        for x, stack in zip(
            [frames[..., :first], frames[..., first:]], self.stacks, strict=False
        ):
            valid = mask
            for convolution in stack:
                x = convolution(x, valid, training=training)
                x, valid = max_of_pairs(x, valid)
            pooled.append(masked_max(ops.cast(x, "float32"), valid))
        pooled = ops.cast(ops.concatenate(pooled, axis=-1), self.compute_dtype)
        return self.drop(pooled, training=training)


@register(level="frame", paper="Huang, YouTube-8M Video Understanding, Stanford, 2")
class SpatioTemporalCnnModel(PoolingModel):
    """Convolutions over the features of each frame, then over the frames.

    [B, T, D] -> convolutions along D -> [B, T, D] -> convolutions along T -> mean over
    the frames -> head -> logits [B, C].

    Equation:
        u_t = sqrt(D) x_t
        L times u_t <- elu(V * u_t + b), * over the features
        L times u_t <- relu(sum_j u_{t+j} W_j + c)
        y = mean_t u_t

    Args:
        layers: of either kind.
        feature_channels: filters along the features.
        feature_width: how many features they see.
        channels: filters along the frames.
        width: how many frames they see.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        layers: int = 3,
        feature_channels: int = 8,
        feature_width: int = 3,
        channels: int = 1024,
        width: int = 3,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_layers = layers
        self.feature_channels = feature_channels
        self.feature_width = feature_width
        self.channels = channels
        self.width = width
        policy = self.dtype_policy
        self.spatial = FeatureConvolution(
            layers, feature_channels, feature_width, dtype=policy, name="spatial"
        )
        self.temporal = [
            TemporalConvolution(
                channels,
                width,
                add_batch_norm=False,
                dtype=policy,
                name=f"temporal_{i}",
            )
            for i in range(layers)
        ]

    def pool(self, frames, mask, training=False):
        frames = frames * frames.shape[-1] ** 0.5  # of norm 1: values around 1
        frames = self.spatial(frames)
        for convolution in self.temporal:
            frames = convolution(frames, mask, training=training)
        return masked_mean(frames, mask)

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


@register(level="frame", paper="Ostyakov et al. 2018, arXiv:1809.04403, 3")
class AttentionNetModel(PoolingModel):
    """Stacked attention: every layer tells each frame what it saw in the whole video.

    [B, T, D] -> stacked attention -> mean over frames [B, H] -> head -> logits [B, C].

    Equation:
        h_t = sqrt(D) x_t
        In each layer: c = sum_t softmax_t(tanh(h_t V + b) . w) h_t
        h_t <- relu([h_t; c] W + d)
        y = drop(mean_t h_t)

    Args:
        layers: how many.
        units: H, of each layer.
        dropout: of the frames' mean.
        Others as `PoolingModel`.
    """

    def __init__(
        self, layers: int = 3, units: int = 1024, dropout: float = 0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_layers = layers
        self.units = units
        self.dropout = dropout
        self.attention = StackedAttention(
            layers, units, dtype=self.dtype_policy, name="attention"
        )
        self.drop = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def pool(self, frames, mask, training=False):
        frames = frames * frames.shape[-1] ** 0.5  # of norm 1: values around 1
        return self.drop(self.attention(frames, mask), training=training)

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


@register(level="frame", paper="Long et al. 2018, arXiv:1711.09550")
class AttentionClusterModel(PoolingModel):
    """Clusters of attentions with the shifting operation, of two streams apart.

    [B, T, D] -> attention cluster of each stream -> joined -> dropout -> dense H ->
    ReLU -> head -> logits [B, C]. The first feature is one stream; all others together
    are the second.

    Equation:
        Of each stream, with u_t = sqrt(D) x_t and k = 1..A:
        v_k = sum_t softmax_t(u_t . w_k) u_t
        s_k = (alpha_k v_k + beta_k) / (sqrt(A) |alpha_k v_k + beta_k|)
        v = [s_1; ...; s_A]
        Of both:
        y = relu(drop([v; v']) W + b)

    Args:
        attentions: of each stream.
        attention_size: hidden layer of the attentions; None takes linear ones.
        shift: the shifting operation.
        hidden_size: H.
        dropout: before the dense layer.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        attentions: int = 32,
        attention_size: int | None = None,
        shift: bool = True,
        hidden_size: int = 2048,
        dropout: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.attentions = attentions
        self.attention_size = attention_size
        self.shift = shift
        self.hidden_size = hidden_size
        self.dropout = dropout
        policy = self.dtype_policy
        self.clusters = [
            AttentionPooling(
                attentions,
                attention_size,
                shift=shift,
                dtype=policy,
                name=f"cluster_{i}",
            )
            for i in range(min(len(self.features), 2))
        ]
        self.drop = Dropout(dropout, dtype=policy, name="dropout")
        self.hidden = keras.layers.Dense(
            hidden_size,
            activation="relu",
            # Shifted vectors have norm 1, which Glorot's variance would lose.
            kernel_initializer=keras.initializers.RandomNormal(stddev=1.0)
            if shift
            else "glorot_uniform",
            dtype=policy,
            name="hidden",
        )

    def pool(self, frames, mask, training=False):
        first, *_ = self.features.values()
        streams = [frames[..., :first], frames[..., first:]]
        pooled = [
            cluster(stream * stream.shape[-1] ** 0.5, mask)
            for cluster, stream in zip(self.clusters, streams, strict=False)
        ]
        joined = self.drop(ops.concatenate(pooled, axis=-1), training=training)
        return self.hidden(joined)


@register(level="frame", paper="Ilse, Tomczak, Welling 2018, arXiv:1802.04712")
class MultiAttentionModel(PoolingModel):
    """Several gated attentions over the frames, each a bag of instances.

    [B, T, D] -> dense H -> ReLU -> gated attentions -> combined -> dropout -> head ->
    logits [B, C].

    Equation:
        h_t = relu(x_t P + q)
        a_k = softmax_t((tanh(h_t V + b) sigmoid(h_t U + c)) . w_k): the paper's
            equation 9, without the gates its equation 8
        v_k = sum_t a_k,t h_t: its equation 7
        y = drop([v_1; ...; v_A])

    Args:
        attentions: how many.
        attention_size: hidden layer of the attentions.
        gated: multiply that layer by gates.
        combination: of the attended vectors: `concat`, `max` or `mean`.
        hidden_size: H; None takes the frames as they are.
        dropout: of the combined vector.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        attentions: int = 8,
        attention_size: int = 128,
        gated: bool = True,
        combination: str = "concat",
        hidden_size: int | None = 512,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.attentions = attentions
        self.attention_size = attention_size
        self.gated = gated
        self.combination = combination
        self.hidden_size = hidden_size
        self.dropout = dropout
        policy = self.dtype_policy
        if hidden_size:
            self.hidden = keras.layers.Dense(
                hidden_size,
                activation="relu",
                # Frames have norm 1, which Glorot's variance would lose.
                kernel_initializer=keras.initializers.RandomNormal(stddev=1.0),
                dtype=policy,
                name="hidden",
            )
        self.attention = AttentionPooling(
            attentions,
            attention_size,
            gated=gated,
            combination=combination,
            dtype=policy,
            name="attention",
        )
        self.drop = Dropout(dropout, dtype=policy, name="dropout")

    def pool(self, frames, mask, training=False):
        if self.hidden_size:
            frames = self.hidden(frames)
        return self.drop(self.attention(frames, mask), training=training)


@register(level="frame", paper="Vaswani et al. 2017, arXiv:1706.03762")
class TransformerModel(PoolingModel):
    """A transformer encoder over the frames that attends to valid frames alone.

    [B, T, D] -> encoder blocks -> pooled to [B, D] -> head -> logits [B, C].

    Equation:
        x <- sqrt(D) x + position; in each block, with Q, K and V linear in x:
        u = LN(x + [softmax(Q K' / sqrt(d)) V of each head] W): the paper's equation 1
        x <- LN(u + f(u W_1 + b_1) W_2 + b_2), f = gelu: its equation 2, there relu
        y = mean_t x_t

    Args:
        layers: how many blocks.
        heads: of the attention of each.
        ffn_size: size of the inner dense layer of each.
        dropout: of attention weights and of what the blocks add.
        activation: of the inner layer, `gelu` or `relu`.
        position: code of the positions, `none`, `learned` or `sinusoidal`.
        pooling: over the frames, `mean`, `first` or `attention`.
        max_frames: positions with a code, if they are learned.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        layers: int = 2,
        heads: int = 8,
        ffn_size: int = 2048,
        dropout: float = 0.1,
        activation: str = "gelu",
        position: str = "none",
        pooling: str = "mean",
        max_frames: int = 300,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_layers = layers
        self.heads = heads
        self.ffn_size = ffn_size
        self.dropout = dropout
        self.activation = activation
        self.position = position
        self.pooling = pooling
        self.max_frames = max_frames
        self.encoder = TransformerEncoder(
            layers,
            heads,
            ffn_size,
            dropout,
            activation,
            position,
            pooling,
            max_frames,
            dtype=self.dtype_policy,
            name="encoder",
        )

    def pool(self, frames, mask, training=False):
        return self.encoder(frames, mask, training=training)

    def get_config(self):
        return {**super().get_config(), "layers": self.num_layers}


@register(level="frame", paper="Ostyakov et al. 2018, arXiv:1809.04403, 2")
class LinearCombinationsModel(PoolingModel):
    """Sums of the frames, with learned weights that belong to their positions.

    [B, T, D] -> K sums [B, K D] -> head -> logits [B, C].

    Equation:
        v_k = sum_t w_tk x_t
        y = [v_1; ...; v_K]

    Args:
        combinations: K.
        max_frames: positions with a weight; frames beyond them are left out.
        Others as `PoolingModel`.
    """

    def __init__(self, combinations: int = 5, max_frames: int = 300, **kwargs):
        super().__init__(**kwargs)
        self.combinations = combinations
        self.max_frames = max_frames
        self.sums = LinearCombinations(
            combinations, max_frames, dtype=self.dtype_policy, name="sums"
        )

    def pool(self, frames, mask, training=False):
        return self.sums(frames, mask)


@register(level="frame", paper="Ostyakov et al. 2018, arXiv:1809.04403, 3")
class TimeDistributedDenseMaxModel(PoolingModel):
    """One dense layer for all frames, and the maximum of each of its values over them.

    [B, T, D] -> dense H -> ReLU -> max over frames [B, H] -> head -> logits [B, C].

    Equation:
        y = drop(max_t relu(sqrt(D) x_t W + b))

    Args:
        hidden_size: H.
        dropout: of the maxima.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        hidden_size: int = 2048,
        dropout: float = 0.0,
        head: str = "logistic",
        **kwargs,
    ):
        super().__init__(head=head, **kwargs)
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.dense = DBoF(
            hidden_size,
            activation="relu",
            add_batch_norm=False,
            dtype=self.dtype_policy,
            name="dense",
        )
        self.drop = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def pool(self, frames, mask, training=False):
        frames = frames * frames.shape[-1] ** 0.5  # of norm 1: values around 1
        return self.drop(self.dense(frames, mask), training=training)


@register(level="frame", paper="Ostyakov et al. 2018, arXiv:1809.04403, 3")
class TimeDistributedDenseSortingModel(PoolingModel):
    """A residual network for each frame, and dense layers on its surest results.

    For each frame and stream dense S -> BN -> ReLU -> residual block; joined ->
    residual block -> dense P -> BN -> ReLU. Of the frames the N of highest confidence,
    in that order -> [B, N P] -> two dense layers H with ReLU -> head -> logits [B, C].
    The first feature is one stream; all others together are the second.

    Equation:
        u_t = network(sqrt(D) x_t), a residual block u <- relu(u + BN(relu(BN(u A)) B))
        s_t = sigmoid(u_t . w + b); s_t1 >= s_t2 >= ... the greatest of them
        v = [s_t1 u_t1; ...; s_tN u_tN]
        y = relu(drop(relu(drop(v) W + b)) V + c)

    Args:
        inner_size: S.
        blocks: residual blocks of each stream, and of both joined.
        frame_size: P, of what is kept of a frame.
        count: N.
        hidden_size: H.
        dropout: of what is kept of the frames, and after the first dense layer.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        inner_size: int = 1024,
        blocks: int = 1,
        frame_size: int = 256,
        count: int = 10,
        hidden_size: int = 2048,
        dropout: float = 0.5,
        head: str = "logistic",
        **kwargs,
    ):
        super().__init__(head=head, **kwargs)
        self.inner_size = inner_size
        self.blocks = blocks
        self.frame_size = frame_size
        self.count = count
        self.hidden_size = hidden_size
        self.dropout = dropout
        policy = self.dtype_policy

        def stack(name, size):  # of width 1: every frame by itself
            first = TemporalConvolution(size, 1, dtype=policy, name=f"{name}_in")
            return [first] + [
                TemporalResidualBlock(size, 1, dtype=policy, name=f"{name}_block_{i}")
                for i in range(blocks)
            ]

        count_streams = min(len(self.features), 2)
        self.streams = [stack(f"stream_{i}", inner_size) for i in range(count_streams)]
        _, *self.joint = stack("joint", count_streams * inner_size)
        self.end = TemporalConvolution(frame_size, 1, dtype=policy, name="end")
        self.surest = SurestFrames(count, dtype=policy, name="surest")
        self.drop = Dropout(dropout, dtype=policy, name="dropout")
        self.hidden = [
            keras.layers.Dense(
                hidden_size, activation="relu", dtype=policy, name=f"hidden_{i}"
            )
            for i in range(2)
        ]

    def pool(self, frames, mask, training=False):
        first, *_ = self.features.values()
        frames = frames * frames.shape[-1] ** 0.5  # of norm 1: values around 1
        results = []
        for x, stack in zip(
            [frames[..., :first], frames[..., first:]], self.streams, strict=False
        ):
            for layer in stack:
                x = layer(x, mask, training=training)
            results.append(x)
        x = ops.concatenate(results, axis=-1)
        for layer in [*self.joint, self.end]:
            x = layer(x, mask, training=training)
        x = self.surest(x, mask)
        for hidden in self.hidden:
            x = hidden(self.drop(x, training=training))
        return x


# Four components, sparse experts, frames one by one


@register(level="frame", paper="Na et al. 2017, arXiv:1706.07960")
class SnuvlModel(PoolingModel):
    """Four components that combine freely: pooling, head, label processing, loss.

    [B, T, D] -> any pooling [B, H] -> head -> label processing -> logits [B, C].

    Equation:
        By default, the paper's equation 10:
        a_t = softmax_t(sum_i x_t . x_i)
        y = sum_t a_t x_t
        Its other poolings are equations 1 to 9, 11 and 12, heads 14 to 17, the label
        processing 20, losses 21 to 23.

    Args:
        pooling: name of the pooling of the frames, see `yt8m.layers.poolings`.
        pooling_args: its arguments, by name.
        bilinear_size: frames are first made compact bilinear features, of this size,
            of the first feature and all others; None leaves them concatenated.
        center_loss: give out a centre [H] of each class in training, for a loss of
            the embeddings' distances from them.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        pooling: str = "indirect_clustering",
        pooling_args: dict[str, Any] | None = None,
        bilinear_size: int | None = None,
        center_loss: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.pooling = pooling
        self._pooling_args = tuple((pooling_args or {}).items())
        self.bilinear_size = bilinear_size
        self.center_loss = center_loss
        args = dict(self._pooling_args)
        if pooling in POOLINGS and "num_classes" in arguments(POOLINGS[pooling]):
            args.setdefault("num_classes", self.num_classes)
        self.pooling_layer = create_pooling(
            pooling, **args, dtype=self.dtype_policy, name="pooling"
        )
        if bilinear_size:
            if len(self.features) < 2:
                raise ValueError(
                    "`bilinear_size` needs two features at least. Received: "
                    f"features={self.features}"
                )
            self.bilinear = CompactBilinear(
                bilinear_size, dtype=self.dtype_policy, name="bilinear"
            )

    @property
    def pooling_args(self) -> dict[str, Any]:
        return dict(self._pooling_args)

    @property
    def training_input_names(self) -> tuple[str, ...]:
        return getattr(self.pooling_layer, "training_input_names", ())

    def build(self, input_shapes):
        if self.center_loss:
            size = self.bilinear_size or sum(self.features.values())
            pooled = self.pooling_layer.compute_output_shape((None, None, size))
            self.centers = self.add_weight(
                name="centers",
                shape=(self.num_classes, pooled[-1]),
                initializer="zeros",
                autocast=False,
            )
        super().build(input_shapes)

    def pool(self, frames, mask, training=False, **given):
        if self.bilinear_size:
            first, *_ = self.features.values()
            frames = self.bilinear(frames[..., :first], frames[..., first:])
        return self.pooling_layer(frames, mask, training=training, **given)

    def call(self, inputs, training=False):
        frames, mask = self.preprocess(inputs)
        names = self.training_input_names if training else ()
        given = {name: inputs[name] for name in names if name in inputs}
        embedding = self.pool(frames, mask, training=training, **given)
        outputs = self.classifier(embedding, training=training)
        if training and self.center_loss:
            outputs["centers"] = ops.convert_to_tensor(self.centers)
        return {**outputs, "embedding": embedding}


@register(level="frame", paper="Na et al. 2017, arXiv:1706.07960, 2.3.1")
class ManyToManyModel(PoolingModel):
    """An LSTM whose every state is classified; the video gets the mean probability.

    [B, T, D] -> LSTM -> dropout -> head at each frame [B, T, C] -> mean of the
    probabilities over the valid frames -> logits [B, C].

    Equation:
        h = LSTM(x), that of `LstmModel`; the paper's equations 1 to 6
        p = mean_t sigmoid(drop(h_t) W + b)

    Args:
        cells: of the LSTM.
        dropout: rate, of the LSTM's outputs.
        Others as `PoolingModel`.
    """

    def __init__(
        self, cells: int = 1152, dropout: float = 0.8, head: str = "logistic", **kwargs
    ):
        super().__init__(head=head, **kwargs)
        self.cells = cells
        self.dropout = dropout
        self.lstm = LSTM(
            cells, return_sequences=True, dtype=self.dtype_policy, name="lstm"
        )
        self.drop = Dropout(dropout, dtype=self.dtype_policy, name="drop")

    def classify(self, frames, mask, training=False):
        states = self.drop(self.lstm(frames, mask), training=training)
        outputs = classify_frames(self.classifier, states, mask, training=training)
        # The loss is of the mean, not of the frames.
        del outputs["frame_logits"], outputs["frame_weights"]
        return {**outputs, "embedding": masked_mean(states, mask)}


@register(level="frame", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.1.1")
class FrameLogisticModel(PoolingModel):
    """A classifier of single frames, each of which is taught the video's labels.

    [B, T, D] -> head at each frame [B, T, C] -> mean of the probabilities over the
    valid frames -> logits [B, C]. The loss is the mean of the frames' losses.

    Equation:
        p_t = sigmoid(x_t W + b)
        p = mean_t p_t: the paper's equation 1
        loss = mean_t e(p_t), e that of the labels

    Args:
        head: name of the classifier, see `yt8m.layers.heads`.
        Others as `PoolingModel`.
    """

    default_frames = FrameSelection(20, "random", evaluation="all")

    def __init__(self, head: str = "logistic", **kwargs):
        super().__init__(head=head, **kwargs)

    def classify(self, frames, mask, training=False):
        outputs = classify_frames(self.classifier, frames, mask, training=training)
        if not training:
            del outputs["frame_logits"], outputs["frame_weights"]
        return {**outputs, "embedding": masked_mean(frames, mask)}


@register(level="frame", paper="LSTM_MoE of 2017; Shazeer et al., arXiv:1701.06538")
class LstmMoeModel(PoolingModel):
    """Two LSTMs with a sparse mixture of experts between them.

    [B, T, D] -> batch norm -> LSTM -> dropout -> sparse mixture of experts, frame by
    frame -> LSTM -> dropout -> sum of the frames, weighted by i / max_frames for
    frame i = 1, 2, ... -> head -> logits [B, C].

    Equation:
        Shazeer et al., equations 1 and 3 to 5, between LSTMs of `LstmModel`:
        h = drop(LSTM(BN(x)))
        g = softmax of the k greatest of h_t G + n softplus(h_t R), else 0; n normal in
            training and otherwise 0
        m_t = sum_e g_e (relu(h_t U_e + a_e) V_e + b_e)
        s = drop(LSTM(m))
        y = sum_t (t / max_frames) s_t: LSTM_MoE's paper, equations 1 and 2

    Args:
        cells: of each LSTM.
        experts, active, noisy, importance_weight, load_weight: see
            `yt8m.layers.sparse_moe`.
        expert_size: units of both layers of an expert.
        max_frames: see above.
        dropout: rate, after each LSTM.
        Others as `PoolingModel`.
    """

    def __init__(
        self,
        cells: int = 512,
        experts: int = 64,
        active: int = 4,
        expert_size: int = 1024,
        noisy: bool = True,
        importance_weight: float = 0.1,
        load_weight: float = 0.1,
        max_frames: int = 90,
        dropout: float = 0.4,
        head: str = "logistic",
        **kwargs,
    ):
        super().__init__(head=head, **kwargs)
        self.cells = cells
        self.experts = experts
        self.active = active
        self.expert_size = expert_size
        self.noisy = noisy
        self.importance_weight = importance_weight
        self.load_weight = load_weight
        self.max_frames = max_frames
        self.dropout = dropout

        self.input_norm = BatchNormalization(dtype=self.dtype_policy, name="input_norm")
        self.moe = SparseMixtureOfExperts(
            experts,
            active,
            hidden_size=expert_size,
            output_size=expert_size,
            noisy=noisy,
            importance_weight=importance_weight,
            load_weight=load_weight,
            dtype=self.dtype_policy,
            name="moe",
        )
        self.stack = [
            LSTM(
                cells, return_sequences=True, dtype=self.dtype_policy, name=f"lstm_{i}"
            )
            for i in range(2)
        ]
        self.drops = [
            Dropout(dropout, dtype=self.dtype_policy, name=f"drop_{i}")
            for i in range(2)
        ]
        self.read_out = LinearPooling(
            max_frames, dtype=self.dtype_policy, name="read_out"
        )

    def pool(self, frames, mask, training=False):
        frames = self.input_norm(frames, mask, training=training)
        first, second = self.stack
        states = self.drops[0](first(frames, mask), training=training)
        mixed = self.moe(states, mask, training=training)
        states = self.drops[1](second(mixed, mask), training=training)
        return self.read_out(states, mask)


# A segment within its video


@register(level="frame", paper="Huang, YouTube-8M Video Understanding, 4.2.1")
class ContextAwareModel(PoolingModel):
    """A segment beside an embedding of the whole video, which is given.

    [B, T, D] of a segment -> encoder, another model without its classifier -> beside
    the video's embedding [B, E] -> dense H, ReLU -> head -> logits [B, C]. The encoder
    begins with the weights of a run of its kind by --init_from, and learns at half the
    rate by --learning_rate_multipliers=segment_encoder=0.5.

    Equation:
        y = relu([f(x); v] W + b), f the encoder, v the video's embedding

    Args:
        encoder: name of the registered model that embeds the segment, a `PoolingModel`.
        encoder_args: its arguments, by name.
        hidden_size: H.
        video_embedding_size: E; 0 leaves the video out. Commands take it from their
            --video_embeddings.
        Others as `PoolingModel`.

    Call arguments:
        inputs: as `FrameLevelModel`, and `video_embedding` float32 [B, E], unless E is
            0. No gradient goes into it: the video's encoder is frozen.

    Raises:
        UserError: `encoder` is unknown, refuses its arguments or is no such model.
    """

    def __init__(
        self,
        encoder: str = "NetVLADModel",
        encoder_args: dict[str, Any] | None = None,
        hidden_size: int = 2048,
        video_embedding_size: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        cls = registry.get(encoder).cls
        if not issubclass(cls, PoolingModel) or cls.pool is PoolingModel.pool:
            raise UserError(
                f"encoder={encoder} is no model that pools frames and classifies the "
                "result; NetVLADModel and NeXtVLADModel are."
            )
        dynamics = {"dynamics": self.dynamics} if self.dynamics else {}
        self.encoder = encoder
        self._encoder_args = tuple((encoder_args or {}).items())
        self.hidden_size = hidden_size
        self.video_embedding_size = video_embedding_size
        self.segment_encoder = Encoder(
            registry.create(
                encoder,
                num_classes=self.num_classes,
                features=self.features,
                dtype=self.dtype_policy,
                **dynamics,
                **self.encoder_args,
            ),
            name="segment_encoder",
        )
        _refuse_training_inputs("encoder", encoder, self.segment_encoder.model)
        self.joint = keras.layers.Dense(
            hidden_size, activation="relu", dtype=self.dtype_policy, name="joint"
        )

    @property
    def encoder_args(self) -> dict[str, Any]:
        return dict(self._encoder_args)

    @property
    def input_names(self):
        video = [_VIDEO_EMBEDDING] if self.video_embedding_size else []
        return [*super().input_names, *video]

    def example_inputs(self, batch=2, frames=2):
        inputs = super().example_inputs(batch, frames)
        if self.video_embedding_size:
            inputs[_VIDEO_EMBEDDING] = ops.zeros((batch, self.video_embedding_size))
        return inputs

    def preprocess(self, inputs):
        return self.segment_encoder.model.preprocess(inputs)

    def pool(self, frames, mask, training=False, video=None):
        parts = [self.segment_encoder(frames, mask, training=training)]
        if self.video_embedding_size:
            parts.append(ops.cast(video, self.compute_dtype))
        return self.joint(ops.concatenate(parts, axis=-1))

    def call(self, inputs, training=False):
        frames, mask = self.preprocess(inputs)
        video = inputs.get(_VIDEO_EMBEDDING)
        embedding = self.pool(frames, mask, training=training, video=video)
        outputs = self.classifier(embedding, training=training)
        return {**outputs, "embedding": embedding}
