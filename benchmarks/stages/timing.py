"""Rates, measured in turn, and what is demanded of them."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

# The peak of the program alone: what the kernel tells a parent of its child counts the
# parent's own memory too, of which the child was a copy before it began.
_REPORT = """
import atexit, re
peak = re.compile(r"VmHWM:\\s*(\\d+) kB")
atexit.register(lambda: print(peak.search(open("/proc/self/status").read())[1]))
"""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        stage: what was measured.
        values: one a round, in `unit`.
        unit: of the values.
        floor: what the share is of; empty if there is none.
        shares: of the floor, one a round: what else the machine does meets both.
        bar: the least share that is wanted, None for none.
        least, most: of the values, None for none.
    """

    stage: str
    values: list[float]
    unit: str = "videos/s"
    floor: str = ""
    shares: list[float] | None = None
    bar: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def share(self) -> float | None:
        return median(self.shares) if self.shares else None

    @property
    def met(self) -> bool | None:
        """Whether what is wanted was reached; None if nothing is."""
        value = median(self.values)
        found = []
        if self.bar is not None:
            found.append(self.share >= self.bar)
        if self.least is not None:
            found.append(value >= self.least)
        if self.most is not None:
            found.append(value <= self.most)
        return all(found) if found else None


def in_turn(
    runs: dict[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Rates by round. Each of `runs` gives an amount of work, and is timed.

    All are run once before, so that nothing is compiled, or read from a disk, in the
    rounds.
    """
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            amount = run()
            rates[name].append(amount / (time.perf_counter() - start))
    return rates


def shares(values: list[float], floors: list[float]) -> list[float]:
    return (np.array(values) / np.array(floors)).tolist()


def run_process(code: str, *arguments: str) -> tuple[float, float, str]:
    """Seconds, GB at the peak, and the last line printed, of a Python process.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start = time.perf_counter()
    said = subprocess.run(
        [sys.executable, "-c", _REPORT + code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    seconds = time.perf_counter() - start
    *lines, peak = said.strip().splitlines()
    return seconds, int(peak) / 1e6, lines[-1] if lines else ""
