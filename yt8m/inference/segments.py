"""Rankings of segments, as Kaggle took them in 2019: made, read, checked, scored.

    Class,Segments
    3,xv4a:120 b0zz:0 xv4a:125

A line a class: the class, then the best segments of all videos, best first, each as
the video's id and the second it starts at. A name that ends in `.gz` is compressed.
Paths may be remote (`gs://`).

Such a file has no scores, so that parts of a ranking are written with theirs in
TFRecord files of another format, which `merge_rankings` turns into one CSV file.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import compress

import numpy as np
import tensorflow as tf

from yt8m import runs, schema
from yt8m.data import index
from yt8m.data.faults import first_fault, named
from yt8m.data.records import parse_message, write_records
from yt8m.errors import DataError, UserError
from yt8m.inference.replaced_file import ReplacedFile
from yt8m.inference.submission import (
    Problems,
    Report,
    as_text,
    header_fault,
    quoted,
    read_lines,
)
from yt8m.metrics.keys import rank_keys, scores_of_keys
from yt8m.metrics.ranking import class_type, precision_sum

HEADER = b"Class,Segments"
_HEADERS = (HEADER, b"Class Id,Segment Ids")  # the second: starter code's description
# 100,000 segments of YouTube-8M take 0.9 MB; ids may be longer than its four letters.
_MAX_LINE_BYTES = 1 << 25
_BLOCK_VALUES = 1 << 20  # logits compared at a time
_LOWER_HALF = 0xFFFFFFFF

_SEGMENT = re.compile(rb'[^\s,"]+:(?:0|[1-9]\d*)')
_SEGMENT_LINE = re.compile(rb'\d+,[^\s,"]+:\d+(?: |$)')
_BAD_IN_IDS = re.compile(rb'[\s,"\0]')

_FORMAT, _VERSION = b"yt8m segment ranking", 1


class SegmentRanking:
    """The best segments of every class, over any number, in memory bounded by `limit`.

    Higher logit first; of equal ones the segment that was added first. Each class has
    room for half as many segments again as are wanted; when it is full the best are
    selected, and from then on a segment counts only if it beats the last of them.
    Memory is at most 12 `limit` bytes a class, half as much again for a moment, 8 bytes
    a segment and about 150 bytes a video.

    Args:
        classes: [K] the class of each column; no class twice.
        limit: segments kept of each class.

    Raises:
        ValueError: no class, one given twice, or `limit` < 1.
    """

    def __init__(self, classes: np.ndarray, limit: int = schema.MAX_SEGMENTS_PER_CLASS):
        classes = np.asarray(classes, np.int64)
        if classes.ndim != 1 or not 0 < len(np.unique(classes)) == len(classes):
            raise ValueError(
                "`classes` must be 1-D, not empty and without repetitions. Received: "
                f"classes={classes}"
            )
        if limit < 1:
            raise ValueError(f"`limit` must be positive. Received: limit={limit}")
        self.classes = classes
        self.limit = limit
        self._block = max(_BLOCK_VALUES // len(classes), 1)  # segments
        # A selection always makes room for a block.
        self._room = max(limit // 2, self._block)
        self._capacity = limit + self._room
        self._keys = np.empty((len(classes), 0), np.uint64)
        self._counts = np.zeros(len(classes), np.int64)
        # What a logit must exceed to be among the best.
        self._floor = np.full(len(classes), -np.inf, np.float32)
        self._table = _SegmentTable()

    @property
    def num_segments(self) -> int:
        """How many were added."""
        return self._table.count

    def add(
        self,
        video_ids: Sequence[bytes],
        rows: np.ndarray,
        starts: np.ndarray,
        logits: np.ndarray,
        dropped: bool = False,
    ) -> None:
        """Adds n segments of B videos.

        Args:
            video_ids: [B].
            rows: integers [n]: segment i is of video `video_ids[rows[i]]`.
            starts: integers [n], its first second.
            logits: float32 [n, K], a column for each of `classes`; any scores.
            dropped: whether a score may be -inf: that segment is not ranked for that
                class.

        Raises:
            DataError: a logit is not finite, an id cannot stand in a CSV file, or a
                segment is there twice; names it.
            ValueError: the shapes do not fit together.
        """
        logits = np.asarray(logits, np.float32)
        rows, starts = np.asarray(rows), np.asarray(starts)
        if logits.shape != (len(rows), len(self.classes)) or starts.shape != rows.shape:
            raise ValueError(
                f"`logits` must be [n, {len(self.classes)}], `rows` and `starts` [n]. "
                f"Received: logits.shape={logits.shape}, rows.shape={rows.shape}, "
                f"starts.shape={starts.shape}"
            )
        refuse_not_finite(video_ids, rows, starts, logits, dropped)
        first = self.num_segments
        self._table.extend(video_ids, rows, starts)
        for at in range(0, len(logits), self._block):
            self._add_block(logits[at : at + self._block], first + at)

    def _add_block(self, logits: np.ndarray, first: int) -> None:
        num_classes = len(self.classes)
        places = np.flatnonzero(logits > self._floor)
        count = int(self._counts[0])
        if len(places) == logits.size and (self._counts == count).all():
            # As long as every segment counts for every class, nothing is looked for.
            self._make_room(np.full(num_classes, len(logits)))
            numbers = np.arange(first, first + len(logits))
            count = int(self._counts[0])  # a selection may have made the room
            self._keys[:, count : count + len(logits)] = rank_keys(logits.T, numbers)
            self._counts += len(logits)
            return
        segments = places // num_classes
        columns = (places - segments * num_classes).astype(class_type(num_classes))
        keys = rank_keys(logits.ravel()[places], segments + first)
        found = np.bincount(columns, minlength=num_classes)
        self._make_room(found)
        by_class = np.argsort(columns, kind="stable")
        # From a key's place among those found to its place in its class's buffer.
        starts = np.arange(num_classes) * self._keys.shape[1] + self._counts
        shift = np.repeat(starts - (np.cumsum(found) - found), found)
        self._keys.ravel()[np.arange(len(keys)) + shift] = keys[by_class]
        self._counts += found

    def add_segments(
        self,
        video_ids: Sequence[bytes],
        rows: np.ndarray,
        starts: np.ndarray,
        source: str = "",
    ) -> None:
        """Adds n segments of B videos, as `add`, whose scores `add_scores` adds.

        Args:
            source: the file that they come from, for messages.
        """
        self._table.extend(video_ids, rows, starts, source=source)

    def add_scores(self, column: int, scores: np.ndarray, segments: np.ndarray) -> None:
        """Adds the scores float32 [n] of one class, of segments by their numbers [n],
        0, 1, ... in the order in which they were added."""
        keys = rank_keys(scores, segments)
        for at in range(0, len(keys), self._room):
            part = keys[at : at + self._room]
            found = np.zeros_like(self._counts)
            found[column] = len(part)
            self._make_room(found)
            count = self._counts[column]
            self._keys[column, count : count + len(part)] = part
            self._counts += found

    def _make_room(self, found: np.ndarray) -> None:
        """For `found` [K] more keys, of no class more than `self._room`."""
        wanted, size = self._counts + found, self._keys.shape[1]
        if size < min(wanted.max(), self._capacity):
            larger = max(wanted.max(), 2 * size)
            # While the keys are copied both arrays are there: no large one twice.
            larger = self._capacity if larger > self._capacity // 2 else larger
            keys = np.empty((len(self.classes), larger), np.uint64)
            keys[:, :size] = self._keys
            self._keys = keys
        for column in np.flatnonzero(wanted > self._capacity):
            self._select(column)

    def _select(self, column: int) -> None:
        """Keeps the best `limit` of a class that has more."""
        keys = self._keys[column, : self._counts[column]]
        keys.partition(self.limit - 1)
        self._counts[column] = self.limit
        last = keys[self.limit - 1 : self.limit]
        self._floor[column] = scores_of_keys(last)[0]

    def _best(self, column: int) -> np.ndarray:
        """The keys of a class's ranking, in its order."""
        return np.sort(self._keys[column, : self._counts[column]])[: self.limit]

    def write_csv(self, path: str) -> None:
        """Writes the submission, classes ascending; those of which all segments were
        dropped are left out.

        Raises:
            UserError: the file cannot be written.
        """
        text_of = self._table.formatter()
        with ReplacedFile(path) as file:
            file.write(HEADER + b"\n")
            for column in np.argsort(self.classes):
                numbers = _numbers(self._best(column))
                if not len(numbers) and self.num_segments:
                    continue
                line = b"%d,%s\n" % (self.classes[column], text_of(numbers))
                file.write(line)

    def write(self, path: str) -> None:
        """Writes the ranking with its scores, for `merge_rankings`.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            write_records(path, self._records())
        except (OSError, tf.errors.OpError) as e:
            raise UserError(f"{path} cannot be written: {runs.reason(e)}") from e

    def _records(self) -> Iterator[bytes]:
        """A header, the segments in the order in which they were added, the classes."""
        yield _encode(
            format=[_FORMAT],
            version=[_VERSION],
            limit=[self.limit],
            classes=self.classes.tolist(),
        )
        videos, starts = np.divmod(self._table.pairs, 1 << 32)
        yield _encode(
            video_ids=self._table.video_ids,
            videos=[videos.astype("<u4").tobytes()],
            starts=[starts.astype("<u4").tobytes()],
        )
        for column in range(len(self.classes)):
            keys = self._best(column)
            yield _encode(
                scores=[scores_of_keys(keys).astype("<f4").tobytes()],
                segments=[_numbers(keys).astype("<u4").tobytes()],
            )


def refuse_not_finite(
    video_ids: Sequence[bytes],
    rows: np.ndarray,
    starts: np.ndarray,
    logits: np.ndarray,
    dropped: bool = False,
) -> None:
    """Raises `DataError` for logits that are not finite; see `SegmentRanking.add`."""
    # Almost always true, and quickly known.
    finite = np.isfinite(logits)
    if finite.all():
        return
    right = (finite | (logits == -np.inf) if dropped else finite).all(axis=1)
    if not right.all():
        i = int(right.argmin())
        raise DataError(
            f"The scores of segment {as_text(video_ids[rows[i]])}:{starts[i]} are not "
            "finite numbers; the model's weights or the video's features are not "
            "either."
        )


def _numbers(keys: np.ndarray) -> np.ndarray:
    """The segments' numbers, the lower half of the keys."""
    return keys.astype(np.uint32)


class _SegmentTable:
    """Which segment has which number: 0, 1, ... as they come.

    Attributes:
        count: number of segments.
    """

    def __init__(self):
        self._videos: dict[bytes, int] = {}  # their numbers
        self._first_segments: list[int] = []  # of each video, or one before it
        # The video's number in the upper half, the start in the lower.
        self._pairs = np.empty(0, np.int64)
        self.count = 0
        self._sources: list[tuple[int, str]] = []  # first segment and file

    @property
    def video_ids(self) -> list[bytes]:
        return list(self._videos)

    @property
    def pairs(self) -> np.ndarray:
        return self._pairs[: self.count]

    def extend(
        self,
        video_ids: Iterable[bytes],
        rows: np.ndarray,
        starts: np.ndarray,
        source: str = "",
    ) -> None:
        """Numbers the next segments; `source` is the file that they come from.

        Raises:
            DataError: an id cannot stand in a CSV file, or a segment is there already.
        """
        known = len(self._videos)
        if source:
            self._sources.append((self.count, source))
        numbers = np.array([self._number(i) for i in video_ids], np.int64)
        videos = numbers[rows]
        pairs = videos << 32 | starts.astype(np.int64)
        old = videos[videos < known]
        since = min((self._first_segments[v] for v in set(old.tolist())), default=None)
        earlier = self.pairs[self.count if since is None else since :]
        self._first_segments += [self.count] * (len(self._videos) - known)
        both = np.concatenate([earlier, pairs])
        if len(np.unique(both)) < len(both):
            self._refuse_repeated(both, self.count - len(earlier), source)
        if self.count + len(pairs) > len(self._pairs):
            more = np.empty(max(len(pairs), self.count), np.int64)
            self._pairs = np.concatenate([self.pairs, more])
        self._pairs[self.count : self.count + len(pairs)] = pairs
        self.count += len(pairs)

    def _number(self, video_id: bytes) -> int:
        number = self._videos.setdefault(video_id, len(self._videos))
        if number == len(self._videos) - 1 and (
            not video_id or _BAD_IN_IDS.search(video_id)
        ):
            raise DataError(
                f"The video id {video_id!r} cannot stand in a submission: it is empty "
                "or holds a space, a comma, a quotation mark or a line end."
            )
        return number

    def _refuse_repeated(self, pairs: np.ndarray, first: int, source: str) -> None:
        values, counts = np.unique(pairs, return_counts=True)
        repeated = values[counts > 1][0]
        number = first + int(np.flatnonzero(pairs == repeated)[0])
        where = " is there twice"
        if source:
            earlier = next(s for at, s in reversed(self._sources) if at <= number)
            where = f" in {source} is in {earlier} already"
        raise DataError(
            f"Segment {as_text(_name(self.video_ids, repeated))}{where}; give every "
            "shard once."
        )

    def formatter(self) -> Callable[[np.ndarray], bytes]:
        """A function from segments' numbers to `b"video:start video:start ..."`."""
        ids = np.array(self.video_ids, "S")
        seconds = np.unique(self.pairs & _LOWER_HALF)
        starts = np.array([b":%d " % second for second in seconds.tolist()], "S")
        row = np.dtype([("id", ids.dtype), ("start", starts.dtype)])

        def text(numbers: np.ndarray) -> bytes:
            pairs = self.pairs[numbers]
            rows = np.empty(len(pairs), row)
            rows["id"] = ids[pairs >> 32]
            rows["start"] = starts[np.searchsorted(seconds, pairs & _LOWER_HALF)]
            # Shorter texts are padded with zero bytes.
            return rows.tobytes().translate(None, b"\0")[:-1]

        return text


def _name(video_ids: Sequence[bytes], pair: int) -> bytes:
    return b"%s:%d" % (video_ids[pair >> 32], pair & _LOWER_HALF)


# --- rankings in files, and merged ---------------------------------------------------


def _encode(**values: list) -> bytes:
    """An Example of lists of bytes or integers."""
    features = {}
    for name, items in values.items():
        if items and isinstance(items[0], bytes):
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=items))
        else:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=items))
        features[name] = feature
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString()


def is_ranking(path: str) -> bool:
    """Whether a file is a TFRecord file, as `SegmentRanking.write` makes it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return index.is_header(file.read(64))
    except (OSError, tf.errors.OpError) as e:
        raise UserError(f"{path} cannot be read: {runs.reason(e)}") from e


def _read_records(path: str) -> Iterator[Mapping[str, tf.train.Feature]]:
    """The features of each record of a ranking; the first is known to be a header."""
    for number, fault in index.scan(path).faults.items():
        raise DataError(f"{named(path, number, '', fault)}.")
    try:
        for i, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
            try:
                features = parse_message(record).context.feature
            except DataError as e:
                raise DataError(f"{named(path, i, '', str(e))}.") from e
            if i == 0 and features["format"].bytes_list.value[:] != [_FORMAT]:
                raise DataError(
                    f"{path} holds records, but no ranking of segments as inference "
                    "writes it for a part of the shards."
                )
            if i == 0 and features["version"].int64_list.value[:] != [_VERSION]:
                raise DataError(
                    f"{path} is of another version than this program; write it anew."
                )
            yield features
    except tf.errors.DataLossError as e:
        if fault := first_fault(path, lambda record: None):
            raise DataError(f"{fault}.") from e
        raise
    except tf.errors.OpError as e:
        raise DataError(f"{path} cannot be read: {runs.reason(e)}") from e


def merge_rankings(
    paths: Sequence[str],
    output_file: str,
    limit: int = schema.MAX_SEGMENTS_PER_CLASS,
) -> SegmentRanking:
    """Writes the ranking of all segments as CSV, from those of parts of them.

    The result is that of one ranking to which the parts were added in order. One part
    is read at a time, one class at a time; memory is that of a `SegmentRanking`.

    Args:
        paths: files that `SegmentRanking.write` wrote.
        output_file: compressed if it ends in `.gz`.
        limit: segments written of each class.

    Returns:
        The merged ranking.

    Raises:
        DataError: a file is damaged or no ranking, or a segment is in two of them.
        UserError: the files rank other classes or hold fewer than `limit` segments of
            them, or a file cannot be read or written.
    """
    ranking = None
    for path in paths:
        part = RankingFile(path)
        if ranking is None:
            ranking = SegmentRanking(part.classes, limit)
        elif not np.array_equal(part.classes, ranking.classes):
            raise UserError(
                f"{path} ranks other classes than {paths[0]}; merge parts that were "
                "written with the same classes."
            )
        first = ranking.num_segments
        if part.limit < min(limit, len(part.rows)):
            raise UserError(
                f"{path} keeps {part.limit} segments of a class, but {limit} are "
                "wanted; lower the limit or write it anew."
            )
        ranking.add_segments(part.video_ids, part.rows, part.starts, source=path)
        for column, (scores, segments) in enumerate(part.columns()):
            ranking.add_scores(column, scores, segments + first)
    if ranking is None:
        raise ValueError("`paths` must not be empty. Received: paths=[]")
    ranking.write_csv(output_file)
    return ranking


class RankingFile:
    """A file that `SegmentRanking.write` wrote.

    Args:
        path: the file.

    Attributes:
        classes: integers [K].
        limit: segments kept of a class, at most.
        video_ids: of B videos.
        rows, starts: of the N segments: the number of the video, the first second.

    Raises:
        DataError: it is damaged, or no ranking.
    """

    def __init__(self, path: str):
        self._path = path
        self._records = _read_records(path)
        header, table = next(self._records, None), next(self._records, None)
        if header is None or table is None:
            raise DataError(f"{path} is cut short; write it anew.")
        self.classes = np.array(header["classes"].int64_list.value)
        self.limit = int(header["limit"].int64_list.value[0])
        self.video_ids = table["video_ids"].bytes_list.value
        self.rows, self.starts = (
            _array(table, name, "<u4") for name in ("videos", "starts")
        )

    def columns(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each class the scores float32 [n] and the numbers int64 [n] of the
        segments that are ranked; to be called once.

        Raises:
            DataError: a class is missing.
        """
        column = -1
        for column, record in enumerate(self._records):  # noqa: B007
            segments = _array(record, "segments", "<u4").astype(np.int64)
            yield _array(record, "scores", "<f4"), segments
        if column + 1 < len(self.classes):
            raise DataError(f"{self._path} is cut short; write it anew.")


def _array(record: Mapping[str, tf.train.Feature], name: str, dtype: str) -> np.ndarray:
    return np.frombuffer(record[name].bytes_list.value[0], dtype)


# --- reading -------------------------------------------------------------------------


def is_segment_submission(path: str) -> bool:
    """Whether the first line is one of a submission of segments.

    Raises:
        UserError: the file cannot be read.
    """
    _, line = next(read_lines(path, _MAX_LINE_BYTES), (1, b""))
    return _is_header(line) or bool(_SEGMENT_LINE.match(line))


def _is_header(line: bytes) -> bool:
    return line.strip() in _HEADERS


def read_segment_submission(path: str) -> Iterator[tuple[int, list[bytes]]]:
    """Reads a submission of segments line by line.

    The header may be `Class,Segments`, `Class Id,Segment Ids`, or missing.

    Yields:
        A class, and its segments (`b"video:start"`), as listed.

    Raises:
        DataError: a line of another form; names file and line.
        UserError: the file cannot be read.
    """
    for number, line in read_lines(path, _MAX_LINE_BYTES):
        if number == 1 and _is_header(line):
            continue
        try:
            yield _parse(line)
        except ValueError:
            raise DataError(f"{path}, line {number}: {_line_fault(line)}") from None


def _parse(line: bytes) -> tuple[int, list[bytes]]:
    """Class and segments of a line; `ValueError` if it has another form."""
    label, comma, segments = line.partition(b",")
    if not comma or not label.strip().isdigit() or b"," in segments:
        raise ValueError
    return int(label), segments.split()


def _line_fault(line: bytes) -> str:
    return f"expected `class,video:start video:start ...`, found {quoted(line)}."


# --- checking ------------------------------------------------------------------------


def validate_segments(
    path: str,
    *,
    classes: Collection[int] | None = None,
    limit: int = schema.MAX_SEGMENTS_PER_CLASS,
    ids: Iterable[bytes] | None = None,
) -> Report:
    """Checks a submission of segments.

    The header; the form of each line; classes unique and, if `classes` are given,
    known; segments unique in their line, of the form `video:start` with a start that
    is a multiple of 5, and, if `ids` are given, of known videos; at most `limit` of
    them; the last line ended.

    Args:
        path: the file.
        classes: those that may be there.
        limit: the most segments of a class.
        ids: the videos that may be there.

    Raises:
        UserError: the file cannot be read.
    """
    problems = Problems(path)
    known_classes = None if classes is None else set(map(int, classes))
    known_ids = None if ids is None else set(ids)
    seen: dict[int, int] = {}  # the line of each class
    count, number, line = 0, 0, b""
    for number, line in read_lines(path, _MAX_LINE_BYTES):
        if number == 1 and line.rstrip() != HEADER:
            problems.add("wrong header", header_fault(HEADER, line), 1)
        if number == 1 and not _SEGMENT_LINE.match(line):
            continue
        count += 1
        try:
            label, segments = _parse(line)
        except ValueError:
            problems.add("malformed line", _line_fault(line), number)
            continue
        if label in seen:
            text = f"class {label} is in line {seen[label]} already."
            problems.add("repeated class", text, number)
        elif known_classes is not None and label not in known_classes:
            problems.add("unknown class", f"class {label} is not known.", number)
        seen.setdefault(label, number)
        for kind, text in _segment_faults(segments, limit, known_ids):
            problems.add(kind, text, number)
    if line and not line.endswith(b"\n"):
        problems.add("cut short", "the file does not end with a line end.", number)
    if not count:
        problems.add("empty", "there is no class.")
    return problems.report(count)


def _segment_faults(
    segments: list[bytes], limit: int, ids: set[bytes] | None
) -> Iterator[tuple[str, str]]:
    """Kind and description of each fault in the segments of one line."""
    if not segments:
        yield "no segment", "there is no segment."
    if len(segments) > limit:
        text = f"{len(segments):,} segments, at most {limit:,} are allowed."
        yield "too many segments", text
    if len(set(segments)) < len(segments):
        bad = _first_repeated(segments)
        yield "repeated segment", f"segment {as_text(bad)} is there twice."
    for segment in segments:
        if not _SEGMENT.fullmatch(segment):
            text = f"expected `video:start`, found {quoted(segment)}."
            yield "malformed segment", text
        elif segment[-1] not in b"05":
            text = f"segment {as_text(segment)} does not start at a multiple of 5."
            yield "wrong start", text
        elif ids is not None and segment.rpartition(b":")[0] not in ids:
            text = f"the video of segment {as_text(segment)} is not in the shards."
            yield "unknown video", text


def _first_repeated(segments: list[bytes]) -> bytes:
    seen: set[bytes] = set()
    return next(s for s in segments if s in seen or seen.add(s))


# --- scoring -------------------------------------------------------------------------


def segment_average_precisions(
    path: str, ratings: Mapping[int, Mapping[bytes, int]], top_n: int = 0
) -> dict[int, float]:
    """Average precision of each class of a submission against people's ratings.

    A ranking is cut after `top_n` segments; of what is left only segments that were
    rated for the class count. The precisions at the ranks of the positives are summed
    and divided by the number of all positives of the class, ranked or not.

    Args:
        path: the submission.
        ratings: class -> segment (`b"video:start"`) -> 1 or 0.
        top_n: 0 cuts nothing.

    Returns:
        The value of every class that has a positive rating, classes ascending; 0 for
        one that is not in the file. Classes without a positive are not there.

    Raises:
        DataError: no such submission, or a class or rated segment that is there twice.
        UserError: the file cannot be read.

    Source: the metric of the competition of 2019, "The 3rd YouTube-8M Video
    Understanding Challenge", MAP@K with K = 100,000.
    """
    found = {c: 0.0 for c in sorted(ratings) if any(ratings[c].values())}
    seen: set[int] = set()
    for label, segments in read_segment_submission(path):
        if label in seen:
            raise DataError(f"{path} has two lines of class {label}.")
        seen.add(label)
        if label not in found:
            continue
        rated = ratings[label]
        segments = segments[: top_n or None]
        listed = list(compress(segments, map(rated.__contains__, segments)))
        if len(set(listed)) < len(listed):
            bad = as_text(_first_repeated(listed))
            raise DataError(f"{path} lists segment {bad} twice for class {label}.")
        ranks = np.flatnonzero([rated[s] for s in listed]) + 1
        found[label] = precision_sum(ranks) / sum(rated.values())
    return found
