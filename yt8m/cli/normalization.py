"""Fits a global normalisation to video-level shards: the mean and a PCA.

    yt8m normalization --input_data_pattern='train*.tfrecord' \\
        --feature_names=mean_rgb --output_file=/tmp/normalization.npz
    python train.py --model=MoeModel --feature_names=mean_rgb \\
        --model_args=normalization=/tmp/normalization.npz \\
        --train_data_pattern='train*.tfrecord'

Models then subtract the mean, whiten by the PCA and L2-normalise; they keep the numbers
in their checkpoints and need the file no more.
"""

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared
from yt8m.errors import UserError

LOCAL = ("output_file",)


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "input_data_pattern", "", "Video-level shards: globs.", flag_values=flags
    )
    shared.features(flags, "mean_rgb,mean_audio", None)
    absl_flags.DEFINE_string(
        "output_file", None, "The file to write (.npz).", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "components",
        None,
        "Principal components to keep (default: all).",
        1,
        flag_values=flags,
    )
    shared.bad_records(flags)


def run(flags: shared.FlagValues) -> int:
    import numpy as np

    from yt8m.config import DataConfig
    from yt8m.data import pipeline, whitening
    from yt8m.progress import Progress

    shared.require(flags, "input_data_pattern", "No data to fit")
    shared.require(flags, "output_file", "No file to write")
    files = pipeline.list_files(flags.input_data_pattern, "--input_data_pattern")
    shared.prepare_output(flags, "output_file", files)
    features = shared.parse_features(flags.feature_names, flags.feature_sizes)
    if (flags.components or 0) > sum(features.values()):
        raise UserError(
            f"--components={flags.components} is more than the {sum(features.values())}"
            " values of the features."
        )
    reader = shared.reader(
        flags,
        "input_data_pattern",
        DataConfig("video", features, num_classes=schema.MOST_CLASSES),
        wanted_by="a normalisation",
        batch_size=1024,
    )
    with Progress(total=reader.num_examples) as progress:

        def batches():
            for batch, _ in reader.batches():
                x = np.concatenate([batch[name] for name in features], axis=1)
                progress.update(len(x))
                yield x

        moments = whitening.fit(batches(), sum(features.values()))
    whitening.save(flags.output_file, moments, flags.components)
    print(f"Normalisation of {moments.count:,} videos written: {flags.output_file}")
    return 0
