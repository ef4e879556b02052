"""Makes video-level shards of frame-level ones: statistics of each video's frames.

    yt8m statistics --input_data_pattern='train*.tfrecord' --output_dir=/tmp/stats
    python train.py --model=MoeModel --train_data_pattern='/tmp/stats/*.tfrecord' \\
        --feature_names=mean_rgb,std_rgb,num_frames --feature_sizes=1024,1024,1

Run again after a stop, it goes on with the shards that are missing.
"""

import os

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    shared.output_dir(flags, "Where to write the shards, under the same names.")
    absl_flags.DEFINE_string(
        "input_data_pattern", "", "Frame-level shards: globs.", flag_values=flags
    )
    absl_flags.DEFINE_list(
        "statistics",
        ["mean", "std", "top5"],
        "Of each dimension: mean, std, min, max, median, mode, topK (the K greatest "
        "values, as topk 1 to K).",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "max_frames",
        schema.MAX_FRAMES,
        "Frames of a video beyond this many are left out.",
        1,
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "undo_pca",
        None,
        "A directory with the dataset's mean.npy, eigenvals.npy and eigenvecs.npy: the "
        "PCA of rgb is undone first.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "centroids",
        None,
        "A file of `yt8m clusters`: statistics of the centroids nearest to the frames, "
        "each taken once.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "num_workers",
        None,
        "Processes (default: the number of CPUs).",
        1,
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import whole_files
    from yt8m.data import pipeline, statistics
    from yt8m.data.clusters import Centroids

    shared.require(flags, "input_data_pattern", "No frame-level data")
    shared.require(flags, "output_dir", "No directory to write")
    settings = statistics.Settings(
        statistics=tuple(flags.statistics),
        max_frames=flags.max_frames,
        undo_pca=flags.undo_pca,
        centroids=flags.centroids,
    )
    # Wrong files are refused before any process starts.
    if settings.undo_pca:
        statistics.Pca(settings.undo_pca)
    if settings.centroids:
        Centroids.load(settings.centroids)
    files = pipeline.list_files(flags.input_data_pattern, "--input_data_pattern")
    whole_files.make_directory(flags.output_dir)
    workers = flags.num_workers or os.cpu_count() or 1
    paths = statistics.write_statistics(files, flags.output_dir, settings, workers)
    from yt8m.data.files import sniff_first

    sizes = {n: size for n, (_, size) in sniff_first(paths)[1].features.items()}
    print(f"{len(paths)} video-level shards: {paths[0]}, ...")
    print(f"--feature_names={','.join(sizes)}")
    print(f"--feature_sizes={','.join(str(s) for s in sizes.values())}")
    return 0
