"""What training minimises of all that a model gives out."""

import numpy as np

from yt8m import losses

LABELS = np.array([[1, 0, 1], [0, 0, 1]], "float32")
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3)).astype("float32")


def cross_entropy(logits):
    return np.sum(np.log1p(np.exp(logits)) - LABELS * logits, axis=-1)


def objective(outputs, **args):
    return losses.objective(losses.cross_entropy, LABELS, outputs, **args)


def test_it_is_the_loss_of_the_logits_alone_if_there_is_nothing_else():
    np.testing.assert_allclose(
        objective({"logits": LOGITS}, deep_supervision_weight=0.5),
        cross_entropy(LOGITS),
        rtol=1e-5,
    )


def test_auxiliary_logits_add_their_mean_loss_times_the_weight():
    auxiliary = list(RNG.normal(size=(2, 2, 3)).astype("float32"))
    value = objective(
        {"logits": LOGITS, "auxiliary_logits": auxiliary}, deep_supervision_weight=0.5
    )
    more = np.mean([cross_entropy(x) for x in auxiliary], axis=0)
    np.testing.assert_allclose(value, cross_entropy(LOGITS) + 0.5 * more, rtol=1e-5)


def test_frame_logits_are_weighted_and_stand_for_the_logits():
    frames = RNG.normal(size=(2, 4, 3)).astype("float32")
    weights = np.array([[1, 2, 3, 0], [0, 0, 0, 0]], "float32")
    value = objective(
        {"logits": LOGITS, "frame_logits": frames, "frame_weights": weights}
    )
    each = np.stack([cross_entropy(frames[:, t]) for t in range(4)], axis=1)
    np.testing.assert_allclose(value, [each[0] @ weights[0] / 6, 0], rtol=1e-5)


def test_ratings_weight_the_frames_cells_too():
    frames = RNG.normal(size=(2, 4, 3)).astype("float32")
    rated = np.array([[1, 0, 0], [0, 0, 1]], "float32")
    value = objective(
        {"logits": LOGITS, "frame_logits": frames, "frame_weights": np.ones((2, 4))},
        weights=rated,
    )
    cells = np.log1p(np.exp(frames)) - LABELS[:, None] * frames
    expected = np.sum(cells * rated[:, None], axis=-1).mean(axis=1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_models_own_penalty_is_added():
    value = objective({"logits": LOGITS, "penalty": np.array([1.0, 2.0])})
    np.testing.assert_allclose(value, cross_entropy(LOGITS) + [1, 2], rtol=1e-5)
