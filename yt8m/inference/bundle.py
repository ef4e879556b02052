"""A trained model as one file: packed, and unpacked safely.

A bundle is a gzipped tar of plain files without folders:

    config.json               the run's configuration
    checkpoint.json, state.*  one checkpoint, the model's weights alone; or weights.npz
                              instead of state.*, if the run is compressed
    segment_label_ids.csv     if the run has one
    NAME.py                   the user's file of models (`--model_module`), if any

Unpacked it is a run directory, from which evaluation, inference and export work; to
go on training it lacks the optimiser's state. `bundle.json` marks it. The same
command on the same run gives the same bytes. Paths may be remote (`gs://`).
"""

import contextlib
import dataclasses
import gzip
import json
import logging
import os
import re
import secrets
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import tensorflow as tf

from yt8m import runs, whole_files
from yt8m.config import RunConfig
from yt8m.errors import DataError, UserError
from yt8m.runs import CheckpointInfo, Run

log = logging.getLogger("yt8m")

MARKER_FILE = "bundle.json"

# Far above any model of this dataset (Kaggle allowed 1 GB); a file that unpacks to
# more is meant to fill the disk.
_MAX_BYTES = 16 << 30
_MAX_TEXT_BYTES = 16 << 20  # of a member that is read whole
_MAX_MEMBERS = 64
_NEEDED = (runs.CONFIG_FILE, runs.RECORD_FILE)
_STATE = re.compile(r"state\.(index|data-\d{5}-of-\d{5})")
_INDEX = "state.index"
_MODULE = re.compile(r"\w[\w.-]{0,90}\.py", re.ASCII)
_BLOCK = 512  # bytes of a tar header; contents are padded to a multiple
_CHUNK = 1 << 20
_GZIP_LEVEL = 3  # weights shrink by a tenth, at any level
_FILE_ERRORS = (OSError, EOFError, zlib.error, tf.errors.OpError)


# --- writing -------------------------------------------------------------------------


def write_bundle(run: Run, path: str) -> None:
    """Writes the bundle of a restored run under a temporary name and renames it.

    A user's file of models travels with it; what that file imports, other than
    installed packages, does not.

    Raises:
        UserError: it cannot be written, or the user's file has an odd name.
    """
    with (
        whole_files.replaced(path) as temporary,
        tempfile.TemporaryDirectory() as folder,
    ):
        _collect(run, folder)
        _pack(folder, temporary)


def _collect(run: Run, folder: str) -> None:
    """Puts what goes into the bundle into `folder`, without sub-folders."""
    info, model = run.checkpoint, run.config.model
    checkpoints = runs.Checkpoints(folder)
    if checkpoints.is_compressed(info):
        for name in (runs.RECORD_FILE, runs.COMPRESSED_FILE):
            source = os.path.join(info.path, name)
            tf.io.gfile.copy(source, os.path.join(folder, name))
    else:
        saved = checkpoints.save(
            {"model": run.model},
            info.step,
            info.examples,
            info.batch_size,
            info.validation,
        )
        for name in os.listdir(saved.path):
            os.rename(os.path.join(saved.path, name), os.path.join(folder, name))
        shutil.rmtree(os.path.join(folder, "checkpoints"))
    if model.module:
        name = os.path.basename(model.module)
        if not _MODULE.fullmatch(name):
            raise UserError(
                f"{model.module} cannot go into a bundle under this name; rename it to "
                "letters, digits, `_`, `-` and `.`, at most 90."
            )
        shutil.copyfile(model.module, os.path.join(folder, name))
        model = dataclasses.replace(model, module=name)
    runs.write_config(folder, dataclasses.replace(run.config, model=model))
    classes = os.path.join(run.directory, runs.SEGMENT_CLASSES_FILE)
    if tf.io.gfile.exists(classes):
        tf.io.gfile.copy(classes, os.path.join(folder, runs.SEGMENT_CLASSES_FILE))


def _pack(folder: str, path: str) -> None:
    with (
        tf.io.gfile.GFile(path, "wb") as raw,
        # Neither name, owner nor time, which differ from call to call.
        gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in sorted(os.listdir(folder)):
            member = tarfile.TarInfo(name)
            with open(os.path.join(folder, name), "rb") as f:
                member.size = os.fstat(f.fileno()).st_size
                tar.addfile(member, f)


# --- reading -------------------------------------------------------------------------


def read_bundle(path: str, directory: str) -> str:
    """Unpacks a bundle and returns `directory`, now a run directory.

    Only plain files of the names that a bundle has are unpacked, into a new
    directory that is renamed at the end. A module that comes with it is code, which
    `runs.load_run` will run: a line of the log says so.

    Args:
        path: the bundle.
        directory: a new or empty directory, or one with an earlier unpacked bundle,
            which is replaced.

    Raises:
        DataError: the file is damaged, no bundle, or one made to do harm; names it
            and the member.
        UserError: the file cannot be read, or `directory` holds something else or
            cannot be written.
    """
    directory = directory.rstrip("/")
    _refuse_foreign(directory)
    # A name that nobody could have prepared.
    temporary = f"{directory}.unpacking-{secrets.token_hex(8)}"
    whole_files.make_directory(temporary)
    try:
        names = _unpack(path, temporary)
        step = _checkpoint_step(path, temporary)
        module = _resolve_module(path, names, temporary, directory)
        checkpoint = os.path.join(temporary, "checkpoints", f"step-{step:08d}")
        tf.io.gfile.makedirs(checkpoint)
        for name in names:
            if name == runs.RECORD_FILE or _is_weights(name):
                tf.io.gfile.rename(
                    os.path.join(temporary, name), os.path.join(checkpoint, name)
                )
        marker = json.dumps({"bundle": path}) + "\n"
        whole_files.write_file(os.path.join(temporary, MARKER_FILE), marker)
        if tf.io.gfile.exists(directory):
            tf.io.gfile.rmtree(directory)
        tf.io.gfile.rename(temporary, directory)
    except BaseException as e:
        with contextlib.suppress(*_FILE_ERRORS):
            tf.io.gfile.rmtree(temporary)
        if isinstance(e, _FILE_ERRORS):
            raise UserError(f"{directory} cannot be written: {runs.reason(e)}") from e
        raise
    if module:
        log.warning(
            "%s brings Python code, which runs when its model is loaded: %s. Use "
            "bundles of people you trust.",
            path,
            module,
        )
    return directory


def _refuse_foreign(directory: str) -> None:
    if not tf.io.gfile.exists(directory):
        return
    if not tf.io.gfile.isdir(directory):
        raise UserError(f"{directory} is a file; choose another directory.")
    marker = os.path.join(directory, MARKER_FILE)
    if tf.io.gfile.listdir(directory) and not tf.io.gfile.exists(marker):
        raise UserError(
            f"{directory} is not empty and not an unpacked bundle (no {MARKER_FILE}); "
            "choose another directory."
        )


def _unpack(path: str, folder: str) -> list[str]:
    """Writes the members to `folder` and returns their names."""
    names: list[str] = []
    left = _MAX_BYTES
    with _opened(path) as stream:
        for member in _members(path, stream):
            where = f"{path}, member {member.name!r}"
            _refuse_member(where, member, names)
            left -= member.size
            if left < 0:
                raise DataError(f"{where}: more than {_MAX_BYTES} bytes with it.")
            names.append(member.name)
            target = os.path.join(folder, member.name)
            with tf.io.gfile.GFile(target, "wb") as f:
                for chunk in _contents(where, stream, member.size):
                    f.write(chunk)
    weights = runs.COMPRESSED_FILE if runs.COMPRESSED_FILE in names else _INDEX
    missing = [name for name in (*_NEEDED, weights) if name not in names]
    if missing:
        raise DataError(f"{path} is no model bundle: it has no {missing[0]}.")
    return names


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """The unpacked stream of a gzipped file; its errors name the file."""
    with tf.io.gfile.GFile(path, "rb") as raw:
        try:
            raw.size()  # opens it
        except tf.errors.OpError as e:
            raise UserError(f"{path} cannot be read: {runs.reason(e)}") from e
        with gzip.GzipFile(fileobj=raw) as stream:
            yield stream


def _members(path: str, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar; the contents are to be read between two.

    Not by `tarfile.open`, which follows extended headers of any size into memory:
    here a header of another kind than a plain file's is a member like any other, and
    refused.
    """
    while True:
        block = _read(path, stream, _BLOCK)
        if not block.strip(b"\0"):
            break
        try:
            yield tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as e:
            raise DataError(f"{path} is damaged or not a .tgz file: {e}.") from e
    # To the end, where the checksum is; tar fills up with zeros.
    if _read(path, stream, _CHUNK).strip(b"\0") or _read(path, stream, 1):
        raise DataError(f"{path} goes on after its last member; it is no bundle.")


def _refuse_member(where: str, member: tarfile.TarInfo, earlier: list[str]) -> None:
    name = member.name
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise DataError(
            f"{where}: not a plain file but of tar's type {member.type!r}, which no "
            "model bundle has."
        )
    module, state = _MODULE.fullmatch(name), _is_weights(name)
    if not (module or state or name in (*_NEEDED, runs.SEGMENT_CLASSES_FILE)):
        raise DataError(f"{where}: no model bundle has a file of this name.")
    if name in earlier or (module and any(_MODULE.fullmatch(n) for n in earlier)):
        raise DataError(f"{where}: there is one already.")
    if len(earlier) >= _MAX_MEMBERS:
        raise DataError(f"{where}: more than {_MAX_MEMBERS} members.")
    if not 0 <= member.size <= (_MAX_BYTES if state else _MAX_TEXT_BYTES):
        raise DataError(f"{where}: a size of {member.size} bytes; no bundle has that.")


def _is_weights(name: str) -> bool:
    return name == runs.COMPRESSED_FILE or _STATE.fullmatch(name) is not None


def _contents(where: str, stream: BinaryIO, size: int) -> Iterator[bytes]:
    for start in range(0, size, _CHUNK):
        wanted = min(_CHUNK, size - start)
        chunk = _read(where, stream, wanted)
        if len(chunk) < wanted:
            raise DataError(f"{where}: the file ends within it.")
        yield chunk
    _read(where, stream, -size % _BLOCK)


def _read(where: str, stream: BinaryIO, size: int) -> bytes:
    try:
        return stream.read(size)
    except _FILE_ERRORS as e:
        raise DataError(
            f"{where}: damaged, cut short, or not a .tgz file: {runs.reason(e)}."
        ) from e


def _checkpoint_step(path: str, folder: str) -> int:
    """The step of the checkpoint, whose record is checked."""
    with tf.io.gfile.GFile(os.path.join(folder, runs.RECORD_FILE), "rb") as f:
        text = f.read()
    try:
        info = CheckpointInfo("", **json.loads(text))
        if isinstance(info.step, int) and info.step >= 0:
            return info.step
        raise ValueError("its step must be a whole number")
    except (TypeError, ValueError) as e:
        raise DataError(f"{path}, member {runs.RECORD_FILE!r}: {e}.") from e


def _resolve_module(
    path: str, names: list[str], folder: str, directory: str
) -> str | None:
    """Has the configuration name the module where it will be; returns that place."""
    where = f"{path}, member {runs.CONFIG_FILE!r}"
    with tf.io.gfile.GFile(os.path.join(folder, runs.CONFIG_FILE), "rb") as f:
        text = f.read()
    try:
        config = RunConfig.from_json(text.decode())
    except (UserError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"{where}: {e}") from e
    brought = next((name for name in names if _MODULE.fullmatch(name)), None)
    # Any other path would be a file of this machine, and its code would be run.
    if config.model.module != brought:
        raise DataError(
            f"{where}: names {config.model.module!r} as the file of its model, but the "
            f"bundle brings {brought or 'none'}."
        )
    if not brought:
        return None
    module = os.path.join(os.path.abspath(directory), brought)
    model = dataclasses.replace(config.model, module=module)
    runs.write_config(folder, dataclasses.replace(config, model=model))
    return module
