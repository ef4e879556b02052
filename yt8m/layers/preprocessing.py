"""From stored features to what a model computes with."""

from typing import Any

import keras
import numpy as np
from keras import ops

from yt8m.errors import UserError
from yt8m.kernels import sum_of_squares
from yt8m.layers.constants import from_file
from yt8m.schema import DEQUANTIZE_OFFSET, DEQUANTIZE_SCALE

_EPSILON = 1e-12
_FRAMES_AT_ONCE = 1200  # as floats 5.5 MB


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

    A few videos at a time, whose frames as floats stay in the processor's cache: those
    of a whole batch take four times its bytes, and to write them takes longer than all
    else.

    Args:
        features: [B, T, size] each, bytes or floats; padding may hold anything.
        num_frames: int32 [B].

    Returns:
        float32 [B, D]; zeros where no frame is valid.
    """
    size, length = ops.shape(features[0])[:2]
    total = sum(x.shape[-1] for x in features)
    if 0 in features[0].shape[:2]:
        return ops.zeros((size, total))
    # Every part is of one size; the last may begin among the videos of the one before.
    step = _least(_greatest(_FRAMES_AT_ONCE // _greatest(length, 1), 1), size)
    parts = _greatest(-(-size // _greatest(step, 1)), 1)
    starts = ops.minimum(ops.arange(parts, dtype="int32") * step, size - step)
    num_frames = ops.cast(num_frames, "int32")
    places = ops.arange(length, dtype="int32")
    bytes_alone = all(
        keras.backend.standardize_dtype(x.dtype) == "uint8" for x in features
    )

    known = isinstance(size, int) and isinstance(length, int)
    one_pass = bytes_alone and not known

    def sums(start):
        counts = ops.slice(num_frames, (start,), (step,))
        valid = places < counts[:, None]
        frames = []
        for x in features:
            x = ops.slice(x, (start, 0, 0), (step, length, x.shape[-1]))
            if bytes_alone:
                # Of the direction of what the bytes stand for, in one step.
                x = ops.cast(x, "float32") + DEQUANTIZE_OFFSET / DEQUANTIZE_SCALE
            elif keras.backend.standardize_dtype(x.dtype) == "uint8":
                x = dequantize(x, "float32")
            else:
                x = ops.cast(ops.where(valid[..., None], x, 0), "float32")  # not NaN
            frames.append(x)
        squared = sum(sum_of_squares(x, one_pass=one_pass) for x in frames)
        scale = inverse_norm(squared, mask=valid)[:, None]
        return ops.concatenate([ops.matmul(scale, x)[:, 0] for x in frames], axis=-1)

    found = ops.reshape(ops.map(sums, starts), (-1, total))
    videos = ops.arange(size, dtype="int32")
    part = videos // _greatest(step, 1)
    found = ops.take(found, videos - ops.take(starts, part) + part * step, axis=0)
    count = ops.cast(ops.clip(num_frames, 1, _greatest(length, 1)), "float32")
    return found / count[:, None]


def _least(a: Any, b: Any) -> Any:
    """Of numbers or scalar tensors: a number, if both are."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else ops.minimum(a, b)


def _greatest(a: Any, b: Any) -> Any:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else ops.maximum(a, b)


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
