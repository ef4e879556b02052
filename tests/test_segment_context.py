"""Segments with the frames around them: the same in training and in inference."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from yt8m.cli import main
from yt8m.config import DataConfig, FrameSelection
from yt8m.data.pipeline import Reader
from yt8m.data.records import (
    SegmentRatings,
    encode_frame_record,
    parse_frame_batch,
    write_records,
)
from yt8m.data.segments import cut
from yt8m.errors import UserError
from yt8m.inference.predict import gather_windows
from yt8m.inference.windows import cut_windows

DATA = DataConfig("frame", {"rgb": 2}, 9, segments=True, segment_context_frames=3)


def record(length: int, starts, video_id="v") -> bytes:
    """Frames that tell their second."""
    frames = np.stack([np.arange(length), np.full(length, 7)], axis=1).astype(np.uint8)
    ones = [1] * len(starts)
    ratings = SegmentRatings(ones, list(starts), [], [1.0] * len(starts))
    return encode_frame_record(video_id, {"rgb": frames}, [1], segments=ratings)


def seconds(batch) -> list[list[int]]:
    return [
        rows[:count, 0].tolist()
        for rows, count in zip(
            batch["rgb"].numpy(), batch["num_frames"].numpy(), strict=True
        )
    ]


def test_frames_around_a_segment_end_where_the_video_ends():
    examples = tf.constant(cut(record(23, [0, 5, 10, 20, 22]), 3))
    batch, host = parse_frame_batch(examples, DATA)
    assert host["segment_start"].numpy().tolist() == [0, 5, 10, 20, 22]
    assert seconds(batch) == [
        list(range(8)),
        list(range(2, 13)),
        list(range(7, 18)),
        list(range(17, 23)),
        list(range(19, 23)),
    ]
    static, _ = parse_frame_batch(examples, DATA, static_frames=True)
    assert static["rgb"].shape == (5, 11, 2) and seconds(static) == seconds(batch)


@pytest.mark.parametrize("count", [None, 4])
@pytest.mark.parametrize("context", [0, 1, 3, 40])
def test_inference_sees_the_frames_of_training(context, count):
    lengths = [1, 23, 5, 12]
    data = dataclasses.replace(
        DATA, segment_context_frames=context, frames=FrameSelection(count)
    )
    examples = [
        segment
        for length in lengths
        for segment in cut(record(length, range(0, length, 5)), context)
    ]
    expected, _ = parse_frame_batch(tf.constant(examples), data)
    whole = dataclasses.replace(data, segments=False, frames=FrameSelection())
    videos, _ = parse_frame_batch(tf.constant([record(n, []) for n in lengths]), whole)
    del videos["labels"]
    windows = cut_windows(np.array(lengths))
    found = gather_windows(videos, *map(tf.constant, windows), count, context)
    assert seconds(found) == seconds(expected)


def test_the_reader_widens_segments_wherever_it_starts(tmp_path):
    path = str(tmp_path / "a.tfrecord")
    write_records(path, [record(18, [0, 5], "a"), record(30, [10, 15, 25], "b")])
    found = []
    for start in (0, 1):
        reader = Reader([path], DATA, batch_size=2, seed=1, num_epochs=2)
        batches = reader.batches(start)
        found.append([x for batch, _ in batches for x in seconds(batch)])
    assert found[0][2:] == found[1] and len(found[0]) == 10
    assert sorted(map(tuple, found[0]))[::2] == sorted(
        tuple(range(a, b)) for a, b in ((0, 8), (2, 13), (7, 18), (12, 23), (22, 30))
    )


def test_no_frame_of_a_segment_is_skipped(tmp_path):
    path = str(tmp_path / "a.tfrecord")
    write_records(path, [record(18, [0, 5], "a")])
    frames = dataclasses.replace(DATA.frames, skip_first=2)
    for data in (DATA, dataclasses.replace(DATA, frames=frames)):
        reader = Reader([path], data, batch_size=2)
        found = [x for batch, _ in reader.batches() for x in seconds(batch)]
        assert list(map(tuple, found)) == [tuple(range(8)), tuple(range(2, 13))]


def test_the_flag_is_of_segments_and_no_fewer_than_none(tmp_path, capsys):
    with pytest.raises(UserError, match="--segment_context_frames must be at least 0"):
        dataclasses.replace(DATA, segment_context_frames=-1)
    flags = ["--model=NetVLADModel", "--train_data_pattern=x"]
    flags += [f"--train_dir={tmp_path}/run", "--segment_context_frames=3"]
    assert main.run("train", flags) == 1
    assert "give --segment_labels" in capsys.readouterr().err
