"""Speed of each stage of a run, against what bounds it on the same machine.

    python -m benchmarks                              # what else there is
    python -m benchmarks --device=cpu                 # half an hour on two cores
    python -m benchmarks --device=cpu --stages=steps  # some of it
    python -m benchmarks --device=gpu                 # the same on a GPU
    python -m benchmarks --device=gpu --backend=jax   # where only JAX has the GPU
    python -m benchmarks --device=cpu --quick         # tiny sizes: does it run?

Makes its own shards. What is compared takes turns, so that whatever else the machine
does meets all of it. Prints a Markdown table of medians, and with `--output` writes it
and its plot. With `--backend=jax`, which has no readers, it times the steps of
`NetVLADModel` and `DbofModel` alone.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import os
import pathlib
import platform
import re
import sys
from statistics import median

from yt8m.errors import UserError

PRECISIONS = ("bfloat16", "float32")


def list_benchmarks() -> None:
    """Prints each benchmark's command and first line."""
    for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py")):
        if path.stem != "device":
            summary = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
            print(f"python -m benchmarks.{path.stem:<20}{summary}")
    print(f"python -m benchmarks --device=gpu  {__doc__.splitlines()[0]}")


def cases(device: str, quick: bool) -> list:
    """What is measured: the recipes willow_netvlad and starter_dbof."""
    from benchmarks.device import Case

    if quick:
        args = {"num_classes": 20, "features": {"rgb": 16, "audio": 8}}
        args |= {"clusters": 4, "hidden_size": 8}
        effort = {"matrix": 64, "pool": 2, "rounds": 2, "seconds": 0}
        return [Case(m, args, 4, 6, **effort) for m in ("NetVLADModel", "DbofModel")]
    if device == "gpu":
        videos = 80, 1024
        effort = {"matrix": 8192, "pool": 8, "rounds": 7, "seconds": 2}
    else:  # fewer videos a step, since a few cores take long
        videos = 16, 64
        effort = {"matrix": 2048, "pool": 2, "rounds": 5, "seconds": 4}
    netvlad = {"clusters": 256, "hidden_size": 1024, "num_mixtures": 2}
    dbof = {"clusters": 8192, "hidden_size": 1024, "num_mixtures": 2}
    return [
        Case("NetVLADModel", netvlad, videos[0], 300, **effort),
        Case("DbofModel", dbof, videos[1], 30, **effort),
    ]


def digits(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def print_table(engine, case, precision: str) -> None:
    """Measures a model and prints its table."""
    from benchmarks.device import measure, training_flops

    model, size, rates = measure(engine, case, precision)
    flops = training_flops(model, case.frames) * case.videos
    product = 2 * case.matrix**3
    print(
        f"\n`{case.model}`, {precision}, {model.count_params():,} weights. A step "
        f"takes {case.videos} videos of {case.frames} frames, {digits(size / 1e6)} MB, "
        f"and {digits(flops / 1e9)} GFLOP of matrix products.\n"
    )
    print("| what | median | lowest - highest | of the products' | of the copies' |")
    print("| --- | ---: | ---: | ---: | ---: |")
    # Each round's own ratio: what else the machine does meets both of its numbers.
    by_product = flops / (product * rates["matmul"])
    shares = {
        "resident": [rates["resident"] * by_product],
        "streaming": [
            rates["streaming"] * by_product,
            rates["streaming"] / rates["copy"],
        ],
    }
    matrix = f"{case.matrix} x {case.matrix}"
    rows = {
        "matmul": (f"products of {matrix} matrices, TFLOP/s", product / 1e12),
        "copy": ("copies of a batch, GB/s", size / 1e9),
        "resident": ("data on the device, videos/s", case.videos),
        "streaming": ("data from the host, videos/s", case.videos),
    }
    for name, (label, unit) in rows.items():
        values = rates[name] * unit
        spread = f"{digits(values.min())} - {digits(values.max())}"
        cells = [label, digits(median(values.tolist())), spread]
        cells += [f"{median(x.tolist()):.2g}" for x in shares.get(name, [])]
        cells += [""] * (5 - len(cells))
        print(f"| {' | '.join(cells)} |", flush=True)


def cpu_name() -> str:
    """The processor's name, where Linux tells it, and the number of cores."""
    names = [platform.machine()]
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        names += re.findall(r"^model name\s*: (.+)", text, re.M)[:1]
    return f"{names[-1]}, {os.cpu_count()} cores"


def run_steps_on_jax(device: str, quick: bool) -> None:
    if importlib.util.find_spec("jax") is None:
        raise UserError("--backend=jax: jax is not installed here.")
    os.environ["KERAS_BACKEND"] = "jax"  # Keras reads it when it is imported
    import keras

    from benchmarks.device import JaxEngine

    version = f"jax {importlib.import_module('jax').__version__}"
    try:
        engine = JaxEngine(device)
    except RuntimeError as e:
        raise UserError(
            f"--device={device}: {version} sees none here; try --device=cpu."
        ) from e
    name = engine.device_name if engine.on_gpu else cpu_name()
    print(
        f"{name}; {version}, Keras {keras.__version__}, Python "
        f"{platform.python_version()}."
    )
    with engine.scope:
        for case in cases(device, quick):
            for precision in PRECISIONS:
                print_table(engine, case, precision)


def main(arguments: list[str]) -> int:
    if not arguments:
        list_benchmarks()
        return 0
    from benchmarks.stages.report import STAGES

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument(
        "--backend", choices=("tensorflow", "jax"), default="tensorflow"
    )
    parser.add_argument(
        "--stages", help=f"some of {', '.join(STAGES)}, separated by commas"
    )
    parser.add_argument("--precisions", default=",".join(PRECISIONS[::-1]))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="a Markdown file to write, the plot beside it")
    parser.add_argument("--noplot", action="store_true", help="without the plot")
    parser.add_argument("--quick", action="store_true", help="tiny: does it run?")
    options = parser.parse_args(arguments)
    try:
        if options.backend == "jax":
            run_steps_on_jax(options.device, options.quick)
        else:
            from benchmarks.stages.run import run

            run(options)
    except UserError as e:
        print(f"benchmarks: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
