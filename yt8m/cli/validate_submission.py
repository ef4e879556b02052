"""Checks a submission file line by line, and its ids against shards if given.

    yt8m validate-submission submission.csv --input_data_pattern='test*.tfrecord'

Prints what is wrong, with line numbers; the exit status is 1 if anything is.
"""

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared

POSITIONAL = ("the submission file",)


def define(flags: shared.FlagValues) -> None:
    shared.top_k(flags, "Most predictions of a video.")
    absl_flags.DEFINE_integer(
        "num_classes", schema.NUM_CLASSES, "Number of classes.", 1, flag_values=flags
    )
    absl_flags.DEFINE_string(
        "input_data_pattern",
        "",
        "Shards whose videos must all be in the file, and no others.",
        flag_values=flags,
    )


def run(flags: shared.FlagValues, path: str) -> int:
    from yt8m.data import pipeline
    from yt8m.inference import submission

    ids = None
    if flags.input_data_pattern:
        pattern = flags.input_data_pattern
        ids = submission.read_ids(pipeline.list_files(pattern, "--input_data_pattern"))
    report = submission.validate(
        path, num_classes=flags.num_classes, top_k=flags.top_k, ids=ids
    )
    for problem in report.problems:
        print(problem)
    if report.ok:
        against = " and complete" if ids else ""
        print(f"{path}: {report.count:,} videos, well formed{against}.")
    return 0 if report.ok else 1
