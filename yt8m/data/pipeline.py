"""From TFRecord files to batches: the order of the stages, and what bad records do.

The order of the records is that of `yt8m.data.order`: a function of the seed, the
epoch and the files. A batch is a range of positions in that order, so that a run can
resume at any batch, and a bad record that is left out keeps its position: its batch
is smaller by one, and no other batch changes.

Several processes read the same order, and each parses its own slices of every global
batch (`Reader.replica_dataset`). Slices are cut by position, before what is left out
is dropped: a bad record makes its own slice smaller and moves no other record, so
that the processes agree, though only one of them may know of it.

An example is a record, or, with `DataConfig.segments`, one of its rated segments: each
record is then cut as it is read, so that the shuffle holds segments. A record has as
many places in the order as it has examples; one that cannot be cut has one, and one of
a video that is not wanted (`only_classes`) none.
"""

import functools
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import schema
from yt8m.config import DataConfig, FrameAugmentation, Part
from yt8m.data import order
from yt8m.data.examples import Examples
from yt8m.data.faults import find_fault, named
from yt8m.data.files import check_files, list_files, sniff_first
from yt8m.data.index import (
    RecordIndex,
    Shard,
    read_record,
    records_from,
    scan,
)
from yt8m.data.pieces import parse_in_pieces
from yt8m.data.records import parse_batch, read_id
from yt8m.data.soft_labels import SoftLabels
from yt8m.data.video_embeddings import VideoEmbeddings
from yt8m.errors import DataError

log = logging.getLogger("yt8m")

__all__ = ["BadRecord", "Reader", "check_files", "list_files"]

_WINDOW = {"frame": 1024, "video": 16384, "segment": 16384}
_BUFFER_BYTES = 1 << 20
_EXAMINED_AT_ONCE = 256
_MOST_PARSERS = 8  # each holds a batch
_LARGE_BATCH = 1 << 27  # bytes of features; of such, fewer are under way
_LEFT_OUT = b"\0"  # in place of an example; no protobuf begins with a zero


@dataclass(frozen=True)
class BadRecord:
    """A record that was left out: its file, its number from 0, its id if known, why."""

    path: str
    number: int
    id: str
    fault: str

    def __str__(self) -> str:
        return named(self.path, self.number, self.id, self.fault)


class Reader:
    """Batches of records from TFRecord files, in an order that can be resumed.

    Memory: the shuffle buffer holds `shuffle_window` serialized examples, about
    270 KB each at frame level (280 MB by default), 4.7 KB at video level (77 MB) and
    6 KB for segments (100 MB);
    beside it two batches of records, two parsed ones, and one for each core (eight
    at most) are under way. Of batches of frames of more than 128 MB it is one of
    records and one that is parsed, a few examples at a time.

    Args:
        files: paths of TFRecord files; evaluation reads them in this order.
        config: what is read of each record.
        batch_size: examples in a batch, B.
        seed: of the order and of random frames. None reads in file order and takes
            evenly spaced frames, as evaluation does.
        num_epochs: passes over the files; None is endless.
        on_bad_record: `"fail"` raises a `DataError` that names the record; `"skip"`
            leaves it out, warns, and adds it to `bad_records`.
        index: counts of records; kept in memory by default.
        shuffle_window: examples among which one is drawn; None for 1,024 frame-level
            records, 16,384 video-level ones or segments.
        static_frames: pad to a T that is the same for all batches.
        frame_seed: of random frames, where it is not `seed`; the draws depend on the
            number of the batch.
        augmentation: what is done to the frames of training, drawn with the seed of
            random frames; None for evaluation.
        only_classes: videos that have none of these labels are left out, and not
            counted; None takes all.
        video_labels: whether segments come with the labels of their videos.
        needs_id: whether a record without an id is a bad one, as where predictions
            are written.
        num_readers: files read at the same time, where that pays: for records that
            come over the network, and on half of the cores for local frames.
        soft_labels: what a teacher's predictions say of the videos, to be joined to
            the batches; not of segments.
        video_embeddings: what a model has made of the whole videos, to be joined to
            the batches, of segments too.

    Attributes:
        float_features: the frame features that the files hold as floats.
        bad_records: what was left out so far, a list of `BadRecord`.
        soft_labels: as given.
    """

    def __init__(
        self,
        files: list[str],
        config: DataConfig,
        *,
        batch_size: int,
        seed: int | None = None,
        num_epochs: int | None = 1,
        on_bad_record: str = "fail",
        index: RecordIndex | None = None,
        shuffle_window: int | None = None,
        static_frames: bool = False,
        num_readers: int = 8,
        frame_seed: int | None = None,
        soft_labels: SoftLabels | None = None,
        video_embeddings: VideoEmbeddings | None = None,
        augmentation: FrameAugmentation | None = None,
        only_classes: Collection[int] | None = None,
        video_labels: bool = False,
        needs_id: bool = False,
    ):
        if on_bad_record not in ("fail", "skip"):
            raise ValueError(
                "`on_bad_record` must be fail or skip. "
                f"Received: on_bad_record={on_bad_record!r}"
            )
        self.files, self.config, self.batch_size = list(files), config, batch_size
        self.bad_records: list[BadRecord] = []
        self.soft_labels = soft_labels
        self._joined = [part for part in (soft_labels, video_embeddings) if part]
        self._frame_seed = seed if frame_seed is None else frame_seed
        self._augmentation = augmentation
        self._video_labels, self._needs_id = video_labels, needs_id
        self._num_epochs = num_epochs
        self._skip = on_bad_record == "skip"
        self._index = index or RecordIndex()
        kind = "segment" if config.segments else config.level
        window = shuffle_window or _WINDOW[kind]
        self._order = order.Order(len(self.files), seed, window)
        self._static_frames = static_frames
        _, sniffed = sniff_first(self.files)
        kinds = {name: kind for name, (kind, _) in sniffed.features.items()}
        self.float_features = [n for n in kinds if kinds[n] == "float"]
        remote = any("://" in path for path in self.files)
        spare_cores = (os.cpu_count() or 1) // 2 if config.level == "frame" else 1
        self._num_readers = num_readers if remote else min(num_readers, spare_cores)
        # A local record of frames is read straight into its place: one copy less.
        self._whole = config.level == "frame" and not remote
        self._buffer_bytes = 0 if self._whole else _BUFFER_BYTES
        # Of the files in which examples are left out: where all records start.
        self._shards: dict[int, Shard] = {}
        self._left_out: dict[int, set[int]] = {}
        self._kinds = Examples.wanted(
            config.segments, config.segment_context_frames, only_classes
        )
        self._per_record: list[np.ndarray] = []  # of each file: each record's examples

    @property
    def num_examples(self) -> int:
        """Examples in the files; counted when first asked for."""
        return int(self._counts.sum())

    @property
    def num_batches(self) -> int:
        """Batches in all epochs, the last of which may be smaller."""
        if self._num_epochs is None:
            raise ValueError("`num_epochs` must be a number. Received: num_epochs=None")
        return -(-self.num_examples * self._num_epochs // self.batch_size)

    def dataset(self, start_batch: int = 0) -> tf.data.Dataset:
        """The batches from number `start_batch` on, as (device features, host).

        An error of TensorFlow's is to be handed to `explain`, with the number of the
        batch that was asked for, and the dataset to be made again from there on.
        Batches of which every record was left out do not appear.
        """
        batches = self._stages(start_batch, Part())
        if self._left_out:
            batches = batches.filter(lambda batch, host: tf.size(host["id"]) > 0)
        return batches

    def replica_dataset(self, start_batch: int, part: Part) -> tf.data.Dataset:
        """The slices of the global batches from number `start_batch` on.

        For each global batch the slices of the part's replicas come in turn, as those
        of `dataset`; together, the slices of all parts are its batch, with the same
        random frames. Only these slices are parsed. Every batch gives as many
        elements: a slice for which no record is left has 0 rows. Without
        `static_frames`, T is the longest video of the slice.

        A record that cannot be parsed is met only by the process that has its slice,
        damage of a file by all. Where a process has all replicas, errors are dealt
        with as those of `dataset`. Where there are several processes and bad records
        are left out, that happens within the dataset: the processes wait for one
        another at every step, and none could begin a step anew by itself.
        """
        slices = self._stages(start_batch, part)
        if not self._skip or part.count == part.total:
            return slices
        return tf.data.Dataset.from_generator(
            lambda: self._slices(start_batch, part),
            output_signature=slices.element_spec,
        ).prefetch(2 * part.count)

    def batches(self, start_batch: int = 0) -> Iterator[tuple[dict, dict]]:
        """The same as tensors, for a loop on the host; deals with bad records."""
        for batch, host in self._slices(start_batch, Part()):
            if len(host["id"]):
                yield batch, host

    def _slices(self, start_batch: int, part: Part) -> Iterator[tuple[dict, dict]]:
        """The elements of `_stages`; deals with bad records."""
        done = 0
        while True:
            number, begun = start_batch + done // part.count, done % part.count
            try:
                for batch, host in self._stages(number, part).skip(begun):
                    yield batch, host
                    done += 1
                return
            except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as e:
                self.explain(e, start_batch + done // part.count)

    def explain(self, error: Exception, batch_number: int):
        """Finds the bad records that made batch `batch_number` fail.

        Looks at the batch, then at all that was read ahead for the shuffle. Returns
        if bad records were found and are to be left out.

        Raises:
            DataError: a bad record was found, and `on_bad_record` is `"fail"`; or a
                video for which there is nothing to be joined.
            Exception: `error`, if nothing is found that explains it.
        """
        before = len(self.bad_records)
        first = batch_number * self.batch_size
        end = first + self.batch_size
        if self._num_epochs is not None:
            end = min(end, self.num_examples * self._num_epochs)
        groups = list(self._order.between(first, end, self._counts))
        for _, records in groups:
            self._examine(records)
        if len(self.bad_records) == before and self._joined:
            for _, records in groups:
                self._refuse_missing(records)
        if len(self.bad_records) == before:
            for group, _ in groups:
                self._examine(self._order.sequence(group, self._counts))
        if len(self.bad_records) == before:
            raise error

    def _stages(self, start_batch: int, part: Part) -> tf.data.Dataset:
        """All stages, in their order."""
        records = self._records(start_batch * self.batch_size)
        # Strings are moved into the batch, and parsed at once: stages that see one
        # record at a time cost more than the parsing.
        cores = os.cpu_count() or 1
        parsers, ahead, parsed_ahead = min(cores, _MOST_PARSERS), 2, 2 * part.count
        if self._batch_bytes() > _LARGE_BATCH:
            # The parser itself holds one that is done.
            parsers, ahead, parsed_ahead = 1, 1, part.count - 1
        if self._in_pieces and cores <= 2:
            ahead = 0  # to read while it parses takes another core
        batches = records.batch(self.batch_size)
        if ahead:
            batches = batches.prefetch(ahead)
        batches = batches.enumerate(start_batch)
        # The strings stay where they are: each replica's slice is cut as it is parsed.
        replicas = tf.data.Dataset.range(part.count, output_type=tf.int32)
        slices = batches.flat_map(
            lambda number, strings: replicas.map(lambda i: (number, i, strings))
        )
        slices = slices.map(
            functools.partial(self._parse_slice, part),
            num_parallel_calls=parsers,
            deterministic=True,
        )
        # Tuning takes the time of every record at every stage, which costs a tenth of
        # the rate at video level; there is nothing to be tuned.
        options = tf.data.Options()
        options.autotune.enabled = False
        if parsed_ahead:
            slices = slices.prefetch(parsed_ahead)
        return slices.with_options(options)

    @property
    def _most_frames(self) -> int:
        """The frames of the longest examples."""
        config, selection = self.config, self.config.frames
        if self._frame_seed is None:
            selection = selection.evaluated()
        longest = config.segment_frames if config.segments else config.max_frames
        return selection.count or longest

    def _batch_bytes(self) -> int:
        """Of the features of the longest examples."""
        sizes = self.config.features.items()
        values = sum(n * (4 if name in self.float_features else 1) for name, n in sizes)
        frames = 1 if self.config.level == "video" else self._most_frames
        return self.batch_size * frames * values

    @property
    def _in_pieces(self) -> bool:
        return self.config.level == "frame" and self._batch_bytes() > _LARGE_BATCH

    def _records(self, first: int) -> tf.data.Dataset:
        """The serialized examples from position `first` of the order on."""
        per_epoch = self._order.groups_per_epoch
        end = np.iinfo(np.int64).max
        if self._num_epochs is not None:
            end = self._num_epochs * per_epoch
        if first == 0:
            return self._groups(0, end)
        if self._num_epochs is not None:
            first = min(first, self.num_examples * self._num_epochs)
            if first == self.num_examples * self._num_epochs:
                return tf.data.Dataset.from_tensor_slices(tf.zeros([0], tf.string))
        group, place = self._order.find(first, self._counts)
        if not self._whole:
            # What is small, or comes over the network, is sooner read again than
            # looked for and passed over.
            return self._groups(group, end).skip(place)
        # What the group gave already still passes the shuffle, but is not read.
        given = self._order.sequence(group, self._counts)[:place]
        return (
            self._groups(group, group + 1, given)
            .skip(place)
            .concatenate(self._groups(group + 1, end))
        )

    def _groups(
        self, first: int, end: int, given: np.ndarray | None = None
    ) -> tf.data.Dataset:
        """The examples of the groups `first` .. `end` - 1, without those `given`."""
        left_out = {file: set(numbers) for file, numbers in self._left_out.items()}
        for file, number in () if given is None else given.tolist():
            left_out.setdefault(file, set()).add(number)
        read = functools.partial(
            _read_file,
            tf.constant(self.files),
            self._buffer_bytes,
            kinds=self._kinds,
        )
        if left_out:
            read = functools.partial(read, runs=self._runs(left_out))
        readers = min(self._num_readers, self._order.group_files)
        parallel = {"num_parallel_calls": readers, "deterministic": True}
        parallel = parallel if readers > 1 else {}

        def read_group(group):
            files = tf.data.Dataset.from_tensor_slices(self._order.files(group))
            records = files.interleave(
                read, cycle_length=self._order.group_files, block_length=1, **parallel
            )
            return self._order.shuffle(records, group)

        return tf.data.Dataset.range(first, end).flat_map(read_group)

    def _parse_slice(
        self, part: Part, number: tf.Tensor, replica: tf.Tensor, serialized: tf.Tensor
    ) -> Any:
        """The slice of one of the own replicas of batch `number`."""
        first, end = part.rows(replica, tf.size(serialized))
        rows, serialized = tf.range(first, end), serialized[first:end]
        if self._left_out:
            kept = serialized != _LEFT_OUT
            rows, serialized = rows[kept], serialized[kept]
        if self._in_pieces:
            batch, host = parse_in_pieces(
                self._parse, serialized, rows, number, self._most_frames
            )
        else:
            batch, host = self._parse(serialized, rows, number)
        if self._needs_id:
            _check_ids(host)
        for part in self._joined:
            batch = part.join(batch, host)
        return batch, host

    def _parse(self, serialized: tf.Tensor, rows: tf.Tensor, number: tf.Tensor) -> Any:
        """The examples of batch `number` that are its `rows`."""
        seed = None
        if self._frame_seed is not None:
            seed = order.draw_seed(self._frame_seed, order.FRAMES, number)
        return parse_batch(
            serialized,
            self.config,
            float_features=self.float_features,
            seed=seed,
            rows=(rows, self.batch_size),
            static_frames=self._static_frames,
            augmentation=self._augmentation,
            video_labels=self._video_labels,
        )

    def _runs(self, left_out: dict[int, set[int]]) -> tf.RaggedTensor:
        """For each file its runs of records to read: int64 [files, runs, 4]."""
        runs = [
            _find_runs(self._shard(file), self._examples(file), left_out[file])
            if left_out.get(file)
            else [(0, -1, self._buffer_bytes, 0)]
            for file in range(len(self.files))
        ]
        # `tf.ragged.constant` takes a third of a second for 4,000 files.
        return tf.RaggedTensor.from_row_lengths(
            np.concatenate(runs).astype(np.int64), [len(r) for r in runs]
        )

    def _examine(self, examples: np.ndarray):
        """Reports the bad records among those of `examples` (file and number)."""
        for start in range(0, len(examples), _EXAMINED_AT_ONCE):
            readable = list(self._read(examples[start : start + _EXAMINED_AT_ONCE]))
            options = {
                "float_features": self.float_features,
                "video_labels": self._video_labels,
            }
            try:
                serialized = [
                    example
                    for _, _, record in readable
                    for example in (self._kinds.of(record) if self._kinds else [record])
                ]
                _, host = parse_batch(
                    tf.constant(serialized, tf.string), self.config, **options
                )
                if self._needs_id:
                    _check_ids(host)
            except tf.errors.InvalidArgumentError:
                options["needs_id"] = self._needs_id
                for file, number, record in readable:
                    video_id, fault = find_fault(record, self.config, **options)
                    if fault:
                        self._report(file, number, video_id, fault)

    def _refuse_missing(self, examples: np.ndarray):
        """Raises `DataError` if one of the videos of `examples` cannot be joined."""
        for file, number, record in self._read(examples):
            video_id = read_id(record)
            for part in self._joined:
                if fault := part.fault(video_id):
                    raise DataError(
                        f"{self.files[file]}, record {number} (id {video_id}): {fault}."
                    )

    def _read(self, examples: np.ndarray) -> Iterator[tuple[int, int, bytes]]:
        """File, number and data of the records of `examples` that can be read, each
        once; reports the others."""
        records: dict[tuple[int, int], None] = {}
        for file, number in examples.tolist():
            if number not in self._left_out.get(file, ()):
                records[file, self._record_of(file, number)] = None
        for file, record in records:
            offset = int(self._shard(file).offsets[record])
            try:
                yield file, record, read_record(self.files[file], offset)
            except tf.errors.DataLossError:
                self._report(file, record, "", "the record is corrupted (checksum)")

    def _shard(self, file: int) -> Shard:
        if file not in self._shards:
            self._shards[file] = scan(self.files[file])
        return self._shards[file]

    def _examples(self, file: int) -> np.ndarray:
        """The number of examples of each record."""
        if self._kinds:
            return self._per_record[file]
        return np.ones(self._shard(file).count, np.int64)

    def _record_of(self, file: int, example: int) -> int:
        """The record of the file's example number `example`."""
        if not self._kinds:
            return example
        ends = np.cumsum(self._per_record[file])
        return int(np.searchsorted(ends, example, side="right"))

    def _report(self, file: int, record: int, video_id: str, fault: str):
        """Leaves a record out, or raises, as `on_bad_record` says."""
        left_out = self._left_out.setdefault(file, set())
        first, count = record, 1
        if self._kinds:
            examples = self._per_record[file]
            first = int(examples[:record].sum())
            count = int(examples[record]) if record < len(examples) else 1
        if first in left_out:
            return
        bad = BadRecord(self.files[file], record, video_id, fault)
        if not self._skip:
            raise DataError(f"{bad}. --on_bad_record=skip leaves such records out.")
        log.warning("Left out: %s.", bad)
        left_out.update(range(first, first + count))
        self.bad_records.append(bad)

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """The number of examples of each file."""
        if self._kinds:
            self._per_record = self._index.example_counts(self.files, self._kinds)
            counts = np.asarray([c.sum() for c in self._per_record], np.int64)
        else:
            counts = np.asarray(self._index.counts(self.files), np.int64)
        for file, path in enumerate(self.files):
            if path in self._index.damaged:
                for number, fault in self._index.damaged[path].faults.items():
                    self._report(file, number, "", fault)
        if not counts.sum() and self._kinds and self._kinds.only_classes is not None:
            raise DataError(
                f"{self.files[0]} and all other files hold no video of the classes of "
                "--only_classes"
                + (" with rated segments." if self.config.segments else ".")
            )
        if not counts.sum():
            raise DataError(
                f"{self.files[0]} and all other files hold no rated segment (they have "
                f"no {schema.SEGMENT_LABELS_KEY}); leave out --segment_labels."
                if self.config.segments
                else f"{self.files[0]} and all other files hold no record."
            )
        return counts


def _read_file(
    files: tf.Tensor,
    buffer_bytes: int,
    file: tf.Tensor,
    runs: tf.RaggedTensor | None = None,
    kinds: Examples | None = None,
) -> tf.data.Dataset:
    """The examples of a file, with `_LEFT_OUT` in place of those outside `runs`.

    They are what `kinds` makes of the records, or the records.
    """
    path = files[file]

    def examples(records):
        if kinds is None:
            return records
        return records.flat_map(functools.partial(_cut_record, kinds))

    if runs is None:
        return examples(records_from(path, 0, buffer_bytes))

    def read_run(run):
        left_out = tf.data.Dataset.from_tensors(_LEFT_OUT).repeat(run[3])
        records = records_from(path, run[0], run[2]).take(run[1])
        return examples(records).concatenate(left_out)

    return tf.data.Dataset.from_tensor_slices(runs[file]).flat_map(read_run)


def _check_ids(host: dict[str, tf.Tensor]) -> None:
    tf.debugging.Assert(tf.reduce_all(host["id"] != ""), ["no id"])


def _cut_record(kinds: Examples, record: tf.Tensor) -> tf.data.Dataset:
    """The examples of a record."""

    def cut(serialized: bytes) -> np.ndarray:
        return np.array(kinds.of(serialized), object)

    found = tf.numpy_function(cut, [record], tf.string)
    return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(found, [None]))


def _find_runs(
    shard: Shard, examples: np.ndarray, left_out: set[int]
) -> list[tuple[int, int, int, int]]:
    """The stretches of records to read between those that are left out.

    Args:
        shard: where its records start.
        examples: the number of examples of each record.
        left_out: numbers of the examples that are left out; a record is, when all of
            its examples are.

    Returns:
        For each stretch the byte at which it starts, its number of records, the
        bytes to read at once, and how many left out examples follow it.
    """
    ends = np.cumsum(examples)
    total = int(ends[-1]) if len(ends) else 0
    wanted = np.ones(total + 1, np.int64)
    wanted[[number for number in left_out if number < total]] = 0
    before = np.concatenate([[0], np.cumsum(wanted[:total])])
    kept = before[ends] > before[ends - examples]
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    # The examples of the records 0 .. n - 1.
    through = np.concatenate([[0], ends])
    next_starts = np.append(starts, shard.count)
    runs = [(0, 0, 0, int(through[next_starts[0]]))]
    for start, stop, next_start in zip(starts, stops, next_starts[1:], strict=True):
        offset = int(shard.offsets[start])
        # A stretch may be one record: a large buffer would read its neighbours.
        end = int(shard.offsets[stop]) if stop < shard.count else -1
        size = min(end - offset, _BUFFER_BYTES) if end > 0 else _BUFFER_BYTES
        following = int(through[next_start] - through[stop])
        runs.append((offset, int(stop - start), size, following))
    return runs
