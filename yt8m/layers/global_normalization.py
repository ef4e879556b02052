"""Global normalisation: vectors whitened by the statistics of a whole dataset."""

import keras
import numpy as np
from keras import ops

from yt8m.errors import UserError
from yt8m.layers.constants import from_file
from yt8m.layers.preprocessing import l2_normalize


@keras.saving.register_keras_serializable(package="yt8m")
class GlobalNormalization(keras.layers.Layer):
    """Subtracts the mean, whitens by PCA, L2-normalises.

    y = l2((x - mean) components / sqrt(variance + epsilon)), all in float32.

    Args:
        file: an .npz file with `mean` [D], `components` [D, K], whose columns are the
            principal components, and `variance` [K], the variance along each. It is
            read when the layer is new; afterwards its weights hold the numbers.
        size: how many of the first components are taken; None takes D.
        epsilon: added to the variances.

    Call arguments:
        x: float32 [B, D].

    Returns:
        [B, size], in the compute dtype.

    Raises:
        UserError: at the first call, of a file that cannot be read or does not fit.

    Reference:
        Abu-El-Haija et al. 2016, arXiv:1609.08675, section 4.2.2.
    """

    def __init__(
        self, file: str, size: int | None = None, epsilon: float = 1e-4, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        if size is not None and size < 1:
            raise ValueError(f"`size` must be positive. Received: size={size}")
        self.file = file
        self.size = size
        self.epsilon = epsilon

    def build(self, input_shape):
        inputs = input_shape[-1]
        size = self.size or inputs

        def add(name, shape, part):
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=from_file(
                    self.file, f"{name} of", lambda path: _read(path, name)[part]
                ),
                trainable=False,
                autocast=False,
            )

        self.mean = add("mean", (inputs,), np.s_[:])
        self.components = add("components", (inputs, size), np.s_[:, :size])
        self.variance = add("variance", (size,), np.s_[:size])
        self.built = True

    def call(self, x):
        whitened = ops.matmul(x - self.mean, self.components)
        whitened = whitened * ops.rsqrt(self.variance + self.epsilon)
        return l2_normalize(whitened, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.size or input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "file": self.file,
            "size": self.size,
            "epsilon": self.epsilon,
        }


def _read(path: str, name: str) -> np.ndarray:
    try:
        with np.load(path) as file:
            return file[name].astype(np.float32)
    except OSError:
        raise
    except Exception as e:  # NumPy raises many kinds for what is no .npz file
        raise UserError(
            f"{path} is no file of global normalisation with mean, components and "
            "variance: write it with `yt8m normalization`."
        ) from e
