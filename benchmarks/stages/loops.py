"""Reading, evaluation and inference, from shards to metrics or a CSV."""

import functools
import io
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from benchmarks import metrics as metrics_benchmark
from benchmarks import reader as reader_benchmark
from benchmarks import segment_inference
from benchmarks.stages.timing import Row, in_turn, run_process, shares
from yt8m import evaluation, registry, schema
from yt8m.config import TrainingConfig
from yt8m.data.pipeline import Reader
from yt8m.inference.predict import predict
from yt8m.inference.windows import SegmentOptions, plan_segments
from yt8m.metrics import VideoMetrics
from yt8m.progress import Progress

# What the starter code did on a machine whose float32 products ran at this rate.
STARTER_GFLOPS = 479
_STARTER = {"video evaluation": 2800, "video inference": 13_000}
_STARTER |= {"frame inference": 800}

_MODELS = {"video": "LogisticModel", "frame": "FrameLevelLogisticModel"}
# The loop is measured, and to trace a model takes as long as 5,000 videos. Evaluation
# sees no more than it keeps all scores of.
_PASSES = {
    "video": {"evaluate": 1, "infer": 3, "read": 3},
    "frame": {"evaluate": 8, "infer": 8, "read": 3},
}
_CONFIGS = {"video": reader_benchmark.VIDEOS, "frame": reader_benchmark.FRAMES}


def gflops(size: int = 2048) -> float:
    """The rate of products of square matrices in float32."""
    matrix = tf.random.stateless_normal((size, size), (0, 0))
    multiply = tf.function(lambda x: tf.matmul(x, x), autograph=False)

    def run() -> float:
        for _ in range(10):
            result = multiply(matrix)
        result.numpy()
        return 10 * 2 * size**3 / 1e9

    return float(np.median(in_turn({"": run}, 3)[""]))


def copy_gigabytes() -> float:
    """The rate of copies within the memory, read and written."""
    source = np.ones(1 << 28, np.uint8)
    target = source.copy()

    def run() -> float:
        np.copyto(target, source)
        return 2 * source.nbytes / 1e9

    return float(np.median(in_turn({"": run}, 5)[""]))


def measure_readers(paths: dict[str, list[str]], rounds: int) -> Iterator[Row]:
    """The readers, shuffled, against the raw records of the same files."""
    some_frames = reader_benchmark.SOME_FRAMES
    wanted = {
        "frame reader, all frames, shuffled": ("frame", reader_benchmark.FRAMES, 0.5),
        "frame reader, 30 frames, shuffled": ("frame", some_frames, 0.55),
        "video reader, shuffled": ("video", reader_benchmark.VIDEOS, 0.6),
    }
    for stage, (level, config, bar) in wanted.items():
        files = paths[level]
        ours = reader_benchmark.ours(config, seed=0)
        # Several passes, so that the reader's start is a small part of them.
        passes = {"frame": 2, "video": 5}[level]
        runs = {
            "raw": functools.partial(reader_benchmark.raw, files, level, passes),
            "ours": functools.partial(ours, files, level, passes),
        }
        rates = in_turn(runs, rounds)
        window = reader_benchmark.WINDOW[level]
        yield Row(
            f"{stage} (window {window:,})",
            rates["ours"],
            floor="raw records",
            shares=shares(rates["ours"], rates["raw"]),
            bar=bar,
        )


def measure_loops(
    paths: dict[str, list[str]], folder: str, rounds: int, speed: float
) -> Iterator[Row]:
    """Evaluation and inference of the cheapest model of each level.

    Args:
        speed: the machine's products against those of the starter code's.
    """
    for level, files in paths.items():
        config = _CONFIGS[level]
        size = reader_benchmark.BATCH_SIZE[level]
        model = registry.create(_MODELS[level], features=config.features)
        model.ensure_built()
        readers = {
            what: functools.partial(Reader, files * passes, config, batch_size=size)
            for what, passes in _PASSES[level].items()
        }
        output = os.path.join(folder, "submission.csv")

        def read(reader=readers["read"]) -> float:
            return sum(len(host["id"]) for _, host in reader().dataset())

        def evaluate(model=model, reader=readers["evaluate"]) -> float:
            found = evaluation.evaluate(model, reader(), TrainingConfig(""))
            return found["num_examples"]

        def infer(model=model, reader=readers["infer"], output=output) -> float:
            total = reader().num_examples
            progress = Progress(total=total, stream=io.StringIO())
            return predict(model, reader(), output, progress=progress)

        rates = in_turn({"read": read, "evaluate": evaluate, "infer": infer}, rounds)
        for name, what, times in (
            ("evaluate", f"{level} evaluation", 6.0),
            ("infer", f"{level} inference", 2.5 if level == "video" else 8.0),
        ):
            starter = _STARTER.get(what)
            words = "mAP included" if name == "evaluate" else "to CSV"
            yield Row(
                f"{what}, {_MODELS[level]}, {words}",
                rates[name],
                floor="its reader, in file order",
                shares=shares(rates[name], rates["read"]),
                bar=None if starter else 0.85,
                least=starter and times * starter * speed,
            )


def measure_metrics(rounds: int, num_videos: int) -> Iterator[Row]:
    """Metrics of logits in memory, mAP included, and their final result."""
    batches = list(metrics_benchmark.generated_batches(1024, -(-num_videos // 1024)))

    def add() -> float:
        metrics = VideoMetrics(schema.NUM_CLASSES)
        for logits, labels in batches:
            metrics.add(logits, labels)
        metrics.result()
        return sum(len(logits) for logits, _ in batches)

    def copy() -> float:
        for logits, _ in batches:
            logits.copy()
        return sum(len(logits) for logits, _ in batches)

    rates = in_turn({"copy": copy, "add": add}, rounds)
    yield Row(
        f"metrics of {len(batches) * 1024:,} videos, mAP included",
        rates["add"],
        floor="copying the logits",
        shares=shares(rates["add"], rates["copy"]),
    )


def measure_segments(folder: str, rounds: int, quick: bool) -> Iterator[Row]:
    """Segments of videos, against the model alone on windows that lie in memory."""
    classes = 20 if quick else schema.NUM_CLASSES
    shards = (2, 4) if quick else (8, 256)
    paths = segment_inference.write_shards(folder, *shards)
    bench = segment_inference.Bench("FrameLevelLogisticModel", {}, paths, classes)
    options = SegmentOptions()
    count = len(plan_segments(bench.num_frames, options).windows)

    def run(work: Callable[..., None], *arguments) -> float:
        work(*arguments)
        return count

    rates = in_turn(
        {
            "alone": functools.partial(run, bench.alone),
            "whole": functools.partial(run, bench.end_to_end, options),
        },
        rounds,
    )
    yield Row(
        "segment inference, FrameLevelLogisticModel, every 5 s, to CSV",
        rates["whole"],
        unit="windows/s",
        floor="the model on windows in memory",
        shares=shares(rates["whole"], rates["alone"]),
        bar=0.5,
    )


# --- in processes of their own -------------------------------------------------------

_COMMAND = """
import sys
from yt8m.cli.main import run
sys.exit(run(sys.argv[1], sys.argv[2:]))
"""
_GROWTH = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
from yt8m.config import DataConfig
from yt8m.data.files import list_files
from yt8m.data.pipeline import Reader
config = DataConfig("video", {"mean_rgb": 16, "mean_audio": 8}, num_classes=50)
passes = int(sys.argv[2])
reader = Reader(list_files(sys.argv[1], "pattern"), config, batch_size=1024, seed=0,
                num_epochs=passes, shuffle_window=1024)
start = time.perf_counter()
count = sum(len(host["id"]) for _, host in reader.dataset())
print(count / (time.perf_counter() - start))
"""
_IMPORT = "import tensorflow"


def measure_memory(paths: list[str], folder: str, batch_size: int) -> Iterator[Row]:
    """The peak of a training process, its shuffle window counted."""
    flags = [
        "--model=FrameLevelLogisticModel",
        f"--train_data_pattern={','.join(paths)}",
        f"--batch_size={batch_size}",
        "--max_steps=6",
        f"--train_dir={os.path.join(folder, 'memory')}",
    ]
    _, peak, _ = run_process(_COMMAND, "train", *flags)
    yield Row(
        f"peak memory, FrameLevelLogistic trained in batches of {batch_size:,}",
        [peak],
        unit="GB",
        most=2.5,
    )


def measure_growth(folder: str, shards: int, records: int) -> Iterator[Row]:
    """One shard, and as many as the dataset has, each of tiny records."""
    where = os.path.join(folder, "growth")
    os.makedirs(where)
    rng = np.random.default_rng(0)
    sizes = {"mean_rgb": 16, "mean_audio": 8}

    def encode() -> Iterator[bytes]:
        for number in range(records):
            features = {n: rng.normal(size=s).astype("f") for n, s in sizes.items()}
            yield reader_benchmark.encode_video_record(f"{number:04d}", features, [1])

    first = os.path.join(where, "0000.tfrecord")
    reader_benchmark.write_records(first, encode())
    for number in range(1, shards):
        os.link(first, os.path.join(where, f"{number:04d}.tfrecord"))
    # As many records in all.
    several = {1: (first, shards), shards: (os.path.join(where, "*"), 1)}
    rates, peaks = {}, {}
    for count, (pattern, passes) in several.items():
        _, peaks[count], said = run_process(_GROWTH, pattern, str(passes))
        rates[count] = float(said)
    for what, found, unit in (
        ("video reader", rates, "videos/s"),
        ("its peak memory", peaks, "GB"),
    ):
        yield Row(
            f"{what}, {shards:,} tiny shards",
            [found[shards]],
            unit=unit,
            floor="the same records from one shard",
            shares=[found[shards] / found[1]],
        )


def measure_start_up(commands: list[str]) -> Iterator[Row]:
    """Seconds to a command's help, and how much longer than TensorFlow's import."""
    floor, _, _ = run_process(_IMPORT)
    found = {}
    for command in commands:
        found[command], _, _ = run_process(_COMMAND, command, "--help")
    slowest = max(found, key=found.get)
    yield Row(
        f"start-up of {len(found)} commands, slowest {slowest}",
        list(found.values()),
        unit="s",
        floor="`import tensorflow`",
        shares=[value / floor for value in found.values()],
    )
