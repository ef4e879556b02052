"""The dataset's records: written, decoded, and parsed a batch at a time.

A video-level record is a `tf.train.Example` of float lists; a frame-level record is a
`tf.train.SequenceExample` whose feature lists hold one entry a frame: a string of
`size` bytes, or a float list of `size`. Both carry the video's id and, outside the
test split, its labels. `_KINDS` says for each kind of feature how it is written and
how it is parsed. A frame-level record may have rated segments, which
`yt8m.data.segments` cuts into records of their own; those are parsed here too. The
letters: B records, T frames, C classes.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import schema, whole_files
from yt8m.config import DataConfig, FrameAugmentation
from yt8m.data.frames import scene_breaks, select_frames
from yt8m.errors import DataError, UserError, reason

Batch = dict[str, tf.Tensor]

# The first frame's number, in the record of one segment; its ratings are under the
# same keys as in the video's record.
CUT_START_KEY = "segment_start"
_NO_START = -1


@dataclass(frozen=True)
class _Kind:
    """How one row (a frame, or a video-level feature) is written, decoded, parsed."""

    fill: Callable[[Any, np.ndarray], None]
    decode: Callable[[Any], np.ndarray]
    frame_spec: Callable[[int], Any]
    video_spec: Callable[[int], Any]


_KINDS = {
    "bytes": _Kind(
        fill=lambda f, row: f.bytes_list.value.append(row.tobytes()),
        decode=lambda f: np.frombuffer(b"".join(f.bytes_list.value), np.uint8),
        frame_spec=lambda size: tf.io.FixedLenSequenceFeature([], tf.string),
        video_spec=lambda size: tf.io.FixedLenFeature([], tf.string),
    ),
    "float": _Kind(
        fill=lambda f, row: f.float_list.value.extend(row.tolist()),
        decode=lambda f: np.asarray(f.float_list.value, np.float32),
        frame_spec=lambda size: tf.io.FixedLenSequenceFeature([size], tf.float32),
        video_spec=lambda size: tf.io.FixedLenFeature([size], tf.float32),
    ),
}


@dataclass(frozen=True)
class SegmentRatings:
    """The lists of a record's rated segments, as they stand in it.

    Well formed, they are of equal length: an entry for each pair of a segment and a
    class. `yt8m.data.segments` checks them.

    Attributes:
        labels: the class.
        starts: the segment's first frame, in seconds.
        ends: where it ends, in seconds; may be empty.
        scores: 1 if the segment shows the class, else 0.
    """

    labels: list[int]
    starts: list[int]
    ends: list[int]
    scores: list[float]


_RATING_KEYS = {
    "labels": schema.SEGMENT_LABELS_KEY,
    "starts": schema.SEGMENT_STARTS_KEY,
    "ends": schema.SEGMENT_ENDS_KEY,
    "scores": schema.SEGMENT_SCORES_KEY,
}


@dataclass(frozen=True)
class Record:
    """A decoded record.

    Attributes:
        id: the video's id; empty if the record has none.
        id_key: the key that held it, one of `schema.ID_KEYS`, or None.
        level: `"frame"` or `"video"`.
        labels: sorted; None if the record has no such key (the test split).
        features: arrays [T, size] at frame level, [size] at video level; uint8 or
            float32.
        segments: the ratings of its segments; None if it has none of their keys.
    """

    id: str
    id_key: str | None
    level: str
    labels: list[int] | None
    features: dict[str, np.ndarray]
    segments: SegmentRatings | None = None


def write_records(path: str | os.PathLike, records: Iterable[bytes]) -> int:
    """Writes a TFRecord file under a temporary name, renames it, counts the records.

    Raises:
        UserError: it cannot be written; errors of `records` are raised as they are.
    """
    path, count = os.fspath(path), 0
    temporary = whole_files.temporary_name(path)
    try:
        with _explained(path):
            opened = tf.io.TFRecordWriter(temporary)
        with opened as writer:
            for record in records:
                with _explained(path):
                    writer.write(record)
                count += 1
            with _explained(path):  # what was buffered is written now
                writer.close()
        with _explained(path):
            tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)
        raise
    return count


@contextlib.contextmanager
def _explained(path: str):
    """Words an error of writing, lest it be taken for one of what is read."""
    try:
        yield
    except (OSError, tf.errors.OpError) as e:
        raise UserError(f"{path} cannot be written: {reason(e)}") from e


def encode_frame_record(
    video_id: str | bytes,
    features: dict[str, np.ndarray],
    labels: Sequence[int] | None,
    id_key: str = "id",
    segments: SegmentRatings | None = None,
) -> bytes:
    """A SequenceExample of features [T, size].

    Args:
        features: uint8 arrays become one string a frame, others one float list.
        labels: None leaves the key out.
        id_key: one of `schema.ID_KEYS`.
        segments: the ratings of its segments; None leaves their keys out.
    """
    message = tf.train.SequenceExample(context=_context(video_id, labels, id_key))
    if segments is not None:
        for name, key in _RATING_KEYS.items():
            feature, values = message.context.feature[key], getattr(segments, name)
            kind = feature.float_list if name == "scores" else feature.int64_list
            kind.value.extend(values)
    for name, frames in features.items():
        fill = _KINDS["bytes" if frames.dtype == np.uint8 else "float"].fill
        # Asking for the entry makes it, also for a feature without frames. Filled in
        # place: this is three times as fast as copying a message a frame.
        rows = message.feature_lists.feature_list[name].feature
        for frame in frames:
            fill(rows.add(), frame)
    return message.SerializeToString(deterministic=True)


def encode_video_record(
    video_id: str | bytes,
    features: dict[str, np.ndarray],
    labels: Sequence[int] | None,
    id_key: str = "id",
) -> bytes:
    """An Example of float features [size]; arguments as `encode_frame_record`."""
    message = tf.train.Example(features=_context(video_id, labels, id_key))
    for name, values in features.items():
        _KINDS["float"].fill(message.features.feature[name], values)
    return message.SerializeToString(deterministic=True)


def _context(video_id: str | bytes, labels: Sequence[int] | None, id_key: str):
    if id_key not in schema.ID_KEYS:
        raise ValueError(
            f"`id_key` must be one of {schema.ID_KEYS}. Received: id_key={id_key!r}"
        )
    if isinstance(video_id, str):
        video_id = video_id.encode()
    feature = {id_key: _bytes_feature(video_id)}
    if labels is not None:
        feature[schema.LABELS_KEY] = tf.train.Feature(
            int64_list=tf.train.Int64List(value=[int(label) for label in labels])
        )
    return tf.train.Features(feature=feature)


def _bytes_feature(value: bytes):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def decode_record(serialized: bytes) -> Record:
    """Decodes one record of either level, without TensorFlow's parser.

    Raises:
        DataError: the bytes are no such record, or its frames differ in size. The
            message does not name the record: the caller knows it.
    """
    message = parse_message(serialized)
    context, lists = message.context.feature, message.feature_lists.feature_list
    id_key, video_id = find_id(context)
    labels = None
    if schema.LABELS_KEY in context:
        labels = sorted(context[schema.LABELS_KEY].int64_list.value)
    if lists:
        features = {name: _decode_frames(name, lists[name]) for name in lists}
    else:
        features = {
            name: _KINDS[kind].decode(feature)
            for name, feature in context.items()
            if name not in schema.ID_KEYS and (kind := _kind_of(feature))
        }
    return Record(
        id=video_id,
        id_key=id_key,
        level="frame" if lists else "video",
        labels=labels,
        features=dict(sorted(features.items())),
        segments=decode_ratings(context),
    )


def decode_ratings(context: Any) -> SegmentRatings | None:
    """The lists of rated segments in a context, whatever kind of values they hold."""
    if not any(key in context for key in _RATING_KEYS.values()):
        return None
    return SegmentRatings(
        **{
            name: _values(context[key]) if key in context else []
            for name, key in _RATING_KEYS.items()
        }
    )


def _values(feature: Any) -> list[Any]:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def read_id(serialized: bytes) -> str:
    """The id of a record, otherwise broken perhaps; empty if there is none."""
    try:
        return find_id(parse_message(serialized).context.feature)[1]
    except DataError:
        return ""


def parse_message(serialized: bytes) -> Any:
    """The SequenceExample. Raises `DataError` if the bytes are none."""
    try:
        # An Example is a SequenceExample that has only a context, on the wire.
        return tf.train.SequenceExample.FromString(bytes(serialized))
    except Exception as e:  # protobuf's implementations raise different ones
        raise DataError("it is not a protobuf of TensorFlow's examples") from e


def find_id(context: Any) -> tuple[str | None, str]:
    """The key of the id, or None, and the id."""
    key = next((key for key in schema.ID_KEYS if key in context), None)
    values = context[key].bytes_list.value if key else []
    return key, values[0].decode(errors="replace") if values else ""


def _kind_of(feature: Any) -> str | None:
    """`"bytes"`, `"float"`, or None for integers and empty features."""
    kind = (feature.WhichOneof("kind") or "").removesuffix("_list")
    return kind if kind in _KINDS else None


def _decode_frames(name: str, frames: Any) -> np.ndarray:
    """One feature list as [T, size]."""
    rows = []
    for i, frame in enumerate(frames.feature):
        kind = _kind_of(frame)
        if kind is None:
            raise DataError(f"frame {i} of {name} is empty")
        rows.append(_KINDS[kind].decode(frame))
        if rows[i].size != rows[0].size or rows[i].dtype != rows[0].dtype:
            raise DataError(
                f"frame {i} of {name} has {_amount(rows[i])}, where frame 0 has "
                f"{_amount(rows[0])}"
            )
    return np.stack(rows) if rows else np.zeros((0, 0), np.uint8)


def _amount(row: np.ndarray) -> str:
    return f"{row.size} {'bytes' if row.dtype == np.uint8 else 'floats'}"


def parse_batch(serialized: tf.Tensor, config: DataConfig, **kwargs):
    """`parse_frame_batch` or `parse_video_batch`, by the level of `config`."""
    if config.level == "frame":
        return parse_frame_batch(serialized, config, **kwargs)
    return parse_video_batch(serialized, config)


def parse_frame_batch(
    serialized: tf.Tensor,
    config: DataConfig,
    *,
    float_features: Collection[str] = (),
    seed: tf.Tensor | None = None,
    rows: tuple[tf.Tensor, int] | None = None,
    static_frames: bool = False,
    augmentation: FrameAugmentation | None = None,
    video_labels: bool = False,
) -> tuple[Batch, Batch]:
    """Parses serialized SequenceExamples at once; frames are chosen, then decoded.

    Args:
        serialized: string [B].
        config: names and sizes of the features, classes, frames to take. With
            `config.segments`, the records are those that `segments.cut` makes.
        float_features: the names of those that hold floats; the others hold bytes.
        seed: int [2] for the random choice of frames; None takes those of evaluation.
        rows: where the records are part of a larger batch: int32 [B], which of its
            rows they are, and its size. Random frames do not depend on the part.
        static_frames: pad to T = `config.frames.count`, or, if all frames are taken,
            to `config.max_frames` or `config.segment_frames`; otherwise T is the
            longest video of the batch.
        augmentation: what is done to the frames, where a seed is given.
        video_labels: whether segments come with the labels of their videos.

    Returns:
        Device features: each feature uint8 (bytes) or float32 (floats) [B, T, size],
        whose rows from `num_frames` on may hold anything; `num_frames` int32 [B];
        `labels` uint8 [B, C], zeros for a record without labels. And host metadata:
        `id` string [B].

        Of segments: `labels` are 1 where a rater saw the class, `label_weights`
        uint8 [B, C] are 1 where a rater looked for it, and the host metadata has
        `segment_start` int64 [B] too. If they are wanted, `video_labels` uint8 [B, C]
        are those of the whole video.

    Raises:
        tf.errors.InvalidArgumentError: a record lacks a feature, has it in another
            kind or size, has a NaN, a label outside 0 .. C-1, or features that
            differ in their number of frames; or a segment is wanted and it is none,
            or one without frames. `yt8m.data.faults` says which record.
    """
    max_frames = config.segment_frames if config.segments else config.max_frames
    kinds = {n: "float" if n in float_features else "bytes" for n in config.features}
    context, frames, lengths = tf.io.parse_sequence_example(
        serialized,
        _context_spec() | (_segment_spec() if config.segments else {}),
        {n: _KINDS[kinds[n]].frame_spec(size) for n, size in config.features.items()},
    )
    first = lengths[next(iter(config.features))]
    num_frames = tf.minimum(tf.cast(first, tf.int32), max_frames)
    rows_of = {}
    for name, size in config.features.items():
        checks = [tf.debugging.assert_equal(lengths[name], first)]
        if kinds[name] == "bytes":
            checks += _check_bytes(frames[name], first, size)
        with tf.control_dependencies(checks):
            rows_of[name] = tf.identity(frames[name])

    def decode(name, values):  # string [B, T] or float32 [B, T, size]
        if kinds[name] == "bytes":
            return tf.io.decode_raw(
                values, tf.uint8, fixed_length=config.features[name]
            )
        _check_finite(values)
        return values

    selection = config.frames if seed is not None else config.frames.evaluated()
    if config.segments:  # of a few frames, none of which is an opening
        selection = dataclasses.replace(selection, skip_first=0)
    # Copying a frame as a string costs about four times its decoding.
    few = 4 * (selection.count or max_frames) <= max_frames
    breaks, indices = None, None
    if selection.scene_threshold is not None:
        few = False  # all frames are looked at
        rows_of = {name: decode(name, values) for name, values in rows_of.items()}
        breaks = scene_breaks(
            list(rows_of.values()), selection.scene_threshold, max_frames
        )
    if selection.count or selection.skip_first or augmentation or breaks is not None:
        indices, num_frames = select_frames(
            num_frames,
            selection,
            seed,
            rows=rows,
            max_frames=max_frames,
            breaks=breaks,
            augmentation=augmentation,
        )
    batch = {}
    for name, size in config.features.items():
        values = rows_of[name]
        if few:
            values = tf.gather(values, indices, batch_dims=1)
        if breaks is None:
            values = decode(name, values)
        if indices is None:
            values = values[:, :max_frames]
        elif not few:
            values = tf.gather(values, indices, batch_dims=1)
        if static_frames:
            length = selection.count or max_frames
            values = tf.pad(values, [[0, 0], [0, length - tf.shape(values)[1]], [0, 0]])
            values = tf.ensure_shape(values, [None, length, size])
        batch[name] = tf.ensure_shape(values, [None, None, size])
    batch["num_frames"] = num_frames
    if config.segments:
        checks = [
            tf.debugging.assert_positive(first),
            tf.debugging.assert_none_equal(
                context[CUT_START_KEY], tf.constant(_NO_START, tf.int64)
            ),
        ]
        with tf.control_dependencies(checks):
            if video_labels:
                batch["video_labels"] = _labels(context, config.num_classes)
            return _with_ratings(batch, context, config.num_classes)
    return _with_labels(batch, context, config.num_classes)


def parse_video_batch(serialized: tf.Tensor, config: DataConfig) -> tuple[Batch, Batch]:
    """Parses serialized Examples [B] at once.

    Returns:
        As `parse_frame_batch`, with each feature float32 [B, size].

    Raises:
        tf.errors.InvalidArgumentError: as `parse_frame_batch`.
    """
    spec = {n: _KINDS["float"].video_spec(size) for n, size in config.features.items()}
    parsed = tf.io.parse_example(serialized, _context_spec() | spec)
    batch = {name: parsed[name] for name in config.features}
    for name in config.features:
        _check_finite(parsed[name])
    return _with_labels(batch, parsed, config.num_classes)


def _context_spec() -> dict[str, Any]:
    spec = _id_spec()
    spec[schema.LABELS_KEY] = tf.io.VarLenFeature(tf.int64)
    return spec


def _segment_spec() -> dict[str, Any]:
    spec = _id_spec()
    # Without a default, no batch without records could be parsed.
    spec[CUT_START_KEY] = tf.io.FixedLenFeature([], tf.int64, _NO_START)
    spec[schema.SEGMENT_LABELS_KEY] = tf.io.VarLenFeature(tf.int64)
    spec[schema.SEGMENT_SCORES_KEY] = tf.io.VarLenFeature(tf.float32)
    return spec


def _id_spec() -> dict[str, Any]:
    return {k: tf.io.FixedLenFeature([], tf.string, "") for k in schema.ID_KEYS}


def _check_bytes(rows: tf.Tensor, lengths: tf.Tensor, size: int) -> list[Any]:
    """Checks that each frame holds `size` bytes; `decode_raw` would pad or cut.

    Padding is the empty string, so that all frames are right if none is longer and
    their sum is right.
    """
    sizes = tf.strings.length(rows)
    total = tf.reduce_sum(tf.cast(sizes, tf.int64))
    return [
        tf.debugging.assert_less_equal(sizes, size),
        tf.debugging.assert_equal(total, size * tf.reduce_sum(lengths)),
    ]


def _check_finite(values: tf.Tensor):
    # A third of the time of `tf.debugging.check_numerics`.
    tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(values)), ["not finite"])


def _with_labels(
    batch: Batch, context: dict[str, Any], num_classes: int
) -> tuple[Batch, Batch]:
    batch["labels"] = _labels(context, num_classes)
    return batch, {"id": _ids(context)}


def _labels(context: dict[str, Any], num_classes: int) -> tf.Tensor:
    """The labels of videos: uint8 [B, C]."""
    labels = context[schema.LABELS_KEY]
    ones = tf.ones_like(labels.values, tf.uint8)
    return _scatter(labels, ones, tf.size(_ids(context)), num_classes)


def _with_ratings(
    batch: Batch, context: dict[str, Any], num_classes: int
) -> tuple[Batch, Batch]:
    labels, scores = (
        context[key] for key in (schema.SEGMENT_LABELS_KEY, schema.SEGMENT_SCORES_KEY)
    )
    video_ids = _ids(context)
    with tf.control_dependencies(
        [tf.debugging.assert_equal(labels.indices, scores.indices)]
    ):
        seen = tf.cast(scores.values > 0, tf.uint8)
    for name, values in (("labels", seen), ("label_weights", tf.ones_like(seen))):
        batch[name] = _scatter(labels, values, tf.size(video_ids), num_classes)
    return batch, {"id": video_ids, CUT_START_KEY: context[CUT_START_KEY]}


def _ids(context: dict[str, Any]) -> tf.Tensor:
    key, other_key = schema.ID_KEYS
    return tf.where(context[key] != "", context[key], context[other_key])


def _scatter(
    labels: tf.SparseTensor, values: tf.Tensor, batch: tf.Tensor, num_classes: int
) -> tf.Tensor:
    """The value of each label at its class: uint8 [B, C], zeros elsewhere."""
    checks = [
        tf.debugging.assert_non_negative(labels.values),
        tf.debugging.assert_less(labels.values, tf.cast(num_classes, tf.int64)),
    ]
    with tf.control_dependencies(checks):
        cells = tf.stack([labels.indices[:, 0], labels.values], axis=1)
        # An update, not a sum: a label listed twice is still one.
        return tf.tensor_scatter_nd_update(
            tf.zeros([batch, num_classes], tf.uint8), cells, values
        )
