"""Dropout: what it drops, and that its draws belong to the run and the replica."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.layers.dropout import Dropout, drawing_for


@pytest.fixture
def dropout():
    keras.utils.set_random_seed(1)
    return Dropout(0.25)


def test_a_share_is_dropped_and_the_rest_scaled_up(dropout):
    y = dropout(tf.ones((100, 200)), training=True).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    np.testing.assert_allclose(np.mean(y == 0), 0.25, atol=0.01)


def test_nothing_is_dropped_outside_of_training(dropout):
    x = tf.ones((3, 4))
    np.testing.assert_array_equal(dropout(x), x)
    np.testing.assert_array_equal(Dropout(0.0)(x, training=True), x)


def test_every_call_drops_others(dropout):
    x = tf.ones((4, 50))
    first, second = dropout(x, training=True), dropout(x, training=True)
    assert np.any(first.numpy() != second.numpy())


def test_every_replica_drops_others_and_the_first_what_one_device_would(dropout):
    def draw(replica):
        dropout.seed_generator.state.assign([7, 0])
        with drawing_for(replica):
            return dropout(tf.ones((4, 50)), training=True).numpy()

    alone = draw(0)
    dropout.seed_generator.state.assign([7, 0])
    np.testing.assert_array_equal(dropout(tf.ones((4, 50)), training=True), alone)
    assert np.any(draw(tf.constant(1)) != alone)
    assert np.any(draw(tf.constant(2)) != draw(tf.constant(1)))


def test_the_state_is_a_variable_that_goes_on_where_it_was(dropout):
    model = keras.Sequential([dropout])
    model.build((None, 50))
    x = tf.ones((4, 50))
    model(x, training=True)
    (state,) = model.variables
    kept = state.numpy()
    expected = model(x, training=True)
    state.assign(kept)
    np.testing.assert_array_equal(model(x, training=True), expected)


def test_all_frames_may_lose_the_same_values():
    y = Dropout(0.5, over_frames=True)(tf.ones((3, 5, 40)), training=True).numpy()
    np.testing.assert_array_equal(y, np.repeat(y[:, :1], 5, axis=1))
    assert np.any(y[0] != y[1])


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_outside_of_its_range_is_refused(rate):
    with pytest.raises(ValueError, match="`rate` must be in"):
        Dropout(rate)


def test_it_is_saved_with_its_options():
    again = Dropout.from_config(Dropout(0.3, over_frames=True).get_config())
    assert (again.rate, again.over_frames) == (0.3, True)
