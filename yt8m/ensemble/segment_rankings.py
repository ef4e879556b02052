"""The mean of several rankings of segments: of the probabilities of each segment."""

from collections.abc import Sequence

import numpy as np

from yt8m import schema
from yt8m.errors import UserError
from yt8m.inference.segments import RankingFile, SegmentRanking


def average_rankings(
    paths: Sequence[str],
    weights: Sequence[float],
    limit: int = schema.MAX_SEGMENTS_PER_CLASS,
) -> SegmentRanking:
    """The ranking by the weighted mean of what several models say of each segment.

    The mean is of probabilities; what is ranked, and written with scores, is its logit,
    log(mean p) - log(mean (1 - p)), which is as fine near 1 as near 0. A segment that a
    file does not rank for a class, as others were better, has the probability 0 there.
    One class at a time is in memory, beside all segments.

    Args:
        paths: files that `SegmentRanking.write` wrote, of models' logits.
        weights: one for each; their sum is 1.
        limit: segments kept of each class.

    Raises:
        UserError: the files rank other classes or segments.
        DataError: a file is damaged or no ranking.

    Source: Huang, "YouTube-8M Video Understanding", Stanford, section 4.2 (the
    mean of a model that ignores the video and one that knows it).
    """
    files = [RankingFile(path) for path in paths]
    first = files[0]
    numbers = {video_id: i for i, video_id in enumerate(first.video_ids)}
    wanted = _pairs(first, numbers)
    order = np.argsort(wanted)
    places = []  # in the first file, of the segments of each
    for path, file in zip(paths, files, strict=True):
        if not np.array_equal(file.classes, first.classes):
            raise UserError(
                f"{path} ranks other classes than {paths[0]}; combine rankings that "
                "were written with the same classes."
            )
        found = _pairs(file, numbers)
        if not np.array_equal(np.sort(found), wanted[order]):
            raise UserError(
                f"{path} ranks other segments than {paths[0]}; combine rankings of the "
                "same videos."
            )
        places.append(order[np.searchsorted(wanted[order], found)])
    ranking = SegmentRanking(first.classes, limit)
    ranking.add_segments(first.video_ids, first.rows, first.starts)
    columns = zip(*(file.columns() for file in files), strict=True)
    for column, of_files in enumerate(columns):
        there, absent = np.zeros((2, len(wanted)))
        seen = np.zeros(len(wanted), bool)
        for (scores, segments), place, weight in zip(
            of_files, places, weights, strict=True
        ):
            logits = scores.astype(np.float64)
            at = place[segments]
            unranked = np.ones(len(wanted), bool)
            unranked[at], seen[at] = False, True
            there[at] += weight * _sigmoid(logits)
            absent[at] += weight * _sigmoid(-logits)
            absent[unranked] += weight
        at = np.flatnonzero(seen)
        means = np.log(there[at]) - np.log(absent[at])
        ranking.add_scores(column, means.astype(np.float32), at)
    return ranking


def _pairs(file: RankingFile, numbers: dict[bytes, int]) -> np.ndarray:
    """The segments of a file as numbers: the video above, the second below."""
    unknown = len(numbers)
    videos = [numbers.get(video_id, unknown) for video_id in file.video_ids]
    rows = np.array(videos, np.int64)[file.rows]
    return rows << 32 | file.starts.astype(np.int64)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.maximum(1 / (1 + np.exp(-x)), np.finfo(np.float64).tiny)
