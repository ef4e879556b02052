"""Writes embedded data: seeded, learnable shards in the dataset's own format.

    yt8m synthesize --output_dir=/tmp/data/train --num_videos=2000
    yt8m synthesize --output_dir=/tmp/data/test --num_videos=500 --split=test

Splits of one seed hold different videos of the same classes. classes.csv, beside the
shards, tells each class's kind. With --segments, about five segments of each video
are rated, as in the validation set of 2019; those of the test split are not.

Hard segments: classes that need the rest of the video, labels that mislead, and another
vocabulary to which a model of the first is transferred:

    yt8m synthesize --output_dir=/tmp/data/hard --segments --max_frames=100 \\
        --kinds=static,brief,contextual --num_classes=24 --misleading_labels=0.3
    yt8m synthesize --output_dir=/tmp/data/other --segments --max_frames=100 \\
        --kinds=static,brief,contextual --num_classes=24 --vocabulary_seed=1
"""

from absl import flags as absl_flags

from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    from yt8m.data.synthetic import KINDS, MORE_KINDS, SPLITS, SyntheticConfig

    default = SyntheticConfig()

    def number(name, help, kind=absl_flags.DEFINE_float):
        kind(name, getattr(default, name), help, flag_values=flags)

    shared.output_dir(flags, "Where to write the shards.")
    absl_flags.DEFINE_enum("split", "train", SPLITS, "Which videos.", flag_values=flags)
    absl_flags.DEFINE_enum(
        "level",
        "frame",
        ["frame", "video"],
        "Frames or their means.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "segments", False, "Add rated segments of 5 frames.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "num_videos", 1000, "Number of videos.", 1, flag_values=flags
    )
    absl_flags.DEFINE_integer("num_shards", 4, "Number of files.", 1, flag_values=flags)
    absl_flags.DEFINE_list(
        "kinds",
        list(default.kinds),
        f"Kinds of classes, in equal shares: {', '.join(KINDS | MORE_KINDS)}.",
        flag_values=flags,
    )
    shared.features(flags, "rgb,audio", "1024,128")
    for name, help in (
        ("seed", "Seed of everything random."),
        ("num_classes", "Number of classes."),
        ("max_frames", "The longest video, in frames."),
        (
            "vocabulary_seed",
            "0, or another dataset: as many other classes that show what those of "
            "dataset 0 show, newly combined.",
        ),
    ):
        number(name, help, absl_flags.DEFINE_integer)
    for name, help in (
        ("labels_per_video", "Mean number of true labels of a video."),
        ("zipf_exponent", "Of the class frequencies; 0 makes all equal."),
        ("co_occurrence", "Share of a video's labels from one group of classes."),
        ("strength", "Factor on all evidence; less is harder."),
        ("brief_share", "Share of the frames that show a brief class."),
        ("window_share", "Share of the frames in an ordered, joint, ... window."),
        ("frame_noise", "Weight of what is a frame's own."),
        ("missing_labels", "Probability that a true label is not given."),
        ("wrong_labels", "Expected share of the given labels that are wrong."),
        ("implied_labels", "Probability that a label implies the one above it."),
        ("hidden_labels", "Share of true labels hidden, most often faint ones."),
        (
            "misleading_labels",
            "Probability that a label of a video is one that none of its rated "
            "segments shows.",
        ),
    ):
        number(name, help)


def run(flags: shared.FlagValues) -> int:
    from yt8m import whole_files
    from yt8m.data import synthetic

    shared.require(flags, "output_dir", "No directory to write")
    names = synthetic.SyntheticConfig.__dataclass_fields__
    values = {n: flags[n].value for n in names if n not in ("kinds", "features")}
    config = synthetic.SyntheticConfig(
        kinds=tuple(flags.kinds),
        features=shared.parse_features(flags.feature_names, flags.feature_sizes),
        **values,
    )
    whole_files.make_directory(flags.output_dir)
    paths = synthetic.write_dataset(
        config,
        flags.output_dir,
        split=flags.split,
        num_videos=flags.num_videos,
        num_shards=flags.num_shards,
        level=flags.level,
        segments=flags.segments,
    )
    print(
        f"{flags.num_videos} {flags.level}-level videos of {config.num_classes} "
        f"classes in {len(paths)} shards: {paths[0]}, ..."
    )
    return 0
