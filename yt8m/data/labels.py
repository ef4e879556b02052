"""The ids and labels of records of either level; their features are not parsed.

A bad record is an error that names its file and its number, as in training. A block
holds B records, one after the other in one file.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import schema
from yt8m.data.faults import find_context_fault, first_fault, named
from yt8m.data.files import leave_out_empty
from yt8m.data.index import RecordIndex, scan
from yt8m.data.records import Record, decode_record, parse_message, read_id
from yt8m.errors import DataError, reason

_RECORDS = 256  # parsed at once; frame-level ones take 350 kB each
_RECORDS_AT_ONCE = 64


@dataclass(frozen=True)
class Block:
    """The ids and labels of B records of a file.

    Attributes:
        path: the file.
        first: the number of the first of them in the file.
        ids: bytes of each.
        counts: int64 [B], how many labels each has.
        labels: int64 [sum of counts], those of one record after those of another.
    """

    path: str
    first: int
    ids: list[bytes]
    counts: np.ndarray
    labels: np.ndarray

    def __iter__(self) -> Iterator[list[int]]:
        """The labels of each record, each once, ascending."""
        ends = np.cumsum(self.counts)
        for start, end in zip(ends - self.counts, ends, strict=True):
            yield sorted(set(self.labels[start:end].tolist()))


def read_labels(
    files: list[str],
    num_classes: int | None = None,
    index: RecordIndex | None = None,
) -> Iterator[Block]:
    """The ids and labels of all records, in the order of the files.

    Args:
        files: TFRecord files of either level; empty ones are left out, with a warning.
        num_classes: labels are 0 .. num_classes - 1; None lets them be any that are
            not negative.
        index: counts of records, if there is one already.

    Raises:
        DataError: a file is damaged or of another kind, or a record has no id, or
            labels that are none; names file and record.
    """
    filled = leave_out_empty(files)
    # Damage that reading alone would not see, see `index.scan`.
    index = index or RecordIndex()
    index.counts(filled)
    for path in filled:
        if path in index.damaged:
            raise _bad_file(path)
    find = functools.partial(_find_fault, num_classes=num_classes)
    at = 0
    try:
        for path, number, ids, counts, labels in _blocks(filled).as_numpy_iterator():
            at = filled.index(path.decode(), at)
            ids = ids.tolist()
            outside = labels.min(initial=0) < 0 or (
                num_classes is not None and labels.max(initial=0) >= num_classes
            )
            if outside or not all(ids):
                raise _bad_file(filled[at], None, find)
            yield Block(filled[at], int(number) * _RECORDS, ids, counts, labels)
    except tf.errors.OpError as e:
        # It is in the file read last, or in one after it.
        for path in filled[at:]:
            if first_fault(path, find):
                raise _bad_file(path, e, find) from e
        raise _bad_file(filled[at], e) from e


def _find_fault(serialized: bytes, num_classes: int | None) -> str | None:
    fault = find_context_fault(serialized)
    if fault or num_classes is None:
        return fault
    context = parse_message(serialized).context.feature
    labels = context[schema.LABELS_KEY].int64_list.value
    beyond = [label for label in labels if label >= num_classes]
    if not beyond:
        return None
    return f"label {beyond[0]} is outside 0..{num_classes - 1}; give --num_classes"


def _blocks(files: list[str]) -> tf.data.Dataset:
    """A file, the number of a batch in it, and its ids, counts and labels."""
    # A SequenceExample begins as an Example does, so one parser serves both levels.
    spec: dict[str, Any] = {
        key: tf.io.FixedLenFeature([], tf.string, "") for key in schema.ID_KEYS
    }
    spec[schema.LABELS_KEY] = tf.io.RaggedFeature(tf.int64)
    key, other_key = schema.ID_KEYS

    def parse(path, number, records):
        found = tf.io.parse_example(records, spec)
        ids = tf.where(found[key] != "", found[key], found[other_key])
        labels = found[schema.LABELS_KEY]
        return path, number, ids, labels.row_lengths(), labels.values

    def read(path):
        batches = tf.data.TFRecordDataset(path).batch(_RECORDS).enumerate()
        return batches.map(lambda number, batch: (path, number, batch))

    # One dataset: with one for each file, most of the time goes into making them.
    blocks = tf.data.Dataset.from_tensor_slices(tf.constant(files, tf.string))
    return blocks.flat_map(read).map(parse).prefetch(2)


def read_numbered(path: str) -> Iterator[tuple[int, bytes]]:
    """The number of each record of a file, and the record.

    Raises:
        DataError: the file is damaged or of another kind, or a record's id or labels
            cannot be used; names file and record.
    """
    try:
        # Damage further on is said before anything is done with the start.
        if scan(path).faults:
            raise _bad_file(path)
        first = 0
        # TensorFlow takes longer to hand over a record than all else done here.
        batches = tf.data.TFRecordDataset(path).batch(_RECORDS_AT_ONCE).prefetch(2)
        for batch in batches.as_numpy_iterator():
            for number, record in enumerate(batch.tolist(), first):
                if fault := find_context_fault(record):
                    raise DataError(f"{named(path, number, read_id(record), fault)}.")
                yield number, record
            first += len(batch)
    except tf.errors.OpError as e:
        raise _bad_file(path, e) from e


def read_each(path: str, use: Callable[[Record], Any]) -> Iterator[Any]:
    """What `use` makes of each record of a file.

    Raises:
        DataError: as `read_numbered`; or one of `use`, which gets the file's name and
            the record's number.
    """
    for number, serialized in read_numbered(path):
        try:
            yield use(decode_record(serialized))
        except DataError as e:
            raise DataError(f"{path}, record {number}: {e}.") from e


def _bad_file(
    path: str,
    error: Exception | None = None,
    find: Callable[[bytes], str | None] = find_context_fault,
) -> DataError:
    """The error that names the first bad record, or what reading the file raised."""
    if fault := first_fault(path, find):
        return DataError(f"{fault}.")
    said = "it has changed meanwhile" if error is None else reason(error)
    return DataError(f"{path} cannot be read: {said}.")
