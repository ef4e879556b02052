"""Files of arrays (.npz) that appear when they are whole, or not at all."""

import contextlib
import os
from typing import Any

import numpy as np

from yt8m.errors import UserError, reason


def save_arrays(path: str, **arrays: Any) -> None:
    """Writes arrays by name, under a temporary name first; the path is local.

    Raises:
        UserError: it cannot be written (disk full, no such folder, ...).
    """
    temporary = f"{path}.{os.getpid()}.writing.npz"
    try:
        np.savez(temporary, **arrays)
        os.replace(temporary, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(e, OSError):
            raise UserError(f"{path} cannot be written: {reason(e)}.") from e
        raise
