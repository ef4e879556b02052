"""Joins the predictions of several parts of the data into one submission.

    yt8m merge --input_files='parts/*' --output_file=submission.csv

The parts are what `inference.py --num_shards` writes: submissions of videos, whose
lines are joined, or rankings of segments with their scores, which become the one CSV
file of all segments. What is in the files tells which.

Folders of stored predictions, one or several, become a submission, or one folder if its
name ends in .predictions:

    yt8m merge --input_files='fold-*.predictions' --output_file=all.predictions
    yt8m merge --input_files=all.predictions --output_file=submission.csv

The parts are taken in the order in which they are listed, those of one glob by the
numbers in their names (part-2 before part-10); equal scores rank in this order.
"""

import re

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.errors import UserError


def define(flags: shared.FlagValues) -> None:
    string = absl_flags.DEFINE_string
    string(
        "input_files", "", "The parts: globs, separated by commas.", flag_values=flags
    )
    string(
        "output_file",
        "",
        "The CSV file to write; gzipped if it ends in .gz. A folder of predictions if "
        "it ends in .predictions.",
        flag_values=flags,
    )
    shared.top_k(flags, "Predictions of a video written, if folders are merged.")
    shared.segment_max_pred(flags)


def run(flags: shared.FlagValues) -> int:
    from yt8m.data import predictions
    from yt8m.inference import segments, submission

    shared.require(flags, "input_files", "No parts to merge")
    shared.require(flags, "output_file", "No file to write")
    files = _list(flags.input_files)
    _refuse_missing_parts(files)
    shared.prepare_output(flags, "output_file", files)
    folders = [path for path in files if predictions.is_predictions(path)]
    if folders:
        count = _merge_folders(flags, files, folders)
        print(f"{count:,} videos from {len(files)} folders: {flags.output_file}")
        return 0
    for name, wrong in (
        ("top_k", shared.given(flags, "top_k")),
        ("output_file", flags.output_file.endswith(predictions.ENDING)),
    ):
        if wrong:
            raise UserError(
                f"--{name}={flags[name].value} is for folders of predictions, and "
                f"{files[0]} is none."
            )
    rankings = [path for path in files if segments.is_ranking(path)]
    if not rankings:
        _refuse_without_scores(files)
        if shared.given(flags, "segment_max_pred"):
            raise UserError("--segment_max_pred is given, but no part ranks segments.")
        count = submission.merge_submissions(files, flags.output_file)
        done = f"{count:,} videos"
    elif len(rankings) == len(files):
        ranking = segments.merge_rankings(
            files, flags.output_file, flags.segment_max_pred
        )
        done = f"the best of {ranking.num_segments:,} segments"
    else:
        other = next(path for path in files if path not in rankings)
        raise UserError(
            f"{rankings[0]} is a ranking of segments and {other} is none; merge files "
            "of one kind."
        )
    print(f"{done} from {len(files)} files: {flags.output_file}")
    return 0


def _merge_folders(
    flags: shared.FlagValues, files: list[str], folders: list[str]
) -> int:
    """Merges folders of stored predictions; returns the number of videos."""
    from yt8m.data import predictions
    from yt8m.inference import submission

    if len(folders) < len(files):
        other = next(path for path in files if path not in folders)
        raise UserError(
            f"{folders[0]} is a folder of predictions and {other} is none; merge "
            "parts of one kind."
        )
    if shared.given(flags, "segment_max_pred"):
        raise UserError("--segment_max_pred is given, but no part ranks segments.")
    if not flags.output_file.endswith(predictions.ENDING):
        return submission.submission_of(files, flags.output_file, flags.top_k)
    if shared.given(flags, "top_k"):
        raise UserError(
            f"--top_k={flags.top_k}: merged predictions keep all classes of their "
            "parts; leave it out."
        )
    return predictions.merge_predictions(files, flags.output_file)


def _refuse_without_scores(files: list[str]) -> None:
    from yt8m.inference.segments import is_segment_submission

    for path in filter(is_segment_submission, files):
        raise UserError(
            f"{path} has no scores by which its segments could be ranked among others; "
            "merge what `inference.py --output_format=tfrecord` writes."
        )


def _list(patterns: str) -> list[str]:
    """The files in the order of their patterns, each once."""
    from yt8m.data.files import list_files

    files: dict[str, None] = {}
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        found = list_files(pattern, "--input_files", folders=True)
        files |= dict.fromkeys(sorted(found, key=_numbers_as_such))
    return list(files)


def _refuse_missing_parts(files: list[str]) -> None:
    """Raises an error if the names tell of parts, `2-of-10`, that are not there."""
    parts: dict[tuple[str, int, str], set[int]] = {}
    for path in files:
        if found := re.fullmatch(r"(.*?)(\d+)-of-(\d+)(.*?)", path, re.S):
            start, number, count, rest = found.groups()
            parts.setdefault((start, int(count), rest), set()).add(int(number))
    for (start, count, rest), numbers in parts.items():
        # `inference.py` counts from 0; others may count from 1.
        missing = sorted(set(range(count)) - numbers)
        if missing and numbers != set(range(1, count + 1)):
            raise UserError(
                f"{len(missing)} of the {count} parts {start}N-of-{count:05d}{rest} "
                f"are not there, number {missing[0]} for one: predict them first, or "
                "rename the others to merge them alone."
            )


def _numbers_as_such(name: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]
