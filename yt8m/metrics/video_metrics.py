"""The metrics of an evaluation, accumulated batch by batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yt8m.errors import UserError
from yt8m.metrics.bucketed import BucketCounts
from yt8m.metrics.by_class import mean_of_classes
from yt8m.metrics.exact import KeptBatch, KeptLogits
from yt8m.metrics.histogram import RankHistogram
from yt8m.metrics.ranking import (
    PairKeys,
    TopRanked,
    average_precisions_of_ranks,
    class_type,
    rank_top,
)

# Videos folded into the histogram at once: enough that each class's counters, read
# into the cache for it, are used often.
_FOLD_VIDEOS = 16_384


class VideoMetrics:
    """Hit@k, PERR, GAP and mAP over all videos of an evaluation.

    Everything is exact, whatever the number of videos and the size of the batches,
    but for `map` above `exact_map_limit` videos: there it comes from per-class
    histograms of the logits, within 1e-4 of the exact value (`yt8m.metrics.histogram`
    says for which scores). A logit of -inf says that the class is no candidate: it
    is not ranked, and a label there was missed.

    Args:
        num_classes: C.
        top_k: classes of each video that enter GAP and the top-k mAP.
        exact_map_limit: videos up to which all logits are kept, 4 * C bytes each
            (772 MB for 50,000 videos of 3,862 classes).
        with_map: whether to compute `map`, over the full ranking of every class.
        with_bucketed_map: whether to compute the paper's mAP, from counts of the
            probabilities in buckets of 1e-4 (`yt8m.metrics.bucketed`): 154 MB for
            3,862 classes, whatever the number of videos.
        hits_at: the k of each Hit@k.
    """

    def __init__(
        self,
        num_classes: int,
        top_k: int = 20,
        exact_map_limit: int = 50_000,
        with_map: bool = True,
        with_bucketed_map: bool = False,
        hits_at: Sequence[int] = (1,),
    ):
        for name, value in (
            ("num_classes", num_classes),
            ("top_k", top_k),
            *(("hits_at", k) for k in hits_at),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        self.num_classes = num_classes
        self.top_k = top_k
        self.exact_map_limit = exact_map_limit
        self.with_map = with_map
        self.with_bucketed_map = with_bucketed_map
        self.hits_at = tuple(hits_at)
        self.num_examples = 0
        # Per video; sums are left to the end so that batches leave no trace in them.
        self._hits: dict[int, list[np.ndarray]] = {k: [] for k in self.hits_at}
        self._perrs: list[np.ndarray] = []
        self._losses: list[np.ndarray] = []
        # Pooled pairs: score, class, hit.
        self._pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._class_type = class_type(num_classes)
        self._positives = np.zeros(num_classes, np.int64)
        self._kept = KeptLogits()
        self._histogram: RankHistogram | None = None
        self._buckets = BucketCounts(num_classes) if with_bucketed_map else None
        self._cached_final: tuple[float, dict[str, np.ndarray]] | None = None

    def add(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        losses: np.ndarray | None = None,
        copy: bool = True,
    ) -> None:
        """Adds a batch.

        Args:
            logits: [B, C], ranked as float32.
            labels: [B, C]; positive where > 0.
            losses: [B], given with all batches or with none.
            copy: whether the arrays may be reused afterwards; without it `logits`
                must stay as they are.

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
        top = rank_top(logits, labels, max((self.top_k, *self.hits_at)))
        if losses is not None:
            losses = np.array(losses, np.float64)
            if losses.shape != logits.shape[:1]:
                raise ValueError(
                    f"`losses` must have shape [{len(logits)}]. "
                    f"Received: losses.shape={losses.shape}"
                )
            self._losses.append(losses)
        if self.with_map or self.with_bucketed_map:
            rows, classes = top.positive_rows, top.positive_classes
            ranked = logits[rows, classes] > -np.inf
            rows, classes = rows[ranked], classes[ranked]
            if self.with_map:
                kept = logits.copy() if copy else logits
                self._kept.append(KeptBatch(self.num_examples, kept, rows, classes))
            if self._buckets:
                self._buckets.add(logits, rows, classes)
        self._add(top)

    def add_ranked(self, top: TopRanked) -> None:
        """Adds videos of which only the head of the ranking is known.

        Raises:
            ValueError: `map` is to be computed, which takes full rankings.
        """
        if self.with_map or self.with_bucketed_map or self._losses:
            raise ValueError(
                "`with_map` and `with_bucketed_map` must be False, and no losses be "
                "given, for videos of which only the head of the ranking is known."
            )
        self._add(top)

    def _add(self, top: TopRanked) -> None:
        for k, hits in self._hits.items():
            hits.append(top.hit_at(k))
        self._perrs.append(top.perr())
        head = np.s_[:, : self.top_k]
        self._pairs.append(
            (
                top.scores[head].copy(),
                top.classes[head].astype(self._class_type),
                top.hits[head].copy(),
            )
        )
        self._positives += np.bincount(top.positive_classes, minlength=self.num_classes)
        self.num_examples += len(top.scores)
        self._cached_final = None
        self._bound_memory()

    def merge(self, other: "VideoMetrics") -> None:
        """Adds all videos of `other`, as if they had been added after one's own.

        Raises:
            ValueError: the two were made with different arguments.
        """
        for name in (
            "num_classes",
            "top_k",
            "exact_map_limit",
            "with_map",
            "with_bucketed_map",
            "hits_at",
        ):
            own, others = getattr(self, name), getattr(other, name)
            if own != others:
                raise ValueError(
                    f"`other` must have {name}={own}. Received: other.{name}={others}"
                )
        if not other.num_examples:
            return
        self._check_losses(bool(other._losses))
        for k, hits in self._hits.items():
            hits += other._hits[k]
        self._perrs += other._perrs
        self._losses += other._losses
        self._pairs += other._pairs
        self._positives += other._positives
        if other._histogram is not None:
            self._fold(0)
            self._histogram.merge(other._histogram, self.num_examples)
        self._kept.extend(other._kept, self.num_examples)
        if self._buckets:
            self._buckets.merge(other._buckets)
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
            Dictionary with `num_examples`, `hit_at_1` (or others of `hits_at`),
            `perr`, `gap`; `map_at_20` (or another `top_k`), the mAP of the starter
            code, which ranks only the top-k pairs of every video within their
            classes; with `with_map` also `map`, over all videos, and `map_method`,
            "exact" or "histogram"; with `with_bucketed_map` also `map_bucketed`, the
            paper's; and `loss` if losses were given. mAPs are means over the classes
            that have positives, and 0 if none has.

        Raises:
            UserError: no video has been added.
        """
        gap, table = self._final()
        found = {
            "num_examples": self.num_examples,
            **{
                f"hit_at_{k}": float(np.mean(np.concatenate(hits)))
                for k, hits in self._hits.items()
            },
            "perr": float(np.mean(np.concatenate(self._perrs))),
            "gap": gap,
            f"map_at_{self.top_k}": mean_of_classes(table[f"ap_at_{self.top_k}"]),
        }
        if self.with_map:
            found["map"] = mean_of_classes(table["ap"])
            found["map_method"] = "histogram" if self._histogram else "exact"
        if self.with_bucketed_map:
            found["map_bucketed"] = mean_of_classes(table["ap_bucketed"])
        if self._losses:
            found["loss"] = float(np.mean(np.concatenate(self._losses)))
        return found

    def per_class(self) -> dict[str, np.ndarray]:
        """Average precision and positives of every class.

        Returns:
            Dictionary of [C] arrays: `positives` int64, `ap_at_20` (or another
            `top_k`), with `with_map` `ap` and with `with_bucketed_map` `ap_bucketed`;
            these are float64, NaN for a class without positives.

        Raises:
            UserError: no video has been added.
        """
        return self._final()[1]

    def per_vertical(
        self, verticals: Mapping[int, Sequence[str]]
    ) -> dict[str, dict[str, Any]]:
        """The metrics of groups of classes, as a vocabulary calls them: verticals.

        Args:
            verticals: the names of the groups of a class, by its index. A class may
                be in several, or in none; those beyond C are ignored.

        Returns:
            For each group, in alphabetical order: `classes`, those that have
            positives; `positives`; `gap`, of the group's pairs among the top-k pairs
            of every video; `map_at_20` (or another `top_k`), `map` and
            `map_bucketed` as in `result`, over the group's classes.

        Raises:
            UserError: no video has been added.
        """
        table = self._final()[1]
        members: dict[str, np.ndarray] = {}
        for c, names in verticals.items():
            for name in names if c < self.num_classes else ():
                members.setdefault(name, np.zeros(self.num_classes, bool))[c] = True
        pairs = self._pair_keys()
        found = {}
        for name, own in sorted(members.items()):
            positives = table["positives"][own]
            found[name] = {
                "classes": int(np.count_nonzero(positives)),
                "positives": int(positives.sum()),
                "gap": pairs.gap(int(positives.sum()), own),
                **{
                    f"m{column}": mean_of_classes(values[own])
                    for column, values in table.items()
                    if column != "positives"
                },
            }
        return found

    def _final(self) -> tuple[float, dict[str, np.ndarray]]:
        """GAP and the table of classes, computed once for the videos seen so far."""
        if not self.num_examples:
            raise UserError("No video was evaluated: check the pattern of the data.")
        if self._cached_final is None:
            pairs = self._pair_keys()
            gap = pairs.gap(int(self._positives.sum()))
            table = {
                "positives": self._positives.copy(),
                f"ap_at_{self.top_k}": average_precisions_of_ranks(
                    *pairs.positives_by_class(), self._positives
                ),
            }
            del pairs
            if self.with_map:
                table["ap"] = average_precisions_of_ranks(
                    *self._positive_ranks(), self._positives
                )
            if self._buckets:
                table["ap_bucketed"] = self._buckets.average_precisions(self._positives)
            self._cached_final = gap, table
        return self._cached_final

    def _pair_keys(self) -> PairKeys:
        return PairKeys(*map(np.concatenate, zip(*self._pairs, strict=True)))

    def _positive_ranks(self) -> tuple[np.ndarray, np.ndarray]:
        if self._histogram is None:
            return self._kept.positive_ranks()
        self._fold(0)
        return self._histogram.positive_ranks()
