"""What each model can see: scores by kind of class, on embedded and on real videos.

    python -m benchmarks.quality --quick              # two kinds, a few minutes
    python -m benchmarks.quality                      # all models, kinds and heads
    KERAS_BACKEND=jax python -m benchmarks.quality    # where TensorFlow is not
    python -m benchmarks.quality --real               # the shards that YT8M_DATA names
    python -m benchmarks.quality --real --parts=techniques,members,students

Embedded videos are made in memory, and all models of a family take as many steps. Each
run is a line of the results file: what is there already is not run again, and tables
can be made of several runs' results. Writes Markdown with a plot.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable

from benchmarks.zoo import results, rows, tables
from yt8m.errors import UserError

# What imports Keras is imported late: processes that generate videos do without.

EMBEDDED_PARTS = ("kinds", "labels", "corrupted", "precision")
REAL_PARTS = ("techniques", "members", "students")
KINDS = ("static", "brief", "ordered", "audio", "joint", "synchronous")
QUICK = {
    "kinds": "static,brief",
    "models": "FrameLevelLogisticModel,NetVLADModel",
    "seeds": 1,
    "steps": 300,
    "videos": 3000,
}
FULL = {"kinds": ",".join(KINDS), "seeds": 3, "steps": 600, "videos": 8000}

_PREFACE = """# What each model can see

Written by `python -m benchmarks.quality`; do not edit. Figures are means over seeds, of
weights and of videos alike, ± their standard deviation.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few models and kinds, a few minutes")
    add("--parts", help="kinds,labels,corrupted,precision; with --real others")
    add("--models", help="rows of the table, or models, separated by commas")
    add("--kinds", help=f"kinds of classes, of {','.join(KINDS)}")
    add("--seeds", type=int, help="how often each run is repeated")
    add("--steps", type=int, help="of the families that train the shortest")
    add("--videos", type=int, help="to train on; a quarter as many are scored")
    add("--processes", type=int, default=1, help="rows at once, on a GPU ten or more")
    add("--minutes", type=float, help="with --processes: stops what runs longer")
    add("--results", default="runs/quality.jsonl", help="one line a run")
    add("--output", default="docs/quality.md", help="Markdown; the plot lies beside it")
    add("--noplot", action="store_true", help="where matplotlib is not installed")
    add("--only_table", action="store_true", help="trains nothing")
    add("--real", action="store_true", help="the real shards")
    add("--frames", action="store_true", help="with --real: frames made of them")
    add("--epochs", type=int, help="with --real: of all models, for a first look")
    add("--arrays", help="with --real: a file of --save_arrays instead of YT8M_DATA")
    add("--save_arrays", help="with --real: writes the shards' arrays, and ends")
    options = parser.parse_args(arguments)
    for name, value in (FULL | QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.kinds = options.kinds.split(",")
    known = REAL_PARTS if options.real else EMBEDDED_PARTS
    default = () if options.real else known[:2]
    options.parts = options.parts.split(",") if options.parts else list(default)
    if options.processes < 1:
        raise UserError(f"--processes must be at least 1, not {options.processes}.")
    if options.minutes and options.processes == 1:
        raise UserError("--minutes needs several --processes.")
    for part in options.parts:
        if part not in known:
            raise UserError(f"Unknown part {part}: --parts takes {', '.join(known)}.")
    return options


def write_section(path: str, name: str, body: str) -> None:
    """Puts a section into the Markdown file, in the place of the one before."""
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_text() if file.exists() else _PREFACE
    file.write_text(tables.replace_section(text, name, body))
    print(f"\n{body}\n\nWritten to {path}.")


def report_kinds(options: argparse.Namespace, stored, setting: dict) -> None:
    found = results.by_row(stored.read("kinds", setting), rows.ROWS)
    if not found:
        raise UserError(f"{stored.path} has no results of {setting}.")
    every = [result for own in found.values() for result in own]
    lines = [
        "## Kinds of classes",
        "",
        f"{tables.places(every)}. {setting['videos']} embedded videos of at most "
        f"{setting['frames']} frames to train on, {setting['videos'] // 4} others "
        "scored; batches of 128; Adam, its learning rate falling to zero along a "
        f"cosine. {rows.budgets(setting['steps'])}",
        "",
        tables.kinds_table(found),
        "",
    ]
    if not options.noplot:
        from benchmarks.zoo.plots import plot_kinds

        plot = pathlib.Path(options.output).with_suffix(".svg")
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot_kinds(found, plot)
        lines += [f"![Average precision by kind of class]({plot.name})", ""]
    lines += [tables.kinds_bars(found)]
    write_section(options.output, "kinds of classes", "\n".join(lines))


def report_labels(options: argparse.Namespace, stored, settings: list[dict]) -> None:
    arms = {
        setting["labels"]: results.by_row(
            stored.read("labels", setting), rows.LABEL_ROWS
        )
        for setting in settings
    }
    arms = {arm: found for arm, found in arms.items() if found}
    if not arms:
        raise UserError(f"{stored.path} has no results of {settings}.")
    every = [r for found in arms.values() for own in found.values() for r in own]
    setting = settings[0]
    lines = [
        "## Labels that tell of one another",
        "",
        f"{tables.places(every)}. {setting['videos']} embedded videos of 120 static "
        f"classes to train on, {setting['videos'] // 4} others scored; "
        f"{setting['steps']} steps of 128. The mean frame is classified by different "
        "heads. Where classes co-occur, each one makes the class above it true with "
        "a probability of 0.9, of which the frames show little; half of the labels, "
        "most of these faint ones, are hidden in training; scored are the true "
        "labels. Where classes are independent there is nothing to learn from others.",
        "",
        tables.labels_section(arms),
    ]
    write_section(options.output, "labels", "\n".join(lines))


def report_corrupted(options: argparse.Namespace, stored, setting: dict) -> None:
    report_rows(
        *(options, stored, "corrupted", setting, rows.CORRUPTED_ROWS),
        title="Labels most of which are missing",
        text=f"{setting['videos']} embedded videos of 120 static classes to train on, "
        f"{setting['videos'] // 4} others scored by their true labels; "
        f"{setting['steps']} steps of 128. Soft labels are those of models that have "
        "not seen the video.",
        body=tables.corrupted_section,
        section="corrupted labels",
    )


def report_precision(options: argparse.Namespace, stored, setting: dict) -> None:
    report_rows(
        *(options, stored, "precision", setting, rows.PRECISION_ROWS),
        title="Precision",
        text="Videos and trainings are those of the kinds of classes, with matrix "
        "products of float32 or of bfloat16; losses and weights are float32 in both.",
        body=tables.precision_section,
        section="precision",
    )


def report_rows(
    options: argparse.Namespace,
    stored,
    part: str,
    setting: dict,
    known: dict[str, rows.Row],
    *,
    title: str,
    text: str,
    body: Callable[[tables.Seeds], str],
    section: str,
) -> None:
    """Writes the section of a part whose results are of one setting."""
    found = results.by_row(stored.read(part, setting), known)
    if not found:
        raise UserError(f"{stored.path} has no results of {setting}.")
    every = [r for own in found.values() for r in own]
    lines = [f"## {title}", "", f"{tables.places(every)}. {text}", "", body(found)]
    write_section(options.output, section, "\n".join(lines))


def run(options: argparse.Namespace) -> int:
    stored = results.Results(options.results)
    if options.real:
        from benchmarks.zoo import real, techniques

        part = techniques if options.parts else real
        return part.run(options, stored, write_section)
    if not options.noplot:
        from benchmarks.zoo.plots import check_installed

        check_installed()  # before hours of training, not after
    from benchmarks.zoo import embedded

    failed, size = 0, (options.steps, options.videos)
    kinds = embedded.kinds_setting(options.kinds, *size)
    arms = [embedded.labels_setting(arm, *size) for arm in rows.LABEL_DATA]
    corrupted = embedded.corrupted_setting(*size)
    if not options.only_table:
        if "kinds" in options.parts:
            failed += embedded.measure_kinds(stored, kinds, options)
        for arm in arms if "labels" in options.parts else ():
            failed += embedded.measure_labels(stored, arm, options)
        if "corrupted" in options.parts:
            failed += embedded.measure_corrupted(stored, corrupted, options)
        if "precision" in options.parts:
            failed += embedded.measure_precision(stored, kinds, options)
    if "kinds" in options.parts:
        report_kinds(options, stored, kinds)
    if "labels" in options.parts:
        report_labels(options, stored, arms)
    if "corrupted" in options.parts:
        report_corrupted(options, stored, corrupted)
    if "precision" in options.parts:
        report_precision(options, stored, kinds)
    return int(failed > 0)


def main(arguments: list[str]) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return run(parse(arguments))
    except UserError as e:
        print(f"benchmarks.quality: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
