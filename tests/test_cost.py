"""The cost of a model: its operations by hand, from graphs without any weights."""

import keras
import pytest
import tensorflow as tf
from keras import ops

import frame_level_models  # noqa: F401  (registers)
import video_level_models  # noqa: F401  (registers)
from model_cases import SMALL
from yt8m import registry
from yt8m.cost import flops, model_cost, parameters
from yt8m.model import VideoLevelModel

D, C, T = 10, 11, 13
SIZES = {
    "frame": {"num_classes": C, "features": {"rgb": 7, "audio": 3}},
    "video": {"num_classes": C, "features": {"mean_rgb": 7, "mean_audio": 3}},
}

# (model, arguments, products of one video, weights): [m, n] by [n, k] has m n k.
MIXTURE = 5 * C  # of 2 experts and 3 gates a class, for each number that it reads
BY_HAND = [
    ("LogisticModel", {}, D * C, D * C + C),
    ("MoeModel", {}, D * MIXTURE, D * MIXTURE + 2 * C),
    (
        "DbofModel",
        {"clusters": 8, "hidden_size": 6},
        (T + 1) * D * 8
        + 8 * 6
        + 6 * MIXTURE,  # the mean's place among the clusters too
        # Four numbers of each normalised value, and a counter.
        4 * (D + 8 + 6) + 3 + D * 8 + 8 * 6 + 6 * MIXTURE + 2 * C,
    ),
    (
        "LstmModel",
        {"cells": 5, "layers": 2},
        T * ((D + 5) + (5 + 5)) * 20 + 5 * MIXTURE,
        ((D + 5) + (5 + 5)) * 20 + 2 * 20 + 5 * MIXTURE + 2 * C,
    ),
    (
        "NetVLADModel",  # assignments and sums of each stream, hidden layer, two gates
        {"clusters": 4, "hidden_size": 6},
        (2 * T + 1 + 6) * (7 * 4 + 3 * 2) + 6 * 6 + 6 * MIXTURE + C * C,
        2 * (7 * 4 + 3 * 2)  # clusters and their centres
        + 4 * (D + 4 + 2)
        + 6  # counters of the six normalisations
        + ((7 * 4 + 3 * 2) * 6 + 6)
        + (6 * 6 + 4 * 6)
        + (6 * MIXTURE + 2 * C)
        + (C * C + 4 * C),
    ),
]


@pytest.mark.parametrize(
    ("name", "args", "products", "weights"), BY_HAND, ids=[c[0] for c in BY_HAND]
)
def test_the_cost_of_a_model_is_that_counted_by_hand(name, args, products, weights):
    args = {**args, **SIZES[registry.get(name).level]}
    model = registry.create(name, **args).ensure_built()
    assert flops(model, T) == 2 * products
    assert parameters(model) == weights == model.count_params()


@pytest.mark.parametrize("name", registry.names())
def test_a_model_without_weights_in_memory_costs_what_a_built_one_does(name):
    args = {**SIZES[registry.get(name).level], **SMALL.get(name, {})}
    cost = model_cost(name, args, T)
    model = registry.create(name, **args).ensure_built()
    assert cost.parameters == parameters(model) == model.count_params()
    assert cost.flops == flops(model, T) > 0


def test_a_model_larger_than_any_memory_can_be_asked_for():
    cost = model_cost("NetVLADModel", {"clusters": 8192, "hidden_size": 131072}, 300)
    assert cost.parameters > 1e12
    assert 2 * cost.parameters < cost.flops


def test_frames_cost_the_same_each():
    few, more, most = (model_cost("LstmModel", {}, t).flops for t in (10, 20, 30))
    assert most - more == more - few > 0


class Products(VideoLevelModel):
    """Logits by a function of the test, [1, C]."""

    level = "video"

    def __init__(self, function):
        super().__init__(num_classes=C, features={"mean_rgb": 8})
        self.function = function

    def call(self, inputs, training=False):
        x = ops.reshape(inputs["mean_rgb"], (2, 4))
        return {"logits": self.function(x)}


def _unused(x):
    ops.matmul(x, ops.ones((4, 1000)))
    return x


def _while(x):
    def body(i, y):
        return i + 1, ops.matmul(y, ops.ones((4, 4)))

    return ops.while_loop(lambda i, y: i < 7, body, (2, x))[1]


def _scan(x, reverse=False):
    def step(y, t):
        y = ops.matmul(y, ops.ones((4, 4))) + t
        return y, y

    steps = ops.arange(ops.shape(ops.zeros(13))[0], dtype="float32")
    return ops.scan(step, x, steps, reverse=reverse)[0]


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x: ops.matmul(x, ops.ones((4, 5))), 2 * 4 * 5),
        (lambda x: tf.matmul(x, tf.ones((5, 4)), transpose_b=True), 2 * 4 * 5),
        (lambda x: tf.matmul(x, tf.ones((2, 5)), transpose_a=True), 4 * 2 * 5),
        (lambda x: ops.matmul(x[None], ops.ones((6, 4, 5))), 6 * 2 * 4 * 5),
        (lambda x: tf.einsum("ab,cb->ac", x, tf.ones((3, 4))), 2 * 4 * 3),
        (lambda x: tf.einsum("...b,bc->...c", x, tf.ones((4, 3))), 2 * 4 * 3),
        (
            lambda x: ops.conv(x[None], ops.ones((3, 4, 5)), padding="same"),
            2 * 5 * 3 * 4,
        ),
        (lambda x: ops.fori_loop(0, 6, lambda i, y: y @ ops.ones((4, 4)), x), 6 * 32),
        (_while, 5 * 32),
        (_scan, 13 * 32),
        (lambda x: _scan(x, reverse=True), 13 * 32),
        (
            lambda x: ops.cond(
                ops.sum(x) > 0, lambda: x @ ops.ones((4, 3)), lambda: x[:, :3]
            ),
            2 * 4 * 3,
        ),
        (lambda x: tf.function(lambda y: y @ tf.ones((4, 3)))(x), 2 * 4 * 3),
        (_unused, 0),
        (lambda x: ops.exp(x) + x, 0),
    ],
)
def test_products_are_counted_wherever_they_stand(function, products):
    assert flops(Products(function), 1) == 2 * products


def test_a_loop_of_unknown_length_is_refused():
    def halves(x):
        def body(y):
            return (ops.matmul(y, ops.ones((4, 4))) / 8,)

        return ops.while_loop(lambda y: ops.max(y) > 1, body, (x,))[0]

    with pytest.raises(ValueError, match="does not tell how often the loop"):
        flops(Products(halves), 1)


def test_frames_drawn_from_a_layer_of_keras_are_counted_too():
    layer = keras.layers.LSTM(3)
    model = Products(lambda x: layer(x[None]))
    assert flops(model, 1) == 2 * 2 * (4 + 3) * 12
