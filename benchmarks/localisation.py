"""Where in the video, and other vocabularies: what pre-training and context gain.

    python -m benchmarks.localisation            # five seeds
    python -m benchmarks.localisation --seeds=1  # a first look

Runs the commands of the README on embedded data: a model of whole videos; the same
applied to segments; fine-tuned on rated segments; trained on them from new weights;
fine-tuned beside the whole video's embedding; the average of both. Then the videos of
another vocabulary, 20 a class, from its weights and from new ones. Each seed is a line
of the results file, and is not run again. Writes docs/localisation.md.
"""

import argparse
import contextlib
import csv
import glob
import io
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.__main__ import cpu_name
from benchmarks.zoo.results import Result, Results
from benchmarks.zoo.tables import table
from yt8m.cli import main as commands
from yt8m.errors import UserError

CLASSES, KINDS = 24, "static,brief,contextual"
_FEATURES = ("--feature_names=rgb,audio", "--feature_sizes=128,32")
_DATA = (f"--num_classes={CLASSES}", "--max_frames=60", *_FEATURES)
_NETVLAD = {"clusters": 8, "hidden_size": 64, "gating_probabilities": False}
_EXAMPLES_OF_CLASS = 20
VIDEOS_OF_SHARD = 100  # with rated segments
SCORED_OTHERS = 800
SETTING = {
    "videos": 2000,
    "rated_shards": [4, 6],  # to train on and to score
    "whole": {"rate": 0.01, "epochs": 20},
    "fine_tuned": {"rate": 0.003, "epochs": 15},
    "scratch": {"rate": 0.01, "epochs": 20},
    "transfer": {"rate": 0.01, "epochs": 60},
}
_BARS = (
    ("fine-tuned over the video model", "fine_tuned", "applied", "map", 0.04),
    ("fine-tuned over new weights", "fine_tuned", "scratch", "map", 0.05),
    ("average over the better one", "average", "best", "map", 0.0),
    ("aware over ignoring, contextual classes", "aware", "fine_tuned", "context", 0.1),
    ("transfer, pre-trained over new weights", "pretrained", "fresh", "map", 0.1),
)


class Bench:
    """One seed's data and runs, in a folder.

    Args:
        folder: an empty one.
        seed: of the data and of the weights.
        setting: see `SETTING`.
    """

    def __init__(self, folder: str, seed: int, setting: dict[str, Any]):
        self.folder, self.seed, self.setting = folder, seed, setting
        to_train, to_score = setting["rated_shards"]
        rated = VIDEOS_OF_SHARD * (to_train + to_score)
        kinds = (f"--kinds={KINDS}", "--misleading_labels=0.4")
        self._synthesize("videos", "train", setting["videos"], 4, *kinds)
        shards = to_train + to_score
        self._synthesize("rated", "validate", rated, shards, "--segments", *kinds)
        paths = sorted(glob.glob(f"{folder}/rated/*.tfrecord"))
        self.to_train, self.to_score = (
            ",".join(part) for part in (paths[:to_train], paths[to_train:])
        )
        labels = 3  # of a video, in the mean
        count = _EXAMPLES_OF_CLASS * CLASSES // labels
        other = ("--vocabulary_seed=1", "--zipf_exponent=0", "--kinds=static,brief")
        self._synthesize("few", "train", count, 1, *other)
        self._synthesize("others", "validate", SCORED_OTHERS, 2, *other)

    def run(self) -> Result:
        """Trains and scores everything."""
        self.train("whole", f"{self.folder}/videos/*.tfrecord", "whole")
        self.segment_ids()
        found = {"applied": self.score("whole")}
        # Not widened: embedded classes end sharply, and the ratings with them.
        segments = ("--segment_labels",)
        init = f"--init_from={self.folder}/whole"
        self.train("fine_tuned", self.to_train, "fine_tuned", *segments, init)
        self.train("scratch", self.to_train, "scratch", *segments)
        embeddings = f"{self.folder}/rated.embeddings"
        self._command(
            "inference",
            f"--train_dir={self.folder}/whole",
            "--output=embeddings",
            f"--input_data_pattern={self.folder}/rated/*.tfrecord",
            f"--output_file={embeddings}",
        )
        args = {"encoder_args": _NETVLAD, "hidden_size": 128}
        more = (init, f"--video_embeddings={embeddings}")
        more += ("--learning_rate_multipliers=segment_encoder=0.5",)
        model = ("ContextAwareModel", args)
        self.train("aware", self.to_train, "fine_tuned", *segments, *more, model=model)
        for name in ("fine_tuned", "scratch", "aware"):
            found[name] = self.score(name)
        sources = [f"{self.folder}/{name}.tfrecord" for name in ("fine_tuned", "aware")]
        average = f"{self.folder}/average.csv"
        self._command(
            "ensemble", f"--sources={','.join(sources)}", f"--output_file={average}"
        )
        found["average"] = self._score_file(average)
        few = f"{self.folder}/few/*.tfrecord"
        self.train("pretrained", few, "transfer", init, "--new_classifier")
        self.train("fresh", few, "transfer")
        for name in ("pretrained", "fresh"):
            found[name] = self._evaluate(name)
        return found

    def train(self, name, pattern, setting, *flags, model=("NetVLADModel", _NETVLAD)):
        own = self.setting[setting]
        self._command(
            "train",
            f"--model={model[0]}",
            f"--model_args={json.dumps(model[1])}",
            f"--train_data_pattern={pattern}",
            f"--train_dir={self.folder}/{name}",
            f"--base_learning_rate={own['rate']}",
            f"--num_epochs={own['epochs']}",
            *("--batch_size=64", f"--seed={self.seed}", *_DATA, *flags),
        )

    def segment_ids(self) -> None:
        self._command(
            "count",
            "--segments",
            f"--input_data_pattern={self.folder}/rated/*.tfrecord",
            f"--output_file={self.folder}/ids.csv",
        )

    def score(self, name: str) -> Result:
        """MAP@K of a run's segments, of all classes and of those that need context."""
        for ending in ("tfrecord", "csv"):
            self._command(
                *("inference", "--segment_labels", f"--output_format={ending}"),
                f"--train_dir={self.folder}/{name}",
                f"--segment_label_ids_file={self.folder}/ids.csv",
                f"--input_data_pattern={self.to_score}",
                f"--output_file={self.folder}/{name}.{ending}",
            )
        return self._score_file(f"{self.folder}/{name}.csv")

    def _score_file(self, path: str) -> Result:
        per_class = f"{path}.classes"
        self._command(
            "score-segments",
            f"--submission_file={path}",
            f"--eval_data_pattern={self.to_score}",
            f"--per_class={per_class}",
        )
        with open(f"{self.folder}/rated/classes.csv", newline="") as file:
            kinds = {int(r["Index"]): r["Kind"] for r in csv.DictReader(file)}
        with open(per_class, newline="") as file:
            rows = [
                (int(r["class"]), r["average_precision"]) for r in csv.DictReader(file)
            ]
        scores = {c: float(value) for c, value in rows if value}
        context = [s for c, s in scores.items() if kinds[c] == "contextual"]
        return {
            "map": float(np.mean(list(scores.values()))),
            "context": float(np.mean(context)),
        }

    def _evaluate(self, name: str) -> Result:
        self._command(
            *("eval", "--run_once", f"--train_dir={self.folder}/{name}"),
            f"--eval_data_pattern={self.folder}/others/*.tfrecord",
        )
        (path,) = glob.glob(f"{self.folder}/{name}/eval/step-*.json")
        found = json.loads(pathlib.Path(path).read_text())
        return {key: found[key] for key in ("map", "hit_at_1", "hit_at_5")}

    def _synthesize(self, name, split, videos, shards, *flags) -> None:
        self._command(
            "synthesize",
            *(f"--output_dir={self.folder}/{name}", f"--split={split}"),
            *(f"--num_videos={videos}", f"--num_shards={shards}"),
            *(f"--seed={self.seed}", *_DATA, *flags),
        )

    def _command(self, name: str, *arguments: str) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = commands.run(name, list(arguments))
        if status:
            raise UserError(f"yt8m {name} failed:\n{said.getvalue()[-2000:]}")


def report(found: list[Result]) -> str:
    """The page: what was done, the figures, the bars."""
    rows = {
        "video model, applied to segments": "applied",
        "the same, fine-tuned (context ignored)": "fine_tuned",
        "new weights, trained on segments": "scratch",
        "context aware": "aware",
        "average of ignored and aware": "average",
    }
    segments = {title: [r[key] for r in found] for title, key in rows.items()}
    columns = {
        "MAP@K": lambda r: r["map"],
        "AP, contextual classes": lambda r: r["context"],
    }
    others = {"pre-trained": "pretrained", "new weights": "fresh"}
    transfer = {title: [r[key] for r in found] for title, key in others.items()}
    measures = ("map", "hit_at_1", "hit_at_5")
    setting = SETTING
    lines = [
        "# Where in the video, and other vocabularies",
        "",
        "Written by `python -m benchmarks.localisation`; do not edit. "
        f"{found[0]['where']}. Embedded data of {CLASSES} classes ({KINDS}), 40 % of "
        f"the labels misleading: {setting['videos']} videos with labels, "
        f"{VIDEOS_OF_SHARD * setting['rated_shards'][0]} others with rated segments "
        f"to train on, {VIDEOS_OF_SHARD * setting['rated_shards'][1]} to score. "
        "`NetVLADModel`, "
        f"{_NETVLAD['clusters']} clusters. Means over seeds of data and weights, ± "
        "standard deviation.",
        "",
        table(columns, segments, "segments"),
        "",
        f"Another vocabulary, {_EXAMPLES_OF_CLASS} videos a class:",
        "",
        table({m: lambda r, m=m: r[m] for m in measures}, transfer, "videos"),
        "",
    ]
    for result in found:
        ignored, aware = result["fine_tuned"], result["aware"]
        result["best"] = {"map": max(ignored["map"], aware["map"])}
    for title, key, other, measure, least in _BARS:
        gains = [r[key][measure] - r[other][measure] for r in found]
        gain = float(np.mean(gains))
        spread = f" ± {np.std(gains, ddof=1):.3f}" if len(gains) > 1 else ""
        verdict = "met" if gain >= least else "missed"
        lines.append(f"- {title}: at least {least}; {gain:+.3f}{spread}, {verdict}.")
    return "\n".join([*lines, ""])


def measure(
    results: pathlib.Path, seeds: range, setting: dict[str, Any]
) -> list[Result]:
    """What is found of each seed, from the file or by a run that is added to it."""
    stored = Results(results)
    runs = [
        {
            "benchmark": "localisation",
            "row": "all",
            "seed": seed,
            "setting": setting,
            "args": {},
        }
        for seed in seeds
    ]
    for run in stored.missing(runs):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = Bench(folder, run["seed"], setting).run()
        seconds = time.monotonic() - start
        stored.append({**run, **found, "seconds": seconds, "where": cpu_name()})
        print(f"seed {run['seed']}: {found}, {seconds:.0f} s", flush=True)
    of_seed = {r["seed"]: r for r in stored.read("localisation", setting)}
    return [of_seed[seed] for seed in seeds]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.localisation", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="how many")
    add("--first_seed", type=int, default=0, help="others than these, to try settings")
    add("--results", default="runs/localisation.jsonl", help="one line a seed")
    add("--output", default="docs/localisation.md", help="Markdown")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    try:
        text = report(measure(pathlib.Path(options.results), seeds, SETTING))
    except UserError as e:
        print(f"benchmarks.localisation: {e}", file=sys.stderr)
        return 1
    pathlib.Path(options.output).write_text(text)
    print(f"{text}\nWritten to {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
