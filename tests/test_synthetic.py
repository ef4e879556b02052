"""Embedded data: its statistics, each kind's blind spot, and rated segments."""

import dataclasses
import itertools
import os

import numpy as np
import pytest
import tensorflow as tf

from yt8m import schema
from yt8m.cli.main import run
from yt8m.data import synthetic
from yt8m.data.records import decode_record
from yt8m.data.synthetic import (
    DECOY_KINDS,
    KINDS,
    SyntheticConfig,
    draw_length,
    generate_video,
    quantize,
    rate_segments,
    write_dataset,
)
from yt8m.errors import UserError

SIZES = {"rgb": 256, "audio": 64}


def config(**options) -> SyntheticConfig:
    return SyntheticConfig(
        **{"num_classes": 12, "features": SIZES, "max_frames": 40} | options
    )


def videos(settings: SyntheticConfig, count: int, split: str = "train"):
    return [generate_video(settings, split, i) for i in range(count)]


def projections(video, settings, feature: str, label: int) -> np.ndarray:
    """Components [T] of the L2-normalised frames along a class's direction."""
    frames = video.features[feature] * schema.DEQUANTIZE_SCALE
    frames += schema.DEQUANTIZE_OFFSET
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    return frames @ synthetic._world(settings).directions[feature][label]


def shown_and_decoys(settings, feature: str, count: int):
    """Projections of true labels, and of decoys, over `count` videos."""
    shown, decoys = [], []
    for video in videos(settings, count):
        shown += [projections(video, settings, feature, c) for c in video.truth]
        decoys += [projections(video, settings, feature, c) for c in video.decoys]
    return shown, decoys


def means(rows: list[np.ndarray]) -> np.ndarray:
    return np.array([row.mean() for row in rows])


def same_video(a, b) -> bool:
    return a.labels == b.labels and all(
        np.array_equal(a.features[n], b.features[n]) for n in a.features
    )


def assert_same_distribution(a: np.ndarray, b: np.ndarray):
    """Means within 10 % and a Kolmogorov-Smirnov distance as chance gives it."""
    assert len(a) > 100 and len(b) > 100
    assert a.mean() == pytest.approx(b.mean(), rel=0.1)
    grid = np.concatenate([a, b])
    distance = np.abs((a[:, None] <= grid).mean(0) - (b[:, None] <= grid).mean(0))
    assert distance.max() < 1.95 * np.sqrt(1 / len(a) + 1 / len(b))  # 0.1 %


def test_a_video_is_a_function_of_seed_split_and_index():
    first = generate_video(config(), "train", 7)
    generate_video(config(), "train", 3)
    assert same_video(first, generate_video(config(), "train", 7))
    assert not same_video(first, generate_video(config(), "train", 8))
    assert not same_video(first, generate_video(config(), "validate", 7))
    assert not same_video(first, generate_video(config(seed=1), "train", 7))


@pytest.mark.parametrize(
    "option",
    [
        {"seed": 1},
        {"num_classes": 24},
        {"kinds": ("static", "audio")},
        {"features": {"rgb": 128, "audio": 32}},
        {"max_frames": 30},
        {"labels_per_video": 1.5},
        {"zipf_exponent": 0.0},
        {"co_occurrence": 0.1},
        {"strength": 0.5},
        {"brief_share": 0.2},
        {"window_share": 0.4},
        {"frame_noise": 0.1},
        {"missing_labels": 0.5},
        {"wrong_labels": 0.5},
        {"implied_labels": 0.9},
        {"hidden_labels": 0.9},
        {"misleading_labels": 0.9},
        {"vocabulary_seed": 1},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_videos(option):
    # Groups, which co_occurrence is about, need more classes.
    base = config(num_classes=48)
    changed = dataclasses.replace(base, **option)
    assert any(
        not same_video(a, b)
        for a, b in zip(videos(base, 12), videos(changed, 12), strict=True)
    )


def test_the_parametrized_options_are_all_there_are():
    parameters = test_every_option_changes_the_videos.pytestmark[0].args[1]
    fields = {f.name for f in dataclasses.fields(SyntheticConfig)}
    assert {next(iter(option)) for option in parameters} == fields


def test_the_quantiser_is_the_datasets_and_inverts_the_dequantiser():
    values = np.array([-3.0, -2.0, -1.99, 0.01, 1.0, 2.0, 9.0])
    # By hand: (x + 2) * 63.75, rounded, clipped.
    assert quantize(values).tolist() == [0, 0, 1, 128, 191, 255, 255]
    every_byte = np.arange(256)
    dequantized = every_byte * schema.DEQUANTIZE_SCALE + schema.DEQUANTIZE_OFFSET
    np.testing.assert_array_equal(quantize(dequantized), every_byte)


def test_lengths_have_the_shape_of_the_datasets():
    rng = np.random.default_rng(0)
    lengths = np.array([draw_length(rng, 300) for _ in range(20_000)])
    assert (lengths.min(), lengths.max()) == (1, 301)
    assert 0 < (lengths < 10).mean() < 0.002
    assert np.median(lengths) == pytest.approx(232, abs=5)
    assert np.quantile(lengths, 0.01) == pytest.approx(121, abs=2)
    assert (lengths == 300).mean() == pytest.approx(0.293, abs=0.015)
    assert 0 < (lengths == 301).mean() < 0.003
    scaled = [draw_length(rng, 30) for _ in range(2000)]
    assert np.median(scaled) == pytest.approx(24, abs=1)
    assert max(scaled) == 31


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7, 8, 301])
def test_short_and_long_videos_show_only_what_fits(monkeypatch, num_frames):
    monkeypatch.setattr(synthetic, "draw_length", lambda rng, max_frames: num_frames)
    settings = config(features={"rgb": 64, "audio": 32}, max_frames=300)
    seen = set()
    for video in videos(settings, 30):
        assert {len(f) for f in video.features.values()} == {num_frames}
        assert video.truth
        seen |= {settings.kind_of(c) for c in video.truth + video.decoys}
    assert seen == {kind for kind, fewest in KINDS.items() if fewest <= num_frames}


def test_videos_are_long_enough_for_the_only_kind(monkeypatch):
    monkeypatch.setattr(synthetic, "draw_length", lambda rng, max_frames: 1)
    video = generate_video(config(kinds=("brief",)), "train", 0)
    assert len(video.features["rgb"]) == KINDS["brief"]


def test_kinds_have_equal_shares_of_classes_and_similar_shares_of_labels():
    settings = config(num_classes=60)
    kinds = [settings.kind_of(c) for c in range(60)]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 10)
    world = synthetic._world(settings)
    counts = dict.fromkeys(KINDS, 0)
    for i in range(1500):
        rng = np.random.default_rng(i)
        for label in synthetic._draw_classes(world, rng, 40)[0]:
            counts[kinds[label]] += 1
    assert max(counts.values()) < 1.6 * min(counts.values())


def draw_many(settings: SyntheticConfig, count: int) -> list[list[int]]:
    world = synthetic._world(settings)
    rng = np.random.default_rng(0)
    return [synthetic._draw_classes(world, rng, 40)[0] for _ in range(count)]


def test_labels_number_three_and_their_frequencies_follow_zipf():
    settings = config(num_classes=120, kinds=("static",), labels_per_video=3.0)
    drawn = draw_many(settings, 4000)
    numbers = np.array([len(labels) for labels in drawn])
    assert numbers.min() == 1 and numbers.max() <= 10
    assert numbers.mean() == pytest.approx(3.0, abs=0.2)
    assert all(len(set(labels)) == len(labels) for labels in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=120)
    ranks = np.log(np.arange(120) + synthetic._ZIPF_OFFSET)
    slope = np.polyfit(ranks, np.log(counts), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.2)
    flat = draw_many(dataclasses.replace(settings, zipf_exponent=0.0), 1000)
    counts = np.bincount(np.concatenate(flat), minlength=120)
    assert counts.max() < 3 * counts.min()


def test_labels_of_a_video_come_largely_from_one_group():
    def share_of_pairs(co_occurrence: float) -> float:
        settings = config(
            num_classes=96, kinds=("static",), co_occurrence=co_occurrence
        )
        group = synthetic._world(settings).group
        pairs = [
            group[a] == group[b]
            for labels in draw_many(settings, 500)
            for a, b in itertools.combinations(labels, 2)
        ]
        return float(np.mean(pairs))

    assert share_of_pairs(0.9) > 0.5
    assert share_of_pairs(0.0) < 0.25


def test_decoys_are_as_frequent_as_the_classes_they_stand_for():
    settings = config(num_classes=24, kinds=("static", "brief"))
    world, rng = synthetic._world(settings), np.random.default_rng(0)
    truth, decoys = np.zeros(24), np.zeros(24)
    for _ in range(4000):
        shown, faint = synthetic._draw_classes(world, rng, 40)
        truth[shown] += 1
        decoys[faint] += 1
    brief = np.array([settings.kind_of(c) in DECOY_KINDS for c in range(24)])
    assert decoys[~brief].sum() == 0
    np.testing.assert_allclose(decoys[brief], truth[brief], rtol=0.35)
    assert decoys.sum() == pytest.approx(truth[brief].sum(), rel=0.02)


@pytest.mark.parametrize("num_classes", [12, 96])  # 96 directions in 64 and 32
def test_all_frames_of_a_video_have_the_same_norm(monkeypatch, num_classes):
    settings = config(num_classes=num_classes, features={"rgb": 64, "audio": 32})
    quantized = videos(settings, 20)
    monkeypatch.setattr(synthetic, "quantize", lambda frames: frames)
    for video, exact in zip(quantized, videos(settings, 20), strict=True):
        for name, frames in exact.features.items():
            norms = np.linalg.norm(frames, axis=1)
            np.testing.assert_allclose(norms, norms[0], rtol=1e-4)
            values = video.features[name] * schema.DEQUANTIZE_SCALE
            values += schema.DEQUANTIZE_OFFSET
            np.testing.assert_allclose(values, frames.clip(-2, 2), atol=0.02)


def test_static_classes_are_in_all_frames():
    settings = config(kinds=("static",))
    shown, decoys = shown_and_decoys(settings, "rgb", 40)
    assert not decoys
    for row in shown:
        assert row.min() > 0.06 and row.max() - row.min() < 0.05


def test_brief_classes_are_strong_in_few_frames_and_decoys_faint_in_all():
    settings = config(kinds=("brief",), brief_share=0.1)
    shown, decoys = shown_and_decoys(settings, "rgb", 120)
    for row in shown:
        strong = np.flatnonzero(row > 0.3)
        assert len(strong) == max(1, round(len(row) * 0.1))
        assert np.ptp(strong) == len(strong) - 1
        assert np.abs(np.delete(row, strong)).max() < 0.1
    for row in decoys:
        assert np.ptp(row) < 0.05
    # So that the mean over frames tells nothing, normalised as models do.
    assert_same_distribution(means(shown), means(decoys))
    assert min(means(shown)) > 0.03


def test_ordered_pairs_differ_in_order_alone():
    settings = config(kinds=("ordered",))
    partner = synthetic._world(settings).partner
    own, others = [], []
    for video in videos(settings, 150):
        assert not video.decoys
        for label in video.truth:
            assert partner[label] not in video.truth
            first = projections(video, settings, "rgb", label)
            second = projections(video, settings, "rgb", partner[label])
            assert np.flatnonzero(first > 0.2).max() < np.flatnonzero(second > 0.2)[0]
            own.append(first.mean())
            others.append(second.mean())
    assert_same_distribution(np.array(own), np.array(others))


def test_audio_classes_leave_rgb_untouched():
    loud = videos(config(kinds=("audio",)), 10)
    quiet = videos(config(kinds=("audio",), strength=0.5), 10)
    for a, b in zip(loud, quiet, strict=True):
        np.testing.assert_array_equal(a.features["rgb"], b.features["rgb"])
        assert not np.array_equal(a.features["audio"], b.features["audio"])
    shown, _ = shown_and_decoys(config(kinds=("audio",)), "audio", 30)
    assert min(row.min() for row in shown) > 0.1


def test_joint_decoys_have_only_one_of_the_two():
    settings = config(kinds=("joint",))
    present = {True: [], False: []}  # of true labels, of decoys
    for video in videos(settings, 80):
        for label in video.truth + video.decoys:
            rows = [projections(video, settings, f, label) for f in SIZES]
            present[label in video.truth].append([row.max() > 0.25 for row in rows])
    # A direction without evidence has the background's, which is not nothing in the
    # 64 dimensions of audio.
    assert np.mean([all(p) for p in present[True]]) == 1
    both = np.mean([all(p) for p in present[False]])
    assert both < 0.2
    rgb, audio = np.mean([p for p in present[False] if not all(p)], axis=0)
    assert rgb + audio == 1
    assert 0.3 < rgb < 0.7


def test_synchronous_decoys_have_the_same_evidence_in_other_frames():
    settings = config(kinds=("synchronous",))
    found = {True: [], False: []}
    for video in videos(settings, 120):
        for label in video.truth + video.decoys:
            rgb, audio = (projections(video, settings, f, label) for f in SIZES)
            here, there = rgb > 0.2, audio > 0.25
            window = max(1, len(rgb) // 4)
            assert here.sum() == window
            overlap = (here & there).sum() / window
            if label in video.truth:
                assert overlap == 1
            else:
                assert overlap == 0
            found[label in video.truth].append((rgb.mean(), audio.mean()))
    shown, decoys = np.array(found[True]), np.array(found[False])
    for feature in range(2):
        assert_same_distribution(shown[:, feature], decoys[:, feature])


def test_labels_go_missing_and_wrong_at_the_rates_asked_for():
    truthful = config(num_classes=60, features={"rgb": 32, "audio": 32}, max_frames=8)
    noisy = dataclasses.replace(truthful, missing_labels=0.3, wrong_labels=0.2)
    true, given, right = 0, 0, 0
    for i in range(600):
        video = generate_video(noisy, "train", i)
        truth = generate_video(truthful, "train", i)
        assert truth.labels == truth.truth == video.truth
        assert all(
            np.array_equal(video.features[n], truth.features[n]) for n in truth.features
        )
        assert video.labels == sorted(set(video.labels))
        true += len(video.truth)
        given += len(video.labels)
        right += len(set(video.labels) & set(video.truth))
    assert right / true == pytest.approx(0.7, abs=0.04)
    assert right / given == pytest.approx(0.8, abs=0.04)


SMALL = {"num_classes": 48, "features": {"rgb": 64, "audio": 32}, "max_frames": 8}


def test_a_class_implies_the_one_above_it_which_shows_more_faintly():
    plain = config(**SMALL, kinds=("static",))
    settings = dataclasses.replace(plain, implied_labels=0.8)
    world = synthetic._world(settings)
    drawn, implied, strengths = 0, 0, {True: [], False: []}
    for i in range(500):
        own = generate_video(plain, "train", i).truth
        video = generate_video(settings, "train", i)
        assert set(own) <= set(video.truth) and video.labels == video.truth
        for label in own:
            if world.above[label] >= 0 and world.above[label] not in own:
                drawn += 1
                implied += world.above[label] in video.truth
        for label in video.truth:
            shown = projections(video, settings, "rgb", label).mean()
            strengths[label in own].append(shown)
            below = np.flatnonzero(world.above == label)
            assert label in own or set(below) & set(video.truth)
    # A class can be implied by two others, and by those below them.
    assert 0.78 < implied / drawn < 0.95
    assert np.mean(strengths[False]) < 0.7 * np.mean(strengths[True])


def test_above_each_class_is_a_more_frequent_one_of_its_group():
    world = synthetic._world(config(num_classes=48))
    roots = np.flatnonzero(world.above < 0)
    assert sorted(world.group[roots]) == sorted(set(world.group))
    for label in np.flatnonzero(world.above >= 0):
        assert world.above[label] < label
        assert world.group[world.above[label]] == world.group[label]
    assert np.bincount(world.above[world.above >= 0]).max() == 2


def test_hidden_labels_are_the_faint_ones_and_one_is_always_given():
    truthful = config(**SMALL, kinds=("static",), implied_labels=0.8)
    settings = dataclasses.replace(truthful, hidden_labels=0.5)
    overlooked = synthetic._world(settings).overlooked
    hidden = {True: [], False: []}  # of classes that the frames show plainly, or not
    by_class = {True: [], False: []}  # of classes that are overlooked, or not
    for i in range(500):
        truth, video = (generate_video(c, "train", i) for c in (truthful, settings))
        assert all(
            np.array_equal(video.features[n], truth.features[n]) for n in truth.features
        )
        assert video.truth == truth.truth and video.labels
        assert set(video.labels) <= set(video.truth)
        for label in video.truth if len(video.truth) > 2 else ():
            missing = label not in video.labels
            plain = projections(video, settings, "rgb", label).mean() > 0.15
            hidden[plain].append(missing)
            by_class[overlooked[label] > 0.5].append(missing)
    assert np.mean(hidden[False]) > np.mean(hidden[True]) + 0.1
    assert np.mean(by_class[True]) > np.mean(by_class[False]) + 0.1
    assert 0.3 < np.mean(hidden[True] + hidden[False]) < 0.6
    everything = dataclasses.replace(truthful, hidden_labels=4.0)
    assert {len(video.labels) for video in videos(everything, 60)} == {1}


def test_labels_can_be_as_bad_as_the_datasets():
    bad = {"implied_labels": 0.9, "hidden_labels": 3.1, "wrong_labels": 0.222}
    settings = config(**SMALL, kinds=("static",), labels_per_video=5.0, **bad)
    found = [(set(v.truth), set(v.labels)) for v in videos(settings, 400)]
    right = sum(len(truth & given) for truth, given in found)
    recall = right / sum(len(truth) for truth, _ in found)
    precision = right / sum(len(given) for _, given in found)
    assert recall == pytest.approx(0.145, abs=0.03)
    assert precision == pytest.approx(0.788, abs=0.03)


def read(paths: list[str]):
    return [
        decode_record(serialized)
        for path in paths
        for serialized in tf.data.TFRecordDataset(path).as_numpy_iterator()
    ]


def test_written_shards_decode_to_the_generated_videos(tmp_path):
    settings = config()
    paths = write_dataset(settings, tmp_path, "train", num_videos=10, num_shards=3)
    names = [os.path.basename(path) for path in paths]
    assert names == [f"train000{shard}.tfrecord" for shard in range(3)]
    records = read(paths)
    assert [len(read([path])) for path in paths] == [4, 3, 3]
    order = [i for shard in range(3) for i in range(shard, 10, 3)]
    for record, index in zip(records, order, strict=True):
        video = generate_video(settings, "train", index)
        assert record.level == "frame"
        assert record.labels == video.labels
        for name in SIZES:
            np.testing.assert_array_equal(record.features[name], video.features[name])
    lines = (tmp_path / "classes.csv").read_text().splitlines()
    assert lines[0] == "Index,Kind"
    assert lines[1:] == [f"{c},{settings.kind_of(c)}" for c in range(12)]
    assert sorted(os.listdir(tmp_path)) == ["classes.csv", *names]


def test_video_level_shards_hold_the_means_of_the_same_videos(tmp_path):
    frames = read(write_dataset(config(), tmp_path / "a", "validate", 8, 2))
    video = read(write_dataset(config(), tmp_path / "b", "validate", 8, 2, "video"))
    for a, b in zip(frames, video, strict=True):
        assert b.level == "video"
        assert (a.id, a.labels) == (b.id, b.labels)
        assert sorted(b.features) == ["mean_audio", "mean_rgb"]
        for name in SIZES:
            values = a.features[name] * (4 / 255) + (4 / 512 - 2)
            mean = b.features[f"mean_{name}"]
            np.testing.assert_allclose(mean, values.mean(axis=0), atol=1e-6)


def test_the_test_split_has_no_labels(tmp_path):
    records = read(write_dataset(config(), tmp_path, "test", 3))
    assert [record.labels for record in records] == [None] * 3


def test_ids_are_unique_over_splits_and_end_in_the_shard():
    # As the dataset numbers its shards: 0 is aa, 3227 is 0d.
    assert synthetic._video_id("train", 0, 0).endswith("aa")
    assert synthetic._video_id("validate", 3227, 5).endswith("0d")
    ids = [
        synthetic._video_id(split, shard, place)
        for split in synthetic.SPLITS
        for shard in (0, 1, 61, 62, synthetic.MAX_SHARDS - 1)
        for place in range(synthetic.MAX_VIDEOS_PER_SHARD)
    ]
    assert len(set(ids)) == len(ids)
    assert all(len(i) == 4 and i.isascii() and i.isalnum() for i in ids)


def test_writing_again_replaces_only_what_was_made_here(tmp_path):
    write_dataset(config(), tmp_path, "train", 6, 3)
    kept = write_dataset(config(), tmp_path, "validate", 2, 1)
    paths = write_dataset(config(seed=1), tmp_path, "train", 4, 2)
    left = sorted(os.fspath(path) for path in tmp_path.glob("*.tfrecord"))
    assert left == sorted(paths + kept)
    (tmp_path / "classes.csv").unlink()
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    with pytest.raises(UserError, match="train0000.tfrecord was not made"):
        write_dataset(config(), tmp_path, "train", 4, 2)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("statik",)}, "Unknown kind statik. Did you mean static"),
        ({"kinds": ()}, "at least one kind"),
        ({"kinds": ("static", "static")}, "each once"),
        ({"kinds": ("audio",), "features": {"rgb": 64}}, "need the feature audio"),
        ({"features": {"audio": 64}}, "must hold rgb"),
        ({"features": {"rgb": 64, "sound": 64}}, "Unknown feature sound"),
        ({"features": {"rgb": 8, "audio": 64}}, "size of rgb must be at least 32"),
        ({"num_classes": 18}, "multiple of 12"),
        ({"num_classes": 2}, "num_classes"),
        ({"kinds": ("brief",), "max_frames": 7}, "max_frames"),
        ({"labels_per_video": 0.5}, "labels_per_video"),
        ({"strength": 3.0}, "strength"),
        ({"missing_labels": 1.2}, "missing_labels"),
        ({"wrong_labels": float("nan")}, "wrong_labels"),
        ({"implied_labels": -0.1}, "implied_labels"),
        ({"hidden_labels": 4.1}, "hidden_labels"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        config(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "Unknown split dev"),
        ({"level": "segment"}, "level"),
        ({"num_shards": 0}, "num_shards"),
        ({"num_shards": 3, "num_videos": 2}, "a shard holds 1 to 1281"),
        ({"num_shards": 1, "num_videos": 1282}, "a shard holds 1 to 1281"),
    ],
)
def test_a_bad_request_is_one_clear_line(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write_dataset(config(), tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written"):
        write_dataset(config(), tmp_path / "file", "train", 2)


def rated(settings, count: int):
    """Video, ratings and the segments' places in them, of `count` videos."""
    for i, video in enumerate(videos(settings, count)):
        yield video, rate_segments(settings, "train", i, video)


def test_segments_start_at_multiples_of_five_and_are_about_five_a_video():
    settings = config(max_frames=100)
    counts = []
    for i, (video, ratings) in enumerate(rated(settings, 60)):
        again = rate_segments(settings, "train", i, video)
        assert again == ratings
        length = len(video.features["rgb"])
        starts = list(dict.fromkeys(ratings.starts))
        counts.append((len(starts), -(-length // 5)))
        assert all(start % 5 == 0 and 0 <= start < length for start in starts)
        assert ratings.ends == [start + 5 for start in ratings.starts]
        cells = list(zip(ratings.starts, ratings.labels, strict=True))
        assert len(set(cells)) == len(cells)
    assert all(min(4, places) <= n <= min(6, places) for n, places in counts)
    assert 4.5 < np.mean([n for n, _ in counts]) < 5.5


def test_segments_are_rated_by_what_their_frames_show():
    settings = config(num_classes=36, max_frames=100)
    partner = synthetic._world(settings).partner
    scores = {kind: set() for kind in KINDS}
    for video, ratings in rated(settings, 80):
        confusing = {*video.decoys, *partner[video.truth].tolist()}
        assert not confusing & set(ratings.labels)
        for start, label, score in zip(
            ratings.starts, ratings.labels, ratings.scores, strict=True
        ):
            shown = video.shown.get(label, np.zeros(1, bool))[start : start + 5]
            assert score == float(shown.any())
            if label in video.truth:
                scores[settings.kind_of(label)].add(score)
    # What lasts for the whole video is in all its segments.
    assert scores.pop("static") == scores.pop("audio") == {1.0}
    assert all(found == {0.0, 1.0} for found in scores.values())


def test_the_frames_of_a_class_are_those_with_its_evidence():
    settings = config()
    for video in videos(settings, 40):
        assert sorted(video.shown) == video.truth
        for label, shown in video.shown.items():
            strongest = np.maximum(
                *(projections(video, settings, name, label) for name in SIZES)
            )
            assert shown.any()
            if not shown.all():
                assert strongest[shown].min() > strongest[~shown].mean() + 0.1


def segment_means(settings, split: str, count: int):
    """Means over segments of L2-normalised frames [N, D]; ratings, NaN if none."""
    means, targets = [], []
    for i, video in enumerate(videos(settings, count, split)):
        ratings = rate_segments(settings, split, i, video)
        frames = np.concatenate(list(video.features.values()), axis=1)
        frames = frames * schema.DEQUANTIZE_SCALE + schema.DEQUANTIZE_OFFSET
        frames /= np.linalg.norm(frames, axis=1, keepdims=True)
        rows = {start: len(means) + n for n, start in enumerate(set(ratings.starts))}
        means += [frames[start : start + 5].mean(axis=0) for start in rows]
        targets += [np.full(settings.num_classes, np.nan) for _ in rows]
        for start, label, score in zip(
            ratings.starts, ratings.labels, ratings.scores, strict=True
        ):
            targets[rows[start]][label] = score
    return np.array(means), np.array(targets)


def test_a_linear_probe_of_segment_means_learns_the_ratings():
    settings = config(max_frames=60)
    x, y = segment_means(settings, "train", 250)
    new_x, new_y = segment_means(settings, "validate", 120)
    areas = []
    for label in range(settings.num_classes):
        rows, new_rows = np.isfinite(y[:, label]), np.isfinite(new_y[:, label])
        a, target = x[rows], y[rows, label] - y[rows, label].mean()
        a = a - a.mean(axis=0)
        weights = np.linalg.solve(
            a.T @ a + 1e-3 * rows.sum() * np.eye(a.shape[1]), a.T @ target
        )
        score, truth = new_x[new_rows] @ weights, new_y[new_rows, label]
        areas.append((score[truth == 1][:, None] > score[truth == 0]).mean())
    assert np.mean(areas) > 0.8
    assert min(areas) > 0.6


def test_written_segments_are_those_of_the_videos_and_test_has_none(tmp_path):
    settings = config()
    plain = write_dataset(settings, tmp_path / "plain", "train", 6, 2)
    (rated_path, *_) = write_dataset(
        settings, tmp_path / "rated", "train", 6, 2, segments=True
    )
    records = [list(tf.data.TFRecordDataset(p).as_numpy_iterator()) for p in plain]
    found = list(tf.data.TFRecordDataset(rated_path).as_numpy_iterator())
    for index, old, new in zip((0, 2, 4), records[0], found, strict=True):
        video = generate_video(settings, "train", index)
        before, after = decode_record(old), decode_record(new)
        assert before.segments is None
        assert after.segments == rate_segments(settings, "train", index, video)
        # But for the ratings, nothing changes by a byte.
        message = tf.train.SequenceExample.FromString(new)
        for key in [k for k in message.context.feature if k.startswith("segment_")]:
            del message.context.feature[key]
        assert message.SerializeToString(deterministic=True) == old
    (path,) = write_dataset(settings, tmp_path, "test", 3, 1, segments=True)
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        assert decode_record(record).segments is None


def test_the_command_rates_segments_on_request(tmp_path, capsys):
    flags = [f"--output_dir={tmp_path}", "--num_videos=3", "--num_shards=1"]
    flags += ["--split=validate", "--num_classes=12", "--max_frames=20"]
    assert run("synthesize", [*flags, "--segments"]) == 0
    path = str(tmp_path / "validate0000.tfrecord")
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        assert len(set(decode_record(record).segments.starts)) >= 1
    assert run("synthesize", [*flags, "--segments", "--level=video"]) == 1
    assert "Only videos of level frame have segments" in capsys.readouterr().err
