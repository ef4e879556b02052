"""Records: what is written is read again, by the parser and by the decoder."""

import functools
import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from yt8m import schema
from yt8m.config import DataConfig, FrameSelection
from yt8m.data.files import check_files, list_files, sniff
from yt8m.data.frames import select_frames
from yt8m.data.records import (
    SegmentRatings,
    decode_record,
    encode_frame_record,
    encode_video_record,
    parse_batch,
    parse_frame_batch,
    parse_video_batch,
    read_id,
    write_records,
)
from yt8m.errors import DataError, UserError
from yt8m.whole_files import temporary_name

RNG = np.random.default_rng(7)
LENGTHS = (0, 1, 300, 301, 17)


def frames(length: int, *sizes: int) -> list[np.ndarray]:
    return [RNG.integers(0, 256, (length, size), np.uint8) for size in sizes]


def frame_record(video_id="a", length=3, labels=(1,), sizes=(4, 2)) -> bytes:
    rgb, audio = frames(length, *sizes)
    return encode_frame_record(video_id, {"rgb": rgb, "audio": audio}, labels)


def video_record(video_id="a", labels=(1,), size=4) -> bytes:
    mean = RNG.normal(size=size).astype(np.float32)
    return encode_video_record(video_id, {"mean_rgb": mean}, labels)


@pytest.mark.parametrize("id_key", ["id", "video_id"])
@pytest.mark.parametrize("labels", [None, (), (0,), (3861,), (5, 5, 0, 3861)])
@pytest.mark.parametrize("sizes", [{"rgb": 8}, {"rgb": 5, "audio": 3}])
def test_frame_records_are_read_as_they_were_written(id_key, labels, sizes):
    arrays = [
        {name: frames(length, size)[0] for name, size in sizes.items()}
        for length in LENGTHS
    ]
    records = [
        encode_frame_record(f"v{i}", features, labels, id_key)
        for i, features in enumerate(arrays)
    ]
    batch, host = parse_frame_batch(tf.constant(records), DataConfig("frame", sizes))
    assert host["id"].numpy().tolist() == [f"v{i}".encode() for i in range(5)]
    assert batch["num_frames"].numpy().tolist() == [0, 1, 300, 300, 17]
    expected = np.zeros(3862, np.uint8)
    expected[list(labels or ())] = 1
    np.testing.assert_array_equal(batch["labels"], np.tile(expected, (5, 1)))
    for name, size in sizes.items():
        assert batch[name].dtype == tf.uint8
        assert batch[name].shape == (5, 300, size)
        for i, features in enumerate(arrays):
            n = min(LENGTHS[i], 300)
            np.testing.assert_array_equal(batch[name][i, :n], features[name][:n])
    for i, record in enumerate(map(decode_record, records)):
        assert (record.id, record.id_key, record.level) == (f"v{i}", id_key, "frame")
        assert record.labels == (None if labels is None else sorted(labels))
        for name in sizes:
            np.testing.assert_array_equal(
                record.features[name].reshape(arrays[i][name].shape), arrays[i][name]
            )


@pytest.mark.parametrize("id_key", ["id", "video_id"])
@pytest.mark.parametrize("labels", [None, (), (2, 0)])
def test_video_records_are_read_as_they_were_written(id_key, labels):
    sizes = {"mean_rgb": 6, "own": 1}
    arrays = [
        {name: RNG.normal(size=size).astype(np.float32) for name, size in sizes.items()}
        for _ in range(3)
    ]
    records = [
        encode_video_record(f"v{i}", features, labels, id_key)
        for i, features in enumerate(arrays)
    ]
    config = DataConfig("video", sizes, num_classes=3)
    batch, host = parse_video_batch(tf.constant(records), config)
    assert host["id"].numpy().tolist() == [b"v0", b"v1", b"v2"]
    assert batch["labels"].numpy().tolist() == [[1, 0, 1] if labels else [0] * 3] * 3
    for i, (features, record) in enumerate(zip(arrays, records, strict=True)):
        decoded = decode_record(record)
        assert (decoded.id, decoded.level) == (f"v{i}", "video")
        assert decoded.labels == (None if labels is None else sorted(labels))
        for name in sizes:
            np.testing.assert_array_equal(batch[name][i], features[name])
            np.testing.assert_array_equal(decoded.features[name], features[name])


def test_frames_of_floats_stay_floats():
    own = RNG.normal(size=(3, 5)).astype(np.float32)
    records = [
        encode_frame_record("a", {"own": own}, [0]),
        encode_frame_record("b", {"own": own[:1]}, [1]),
    ]
    batch, _ = parse_frame_batch(
        tf.constant(records),
        DataConfig("frame", {"own": 5}, num_classes=2),
        float_features=["own"],
    )
    assert batch["own"].dtype == tf.float32
    np.testing.assert_array_equal(batch["own"][0], own)
    np.testing.assert_array_equal(batch["own"][1, :1], own[:1])
    assert batch["num_frames"].numpy().tolist() == [3, 1]
    np.testing.assert_array_equal(decode_record(records[0]).features["own"], own)


def test_records_of_both_id_keys_may_be_mixed():
    rgb = frames(1, 2)[0]
    records = [
        encode_frame_record("new", {"rgb": rgb}, [0], "id"),
        encode_frame_record("old", {"rgb": rgb}, [0], "video_id"),
    ]
    _, host = parse_frame_batch(tf.constant(records), DataConfig("frame", {"rgb": 2}))
    assert host["id"].numpy().tolist() == [b"new", b"old"]


def test_the_longest_video_sets_the_length_of_the_batch():
    records = tf.constant([frame_record(length=n) for n in (2, 5, 0)])
    config = DataConfig("frame", {"rgb": 4, "audio": 2}, max_frames=8)
    assert parse_frame_batch(records, config)[0]["rgb"].shape == (3, 5, 4)
    static, _ = parse_frame_batch(records, config, static_frames=True)
    assert static["rgb"].shape == (3, 8, 4)
    assert static["num_frames"].numpy().tolist() == [2, 5, 0]
    assert not static["rgb"].numpy()[1, 5:].any()


def test_static_shapes_are_known_to_a_graph():
    config = DataConfig("frame", {"rgb": 4}, max_frames=8)
    dataset = tf.data.Dataset.from_tensors(tf.constant([b""]))
    for static, length in ((True, 8), (False, None)):
        spec, _ = dataset.map(
            lambda s, static=static: parse_frame_batch(s, config, static_frames=static)
        ).element_spec
        assert spec["rgb"].shape.as_list() == [1, length, 4]


@pytest.mark.parametrize("length", [0, 3])
def test_a_batch_without_frames_is_no_error(length):
    config = DataConfig(
        "frame",
        {"rgb": 4},
        frames=FrameSelection(length) if length else FrameSelection(),
    )
    record = encode_frame_record("a", {"rgb": frames(0, 4)[0]}, [0])
    for seed in (None, [1, 2]):
        batch, _ = parse_frame_batch(tf.constant([record]), config, seed=seed)
        assert batch["rgb"].shape == (1, 0, 4)
        assert batch["num_frames"].numpy().tolist() == [0]


@pytest.mark.parametrize("max_frames", [300, 10])
@pytest.mark.parametrize("count", [None, 2, 4, 150])
@pytest.mark.parametrize("skip_first", [0, 3])
@pytest.mark.parametrize("seed", [None, (1, 2)])
def test_the_chosen_frames_are_those_of_select_frames(
    max_frames, count, skip_first, seed
):
    arrays = [frames(length, 4, 2) for length in LENGTHS]
    records = tf.constant(
        [
            encode_frame_record("a", {"rgb": rgb, "audio": audio}, [0])
            for rgb, audio in arrays
        ]
    )
    selection = FrameSelection(count, "random", skip_first)
    config = DataConfig(
        "frame", {"rgb": 4, "audio": 2}, max_frames=max_frames, frames=selection
    )
    batch, _ = parse_frame_batch(records, config, seed=seed)
    available = tf.minimum(tf.constant(LENGTHS), max_frames)
    indices, taken = select_frames(available, selection, seed)
    np.testing.assert_array_equal(batch["num_frames"], taken)
    for i, (rgb, audio) in enumerate(arrays):
        chosen = indices[i, : taken[i]].numpy()
        np.testing.assert_array_equal(batch["rgb"][i, : taken[i]], rgb[chosen])
        np.testing.assert_array_equal(batch["audio"][i, : taken[i]], audio[chosen])


def broken_records() -> dict[str, bytes]:
    rgb, audio = frames(3, 4, 2)
    other_size = tf.train.SequenceExample.FromString(frame_record())
    values = other_size.feature_lists.feature_list["rgb"].feature[1].bytes_list.value
    values[0] = b"123"
    compensated = tf.train.SequenceExample.FromString(other_size.SerializeToString())
    values = compensated.feature_lists.feature_list["rgb"].feature[2].bytes_list.value
    values[0] = b"12345"
    return {
        "label beyond": frame_record(labels=(10,)),
        "label negative": frame_record(labels=(-1,)),
        "fewer audio frames": encode_frame_record(
            "a", {"rgb": rgb, "audio": audio[:2]}, [0]
        ),
        "no audio": encode_frame_record("a", {"rgb": rgb}, [0]),
        "larger frames": frame_record(sizes=(5, 2)),
        "smaller frames": frame_record(sizes=(4, 1)),
        "one smaller frame": other_size.SerializeToString(),
        "one smaller, one larger": compensated.SerializeToString(),
        "floats": encode_frame_record(
            "a", {"rgb": rgb.astype(np.float32), "audio": audio}, [0]
        ),
        "video level": video_record(),
        "nothing": b"",
        "garbage": b"no protobuf at all",
    }


@pytest.mark.parametrize("which", sorted(broken_records()))
def test_a_broken_frame_record_is_an_error_of_its_batch(which):
    config = DataConfig("frame", {"rgb": 4, "audio": 2}, num_classes=10)
    for order in (1, -1):
        records = [frame_record(), broken_records()[which]][::order]
        with pytest.raises(tf.errors.InvalidArgumentError):
            parse_frame_batch(tf.constant(records), config)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_an_error(value):
    bad = np.array([0, value, 0, 0], np.float32)
    video = [video_record(), encode_video_record("b", {"mean_rgb": bad}, [0])]
    with pytest.raises(tf.errors.InvalidArgumentError):
        parse_video_batch(tf.constant(video), DataConfig("video", {"mean_rgb": 4}))
    frame = [encode_frame_record("b", {"own": bad[None]}, [0])]
    with pytest.raises(tf.errors.InvalidArgumentError):
        parse_frame_batch(
            tf.constant(frame), DataConfig("frame", {"own": 4}), float_features=["own"]
        )


def test_the_parser_works_in_a_graph_for_either_level():
    for record, config in (
        (frame_record(), DataConfig("frame", {"rgb": 4})),
        (video_record(), DataConfig("video", {"mean_rgb": 4})),
    ):
        eager, _ = parse_batch(tf.constant([record]), config)
        dataset = tf.data.Dataset.from_tensors([record])
        dataset = dataset.map(functools.partial(parse_batch, config=config))
        ((graph, host),) = dataset
        assert host["id"].numpy().tolist() == [b"a"]
        for name in eager:
            np.testing.assert_array_equal(graph[name], eager[name])


def test_decoding_names_the_frame_of_another_size():
    with pytest.raises(DataError, match="frame 1 of rgb has 3 bytes"):
        decode_record(broken_records()["one smaller frame"])
    with pytest.raises(DataError, match="not a protobuf"):
        decode_record(b"no protobuf at all")
    assert read_id(b"no protobuf at all") == ""
    assert read_id(frame_record("xy")) == "xy"


def test_another_id_key_is_refused():
    with pytest.raises(ValueError, match="`id_key` must be one of"):
        encode_video_record("a", {}, None, id_key="name")


def test_a_file_is_written_under_another_name_until_it_is_whole(tmp_path):
    path = tmp_path / "a.tfrecord"

    def records():
        for i in range(3):
            assert not path.exists()
            yield b"%d" % i

    assert write_records(path, records()) == 3
    read = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert read == [b"0", b"1", b"2"]
    with pytest.raises(ZeroDivisionError):
        write_records(tmp_path / "b", (bytes(1 // i) for i in (1, 0)))
    assert [p.name for p in tmp_path.iterdir()] == ["a.tfrecord"]


def test_two_may_write_a_file_at_once(tmp_path):
    path = tmp_path / "a.tfrecord"

    def records():
        yield b"0"
        assert write_records(path, [b"other"] * 9) == 9
        yield b"1"

    assert write_records(path, records()) == 2
    read = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert read == [b"0", b"1"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tfrecord"]


def test_a_glob_leaves_out_what_is_still_being_written(tmp_path, caplog):
    part = temporary_name(str(tmp_path / "b"))
    for path in (tmp_path / "a", tmp_path / "c.tmp", part):
        pathlib.Path(path).touch()
    files = list_files(f"{tmp_path}/*", "--x")
    assert files == [str(tmp_path / "a"), str(tmp_path / "c.tmp")]
    assert f"{part} is left out" in caplog.text
    assert list_files(part, "--x") == [part]  # it is asked for


def test_patterns_are_comma_separated_and_their_files_sorted(tmp_path):
    for name in ("b1", "a1", "a2", "c"):
        (tmp_path / name).touch()
    pattern = f"{tmp_path}/b*, {tmp_path}/a*,{tmp_path}/a1"
    names = [path[-2:] for path in list_files(pattern, "--x")]
    assert names == ["a1", "a2", "b1"]
    with pytest.raises(UserError, match="No file matches --x=.*/none"):
        list_files(f"{tmp_path}/none*", "--x")


def test_sniffing_tells_level_features_key_and_labels(tmp_path):
    path = str(tmp_path / "a")
    own = RNG.normal(size=(2, 3)).astype(np.float32)
    rgb = frames(2, 4)[0]
    empty = encode_frame_record("z", {"rgb": rgb[:0], "own": own[:0]}, None)
    full = encode_frame_record("a", {"rgb": rgb, "own": own}, None, "video_id")
    write_records(path, [empty, full])
    found = sniff(path)
    assert found.level == "frame"
    assert found.features == {"rgb": ("bytes", 4), "own": ("float", 3)}
    assert (found.id_key, found.has_labels) == ("video_id", False)
    write_records(path, [video_record()])
    found = sniff(path)
    assert (found.level, found.features) == ("video", {"mean_rgb": ("float", 4)})
    assert (found.id_key, found.has_labels) == ("id", True)


def test_the_other_level_is_refused_with_both_named(tmp_path):
    video, frame = str(tmp_path / "v"), str(tmp_path / "f")
    write_records(video, [video_record()])
    write_records(frame, [frame_record()])
    wants_frames = DataConfig("frame", {"rgb": 4, "audio": 2})
    wants_video = DataConfig("video", {"mean_rgb": 4})
    with pytest.raises(
        UserError,
        match=r"v holds video-level records \(mean_rgb 4\), but NetVLADModel wants "
        r"frame-level records \(rgb 4, audio 2\)",
    ):
        check_files([video], wants_frames, "NetVLADModel")
    with pytest.raises(UserError, match="f holds frame-level records .* MoeModel"):
        check_files([frame], wants_video, "MoeModel")
    assert check_files([frame], wants_frames) == [frame]
    assert check_files([video], wants_video) == [video]


@pytest.mark.parametrize("features", [{"rgb": 5}, {"rgb": 4, "inception": 2}])
def test_missing_features_and_other_sizes_are_refused(tmp_path, features):
    path = str(tmp_path / "f")
    write_records(path, [frame_record()])
    with pytest.raises(
        UserError, match="has the features audio 2, rgb 4, but .* --feature_sizes"
    ):
        check_files([path], DataConfig("frame", features))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"id,labels\na,1 2\n", "CSV text"),
        ("größe, name\n".encode() * 100, "CSV text"),
        (b"just words\n", "text"),
        (b"<html>404</html>", "HTML"),
        (b'{"a": 1}', "JSON"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
    ],
)
def test_other_files_are_refused_by_what_they_look_like(tmp_path, content, kind):
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"f is not a TFRecord file; .*{kind}") as error:
        check_files([str(path)], DataConfig("frame", {"rgb": 4}))
    assert "\n" not in str(error.value)


def test_random_bytes_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(RNG.integers(0, 256, 5000, np.uint8)))
    with pytest.raises(DataError, match="f holds no record that can be read"):
        check_files([str(path)], DataConfig("frame", {"rgb": 4}))
    with pytest.raises(DataError, match="none cannot be read"):
        sniff(str(tmp_path / "none"))


def test_empty_files_are_left_out_with_a_warning(tmp_path, caplog):
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        write_records(path, [frame_record()] if path.endswith("b") else [])
    config = DataConfig("frame", {"rgb": 4})
    assert check_files(paths, config) == paths[1:2]
    warned = [record.getMessage() for record in caplog.records]
    assert [path in text for path, text in itertools.product(paths, warned)] == [
        *(True, False, False, False, False, True)
    ]
    with pytest.raises(DataError, match="holds no record"):
        check_files(paths[:1], config)


def test_ratings_of_segments_stand_in_the_record_as_they_are_given():
    rgb = frames(12, 4)[0]
    ratings = SegmentRatings([3, 3861], [0, 10], [5, 15], [1.0, 0.0])
    record = encode_frame_record("a", {"rgb": rgb}, [0], segments=ratings)
    assert decode_record(record).segments == ratings
    message = tf.train.SequenceExample.FromString(record).context.feature
    assert list(message["segment_labels"].int64_list.value) == [3, 3861]
    assert list(message["segment_start_times"].int64_list.value) == [0, 10]
    assert list(message["segment_end_times"].int64_list.value) == [5, 15]
    assert list(message["segment_scores"].float_list.value) == [1, 0]
    plain = encode_frame_record("a", {"rgb": rgb}, [0])
    assert decode_record(plain).segments is None
    # Read as a video, a record with ratings is what it is without.
    config = DataConfig("frame", {"rgb": 4}, 10)
    batch, host = parse_frame_batch(tf.constant([record, plain]), config)
    assert sorted(batch) == ["labels", "num_frames", "rgb"]
    assert list(host) == ["id"]
    for values in batch.values():
        np.testing.assert_array_equal(values[0], values[1])


def test_equal_records_are_equal_bytes():
    rgb = {"rgb": frames(3, 4)[0], "audio": frames(3, 2)[0]}
    ratings = SegmentRatings([1, 2], [0, 0], [5, 5], [1.0, 0.0])
    first = encode_frame_record("a", rgb, [1, 2], segments=ratings)
    backwards = dict(reversed(rgb.items()))
    assert encode_frame_record("a", backwards, [1, 2], segments=ratings) == first


def test_frame_records_of_any_shape_are_read_as_they_were_written():
    rng = np.random.default_rng(3)
    for case in range(60):
        sizes = [{"rgb": 4, "audio": 2}, {"rgb": 3}][case % 2]
        records, arrays, given = [], [], []
        for i in range(rng.integers(1, 5)):
            length = int(rng.choice([0, 1, 2, 9, 299, 300, 301]))
            arrays.append(
                {
                    n: rng.integers(0, 256, (length, s), np.uint8)
                    for n, s in sizes.items()
                }
            )
            labels = rng.choice([0, 1, 77, 3861], rng.integers(0, 4)).tolist()
            given.append(None if rng.random() < 0.2 else labels)
            id_key = str(rng.choice(schema.ID_KEYS))
            records.append(encode_frame_record(f"v{i}", arrays[i], given[i], id_key))
        config = DataConfig("frame", sizes)
        batch, host = parse_frame_batch(tf.constant(records), config)
        expected = np.zeros((len(records), 3862), np.uint8)
        for i, labels in enumerate(given):
            expected[i, labels or []] = 1
            n = min(len(arrays[i]["rgb"]), 300)
            assert batch["num_frames"][i] == n
            for name in sizes:
                np.testing.assert_array_equal(batch[name][i, :n], arrays[i][name][:n])
        np.testing.assert_array_equal(batch["labels"], expected)
        assert host["id"].numpy().tolist() == [b"v%d" % i for i in range(len(records))]
