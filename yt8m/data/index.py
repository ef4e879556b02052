"""How many records each shard holds and where they start, without reading them.

A TFRecord file is a chain of records: 8 bytes of length, 4 bytes of checksum of the
length, the data, 4 bytes of checksum of the data. Counting hops from header to
header; on a healthy file the last hop lands on the end of the file.
"""

import contextlib
import functools
import json
import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import whole_files
from yt8m.data.examples import Examples
from yt8m.errors import DataError, UserError, reason

_HEADER, _FOOTER = 12, 4
_THREADS = 64  # the time goes by in waiting for the disk or the network
_SEARCH_BYTES = 1 << 22
# Small records are read along with the headers, many at once: calls of the system
# cost more, above all in many threads. Of large ones, only the headers are read.
_BLOCK_BYTES = 1 << 18
_SMALL_RECORD = 1 << 15
_read_length = struct.Struct("<Q").unpack_from


@dataclass(frozen=True)
class Shard:
    """The records of one file.

    Attributes:
        path: the file.
        offsets: int64 [N], the byte at which each record starts; -1 stands for a
            stretch of the file that cannot be read.
        faults: what is wrong, by the record's place in `offsets`; the rest of a
            record that is shorter than a header comes after their end.
    """

    path: str
    offsets: np.ndarray
    faults: dict[int, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.offsets)


class RecordIndex:
    """Counts of records, remembered by path, size and time of modification.

    Args:
        cache_file: JSON side file that keeps the counts between runs; None keeps
            them in memory. A cache that cannot be read or written is done without.

    Attributes:
        damaged: the files found to have faults, by path.
    """

    def __init__(self, cache_file: str | None = None):
        self._cache_file = cache_file
        self._counts: dict[str, int | list[int]] = {}
        self.damaged: dict[str, Shard] = {}
        if cache_file:
            try:
                with tf.io.gfile.GFile(cache_file) as f:
                    self._counts = dict(json.load(f))
            except (tf.errors.OpError, OSError, ValueError, TypeError):
                pass

    def counts(self, files: Iterable[str]) -> list[int]:
        """The number of records of each file, unreadable stretches counted as one.

        Raises:
            DataError: a file cannot be opened; names it.
        """
        return self._map(self._count, files)

    def example_counts(
        self, files: Iterable[str], examples: Examples
    ) -> list[np.ndarray]:
        """The number of examples of each record of each file.

        All records are read once. One that cannot be read, or of which they cannot be
        told, counts as one example.
        """
        count = functools.partial(self._count_examples, examples)
        return [np.asarray(c) for c in self._map(count, files)]

    def _map(self, count, files: Iterable[str]) -> list:
        before = len(self._counts)
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = list(pool.map(count, files))
        if len(self._counts) != before:
            self.save()
        return counts

    def _count_examples(self, examples: Examples, path: str) -> list[int]:
        with _explained(path):
            key = f"{_key(path)} {examples.key}"
            if key in self._counts:
                return self._counts[key]
            shard = scan(path)
            counts = _examples_of(shard, examples)
        return self._note(key, shard, counts)

    def _count(self, path: str) -> int:
        with _explained(path):
            key = _key(path)
            if key in self._counts:
                return self._counts[key]
            shard = scan(path)
        return self._note(key, shard, shard.count)

    def _note(self, key: str, shard: Shard, count: Any) -> Any:
        if shard.faults:  # not kept: they are to be found again
            self.damaged[shard.path] = shard
        else:
            self._counts[key] = count
        return count

    def save(self) -> None:
        """Writes the cache; done after each count, and once its folder is there."""
        if not self._cache_file:
            return
        with contextlib.suppress(UserError):  # counting again costs time only
            whole_files.write_file(self._cache_file, json.dumps(self._counts))


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, tf.errors.OpError) as e:
        raise DataError(f"{path} cannot be read: {reason(e)}") from e


def _key(path: str) -> str:
    stat = tf.io.gfile.stat(path)
    return f"{path} {stat.length} {stat.mtime_nsec}"


def _examples_of(shard: Shard, examples: Examples) -> list[int]:
    """The number of examples of each record of `shard`."""
    if not shard.faults:
        try:
            records = tf.data.TFRecordDataset(shard.path, buffer_size=1 << 20)
            return [len(examples.of(r)) for r in records.as_numpy_iterator()]
        except tf.errors.DataLossError:
            pass
    counts = []
    for offset in shard.offsets.tolist():
        try:
            record = read_record(shard.path, offset) if offset >= 0 else None
        except tf.errors.DataLossError:
            record = None
        counts.append(1 if record is None else len(examples.of(record)))
    return counts


def read_record(path: str, offset: int) -> bytes:
    """The record that starts at byte `offset`, its checksums verified."""
    start = tf.data.Dataset.from_tensors((path, offset))
    return next(iter(start.flat_map(records_from).take(1))).numpy()


def records_from(
    path: tf.Tensor, offset: tf.Tensor, buffer_size: int | tf.Tensor = 0
) -> tf.data.Dataset:
    """The records of a file from byte `offset` on, their checksums verified.

    To be called by a function of `flat_map` or `interleave` only.
    """
    # The public class cannot start within a file; the operation can, but does not
    # survive as the source of a whole dataset: its graph loses the offsets.
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path],
        compression_type="",
        buffer_size=tf.cast(buffer_size, tf.int64),
        byte_offsets=[tf.cast(offset, tf.int64)],
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def sizes(files: Iterable[str]) -> list[int]:
    """The size of each file in bytes."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return [stat.length for stat in pool.map(tf.io.gfile.stat, files)]


def first_offsets(path: str, count: int) -> list[int]:
    """The bytes at which the first records start, `count` of them at most."""
    size, position, offsets = tf.io.gfile.stat(path).length, 0, []
    with _open(path) as f:
        while position < size and len(offsets) < count:
            lengths, valid = _parse_headers(_read(f, position, _HEADER))
            if not valid.any():
                found = scan(path).offsets
                return found[found >= 0][:count].tolist()
            offsets.append(position)
            position += _HEADER + int(lengths[0]) + _FOOTER
    return offsets


def scan(path: str) -> Shard:
    """Finds where each record of the file starts; looks at headers only."""
    size = tf.io.gfile.stat(path).length
    with _open(path) as f:
        offsets, position = [], 0
        block, start = b"", 0
        while position < size:
            if position + 8 > start + len(block):
                small = position <= len(offsets) * _SMALL_RECORD
                block = _read(f, position, _BLOCK_BYTES if small else 8)
                start = position
            offsets.append(position)
            if len(block) < 8:
                break
            position += _HEADER + _read_length(block, position - start)[0] + _FOOTER
        if position == size:
            return Shard(path, np.asarray(offsets, np.int64))
        return _scan_damaged(path, f, size)


def _scan_damaged(path: str, file, size: int) -> Shard:
    """As `scan`, checking each header and searching the next one after damage."""
    offsets, faults, position = [], {}, 0
    while position < size:
        header = _read(file, position, _HEADER)
        lengths, valid = _parse_headers(header)
        end = position + _HEADER + int(lengths[0]) + _FOOTER if len(lengths) else size
        if len(valid) and valid[0] and end <= size:
            offsets.append(position)
            position = end
            continue
        if len(valid) and not valid[0]:
            fault = f"the record is corrupted (checksum of its length, byte {position})"
            if not position:
                fault += "; perhaps it is no TFRecord file"
            end = _next_header(file, position + 1, size)
        else:
            fault = f"the file is truncated at record {len(offsets)} (byte {position})"
            end = size
        faults[len(offsets)] = fault
        # TensorFlow's reader takes less than a header for the end of the file.
        if size - position >= _HEADER:
            offsets.append(-1)
        position = end
    return Shard(path, np.asarray(offsets, np.int64), faults)


def _next_header(file, start: int, size: int) -> int:
    """The first byte from `start` on that looks like a record's, else `size`."""
    while start < size:
        lengths, valid = _parse_headers(_read(file, start, _SEARCH_BYTES))
        ends = start + np.arange(len(lengths)) + _HEADER + _FOOTER + lengths
        found = np.flatnonzero(valid & (ends <= size) & (lengths < size))
        if len(found):
            return start + int(found[0])
        start += max(len(lengths), 1)
    return size


def is_header(data: bytes) -> bool:
    """Whether `data` begins with a record's length and its right checksum."""
    return bool(_parse_headers(data[:_HEADER])[1].any())


def _parse_headers(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a header at every byte of `data`: lengths [N] and whether each is valid."""
    if len(data) < _HEADER:
        return np.zeros(0, np.uint64), np.zeros(0, bool)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.frombuffer(data, np.uint8), _HEADER
    )
    crc = np.full(len(windows), 0xFFFFFFFF, np.uint32)
    for i in range(8):
        crc = _crc_table()[(crc ^ windows[:, i]) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    lengths = np.ascontiguousarray(windows[:, :8]).view("<u8")[:, 0]
    stored = np.ascontiguousarray(windows[:, 8:]).view("<u4")[:, 0]
    return lengths, masked == stored


@functools.cache
def _crc_table() -> np.ndarray:
    """CRC-32C (Castagnoli), reflected."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), 0)
    return table.astype(np.uint32)


def _open(path: str):
    """Unbuffered where the file is local: a buffer would read what is hopped over."""
    if os.path.exists(path):
        return open(path, "rb", buffering=0)
    return tf.io.gfile.GFile(path, "rb")


def _read(file, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)
