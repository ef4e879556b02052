"""Averages the weights of several checkpoints of a run into a new run directory.

    yt8m average --train_dir=/tmp/netvlad --last=3 --output_dir=/tmp/netvlad_average
    python eval.py --train_dir=/tmp/netvlad_average --run_once ...

The new directory is one that eval.py, inference.py and export_model.py take; it cannot
be trained on, having no optimiser. Of a run with --ema_decay the moving averages are
averaged. Batch normalisation has the means of the checkpoints' statistics, or, by
--refresh_steps, those of the averaged model on that many batches of the training data,
augmented as in training; what was frozen keeps its own.
"""

import logging
import os

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.cli.train import training_reader
from yt8m.errors import UserError

log = logging.getLogger("yt8m")


def define(flags: shared.FlagValues) -> None:
    shared.model_module(flags)
    shared.train_dir(flags)
    shared.output_dir(flags, "The new run directory.")
    absl_flags.DEFINE_string(
        "checkpoints",
        None,
        "Which checkpoints: steps, latest or best, separated by commas (default: all "
        "that the run keeps).",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "last", None, "Averages the last so many checkpoints.", 1, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "refresh_steps",
        0,
        "Batches on which the statistics of batch normalisation are taken anew; 0 "
        "averages those of the checkpoints.",
        0,
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "train_data_pattern",
        "",
        "The shards for --refresh_steps (default: those of the run).",
        flag_values=flags,
    )
    shared.video_embeddings(flags)
    shared.bad_records(flags)


def run(flags: shared.FlagValues) -> int:
    import tensorflow as tf

    from yt8m import runs
    from yt8m.export import write_directory
    from yt8m.training import checkpoint_averages

    shared.require(flags, "output_dir", "No directory to write")
    directory, output = shared.run_directory(flags), flags.output_dir.rstrip("/")
    config = runs.read_config(directory, flags.model_module)
    for name in ("train_data_pattern", "video_embeddings"):
        if flags[name].value and not flags.refresh_steps:
            raise UserError(f"--{name} is given without --refresh_steps.")
    if tf.io.gfile.exists(output) and tf.io.gfile.listdir(output):
        raise UserError(f"{output} is not empty; choose another --output_dir.")
    checkpoints = runs.Checkpoints(directory)
    infos = _chosen(flags, checkpoints)
    reader = None
    if flags.refresh_steps:
        runs.load_registries(config.model.module)
        shared.take_over(flags, config)
        static = config.training.jit_compile
        reader = training_reader(flags, config, num_epochs=None, static_frames=static)
    model = runs.build_model(
        config.model, config.data, config.training.precision, restored=True
    )
    checkpoint_averages.average_weights(checkpoints, infos, model)
    if reader:
        count = checkpoint_averages.refresh_statistics(
            model, reader, flags.refresh_steps, config.training
        )
        log.info("Batch statistics are those of %d batches.", count)
        shared.report_left_out(reader)
    last = infos[-1]

    def write(folder: str) -> None:
        runs.write_config(folder, config)
        runs.Checkpoints(folder).save(
            {"model": model}, last.step, last.examples, last.batch_size
        )
        classes = os.path.join(directory, runs.SEGMENT_CLASSES_FILE)
        if tf.io.gfile.exists(classes):
            tf.io.gfile.copy(classes, os.path.join(folder, runs.SEGMENT_CLASSES_FILE))

    write_directory(output, runs.CONFIG_FILE, write)
    steps = ", ".join(str(info.step) for info in infos)
    print(f"average of the checkpoints of steps {steps} of {directory}: {output}")
    return 0


def _chosen(flags: shared.FlagValues, checkpoints) -> list:
    """The checkpoints to average, by their steps."""
    if flags.checkpoints is None:
        found = checkpoints.list()
        count = flags.last or len(found)
        if not found or count > len(found):
            steps = ", ".join(str(c.step) for c in found) or "none yet"
            raise UserError(
                f"{flags.train_dir} has no {max(count, 1)} checkpoint(s) to average. "
                f"Steps: {steps}; train with a larger --keep_checkpoints."
            )
        return found[-count:]
    if flags.last:
        raise UserError("--checkpoints and --last exclude each other; give one.")
    names = [name.strip() for name in flags.checkpoints.split(",") if name.strip()]
    found = {info.step: info for info in map(checkpoints.find, names)}
    if len(found) < max(len(names), 1):
        raise UserError(
            f"--checkpoints={flags.checkpoints} must name checkpoints, each once."
        )
    return [found[step] for step in sorted(found)]
