"""Rated segments of the 2019 release: cut out of records, and their ratings alone.

People looked at about five segments of 5 frames in each of some videos of the
validation set, and said of some classes whether a segment shows them. A frame-level
record holds these ratings in lists (`schema.SEGMENT_*`), an entry for each pair of a
segment and a class.

The rules, those of the dataset's own reader where it has one: a segment is a start
time, segments come in the order in which their starts are first listed, and of two
ratings of a segment and a class the last counts. Seconds are frame numbers. A segment
is the 5 frames from its start on, fewer where the video ends, and, if that is wanted,
some frames before and after them; the frames are those of the whole record, so that a
301st counts.
"""

import http.client
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from yt8m import schema, whole_files
from yt8m.data.records import (
    CUT_START_KEY,
    SegmentRatings,
    decode_ratings,
    find_id,
    parse_message,
)
from yt8m.errors import DataError, UserError

_CLASS_IDS_HEADER = "Index"
_DOWNLOAD_SECONDS = 30  # without any data


@dataclass(frozen=True)
class RatedSegment:
    """A segment that people rated.

    Attributes:
        video_id: of its video.
        start: its first frame, in seconds.
        ratings: for each class that was looked for, 1 if it is there and 0 if not.
    """

    video_id: str
    start: int
    ratings: dict[int, int]


def cut(serialized: bytes, context_frames: int = 0) -> list[bytes]:
    """The rated segments of a frame-level record, each as a record of its own.

    Each is a SequenceExample with the id and the labels of the video, `segment_start`,
    its lists of labels and scores without repeated classes, and its frames of every
    feature;
    `yt8m.data.records.parse_frame_batch` reads it. A record without ratings gives
    none.

    Args:
        serialized: the record of a video.
        context_frames: frames before and after a segment that are taken with it, as
            far as the video has them.

    Raises:
        DataError: no frame-level record, or ratings that cannot be right. The message
            does not name the record: the caller knows it.
    """
    message = parse_message(serialized)
    context, lists = message.context.feature, message.feature_lists.feature_list
    if not lists:
        raise DataError("it has no frames: the record is empty or of video level")
    frames = {name: feature_list.feature for name, feature_list in lists.items()}
    segments = []
    for start, cells in _cells_of(message).items():
        segment = tf.train.SequenceExample()
        feature = segment.context.feature
        for key in (*schema.ID_KEYS, schema.LABELS_KEY):
            if key in context:
                feature[key].CopyFrom(context[key])
        feature[CUT_START_KEY].int64_list.value.append(start)
        feature[schema.SEGMENT_LABELS_KEY].int64_list.value.extend(cells)
        feature[schema.SEGMENT_SCORES_KEY].float_list.value.extend(cells.values())
        for name, rows in frames.items():
            own = segment.feature_lists.feature_list[name].feature
            end = start + schema.SEGMENT_FRAMES + context_frames
            own.extend(rows[max(start - context_frames, 0) : end])
        segments.append(segment.SerializeToString())
    return segments


def _cells_of(message: tf.train.SequenceExample) -> dict[int, dict[int, int]]:
    """`rated_cells` of a record, by its longest feature; empty if it has no ratings."""
    ratings = decode_ratings(message.context.feature)
    if ratings is None:
        return {}
    lists = message.feature_lists.feature_list.values()
    longest = max((len(frames.feature) for frames in lists), default=None)
    return rated_cells(ratings, longest)


def rated_cells(
    ratings: SegmentRatings, num_frames: int | None = None
) -> dict[int, dict[int, int]]:
    """The ratings of each segment: start -> class -> 1 or 0.

    Args:
        ratings: the lists of a record.
        num_frames: of the record, if it is known.

    Raises:
        DataError: lists that differ in length, a start that is no frame's number, an
            end that is not 1 to 5 seconds later, or a score that is not 0 or 1.
    """
    counts = {
        schema.SEGMENT_LABELS_KEY: len(ratings.labels),
        schema.SEGMENT_STARTS_KEY: len(ratings.starts),
        schema.SEGMENT_SCORES_KEY: len(ratings.scores),
    }
    if ratings.ends:
        counts[schema.SEGMENT_ENDS_KEY] = len(ratings.ends)
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"its lists of segments differ in length: {found}")
    cells: dict[int, dict[int, int]] = {}
    for start, label, score in zip(
        ratings.starts, ratings.labels, ratings.scores, strict=True
    ):
        if not isinstance(label, int):
            raise DataError(f"segment label {label} is no class: not an integer")
        if score not in (0, 1):
            raise DataError(
                f"segment score {score} of class {label} from second {start} is "
                "neither 0 nor 1"
            )
        cells.setdefault(start, {})[label] = int(score)
    for start in cells:
        if (
            not isinstance(start, int)
            or start < 0
            or (num_frames is not None and start >= num_frames)
        ):
            has = "" if num_frames is None else f"; the record has {num_frames} frames"
            raise DataError(f"segment start time {start} is no frame's number{has}")
    for start, end in zip(ratings.starts, ratings.ends, strict=False):
        if end not in range(start + 1, start + schema.SEGMENT_FRAMES + 1):
            raise DataError(
                f"segment end time {end} is not 1 to {schema.SEGMENT_FRAMES} seconds "
                f"after its start {start}"
            )
    return cells


def read_ratings(files: Iterable[str]) -> Iterator[RatedSegment]:
    """The rated segments in TFRecord files, in file order; no frame is decoded.

    Raises:
        DataError: a file cannot be read to its end, a record's ratings cannot be
            right, or none of the files has any. Names file and record.
    """
    # They import `index`, which imports this file.
    from yt8m.data.faults import named
    from yt8m.data.files import leave_out_empty
    from yt8m.data.labels import read_numbered

    files = leave_out_empty(list(files))
    found = False
    for path in files:
        for number, record in read_numbered(path):
            message = parse_message(record)
            _, video_id = find_id(message.context.feature)
            try:
                cells = _cells_of(message)
                for label in set().union(*cells.values()):
                    if label < 0:
                        raise DataError(f"segment label {label} is negative")
            except DataError as e:
                raise DataError(f"{named(path, number, video_id, str(e))}.") from e
            for start, ratings in cells.items():
                yield RatedSegment(video_id, start, ratings)
                found = True
    if not found:
        raise DataError(_without_ratings(files))


def _without_ratings(files: list[str]) -> str:
    # `files` imports `index`, which imports this file.
    from yt8m.data.files import describe, sniff_first

    path, sniffed = sniff_first(files)
    features = describe({name: size for name, (_, size) in sniffed.features.items()})
    others = f", and so do the {len(files) - 1} other files" if files[1:] else ""
    return (
        f"{path} holds {sniffed.level}-level records ({features}) without rated "
        f"segments (no {schema.SEGMENT_LABELS_KEY}){others}; the validation shards of "
        "the 2019 release have them."
    )


def learn_class_ids(files: Iterable[str]) -> np.ndarray:
    """Every class that is rated in TFRecord files, ascending: int32 [K].

    Raises:
        DataError: as `read_ratings`.
    """
    classes = set[int]()
    for segment in read_ratings(files):
        classes.update(segment.ratings)
    return np.array(sorted(classes), np.int32)


def load_class_ids(path_or_url: str) -> np.ndarray:
    """The classes of segments that a file names, in its order: int32 [K].

    The format is that of the dataset's `segment_label_ids.csv`: the header `Index`,
    then a class a line.

    Args:
        path_or_url: a path, `gs://...`, or `http(s)://...`.

    Raises:
        UserError: it cannot be read; names it.
        DataError: it is another kind of file; names the line.
    """
    try:
        if path_or_url.startswith(("http://", "https://")):
            with urllib.request.urlopen(path_or_url, timeout=_DOWNLOAD_SECONDS) as f:
                content = f.read()
        else:
            with tf.io.gfile.GFile(path_or_url, "rb") as f:
                content = f.read()
    except (OSError, http.client.HTTPException, ValueError, tf.errors.OpError) as e:
        raise UserError(f"{path_or_url} cannot be read: {_reason(e)}") from e
    lines = content.decode("utf-8-sig", "replace").rstrip().splitlines()
    if not lines or lines[0].strip() != _CLASS_IDS_HEADER:
        found = repr(lines[0][:60]) if lines else "an empty file"
        raise DataError(
            f"{path_or_url}, line 1: the header must be {_CLASS_IDS_HEADER}, as in "
            f"segment_label_ids.csv; found {found}."
        )
    classes: dict[int, None] = {}
    for number, line in enumerate(lines[1:], 2):
        text = line.strip()
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise DataError(
                f"{path_or_url}, line {number}: expected a class, found {line[:60]!r}."
            )
        if int(text) in classes:
            raise DataError(f"{path_or_url}, line {number}: class {text} is repeated.")
        classes[int(text)] = None
    if not classes:
        raise DataError(f"{path_or_url} names no class.")
    return np.array(list(classes), np.int32)


def write_class_ids(path: str, classes: Iterable[int]) -> None:
    """Writes the file that `load_class_ids` reads, under a temporary name first.

    Raises:
        UserError: it cannot be written.
    """
    lines = [_CLASS_IDS_HEADER, *map(str, classes)]
    whole_files.write_file(path, "\n".join(lines) + "\n")


def _reason(error: Exception) -> str:
    text = (getattr(error, "message", None) or str(error)).strip()
    return text.splitlines()[0] if text else repr(error)
