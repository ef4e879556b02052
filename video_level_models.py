"""The models that read one vector a video. Add yours here: see README.md."""

import itertools

import keras
from keras import ops

from yt8m import schema
from yt8m.layers.dropout import SeedGenerator
from yt8m.layers.normalization import BatchNormalization, Centring
from yt8m.layers.preprocessing import l2_normalize
from yt8m.layers.residual import DenseBlock, ResNetLike, ThsFeatures
from yt8m.model import EmbeddingModel
from yt8m.registry import register


@register(level="video", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.3.1")
class LogisticModel(EmbeddingModel):
    """Logistic regression on the video's features.

    [B, D] -> L2 -> dense C -> logits [B, C].

    Equation:
        x = l2(video)
        p = sigmoid(x W + b), the model in the paper's equation 3

    Args:
        All as `EmbeddingModel`.
    """

    @classmethod
    def default_features(cls) -> dict[str, int]:
        # The starter code's default; its README adds mean_audio by flag.
        return {"mean_rgb": schema.VIDEO_FEATURES["mean_rgb"]}


@register(level="video", paper="Abu-El-Haija et al. 2016, arXiv:1609.08675, 4.3.3")
class MoeModel(EmbeddingModel):
    """Mixture of logistic experts, one mixture for each class.

    [B, D] -> L2 -> gates C * (M + 1), experts C * M -> logits [B, C].

    Equation:
        x = l2(video)
        p = sum_{m<=M} softmax(x G)_m sigmoid(x E_m + b_m), of each class; G has M + 1
            columns, the last for the expert that says no

    Args:
        head: name of the classifier, see `yt8m.layers.classifiers`.
        num_mixtures: experts M of each class, beside one that always says no.
        Others as `EmbeddingModel`.
    """

    def __init__(self, head: str = "moe", num_mixtures: int | None = 2, **kwargs):
        super().__init__(head=head, num_mixtures=num_mixtures, **kwargs)

    @classmethod
    def default_features(cls) -> dict[str, int]:
        return LogisticModel.default_features()


@register(level="video", paper="none: our own")
class CentredMoeModel(EmbeddingModel):
    """A mixture of experts on centred features, which training disturbs.

    [B, D] -> each feature: minus its mean over the training videos, each dimension
    times a power of its standard deviation over them, L2, times its scale -> normal
    noise -> mixture of experts -> logits [B, C].

    L2 normalisation alone leaves the videos' common mean in every vector, where it
    takes most of the norm. The dataset's features were whitened, which makes what tells
    little of a video as large as what tells much; the standard deviations of the means
    over a video still know. Noise of about the norm of a vector keeps a mixture of many
    weights from learning a few thousand videos by heart.

    Equation:
        u = (x - m) (d / rms(d))^a, m and d the mean and deviation of each dimension, a
            the emphasis
        y = [s_1 l2(u_1); s_2 l2(u_2); ...] + noise n, u_i the features, s_i their
            scales, n normal in training and otherwise 0
        p as in `MoeModel`, of y

    Args:
        emphasis: the power; 0 leaves the dimensions as they are.
        feature_scales: norm of each feature, in their order; the last one holds for
            those that follow.
        noise: standard deviation of the noise on each dimension, in training.
        head: name of the classifier, see `yt8m.layers.classifiers`.
        num_mixtures: experts of each class.
        Others as `EmbeddingModel`.
    """

    def __init__(
        self,
        emphasis: float = 0.0,
        feature_scales: tuple[float, ...] = (1.0, 0.525),
        noise: float = 0.03,
        head: str = "moe",
        num_mixtures: int | None = 8,
        **kwargs,
    ):
        super().__init__(head=head, num_mixtures=num_mixtures, **kwargs)
        self.emphasis = emphasis
        self.feature_scales = tuple(feature_scales)
        self.noise = noise
        self.centring = Centring(
            emphasis=emphasis, dtype=self.dtype_policy, name="centring"
        )
        if noise:
            self.seed_generator = SeedGenerator()

    def normalize(self, video):
        return video

    def embed(self, video, training=False):
        video = ops.cast(video, "float32")
        if not self.normalization:
            video = self.centring(video, training=training)
        scales = itertools.chain(
            self.feature_scales, itertools.repeat(self.feature_scales[-1])
        )
        parts = [
            scale * l2_normalize(stream)
            for stream, scale in zip(self.streams(video), scales, strict=False)
        ]
        video = ops.concatenate(parts, axis=-1)
        if training and self.noise:
            video = video + self.noise * keras.random.normal(
                ops.shape(video), dtype="float32", seed=self.seed_generator
            )
        return ops.cast(video, self.compute_dtype)


@register(level="video", paper="Ostyakov et al. 2018, arXiv:1809.04403, 3")
class ResNetLikeModel(EmbeddingModel):
    """Residual blocks of each feature apart, then of all together.

    [B, D] -> streams, one a feature -> ResNetLike H -> head -> logits [B, C]. The
    features are taken as they are stored.

    Equation:
        d(x) = drop(leaky(BN(x W))); leaky(x) = max(x, 0.01 x)
        r(x) = leaky(x + d(x) V + b): arXiv:1512.03385, equation 1
        s_i = r(...r(d(x_i))), x_i the features
        y = d(r(...r([s_1; s_2; ...])))

    Args:
        inner_size: H.
        stream_blocks, joint_blocks: residual blocks of each stream and after them.
        dropout: of each dense block.
        Others as `EmbeddingModel`.
    """

    def __init__(
        self,
        inner_size: int = 2048,
        stream_blocks: int = 1,
        joint_blocks: int = 1,
        dropout: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.inner_size = inner_size
        self.stream_blocks = stream_blocks
        self.joint_blocks = joint_blocks
        self.dropout = dropout
        self.resnet = ResNetLike(
            inner_size,
            stream_blocks=stream_blocks,
            joint_blocks=joint_blocks,
            dropout=dropout,
            dtype=self.dtype_policy,
            name="resnet",
        )

    def normalize(self, video):
        return ops.cast(video, self.compute_dtype)

    def embed(self, video, training=False):
        return self.resnet(self.streams(video), training=training)


@register(level="video", paper="Wang et al. 2017, arXiv:1706.05150")
class DeepCombineChainModel(EmbeddingModel):
    """A chain of mixtures of experts on the video's features.

    [B, D] -> L2 -> chain head -> logits [B, C]. Its stages are trained if
    --deep_supervision_weight is positive.

    Equation:
        x_0 = l2(video)
        p_i = MoE_i(x_i), as in `MoeModel`; x_{i+1} = [x_i; l2(relu(p_i W_i + b_i))]
        p = MoE_S(x_S)

    Args:
        head, head_args: `chain` and its arguments, see `ChainHead`.
        Others as `EmbeddingModel`.
    """

    def __init__(self, head: str = "chain", **kwargs):
        super().__init__(head=head, **kwargs)


@register(level="video", paper="CV_Group, 2018 challenge (MultiTaskCombineChain)")
class MultiTaskCombineChainModel(EmbeddingModel):
    """Two chains over latent classes, with four supervised outputs.

    [B, D] -> L2 -> multitask_chain head -> logits [B, C]. The four outputs are trained
    by themselves if --deep_supervision_weight is positive.

    Equation:
        In chain k, from x_0 = l2(video), with f = elu and f = leaky_relu:
        q_i = MoE_i(x_i), of latent classes; x_{i+1} = [x_i; l2(f(q_i W_i + b_i))]
        m_k = MoE(x_S); s_k = MoE(mean_i q_i)
        Of both:
        p = (m_1 + m_2 + s_1 + s_2) / 4

    Args:
        head, head_args: `multitask_chain` and its arguments, see `MultiTaskChainHead`.
        Others as `EmbeddingModel`.
    """

    def __init__(self, head: str = "multitask_chain", **kwargs):
        super().__init__(head=head, **kwargs)


@register(level="video", paper="THSModel, 59th of the 2018 challenge")
class ThsModel(EmbeddingModel):
    """A corrected input, wide, through dense shortcuts and through residual blocks.

    [B, D] -> noise -> L2 of each feature -> ThsFeatures -> head -> logits [B, C].

    Equation:
        x = [l2(x_1); l2(x_2); ...], x_i the features
        z = drop(2 sigmoid(x W + b) x + 0.1 tanh(x V + c))
        s_i = relu([s_{i-2}; s_{i-1}; z] U_i + d_i), i = 1..4
        r_i = relu(BN(r_{i-1} + BN(relu(BN(r_{i-1} A_i)) B_i))), i = 1, 2; r_0 = z
        y = [x; relu(-z); relu(z); relu(z - 0.5); s_4; r_2]

    Args:
        noise: standard deviation of the noise that training adds to the features.
        hidden_size: of the dense layers with shortcuts.
        dropout: of the corrected input.
        Others as `EmbeddingModel`.
    """

    def __init__(
        self,
        noise: float = 0.05,
        hidden_size: int = 1024,
        dropout: float = 0.05,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.noise = noise
        self.hidden_size = hidden_size
        self.dropout = dropout
        if noise:
            self.seed_generator = SeedGenerator()
        self.ths = ThsFeatures(
            hidden_size, dropout, dtype=self.dtype_policy, name="ths"
        )

    def normalize(self, video):
        return video

    def embed(self, video, training=False):
        if training and self.noise:
            video = video + self.noise * keras.random.normal(
                ops.shape(video), dtype=video.dtype, seed=self.seed_generator
            )
        parts = [
            l2_normalize(stream, dtype=self.compute_dtype)
            for stream in self.streams(video)
        ]
        return self.ths(ops.concatenate(parts, axis=-1), training=training)


@register(level="video", paper="Y8M, fifth of the 2017 challenge (MoNN3Lw)")
class MonnModel(EmbeddingModel):
    """A mixture of neural networks on the statistics of a video.

    [B, D] -> monn head -> logits [B, C]. The features are taken as they are stored,
    but for `num_frames`, which is divided by the most frames that a video has.

    Equation:
        h_0 = x; h_l = relu(h_{l-1} W_l + b_l), l = 1..L
        p = sum_{m<=M} softmax(x G)_m sigmoid(h_L E_m + c_m), of each class; G has M + 1
            columns, the last for an expert that says no

    Args:
        head, head_args: `monn` and its arguments, see `MoNNHead`.
        Others as `EmbeddingModel`.
    """

    def __init__(self, head: str = "monn", **kwargs):
        super().__init__(head=head, **kwargs)

    def normalize(self, video):
        scale = [
            ops.full((size,), 1 / schema.MAX_FRAMES if name == "num_frames" else 1.0)
            for name, size in self.features.items()
        ]
        return ops.cast(video * ops.concatenate(scale), self.compute_dtype)


@register(level="video", paper="5th of the 2019 challenge (its frame-level features)")
class MlpModel(EmbeddingModel):
    """Dense layers, each with batch norm, ReLU and dropout.

    [B, D] -> BN -> L times dense H, BN, ReLU, dropout -> head -> logits [B, C]. The
    features are taken as they are stored.

    Equation:
        h_0 = BN(x); h_l = drop(relu(BN(h_{l-1} W_l))), l = 1..L
        y = h_L

    Args:
        hidden_sizes: H of each layer.
        dropout: of each layer.
        Others as `EmbeddingModel`.
    """

    def __init__(
        self,
        hidden_sizes: tuple[int, ...] = (4096, 4096, 4096),
        dropout: float = 0.4,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_sizes = tuple(hidden_sizes)
        self.dropout = dropout
        self.input_norm = BatchNormalization(dtype=self.dtype_policy, name="input_norm")
        self.blocks = [
            DenseBlock(
                units, "relu", dropout, dtype=self.dtype_policy, name=f"hidden_{i}"
            )
            for i, units in enumerate(self.hidden_sizes)
        ]

    def normalize(self, video):
        return ops.cast(video, self.compute_dtype)

    def embed(self, video, training=False):
        video = self.input_norm(video, training=training)
        for block in self.blocks:
            video = block(video, training=training)
        return video
