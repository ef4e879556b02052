"""Whole steps of every model as a TPU takes them: one XLA program, all shapes known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_cases import one_a_family
from test_models import FEATURES, NAMES, SMALL, C, make_batch
from yt8m import registry, runs
from yt8m.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from yt8m.model import FrameLevelModel, forward, top_classes
from yt8m.training.loop import StepFunctions
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

LOW_PRECISION = [
    *(("NetVLADModel", "bfloat16"), ("MoeModel", "bfloat16"), ("MoeModel", "float16"))
]
TRAINED = [*((name, "float32") for name in NAMES), *LOW_PRECISION]
PREDICTED = [*((name, "float32") for name in one_a_family(NAMES)), *LOW_PRECISION]
# Of instructions that wait for the host, and what XLA writes before a size that it
# does not know: a TPU would pad to the greatest.
HOST = ("infeed", "outfeed", "send(", "recv(", "callback", "<=")


def make_steps(name, precision="float32"):
    """The trainer's steps for a small model, the same at every call."""
    level = registry.get(name).level
    data = DataConfig(level, FEATURES[level], num_classes=C)
    # This epsilon makes Adam's first step smooth: it would else be the gradients' sign.
    training = TrainingConfig(
        "unused",
        batch_size=4,
        optimizer="Adam",
        optimizer_args={"epsilon": 1.0},
        base_learning_rate=1.0,
        precision=precision,
    )
    config = RunConfig(ModelConfig(name, SMALL.get(name, {})), data, training)
    keras.utils.set_random_seed(1)
    model = runs.build_model(config.model, data, precision)
    optimizer = create_optimizer(training, ExamplesSchedule(training, 1000))
    optimizer.build(model.trainable_variables)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    return StepFunctions(config, model, optimizer, strategy)


def make_labelled_batch(name):
    batch = make_batch(name)
    labels = np.random.default_rng(2).integers(0, 2, size=(4, C))
    return {**batch, "labels": tf.constant(labels, tf.uint8)}


def compiled(function, batch):
    """`function` as one XLA program, of which nothing is left to the host."""
    function = tf.function(function, jit_compile=True)
    program = function.experimental_get_compiler_ir(batch)(stage="hlo")
    assert "ENTRY" in program
    found = [word for word in HOST if word in program]
    assert not found, f"{found} in the program: a TPU would wait for its host"
    return function


def predict(model):
    def step(batch):
        return top_classes(forward(model, batch)["logits"], 5)

    return step


@pytest.mark.parametrize(("name", "precision"), TRAINED)
def test_a_train_step_is_one_program_and_agrees(name, precision):
    steps, plain = make_steps(name, precision), make_steps(name, precision)
    batch = make_labelled_batch(name)
    step = compiled(steps._replica_step, batch)
    expected = tf.function(plain._replica_step)(batch)
    exact = precision == "float32"
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 0.05, "atol": 0.05}
    before = [v.numpy() for v in steps.model.trainable_variables]
    for ours, theirs in zip(step(batch), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **tolerance)
    for ours, theirs in zip(steps.model.variables, plain.model.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, **tolerance)
    assert int(steps.optimizer.iterations) == 1
    after = [v.numpy() for v in steps.model.trainable_variables]
    assert any((a != b).any() for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(("name", "precision"), PREDICTED)
def test_a_predict_step_is_one_program_and_agrees(name, precision):
    model, batch = make_steps(name, precision).model, make_batch(name)
    classes, probabilities = compiled(predict(model), batch)(batch)
    expected_classes, expected = tf.function(predict(model))(batch)
    exact = precision == "float32"
    np.testing.assert_allclose(probabilities, expected, atol=1e-5 if exact else 0.02)
    if exact:
        np.testing.assert_array_equal(classes, expected_classes)


def make_unready(operation):
    class UnreadyModel(FrameLevelModel):
        def classify(self, frames, mask, training=False):
            return {"logits": operation(frames, mask)[:, 0, :C]}

    return UnreadyModel(num_classes=C, features=FEATURES["frame"])


def test_a_model_that_calls_the_host_is_found_out():
    def call_host(frames, mask):
        same = tf.numpy_function(lambda x: x, [frames], tf.float32)
        return tf.ensure_shape(same, frames.shape)

    batch = make_batch("NetVLADModel")
    with pytest.raises(ValueError, match="unsupported operations"):
        compiled(predict(make_unready(call_host)), batch)


def test_a_model_whose_sizes_depend_on_values_is_found_out():
    def compress(frames, mask):
        return tf.boolean_mask(frames, mask)[None]

    batch = make_batch("NetVLADModel")
    with pytest.raises(AssertionError, match="in the program"):
        compiled(predict(make_unready(compress)), batch)
