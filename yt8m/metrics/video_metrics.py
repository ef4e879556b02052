"""The metrics of an evaluation, accumulated batch by batch."""

from typing import Any

import numpy as np

from yt8m.errors import UserError
from yt8m.metrics.exact import KeptBatch, KeptLogits
from yt8m.metrics.histogram import RankHistogram
from yt8m.metrics.ranking import (
    PairKeys,
    class_average_precisions,
    class_type,
    rank_top,
)

# Videos folded into the histogram at once: enough that each class's counters, read
# into the cache for it, are used often.
_FOLD_VIDEOS = 16_384


class VideoMetrics:
    """Hit@1, PERR, GAP and mAP over all videos of an evaluation.

    Everything is exact, whatever the number of videos and the size of the batches,
    but for `map` above `exact_map_limit` videos: there it comes from per-class
    histograms of the logits, within 1e-4 of the exact value (`yt8m.metrics.histogram`
    says for which scores).

    Args:
        num_classes: C.
        top_k: classes of each video that enter GAP and the top-k mAP.
        exact_map_limit: videos up to which all logits are kept, 4 * C bytes each
            (772 MB for 50,000 videos of 3,862 classes).
        with_map: whether to compute `map`, over the full ranking of every class.
    """

    def __init__(
        self,
        num_classes: int,
        top_k: int = 20,
        exact_map_limit: int = 50_000,
        with_map: bool = True,
    ):
        for name, value in (("num_classes", num_classes), ("top_k", top_k)):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        self.num_classes = num_classes
        self.top_k = top_k
        self.exact_map_limit = exact_map_limit
        self.with_map = with_map
        self.num_examples = 0
        # Per video; sums are left to the end so that batches leave no trace in them.
        self._hits_at_one: list[np.ndarray] = []
        self._perrs: list[np.ndarray] = []
        self._losses: list[np.ndarray] = []
        # Pooled pairs: score, class, hit.
        self._pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._class_type = class_type(num_classes)
        self._positives = np.zeros(num_classes, np.int64)
        self._kept = KeptLogits()
        self._histogram: RankHistogram | None = None
        self._cached_final: tuple[float, dict[str, np.ndarray]] | None = None

    def add(
        self, logits: np.ndarray, labels: np.ndarray, losses: np.ndarray | None = None
    ) -> None:
        """Adds a batch; the arrays may be reused afterwards.

        Args:
            logits: [B, C], ranked as float32.
            labels: [B, C]; positive where > 0.
            losses: [B], given with all batches or with none.

        Raises:
            ValueError: another shape, a NaN score, or losses with some batches only.
        """
        logits = np.asarray(logits, np.float32)
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"`logits` must have shape [batch, {self.num_classes}]. "
                f"Received: logits.shape={logits.shape}"
            )
        if not len(logits):
            return
        self._check_losses(losses is not None)
        top = rank_top(logits, labels, self.top_k)
        if losses is not None:
            losses = np.array(losses, np.float64)
            if losses.shape != logits.shape[:1]:
                raise ValueError(
                    f"`losses` must have shape [{len(logits)}]. "
                    f"Received: losses.shape={losses.shape}"
                )
            self._losses.append(losses)
        self._hits_at_one.append(top.hit_at_one())
        self._perrs.append(top.perr())
        head = np.s_[:, : self.top_k]
        self._pairs.append(
            (
                top.scores[head].copy(),
                top.classes[head].astype(self._class_type),
                top.hits[head].copy(),
            )
        )
        rows, classes = top.positive_rows, top.positive_classes
        self._positives += np.bincount(classes, minlength=self.num_classes)
        if self.with_map:
            copy = logits + np.float32(0)  # turns -0.0 into 0.0
            self._kept.append(KeptBatch(self.num_examples, copy, rows, classes))
        self.num_examples += len(logits)
        self._cached_final = None
        self._bound_memory()

    def merge(self, other: "VideoMetrics") -> None:
        """Adds all videos of `other`, as if they had been added after one's own.

        Raises:
            ValueError: the two were made with different arguments.
        """
        for name in ("num_classes", "top_k", "exact_map_limit", "with_map"):
            own, others = getattr(self, name), getattr(other, name)
            if own != others:
                raise ValueError(
                    f"`other` must have {name}={own}. Received: other.{name}={others}"
                )
        if not other.num_examples:
            return
        self._check_losses(bool(other._losses))
        self._hits_at_one += other._hits_at_one
        self._perrs += other._perrs
        self._losses += other._losses
        self._pairs += other._pairs
        self._positives += other._positives
        if other._histogram is not None:
            self._fold(0)
            self._histogram.merge(other._histogram, self.num_examples)
        self._kept.extend(other._kept, self.num_examples)
        self.num_examples += other.num_examples
        self._cached_final = None
        self._bound_memory()

    def _check_losses(self, given: bool) -> None:
        if self.num_examples and given != bool(self._losses):
            raise ValueError(
                "`losses` must be given with all batches or with none. "
                f"Received: {'some' if given else 'none'} after "
                f"{'none' if given else 'some'}"
            )

    def _bound_memory(self) -> None:
        """Folds kept logits into the histogram once there are too many videos."""
        if self.with_map and self.num_examples > self.exact_map_limit:
            self._fold(_FOLD_VIDEOS - 1)

    def _fold(self, max_kept: int) -> None:
        """Moves kept logits into the histogram until at most `max_kept` remain."""
        if self._histogram is None:
            self._histogram = RankHistogram(self.num_classes)
        while self._kept.num_videos > max_kept:
            self._histogram.fold(self._kept.pop(_FOLD_VIDEOS))

    def result(self) -> dict[str, Any]:
        """The metrics of all videos added so far.

        Returns:
            Dictionary with `num_examples`, `hit_at_1`, `perr`, `gap`; `map_at_20`
            (or another `top_k`), the mAP of the starter code, which ranks only the
            top-k pairs of every video within their classes; with `with_map` also
            `map`, over all videos, and `map_method`, "exact" or "histogram"; and
            `loss` if losses were given. mAPs are means over the classes that have
            positives, and 0 if none has.

        Raises:
            UserError: no video has been added.
        """
        gap, table = self._final()
        found = {
            "num_examples": self.num_examples,
            "hit_at_1": float(np.mean(np.concatenate(self._hits_at_one))),
            "perr": float(np.mean(np.concatenate(self._perrs))),
            "gap": gap,
            f"map_at_{self.top_k}": _mean_of_classes(table[f"ap_at_{self.top_k}"]),
        }
        if self.with_map:
            found["map"] = _mean_of_classes(table["ap"])
            found["map_method"] = "histogram" if self._histogram else "exact"
        if self._losses:
            found["loss"] = float(np.mean(np.concatenate(self._losses)))
        return found

    def per_class(self) -> dict[str, np.ndarray]:
        """Average precision and positives of every class.

        Returns:
            Dictionary of [C] arrays: `positives` int64, `ap_at_20` (or another
            `top_k`) and, with `with_map`, `ap`; both float64, NaN for a class
            without positives.

        Raises:
            UserError: no video has been added.
        """
        return self._final()[1]

    def _final(self) -> tuple[float, dict[str, np.ndarray]]:
        """GAP and the table of classes, computed once for the videos seen so far."""
        if not self.num_examples:
            raise UserError("No video was evaluated: check the pattern of the data.")
        if self._cached_final is None:
            pairs = PairKeys(*map(np.concatenate, zip(*self._pairs, strict=True)))
            gap = pairs.gap(int(self._positives.sum()))
            table = {
                "positives": self._positives.copy(),
                f"ap_at_{self.top_k}": class_average_precisions(
                    *pairs.positives_by_class(), self._positives
                ),
            }
            del pairs
            if self.with_map:
                table["ap"] = class_average_precisions(
                    *self._positive_ranks(), self._positives
                )
            self._cached_final = gap, table
        return self._cached_final

    def _positive_ranks(self) -> tuple[np.ndarray, np.ndarray]:
        if self._histogram is None:
            return self._kept.positive_ranks()
        self._fold(0)
        return self._histogram.positive_ranks()


def _mean_of_classes(average_precisions: np.ndarray) -> float:
    with_positives = average_precisions[~np.isnan(average_precisions)]
    return float(np.mean(with_positives)) if len(with_positives) else 0.0
