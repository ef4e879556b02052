"""Rated segments: written, cut, parsed and read alone, against a twin in NumPy."""

import functools
import http.server
import re
import threading

import numpy as np
import pytest
import tensorflow as tf

from yt8m import schema
from yt8m.config import DataConfig, FrameSelection
from yt8m.data import segments
from yt8m.data.faults import find_fault
from yt8m.data.records import (
    SegmentRatings,
    decode_record,
    encode_frame_record,
    encode_video_record,
    parse_frame_batch,
    write_records,
)
from yt8m.data.segments import (
    RatedSegment,
    cut,
    learn_class_ids,
    load_class_ids,
    read_ratings,
    write_class_ids,
)
from yt8m.errors import DataError, UserError

CLASSES = 3862
SIZES = {"rgb": 4, "audio": 2}
CONFIG = DataConfig("frame", SIZES, CLASSES, segments=True)
LISTS = (
    schema.SEGMENT_LABELS_KEY,
    schema.SEGMENT_STARTS_KEY,
    schema.SEGMENT_SCORES_KEY,
)


def rate(*cells: tuple[int, int, float]) -> SegmentRatings:
    """Ratings of (start, class, score)."""
    starts, labels, scores = (list(column) for column in zip(*cells, strict=True))
    return SegmentRatings(labels, starts, [start + 5 for start in starts], scores)


def frames(length: int, sizes=SIZES, dtype=np.uint8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    return {
        name: rng.integers(0, 256, (length, size)).astype(dtype)
        for name, size in sizes.items()
    }


def record(length=12, ratings=None, video_id="v", **kwargs) -> bytes:
    return encode_frame_record(
        video_id, frames(length), [1], segments=ratings, **kwargs
    )


GOOD = rate((0, 3, 1.0), (0, 7, 0.0), (10, 3, 0.0))


def altered(change, length=12, ratings=GOOD) -> bytes:
    """A record after `change(context)`."""
    message = tf.train.SequenceExample.FromString(record(length, ratings))
    change(message.context.feature)
    return message.SerializeToString()


def twin(features, ratings: SegmentRatings):
    """For each segment: start, frames of each feature, labels and weights [C]."""
    starts = list(dict.fromkeys(ratings.starts))
    for start in starts:
        labels, weights = np.zeros((2, CLASSES), np.uint8)
        for s, c, score in zip(
            ratings.starts, ratings.labels, ratings.scores, strict=True
        ):
            if s == start:
                labels[c], weights[c] = score, 1
        rows = {name: array[start : start + 5] for name, array in features.items()}
        yield start, rows, labels, weights


def random_case(seed: int):
    """Features, ratings and how a record of them is written."""
    rng = np.random.default_rng(seed)
    length = int(rng.choice([1, 2, 5, 6, 7, 19, 299, 300, 301]))
    sizes = {"rgb": 4, "audio": 2} if rng.random() < 0.7 else {"rgb": 3}
    features = {
        name: rng.integers(0, 256, (length, size), np.uint8)
        for name, size in sizes.items()
    }
    pool = rng.integers(0, length, 4).tolist() + [0, length - 1]
    cells = [
        (int(rng.choice(pool)), int(rng.choice([0, 5, 5, 77, 3861])), score)
        for score in rng.integers(0, 2, rng.integers(1, 25)).astype(float).tolist()
    ]
    labels = [None, [], [3861], [0, 5]][rng.integers(4)]
    return features, rate(*cells), labels, str(rng.choice(schema.ID_KEYS))


@pytest.mark.parametrize("seed", range(40))
def test_segments_are_read_as_they_were_written(seed):
    features, ratings, labels, id_key = random_case(seed)
    serialized = encode_frame_record("vid", features, labels, id_key, ratings)
    assert decode_record(serialized).segments == ratings
    expected = list(twin(features, ratings))
    examples = cut(serialized)
    assert len(examples) == len(expected)
    sizes = {name: array.shape[1] for name, array in features.items()}
    config = DataConfig("frame", sizes, CLASSES, segments=True)
    batch, host = parse_frame_batch(tf.constant(examples), config)
    assert host["id"].numpy().tolist() == [b"vid"] * len(expected)
    assert host["segment_start"].dtype == tf.int64
    assert batch["labels"].dtype == batch["label_weights"].dtype == tf.uint8
    for i, (start, rows, seen, weights) in enumerate(expected):
        assert host["segment_start"][i] == start
        n = len(rows["rgb"])
        assert batch["num_frames"][i] == n == min(5, len(features["rgb"]) - start)
        for name in sizes:
            np.testing.assert_array_equal(batch[name][i, :n], rows[name])
        np.testing.assert_array_equal(batch["labels"][i], seen)
        np.testing.assert_array_equal(batch["label_weights"][i], weights)
    assert find_fault(serialized, config) == ("vid", None)


def test_a_segment_reaches_to_the_301st_frame_and_no_further_than_the_video():
    features = frames(301)
    serialized = encode_frame_record(
        "v", features, [1], segments=rate((296, 1, 1.0), (300, 1, 1.0), (0, 1, 1.0))
    )
    batch, host = parse_frame_batch(tf.constant(cut(serialized)), CONFIG)
    assert host["segment_start"].numpy().tolist() == [296, 300, 0]
    assert batch["num_frames"].numpy().tolist() == [5, 1, 5]
    np.testing.assert_array_equal(batch["rgb"][0], features["rgb"][296:])
    np.testing.assert_array_equal(batch["rgb"][1, 0], features["rgb"][300])


def test_the_last_rating_of_a_segment_and_a_class_counts():
    ratings = rate((5, 3, 1.0), (0, 2, 1.0), (5, 3, 0.0), (0, 2, 0.0), (0, 2, 1.0))
    batch, _ = parse_frame_batch(tf.constant(cut(record(12, ratings))), CONFIG)
    assert batch["labels"].numpy()[:, [2, 3]].tolist() == [[0, 0], [1, 0]]
    assert batch["label_weights"].numpy()[:, [2, 3]].tolist() == [[0, 1], [1, 0]]
    assert batch["label_weights"].numpy().sum() == 2


def test_segments_of_float_features_stay_floats():
    own = {"own": np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)}
    examples = cut(encode_frame_record("v", own, None, segments=GOOD))
    batch, _ = parse_frame_batch(
        tf.constant(examples),
        DataConfig("frame", {"own": 3}, 10, segments=True),
        float_features=["own"],
    )
    np.testing.assert_array_equal(batch["own"][0], own["own"][:5])
    np.testing.assert_array_equal(batch["own"][1, :2], own["own"][10:])


def test_audio_that_is_not_wanted_may_be_missing():
    only = encode_frame_record("v", frames(12, {"rgb": 4}), [1], segments=GOOD)
    config = DataConfig("frame", {"rgb": 4}, CLASSES, segments=True)
    assert parse_frame_batch(tf.constant(cut(only)), config)[0]["rgb"].shape[0] == 2
    assert "feature audio is missing" in find_fault(only, CONFIG)[1]


@pytest.mark.parametrize("ratings", [None, SegmentRatings([], [], [], [])])
def test_a_record_without_ratings_has_no_segments_and_no_fault(ratings):
    assert cut(record(12, ratings)) == []
    assert find_fault(record(12, ratings), CONFIG) == ("v", None)
    assert decode_record(record(12, ratings)).segments == ratings


@pytest.mark.parametrize("static", [False, True])
def test_the_frames_of_segments_can_be_chosen_and_padded(static):
    examples = tf.constant(cut(record(12, GOOD)))
    batch, _ = parse_frame_batch(examples, CONFIG, static_frames=static)
    assert batch["rgb"].shape == (2, 5, 4)
    short = examples[1:]
    batch, _ = parse_frame_batch(short, CONFIG, static_frames=static)
    assert batch["rgb"].shape == (1, 5 if static else 2, 4)
    few = DataConfig("frame", SIZES, CLASSES, frames=FrameSelection(2), segments=True)
    batch, _ = parse_frame_batch(examples, few, static_frames=static)
    assert batch["rgb"].shape == (2, 2, 4)
    assert batch["num_frames"].numpy().tolist() == [2, 2]


def test_cutting_works_in_a_graph():
    dataset = tf.data.Dataset.from_tensors(record(12, GOOD)).flat_map(
        lambda serialized: tf.data.Dataset.from_tensor_slices(
            tf.ensure_shape(
                tf.numpy_function(
                    lambda s: np.array(cut(s), object), [serialized], tf.string
                ),
                [None],
            )
        )
    )
    parsed = dataset.batch(2).map(functools.partial(parse_frame_batch, config=CONFIG))
    ((batch, host),) = parsed
    assert host["segment_start"].numpy().tolist() == [0, 10]
    assert batch["labels"].numpy().sum() == 1


def extend(key, value):
    return lambda context: context[key].int64_list.value.append(value)


def drop(key):
    def change(context):
        del context[key]

    return change


def put(key, values):
    """Replaces an integer list by one of floats."""

    def change(context):
        context[key].Clear()
        context[key].float_list.value.extend(values)

    return change


WRONG_SEGMENTS = {
    "label too many": (
        altered(extend(schema.SEGMENT_LABELS_KEY, 5)),
        "differ in length: segment_labels 4, segment_start_times 3, segment_scores 3",
    ),
    "start too many": (
        altered(extend(schema.SEGMENT_STARTS_KEY, 5)),
        "differ in length: .*segment_start_times 4",
    ),
    "end too many": (
        altered(extend(schema.SEGMENT_ENDS_KEY, 5)),
        "differ in length: .*segment_end_times 4",
    ),
    **{
        f"no {key}": (altered(drop(key)), f"differ in length: .*{key} 0")
        for key in LISTS
    },
    "negative start": (
        record(12, rate((-5, 3, 1.0))),
        "segment start time -5 is no frame's number; the record has 12 frames",
    ),
    "start at the end": (
        record(12, rate((0, 1, 1.0), (12, 3, 1.0))),
        "segment start time 12 is no frame's number; the record has 12 frames",
    ),
    "no frames": (record(0, rate((0, 3, 1.0))), "start time 0 .* has 0 frames"),
    "float starts": (
        altered(put(schema.SEGMENT_STARTS_KEY, [0, 2.5, 10])),
        r"segment start time 0\.0 is no frame's number",
    ),
    "float labels": (
        altered(put(schema.SEGMENT_LABELS_KEY, [1, 2, 3])),
        r"segment label 1\.0 is no class",
    ),
    "half a score": (
        record(12, rate((0, 3, 0.5))),
        r"segment score 0\.5 of class 3 from second 0 is neither 0 nor 1",
    ),
    "no number for a score": (record(12, rate((0, 3, np.nan))), "segment score nan"),
    "too late an end": (
        record(12, SegmentRatings([3], [0], [6], [1.0])),
        "segment end time 6 is not 1 to 5 seconds after its start 0",
    ),
    "an end at the start": (
        record(12, SegmentRatings([3], [4], [4], [1.0])),
        "segment end time 4 is not 1 to 5 seconds",
    ),
    "class beyond": (
        record(12, rate((0, 3862, 0.0))),
        r"segment label 3862 is outside 0\.\.3861 \(--num_classes=3862\)",
    ),
    "class negative": (record(12, rate((0, -1, 1.0))), r"segment label -1 is outside"),
    "garbage": (b"no protobuf at all", "not a protobuf"),
    "nothing": (b"", "the record is empty"),
    "video level": (
        encode_video_record("v", {"mean_rgb": np.ones(4, "f")}, [1]),
        r"it is a video-level record \(mean_rgb 4\), where frame-level ones",
    ),
    "larger frames": (
        encode_frame_record(
            "v", frames(12, {"rgb": 5, "audio": 2}), [1], segments=GOOD
        ),
        "feature rgb has 5 bytes a frame, 4 wanted",
    ),
    "features of different lengths": (
        encode_frame_record(
            "v", frames(12) | frames(11, {"audio": 2}), [1], segments=GOOD
        ),
        "differ in their number of frames: rgb 12, audio 11",
    ),
}
# What only the parser knows: the classes and the features that are wanted.
ONLY_WHEN_PARSED = {
    *("class beyond", "class negative", "larger frames"),
    "features of different lengths",
}


@pytest.mark.parametrize("which", sorted(WRONG_SEGMENTS))
def test_wrong_segments_are_refused_and_named(which):
    serialized, fault = WRONG_SEGMENTS[which]
    if which in ONLY_WHEN_PARSED:
        with pytest.raises(tf.errors.InvalidArgumentError):
            parse_frame_batch(tf.constant(cut(serialized)), CONFIG)
    else:
        with pytest.raises(DataError):
            cut(serialized)
    found = find_fault(serialized, CONFIG)[1]
    assert found and re.search(fault, found), found


def test_a_record_that_was_not_cut_is_an_error_of_its_batch():
    whole = record(12, GOOD)
    for order in (1, -1):
        batch = tf.constant([*cut(whole), whole][::order])
        with pytest.raises(tf.errors.InvalidArgumentError):
            parse_frame_batch(batch, CONFIG)


def test_a_segment_beyond_the_frames_of_the_wanted_feature_is_refused():
    features = frames(12) | frames(8, {"rgb": 4})
    serialized = encode_frame_record("v", features, [1], segments=GOOD)
    config = DataConfig("frame", {"rgb": 4}, CLASSES, segments=True)
    with pytest.raises(tf.errors.InvalidArgumentError):
        parse_frame_batch(tf.constant(cut(serialized)), config)
    _, fault = find_fault(serialized, config)
    assert "start time 10 is no frame's number; the record has 8 frames" in fault


def test_an_end_may_be_missing_or_cut_at_the_end_of_the_video():
    ratings = SegmentRatings([3], [10], [12], [1.0])
    assert len(cut(record(12, ratings))) == 1
    assert len(cut(altered(drop(schema.SEGMENT_ENDS_KEY)))) == 2


# --- ratings alone -------------------------------------------------------------------


def shard(tmp_path, name, *records) -> str:
    write_records(tmp_path / name, records)
    return str(tmp_path / name)


def test_ratings_are_read_in_the_order_of_files_records_and_first_starts(tmp_path):
    first = shard(
        tmp_path,
        "b",
        record(12, rate((5, 3, 1.0), (0, 1, 0.0), (5, 9, 0.0), (5, 3, 0.0)), "one"),
        record(12, None, "none"),
        record(301, rate((300, 3861, 1.0)), "two", id_key="video_id"),
    )
    second = shard(tmp_path, "a", record(1, rate((0, 1, 1.0)), "three"))
    assert list(read_ratings([first, second])) == [
        RatedSegment("one", 5, {3: 0, 9: 0}),
        RatedSegment("one", 0, {1: 0}),
        RatedSegment("two", 300, {3861: 1}),
        RatedSegment("three", 0, {1: 1}),
    ]
    learned = learn_class_ids([first, second])
    assert learned.dtype == np.int32
    assert learned.tolist() == [1, 3, 9, 3861]


def test_a_file_without_ratings_is_fine_beside_one_that_has_some(tmp_path):
    files = [shard(tmp_path, "a", record()), shard(tmp_path, "b", record(12, GOOD))]
    assert len(list(read_ratings(files))) == 2
    with pytest.raises(
        DataError,
        match=r"a holds frame-level records \(audio 2, rgb 4\) without rated segments "
        r"\(no segment_labels\), and so do the 1 other files",
    ):
        list(read_ratings([files[0], shard(tmp_path, "c", record())]))
    video = encode_video_record("v", {"mean_rgb": np.ones(4, "f")}, [1])
    with pytest.raises(DataError, match="holds video-level records"):
        learn_class_ids([shard(tmp_path, "v", video)])


def test_a_bad_record_among_ratings_is_named_with_its_file(tmp_path):
    path = shard(tmp_path, "s", record(12, GOOD), record(12, rate((12, 3, 1.0))))
    with pytest.raises(
        DataError, match=r"s, record 1 \(id v\): segment start time 12 .*\.$"
    ):
        list(read_ratings([path]))
    with open(path, "r+b") as f:
        f.truncate(f.seek(0, 2) - 3)
    with pytest.raises(DataError, match="s, record 1: the file is truncated"):
        list(read_ratings([path]))
    with pytest.raises(DataError, match="cannot be read: .*/none; No such"):
        list(read_ratings([str(tmp_path / "none")]))


# --- the file of class ids -----------------------------------------------------------


def test_class_ids_are_read_as_written_and_in_the_files_order(tmp_path):
    path = str(tmp_path / "ids.csv")
    write_class_ids(path, np.array([1831, 3, 47], np.int32))
    assert (tmp_path / "ids.csv").read_text() == "Index\n1831\n3\n47\n"
    assert [p.name for p in tmp_path.iterdir()] == ["ids.csv"]
    loaded = load_class_ids(path)
    assert loaded.dtype == np.int32
    assert loaded.tolist() == [1831, 3, 47]
    (tmp_path / "dos.csv").write_bytes(b"\xef\xbb\xbfIndex\r\n5\r\n6\r\n\r\n")
    assert load_class_ids(str(tmp_path / "dos.csv")).tolist() == [5, 6]
    with pytest.raises(UserError, match="no/ids.csv cannot be written"):
        write_class_ids(str(tmp_path / "no" / "ids.csv"), [1])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "line 1: the header must be Index, .* found an empty file"),
        ("3\n4\n", "line 1: the header must be Index, .* found '3'"),
        ("Index,Name\n3,Car\n", "line 1: the header must be Index"),
        ("Index\n3\nx\n", "line 3: expected a class, found 'x'"),
        ("Index\n-3\n", "line 2: expected a class"),
        ("Index\n3\n\n4\n", "line 3: expected a class, found ''"),
        ("Index\n3\n4\n3\n", "line 4: class 3 is repeated"),
        ("Index\n", "names no class"),
    ],
)
def test_another_file_is_no_list_of_classes(tmp_path, text, fault):
    path = tmp_path / "ids.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"ids.csv.*{fault}"):
        load_class_ids(str(path))


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a list of classes, also one that is cut off, and nothing else."""

    def do_GET(self):
        body = b"Index\n3\n1831\n"
        self.send_response(200 if "ids" in self.path else 404)
        self.send_header("Content-Length", str(len(body) + 5 * ("cut" in self.path)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_class_ids_are_read_from_a_url(server):
    assert load_class_ids(f"{server}/ids.csv").tolist() == [3, 1831]
    with pytest.raises(UserError, match=f"{server}/none cannot be read: .*404"):
        load_class_ids(f"{server}/none")
    with pytest.raises(UserError, match=f"{server}/cut-ids cannot be read: Incomplete"):
        load_class_ids(f"{server}/cut-ids")


def test_a_url_that_cannot_be_reached_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as unused:
        url = f"http://127.0.0.1:{unused.server_port}/ids.csv"
    for bad in (url, "http://", f"{tmp_path}/none.csv", str(tmp_path)):
        with pytest.raises(UserError, match="cannot be read: ") as error:
            load_class_ids(bad)
        assert str(error.value).startswith(bad)
        assert "\n" not in str(error.value)


def test_a_server_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(segments, "_DOWNLOAD_SECONDS", 0.05)
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as silent:
        url = f"http://127.0.0.1:{silent.server_port}/ids.csv"
        with pytest.raises(UserError, match="cannot be read: .*timed out"):
            load_class_ids(url)
