"""From stored features to what a model computes with."""

from typing import Any

import keras
from keras import ops

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
