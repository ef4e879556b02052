"""Files of arrays (.npz), read and written wherever TensorFlow reads and writes."""

import io
import zipfile
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import whole_files
from yt8m.errors import UserError, reason


def save_arrays(path: str, **arrays: Any) -> None:
    """Writes arrays by name, under a temporary name first.

    Raises:
        UserError: it cannot be written (disk full, no such folder, ...).
    """
    made = io.BytesIO()
    np.savez(made, **arrays)
    whole_files.write_file(path, made.getvalue())


def load_arrays(path: str) -> Any:
    """What `numpy.load` makes of a file: an array, or a mapping of arrays by name.

    Raises:
        UserError: it cannot be read, or is of another kind.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return np.load(io.BytesIO(file.read()))
    except (*(OSError, tf.errors.OpError), ValueError, zipfile.BadZipFile) as e:
        raise UserError(f"{path} cannot be read: {reason(e)}") from e
