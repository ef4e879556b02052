"""Column arithmetic against the same formulas, differentiated automatically."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.columns import scale_and_shift, shift_by, sum_rows, sum_squares

N, T, D = 5, 3, 4
WEIGHTS = np.array([0.5, 0.0, 0.25, 0.0, 0.25], "float32")

FORMULAS = {
    "scale_and_shift": (scale_and_shift, lambda x, a, b: x * a + b, (N, T, D), 2),
    "shift_by": (shift_by, lambda x, b: x + b, (N, T, D), 1),
    "sum_squares": (
        lambda x, c: sum_squares(x, c, tf.constant(WEIGHTS)),
        lambda x, c: tf.reduce_sum((x - c) ** 2 * WEIGHTS[:, None], axis=0),
        (N, D),
        1,
    ),
    "sum_rows": (sum_rows, lambda x: tf.reduce_sum(x, axis=0), (N, D), 0),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients_are_those_of_the_formula(name):
    ours, formula, shape, vectors = FORMULAS[name]
    rng = np.random.default_rng(0)
    sizes = [shape, *[(D,)] * vectors]
    inputs = [tf.constant(rng.normal(size=s), tf.float32) for s in sizes]
    results = []
    for function in (ours, formula):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
            # Another weight for each value: no gradient is mistaken for another.
            weights = np.arange(np.prod(y.shape), dtype="float32") + 1
            loss = tf.reduce_sum(y * weights.reshape(y.shape))
        results.append([y, *tape.gradient(loss, inputs)])
    for value, expected in zip(*results, strict=True):
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_variables_may_be_the_vectors():
    x, scale = tf.ones((N, D)), tf.Variable(np.ones(D, np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(scale_and_shift(x, scale, 0.0 * scale))
    np.testing.assert_array_equal(tape.gradient(loss, scale), np.full(D, N))
