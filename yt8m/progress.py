"""How far a long task is: count, percentage, rate, time elapsed and time left."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

_TERMINAL_SECONDS = 0.1  # between two drawings of the bar
_LOG_SECONDS = 10.0  # between two lines where there is no terminal
_BAR_WIDTH = 20


class Progress:
    """A bar on a terminal, a plain line about every ten seconds elsewhere.

        with Progress(total=reader.num_examples) as progress:
            for batch, _ in reader.batches():
                progress.update(len(batch["labels"]))

    Args:
        total: how many there will be, or None if nobody knows.
        unit: what is counted, in the plural.
        stream: where to write; standard error if None.
        initial: how many were done before; they do not enter the rate.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        total: int | None = None,
        unit: str = "videos",
        stream: TextIO | None = None,
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total = total
        self.unit = unit
        self.done = initial
        self._initial = initial
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._interval = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        self._clock = clock
        self._start = self._shown = clock()
        self._first: tuple[float, int] | None = None
        self._fields: dict[str, object] = {}
        self._closed = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def update(self, n: int, **fields: object) -> None:
        """Notes that `n` more are done; `fields` are shown from now on.

        Floats are shown with four significant digits, everything else as it is.
        """
        now = self._clock()
        self.done += n
        self._fields |= fields
        if self._first is None:
            self._first = (now, self.done)
        if now - self._shown >= self._interval:
            self._shown = now
            self._write(self._line(now))

    def close(self) -> None:
        """Writes the last line: the rate over the whole time, nothing left."""
        if self._closed:
            return
        self._closed = True
        self._first = None
        self._write(self._line(self._clock()), last=True)

    def _rate(self, now: float) -> float:
        # The first update ends the start-up (tracing, opening files): what came
        # later foretells the rest better.
        since, before = self._first or (self._start, self._initial)
        if self.done == before:
            since, before = self._start, self._initial
        return (self.done - before) / max(now - since, 1e-9)

    def _line(self, now: float) -> str:
        rate = self._rate(now)
        count = f"{self.done:,}"
        elapsed = f"{_duration(now - self._start)} elapsed"
        if self.total:
            count += f" of {self.total:,}"
        count += f" {self.unit}"
        if self.total:
            part = min(self.done / self.total, 1.0)
            count += f" ({100 * part:.1f}%)"
            if self._terminal:
                full = int(part * _BAR_WIDTH)
                count = f"[{'#' * full}{'.' * (_BAR_WIDTH - full)}] {count}"
            if rate > 0 and not self._closed:
                left = max(self.total - self.done, 0) / rate
                elapsed += f", {_duration(left)} left"
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        parts = [count, f"{speed} {self.unit}/s", elapsed]
        for name, value in self._fields.items():
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{name} {text}")
        return " | ".join(parts)

    def _write(self, line: str, last: bool = False) -> None:
        if self._terminal:
            # A line that wraps could not be drawn over.
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r{line}\x1b[K" + ("\n" if last else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"
