"""Turns predictions in JSON lines, as a prediction service writes them, into a CSV.

    yt8m convert-predictions --csv_output_file=submission.csv \\
        --json_prediction_files_pattern='batch/prediction.results-*'

A line holds video_id, class_indexes and predictions of one video, as the signature
serve_examples of an export answers; Vertex AI's {"instance": ..., "prediction": ...}
is taken too. The CSV is the submission of 2017 and 2018, best class first.
"""

from absl import flags as absl_flags

from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "json_prediction_files_pattern",
        "",
        "Files of JSON lines: globs; written in the order of their numbers.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "csv_output_file",
        "",
        "The CSV file to write; gzipped if it ends in .gz.",
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m.data import files
    from yt8m.inference import json_predictions

    shared.require(flags, "json_prediction_files_pattern", "No files to convert")
    shared.require(flags, "csv_output_file", "No file to write")
    paths = files.list_files(
        flags.json_prediction_files_pattern, "--json_prediction_files_pattern"
    )
    shared.prepare_output(flags, "csv_output_file", paths)
    count = json_predictions.convert(paths, flags.csv_output_file)
    print(f"{count} videos of {len(paths)} files: {flags.csv_output_file}")
    return 0
