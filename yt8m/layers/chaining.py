"""Chaining: classifiers that see what the classifiers before them said."""

import functools
from typing import Any

import keras
from keras import ops

from yt8m.layers.gating import log_add_exp
from yt8m.layers.heads import Head, MoEHead
from yt8m.layers.preprocessing import l2_normalize

ACTIVATIONS = ("relu", "elu", "leaky_relu")


@keras.saving.register_keras_serializable(package="yt8m")
class Chain(keras.layers.Layer):
    """Stages that each add to the vector what a mixture of experts makes of it.

    With x_0 = x, for i = 0 to S - 1:
        p_i = MoE_i(x_i);
        x_{i+1} = [x_i; l2(activation(W_i p_i + b_i))].

    Args:
        size: of each p_i.
        stages: S.
        cells: of each W_i p_i.
        num_mixtures: experts of each of the `size` values.
        activation: `relu`, `elu` or `leaky_relu`.
        l2_penalty: the loss gets l2_penalty * sum(w^2) / 2 of each kernel.

    Call arguments:
        x: [B, H].

    Returns:
        x_S [B, H + S * cells] and the list of the logits of p_i, float32 [B, size].

    Reference:
        Wang et al. 2017, arXiv:1706.05150 (the chaining of its video-level model).
    """

    def __init__(
        self,
        size: int,
        stages: int,
        cells: int,
        num_mixtures: int = 2,
        activation: str = "relu",
        l2_penalty: float = 1e-8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in (("stages", stages), ("cells", cells)):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"`activation` must be one of {', '.join(ACTIVATIONS)}. "
                f"Received: activation={activation}"
            )
        self.size = size
        self.stages = stages
        self.cells = cells
        self.num_mixtures = num_mixtures
        self.activation = activation
        self.l2_penalty = l2_penalty
        self.classifiers = [
            MoEHead(
                size,
                num_mixtures,
                l2_penalty=l2_penalty,
                dtype=self.dtype_policy,
                name=f"classifier_{i}",
            )
            for i in range(stages)
        ]
        self.projections = [
            keras.layers.Dense(
                cells,
                kernel_regularizer=keras.regularizers.L2(l2_penalty / 2),
                dtype=self.dtype_policy,
                name=f"projection_{i}",
            )
            for i in range(stages)
        ]

    def build(self, input_shape):
        width = input_shape[-1]
        for classifier, projection in self._stages():
            classifier.build((None, width))
            projection.build((None, self.size))
            width += self.cells
        self.built = True

    def _stages(self):
        return zip(self.classifiers, self.projections, strict=True)

    def call(self, x, training=False):
        said = []
        activate = getattr(ops, self.activation)
        for classifier, projection in self._stages():
            logits = classifier.class_logits(x, training=training)
            said.append(logits)
            cells = activate(projection(ops.sigmoid(logits)))
            x = ops.concatenate([x, l2_normalize(cells)], axis=-1)
        return x, said

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "stages": self.stages,
            "cells": self.cells,
            "num_mixtures": self.num_mixtures,
            "activation": self.activation,
            "l2_penalty": self.l2_penalty,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class ChainHead(Head):
    """A chain of mixtures of experts over the classes; the last one is the answer.

    The stages before it are classifiers too, and their logits the auxiliary ones.

    Args:
        num_classes: number of classes C.
        stages: classifiers S before the last one.
        cells: of each stage, see `Chain`.
        num_mixtures: experts of each class, in all classifiers.
        activation: of the cells: `relu`, `elu` or `leaky_relu`.
        Others as `Head`.

    Reference:
        Wang et al. 2017, arXiv:1706.05150 (chaining).
    """

    def __init__(
        self,
        num_classes: int,
        stages: int = 8,
        cells: int = 128,
        num_mixtures: int = 2,
        activation: str = "relu",
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        self.stages = stages
        self.cells = cells
        self.num_mixtures = num_mixtures
        self.activation = activation
        self.chain = Chain(
            num_classes,
            stages,
            cells,
            num_mixtures=num_mixtures,
            activation=activation,
            l2_penalty=self.l2_penalty,
            dtype=self.dtype_policy,
            name="chain",
        )
        self.classifier = MoEHead(
            num_classes,
            num_mixtures,
            l2_penalty=self.l2_penalty,
            dtype=self.dtype_policy,
            name="classifier",
        )

    def build(self, input_shape):
        self.chain.build(input_shape)
        width = input_shape[-1] + self.stages * self.cells
        self.classifier.build((None, width))
        super().build(input_shape)

    def all_logits(self, x, training=False):
        x, auxiliary = self.chain(x, training=training)
        return self.classifier.class_logits(x, training=training), auxiliary

    def get_config(self):
        return {
            **super().get_config(),
            "stages": self.stages,
            "cells": self.cells,
            "num_mixtures": self.num_mixtures,
            "activation": self.activation,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class MultiTaskChainHead(Head):
    """Two chains side by side over latent classes, with four supervised outputs.

    Each chain has stages over L latent classes of its own. A mixture of experts on
    what the chain ends with gives its main output, another on the mean of the stages'
    latent probabilities its support output. The answer is the mean of the four
    outputs' probabilities; they are the auxiliary logits too.

    Args:
        num_classes: number of classes C.
        stages, cells, latent_sizes: of both chains, S, the cells of each stage and L.
        num_mixtures: experts of each class in the main outputs; stages and support
            outputs have 2.
        Others as `Head`.

    Reference:
        The video-level model MultiTaskCombineChain of the team CV_Group in the
        challenge of 2018; its weights of the four outputs are not published.
    """

    _ACTIVATIONS = ("elu", "leaky_relu")

    def __init__(
        self,
        num_classes: int,
        stages: tuple[int, int] = (3, 2),
        cells: tuple[int, int] = (896, 896),
        latent_sizes: tuple[int, int] = (512, 736),
        num_mixtures: int = 3,
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        for name, value in (
            ("stages", stages),
            ("cells", cells),
            ("latent_sizes", latent_sizes),
        ):
            if len(value) != 2:
                raise ValueError(
                    f"`{name}` must have a value for each of the 2 chains. "
                    f"Received: {name}={value}"
                )
        self.stages = tuple(stages)
        self.cells = tuple(cells)
        self.latent_sizes = tuple(latent_sizes)
        self.num_mixtures = num_mixtures
        self.chains = [
            Chain(
                self.latent_sizes[i],
                self.stages[i],
                self.cells[i],
                activation=activation,
                l2_penalty=self.l2_penalty,
                dtype=self.dtype_policy,
                name=f"chain_{i}",
            )
            for i, activation in enumerate(self._ACTIVATIONS)
        ]
        self.mains = [self._mixture(num_mixtures, f"main_{i}") for i in range(2)]
        self.supports = [self._mixture(2, f"support_{i}") for i in range(2)]

    def _mixture(self, num_mixtures: int, name: str) -> MoEHead:
        return MoEHead(
            self.num_classes,
            num_mixtures,
            l2_penalty=self.l2_penalty,
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape):
        for i, chain in enumerate(self.chains):
            chain.build(input_shape)
            width = input_shape[-1] + self.stages[i] * self.cells[i]
            self.mains[i].build((None, width))
            self.supports[i].build((None, self.latent_sizes[i]))
        super().build(input_shape)

    def all_logits(self, x, training=False):
        mains, supports = [], []
        parts = zip(self.chains, self.mains, self.supports, strict=True)
        for chain, main, support in parts:
            end, latent = chain(x, training=training)
            mains.append(main.class_logits(end, training=training))
            latent = sum(ops.sigmoid(logits) for logits in latent) / len(latent)
            latent = ops.cast(latent, self.compute_dtype)
            supports.append(support.class_logits(latent, training=training))
        outputs = [*mains, *supports]
        return mean_of_probabilities(outputs), outputs

    def get_config(self):
        return {
            **super().get_config(),
            "stages": self.stages,
            "cells": self.cells,
            "latent_sizes": self.latent_sizes,
            "num_mixtures": self.num_mixtures,
        }


def mean_of_probabilities(logits: list[Any]) -> Any:
    """The logit of the mean of sigmoid(x) for x in `logits`; forms no probability."""
    yes = functools.reduce(log_add_exp, [-ops.softplus(-x) for x in logits])
    no = functools.reduce(log_add_exp, [-ops.softplus(x) for x in logits])
    return yes - no
