"""From stored features to what a model computes with."""

from typing import Any

import keras
import numpy as np
from keras import ops

from yt8m.errors import UserError
from yt8m.layers.constants import from_file
from yt8m.schema import DEQUANTIZE_OFFSET, DEQUANTIZE_SCALE


def dequantize(x: Any, dtype: str) -> Any:
    """Bytes to the numbers they stand for; floats are only cast.

    A byte q becomes q * 4 / 255 + (4 / 512 - 2), computed in float32.

    Args:
        x: uint8, or floats of any kind, of any shape.
        dtype: of the result.
    """
    if keras.backend.standardize_dtype(x.dtype) == "uint8":
        x = ops.cast(x, "float32") * DEQUANTIZE_SCALE + DEQUANTIZE_OFFSET
    return ops.cast(x, dtype)


def l2_normalize(
    x: Any, axis: int = -1, epsilon: float = 1e-12, dtype: str | None = None
) -> Any:
    """x / sqrt(max(sum(x^2), epsilon)) along `axis`, in `dtype` or that of `x`.

    Zero vectors stay zero and have zero gradients. Squares are summed in float32:
    float16 overflows at a norm of 256, and knows no epsilon of 1e-12.
    """
    wide = ops.cast(x, "float32")
    squared = ops.sum(ops.square(wide), axis=axis, keepdims=True)
    scale = ops.where(
        ops.greater(squared, 0.0), ops.rsqrt(ops.maximum(squared, epsilon)), 0.0
    )
    return ops.cast(wide * scale, dtype or x.dtype)


@keras.saving.register_keras_serializable(package="yt8m")
class ReverseWhitening(keras.layers.Layer):
    """Gives whitened PCA components their spread back: (x - 4/512) (sqrt(v) + 1e-4).

    The eigenvalues v are one weight, which is not trained. 4/512 is half a step of the
    quantisation, which `dequantize` adds.

    Args:
        file: of the PCA's eigenvalues, greatest first, `.npy` of any shape or
            text; the first D are taken. Read once, when the weight is created.

    Call arguments:
        x: dequantised features [..., D].

    Returns:
        float32 [..., D].

    Raises:
        UserError: in `build`, of a file that cannot be read or has no such numbers.

    Reference:
        Lin et al. 2018, arXiv:1811.05014 (reverse whitening).
    """

    def __init__(self, file: str, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.file = file

    def build(self, input_shape):
        size = input_shape[-1]
        self.eigenvalues = self.add_weight(
            name="eigenvalues",
            shape=(size,),
            initializer=from_file(
                self.file, "eigenvalues", lambda path: read_eigenvalues(path)[:size]
            ),
            trainable=False,
            autocast=False,
        )
        self.built = True

    def call(self, x):
        spread = ops.sqrt(self.eigenvalues) + 1e-4
        return (ops.cast(x, "float32") - 4 / 512) * spread

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "file": self.file}


def read_eigenvalues(path: str) -> np.ndarray:
    """The numbers of a `.npy` file, or of a text with blanks or commas between them.

    Returns:
        float32 [N], in the order of the file.

    Raises:
        UserError: it holds anything but numbers, or a negative one.
    """
    try:
        if path.endswith(".npy"):
            values = np.load(path, allow_pickle=False)
        else:
            with open(path, encoding="utf-8") as file:
                values = np.array(file.read().replace(",", " ").split(), "float32")
        values = np.asarray(values, "float32").reshape(-1)
    except (ValueError, EOFError) as e:
        raise UserError(
            f"The eigenvalues {path} are no numbers in .npy or text: {e}."
        ) from e
    if not (np.isfinite(values) & (values >= 0)).all():
        raise UserError(
            f"The eigenvalues {path} must be finite and not negative, the PCA's own."
        )
    return values
