"""Checks a submission file line by line, and its ids against shards if given.

    yt8m validate-submission submission.csv --input_data_pattern='test*.tfrecord'

The first line tells a submission of segments from one of videos. Prints what is wrong,
with line numbers; the exit status is 1 if anything is.
"""

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared
from yt8m.errors import UserError

POSITIONAL = ("the submission file",)

_OF_VIDEOS = ("top_k", "num_classes")
_OF_SEGMENTS = ("segment_max_pred", "segment_label_ids_file")


def define(flags: shared.FlagValues) -> None:
    shared.top_k(flags, "Most predictions of a video.")
    absl_flags.DEFINE_integer(
        "num_classes", schema.NUM_CLASSES, "Number of classes.", 1, flag_values=flags
    )
    absl_flags.DEFINE_string(
        "input_data_pattern",
        "",
        "Shards whose videos must all be in the file, and no others; of segments, "
        "those whose videos may be.",
        flag_values=flags,
    )
    shared.segment_max_pred(flags)
    shared.segment_label_ids_file(flags, "of segments that may be there", "any")


def run(flags: shared.FlagValues, path: str) -> int:
    from yt8m.data import pipeline
    from yt8m.data.segments import load_class_ids
    from yt8m.inference import segments, submission

    of_segments = segments.is_segment_submission(path)
    for name in _OF_VIDEOS if of_segments else _OF_SEGMENTS:
        if shared.given(flags, name):
            kind = "segments" if of_segments else "videos"
            raise UserError(
                f"--{name} is of no use for {path}, a submission of {kind}."
            )
    ids = None
    if flags.input_data_pattern:
        pattern = flags.input_data_pattern
        ids = submission.read_ids(pipeline.list_files(pattern, "--input_data_pattern"))
    if of_segments:
        listed = flags.segment_label_ids_file
        report = segments.validate_segments(
            path,
            classes=load_class_ids(listed).tolist() if listed else None,
            limit=flags.segment_max_pred,
            ids=ids,
        )
        done = f"{report.count:,} classes, well formed"
    else:
        report = submission.validate(
            path, num_classes=flags.num_classes, top_k=flags.top_k, ids=ids
        )
        done = f"{report.count:,} videos, well formed"
        done += " and complete" if ids else ""
    for problem in report.problems:
        print(problem)
    if report.ok:
        print(f"{path}: {done}.")
    return 0 if report.ok else 1
