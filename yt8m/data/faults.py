"""What is wrong with a record, in words; asked only after reading has failed."""

from collections.abc import Collection

import numpy as np
import tensorflow as tf

from yt8m.config import DataConfig
from yt8m.data.files import describe
from yt8m.data.records import Record, decode_record, parse_batch, read_id
from yt8m.data.segments import cut, rated_cells
from yt8m.errors import DataError


def find_fault(
    serialized: bytes, config: DataConfig, float_features: Collection[str] = ()
) -> tuple[str, str | None]:
    """The record's id, as far as it is known, and its fault; None if it parses.

    If segments are wanted, the record is the video's, uncut; it parses if each of its
    rated segments does.
    """
    video_id = read_id(serialized)
    try:
        examples = (
            cut(serialized, config.segment_context_frames)
            if config.segments
            else [serialized]
        )
        if examples:
            parse_batch(tf.constant(examples), config, float_features=float_features)
    except DataError as e:
        reason = str(e)
    except tf.errors.OpError as e:
        reason = f"it cannot be parsed: {e.message.splitlines()[0]}"
    else:
        return video_id, None
    if not serialized:
        return video_id, "the record is empty"
    try:
        record = decode_record(serialized)
    except DataError as e:
        return video_id, str(e)
    fault = _wrong_features(record, config, float_features)
    if not fault and config.segments:
        fault = _wrong_segments(record, config)
    elif not fault:
        fault = _wrong_labels(record.labels or [], config.num_classes, "label")
    return video_id, fault or reason


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
