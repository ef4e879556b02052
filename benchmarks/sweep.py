"""Every recipe at reduced size: does it train, score, predict and export?

    python -m benchmarks.sweep                     # all; writes docs/recipes.md
    python -m benchmarks.sweep --families          # one of each family of models
    python -m benchmarks.sweep --only=nextvlad,monn

Through the commands that a user types, in one process, on a few random videos. What a
recipe's own `Command:` gives beside it, such as a file, is given here too. The exit
status is 1 if any recipe fails; its error is in the table.
"""

import argparse
import contextlib
import dataclasses
import gc
import io
import json
import pathlib
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags as absl_flags

from yt8m import registry, runs, schema, whole_files
from yt8m.cli import flags as shared
from yt8m.cli import main, models, recipes, train
from yt8m.config import DataConfig
from yt8m.cost import Cost, model_cost
from yt8m.data.predictions import ENDING, PredictionsWriter
from yt8m.data.records import (
    SegmentRatings,
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.data.video_embeddings import EmbeddingsWriter
from yt8m.errors import UserError
from yt8m.layers.classifiers import HEADS
from yt8m.layers.poolings import POOLINGS

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "recipes.md"
# For CI, where all of them would take too long.
FAMILIES = {
    "video level": "resnetlike",
    "chains": "deep_combine_chain",
    "bags of frames": "cg_dbof",
    "vocabularies": "willow_netvlad",
    "mixtures": "nextvlad_mix3",
    "recurrent": "simple_lstm_residual",
    "convolutions": "multiscale_cnn_lstm",
    "attention": "transformer_encoder",
    "components": "snuvl_best",
}
CLASSES, VIDEOS, FRAMES = 24, 16, 12
LARGEST = 16  # number that an argument of a model keeps
WIDEST = 32  # numbers of a feature


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a recipe asks for.

    Attributes:
        recipe: itself.
        args: of its model.
        loss_args: of its loss.
        data: what its model reads.
        teacher: what teaches its model, or nothing.
        video_embeddings: what it reads of whole videos, or nothing.
    """

    recipe: recipes.Recipe
    args: dict[str, Any]
    loss_args: dict[str, Any]
    data: DataConfig
    teacher: str = ""
    video_embeddings: str = ""

    def cost(self) -> Cost:
        """At full size, of the frames that evaluation takes."""
        shape = {"features": self.data.features, "num_classes": self.data.num_classes}
        frames = self.data.frames.evaluated().count or self.data.max_frames
        if self.data.segments:
            frames = self.data.segment_frames
        return model_cost(self.recipe.model, {**self.args, **shape}, frames)


def read_settings(name: str) -> Settings:
    """What the recipe `name` asks for, by its flags and those of its `Command:`."""
    recipe = recipes.read(name)
    flags = absl_flags.FlagValues()
    train.define(flags)
    flags([w for w in shlex.split(recipe.command) if w != "python"])
    recipes.follow(flags, train.define)
    training = shared.training_config(flags)
    return Settings(
        recipe,
        shared.given_model_args(flags),
        training.label_loss_args,
        shared.data_config(flags, runs.default_data_config(recipe.model)),
        training.teacher,
        training.video_embeddings,
    )


# --- reduced sizes -------------------------------------------------------------------


def reduced(value: Any) -> Any:
    """Numbers above `LARGEST` become that; of lists and dictionaries, those inside."""
    if isinstance(value, dict):
        return {name: reduced(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [reduced(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return min(value, LARGEST)
    return value


def small_args(model: str, args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a small model that is otherwise the recipe's.

    Those of its head and its pooling are reduced too; defaults are named where they
    are too large.
    """
    defaults = models.model_arguments(registry.get(model).cls)
    small = {
        name: value
        for name, value in defaults.items()
        if name not in args and reduced(value) != value
    } | args
    for part, classes in (("head", HEADS), ("pooling", POOLINGS)):
        inner = f"{part}_args"
        if inner in defaults:
            name = args.get(part, defaults[part])
            known = registry.arguments(classes[name]) if name in classes else {}
            known.pop("num_classes", None)
            large = {k: v for k, v in known.items() if reduced(v) != v}
            if large:
                small[inner] = large | dict(args.get(inner) or {})
    return reduced(small)


# --- data and files ------------------------------------------------------------------


class Material:
    """Random shards, and the files that recipes ask for, made when they are needed."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._shards: dict[Any, pathlib.Path] = {}

    def shard(self, data: DataConfig, labelled: bool) -> pathlib.Path:
        """A file of videos with these features."""
        key = (data.level, data.segments, *data.features.items(), labelled)
        if key not in self._shards:
            path = self.folder / f"{len(self._shards)}.tfrecord"
            write_records(path, self._records(data, labelled))
            self._shards[key] = path
        return self._shards[key]

    def _records(self, data: DataConfig, labelled: bool):
        rng = np.random.default_rng(0)
        for i in range(VIDEOS):
            classes = rng.choice(CLASSES, rng.integers(1, 4), replace=False)
            labels = sorted(classes.tolist()) if labelled else None
            if data.level == "video":
                features = {n: rng.normal(size=s) for n, s in data.features.items()}
                yield encode_video_record(f"v{i:03d}", features, labels)
            else:
                # The first has a single frame.
                frames = 1 if i == 0 else int(rng.integers(2, FRAMES + 1))
                features = {
                    n: rng.integers(0, 256, (frames, s), np.uint8)
                    for n, s in data.features.items()
                }
                ratings = None
                if data.segments and labelled:
                    ratings = SegmentRatings(labels, [0] * len(labels), [], [])
                    ratings.scores.extend(float(j % 2 == 0) for j in labels)
                yield encode_frame_record(
                    f"v{i:03d}", features, labels, segments=ratings
                )

    def with_files(self, args: dict[str, Any], data: DataConfig) -> dict[str, Any]:
        """The arguments with files of our own, for those that `FILES` knows."""
        # The head `mlp` has a normalisation of that name, which is no file.
        files = {n for n in FILES if n != "normalization" or data.level == "video"}
        found = {}
        for name, value in args.items():
            if isinstance(value, dict):
                found[name] = self.with_files(value, data)
            elif isinstance(value, str) and name in files:
                path = self.folder / f"{name}-{data.level}-{len(data.features)}"
                found[name] = str(FILES[name](self, data, path))
            else:
                found[name] = value
        return found


def _class_counts(material: Material, data: DataConfig, path: pathlib.Path):
    path = path.with_suffix(".csv")
    shard = material.shard(data, labelled=True)
    command("count", f"--input_data_pattern={shard}", f"--per_class={path}")
    return path


def _correlation(material: Material, data: DataConfig, path: pathlib.Path):
    path = path.with_suffix(".npz")
    shard = material.shard(data, labelled=True)
    command(
        "correlate",
        f"--train_data_pattern={shard}",
        f"--num_classes={CLASSES}",
        f"--output_file={path}",
    )
    return path


def _normalization(material: Material, data: DataConfig, path: pathlib.Path):
    path = path.with_suffix(".npz")
    command(
        "normalization",
        f"--input_data_pattern={material.shard(data, labelled=True)}",
        *_features(data),
        f"--output_file={path}",
    )
    return path


def _features(data: DataConfig) -> list[str]:
    return [
        f"--feature_names={','.join(data.features)}",
        f"--feature_sizes={','.join(map(str, data.features.values()))}",
    ]


def _eigenvalues(material: Material, data: DataConfig, path: pathlib.Path):
    path = path.with_suffix(".npy")
    np.save(path, np.geomspace(14.0, 0.01, schema.FRAME_FEATURES["rgb"]))
    return path


def _teacher(material: Material, data: DataConfig, path: pathlib.Path):
    path = path.with_suffix(ENDING)
    rng = np.random.default_rng(0)
    with PredictionsWriter(str(path), CLASSES, CLASSES // 2) as writer:
        ids = [b"v%03d" % i for i in range(VIDEOS)]
        writer.write(ids, rng.random((VIDEOS, CLASSES), np.float32))
    return path


def _video_embeddings(material: Material, data: DataConfig, path: pathlib.Path):
    path = path.with_suffix(".embeddings")
    rng = np.random.default_rng(0)
    with EmbeddingsWriter(str(path), LARGEST) as writer:
        ids = [b"v%03d" % i for i in range(VIDEOS)]
        writer.write(ids, rng.random((VIDEOS, LARGEST), np.float32))
    return path


# Arguments of models and losses that name a file, and how it is made; so is a teacher.
FILES: dict[str, Callable[[Material, DataConfig, pathlib.Path], pathlib.Path]] = {
    "class_counts": _class_counts,
    "correlation": _correlation,
    "normalization": _normalization,
    "pca_eigenvalues": _eigenvalues,
    "teacher": _teacher,
    "video_embeddings": _video_embeddings,
}


# --- one recipe ----------------------------------------------------------------------


class Failure(Exception):
    """A command that did not succeed, and its error in one line."""


def command(name: str, *flags: str) -> None:
    """Runs a command in this process, quietly.

    Raises:
        Failure: its exit status is not 0, or it raised.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main.run(name, list(flags))
    except Exception as e:
        error = traceback.format_exception_only(e)[-1]
        raise Failure(f"{name}: {' '.join(error.split())}") from e
    if status >= 128:  # stopped by a signal, which the command has caught
        sys.exit(status)
    if status:
        lines = said.getvalue().strip().splitlines()
        raise Failure(lines[-1] if lines else f"{name}: exit status {status}")


# Flags of a recipe that are given in another form.
_REPLACED = {"model_args", "label_loss_args", "class_counts", *shared.SPELLINGS}
_REPLACED |= {"global_batch_size", "teacher", "video_embeddings"}


def _flag(text: str) -> str:
    return text.lstrip("-").partition("=")[0]


def sweep(name: str, material: Material) -> None:
    """Trains, scores, predicts and exports a recipe at reduced size.

    Raises:
        Failure: it cannot.
    """
    try:
        settings = read_settings(name)
    except (UserError, absl_flags.Error) as e:
        raise Failure(str(e)) from e
    sizes = {name: min(n, WIDEST) for name, n in settings.data.features.items()}
    data = dataclasses.replace(settings.data, features=sizes)
    args = material.with_files(small_args(settings.recipe.model, settings.args), data)
    loss_args = material.with_files(settings.loss_args, data)
    wanted = {
        name: getattr(settings, name)
        for name in ("teacher", "video_embeddings")
        if getattr(settings, name)
    }
    files = material.with_files(wanted, data)
    labelled, test = (material.shard(data, labelled) for labelled in (True, False))
    with tempfile.TemporaryDirectory(dir=material.folder) as folder:
        run, predicted = f"--train_dir={folder}/run", f"{folder}/predicted.csv"
        command(
            "train",
            *(f for f in settings.recipe.flags if _flag(f) not in _REPLACED),
            run,
            f"--train_data_pattern={labelled}",
            f"--model_args={json.dumps(args)}",
            f"--label_loss_args={json.dumps(loss_args)}",
            *(f"--{flag}={path}" for flag, path in files.items()),
            *_features(data),
            f"--num_classes={CLASSES}",
            f"--max_frames={FRAMES}",
            f"--frames={min(data.frames.count or 0, FRAMES // 2)}",
            f"--skip_first_frames={min(data.frames.skip_first, 2)}",
            "--batch_size=8",
            "--num_epochs=0",
            "--max_steps=2",
            "--steps_per_loop=1",
            "--num_readers=1",
        )
        command("eval", run, f"--eval_data_pattern={labelled}", "--run_once")
        shard = f"--input_data_pattern={test}"
        command("inference", run, shard, f"--output_file={predicted}")
        command("validate-submission", predicted, shard, f"--num_classes={CLASSES}")
        command("export", run, f"--output_dir={folder}/export")


def sweep_all(names: Sequence[str]) -> dict[str, str | None]:
    """The error of each recipe, None of those without; says how it goes."""
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        material = Material(pathlib.Path(folder))
        for i, name in enumerate(names):
            try:
                sweep(name, material)
                found[name] = None
            except Failure as e:
                found[name] = str(e)
            done = found[name] or "ok"
            print(f"{i + 1} of {len(names)}, {name}: {done}", file=sys.stderr)
            # The graphs of this model are not needed any more.
            keras.backend.clear_session()
            gc.collect()
    return found


# --- the page ------------------------------------------------------------------------


def page(errors: dict[str, str | None]) -> tuple[str, int]:
    """The text of docs/recipes.md, of recipes and their errors; how many failed."""
    rows = []
    for name, error in sorted(errors.items()):
        recipe = recipes.read(name)
        try:
            cost = read_settings(name).cost()
            costs = [f"{cost.parameters:,}", f"{models.amount(cost.flops)}FLOPs"]
        except (UserError, absl_flags.Error, ValueError) as e:
            costs, error = ["", ""], error or str(e)
        link = f"[{name}](../yt8m/recipes/{name}.flags)"
        rows.append(
            [
                *(link, recipe.title, recipe.model, recipe.published, recipe.measured),
                *(error or "ok", *costs, recipe.source),
            ]
        )
    header = ("recipe", "what it is", "model", "published", "measured on the dataset")
    header += ("sweep", "parameters", "a video", "source")
    failed = sum(row[5] != "ok" for row in rows)
    text = "\n".join(
        [
            "# The recipes",
            "",
            "Written by `make sweep`, which trains, scores, predicts and exports each "
            f"at reduced size: {len(rows) - failed} of {len(rows)} passed. `yt8m "
            "recipes --show=NAME` prints one, `train.py --recipe=NAME` trains it. "
            "Parameters and operations are those of the full size; published scores "
            "are what the source reports. Whole pipelines, `yt8m pipeline NAME`: "
            f"{', '.join(recipes.pipeline_names())}.",
            "",
            recipes.table(header, rows, "markdown"),
        ]
    )
    return text, failed


def choose(only: str | None, families: bool) -> list[str]:
    """The names of the recipes to take; all by default.

    Raises:
        UserError: one of `only` is unknown.
    """
    if only:
        names = only.split(",")
        for name in names:
            recipes.read(name)
        return names
    return list(FAMILIES.values()) if families else recipes.recipe_names()


def main_command(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", help="these alone, separated by commas")
    parser.add_argument("--families", action="store_true", help="one of each family")
    options = parser.parse_args(arguments)
    main.import_tensorflow()
    runs.load_registries(None)
    try:
        errors = sweep_all(choose(options.only, options.families))
    except UserError as e:
        print(f"sweep: {e}", file=sys.stderr)
        return 1
    text, failed = page(errors)
    if options.only or options.families:
        print(text)
    else:
        whole_files.write_file(str(PAGE), f"{text}\n")
        print(f"{PAGE} written.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main_command(sys.argv[1:]))
