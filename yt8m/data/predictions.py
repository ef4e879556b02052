"""Predictions of many videos on disk: written as a stream, joined to records by id.

    NAME.predictions/meta.json      version, classes, count, what wrote it
    NAME.predictions/ids            the ids of the N videos, one after the other
    NAME.predictions/offsets.npy    int64 [N + 1], where each id begins in `ids`
    NAME.predictions/scores.npy     float16 [N, K], see below
    NAME.predictions/classes.npy    uint16 [N, K], the best K classes, best first;
                                    not there if the scores are those of all classes
    NAME.predictions/index.npy      uint64 [2, N], hashes of the ids, ascending, and the
                                    row of each

A score is the probability p itself up to 1/2 and -(1 - p) above, which is as fine near
1 as near 0, where a plain float16 knows no number between 0.9995 and 1. Rounding makes
some scores equal, which then rank by class: GAP may differ by some 0.0002 from that of
the model itself. The hash is FNV-1a of 64 bits.

The arrays are memory-mapped: 4 million videos of 100 classes take 1.7 GB of disk, and
of memory what is being read. Paths are local. `yt8m.data.video_embeddings` keeps other
numbers of videos in the same way.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from yt8m import whole_files
from yt8m.errors import DataError, UserError

FORMAT = "yt8m predictions"
VERSION = 1
META_FILE = "meta.json"
ENDING = ".predictions"  # of the names of folders to write

_MAX_CLASSES = 1 << 16
_HEADER_BYTES = 128  # of an .npy file, whatever its count
_SIGN, _REST = np.uint16(0x8000), np.uint16(0x7FFF)
_CLASS_BITS = np.uint64(0xFFFF)
_ROUNDING = 1e-5
_COPIED_VIDEOS = 4096  # at once


def is_predictions(path: str) -> bool:
    """Whether `path` is a folder of predictions, or was meant to be one."""
    return os.path.isfile(os.path.join(path, META_FILE))


def encode_scores(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities as float16 scores: p up to 1/2, -(1 - p) above."""
    p = _within_range(probabilities)
    return np.where(p > 0.5, -(np.float32(1) - p), p).astype(np.float16)


def _within_range(probabilities: np.ndarray) -> np.ndarray:
    # The absolute value, as the sign of -0 would make it 1.
    return np.abs(np.clip(np.asarray(probabilities, np.float32), 0, 1))


def decode_scores(scores: np.ndarray) -> np.ndarray:
    """The probabilities float32 of float16 scores."""
    values = scores.astype(np.float32)
    return np.where(np.signbit(values), 1 + values, values)


def hash_ids(ids: Sequence[bytes]) -> np.ndarray:
    """FNV-1a uint64 [n] of ids."""
    return _hash(*_padded(ids))


def _padded(ids: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Ids as bytes uint8 [n, L], zeros after their ends, and their lengths [n]."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    width = max(int(lengths.max(initial=0)), 1)
    # An empty array has no bytes that a view could show.
    flat = np.array(ids, f"S{width}") if len(ids) else np.zeros(0, f"S{width}")
    return flat.view(np.uint8).reshape(len(ids), width), lengths


def _hash(padded: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    hashes = np.full(len(padded), 0xCBF29CE484222325, np.uint64)
    for i in range(padded.shape[1]):
        mixed = (hashes ^ padded[:, i]) * np.uint64(0x100000001B3)
        hashes = np.where(i < lengths, mixed, hashes)
    return hashes


def best_scores(
    scores: np.ndarray, count: int, classes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best of the scores of each row; of equal ones the lower class first.

    Args:
        scores: float16 [n, m] of `encode_scores`.
        count: k, at most m.
        classes: integers [n, m], whose scores they are; None for 0 .. m - 1.

    Returns:
        Classes uint16 [n, k] and their scores float16 [n, k], best first.
    """
    if classes is None:
        classes = np.arange(scores.shape[1])
    bits = scores.view(np.uint16)
    ascending = np.where(bits & _SIGN, ~(bits & _REST), bits)
    classes, ascending = _highest(ascending.astype(np.uint32), classes, count)
    ascending = ascending.astype(np.uint16)
    bits = np.where(ascending & _SIGN, _SIGN | ~ascending & _REST, ascending)
    return classes, bits.view(np.float16)


def _best_probabilities(p: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """As `best_scores`, of probabilities float32 [n, m]: only the best are encoded."""
    bits = _within_range(p).view(np.uint32)  # ascends with the value if it is not < 0
    classes, bits = _highest(bits, np.arange(p.shape[1]), count)
    return best_scores(encode_scores(bits.view(np.float32)), count, classes)


def _highest(
    values: np.ndarray, classes: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Classes uint16 [n, k] and values of the `count` highest uint32 values [n, m]."""
    # One whole number for each cell, which orders by value and then by class.
    lower_first = _CLASS_BITS - classes.astype(np.uint64)
    keys = (values.astype(np.uint64) << np.uint64(16)) | lower_first
    if count < values.shape[1]:
        keys = np.partition(keys, values.shape[1] - count, axis=1)[:, -count:]
    keys = np.sort(keys, axis=1)[:, ::-1]
    classes = (_CLASS_BITS - (keys & _CLASS_BITS)).astype(np.uint16)
    return classes, (keys >> np.uint64(16)).astype(np.uint32)


class PredictionsWriter:
    """Writes predictions batch by batch; the folder appears when it is complete.

    It takes the place of earlier predictions of the same name. Memory grows by 16
    bytes a video, for the index.

    Args:
        path: the folder.
        num_classes: C.
        classes_per_video: K, the best classes of each video that are kept; None, or
            as many as there are, keeps all.
        written_by: what wrote it, for people.

    Attributes:
        count: videos written.

    Raises:
        UserError: the folder cannot be written, or is something else.
        DataError: a video is written twice; raised at the end of the `with` block.
    """

    format = FORMAT  # of the folder; `scores.npy` holds `score_type`
    score_type: type = np.float16

    def __init__(
        self,
        path: str,
        num_classes: int,
        classes_per_video: int | None = None,
        written_by: str = "",
    ):
        if not 1 <= num_classes <= _MAX_CLASSES:
            raise UserError(
                f"Predictions are of 1 to {_MAX_CLASSES} classes, not {num_classes}."
            )
        if classes_per_video is not None and classes_per_video < 1:
            raise UserError(
                f"At least one class of a video must be kept, not {classes_per_video}."
            )
        _refuse_remote(path)
        self.path = path.rstrip("/")
        self.num_classes = num_classes
        few = classes_per_video is not None and classes_per_video < num_classes
        self.classes_per_video = classes_per_video if few else None
        self.written_by = written_by
        self.count = 0
        self._folder = whole_files.temporary_name(self.path)
        self._files = contextlib.ExitStack()
        self._hashes: list[np.ndarray] = []

    def __enter__(self) -> "PredictionsWriter":
        if os.path.lexists(self.path) and not is_predictions(self.path):
            raise UserError(
                f"{self.path} exists and is no folder of predictions; choose another "
                "name."
            )
        with self._explained():
            os.makedirs(self._folder)
            width = self.classes_per_video or self.num_classes
            self._ids = self._open("ids")
            self._offsets = self._array("offsets", np.int64, ())
            self._offsets.append(np.zeros(1, np.int64))
            self._scores = self._array("scores", self.score_type, (width,))
            if self.classes_per_video:
                self._classes = self._array("classes", np.uint16, (width,))
        return self

    def write(self, ids: Sequence[bytes], probabilities: np.ndarray) -> None:
        """Appends the probabilities float32 [n, C] of n videos.

        Raises:
            DataError: a probability is none, or an id is empty; names the video.
            UserError: the folder cannot be written.
        """
        self._check_shape(ids, probabilities, self.num_classes)
        self._check_values(ids, probabilities)
        if self.classes_per_video:
            kept = _best_probabilities(probabilities, self.classes_per_video)
            self._append(ids, *kept)
        else:
            self._append(ids, None, encode_scores(probabilities))

    def write_sparse(
        self, ids: Sequence[bytes], classes: np.ndarray, probabilities: np.ndarray
    ) -> None:
        """Appends the best K classes of n videos.

        Args:
            ids: of the videos.
            classes: integers [n, K], different ones in each row, in any order.
            probabilities: float32 [n, K]; those of other classes count as 0.

        Raises:
            DataError, UserError: as `write`.
        """
        if not self.classes_per_video:
            dense = np.zeros((len(ids), self.num_classes), np.float32)
            np.put_along_axis(dense, np.asarray(classes, np.int64), probabilities, 1)
            self.write(ids, dense)
            return
        self._check_shape(ids, probabilities, self.classes_per_video)
        self._check_values(ids, probabilities)
        scores = encode_scores(probabilities)
        self._append(ids, *best_scores(scores, scores.shape[1], classes))

    def _check_shape(self, ids, probabilities, width: int) -> None:
        if probabilities.shape != (len(ids), width):
            raise ValueError(
                f"`probabilities` must be [{len(ids)}, {width}]. Received: shape "
                f"{probabilities.shape}"
            )

    def _check_values(self, ids, probabilities: np.ndarray) -> None:
        p = np.asarray(probabilities)
        # Means of probabilities may be a rounding beyond; NaN compares as false.
        right = ((p >= -_ROUNDING) & (p <= 1 + _ROUNDING)).all(axis=1)
        if not right.all():
            raise DataError(
                f"The scores of video {_text(ids[int(right.argmin())])} are not "
                "probabilities (0 .. 1); the model's weights or the video's features "
                "are not finite."
            )

    def _append(self, ids, classes: np.ndarray | None, scores: np.ndarray) -> None:
        if not len(ids):
            return
        padded, lengths = _padded(ids)
        if not lengths.all():
            raise DataError(
                f"Video {self.count + int(lengths.argmin())} of the predictions (the "
                "first is 0) has no id, by which it could be found."
            )
        with self._explained():
            self._ids.write(b"".join(ids))
            self._offsets.append(self._offsets.last + np.cumsum(lengths))
            self._scores.append(scores)
            if classes is not None:
                self._classes.append(classes)
        self._hashes.append(_hash(padded, lengths))
        self.count += len(ids)

    def __exit__(self, kind, *exception) -> None:
        if kind is not None:
            self._discard()
            return
        with self._explained():
            self._files.close()
            self._write_index()
            meta = {
                "format": self.format,
                "version": VERSION,
                "num_classes": self.num_classes,
                "classes_per_video": self.classes_per_video,
                "count": self.count,
                "written_by": self.written_by,
            }
            with open(os.path.join(self._folder, META_FILE), "w") as f:
                f.write(json.dumps(meta, indent=2) + "\n")
            self._take_place()

    def _write_index(self) -> None:
        hashes = np.concatenate([np.zeros(0, np.uint64), *self._hashes])
        self._hashes.clear()
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        self._refuse_duplicates(hashes, order)
        with _StreamedArray(
            os.path.join(self._folder, "index.npy"), np.uint64, (self.count,)
        ) as index:
            index.append(hashes[None])
            index.append(order.astype(np.uint64)[None])

    def _refuse_duplicates(self, hashes: np.ndarray, order: np.ndarray) -> None:
        """Raises `DataError` if an id is there twice; equal ids have equal hashes."""
        equal = np.flatnonzero(hashes[1:] == hashes[:-1])
        if not len(equal):
            return
        ids = _Ids(self._folder, self.count, self.path)
        seen: set[bytes] = set()
        for place in equal.tolist():
            pair = [ids.one(int(order[place])), ids.one(int(order[place + 1]))]
            if place == 0 or hashes[place - 1] != hashes[place]:
                seen = {pair[0]}
            if pair[1] in seen:
                raise DataError(
                    f"{self.path}: video {_text(pair[1])} is predicted twice; give "
                    "each video once."
                )
            seen.add(pair[1])

    def _take_place(self) -> None:
        if not os.path.lexists(self.path):
            os.rename(self._folder, self.path)
            return
        earlier = f"{self._folder}.earlier"
        os.rename(self.path, earlier)
        os.rename(self._folder, self.path)
        shutil.rmtree(earlier)

    def _open(self, name: str) -> Any:
        return self._files.enter_context(open(os.path.join(self._folder, name), "wb"))

    def _array(self, name: str, dtype: type, shape: tuple) -> "_StreamedArray":
        path = os.path.join(self._folder, f"{name}.npy")
        return self._files.enter_context(_StreamedArray(path, dtype, shape))

    def _discard(self) -> None:
        # What made it unwritable may strike again here, and is known already.
        with contextlib.suppress(OSError):
            self._files.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self):
        """Leaves nothing behind an error, and words it if the user can mend it."""
        try:
            yield
        except BaseException as e:
            self._discard()
            if isinstance(e, OSError):
                reason = e.strerror or e
                raise UserError(f"{self.path} cannot be written: {reason}.") from e
            raise


class _StreamedArray:
    """An .npy file that grows by rows; its header is written again at the end.

    Attributes:
        last: the last row that was appended.
    """

    def __init__(self, path: str, dtype: type, row_shape: tuple[int, ...]):
        self._dtype, self._row_shape = np.dtype(dtype).newbyteorder("<"), row_shape
        self._rows, self.last = 0, None
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(self._header())

    def _header(self) -> bytes:
        fields = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._row_shape),
        }
        start = np.lib.format.magic(1, 0)
        size = _HEADER_BYTES - len(start) - 2
        text = repr(fields).ljust(size - 1) + "\n"
        return start + size.to_bytes(2, "little") + text.encode()

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._rows += len(rows)
        self.last = rows[-1]

    def __enter__(self) -> "_StreamedArray":
        return self

    def __exit__(self, *exception) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(self._header())


# --- reading -------------------------------------------------------------------------


class Predictions:
    """Predictions of N videos on disk; what is asked for is read.

    Args:
        path: the folder that a `PredictionsWriter` wrote.

    Attributes:
        num_classes: C.
        classes_per_video: K, or None if the scores are those of all classes.
        written_by: what wrote it.

    Raises:
        UserError: the folder holds no predictions, or those of another version.
        DataError: a file is missing, cut short or of another kind.
    """

    format = FORMAT
    score_type: type = np.float16
    written_with = "inference.py --output=predictions"

    def __init__(self, path: str):
        _refuse_remote(path)
        self.path = path.rstrip("/")
        meta = self._read_meta()
        self.num_classes: int = meta["num_classes"]
        self.classes_per_video: int | None = meta["classes_per_video"]
        self.written_by: str = meta["written_by"]
        self._count: int = meta["count"]
        shape = (self._count, self.classes_per_video or self.num_classes)
        self._scores = _mapped(self.path, "scores", self.score_type, shape)
        self._classes = None
        if self.classes_per_video:
            self._classes = _mapped(self.path, "classes", np.uint16, shape)
        self._hashes, self._rows = _mapped(
            self.path, "index", np.uint64, (2, self._count)
        )
        self._ids = _Ids(self.path, self._count, self.path)

    def _read_meta(self) -> dict[str, Any]:
        path = os.path.join(self.path, META_FILE)
        what = f"give a folder that `{self.written_with}` wrote"
        kind = self.format.removeprefix("yt8m ")
        try:
            with open(path) as f:
                meta = json.load(f)
        except OSError as e:
            raise UserError(
                f"{self.path} holds no {kind}: {META_FILE}: {e.strerror}; {what}."
            ) from e
        except ValueError as e:
            raise DataError(f"{path} is damaged: {e}.") from e
        if not isinstance(meta, dict) or meta.get("format") != self.format:
            raise UserError(f"{path} is not of {self.format}; {what}.")
        if meta.get("version") != VERSION:
            raise UserError(
                f"{path}: version {meta.get('version')} of the format; this program "
                f"reads version {VERSION}: write the predictions again."
            )
        kinds = {"num_classes": int, "count": int, "written_by": str}
        kinds["classes_per_video"] = int | None
        for name, kind in kinds.items():
            if not isinstance(meta.get(name, ...), kind):
                raise DataError(f"{path} is damaged: {name}={meta.get(name)!r}.")
        return meta

    def __len__(self) -> int:
        return self._count

    def ids(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The ids of the rows `start` .. `stop` - 1, as a slice of a list."""
        first, end, _ = slice(start, stop).indices(self._count)
        return self._ids.some(first, end)

    def rows(self, ids: Sequence[bytes]) -> np.ndarray:
        """The row int64 [n] of each id; -1 where it is not there."""
        found = np.full(len(ids), -1, np.int64)
        padded, lengths = _padded(ids)
        hashes = _hash(padded, lengths)
        places = np.searchsorted(self._hashes, hashes)
        wanted = np.arange(len(ids))
        # One round, unless different ids have equal hashes.
        while True:
            wanted = wanted[places[wanted] < self._count]
            wanted = wanted[self._hashes[places[wanted]] == hashes[wanted]]
            if not len(wanted):
                return found
            rows = self._rows[places[wanted]].astype(np.int64)
            same = self._ids.equal(rows, padded[wanted], lengths[wanted])
            found[wanted[same]] = rows[same]
            wanted = wanted[~same]
            places[wanted] += 1

    def probabilities(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Probabilities float32 [n, C] of rows [n]; 0 for classes that are not kept.

        Raises:
            IndexError: there is no such row; -1 is none.
        """
        rows = self._checked(rows)
        scores = decode_scores(self._scores[rows])
        if self._classes is None:
            return scores
        dense = np.zeros((len(rows), self.num_classes), np.float32)
        np.put_along_axis(dense, self._classes[rows].astype(np.int64), scores, axis=1)
        return dense

    def sparse(self, rows: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Classes int32 [n, K] of rows [n], best first, and their probabilities.

        If the scores of all classes are kept, K is C.

        Raises:
            IndexError: as `probabilities`.
        """
        rows = self._checked(rows)
        scores = self._scores[rows]
        if self._classes is None:
            classes, scores = best_scores(scores, self.num_classes)
        else:
            classes = self._classes[rows]
        return classes.astype(np.int32), decode_scores(scores)

    def best(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As `sparse`, of the best `count` classes, or of those that are kept."""
        if self._classes is not None:
            classes, scores = self.sparse(rows)
            return classes[:, :count], scores[:, :count]
        count = min(count, self.num_classes)
        classes, scores = best_scores(self._scores[self._checked(rows)], count)
        return classes.astype(np.int32), decode_scores(scores)

    def blocks(self, size: int = 4096) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """All videos in their order: ids, and probabilities float32 [size, C]."""
        for rows in self.row_blocks(size):
            yield self.ids(rows[0], rows[-1] + 1), self.probabilities(rows)

    def row_blocks(self, size: int = 4096) -> Iterator[np.ndarray]:
        """The rows in their order, `size` at once."""
        for start in range(0, self._count, size):
            yield np.arange(start, min(start + size, self._count))

    def _checked(self, rows) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        # NumPy would take -1, which says that a video is missing, for the last row.
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._count:
            raise IndexError(f"rows must be 0 .. {self._count - 1}")
        return rows


class _Ids:
    """The ids in a folder, memory-mapped; `path` is its name in messages."""

    def __init__(self, folder: str, count: int, path: str):
        self._offsets = _mapped(folder, "offsets", np.int64, (count + 1,))
        file = os.path.join(folder, "ids")
        wanted = int(self._offsets[-1])
        size = os.path.getsize(file) if os.path.isfile(file) else 0
        if size != wanted:
            raise DataError(
                f"{os.path.join(path, 'ids')} has {size} bytes and not {wanted}: it is "
                "damaged or cut short."
            )
        self._bytes = np.zeros(0, np.uint8)
        if wanted:
            self._bytes = np.memmap(file, np.uint8, "r")

    def one(self, row: int) -> bytes:
        return self.some(row, row + 1)[0]

    def some(self, start: int, stop: int) -> list[bytes]:
        ends = self._offsets[start : stop + 1].tolist()
        if not ends:
            return []
        text = self._bytes[ends[0] : ends[-1]].tobytes()
        return [
            text[first - ends[0] : end - ends[0]]
            for first, end in zip(ends, ends[1:], strict=False)
        ]

    def equal(
        self, rows: np.ndarray, padded: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """Whether the id of each row is that of `padded` and `lengths`: bool [n]."""
        starts = self._offsets[rows]
        same = self._offsets[rows + 1] - starts == lengths
        columns = np.arange(padded.shape[1])
        places = np.minimum(starts[:, None] + columns, len(self._bytes) - 1)
        inside = columns < lengths[:, None]
        return same & ((self._bytes[places] == padded) | ~inside).all(axis=1)


def _mapped(folder: str, name: str, dtype: type, shape: tuple) -> np.ndarray:
    path = os.path.join(folder, f"{name}.npy")
    try:
        # An array without values cannot be mapped.
        array = np.load(path, mmap_mode="r" if np.prod(shape) else None)
    except (OSError, ValueError, EOFError) as e:
        said = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise DataError(f"{path} is missing, damaged or cut short: {said}.") from e
    if array.dtype != dtype or array.shape != shape:
        raise DataError(
            f"{path} is of {array.dtype} {list(array.shape)}, where {META_FILE} says "
            f"{np.dtype(dtype)} {list(shape)}."
        )
    return array.view(np.ndarray)  # of a memory map; a view of it costs less to make


def _refuse_remote(path: str) -> None:
    if "://" in path:
        raise UserError(
            f"{path}: predictions are memory-mapped and must be on a local disk; copy "
            "the folder."
        )


def _text(video_id: bytes) -> str:
    return video_id.decode(errors="backslashreplace")


# --- merging -------------------------------------------------------------------------


def merge_predictions(
    paths: Sequence[str], output: str, progress: Callable[[int], Any] | None = None
) -> int:
    """Writes one folder of predictions of several, whose videos are different ones.

    Args:
        paths: folders, taken in this order; of equal numbers of classes, and of
            classes kept of a video.
        output: the folder to write.
        progress: is told how many videos are done since it was told last.

    Returns:
        The number of videos.

    Raises:
        UserError: the folders do not fit together, or cannot be read or written.
        DataError: a video is in two of them.
    """
    parts = [Predictions(path) for path in paths]
    first = parts[0]
    for part in parts[1:]:
        for name in ("num_classes", "classes_per_video"):
            if getattr(part, name) != getattr(first, name):
                raise UserError(
                    f"{first.path} has {name}={getattr(first, name)} and {part.path} "
                    f"{getattr(part, name)}; merge predictions of one kind."
                )
    with PredictionsWriter(
        output,
        first.num_classes,
        first.classes_per_video,
        written_by=", ".join(dict.fromkeys(p.written_by for p in parts)),
    ) as writer:
        for part in parts:
            for rows in part.row_blocks(_COPIED_VIDEOS):
                ids = part.ids(rows[0], rows[-1] + 1)
                classes = None if part._classes is None else part._classes[rows]
                writer._append(ids, classes, part._scores[rows])
                if progress:
                    progress(len(ids))
    return writer.count
