"""Joins video-level records by id: the embeddings of several models, side by side.

    inference.py --train_dir=runs/a --output=embeddings --output_file=a.tfrecord ...
    inference.py --train_dir=runs/b --output=embeddings --output_file=b.tfrecord ...
    yt8m join --input_files=a.tfrecord --input_files=b.tfrecord --output_dir=joined
    train.py --model=MoeModel --train_data_pattern='joined/*.tfrecord' \\
        --feature_names=embedding_0,embedding_1 --feature_sizes=1024,1024 ...

These two flags are printed, and written to features.flags beside the shards, so that
--flagfile=joined/features.flags says the same.

Each --input_files is one input: globs, separated by commas. The files of the first are
written anew, under their names, with the features of all inputs; a feature that several
have gets the number of its input. So the dataset's own mean_rgb and mean_audio can be
joined to embeddings, too.
"""

import logging
import os

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.errors import UserError

log = logging.getLogger("yt8m")

FLAGS_FILE = "features.flags"


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_multi_string(
        "input_files",
        None,
        "The files of an input: globs, separated by commas; given once for each input.",
        flag_values=flags,
    )
    shared.output_dir(flags, "Where to write the joined shards.")
    absl_flags.DEFINE_enum(
        "on_missing",
        "fail",
        ["fail", "skip"],
        "What to do about a video that another input lacks: stop and name it, or leave "
        "it out, count and report it.",
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import whole_files
    from yt8m.data import joining
    from yt8m.data.files import list_files

    if len(flags.input_files or []) < 2:
        raise UserError("Give --input_files twice at least: once for each input.")
    shared.require(flags, "output_dir", "No directory to write")
    inputs = [list_files(pattern, "--input_files") for pattern in flags.input_files]
    whole_files.make_directory(flags.output_dir)
    joined = joining.join_records(
        inputs, flags.output_dir, skip_missing=flags.on_missing == "skip"
    )
    if joined.missing:
        log.warning("%d video(s) were left out: an input lacks them.", joined.missing)
    print(f"{joined.count:,} records in {len(joined.paths)} shards: {joined.paths[0]}")
    lines = (
        f"--feature_names={','.join(joined.features)}",
        f"--feature_sizes={','.join(map(str, joined.features.values()))}",
    )
    path = os.path.join(flags.output_dir, FLAGS_FILE)
    whole_files.write_file(path, "\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0
