"""Video-level shards made of frame-level ones: statistics of each video's frames.

    features "rgb" and "audio", statistics mean, std, top5  ->
    mean_rgb, mean_audio, std_rgb, std_audio, top1_rgb, ..., top5_audio, num_frames

Statistics are taken over the dequantised frames; of bytes they are computed as bytes,
since all of them go with a rising linear function.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import schema, whole_files
from yt8m.data import index
from yt8m.data.array_files import load_arrays
from yt8m.data.clusters import Centroids
from yt8m.data.files import sniff_first
from yt8m.data.labels import read_each
from yt8m.data.records import Record, encode_video_record, write_records
from yt8m.errors import DataError, UserError, near_matches, reason
from yt8m.progress import Progress
from yt8m.whole_files import is_temporary

STATISTICS = ("mean", "std", "min", "max", "median", "mode", "top")
SETTINGS_FILE = "statistics.json"


@dataclass(frozen=True)
class Settings:
    """What is computed of each video.

    Attributes:
        statistics: names of `STATISTICS`, `topK` with a number K: the K greatest values
            of each dimension, greatest first.
        max_frames: frames beyond are left out.
        undo_pca: a directory with the `mean.npy`, `eigenvals.npy` and `eigenvecs.npy`
            of the dataset's PCA, which is undone for `rgb` first; None leaves it.
        centroids: a file of `yt8m.data.clusters`; the frames are replaced by the
            centroids that are nearest to any of them, each once. None leaves them.
    """

    statistics: tuple[str, ...] = ("mean", "std", "top5")
    max_frames: int = schema.MAX_FRAMES
    undo_pca: str | None = None
    centroids: str | None = None

    def __post_init__(self):
        if not self.statistics or len(set(self.statistics)) < len(self.statistics):
            raise UserError("--statistics must name each statistic once.")
        for name in self.statistics:
            if not re.fullmatch(r"mean|std|min|max|median|mode|top[1-9]\d*", name):
                raise UserError(
                    f"Unknown statistic {name}. {near_matches(name, STATISTICS)} top "
                    "takes a number, as in top5."
                )
        if self.undo_pca and self.centroids:
            raise UserError("--undo_pca and --centroids exclude each other; give one.")


def frame_statistics(frames: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Statistics over the frames of each dimension.

    Args:
        frames: uint8, which is dequantised, or float [T, D].
        names: as `Settings.statistics`.

    Returns:
        float32 [D] for each name, of which `topK` gives `top1` to `topK`: fewer frames
        than K repeat the least. Zeros without frames. The mode of floats is that of
        their 256 steps in the dataset's range.
    """
    length, size = frames.shape
    levels = frames
    if frames.dtype != np.uint8 and "mode" in names:
        scaled = (frames - schema.DEQUANTIZE_OFFSET) / schema.DEQUANTIZE_SCALE
        levels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

    def dequantized(values: np.ndarray) -> np.ndarray:
        if frames.dtype == np.uint8:
            values = values * schema.DEQUANTIZE_SCALE + schema.DEQUANTIZE_OFFSET
        return values.astype(np.float32)

    found = {}
    for name in names:
        count = int(name[3:]) if name.startswith("top") else 0
        if length == 0:
            each = [f"top{k + 1}" for k in range(count)] if count else [name]
            found |= {n: np.zeros(size, np.float32) for n in each}
        elif count:
            kept = min(count, length)
            greatest = np.partition(frames, length - kept, axis=0)[length - kept :]
            greatest = np.sort(greatest, axis=0)[::-1]
            for k in range(count):
                found[f"top{k + 1}"] = dequantized(greatest[min(k, kept - 1)])
        elif name == "mode":
            values = _mode(levels) * schema.DEQUANTIZE_SCALE + schema.DEQUANTIZE_OFFSET
            found["mode"] = values.astype(np.float32)
        elif name == "std":
            scale = schema.DEQUANTIZE_SCALE if frames.dtype == np.uint8 else 1.0
            found["std"] = (frames.std(axis=0, dtype=np.float64) * scale).astype("f4")
        elif name == "mean":
            found["mean"] = dequantized(frames.mean(axis=0, dtype=np.float64))
        else:
            found[name] = dequantized(getattr(np, name)(frames, axis=0))
    return found


def _mode(levels: np.ndarray) -> np.ndarray:
    """The commonest of the bytes [T, D] in each dimension, the least among equals."""
    size = levels.shape[1]
    cells = levels.astype(np.int64) * size + np.arange(size)
    counts = np.bincount(cells.ravel(), minlength=256 * size).reshape(256, size)
    return counts.argmax(axis=0)


class Pca:
    """The dataset's PCA of its rgb features, which can be undone.

    The features are ((x - mean) @ eigenvecs.T)[:1024] / sqrt(eigenvals + 1e-4).

    Args:
        directory: with the published `mean.npy` [N, 1], `eigenvals.npy` [N, 1] and
            `eigenvecs.npy` [N, N], whose rows are the directions.

    Raises:
        UserError: a file that is missing, cannot be read, or is of another shape.
    """

    def __init__(self, directory: str):
        mean = self._load(directory, "mean").reshape(-1)
        eigenvalues = self._load(directory, "eigenvals").reshape(-1)
        directions = self._load(directory, "eigenvecs")
        if directions.ndim != 2 or directions.shape[1] != mean.size:
            raise UserError(
                f"{directory}/eigenvecs.npy has the shape {list(directions.shape)}; a "
                f"mean of {mean.size} needs rows of as many numbers."
            )
        self.mean = mean.astype(np.float32)
        self.rows = (directions * np.sqrt(eigenvalues + 1e-4)[:, None]).astype("f4")

    @staticmethod
    def _load(directory: str, name: str) -> np.ndarray:
        try:
            values = load_arrays(os.path.join(directory, f"{name}.npy"))
            return values.astype(np.float64)
        except (UserError, AttributeError, ValueError) as e:
            raise UserError(f"--undo_pca: {e}") from e

    def undo(self, frames: np.ndarray) -> np.ndarray:
        """From features [T, D] to what they were before the PCA, float32 [T, N]."""
        if frames.dtype == np.uint8:
            frames = frames * np.float32(schema.DEQUANTIZE_SCALE)
            frames += np.float32(schema.DEQUANTIZE_OFFSET)
        return frames @ self.rows[: frames.shape[1]] + self.mean


def write_statistics(
    input_files: Iterable[str],
    output_dir: str,
    settings: Settings,
    num_workers: int = 1,
) -> list[str]:
    """Writes a video-level shard for each frame-level one, under the same name.

    A record keeps its id and labels, or their absence. Shards that are there already
    are kept: a shard gets its name when it is whole, so that a killed run goes on with
    the shards that it lacks. Memory is that of a video in each process.

    Args:
        input_files: paths of frame-level TFRecord files.
        output_dir: exists.
        settings: what is computed.
        num_workers: processes; each takes a shard at a time.

    Returns:
        The paths of the new shards.

    Raises:
        UserError: two files of the same name, or a directory with shards of other
            settings.
        DataError: a file or record that cannot be used; names both.
    """
    pairs = [(p, os.path.join(output_dir, os.path.basename(p))) for p in input_files]
    outputs = [output for _, output in pairs]
    if len(set(outputs)) < len(outputs):
        raise UserError("Two of the files have the same name; take them apart.")
    if any(source == output for source, output in pairs):
        raise UserError(f"--output_dir={output_dir} is where the frames are.")
    there = [tf.io.gfile.exists(output) for output in outputs]
    left = [pair for pair, done in zip(pairs, there, strict=True) if not done]
    done = [source for (source, _), done in zip(pairs, there, strict=True) if done]
    _note_settings(output_dir, settings, [source for source, _ in pairs], done)
    # A video without frames does not tell the sizes of its features.
    _, sniffed = sniff_first([source for source, _ in pairs])
    sizes = {name: size for name, (_, size) in sniffed.features.items()}
    with Progress(total=len(pairs), unit="shards", initial=len(pairs) - len(left)) as p:
        if num_workers == 1 or len(left) < 2:
            for pair in left:
                _write_shard(*pair, settings, sizes)
                p.update(1)
            return outputs
        for _ in _in_processes(min(num_workers, len(left)), left, settings, sizes):
            p.update(1)
    return outputs


def _note_settings(
    output_dir: str, settings: Settings, sources: list[str], done: list[str]
) -> None:
    """Notes in the directory what its shards are made of, and how.

    Args:
        output_dir: of the shards.
        settings: how.
        sources: all files.
        done: those whose shards are there.

    Raises:
        UserError: what is there is of other settings, or of other files.
    """
    path = os.path.join(output_dir, SETTINGS_FILE)
    names = tf.io.gfile.listdir(output_dir)
    others = [n for n in names if n != SETTINGS_FILE and not is_temporary(n)]
    noted = _read_settings(path) if others else {}  # all shards may be removed
    own = json.loads(json.dumps(asdict(settings)))
    if settings.centroids:
        own["centroids_sha256"] = _digest(settings.centroids)
    # Earlier versions noted neither digests nor sizes.
    if any(noted.get(name, value) != value for name, value in own.items()):
        raise UserError(
            f"{path} has other settings: name another --output_dir, or remove the "
            "shards there."
        )
    found = dict(zip(sources, index.sizes(sources), strict=True))
    sizes = noted.get("source_bytes", {})
    for source in done:
        name, size = os.path.basename(source), found[source]
        if sizes.get(name, size) != size:
            raise UserError(
                f"{os.path.join(output_dir, name)} was made of another file of that "
                f"name, of {sizes[name]:,} bytes, than {source}, of {size:,}: name "
                "another --output_dir, or remove the shards there."
            )
    sizes |= {os.path.basename(source): size for source, size in found.items()}
    text = json.dumps({**own, "source_bytes": dict(sorted(sizes.items()))}, indent=2)
    whole_files.write_file(path, text + "\n")


def _read_settings(path: str) -> dict[str, Any]:
    """What `_note_settings` wrote; nothing if there is no such file."""
    if not tf.io.gfile.exists(path):
        return {}
    try:
        with tf.io.gfile.GFile(path) as f:
            return dict(json.load(f))
    except (*(OSError, tf.errors.OpError), ValueError, TypeError) as e:
        raise UserError(f"{path} cannot be read: {reason(e)}; remove it.") from e


def _digest(path: str) -> str:
    with tf.io.gfile.GFile(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


# --- processes -----------------------------------------------------------------------


def _in_processes(
    count: int, pairs: list[tuple[str, str]], settings: Settings, sizes: dict[str, int]
) -> Iterator[None]:
    """Writes the shards of `pairs` in `count` processes; yields after each."""
    # TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        count, context, initializer=_begin_process, initargs=(stopped,)
    )
    try:
        futures = [
            pool.submit(_write_in_process, *pair, settings, sizes) for pair in pairs
        ]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except BaseException:
        stopped.set()  # the others leave the shards that they are at
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _Process:
    """What a process of the pool shares between its two threads."""

    stopped: Any  # multiprocessing's Event: whether to leave what one is at
    writing = threading.Lock()


def _begin_process(stopped) -> None:
    """Lets a process end with its parent, whatever the parent died of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    _Process.stopped = stopped

    def wait() -> None:
        multiprocessing.parent_process().join()
        stopped.set()
        with _Process.writing:  # the temporary file is removed first
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write_in_process(source, output, settings, sizes) -> None:
    def until_stopped(records: Iterable[bytes]) -> Iterator[bytes]:
        for record in records:
            if _Process.stopped.is_set():
                raise InterruptedError
            yield record

    with _Process.writing, contextlib.suppress(InterruptedError):
        records = _records(source, settings, sizes)
        write_records(output, until_stopped(records))


# --- one shard -----------------------------------------------------------------------


def _write_shard(
    source: str, output: str, settings: Settings, sizes: dict[str, int]
) -> None:
    write_records(output, _records(source, settings, sizes))


def _records(source: str, settings: Settings, sizes: dict[str, int]) -> Iterator[bytes]:
    pca = Pca(settings.undo_pca) if settings.undo_pca else None
    centroids = Centroids.load(settings.centroids) if settings.centroids else None

    def described(record: Record) -> bytes:
        if record.level != "frame":
            raise DataError("has no frames; frame-level records are wanted")
        frames = {n: f[: settings.max_frames] for n, f in record.features.items()}
        lengths = {len(f) for f in frames.values()}
        if len(lengths) > 1:
            raise DataError("has features that differ in their number of frames")
        if centroids:
            frames = centroids.represent(frames)
        features = {}
        for name, values in frames.items():
            if not len(values):
                values = np.zeros((0, sizes.get(name, 0)), np.uint8)
            if pca and name == "rgb":
                values = pca.undo(values)
            found = frame_statistics(values, settings.statistics)
            features |= {f"{statistic}_{name}": v for statistic, v in found.items()}
        features["num_frames"] = np.array([lengths.pop()], np.float32)
        id_key = record.id_key or schema.ID_KEYS[0]
        return encode_video_record(record.id, features, record.labels, id_key)

    return read_each(source, described)
