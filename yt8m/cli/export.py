"""Exports a trained model as a SavedModel, for serving and for inference.py.

    python export_model.py --train_dir=/tmp/netvlad --output_dir=/tmp/netvlad_export

Several runs that read the same features become one SavedModel, which gives the mean of
their probabilities:

    python export_model.py --train_dir=/tmp/netvlad,/tmp/dbof --weights=0.6,0.4 \\
        --output_dir=/tmp/ensemble_export

With --classifier, a run that was trained on the embeddings of these runs (`inference.py
--output=embeddings`, `yt8m join`), it gives what that one predicts.

--compress stores weights as 16-bit floats or as 8-bit codes into codebooks; whoever
loads the SavedModel computes with float32 as before. --max_bytes refuses what is
larger. The challenge of 2018 took one model of at most 1 GB that predicts by itself:

    python export_model.py --train_dir=/tmp/netvlad,/tmp/dbof --compress=codebook8 \\
        --max_bytes=1GB --output_dir=/tmp/small_export

With --eval_data_pattern it says the GAP, or of segments the mAP, of the weights as they
were and of the SavedModel; both are in its export.json.
"""

import json
import os

from absl import flags as absl_flags

from yt8m.cli import compress
from yt8m.cli import flags as shared
from yt8m.compression import METHODS
from yt8m.errors import UserError


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(
        flags, "The run directory; several, separated by commas, are an ensemble."
    )
    shared.model_module(flags)
    shared.checkpoint(flags)
    shared.top_k(flags, "Predictions returned for each serialized record.")
    shared.output_dir(flags, "Where to write the export.")
    shared.weights(flags, "runs")
    absl_flags.DEFINE_enum(
        "method",
        "mean",
        ["mean", "geometric"],
        "Of several runs: the mean of their probabilities, or of their logits, which "
        "is the normalised geometric mean.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "classifier",
        "",
        "A run that was trained on the embeddings of the runs of --train_dir, in this "
        "order.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "compress", None, METHODS, "What weights are stored as.", flag_values=flags
    )
    compress.max_bytes(flags)
    compress.evaluation(flags)


def run(flags: shared.FlagValues) -> int:
    import tensorflow as tf

    from yt8m import export, runs, whole_files
    from yt8m.inference.predict import load_saved_model

    shared.require(flags, "output_dir", "No directory to write")
    if flags.eval_data_pattern and not flags.compress:
        raise UserError(
            "--eval_data_pattern says what compression costs: give --compress too."
        )
    if flags.max_bytes:
        compress.parse_bytes(flags.max_bytes, "--max_bytes")
    directories = _directories(flags)
    if flags.classifier:
        for name in ("weights", "method"):
            if shared.given(flags, name):
                raise UserError(
                    f"--{name} is of a mean of runs; --classifier has its own weights."
                )
    elif len(directories) < 2:
        for name in ("weights", "method"):
            if shared.given(flags, name):
                raise UserError(
                    f"--{name} is for several runs: give --train_dir=RUN1,RUN2."
                )
    weights = shared.parse_weights(flags, len(directories))
    loaded = [
        runs.load_run(d.rstrip("/"), flags.checkpoint, flags.model_module)
        for d in directories
    ]
    classifier = None
    if flags.classifier:
        classifier = runs.load_run(
            flags.classifier.rstrip("/"), flags.checkpoint, flags.model_module
        )
    model, data, more = loaded[0].model, loaded[0].config.data, {}
    if len(loaded) > 1 or classifier:
        from yt8m.ensemble.model import combine

        model, data, members = combine(loaded, weights, flags.method, classifier)
        more = {"ensemble": members}
    # One that reads embeddings of whole videos, if there is one, says what is read.
    first = max(loaded, key=lambda r: r.config.model.args.get(shared.EMBEDDING_SIZE, 0))
    reader = compress.evaluation_reader(flags, first, data)
    size, scores = 0, {}

    def check(directory: str) -> None:
        nonlocal size, scores
        size = compress.bytes_below(directory)
        how = flags.compress, flags.max_bytes
        compress.refuse_larger(size, flags.output_dir, *how)
        if reader:
            small = load_saved_model(directory)
            scores = compress.before_and_after(model, small, reader)
            path = os.path.join(directory, export.EXPORT_FILE)
            with tf.io.gfile.GFile(path) as f:
                record = json.load(f)
            record["compression"] |= scores
            whole_files.write_file(path, json.dumps(record, indent=2) + "\n")

    export.write_export(
        *(first, model, data, flags.output_dir, flags.top_k, flags.compress),
        check,
        **more,
    )
    sources = [*loaded, classifier] if classifier else loaded
    paths = ", ".join(run.checkpoint.path for run in sources)
    print(f"{paths} exported to {flags.output_dir}: {size:,} bytes")
    if reader:
        compress.report(reader, scores)
    return 0


def _directories(flags: shared.FlagValues) -> list[str]:
    """The runs of --train_dir: one, or several separated by commas."""
    from yt8m import runs

    shared.require(flags, "train_dir", "No run directory")
    if runs.is_run(flags.train_dir):  # whose name may have a comma
        return [flags.train_dir]
    found = [d for d in map(str.strip, flags.train_dir.split(",")) if d]
    if not found:
        raise UserError(f"--train_dir={flags.train_dir} names no run.")
    return found
