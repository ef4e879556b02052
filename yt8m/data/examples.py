"""Which examples a record of a video holds: none, itself, or its rated segments."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from yt8m import schema
from yt8m.data.records import parse_message
from yt8m.data.segments import cut
from yt8m.errors import DataError


@dataclass(frozen=True)
class Examples:
    """What is made of each record as it is read.

    Attributes:
        segments: its rated segments are the examples, not itself.
        context_frames: before and after each of them, see `segments.cut`.
        only_classes: a video that has none of these labels gives no example; None
            takes all videos.
    """

    segments: bool = False
    context_frames: int = 0
    only_classes: frozenset[int] | None = None

    @classmethod
    def wanted(
        cls, segments: bool, context_frames: int, only: Collection[int] | None
    ) -> "Examples | None":
        """None if every record is one example, as it is."""
        if only is not None:
            only = frozenset(int(c) for c in only)
        elif not segments:
            return None
        return cls(segments, context_frames if segments else 0, only)

    def of(self, serialized: bytes) -> list[bytes]:
        """The examples of a record; if they cannot be told, the record itself.

        So a record with a fault keeps a place in the order, where parsing it will fail.
        """
        try:
            if self.only_classes is not None:
                context = parse_message(serialized).context.feature
                labels = context[schema.LABELS_KEY].int64_list.value
                if self.only_classes.isdisjoint(labels):
                    return []
            if not self.segments:
                return [serialized]
            return cut(serialized, self.context_frames)
        except DataError:
            return [serialized]

    @property
    def key(self) -> str:
        """Tells apart what has other counts of examples."""
        words = ["segments"] if self.segments else []
        if self.only_classes is not None:
            text = ",".join(map(str, sorted(self.only_classes)))
            words.append(f"of {hashlib.sha256(text.encode()).hexdigest()[:16]}")
        return " ".join(words)
