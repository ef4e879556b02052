"""Markdown of the results: tables, and whether the bars are met."""

from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.zoo.results import Result
from benchmarks.zoo.rows import CORRUPTED_BASELINE, CORRUPTED_ROWS, LABEL_ROWS, ROWS

Seeds = dict[str, list[Result]]


def cell(values: Iterable[float]) -> str:
    """Mean and standard deviation over the seeds; a count is the same in all."""
    values = list(values)
    if all(isinstance(value, int) for value in values):
        return " / ".join(str(value) for value in sorted(set(values)))
    values = np.asarray(values, float)
    if len(values) < 2:
        return f"{values.mean():.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def table(columns: dict[str, Callable[[Result], float]], rows: Seeds, what: str) -> str:
    """One line a row: its name, the number of seeds, and each column's cell."""
    lines = [f"| {what} | seeds | {' | '.join(columns)} |"]
    lines.append("| --- | ---: |" + " ---: |" * len(columns))
    for name, results in rows.items():
        cells = [cell(column(r) for r in results) for column in columns.values()]
        lines.append(f"| {name} | {len(results)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kinds_table(rows: Seeds) -> str:
    kinds = list(next(iter(rows.values()))[0]["ap"])
    columns = {"GAP": lambda r: r["gap"]}
    columns |= {f"AP {kind}": lambda r, kind=kind: r["ap"][kind] for kind in kinds}
    columns["steps"] = lambda r: r["steps"]
    return table(columns, rows, "model")


def places(results: list[Result]) -> str:
    """Where the results were measured."""
    return "; ".join(dict.fromkeys(r["where"] for r in results))


class Bars:
    """Demands on the results, each with what was found.

    Args:
        rows: the results of each row.
    """

    def __init__(self, rows: Seeds):
        self.rows, self.lines = rows, []

    def _mean(self, row: str, kind: str) -> float:
        return float(np.mean([r["ap"][kind] for r in self.rows[row]]))

    def _having(self, trait: str) -> list[str]:
        return [
            name
            for name, row in ROWS.items()
            if name in self.rows and trait in row.traits and not row.rival
        ]

    def _add(self, text: str, least: float, found: float, how: str) -> None:
        verdict = "met" if found >= least else "missed"
        self.lines.append(f"- {text}: at least {least}; {found:+.3f}, {verdict}. {how}")

    def _unmeasured(self, text: str) -> None:
        self.lines.append(f"- {text}: not measured.")

    def best_against_all(
        self, text: str, kind: str, winners: str, others: str, least: float
    ) -> None:
        """The best row of one trait, less the best of another, at a kind of class."""
        first, second = self._having(winners), self._having(others)
        if not first or not second or not self._has(kind):
            self._unmeasured(text)
            return
        best = max(first, key=lambda row: self._mean(row, kind))
        rival = max(second, key=lambda row: self._mean(row, kind))
        floor = self._mean(rival, kind) + least
        short = [row for row in first if self._mean(row, kind) < floor]
        how = f"{best} {self._mean(best, kind):.3f}, "
        how += f"{rival} {self._mean(rival, kind):.3f}."
        if short:
            how += f" Of {len(first)}, {len(short)} do not: {', '.join(short)}."
        self._add(text, least, self._mean(best, kind) - self._mean(rival, kind), how)

    def _has(self, kind: str) -> bool:
        return all(kind in r["ap"] for results in self.rows.values() for r in results)

    def both_against_one(self, text: str, kind: str, least: float) -> None:
        """Each model of two streams less the best of its variants with one feature.

        Those that join the features first are told, and do not count.
        """
        rivals: dict[str, list[str]] = {}
        for name, row in ROWS.items():
            if row.rival in self.rows and name in self.rows:
                rivals.setdefault(row.rival, []).append(name)
        streams = [name for name in rivals if "two_stream" in ROWS[name].traits]
        if not streams or not self._has(kind):
            self._unmeasured(text)
            return
        gains = {
            both: self._mean(both, kind) - max(self._mean(one, kind) for one in ones)
            for both, ones in rivals.items()
        }
        how = ", ".join(f"{row} {gain:+.3f}" for row, gain in gains.items())
        self._add(text, least, min(gains[name] for name in streams), f"{how}.")


def kinds_bars(rows: Seeds) -> str:
    bars = Bars(rows)
    bars.best_against_all(
        "AP of ordered classes, recurrent and convolutional over orderless",
        *("ordered", "ordered", "orderless", 0.3),
    )
    for trait in ("vlad", "attention", "max"):
        bars.best_against_all(
            f"AP of brief classes, {trait} over average pooling",
            *("brief", trait, "average", 0.2),
        )
    bars.both_against_one(
        "AP of joint classes, two streams over the better one alone", "joint", 0.2
    )
    bars.best_against_all(
        "AP of synchronous classes, rgb and audio in one frame over two streams",
        *("synchronous", "joined", "two_stream", 0.1),
    )
    return "\n".join(bars.lines)


def labels_section(arms: dict[str, Seeds]) -> str:
    """Tables and bar of the label experiment.

    Args:
        arms: the results on classes that imply one another and on independent ones.
    """
    lines = []
    for arm, rows in arms.items():
        columns = {"GAP": lambda r: r["gap"]}
        if any(r["gap"] != r["gap_given"] for seeds in rows.values() for r in seeds):
            columns["GAP, given labels"] = lambda r: r["gap_given"]
        lines += [f"{arm}:", "", table(columns, rows, "head"), ""]
    text = "GAP where labels co-occur and are hidden, a head that sees labels over the "
    text += "best that does not"
    gains = {arm: _labels_gain(rows) for arm, rows in arms.items()}
    first, *others = gains.items()
    if first[1] is None:
        return "\n".join([*lines, f"- {text}: not measured."])
    (gain, spread, best, rival) = first[1]
    verdict = "met" if gain >= 0.01 else "missed"
    line = f"- {text}: at least 0.01; {gain:+.3f} ± {spread:.3f}, {verdict}. "
    line += f"{best} over {rival}."
    rows = arms[first[0]]
    for control in (name for name in rows if LABEL_ROWS[name].sees_labels is None):
        over = _mean_gain(rows[best], rows[control])
        if over is not None:
            line += f" {over:+.3f} over {control}."
    for arm, other in others:
        if other is not None:
            line += f" {arm}: {other[0]:+.3f} ± {other[1]:.3f}, {other[2]} over "
            line += f"{other[3]}."
    return "\n".join([*lines, line])


def corrupted_section(found: Seeds) -> str:
    """Table and bar of the soft labels, against hard ones."""
    columns = {
        "GAP": lambda r: r["gap"],
        "recall": lambda r: r["recall"],
        "precision": lambda r: r["precision"],
    }
    lines = [table(columns, found, "labels"), ""]
    hard = [name for name in found if not CORRUPTED_ROWS[name].soft_labels]
    for name in found:
        gains = {other: _mean_gain(found[name], found[other]) for other in hard}
        if name in hard or gains.get(CORRUPTED_BASELINE) is None:
            continue
        verdict = "met" if gains[CORRUPTED_BASELINE] >= 0.03 else "missed"
        text = ", ".join(f"{gain:+.3f} over {o}" for o, gain in gains.items())
        lines.append(f"- {name}: at least 0.03 over hard labels; {text}; {verdict}.")
    return "\n".join(lines)


def precision_section(found: Seeds) -> str:
    """Table of both precisions, and the bar of each model that has both."""
    lines = [kinds_table(found), ""]
    for name in found:
        model, _, precision = name.partition(" (")
        gain = _mean_gain(found[name], found.get(f"{model} (float32)", []))
        if precision != "bfloat16)" or gain is None:
            continue
        verdict = "met" if gain >= -0.003 else "missed"
        lines.append(
            f"- {model} in bfloat16: at most 0.003 GAP below float32; {gain:+.4f}; "
            f"{verdict}."
        )
    return "\n".join(lines)


def _mean_gain(own: list[Result], others: list[Result]) -> float | None:
    """The mean over the seeds that both have; None if there is none."""
    base = {r["seed"]: r["gap"] for r in others}
    gains = [r["gap"] - base[r["seed"]] for r in own if r["seed"] in base]
    return float(np.mean(gains)) if gains else None


def _labels_gain(rows: Seeds) -> tuple[float, float, str, str] | None:
    """Mean and standard deviation over seeds of the gain; the two rows."""
    gap = {
        name: {r["seed"]: r["gap"] for r in results} for name, results in rows.items()
    }
    knowing = [name for name in gap if LABEL_ROWS[name].sees_labels]
    plain = [name for name in gap if LABEL_ROWS[name].sees_labels is False]
    if not knowing or not plain:
        return None

    def mean(name: str) -> float:
        return float(np.mean(list(gap[name].values())))

    best, rival = max(knowing, key=mean), max(plain, key=mean)
    gains = [gap[best][s] - gap[rival][s] for s in gap[best] if s in gap[rival]]
    if not gains:
        return None
    spread = float(np.std(gains, ddof=1)) if len(gains) > 1 else 0.0
    return float(np.mean(gains)), spread, best, rival


def replace_section(text: str, name: str, body: str) -> str:
    """`text` with `body` between the markers of section `name`, at the end if new."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    block = f"{start}\n{body.strip()}\n{end}\n"
    if start in text and end in text:
        before, _, rest = text.partition(start)
        rest = rest.partition(end)[2].lstrip("\n")
        return before + block + (f"\n{rest}" if rest else "")
    return f"{text.rstrip()}\n\n{block}" if text.strip() else block
