"""Runs the stages one after the other and reports them."""

import argparse
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import pathlib
import platform
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

from benchmarks import reader as reader_benchmark
from benchmarks.__main__ import PRECISIONS, cpu_name
from benchmarks.stages import loops, report, training
from benchmarks.stages.timing import Row
from benchmarks.zoo.plots import check_installed
from yt8m import runs
from yt8m.cli.main import command_names
from yt8m.errors import UserError, near_matches

# Shards and records of each level.
_SHARDS = {"video": (48, 1024), "frame": (16, 256)}
_QUICK_SHARDS = {"video": (2, 64), "frame": (2, 8)}


def run(options: argparse.Namespace) -> None:
    """Measures what `options` say and prints it.

    Raises:
        UserError: an unknown stage or precision, no rounds, a page that cannot be
            written into, or a device that is not there.
    """
    stages = _known("stages", options.stages, report.STAGES)
    precisions = _known("precisions", options.precisions, PRECISIONS)
    if options.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {options.rounds}.")
    # Before an hour of measurements, not after.
    if options.output:
        report.read_page(pathlib.Path(options.output))
        if not options.noplot:
            check_installed()
    device = options.device.upper()
    if not tf.config.list_physical_devices(device):
        raise UserError(
            f"--device={options.device}: tensorflow {tf.__version__} sees none here; "
            "try --backend=jax, or --device=cpu."
        )
    runs.load_registries()
    rows = []
    with tempfile.TemporaryDirectory() as folder, _on_device(options):
        flops, copies = loops.gflops(), loops.copy_gigabytes()
        lines = [
            f"{_device_name(device)}; tensorflow {tf.__version__}, Keras "
            f"{keras.__version__}, Python {platform.python_version()}. Load average "
            f"before the run {os.getloadavg()[0]:.1f}. float32 products of 2,048 x "
            f"2,048 matrices: {flops:,.0f} GFLOP/s; copies within the host's memory, "
            f"read and written: {copies:.1f} GB/s.",
            "",
            report.HEADER,
        ]
        print("\n".join(lines), flush=True)
        job = _Job(options, folder, flops, precisions, _make_shards(folder, options))
        for row in (row for stage in stages for row in _rows(stage, job)):
            if options.quick:  # which says nothing
                row = dataclasses.replace(row, bar=None, least=None, most=None)
            rows.append(row)
            print(report.line(row), flush=True)
    if options.output:
        path = pathlib.Path(options.output)
        table = "\n".join([*lines, *map(report.line, rows)])
        report.write(path, table, [] if options.noplot else rows)
        print(f"\nWritten to {path}.")


def _known(flag: str, value: str | None, known: tuple[str, ...]) -> list[str]:
    wanted = value.split(",") if value else list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"--{flag}: unknown {name}. {near_matches(name, known)}")
    return wanted


def _device_name(device: str) -> str:
    if device == "CPU":
        return cpu_name()
    gpu = tf.config.list_physical_devices(device)[0]
    return tf.config.experimental.get_device_details(gpu).get("device_name", device)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What every stage gets.

    Attributes:
        folder: for what is written.
        flops: float32 GFLOP/s of the machine.
        paths: the shards of each level.
    """

    options: argparse.Namespace
    folder: str
    flops: float
    precisions: list[str]
    paths: dict[str, list[str]]


def _make_shards(folder: str, options: argparse.Namespace) -> dict[str, list[str]]:
    return {
        level: reader_benchmark.make_shards(pathlib.Path(folder), level, *size)
        for level, size in (_QUICK_SHARDS if options.quick else _SHARDS).items()
    }


def _rows(stage: str, job: _Job) -> Iterator[Row]:
    """The rows of a stage, measured in a process of its own.

    TensorFlow keeps much of what a process has computed: all stages in one would take
    18 GB in the end.

    Raises:
        UserError: the stage could not be measured.
    """
    if job.options.quick:
        yield from _measure(stage, job)
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_rows, args=(stage, job, theirs))
    process.start()
    theirs.close()
    try:
        while isinstance(row := ours.recv(), Row):
            yield row
    except EOFError:
        row = UserError(f"The process of the stage {stage} was ended.")
    finally:
        process.join()
    if row:
        raise row


def _send_rows(stage: str, job: _Job, pipe: Connection) -> None:
    """Sends rows, then None, or a `UserError` if there is one."""
    runs.load_registries()
    # Warnings would stand between the rows: of the products' many shapes, and of videos
    # that are read several times.
    tf.get_logger().setLevel("ERROR")
    logging.getLogger("yt8m").setLevel("ERROR")
    try:
        with _on_device(job.options):
            for row in _measure(stage, job):
                pipe.send(row)
        pipe.send(None)
    except UserError as e:
        pipe.send(e)


def _on_device(options: argparse.Namespace) -> contextlib.AbstractContextManager:
    if options.device == "cpu":
        return tf.device("/cpu:0")
    for gpu in tf.config.list_physical_devices("GPU"):
        # Each process leaves room for the others.
        tf.config.experimental.set_memory_growth(gpu, True)
    return contextlib.nullcontext()


def _measure(stage: str, job: _Job) -> Iterator[Row]:
    options, folder, paths = job.options, job.folder, job.paths
    rounds, quick = 1 if options.quick else options.rounds, options.quick
    speed = job.flops / loops.STARTER_GFLOPS
    cases = [training.quick(c) if quick else c for c in training.CASES]
    commands = command_names()[:2] if quick else command_names()
    measured = {
        "readers": lambda: loops.measure_readers(paths, rounds),
        "steps": lambda: training.measure_steps(cases, job.precisions, rounds, quick),
        "training": lambda: training.measure_with_input(
            paths["frame"], rounds, 8 if quick else 128
        ),
        "loops": lambda: loops.measure_loops(paths, folder, rounds, speed),
        "metrics": lambda: loops.measure_metrics(rounds, 1024 if quick else 32_768),
        "segments": lambda: loops.measure_segments(folder, rounds, quick),
        "memory": lambda: loops.measure_memory(
            paths["frame"], folder, 8 if quick else 1024
        ),
        "growth": lambda: loops.measure_growth(
            folder, *((3, 8) if quick else (4000, 256))
        ),
        "startup": lambda: loops.measure_start_up(commands),
    }
    yield from measured[stage]()
