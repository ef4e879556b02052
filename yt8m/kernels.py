"""Kernels that one backend has beside the operations of Keras.

Layers call no backend by its name: what it takes one to be fast is here, with the same
in Keras's own operations for all others.
"""

from typing import Any

import keras
from keras import ops


def sum_of_squares(x: Any, *, one_pass: bool = False) -> Any:
    """sum(x^2) along the last axis.

    Args:
        x: [..., D].
        one_pass: whether TensorFlow may take its kernel that makes no tensor of the
            squares. Its gradient at zero is not a number, and XLA does not have it:
            only for what no gradient is taken of, and where sizes are not known when
            the operation is made, as they are in XLA's programs.

    Returns:
        [...], in the type of `x`.
    """
    if one_pass and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return ops.square(tf.math.reduce_euclidean_norm(x, axis=-1))
    return ops.sum(ops.square(x), axis=-1)
