"""Embedded data: learnable videos in the dataset's format, with known blind spots.

Every class has a fixed direction in the rgb and in the audio space, and a kind, which
says where a video of that class shows them:

- `static`: rgb evidence in all frames.
- `brief`: strong rgb evidence in about 5 % of the frames; a decoy is faint in all
  frames, and sums to the same.
- `ordered`: pairs of classes that show the same two directions in two windows of the
  video, and differ in which window comes first.
- `audio`: evidence in the sound of all frames, and none in rgb.
- `joint`: rgb evidence in one window, audio evidence in another; a decoy has only one
  of the two.
- `synchronous`: rgb and audio evidence in one and the same window; a decoy has them in
  two windows that do not overlap.
- `contextual`, on request: pairs of classes that share their rgb evidence, in one
  window; which of the two it is follows from a scene that shows in the rest of the
  video. A segment alone, even a widened or shifted one, cannot tell them apart.

Each feature of a frame is R (cos(t) background + sin(t) evidence), where background
and evidence are orthogonal and of unit length. So all frames of a video have the same
norm R, and their mean weighs sin(t) alone, whether frames are L2-normalised before or
not. This is exact but for quantising, clipping, and the rare frame with more evidence
than fits. A decoy's strengths are drawn like the class's own.
"""

import functools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from yt8m import schema
from yt8m.errors import UserError, near_matches, reason

if TYPE_CHECKING:  # videos are generated without TensorFlow, which records need
    from yt8m.data.records import SegmentRatings

# Kind -> the fewest frames that can show it.
KINDS = {
    "static": 1,
    "brief": 8,
    "ordered": 2,
    "audio": 1,
    "joint": 1,
    "synchronous": 2,
}
# Those that are not among the default ones.
MORE_KINDS = {"contextual": 40}
_FEWEST_FRAMES = KINDS | MORE_KINDS
_PAIRED_KINDS = ("ordered", "contextual")
AUDIO_KINDS = ("audio", "joint", "synchronous")
DECOY_KINDS = ("brief", "joint", "synchronous")

SPLITS = ("train", "validate", "test")

# Ranges of sin(t), uniform. Audio has fewer dimensions, so more of the background lies
# along any one direction, and evidence must be stronger to stand out.
_STRENGTHS = {
    "static": (0.10, 0.25),
    "brief": (0.55, 0.80),
    "ordered": (0.30, 0.50),
    "audio": (0.15, 0.30),
    "joint": (0.30, 0.50),
    "synchronous": (0.30, 0.50),
    "contextual": (0.30, 0.50),
}
_AUDIO_GAIN = 1.3
_MAX_ENERGY = 0.95  # of a frame, in evidence
# Frames on both sides of contextual evidence without the scene that explains it: what a
# segment with one frame of evidence reaches (4), widened (3), shifted (2), and one.
_SCENE_MARGIN = 10

# The dataset's class frequencies fall like 1 / (rank + 2.2), ranks counted from 0.
_ZIPF_OFFSET = 2.2

# One plus a negative binomial of shape 2 is close to the dataset's labels per video:
# 25 %, 23 %, 19 % and 16 % of the videos have one, two, three and four.
_LABELS_SHAPE = 2
_MAX_LABELS = 10

# Quantiles of the dataset's video lengths, measured on 5,978 training videos: few
# below 119 frames, most of these of one; 29 % of exactly 300; one in a thousand of 301.
_LENGTH_SHARES = (0, 0.0005, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.707)
_LENGTHS = (1, 1, 119, 121, 129, 140, 163, 187, 209, 232, 262, 300)
_LONGER_SHARE = 0.001

# Standard deviations of the dataset's video means over videos, by relative place of
# the dimension: a falling curve, as the features are principal components.
_DEVIATIONS = {
    "rgb": (
        (0.0, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0),
        (0.80, 0.66, 0.63, 0.58, 0.52, 0.45, 0.40),
    ),
    "audio": ((0.0, 0.04, 0.08, 0.5, 1.0), (0.95, 0.83, 0.69, 0.66, 0.60)),
}

# Weights of what lasts for a video, for a scene, and of half the drift in a scene.
_VIDEO_WEIGHT, _SCENE_WEIGHT, _DRIFT_WEIGHT = 0.75, 0.5, 0.2
_FRAMES_PER_SCENE = 15
_NORM = 1.2  # R, relative to the norm of `_DEVIATIONS`
_NORM_SPREAD = 0.25  # of log R between videos
_NOISE_ROWS = 2048

# Of rated segments: part of the seed, the share of a video's classes that are rated in
# a segment, and how many others are.
_SEGMENTS_KEY, _MISLEADING_KEY = 1, 2
_RATED_SHARE, _RATED_ABSENT = 0.5, 2

_DIGITS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CLASSES_FILE = "classes.csv"
MAX_SHARDS = len(_DIGITS) ** 2
MAX_VIDEOS_PER_SHARD = len(_DIGITS) ** 2 // len(SPLITS)


@dataclass(frozen=True)
class SyntheticConfig:
    """What the videos are like.

    Attributes:
        seed: of everything random.
        num_classes: number of classes C; class 0 is the most frequent.
        kinds: some of `KINDS` and `MORE_KINDS`; each gets an equal share of the
            classes.
        features: sizes of `rgb` and `audio`, in the order of the record. A size of at
            least C makes the classes' directions orthogonal.
        max_frames: the longest video; one in a thousand has a frame more, as in the
            dataset.
        labels_per_video: mean number of true labels of a video, which has 1 to 10.
        zipf_exponent: of the class frequencies; 0 makes all equal.
        co_occurrence: share of a video's labels drawn from one group of classes.
        strength: factor on all evidence; less is harder.
        brief_share: share of the frames that show a brief class.
        window_share: share of the frames in an ordered, joint or synchronous window.
        frame_noise: weight of what is a frame's own, where the video's is 0.75 and
            the scene's 0.5.
        missing_labels: probability that a true label is not given, so that a video
            can be left without labels.
        wrong_labels: expected share of the given labels that are wrong. Against human
            raters the dataset's labels had 14.5 % recall and 78.8 % precision
            (arXiv:1609.08675): missing_labels=0.855, wrong_labels=0.212.
        implied_labels: probability that a true label makes the class above it in its
            group true, and that one the next. The classes of a group are a binary
            tree, the most frequent at its root. What is true by implication alone
            shows faintly: its evidence is multiplied by a number drawn from [0, 1],
            its visibility, which is 1 of other labels.
        hidden_labels: mean share of the true labels that are not given for being
            overlooked; the last one of a video always is given. A class of
            visibility v is hidden with the probability hidden_labels * (1/2 + u) *
            (3/2 - v), at most 1, where u in [0, 1] is a number of the class. Beyond 1
            it is no share, and leaves ever fewer than the last one of a video: with 5
            labels a video, implied_labels=0.9 and wrong_labels=0.222, 3.1 gives the
            dataset's recall and precision.
        misleading_labels: probability that a label misleads about segments: a true
            one that no rated segment shows, though it is rated in each, if other
            segments can be rated; a static or audio class then lasts for a window
            only. Or a given one that is wrong, and rated 0 in each rated segment.
        vocabulary_seed: 0, or the number of another dataset, of other videos and as
            many other classes of the same kinds in the same surroundings. Its classes
            show what two or three classes of dataset 0, of their kind, show: each
            direction is a sum or difference of theirs, orthogonal if theirs are.

    The features do not depend on `missing_labels`, `wrong_labels` and `hidden_labels`:
    a split written without them holds the truth about the same videos.

    Raises:
        UserError: for values out of range, and for a number of classes that leaves an
            ordered class without its pair.
    """

    seed: int = 0
    num_classes: int = 120
    kinds: tuple[str, ...] = tuple(KINDS)
    features: dict[str, int] = field(
        default_factory=lambda: dict(schema.FRAME_FEATURES), hash=False
    )
    max_frames: int = schema.MAX_FRAMES
    labels_per_video: float = 3.0
    zipf_exponent: float = 1.0
    co_occurrence: float = 0.8
    strength: float = 1.0
    brief_share: float = 0.05
    window_share: float = 0.25
    frame_noise: float = 0.4
    missing_labels: float = 0.0
    wrong_labels: float = 0.0
    implied_labels: float = 0.0
    hidden_labels: float = 0.0
    misleading_labels: float = 0.0
    vocabulary_seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "kinds", tuple(self.kinds))
        for kind in self.kinds:
            if kind not in _FEWEST_FRAMES:
                known = near_matches(kind, _FEWEST_FRAMES)
                raise UserError(f"Unknown kind {kind}. {known}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UserError(
                f"`kinds` must name at least one kind, each once: {self.kinds}."
            )
        self._check_features()
        least_frames = min(_FEWEST_FRAMES[kind] for kind in self.kinds)
        for name, low, high in (
            ("seed", 0, math.inf),
            ("num_classes", len(self.kinds), math.inf),
            ("max_frames", least_frames, math.inf),
            ("labels_per_video", 1, _MAX_LABELS),
            ("zipf_exponent", 0, math.inf),
            ("co_occurrence", 0, 1),
            ("strength", 0, 1.1),
            ("brief_share", 0, 0.25),
            ("window_share", 0, 0.5),
            ("frame_noise", 0, math.inf),
            ("missing_labels", 0, 1),
            ("wrong_labels", 0, 0.9),
            ("implied_labels", 0, 1),
            ("hidden_labels", 0, 4),
            ("misleading_labels", 0, 1),
            ("vocabulary_seed", 0, math.inf),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"`{name}` must be in [{low}, {high}], not {value}.")
        dealt = _deal_kinds(self)
        for kind in _PAIRED_KINDS:
            if dealt.count(kind) % 2:
                article = "an" if kind == "ordered" else "a"
                raise UserError(
                    f"num_classes={self.num_classes} leaves {article} {kind} class "
                    f"without its pair; take a multiple of {2 * len(self.kinds)}."
                )

    def _check_features(self):
        for name, size in self.features.items():
            if name not in _DEVIATIONS:
                raise UserError(
                    f"Unknown feature {name}. {near_matches(name, _DEVIATIONS)}"
                )
            if size < 32:
                raise UserError(f"The size of {name} must be at least 32, not {size}.")
        if "rgb" not in self.features:
            raise UserError("`features` must hold rgb.")
        deaf = [k for k in self.kinds if k in AUDIO_KINDS]
        if deaf and "audio" not in self.features:
            raise UserError(f"Classes of kind {deaf[0]} need the feature audio.")

    def kind_of(self, label: int) -> str:
        """The kind of class `label`."""
        return _world(self).kinds[label]

    def partner_of(self, label: int) -> int | None:
        """The other class of its pair, if class `label` has one."""
        partner = int(_world(self).partner[label])
        return None if partner < 0 else partner


@dataclass(frozen=True)
class SyntheticVideo:
    """A generated video.

    Attributes:
        features: uint8 [T, size] of each feature.
        labels: the classes given in the record, ascending.
        truth: the classes that the frames show, ascending; equal to `labels` unless
            labels are missing, hidden or wrong.
        decoys: the classes whose decoys the frames show, ascending.
        shown: for each class of `truth`, bool [T]: the frames with its evidence.
    """

    features: dict[str, np.ndarray]
    labels: list[int]
    truth: list[int]
    decoys: list[int]
    shown: dict[int, np.ndarray]


def quantize(values: np.ndarray) -> np.ndarray:
    """Bytes of floats: round((x + 2) * 255 / 4), clipped; the dataset's quantiser."""
    scaled = (values - schema.QUANTIZE_MIN) / schema.DEQUANTIZE_SCALE
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def frame_mean(frames: np.ndarray) -> np.ndarray:
    """Mean over the dequantised frames uint8 [T, size]: float32 [size]."""
    mean = frames.mean(axis=0, dtype=np.float64)
    return (mean * schema.DEQUANTIZE_SCALE + schema.DEQUANTIZE_OFFSET).astype(
        np.float32
    )


def draw_length(rng: np.random.Generator, max_frames: int) -> int:
    """Length of a video: the dataset's distribution, scaled to `max_frames`."""
    if rng.random() < _LONGER_SHARE:
        return max_frames + 1
    length = np.interp(rng.random(), _LENGTH_SHARES, _LENGTHS)
    return max(1, math.ceil(length * max_frames / _LENGTHS[-1]))


def deviations(name: str, size: int) -> np.ndarray:
    """Standard deviation of a feature's video means, float32 [size], as in the dataset.

    Features other than `audio` are taken to be like `rgb`.
    """
    places = (np.arange(size) + 0.5) / size
    curve = _DEVIATIONS.get(name, _DEVIATIONS["rgb"])
    return np.interp(places, *curve).astype(np.float32)


@dataclass(frozen=True)
class Scenes:
    """A video's S scenes, one after another.

    Attributes:
        count: S.
        scene: of each frame, int [T].
        place: of each frame in its scene, float32 [T, 1] in (0, 1).
    """

    count: int
    scene: np.ndarray
    place: np.ndarray

    def drift(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Frames [T, size] on the lines from starts [S, size] to ends [S, size]."""
        frames = starts[self.scene]
        frames += (ends - starts)[self.scene] * self.place
        return frames


def draw_scenes(rng: np.random.Generator, num_frames: int) -> Scenes:
    """Scenes of random lengths, one in 15 frames on average and one more."""
    count = min(1 + rng.poisson(num_frames / _FRAMES_PER_SCENE), num_frames)
    cuts = np.sort(rng.choice(num_frames - 1, count - 1, replace=False)) + 1
    edges = np.concatenate([[0], cuts, [num_frames]])
    lengths = np.diff(edges)
    scene = np.repeat(np.arange(count), lengths)
    place = (np.arange(num_frames) - edges[scene] + 0.5) / lengths[scene]
    return Scenes(count, scene, place.astype(np.float32)[:, None])


def _zipf(config: SyntheticConfig) -> np.ndarray:
    """Class frequencies float64 [C], which sum to 1."""
    ranks = np.arange(config.num_classes)
    weights = (ranks + _ZIPF_OFFSET) ** -config.zipf_exponent
    return weights / weights.sum()


def _deal_kinds(config: SyntheticConfig) -> list[str]:
    """The kind of each class.

    Rows of as many classes as there are kinds are dealt one each, the most frequent
    class to the kind with the least frequency so far.
    """
    frequencies = _zipf(config)
    mass = dict.fromkeys(config.kinds, 0.0)
    kinds: list[str] = []
    while len(kinds) < config.num_classes:
        # A last row that is not full goes to the first kinds, so that shares are
        # known from the counts alone.
        row = config.kinds[: config.num_classes - len(kinds)]
        for kind in sorted(row, key=mass.__getitem__):
            mass[kind] += frequencies[len(kinds)]
            kinds.append(kind)
    return kinds


def _generator(seed: int, *key: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return np.random.Generator(np.random.SFC64(sequence))


def _video_generator(
    config: SyntheticConfig, split: str, index: int, *key: int
) -> np.random.Generator:
    """For a purpose `key` of one video of one dataset."""
    key = (_split_number(split), index, *key)
    if config.vocabulary_seed:
        key = (len(SPLITS) + config.vocabulary_seed, *key)
    return _generator(config.seed, *key)


class _World:
    """What all videos of a configuration share: directions, groups, noise.

    Attributes:
        kinds: the kind of each class.
        partner: of an ordered or contextual class, the other of its pair; else -1.
        above: the class that a class implies, -1 for the root of a group.
        overlooked: of each class, what its probability of being hidden grows by.
        directions: unit vectors float32 [C, size] of each feature.
        noise: float32 [N, size] of each feature, from which frames draw.
        scale: `deviations` of each feature.
    """

    def __init__(self, config: SyntheticConfig):
        self.config = config
        self.kinds = _deal_kinds(config)
        classes = config.num_classes
        self.min_frames = np.array([_FEWEST_FRAMES[kind] for kind in self.kinds])

        self.partner = np.full(classes, -1)
        for paired in _PAIRED_KINDS:
            members = self.of_kind(paired)
            self.partner[members[0::2]] = members[1::2]
            self.partner[members[1::2]] = members[0::2]

        # Groups of at least two blocks of ranks: some frequent classes and some rare,
        # of all kinds, and pairs stay together.
        frequencies = _zipf(config)
        block = max(4, 2 * len(config.kinds))
        groups = max(1, classes // (2 * block))
        self.group = np.arange(classes) // block % groups
        mass = np.bincount(self.group, weights=frequencies)
        self.group_ends = np.cumsum(mass) / np.cumsum(mass)[-1]
        self.above = np.full(classes, -1)
        for group in range(groups):
            members = np.flatnonzero(self.group == group)
            self.above[members[1:]] = members[(np.arange(1, len(members)) - 1) // 2]
        # A label comes from the group with probability `co_occurrence`, else from all.
        outside = max(1 - config.co_occurrence, 1e-9)
        self.log_frequencies = np.log(frequencies)
        self.log_bonus = np.log(config.co_occurrence / mass + outside) - np.log(outside)

        rng = _generator(config.seed, len(SPLITS))
        self.directions, self.noise, self.scale = {}, {}, {}
        for name, size in config.features.items():
            scale = self.scale[name] = deviations(name, size)
            vectors = rng.standard_normal((classes, size), np.float32) * scale
            if classes <= size:
                vectors = np.linalg.qr(vectors.T)[0].T
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            self.directions[name] = np.ascontiguousarray(vectors, np.float32)
            self.noise[name] = rng.standard_normal((_NOISE_ROWS, size), np.float32)
            self.noise[name] *= scale
        self.overlooked = rng.random(classes)
        if config.vocabulary_seed:
            self._rename_classes()

    def of_kind(self, kind: str) -> np.ndarray:
        """The classes of a kind, ascending."""
        return np.flatnonzero([own == kind for own in self.kinds])

    def _rename_classes(self):
        """Makes the directions those of dataset `vocabulary_seed`; see there."""
        config = self.config
        rng = _generator(config.seed, len(SPLITS) + config.vocabulary_seed)
        for kind in config.kinds:
            old = rng.permutation(self.of_kind(kind))
            new = rng.permutation(old)
            blocks = max(1, len(old) // 2)  # of two classes, or three
            for name, directions in self.directions.items():
                mixed = directions.copy()
                for sources, targets in zip(
                    np.array_split(old, blocks),
                    np.array_split(new, blocks),
                    strict=True,
                ):
                    mixed[targets] = _mixture(len(sources)) @ directions[sources]
                mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
                self.directions[name] = mixed


def _mixture(size: int) -> np.ndarray:
    """An orthogonal matrix float32 [size, size]: sums and differences (the DCT-II)."""
    k = np.arange(size)
    rows = np.cos(np.pi * k[:, None] * (2 * k + 1) / (2 * size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _world(config: SyntheticConfig) -> _World:
    return _World(config)


def generate_video(config: SyntheticConfig, split: str, index: int) -> SyntheticVideo:
    """Video number `index` of `split`: a function of these three alone.

    Raises:
        UserError: unknown split.
    """
    world = _world(config)
    rng = _video_generator(config, split, index)
    shortest = min(_FEWEST_FRAMES[kind] for kind in config.kinds)
    num_frames = max(shortest, draw_length(rng, config.max_frames))
    truth, decoys = _draw_classes(world, rng, num_frames)
    visibility = _imply(world, rng, truth, decoys, num_frames)
    truth = list(visibility)
    evidence = _Evidence(world, rng, num_frames)
    misleading = _misleading(config, split, index)
    for label in truth:
        evidence.show(label, visibility=visibility[label], in_part=label in misleading)
    for label in decoys:
        evidence.show(label, decoy=True)
    features = _render(world, rng, evidence)
    labels = _corrupt(world, rng, visibility)
    shown = {label: evidence.frames_of(label) for label in truth}
    return SyntheticVideo(features, labels, sorted(truth), sorted(decoys), shown)


def rate_segments(
    config: SyntheticConfig, split: str, index: int, video: SyntheticVideo
) -> "SegmentRatings":
    """What people would say of 4 to 6 segments of `video`, as in the 2019 release.

    Starts are multiples of 5, without order; every other segment or so is one that
    shows a certain class of the video. Rated are some of the video's classes, 1 if a
    frame of the segment has evidence of the class, and two that the video has not.
    Those are neither its decoys nor the partners of its ordered classes: their
    evidence, or half of it, is there. But where a contextual class is rated its
    partner is, 0. What misleads is rated in all of its segments, 0.

    Args:
        config, split, index: those with which `generate_video` made the video.
        video: it.
    """
    from yt8m.data.records import SegmentRatings

    world = _world(config)
    rng = _video_generator(config, split, index, _SEGMENTS_KEY)
    shown = {label: _by_segment(frames) for label, frames in video.shown.items()}
    misleading = _misleading(config, split, index)
    elsewhere = [label for label in video.truth if label in misleading]
    honest = [label for label in video.truth if label not in misleading]
    places = list(range(len(next(iter(shown.values())))))
    places = [p for p in places if not any(shown[c][p] for c in elsewhere)] or places
    chosen: dict[int, None] = {}
    for _ in range(min(int(rng.integers(4, 7)), len(places))):
        free = [place for place in places if place not in chosen]
        label = rng.choice(honest or video.truth)
        showing = [place for place in free if shown[label][place]]
        pool = showing if showing and rng.random() < 0.5 else free
        chosen[int(rng.choice(pool))] = None

    lists = SegmentRatings([], [], [], [])
    confusing = {*video.truth, *video.decoys, *world.partner[video.truth].tolist()}
    wrong = [c for c in video.labels if c in misleading and c not in confusing]
    absent = np.array([c for c in range(config.num_classes) if c not in confusing], int)
    for place in chosen:
        start = place * schema.SEGMENT_FRAMES
        present = [
            c for c in video.truth if rng.random() < _RATED_SHARE or c in elsewhere
        ]
        present = present or [int(rng.choice(video.truth))]
        keys = world.log_frequencies[absent] + rng.gumbel(size=len(absent))
        others = absent[np.argsort(-keys)[:_RATED_ABSENT]]
        twins = [world.partner[c] for c in present if world.kinds[c] == "contextual"]
        rated = [*present, *map(int, twins), *others.tolist(), *wrong]
        for label in dict.fromkeys(rated):
            lists.labels.append(label)
            lists.starts.append(start)
            lists.ends.append(start + schema.SEGMENT_FRAMES)
            lists.scores.append(float(label in shown and shown[label][place]))
    return lists


def _misleading(config: SyntheticConfig, split: str, index: int) -> set[int]:
    """The classes that mislead about segments of a video if they are its labels."""
    if not config.misleading_labels:
        return set()
    rng = _video_generator(config, split, index, _MISLEADING_KEY)
    drawn = rng.random(config.num_classes) < config.misleading_labels
    return set(np.flatnonzero(drawn).tolist())


def _by_segment(frames: np.ndarray) -> np.ndarray:
    """Whether any frame is set in each segment: bool [T] to bool [ceil(T / 5)]."""
    padded = np.pad(frames, (0, -len(frames) % schema.SEGMENT_FRAMES))
    return padded.reshape(-1, schema.SEGMENT_FRAMES).any(axis=1)


def _split_number(split: str) -> int:
    if split not in SPLITS:
        raise UserError(f"Unknown split {split}. {near_matches(split, SPLITS)}")
    return SPLITS.index(split)


def _draw_classes(
    world: _World, rng: np.random.Generator, num_frames: int
) -> tuple[list[int], list[int]]:
    """The true labels of a video and its decoys.

    There are as many decoys as labels of kinds with decoys, drawn alike, and chance
    says which are which: neither their number nor their company tells.
    """
    config = world.config
    group = np.searchsorted(world.group_ends, rng.random())
    extra = config.labels_per_video - 1
    count = 1
    if extra:
        odds = _LABELS_SHAPE / (_LABELS_SHAPE + extra)
        count = min(1 + rng.negative_binomial(_LABELS_SHAPE, odds), _MAX_LABELS)

    # Sorting by log weight plus Gumbel noise samples without replacement.
    keys = world.log_frequencies + rng.gumbel(size=config.num_classes)
    keys[world.group == group] += world.log_bonus[group]
    keys[world.min_frames > num_frames] = -np.inf
    order = [c for c in np.argsort(-keys).tolist() if keys[c] > -np.inf]

    chosen: list[int] = []
    for label in order:
        if len(chosen) == count:
            break
        if world.partner[label] not in chosen:
            chosen.append(label)
    contested = [c for c in chosen if world.kinds[c] in DECOY_KINDS]
    rivals = (c for c in order if world.kinds[c] in DECOY_KINDS and c not in chosen)
    number = len(contested)
    contested += [c for c, _ in zip(rivals, range(number), strict=False)]
    rng.shuffle(contested)

    truth = contested[:number]
    for label in chosen:
        if world.partner[label] >= 0 and rng.random() < 0.5:
            label = int(world.partner[label])
        if world.kinds[label] not in DECOY_KINDS:
            truth.append(label)
    return truth, contested[number:]


def _imply(
    world: _World,
    rng: np.random.Generator,
    truth: list[int],
    decoys: list[int],
    num_frames: int,
) -> dict[int, float]:
    """The true labels and the classes they imply: their visibility by class."""
    visibility = dict.fromkeys(truth, 1.0)
    if not world.config.implied_labels:
        return visibility
    for label in truth:
        while rng.random() < world.config.implied_labels:
            label = int(world.above[label])
            # What contradicts what is shown, or cannot be shown, is not true.
            if label < 0 or label in decoys or world.partner[label] in visibility:
                break
            if world.min_frames[label] > num_frames:
                break
            visibility.setdefault(label, rng.random())
    return visibility


class _Evidence:
    """What a video shows: for each feature, classes and their sin(t) in each frame."""

    def __init__(self, world: _World, rng: np.random.Generator, num_frames: int):
        self.config, self.kinds, self.partner = world.config, world.kinds, world.partner
        self.rng, self.num_frames = rng, num_frames
        self.window = max(1, int(num_frames * self.config.window_share))
        self.classes: dict[str, list[int]] = {name: [] for name in world.scale}
        # Whose evidence it is, where directions are shared; -1 that of no class.
        self.owners: dict[str, list[int]] = {name: [] for name in world.scale}
        self.sines: dict[str, list[np.ndarray]] = {name: [] for name in world.scale}

    def show(
        self,
        label: int,
        decoy: bool = False,
        visibility: float = 1.0,
        in_part: bool = False,
    ):
        """Adds the evidence of class `label`, or of its decoy.

        `in_part` limits to a window what else lasts for the whole video.
        """
        window, self.visibility = self.window, visibility
        match self.kinds[label]:
            case "static" | "audio" as kind:
                feature = "rgb" if kind == "static" else "audio"
                if in_part:
                    self._add(feature, label, self._start(window), window)
                else:
                    self._add(feature, label, 0, self.num_frames)
            case "contextual":
                self._show_in_scene(label)
            case "brief":
                length = max(1, round(self.num_frames * self.config.brief_share))
                sines = self._add("rgb", label, self._start(length), length)
                if decoy:
                    sines[:] = sines.mean()
            case "ordered":
                first, second = self._two_starts()
                self._add("rgb", label, first, window)
                self._add("rgb", self.partner[label], second, window)
            case "joint":
                left_out = self.rng.choice(("rgb", "audio")) if decoy else None
                for feature in ("rgb", "audio"):
                    if feature != left_out:
                        self._add(feature, label, self._start(window), window)
            case "synchronous":
                rgb, audio = self.rng.permutation(self._two_starts())
                self._add("rgb", label, rgb, window)
                self._add("audio", label, audio if decoy else rgb, window)

    def _show_in_scene(self, label: int):
        """Along the pair's first direction, in a scene of either sign of the second."""
        first, second = sorted((label, int(self.partner[label])))
        length = min(self.window, self.num_frames // 4)
        start = self._start(length)
        self._add("rgb", first, start, length, owner=label)
        scene = self._add("rgb", second, 0, self.num_frames, owner=-1)
        scene[max(start - _SCENE_MARGIN, 0) : start + length + _SCENE_MARGIN] = 0
        if label == first:
            scene *= -1

    def _add(
        self,
        feature: str,
        label: int,
        start: int,
        length: int,
        owner: int | None = None,
    ) -> np.ndarray:
        """Evidence along a class's direction in `length` frames from `start` on.

        It is evidence of that class unless `owner` is another, or -1 for none.
        """
        low, high = _STRENGTHS[self.kinds[label]]
        strength = self.rng.uniform(low, high) * self.config.strength
        strength *= self.visibility
        if feature == "audio":
            strength *= _AUDIO_GAIN
        sines = np.zeros(self.num_frames, np.float32)
        sines[start : start + length] = strength
        self.classes[feature].append(label)
        self.owners[feature].append(label if owner is None else owner)
        self.sines[feature].append(sines)
        return sines

    def frames_of(self, label: int) -> np.ndarray:
        """Whether each frame has evidence along the class's own directions: bool [T].

        Of two ordered classes, the first seen and the second differ in this alone. A
        contextual class is where its evidence is, and not where its scene is.
        """
        shown = np.zeros(self.num_frames, bool)
        for feature, owners in self.owners.items():
            for owner, sines in zip(owners, self.sines[feature], strict=True):
                if owner == label:
                    shown |= sines > 0
        return shown

    def _start(self, length: int) -> int:
        return self.rng.integers(self.num_frames - length + 1)

    def _two_starts(self) -> tuple[int, int]:
        """Where two windows begin that follow one another."""
        spare = self.num_frames - 2 * self.window + 1
        first, second = np.sort(self.rng.integers(spare, size=2))
        return first, second + self.window


def _render(
    world: _World, rng: np.random.Generator, evidence: _Evidence
) -> dict[str, np.ndarray]:
    """The frames of a video: uint8 [T, size] of each feature."""
    scenes = draw_scenes(rng, evidence.num_frames)
    spread = _NORM_SPREAD * np.clip(rng.standard_normal(), -1.5, 1.5)
    features = {}
    for name, scale in world.scale.items():
        frames = _background(world, rng, name, scenes)
        directions = world.directions[name][evidence.classes[name]]
        sines = np.reshape(evidence.sines[name], (-1, len(frames))).T
        norm = _NORM * math.exp(spread) * float(np.linalg.norm(scale))
        _mix(frames, directions, sines.astype(np.float32), norm)
        features[name] = quantize(frames)
    return features


def _background(
    world: _World, rng: np.random.Generator, name: str, scenes: Scenes
) -> np.ndarray:
    """Frames without evidence, float32 [T, size], of any norm."""
    noise, scale = world.noise[name], world.scale[name]
    video = rng.standard_normal(scale.shape, np.float32) * _VIDEO_WEIGHT
    middles = rng.standard_normal((scenes.count, len(scale)), np.float32)
    middles = (video + middles * _SCENE_WEIGHT) * scale
    drift = noise[rng.integers(len(noise), size=scenes.count)] * _DRIFT_WEIGHT
    frames = scenes.drift(middles - drift, middles + drift)
    own = noise[rng.integers(len(noise), size=len(frames))]
    own *= np.float32(world.config.frame_noise)
    frames += own
    return frames


def _mix(frames: np.ndarray, directions: np.ndarray, sines: np.ndarray, norm: float):
    """Puts evidence into background, in place; every frame then has norm `norm`.

    Args:
        frames: the background, [T, size].
        directions: [K, size], linearly independent.
        sines: [T, K], the frame's unit vector's component along each direction, as
            far as directions are orthogonal.
    """
    # Directions of many classes are not orthogonal: go to a basis of their span.
    root = np.linalg.cholesky(directions @ directions.T)
    basis = np.linalg.inv(root) @ directions
    sines = sines @ root
    energy = np.sum(sines**2, axis=1, keepdims=True)
    sines *= np.sqrt(np.minimum(1.0, _MAX_ENERGY / np.maximum(energy, 1e-9)))
    energy = np.minimum(energy, _MAX_ENERGY)

    shadow = frames @ basis.T
    rest = np.einsum("td,td->t", frames, frames)[:, None] - np.sum(
        shadow**2, axis=1, keepdims=True
    )
    gain = np.sqrt((1 - energy) / rest)
    frames *= norm * gain
    frames += (norm * (sines - gain * shadow)) @ basis


def _corrupt(
    world: _World, rng: np.random.Generator, visibility: dict[int, float]
) -> list[int]:
    """The labels that are given, ascending: some missing, hidden or wrong."""
    config, truth = world.config, list(visibility)
    given = [c for c in truth if rng.random() >= config.missing_labels]
    if config.hidden_labels and given:
        seen = np.array([visibility[c] for c in given])
        chance = config.hidden_labels * (0.5 + world.overlooked[given]) * (1.5 - seen)
        margin = rng.random(len(given)) - chance
        # The last one left is the one that was hidden by the least.
        keep = margin >= min(0.0, margin.max())
        given = [c for c, kept in zip(given, keep, strict=True) if kept]
    odds = config.wrong_labels / (1 - config.wrong_labels)
    wrong = rng.poisson(len(given) * odds)
    keys = world.log_frequencies + rng.gumbel(size=config.num_classes)
    keys[truth] = -np.inf
    wrong = min(wrong, config.num_classes - len(truth))
    return sorted(given + np.argsort(-keys)[:wrong].tolist())


def write_dataset(
    config: SyntheticConfig,
    output_dir: str | os.PathLike,
    split: str = "train",
    num_videos: int = 1000,
    num_shards: int = 1,
    level: str = "frame",
    segments: bool = False,
) -> list[str]:
    """Writes videos 0 .. num_videos - 1 of a split, and `classes.csv`.

    Shards are named as the dataset names its own, `train0000.tfrecord` and so on.
    Video i goes to shard i modulo `num_shards`. Ids are unique over all splits; the
    last two characters name the shard. `classes.csv` holds Index and Kind.

    Args:
        output_dir: made if need be. Shards of the split that an earlier call wrote
            there are replaced.
        split: one of `SPLITS`; records of `test` have no labels, as in the dataset.
        level: `"frame"`, or `"video"` for the means of the same videos' frames.
        segments: whether to rate segments of the videos; of `test` none is.

    Returns:
        The paths of the shards.

    Raises:
        UserError: an argument out of range, a directory that cannot be written, or
            shards of the split in it that were not made here.
    """
    from yt8m.data.records import write_records

    if level not in ("frame", "video"):
        raise UserError(f"`level` must be frame or video, not {level!r}.")
    if segments and level != "frame":
        raise UserError("Only videos of level frame have segments.")
    _split_number(split)
    if not 1 <= num_shards <= MAX_SHARDS:
        raise UserError(f"`num_shards` must be in [1, {MAX_SHARDS}], not {num_shards}.")
    if not num_shards <= num_videos <= num_shards * MAX_VIDEOS_PER_SHARD:
        raise UserError(
            f"num_videos={num_videos} does not fit num_shards={num_shards}: a shard "
            f"holds 1 to {MAX_VIDEOS_PER_SHARD} videos."
        )
    output_dir = os.fspath(output_dir)
    paths = [
        os.path.join(output_dir, f"{split}{shard:04d}.tfrecord")
        for shard in range(num_shards)
    ]
    _clear(output_dir, split)
    _write_classes(config, os.path.join(output_dir, CLASSES_FILE))
    for shard, path in enumerate(paths):
        videos = range(shard, num_videos, num_shards)
        records = _records(config, split, shard, videos, level, segments)
        write_records(path, records)
    return paths


def _records(
    config: SyntheticConfig,
    split: str,
    shard: int,
    videos: range,
    level: str,
    segments: bool,
) -> Iterator[bytes]:
    from yt8m.data.records import encode_frame_record, encode_video_record

    for place, index in enumerate(videos):
        video = generate_video(config, split, index)
        video_id = _video_id(split, shard, place)
        labels = None if split == "test" else video.labels
        ratings = None
        if segments and split != "test":
            ratings = rate_segments(config, split, index, video)
        if level == "frame":
            yield encode_frame_record(
                video_id, video.features, labels, segments=ratings
            )
        else:
            means = {f"mean_{n}": frame_mean(f) for n, f in video.features.items()}
            yield encode_video_record(video_id, means, labels)


def _video_id(split: str, shard: int, place: int) -> str:
    """The id of the video at `place` of a shard.

    The last two characters number the shard in base 62, as in the dataset; the first
    two the place, thirdly apart for the three splits and stirred by a unit of the
    ring of integers modulo 62^2.
    """
    number = (place * len(SPLITS) + SPLITS.index(split)) * 1231 % MAX_SHARDS
    return "".join(
        _DIGITS[digit] for n in (number, shard) for digit in divmod(n, len(_DIGITS))
    )


def _clear(output_dir: str, split: str):
    """Makes the directory; removes shards of the split if they were made here."""
    import tensorflow as tf

    from yt8m import whole_files

    whole_files.make_directory(output_dir)
    shard = re.compile(rf"{split}\d{{4}}\.tfrecord")
    names = tf.io.gfile.listdir(output_dir)
    found = [name for name in sorted(names) if shard.fullmatch(name)]
    if found and not tf.io.gfile.exists(os.path.join(output_dir, CLASSES_FILE)):
        raise UserError(
            f"{os.path.join(output_dir, found[0])} was not made by this command "
            f"(there is no {CLASSES_FILE} beside it): choose another directory."
        )
    try:
        for name in found:
            tf.io.gfile.remove(os.path.join(output_dir, name))
    except (OSError, tf.errors.OpError) as e:
        raise UserError(f"{output_dir} cannot be cleared: {reason(e)}") from e


def _write_classes(config: SyntheticConfig, path: str):
    from yt8m import whole_files

    lines = ["Index,Kind"]
    lines += [f"{label},{config.kind_of(label)}" for label in range(config.num_classes)]
    whole_files.write_file(path, "\n".join(lines) + "\n")
