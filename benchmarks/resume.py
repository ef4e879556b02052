"""Time to open and to resume an epoch of many shards, against reading up to there.

    python -m benchmarks.resume            # 4,000 shards of 30 records; a minute
    python -m benchmarks.resume --quick    # 400 shards

Makes tiny shards in a temporary folder, so that what is timed is the cost of a file,
not of its bytes, and prints a Markdown table of seconds. A resumed run lists and checks
its files, takes the counts of their records from `records.json`, and waits for its
first batch; the baseline takes all batches up to the one in the middle of the epoch.
"""

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from yt8m.config import DataConfig, FrameSelection  # noqa: E402
from yt8m.data.files import check_files, list_files  # noqa: E402
from yt8m.data.index import RecordIndex  # noqa: E402
from yt8m.data.pipeline import Reader  # noqa: E402
from yt8m.data.records import (  # noqa: E402
    encode_frame_record,
    encode_video_record,
    write_records,
)

BATCH_SIZE = 128
CONFIGS = {
    "video": DataConfig("video", {"mean_rgb": 16}, 10),
    "frame": DataConfig("frame", {"rgb": 16}, 10, frames=FrameSelection(3)),
}


def make_shards(folder: str, level: str, shards: int, records: int) -> list[str]:
    files = []
    for shard in range(shards):
        names = [f"{shard}-{number}" for number in range(records)]
        if level == "video":
            mean = np.ones(16, np.float32)
            encoded = [encode_video_record(n, {"mean_rgb": mean}, [1]) for n in names]
        else:
            rgb = np.ones((6, 16), np.uint8)
            encoded = [encode_frame_record(n, {"rgb": rgb}, [1]) for n in names]
        files.append(f"{folder}/{shard:05d}.tfrecord")
        write_records(files[-1], encoded)
    return files


def measure(folder: str, level: str, shards: int, records: int) -> dict[str, float]:
    """Seconds of each thing, by its name."""
    files = make_shards(folder, level, shards, records)
    config, cache = CONFIGS[level], f"{folder}/records.json"
    last = shards * records // BATCH_SIZE - 1
    list(tf.data.Dataset.range(1))  # TensorFlow's own start

    def reader(seed: int | None) -> Reader:
        """As a resumed process makes it: nothing is known but the cache."""
        index = RecordIndex(cache)
        return Reader(files, config, batch_size=BATCH_SIZE, seed=seed, index=index)

    actions: dict[str, Callable[[], Any]] = {
        "list the files": lambda: list_files(f"{folder}/*.tfrecord", "--data"),
        "check them": lambda: check_files(files, config),
        "count the records": lambda: RecordIndex(cache).counts(files),
        "the same from `records.json`": lambda: RecordIndex(cache).counts(files),
    }
    for order, seed in (("shuffled", 1), ("file order", None)):
        for start in (0, last // 2, last):
            actions[f"first batch from {start}, {order}"] = functools.partial(
                lambda start, seed: next(iter(reader(seed).dataset(start))), start, seed
            )
    actions[f"baseline: batches 0 to {last // 2}, shuffled"] = lambda: list(
        reader(1).dataset().take(last // 2 + 1)
    )
    return {name: timed(action) for name, action in actions.items()}


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shards", type=int, default=4000)
    parser.add_argument("--records", type=int, default=30)
    arguments = parser.parse_args()
    shards, records = arguments.shards, arguments.records
    if arguments.quick:
        shards = 400
    results = {}
    for level in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            results[level] = measure(folder, level, shards, records)
    print(f"\n{shards:,} shards of {records} records, {os.cpu_count()} cores\n")
    print("| seconds | video level | frame level |\n|---|---|---|")
    for name, value in results["video"].items():
        print(f"| {name} | {value:.2f} | {results['frame'][name]:.2f} |")


if __name__ == "__main__":
    main()
