"""Compresses the weights of a run: 16-bit floats, or 8-bit codes into codebooks.

    yt8m compress --train_dir=/tmp/netvlad --output_dir=/tmp/netvlad_small \\
        --method=codebook8 --eval_data_pattern='validate*.tfrecord' --max_bytes=1GB

What is written is a run directory that stays small on disk: eval.py, inference.py and
export_model.py take it as --train_dir, and inference.py --output_model_tgz packs it
into one file. Only the weights' storage changes: the arithmetic is as before. Biases,
norms and other small weights are kept. Training does not go on from it. Several runs
become one file, compressed in the same way, by export_model.py --compress.

With --eval_data_pattern it says the GAP, or of segments the mAP, before and after, of
the weights as they are read from the files. --max_bytes refuses what is larger: the
challenge of 2018 took one model of at most 1 GB.
"""

import json
import os
import re
from typing import Any

import numpy as np
from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.compression import METHODS
from yt8m.errors import UserError

RECORD_FILE = "compression.json"

_UNITS = {
    **{"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30},
}
_OF_EVALUATION = ("batch_size", "on_bad_record", "num_readers", "eval_frames")
_OF_EVALUATION += ("video_embeddings",)


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(flags)
    shared.model_module(flags)
    shared.checkpoint(flags)
    shared.output_dir(flags, "The run directory to write.")
    absl_flags.DEFINE_enum(
        "method", "codebook8", METHODS, "What weights become.", flag_values=flags
    )
    max_bytes(flags)
    evaluation(flags)


def evaluation(flags: shared.FlagValues) -> None:
    """Flags of the evaluation before and after."""
    absl_flags.DEFINE_string(
        "eval_data_pattern",
        "",
        "Shards by which to say the GAP, or of segments the mAP, before and after: "
        "globs.",
        flag_values=flags,
    )
    shared.batch_size(flags, 1024, "Videos in a batch; does not change the result.")
    shared.bad_records(flags)
    shared.eval_frames(flags)
    shared.video_embeddings(flags)


def max_bytes(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "max_bytes",
        "",
        "Refuses a result of more bytes: a number, or as 1GB (10^9) or 1GiB (2^30).",
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import runs, whole_files
    from yt8m.export import write_directory

    shared.require(flags, "output_dir", "No directory to write")
    if flags.max_bytes:
        parse_bytes(flags.max_bytes, "--max_bytes")
    source = shared.run_directory(flags)
    run = runs.load_run(source, flags.checkpoint, flags.model_module)
    reader = evaluation_reader(flags, run, run.config.data)
    record: dict[str, Any] = {
        "run": run.checkpoint.path,
        "method": flags.method,
        "bytes_before": sum(np.asarray(v).nbytes for v in run.model.variables),
    }

    def write(directory: str) -> None:
        _write_run(run, directory, flags.method)
        record["bytes"] = size = bytes_below(directory)
        refuse_larger(size, run.checkpoint.path, flags.method, flags.max_bytes)
        if reader:
            small = runs.load_run(directory).model
            record.update(before_and_after(run.model, small, reader))
        text = json.dumps(record, indent=2) + "\n"
        whole_files.write_file(os.path.join(directory, RECORD_FILE), text)

    write_directory(flags.output_dir, RECORD_FILE, write)
    before, after = record["bytes_before"], record["bytes"]
    print(
        f"{run.checkpoint.path} compressed to {flags.output_dir}: {before:,} bytes of "
        f"weights before, {after:,} bytes after ({after / before:.3f})"
    )
    if reader:
        report(reader, record)
    return 0


def evaluation_reader(flags: shared.FlagValues, run: Any, data: Any) -> Any:
    """A reader of --eval_data_pattern; None if it is not given.

    Args:
        flags: with those of `evaluation`.
        run: whose settings hold where flags are not given.
        data: the `DataConfig` of what is evaluated.

    Raises:
        UserError: as `shared.reader`, or flags of an evaluation without one.
    """
    if not flags.eval_data_pattern:
        for name in filter(lambda name: shared.given(flags, name), _OF_EVALUATION):
            raise UserError(f"--{name} is of the evaluation: give --eval_data_pattern.")
        return None
    shared.take_over_for_scoring(flags, run.config)
    data, options = shared.evaluated_data(flags, data)
    model = run.config.model
    return shared.reader(
        flags,
        "eval_data_pattern",
        data,
        wanted_by=model.name,
        batch_size=flags.batch_size,
        video_embeddings=shared.open_video_embeddings(flags, model.name, model.args),
        **options,
    )


def before_and_after(before: Any, after: Any, reader: Any) -> dict[str, float]:
    """The GAP, or of segments the mAP, of two models: `gap_before` and `gap`, say."""
    from yt8m import runs

    metric = runs.validation_metric(reader.config.segments)
    return {
        f"{metric}_before": _score(before, reader, metric),
        metric: _score(after, reader, metric),
    }


def report(reader: Any, found: dict[str, Any]) -> None:
    """Prints what `before_and_after` found, and how many records were left out."""
    from yt8m import runs

    shared.report_left_out(reader)
    metric = runs.validation_metric(reader.config.segments)
    name = {"gap": "GAP", "map": "mAP"}[metric]
    before, after = found[f"{metric}_before"], found[metric]
    print(f"{name} {before:.5f} before, {after:.5f} after")


def parse_bytes(text: str, flag: str) -> int:
    """Reads a number of bytes such as `1GB`.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].upper() not in _UNITS:
        raise UserError(
            f"{flag}={text} is no number of bytes; write it as 1000000, 500MB, 1GB or "
            "1GiB."
        )
    return int(float(found[1]) * _UNITS[found[2].upper()])


def refuse_larger(size: int, what: str, method: str | None, allowed: str) -> None:
    """Raises `UserError` if there are more than the bytes that are allowed.

    Args:
        size: in bytes.
        what: has it.
        method: by which its weights are compressed, if they are.
        allowed: as `parse_bytes` takes it; empty for any number.
    """
    if allowed and size > (most := parse_bytes(allowed, "--max_bytes")):
        stored = f"with weights as {method}" if method else "with weights as they are"
        raise UserError(
            f"{what} takes {size:,} bytes {stored}, more than the {most:,} of "
            f"--max_bytes={allowed}; compress it more, or take a smaller model."
        )


def _write_run(run: Any, directory: str, method: str) -> None:
    """A run directory with the weights of `run`, compressed."""
    import tensorflow as tf

    from yt8m import runs

    runs.write_config(directory, run.config)
    runs.Checkpoints(directory).save_compressed(run.model, run.checkpoint, method)
    classes = os.path.join(run.directory, runs.SEGMENT_CLASSES_FILE)
    if tf.io.gfile.exists(classes):
        tf.io.gfile.copy(classes, os.path.join(directory, runs.SEGMENT_CLASSES_FILE))


def bytes_below(directory: str) -> int:
    """The bytes of all files of a directory."""
    import tensorflow as tf

    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for folder, _, names in tf.io.gfile.walk(directory)
        for name in names
    )


def _score(model: Any, reader: Any, metric: str) -> float:
    from yt8m import evaluation
    from yt8m.config import TrainingConfig

    # The run's own loss, which is not asked for, may read a file that is not here.
    training = TrainingConfig("")
    return evaluation.evaluate(model, reader, training, progress=True)[metric]
