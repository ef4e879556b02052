"""Label processing against float64 twins in NumPy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from yt8m.errors import UserError
from yt8m.layers.classifiers import create_head
from yt8m.layers.constants import weights_follow
from yt8m.layers.label_processing import (
    LABEL_PROCESSINGS,
    LabelCorrelation,
    create_label_processing,
    read_correlation,
)

C = 4
# Videos that have both labels; on the diagonal, those that have one. Class 3 has none.
TOGETHER = np.array([[8, 4, 1, 0], [4, 4, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]])
MC = np.array([[0, 1, 0.5, 0], [0.5, 0, 0, 0], [0.125, 0, 0, 0], [0, 0, 0, 0]])
LOGITS = np.array([[0.0, 2.0, -1.0, -3.0], [-6.0, 0.5, 4.0, 1.0]])


def write_file(path, together=TOGETHER, **changes) -> str:
    rows, columns = np.nonzero(np.triu(together))
    arrays = {
        "indices": np.stack([rows, columns], axis=1),
        "counts": together[rows, columns],
        "num_classes": len(together),
        **changes,
    }
    with open(path, "wb") as f:
        np.savez(f, **{k: v for k, v in arrays.items() if v is not None})
    return str(path)


@pytest.fixture
def path(tmp_path) -> str:
    return write_file(tmp_path / "correlation.npz")


def built(path, weights=(1.0, 0.01, 0.0), **args):
    layer = LabelCorrelation(path, weights, **args)
    layer.build((None, C))
    return layer


def twin(logits, weights, learned=MC):
    own, fixed_share, learned_share = weights
    p = 1 / (1 + np.exp(-logits))
    s = p @ (fixed_share * MC + learned_share * learned).T
    yes = own * p + np.maximum(s, 0)
    no = own * (1 - p) + np.maximum(-s, 0)
    return np.log(yes / no)


def test_the_correlation_is_the_share_of_one_labels_videos_that_have_the_other(path):
    matrix = read_correlation(path)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, MC)


def test_the_score_of_a_certain_class_reaches_those_that_it_appears_with(path):
    layer = built(path, weights=[1.0, 0.5, 0.0])
    # Class 1 is in the video; the others have the probability 1/2.
    p = tf.sigmoid(layer(tf.constant([[0.0, 100.0, 0.0, 0.0]])))
    s0, s2 = 0.5 * (1 + 0.5 * 0.5), 0.5 * 0.125 * 0.5
    expected = [(0.5 + s0) / (1 + s0), 1, (0.5 + s2) / (1 + s2), 0.5]
    np.testing.assert_allclose(p, [expected], rtol=1e-6)


@pytest.mark.parametrize(
    "weights", [(1.0, 0.3, 0.0), (1.0, 0.0, 0.1), (2.0, 0.5, 0.25), (1, 0, -0.2)]
)
def test_logits_have_the_values_of_the_formula(path, weights):
    layer = built(path, weights)
    y = layer(tf.constant(LOGITS, tf.float32))
    assert y.shape == LOGITS.shape and y.dtype == tf.float32
    np.testing.assert_allclose(y, twin(LOGITS, weights), rtol=1e-5)


def test_a_learned_correlation_may_become_negative(path):
    layer = built(path, (1.0, 0.01, 0.5))
    learned = np.random.default_rng(0).normal(size=(C, C))
    layer.learned.assign(learned)
    y = layer(tf.constant(LOGITS, tf.float32))
    np.testing.assert_allclose(y, twin(LOGITS, (1.0, 0.01, 0.5), learned), rtol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (3.0, 0.0, 0.0)])
def test_without_shares_of_others_the_logits_stay_as_they_are(path, weights):
    logits = tf.constant([[-200.0, 200.0, 1e-30, -0.3]])
    layer = built(path, weights)
    assert layer.weights == []
    np.testing.assert_array_equal(layer(logits), logits)


def test_a_class_that_appears_with_no_other_keeps_its_logit(path):
    logits = np.array([[5.0, 5.0, 5.0, x] for x in (-200, -20.0, 0.1, 200)], "float32")
    y = built(path, (1.0, 0.3, 0.3))(tf.constant(logits))
    np.testing.assert_array_equal(y[:, 3], logits[:, 3])


@pytest.mark.parametrize("weights", [(1.0, 0.3, 0.3), (1.0, 0.0, -0.3)])
def test_extreme_logits_give_finite_logits_and_gradients(path, weights):
    layer = built(path, weights)
    logits = tf.constant([[x, y, z, 0.0] for x in E for y in E for z in E])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        y = layer(logits)
        loss = tf.reduce_sum(tf.nn.softplus(-y) + tf.nn.softplus(y))
    gradients = tape.gradient(loss, [logits, layer.learned.value])
    assert all(np.isfinite(x).all() for x in (y, *gradients))
    assert np.any(gradients[1] != 0)


E = (-1e4, -100.0, -30.0, 0.0, 30.0, 100.0, 1e4)


def test_pairs_that_never_appeared_together_can_be_learned(path):
    layer = built(path, (1.0, 0.0, 0.1))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant(LOGITS, tf.float32)))
    assert np.all(tape.gradient(loss, layer.learned.value) != 0)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_low_precision_does_not_round_the_logits(path, precision):
    layer = built(path, (1.0, 0.01, 0.01), dtype=precision)
    logits = np.array([[8.001, 8.002, -8.001, -8.002]], "float32")
    y = layer(tf.constant(logits))
    assert y.dtype == tf.float32
    np.testing.assert_allclose(y, twin(logits, (1.0, 0.01, 0.01)), atol=1e-2)
    assert len(np.unique(y)) == C
    assert all(w.dtype == "float32" for w in layer.weights)


def test_a_graph_gives_the_same_with_and_without_xla(path):
    layer = built(path, (1.0, 0.1, 0.1))
    x = tf.constant(LOGITS, tf.float32)
    signature = [tf.TensorSpec([None, C])]
    graph = tf.function(layer, input_signature=signature)
    compiled = tf.function(layer, jit_compile=True)
    for call in (graph, compiled):
        np.testing.assert_allclose(call(x), layer(x), rtol=1e-5)
    assert graph(x[:0]).shape == (0, C)


def test_weights_that_follow_need_no_file(path):
    x = tf.constant(LOGITS, tf.float32)
    layer = built(path, (1.0, 0.1, 0.1))
    with weights_follow():
        again = built("/no/such/file", (1.0, 0.1, 0.1))
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(x), layer(x))


def test_a_head_passes_its_logits_through(path):
    args = {"correlation": path, "weights": (1.0, 0.3, 0.1)}
    head = create_head(
        "logistic", C, label_processing="correlation", label_processing_args=args
    )
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 5)), tf.float32)
    logits = head(x)["logits"]
    before = head.class_logits(x).numpy().astype("float64")
    np.testing.assert_allclose(logits, twin(before, args["weights"]), rtol=1e-4)
    names = [w.name for w in head.weights]
    assert "correlation" in names and "learned_correlation" in names
    assert [w.name for w in head.trainable_weights].count("correlation") == 0


def test_it_is_rebuilt_from_its_configuration():
    layer = LabelCorrelation("some.npz", [1, 0.3, 0.1])
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    assert (again.correlation, again.shares) == ("some.npz", (1.0, 0.3, 0.1))


@pytest.mark.parametrize(
    "weights", [(1.0, 0.1), (0.0, 0.1, 0.1), (-1, 0, 0), "1.0", 1.0, ("a", 0, 0)]
)
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ValueError, match="three numbers, the first of them positive"):
        LabelCorrelation("some.npz", weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"indices": None},
        {"num_classes": None},
        {"counts": np.ones(9)},
        {"indices": np.zeros(5, int)},
        {"num_classes": np.array([4, 4])},
        {"num_classes": -4},
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, changes):
    path = write_file(tmp_path / "own.npz", **changes)
    with pytest.raises(UserError, match="own.npz is no file of label correlations"):
        built(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"Index,Videos\n0,1"])
def test_a_file_that_is_no_archive_is_named(tmp_path, content):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(UserError, match="own.npz is no file of label correlations"):
        built(str(tmp_path / "own.npz"))


def test_a_damaged_archive_is_named(path):
    with open(path, "r+b") as f:
        f.truncate(f.seek(0, 2) // 2)
    with pytest.raises(UserError, match="or is damaged: write one with `yt8m"):
        built(path)


def test_a_missing_file_and_other_classes_are_named(path):
    with pytest.raises(UserError, match="label correlations /no/file cannot be read"):
        built("/no/file")
    layer = LabelCorrelation(path)
    with pytest.raises(UserError, match=r"shape \[4, 4\]; the model needs \[5, 5\]"):
        layer.build((None, 5))


def test_unknown_names_list_near_matches():
    assert set(LABEL_PROCESSINGS) == {"correlation"}
    with pytest.raises(UserError, match="Did you mean correlation"):
        create_label_processing("corelation")
    with pytest.raises(UserError, match="no argument weight. Did you mean weights"):
        create_label_processing("correlation", correlation="a", weight=1)
