"""Fine-tuning: a run that begins with the weights of another, parts of which stand
still or learn more slowly.

Weights are called by their paths within the model, as `pool_0/input_norm/gamma`. A
pattern is a path, or its beginning (`pool_0` is all of that layer), with the wildcards
of file names (`pool_*`, `*/moving_*`).
"""

import fnmatch
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from yt8m import runs
from yt8m.config import TrainingConfig
from yt8m.errors import UserError, near_matches
from yt8m.model import YT8MModel

_HEAD = "head"  # the layer whose weights belong to the classes, in every model


# --- weights of another run ----------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What a model got from a run, by the paths of the weights.

    Attributes:
        source: the checkpoint.
        averages: whether these were the moving averages of the weights.
        loaded: the model's weights that have new values.
        new: those that are as they were initialised, and why.
        unused: the run's weights that the model has no place for.
    """

    source: str
    averages: bool
    loaded: tuple[str, ...]
    new: Mapping[str, str]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """A few lines for a person."""
        count = len(self.loaded) + len(self.new)
        kind = "averages of weights" if self.averages else "weights"
        lines = [
            f"{len(self.loaded)} of {count} variables begin with the {kind} of "
            f"{self.source}: {_parts(self.loaded)}."
        ]
        for why in dict.fromkeys(self.new.values()):
            paths = [path for path, reason in self.new.items() if reason == why]
            lines.append(f"New, as {why}: {_parts(paths)}.")
        if self.unused:
            lines.append(f"Not taken over from there: {_parts(self.unused)}.")
        return lines


def _parts(paths: Iterable[str]) -> str:
    """`pool_0 (12 variables), hidden (2)`."""
    counts = Counter(path.partition("/")[0] for path in paths)
    return ", ".join(
        f"{part} ({count}{' variables' if not i and count > 1 else ''})"
        for i, (part, count) in enumerate(counts.items())
    )


def find_source(settings: TrainingConfig) -> TrainingConfig:
    """Looks for the run of --init_from, before anything is built.

    Returns:
        The settings, in which the checkpoint is named by its step.

    Raises:
        UserError: there is none.
    """
    if not runs.is_run(settings.init_from):
        raise UserError(
            f"--init_from={settings.init_from} is not a run directory; give the "
            "--train_dir of a trained run."
        )
    found = runs.Checkpoints(settings.init_from).find(settings.init_checkpoint)
    return replace(settings, init_checkpoint=str(found.step))


def load_weights(
    model: YT8MModel, directory: str, which: str, new_classifier: bool = False
) -> Loaded:
    """Gives a model the weights of a run, as they are evaluated, wherever they fit.

    A weight fits one of the same path and shape. What is not there by its whole path is
    looked for without the first part of it, so that a model within another one
    (`segment_encoder/pool_0/...`) takes those of a run of its own kind. The classifier
    (all under `head`) is taken over whole or not at all: not if it is to be new, or if
    the run has another number of classes or another classifier. States of random draws
    stay the model's own.

    Args:
        model: a built one.
        directory, which: the run and its checkpoint, as of `runs.load_run`.
        new_classifier: whether the classifier stays as it was initialised.

    Raises:
        UserError: no such run, or nothing of it fits.
    """
    run = runs.load_run(directory, which)
    found = {p: v for p, v in _by_path(run.model).items() if _is_weight(v)}
    wanted = {p: v for p, v in _by_path(model).items() if _is_weight(v)}
    taken: dict[str, str] = {}
    new: dict[str, str] = {}
    for path, variable in wanted.items():
        source = path if path in found else path.partition("/")[2]
        if source not in found:
            new[path] = "the run has no weights of these names"
        elif tuple(found[source].shape) != tuple(variable.shape):
            new[path] = "the run has them in other shapes"
        else:
            taken[path] = source
    heads = [path for path in wanted if _HEAD in path.split("/")]
    why = None
    if new_classifier:
        why = "--new_classifier says"
    elif run.model.num_classes != model.num_classes:
        why = f"the run has {run.model.num_classes} classes"
    elif any(path in new for path in heads):
        why = "the run has another classifier"
    for path in heads if why else ():
        taken.pop(path, None)
        new[path] = why
    if not taken:
        reasons = "; ".join(dict.fromkeys(new.values()))
        raise UserError(
            f"--init_from={directory}: none of the weights of its "
            f"{run.config.model.name} fits ({reasons}); give a run of the same model, "
            "of the same sizes, or leave the flag out."
        )
    for path, source in taken.items():
        wanted[path].assign(keras.ops.convert_to_numpy(found[source]))
    unused = tuple(path for path in found if path not in taken.values())
    return Loaded(run.checkpoint.path, run.checkpoint.ema, tuple(taken), new, unused)


def _is_weight(variable: Any) -> bool:
    return keras.backend.is_float_dtype(variable.dtype)


# --- parts of a model ----------------------------------------------------------------


def path_of(variable: Any) -> str:
    """The path within the model: without its name, which Keras numbers."""
    return variable.path.partition("/")[2]


def _by_path(model: YT8MModel) -> dict[str, Any]:
    return {path_of(v): v for v in model.variables}


def match(pattern: str, paths: Iterable[str], flag: str) -> list[str]:
    """The paths that a pattern means.

    Raises:
        UserError: it means none; names near matches.
    """
    paths = list(paths)
    beginnings = {
        p: list(itertools.accumulate(p.split("/"), "{}/{}".format)) for p in paths
    }
    found = [p for p in paths if fnmatch.filter(beginnings[p], pattern)]
    if not found:
        # Of as many parts as the pattern has: all of them would fill pages.
        depth = min(pattern.count("/"), *(p.count("/") for p in paths))
        known = dict.fromkeys(parts[depth] for parts in beginnings.values())
        raise UserError(
            f"--{flag}: no weight is called {pattern}. {near_matches(pattern, known)}"
        )
    return found


def freeze(model: YT8MModel, patterns: str) -> list[str]:
    """Makes weights stay as they are in training.

    A batch norm whose statistics (`moving_mean`) are meant stands still as a whole: it
    normalises by them, and they do not move.

    Args:
        model: a built one, of which no graph of training is made yet.
        patterns: separated by commas.

    Returns:
        The paths of the weights that no longer learn.

    Raises:
        UserError: a pattern means no weight, or none is left to learn.
    """
    variables = _by_path(model)
    before = {path_of(v) for v in model.trainable_variables}
    chosen: set[str] = set()
    for pattern in _split(patterns):
        chosen.update(match(pattern, variables, "freeze"))
    for path in chosen:
        variables[path].trainable = False
    for layer in model._flatten_layers():
        statistics = getattr(layer, "moving_mean", None)
        if statistics is not None and path_of(statistics) in chosen:
            layer.trainable = False
    if not model.trainable_variables:
        raise UserError(f"--freeze={patterns} leaves no weight that learns.")
    return sorted(before - {path_of(v) for v in model.trainable_variables})


def learning_rate_factors(model: YT8MModel, text: str) -> list[float] | None:
    """By what the learning rate of each of a model's trainable variables is multiplied.

    Args:
        model: a built one; what is frozen is so already.
        text: `pattern=factor,pattern=factor`; of several patterns the last counts.

    Returns:
        One factor for each, or None if none is given.

    Raises:
        UserError: a factor is no positive number, or a pattern means no weight.
    """
    if not text.strip():
        return None
    paths = list(_by_path(model))
    factors = dict.fromkeys(paths, 1.0)
    for part in _split(text):
        pattern, _, number = part.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = 0.0
        if not pattern or not 0 < factor < np.inf:
            raise UserError(
                f"--learning_rate_multipliers: {part} must be a pattern and a positive "
                "number, as in segment_encoder=0.5; --freeze is for what stands still."
            )
        factors |= dict.fromkeys(
            match(pattern.strip(), paths, "learning_rate_multipliers"), factor
        )
    return [factors[path_of(v)] for v in model.trainable_variables]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
