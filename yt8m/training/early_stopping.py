"""When a run stops before its end: as its validations no longer improve."""

from collections.abc import Iterable, Mapping
from typing import Any

from yt8m.runs import validation_metric


class EarlyStopping:
    """Counts the validations since the best one.

    What counts is GAP, or, of segments, their mAP (MAP@K); only a higher value is
    better. Values are compared as `metrics.csv` has them, so that a resumed run, which
    reads them there, stops where it would have stopped.

    Args:
        patience: validations without a better one after which a run stops; 0: never.
        segments: whether what is scored is segments.
        earlier: the validations that the run had before, as rows of `metrics.csv`.

    Attributes:
        best_step: of the best validation; None before the first.
    """

    def __init__(
        self, patience: int, segments: bool, earlier: Iterable[Mapping[str, str]] = ()
    ):
        self.patience = patience
        self.metric = validation_metric(segments)
        self.best_step: int | None = None
        self._best = -float("inf")
        self._since = 0
        for row in earlier:
            if row["split"] == "validation" and row.get(self.metric):
                self.add(int(row["step"]), row)

    def add(self, step: int, validation: Mapping[str, Any]) -> None:
        """Notes the metrics of the validation at `step`."""
        value = float(f"{float(validation[self.metric]):.6g}")
        self._since += 1
        if value > self._best:
            self.best_step, self._best, self._since = step, value, 0

    @property
    def is_over(self) -> bool:
        return bool(self.patience) and self._since >= self.patience

    def __str__(self) -> str:
        name = {"gap": "GAP", "map": "mAP"}[self.metric]
        return (
            f"{name} is {self._best:.4f} at step {self.best_step} and was not higher "
            f"at the {self._since} validation(s) after it"
        )
