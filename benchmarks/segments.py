"""Speed and memory of the ranking of segments, against heaps in plain Python.

    python -m benchmarks.segments          # 6M segments, 1,000 classes; minutes
    python -m benchmarks.segments --quick

Scores are generated, so that only the ranking is timed; making them is timed apart.
The baseline has one heap of pairs for each class, as the starter code has: of each
segment for its 20 best classes, and for all classes, which alone gives the ranking that
was asked for.
"""

import argparse
import heapq
import os
import resource
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402

from yt8m import schema  # noqa: E402
from yt8m.inference.segments import SegmentRanking, merge_rankings  # noqa: E402

TOP_K = 20
SEGMENTS_PER_VIDEO = 50
VIDEOS_PER_BATCH = 200

Batch = tuple[list[bytes], np.ndarray, np.ndarray, np.ndarray]


class HeapRanking:
    """The best segments of each class, from the `top_k` classes of each segment."""

    def __init__(self, num_classes: int, limit: int, top_k: int):
        self.limit, self.top_k = limit, top_k
        self.heaps: list[list[tuple[float, str]]] = [[] for _ in range(num_classes)]

    def add(
        self,
        video_ids: list[bytes],
        rows: np.ndarray,
        starts: np.ndarray,
        logits: np.ndarray,
    ) -> None:
        for row, start, scores in zip(rows, starts, logits, strict=True):
            name = f"{video_ids[row].decode()}:{start}"
            for c in np.argpartition(scores, -self.top_k)[-self.top_k :]:
                pair = (float(scores[c]), name)
                if len(self.heaps[c]) < self.limit:
                    heapq.heappush(self.heaps[c], pair)
                else:
                    heapq.heappushpop(self.heaps[c], pair)

    def write_csv(self, path: str) -> None:
        with open(path, "w") as file:
            file.write("Class,Segments\n")
            for c, heap in enumerate(self.heaps):
                names = [name for _, name in sorted(heap, reverse=True)]
                file.write(f"{c},{' '.join(names)}\n")


def generated_batches(num_segments: int, num_classes: int) -> Iterator[Batch]:
    """Yields ids, rows, starts and logits float32 [10,000, classes].

    One pool of segments is used again and again from another start, its logits shifted
    and stretched each time lest the same scores come back.
    """
    rng = np.random.default_rng(0)
    size = VIDEOS_PER_BATCH * SEGMENTS_PER_VIDEO
    pool = rng.normal(-6, 2, (2 * size, num_classes)).astype(np.float32)
    rows = np.repeat(np.arange(VIDEOS_PER_BATCH), SEGMENTS_PER_VIDEO)
    starts = np.tile(np.arange(SEGMENTS_PER_VIDEO), VIDEOS_PER_BATCH)
    for batch in range(num_segments // size):
        first = int(rng.integers(size))
        ids = [
            b"%04x" % (batch * VIDEOS_PER_BATCH + i) for i in range(VIDEOS_PER_BATCH)
        ]
        logits = pool[first : first + size] * np.float32(rng.normal(1, 0.02))
        logits += np.float32(rng.normal(0, 0.1))
        yield ids, rows, starts * schema.SEGMENT_FRAMES, logits


def measure(ranking, num_segments: int, num_classes: int, path: str) -> list[float]:
    """Seconds for making the scores, adding them, and writing the file."""
    making = adding = 0.0
    last = time.perf_counter()
    for batch in generated_batches(num_segments, num_classes):
        made = time.perf_counter()
        ranking.add(*batch)
        making, adding, last = (
            making + made - last,
            adding + time.perf_counter() - made,
            time.perf_counter(),
        )
    ranking.write_csv(path)
    return [making, adding, time.perf_counter() - last]


def peak_memory() -> float:
    """GB, of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run")
    args = parser.parse_args()
    few, many = (10_000, 200_000) if args.quick else (20_000, 6_000_000)
    limit, classes = schema.MAX_SEGMENTS_PER_CLASS, 1000
    print(
        f"{classes} classes, at most {limit:,} segments each, {os.cpu_count()} cores, "
        f"load average before the run {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| ranking | segments | making scores, s | adding, s | segments/s | "
        "writing CSV, s | CSV, MB | peak memory, GB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "segments.csv")
        part = os.path.join(folder, "part.tfrecord")

        def report(name: str, ranking, number: int) -> None:
            making, adding, writing = measure(ranking, number, classes, path)
            size = os.path.getsize(path) / 1e6
            print(
                f"| {name} | {number:,} | {making:.1f} | {adding:.1f} | "
                f"{number / adding:,.0f} | {writing:.1f} | {size:,.0f} | "
                f"{peak_memory():.2f} |",
                flush=True,
            )

        # The largest first: the peak is that of the process so far.
        ranking = SegmentRanking(np.arange(classes), limit)
        report("ours, all classes", ranking, many)
        start = time.perf_counter()
        ranking.write(part)
        written = time.perf_counter()
        del ranking
        merge_rankings([part], path, limit)
        merged = time.perf_counter()
        peak, size = peak_memory(), os.path.getsize(part) / 1e6
        report("ours, all classes", SegmentRanking(np.arange(classes), limit), few)
        report("heaps, all classes", HeapRanking(classes, limit, classes), few)
        name = f"heaps, {TOP_K} classes of a segment"
        report(name, HeapRanking(classes, limit, TOP_K), few)
    print(
        f"\n{many:,} segments written with their scores in {written - start:.1f} s "
        f"({size:,.0f} MB), merged to CSV in {merged - written:.1f} s; peak memory "
        f"{peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
