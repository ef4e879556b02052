"""Plots of the results, where matplotlib is installed (`pip install yt8m[plots]`)."""

import importlib.util
import os

from benchmarks.zoo.tables import Seeds
from yt8m.errors import UserError


def check_installed() -> None:
    """Raises `UserError` where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "matplotlib is not installed: `pip install yt8m[plots]`, or --noplot."
        )


def pyplot():
    """The module, set to write the same file from the same results, with text that can
    be searched. Raises `UserError` where there is no matplotlib."""
    check_installed()
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "yt8m", "svg.fonttype": "none"})
    import matplotlib.pyplot

    return matplotlib.pyplot


def plot_kinds(rows: Seeds, path: str | os.PathLike) -> None:
    """Writes an SVG: a panel for each kind, a point with its deviation for each row."""
    plt = pyplot()
    import numpy as np

    names = list(rows)
    kinds = list(rows[names[0]][0]["ap"])
    size = (2.2 * (len(kinds) + 1) + 3, 0.22 * len(names) + 1)
    figure, panels = plt.subplots(
        1, len(kinds), sharey=True, figsize=size, layout="constrained", squeeze=False
    )
    places = np.arange(len(names))
    for kind, panel in zip(kinds, panels[0], strict=True):
        values = [[r["ap"][kind] for r in rows[name]] for name in names]
        means = [np.mean(v) for v in values]
        spreads = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
        panel.errorbar(means, places, xerr=spreads, fmt="o", markersize=4, capsize=2)
        panel.set(title=kind, xlim=(0, 1), xlabel="AP")
        panel.grid(alpha=0.3)
    panels[0][0].set_yticks(places, names)
    panels[0][0].invert_yaxis()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
