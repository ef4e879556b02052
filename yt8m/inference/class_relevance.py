"""How relevant a class is to a segment: a last, pluggable step before the ranking.

A model scores each class of a segment by itself and for all videos alike. The winners
of 2019 scored pairs of a segment and a class anew, by what else was known of both: the
other classes of the segment, the rest of the video. Such a step is a `ClassRelevance`:
a function of all candidates of some videos. Two come from files:

- a table, `.csv`, of how much one class says about another,

      Class,Other,Weight
      12,7,1.5
      12,44,-3

  which adds to the logit of `Class` each `Weight` times the probability of `Other` in
  the same segment: the odds are multiplied by exp(sum of Weight * p_Other).
- a Python file, `.py`, with a function `class_relevance(candidates)` of your own. It is
  code, and runs: take only what you trust.

Source of the idea: the first place of the 3rd YouTube-8M Video Understanding Challenge,
"Cross-Class Relevance Learning for Temporal Concept Localization", 2019,
arXiv:1911.08548.
"""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import runs, user_code
from yt8m.errors import DataError, UserError
from yt8m.inference.windows import sigmoid

FUNCTION = "class_relevance"
_COLUMNS = ["Class", "Other", "Weight"]
_MODULE = "yt8m_class_relevance"


@dataclass(frozen=True)
class Candidates:
    """Segments of some videos, all that are ranked of each, by video and start.

    Attributes:
        video_ids: of the B videos of a batch, some of which may have no segment here.
        rows: integers [n], the video of each segment: `video_ids[rows[i]]`.
        starts, ends: integers [n], in seconds.
        classes: integers [K], ascending.
        logits: float32 [n, K], the model's.
        scores: float32 [n, K], what is ranked: logits, with what is known of the
            video if there is something; -inf of what is not ranked.
        video_probabilities: float32 [B, K] of --video_predictions, or None.
    """

    video_ids: Sequence[bytes]
    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    classes: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    video_probabilities: np.ndarray | None


# Gives the logits [n, K] that are ranked instead: higher is better, -inf is dropped.
# What it says of a video must depend on that video alone, since which others are there
# depends on the batch.
ClassRelevance = Callable[[Candidates], np.ndarray]


def load_class_relevance(path: str, classes: np.ndarray) -> ClassRelevance:
    """The step that a file describes, for a ranking of `classes` [K].

    Raises:
        UserError: the file cannot be read, or is of another kind.
        DataError: a line of a table is wrong; names it.
    """
    if path.endswith(".csv"):
        return _Table(path, classes)
    if path.endswith(".py"):
        return _checked(_load_function(path), path)
    raise UserError(f"--class_relevance={path} must end in .csv or .py.")


class _Table:
    """Logits plus weighted probabilities of other classes; see the head of the file."""

    def __init__(self, path: str, classes: np.ndarray):
        columns = {c: i for i, c in enumerate(classes.tolist())}
        weights: dict[tuple[int, int], float] = {}
        for number, row in enumerate(_read(path), 1):
            if number == 1:
                if row != _COLUMNS:
                    raise DataError(
                        f"{path}, line 1: the header must be {','.join(_COLUMNS)}, "
                        f"found {','.join(row)[:60]!r}."
                    )
                continue
            pair, weight = _parse(path, number, row)
            for label in pair:
                if label not in columns:
                    raise UserError(
                        f"{path}, line {number}: class {label} is not one of the "
                        f"{len(columns)} that are ranked."
                    )
            if pair in weights:
                raise DataError(f"{path}, line {number}: {pair} is there twice.")
            weights[pair] = weight
        if not weights:
            raise DataError(f"{path} holds no weight.")
        targets = sorted({label for label, _ in weights})
        others = sorted({other for _, other in weights})
        self._targets = np.array([columns[c] for c in targets])
        self._others = np.array([columns[c] for c in others])
        self._weights = np.zeros((len(others), len(targets)), np.float32)
        for (label, other), weight in weights.items():
            self._weights[others.index(other), targets.index(label)] = weight

    def __call__(self, candidates: Candidates) -> np.ndarray:
        shares = sigmoid(candidates.logits[:, self._others])
        scores = candidates.scores.copy()
        scores[:, self._targets] += shares @ self._weights
        return scores


def _read(path: str) -> list[list[str]]:
    try:
        with tf.io.gfile.GFile(path, "r") as f:
            return list(csv.reader(f.read().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error, tf.errors.OpError) as e:
        raise UserError(
            f"--class_relevance={path} cannot be read: {runs.reason(e)}"
        ) from e


def _parse(path: str, number: int, row: list[str]) -> tuple[tuple[int, int], float]:
    try:
        label, other, weight = int(row[0]), int(row[1]), float(row[2])
        if len(row) > 3 or not np.isfinite(weight):
            raise ValueError
    except (ValueError, IndexError):
        raise DataError(
            f"{path}, line {number}: expected two classes and a finite number, found "
            f"{','.join(row)[:60]!r}."
        ) from None
    return (label, other), weight


def _load_function(path: str) -> Callable[[Candidates], Any]:
    if not os.path.isfile(path):
        raise UserError(f"--class_relevance={path}: there is no such file.")
    function = getattr(user_code.load(path, _MODULE), FUNCTION, None)
    if not callable(function):
        raise UserError(
            f"--class_relevance={path} must define a function {FUNCTION}(candidates)."
        )
    return function


def _checked(function: Callable[[Candidates], Any], path: str) -> ClassRelevance:
    """`function`, whose results are looked at."""

    def scored(candidates: Candidates) -> np.ndarray:
        given = function(candidates)
        try:
            scores = np.asarray(given, np.float32)
        except (TypeError, ValueError) as e:
            raise UserError(
                f"--class_relevance={path}: {FUNCTION} gave no array of numbers: {e}."
            ) from e
        if scores.shape != candidates.scores.shape:
            raise UserError(
                f"--class_relevance={path}: {FUNCTION} gave scores of the shape "
                f"{scores.shape} for {candidates.scores.shape} segments and classes."
            )
        if not (scores < np.inf).all():  # NaN is not either
            raise UserError(
                f"--class_relevance={path}: {FUNCTION} gave scores that are not "
                "numbers; only -inf, which drops a segment of a class, is one."
            )
        return scores

    return scored
