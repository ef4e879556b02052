"""Speed and memory of the reader, against reading one record at a time.

    python -m benchmarks.reader           # a few minutes on 2 cores, 1.5 GB of disk
    python -m benchmarks.reader --quick

Makes shards of random bytes in a temporary folder, their lengths distributed as in the
dataset, and reads them several times over, every batch consumed, checksums verified.
The variants take turns, so that whatever else the machine does meets all of them. The
raw rate is that of `TFRecordDataset` alone, its records only put into batches.
Prints a Markdown table of medians.
"""

import argparse
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from yt8m import schema  # noqa: E402
from yt8m.config import DataConfig, FrameSelection  # noqa: E402
from yt8m.data.pipeline import Reader  # noqa: E402
from yt8m.data.predictions import PredictionsWriter  # noqa: E402
from yt8m.data.records import (  # noqa: E402
    encode_frame_record,
    encode_video_record,
    write_records,
)
from yt8m.data.soft_labels import SoftLabels  # noqa: E402
from yt8m.data.synthetic import draw_length  # noqa: E402

FRAMES = DataConfig("frame", schema.FRAME_FEATURES)
SOME_FRAMES = DataConfig("frame", schema.FRAME_FEATURES, frames=FrameSelection(30))
VIDEOS = DataConfig("video", schema.VIDEO_FEATURES)
BATCH_SIZE = {"frame": 128, "video": 1024}
WINDOW = {"frame": 1024, "video": 16384}
_SOFT_CLASSES = 100  # of each video, as `inference.py` stores them


def make_shards(folder: pathlib.Path, level: str, shards: int, records: int):
    """Writes shards of random features and their soft labels; returns their paths."""
    rng = np.random.default_rng(0)
    features = schema.FRAME_FEATURES if level == "frame" else schema.VIDEO_FEATURES
    # Slices of one noise, since drawing it anew would take most of the time.
    noise = {
        name: rng.integers(0, 256, (1000, size), np.uint8)
        if level == "frame"
        else rng.normal(size=(1000, size)).astype(np.float32)
        for name, size in features.items()
    }

    def encode(shard: int) -> Iterator[bytes]:
        for number in range(shard * records, (shard + 1) * records):
            labels = sorted(rng.integers(0, schema.NUM_CLASSES, 3).tolist())
            start = int(rng.integers(0, 600))
            if level == "frame":
                end = start + draw_length(rng, schema.MAX_FRAMES)
                cut = {name: values[start:end] for name, values in noise.items()}
                yield encode_frame_record(_id(number), cut, labels)
            else:
                # Turned, so that no two videos are alike.
                cut = {name: np.roll(v[start], number) for name, v in noise.items()}
                yield encode_video_record(_id(number), cut, labels)

    paths = [str(folder / f"{level}{shard:02d}.tfrecord") for shard in range(shards)]
    for shard, path in enumerate(paths):
        write_records(path, encode(shard))
    with PredictionsWriter(
        _soft_labels(paths), schema.NUM_CLASSES, _SOFT_CLASSES
    ) as writer:
        for shard in range(shards):
            numbers = range(shard * records, (shard + 1) * records)
            scores = rng.random((records, schema.NUM_CLASSES), np.float32)
            writer.write([_id(number).encode() for number in numbers], scores)
    return paths


def _id(number: int) -> str:
    return f"{number:06d}"


def _soft_labels(paths: list[str]) -> str:
    """Where the soft labels of the shards' videos are."""
    return f"{os.path.dirname(paths[0])}/{len(paths)}.predictions"


def raw(paths: list[str], level: str, passes: int) -> int:
    dataset = tf.data.TFRecordDataset(paths).repeat(passes)
    return sum(len(batch) for batch in dataset.batch(BATCH_SIZE[level]))


def one_at_a_time(paths: list[str], level: str, passes: int) -> int:
    """The usual way: each record parsed by itself, to float32, padded to 300 frames."""
    context = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "labels": tf.io.VarLenFeature(tf.int64),
    }

    def finish(parsed, features):
        labels = tf.sparse.to_indicator(parsed["labels"], schema.NUM_CLASSES)
        return parsed["id"], tf.concat(features, axis=-1), labels

    def parse_frames(record):
        spec = {
            name: tf.io.FixedLenSequenceFeature([], tf.string)
            for name in schema.FRAME_FEATURES
        }
        parsed, frames = tf.io.parse_single_sequence_example(record, context, spec)
        features = []
        for name, size in schema.FRAME_FEATURES.items():
            decoded = tf.io.decode_raw(frames[name], tf.uint8)[: schema.MAX_FRAMES]
            decoded = tf.cast(tf.reshape(decoded, [-1, size]), tf.float32)
            missing = schema.MAX_FRAMES - tf.shape(decoded)[0]
            features.append(tf.pad(decoded, [[0, missing], [0, 0]]))
        return finish(parsed, features)

    def parse_video(record):
        spec = {
            name: tf.io.FixedLenFeature([size], tf.float32)
            for name, size in schema.VIDEO_FEATURES.items()
        }
        parsed = tf.io.parse_single_example(record, context | spec)
        return finish(parsed, [parsed[name] for name in schema.VIDEO_FEATURES])

    dataset = tf.data.Dataset.from_tensor_slices(paths).repeat(passes)
    dataset = dataset.interleave(
        tf.data.TFRecordDataset, cycle_length=8, num_parallel_calls=tf.data.AUTOTUNE
    )
    dataset = dataset.shuffle(WINDOW[level], seed=0).map(
        parse_frames if level == "frame" else parse_video,
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    dataset = dataset.batch(BATCH_SIZE[level]).prefetch(2)
    return sum(len(ids) for ids, _, _ in dataset)


def ours(
    config: DataConfig, seed: int | None, taught: bool = False
) -> Callable[..., int]:
    def read(paths: list[str], level: str, passes: int) -> int:
        teacher = None
        if taught:
            teacher = SoftLabels(_soft_labels(paths), schema.NUM_CLASSES)
        reader = Reader(
            paths,
            config,
            batch_size=BATCH_SIZE[level],
            seed=seed,
            num_epochs=passes,
            shuffle_window=WINDOW[level],
            soft_labels=teacher,
        )
        return sum(len(host["id"]) for _, host in reader.dataset())

    return read


VARIANTS = {
    "frame": {
        "raw records": raw,
        "one at a time, float32, shuffled": one_at_a_time,
        "**this reader, shuffled**": ours(FRAMES, seed=0),
        "this reader, shuffled, with soft labels": ours(FRAMES, seed=0, taught=True),
        "this reader, in file order": ours(FRAMES, seed=None),
        "this reader, 30 random frames, shuffled": ours(SOME_FRAMES, seed=0),
    },
    "video": {
        "raw records": raw,
        "one at a time, shuffled": one_at_a_time,
        "**this reader, shuffled**": ours(VIDEOS, seed=0),
        "this reader, shuffled, with soft labels": ours(VIDEOS, seed=0, taught=True),
        "this reader, in file order": ours(VIDEOS, seed=None),
    },
}


def measure(paths: list[str], level: str, passes: int, rounds: int) -> None:
    ours_first = VARIANTS[level]["**this reader, shuffled**"]
    ours_first(paths, level, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS[level]}
    for _ in range(rounds):
        for name, variant in VARIANTS[level].items():
            start = time.perf_counter()
            count = variant(paths, level, passes)
            rates[name].append(count / (time.perf_counter() - start))
    print(
        f"\n{level.capitalize()} level, batches of {BATCH_SIZE[level]}, "
        f"{os.cpu_count()} cores, {rounds} rounds; peak memory of the process that "
        f"ran this reader alone: {peak:.2f} GB\n"
    )
    print("| reader | videos/s | lowest - highest | of raw | of one at a time |")
    print("| --- | ---: | ---: | ---: | ---: |")
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    raw_rate, baseline = list(medians.values())[:2]
    for name, median in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(
            f"| {name} | {median:,.0f} | {low:,.0f} - {high:,.0f} | "
            f"{median / raw_rate:.2f} | {median / baseline:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds")
    parser.add_argument("--level", choices=["frame", "video"], help="only this level")
    args = parser.parse_args()
    # Video level first: its peak of memory is the smaller one.
    sizes = {"video": (64, 1024, 4), "frame": (16, 256, 2)}
    if args.quick:
        sizes = {"video": (64, 1024, 1), "frame": (16, 256, 1)}
    with tempfile.TemporaryDirectory() as folder:
        for level, (shards, records, passes) in sizes.items():
            if args.level in (None, level):
                paths = make_shards(pathlib.Path(folder), level, shards, records)
                measure(paths, level, passes, 3 if args.quick else 7)


if __name__ == "__main__":
    main()
