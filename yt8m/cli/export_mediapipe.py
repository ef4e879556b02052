"""Exports a frame-level model as the SavedModel that MediaPipe's graphs take.

    yt8m export-mediapipe --train_dir=/tmp/netvlad \\
        --output_dir=/tmp/mediapipe/saved_model

MediaPipe's YouTube-8M graphs load it from /tmp/mediapipe/saved_model. Inputs:
rgb_and_audio float32 [N, T, 1152], dequantised, and num_frames int32 [N, 1]; output:
predictions float32 [N, C]. For serving by TensorFlow use `yt8m export`.
"""

from yt8m.cli import flags as shared


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(flags)
    shared.model_module(flags)
    shared.checkpoint(flags)
    shared.output_dir(flags, "Where to write the SavedModel.")


def run(flags: shared.FlagValues) -> int:
    from yt8m import export, runs

    shared.require(flags, "output_dir", "No directory to write")
    run = runs.load_run(
        shared.run_directory(flags), flags.checkpoint, flags.model_module
    )
    export.export_mediapipe(run, flags.output_dir)
    print(f"{run.checkpoint.path} exported for MediaPipe to {flags.output_dir}")
    return 0
