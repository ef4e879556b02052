"""Numbers that a model reads from a file when it is new, and keeps in its weights.

A model whose weights come from a checkpoint or a saved file does not need the file any
more; `weights_follow` says so.
"""

import contextlib
import contextvars
from collections.abc import Callable

import numpy as np
from keras import ops

from yt8m.errors import UserError

_WEIGHTS_FOLLOW = contextvars.ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def weights_follow():
    """Within the block, models are built for weights that are loaded afterwards."""
    token = _WEIGHTS_FOLLOW.set(True)
    try:
        yield
    finally:
        _WEIGHTS_FOLLOW.reset(token)


def from_file(path: str, what: str, read: Callable[[str], np.ndarray]):
    """An initialiser with the numbers of a file; zeros where the weights follow.

    Args:
        path: the file.
        what: what it holds, for messages, such as `eigenvalues`.
        read: gives the numbers of a file; raises `UserError` for a wrong one.

    Raises:
        UserError: at the weight's creation, of a file that cannot be read, or numbers
            of another shape than the weight's.
    """

    def initial(shape, dtype=None):
        if _WEIGHTS_FOLLOW.get():
            return ops.zeros(shape, dtype)
        try:
            values = read(path)
        except OSError as e:
            raise UserError(f"The {what} {path} cannot be read: {e.strerror}.") from e
        if tuple(values.shape) != tuple(shape):
            raise UserError(
                f"The {what} {path} have the shape {list(values.shape)}; the model "
                f"needs {list(shape)}."
            )
        return ops.convert_to_tensor(values, dtype)

    return initial
