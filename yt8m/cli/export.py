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
"""

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.cli.compress import bytes_below, max_bytes, parse_bytes, refuse_larger
from yt8m.compression import METHODS
from yt8m.errors import UserError


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(
        flags, "The run directory; several, separated by commas, are an ensemble."
    )
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
    max_bytes(flags)


def run(flags: shared.FlagValues) -> int:
    from yt8m import export, runs

    shared.require(flags, "output_dir", "No directory to write")
    if flags.max_bytes:
        parse_bytes(flags.max_bytes, "--max_bytes")
    directories = [flags.train_dir]
    if not runs.is_run(flags.train_dir):
        directories = [d for d in map(str.strip, flags.train_dir.split(",")) if d]
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
    loaded = [runs.load_run(d.rstrip("/"), flags.checkpoint) for d in directories]
    classifier = None
    if flags.classifier:
        classifier = runs.load_run(flags.classifier.rstrip("/"), flags.checkpoint)
    found = 0

    def check(directory: str) -> None:
        nonlocal found
        found = bytes_below(directory)
        refuse_larger(found, flags.output_dir, flags.compress, flags.max_bytes)

    if len(loaded) < 2 and not classifier:
        export.export(loaded[0], flags.output_dir, flags.top_k, flags.compress, check)
    else:
        from yt8m.ensemble.model import export_ensemble

        export_ensemble(
            *(loaded, flags.output_dir, weights, flags.method, flags.top_k),
            classifier=classifier,
            compression=flags.compress,
            check=check,
        )
    sources = [*loaded, classifier] if classifier else loaded
    paths = ", ".join(run.checkpoint.path for run in sources)
    print(f"{paths} exported to {flags.output_dir}: {found:,} bytes")
    return 0
