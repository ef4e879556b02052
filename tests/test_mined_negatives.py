"""Negatives among the classes that nobody rated."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m.config import (
    DataConfig,
    TrainingConfig,
)
from yt8m.data.pipeline import Reader
from yt8m.data.records import SegmentRatings, encode_frame_record, write_records
from yt8m.errors import DataError, UserError
from yt8m.training.mined_negatives import with_mined_negatives

BATCH = {
    "label_weights": tf.constant([[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]], tf.uint8),
    "video_labels": tf.constant([[0, 1, 0, 0, 0], [1, 1, 0, 1, 0]], tf.uint8),
}
LOGITS = tf.constant([[9.0, 8.0, -5.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])


@pytest.mark.parametrize(
    ("count", "weights"),
    [
        (1, [[1, 0, 0, 0.5, 0], [0, 0, 0.5, 1, 1]]),
        (2, [[1, 0, 0, 0.5, 0.5], [0, 0, 0.5, 1, 1]]),
        (99, [[1, 0, 0.5, 0.5, 0.5], [0, 0, 0.5, 1, 1]]),
    ],
)
def test_the_hardest_of_those_that_nobody_names_are_taken(count, weights):
    found = with_mined_negatives(BATCH, LOGITS, count, 0.5)["label_weights"]
    np.testing.assert_array_equal(found, np.array(weights, np.float32))


def test_segments_come_with_the_labels_of_their_videos(tmp_path):
    ratings = SegmentRatings([1, 2], [0, 5], [], [1.0, 0.0])
    rgb = {"rgb": np.zeros((9, 2), np.uint8)}
    path = f"{tmp_path}/a.tfrecord"
    records = [
        encode_frame_record("a", rgb, [1, 3], segments=ratings),
        encode_frame_record("b", rgb, None, segments=ratings),
    ]
    write_records(path, records)
    data = DataConfig("frame", {"rgb": 2}, 4, segments=True)
    for wanted in (True, False):
        reader = Reader([path], data, batch_size=4, video_labels=wanted)
        ((batch, _),) = reader.batches()
        assert ("video_labels" in batch) is wanted
        assert batch["labels"].numpy().tolist() == [[0, 1, 0, 0], [0] * 4] * 2
        if wanted:
            expected = [[0, 1, 0, 1]] * 2 + [[0] * 4] * 2
            assert batch["video_labels"].numpy().tolist() == expected


def test_a_video_with_a_class_that_there_is_not_is_named_or_left_out(tmp_path):
    ratings = SegmentRatings([1], [0], [], [1.0])
    rgb = {"rgb": np.zeros((9, 2), np.uint8)}
    records = [
        encode_frame_record(name, rgb, labels, segments=ratings)
        for name, labels in (("a", [1]), ("b", [1, 7]), ("c", [2]))
    ]
    write_records(f"{tmp_path}/a.tfrecord", records)
    data = DataConfig("frame", {"rgb": 2}, 4, segments=True)
    for on_bad_record in ("fail", "skip"):
        reader = Reader(
            [f"{tmp_path}/a.tfrecord"],
            data,
            batch_size=3,
            video_labels=True,
            on_bad_record=on_bad_record,
        )
        if on_bad_record == "fail":
            with pytest.raises(DataError, match=r"record 1 \(id b\): label 7 is outs"):
                list(reader.batches())
        else:
            ((_, host),) = reader.batches()
            assert host["id"].numpy().tolist() == [b"a", b"c"]


def test_their_weight_is_a_share():
    with pytest.raises(UserError, match="--mined_negative_weight must be at least 0"):
        TrainingConfig("*", mined_negative_weight=-1)
