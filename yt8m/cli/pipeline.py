"""Distils an ensemble into one small model, from shards to a submission.

    yt8m pipeline distilled_1gb --output_dir=distilled --max_bytes=1GB \\
        --train_data_pattern='train*.tfrecord' --test_data_pattern='test*.tfrecord'

What is trained stands in a JSON file; `distilled_1gb` is one that is shipped. The steps
are commands of their own: folds of the training shards; first-level models, out of
fold; their ensemble, whose predictions are soft labels; second-level nets that learn
from these, each compressed; their embeddings side by side; one classifier of these; all
nets and the classifier as one SavedModel; its submission, checked. Without a classifier
the SavedModel is the mean of the nets: the classifier sees embeddings of videos whose
labels have gone into nets and soft labels, so it wants many of them. --dry_run prints
all the commands and runs none.

The same command again goes on where it was stopped: steps that are done are passed
over, and training goes on from its checkpoint. A step whose flags or shards have
changed is done anew, with all that depends on it; what it had made is removed. Each
step is a process of its own, so that it computes what its line computes when it is
pasted into a shell, and its memory is given back.

The JSON file holds:

    first_level, second_level   names of models, and flags of train.py for each:
                                {"moe": {"model": "MoeModel", "num_epochs": 5}}
    classifier                  flags of train.py; with a distillation_weight it learns
                                from the soft labels too, otherwise from the labels
                                (left out: the mean of the nets)
    training                    flags of all models of both levels, unless they have
                                their own (may be left out)
    ensemble                    flags of `yt8m ensemble` (left out: LightGBM if it is
                                installed, otherwise learned weights)
    compress                    flags of `yt8m compress` (may be left out)
    num_folds, num_classes, seed        5, the dataset's and 0 if left out
    by_id                       true deals videos to the folds, as `yt8m folds --by_id`
                                does, and not shards, of which there may be fewer
    train_data_pattern, test_data_pattern, labels, max_bytes
                                unless they are given as flags; the last two are not
                                needed

Second-level models have distillation_weight=1 unless given: soft labels alone. All
models of both levels read the same shards, so they are of one level: frame or video.
Those of the second level, which end in one SavedModel, read the same frames of a video.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared
from yt8m.cli.recipes import pipeline_names
from yt8m.config import DataConfig
from yt8m.errors import UserError, near_matches
from yt8m.steps import Pipeline, Step, plan

log = logging.getLogger("yt8m")

POSITIONAL = ("the pipeline's JSON file, or the name of a shipped one",)

_SHIPPED = resources.files("yt8m") / "recipes"
_NUMBERS = {"num_folds": (5, 2), "num_classes": (schema.NUM_CLASSES, 1), "seed": (0, 0)}
_PATHS = ("train_data_pattern", "test_data_pattern", "labels")
_TABLES = ("first_level", "second_level")
_OPTIONAL_TABLES = ("classifier", "training", "ensemble", "compress")
_KEYS = (*_TABLES, *_OPTIONAL_TABLES, *_NUMBERS, *_PATHS)
_KEYS += ("by_id", "max_bytes", "description")

# What the pipeline gives to the commands itself.
_OWN = {
    "train": (
        *("train_dir", "train_data_pattern", "num_classes", "teacher"),
        *("teacher_checkpoint", "start_new_model", "dry_run", "list_models", "help"),
    ),
    "ensemble": (
        *("sources", "held_out_sources", "labels", "output_file", "num_classes"),
        *("top_k", "help"),
    ),
    "compress": ("train_dir", "output_dir", "max_bytes", "help"),
}
_OF_CLASSIFIER = ("feature_names", "feature_sizes")
_MAIN = "from yt8m.cli.main import main; main()"


def define(flags: shared.FlagValues) -> None:
    shared.output_dir(flags, "Below which everything is written.")
    for name, help in (
        ("train_data_pattern", "Training shards, with labels: globs."),
        ("test_data_pattern", "Shards to predict for the submission: globs."),
        (
            "labels",
            "The test videos' labels, if they are known, as `yt8m score` takes them.",
        ),
        (
            "max_bytes",
            "Refuses a final model, nets and classifier, of more bytes: a number, or "
            "as 1GB (10^9) or 1GiB (2^30).",
        ),
    ):
        absl_flags.DEFINE_string(
            name, "", f"{help} Overrides the file's.", flag_values=flags
        )
    absl_flags.DEFINE_bool(
        "dry_run", False, "Prints the commands and runs none.", flag_values=flags
    )


def run(flags: shared.FlagValues, path: str) -> int:
    from yt8m import whole_files
    from yt8m.cli.compress import parse_bytes

    shared.require(flags, "output_dir", "No directory to write")
    directory = flags.output_dir.rstrip("/")
    if re.search(r"[,*?\[\]{}@]|://", directory):
        raise UserError(
            f"--output_dir={directory} must be a folder of this machine without any of "
            ",*?[]{}@ in its name."
        )
    given = {name: flags[name].value for name in (*_PATHS, "max_bytes")}
    settings = _read(path) | {name: value for name, value in given.items() if value}
    pipeline = read_pipeline(settings, path)
    most = settings.get("max_bytes")
    most = parse_bytes(str(most), "--max_bytes") if most else None
    steps = plan(pipeline, directory)
    if flags.dry_run:
        print("\n".join(step.line for step in steps))
        return 0
    arguments = [f"--{n}={flags[n].value}" for n in flags if flags[n].present]
    again = shlex.join(["yt8m", "pipeline", path, *arguments])
    whole_files.make_directory(directory)
    with _locked(directory) as lock:
        status = run_steps(
            steps,
            directory,
            lambda command: run_command(command, lock),
            again,
            lambda: _check_bytes(steps, most),
        )
    if status == 0:
        _report(steps, directory)
    return status


# --- the file ------------------------------------------------------------------------


def _read(path: str) -> dict[str, Any]:
    """The JSON object of a file, or of a shipped one by its name."""
    shipped = pipeline_names()
    if path in shipped:
        text = (_SHIPPED / f"{path}.json").read_text()
    else:
        try:
            with open(path, encoding="utf-8") as f:
                text = f.read()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(
                f"{path} cannot be read ({e}), and is no shipped pipeline. "
                f"{near_matches(path, shipped)}"
            ) from e
    try:
        settings = json.loads(text, object_pairs_hook=_without_repetition)
    except ValueError as e:
        raise UserError(f"{path} is not JSON: {e}.") from e
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold an object: {{...}}.")
    return settings


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} is there twice")
    return found


def read_pipeline(settings: dict[str, Any], path: str) -> Pipeline:
    """The pipeline that `settings` describe, each flag checked by its command.

    Args:
        settings: of the file and the flags.
        path: of the file, for errors.

    Raises:
        UserError: an unknown key, model or flag (near matches are listed), a value that
            its flag refuses, or something that is missing.
    """
    from yt8m import runs

    for key in settings:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown {key}. {near_matches(key, _KEYS)}")
    for key in _PATHS[:2]:
        if not settings.get(key):
            raise UserError(f"{path} names no {key}: give --{key}.")
    values: dict[str, Any] = {}
    for key, (default, least) in _NUMBERS.items():
        values[key] = value = settings.get(key, default)
        if type(value) is not int or value < least:
            raise UserError(f"{path}: {key} must be a whole number from {least}.")
    for key in _PATHS:
        values[key] = value = settings.get(key, "")
        if not isinstance(value, str):
            raise UserError(f"{path}: {key} must be a pattern of files.")
    values["by_id"] = settings.get("by_id", False)
    if type(values["by_id"]) is not bool:
        raise UserError(f"{path}: by_id must be true or false.")
    tables = {k: _table(settings, k, path) for k in (*_TABLES, *_OPTIONAL_TABLES)}
    runs.load_registries()
    levels: dict[str, str] = {}
    nets: dict[str, DataConfig] = {}
    for level in ("first_level", "second_level"):
        values[level] = {}
        for name in tables[level]:
            where = f"{path}: {level}.{name}"
            if not re.fullmatch(r"[\w-]+", name):
                raise UserError(f"{where}: a name has letters, digits, _ and - only.")
            table = tables["training"] | _table(tables[level], name, path)
            taught = level == "second_level"
            values[level][name], read, _ = _training_flags(
                table, where, "distilled" if taught else ""
            )
            levels[where] = read.level
            if taught:
                nets[where] = read
    if len(set(levels.values())) > 1:
        first = next(iter(levels))
        other = next(w for w in levels if levels[w] != levels[first])
        raise UserError(
            f"{first} is of a {levels[first]}-level model and {other} of a "
            f"{levels[other]}-level one: all must read the same shards."
        )
    _refuse_other_frames(nets)
    if len(values["first_level"]) < 2 or not values["second_level"]:
        raise UserError(
            f"{path}: first_level needs two models at least, second_level one."
        )
    where = f"{path}: classifier"
    values["classifier"], values["classifier_is_taught"] = None, False
    if "classifier" in settings:
        values["classifier"], read, values["classifier_is_taught"] = _training_flags(
            tables["classifier"], where, "classifier"
        )
        if read.level != "video":
            raise UserError(f"{where}: its model must be a video-level one.")
    values["ensemble"], values["ensemble_learns"] = _ensemble_flags(
        tables["ensemble"] or _default_ensemble(),
        f"{path}: ensemble",
        list(values["first_level"]),
    )
    values["compress"], _ = _flags("compress", tables["compress"], f"{path}: compress")
    return Pipeline(**values)


def _table(settings: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    value = settings.get(key, {})
    if not isinstance(value, dict) or (key in _TABLES and not value):
        raise UserError(f"{path} must have {key}: an object, as --help shows it.")
    return value


def _default_ensemble() -> dict[str, Any]:
    if importlib.util.find_spec("lightgbm"):
        return {"method": "lightgbm"}
    log.info("LightGBM is not installed: the ensemble is a mean of learned weights.")
    return {"learn_weights": "search"}


def _ensemble_flags(
    table: dict[str, Any], where: str, members: list[str]
) -> tuple[list[str], bool]:
    """The flags of the ensemble, and whether it learns from labels."""
    from yt8m.cli import ensemble

    found, flags = _flags("ensemble", table, where)
    learns = ensemble.learns(flags)
    if learns:  # as the pipeline gives them
        flags.labels, flags.held_out_sources = "labels", ",".join(members)
    try:
        ensemble.check(flags, members)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    return found, learns


def _training_flags(
    table: dict[str, Any], where: str, kind: str
) -> tuple[list[str], DataConfig, bool]:
    """The flags of a model, what it reads, and whether it is taught.

    Args:
        table: names and values of flags.
        where: it stands, for errors.
        kind: "distilled": of the soft labels alone unless a weight is given;
            "classifier": taught if a weight is given; "": never taught.
    """
    from yt8m import registry, runs

    refused = _OF_CLASSIFIER if kind == "classifier" else ()
    found, flags = _flags("train", table, where, refused)
    weighed = shared.given(flags, "distillation_weight")
    if kind == "distilled" and not weighed:
        found.append("--distillation_weight=1")
    taught = kind == "distilled" or (kind == "classifier" and weighed)
    if taught:
        flags.teacher = "soft_labels.predictions"
    try:
        if flags.model_module:
            runs.load_registries(flags.model_module)
        entry = registry.get(flags.model)
        read = shared.data_config(flags, runs.default_data_config(flags.model))
        shared.training_config(flags)
        arguments = registry.arguments(entry.cls)
        for name in shared.given_model_args(flags):
            if name not in arguments:
                raise UserError(
                    f"{flags.model} has no argument {name}. "
                    f"{near_matches(name, arguments)}"
                )
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    return found, read, taught


def _refuse_other_frames(nets: dict[str, DataConfig]) -> None:
    """Raises `UserError` if the nets cannot be one SavedModel.

    Args:
        nets: what each reads, by where it stands.
    """
    places = list(nets)
    for place in places[1:]:
        first, other = nets[places[0]], nets[place]
        for field in ("frames", "max_frames") if first.level == "frame" else ():
            own, others = getattr(first, field), getattr(other, field)
            if own != others:
                raise UserError(
                    f"{places[0]} has {field} {own}, {place} {others}: nets that end "
                    "in one SavedModel read the same frames of a video."
                )


def _flags(
    command: str, table: dict[str, Any], where: str, refused: Sequence[str] = ()
) -> tuple[list[str], shared.FlagValues]:
    """Flags as on a command line, and as the command reads them.

    Raises:
        UserError: an unknown flag (near matches are listed), one that the pipeline
            sets, or a value that is refused.
    """
    from yt8m.cli import recipes

    flags = absl_flags.FlagValues()
    define = importlib.import_module(f"yt8m.cli.{command}").define
    define(flags)
    own = (*_OWN[command], *refused)
    found = []
    for name, value in table.items():
        if name in own:
            raise UserError(f"{where}: {name} is set by the pipeline; leave it out.")
        if name not in flags:
            known = [n for n in flags if n not in own]
            raise UserError(
                f"{where}: unknown flag {name}. {near_matches(name, known)}"
            )
        if not isinstance(value, bool | int | float | str):
            raise UserError(f"{where}: {name} must be a number, a text, true or false.")
        found.append(f"--{name}={json.dumps(value) if type(value) is bool else value}")
    try:
        flags([command, *found])
        recipes.follow(flags, define)
    except (absl_flags.Error, UserError) as e:
        raise UserError(f"{where}: {e}") from e
    return found, flags


# --- the steps -----------------------------------------------------------------------


def run_steps(
    steps: Sequence[Step],
    directory: str,
    run_one: Callable[[Sequence[str]], int],
    again: str,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Runs the steps that are not done, in order.

    A step's record holds a fingerprint of its command, the files that it reads and the
    fingerprints of the steps that it depends on. It is written before the step begins,
    so that what is found without one, or with another, is known for what it is.

    Args:
        steps: in an order in which each comes after those that it reads.
        directory: the pipeline's.
        run_one: runs a command and returns its exit status.
        again: the command that goes on.
        check: called after each step; may raise.

    Returns:
        0, or the exit status of a step that a signal has stopped.

    Raises:
        UserError: a step failed, or an output is there that is not of this pipeline.
    """
    from yt8m import whole_files

    _warn_of_unplanned(steps, directory)
    fingerprints: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        reads = [fingerprints[name] for name in step.reads]
        fingerprints[step.name] = now = _fingerprint(step, reads, directory)
        path = _record_path(directory, step.name)
        record = _read_record(path)
        same = record.get("fingerprint") == now
        there = step.output is None or os.path.lexists(step.output)
        title = f"# {number}/{len(steps)} {step.name}"
        if same and there and record.get("done"):
            print(f"{title}: done", flush=True)
            check()
            continue
        print(f"{title}\n{step.line}", flush=True)
        if step.output and there and not same:
            if not record:
                raise UserError(
                    f"{step.output} is there, but was not made by this pipeline; move "
                    "it away, or choose another --output_dir."
                )
            log.info("Its flags or what it reads have changed: %s is made anew.",
                     step.output)  # fmt: skip
            _remove(step.output)
        record = {"fingerprint": now, "command": step.line, "done": False}
        whole_files.make_directory(os.path.dirname(path))
        whole_files.write_file(path, json.dumps(record, indent=2) + "\n")
        status = run_one(step.command)
        if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            log.warning("Stopped in the step %s. Go on with: %s", step.name, again)
            return status
        if status:
            raise UserError(
                f"The step {step.name} failed with exit status {status}, and has said "
                f"why. When that is mended, go on with: {again}"
            )
        record["done"] = True
        whole_files.write_file(path, json.dumps(record, indent=2) + "\n")
        check()
    return 0


def run_command(command: Sequence[str], lock: int) -> int:
    """Runs `yt8m COMMAND ...` in a process of its own; returns its exit status.

    It is in a session of its own, so that a signal reaches it once: from here, also
    when Ctrl-C is pressed. It has the lock until it ends, whatever becomes of us.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", _MAIN, *command],
        start_new_session=True,
        pass_fds=(lock,),
    )
    stopped = 0
    while True:
        try:
            status = child.wait()
            break
        except KeyboardInterrupt:
            stopped = signal.SIGINT
        except SystemExit:  # of the handler of SIGTERM in yt8m.cli.main
            stopped = signal.SIGTERM
        child.send_signal(stopped)
    return 128 + stopped if stopped else status


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[int]:
    """Lets one pipeline at a time work in a directory; gives the lock's descriptor."""
    import fcntl

    with open(os.path.join(directory, "lock"), "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UserError(
                f"Another pipeline is at work in {directory}, or the last step of one "
                "that was killed; wait for it, or end it."
            ) from e
        yield f.fileno()


def _fingerprint(step: Step, reads: Sequence[str], directory: str) -> str:
    """Of the command, the steps it reads, and the name, size and time of each file."""
    from yt8m import remote
    from yt8m.data.files import list_files

    files = []
    for pattern in step.data:
        if not remote.is_url(pattern):
            remote.prepare(pattern, f"{step.name}: ")
        files += list_files(pattern, "the data")
    for argument in step.command[1:]:  # such as --model_module=FILE
        for value in _texts(argument):
            if os.path.isfile(value) and not value.startswith(f"{directory}/"):
                files.append(value)
    whole = [step.command, list(reads), [(f, *_state(f)) for f in files]]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _texts(argument: str) -> Iterator[str]:
    """The value of a flag, and all texts in the value of one of arguments."""
    name, _, value = argument.partition("=")
    yield value
    waiting = []
    if name.endswith("_args"):  # such as --model_args=normalization=FILE
        with contextlib.suppress(UserError):  # the step will say what is wrong
            waiting.append(shared.parse_arguments(value, name))
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _state(path: str) -> tuple[int, int]:
    import tensorflow as tf

    try:
        state = tf.io.gfile.stat(path)
    except tf.errors.OpError:  # of web servers: the step will say what is wrong
        return 0, 0
    return state.length, state.mtime_nsec


def _record_path(directory: str, name: str) -> str:
    return os.path.join(directory, "steps", f"{name}.json")


def _read_record(path: str) -> dict[str, Any]:
    try:
        with open(path) as f:
            return json.load(f)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as a step's record: {e}") from e


def _warn_of_unplanned(steps: Sequence[Step], directory: str) -> None:
    """Names what steps have made that are no longer in the file."""
    planned = {_record_path(directory, step.name) for step in steps}
    for folder, _, names in sorted(os.walk(os.path.join(directory, "steps"))):
        for path in (os.path.join(folder, name) for name in sorted(names)):
            if path.endswith(".json") and path not in planned:
                name = os.path.relpath(path, os.path.join(directory, "steps"))
                log.warning(
                    "%s/%s is of no step any more: it is left as it is.",
                    directory,
                    name.removesuffix(".json"),
                )


def _remove(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
    except OSError as e:
        raise UserError(f"{path} cannot be removed: {e}") from e


# --- the result ----------------------------------------------------------------------


def _models(steps: Sequence[Step]) -> list[str]:
    """The directories of the final model's parts."""
    return [
        step.output for step in steps if step.output and step.command[0] == "compress"
    ]


def _check_bytes(steps: Sequence[Step], most: int | None) -> None:
    """Raises `UserError` if what is there of the final model is more than `most`.

    Its parts, as they are made, and at the end the whole.
    """
    from yt8m.cli.compress import bytes_below

    whole = [step.output for step in steps if step.command[0] == "export"]
    size = max(
        sum(bytes_below(path) for path in paths if os.path.isdir(path))
        for paths in (_models(steps), whole)
    )
    if most is not None and size > most:
        raise UserError(
            f"The final model takes {size:,} bytes so far, more than the {most:,} of "
            "--max_bytes; compress it more, or take fewer or smaller nets."
        )


def _report(steps: Sequence[Step], directory: str) -> None:
    """Prints the table of scores, and where the model and the submission are."""
    from yt8m import whole_files
    from yt8m.cli.compress import bytes_below
    from yt8m.cli.recipes import table

    rows = []
    model = os.path.join(directory, "export")
    for step in (s for s in steps if s.command[0] == "score"):
        with open(step.output) as f:
            result = json.load(f)
        name = step.name.removesuffix(".scores.json")
        videos = "test" if name == "submission" else "training, out of fold"
        figures = (result[key] for key in ("gap", "hit_at_1", "perr"))
        rows.append([name, videos, *(f"{x:.5f}" for x in figures)])
    header = ["predictions", "videos", "GAP", "Hit@1", "PERR"]
    text = table(header, rows, "markdown")
    whole_files.write_file(os.path.join(directory, "scores.md"), f"{text}\n")
    print(table(header, rows, "text"))
    print(
        f"The final model: {bytes_below(model):,} bytes, {len(_models(steps))} runs as "
        f"one SavedModel, {model}. The submission: {directory}/submission.csv"
    )
