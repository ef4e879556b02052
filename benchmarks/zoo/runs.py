"""Which runs are to be done, and doing them, one after the other or some at once."""

import importlib
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import keras

import frame_level_models  # noqa: F401  registers the models
import video_level_models  # noqa: F401
from benchmarks.__main__ import cpu_name
from benchmarks.zoo.results import Result, Results, plain
from benchmarks.zoo.rows import Row
from yt8m import registry
from yt8m.errors import UserError, near_matches
from yt8m.layers.classifiers import HEADS
from yt8m.layers.label_processing import LABEL_PROCESSINGS


def chosen(rows: dict[str, Row], names: str | None) -> dict[str, Row]:
    """The rows that `names` asks for, by their own name or their model's.

    Those whose model, head or label processing is not there are left out.
    """
    wanted = names.split(",") if names else []
    for name in wanted:
        if not any(name in (key, row.model) for key, row in rows.items()):
            raise UserError(f"Unknown row {name}. {near_matches(name, rows)}")
    return {
        key: row
        for key, row in rows.items()
        if row.model in registry.names()
        and row.args.get("head", "moe") in HEADS
        and row.args.get("label_processing") in (None, *LABEL_PROCESSINGS)
        and (not wanted or key in wanted or row.model in wanted)
    }


def where() -> str:
    """The machine and the backend, in words."""
    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    name = cpu_name()
    if backend == "jax":
        device = module.devices()[0]
        name = device.device_kind if device.platform != "cpu" else name
    elif backend == "tensorflow":
        for gpu in module.config.list_physical_devices("GPU")[:1]:
            name = module.config.experimental.get_device_details(gpu)["device_name"]
    elif module.cuda.is_available():
        name = module.cuda.get_device_name()
    return f"{name}; {backend} {module.__version__}, Keras {keras.__version__}"


def runs_of(
    benchmark: str,
    rows: dict[str, Row],
    seeds: int,
    setting: dict[str, Any],
) -> list[Result]:
    """What is to be run, without what will be measured."""
    return [
        plain(
            {
                "benchmark": benchmark,
                "row": name,
                "seed": seed,
                "setting": setting,
                "args": row.settings(),
            }
        )
        for name, row in rows.items()
        for seed in range(seeds)
    ]


def run_missing(
    results: Results,
    runs: list[Result],
    measure: Callable[[str, list[int]], Iterator[Result]],
    processes: int = 1,
    minutes: float | None = None,
) -> int:
    """Does the runs that are not in the file, all seeds of a row together.

    Args:
        measure: gives what was measured, for a row and each of its seeds.
        processes: rows at once; of several, `measure` is sent to each.
        minutes: with several processes, when what still runs is stopped.

    Returns:
        How many rows failed, their errors have been printed, or were not done in time.
    """
    missing = results.missing(runs)
    names = dict.fromkeys(run["row"] for run in missing)
    jobs = [[run for run in missing if run["row"] == name] for name in names]
    if processes == 1:
        return sum(_run_row(results, own, measure) for own in jobs)
    # A process takes the memory of a GPU as it needs it, and leaves some to the others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    end = time.monotonic() + 60 * minutes if minutes else math.inf
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        # The models at the end of the tables take the longest.
        waiting = [
            pool.apply_async(_run_row, (results, own, measure)) for own in jobs[::-1]
        ]
        while time.monotonic() < end and not all(job.ready() for job in waiting):
            time.sleep(0.1)
        done = [job.get() for job in waiting if job.ready()]
    late = len(waiting) - len(done)
    if late:
        print(f"{late} rows were stopped; the same command goes on.", flush=True)
    return sum(done) + late


def _run_row(
    results: Results,
    runs: list[Result],
    measure: Callable[[str, list[int]], Iterator[Result]],
) -> bool:
    """Does the runs of one row, one a seed; whether it failed."""
    name = runs[0]["row"]
    try:
        for run, found in zip(
            runs, measure(name, [run["seed"] for run in runs]), strict=True
        ):
            results.append({**run, **found, "where": where()})
            print(
                f"{run['benchmark']}, {name}, seed {run['seed']}: GAP "
                f"{found['gap']:.3f}, {found['seconds']:.0f} s",
                flush=True,
            )
    except Exception:  # the others' turn comes all the same
        traceback.print_exc()
        print(f"{name} failed.", file=sys.stderr, flush=True)
        return True
    return False
