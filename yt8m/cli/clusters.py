"""Finds centroids of frames by mini-batch k-means (needs the extra `clusters`).

    yt8m clusters --input_data_pattern='train*.tfrecord' --clusters=10000 \\
        --output_file=/tmp/centroids.npz
    yt8m statistics --centroids=/tmp/centroids.npz --statistics=mean,std,max \\
        --input_data_pattern='train*.tfrecord' --output_dir=/tmp/statistics
"""

from absl import flags as absl_flags

from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "input_data_pattern", "", "Frame-level shards: globs.", flag_values=flags
    )
    shared.features(flags, "rgb,audio", None)
    absl_flags.DEFINE_string(
        "output_file", None, "The file to write (.npz).", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "clusters", 10_000, "Centroids to find.", 1, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "frames_per_video",
        10,
        "Frames drawn at random from each video; 0 takes all.",
        0,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer("seed", 0, "Seed of the draws.", 0, flag_values=flags)


def run(flags: shared.FlagValues) -> int:
    from yt8m.data import clusters, pipeline

    shared.require(flags, "input_data_pattern", "No frame-level data")
    shared.require(flags, "output_file", "No file to write")
    files = pipeline.list_files(flags.input_data_pattern, "--input_data_pattern")
    shared.prepare_output(flags, "output_file", files)
    features = shared.parse_features(flags.feature_names, flags.feature_sizes)
    found = clusters.fit(
        files, features, flags.clusters, flags.frames_per_video, flags.seed
    )
    found.save(flags.output_file)
    print(f"{len(found.values):,} centroids written: {flags.output_file}")
    return 0
