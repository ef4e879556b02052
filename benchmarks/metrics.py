"""Speed and memory of the evaluation metrics, against a loop in plain Python.

    python -m benchmarks.metrics          # 1.1M videos, about two minutes
    python -m benchmarks.metrics --quick

Scores are generated, so that only the metric code is timed. The baseline keeps the
habits of the starter code: a Python loop over videos, one heap of pairs for GAP and
one for each class.
"""

import argparse
import heapq
import os
import resource
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402

from yt8m import schema  # noqa: E402
from yt8m.metrics import VideoMetrics  # noqa: E402

TOP_K = 20
LABELS_PER_VIDEO = 3.0


class LoopMetrics:
    """Hit@1, PERR, GAP and the top-k mAP, video by video and pair by pair."""

    def __init__(self, num_classes: int):
        self.num_examples = 0
        self.hits = self.perrs = 0.0
        self.positives = np.zeros(num_classes, np.int64)
        self.pairs: list[tuple[float, bool]] = []
        self.class_pairs: list[list[tuple[float, bool]]] = [
            [] for _ in range(num_classes)
        ]

    def add(self, scores: np.ndarray, labels: np.ndarray) -> None:
        for row, truth in zip(scores, labels, strict=True):
            self.hits += float(truth[np.argmax(row)])
            n = int(truth.sum())
            if n:
                self.perrs += truth[np.argpartition(row, -n)[-n:]].sum() / n
            for c in np.argpartition(row, -TOP_K)[-TOP_K:]:
                pair = (-float(row[c]), bool(truth[c]))
                heapq.heappush(self.pairs, pair)
                heapq.heappush(self.class_pairs[c], pair)
            self.positives += truth
            self.num_examples += 1

    def result(self) -> dict[str, float]:
        precisions = [
            _heap_average_precision(pairs, positives)
            for pairs, positives in zip(self.class_pairs, self.positives, strict=True)
            if positives
        ]
        return {
            "hit_at_1": self.hits / self.num_examples,
            "perr": self.perrs / self.num_examples,
            "gap": _heap_average_precision(self.pairs, self.positives.sum()),
            f"map_at_{TOP_K}": sum(precisions) / len(precisions),
        }


def _heap_average_precision(heap: list[tuple[float, bool]], positives: int) -> float:
    found = total = 0.0
    for rank in range(1, len(heap) + 1):
        if heapq.heappop(heap)[1]:
            found += 1
            total += found / rank
    return total / positives


def generated_batches(
    batch_size: int, num_batches: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields logits float32 and labels uint8, both [batch_size, classes].

    One pool of videos is used again and again from another start, its logits shifted
    each time lest the same scores come back.
    """
    rng = np.random.default_rng(0)
    shape = (2 * batch_size, schema.NUM_CLASSES)
    frequency = 1 / np.arange(1, schema.NUM_CLASSES + 1)
    frequency *= LABELS_PER_VIDEO / frequency.sum()
    labels = (rng.random(shape) < frequency).astype(np.uint8)
    logits = rng.normal(-9, 2, shape).astype(np.float32)
    logits += labels * rng.normal(6, 2, shape).astype(np.float32)
    for _ in range(num_batches):
        start = int(rng.integers(batch_size))
        rows = slice(start, start + batch_size)
        yield logits[rows] + np.float32(rng.normal(0, 0.1)), labels[rows]


def measure(metrics, num_videos: int, batch_size: int) -> tuple[float, float]:
    """Videos added a second, and seconds for the final result."""
    adding = 0.0
    num_batches = -(-num_videos // batch_size)
    for logits, labels in generated_batches(batch_size, num_batches):
        start = time.perf_counter()
        metrics.add(logits, labels)
        adding += time.perf_counter() - start
    start = time.perf_counter()
    metrics.result()
    return num_batches * batch_size / adding, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run")
    parser.add_argument("--batch_size", type=int, default=1024)
    args = parser.parse_args()
    classes = schema.NUM_CLASSES
    loop_videos, many, all_videos, limit = (
        (1024, 16_384, 32_768, 8_192)
        if args.quick
        else (8_192, 262_144, 1_100_000, 50_000)
    )
    print(
        f"{classes} classes, batches of {args.batch_size}, {os.cpu_count()} cores, "
        f"load average before the run {os.getloadavg()[0]:.1f}\n"
    )
    print("| metrics | videos | videos/s | final result, s | peak memory, GB |")
    print("|---|---|---|---|---|")
    # The largest last: the peak is that of the process so far.
    for name, metrics, num_videos in (
        ("loop and heaps: Hit@1, PERR, GAP, mAP@20", LoopMetrics(classes), loop_videos),
        (
            "Hit@1, PERR, GAP, mAP@20",
            VideoMetrics(classes, TOP_K, with_map=False),
            many,
        ),
        (
            "the same and mAP by histogram",
            VideoMetrics(classes, TOP_K, exact_map_limit=limit),
            all_videos,
        ),
    ):
        speed, seconds = measure(metrics, num_videos, args.batch_size)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
        print(
            f"| {name} | {num_videos:,} | {speed:,.0f} | {seconds:.2f} | {peak:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
