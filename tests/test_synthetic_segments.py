"""Embedded data of segments: context that decides, labels that mislead, transfer."""

import numpy as np
import pytest
import tensorflow as tf

from test_synthetic import config, projections, same_video
from yt8m import schema
from yt8m.cli.main import run
from yt8m.data import synthetic
from yt8m.data.records import decode_record
from yt8m.data.synthetic import generate_video, rate_segments
from yt8m.errors import UserError


def rated(settings, count: int, split: str = "train"):
    for i in range(count):
        video = generate_video(settings, split, i)
        yield video, rate_segments(settings, split, i, video)


def cells(ratings):
    return zip(ratings.starts, ratings.labels, ratings.scores, strict=True)


def contextual(**options):
    kinds = {"kinds": ("contextual",), "num_classes": 4, "labels_per_video": 1.0}
    return config(max_frames=100, **kinds | options)


# --- context -------------------------------------------------------------------------


def test_two_contextual_classes_share_their_evidence_and_differ_in_the_scene():
    settings = contextual()
    assert [settings.partner_of(c) for c in range(4)] == [1, 0, 3, 2]
    evidence, scenes = {0: [], 1: []}, {0: [], 1: []}
    for i in range(120):
        video = generate_video(settings, "train", i)
        (label,) = video.truth
        first, second = sorted((label, settings.partner_of(label)))
        shown = video.shown[label]
        assert 1 <= shown.sum() <= len(shown) // 4
        near = np.convolve(shown, np.ones(21), "same") > 0
        assert near.sum() > shown.sum() and not near.all()
        along = projections(video, settings, "rgb", first)
        scene = projections(video, settings, "rgb", second)
        evidence[label - first].append(along[shown].mean())
        sign = -1 if label == first else 1
        assert (sign * scene[~near]).min() > 0.2
        scenes[label - first].append(scene[near].mean())
        assert abs(along[~shown].mean()) < 0.05 and abs(scene[near].mean()) < 0.05
    for found in (evidence, scenes):
        assert len(found[0]) > 40 and len(found[1]) > 40
        assert np.mean(found[0]) == pytest.approx(np.mean(found[1]), abs=0.03)
    assert np.mean(evidence[0]) > 0.3


def test_where_a_contextual_class_is_rated_its_partner_is_too_and_is_not_there():
    settings = contextual(kinds=("static", "contextual"), num_classes=16)
    scores = []
    for video, ratings in rated(settings, 60):
        found = {(start, label): score for start, label, score in cells(ratings)}
        assert len(found) == len(ratings.labels)
        for (start, label), score in found.items():
            if label in video.truth and settings.kind_of(label) == "contextual":
                assert found[start, settings.partner_of(label)] == 0.0
                assert score == video.shown[label][start : start + 5].any()
                scores.append(score)
    assert set(scores) == {0.0, 1.0}


def test_a_linear_probe_tells_the_pair_apart_by_the_video_and_not_by_the_segment():
    settings = contextual(num_classes=2)
    inputs = {"segment": [], "segment and video": []}
    truth = []
    for video, ratings in rated(settings, 240):
        frames = video.features["rgb"] * schema.DEQUANTIZE_SCALE
        frames = frames + schema.DEQUANTIZE_OFFSET
        frames /= np.linalg.norm(frames, axis=1, keepdims=True)
        for start, label, score in cells(ratings):
            if score:
                widened = frames[max(start - 3, 0) : start + 8].mean(axis=0)
                inputs["segment"].append(widened)
                both = np.concatenate([widened, frames.mean(axis=0)])
                inputs["segment and video"].append(both)
                truth.append(label)
    y, half = np.array(truth), len(truth) // 2
    shares = {}
    for name, rows in inputs.items():
        x = np.array(rows)
        x = x - x[:half].mean(axis=0)
        ridge = 1e-2 * half * np.var(x) * np.eye(x.shape[1])
        a = x[:half]
        weights = np.linalg.solve(a.T @ a + ridge, a.T @ (y[:half] - 0.5))
        shares[name] = ((x[half:] @ weights > 0) == y[half:]).mean()
    assert half > 80
    assert abs(shares["segment"] - 0.5) < 0.15
    assert shares["segment and video"] > 0.9


# --- labels that mislead -------------------------------------------------------------


def test_misleading_labels_are_rated_in_every_segment_and_shown_in_none():
    settings = config(num_classes=36, max_frames=100, misleading_labels=0.4)
    misled = total = fallen_back = 0
    for i, (video, ratings) in enumerate(rated(settings, 120)):
        chosen = synthetic._misleading(settings, "train", i)
        starts = set(ratings.starts)
        for start, label, score in cells(ratings):
            shown = video.shown.get(label, np.zeros(1, bool))
            assert score == shown[start : start + 5].any()
        for label in video.truth:
            total += 1
            if label not in chosen:
                continue
            misled += 1
            scores = [score for _, c, score in cells(ratings) if c == label]
            assert len(scores) == len(starts)  # rated in each
            fallen_back += any(scores)
            if settings.kind_of(label) in ("static", "audio"):
                assert video.shown[label].sum() <= len(video.shown[label]) // 4 + 1
    assert misled / total == pytest.approx(0.4, abs=0.08)
    # Only where hidden classes fill the whole video one of them is seen.
    assert fallen_back < 0.1 * misled


def test_given_labels_that_are_wrong_may_be_rated_as_such():
    settings = config(num_classes=36, wrong_labels=0.4, misleading_labels=1.0)
    rated_wrong = 0
    for video, ratings in rated(settings, 30):
        confusing = {*video.decoys, *(settings.partner_of(c) for c in video.truth)}
        wrong = set(video.labels) - set(video.truth) - confusing
        for label in wrong:
            scores = [score for _, c, score in cells(ratings) if c == label]
            assert scores == [0.0] * len(set(ratings.starts))
            rated_wrong += 1
    assert rated_wrong > 20


def test_without_misleading_labels_static_classes_last():
    for video, _ in rated(config(kinds=("static",)), 5):
        assert all(shown.all() for shown in video.shown.values())


# --- another vocabulary --------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds, num_classes",
    [
        (tuple(synthetic.KINDS), 24),  # two of a kind and two more
        (("static", "brief", "audio"), 21),  # seven: two, two and three
    ],
)
def test_another_vocabulary_combines_what_the_first_shows(kinds, num_classes):
    first = config(kinds=kinds, num_classes=num_classes)
    second = config(kinds=kinds, num_classes=num_classes, vocabulary_seed=1)
    old, new = synthetic._world(first), synthetic._world(second)
    assert old.kinds == new.kinds
    for name in ("rgb", "audio"):
        np.testing.assert_array_equal(old.noise[name], new.noise[name])
        directions = new.directions[name]
        if num_classes <= directions.shape[1]:
            gram = directions @ directions.T
            np.testing.assert_allclose(gram, np.eye(num_classes), atol=1e-5)
        shares = directions @ old.directions[name].T
        assert np.abs(shares).max() < 0.9  # none is an old class
        for label, row in enumerate(shares):
            parts = np.flatnonzero(np.abs(row) > 0.1)
            assert 2 <= len(parts) <= 3
            assert np.sum(row[parts] ** 2) == pytest.approx(1, abs=1e-4)
            assert {old.kinds[c] for c in parts} == {new.kinds[label]}


def test_the_videos_of_another_vocabulary_are_others_and_repeatable():
    second = config(vocabulary_seed=1)
    video = generate_video(second, "train", 3)
    assert same_video(video, generate_video(second, "train", 3))
    assert not same_video(video, generate_video(config(), "train", 3))
    assert not same_video(video, generate_video(config(vocabulary_seed=2), "train", 3))
    assert rate_segments(second, "train", 3, video).starts


# --- requests ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kinds": ("contextual",), "num_classes": 3}, "leaves a contextual class"),
        ({"kinds": ("contextual",), "max_frames": 39}, "`max_frames` must be in"),
        ({"kinds": ("contxtual",)}, "contextual"),
        ({"misleading_labels": 1.5}, "`misleading_labels` must be in [0, 1]"),
        ({"vocabulary_seed": -1}, "`vocabulary_seed` must be in [0, inf]"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(options, message):
    with pytest.raises(UserError) as error:
        config(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_writes_hard_segments_and_another_vocabulary(tmp_path):
    flags = ["--segments", "--num_videos=4", "--num_shards=1", "--max_frames=60"]
    flags += ["--kinds=static,contextual", "--num_classes=12"]
    flags += ["--misleading_labels=0.5", "--vocabulary_seed=2"]
    assert run("synthesize", [f"--output_dir={tmp_path}", *flags]) == 0
    lines = (tmp_path / "classes.csv").read_text().splitlines()
    assert sum(line.endswith(",contextual") for line in lines) == 6
    settings = synthetic.SyntheticConfig(
        kinds=("static", "contextual"),
        num_classes=12,
        max_frames=60,
        misleading_labels=0.5,
        vocabulary_seed=2,
    )
    path = str(tmp_path / "train0000.tfrecord")
    for i, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
        video = generate_video(settings, "train", i)
        assert decode_record(record).segments == rate_segments(
            settings, "train", i, video
        )
