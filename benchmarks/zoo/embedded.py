"""Embedded videos: models by kind of class, and heads by what labels tell."""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.zoo import training
from benchmarks.zoo.results import Result, Results
from benchmarks.zoo.rows import CORRELATION, FAMILIES, LABEL_DATA, LABEL_ROWS, ROWS
from benchmarks.zoo.runs import chosen, run_missing, runs_of
from benchmarks.zoo.videos import Videos, generate
from yt8m.data.synthetic import SyntheticConfig

_CLASSES_OF_KIND = 12
_FRAMES = 40
# Of classes that show in all frames a few will do, and of the features one.
_LABEL_FRAMES = 4
_LABEL_CLASSES = 120
_LABEL_FEATURES = {"rgb": 256}


def kinds_setting(kinds: list[str], steps: int, videos: int) -> dict[str, Any]:
    """What the results by kind depend on, beside the row and the seed."""
    return {"kinds": kinds, "steps": steps, "videos": videos, "frames": _FRAMES}


def labels_setting(arm: str, steps: int, videos: int) -> dict[str, Any]:
    """What the results of the heads depend on: heads learn longer, of more videos."""
    numbers = {"steps": steps * 5 // 3, "videos": videos * 2}
    return {"labels": arm, **LABEL_DATA[arm], **numbers}


def _splits(config: SyntheticConfig, videos: int) -> tuple[Videos, Videos]:
    scored = generate(config, "validate", videos // 4)
    return generate(config, "train", videos), scored


def measure_kinds(
    results: Results, setting: dict[str, Any], models: str | None, seeds: int
) -> int:
    """Trains and scores the models that are not done yet; returns how many failed."""
    kinds = tuple(setting["kinds"])

    def config(seed: int) -> SyntheticConfig:
        classes = _CLASSES_OF_KIND * len(kinds)
        return SyntheticConfig(seed, classes, kinds, max_frames=_FRAMES)

    @functools.cache
    def videos(seed: int) -> tuple[Videos, Videos]:
        return _splits(config(seed), setting["videos"])

    kind_of = np.array([config(0).kind_of(c) for c in range(config(0).num_classes)])
    rows = chosen(ROWS, models)

    def measure(name: str, own: list[int]) -> Iterator[Result]:
        steps = round(setting["steps"] * FAMILIES[rows[name].family])
        trained = training.Trained(rows[name], config(0).features, len(kind_of), steps)
        for seed in own:
            train, scored = videos(seed)
            (end,) = trained.epochs(train, seed)
            gap, precisions = training.score(trained.logits(scored), scored.truth)
            ap = {k: float(np.nanmean(precisions[kind_of == k])) for k in kinds}
            yield {"gap": gap, "ap": ap, "steps": steps, **end}

    return run_missing(results, runs_of("kinds", rows, seeds, setting), measure)


def measure_labels(
    results: Results, setting: dict[str, Any], models: str | None, seeds: int
) -> int:
    """The same for the heads, on one of `LABEL_DATA`."""

    @functools.cache
    def videos(seed: int) -> tuple[Videos, Videos]:
        config = SyntheticConfig(
            seed=seed,
            num_classes=_LABEL_CLASSES,
            kinds=("static",),
            features=_LABEL_FEATURES,
            max_frames=_LABEL_FRAMES,
            **LABEL_DATA[setting["labels"]],
        )
        return _splits(config, setting["videos"])

    rows = chosen(LABEL_ROWS, models)

    def measure(name: str, own: list[int]) -> Iterator[Result]:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, CORRELATION)
            args = _with_file(rows[name].args, path)
            row, trained = dataclasses.replace(rows[name], args=args), None
            for seed in own:
                train, scored = videos(seed)
                write_correlation(train.labels, path)
                trained = trained or training.Trained(
                    row, _LABEL_FEATURES, _LABEL_CLASSES, setting["steps"]
                )
                (end,) = trained.epochs(train, seed)
                logits = trained.logits(scored)
                yield {
                    "gap": training.score(logits, scored.truth)[0],
                    "gap_given": training.score(logits, scored.labels)[0],
                    **end,
                }

    return run_missing(results, runs_of("labels", rows, seeds, setting), measure)


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
