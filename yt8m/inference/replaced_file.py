"""Files that take their name when they are complete, or leave nothing behind."""

import contextlib
import gzip
import zlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from yt8m import runs, whole_files
from yt8m.errors import UserError

FILE_ERRORS = (OSError, EOFError, zlib.error, tf.errors.OpError)

# Level 3 keeps up with the writers; level 9 is six times slower and saves 5 %.
_GZIP_LEVEL = 3


class ReplacedFile:
    """A file that appears only when it is complete.

    It is written under a name of its own in the same folder, renamed at the end of the
    `with` block, and removed if the block is left by an exception.

    Args:
        path: its name; may be remote.
        open_file: opens a path and gives what has `write` and `close`; bytes by
            default, compressed if `path` ends in `.gz`.

    Raises:
        UserError: it cannot be written (no such folder, disk full, ...).
    """

    def __init__(self, path: str, open_file: Callable[[str], Any] | None = None):
        self.path, self._temporary = path, whole_files.temporary_name(path)
        self._open, self._file = open_file or self._open_bytes, None

    def _open_bytes(self, path: str) -> Any:
        file = tf.io.gfile.GFile(path, "wb")
        file.write(b"")  # opens it, so that a bad path is found at once
        return _GzipFile(file) if self.path.endswith(".gz") else file

    def __enter__(self):
        with self._explained():
            self._file = self._open(self._temporary)
        return self

    def write(self, data: str | bytes) -> None:
        with self._explained():
            self._file.write(data)

    def __exit__(self, kind, *exception) -> None:
        if kind is not None:
            self._discard()
            return
        with self._explained():
            self._file.close()
            tf.io.gfile.rename(self._temporary, self.path, overwrite=True)

    def _discard(self) -> None:
        # What made the file unwritable may strike again here, and is known already.
        if self._file is not None:
            with contextlib.suppress(*FILE_ERRORS):
                self._file.close()
        with contextlib.suppress(*FILE_ERRORS):
            tf.io.gfile.remove(self._temporary)

    @contextlib.contextmanager
    def _explained(self):
        """Leaves nothing behind an error, and words it if the user can mend it."""
        try:
            yield
        except BaseException as e:
            self._discard()
            if isinstance(e, FILE_ERRORS):
                reason = runs.reason(e)
                raise UserError(f"{self.path} cannot be written: {reason}") from e
            raise


class _GzipFile:
    """Compresses into an open file, and closes both."""

    def __init__(self, file: Any):
        self._file = file
        # Neither name nor time: equal contents give equal bytes.
        self._gzip = gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)
        self.write = self._gzip.write

    def close(self) -> None:
        try:
            self._gzip.close()
        finally:
            self._file.close()
