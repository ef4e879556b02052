"""From a model and a reader to files of predictions, without holding either in memory.

Reading, computing and writing overlap: tf.data reads ahead, the device computes, and
one thread formats and writes what the device is done with. Only what is written
leaves an accelerator: the best `top_k` classes of a video, the wanted classes of a
segment.
"""

import json
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import runs, schema
from yt8m.config import DataConfig, RunConfig
from yt8m.data.frames import even_frames
from yt8m.data.pipeline import Reader
from yt8m.data.predictions import ENDING, PredictionsWriter
from yt8m.distribution import EachReplica, on_processors
from yt8m.errors import UserError
from yt8m.inference.listing import ListingWriter
from yt8m.inference.rescoring import Rescoring
from yt8m.inference.segments import SegmentRanking, refuse_not_finite
from yt8m.inference.submission import SubmissionWriter
from yt8m.inference.windows import (
    Averager,
    Plan,
    SegmentOptions,
    Windows,
    plan_segments,
)
from yt8m.metrics.best_classes import best_classes
from yt8m.model import YT8MModel, forward, top_classes
from yt8m.progress import Progress

log = logging.getLogger("yt8m")

# Batches computed but not yet written; a slow disk stops the device, not the memory.
_MAX_PENDING = 4
# A batch of videos has up to 60 times as many windows; their activations would fill
# any device (40,960 floats a window in a DBoF of 8,192 clusters).
_WINDOWS_AT_ONCE = 512
_SHARD_NAME = re.compile(r"(\d+)-of-(\d+)")


class ExportedModel:
    """A SavedModel written by `yt8m.export`, called like the model it was made from.

    Args:
        path: its directory.

    Attributes:
        config: what the model reads of each record.
        run_config: the configuration of the run that was exported.
        input_names: the keys of a batch that it takes.
        num_classes: C.

    Raises:
        UserError: the directory holds no export, or one that cannot be loaded.
    """

    def __init__(self, path: str):
        runs.refuse_brackets(path)
        self.path = path
        record = os.path.join(path, runs.EXPORT_FILE)
        try:
            with tf.io.gfile.GFile(record) as f:
                config = RunConfig.from_json(json.dumps(json.load(f)["config"]))
            self._loaded = tf.saved_model.load(path)
        except (OSError, ValueError, LookupError, tf.errors.OpError, UserError) as e:
            raise UserError(
                f"--saved_model={path} cannot be loaded: {runs.reason(e)}; give the "
                "--output_dir of an `export_model.py`."
            ) from e
        self.run_config = config
        self.config: DataConfig = config.data
        self.num_classes = config.data.num_classes
        self._signature = self._loaded.signatures["serving_default"]
        self._specs = self._signature.structured_input_signature[1]
        self.input_names = list(self._specs)

    def __call__(self, inputs: dict[str, Any], training: bool = False):
        """Logits float32 [B, C] (and the other outputs) of a batch."""
        self.check_types(inputs)
        return self._signature(**inputs)

    def check_types(self, inputs: dict[str, Any]) -> None:
        """Raises `UserError` if the records hold a feature in another type."""
        for name, value in inputs.items():
            if value.dtype != self._specs[name].dtype:
                raise UserError(
                    f"--saved_model={self.path} takes {name} as "
                    f"{self._specs[name].dtype.name}, but the records hold "
                    f"{value.dtype.name}."
                )


def load_saved_model(path: str) -> ExportedModel:
    """Loads what `export_model.py` wrote. Raises `UserError` if it cannot."""
    return ExportedModel(path)


def model_inputs(
    model: YT8MModel | ExportedModel, batch: dict[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """What the model reads of a batch.

    Raises:
        UserError: an exported model takes it in another type.
    """
    inputs = {name: batch[name] for name in model.input_names}
    if isinstance(model, ExportedModel):
        model.check_types(inputs)  # in a compiled function, errors take many lines
    return inputs


# --- videos --------------------------------------------------------------------------


def predict_function(
    model: YT8MModel | ExportedModel, top_k: int = 20
) -> Callable[[dict[str, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]]:
    """The function, not compiled, from what a model reads to its best classes.

    Returns:
        A function of `model_inputs` that gives classes int32 [B, k], best first, and
        their probabilities float32 [B, k], where k is `top_k` or, if there are fewer,
        the number of classes.
    """
    return lambda inputs: top_classes(forward(model, inputs)["logits"], top_k)


def logits_function(
    model: YT8MModel | ExportedModel,
) -> Callable[[dict[str, tf.Tensor]], tuple[tf.Tensor]]:
    """The function, not compiled, from `model_inputs` to the logits [B, C] alone."""
    return lambda inputs: (forward(model, inputs)["logits"],)


def best_of_logits(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """What `predict_function` finds, of logits in the host's memory."""
    classes, values = best_classes(logits, top_k)
    return classes, _probabilities(values).astype(np.float32)


def predict(
    model: YT8MModel | ExportedModel,
    reader: Reader,
    output_file: str,
    top_k: int = 20,
    progress: Progress | None = None,
    listing: ListingWriter | None = None,
    strategy: tf.distribute.Strategy | None = None,
    written_by: str = "",
) -> int:
    """Writes the submission of a reader's videos, in the reader's order.

    The file appears when it is complete; an error or Ctrl-C leaves nothing behind. No
    bit of it depends on the number of replicas. A name that ends in `.predictions` is
    a folder of stored predictions, see `yt8m.data.predictions`.

    Args:
        model: a built model, or an exported one.
        reader: in file order (`seed=None`).
        output_file: CSV; gzipped if it ends in `.gz`; may be remote.
        top_k: pairs written for each video.
        progress: None shows one on standard error.
        listing: an open one, to which the same predictions go with their names.
        strategy: of one process, under whose scope the model was made; None for the
            default device.
        written_by: what stored predictions say of their origin.

    Returns:
        The number of videos written.

    Raises:
        UserError: bad data, scores that are not finite, or a file that cannot be
            written.
    """
    if top_k < 1:
        raise UserError(f"--top_k must be at least 1, not {top_k}.")
    # Processors rank faster outside of TensorFlow, in the thread that writes.
    rank_here = on_processors(strategy)
    function = logits_function(model) if rank_here else predict_function(model, top_k)
    found = EachReplica(function, strategy, reader.batch_size)
    seen: list[np.ndarray] = []  # the ids
    if output_file.endswith(ENDING):
        known = model.config if isinstance(model, ExportedModel) else model
        file = PredictionsWriter(output_file, known.num_classes, top_k, written_by)
        write_batch = file.write_sparse
    else:
        file = SubmissionWriter(output_file)
        write_batch = file.write
    with (
        file as writer,
        progress or Progress(total=reader.num_examples) as progress,
    ):

        def write(*results: tf.Tensor) -> int:
            ids, *best = (result.numpy() for result in results)
            classes, scores = best_of_logits(*best, top_k) if rank_here else best
            write_batch(ids, classes, scores)
            seen.append(np.array(ids.tolist(), "S"))
            if listing:
                listing.write_videos(ids, classes, scores)
            return len(scores)

        batches = (
            (host["id"], model_inputs(model, batch)) for batch, host in reader.batches()
        )
        results = ((ids, *outputs) for ids, outputs in found.map(batches))
        overlap(results, write, progress)
    _warn_of_repeated(seen, output_file)
    return writer.count


def _warn_of_repeated(ids: list[np.ndarray], path: str) -> None:
    """Warns of videos that are in the shards twice; memory is that of their ids."""
    found, counts = np.unique(
        np.concatenate([np.array([], "S1"), *ids]), return_counts=True
    )
    repeated = found[counts > 1]
    if len(repeated):
        log.warning(
            "%s: %d video(s) are in the shards more than once, the first %s; a "
            "submission may have each once.",
            path,
            len(repeated),
            repeated[0].decode(errors="replace"),
        )


def overlap(
    results: Iterable[tuple], write: Callable[..., int], progress: Progress
) -> None:
    """Calls `write(*result)` for each of `results`, in order, in a thread beside them.

    Args:
        results: lazy; at most a few are computed before they are written.
        write: gives the number of videos that are done.
        progress: open; is told of them.
    """
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        for result in results:
            pending.append(thread.submit(write, *result))
            while len(pending) > _MAX_PENDING or (pending and pending[0].done()):
                progress.update(pending.popleft().result())
        while pending:
            progress.update(pending.popleft().result())


# --- segments ------------------------------------------------------------------------


def gather_windows(
    videos: dict[str, tf.Tensor],
    rows: tf.Tensor,
    starts: tf.Tensor,
    lengths: tf.Tensor,
    most_frames: int | None = None,
    context_frames: int = 0,
) -> dict[str, tf.Tensor]:
    """The windows of a batch, as if each were a video of its own.

    Args:
        videos: what a frame-level model reads of a batch.
        rows, starts, lengths: of `yt8m.inference.windows.Windows`, int32 [n].
        most_frames: that the model takes of a window, evenly spaced; None for all.
        context_frames: before and after each that belong to it, as far as the video
            has them.

    Returns:
        The same of the n windows.
    """
    longest = schema.SEGMENT_FRAMES + 2 * context_frames
    count = min(most_frames or longest, longest)
    if context_frames:
        ends = tf.gather(videos["num_frames"], rows)
        ends = tf.minimum(starts + lengths + context_frames, ends)
        starts = tf.maximum(starts - context_frames, 0)
        lengths = ends - starts
    inputs = {"num_frames": tf.minimum(lengths, count)}
    places = starts[:, None] + even_frames(lengths, count)
    for name, frames in videos.items():
        if name == "num_frames":
            continue
        if frames.shape.rank == 2:  # of the whole video
            inputs[name] = tf.gather(frames, rows)
        else:
            first = rows * tf.shape(frames)[1]
            flat = tf.reshape(frames, [-1, frames.shape[-1]])
            inputs[name] = tf.gather(flat, first[:, None] + places)
    return inputs


def segment_function(
    model: YT8MModel | ExportedModel, classes: np.ndarray
) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
    """The function, not compiled, from windows to their logits.

    Args:
        model: a frame-level model.
        classes: integers [K], the classes that are wanted.

    Returns:
        A function of `gather_windows` that gives the logits float32 [n, K] of
        `classes`.
    """
    return lambda windows: tf.gather(forward(model, windows)["logits"], classes, axis=1)


def predict_segments(
    model: YT8MModel | ExportedModel,
    reader: Reader,
    ranking: SegmentRanking,
    *,
    options: SegmentOptions | None = None,
    rescoring: Rescoring | None = None,
    most_frames: int | None = None,
    context_frames: int = 0,
    progress: Progress | None = None,
    listing: ListingWriter | None = None,
    listed: int = 3,
    strategy: tf.distribute.Strategy | None = None,
) -> int:
    """Adds the segments of a reader's videos to a ranking.

    Each video is read once, and each window that segments need is computed once.

    Args:
        model: a frame-level model, built or exported.
        reader: of whole videos, with all of their frames, in file order.
        ranking: its `classes` are predicted.
        options: which segments, and from which windows; None for every window of 5
            frames.
        rescoring: what comes between the logits and the ranking; None ranks logits.
        most_frames, context_frames: as `gather_windows`.
        progress: None shows one on standard error.
        listing: an open one, to which the best classes of each segment go.
        listed: how many.
        strategy: as of `predict`.

    Returns:
        The number of videos.

    Raises:
        UserError: bad data, or scores that are not finite.
    """
    options = options or SegmentOptions()
    score = EachReplica(
        segment_function(model, ranking.classes), strategy, _WINDOWS_AT_ONCE
    )

    @tf.function(reduce_retracing=True)
    def gather(videos, *windows):
        # On the host: GPUs have no gather of bytes, and the batch need not fit there.
        with tf.device("/CPU:0"):
            return gather_windows(videos, *windows, most_frames, context_frames)

    with progress or Progress(total=reader.num_examples) as progress:

        def chunks() -> Iterator[tuple]:
            for batch, host in reader.batches():
                ids, videos = host["id"].numpy(), model_inputs(model, batch)
                plan = plan_segments(batch["num_frames"].numpy(), options)
                for first in range(0, len(plan.windows), _WINDOWS_AT_ONCE):
                    some = plan.windows[first : first + _WINDOWS_AT_ONCE]
                    columns = (some.rows, some.starts, some.lengths)
                    yield (ids, plan, some), gather(videos, *map(tf.constant, columns))
                yield (ids, plan, None), None

        writer = _SegmentWriter(ranking, options, rescoring, listing, listed)
        results = ((*kept, outputs) for kept, outputs in score.map(chunks()))
        overlap(results, writer.write, progress)
        return progress.done


class _SegmentWriter:
    """Takes the logits of windows, and hands on what becomes of them."""

    def __init__(
        self,
        ranking: SegmentRanking,
        options: SegmentOptions,
        rescoring: Rescoring | None,
        listing: ListingWriter | None,
        listed: int,
    ):
        self._ranking, self._options, self._rescoring = ranking, options, rescoring
        self._listing, self._listed = listing, listed
        self._averager: Averager | None = None  # of the batch
        self._unlisted: list[tuple] = []  # segments of the batch

    def write(
        self,
        ids: np.ndarray,
        plan: Plan,
        windows: Windows | None,
        logits: tf.Tensor | None,
    ) -> int:
        """The next windows of a batch; None at its end. Gives the videos done."""
        if windows is None:
            if self._listing:
                self._listing.write_segments(ids, self._unlisted)
            self._averager, self._unlisted = None, []
            return len(ids)
        logits = logits.numpy()
        refuse_not_finite(ids, windows.rows, windows.starts, logits)
        whole_videos = bool(self._rescoring and self._rescoring.whole_videos)
        if self._averager is None:
            self._averager = Averager(plan, self._options.average, whole_videos)
        which, scores = self._averager.push(logits)
        segments = plan.segments[which]
        if not len(segments):
            return 0
        if self._rescoring:
            scores = self._rescoring(ids, segments, scores)
        self._ranking.add(
            ids, segments.rows, segments.starts, scores, dropped=bool(self._rescoring)
        )
        if self._listing:
            self._unlisted.append((*_spans(segments), *self._best(scores)))
        return 0

    def _best(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best classes [n, k] of segments, -1 where there is none, and their
        probabilities."""
        places, values = best_classes(scores, self._listed)
        classes = self._ranking.classes[places]
        return np.where(values > -np.inf, classes, -1), _probabilities(values)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """float64, of float32 logits."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _spans(segments: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return segments.rows, segments.starts, segments.starts + segments.lengths


# --- files ---------------------------------------------------------------------------


def shard_files(files: list[str], num_shards: int, shard_index: int) -> list[str]:
    """The part `shard_index` of `num_shards` of `files`.

    The parts are contiguous, so that their results one after the other are those of
    all files, and differ by one file at most.

    Raises:
        UserError: there is no such part, or no file for it.
    """
    if not 0 <= shard_index < num_shards:
        raise UserError(
            f"--shard_index={shard_index} must be 0 .. {num_shards - 1}, less than "
            f"--num_shards={num_shards}."
        )
    if num_shards > len(files):
        raise UserError(
            f"--num_shards={num_shards} is more than there are files; give "
            f"--num_shards={len(files)} at most."
        )
    first, end = (len(files) * i // num_shards for i in (shard_index, shard_index + 1))
    return files[first:end]


def shard_path(path: str, num_shards: int, shard_index: int) -> str:
    """`path` with the shard's number, as in `scores-00003-of-00010.csv`.

    A name that holds such a number already is taken as it is; with one shard, any is.

    Raises:
        UserError: the name holds the number of another shard.
    """
    if num_shards == 1:
        return path
    folder, name = os.path.split(path)
    held = _SHARD_NAME.search(name)
    if held:
        if [int(number) for number in held.groups()] != [shard_index, num_shards]:
            raise UserError(
                f"{path} is the name of another shard than --shard_index="
                f"{shard_index} of --num_shards={num_shards}."
            )
        return path
    stem, extension = os.path.splitext(name)
    if extension == ".gz":
        stem, inner = os.path.splitext(stem)
        extension = inner + extension
    name = f"{stem}-{shard_index:05d}-of-{num_shards:05d}{extension}"
    return os.path.join(folder, name)
