"""What is wrong with a record, in words; asked only after reading has failed."""

from collections.abc import Collection

import numpy as np
import tensorflow as tf

from yt8m.config import DataConfig
from yt8m.data.files import describe
from yt8m.data.records import Record, decode_record, parse_batch, read_id
from yt8m.errors import DataError


def find_fault(
    serialized: bytes, config: DataConfig, float_features: Collection[str] = ()
) -> tuple[str, str | None]:
    """The record's id, as far as it is known, and its fault; None if it parses."""
    video_id = read_id(serialized)
    try:
        parse_batch(tf.constant([serialized]), config, float_features=float_features)
    except tf.errors.OpError as e:
        parser_says = e.message.splitlines()[0]
    else:
        return video_id, None
    if not serialized:
        return video_id, "the record is empty"
    try:
        record = decode_record(serialized)
    except DataError as e:
        return video_id, str(e)
    fault = _wrong_features(record, config, float_features) or _wrong_labels(
        record, config.num_classes
    )
    return video_id, fault or f"it cannot be parsed: {parser_says}"


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


def _wrong_labels(record: Record, num_classes: int) -> str | None:
    for label in record.labels or []:
        if not 0 <= label < num_classes:
            return (
                f"label {label} is outside 0..{num_classes - 1} "
                f"(--num_classes={num_classes})"
            )
    return None
