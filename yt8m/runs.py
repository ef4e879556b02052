"""A run directory: its configuration, its model by name, its checkpoints.

    RUN/config.json                     everything the run was started with
    RUN/checkpoints/step-00001000/      one checkpoint: TensorFlow's files and
        checkpoint.json                 ... a record of them, written last
        weights.npz                     instead of TensorFlow's files, in a run that
                                        `yt8m compress` wrote (see `yt8m.compression`)
    RUN/metrics.csv, RUN/events/        written by the trainer
    RUN/predict/                        written by evaluation

A checkpoint without `checkpoint.json` is one whose writing was cut short; it is
never read and the next save removes it. All paths may be remote (`gs://`).
"""

import collections
import concurrent.futures
import contextlib
import importlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import compression, model_check, registry, schema, user_code, whole_files
from yt8m.config import DataConfig, ModelConfig, RunConfig
from yt8m.errors import UserError, reason
from yt8m.layers.constants import weights_follow
from yt8m.model import FrameLevelModel, YT8MModel

log = logging.getLogger("yt8m")

CONFIG_FILE = "config.json"
RECORD_FILE = "checkpoint.json"
METRICS_FILE = "metrics.csv"  # a row for each line of the training log
COMPRESSED_FILE = "weights.npz"
EXPORT_FILE = "export.json"  # in the directory of an export
SEGMENT_CLASSES_FILE = "segment_label_ids.csv"  # classes that segments are rated for
_FILE_ERRORS = (OSError, tf.errors.OpError)
_REGISTRIES = ("frame_level_models", "video_level_models")
# Arguments of every model that are not among --model_args.
_OF_FLAGS = {
    "num_classes": "--num_classes",
    "features": "--feature_names",
    "dtype": "--precision",
}


def load_registries(module_file: str | None = None) -> None:
    """Imports the models of the project and, if named, those of a user's file.

    Raises:
        UserError: the file is missing, fails to import, or has no model or one that
            cannot be; or a second, differing copy of a registry is on the path.
    """
    for name in _REGISTRIES:
        module = importlib.import_module(name)
        _refuse_second_copy(name, module.__file__)
    if not module_file:
        return
    path = os.path.abspath(module_file)
    name = os.path.splitext(os.path.basename(path))[0]
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return
    if user_code.is_loaded(loaded) and _stands_for(loaded.__file__, path):
        return
    if not os.path.isfile(path):
        raise UserError(
            f"There is no file {module_file} of models: give its place by "
            "--model_module."
        )
    if loaded is not None or not path.endswith(".py"):
        raise UserError(
            f"--model_module={module_file} must be a Python file (.py) whose name is "
            "not that of a module in use."
        )
    before = set(registry.names())
    user_code.load(path, name)
    added = [registry.get(n).cls for n in registry.names() if n not in before]
    if not added:
        del sys.modules[name]
        raise UserError(
            f"--model_module={module_file} has no model: decorate its class with "
            "@yt8m.registry.register(level=..., paper=...)."
        )
    for cls in added:
        model_check.check_class(cls)


def _stands_for(loaded: str, path: str) -> bool:
    """Whether the user's file that is loaded does for `path`, of the same name.

    It does for a copy, such as each bundle brings, and for one that is gone: a teacher
    may name its model's file where it was before --model_module named it anew.
    """
    if not os.path.isfile(path):
        log.info("%s is not there any more: %s is taken for it.", path, loaded)
        return True
    return _same_bytes(loaded, path)


def _same_bytes(a: str, b: str) -> bool:
    try:
        with open(a, "rb") as one, open(b, "rb") as other:
            return one.read() == other.read()
    except FileNotFoundError:  # removed since it was loaded
        return False


def _refuse_second_copy(name: str, loaded: str) -> None:
    """Two differing copies of a registry would make edits to one of them vanish."""
    here = os.path.join(os.getcwd(), f"{name}.py")
    if not os.path.isfile(here) or os.path.samefile(here, loaded):
        return
    if not _same_bytes(here, loaded):
        raise UserError(
            f"Two differing copies of {name}.py: {here} and {loaded}, which is the "
            "one in use. Install with `pip install -e .` so that there is one."
        )


def build_model(
    config: ModelConfig,
    data: DataConfig,
    precision: str = "float32",
    restored: bool = False,
) -> YT8MModel:
    """Builds the model that `config` names for the features of `data`, with weights.

    Args:
        config, data: of the run.
        precision: of the arithmetic, see `yt8m.config`.
        restored: its weights come from a checkpoint next; files that the model reads
            when it is new need not be there.

    Raises:
        UserError: unknown name or argument, or a model of another level.
    """
    load_registries(config.module)
    for name, flag in _OF_FLAGS.items():
        if name in config.args:
            raise UserError(f"--model_args: {name} is set by the flag {flag}.")
    args = {
        **config.args,
        "num_classes": data.num_classes,
        "features": dict(data.features),
        "dtype": precision if precision == "float32" else f"mixed_{precision}",
    }
    cls = registry.get(config.name).cls
    if cls.level != data.level:
        raise UserError(
            f"{config.name} is a {cls.level}-level model, but the features "
            f"{', '.join(data.features)} are read at the {data.level} level."
        )
    with weights_follow() if restored else contextlib.nullcontext():
        if user_code.holds(cls):
            with model_check.watched_variables() as made:
                model = registry.create(config.name, **args)
                return model_check.build(model, args, made, restored)
        return registry.create_built(config.name, **args)


def default_data_config(name: str, **values: Any) -> DataConfig:
    """The `DataConfig` that the model `name` declares; `values` override it."""
    entry = registry.get(name)
    if entry.level == "frame":
        values.setdefault("features", dict(schema.FRAME_FEATURES))
        if issubclass(entry.cls, FrameLevelModel):
            values.setdefault("frames", entry.cls.default_frames)
    else:
        values.setdefault("features", entry.cls.default_features())
    return DataConfig(level=entry.level, **values)


# --- files ---------------------------------------------------------------------------


def refuse_brackets(path: str) -> None:
    """Raises `UserError` for a path from which TensorFlow reads no weights.

    It takes the name of a file of weights for a pattern, where it looks for the file's
    parts: what was saved in a folder `run[1]` would never be found.
    """
    if "[" in path or "\\" in path:
        raise UserError(
            f"{path}: TensorFlow reads no weights from a path with `[` or a "
            "backslash; choose another name."
        )


# --- the run directory ---------------------------------------------------------------


def is_run(directory: str) -> bool:
    """Whether `directory` holds a run of ours."""
    return tf.io.gfile.exists(os.path.join(directory, CONFIG_FILE))


def read_config(directory: str, module: str | None = None) -> RunConfig:
    """Reads the run's configuration.

    Args:
        directory: the run directory.
        module: the file of the run's model, where it is no longer at its place.

    Raises:
        UserError: it is no run directory, or its configuration cannot be read.
    """
    path = os.path.join(directory, CONFIG_FILE)
    if not tf.io.gfile.exists(path):
        raise UserError(
            f"{directory} is not a run directory (it has no {CONFIG_FILE}); give the "
            "--train_dir of a `train.py` run."
        )
    try:
        with tf.io.gfile.GFile(path) as f:
            text = f.read()
    except (UnicodeDecodeError, *_FILE_ERRORS) as e:
        raise UserError(f"{path} cannot be read: {reason(e)}") from e
    try:
        config = RunConfig.from_json(text)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    if not module or not config.model.module:
        return config
    model = replace(config.model, module=os.path.abspath(module))
    return replace(config, model=model)


def write_config(directory: str, config: RunConfig) -> None:
    whole_files.write_file(os.path.join(directory, CONFIG_FILE), config.to_json())


@dataclass(frozen=True)
class CheckpointInfo:
    """One complete checkpoint.

    Attributes:
        path: its directory.
        step: number of optimiser updates.
        examples: number of training examples seen.
        batch_size: the global batch, with which `step` counts the examples.
        validation: the metrics of the evaluation at this step, if there was one.
        ema: whether it holds moving averages of the weights, for evaluation.
    """

    path: str
    step: int
    examples: int
    batch_size: int
    validation: dict[str, Any] | None = None
    ema: bool = False


def validation_metric(segments: bool) -> str:
    """The metric by which one validation is better than another: GAP, as the
    challenges of videos were scored, or, of segments, mAP, which is their MAP@K."""
    return "map" if segments else "gap"


class Checkpoints:
    """The checkpoints of a run: saved, listed, restored, the old ones removed.

    What was saved under one strategy is restored under any other: a variable that
    replicas mirror is one value in the file.

    Args:
        directory: the run directory.
        keep: how many of the latest to keep; the best is kept too.
        writes: whether this process writes and removes them. Of several workers only
            the chief does; all of them call what it calls, and it is nothing to them.
    """

    def __init__(self, directory: str, keep: int = 3, writes: bool = True):
        if keep < 1:
            raise UserError(f"--keep_checkpoints must be at least 1, not {keep}.")
        refuse_brackets(directory)
        self.directory = os.path.join(directory, "checkpoints")
        self.keep = keep
        self.writes = writes
        self._writing: concurrent.futures.Future | None = None

    def list(self) -> list[CheckpointInfo]:
        """The complete checkpoints, oldest first; none that is still being written.

        Raises:
            UserError: the record of one cannot be read; names it.
        """
        found = (self._read_record(path) for path in self._paths())
        return sorted(filter(None, found), key=lambda c: c.step)

    def _paths(self) -> Iterator[str]:
        """The directories of the checkpoints, complete or not."""
        # Not by a pattern: the path may hold what is special in one.
        try:
            names = tf.io.gfile.listdir(self.directory)
        except tf.errors.NotFoundError:
            return
        for name in names:
            if name.startswith("step-"):
                yield os.path.join(self.directory, name.rstrip("/"))  # of remote ones

    def _read_record(self, path: str) -> CheckpointInfo | None:
        """The checkpoint in the directory `path`; None if it is not complete."""
        record = os.path.join(path, RECORD_FILE)
        try:
            # Another process, or the thread that writes, may remove it meanwhile.
            with tf.io.gfile.GFile(record) as f:
                info = CheckpointInfo(path=path, **json.loads(f.read()))
            if not isinstance(info.step, int):
                raise ValueError(f"its step is {info.step!r}")
        except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):
            return None
        except (TypeError, ValueError, *_FILE_ERRORS) as e:
            raise UserError(
                f"{record} is damaged: {reason(e)}; remove {path} to take an earlier "
                "checkpoint."
            ) from e
        return info

    def latest(self) -> CheckpointInfo | None:
        found = self.list()
        return found[-1] if found else None

    def best(self) -> CheckpointInfo | None:
        """The one of the best `validation_metric`; the earliest of equals."""

        def value(info):
            segments = info.validation.get("unit") == "segments"
            return info.validation[validation_metric(segments)], -info.step

        scored = [c for c in self.list() if c.validation]
        return max(scored, key=value, default=None)

    def find(self, which: str) -> CheckpointInfo:
        """The checkpoint called `latest`, `best`, or by a step number.

        Raises:
            UserError: there is none; lists those that exist.
        """
        found = self.list()
        if which == "latest":
            chosen = found[-1] if found else None
        elif which == "best":
            chosen = self.best()
        else:
            chosen = next((c for c in found if str(c.step) == which), None)
        if chosen is None:
            steps = ", ".join(str(c.step) for c in found) or "none yet"
            raise UserError(
                f"{os.path.dirname(self.directory)} has no checkpoint {which!r} "
                f"(`latest`, `best` after a validation, or a step). Steps: {steps}."
            )
        return chosen

    def save(
        self,
        objects: dict[str, Any],
        step: int,
        examples: int,
        batch_size: int,
        validation: dict[str, Any] | None = None,
    ) -> CheckpointInfo:
        """Writes a checkpoint of `objects` (see `restore`) and removes old ones.

        Raises:
            UserError: it cannot be written (disk full, say); the earlier checkpoints
                are untouched.
        """
        info = self.save_async(objects, step, examples, batch_size, validation)
        self.wait()
        return info

    def save_async(
        self,
        objects: dict[str, Any],
        step: int,
        examples: int,
        batch_size: int,
        validation: dict[str, Any] | None = None,
    ) -> CheckpointInfo:
        """Takes the values of `objects` now, and writes them in the background.

        The variables may change as soon as this returns. One checkpoint is written at
        a time: the next save waits for it, so that the host's memory holds one copy
        of the state at most. (TensorFlow's own asynchronous checkpoints keep that copy
        for good, and do not tell when one is complete.) A process that ends writes it
        to the end; one that is killed leaves the earlier checkpoints.

        Returns:
            The checkpoint to be, which `wait` completes.

        Raises:
            UserError: an earlier one could not be written.
        """
        self.wait()
        path = os.path.join(self.directory, f"step-{step:08d}")
        info = CheckpointInfo(
            path, step, examples, batch_size, validation, "ema" in objects
        )
        # On all workers: a variable that replicas reduce on reading needs all of them.
        state = _host_values(objects)
        if self.writes:
            # Not a daemon thread: the end of the process waits for it.
            thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
            self._writing = thread.submit(self._write, state, info)
            thread.shutdown(wait=False)
        return info

    def wait(self) -> None:
        """Returns when the checkpoint that was saved last is complete.

        Raises:
            UserError: it cannot be written; said once.
        """
        if self._writing:
            concurrent.futures.wait([self._writing])
            written, self._writing = self._writing, None
            written.result()

    def _write(self, state: dict[str, Any], info: CheckpointInfo) -> None:
        try:
            if tf.io.gfile.exists(info.path):  # cut short, or saved twice at one step
                _remove(info.path)
            tf.io.gfile.makedirs(info.path)
            tf.train.Checkpoint(**state).write(os.path.join(info.path, "state"))
            self._write_record(info)
        except (UserError, *_FILE_ERRORS) as e:
            with contextlib.suppress(*_FILE_ERRORS):
                _remove(info.path)
            latest = self.latest()
            kept = f"the last one is of step {latest.step}" if latest else "none exists"
            raise UserError(
                f"The checkpoint of step {info.step} cannot be written to {info.path}: "
                f"{reason(e)}; {kept}."
            ) from e
        self._remove_old()

    def save_compressed(
        self, model: YT8MModel, info: CheckpointInfo, method: str
    ) -> CheckpointInfo:
        """Writes the weights of a model alone, compressed.

        Args:
            model: whose weights were restored from `info`.
            info: the checkpoint of another run, whose step it gets.
            method: one of `compression.METHODS`.

        Raises:
            UserError: it cannot be written, or a weight is not finite.
        """
        path = os.path.join(self.directory, f"step-{info.step:08d}")
        # Its metrics, and the averages that evaluation takes, are the other run's.
        saved = replace(info, path=path, validation=None, ema=False)
        weights = (np.asarray(_tf_variable(v)) for v in model.variables)
        try:
            tf.io.gfile.makedirs(path)
            with tempfile.TemporaryDirectory() as folder:
                local = os.path.join(folder, COMPRESSED_FILE)
                with open(local, "wb") as f:
                    compression.write_weights(f, weights, method)
                tf.io.gfile.copy(local, os.path.join(path, COMPRESSED_FILE))
        except _FILE_ERRORS as e:
            raise UserError(f"{path} cannot be written: {reason(e)}") from e
        self._write_record(saved)
        return saved

    def is_compressed(self, info: CheckpointInfo) -> bool:
        return tf.io.gfile.exists(os.path.join(info.path, COMPRESSED_FILE))

    def exists(self, info: CheckpointInfo) -> bool:
        return tf.io.gfile.exists(os.path.join(info.path, RECORD_FILE))

    def set_validation(self, step: int, validation: dict[str, Any]) -> None:
        """Records the validation metrics of the checkpoint of `step`, if it exists.

        Raises:
            UserError: the checkpoint that was saved last cannot be written.
        """
        self.wait()
        if not self.writes:
            return
        for info in self.list():
            if info.step == step:
                self._write_record(replace(info, validation=validation))
        self._remove_old()

    def _write_record(self, info: CheckpointInfo) -> None:
        record = asdict(info)
        del record["path"]
        whole_files.write_file(
            os.path.join(info.path, RECORD_FILE), json.dumps(record) + "\n"
        )

    def _remove_old(self) -> None:
        complete = self.list()
        kept = {c.path for c in complete[-self.keep :]}
        best = self.best()
        if best:
            kept.add(best.path)
        for path in self._paths():
            if path not in kept:
                _remove(path)

    def restore(
        self, info: CheckpointInfo, objects: dict[str, Any], partial: bool = False
    ) -> None:
        """Restores `objects` from the checkpoint `info`.

        Args:
            objects: a model, an optimiser, by name: anything with `variables`.
            partial: whether the checkpoint may hold more than `objects` (the model
                alone is restored for evaluation, say).

        Raises:
            UserError: a file is unreadable, or a weight of the model is missing in
                the checkpoint or has another shape there.
        """
        if self.is_compressed(info):
            self._expand(info, objects)
            return
        checkpoint = tf.train.Checkpoint(**_by_place(objects, _tf_variable))
        try:
            self._refuse_other_weights(info, objects)
            status = checkpoint.read(os.path.join(info.path, "state"))
            status.assert_existing_objects_matched()
            if partial:
                status.expect_partial()
            else:
                status.assert_consumed()
        except IndexError as e:  # where a file is cut short
            raise UserError(
                f"The checkpoint {info.path} is damaged, a file is cut short; remove "
                "it to take an earlier one."
            ) from e
        except (ValueError, AssertionError, *_FILE_ERRORS) as e:
            raise UserError(
                f"The checkpoint {info.path} does not fit the model: {reason(e)}"
            ) from e

    def _refuse_other_weights(
        self, info: CheckpointInfo, objects: dict[str, Any]
    ) -> None:
        """Raises `UserError` for a weight that the checkpoint has in another shape,
        or one that is only there or only here."""
        # `tf.train.load_checkpoint` takes some remote files for folders.
        reader = tf.compat.v1.train.NewCheckpointReader(
            os.path.join(info.path, "state")
        )
        shapes = reader.get_variable_to_shape_map()
        held = collections.Counter(name.split("/")[0] for name in shapes)
        if "optimizer" in objects and "optimizer" not in held:
            raise UserError(
                f"The checkpoint {info.path} holds weights alone, from which no "
                "training goes on (`yt8m average` writes such): begin another run with "
                "--init_from."
            )
        for name, owner in objects.items():
            where = f"The checkpoint {info.path} does not fit the model: its {name}"
            count = len(owner.variables)
            for i, variable in enumerate(owner.variables):
                key = f"{name}/{i:05d}/.ATTRIBUTES/VARIABLE_VALUE"
                here = list(variable.shape)
                path = getattr(variable, "path", variable.name)
                if key not in shapes:
                    raise UserError(
                        f"{where} has {held[name]} variables, not {count}; {path} "
                        f"{here} is not among them."
                    )
                if shapes[key] != here:
                    raise UserError(f"{where} has {path} {shapes[key]}, not {here}.")
            # With the averages of weights there is their number of updates.
            if held[name] > count and name != "ema":
                raise UserError(f"{where} has {held[name]} variables, not {count}.")

    def _expand(self, info: CheckpointInfo, objects: dict[str, Any]) -> None:
        """As `restore`, of a compressed checkpoint."""
        path = os.path.join(info.path, COMPRESSED_FILE)
        if set(objects) != {"model"}:
            raise UserError(
                f"{path} holds compressed weights, from which no training goes on; "
                "train in the directory of the run that was compressed."
            )
        variables = objects["model"].variables
        place = 0
        try:
            with tf.io.gfile.GFile(path, "rb") as f:
                for place, weight in enumerate(compression.read_weights(f), 1):
                    if place > len(variables):
                        raise ValueError(f"it has more than {len(variables)} weights")
                    # Also of another type: Keras would cast it.
                    variable = variables[place - 1]
                    found = weight.shape, str(weight.dtype)
                    if found != (tuple(variable.shape), variable.dtype):
                        raise ValueError(
                            f"weight {place} is {weight.dtype} {list(weight.shape)}, "
                            f"not {variable.dtype} {list(variable.shape)}"
                        )
                    variable.assign(weight)
            if place < len(variables):
                raise ValueError(f"it has {place} of {len(variables)} weights")
        except (ValueError, *_FILE_ERRORS) as e:
            raise UserError(f"{path} does not fit the model: {reason(e)}") from e

    def restore_for_evaluation(self, info: CheckpointInfo, model: YT8MModel) -> None:
        """Restores a model as it is evaluated: with the averages of its weights, if
        the checkpoint holds any.

        Raises:
            UserError: as `restore`.
        """
        self.restore(info, {"model": model}, partial=True)
        if info.ema:
            weights = SimpleNamespace(variables=model.trainable_variables)
            self.restore(info, {"ema": weights}, partial=True)


def _by_place(
    objects: dict[str, Any], entry: Callable[[Any], Any]
) -> dict[str, dict[str, Any]]:
    """All variables of each of `objects`, by their place, as `entry` makes them.

    Not the objects themselves: TensorFlow does not find the layers that a Keras model
    keeps in a list, and says nothing. Nor the variables' names, which Keras numbers by
    what was built before in the process.
    """
    return {
        name: {f"{i:05d}": entry(v) for i, v in enumerate(owner.variables)}
        for name, owner in objects.items()
    }


def _tf_variable(variable: Any) -> tf.Variable:
    return variable if isinstance(variable, tf.Variable) else variable.value


class _Value(tf.Module):
    """A value, which a checkpoint stores as it stores a variable's."""

    def __init__(self, value: tf.Tensor):
        super().__init__()
        self.value = value

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": self.value}


def _host_values(objects: dict[str, Any]) -> dict[str, dict[str, _Value]]:
    """The variables' present values in the host's memory.

    They are tensors and do not change. Where a variable is in the host's memory, it
    shares its buffer with them until it changes: TensorFlow copies it then.
    """
    with tf.device("/cpu:0"):
        return _by_place(objects, lambda v: _Value(tf.identity(_tf_variable(v))))


def _remove(path: str) -> None:
    """Removes a checkpoint; its record goes first, so that none is left in part."""
    record = os.path.join(path, RECORD_FILE)
    if tf.io.gfile.exists(record):
        tf.io.gfile.remove(record)
    tf.io.gfile.rmtree(path)


@dataclass(frozen=True)
class Run:
    """A trained model with where it came from."""

    directory: str
    config: RunConfig
    model: YT8MModel
    checkpoint: CheckpointInfo


def load_run(directory: str, which: str = "latest", module: str | None = None) -> Run:
    """Builds the model of a run and restores its weights, or the averages of them.

    Args:
        directory: the run directory (`--train_dir`).
        which: `latest`, `best` (`Checkpoints.best`), or a step number.
        module: as `read_config`.

    Raises:
        UserError: no run, no such checkpoint, or one that does not fit.
    """
    config = read_config(directory, module)
    checkpoints = Checkpoints(directory)
    info = checkpoints.find(which)
    model = build_model(
        config.model, config.data, config.training.precision, restored=True
    )
    checkpoints.restore_for_evaluation(info, model)
    return Run(directory, config, model, info)


def has_trained(directory: str) -> bool:
    """Whether the run in `directory` has taken steps; its checkpoints may be lost."""
    return tf.io.gfile.exists(os.path.join(directory, METRICS_FILE))


def start_anew(directory: str) -> str | None:
    """Moves a run directory aside, so that a new run can take its name.

    Returns:
        The new name of the old run, or None if there was nothing to move.

    Raises:
        UserError: the directory holds something that is not a run of ours.
    """
    refuse_foreign(directory)
    if not tf.io.gfile.exists(directory) or not tf.io.gfile.listdir(directory):
        return None
    aside = f"{directory.rstrip('/')}-until-{time.strftime('%Y%m%d-%H%M%S')}"
    tf.io.gfile.rename(directory.rstrip("/"), aside)
    return aside


def refuse_foreign(directory: str) -> None:
    """Raises `UserError` if `directory` holds files but no run of ours."""
    if not tf.io.gfile.exists(directory):
        return
    if not tf.io.gfile.isdir(directory):
        raise UserError(f"{directory} is a file; choose another --train_dir.")
    if tf.io.gfile.listdir(directory) and not is_run(directory):
        raise UserError(
            f"{directory} is not empty and not a run directory (no {CONFIG_FILE}); "
            "choose another --train_dir."
        )
