"""Techniques of training on real videos: losses, mixup, averages; ensembles, teachers.

A member of the ensemble is trained once on all training videos and once for each fold
without that fold. What it says of the scored videos, and out of the fold of the
training ones, is kept beside the results as float16, so that a killed benchmark goes
on and so that the ensemble and its student are made from the files alone.
"""

import argparse
import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.zoo import real, tables, training
from benchmarks.zoo import results as stored_results
from benchmarks.zoo.results import Result, Results
from benchmarks.zoo.rows import MEMBERS, STUDENTS, TECHNIQUES, Row
from benchmarks.zoo.runs import chosen, run_missing, runs_of
from benchmarks.zoo.videos import FOLDS, Videos, folds_of, rows_of
from yt8m import schema
from yt8m.errors import UserError
from yt8m.metrics import VideoMetrics
from yt8m.metrics.ranking import rank_top

_SOFT_LABELS = 0.7  # the weight of the teacher's in the student's labels
_LEAST_GAIN, _LEAST_SHARE = 0.02, 0.6
_STEPS = (0.3, 0.1, 0.03)  # of learned weights


def gap_of(scores: np.ndarray, truth: np.ndarray) -> float:
    metrics = VideoMetrics(truth.shape[1], with_map=False)
    metrics.add(scores.astype(np.float32), truth)
    return metrics.result()["gap"]


def probabilities(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float32)))


class Trainings:
    """Trainings of one row; those of as many steps share what was compiled.

    Args:
        row: what to train.
        epochs: of each; None takes the row's own.
    """

    def __init__(self, row: Row, epochs: int | None):
        self.row, self.epochs = row, epochs or row.epochs
        self._compiled: dict[int, training.Trained] = {}

    def logits(self, train: Videos, seed: int, wanted: Videos) -> np.ndarray:
        """Those of `wanted` after the last epoch, float32 [N, C]."""
        steps = round(len(train.labels) * self.epochs / self.row.batch_size)
        if steps not in self._compiled:
            classes = train.labels.shape[1]
            self._compiled[steps] = training.Trained(
                self.row, schema.VIDEO_FEATURES, classes, steps
            )
        trained = self._compiled[steps]
        for _ in trained.epochs(train, seed):
            pass
        return trained.logits(wanted)


class _Techniques:
    """One training with each technique; the last epoch counts."""

    def __init__(self, options: argparse.Namespace, rows: dict[str, Row]):
        self.options, self.rows = options, rows

    def __call__(self, name: str, seeds: list[int]) -> Iterator[Result]:
        train, scored = real.load_videos(self.options.arrays)
        trainings = Trainings(self.rows[name], self.options.epochs)
        for seed in seeds:
            start = time.monotonic()
            gap = gap_of(trainings.logits(train, seed, scored), scored.truth)
            yield {"gap": gap, "seconds": time.monotonic() - start}


class _Members(_Techniques):
    """A member's trainings, on all videos and without each fold; keeps its logits."""

    def __init__(
        self, options: argparse.Namespace, rows: dict[str, Row], stored: Results
    ):
        super().__init__(options, rows)
        self.stored = stored

    def __call__(self, name: str, seeds: list[int]) -> Iterator[Result]:
        train, scored = real.load_videos(self.options.arrays)
        trainings = Trainings(self.rows[name], self.options.epochs)
        for seed in seeds:
            start = time.monotonic()
            fold = folds_of(len(train.labels), seed)
            on_scored = trainings.logits(train, seed, scored)
            held_out = np.zeros(train.labels.shape, np.float16)
            for number in range(FOLDS):
                others, own = np.flatnonzero(fold != number), fold == number
                held_out[own] = trainings.logits(
                    *(rows_of(train, others), seed, rows_of(train, own))
                )
            path = kept(self.stored, name, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, scored=on_scored.astype(np.float16), held_out=held_out)
            yield {
                "gap": gap_of(on_scored, scored.truth),
                "gap_held_out": gap_of(held_out, train.truth),
                "seconds": time.monotonic() - start,
            }


class _Students(_Members):
    """The ensemble of the members, and students that learn what it says.

    The teacher's labels of a training video come from members that have not seen it.
    """

    def __call__(self, name: str, seeds: list[int]) -> Iterator[Result]:
        train, scored = real.load_videos(self.options.arrays)
        trainings = Trainings(self.rows[name], self.options.epochs)
        for seed in seeds:
            start = time.monotonic()
            parts = [np.load(kept(self.stored, m, seed)) for m in MEMBERS]
            of_scored = np.stack([probabilities(p["scored"]) for p in parts])
            of_train = np.stack([probabilities(p["held_out"]) for p in parts])
            weights = learn_weights(of_train, train.truth)
            members = {
                m: gap_of(p, scored.truth)
                for m, p in zip(MEMBERS, of_scored, strict=True)
            }
            soft = np.tensordot(weights, of_train, 1)
            labels = (1 - _SOFT_LABELS) * train.labels + _SOFT_LABELS * soft
            taught = dataclasses.replace(train, labels=labels.astype(np.float32))
            hard = trainings.logits(train, seed, scored)
            distilled = trainings.logits(taught, seed, scored)
            yield {
                "gap": gap_of(distilled, scored.truth),
                "hard": gap_of(hard, scored.truth),
                "mean": gap_of(of_scored.mean(axis=0), scored.truth),
                "learned": gap_of(np.tensordot(weights, of_scored, 1), scored.truth),
                "best_member": max(members.values()),
                "weights": dict(zip(MEMBERS, weights.round(3).tolist(), strict=True)),
                "seconds": time.monotonic() - start,
            }


def learn_weights(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weights [M] that raise the GAP of held-out scores [M, N, C], from equal ones."""
    count = len(scores)
    weights = np.full(count, 1 / count)

    def gap(weights):
        top = rank_top(np.tensordot(weights, scores, 1), truth, 20)
        return real.Ranking(
            top.scores[:, :20], top.hits[:, :20], top.num_positives
        ).gap(np.ones(len(truth), int))

    best = gap(weights)
    for step in _STEPS:
        moved = True
        while moved:
            moved = False
            for number in range(count):
                for direction in (step, -step):
                    trial = weights.copy()
                    trial[number] = max(0.0, trial[number] + direction)
                    if not trial.any():
                        continue
                    trial /= trial.sum()
                    found = gap(trial)
                    if found > best + 1e-6:
                        weights, best, moved = trial, found, True
    return weights


def kept(stored: Results, row: str, seed: int) -> pathlib.Path:
    """Where a member's logits are."""
    name = re.sub(r"\W+", "_", row)
    return stored.path.with_suffix("") / f"member-{name}-{seed}.npz"


PARTS: dict[str, tuple[dict[str, Row], Callable[..., Any]]] = {
    "techniques": (TECHNIQUES, lambda o, rows, stored: _Techniques(o, rows)),
    "members": (MEMBERS, _Members),
    "students": (STUDENTS, _Students),
}


def run(
    options: argparse.Namespace,
    stored: Results,
    write_section: Callable[[str, str, str], None],
) -> int:
    """Trains what is missing of each part and writes its table; an exit status."""
    failed, setting = 0, {"epochs": options.epochs}
    for part in options.parts:
        table, create = PARTS[part]
        rows = chosen(table, options.models)
        if not options.only_table:
            runs = runs_of(part, rows, options.seeds, setting)
            measure = create(options, rows, stored)
            failed += run_missing(
                stored, runs, measure, options.processes, options.minutes
            )
        found = stored_results.by_row(stored.read(part, setting), rows)
        if not found:
            raise UserError(f"{stored.path} has no results of {part}.")
        every = [result for own in found.values() for result in own]
        text = f"## Real videos, {part}\n\n{tables.places(every)}. {_REPORTS[part]}\n\n"
        text += _TABLES[part](found)
        write_section(options.output, f"real videos, {part}", text)
    return int(failed > 0)


def _gains(found: tables.Seeds) -> str:
    baseline = {r["seed"]: r["gap"] for r in next(iter(found.values()))}
    columns = {
        "GAP": lambda r: r["gap"],
        "gain": lambda r: r["gap"] - baseline.get(r["seed"], np.nan),
    }
    return tables.table(columns, found, "technique")


def _members(found: tables.Seeds) -> str:
    columns = {
        "GAP": lambda r: r["gap"],
        "GAP, out of fold": lambda r: r["gap_held_out"],
    }
    return tables.table(columns, found, "member")


def _students(found: tables.Seeds) -> str:
    names = ("best_member", "mean", "learned", "hard")
    columns = {n.replace("_", " "): lambda r, n=n: r[n] for n in names}
    columns["distilled"] = lambda r: r["gap"]
    lines = [tables.table(columns, found, "student"), ""]
    every = [result for own in found.values() for result in own]
    gain = np.mean([r["mean"] - r["best_member"] for r in every])
    lines.append(
        f"- The mean of {len(MEMBERS)} members over the best of them: at least "
        f"{_LEAST_GAIN}; {gain:+.4f}, {'met' if gain >= _LEAST_GAIN else 'missed'}."
    )
    for name, own in found.items():
        ensemble = [max(r["mean"], r["learned"]) for r in own]
        share = np.mean(
            [
                (r["gap"] - r["hard"]) / (e - r["hard"])
                for r, e in zip(own, ensemble, strict=True)
            ]
        )
        verdict = "met" if share >= _LEAST_SHARE else "missed"
        lines.append(
            f"- {name}, what its student gains of what the ensemble does: at least "
            f"{_LEAST_SHARE}; {share:.2f}, {verdict}."
        )
    return "\n".join(lines)


_TABLES = {"techniques": _gains, "members": _members, "students": _students}
_REPORTS = {
    "techniques": "Each technique against the first line, seed by seed; last epochs.",
    "members": f"Last epochs; out of fold: of {FOLDS} trainings, each without a part "
    "of the training videos, on that part.",
    "students": "The mean of the members' probabilities, and their mean with weights "
    "learned out of fold; a student of that teacher, and the same model on the labels "
    f"alone. The teacher's labels have a weight of {_SOFT_LABELS}.",
}
