"""What every model is: raw features in, `preprocess`, `classify`, logits out.

A model is a `keras.Model` built from `keras.ops` and Keras layers alone, so that it
compiles with XLA and runs on any Keras backend. It takes the batch as it was read
(bytes or floats), carries its own input transform, and can also be entered after
that transform, through `classify`.
"""

import itertools
from typing import Any

import keras
from keras import ops

from yt8m import registry, schema
from yt8m.config import FrameSelection
from yt8m.layers.classifiers import create_head
from yt8m.layers.constants import weights_follow
from yt8m.layers.dynamics import find_dynamics
from yt8m.layers.global_normalization import GlobalNormalization
from yt8m.layers.heads import Head
from yt8m.layers.masking import length_mask
from yt8m.layers.preprocessing import dequantize, l2_normalize

Outputs = dict[str, Any]


class YT8MModel(keras.Model):
    """Base of all models; use `FrameLevelModel` or `VideoLevelModel`.

    A model keeps each constructor argument as an attribute of the same name, from
    which `get_config` reads it, and gives its layers `dtype=self.dtype_policy`.

    Args:
        num_classes: number of classes C.
        features: name and size of each input feature, in the order in which they
            are concatenated; their sizes add up to D.
    """

    level: str  # set by `yt8m.registry.register`
    paper: str

    def __init__(
        self,
        num_classes: int = schema.NUM_CLASSES,
        features: dict[str, int] | None = None,
        **kwargs,
    ):
        # Features stay as they are until `preprocess` has normalised them: float16
        # cannot hold one beyond 65504, nor one below 1e-8.
        super().__init__(autocast=False, **kwargs)
        self.num_classes = num_classes
        # A tuple: Keras would wrap a dict attribute and lose its order on reload.
        self.feature_sizes = tuple((features or self.default_features()).items())

    @classmethod
    def default_features(cls) -> dict[str, int]:
        raise NotImplementedError

    @property
    def features(self) -> dict[str, int]:
        return dict(self.feature_sizes)

    #: Keys of a batch that the model reads beside these, in training only.
    training_input_names: tuple[str, ...] = ()

    @property
    def input_names(self) -> list[str]:
        """The keys of a batch that the model reads."""
        return list(self.features)

    def example_inputs(self, batch: int = 2, frames: int = 2) -> dict[str, Any]:
        """Zeros in the shape of a batch, with which the model can be built."""
        raise NotImplementedError

    def ensure_built(self) -> "YT8MModel":
        """Creates all weights, by one call on `example_inputs`."""
        if not self.built:
            self(self.example_inputs())
        return self

    def get_build_config(self) -> dict[str, Any]:
        return {"input_names": self.input_names}

    def build_from_config(self, config: dict[str, Any]) -> None:
        # Keras would call the model on floats of the recorded shapes.
        with weights_follow():
            self.ensure_built()

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument, read from the attribute of the same name."""
        arguments = registry.arguments(type(self))
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in arguments},
        }


class HeadModel(YT8MModel):
    """Base of models that end in a head, which any embedding can go into.

    Args:
        head: name of the classifier, see `yt8m.layers.classifiers`.
        head_args: arguments of the head, by name; these override the ones below.
        num_mixtures: experts of each class; None takes the head's own number.
        l2_penalty: the loss gets l2_penalty * sum(w^2) / 2 of the head's kernels.
        label_processing, label_processing_args: what the logits pass through, see
            `yt8m.layers.label_processing`, and its arguments.
        gating_probabilities: context gating of the class probabilities, whose
            weights are C x C.

    Raises:
        UserError: an unknown head, an argument that it does not have, or
            `num_mixtures` for a head without mixtures.
    """

    def __init__(
        self,
        head: str = "moe",
        head_args: dict[str, Any] | None = None,
        num_mixtures: int | None = None,
        l2_penalty: float = 1e-8,
        label_processing: str | None = None,
        label_processing_args: dict[str, Any] | None = None,
        gating_probabilities: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.head = head
        self._head_args = tuple((head_args or {}).items())
        self.num_mixtures = num_mixtures
        self.l2_penalty = l2_penalty
        self.label_processing = label_processing
        self._label_processing_args = tuple((label_processing_args or {}).items())
        self.gating_probabilities = gating_probabilities
        self._create_classifier()  # refuses wrong arguments before anything is built

    @property
    def head_args(self) -> dict[str, Any]:
        return dict(self._head_args)

    @property
    def label_processing_args(self) -> dict[str, Any]:
        return dict(self._label_processing_args)

    def _create_classifier(self) -> Head:
        args = {
            "num_mixtures": self.num_mixtures,
            "l2_penalty": self.l2_penalty,
            "label_processing": self.label_processing,
            "label_processing_args": self.label_processing_args,
            "gating_probabilities": self.gating_probabilities,
        }
        return create_head(
            self.head,
            self.num_classes,
            **{**args, **self.head_args},
            dtype=self.dtype_policy,
            name="head",
        )

    def build(self, input_shapes: dict[str, Any]) -> None:
        # Here, so that its weights follow those of the subclass in checkpoints.
        self.classifier = self._create_classifier()
        self.built = True


class FrameLevelModel(YT8MModel):
    """Base of models that read frames; a subclass defines `classify`.

    Args:
        dynamics: the model sees what changes in a video alone: its frames less their
            mean (`minus_mean`), or through a high-pass filter over time (`wavelet`),
            see `yt8m.layers.dynamics`. None: the frames as they are.
        Others as `YT8MModel`.

    Call arguments:
        inputs: dictionary of one [B, T, size] tensor for each feature (uint8 is
            dequantised, floats are taken as they are) and `num_frames` int32 [B].
            Rows from `num_frames` on are padding and may hold anything.

    Returns:
        Dictionary with `logits` float32 [B, C] and usually `embedding` [B, H] (what
        feeds the classifier). In training it may have more, for the loss (see
        `yt8m.losses.objective`): `auxiliary_logits`, a list of [B, C], for deep
        supervision; `frame_logits` [B, T, C] with `frame_weights` [B, T]; `penalty`
        [B], added to the loss of each example.
    """

    #: The frames a model takes unless flags say otherwise; None takes all.
    default_frames = FrameSelection()

    def __init__(self, dynamics: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.dynamics = dynamics
        if dynamics:
            find_dynamics(dynamics)  # refuses an unknown one before anything is built

    @classmethod
    def default_features(cls) -> dict[str, int]:
        return dict(schema.FRAME_FEATURES)

    @property
    def input_names(self) -> list[str]:
        return [*self.features, "num_frames"]

    def example_inputs(self, batch: int = 2, frames: int = 2) -> dict[str, Any]:
        inputs = {
            name: ops.zeros((batch, frames, size), dtype="uint8")
            for name, size in self.features.items()
        }
        inputs["num_frames"] = ops.full((batch,), frames, dtype="int32")
        return inputs

    def preprocess(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Dequantises, concatenates, L2-normalises each frame, zeroes the padding.

        Returns:
            frames [B, T, D] in the compute dtype and mask bool [B, T].
        """
        parts = [inputs[name] for name in self.features]
        bytes_alone = all(
            keras.backend.standardize_dtype(x.dtype) == "uint8" for x in parts
        )
        if self.dynamics or not bytes_alone:
            parts = [dequantize(x, "float32") for x in parts]
            frames, mask = self.join(parts, inputs["num_frames"])
            return l2_normalize(frames, dtype=self.compute_dtype), mask
        # Bytes are a quarter of the floats to concatenate, and none of them is NaN.
        frames = dequantize(ops.concatenate(parts, axis=-1), "float32")
        mask = length_mask(inputs["num_frames"], ops.shape(frames)[1])
        frames = l2_normalize(frames, dtype=self.compute_dtype, mask=mask[..., None])
        return frames, mask

    def join(self, parts: list[Any], num_frames: Any) -> tuple[Any, Any]:
        """Concatenates features, zeroes the padding, and takes the dynamics if asked.

        Args:
            parts: float32 [B, T, size] of each feature.
            num_frames: int32 [B].

        Returns:
            frames float32 [B, T, D] and mask bool [B, T].
        """
        mask = length_mask(num_frames, ops.shape(parts[0])[1])
        frames = ops.concatenate(parts, axis=-1)
        # Selected, not multiplied: garbage in the padding may be NaN.
        frames = ops.where(mask[..., None], frames, 0.0)
        if self.dynamics:
            frames = find_dynamics(self.dynamics)(frames, mask)
        return frames, mask

    def classify(self, frames: Any, mask: Any, training: bool = False) -> Outputs:
        """From preprocessed frames [B, T, D] and mask [B, T] to the outputs."""
        raise NotImplementedError

    def call(self, inputs: dict[str, Any], training: bool = False) -> Outputs:
        frames, mask = self.preprocess(inputs)
        return self.classify(frames, mask, training=training)


class PoolingModel(HeadModel, FrameLevelModel):
    """Base of models that pool the frames to one vector, which any head classifies.

    A subclass defines `pool`.

    Args:
        All as `HeadModel` and `FrameLevelModel`.
    """

    def pool(self, frames: Any, mask: Any, training: bool = False) -> Any:
        """From preprocessed frames [B, T, D] and mask [B, T] to one vector [B, H]."""
        raise NotImplementedError

    def classify(self, frames: Any, mask: Any, training: bool = False) -> Outputs:
        embedding = self.pool(frames, mask, training=training)
        outputs = self.classifier(embedding, training=training)
        return {**outputs, "embedding": embedding}


class VideoLevelModel(YT8MModel):
    """Base of models that read one vector a video; a subclass defines `classify`.

    Args:
        normalization: a file of `yt8m normalization`, by which the vector is centred,
            whitened and L2-normalised; None leaves that to `normalize`.
        normalization_size: principal components that are taken; None takes D.

    Call arguments:
        inputs: dictionary of one float32 [B, size] tensor for each feature.

    Returns:
        As `FrameLevelModel`.
    """

    def __init__(
        self,
        normalization: str | None = None,
        normalization_size: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.normalization = normalization
        self.normalization_size = normalization_size
        if normalization:
            self.whitening = GlobalNormalization(
                normalization,
                normalization_size,
                dtype=self.dtype_policy,
                name="normalization",
            )

    @classmethod
    def default_features(cls) -> dict[str, int]:
        # The starter code's default; its README adds mean_audio by flag.
        return {"mean_rgb": schema.VIDEO_FEATURES["mean_rgb"]}

    def example_inputs(self, batch: int = 2, frames: int = 2) -> dict[str, Any]:
        return {
            name: ops.zeros((batch, size), dtype="float32")
            for name, size in self.features.items()
        }

    def preprocess(self, inputs: dict[str, Any]) -> Any:
        """Concatenates the features and normalises the vector [B, D]."""
        parts = [ops.cast(inputs[n], "float32") for n in self.features]
        video = ops.concatenate(parts, axis=-1)
        return self.whitening(video) if self.normalization else self.normalize(video)

    def normalize(self, video: Any) -> Any:
        """What is done to the vector [B, D] where no file says how to normalise it."""
        return l2_normalize(video, dtype=self.compute_dtype)

    def streams(self, video: Any) -> list[Any]:
        """The features apart, or all together once they have been whitened."""
        if self.normalization:
            return [video]
        ends = list(itertools.accumulate(self.features.values(), initial=0))
        return [video[:, a:b] for a, b in itertools.pairwise(ends)]

    def classify(self, video: Any, training: bool = False) -> Outputs:
        """From the preprocessed vector [B, D] to the outputs."""
        raise NotImplementedError

    def call(self, inputs: dict[str, Any], training: bool = False) -> Outputs:
        return self.classify(self.preprocess(inputs), training=training)


class EmbeddingModel(HeadModel, VideoLevelModel):
    """Base of video-level models that end in a head; a subclass may define `embed`.

    Args:
        head: name of the classifier, see `yt8m.layers.classifiers`.
        Others as `HeadModel` and `VideoLevelModel`.
    """

    def __init__(self, head: str = "logistic", **kwargs):
        super().__init__(head=head, **kwargs)

    @classmethod
    def default_features(cls) -> dict[str, int]:
        return dict(schema.VIDEO_FEATURES)

    def embed(self, video: Any, training: bool = False) -> Any:
        """From the preprocessed vector [B, D] to the vector [B, H] for the head."""
        return video

    def classify(self, video: Any, training: bool = False) -> Outputs:
        embedding = self.embed(video, training=training)
        outputs = self.classifier(embedding, training=training)
        return {**outputs, "embedding": embedding}


def forward(model: Any, batch: dict[str, Any], training: bool = False) -> Outputs:
    """What the model makes of a batch as the reader gives it.

    Evaluation, inference and export all call this, so that they cannot disagree.
    """
    names = list(model.input_names)
    if training:
        names += model.training_input_names
    inputs = {name: batch[name] for name in names}
    return model(inputs, training=training)


def top_classes(logits: Any, k: int) -> tuple[Any, Any]:
    """The k classes of highest logit, best first; the lower class first among equals.

    Ranked on the logits, because probabilities saturate.

    Args:
        logits: float32 [B, C].
        k: how many; all C if there are fewer.

    Returns:
        classes int32 [B, k] and their probabilities float32 [B, k].
    """
    values, classes = ops.top_k(logits, min(k, logits.shape[-1]))
    probabilities = ops.sigmoid(ops.cast(values, "float64"))
    return ops.cast(classes, "int32"), ops.cast(probabilities, "float32")
