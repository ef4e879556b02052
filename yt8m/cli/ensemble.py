"""Combines the predictions of several models: means, learned weights, boosted trees.

    yt8m ensemble --sources=a.predictions,b.predictions,c.csv \\
        --output_file=submission.csv

A source is what `inference.py` wrote, a submission or a folder of stored predictions
(--output_file=NAME.predictions, which keeps more classes of each video); all must be of
the same videos. --method:

    mean        the weighted mean of the probabilities
    geometric   the normalised geometric mean, which is the mean of the logits
    rank        the mean of the ranks among all pairs of a source
    lightgbm    trees over all sources' scores (pip install -e .[ensemble])
    attention   the mean of the probabilities, weighted by class and video

Weights are given, or learned on videos whose labels the models never saw, by their GAP:
--held_out_sources are the same models' predictions of those videos, in the same order.

    yt8m ensemble --sources=test_a.csv,test_b.csv --output_file=submission.csv \\
        --learn_weights=greedy --labels='validate*.tfrecord' \\
        --held_out_sources=validate_a.predictions,validate_b.predictions

Rankings of segments, which `inference.py --segment_labels --output_format=tfrecord`
writes, are combined by the mean of the probabilities; what is written is the submission
of 2019, or, if its name ends in .tfrecord, such a ranking again:

    yt8m ensemble --sources=a.tfrecord,b.tfrecord --output_file=segments.csv

export_model.py --train_dir=RUN1,RUN2 makes one SavedModel of several runs.
"""

from typing import Any

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared
from yt8m.errors import UserError

_STORED_OF_A_VIDEO = 100
# Methods that learn a model of their own, on other videos than they combine.
_STACKED = ("lightgbm", "attention")


def define(flags: shared.FlagValues) -> None:
    string = absl_flags.DEFINE_string
    string(
        "sources",
        "",
        "Submissions, or folders of predictions, separated by commas; or rankings of "
        "segments.",
        flag_values=flags,
    )
    string(
        "output_file",
        "",
        "The submission to write, gzipped if it ends in .gz; or a folder of "
        "predictions, if it ends in .predictions.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "method",
        "mean",
        ["mean", "geometric", "rank", *_STACKED],
        "How the sources are combined.",
        flag_values=flags,
    )
    shared.weights(flags, "sources")
    absl_flags.DEFINE_enum(
        "learn_weights",
        None,
        ["search", "greedy"],
        "Learns the weights: by steps from equal ones, or by forward selection with "
        "replacement. Both raise the GAP.",
        flag_values=flags,
    )
    string(
        "labels",
        "",
        "The labels to learn from: globs of shards, or of tables, as `yt8m score` "
        "takes them.",
        flag_values=flags,
    )
    string(
        "held_out_sources",
        "",
        "What to learn on: the same models' predictions of videos with labels, in the "
        "order of --sources (default, for weights: --sources).",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "learn_videos",
        20_000,
        "Videos to learn on at most; of more, so many are taken evenly.",
        1,
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "floor",
        1e-4,
        "The least probability in the geometric mean, and that of a class that a "
        "source does not name.",
        1e-7,
        0.5,
        flag_values=flags,
    )
    string(
        "lightgbm_args",
        "",
        "Arguments of LightGBM, as name=value,name=value: num_iterations, "
        "learning_rate, num_leaves, ...",
        flag_values=flags,
    )
    string(
        "attention_args",
        "",
        "Of --method=attention, as name=value,name=value: rank, learning_rate, "
        "num_epochs, l2_penalty.",
        flag_values=flags,
    )
    shared.top_k(
        flags,
        "Predictions written for each video (in a folder of predictions "
        f"{_STORED_OF_A_VIDEO} unless given), and those that GAP and ranks look at.",
    )
    absl_flags.DEFINE_integer(
        "num_classes", schema.NUM_CLASSES, "Number of classes.", 1, flag_values=flags
    )
    shared.segment_max_pred(flags)


def run(flags: shared.FlagValues) -> int:
    from yt8m.data.predictions import ENDING
    from yt8m.ensemble.output import write_combined
    from yt8m.ensemble.sources import open_sources
    from yt8m.progress import Progress

    shared.require(flags, "sources", "Nothing to combine")
    shared.require(flags, "output_file", "No file to write")
    paths = _paths(flags.sources)
    weights = check(flags, paths)
    inputs = [*paths, *_paths(flags.held_out_sources)]
    shared.prepare_output(flags, "output_file", inputs)
    if _are_rankings(flags, paths):
        return _average_rankings(flags, paths, weights)
    sources = open_sources(paths, flags.num_classes)
    if flags.method == "lightgbm":
        blocks = _boosted(flags, sources)
    elif flags.method == "attention":
        blocks = _attended(flags, sources)
    else:
        blocks = _weighted(flags, sources, weights)
    stored = flags.output_file.endswith(ENDING) and not shared.given(flags, "top_k")
    with Progress(total=len(sources[0])) as progress:
        count = write_combined(
            blocks,
            flags.output_file,
            flags.num_classes,
            _STORED_OF_A_VIDEO if stored else flags.top_k,
            written_by=f"{flags.method} of {flags.sources}",
            progress=progress,
        )
    print(f"{count:,} videos from {len(sources)} sources: {flags.output_file}")
    return 0


def learns(flags: shared.FlagValues) -> bool:
    """Whether labels are learned from."""
    return bool(flags.learn_weights) or flags.method in _STACKED


def check(flags: shared.FlagValues, paths: list[str]) -> list[float] | None:
    """The weights of `paths`, if they are given; nothing is read.

    Raises:
        UserError: flags that make no sense together, or arguments of a method that it
            does not know.
    """
    _refuse_contradictions(flags, paths)
    if flags.method == "lightgbm":
        from yt8m.ensemble import boosting

        args = shared.parse_arguments(flags.lightgbm_args, "--lightgbm_args")
        boosting.checked_args(args)
    elif flags.method == "attention":
        from yt8m.ensemble import attention

        args = shared.parse_arguments(flags.attention_args, "--attention_args")
        attention.checked_args(args)
    return shared.parse_weights(flags, len(paths))


def _paths(text: str) -> list[str]:
    return [path for path in map(str.strip, text.split(",")) if path]


def _are_rankings(flags: shared.FlagValues, paths: list[str]) -> bool:
    """Whether the sources are rankings of segments.

    Raises:
        UserError: some are, or flags that make no sense for what they are.
    """
    import os

    from yt8m.inference.segments import is_ranking, is_segment_submission

    files = [path for path in paths if not os.path.isdir(path)]
    rankings = [path for path in files if is_ranking(path)]
    if not rankings:
        for path in filter(is_segment_submission, files):
            raise UserError(
                f"{path} has no scores that could be averaged; combine what "
                "`inference.py --output_format=tfrecord` writes."
            )
        if shared.given(flags, "segment_max_pred"):
            raise UserError("--segment_max_pred is given, but no source has segments.")
        return False
    if len(rankings) < len(paths):
        other = next(path for path in paths if path not in rankings)
        raise UserError(
            f"{rankings[0]} is a ranking of segments and {other} is none; combine "
            "sources of one kind."
        )
    for name in ("method", "learn_weights", "top_k", "num_classes"):
        if shared.given(flags, name) and flags[name].value not in ("mean", None):
            raise UserError(
                f"--{name}={flags[name].value} is of videos: rankings of segments are "
                "combined by the mean of their probabilities; leave it out."
            )
    return True


def _average_rankings(flags: shared.FlagValues, paths: list[str], weights: Any) -> int:
    from yt8m.ensemble.segment_rankings import average_rankings

    weights = weights or [1 / len(paths)] * len(paths)
    ranking = average_rankings(paths, weights, flags.segment_max_pred)
    if flags.output_file.endswith(".tfrecord"):
        ranking.write(flags.output_file)
    else:
        ranking.write_csv(flags.output_file)
    print(
        f"{ranking.num_segments:,} segments from {len(paths)} sources: "
        f"{flags.output_file}"
    )
    return 0


def _refuse_contradictions(flags: shared.FlagValues, paths: list[str]) -> None:
    """Raises `UserError` for flags that make no sense together."""

    def refuse(wrong: bool, text: str) -> None:
        if wrong:
            raise UserError(text)

    stacked = flags.method in _STACKED
    refuse(
        stacked and bool(flags.learn_weights or flags.weights),
        f"--method={flags.method} has no such weights: leave out --weights and "
        "--learn_weights.",
    )
    refuse(
        bool(flags.weights and flags.learn_weights),
        "--weights and --learn_weights both set the weights; give one.",
    )
    refuse(learns(flags) and not flags.labels, "Nothing to learn from: give --labels.")
    refuse(
        stacked and not flags.held_out_sources,
        f"--method={flags.method} needs --held_out_sources: on the videos that it "
        "learns from, it knows the labels.",
    )
    for name in ("labels", "held_out_sources", "learn_videos"):
        refuse(
            shared.given(flags, name) and not learns(flags),
            f"--{name} is for learning: give --learn_weights, or one of "
            f"--method={', '.join(_STACKED)}.",
        )
    for name, method in (
        ("floor", "geometric"),
        *((f"{method}_args", method) for method in _STACKED),
    ):
        refuse(
            shared.given(flags, name) and flags.method != method,
            f"--{name} is of --method={method}.",
        )
    held_out = _paths(flags.held_out_sources)
    refuse(
        bool(held_out) and len(held_out) != len(paths),
        f"--held_out_sources are {len(held_out)}, --sources {len(paths)}: give the "
        "same models' predictions in the same order.",
    )
    refuse(
        flags.output_file in (*paths, *held_out),
        f"--output_file={flags.output_file} is also a source; choose another name.",
    )


def _combination(flags: shared.FlagValues, sources: list[Any]) -> Any:
    from yt8m.ensemble.combination import Combination

    return Combination(flags.method, sources, flags.floor, flags.top_k)


def _candidates(flags: shared.FlagValues, sources: list[Any], score: Any) -> Any:
    from yt8m.ensemble.candidates import collect
    from yt8m.inference.scoring import read_ground_truth

    truth = read_ground_truth(flags.labels, flags.num_classes)
    return collect(sources, truth, score, flags.top_k, flags.learn_videos)


def _held_out(flags: shared.FlagValues, sources: list[Any]) -> list[Any]:
    from yt8m.ensemble.sources import open_sources

    paths = _paths(flags.held_out_sources)
    return open_sources(paths, flags.num_classes) if paths else sources


def _weighted(flags: shared.FlagValues, sources: list[Any], weights: Any) -> Any:
    """The blocks of a mean; says what was learned."""
    import numpy as np

    from yt8m.ensemble.weights import LEARNERS

    combination = _combination(flags, sources)
    weights = np.array(weights or [1 / len(sources)] * len(sources))
    if flags.learn_weights:
        held_out = _held_out(flags, sources)
        learned = combination
        if held_out is not sources:
            learned = _combination(flags, held_out)
        candidates = _candidates(flags, held_out, learned.scores)
        for source, one in zip(held_out, np.eye(len(held_out)), strict=True):
            print(f"GAP {candidates.gap(one):.5f} {source.path}")
        print(f"GAP {candidates.gap(weights):.5f} with equal weights")
        weights = LEARNERS[flags.learn_weights](candidates)
        text = ",".join(f"{w:.6g}" for w in weights)
        print(
            f"GAP {candidates.gap(weights):.5f} of {candidates.num_videos:,} videos "
            f"with --weights={text}"
        )
    return combination.blocks(weights)


def _boosted(flags: shared.FlagValues, sources: list[Any]) -> Any:
    """The blocks of boosted trees."""
    from yt8m.ensemble.boosting import BoostedTrees, first_level_score

    args = shared.parse_arguments(flags.lightgbm_args, "--lightgbm_args")
    candidates = _candidates(flags, _held_out(flags, sources), first_level_score)
    return BoostedTrees(candidates, args).blocks(sources)


def _attended(flags: shared.FlagValues, sources: list[Any]) -> Any:
    """The blocks of a mean whose weights depend on class and video; says the gain."""
    from yt8m.ensemble.attention import AttentionStacking, first_level_score

    args = shared.parse_arguments(flags.attention_args, "--attention_args")
    candidates = _candidates(flags, _held_out(flags, sources), first_level_score)
    stacking = AttentionStacking(candidates, flags.num_classes, args)
    gaps = stacking.gaps
    print(
        f"On the fifth of the videos that was not learned from, GAP of candidates "
        f"{gaps[0]:.5f} with equal weights, {max(gaps):.5f} after epoch "
        f"{gaps.index(max(gaps))}"
    )
    return stacking.blocks(sources)
