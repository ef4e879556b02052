"""Embedded videos: models by kind of class, and heads by what labels tell."""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from benchmarks.zoo import training
from benchmarks.zoo.results import Result, Results
from benchmarks.zoo.rows import (
    CORRELATION,
    CORRUPTED_DATA,
    CORRUPTED_ROWS,
    FAMILIES,
    LABEL_DATA,
    LABEL_ROWS,
    PRECISION_ROWS,
    ROWS,
    TEACHERS,
    Row,
)
from benchmarks.zoo.runs import chosen, run_missing, runs_of
from benchmarks.zoo.videos import (
    FOLDS,
    Videos,
    folds_of,
    generate,
    load,
    rows_of,
    save,
)
from yt8m.data.synthetic import SyntheticConfig
from yt8m.ensemble.calibration import fit_calibration

_CLASSES_OF_KIND = 12
_FRAMES = 40
# Of classes that show in all frames a few will do, and of the features one.
_LABEL_FRAMES = 4
_LABEL_CLASSES = 120
_LABEL_FEATURES = {"rgb": 256}
_SPLITS = ("train", "validate")


def kinds_setting(kinds: list[str], steps: int, videos: int) -> dict[str, Any]:
    """What the results by kind depend on, beside the row and the seed."""
    return {"kinds": kinds, "steps": steps, "videos": videos, "frames": _FRAMES}


def labels_setting(arm: str, steps: int, videos: int) -> dict[str, Any]:
    """What the results of the heads depend on: heads learn longer, of more videos."""
    numbers = {"steps": steps * 5 // 3, "videos": videos * 2}
    return {"labels": arm, **LABEL_DATA[arm], **numbers}


def corrupted_setting(steps: int, videos: int) -> dict[str, Any]:
    """What the results on corrupted labels depend on: of fewer videos."""
    return {**CORRUPTED_DATA, "steps": steps, "videos": videos // 2}


class _Measure:
    """Trains and scores rows on embedded videos; other processes can do it too.

    Args:
        rows: by name.
        setting: of the benchmark.
        folder: where processes share the videos; None keeps them in memory.
    """

    def __init__(
        self, rows: dict[str, Row], setting: dict[str, Any], folder: str | None
    ):
        self.rows, self.setting, self.folder = rows, setting, folder
        self._kept: dict[int, tuple[Videos, Videos]] = {}

    def config(self, seed: int) -> SyntheticConfig:
        """What the videos are like."""
        raise NotImplementedError

    def videos(self, seed: int) -> tuple[Videos, Videos]:
        """Those to train on, and those that are scored."""
        if self.folder:
            return tuple(load(f"{self.folder}/{seed}/{split}") for split in _SPLITS)
        if seed not in self._kept:
            counts = (self.setting["videos"], self.setting["videos"] // 4)
            self._kept[seed] = tuple(
                generate(self.config(seed), split, count)
                for split, count in zip(_SPLITS, counts, strict=True)
            )
        return self._kept[seed]

    def share(self, seeds: Iterable[int], folder: str) -> None:
        """Writes the videos of `seeds` for all processes."""
        for seed in seeds:
            for split, videos in zip(_SPLITS, self.videos(seed), strict=True):
                save(videos, f"{folder}/{seed}/{split}")
            self._kept.clear()
        self.folder = folder


class _MeasureKinds(_Measure):
    def config(self, seed):
        kinds = tuple(self.setting["kinds"])
        classes = _CLASSES_OF_KIND * len(kinds)
        return SyntheticConfig(seed, classes, kinds, max_frames=_FRAMES)

    def __call__(self, name: str, seeds: list[int]) -> Iterator[Result]:
        config, row = self.config(0), self.rows[name]
        kind_of = np.array([config.kind_of(c) for c in range(config.num_classes)])
        steps = round(self.setting["steps"] * FAMILIES[row.family])
        trained = training.Trained(row, config.features, len(kind_of), steps)
        for seed in seeds:
            train, scored = self.videos(seed)
            (end,) = trained.epochs(train, seed)
            gap, precisions = training.score(trained.logits(scored), scored.truth)
            ap = {k: float(np.nanmean(precisions[kind_of == k])) for k in config.kinds}
            yield {"gap": gap, "ap": ap, "steps": steps, **end}


def _static_classes(seed: int, labels: dict[str, float]) -> SyntheticConfig:
    """Videos whose labels are what matters."""
    return SyntheticConfig(
        seed=seed,
        num_classes=_LABEL_CLASSES,
        kinds=("static",),
        features=_LABEL_FEATURES,
        max_frames=_LABEL_FRAMES,
        **labels,
    )


class _MeasureLabels(_Measure):
    def config(self, seed):
        return _static_classes(seed, LABEL_DATA[self.setting["labels"]])

    def __call__(self, name: str, seeds: list[int]) -> Iterator[Result]:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, CORRELATION)
            args = _with_file(self.rows[name].args, path)
            row, trained = dataclasses.replace(self.rows[name], args=args), None
            for seed in seeds:
                train, scored = self.videos(seed)
                write_correlation(train.labels, path)
                trained = trained or training.Trained(
                    row, _LABEL_FEATURES, _LABEL_CLASSES, self.setting["steps"]
                )
                (end,) = trained.epochs(train, seed)
                logits = trained.logits(scored)
                yield {
                    "gap": training.score(logits, scored.truth)[0],
                    "gap_given": training.score(logits, scored.labels)[0],
                    **end,
                }


class _MeasureCorrupted(_Measure):
    """Students of soft labels, which come from models that have not seen the video."""

    def config(self, seed):
        return _static_classes(seed, CORRUPTED_DATA)

    def __call__(self, name: str, seeds: list[int]) -> Iterator[Result]:
        row, steps = self.rows[name], self.setting["steps"]

        def compiled(row: Row) -> training.Trained:
            return training.Trained(row, _LABEL_FEATURES, _LABEL_CLASSES, steps)

        student = compiled(row)
        teachers = [compiled(teacher) for teacher in TEACHERS if row.soft_labels]
        for seed in seeds:
            train, scored = self.videos(seed)
            right = np.count_nonzero(train.labels & train.truth)
            found = {
                "recall": right / np.count_nonzero(train.truth),
                "precision": right / np.count_nonzero(train.labels),
            }
            if teachers:
                soft = _out_of_fold(teachers, train, seed)
                if row.calibrated:
                    given = [(soft, train.labels)]
                    soft = fit_calibration(given, _LABEL_CLASSES)(soft)
                labels = train.labels + row.soft_labels * (soft - train.labels)
                train = dataclasses.replace(train, labels=labels.astype(np.float32))
            (end,) = student.epochs(train, seed)
            gap = training.score(student.logits(scored), scored.truth)[0]
            yield {"gap": gap, **found, **end}


def _out_of_fold(
    teachers: list[training.Trained], train: Videos, seed: int
) -> np.ndarray:
    """The mean probability of the teachers that have not seen a video, [N, C]."""
    fold, soft = folds_of(len(train.labels), seed), np.zeros(train.labels.shape)
    for number in range(FOLDS):
        own, others = (
            np.flatnonzero(part) for part in (fold == number, fold != number)
        )
        for teacher in teachers:
            for _ in teacher.epochs(rows_of(train, others), seed):
                pass
            logits = teacher.logits(rows_of(train, own))
            soft[own] += 1 / (1 + np.exp(-logits.astype(float))) / len(teachers)
    return soft


def measure_kinds(
    results: Results, setting: dict[str, Any], options: argparse.Namespace
) -> int:
    """Trains and scores the models that are not done yet; returns how many failed."""
    return _measure("kinds", ROWS, _MeasureKinds, results, setting, options)


def measure_precision(
    results: Results, setting: dict[str, Any], options: argparse.Namespace
) -> int:
    """The same for some models in float32 and in bfloat16."""
    return _measure(
        "precision", PRECISION_ROWS, _MeasureKinds, results, setting, options
    )


def measure_labels(
    results: Results, setting: dict[str, Any], options: argparse.Namespace
) -> int:
    """The same for the heads, on one of `LABEL_DATA`."""
    return _measure("labels", LABEL_ROWS, _MeasureLabels, results, setting, options)


def measure_corrupted(
    results: Results, setting: dict[str, Any], options: argparse.Namespace
) -> int:
    """The same for soft labels, on labels most of which are missing."""
    return _measure(
        "corrupted", CORRUPTED_ROWS, _MeasureCorrupted, results, setting, options
    )


def _measure(
    benchmark: str,
    table: dict[str, Row],
    kind: type[_Measure],
    results: Results,
    setting: dict[str, Any],
    options: argparse.Namespace,
) -> int:
    rows = chosen(table, options.models)
    runs = runs_of(benchmark, rows, options.seeds, setting)
    measure, at_once = kind(rows, setting, None), (options.processes, options.minutes)
    measure.config(0)  # what is wrong with it stops everything
    if options.processes == 1:
        return run_missing(results, runs, measure, *at_once)
    seeds = dict.fromkeys(run["seed"] for run in results.missing(runs))
    with tempfile.TemporaryDirectory() as folder:
        measure.share(seeds, folder)
        return run_missing(results, runs, measure, *at_once)


def _with_file(args: dict[str, Any], path: str) -> dict[str, Any]:
    """The arguments with `path` for the file that they name."""
    own = args.get("label_processing_args")
    if own is None:
        return args
    return {**args, "label_processing_args": {**own, "correlation": path}}


def write_correlation(labels: np.ndarray, path: str) -> None:
    """Writes what `yt8m correlate` would of labels bool [N, C]."""
    counts = labels.T.astype(np.float32) @ labels.astype(np.float32)
    indices = np.argwhere(np.triu(counts))
    np.savez(
        path,
        indices=indices,
        counts=counts[tuple(indices.T)].astype(np.int64),
        num_classes=labels.shape[1],
    )
