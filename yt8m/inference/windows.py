"""Which windows of 5 frames a segment's score is made of, each computed once.

A segment is what is ranked: the `schema.SEGMENT_FRAMES` seconds from a start on. Its
score may be the mean over windows that are shifted by some seconds (test-time
augmentation, as the entrants of 2019 did it), and segments may overlap, so that many
of them share windows. A plan names the different windows of a batch, and of which of
them each segment is the mean; an `Averager` takes the windows' logits as they come, in
any number of pieces, and gives those of the segments that are complete.
"""

from dataclasses import dataclass

import numpy as np

from yt8m import schema
from yt8m.errors import UserError

AVERAGES = ("probabilities", "logits")


@dataclass(frozen=True)
class SegmentOptions:
    """Which segments of a video are ranked, and from which windows.

    Attributes:
        stride: seconds from one segment's start to the next.
        shifts: of the windows whose mean a segment's score is, in seconds. A shifted
            window begins no earlier than the video, and no later than the last window
            of full length, unless the segment itself does.
        average: of what the mean is, one of `AVERAGES`.
        drop_first: leaves out segments that begin in so many first 5 seconds of each
            video.
        drop_last: the same of its last 5 seconds, of which the very last may be short.
            Of the dataset's segments the first 6 and the last 2 of a video never were
            rated.

    Raises:
        UserError: a value out of range; names the flag.
    """

    stride: int = schema.SEGMENT_FRAMES
    shifts: tuple[int, ...] = (0,)
    average: str = AVERAGES[0]
    drop_first: int = 0
    drop_last: int = 0

    def __post_init__(self):
        object.__setattr__(self, "shifts", tuple(self.shifts))
        if not self.shifts or len(set(self.shifts)) < len(self.shifts):
            raise UserError(
                "--segment_shifts must name at least one shift, each once, not "
                f"{','.join(map(str, self.shifts)) or 'none'}."
            )
        for name, low in (("stride", 1), ("drop_first", 0), ("drop_last", 0)):
            if getattr(self, name) < low:
                raise UserError(
                    f"--segment_{name} must be at least {low}, not "
                    f"{getattr(self, name)}."
                )
        if self.average not in AVERAGES:
            raise UserError(
                f"--segment_average={self.average} must be one of "
                f"{', '.join(AVERAGES)}."
            )


@dataclass(frozen=True)
class Windows:
    """Windows of a batch, in the order of the videos and of time.

    Attributes:
        rows: int32 [n], the number of the video in the batch.
        starts: int32 [n], the first frame.
        lengths: int32 [n], the number of frames.
    """

    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | np.ndarray) -> "Windows":
        return Windows(self.rows[which], self.starts[which], self.lengths[which])


@dataclass(frozen=True)
class Plan:
    """What is to be computed of a batch.

    Attributes:
        segments: the n that are ranked.
        windows: the m different ones that the model must see.
        members: integers [n, S]: the windows of each segment, one for each shift;
            both their lowest and their highest never fall from segment to segment.
    """

    segments: Windows
    windows: Windows
    members: np.ndarray


def cut_windows(
    num_frames: np.ndarray, stride: int = schema.SEGMENT_FRAMES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts every video into windows of `schema.SEGMENT_FRAMES` frames.

    They start at 0, `stride`, ...; the last ones of a video may be shorter. A video
    without frames has none.

    Args:
        num_frames: integers [B].
        stride: frames from one window's start to the next; by default they follow one
            another.

    Returns:
        Of the n windows, in the order of the videos and of time, int32 [n] each: the
        number of the video in the batch, the first frame, and the number of frames.
    """
    starts = np.arange(0, num_frames.max(initial=0), stride)
    rows, windows = np.nonzero(starts < num_frames[:, None])
    starts = starts[windows]
    lengths = np.minimum(num_frames[rows] - starts, schema.SEGMENT_FRAMES)
    return rows.astype(np.int32), starts.astype(np.int32), lengths.astype(np.int32)


def plan_segments(num_frames: np.ndarray, options: SegmentOptions) -> Plan:
    """The segments of a batch and the windows that they need.

    Args:
        num_frames: integers [B].
        options: which they are.
    """
    segments = Windows(*cut_windows(num_frames, options.stride))
    length, total = schema.SEGMENT_FRAMES, num_frames[segments.rows]
    if options.drop_first or options.drop_last:
        place = segments.starts // length
        kept = place >= options.drop_first
        kept &= place < -(-total // length) - options.drop_last
        segments, total = segments[kept], total[kept]
    if options.shifts == (0,):
        return Plan(segments, segments, np.arange(len(segments))[:, None])
    starts = segments.starts[:, None].astype(np.int64)
    latest = np.maximum(starts, total[:, None] - length)
    shifted = np.clip(starts + np.array(options.shifts), 0, latest)
    width = int(num_frames.max(initial=0)) + 1
    keys, members = np.unique(
        segments.rows[:, None] * width + shifted, return_inverse=True
    )
    rows, starts = (part.astype(np.int32) for part in np.divmod(keys, width))
    lengths = np.minimum(num_frames[rows] - starts, length).astype(np.int32)
    return Plan(
        segments, Windows(rows, starts, lengths), members.reshape(shifted.shape)
    )


class Averager:
    """From the logits of a plan's windows, in pieces, to those of its segments.

    It holds the logits of windows that segments yet to come need, and no others.

    Args:
        plan: of a batch.
        average: of what the mean is taken, one of `AVERAGES`.
        whole_videos: whether segments are given only when all of their video are
            complete.
    """

    def __init__(self, plan: Plan, average: str, whole_videos: bool = False):
        self._members, self._average = plan.members, average
        self._first = plan.members.min(axis=1)
        self._last = plan.members.max(axis=1)
        if whole_videos:
            rows = plan.windows.rows
            self._last = np.searchsorted(rows, plan.segments.rows, side="right") - 1
        self._kept: np.ndarray | None = None  # logits, from window `_offset` on
        self._offset = self._count = self._done = 0

    def push(self, logits: np.ndarray) -> tuple[slice, np.ndarray]:
        """Takes the next windows.

        Args:
            logits: float32 [m', K], of the next m' windows.

        Returns:
            Which segments are complete now, and their logits float32 [n', K].
        """
        if self._kept is not None and len(self._kept):
            logits = np.concatenate([self._kept, logits])
        self._count = self._offset + len(logits)
        ready = int(np.searchsorted(self._last, self._count, side="left"))
        which = slice(self._done, ready)
        found = mean_logits(logits, self._members[which] - self._offset, self._average)
        more = ready < len(self._first)
        needed = int(self._first[ready]) if more else self._count
        # A copy, so that what is not needed is let go.
        self._kept = logits[needed - self._offset :].copy()
        self._offset, self._done = needed, ready
        return which, found


def mean_logits(logits: np.ndarray, members: np.ndarray, average: str) -> np.ndarray:
    """The logits of means over windows.

    logit(mean p) = log(sum sigmoid(x)) - log(sum sigmoid(-x)), which is as fine near
    p = 1 as near 0; or the mean of the logits. The logits of one window are left as
    they are.

    Args:
        logits: float32 [m, K], of windows.
        members: integers [n, S], the windows of each mean.
        average: of what the mean is taken, one of `AVERAGES`.

    Returns:
        float32 [n, K].
    """
    if members.shape[1] == 1:
        return logits[members[:, 0]]

    def total(values: np.ndarray) -> np.ndarray:
        found = values[members[:, 0]]
        for column in members.T[1:]:
            found += values[column]
        return found

    if average == "logits":
        return total(logits) / np.float32(members.shape[1])
    return np.log(total(sigmoid(logits))) - np.log(total(sigmoid(-logits)))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x) of float32 values, without overflow; at least 1e-38."""
    with np.errstate(over="ignore", under="ignore"):
        return np.maximum(1 / (1 + np.exp(-logits)), np.float32(1e-38))
