"""The table of the stages, as Markdown, and its plot."""

import os
import pathlib
from collections.abc import Sequence
from statistics import median

from benchmarks.__main__ import digits
from benchmarks.stages.timing import Row
from benchmarks.zoo.plots import pyplot
from yt8m.errors import UserError

STAGES = ("readers", "steps", "training", "loops", "metrics", "segments")
STAGES += ("memory", "growth", "startup")

BEGIN, END = "<!-- stages -->", "<!-- end of stages -->"
HEADER = (
    "| stage | median | lowest - highest | floor | of it | wanted | |\n"
    "| --- | ---: | ---: | --- | ---: | ---: | --- |"
)


def line(row: Row) -> str:
    wanted = []
    if row.bar is not None:
        wanted.append(f"{row.bar:.2f} of the floor")
    if row.least is not None:
        wanted.append(f"at least {digits(row.least)}")
    if row.most is not None:
        wanted.append(f"at most {digits(row.most)}")
    cells = [
        row.stage,
        f"{digits(median(row.values))} {row.unit}",
        f"{digits(min(row.values))} - {digits(max(row.values))}",
        row.floor,
        "" if row.share is None else f"{row.share:.2f}",
        ", ".join(wanted),
        {True: "met", False: "missed", None: ""}[row.met],
    ]
    return f"| {' | '.join(cells)} |"


def plot(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Writes an SVG: a bar for each share of a floor, a mark where one is wanted."""
    plt = pyplot()

    rows = [row for row in rows if row.shares and row.unit.endswith("/s")]
    figure, panel = plt.subplots(
        figsize=(9, 0.32 * len(rows) + 1), layout="constrained"
    )
    for place, row in enumerate(rows):
        low, high = min(row.shares), max(row.shares)
        spread = [[row.share - low], [high - row.share]]
        panel.barh(place, row.share, xerr=spread, color="tab:blue", alpha=0.7)
        if row.bar is not None:
            panel.plot([row.bar] * 2, [place - 0.4, place + 0.4], color="tab:red")
    panel.set_yticks(range(len(rows)), [row.stage for row in rows])
    panel.invert_yaxis()
    panel.set_xlabel("share of the floor; red: wanted")
    panel.grid(axis="x", alpha=0.3)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def read_page(path: pathlib.Path) -> str:
    """The page to write into, an empty one if there is none.

    Raises:
        UserError: it has no place for the table.
    """
    text = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise UserError(
            f"--output={path} has no lines {BEGIN} and {END} to write between."
        )
    return text


def write(path: pathlib.Path, table: str, rows: Sequence[Row]) -> None:
    """Puts table and plot into a Markdown file, in the place of those before.

    They stand between two comments; what is around them stays.

    Args:
        path: the file.
        table: the whole of it.
        rows: what the plot shows; without any there is none.
    """
    text = read_page(path)
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    body = table
    if rows:
        picture = path.with_suffix(".svg")
        plot(rows, picture)
        body += f"\n\n![Share of the floor, by stage]({picture.name})"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}")
