"""From stored features to what a model computes with."""

from typing import Any

import keras
import numpy as np
from keras import ops

from yt8m.errors import UserError
from yt8m.layers.constants import from_file
from yt8m.schema import DEQUANTIZE_OFFSET, DEQUANTIZE_SCALE

_EPSILON = 1e-12
_FRAMES_AT_ONCE = 8


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
    x: Any,
    axis: int = -1,
    epsilon: float = _EPSILON,
    dtype: str | None = None,
    mask: Any = True,
) -> Any:
    """x / sqrt(max(sum(x^2), epsilon)) along `axis`, in `dtype` or that of `x`.

    Zero vectors stay zero and have zero gradients. Squares are summed in float32:
    float16 overflows at a norm of 256, and knows no epsilon of 1e-12. Where `mask`,
    bool of the shape of `x` but 1 along `axis`, is false, finite vectors become zero.
    """
    wide = ops.cast(x, "float32")
    squared = ops.sum(ops.square(wide), axis=axis, keepdims=True)
    scale = inverse_norm(squared, epsilon, mask)
    return ops.cast(wide * scale, dtype or x.dtype)


def inverse_norm(squared: Any, epsilon: float = _EPSILON, mask: Any = True) -> Any:
    """1 / sqrt(max(squared, epsilon)); 0 for 0, and where `mask` is false."""
    return ops.where(
        ops.logical_and(squared > 0.0, mask),
        ops.rsqrt(ops.maximum(squared, epsilon)),
        0.0,
    )


def mean_of_normalized(features: list[Any], num_frames: Any) -> Any:
    """Mean over the valid frames of the dequantised, L2-normalised frames.

    A few frames of all videos at a time, so that neither the frames as floats nor the
    normalised ones are ever held: they take four times the batch, and to write them
    takes longer than all else.

    Args:
        features: [B, T, size] each, bytes or floats; padding may hold anything.
        num_frames: int32 [B].

    Returns:
        float32 [B, D]; zeros where no frame is valid.
    """
    size, length = ops.shape(features[0])[:2]
    static = features[0].shape[1]
    step = ops.minimum(_FRAMES_AT_ONCE, length)
    if static is not None:
        step = min(_FRAMES_AT_ONCE, static)
        if static == 0:
            return ops.zeros((size, sum(x.shape[-1] for x in features)))
    num_frames = ops.cast(num_frames, "int32")

    def add(done, sums):
        start = ops.minimum(done, length - step)
        places = start + ops.arange(step, dtype="int32")
        valid = ops.logical_and(places >= done, places < num_frames[:, None])
        parts = []
        for x in features:
            part = ops.slice(x, (0, start, 0), (size, step, x.shape[-1]))
            if keras.backend.standardize_dtype(x.dtype) != "uint8":
                part = ops.where(valid[..., None], part, 0)  # it may be NaN
            parts.append(dequantize(part, "float32"))
        squared = sum(ops.sum(ops.square(x), axis=-1) for x in parts)
        scale = inverse_norm(squared, mask=valid)
        found = [ops.matmul(scale[:, None], x)[:, 0] for x in parts]
        return done + step, [a + b for a, b in zip(sums, found, strict=True)]

    longest = ops.minimum(ops.max(num_frames, initial=0), length)
    _, sums = ops.while_loop(
        lambda done, sums: done < longest,
        add,
        (
            ops.zeros((), "int32"),
            [ops.zeros((size, x.shape[-1]), "float32") for x in features],
        ),
        maximum_iterations=static and -(-static // step),
    )
    count = ops.cast(ops.clip(num_frames, 1, ops.maximum(length, 1)), "float32")
    return ops.concatenate(sums, axis=-1) / count[:, None]


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
        UserError: it holds anything but positive numbers, the greatest first.
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
    falling = (np.diff(values) <= 0).all()
    if not falling or not (np.isfinite(values) & (values > 0)).all():
        raise UserError(
            f"{path} holds no eigenvalues, which are positive and the greatest first: "
            "give eigenvals.npy of yt8m_pca."
        )
    return values
