"""Predictions as JSON lines, as a prediction service writes them, read and converted.

A line is an object with the outputs of an export's `serve_examples` for one video:

    {"video_id": "xv4a", "class_indexes": [3, 12], "predictions": [0.998, 1e-05]}

Each value may stand in a list of its own, `["xv4a"]`, as it did in the files of Cloud
ML Engine's batch prediction. Vertex AI's batch prediction puts the object under
`prediction`, beside the `instance` that it sent; TensorFlow Serving answers one
request with a list of them under `predictions` (on one line by `jq -c`). Both are
told by their keys and taken too; other keys are left alone. Paths may be remote.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m import runs
from yt8m.errors import DataError, UserError
from yt8m.inference.submission import SubmissionWriter

_KEYS = ("video_id", "class_indexes", "predictions")
_BLOCK_BYTES = 1 << 20
# A video's frames as JSON numbers, should the service repeat what it was sent.
_MAX_LINE_BYTES = 64 << 20


def convert(files: Iterable[str], output_file: str) -> int:
    """Writes the submission of the videos of `files`, each video's best class first.

    Args:
        files: paths, taken in the order of their numbers: `part-2` before `part-10`.
        output_file: CSV; gzipped if it ends in `.gz`; may be remote.

    Returns:
        The number of videos.

    Raises:
        DataError: a line is no prediction, or a video is there twice; names the file
            and the line or the video.
        UserError: a file cannot be read or written.
    """
    seen: set[bytes] = set()
    with SubmissionWriter(output_file) as writer:
        for path in sorted(files, key=_natural):
            for video_id, classes, scores in read_json_predictions(path):
                if video_id in seen:
                    raise DataError(
                        f"{path}: video {video_id.decode()} is there twice, or in a "
                        "file before; each one has one line in a submission."
                    )
                seen.add(video_id)
                # Among equal scores the lower class comes first.
                order = np.lexsort((classes, -scores))
                writer.write([video_id], classes[None, order], scores[None, order])
    return writer.count


def read_json_predictions(path: str) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """Reads a file of JSON lines; empty lines count, but say nothing.

    Yields:
        The video's id, its classes int32 [k] and their scores float64 [k], k > 0, as
        they stand in the file.

    Raises:
        DataError: a line is no prediction; names file and line.
        UserError: the file cannot be read.
    """
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            yield from [_prediction(value) for value in _objects(json.loads(line))]
        except json.JSONDecodeError as e:
            raise DataError(
                f"{path}, line {number}: not JSON: {e.msg}, at character {e.pos + 1}."
            ) from e
        except (ValueError, OverflowError, RecursionError) as e:
            raise DataError(f"{path}, line {number}: {e}.") from e


def _objects(value: Any) -> list[Any]:
    """The predictions of a line, taken out of what services put around them."""
    if isinstance(value, dict) and not value.keys() & {"video_id", "class_indexes"}:
        if "error" in value:
            raise ValueError(f"the service reports an error: {value['error']}")
        if "prediction" in value:
            return [value["prediction"]]
        if isinstance(value.get("predictions"), list):
            return value["predictions"]
    return [value]


def _prediction(value: Any) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Id, classes, scores; `ValueError` if it has another form."""
    if not isinstance(value, dict) or any(key not in value for key in _KEYS):
        raise ValueError(f"expected an object with the keys {', '.join(_KEYS)}")
    video_id = value["video_id"]
    if isinstance(video_id, list) and len(video_id) == 1:
        video_id = video_id[0]
    if not isinstance(video_id, str):
        raise ValueError("video_id must be a text")
    classes, scores = (_flat(value[key]) for key in _KEYS[1:])
    if not classes or len(classes) != len(scores):
        raise ValueError(
            f"{len(classes)} class_indexes and {len(scores)} predictions; there must "
            "be as many, and at least one"
        )
    if any(type(c) is not int or not 0 <= c < 2**31 for c in classes):
        raise ValueError("class_indexes must be whole numbers, not negative")
    if any(type(s) not in (int, float) or not math.isfinite(s) for s in scores):
        raise ValueError("predictions must be finite numbers")
    return (
        video_id.encode(),
        np.array(classes, np.int32),
        np.array(scores, np.float64),
    )


def _flat(values: Any) -> list[Any]:
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return values if isinstance(values, list) else [values]


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and lines."""
    count, rest = 0, b""
    try:
        with tf.io.gfile.GFile(path, "rb") as f:
            while block := f.read(_BLOCK_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                yield from enumerate(lines, count + 1)
                count += len(lines)
                if len(rest) > _MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}, line {count + 1}: longer than {_MAX_LINE_BYTES} "
                        "bytes; this is not a file of JSON lines."
                    )
    except (OSError, tf.errors.OpError) as e:
        raise UserError(f"{path} cannot be read: {runs.reason(e)}") from e
    if rest:
        yield count + 1, rest


def _natural(path: str) -> list[tuple[str, int]]:
    """Compares the numbers in a path by their value."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", path)
    return [(text, int(number or -1)) for text, number in parts]
