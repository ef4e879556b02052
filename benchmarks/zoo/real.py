"""Real videos: video-level models on the shards at hand, and frames made of them."""

import argparse
import functools
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.zoo import results as stored_results
from benchmarks.zoo import tables, training
from benchmarks.zoo.results import Result, Results
from benchmarks.zoo.rows import FRAME_ROWS, REAL_BASELINE, REAL_ROWS, Row
from benchmarks.zoo.runs import chosen, run_missing, runs_of
from benchmarks.zoo.videos import Videos, in_processes
from yt8m import schema
from yt8m.errors import UserError
from yt8m.metrics import VideoMetrics
from yt8m.metrics.ranking import precision_sum, rank_top

TRAINING_SHARDS = ("validate00*", "validate[2Eorz]?", "validate3227")
SCORED_SHARDS = ("validate01*",)
_FRAMES = 30  # at most, of those made up
_RESAMPLES = 1000
_MOST_SCORES = 40  # of one training
_BAR = 0.03


def load_shards(folder: str) -> dict[str, np.ndarray]:
    """The arrays of the shards below `folder`; needs TensorFlow.

    Returns:
        For `train` and `scored`, each with the prefix: `ids`, `mean_rgb`,
        `mean_audio`, and labels as pairs int32 [P, 2] of a row and a class.

    Raises:
        UserError: there are no such shards.
    """
    import tensorflow as tf

    from yt8m.data.records import decode_record

    arrays = {}
    for part, patterns in (("train", TRAINING_SHARDS), ("scored", SCORED_SHARDS)):
        found = pathlib.Path(folder, "video", "validate")
        paths = sorted({p for name in patterns for p in found.glob(f"{name}.tfrecord")})
        if not paths:
            raise UserError(f"{found} has no shards {', '.join(patterns)}.")
        records = [
            decode_record(serialized)
            for serialized in tf.data.TFRecordDataset(
                [os.fspath(path) for path in paths]
            ).as_numpy_iterator()
        ]
        pairs = [(i, c) for i, r in enumerate(records) for c in r.labels]
        arrays[f"{part}_labels"] = np.array(pairs, np.int32)
        arrays[f"{part}_ids"] = np.array([r.id for r in records])
        for name in schema.VIDEO_FEATURES:
            arrays[f"{part}_{name}"] = np.stack([r.features[name] for r in records])
    return arrays


def load(path: str | None) -> dict[str, np.ndarray]:
    """The arrays of `load_shards`, from a file or from the folder of YT8M_DATA."""
    if path:
        try:
            with np.load(path) as file:
                return dict(file)
        except (OSError, ValueError) as e:
            raise UserError(f"--arrays={path} cannot be read: {e}") from e
    folder = os.environ.get("YT8M_DATA")
    if not folder:
        raise UserError("--real: YT8M_DATA names no folder; set it, or use --arrays.")
    return load_shards(folder)


def videos_of(arrays: dict[str, np.ndarray], part: str, frames: bool) -> Videos:
    """The videos of a part, with frames made up around their means if wanted."""
    ids = arrays[f"{part}_ids"]
    inputs = {name: arrays[f"{part}_{name}"] for name in schema.VIDEO_FEATURES}
    labels = np.zeros((len(ids), schema.NUM_CLASSES), bool)
    labels[tuple(arrays[f"{part}_labels"].T)] = True
    if frames:
        step = 200
        tasks = [
            (ids[i : i + step], {n: v[i : i + step] for n, v in inputs.items()})
            for i in range(0, len(ids), step)
        ]
        parts = in_processes(_expand, tasks)
        inputs = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    return Videos(inputs, labels, labels)


@functools.lru_cache(maxsize=1)
def load_videos(path: str | None, frames: bool = False) -> tuple[Videos, Videos]:
    """Those to train on, and those that are scored."""
    arrays = load(path)
    train, scored = (videos_of(arrays, part, frames) for part in ("train", "scored"))
    return train, scored


def _expand(ids: np.ndarray, means: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from yt8m.data.expansion import expand_record

    inputs = {
        name: np.zeros((len(ids), _FRAMES, size), np.uint8)
        for name, size in schema.FRAME_FEATURES.items()
    }
    inputs["num_frames"] = np.zeros(len(ids), np.int32)
    for row, video_id in enumerate(ids.tolist()):
        features = {name: values[row] for name, values in means.items()}
        record = SimpleNamespace(id=video_id, features=features, level="video")
        for name, values in expand_record(record, _FRAMES, seed=0).items():
            values = values[:_FRAMES]
            inputs[name][row, : len(values)] = values
            inputs["num_frames"][row] = len(values)
    return inputs


def run(
    options: argparse.Namespace,
    stored: Results,
    write_section: Callable[[str, str, str], None],
) -> int:
    """Trains what is missing and writes the table; returns an exit status."""
    if options.save_arrays:
        np.savez_compressed(options.save_arrays, **load(options.arrays))
        print(f"Written to {options.save_arrays}.")
        return 0
    benchmark = "frames" if options.frames else "real"
    rows = chosen(FRAME_ROWS if options.frames else REAL_ROWS, options.models)
    setting = {"epochs": options.epochs, "frames": _FRAMES if options.frames else None}
    failed = 0
    if not options.only_table:
        runs = runs_of(benchmark, rows, options.seeds, setting)
        measure = _Measure(options, rows, stored, benchmark)
        if stored.missing(runs):
            load_videos(
                options.arrays, options.frames
            )  # what is not there stops it all
        failed = run_missing(stored, runs, measure, options.processes, options.minutes)
    found = stored_results.by_row(stored.read(benchmark, setting), rows)
    if not found:
        raise UserError(f"{stored.path} has no results of {setting}.")
    title = f"Real videos, {'frames' if options.frames else 'video level'}"
    body = f"## {title}\n\n{report(found, stored, benchmark)}"
    write_section(options.output, title.lower(), body)
    return int(failed > 0)


class _Measure:
    """Trains a row, seed after seed, each to its last epoch; keeps the best epoch."""

    def __init__(
        self,
        options: argparse.Namespace,
        rows: dict[str, Row],
        stored: Results,
        benchmark: str,
    ):
        self.options, self.rows = options, rows
        self.stored, self.benchmark = stored, benchmark

    def __call__(self, name: str, seeds: list[int]) -> Iterator[Result]:
        train, scored = load_videos(self.options.arrays, self.options.frames)
        row = self.rows[name]
        epochs = self.options.epochs or row.epochs
        steps = round(len(train.labels) * epochs / row.batch_size)
        sizes = schema.FRAME_FEATURES if self.options.frames else schema.VIDEO_FEATURES
        trained = training.Trained(row, sizes, schema.NUM_CLASSES, steps)
        for seed in seeds:
            start, gaps, best = time.monotonic(), [], None
            # Long trainings are scored every few epochs.
            parts = min(epochs, _MOST_SCORES)
            for _ in trained.epochs(train, seed, parts):
                logits = trained.logits(scored)
                metrics = VideoMetrics(schema.NUM_CLASSES, with_map=False)
                metrics.add(logits, scored.truth)
                gaps.append(metrics.result()["gap"])
                if gaps[-1] == max(gaps):
                    best = logits
            top = rank_top(best, scored.truth, 20)
            path = _kept(self.stored, self.benchmark, name, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(
                path,
                scores=top.scores[:, :20],
                hits=top.hits[:, :20],
                positives=top.num_positives,
            )
            yield {
                "gap": max(gaps),
                "gap_last": gaps[-1],
                "best_epoch": round((1 + int(np.argmax(gaps))) * epochs / parts),
                "epochs": epochs,
                "videos": [len(train.labels), len(scored.labels)],
                "seconds": time.monotonic() - start,
            }


def _kept(stored: Results, benchmark: str, row: str, seed: int) -> pathlib.Path:
    """Where the rankings of a run are, for the bootstrap."""
    name = re.sub(r"\W+", "_", row)
    return stored.path.with_suffix("") / f"{benchmark}-{name}-{seed}.npz"


class Ranking:
    """The first 20 classes of each video, all pooled in the order of their scores."""

    def __init__(self, scores: np.ndarray, hits: np.ndarray, positives: np.ndarray):
        order = np.argsort(-scores.ravel(), kind="stable")
        self.hits, self.video = hits.ravel()[order], order // scores.shape[1]
        self.positives = positives

    def gap(self, counts: np.ndarray) -> float:
        """GAP where video i is there counts[i] times."""
        hits = np.repeat(self.hits, counts[self.video])
        return precision_sum(np.flatnonzero(hits) + 1) / (counts @ self.positives)


def bootstrap(
    rankings: list[Ranking], baseline: list[Ranking], resamples: int = _RESAMPLES
) -> tuple[float, float]:
    """95 % interval of the gain in GAP: videos are resampled, the same for both.

    GAP is averaged over the rankings of a model, those of its seeds.
    """
    rng, videos = np.random.default_rng(0), len(rankings[0].positives)
    gains = []
    for _ in range(resamples):
        counts = np.bincount(rng.integers(videos, size=videos), minlength=videos)
        own = np.mean([ranking.gap(counts) for ranking in rankings])
        gains.append(own - np.mean([ranking.gap(counts) for ranking in baseline]))
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high)


def report(found: tables.Seeds, stored: Results, benchmark: str) -> str:
    """The section's text: what was done, the table, the bar."""
    every = [result for own in found.values() for result in own]
    train, scored = every[0]["videos"]
    columns: dict[str, Callable[[Result], Any]] = {
        "GAP, best epoch": lambda r: r["gap"],
        "GAP, last": lambda r: r["gap_last"],
        "best epoch": lambda r: r["best_epoch"],
        "of": lambda r: r["epochs"],
    }
    made_up = (
        f" Their frames, at most {_FRAMES}, are made up around the real means."
        if benchmark == "frames"
        else ""
    )
    lines = [
        f"{tables.places(every)}. {train} real videos to train on "
        f"({', '.join(TRAINING_SHARDS)}), {scored} others scored "
        f"({', '.join(SCORED_SHARDS)}), {_MOST_SCORES} times in a training; the best "
        f"epoch is that of the scored videos, for all models alike.{made_up}",
        "",
        tables.table(columns, found, "model"),
        "",
    ]
    if REAL_BASELINE in found and benchmark == "real":
        lines += _gains(found, stored)
    return "\n".join(lines)


def _gains(found: tables.Seeds, stored: Results) -> list[str]:
    """How much more than the baseline each row has, and whether the best is enough."""

    def gap(name: str, of: str = "gap") -> float:
        return float(np.mean([r[of] for r in found[name]]))

    others = [name for name in found if name != REAL_BASELINE]
    lines = [
        f"Gain over {REAL_BASELINE}, with the 95 % interval of {_RESAMPLES} bootstrap "
        "samples of the scored videos:",
        "",
        "| model | gain in GAP | interval |",
        "| --- | ---: | ---: |",
    ]
    for name in others:
        found_interval = _interval(found, stored, name)
        interval = "not kept"
        if found_interval:
            interval = "{:+.4f} to {:+.4f}".format(*found_interval)
        lines.append(f"| {name} | {gap(name) - gap(REAL_BASELINE):+.4f} | {interval} |")
    lines.append("")
    if others:
        best = max(others, key=gap)
        last = gap(best, "gap_last")
        gain = gap(best) - gap(REAL_BASELINE)
        verdict = "met" if gain >= _BAR else "missed"
        lines.append(
            f"- GAP of the best single model over {REAL_BASELINE}: at least {_BAR}; "
            f"{gain:+.3f}, {verdict}. {best} {gap(best):.3f}, {REAL_BASELINE} "
            f"{gap(REAL_BASELINE):.3f}. Last epochs of both: "
            f"{last - gap(REAL_BASELINE, 'gap_last'):+.4f}; its last over the best of "
            f"{REAL_BASELINE}: {last - gap(REAL_BASELINE):+.4f}."
        )
    return lines


def _interval(found: tables.Seeds, stored: Results, name: str) -> list[float] | None:
    """That of a row's gain: from the results, or from the rankings beside them.

    Rankings are large and stay where they were made. What was found from them is a
    line of the results, of these seeds of both, so that the table can be written
    without them.
    """

    def rankings(of: str) -> list[Ranking] | None:
        paths = [_kept(stored, "real", of, r["seed"]) for r in found[of]]
        if not all(path.exists() for path in paths):
            return None
        return [Ranking(**np.load(path)) for path in paths]

    seeds = {of: [r["seed"] for r in found[of]] for of in (name, REAL_BASELINE)}
    run = {
        "benchmark": "intervals",
        "row": name,
        "seed": 0,
        "setting": found[name][0]["setting"],
        "args": {"resamples": _RESAMPLES, "seeds": seeds},
    }
    for result in stored.read("intervals", run["setting"]):
        if (result["row"], result["args"]) == (name, run["args"]):
            return result["interval"]
    own, baseline = rankings(name), rankings(REAL_BASELINE)
    if not own or not baseline:
        return None
    interval = list(bootstrap(own, baseline))
    stored.append({**run, "interval": interval})
    return interval
