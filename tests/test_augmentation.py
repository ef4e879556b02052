"""Augmentation of training: crops, bootstrap, noise, zeroed dimensions and features."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from replicas import mirrored
from yt8m import evaluation, runs
from yt8m.cli import flags as shared
from yt8m.cli import train
from yt8m.config import (
    DataConfig,
    FrameAugmentation,
    FrameSelection,
    ModelConfig,
    Part,
    RunConfig,
    TrainingConfig,
)
from yt8m.data import frames
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_frame_record, write_records
from yt8m.errors import UserError
from yt8m.layers.preprocessing import dequantize
from yt8m.training import augmentation
from yt8m.training.loop import StepFunctions
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

CLASSES, BATCH = 4, 6
SIZES = {"rgb": 5, "audio": 3}
DATA = DataConfig("frame", SIZES, CLASSES)
HALF = FrameAugmentation(crop=(0.5, 0.5))
DRAWN_AGAIN = FrameAugmentation(bootstrap=1.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two shards of videos of 0 to 12 frames; every frame of a video is another."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    found = []
    for file in range(2):
        records = []
        for i in range(8):
            count = [0, 1, 12][i] if i < 3 else rng.integers(4, 12)
            features = {
                n: rng.integers(0, 256, (count, s)).astype("uint8")
                for n, s in SIZES.items()
            }
            records.append(encode_frame_record(f"{file}-{i}", features, [i % CLASSES]))
        found.append(str(folder / f"{file}.tfrecord"))
        write_records(found[-1], records)
    return found


def training(**values) -> TrainingConfig:
    defaults = {"optimizer": "SGD", "batch_size": BATCH, "base_learning_rate": 1.0}
    return TrainingConfig("unused", lr_schedule="constant", **(defaults | values))


def reader_of(files, settings=None, data=DATA, **options):
    """The reader of training on `settings`, or that of evaluation."""
    if settings is None:
        return Reader(files, data, batch_size=BATCH, **options)
    return Reader(
        files,
        data,
        batch_size=settings.batch_size,
        seed=settings.seed,
        num_epochs=None,
        augmentation=settings.frame_augmentation(),
        **options,
    )


def make_steps(settings, strategy=None, name="FrameLevelLogisticModel", **args):
    config = RunConfig(ModelConfig(name, args), DATA, settings)
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        keras.utils.set_random_seed(1)
        model = runs.build_model(config.model, DATA)
        optimizer = create_optimizer(settings, ExamplesSchedule(settings, 1000))
        optimizer.build(model.trainable_variables)
    return StepFunctions(config, model, optimizer, strategy)


def take_steps(steps, reader, *counts, first=0):
    """The weights after some calls from batch `first` on."""
    iterator = steps.iterate(reader, first)
    for count in counts:
        assert steps.run(iterator, count).bad_step is None
    return [v.numpy() for v in steps.model.variables]


# --- frames --------------------------------------------------------------------------


def test_a_crop_is_a_share_of_the_frames_at_a_drawn_place():
    available = tf.constant([0, 1, 2, 9, 10, 10])
    place = tf.constant([0.9, 0.9, 0.9, 0.6, 0.0, 0.999999])
    start, length = frames.crop(
        available, (0.5, 0.5), tf.stack([tf.zeros(6), place], axis=1)
    )
    # Of 9 frames 5, from one of the places 0 to 4; of 10 frames 5, from 0 to 5.
    assert length.numpy().tolist() == [0, 1, 1, 5, 5, 5]
    assert start.numpy().tolist() == [0, 0, 1, 3, 0, 5]


def test_the_share_of_a_crop_is_drawn_between_its_bounds():
    draws = tf.constant([[0.0, 0.0], [0.5, 0.0], [0.9999, 0.0]])
    _, length = frames.crop(tf.constant([10, 10, 10]), (0.2, 1.0), draws)
    assert length.numpy().tolist() == [2, 6, 10]
    _, one_each = frames.crop(tf.constant([10, 20, 300]), (0.1, 0.1), draws)
    assert one_each.numpy().tolist() == [1, 2, 30]


def test_a_bootstrap_draws_with_replacement_in_the_order_of_time():
    draws = tf.constant([[0.9, 0.0, 0.99, 0.3]] * 4)
    drawn, number = frames.bootstrap(tf.constant([0, 1, 4, 3]), 1.0, draws)
    assert number.numpy().tolist() == [0, 1, 4, 3]
    # floor(4 u) is 3, 0, 3, 1; of the video of 3 frames the first three draws count.
    np.testing.assert_array_equal(drawn[1:, :1], [[0], [0], [0]])
    np.testing.assert_array_equal(drawn[2], [0, 1, 3, 3])
    np.testing.assert_array_equal(drawn[3, :3], [0, 2, 2])
    drawn, number = frames.bootstrap(tf.constant([0, 1, 4, 3]), 0.5, draws)
    assert number.numpy().tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(drawn[2, :2], [0, 3])


def test_videos_without_frames_alone_have_none_to_draw():
    none, seed = tf.constant([0, 0]), tf.constant([1, 2])
    for breaks in (None, tf.zeros((2, 0), tf.bool)):
        indices, taken = frames.select_frames(
            none,
            FrameSelection(),
            seed,
            max_frames=9,
            breaks=breaks,
            augmentation=DRAWN_AGAIN,
        )
        assert indices.shape == (2, 0) and taken.numpy().tolist() == [0, 0]


LENGTHS = np.array([0, 1, 2, 5, 9, 30], np.int32)


@pytest.mark.parametrize("selection", [FrameSelection(), FrameSelection(4, "random")])
@pytest.mark.parametrize("wanted", [HALF, DRAWN_AGAIN, FrameAugmentation((0.3, 1), 1)])
def test_frames_are_drawn_for_the_seed_and_the_place_in_the_batch(selection, wanted):
    def chosen(rows, seed=(1, 2)):
        indices, taken = frames.select_frames(
            tf.constant(LENGTHS[rows]),
            selection,
            seed,
            rows=(tf.constant(rows), len(LENGTHS)),
            max_frames=30,
            augmentation=wanted,
        )
        assert indices.shape[1] == max(taken.numpy(), default=0)
        return [r[:n].tolist() for r, n in zip(indices.numpy(), taken, strict=True)]

    whole = chosen(np.arange(6))
    for frame_numbers, length in zip(whole, LENGTHS, strict=True):
        assert bool(frame_numbers) == (length > 0)
        assert all(0 <= t < length for t in frame_numbers)
        if selection.count is None:
            assert frame_numbers == sorted(frame_numbers)
    assert chosen(np.arange(6)) == whole != chosen(np.arange(6), (1, 3))
    assert chosen(np.arange(2, 5)) == whole[2:5]
    # Evaluation has no seed.
    plain = frames.select_frames(tf.constant(LENGTHS), selection, None)
    same = frames.select_frames(
        tf.constant(LENGTHS), selection, None, augmentation=wanted
    )
    for got, expected in zip(same, plain, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert whole != [
        r[:n].tolist() for r, n in zip(plain[0].numpy(), plain[1], strict=True)
    ]


def test_half_of_a_video_is_in_a_row_and_begins_anywhere():
    lengths = tf.constant([8] * 300)
    indices, taken = frames.select_frames(
        lengths, FrameSelection(), [1, 2], augmentation=HALF
    )
    assert set(taken.numpy()) == {4} and set(indices.numpy()[:, 0]) == {0, 1, 2, 3, 4}
    assert (np.diff(indices) == 1).all()
    # Frames are chosen within the half, and the first ones are skipped before.
    indices, _ = frames.select_frames(
        lengths, FrameSelection(3, "random", 2), [1, 2], augmentation=HALF
    )
    assert indices.numpy().min() == 2 and indices.numpy().max() == 7
    assert np.ptp(indices, axis=1).max() == 2


def examples(dataset, count):
    """id -> dequantised frames, of the first `count` elements."""
    found = {}
    for batch, host in dataset.take(count):
        for i, video in enumerate(host["id"].numpy()):
            length = batch["num_frames"][i]
            parts = [batch[name][i, :length].numpy() for name in SIZES]
            found[video] = np.concatenate(parts, axis=1)
    return found


def test_the_reader_gives_every_replica_and_resumed_run_the_same_frames(files):
    settings = training(crop="0.5", frame_bootstrap=1.0)
    reader = reader_of(files, settings)
    augmented = examples(reader.dataset(), 2)
    plain = examples(reader_of(files, training()).dataset(), 2)
    assert augmented.keys() == plain.keys()
    for video, whole in plain.items():
        part, rows = augmented[video], [tuple(row) for row in whole]
        assert len(part) == -(-len(whole) // 2)
        chosen = [rows.index(tuple(row)) for row in part]
        assert chosen == sorted(chosen)
        assert np.ptp(chosen or [0]) < max(len(part), 1)

    resumed = examples(reader.dataset(1), 1)
    slices = examples(reader.replica_dataset(0, Part(1, 2, 3)), 4)
    for some in (resumed, slices):
        assert len(some) > 3
        for video, part in some.items():
            np.testing.assert_array_equal(part, augmented[video])


# --- scenes --------------------------------------------------------------------------

# Cosine distances of neighbours: 0, 1, 0, 0.293, 0.293 (45 degrees), then padding.
SCENES = np.array([[1, 0], [2, 0], [0, 1], [0, 3], [1, 1], [5, 0], [9, -9]], "float32")


def test_a_scene_begins_where_neighbours_are_far_apart():
    for threshold, expected in ((0.5, [2]), (0.2, [2, 4, 5]), (1.5, [])):
        breaks = frames.scene_breaks([tf.constant(SCENES[None, :6])], threshold, 8)
        assert breaks.shape == (1, 8)
        assert np.flatnonzero(breaks[0, :6]).tolist() == expected
    # Frames of zeros are alike; features stand side by side, bytes for their numbers.
    parts = [tf.zeros((1, 3, 2)), tf.constant([[[0], [0], [255]]], tf.uint8)]
    assert frames.scene_breaks(parts, 0.5, 3).numpy().tolist() == [[False, False, True]]
    assert not frames.scene_breaks([tf.zeros((1, 3, 2))], 0.0, 3).numpy().any()
    assert frames.scene_breaks([tf.zeros((0, 3, 2))], 0.5, 3).shape == (0, 3)
    assert frames.scene_breaks([tf.zeros((2, 0, 2))], 0.5, 3).shape == (2, 3)


def test_the_middle_frame_of_each_scene_is_taken():
    breaks = np.zeros((5, 10), bool)
    breaks[:, [2, 7]] = True
    places, number = frames.scene_frames(
        tf.constant(breaks),
        tf.constant([0, 0, 0, 3, 0]),
        tf.constant([10, 1, 0, 10, 7]),
    )
    # Scenes 0-1, 2-6, 7-9; the fourth video begins at 3, the last ends at 6.
    assert number.numpy().tolist() == [3, 1, 0, 2, 2]
    np.testing.assert_array_equal(places[0, :4], [1, 4, 8, 8])
    np.testing.assert_array_equal(places[1, :2], [0, 0])
    np.testing.assert_array_equal(places[3, :2], [5, 8])
    np.testing.assert_array_equal(places[4, :2], [1, 4])


def test_training_and_evaluation_read_one_frame_a_scene(tmp_path):
    path = str(tmp_path / "scenes.tfrecord")
    lengths = {"a": 6, "b": 1, "c": 0, "d": 2}
    write_records(
        path,
        [
            encode_frame_record(name, {"xy": SCENES[:n].reshape(n, 2)}, [0])
            for name, n in lengths.items()
        ],
    )
    selection = FrameSelection(scene_threshold=0.5)
    data = DataConfig("frame", {"xy": 2}, 2, frames=selection, max_frames=7)

    def read(data, **options):
        ((batch, _),) = Reader([path], data, batch_size=4, **options).batches()
        assert set(batch["num_frames"].numpy()) <= {0, 1, 2}
        return {
            tuple(map(tuple, x[:n].numpy()))
            for x, n in zip(batch["xy"], batch["num_frames"], strict=True)
        }

    # Scenes 0-1 and 2-5: frames 1 and 4.
    expected = {((2, 0), (1, 1)), ((1, 0),), (), ((2, 0),)}
    assert read(data, static_frames=True) == read(data, seed=1) == expected
    skipping = FrameSelection(1, "even", skip_first=3, scene_threshold=0.5)
    skipped = read(dataclasses.replace(data, frames=skipping))
    assert skipped == {((1, 1),), ((1, 0),), (), ((2, 0),)}


# --- features ------------------------------------------------------------------------


def make_batch(videos=64, seed=0):
    rng = np.random.default_rng(seed)
    batch = {
        n: tf.constant(rng.integers(0, 256, (videos, 7, s)).astype("uint8"))
        for n, s in SIZES.items()
    }
    batch["num_frames"] = tf.constant(np.resize([0, 1, 7], videos), tf.int32)
    return batch | {"labels": tf.ones((videos, CLASSES), tf.uint8)}


def augment(batch, step=3, rows=None, **options):
    rows = tf.range(len(batch["labels"])) if rows is None else tf.constant(rows)
    settings = training(**({"seed": 5} | options))
    out = augmentation.augment(batch, SIZES, settings, tf.constant(step), rows)
    assert out["labels"] is batch["labels"]
    assert out["num_frames"] is batch["num_frames"]
    return {name: out[name].numpy() for name in SIZES}


def plain(batch):
    return {name: dequantize(batch[name], "float32").numpy() for name in SIZES}


def test_noise_is_normal_and_of_the_given_deviation():
    batch = make_batch(300)
    noisy, before = augment(batch, feature_noise=0.2), plain(batch)
    noise = [(noisy[n] - before[n]) / 0.2 for n in SIZES]
    for z in noise:
        assert abs(z.mean()) < 0.04 and abs(z.std() - 1) < 0.04
        assert abs((z**4).mean() - 3) < 0.4
        for axis in range(3):  # neighbours know nothing of each other
            pairs = np.stack([np.delete(z, 0, axis), np.delete(z, -1, axis)])
            assert abs(np.corrcoef(pairs.reshape(2, -1))[0, 1]) < 0.05
    assert abs(np.corrcoef(noise[0][..., :3].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_dimensions_are_zero_in_all_frames_of_a_video():
    batch = make_batch(600)
    after, before = augment(batch, feature_dropout=0.3), plain(batch)
    for name, size in SIZES.items():
        zeroed = (after[name] == 0).all(axis=1)
        assert abs(zeroed.mean() - 0.3) < 0.05
        np.testing.assert_array_equal(
            after[name], np.where(zeroed[:, None], 0, before[name])
        )
        assert len(np.unique(zeroed, axis=0)) == 2**size  # every subset


def test_a_modality_is_dropped_and_never_all_of_them():
    batch = make_batch(600)
    after, before = augment(batch, modality_dropout=0.4), plain(batch)
    gone = np.stack([(after[n] == 0).all(axis=(1, 2)) for n in SIZES])
    assert not gone.all(axis=0).any()
    np.testing.assert_allclose(gone.mean(axis=1), 0.2, atol=0.05)
    for name, dropped in zip(SIZES, gone, strict=True):
        np.testing.assert_array_equal(
            after[name], np.where(dropped[:, None, None], 0, before[name])
        )


FEATURE_OPTIONS = [
    {"feature_noise": 0.3},
    {"feature_dropout": 0.5},
    {"modality_dropout": 0.5},
]


@pytest.mark.parametrize("options", FEATURE_OPTIONS)
def test_draws_follow_from_seed_step_and_row_alone(options):
    batch = make_batch(12)
    whole = augment(batch, **options)
    part = {k: v[4:9] for k, v in batch.items()}
    rows = augment(part, rows=np.arange(4, 9), **options)
    shorter = augment({**batch, **{n: batch[n][:, :3] for n in SIZES}}, **options)
    garbage = {
        n: tf.where(tf.sequence_mask(batch["num_frames"], 7)[..., None], x, np.nan)
        for n, x in plain(batch).items()
    }
    padded = augment(batch | garbage, **options)
    for name in SIZES:
        np.testing.assert_array_equal(augment(batch, **options)[name], whole[name])
        # To the last bit: the CPU rounds the ends of its vectors in another way.
        close = {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(rows[name], whole[name][4:9], **close)
        np.testing.assert_allclose(shorter[name], whole[name][:, :3], **close)
        for i, length in enumerate(batch["num_frames"]):
            np.testing.assert_array_equal(
                padded[name][i, :length], whole[name][i, :length]
            )
    for other in ({"step": 4}, {"seed": 6}, {"rows": np.arange(12) + 1}):
        changed = augment(batch, **(options | other))
        assert any((changed[n] != whole[n]).any() for n in SIZES)
    empty = augment({k: v[:0] for k, v in batch.items()}, **options)
    assert empty["rgb"].shape == (0, 7, 5)


def test_uniform_draws_leave_out_0_and_1_and_depend_on_their_key_alone():
    keys = tf.constant(np.arange(4, dtype=np.uint32))
    draws = augmentation.uniform(keys, [40, 500]).numpy()
    assert draws.shape == (4, 40, 500) and draws.min() > 0 and draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=(1, 2)), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(axis=(1, 2)), 1 / 12, atol=0.002)
    np.testing.assert_array_equal(
        draws[2], augmentation.uniform(keys[2:3], [40, 500])[0]
    )
    bounds = augmentation.normal(tf.constant([1], tf.uint32), [1 << 20]).numpy()
    assert np.isfinite(bounds).all()


def test_vectors_of_videos_are_augmented_too():
    batch = {n: tf.random.stateless_normal((50, s), [1, 2]) for n, s in SIZES.items()}
    batch |= {"labels": tf.ones((50, CLASSES)), "num_frames": None}
    for options in FEATURE_OPTIONS:
        after = augment(batch, **options)
        assert after["rgb"].shape == (50, 5)
        assert any((after[n] != batch[n]).numpy().any() for n in SIZES)


# --- runs ----------------------------------------------------------------------------


class Seen(Exception):
    """The batch of which a step takes gradients."""


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("options", FEATURE_OPTIONS)
def test_a_step_sees_what_was_augmented_and_then_blended(options, mixup):
    batch = make_batch(6)

    def see(**values):
        steps = make_steps(training(seed=5, **values))

        def compute(batch, size):
            raise Seen(batch)

        steps._compute = compute
        with pytest.raises(Seen) as seen:
            steps._update(batch)
        return seen.value.args[0]

    seen, without = see(mixup=mixup, **options), see(mixup=mixup)
    assert any(np.any(seen[n] != dequantize(without[n], "float32")) for n in SIZES)
    np.testing.assert_array_equal(seen["labels"], without["labels"])
    if not mixup:
        expected = augment(batch, step=0, **options)
        for name in SIZES:
            np.testing.assert_array_equal(seen[name], expected[name])


def test_steps_are_the_same_however_they_are_cut_and_on_any_replicas(files):
    # Batches of 7 videos, which two replicas cannot share evenly.
    settings = training(
        batch_size=7,
        crop="0.4,0.9",
        frame_bootstrap=0.8,
        feature_noise=0.3,
        feature_dropout=0.3,
        modality_dropout=0.5,
    )
    reader = reader_of(files, settings)
    steps = make_steps(settings)
    start = [v.numpy() for v in steps.model.variables]
    together = take_steps(steps, reader, 3)

    def set_back(weights, step):
        for variable, value in zip(steps.model.variables, weights, strict=True):
            variable.assign(value)
        steps._taken.assign(step)

    set_back(start, 0)
    first = take_steps(steps, reader, 1)
    resumed = take_steps(steps, reader, 1, 1, first=1)
    set_back(first, 0)  # as if those were of step 1
    wrong = take_steps(steps, reader, 2, first=1)
    both = take_steps(make_steps(settings, mirrored(2)), reader, 3)
    for i, weights in enumerate(together):
        np.testing.assert_array_equal(resumed[i], weights)
        np.testing.assert_allclose(both[i], weights, atol=2e-6)
    assert np.abs(wrong[0] - together[0]).max() > 1e-4


def test_the_train_command_augments_the_training_data_alone(files, monkeypatch):
    made = []

    def reader(*args, **options):
        made.append(options)
        if len(made) == 2:
            raise UserError("enough")
        return None

    monkeypatch.setattr("yt8m.data.pipeline.Reader", reader)
    flags = shared.FlagValues()
    train.define(flags)
    given = ["--model=FrameLevelLogisticModel", "--crop=0.5", "--dry_run"]
    given += ["--feature_names=rgb,audio", "--feature_sizes=5,3", "--num_classes=4"]
    given += [f"--{name}_data_pattern={files[0]}" for name in ("train", "eval")]
    flags(["train", *given])
    with pytest.raises(UserError, match="enough"):
        train.run(flags)
    assert made[0]["augmentation"] == HALF and "augmentation" not in made[1]


def test_evaluation_is_as_without_augmentation(files):
    everything = training(
        crop="0.3,0.8",
        frame_bootstrap=0.5,
        feature_noise=1.0,
        feature_dropout=0.5,
        modality_dropout=0.5,
    )
    model = make_steps(everything).model
    scores = [
        evaluation.evaluate(model, reader_of(files), settings)
        for settings in (everything, training())
    ]
    assert scores[0]["loss"] == scores[1]["loss"] and scores[0]["gap"] > 0


def config(level="frame", features=None, **values):
    features = features or (SIZES if level == "frame" else {"mean_rgb": 4})
    name = "NetVLADModel" if level == "frame" else "MoeModel"
    data = DataConfig(level, features, CLASSES)
    return RunConfig(ModelConfig(name), data, training(**values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"crop": "0"}, "--crop=0 "),
        ({"crop": "half"}, "--crop=half"),
        ({"crop": "0.9,0.3"}, "--crop=0.9,0.3"),
        ({"crop": "0.1,0.5,0.9"}, "--crop=0.1,0.5,0.9"),
        ({"crop": "nan"}, "--crop=nan"),
        ({"frame_bootstrap": 1.5}, "--frame_bootstrap"),
        ({"feature_noise": -1}, "--feature_noise"),
        ({"feature_dropout": 1.0}, "--feature_dropout"),
        ({"modality_dropout": 1.0}, "--modality_dropout"),
        ({"crop": "0.5", "level": "video"}, "--crop .* MoeModel"),
        ({"frame_bootstrap": 1, "level": "video"}, "--frame_bootstrap .* MoeModel"),
        ({"modality_dropout": 0.1, "features": {"rgb": 4}}, "rgb is one"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_the_name_of_the_flag(values, said):
    with pytest.raises(UserError, match=said):
        config(**values)


@pytest.mark.parametrize("threshold", [-0.1, 2.5])
def test_a_threshold_of_scenes_is_a_cosine_distance(threshold):
    with pytest.raises(UserError, match="--scene_threshold"):
        FrameSelection(scene_threshold=threshold)


def test_scenes_are_of_whole_videos_with_frames():
    scenes = FrameSelection(scene_threshold=0.3)
    with pytest.raises(UserError, match="--scene_threshold .*whole videos"):
        DataConfig("frame", SIZES, frames=scenes, segments=True)
    with pytest.raises(UserError, match="--scene_threshold needs a frame-level"):
        DataConfig("video", {"mean_rgb": 4}, frames=scenes)


def test_flags_are_stored_and_read_back():
    flags = shared.FlagValues()
    train.define(flags)
    given = ["--crop=0.3,1", "--frame_bootstrap=0.5", "--feature_noise=0.1"]
    given += ["--feature_dropout=0.2", "--modality_dropout=0.3"]
    flags(["train", *given, "--scene_threshold=0.4", "--train_data_pattern=x"])
    stored = RunConfig(
        ModelConfig("NetVLADModel"),
        shared.data_config(flags, DATA),
        shared.training_config(flags),
    )
    assert stored.data.frames.scene_threshold == 0.4
    assert stored.training.frame_augmentation() == FrameAugmentation((0.3, 1.0), 0.5)
    assert stored.training.modality_dropout == 0.3
    assert RunConfig.from_json(stored.to_json()) == stored
    # Another value makes it another run.
    other = dataclasses.replace(stored.training, crop="0.5")
    with pytest.raises(UserError, match="crop=0.3,1"):
        stored.refuse_changes(dataclasses.replace(stored, training=other))
    again = shared.FlagValues()
    train.define(again)
    again(["train"])
    shared.take_over(again, stored)
    again.train_data_pattern = "x"
    assert shared.training_config(again) == dataclasses.replace(stored.training)
    assert shared.data_config(again, stored.data) == stored.data
    assert training().frame_augmentation() is None
