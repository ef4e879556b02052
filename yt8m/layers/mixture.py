"""Mixtures of whole classifiers, which teach one another while they are trained."""

from typing import Any

import keras
from keras import ops

from yt8m.layers.normalization import BatchNormalization


@keras.saving.register_keras_serializable(package="yt8m")
class LogitMixture(keras.layers.Layer):
    """Mixes the logits of K branches by gates that have seen the input.

    g = softmax(BN(x) W + b); mix = sum_k g_k logits_k. In training each branch is to
    learn the labels, and to agree with the mixture over the classes:
    penalty = w T^2 sum_k KL(softmax(mix / T) || softmax(logits_k / T)).

    Args:
        temperature: T.
        distillation_weight: w; 0 has no penalty.

    Call arguments:
        x: [B, D], what the gates see.
        logits: list of K float32 [B, C].

    Returns:
        Dictionary with `logits` float32 [B, C], and in training the branches' as
        `auxiliary_logits` and `penalty` [B].

    Reference:
        Lin et al. 2018, arXiv:1811.05014; Lan, Zhu, Gong 2018,
        arXiv:1806.04606 (on-the-fly distillation).
    """

    def __init__(
        self, temperature: float = 3.0, distillation_weight: float = 1.0, **kwargs
    ):
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError(
                f"`temperature` must be positive. Received: temperature={temperature}"
            )
        self.temperature = temperature
        self.distillation_weight = distillation_weight

    def build(self, x_shape, logits_shape):
        self.batch_norm = BatchNormalization(dtype=self.dtype_policy, name="batch_norm")
        self.batch_norm.build(x_shape)
        self.gate = keras.layers.Dense(
            len(logits_shape),
            kernel_initializer="he_normal",
            dtype=self.dtype_policy,
            name="gate",
        )
        self.gate.build(x_shape)
        self.built = True

    def call(self, x, logits, training=False):
        gates = self.gate(self.batch_norm(x, training=training))
        gates = ops.softmax(ops.cast(gates, "float32"), axis=-1)
        logits = [ops.cast(each, "float32") for each in logits]
        mixture = sum(gates[:, k : k + 1] * each for k, each in enumerate(logits))
        outputs: dict[str, Any] = {"logits": mixture}
        if training:
            outputs["auxiliary_logits"] = logits
            if self.distillation_weight:
                outputs["penalty"] = self._penalty(mixture, logits)
        return outputs

    def _penalty(self, mixture, logits):
        teacher = ops.log_softmax(mixture / self.temperature, axis=-1)
        shares, divergence = ops.exp(teacher), 0.0
        for each in logits:
            student = ops.log_softmax(each / self.temperature, axis=-1)
            divergence += ops.sum(shares * (teacher - student), axis=-1)
        return self.distillation_weight * self.temperature**2 * divergence

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "distillation_weight": self.distillation_weight,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class Branch(keras.layers.Layer):
    """A model that is part of another one, entered after the input transform.

    As a layer, so that the weights of several have names of their own.

    Args:
        model: with `classify(frames, mask, training)`, as `yt8m.model.PoolingModel`.

    Call arguments:
        frames: [B, T, D].
        mask: bool [B, T].

    Returns:
        The outputs of `model.classify`.
    """

    def __init__(self, model: keras.Model, **kwargs):
        super().__init__(dtype=model.dtype_policy, **kwargs)
        self.model = model

    def build(self, frames_shape, mask_shape=None):
        self.model.build(None)
        self.built = True

    def call(self, frames, mask, training=False):
        return self.model.classify(frames, mask, training=training)

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model}

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config.pop("model"))
        config.pop("dtype")
        return cls(model, **config)


@keras.saving.register_keras_serializable(package="yt8m")
class Encoder(Branch):
    """A model without its classifier, as part of another one.

    Args:
        model: with `pool(frames, mask, training)`, as `yt8m.model.PoolingModel`.

    Call arguments:
        frames: [B, T, D].
        mask: bool [B, T].

    Returns:
        The embedding [B, H] that the classifier would see.
    """

    def build(self, frames_shape, mask_shape=None):
        self.model.built = True  # but for the classifier, which nothing calls
        self.built = True

    def call(self, frames, mask, training=False):
        return self.model.pool(frames, mask, training=training)
