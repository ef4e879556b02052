"""Files that appear under their names when they are whole, or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator

import tensorflow as tf

from yt8m.errors import UserError, reason

_FILE_ERRORS = (tf.errors.OpError, OSError)


def write_file(path: str, content: str | bytes) -> None:
    """Writes `content` under a temporary name, then renames it to `path`.

    Raises:
        UserError: it cannot be written; names the path and the reason.
    """
    with replaced(path) as temporary, tf.io.gfile.GFile(temporary, "wb") as f:
        f.write(content)


@contextlib.contextmanager
def replaced(path: str) -> Iterator[str]:
    """Gives a temporary name; what is written there becomes `path` if nothing fails.

    Raises:
        UserError: it cannot be written; names the path and the reason.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException as e:
        with contextlib.suppress(*_FILE_ERRORS):
            tf.io.gfile.remove(temporary)
        if isinstance(e, _FILE_ERRORS):
            raise UserError(f"{path} cannot be written: {reason(e)}") from e
        raise


def temporary_name(path: str) -> str:
    """A name beside `path` that no other process takes, be it on another machine."""
    return f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def is_temporary(path: str) -> bool:
    """Whether `path` is a name of `temporary_name`: a file that may not be whole."""
    return bool(re.search(r"\.\d+-[0-9a-f]{8}\.tmp/?$", path))


def make_directory(path: str) -> None:
    """Creates `path` and its parents. Raises `UserError` if it cannot be written to."""
    probe = temporary_name(os.path.join(path, ".writable"))
    try:
        tf.io.gfile.makedirs(path)
        with tf.io.gfile.GFile(probe, "w") as f:
            f.write("")
        tf.io.gfile.remove(probe)
    except _FILE_ERRORS as e:
        raise UserError(f"{path} cannot be written to: {reason(e)}") from e
