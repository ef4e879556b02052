"""Batch norm over replicas: as on one device if synchronised, else each its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_cases import one_a_family
from replicas import mirrored
from test_models import NAMES, POOLING_NAMES, C, make_batch, make_model, perturb
from yt8m import losses
from yt8m.layers.normalization import BatchNormalization, set_synchronized
from yt8m.layers.sparse_moe import SparseMixtureOfExperts

LENGTHS = [2, 0, 6, 1, 5, 3, 0, 0]
B, T, D = len(LENGTHS), 6, 5
MASK = np.arange(T) < np.array(LENGTHS)[:, None]
# Where the parts of the first replicas end; the last has the rest.
SPLITS = {
    "uneven": [3],
    "last empty": [8],
    "first empty": [0],
    "last without a frame": [6],
    "four, one of them empty": [3, 3, 4],
}


def replicas_of(split):
    """A strategy of one replica for each part."""
    return mirrored(len(split) + 1)


def on_replicas(strategy, step, tensors, split):
    """Runs `step` on the replicas' parts of `tensors`; what each of them returns."""
    ends = tf.constant([0, *split, len(tensors[0])])

    def part(tensors):
        i = tf.distribute.get_replica_context().replica_id_in_sync_group
        return step(*(x[ends[i] : ends[i + 1]] for x in tensors))

    results = tf.function(strategy.run)(part, args=(tensors,))
    return [
        [np.asarray(x) for x in strategy.experimental_local_results(r)] for r in results
    ]


def assert_close(ours, theirs, error=1e-6, least=0.0):
    """Equal but for roundings of the largest value, or of `least`."""
    atol = max(error * np.abs(theirs).max(), least)
    np.testing.assert_allclose(ours, theirs, rtol=error, atol=atol)


def make_norm():
    norm = BatchNormalization()
    norm.build((None, None, D))
    norm.gamma.assign(np.linspace(0.5, 2, D))
    norm.beta.assign(np.linspace(-1, 1, D))
    norm.moving_mean.assign(np.linspace(3, 4, D))
    return norm


def norm_step(norm):
    """Outputs and gradients, also those of the input: through the statistics."""

    def step(x, mask):
        variables = [norm.gamma.value, norm.beta.value]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, mask=mask, training=True)
            loss = tf.reduce_sum(tf.where(mask[..., None], y, 0.0) ** 3)
        return y, *tape.gradient(loss, [x, *variables])

    return step


def inputs(seed=0):
    x = np.random.default_rng(seed).normal(size=(B, T, D)) + np.arange(D)
    return tf.constant(np.where(MASK[..., None], x, 9.0), tf.float32), tf.constant(MASK)


def averages(layer):
    return [w.numpy() for w in layer.non_trainable_variables]


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_a_synchronised_norm_is_that_of_the_whole_batch(split):
    whole, strategy = make_norm(), replicas_of(split)
    expected = [np.asarray(x) for x in norm_step(whole)(*inputs())]
    with strategy.scope():
        norm = make_norm()
        norm.synchronized = True
    results = on_replicas(strategy, norm_step(norm), inputs(), split)
    for ours, theirs in zip(results[:2], expected[:2], strict=True):
        assert_close(np.concatenate(ours), theirs)
    for ours, theirs in zip(results[2:], expected[2:], strict=True):
        assert_close(sum(ours), theirs)
    for ours, theirs in zip(averages(norm), averages(whole), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("synchronized", [True, False])
def test_the_loads_of_sparse_experts_are_those_of_the_whole_batch(synchronized):
    def make():
        layer = SparseMixtureOfExperts(4, 2, 3, 3, noisy=False)
        layer.build((B, T, D))
        weights = np.random.default_rng(1).normal(size=(D, 4))
        layer.gate_kernel.assign(weights)
        set_synchronized(layer, synchronized)
        return layer

    def step(layer, replicas=1):
        def run(x, mask):
            with tf.GradientTape() as tape:
                layer(x, mask, training=True)
                (loss,) = layer.losses
                loss = loss / replicas
            return loss, tape.gradient(loss, layer.gate_kernel.value)

        return run

    strategy = replicas_of([3])
    with strategy.scope():
        layer = make()
    layer_alone = make()
    layer_alone.synchronized = False
    results = on_replicas(strategy, step(layer, 2), inputs(), [3])
    for ours, whole in zip(results, step(layer_alone)(*inputs()), strict=True):
        assert np.allclose(sum(ours), whole, rtol=1e-5) is synchronized


def test_a_norm_of_replicas_takes_the_statistics_of_each_part():
    parts, strategy = [make_norm(), make_norm()], replicas_of([3])
    expected = [
        norm_step(norm)(*(x[rows] for x in inputs()))
        for norm, rows in zip(parts, (slice(0, 3), slice(3, 8)), strict=True)
    ]
    with strategy.scope():
        norm = make_norm()
    results = on_replicas(strategy, norm_step(norm), inputs(), [3])
    for i in range(2):
        for ours, theirs in zip(results, expected[i], strict=True):
            assert_close(ours[i], theirs)
    # The moving averages go the mean of both ways.
    for ours, *theirs in zip(averages(norm), *map(averages, parts), strict=True):
        assert_close(ours, np.mean(theirs, axis=0))
    whole = make_norm()
    outputs = norm_step(whole)(*inputs())[0]
    assert np.abs(np.concatenate(results[0]) - outputs)[MASK].max() > 0.1


@pytest.mark.parametrize("synchronized", [False, True])
@pytest.mark.parametrize("split", [[8], [6]], ids=["no rows", "no valid frame"])
def test_a_replica_without_data_does_not_pull_the_moving_averages(split, synchronized):
    """It makes no step; the other's is halved, and its direction is the same."""
    alone, strategy = make_norm(), replicas_of(split)
    before = averages(alone)[:2]
    norm_step(alone)(*inputs())
    with strategy.scope():
        norm = make_norm()
        norm.synchronized = synchronized
    on_replicas(strategy, norm_step(norm), inputs(), split)
    share = 1.0 if synchronized else 0.5
    for old, ours, full in zip(before, averages(norm), averages(alone), strict=False):
        np.testing.assert_allclose(ours - old, share * (full - old), rtol=1e-5)


def test_no_data_at_all_leaves_the_moving_averages_alone():
    strategy = replicas_of([3])
    with strategy.scope():
        norm = make_norm()
        norm.synchronized = True
    before = averages(norm)[:2]
    x, mask = inputs()
    results = on_replicas(strategy, norm_step(norm), (x, mask & False), [3])
    for old, ours in zip(before, averages(norm), strict=False):
        np.testing.assert_array_equal(ours, old)
    assert all(np.isfinite(part).all() for parts in results for part in parts)


def model_step(model):
    """Logits and gradients, from labels and then the model's inputs in their order."""

    def step(labels, *values):
        with tf.GradientTape() as tape:
            inputs = dict(zip(model.input_names, values, strict=True))
            outputs = model(inputs, training=True)
            loss = tf.reduce_sum(losses.cross_entropy(labels, outputs))
        variables = [v.value for v in model.trainable_variables]
        return outputs["logits"], *tape.gradient(loss, variables)

    return step


@pytest.mark.parametrize("name", one_a_family(NAMES))
def test_a_synchronised_model_trains_as_on_one_device(name):
    """Also where the normalisation is folded into a product, and in the gates."""
    args = {"gating_probabilities": True} if name in POOLING_NAMES else {}
    batch, strategy = make_batch(name), replicas_of([3])
    whole = make_model(name, **args)
    tensors = tuple(batch[n] for n in whole.input_names)
    labels = np.random.default_rng(2).integers(0, 2, size=(len(tensors[0]), C))
    tensors = (tf.constant(labels), *tensors)
    perturb(whole)
    with strategy.scope():
        model = make_model(name, **args)
        model.set_weights(whole.get_weights())
        set_synchronized(model)
    logits, *gradients = tf.function(model_step(whole))(*tensors)
    results = on_replicas(strategy, model_step(model), tensors, [1])
    # Each norm over four videos multiplies roundings; this model has five in a row,
    # and its last classifiers see the first ones' scores.
    error = 2e-4 if name == "CnnDccModel" else 1e-5
    assert_close(np.concatenate(results[0]), logits, error)
    for ours, theirs in zip(results[1:], gradients, strict=True):
        # Some gradients are 0, such as that of a bias before a norm.
        assert_close(sum(ours), theirs, error, least=5e-6)
    for ours, theirs in zip(averages(model), averages(whole), strict=True):
        assert_close(ours, theirs, error)


def test_all_norms_of_a_model_are_synchronised_and_released():
    model = make_model("NetVLADModel")

    def norms():
        layers = model._flatten_layers()
        return [x.synchronized for x in layers if isinstance(x, BatchNormalization)]

    # Of the frames and the assignments of both streams, and of both gates.
    assert norms() == [False] * 6
    set_synchronized(model)
    assert norms() == [True] * 6
    assert type(model).from_config(model.get_config())  # which knows nothing of it
    set_synchronized(model, False)
    assert norms() == [False] * 6


def test_norms_of_keras_are_synchronised_too():
    model = keras.Sequential([keras.Input((D,)), keras.layers.BatchNormalization()])
    set_synchronized(model)
    assert model.layers[0].synchronized


def test_a_model_without_its_layers_cannot_be_synchronised():
    with pytest.raises(ValueError, match="must be built before"):
        set_synchronized(keras.Sequential([keras.layers.BatchNormalization()]))
