"""Speed of segment inference, against the same model on segments cut beforehand.

    python -m benchmarks.segment_inference   # minutes, 0.7 GB of disk
    python -m benchmarks.segment_inference --quick

Makes shards of random bytes, their lengths distributed as in the dataset, and ranks all
segments of them for 1,000 classes, of each the best 60th, as the challenge took 100,000
of millions: start-up, reading, cutting, the model, ranking and writing the CSV. The
baseline is the model alone on the same windows, which lie cut in memory, as many at a
time. The two take turns, so that whatever else the machine does meets both. The last
rows have overlapping segments and shifted windows: of the windows that these name, the
different ones are computed. Prints a Markdown table of medians.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from yt8m import registry, runs, schema  # noqa: E402
from yt8m.config import DataConfig  # noqa: E402
from yt8m.data.pipeline import Reader  # noqa: E402
from yt8m.data.records import encode_frame_record, write_records  # noqa: E402
from yt8m.data.synthetic import draw_length  # noqa: E402
from yt8m.distribution import EachReplica  # noqa: E402
from yt8m.inference import predict  # noqa: E402
from yt8m.inference.segments import SegmentRanking  # noqa: E402
from yt8m.inference.windows import SegmentOptions, plan_segments  # noqa: E402
from yt8m.progress import Progress  # noqa: E402

CHUNK = 512  # windows at a time, as in `predict_segments`
OPTIONS = {
    "every 5 s": SegmentOptions(),
    "shifts -2 .. 2": SegmentOptions(shifts=(-2, -1, 0, 1, 2)),
    "stride 1, shifts -2 .. 2": SegmentOptions(stride=1, shifts=(-2, -1, 0, 1, 2)),
}


# The cheapest model there is, which leaves everything else little time, and another;
# arguments and videos.
MODELS = {
    "FrameLevelLogisticModel": ({}, 2400),
    "NetVLADModel": ({"clusters": 32, "hidden_size": 256}, 160),
}
SHARDS = 4
LISTED_OF = 60  # segments one is listed, as 100,000 of 6 million


def write_shards(folder: str, shards: int, videos: int) -> list[str]:
    """Writes shards of as many videos each, of random bytes; gives their paths."""
    rng = np.random.default_rng(0)
    # Slices of one noise, since drawing it anew would take most of the time.
    noise = {
        name: rng.integers(0, 256, (1000, size), np.uint8)
        for name, size in schema.FRAME_FEATURES.items()
    }

    def record(shard: int, number: int) -> bytes:
        start = int(rng.integers(0, 600))
        end = start + draw_length(rng, schema.MAX_FRAMES)
        cut = {name: values[start:end] for name, values in noise.items()}
        return encode_frame_record(f"{shard:02d}{number:04d}", cut, None)

    paths = [os.path.join(folder, f"{shard}.tfrecord") for shard in range(shards)]
    for shard, path in enumerate(paths):
        write_records(path, (record(shard, number) for number in range(videos)))
    return paths


class Bench:
    """A model, shards, and the windows of the shards in memory.

    Attributes:
        num_frames: of each video, int32 [N].
    """

    def __init__(self, name: str, args: dict, paths: list[str], classes: int):
        self.model = registry.create(
            name, num_classes=classes, features=schema.FRAME_FEATURES, **args
        ).ensure_built()
        self.classes = np.arange(min(1000, classes))
        self.paths = paths
        self.data = DataConfig("frame", schema.FRAME_FEATURES, num_classes=classes)
        self.precut: list[dict[str, tf.Tensor]] = []
        lengths = []
        for batch, _ in self.reader().batches():
            videos = predict.model_inputs(self.model, batch)
            lengths.append(batch["num_frames"].numpy())
            windows = plan_segments(lengths[-1], SegmentOptions()).windows
            for first in range(0, len(windows), CHUNK):
                some = windows[first : first + CHUNK]
                columns = map(tf.constant, (some.rows, some.starts, some.lengths))
                self.precut.append(predict.gather_windows(videos, *columns))
        self.num_frames = np.concatenate(lengths)
        self.score = EachReplica(predict.segment_function(self.model, self.classes))

    def reader(self) -> Reader:
        return Reader(self.paths, self.data, batch_size=128)

    def alone(self) -> None:
        """The model on the windows in memory."""
        for _, logits in self.score.map((None, chunk) for chunk in self.precut):
            logits.numpy()

    def end_to_end(self, options: SegmentOptions) -> None:
        """Everything."""
        segments = len(plan_segments(self.num_frames, options).segments)
        ranking = SegmentRanking(self.classes, limit=max(segments // LISTED_OF, 1))
        progress = Progress(stream=io.StringIO())
        predict.predict_segments(
            self.model, self.reader(), ranking, options=options, progress=progress
        )
        with tempfile.TemporaryDirectory() as folder:
            ranking.write_csv(os.path.join(folder, "segments.csv"))


def seconds(work: Callable[..., None], *arguments) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def measure(bench: Bench, name: str, rounds: int) -> None:
    """Prints the rows of a model."""
    bench.alone()  # traced
    alone, whole = [], {title: [] for title in OPTIONS}
    for number in range(rounds):
        alone.append(seconds(bench.alone))
        # Once will do for those of five times as many windows.
        for title, options in list(OPTIONS.items())[: 1 if number else None]:
            whole[title].append(seconds(bench.end_to_end, options))
    plans = {title: plan_segments(bench.num_frames, o) for title, o in OPTIONS.items()}
    count = len(plans["every 5 s"].windows)
    rate = count / median(alone)
    print(f"| `{name}` alone | {count:,} | {count:,} | {count:,} | {rate:,.0f} | 1 |")
    for title, times in whole.items():
        plan = plans[title]
        # Each round's own ratio: what else the machine does meets both of its numbers.
        shares = [
            len(plan.windows) / t / (count / a)
            for t, a in zip(times, alone, strict=False)
        ]
        print(
            f"| {title} | {len(plan.segments):,} | {plan.members.size:,} | "
            f"{len(plan.windows):,} | {len(plan.windows) / median(times):,.0f} | "
            f"{median(shares):.2f} ({min(shares):.2f} - {max(shares):.2f}) |",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run")
    args = parser.parse_args(arguments)
    rounds, classes = (1, 20) if args.quick else (3, schema.NUM_CLASSES)
    runs.load_registries()
    print(
        f"{classes:,} classes, {os.cpu_count()} cores, load average before the run "
        f"{os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| what | segments | their windows | computed | windows/s | of the model "
        "alone |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, (model_args, videos) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write_shards(folder, SHARDS, 2 if args.quick else videos // SHARDS)
            measure(Bench(name, model_args, paths, classes), name, rounds)


if __name__ == "__main__":
    main()
