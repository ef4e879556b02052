"""Predicts the labels of shards and writes a Kaggle submission.

    python inference.py --train_dir=/tmp/netvlad \\
        --input_data_pattern='test*.tfrecord' --output_file=submission.csv
"""

from absl import flags as absl_flags

from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(flags)
    shared.checkpoint(flags)
    shared.batch_size(flags, 512, "Videos in a batch; does not change the result.")
    shared.bad_records(flags)
    shared.top_k(flags, "Predictions written for each video.")
    absl_flags.DEFINE_string(
        "saved_model",
        None,
        "Directory of an exported model, to be used instead of --train_dir.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "input_data_pattern", "", "Shards to predict: globs.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "output_file",
        "",
        "The CSV file to write; gzipped if it ends in .gz.",
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import runs
    from yt8m.inference import predict

    shared.require(flags, "input_data_pattern", "No data to predict")
    shared.require(flags, "output_file", "No file to write")
    if flags.saved_model:
        source = predict.load_saved_model(flags.saved_model)
        data, model, origin = source.config, source, flags.saved_model
    else:
        run = runs.load_run(flags.train_dir.rstrip("/"), flags.checkpoint)
        data, model, origin = run.config.data, run.model, run.checkpoint.path
    reader = shared.reader(
        flags,
        "input_data_pattern",
        data,
        wanted_by=origin,
        batch_size=flags.batch_size,
    )
    count = predict.predict(model, reader, flags.output_file, top_k=flags.top_k)
    shared.report_left_out(reader)
    print(f"{count} videos predicted by {origin}: {flags.output_file}")
    return 0
