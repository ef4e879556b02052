"""Turns video-level shards into frame-level ones with the same ids and labels.

    yt8m expand --input_data_pattern='validate00*.tfrecord' --output_dir=/tmp/frames

The frames vary, and their dequantised mean is the record's: frame models can be tried
on real labels without 1.5 TB of frames.
"""

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    shared.output_dir(flags, "Where to write the shards, under the same names.")
    absl_flags.DEFINE_string(
        "input_data_pattern", "", "Video-level shards: globs.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "max_frames",
        schema.MAX_FRAMES,
        "The longest video, in frames.",
        1,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer("seed", 0, "Seed of the frames.", flag_values=flags)


def run(flags: shared.FlagValues) -> int:
    from yt8m import whole_files
    from yt8m.data import expansion, pipeline

    shared.require(flags, "input_data_pattern", "No data to expand")
    shared.require(flags, "output_dir", "No directory to write")
    files = pipeline.list_files(flags.input_data_pattern, "--input_data_pattern")
    whole_files.make_directory(flags.output_dir)
    paths = expansion.expand(
        files, flags.output_dir, max_frames=flags.max_frames, seed=flags.seed
    )
    print(f"{len(paths)} frame-level shards written: {paths[0]}, ...")
    return 0
