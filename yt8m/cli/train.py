"""Trains a model, or goes on where a run stopped.

    python train.py --model=NetVLADModel --train_data_pattern='train*.tfrecord' \\
        --train_dir=/tmp/netvlad

Running the same command again resumes the run. Ctrl-C and SIGTERM save first.
"""

import dataclasses
import logging

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.config import RunConfig

log = logging.getLogger("yt8m")


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(flags, "The run directory: configuration, checkpoints, metrics.")
    shared.model(flags)
    shared.training(flags)
    shared.bad_records(flags)
    absl_flags.DEFINE_bool(
        "start_new_model",
        False,
        "Moves an earlier run in --train_dir aside and starts anew.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "num_gpu", 1, "GPUs to train on, at most.", 1, flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "log_device_placement",
        False,
        "Logs the device of every operation.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "list_models", False, "Prints all models and stops.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "recipe",
        None,
        "A published system's flags by name (`yt8m recipes`); flags given beside it "
        "override its own.",
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import runs

    runs.load_registries(flags.model_module)
    if flags.list_models:
        from yt8m.cli.models import listing

        print(listing())
        return 0

    import keras
    import tensorflow as tf

    from yt8m.data.index import RecordIndex
    from yt8m.training.loop import Trainer
    from yt8m.training.strategy import create_strategy

    if flags.log_device_placement:
        tf.debugging.set_log_device_placement(True)
    if flags.num_gpu > 1:
        log.warning("--num_gpu=%d: one device is used.", flags.num_gpu)
    directory = flags.train_dir.rstrip("/")
    runs.refuse_foreign(directory)
    resuming = runs.is_run(directory) and not flags.start_new_model
    config = _resumed_config(flags, directory) if resuming else _config(flags, None)
    training, data = config.training, config.data
    shared.require(flags, "train_data_pattern", "No training data")
    index = RecordIndex(f"{directory}/records.json")

    def reader(flag, **options):
        return shared.reader(
            flags,
            flag,
            data,
            wanted_by=config.model.name,
            batch_size=training.batch_size,
            index=index,
            **options,
        )

    train_reader = reader(
        "train_data_pattern",
        seed=training.seed,
        num_epochs=training.num_epochs or None,
        shuffle_window=training.shuffle_window or None,
    )
    eval_reader = reader("eval_data_pattern") if training.eval_data_pattern else None
    if not resuming:
        floats = train_reader.float_features
        data = dataclasses.replace(data, float_features=floats)
        config = dataclasses.replace(config, data=data)

    # The model is built before anything is written or moved.
    keras.utils.set_random_seed(training.seed)
    strategy = create_strategy()
    trainer = Trainer(config, directory, train_reader, eval_reader, strategy, resuming)
    log.info(
        "%s: %s weights, on %s.",
        config.model.name,
        f"{trainer.model.count_params():,}",
        ", ".join(
            d[d.rindex("device:") + 7 :] for d in strategy.extended.worker_devices
        ),
    )
    if flags.start_new_model:
        moved = runs.start_anew(directory)
        if moved:
            log.info("The earlier run is now %s.", moved)
    runs.make_directory(directory)
    runs.write_config(directory, config)
    index.save()
    if trainer.step >= trainer.last_step:
        log.info(
            "The run is at step %d of %d already; raise --num_epochs or --max_steps "
            "to go on.",
            trainer.step,
            trainer.last_step,
        )
    result = trainer.train()
    shared.report_left_out(train_reader, eval_reader)
    log.info("Trained to step %d. Run directory: %s", result.step, directory)
    return 128 + result.stopped_by if result.stopped_by else 0


def _resumed_config(flags: shared.FlagValues, directory: str) -> RunConfig:
    """The stored configuration with what the flags may change of it."""
    from yt8m import runs

    stored = runs.read_config(directory)
    runs.load_registries(stored.model.module)
    shared.take_over(flags, stored)
    config = _config(flags, stored)
    for change in stored.refuse_changes(config):
        log.warning("Changed since the run was started: %s", change)
    return config


def _config(flags: shared.FlagValues, stored: RunConfig | None) -> RunConfig:
    from yt8m import registry, runs

    registry.get(flags.model)  # an unknown name is the first thing to say
    same_model = stored is not None and stored.model.name == flags.model
    default = stored.data if same_model else runs.default_data_config(flags.model)
    training = shared.training_config(flags)
    if stored is not None and not shared.given(flags, "optimizer_args"):
        training = dataclasses.replace(
            training, optimizer_args=stored.training.optimizer_args
        )
    return RunConfig(
        model=shared.model_config(flags, stored.model if stored else None),
        data=shared.data_config(flags, default),
        training=training,
    )
