"""Time and memory of MAP@K of a full submission of segments.

    python -m benchmarks.segment_scoring   # 100,000 segments of 1,000 classes; minutes
    python -m benchmarks.segment_scoring --quick

Writes a submission as large as the challenge of 2019 allowed, out of 1 million
segments, and as many ratings, and runs `yt8m score-segments` on them in a process of
its own, start-up included. The baseline, in the same run, reads the file and cuts its
lines into segments, and does nothing else. The score is compared with one that is known
from how the file was made.
"""

import argparse
import os
import tempfile

import numpy as np

from benchmarks.stages.timing import run_process
from yt8m import schema

SEGMENTS_PER_VIDEO = 50

_BASELINE = """
import sys
with open(sys.argv[1], "rb") as file:
    print(sum(len(line.partition(b",")[2].split()) for line in file))
"""
_COMMAND = "import sys; from yt8m.cli.main import main; sys.argv[0] = 'yt8m'; main()"


def names_of(num_segments: int) -> np.ndarray:
    """`b"video:start"` of each segment."""
    video, place = np.divmod(np.arange(num_segments), SEGMENTS_PER_VIDEO)
    starts = place * schema.SEGMENT_FRAMES
    return np.array(
        [
            b"%04x:%d" % pair
            for pair in zip(video.tolist(), starts.tolist(), strict=True)
        ]
    )


def write_files(
    folder: str, num_segments: int, num_classes: int, limit: int, rated: int
) -> tuple[str, str, float]:
    """Writes a submission and the ratings, of which a third are positive.

    Args:
        folder: where.
        num_segments: of all videos.
        num_classes: lines of the submission.
        limit: segments of a line.
        rated: ratings of a class, of segments anywhere.

    Returns:
        Both paths, and the MAP@K.
    """
    rng = np.random.default_rng(0)
    names = names_of(num_segments)
    submission, ratings = (os.path.join(folder, n) for n in ("s.csv", "ratings.csv"))
    order = rng.permutation(num_segments)
    precisions = []
    with open(submission, "wb") as listed, open(ratings, "wb") as cache:
        listed.write(b"Class,Segments\n")
        for c in range(num_classes):
            order = np.roll(order, int(rng.integers(num_segments)))
            ranking = rng.permutation(order[:limit])
            listed.write(b"%d,%s\n" % (c, b" ".join(names[ranking].tolist())))
            chosen = rng.choice(num_segments, rated, replace=False)
            positive = rng.random(rated) < 1 / 3
            positive[0] = True
            for name, score in zip(names[chosen].tolist(), positive, strict=True):
                cache.write(b"%s,%d,%d.0\n" % (name, c, score))
            truth = np.full(num_segments, -1, np.int8)
            truth[chosen] = positive
            kept = truth[ranking]
            hits = np.flatnonzero(kept[kept >= 0] == 1) + 1
            precision = np.sum(np.arange(1, len(hits) + 1) / hits)
            precisions.append(precision / positive.sum())
    return submission, ratings, float(np.mean(precisions))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run")
    args = parser.parse_args(arguments)
    segments, classes, limit, rated = (
        1_000_000,
        1000,
        schema.MAX_SEGMENTS_PER_CLASS,
        1000,
    )
    if args.quick:
        segments, classes, limit, rated = 10_000, 10, 1000, 100
    print(
        f"{limit:,} of {segments:,} segments for each of {classes:,} classes, "
        f"{classes * rated:,} ratings, {os.cpu_count()} cores, load average before the "
        f"run {os.getloadavg()[0]:.1f}\n"
    )
    print("| what | s | peak memory, GB |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        submission, ratings, expected = write_files(
            folder, segments, classes, limit, rated
        )
        floor, memory, _ = run_process(_BASELINE, submission)
        print(f"| reading the segments | {floor:.1f} | {memory:.2f} |", flush=True)
        flags = [f"--submission_file={submission}", f"--label_cache={ratings}"]
        seconds, memory, said = run_process(_COMMAND, "score-segments", *flags)
        print(f"| `yt8m score-segments` | {seconds:.1f} | {memory:.2f} |")
    found = float(said.rpartition(" ")[2])
    print(f"\n{said}; {seconds / floor:.1f} times the reading alone")
    if abs(found - expected) > 1e-6:
        raise SystemExit(f"The score should be {expected:.6f}.")


if __name__ == "__main__":
    main()
