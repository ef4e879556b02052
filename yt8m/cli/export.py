"""Exports a trained model as a SavedModel, for serving and for inference.py.

    python export_model.py --train_dir=/tmp/netvlad --output_dir=/tmp/netvlad_export

Several runs that read the same features become one SavedModel, which gives the mean of
their probabilities:

    python export_model.py --train_dir=/tmp/netvlad,/tmp/dbof --weights=0.6,0.4 \\
        --output_dir=/tmp/ensemble_export
"""

from absl import flags as absl_flags

from yt8m.cli import flags as shared
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


def run(flags: shared.FlagValues) -> int:
    from yt8m import export, runs

    shared.require(flags, "output_dir", "No directory to write")
    directories = [flags.train_dir]
    if not runs.is_run(flags.train_dir):
        directories = [d for d in map(str.strip, flags.train_dir.split(",")) if d]
    if len(directories) < 2:
        for name in ("weights", "method"):
            if shared.given(flags, name):
                raise UserError(
                    f"--{name} is for several runs: give --train_dir=RUN1,RUN2."
                )
    weights = shared.parse_weights(flags, len(directories))
    loaded = [runs.load_run(d.rstrip("/"), flags.checkpoint) for d in directories]
    if len(loaded) < 2:
        export.export(loaded[0], flags.output_dir, top_k=flags.top_k)
    else:
        from yt8m.ensemble.model import export_ensemble

        export_ensemble(
            loaded, flags.output_dir, weights, method=flags.method, top_k=flags.top_k
        )
    paths = ", ".join(run.checkpoint.path for run in loaded)
    print(f"{paths} exported to {flags.output_dir}")
    return 0
