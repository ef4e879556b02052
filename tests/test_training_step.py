"""One training step: optimisers, schedules, clipping, and any number of replicas."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from replicas import mirrored
from yt8m import runs
from yt8m.config import DataConfig, ModelConfig, Part, RunConfig, TrainingConfig
from yt8m.errors import UserError
from yt8m.training.loop import StepFunctions
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

CLASSES, SIZE, BATCH = 5, 6, 8
DATA = DataConfig("video", {"mean_rgb": SIZE}, num_classes=CLASSES)


class FixedReader:
    """Batches of given arrays, in the form of `yt8m.data.pipeline.Reader`."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, batch: int = BATCH):
        batches = {"mean_rgb": features, "labels": labels}
        host = {"id": np.array([b"%04d" % i for i in range(len(labels))])}
        self._dataset = tf.data.Dataset.from_tensor_slices((batches, host)).batch(batch)

    def dataset(self, start_batch: int = 0):
        return self._dataset.skip(start_batch)

    def replica_dataset(self, start_batch: int, part: Part):
        def slices(*batch):
            def cut(replica):
                size = tf.shape(batch[0]["labels"], tf.int64)[0]
                first, end = part.rows(replica, size)
                return tf.nest.map_structure(lambda x: x[first:end], batch)

            return tf.data.Dataset.range(part.count).map(cut)

        return self.dataset(start_batch).flat_map(slices)


def arrays(examples: int, seed: int = 0, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(examples, SIZE)).astype(np.float32) * scale
    return features, (rng.random((examples, CLASSES)) < 0.3).astype(np.uint8)


def make_steps(training: TrainingConfig, model="LogisticModel", strategy=None, **args):
    config = RunConfig(ModelConfig(model, args), DATA, training)
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        import keras

        keras.utils.set_random_seed(1)
        built = runs.build_model(config.model, DATA)
        schedule = ExamplesSchedule(training, total_examples=1000)
        optimizer = create_optimizer(training, schedule)
        optimizer.build(built.trainable_variables)
    return StepFunctions(config, built, optimizer, strategy)


def weights_after(steps: StepFunctions, reader: FixedReader, count: int):
    outcome = steps.run(steps.iterate(reader, 0), count)
    return outcome, [v.numpy() for v in steps.model.variables]


def training(**values) -> TrainingConfig:
    values = {"optimizer": "SGD", "batch_size": BATCH, "clip_gradient_norm": 0} | values
    return TrainingConfig("unused", lr_schedule="constant", **values)


def test_a_step_of_sgd_is_the_formula():
    features, labels = arrays(BATCH)
    steps = make_steps(training(base_learning_rate=0.5), l2_penalty=0.2)
    kernel, bias = (v.numpy().astype(np.float64) for v in steps.model.variables)
    outcome, after = weights_after(steps, FixedReader(features, labels), 1)

    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    p = 1 / (1 + np.exp(-(x @ kernel + bias)))
    loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1).mean()
    assert outcome.loss == pytest.approx(loss, rel=1e-5)
    # slim's L2: half the sum of squares, of kernels only.
    assert outcome.penalty == pytest.approx(0.1 * (kernel**2).sum(), rel=1e-5)
    error = (p - labels) / BATCH
    np.testing.assert_allclose(
        after[0], kernel - 0.5 * (x.T @ error + 0.2 * kernel), atol=1e-6
    )
    np.testing.assert_allclose(after[1], bias - 0.5 * error.sum(0), atol=1e-6)


def test_the_penalty_is_scaled_by_its_flag():
    reader = FixedReader(*arrays(BATCH))
    with_penalty = make_steps(training(), l2_penalty=0.2)
    without = make_steps(training(regularization_penalty=0.0), l2_penalty=0.2)
    first, moved = weights_after(with_penalty, reader, 1)
    second, kept = weights_after(without, reader, 1)
    assert first.penalty > 0 == second.penalty
    assert np.abs(moved[0] - kept[0]).max() > 1e-5


@pytest.mark.parametrize("flag", ["clip_gradient_norm", "clip_global_norm"])
def test_clipping_bounds_the_update(flag):
    reader = FixedReader(*arrays(BATCH))
    before = [v.numpy() for v in make_steps(training()).model.variables]
    steps = make_steps(training(base_learning_rate=1.0, **{flag: 0.01}))
    _, after = weights_after(steps, reader, 1)
    norms = [np.linalg.norm(a - b) for a, b in zip(after, before, strict=True)]
    if flag == "clip_gradient_norm":
        assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)
    else:
        assert math.hypot(*norms) == pytest.approx(0.01, rel=1e-3)
    # A bound above the norms changes nothing.
    loose = make_steps(training(base_learning_rate=1.0, **{flag: 1e6}))
    plain = make_steps(training(base_learning_rate=1.0))
    for a, b in zip(
        weights_after(loose, reader, 1)[1],
        weights_after(plain, reader, 1)[1],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_scaled_loss_is_clipped_as_it_would_be():
    reader, settings = FixedReader(*arrays(BATCH)), {"clip_gradient_norm": 0.05}
    plain = make_steps(training(**settings))
    args = {"loss_scale_factor": 256.0}
    scaled = make_steps(training(optimizer_args=args, **settings))
    for a, b in zip(
        *(weights_after(steps, reader, 1)[1] for steps in (plain, scaled)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "SGD"},
        {"optimizer": "Adam", "base_learning_rate": 1e-3},
        {"optimizer": "SGD", "clip_global_norm": 0.05},
        {"optimizer": "SGD", "clip_gradient_norm": 0.05},
    ],
)
def test_two_replicas_train_as_one_does(options):
    """Also on a last batch of 5, which two replicas cannot share evenly."""
    reader = FixedReader(*arrays(3 * BATCH + 5))
    two = mirrored(2)
    settings = training(**options)
    one_outcome, one = weights_after(make_steps(settings, l2_penalty=0.1), reader, 4)
    two_outcome, both = weights_after(
        make_steps(settings, l2_penalty=0.1, strategy=two), reader, 4
    )
    assert two_outcome.loss == pytest.approx(one_outcome.loss, rel=1e-5)
    assert two_outcome.penalty == pytest.approx(one_outcome.penalty, rel=1e-5)
    assert two_outcome.logits.shape == one_outcome.logits.shape == (5, CLASSES)
    for a, b in zip(one, both, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_steps_in_one_call_equal_steps_in_several():
    reader = FixedReader(*arrays(6 * BATCH))
    settings = training(optimizer="Adam", base_learning_rate=1e-2)
    _, together = weights_after(make_steps(settings, "MoeModel"), reader, 6)
    steps = make_steps(settings, "MoeModel")
    iterator = steps.iterate(reader, 0)
    for count in (1, 2, 3):
        outcome = steps.run(iterator, count)
    assert outcome.step == 6
    for a, b in zip(together, steps.model.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_mixup_trains_on_blends_that_the_step_and_the_seed_decide():
    reader, options = FixedReader(*arrays(4 * BATCH)), {"mixup": 0.4, "seed": 3}
    at_once, together = weights_after(make_steps(training(**options)), reader, 4)
    steps = make_steps(training(**options))
    iterator = steps.iterate(reader, 0)
    for _ in range(4):
        steps.run(iterator, 1)
    for ours, theirs in zip(together, steps.model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    plain, without = weights_after(make_steps(training()), reader, 4)
    assert np.abs(together[0] - without[0]).max() > 1e-4
    np.testing.assert_array_equal(at_once.labels, plain.labels)


DROPOUT = {"hidden_sizes": (8,), "dropout": 0.5}


def test_a_resumed_run_drops_what_it_would_have_dropped():
    reader, settings = FixedReader(*arrays(4 * BATCH)), training()
    _, whole = weights_after(make_steps(settings, "MlpModel", **DROPOUT), reader, 4)
    first = make_steps(settings, "MlpModel", **DROPOUT)
    weights_after(first, reader, 2)
    resumed = make_steps(settings, "MlpModel", **DROPOUT)
    for ours, theirs in zip(
        resumed.model.variables, first.model.variables, strict=True
    ):
        ours.assign(theirs)
    resumed.run(resumed.iterate(reader, 2), 2)
    for ours, theirs in zip(whole, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_replicas_train_models_with_dropout():
    strategy = mirrored(2)
    steps = make_steps(training(), "MlpModel", strategy, **DROPOUT)
    outcome, _ = weights_after(steps, FixedReader(*arrays(3 * BATCH)), 3)
    assert np.isfinite(outcome.loss) and outcome.bad_step is None
    (state,) = (v for v in steps.model.variables if "seed" in v.path)
    values = [x.numpy()[1] for x in strategy.experimental_local_results(state.value)]
    assert values == [3, 3]


@pytest.mark.parametrize("bad_batch", [0, 1, 3])
def test_the_first_step_that_is_not_finite_is_named(bad_batch):
    features, labels = arrays(4 * BATCH)
    features[bad_batch * BATCH + 2] = np.nan
    steps = make_steps(training())
    outcome, _ = weights_after(steps, FixedReader(features, labels), 4)
    assert outcome.bad_step == bad_batch


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamOptimizer", {}),
        ("AdamW", {"weight_decay": 0.5}),
        ("GradientDescentOptimizer", {}),
        ("Momentum", {}),
        ("RMSProp", {"rho": 0.5}),
        ("Adagrad", {}),
    ],
)
def test_every_optimizer_trains_and_takes_its_arguments(name, options):
    reader = FixedReader(*arrays(BATCH))
    settings = training(optimizer=name, optimizer_args=options, base_learning_rate=0.1)
    steps = make_steps(settings)
    before = [v.numpy() for v in steps.model.variables]
    losses = [weights_after(steps, reader, 1)[0].loss for _ in range(5)]
    assert losses[-1] < losses[0]
    assert all(
        np.abs(a - b.numpy()).max() > 0
        for a, b in zip(before, steps.model.variables, strict=True)
    )


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_in_one_pass_is_keras_s_own(name):
    config = training(optimizer=name, base_learning_rate=0.1)
    ours = create_optimizer(config, ExamplesSchedule(config, 1000))
    theirs = getattr(keras.optimizers, name)(0.1, epsilon=1e-8)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    weights = [keras.Variable(start) for _ in range(2)]
    for _ in range(4):
        gradient = tf.constant(rng.normal(size=(4, 3)), tf.float32)
        for optimizer, weight in zip((ours, theirs), weights, strict=True):
            optimizer.apply([gradient], [weight])
    np.testing.assert_allclose(*(w.numpy() for w in weights), rtol=1e-5, atol=1e-6)
    assert np.abs(weights[0].numpy() - start).min() > 0.01


def test_unknown_optimizers_and_arguments_are_refused():
    schedule = ExamplesSchedule(training(), 10)
    with pytest.raises(UserError, match="Did you mean Adam"):
        create_optimizer(training(optimizer="Adamm"), schedule)
    with pytest.raises(UserError, match="momentun"):
        create_optimizer(training(optimizer_args={"momentun": 1}), schedule)
    with pytest.raises(UserError, match="use_ema=True .* --ema_decay keeps averages"):
        create_optimizer(training(optimizer_args={"use_ema": True}), schedule)


def rates(steps, total, first_step=0, first_examples=0, **values):
    config = TrainingConfig("unused", batch_size=10, base_learning_rate=2.0, **values)
    schedule = ExamplesSchedule(config, total, first_step, first_examples)
    return [float(schedule(tf.constant(s))) for s in steps]


def test_exponential_decay_counts_examples_in_stairs():
    options = {"learning_rate_decay": 0.5, "learning_rate_decay_examples": 25}
    assert rates([0, 2, 3, 4, 5], 100, **options) == [2, 2, 1, 1, 0.5]
    # The same examples in batches of another size: the same rates.
    assert rates([7, 8], 100, first_step=7, first_examples=25, **options) == [1, 1]


def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone():
    got = rates(range(5), 100, lr_schedule="constant", warmup_examples=30)
    assert got == pytest.approx([2 / 3, 4 / 3, 2, 2, 2])


def test_the_cosine_ends_at_zero():
    got = rates([0, 5, 10], 100, lr_schedule="cosine")
    assert got == pytest.approx([2, 1, 0], abs=1e-6)


def test_the_slanted_triangle_peaks_after_its_warm_up():
    options = {"lr_schedule": "slanted_triangular", "warmup_examples": 40}
    got = rates([0, 2, 4, 7, 10], 100, **options)
    half = (1 + 31 / 2) / 32
    assert got == pytest.approx([2 / 32, 2 * half, 2, 2 * half, 2 / 32])
