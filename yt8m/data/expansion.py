"""Frame-level records made of video-level ones, with the same ids, labels and means.

Frame models can so be tried on real labels where only video-level shards are at hand.
The frames are made up: scenes and noise around the mean. Only their mean is real.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from yt8m import schema
from yt8m.data.synthetic import Scenes, deviations, draw_length, draw_scenes
from yt8m.errors import DataError, UserError

if TYPE_CHECKING:  # frames are made without TensorFlow, which records need
    from yt8m.data.records import Record

# Standard deviations of scenes and of frames, relative to those of video means.
_SCENE_WEIGHT, _FRAME_WEIGHT = 0.7, 0.7


def expand(
    input_files: Iterable[str | os.PathLike],
    output_dir: str | os.PathLike,
    max_frames: int = schema.MAX_FRAMES,
    seed: int = 0,
) -> list[str]:
    """Writes a frame-level shard for each video-level one, under the same name.

    A record keeps its id and labels, or their absence, and every float feature
    `mean_X` becomes bytes `X`, the mean of whose dequantised frames is that of the
    record. The frames are a function of `seed` and the record's id; their number is
    drawn from the dataset's distribution, scaled to `max_frames`.

    Args:
        input_files: paths of TFRecord files.
        output_dir: made if need be.
        max_frames: the longest video; one in a thousand has a frame more.

    Returns:
        The paths of the new shards.

    Raises:
        UserError: an argument out of range, a file that exists already, or a
            directory that cannot be written.
        DataError: a file or record that cannot be read, a record of frame level, or
            a mean that no bytes can have. The message names file and record.
    """
    import tensorflow as tf

    from yt8m import whole_files
    from yt8m.data.records import write_records

    if max_frames < 1:
        raise UserError(f"`max_frames` must be positive, not {max_frames}.")
    if seed < 0:
        raise UserError(f"`seed` must be >= 0, not {seed}.")
    inputs = [os.fspath(path) for path in input_files]
    outputs = [os.path.join(output_dir, os.path.basename(path)) for path in inputs]
    if not inputs:
        raise UserError("No file to expand.")
    if len(set(outputs)) < len(outputs):
        raise UserError("Two of the files have the same name; expand them apart.")
    for path in inputs:
        if not tf.io.gfile.exists(path):
            raise DataError(f"{path} does not exist.")
    for path in outputs:
        if tf.io.gfile.exists(path):
            raise UserError(f"{path} exists already: remove it or name another folder.")
    whole_files.make_directory(os.fspath(output_dir))
    for source, path in zip(inputs, outputs, strict=True):
        write_records(path, _expand_records(source, max_frames, seed))
    return outputs


def expand_record(
    record: "Record", max_frames: int, seed: int
) -> dict[str, np.ndarray]:
    """The frames uint8 [T, size] of each float feature of a video-level record.

    Raises:
        DataError: frame level, no float feature, or a mean out of the bytes' range.
    """
    if record.level != "video":
        raise DataError("has frames already; video-level records are expanded")
    key = int.from_bytes(record.id.encode(), "big")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,)))
    scenes = draw_scenes(rng, draw_length(rng, max_frames))
    features = {
        name.removeprefix("mean_"): _draw_frames(rng, name, mean, scenes)
        for name, mean in record.features.items()
        if mean.dtype == np.float32
    }
    if not features:
        raise DataError("has no float features")
    return features


def _draw_frames(
    rng: np.random.Generator, name: str, mean: np.ndarray, scenes: Scenes
) -> np.ndarray:
    """Bytes [T, size] whose dequantised mean is `mean` to 1 / (2 T) of a step."""
    target = (mean.astype(np.float64) - schema.DEQUANTIZE_OFFSET) / (
        schema.DEQUANTIZE_SCALE
    )
    # Float32 means are off by less than 1e-3 of a step.
    if not np.all((target > -1e-3) & (target < 255 + 1e-3)):
        worst = mean[np.argmax(np.abs(np.nan_to_num(target - 127.5, nan=np.inf)))]
        low = schema.DEQUANTIZE_OFFSET
        high = low + 255 * schema.DEQUANTIZE_SCALE
        raise DataError(
            f"{name} has the value {worst:g}; bytes stand for {low:.3f} to {high:.3f}"
        )
    target = target.clip(0, 255)

    size = mean.size
    starts, ends = rng.standard_normal((2, scenes.count, size), np.float32)
    frames = scenes.drift(starts * _SCENE_WEIGHT, ends * _SCENE_WEIGHT)
    frames += rng.standard_normal(frames.shape, np.float32) * _FRAME_WEIGHT
    frames -= frames.mean(axis=0)
    frames *= deviations(name.removeprefix("mean_"), size) / schema.DEQUANTIZE_SCALE
    # Clipping would shift the mean; shrinking what varies does not.
    room = np.minimum(target, 255 - target)
    frames *= np.minimum(1, room / np.maximum(np.abs(frames).max(axis=0), 1e-9))

    # What a frame loses by rounding down goes to the next, so that the sum is right.
    quantized = np.empty(frames.shape, np.uint8)
    carry = np.full(size, 0.5)
    for t, frame in enumerate(frames):
        exact = target + frame + carry
        whole = np.floor(exact).clip(0, 255)
        carry = exact - whole
        quantized[t] = whole
    return quantized


def _expand_records(path: str, max_frames: int, seed: int) -> Iterator[bytes]:
    from yt8m.data.labels import read_each
    from yt8m.data.records import encode_frame_record

    def expanded(record: "Record") -> bytes:
        features = expand_record(record, max_frames, seed)
        id_key = record.id_key or schema.ID_KEYS[0]
        return encode_frame_record(record.id, features, record.labels, id_key)

    return read_each(path, expanded)
