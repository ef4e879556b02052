"""Video-level records of several files, joined by id: their features side by side."""

import contextlib
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import schema
from yt8m.data import index
from yt8m.data.files import leave_out_empty, sniff_first
from yt8m.data.labels import read_numbered
from yt8m.data.predictions import hash_ids
from yt8m.data.records import find_id, parse_message, read_id, write_records
from yt8m.errors import DataError, UserError, reason
from yt8m.progress import Progress

_OPEN_FILES = 32
_HEADER_BYTES = 12  # of a record of a TFRecord file


@dataclass(frozen=True)
class Joined:
    """What `join_records` wrote.

    Attributes:
        paths: of the new shards.
        features: the size of each feature.
        count: records written.
        missing: records left out, as another input has none of their id.
    """

    paths: list[str]
    features: dict[str, int]
    count: int
    missing: int


def join_records(
    inputs: Sequence[Sequence[str]],
    output_dir: str,
    skip_missing: bool = False,
    progress: Progress | None = None,
) -> Joined:
    """Writes each file of the first input anew, with the features of the others.

    A feature that several inputs have gets the number of its input, from 0, after its
    name: `embedding_0`, `embedding_1`. Labels are those of the first input that has
    any for the video. The others' records are found by id, in whatever order they are:
    memory is 25 bytes for each of them, disk none.

    Args:
        inputs: the files of each input, video-level.
        output_dir: exists; a shard takes its name when it is whole.
        skip_missing: whether a video that an input lacks is left out.
        progress: None shows one on standard error.

    Raises:
        UserError: files that do not fit together.
        DataError: a file or record that cannot be used, an id that is in an input
            twice, or one that is missing; names it.
    """
    inputs = [leave_out_empty(list(files)) for files in inputs]
    outputs = [os.path.join(output_dir, os.path.basename(p)) for p in inputs[0]]
    if len(set(outputs)) < len(outputs):
        raise UserError("Two files of the first input have the same name.")
    taken = {os.path.realpath(path) for files in inputs for path in files}
    if any(os.path.realpath(path) in taken for path in outputs):
        raise UserError(f"--output_dir={output_dir} is where an input is.")
    sizes = [_sizes(files) for files in inputs]
    owners = Counter(name for own in sizes for name in own)
    names = [
        {name: name if owners[name] == 1 else f"{name}_{i}" for name in own}
        for i, own in enumerate(sizes)
    ]
    features = {
        names[i][name]: size
        for i, own in enumerate(sizes)
        for name, size in own.items()
    }
    if len(features) < sum(map(len, sizes)):
        raise UserError(
            "Features of the inputs would have equal names: "
            f"{', '.join(n for own in names for n in own.values())}."
        )
    total = sum(index.RecordIndex().counts(inputs[0]))
    missing = 0

    def joined(path: str) -> Iterator[bytes]:
        nonlocal missing
        for number, serialized in read_numbered(path):
            progress.update(1)
            where = f"{path}, record {number}"
            record = _parse(where, serialized)
            key, video_id = find_id(record)
            found = [other.locate(video_id) for other in others]
            for place, _ in found[:1]:
                _note_once(seen, place, f"{where}: video {video_id}")
            parts = [record, *(part for _, part in found)]
            if None in parts:
                missing += 1
                if skip_missing:
                    continue
                lacking = others[parts.index(None) - 1].files[0]
                raise DataError(
                    f"{where}: video {video_id} is not in {lacking} or the files "
                    "beside it; --on_missing=skip leaves such videos out."
                )
            # Whole features are copied: their numbers would cost 30 times as much.
            example = tf.train.Example()
            new = example.features.feature
            for part, own, size in zip(parts, names, sizes, strict=True):
                _check_sizes(f"{where}: video {video_id}", part, size)
                for name in own:
                    new[own[name]].CopyFrom(part[name])
            if key:
                new[key].CopyFrom(record[key])
            labelled = (part for part in parts if schema.LABELS_KEY in part)
            if part := next(labelled, None):
                new[schema.LABELS_KEY].CopyFrom(part[schema.LABELS_KEY])
            yield example.SerializeToString(deterministic=True)

    count, others = 0, []
    with progress or Progress(total=total) as progress, contextlib.ExitStack() as stack:
        others += [stack.enter_context(RecordsById(files)) for files in inputs[1:]]
        # Which records of the second input were found: those of the first, once each.
        seen = np.zeros(len(others[0]) if others else 0, bool)
        for path, output in zip(inputs[0], outputs, strict=True):
            try:
                count += write_records(output, joined(path))
            except tf.errors.OpError as e:
                raise UserError(f"{output} cannot be written: {reason(e)}") from e
    return Joined(outputs, features, count, missing)


def _note_once(seen: np.ndarray, place: int, what: str) -> None:
    """Notes a place, if it is none below 0. Raises `DataError` if it was noted."""
    if place >= 0:
        if seen[place]:
            raise DataError(
                f"{what} is in the first input twice; each must be there once."
            )
        seen[place] = True


def _sizes(files: Sequence[str]) -> dict[str, int]:
    path, sniffed = sniff_first(list(files))
    if sniffed.level != "video":
        raise UserError(f"{path} is frame-level; video-level records are joined.")
    return {name: size for name, (_, size) in sniffed.features.items()}


def _check_sizes(where: str, record: Any, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        found = len(record[name].float_list.value) if name in record else 0
        if found != size:
            raise DataError(f"{where} has {found} floats of {name}, and others {size}.")


def _parse(where: str, serialized: bytes) -> Any:
    """The features of a record: TensorFlow's messages, by name."""
    try:
        return parse_message(serialized).context.feature
    except DataError as e:
        raise DataError(f"{where}: {e}.") from e


class RecordsById:
    """The records of some files, found by id, within a `with` block.

    Args:
        files: paths, read once for their ids.

    Attributes:
        files: the paths.

    Raises:
        DataError: a file is damaged, or an id is there twice.
    """

    def __init__(self, files: Sequence[str]):
        self.files = list(files)
        ids, owners, offsets = [], [], []
        for number, path in enumerate(self.files):
            shard = index.scan(path)
            hashes = hash_ids(
                [read_id(record).encode() for _, record in read_numbered(path)]
            )
            ids.append(hashes)
            owners.append(np.full(len(hashes), number))
            offsets.append(shard.offsets)
        hashes = np.concatenate(ids)
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._owners = np.concatenate(owners)[order]
        self._offsets = np.concatenate(offsets)[order]
        self._open: dict[str, Any] = {}  # that which is open longest first

    def __enter__(self) -> "RecordsById":
        with contextlib.ExitStack() as stack:
            stack.push(self)
            self._refuse_duplicates()
            stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _refuse_duplicates(self) -> None:
        for place in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]).tolist():
            # Equal hashes are of equal ids, but for a chance of 1 in 10^19 a pair.
            one, other = self._record(place), self._record(place + 1)
            video_id = find_id(one)[1]
            if find_id(other)[1] == video_id:
                raise DataError(
                    f"Video {video_id} is twice in "
                    f"{self.files[self._owners[place]]} and "
                    f"{self.files[self._owners[place + 1]]}; each must be there once."
                )

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, video_id: str) -> Any:
        """The features, by name, of the record of an id, or None."""
        return self.locate(video_id)[1]

    def locate(self, video_id: str) -> tuple[int, Any]:
        """A number of a record, 0 to N - 1, and its features; -1 and None of none."""
        (wanted,) = hash_ids([video_id.encode()])
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            record = self._record(place)
            if find_id(record)[1] == video_id:
                return place, record
            place += 1
        return -1, None

    def _file(self, path: str) -> Any:
        if path not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            # Python's own files seek without reading half a megabyte.
            opened = open if os.path.exists(path) else tf.io.gfile.GFile
            self._open[path] = opened(path, "rb")
        return self._open[path]

    def _record(self, place: int) -> Any:
        path, offset = self.files[self._owners[place]], int(self._offsets[place])
        file = self._file(path)
        file.seek(offset)
        # Checksums were verified when the ids were read.
        (length,) = struct.unpack("<Q", file.read(_HEADER_BYTES)[:8])
        return _parse(f"{path}, byte {offset}", file.read(length))
