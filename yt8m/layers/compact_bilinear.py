"""Compact bilinear features: the products of two vectors' values, in few numbers."""

import keras
import numpy as np
from keras import ops

from yt8m.layers.preprocessing import l2_normalize


@keras.saving.register_keras_serializable(package="yt8m")
class CompactBilinear(keras.layers.Layer):
    """A sketch of the outer product of two vectors.

    Each of x and y is sketched into d sums, value i with the sign s_i into sum h_i;
    the circular convolution of the sketches is a sketch of x y'. It is formed by
    Fourier transforms: z = F^-1(F(sketch(x)) F(sketch(y))). The result is
    sign(z) sqrt(|z|), L2-normalised.

    Args:
        size: d.
        seed: of the h and s, which are drawn once and are no weights.

    Call arguments:
        x: [B, T, D].
        y: [B, T, E].

    Returns:
        [B, T, d]; zeros where x or y is zero.

    Reference:
        Gao et al. 2016, arXiv:1511.06062, section 3, algorithm 2; Fukui et al. 2016,
        arXiv:1606.01847, section 3.1 (of two modalities).
    """

    def __init__(self, size: int, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        if size < 2:
            raise ValueError(f"`size` must be at least 2. Received: size={size}")
        self.supports_masking = True
        self.size = size
        self.seed = seed

    def call(self, x, y):
        rng = np.random.default_rng(self.seed)
        (a, b), (c, d) = (ops.rfft(self._sketch(v, rng)) for v in (x, y))
        products = (a * c - b * d, a * d + b * c)
        z = ops.irfft(products, fft_length=self.size)
        # The root has no gradient at 0.
        z = z * ops.rsqrt(ops.maximum(ops.abs(z), 1e-12))
        batch, length = ops.shape(x)[:2]
        z = ops.reshape(l2_normalize(z), (batch, length, self.size))
        return ops.cast(z, self.compute_dtype)

    def _sketch(self, x, rng):
        """Sketches float32 [B * T, d]."""
        size = x.shape[-1]
        places = rng.integers(0, self.size, size).astype("int32")
        signs = rng.choice([-1.0, 1.0], size).astype("float32")
        x = ops.reshape(ops.cast(x, "float32"), (-1, size)) * signs
        sums = ops.segment_sum(ops.transpose(x), places, self.size)
        return ops.transpose(sums)

    def compute_output_shape(self, x_shape, y_shape):
        return (*x_shape[:-1], self.size)

    def get_config(self):
        return {**super().get_config(), "size": self.size, "seed": self.seed}
