"""From what a model says of segments to what is ranked: the video, class relevance.

    score = logit(p_segment * p_video ^ power)

`p_segment` is the model's probability of a class in a segment, `p_video` that of the
whole video by another model, of which predictions are stored. A class of a video whose
`p_video` is below a cut-off is dropped: none of its segments is ranked. What comes of
it goes through a `yt8m.inference.class_relevance` step, if there is one. Scores are
logits from end to end, so that rankings can be merged and averaged as any others.

Source: the segment scores of several entrants of the 3rd YouTube-8M Video Understanding
Challenge (2019) were multiplied by the video-level probabilities of a winner of 2018;
classes below 2e-4 were cut off.
"""

from collections.abc import Sequence

import numpy as np

from yt8m.data.predictions import Predictions
from yt8m.errors import DataError, UserError
from yt8m.inference.class_relevance import Candidates, ClassRelevance
from yt8m.inference.windows import Windows


class VideoPrior:
    """What stored predictions say of whole videos.

    Args:
        path: a folder of `yt8m.data.predictions`.
        classes: [K], those that are ranked.
        power: of the video's probability.
        cutoff: classes of a video below it are dropped. Those that the predictions do
            not keep have the probability 0, which drops them unless `power` is 0.

    Raises:
        UserError: the predictions cannot be read, do not have the classes, or a value
            is out of range.
    """

    def __init__(
        self, path: str, classes: np.ndarray, power: float = 1.0, cutoff: float = 0.0
    ):
        if not 0 <= power < np.inf:
            raise UserError(f"--video_power={power} must be a number of at least 0.")
        if not 0 <= cutoff <= 1:
            raise UserError(f"--video_cutoff={cutoff} must be in [0, 1].")
        self._predictions = Predictions(path)
        self._path, self._classes = path, np.asarray(classes, np.int64)
        self._power, self._cutoff = power, cutoff
        known = self._predictions.num_classes
        if self._classes.max() >= known:
            raise UserError(
                f"--video_predictions={path}: class {self._classes.max()}, which is to "
                f"be ranked, is not one of its {known}."
            )

    def probabilities(self, video_ids: Sequence[bytes]) -> np.ndarray:
        """Of B videos: float32 [B, K].

        Raises:
            DataError: a video is not there; names it.
        """
        rows = self._predictions.rows(video_ids)
        if len(rows) and rows.min() < 0:
            missing = video_ids[int(rows.argmin())].decode(errors="backslashreplace")
            raise DataError(
                f"--video_predictions={self._path} has no video {missing}; write it "
                "by inference on the same shards, without --segment_labels."
            )
        return self._predictions.probabilities(rows)[:, self._classes]

    def log_factors(self, probabilities: np.ndarray) -> np.ndarray:
        """power * log p_video of `probabilities`, -inf of what is dropped."""
        with np.errstate(divide="ignore"):
            logs = np.log(probabilities)
        factors = logs * np.float32(self._power) if self._power else 0 * probabilities
        return np.where(probabilities < self._cutoff, np.float32(-np.inf), factors)


class Rescoring:
    """The steps between segments' logits and their ranking.

    Args:
        classes: [K], the class of each column.
        prior: what is known of whole videos.
        relevance: the last step; it is given whole videos.

    Attributes:
        whole_videos: whether all segments of a video must be given together.
    """

    def __init__(
        self,
        classes: np.ndarray,
        prior: VideoPrior | None = None,
        relevance: ClassRelevance | None = None,
    ):
        self._classes, self._prior, self._relevance = classes, prior, relevance
        self.whole_videos = relevance is not None
        self._ids: Sequence[bytes] | None = None
        self._of_videos = self._factors = None

    def __call__(
        self, video_ids: Sequence[bytes], segments: Windows, logits: np.ndarray
    ) -> np.ndarray:
        """The logits of n segments of B videos: float32 [n, K], -inf if dropped.

        Args:
            video_ids: [B]; the same object as long as it is the same batch.
            segments: n of its segments.
            logits: float32 [n, K].

        Raises:
            DataError: a video has no stored prediction.
            UserError: the step of class relevance gave something else than scores.
        """
        if self._prior and video_ids is not self._ids:
            self._of_videos = self._prior.probabilities(video_ids)
            self._factors = self._prior.log_factors(self._of_videos)
            self._ids = video_ids
        scores = logits
        if self._prior:
            logs = log_sigmoid(logits) + self._factors[segments.rows]
            scores = logit_of_log(logs)
        if self._relevance and len(scores):
            scores = self._relevance(
                Candidates(
                    video_ids=video_ids,
                    rows=segments.rows,
                    starts=segments.starts,
                    ends=segments.starts + segments.lengths,
                    classes=self._classes,
                    logits=logits,
                    scores=scores,
                    video_probabilities=self._of_videos,
                )
            )
        return scores


def log_sigmoid(logits: np.ndarray) -> np.ndarray:
    """log(1 / (1 + e^-x)) of float32 values: min(x, 0) - log(1 + e^-|x|)."""
    return np.minimum(logits, 0) - np.log1p(np.exp(-np.abs(logits)))


def logit_of_log(logs: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of float32 values log p <= 0; of p = 1 it is 87.5, not inf."""
    logs = np.minimum(logs, np.float32(-1e-38))
    return logs - np.log(-np.expm1(logs))
