"""Label processing: what a classifier's logits pass through, by name."""

import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from yt8m.errors import UserError
from yt8m.layers.constants import from_file
from yt8m.registry import create_part

# Odds of p below exp(-30) are taken for exp(-30) where p is mixed with others.
_MAX_LOGIT = 30.0


def read_correlation(path: str) -> np.ndarray:
    """The correlation of labels in a file that `yt8m correlate` wrote.

    With n_ij videos that have the labels i and j, and n_j that have j,
        Mc[i, j] = n_ij / n_j for i != j, else 0:
    the share of the videos with label j that have label i too.

    Args:
        path: an .npz file of `indices` int [N, 2], pairs of classes i <= j, each pair
            once; `counts` int [N], the videos that have both (for i = j, those that
            have i); and `num_classes`.

    Returns:
        float32 [C, C].

    Raises:
        OSError: the file cannot be opened.
        UserError: it is another kind of file; names it.
    """
    try:
        # Opened here: numpy leaves a file open that is no archive.
        with open(path, "rb") as opened, np.load(opened) as file:
            indices, counts = file["indices"], file["counts"]
            num_classes = int(file["num_classes"])
        together = np.zeros((num_classes, num_classes), "float32")
        together[indices[:, 0], indices[:, 1]] = counts
    except (
        *(AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError),
        *(zipfile.BadZipFile, zlib.error),
    ) as e:
        raise UserError(
            f"{path} is no file of label correlations, or is damaged: write one with "
            "`yt8m correlate`."
        ) from e
    videos = np.maximum(np.diag(together), 1.0)
    np.fill_diagonal(together, 0.0)
    together += together.T
    together /= videos
    return together


@keras.saving.register_keras_serializable(package="yt8m")
class LabelCorrelation(keras.layers.Layer):
    """Adds to each class's score those of the classes that it appears with.

    With p = sigmoid(x) and weights (a, b, g) the paper's score is a p + s with
        s = b Mc p + g Mc' p,
    where Mc is the correlation of labels (`read_correlation`) and Mc', learned, starts
    as Mc. Such a score may leave [0, 1]. This layer takes s for votes that join those
    of a p for "yes" and a (1 - p) for "no": to yes if s > 0, which gives the share
    (a p + s) / (a + s), to no if s < 0, as a learned Mc' may have it. The logit,
        x + log(1 + max(s, 0) / (a p)) - log(1 + max(-s, 0) / (a (1 - p))),
    is x itself where s = 0, and no probability is formed that could round to 0 or 1.

    Args:
        correlation: file of `yt8m correlate`; read when the weights are made, not
            needed for a model whose weights are loaded.
        weights: (a, b, g); a must be positive; with g = 0 there is no Mc', with
            b = 0 no Mc.

    Call arguments:
        logits: [B, C].

    Returns:
        float32 [B, C].

    Raises:
        ValueError: other `weights` than three numbers, the first positive.
        UserError: at the weights' creation, of a file that cannot be used, or of
            another number of classes.

    Reference:
        Na et al. 2017, arXiv:1706.07960, equations 19 and 20, which leave open how Mc
        is normalised and what becomes of scores above 1.
    """

    def __init__(
        self, correlation: str, weights: Sequence[float] = (1.0, 0.01, 0.0), **kwargs
    ):
        # Without autocast, as a low-precision policy would round the logits.
        super().__init__(autocast=False, **kwargs)
        numbers = isinstance(weights, Sequence) and all(
            isinstance(w, int | float) for w in weights
        )
        if not numbers or len(weights) != 3 or not weights[0] > 0:
            raise ValueError(
                "`weights` must be three numbers, the first of them positive. "
                f"Received: weights={weights!r}"
            )
        self.correlation = correlation
        # Not `weights`: that is Keras's name for the layer's variables.
        self.shares = tuple(float(w) for w in weights)

    def build(self, input_shape):
        size = input_shape[-1]

        def add(name, trainable):
            return self.add_weight(
                name=name,
                shape=(size, size),
                initializer=from_file(
                    self.correlation, "label correlations", read_correlation
                ),
                trainable=trainable,
            )

        _, fixed, learned = self.shares
        self.fixed = add("correlation", trainable=False) if fixed else None
        self.learned = add("learned_correlation", trainable=True) if learned else None
        self.built = True

    def call(self, logits, training=False):
        logits = ops.cast(logits, "float32")
        own, *shares = self.shares
        added = None
        for share, matrix in zip(shares, (self.fixed, self.learned), strict=True):
            if matrix is None:
                continue
            p = ops.cast(ops.sigmoid(logits), self.compute_dtype)
            matrix = ops.cast(ops.transpose(matrix), self.compute_dtype)
            part = share / own * ops.cast(ops.matmul(p, matrix), "float32")
            added = part if added is None else added + part
        if added is None:
            return logits
        # 1 / p = 1 + exp(-x) and 1 / (1 - p) = 1 + exp(x).
        inverse_yes = 1.0 + ops.exp(ops.minimum(-logits, _MAX_LOGIT))
        inverse_no = 1.0 + ops.exp(ops.minimum(logits, _MAX_LOGIT))
        # `maximum` has a gradient at 0 too, where `relu` has none.
        yes, no = ops.maximum(added, 0.0), ops.maximum(-added, 0.0)
        return logits + ops.log1p(yes * inverse_yes) - ops.log1p(no * inverse_no)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "correlation": self.correlation,
            "weights": self.shares,
        }


LABEL_PROCESSINGS: dict[str, type] = {"correlation": LabelCorrelation}


def create_label_processing(label_processing: str, **args: Any) -> keras.layers.Layer:
    """Builds a layer from logits [B, C] to logits [B, C] by its name.

    Args:
        label_processing: a key of `LABEL_PROCESSINGS`.
        args: of its class.

    Raises:
        UserError: the name or an argument is unknown (near matches are listed).
    """
    return create_part("label processing", LABEL_PROCESSINGS, label_processing, args)
