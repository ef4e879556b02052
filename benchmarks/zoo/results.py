"""Results on disk: one line of JSON a run, so that a killed benchmark goes on."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from yt8m.errors import UserError

Result = dict[str, Any]

# What makes two results those of the same run.
_KEYS = ("benchmark", "row", "seed", "setting", "args")


class Results:
    """The results in a file; others may append to it meanwhile.

    A result is a dictionary with `benchmark` ("kinds", "labels", "real" or "frames"),
    `row`, `seed`, `setting` (the data and the steps) and `args` (of the model and its
    training); what was measured; `where` it was; and `seconds`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)

    def read(self, benchmark: str, setting: dict[str, Any]) -> list[Result]:
        """Those of a benchmark in one setting; the last one of equal runs.

        Raises:
            UserError: a line that is not JSON.
        """
        found: dict[str, Result] = {}
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                result = json.loads(line)
            except json.JSONDecodeError as e:
                raise UserError(
                    f"{self.path}, line {number}: not JSON; remove the line."
                ) from e
            if result["benchmark"] == benchmark and result["setting"] == setting:
                found[_key(result)] = result
        return list(found.values())

    def missing(self, runs: Iterable[Result]) -> list[Result]:
        """Those of `runs` that are not in the file."""
        runs = list(runs)
        if not runs:
            return []
        done = self.read(runs[0]["benchmark"], runs[0]["setting"])
        keys = {_key(result) for result in done}
        return [run for run in runs if _key(run) not in keys]

    def append(self, result: Result) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(result) + "\n")


def plain(value: Any) -> Any:
    """`value` as it is after it was written and read: tuples are lists."""
    return json.loads(json.dumps(value))


def _key(result: Result) -> str:
    return json.dumps([result[name] for name in _KEYS], sort_keys=True)


def by_row(results: Iterable[Result], rows: Iterable[str]) -> dict[str, list[Result]]:
    """The results of each row, by seed; rows without any are left out."""
    found: dict[str, list[Result]] = {row: [] for row in rows}
    for result in sorted(results, key=lambda result: result["seed"]):
        if result["row"] in found:
            found[result["row"]].append(result)
    return {row: values for row, values in found.items() if values}
