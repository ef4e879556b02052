"""Scores any Kaggle 2017 or 2018 submission against shards or a table of labels.

    yt8m score submission.csv --labels='validate*.tfrecord'
    yt8m score validate.predictions --labels='validate*.tfrecord'

Prints GAP@k, Hit@1, Hit@5, PERR and the starter code's mAP@k. The true mAP is not
among them: it needs the scores of all classes, and a submission holds only the best of
each video; `eval.py` computes it.

A video without a line counts as one without predictions, so that its labels count as
missed; lines of videos that are not among the labels are left out. Both are reported.
"""

import json
import logging

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared
from yt8m.errors import UserError

log = logging.getLogger("yt8m")

POSITIONAL = ("the submission file",)


def define(flags: shared.FlagValues) -> None:
    string = absl_flags.DEFINE_string
    string(
        "labels",
        "",
        "The truth: globs of shards of either level, or of tables (.csv, .csv.gz) of "
        "ids and labels, as in `xv4a,3 12 1071`, with or without a header.",
        flag_values=flags,
    )
    shared.top_k(flags, "Predictions of a video that are scored, the best of its line.")
    absl_flags.DEFINE_integer(
        "num_classes", schema.NUM_CLASSES, "Number of classes.", 1, flag_values=flags
    )
    shared.vocabulary(
        flags,
        "A vocabulary.csv, label_names.csv or label map: the classes' names for "
        "--per_class and, if it has verticals, their metrics in --output_file.",
    )
    string(
        "per_class",
        "",
        "A CSV file to write: each class's positives and average precision.",
        flag_values=flags,
    )
    string(
        "output_file", "", "A JSON file to write: all the metrics.", flag_values=flags
    )


def run(flags: shared.FlagValues, path: str) -> int:
    from yt8m import whole_files
    from yt8m.data.files import list_files
    from yt8m.data.vocabulary import load_vocabulary
    from yt8m.inference import scoring

    shared.require(flags, "labels", "No truth to score against")
    if flags.vocabulary and not (flags.per_class or flags.output_file):
        raise UserError(
            "--vocabulary is for --per_class and --output_file: give one of these."
        )
    for name in ("output_file", "per_class"):
        inputs = [path, flags.vocabulary, *list_files(flags.labels, "--labels")]
        shared.prepare_output(flags, name, inputs)
    vocabulary = load_vocabulary(flags.vocabulary) if flags.vocabulary else None
    result = scoring.score_submission(
        path,
        flags.labels,
        top_k=flags.top_k,
        num_classes=flags.num_classes,
        verticals=vocabulary.verticals if vocabulary else None,
        per_class=True,
    )
    print(scoring.summary_line(result))
    for count, what in (
        (result["missing_videos"], "of the labels are missing in it: all missed"),
        (result["unknown_videos"], "of it are not among the labels: left out"),
    ):
        if count:
            log.warning("%s: %d video(s) %s.", path, count, what)
    if flags.per_class:
        name = vocabulary.name if vocabulary else None
        whole_files.write_file(flags.per_class, scoring.class_table(result, name))
    if flags.output_file:
        del result["per_class"]
        whole_files.write_file(flags.output_file, json.dumps(result, indent=2) + "\n")
    return 0
