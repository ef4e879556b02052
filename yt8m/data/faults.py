"""What is wrong with a record or file; asked only after reading has failed."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import schema
from yt8m.config import DataConfig
from yt8m.data.files import describe, sniff
from yt8m.data.index import scan
from yt8m.data.records import (
    Record,
    decode_record,
    find_id,
    parse_batch,
    parse_message,
    read_id,
)
from yt8m.data.segments import cut, rated_cells
from yt8m.errors import DataError, reason

_VALUES = {"bytes_list": "bytes", "float_list": "floats", "int64_list": "integers"}


def find_fault(
    serialized: bytes,
    config: DataConfig,
    float_features: Collection[str] = (),
    needs_id: bool = False,
    video_labels: bool = False,
) -> tuple[str, str | None]:
    """The record's id, as far as it is known, and its fault; None if it parses.

    If segments are wanted, the record is the video's, uncut; it parses if each of its
    rated segments does. If ids are needed, one without is at fault, too; so are wrong
    labels of a whole video if segments come with them.
    """
    video_id = read_id(serialized)
    try:
        examples = (
            cut(serialized, config.segment_context_frames)
            if config.segments
            else [serialized]
        )
        if examples:
            parse_batch(
                tf.constant(examples),
                config,
                float_features=float_features,
                video_labels=video_labels,
            )
    except DataError as e:
        said = str(e)
    except tf.errors.OpError as e:
        said = f"it cannot be parsed: {reason(e)}"
    else:
        return video_id, find_context_fault(serialized) if needs_id else None
    if not serialized:
        return video_id, "the record is empty"
    try:
        record = decode_record(serialized)
    except DataError as e:
        return video_id, str(e)
    context = parse_message(serialized).context.feature
    fault = _wrong_kinds(context) or _wrong_features(record, config, float_features)
    if not fault and config.segments:
        fault = _wrong_segments(record, config)
    if not fault and (video_labels or not config.segments):
        fault = _wrong_labels(record.labels or [], config.num_classes, "label")
    return video_id, fault or said


def find_context_fault(serialized: bytes) -> str | None:
    """What is wrong with the id and the labels of a record, whatever its features."""
    if not serialized:
        return "the record is empty"
    try:
        context = parse_message(serialized).context.feature
    except DataError as e:
        return str(e)
    if fault := _wrong_kinds(context):
        return fault
    if not find_id(context)[1]:
        return f"it has no id (no key {' or '.join(schema.ID_KEYS)})"
    labels = context[schema.LABELS_KEY].int64_list.value if _labelled(context) else []
    negative = [label for label in labels if label < 0]
    return f"label {negative[0]} is negative" if negative else None


def _labelled(context: Any) -> bool:
    return schema.LABELS_KEY in context


def _wrong_kinds(context: Any) -> str | None:
    """An id or labels that hold other values than they should."""
    for key, wanted in (
        *((key, "bytes_list") for key in schema.ID_KEYS),
        (schema.LABELS_KEY, "int64_list"),
    ):
        kind = context[key].WhichOneof("kind") if key in context else None
        if kind not in (None, wanted):
            return f"{key} holds {_VALUES[kind]}, {_VALUES[wanted]} wanted"
        if kind == "bytes_list" and len(context[key].bytes_list.value) > 1:
            return f"{key} holds {len(context[key].bytes_list.value)} ids, one wanted"
    return None


def first_fault(
    path: str, find: Callable[[bytes], str | None] = find_context_fault
) -> str | None:
    """What is wrong with the first bad record of a file, and which it is; or None.

    Reads the whole file, a record at a time: for when reading it has failed.

    Args:
        path: of a TFRecord file.
        find: what is wrong with a record that is not damaged.

    Raises:
        DataError: the file cannot be read, or is of another kind; names it.
    """
    sniff(path)
    faults, number = scan(path).faults, 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            if fault := find(record):
                return named(path, number, read_id(record), fault)
            number += 1
    except tf.errors.DataLossError:
        damage = faults.get(number, "the record is corrupted (checksum)")
        return named(path, number, "", damage)
    except tf.errors.OpError as e:
        raise DataError(f"{path} cannot be read: {reason(e)}") from e
    # What is shorter than a header, TensorFlow takes for the end of the file.
    return next((named(path, n, "", f) for n, f in faults.items()), None)


def named(path: str, number: int, video_id: str, fault: str) -> str:
    """`FILE, record 3 (id xv4a): what is wrong`."""
    video = f" (id {video_id})" if video_id else ""
    return f"{path}, record {number}{video}: {fault}"


def _wrong_features(
    record: Record, config: DataConfig, float_features: Collection[str]
) -> str | None:
    found = {name: array.shape[-1] for name, array in record.features.items()}
    if record.level != config.level:
        return (
            f"it is a {record.level}-level record ({describe(found) or 'no features'}),"
            f" where {config.level}-level ones are wanted"
        )
    frames: dict[str, int] = {}
    for name, size in config.features.items():
        if name not in record.features:
            return f"feature {name} is missing; features found: {describe(found)}"
        array = record.features[name]
        floats = config.level == "video" or name in float_features
        kind = "bytes" if array.dtype == np.uint8 else "floats"
        if array.size and kind != ("floats" if floats else "bytes"):
            wanted = "floats" if floats else "bytes"
            return f"feature {name} holds {kind}, {wanted} wanted"
        if array.size and array.shape[-1] != size:
            values = "values" if config.level == "video" else f"{kind} a frame"
            return (
                f"feature {name} has {found[name]} {values}, {size} wanted; features "
                f"found: {describe(found)}"
            )
        if np.isnan(array).any():
            return f"feature {name} holds NaN"
        if not np.isfinite(array).all():
            return f"feature {name} holds an infinite value"
        frames[name] = len(array)
    if config.level == "frame" and len(set(frames.values())) > 1:
        return f"its features differ in their number of frames: {describe(frames)}"
    return None


def _wrong_segments(record: Record, config: DataConfig) -> str | None:
    if record.segments is None:
        return None
    first = next(iter(config.features))
    try:
        rated_cells(record.segments, len(record.features[first]))
    except DataError as e:
        return str(e)
    return _wrong_labels(record.segments.labels, config.num_classes, "segment label")


def _wrong_labels(labels: list[int], num_classes: int, what: str) -> str | None:
    for label in labels:
        if not 0 <= label < num_classes:
            return (
                f"{what} {label} is outside 0..{num_classes - 1} "
                f"(--num_classes={num_classes})"
            )
    return None
