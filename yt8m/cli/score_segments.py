"""Scores a submission of segments against people's ratings: MAP@K.

    yt8m score-segments --submission_file=segments.csv \\
        --eval_data_pattern='validate*.tfrecord' --label_cache=ratings.csv

Each class's ranking is cut after --top_n segments; of those left, only segments that
were rated for the class count. Average precision is divided by all positive ratings of
the class. The mean is that over all classes with a positive rating: one without has no
average precision and is left out, one that is not in the file counts as 0. Kaggle
averaged over its 1,000 classes, whatever a file held; the starter code leaves classes
that are not in the file out of the mean.
"""

import csv
import io
import logging
import re

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared
from yt8m.errors import DataError, UserError

log = logging.getLogger("yt8m")

# Segment -> 1 or 0, of each class.
Ratings = dict[int, dict[bytes, int]]

_MAX_LINE_BYTES = 1 << 16
# The starter code under Python 3 writes the id as Python shows bytes.
_SHOWN_BYTES = re.compile(rb"b(['\"])(.*)\1(:[0-9]+)")


def define(flags: shared.FlagValues) -> None:
    string = absl_flags.DEFINE_string
    string("submission_file", "", "The submission: Class,Segments.", flag_values=flags)
    string(
        "eval_data_pattern",
        "",
        "Shards with rated segments: globs. Not read if --label_cache exists.",
        flag_values=flags,
    )
    string(
        "label_cache",
        None,
        "A file for the ratings, `segment,class,rating` a line. If it exists it is "
        "read in the place of the shards, whichever they are; if not it is written.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "top_n",
        schema.MAX_SEGMENTS_PER_CLASS,
        "K: segments of a class that count; 0 for all.",
        0,
        flag_values=flags,
    )
    string(
        "per_class", None, "A CSV file for the score of each class.", flag_values=flags
    )
    shared.segment_label_ids_file(flags, "to score", "those that were rated")
    shared.vocabulary(flags, "A vocabulary.csv; gives --per_class the classes' names.")


def run(flags: shared.FlagValues) -> int:
    from yt8m import whole_files
    from yt8m.data.segments import load_class_ids
    from yt8m.data.vocabulary import Vocabulary, load_vocabulary
    from yt8m.inference.segments import segment_average_precisions

    shared.require(flags, "submission_file", "No submission to score")
    for name in ("per_class", "label_cache"):
        inputs = [flags.submission_file, flags.vocabulary, flags.segment_label_ids_file]
        shared.prepare_output(flags, name, inputs)
    vocabulary = Vocabulary()
    if flags.vocabulary:
        shared.require(flags, "per_class", "No table for the names of --vocabulary")
        vocabulary = load_vocabulary(flags.vocabulary)
    ratings = _ratings(flags)
    if flags.segment_label_ids_file:
        wanted = load_class_ids(flags.segment_label_ids_file).tolist()
        ratings = {c: ratings[c] for c in wanted if c in ratings}
    precisions = segment_average_precisions(flags.submission_file, ratings, flags.top_n)
    if not precisions:
        raise UserError("No class has a positive rating; there is nothing to score.")
    if not any(precisions.values()):
        log.warning(
            "No positive segment is listed in %s; are the ratings of other videos?",
            flags.submission_file,
        )
    mean = sum(precisions.values()) / len(precisions)
    print(f"Num classes: {len(precisions)} | mAP@{flags.top_n}: {mean:.6f}")
    if flags.per_class:
        table = _table(precisions, ratings, vocabulary)
        whole_files.write_file(flags.per_class, table)
    return 0


def _table(precisions: dict[int, float], ratings: Ratings, vocabulary) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", "name", "average_precision", "positives", "ratings"])
    for label, precision in precisions.items():
        rated = ratings[label].values()
        name = vocabulary.name(label)
        rows.writerow([label, name, f"{precision:.6f}", sum(rated), len(rated)])
    return text.getvalue()


# --- ratings -------------------------------------------------------------------------


def _ratings(flags: shared.FlagValues) -> Ratings:
    """The ratings of the shards or, if there is one, of the cache."""
    import tensorflow as tf

    from yt8m import whole_files
    from yt8m.data.files import list_files
    from yt8m.data.segments import read_ratings

    cache = flags.label_cache
    if cache and tf.io.gfile.exists(cache):
        log.info("The ratings are those of --label_cache=%s.", cache)
        return _read_cache(cache)
    shared.require(flags, "eval_data_pattern", "No rated shards to score against")
    ratings: Ratings = {}
    for segment in read_ratings(
        list_files(flags.eval_data_pattern, "--eval_data_pattern")
    ):
        name = f"{segment.video_id}:{segment.start}".encode()
        for label, rating in segment.ratings.items():
            ratings.setdefault(label, {})[name] = rating
    if cache:
        lines = [
            f"{name.decode()},{label},{rating}.0\n"
            for label, rated in ratings.items()
            for name, rating in rated.items()
        ]
        whole_files.write_file(cache, "".join(lines))
    return ratings


def _read_cache(path: str) -> Ratings:
    """The ratings of a cache, also of one that the starter code wrote."""
    from yt8m.inference.submission import quoted, read_lines

    ratings: Ratings = {}
    for number, line in read_lines(path, _MAX_LINE_BYTES):
        name, *values = line.strip().split(b",")
        try:
            label, score = int(values[0]), float(values[1])
            if len(values) > 2 or not re.fullmatch(rb"\S+:[0-9]+", name):
                raise ValueError
        except (ValueError, IndexError):
            raise DataError(
                f"{path}, line {number}: expected `video:start,class,rating`, found "
                f"{quoted(line)}; remove the file or name another --label_cache."
            ) from None
        if shown := _SHOWN_BYTES.fullmatch(name):
            name = shown[2] + shown[3]
        ratings.setdefault(label, {})[name] = int(score > 0)
    return ratings
