"""What each model can see: average precision by kind of class, on embedded data.

    python -m benchmarks.quality            # about 10 minutes on 2 cores
    python -m benchmarks.quality --quick    # two kinds, a few minutes

All models train the same number of steps on the same shards, through the commands that
a user types. Every kind has an equal share of the classes. Prints a Markdown table.
"""

import argparse
import csv
import json
import pathlib
import sys
import tempfile

import numpy as np

from yt8m.cli import main

KINDS = ("static", "brief", "ordered", "audio", "joint", "synchronous")

# Model arguments, and the best learning rate of those tried.
MODELS = {
    "FrameLevelLogisticModel": ("", 0.03),
    "DbofModel": ("clusters=128,hidden_size=128", 0.01),
    "LstmModel": ("cells=128", 0.003),
    "NetVLADModel": ("clusters=16,hidden_size=128", 0.01),
}


def run(command: str, *flags: str) -> None:
    status = main.run(command, list(flags))
    if status:
        sys.exit(status)


def synthesize(folder: pathlib.Path, kinds: tuple[str, ...], seed: int, videos: int):
    """Writes shards for training and for scoring; returns the kind of each class."""
    for split, count in (("train", videos), ("validate", videos // 4)):
        run(
            "synthesize",
            f"--output_dir={folder / split}",
            f"--split={split}",
            f"--num_videos={count}",
            "--num_shards=8",
            f"--kinds={','.join(kinds)}",
            f"--num_classes={classes_of(kinds)}",
            "--max_frames=40",
            f"--seed={seed}",
        )
    with open(folder / "train" / "classes.csv") as f:
        return {int(row["Index"]): row["Kind"] for row in csv.DictReader(f)}


def classes_of(kinds: tuple[str, ...]) -> int:
    return 12 * len(kinds)


def score(
    folder, model: str, kinds, steps: int, seed: int
) -> tuple[float, list[float]]:
    """Trains a model and returns its GAP and the AP of each class."""
    arguments, rate = MODELS[model]
    directory = folder / model
    run(
        "train",
        f"--model={model}",
        f"--model_args={arguments}",
        f"--train_data_pattern={folder}/train/*.tfrecord",
        f"--train_dir={directory}",
        f"--num_classes={classes_of(kinds)}",
        "--max_frames=40",
        "--batch_size=128",
        "--num_epochs=0",
        f"--max_steps={steps}",
        f"--base_learning_rate={rate}",
        f"--seed={seed}",
    )
    run(
        "eval",
        f"--train_dir={directory}",
        f"--eval_data_pattern={folder}/validate/*.tfrecord",
        "--run_once",
    )
    stem = directory / "eval" / f"step-{steps:08d}"
    with open(f"{stem}-classes.csv") as f:
        table = [float(r["AveragePrecision"] or "nan") for r in csv.DictReader(f)]
    return json.loads(pathlib.Path(f"{stem}.json").read_text())["gap"], table


def measure(kinds: tuple[str, ...], seeds: int, steps: int, videos: int) -> str:
    rows: dict[str, list[list[float]]] = {model: [] for model in MODELS}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            kind_of = synthesize(folder, kinds, seed, videos)
            for model in MODELS:
                gap, table = score(folder, model, kinds, steps, seed)
                by_kind = [
                    np.nanmean([table[c] for c in kind_of if kind_of[c] == kind])
                    for kind in kinds
                ]
                rows[model].append([gap, *by_kind])
    lines = [f"| model | GAP | {' | '.join(f'AP {k}' for k in kinds)} |"]
    lines.append("| --- " * (len(kinds) + 2) + "|")
    for model, values in rows.items():
        cells = [
            f"{mean:.3f} ± {deviation:.3f}" if seeds > 1 else f"{mean:.3f}"
            for mean, deviation in zip(
                np.mean(values, axis=0), np.std(values, axis=0), strict=True
            )
        ]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    title = f"{steps} steps of 128 videos, {videos} training videos, {seeds} seed(s)"
    return "\n".join([title, "", *lines])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.quick:
        print(measure(("static", "brief"), options.seeds, 300, 3000))
    else:
        print(measure(KINDS, options.seeds, 600, 8000))
