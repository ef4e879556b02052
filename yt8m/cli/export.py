"""Exports a trained model as a SavedModel, for serving and for inference.py.

python export_model.py --train_dir=/tmp/netvlad --output_dir=/tmp/netvlad_export
"""

from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(flags)
    shared.checkpoint(flags)
    shared.top_k(flags, "Predictions returned for each serialized record.")
    shared.output_dir(flags, "Where to write the export.")


def run(flags: shared.FlagValues) -> int:
    from yt8m import export, runs

    shared.require(flags, "output_dir", "No directory to write")
    run = runs.load_run(flags.train_dir.rstrip("/"), flags.checkpoint)
    export.export(run, flags.output_dir, top_k=flags.top_k)
    print(f"{run.checkpoint.path} exported to {flags.output_dir}")
    return 0
