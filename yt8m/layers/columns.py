"""Arithmetic with one number a column, whose gradients sum the columns fast.

Automatic differentiation adds up the rows of a large matrix by the backend's own sum,
which on a CPU takes six times as long as a product with a vector of ones.
"""

from typing import Any

from keras import ops


def scale_and_shift(x: Any, scale: Any, offset: Any) -> Any:
    """x * scale + offset in float32.

    Args:
        x: [..., D].
        scale, offset: float32 [D].
    """
    shape, x = ops.shape(x), _rows(x)

    @ops.custom_gradient
    def run(x, scale, offset):
        def gradient(*arguments, upstream=None):
            d = _upstream(arguments, upstream)
            return d * scale, sum_rows(d * x), sum_rows(d)

        return x * scale + offset, gradient

    return ops.reshape(run(x, *_vectors(scale, offset)), shape)


def shift_by(x: Any, offset: Any) -> Any:
    """x + offset in float32; arguments as `scale_and_shift`."""
    shape, x = ops.shape(x), _rows(x)

    @ops.custom_gradient
    def run(x, offset):
        def gradient(*arguments, upstream=None):
            d = _upstream(arguments, upstream)
            return d, sum_rows(d)

        return x + offset, gradient

    return ops.reshape(run(x, *_vectors(offset)), shape)


def sum_squares(x: Any, centre: Any, weights: Any) -> Any:
    """sum_n weights_n (x_n - centre)^2 of each column: float32 [D].

    Args:
        x: float32 [N, D].
        centre: float32 [D].
        weights: float32 [N], of which no gradient is taken.
    """

    @ops.custom_gradient
    def run(x, centre, weights):
        difference = x - centre

        def gradient(*arguments, upstream=None):
            d = 2.0 * _upstream(arguments, upstream)
            dx = difference * d * weights[:, None]
            dcentre = -d * ops.matmul(weights, difference)
            return dx, dcentre, ops.zeros_like(weights)

        return ops.matmul(weights, ops.square(difference)), gradient

    return run(x, *_vectors(centre), weights)


def sum_rows(x: Any) -> Any:
    """[N, D] to [D]."""
    return ops.matmul(ops.ones_like(x[:, 0]), x)


def _rows(x: Any) -> Any:
    return ops.reshape(ops.cast(x, "float32"), (-1, x.shape[-1]))


def _vectors(*vectors: Any) -> list[Any]:
    """Copies: TensorFlow takes a function's variables apart from its arguments."""
    return [ops.copy(vector) for vector in vectors]


def _upstream(arguments: tuple, upstream: Any) -> Any:
    """What comes from above, by itself or by name: as the backend does."""
    return arguments[0] if upstream is None else upstream
