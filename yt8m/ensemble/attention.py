"""A mean of sources whose weights depend on the class and on the video.

The weights of video v and class c are a softmax over the sources:

    a_vc = softmax(b + W^T (e_c * sigmoid(g + sum over k of p_vk f_k)))

with e_c and f_c of R numbers for each class, W [R, M], and p_vk what the sources say of
class k, their mean. So a table of classes by sources, of rank R, is gated by what
the sources together say of the video. W is zero at first: learning begins at the mean.

Reference: the attention-weighted stacking of the second place of the challenge of 2017
(Wang et al. 2017, arXiv:1707.04555), whose gate sees the video's features too.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from yt8m.ensemble.candidates import Candidates, predicted_blocks
from yt8m.ensemble.sources import Source
from yt8m.errors import UserError, near_matches

_VIDEOS = 512  # at once
_SEED = 0
_CHECKED = 5  # of so many videos one is not learned from
_DEFAULT = {"rank": 8, "learning_rate": 0.01, "num_epochs": 30, "l2_penalty": 1e-3}


def first_level_score(number: int, probabilities: np.ndarray) -> np.ndarray:
    """What `candidates.collect` is to take of a source: its probabilities."""
    return probabilities


class AttentionStacking:
    """The weights, learned on candidates.

    A fifth of the videos is not learned from: the epoch is taken whose GAP on these is
    the highest, or the mean if none exceeds its GAP.

    Args:
        candidates: collected with `first_level_score`.
        num_classes: C.
        args: `rank` (R), `learning_rate` (of Adam), `num_epochs`, `l2_penalty` (of all
            but b and g, beside the mean loss of a video).

    Attributes:
        gaps: on the videos not learned from: of the mean, then of each epoch.

    Raises:
        UserError: an unknown argument, or a value that makes no sense.
    """

    def __init__(
        self,
        candidates: Candidates,
        num_classes: int,
        args: dict[str, Any] | None = None,
    ):
        settings = checked_args(args or {})
        self._count = 2 * candidates.top_k
        keras.utils.set_random_seed(_SEED)
        sources = candidates.scores.shape[1]
        self._mean = AttentionMean(
            num_classes, sources, settings["rank"], settings["l2_penalty"]
        )
        inputs = _padded(
            candidates.rows, candidates.columns, candidates.classes, candidates.scores
        )
        hits = np.zeros(inputs["classes"].shape, np.float32)
        hits[candidates.rows, candidates.columns] = candidates.hits
        place = (candidates.rows, candidates.columns)
        checked = np.arange(len(hits)) % _CHECKED == _CHECKED - 1
        chosen = checked[candidates.rows]
        if not chosen.any():
            raise UserError(
                f"--held_out_sources are of {candidates.num_videos} video(s), but "
                f"attention is learned on {_CHECKED} at least."
            )
        held_out = candidates.part(chosen, np.count_nonzero(checked))
        self._mean.build()
        self._mean.compile(
            keras.optimizers.Adam(settings["learning_rate"]), jit_compile=False
        )

        def gap() -> float:
            return held_out.gap_of(self._predict(inputs)[place][chosen])

        self.gaps = [gap()]
        best, weights = self.gaps[0], self._mean.get_weights()
        learned = {name: x[~checked] for name, x in inputs.items()}
        for _ in range(settings["num_epochs"]):
            self._mean.fit(
                learned, hits[~checked], batch_size=_VIDEOS // 4, epochs=1, verbose=0
            )
            self.gaps.append(gap())
            if self.gaps[-1] > best:
                best, weights = self.gaps[-1], self._mean.get_weights()
        self._mean.set_weights(weights)

    def _predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._mean.predict(inputs, batch_size=_VIDEOS, verbose=0)

    def blocks(
        self, sources: Sequence[Source]
    ) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """All videos in the order of the first source: ids, and float32 [n, C].

        Classes that are no candidates have the probability 0.
        """

        def predict(rows, columns, classes, scores):
            inputs = _padded(rows, columns, classes, scores)
            return self._predict(inputs)[rows, columns]

        return predicted_blocks(sources, first_level_score, self._count, predict)


def checked_args(args: dict[str, Any]) -> dict[str, Any]:
    """All arguments, with those given. Raises `UserError` as `AttentionStacking`."""
    for name, value in args.items():
        if name not in _DEFAULT:
            raise UserError(
                f"--attention_args: unknown {name}. {near_matches(name, _DEFAULT)}"
            )
        whole = isinstance(_DEFAULT[name], int)
        least = 0 if name == "l2_penalty" else 1 if whole else 1e-9
        if type(value) not in ((int,) if whole else (int, float)) or value < least:
            kind = "a whole number from 1" if whole else f"a number from {least:g}"
            raise UserError(f"--attention_args: {name} must be {kind}, not {value}.")
    return {**_DEFAULT, **args}


def _padded(
    rows: np.ndarray,
    columns: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
) -> dict[str, np.ndarray]:
    """Candidate pairs as arrays by video, [N, K] and [N, K, M]; the others are 0."""
    shape = tuple(int(x.max(initial=-1)) + 1 for x in (rows, columns))
    inputs = {
        "classes": np.zeros(shape, np.int32),
        "scores": np.zeros((*shape, scores.shape[1]), np.float32),
        "there": np.zeros(shape, np.float32),
    }
    for name, values in (("classes", classes), ("scores", scores), ("there", 1.0)):
        inputs[name][rows, columns] = values
    return inputs


class AttentionMean(keras.Model):
    """Probabilities [B, K] of candidate pairs, from those of M sources.

    Args:
        num_classes, num_sources, rank: C, M, R.
        l2_penalty: of e, f and W.
    """

    def __init__(
        self, num_classes: int, num_sources: int, rank: int, l2_penalty: float
    ):
        super().__init__()
        self.sizes = (num_classes, num_sources, rank)
        self.l2_penalty = l2_penalty

    def build(self, input_shape=None):
        num_classes, num_sources, rank = self.sizes
        normal = keras.initializers.RandomNormal
        add = self.add_weight
        self.classes = add(shape=(num_classes, rank), initializer=normal(1.0), name="e")
        self.seen = add(shape=(num_classes, rank), initializer=normal(0.1), name="f")
        self.gate = add(shape=(rank,), initializer="zeros", name="g")
        self.sources = add(shape=(rank, num_sources), initializer="zeros", name="w")
        self.bias = add(shape=(num_sources,), initializer="zeros", name="b")
        self.built = True

    def call(self, inputs):
        classes, scores, there = (inputs[n] for n in ("classes", "scores", "there"))
        mean = ops.mean(scores, axis=-1) * there
        seen = ops.einsum("bk,bkr->br", mean, ops.take(self.seen, classes, axis=0))
        gate = ops.sigmoid(self.gate + seen)
        gated = ops.take(self.classes, classes, axis=0) * gate[:, None]
        weights = ops.softmax(self.bias + ops.matmul(gated, self.sources))
        return ops.sum(weights * scores, axis=-1) * there

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        p = ops.clip(y_pred, 1e-6, 1 - 1e-6)
        cells = -y * ops.log(p) - (1 - y) * ops.log(1 - p)
        penalised = (self.classes, self.seen, self.sources)
        penalty = sum(ops.sum(ops.square(w)) for w in penalised)
        return (
            ops.mean(ops.sum(cells * x["there"], axis=-1))
            + self.l2_penalty * penalty / self.sizes[0]
        )
