"""Trains a model, or goes on where a run stopped.

    python train.py --model=NetVLADModel --train_data_pattern='train*.tfrecord' \\
        --train_dir=/tmp/netvlad

Running the same command again resumes the run. Ctrl-C and SIGTERM save first.
"""

import dataclasses
import logging
import os
from typing import Any

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.config import RunConfig
from yt8m.errors import UserError

log = logging.getLogger("yt8m")

# Arguments of losses that are files, or may be.
_FILES_OF_LOSSES = ("class_counts", "class_accuracies")
_FILES_OF_LOSSES += ("false_negative_rate", "false_positive_rate")


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(flags, "The run directory: configuration, checkpoints, metrics.")
    shared.model(flags)
    shared.training(flags)
    shared.video_embeddings(flags)
    shared.bad_records(flags)
    absl_flags.DEFINE_bool(
        "start_new_model",
        False,
        "Moves an earlier run in --train_dir aside and starts anew.",
        flag_values=flags,
    )
    shared.strategy(flags)
    absl_flags.DEFINE_bool(
        "dry_run",
        False,
        "Builds everything, says what it takes, takes two steps and stops; writes "
        "nothing.",
        flag_values=flags,
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
    from yt8m import runs, whole_files

    runs.load_registries(flags.model_module)
    if flags.list_models:
        from yt8m.cli.models import listing

        print(listing())
        return 0

    import keras
    import tensorflow as tf

    from yt8m.data.index import RecordIndex
    from yt8m.distribution import is_chief, part_of, wants_static_shapes
    from yt8m.training.loop import Trainer, chief_says

    if flags.log_device_placement:
        tf.debugging.set_log_device_placement(True)
    strategy = _strategy(flags)
    static = wants_static_shapes(strategy)
    directory = shared.run_directory(flags)
    runs.refuse_foreign(directory)
    resuming = not flags.start_new_model and _is_begun(flags, directory)
    # The chief may write there before another worker has looked.
    resuming = chief_says(strategy, resuming) and not flags.dry_run
    replicas = part_of(strategy).total
    config, soft_labels = _with_teacher(
        flags,
        _resumed_config(flags, directory, replicas)
        if resuming
        else _with_source(_config(flags, None, replicas), directory),
        directory,
    )
    training, data = config.training, config.data
    shared.require(flags, "train_data_pattern", "No training data")
    index = RecordIndex(None if flags.dry_run else f"{directory}/records.json")

    train_reader = training_reader(
        flags,
        config,
        num_epochs=training.num_epochs or None,
        static_frames=static or training.jit_compile,
        soft_labels=soft_labels,
        index=index,
    )
    eval_reader = None
    if training.eval_data_pattern:
        eval_reader = _reader(
            flags, "eval_data_pattern", config, static_frames=static, index=index
        )
    _refuse_unlabelled(config, train_reader, eval_reader)
    if not resuming:
        floats = train_reader.float_features
        data = dataclasses.replace(data, float_features=floats)
        config = dataclasses.replace(config, data=data)

    # The model is built before anything is written or moved.
    keras.utils.set_random_seed(training.seed)
    trainer = Trainer(config, directory, train_reader, eval_reader, strategy, resuming)
    log.info("%s: %s.", config.model.name, trainer.describe())
    if flags.dry_run:
        print("\n".join(trainer.rehearse()))
        return 0
    if is_chief(strategy):
        if not resuming and (flags.start_new_model or runs.has_trained(directory)):
            moved = runs.start_anew(directory)
            if moved:
                log.info("The earlier run is now %s.", moved)
        whole_files.make_directory(directory)
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


def _is_begun(flags: shared.FlagValues, directory: str) -> bool:
    """Whether `directory` holds a run to go on with.

    A run without checkpoints, which failed before its first or has lost them, holds
    nothing that is worth being bound to its flags: it begins anew by those given, if
    they say what to train on.
    """
    from yt8m import runs

    if not runs.is_run(directory):
        return False
    if runs.Checkpoints(directory).latest() or not flags.train_data_pattern:
        return True
    log.warning(
        "%s has no checkpoint: its training begins anew, by the flags given.", directory
    )
    return False


def _refuse_unlabelled(config: RunConfig, train_reader, eval_reader) -> None:
    """Raises `UserError` for shards without labels where labels are learned."""
    from yt8m.data.files import refuse_unlabelled

    if config.data.segments:  # whose own labels are looked for as they are counted
        return
    if not config.training.teacher:
        refuse_unlabelled(train_reader.files, "--train_data_pattern")
    if eval_reader:
        refuse_unlabelled(eval_reader.files, "--eval_data_pattern")


def training_reader(flags: shared.FlagValues, config: RunConfig, **options):
    """A reader of --train_data_pattern that gives what the run `config` trains on.

    Args:
        flags: of a command with those of `shared.video_embeddings` and `bad_records`.
        config: of the run.
        options: of the reader, more of them.

    Raises:
        UserError: as `shared.reader` and `shared.open_video_embeddings`, or a class of
            --only_classes that is not known.
    """
    training = config.training
    return _reader(
        flags,
        "train_data_pattern",
        config,
        seed=training.seed,
        shuffle_window=training.shuffle_window or None,
        augmentation=training.frame_augmentation(),
        video_labels=bool(training.mined_negatives),
        only_classes=_only_classes(training.only_classes, config.data.num_classes),
        **options,
    )


def _reader(flags: shared.FlagValues, flag: str, config: RunConfig, **options):
    return shared.reader(
        flags,
        flag,
        config.data,
        wanted_by=config.model.name,
        batch_size=config.training.batch_size,
        video_embeddings=shared.open_video_embeddings(
            flags, config.model.name, config.model.args
        ),
        **options,
    )


def _only_classes(path: str, num_classes: int) -> list[int] | None:
    """The classes of --only_classes. Raises `UserError` for one that is not known."""
    from yt8m.data.segments import load_class_ids

    if not path:
        return None
    classes = load_class_ids(path).tolist()
    if max(classes) >= num_classes:
        raise UserError(
            f"--only_classes={path}: class {max(classes)} is not one of "
            f"--num_classes={num_classes}."
        )
    return classes


def _strategy(flags: shared.FlagValues):
    """Where to train; of several workers each must train its part of one run."""
    from yt8m import distribution

    cluster = distribution.read_cluster()
    if cluster and cluster.number is None:
        raise UserError(
            "TF_CONFIG makes this process the evaluator: run `eval.py` in it."
        )
    if flags.strategy in ("one_device", "mirrored"):
        distribution.refuse_workers(
            f"with --strategy={flags.strategy} each would write the same run: leave "
            "the flag out, or TF_CONFIG."
        )
    return distribution.create_strategy(flags.strategy, flags.num_gpu, flags.tpu)


def _with_source(config: RunConfig, directory: str) -> RunConfig:
    """The configuration with the checkpoint of --init_from by its step."""
    from yt8m.training.fine_tuning import find_source

    if not config.training.init_from:
        return config
    if config.training.init_from.rstrip("/") == directory:
        raise UserError(f"--init_from={directory} is the run itself: give another.")
    return dataclasses.replace(config, training=find_source(config.training))


def _with_teacher(flags: shared.FlagValues, config: RunConfig, directory: str):
    """The configuration with the teacher's checkpoint; its soft labels, if stored."""
    from yt8m.training.distillation import find_teacher

    if not config.training.teacher:
        return config, None
    if config.training.teacher.rstrip("/") == directory:
        raise UserError(f"--teacher={directory} is the run itself: give another.")
    if config.training.distillation_weight == 1 and shared.given(flags, "label_loss"):
        log.warning(
            "--label_loss=%s is of evaluation only: at --distillation_weight=1 soft "
            "labels alone are learned, by cross-entropy.",
            config.training.label_loss,
        )
    training, soft_labels = find_teacher(config.training, config.data)
    return dataclasses.replace(config, training=training), soft_labels


def _resumed_config(
    flags: shared.FlagValues, directory: str, replicas: int
) -> RunConfig:
    """The stored configuration with what the flags may change of it."""
    from yt8m import runs

    stored = runs.read_config(directory, flags.model_module)
    runs.load_registries(stored.model.module)
    shared.take_over(flags, stored)
    config = _config(flags, stored, replicas)
    for change in stored.refuse_changes(config):
        log.warning("Changed since the run was started: %s", change)
    return config


def _config(
    flags: shared.FlagValues, stored: RunConfig | None, replicas: int
) -> RunConfig:
    from yt8m import registry, runs

    if flags.model_module and not stored and not shared.given(flags, "model"):
        raise UserError(
            f"--model_module={flags.model_module} is given without --model, the name "
            "of a class in it."
        )
    registry.get(flags.model)  # an unknown name is the first thing to say
    if flags.segment_context_frames and not flags.segment_labels:
        raise UserError(
            f"--segment_context_frames={flags.segment_context_frames} is of segments: "
            "give --segment_labels."
        )
    if flags.mined_negatives and not flags.segment_labels:
        raise UserError(
            f"--mined_negatives={flags.mined_negatives} are of segments, which are "
            "rated for few classes: give --segment_labels."
        )
    same_model = stored is not None and stored.model.name == flags.model
    default = stored.data if same_model else runs.default_data_config(flags.model)
    training = shared.training_config(flags)
    if shared.given(flags, "eval_steps") and not training.eval_data_pattern:
        log.warning(
            "--eval_steps=%s: nothing is evaluated without --eval_data_pattern.",
            flags.eval_steps,
        )
    # Evaluation reads them too, from whatever folder.
    args = {n: _absolute(n, value) for n, value in training.label_loss_args.items()}
    training = dataclasses.replace(training, label_loss_args=args)
    for name, spellings in (
        ("optimizer_args", ("optimizer_args",)),
        ("label_loss_args", ("label_loss_args", "class_counts")),
    ):
        if stored and not any(shared.given(flags, spelling) for spelling in spellings):
            args = getattr(stored.training, name)
            training = dataclasses.replace(training, **{name: args})
    for name in ("teacher_checkpoint", "init_checkpoint"):
        if stored and getattr(training, name) in ("latest", "best"):
            # It is the one that was so when the run was started.
            checkpoint = getattr(stored.training, name)
            training = dataclasses.replace(training, **{name: checkpoint})
    model = shared.model_config(flags, stored.model if stored else None)
    embeddings = shared.open_video_embeddings(flags, model.name, model.args)
    if embeddings:
        args = {**model.args, shared.EMBEDDING_SIZE: embeddings.size}
        model = dataclasses.replace(model, args=args)
    return RunConfig(
        model=model,
        data=shared.data_config(flags, default),
        training=dataclasses.replace(
            training, batch_size=_global_batch_size(flags, stored, replicas)
        ),
    )


def _absolute(name: str, value: Any) -> Any:
    """The argument `name` of a loss, an absolute path if it is one of this machine."""
    if name not in _FILES_OF_LOSSES or not isinstance(value, str) or "://" in value:
        return value
    return os.path.abspath(value)


def _global_batch_size(
    flags: shared.FlagValues, stored: RunConfig | None, replicas: int
) -> int:
    """Examples in a batch of all replicas together."""
    if flags.global_batch_size:
        if shared.given(flags, "batch_size"):
            raise UserError(
                "--batch_size, of each replica, and --global_batch_size, of all "
                "together, exclude each other; give one."
            )
        return flags.global_batch_size
    if stored is not None and not shared.given(flags, "batch_size"):
        return stored.training.batch_size
    return flags.batch_size * replicas
