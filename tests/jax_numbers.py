"""The same numbers from every model on JAX as on TensorFlow, where JAX is alone.

    YT8M_NUMBERS=numbers.npz python tests/jax_numbers.py
    YT8M_NUMBERS=numbers.npz KERAS_BACKEND=jax python -m pytest --noconftest \\
        tests/jax_numbers.py

The first command, on TensorFlow, writes inputs, weights, outputs and gradients of each
model at a small size; the second compares, in an environment without TensorFlow.
"""

import os

import keras
import numpy as np
import pytest

import frame_level_models  # noqa: F401  (registers)
import video_level_models  # noqa: F401  (registers)
from model_cases import SMALL
from yt8m import registry
from yt8m.model import forward

CLASSES = 7
LENGTHS = (0, 1, 3, 6)
FEATURES = {
    "frame": {"rgb": 16, "audio": 4},
    "video": {"mean_rgb": 16, "mean_audio": 4},
}
TOLERANCE = 1e-5
# Each of its five classifiers adds its roundings to those of the ones before.
TOLERANCES = {"CnnDccModel": 5e-5}


def make_model(name: str):
    keras.utils.set_random_seed(1)
    features = FEATURES[registry.get(name).level]
    args = {"num_classes": CLASSES, "features": features, **SMALL.get(name, {})}
    model = registry.create(name, **args)
    # Built by shapes: JAX would compile every operation by itself.
    batch = make_batch(model.level)
    model({k: keras.KerasTensor(v.shape, str(v.dtype)) for k, v in batch.items()})
    return model


def make_batch(level: str) -> dict[str, np.ndarray]:
    """Videos without a frame, with one, with some and with all; garbage behind them."""
    rng = np.random.default_rng(0)
    if level == "video":
        return {
            name: rng.normal(size=(len(LENGTHS), size)).astype("float32")
            for name, size in FEATURES[level].items()
        }
    shape = (len(LENGTHS), max(LENGTHS))
    batch = {
        name: rng.integers(0, 256, (*shape, size), "uint8")
        for name, size in FEATURES[level].items()
    }
    return batch | {"num_frames": np.array(LENGTHS, "int32")}


def upstream() -> np.ndarray:
    """The weights of the sum of the logits whose gradient is taken."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(len(LENGTHS), CLASSES)).astype("float32")


def numbers_on_tensorflow(name: str) -> dict[str, np.ndarray]:
    """What JAX must find again: its weights, then what follows from them."""
    import tensorflow as tf

    model, rng = make_model(name), np.random.default_rng(2)
    for weight in model.weights:  # away from zeros and from places without a slope
        if weight.dtype == "float32":
            weight.assign_add(rng.uniform(0.0, 0.3, size=weight.shape))
    batch = make_batch(model.level)
    found = {f"weight/{i}": w.numpy() for i, w in enumerate(model.weights)}
    with tf.GradientTape() as tape:
        logits = forward(model, batch)["logits"]
        total = tf.reduce_sum(logits * upstream())
    gradients = tape.gradient(total, [w.value for w in model.trainable_weights])
    found["logits"] = logits.numpy()
    for i, gradient in enumerate(gradients):
        # None: a weight that inference does not need.
        found[f"gradient/{i}"] = np.zeros(0) if gradient is None else gradient.numpy()
    first, again = (forward(model, batch, training=True)["logits"] for _ in range(2))
    if np.array_equal(first, again):  # it draws nothing
        found["training_logits"] = first.numpy()
    return found


def write(path: str) -> None:
    names = registry.names()
    np.savez(
        path,
        **{f"{n}/{k}": v for n in names for k, v in numbers_on_tensorflow(n).items()},
    )
    print(f"{path}: numbers of {len(names)} models")


@pytest.fixture(scope="module")
def written():
    with np.load(os.environ["YT8M_NUMBERS"]) as file:
        return dict(file)


def assert_near(ours, theirs, name):
    scale = max(1.0, np.abs(theirs).max(initial=0.0))
    atol = TOLERANCES.get(name, TOLERANCE)
    np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, atol=atol)


def test_the_environment_is_that_of_jax_alone():
    assert keras.backend.backend() == "jax"
    with pytest.raises(ImportError):
        import tensorflow  # noqa: F401


@pytest.mark.parametrize("name", registry.names())
def test_a_model_gives_the_numbers_that_it_gives_on_tensorflow(name, written):
    import jax

    theirs = {
        key.removeprefix(f"{name}/"): value
        for key, value in written.items()
        if key.startswith(f"{name}/")
    }
    model = make_model(name)
    model.set_weights([theirs[f"weight/{i}"] for i in range(len(model.weights))])
    batch = make_batch(model.level)
    trainable, others = (
        [v.value for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    def logits(trainable, training):
        inputs = {key: batch[key] for key in model.input_names}
        outputs, _ = model.stateless_call(trainable, others, inputs, training=training)
        return outputs["logits"]

    def total(trainable):
        value = logits(trainable, training=False)
        return (value * upstream()).sum(), value

    differentiate = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, ours), gradients = differentiate(trainable)
    assert_near(ours, theirs["logits"], name)
    for i, gradient in enumerate(gradients):
        expected = theirs[f"gradient/{i}"]
        if expected.size:
            assert_near(gradient, expected, name)
        else:
            np.testing.assert_array_equal(gradient, 0)
    if "training_logits" in theirs:
        ours = jax.jit(logits, static_argnums=1)(trainable, True)
        assert_near(ours, theirs["training_logits"], name)


if __name__ == "__main__":
    write(os.environ["YT8M_NUMBERS"])
