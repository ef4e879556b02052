"""All flags that several commands share, and how they become configurations.

Names and meanings are those of the YouTube-8M starter code wherever it has one.
"""

import ast
import json
import logging
from typing import Any

from absl import flags as absl_flags

from yt8m import schema
from yt8m.config import (
    LR_SCHEDULES,
    PRECISIONS,
    SELECTION_METHODS,
    DataConfig,
    FrameSelection,
    TrainingConfig,
)
from yt8m.errors import UserError

log = logging.getLogger("yt8m")

FlagValues = absl_flags.FlagValues


def train_dir(flags: FlagValues, help: str = "The run directory.") -> None:
    absl_flags.DEFINE_string("train_dir", "/tmp/yt8m_model/", help, flag_values=flags)


def checkpoint(flags: FlagValues) -> None:
    absl_flags.DEFINE_string(
        "checkpoint",
        "latest",
        "Which checkpoint: latest, best (by validation GAP), or a step number.",
        flag_values=flags,
    )


def bad_records(flags: FlagValues) -> None:
    absl_flags.DEFINE_enum(
        "on_bad_record",
        "fail",
        ["fail", "skip"],
        "What to do about an unreadable or malformed record: stop and name it, or "
        "leave it out, count it and report it.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "num_readers", 8, "Files read at the same time.", 1, flag_values=flags
    )


def top_k(flags: FlagValues, help: str) -> None:
    absl_flags.DEFINE_integer("top_k", 20, help, 1, flag_values=flags)


def batch_size(flags: FlagValues, default: int, help: str) -> None:
    absl_flags.DEFINE_integer("batch_size", default, help, 1, flag_values=flags)


def output_dir(flags: FlagValues, help: str) -> None:
    absl_flags.DEFINE_string("output_dir", "", help, flag_values=flags)


def features(flags: FlagValues, names: str | None, sizes: str | None) -> None:
    absl_flags.DEFINE_string(
        "feature_names",
        names,
        "Features, in the order of concatenation (a model's own by default: rgb,audio "
        "at the frame level, mean_rgb at the video level).",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "feature_sizes",
        sizes,
        "Their sizes (needed for features that are not YouTube-8M's own).",
        flag_values=flags,
    )


def require(flags: FlagValues, name: str, what: str) -> None:
    """Raises `UserError` if the flag `name` is empty."""
    if not flags[name].value:
        raise UserError(f"{what}: give --{name}.")


def reader(
    flags: FlagValues, pattern_flag: str, data: DataConfig, *, wanted_by: str, **options
):
    """A `yt8m.data.pipeline.Reader` of the files that the flag `pattern_flag` names.

    Raises:
        UserError: none matches, or what they hold is not what `wanted_by` wants.
    """
    from yt8m.data import pipeline

    files = pipeline.list_files(flags[pattern_flag].value, f"--{pattern_flag}")
    return pipeline.Reader(
        pipeline.check_files(files, data, wanted_by=wanted_by),
        data,
        on_bad_record=flags.on_bad_record,
        num_readers=flags.num_readers,
        **options,
    )


def report_left_out(*readers) -> None:
    """Says how many bad records `readers` left out, if any."""
    count = sum(len(reader.bad_records) for reader in readers if reader)
    if count:
        log.warning("%d bad record(s) were left out; each is named above.", count)


def model(flags: FlagValues) -> None:
    """Flags that choose the model and its input."""
    string, integer = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    string(
        "model",
        "LogisticModel",
        "The model's name; --list_models shows all.",
        flag_values=flags,
    )
    string(
        "model_args",
        "",
        "Arguments of the model, as name=value,name=value.",
        flag_values=flags,
    )
    string(
        "model_module",
        None,
        "A Python file with models of your own, registered by @yt8m.registry.register.",
        flag_values=flags,
    )
    features(flags, None, None)
    absl_flags.DEFINE_bool(
        "frame_features",
        None,
        "Whether the shards are frame-level. The model knows; if given, it is checked.",
        flag_values=flags,
    )
    integer(
        "num_classes",
        schema.NUM_CLASSES,
        "Number of classes.",
        1,
        flag_values=flags,
    )
    integer(
        "max_frames",
        schema.MAX_FRAMES,
        "Frames of a video beyond this many are cut off.",
        1,
        flag_values=flags,
    )
    integer(
        "frames",
        None,
        "Frames taken of each video; 0 takes all (default: the model's own).",
        0,
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "frame_selection",
        None,
        SELECTION_METHODS,
        "How --frames are chosen in training; evaluation spaces them evenly.",
        flag_values=flags,
    )
    integer(
        "skip_first_frames",
        None,
        "Frames left out at the start of each video.",
        0,
        flag_values=flags,
    )


def training(flags: FlagValues) -> None:
    """Flags of the loop; each is a field of `TrainingConfig`."""

    def integer(name, help, least=0):
        absl_flags.DEFINE_integer(
            name, getattr(TrainingConfig, name), help, least, flag_values=flags
        )

    def number(name, help, least=0.0):
        absl_flags.DEFINE_float(
            name, getattr(TrainingConfig, name), help, least, flag_values=flags
        )

    def string(name, default, help):
        absl_flags.DEFINE_string(name, default, help, flag_values=flags)

    string("train_data_pattern", "", "Training shards: globs, separated by commas.")
    string("eval_data_pattern", "", "Validation shards, scored while training.")
    integer("batch_size", "Videos in a batch.", 1)
    integer("num_epochs", "Passes over the data; 0: no limit.")
    integer("max_steps", "Step at which to stop; 0: no limit.")
    integer("seed", "Seed of weights, order and sampling.")
    integer("shuffle_window", "Records shuffled together; 0: the reader's choice.")
    string("label_loss", TrainingConfig.label_loss, "The loss, by name.")
    number("regularization_penalty", "Factor of the model's penalties.")
    string("optimizer", TrainingConfig.optimizer, "Adam, AdamW, SGD, RMSProp, Adagrad.")
    string("optimizer_args", "", "Its arguments, as name=value,name=value.")
    number("base_learning_rate", "Learning rate at the start.")
    absl_flags.DEFINE_enum(
        "lr_schedule",
        "exponential",
        LR_SCHEDULES,
        "How the learning rate changes with the examples seen.",
        flag_values=flags,
    )
    number("learning_rate_decay", "Factor of each exponential decay.")
    number("learning_rate_decay_examples", "Examples between two decays.")
    number("warmup_examples", "Examples over which the rate rises to its base.")
    number("clip_gradient_norm", "Norm to which each gradient is clipped; 0: off.")
    number("clip_global_norm", "Norm to which all are clipped together; 0: off.")
    absl_flags.DEFINE_enum(
        "precision",
        "float32",
        PRECISIONS,
        "Type of the arithmetic; weights, loss and heads stay float32.",
        flag_values=flags,
    )
    number("save_checkpoint_minutes", "Minutes between checkpoints; 0: off.")
    integer("save_checkpoint_steps", "Steps between checkpoints; 0: off.")
    integer("keep_checkpoints", "Latest checkpoints kept, beside the best.", 1)
    integer("eval_steps", "Steps between validations; 0: at the end only.")
    integer("log_steps", "Steps between reports.", 1)


# --- from flags to configurations ----------------------------------------------------


def parse_arguments(text: str, flag: str) -> dict[str, Any]:
    """Reads `name=value,name=value`, or a JSON object.

    Values are Python literals; anything else is a string. Commas inside brackets or
    quotes do not separate.

    Raises:
        UserError: a part without `=`, or a name given twice.
    """
    text = text.strip()
    if text.startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as e:
            raise UserError(f"{flag}={text} is not JSON: {e}.") from e
    found: dict[str, Any] = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.isidentifier() or name in found:
            raise UserError(
                f"{flag}: {part!r} must be name=value, each name once; for example "
                f'{flag}="clusters=128,hidden_size=512".'
            )
        lowered = {"true": True, "false": False, "none": None}
        try:
            found[name] = (
                lowered[value.lower()]
                if value.lower() in lowered
                else ast.literal_eval(value)
            )
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _split(text: str) -> list[str]:
    """Splits at the commas outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    return [p for p in [*parts, text[start:]] if p.strip()]


def parse_features(names: str, sizes: str | None) -> dict[str, int]:
    """Reads `--feature_names` and `--feature_sizes`.

    Raises:
        UserError: a name twice, an unknown size, or lists of different lengths.
    """
    listed = [n.strip() for n in names.split(",") if n.strip()]
    if not listed or len(set(listed)) < len(listed):
        raise UserError(f"--feature_names={names} must name each feature once.")
    if sizes is None:
        known = {**schema.FRAME_FEATURES, **schema.VIDEO_FEATURES}
        unknown = [n for n in listed if n not in known]
        if unknown:
            raise UserError(
                f"The size of {', '.join(unknown)} is unknown; give --feature_sizes, "
                f"one for each of --feature_names={names}."
            )
        return {n: known[n] for n in listed}
    try:
        numbers = [int(s) for s in sizes.split(",") if s.strip()]
    except ValueError:
        raise UserError(f"--feature_sizes={sizes} must be whole numbers.") from None
    if len(numbers) != len(listed):
        raise UserError(
            f"--feature_names={names} and --feature_sizes={sizes} differ in length."
        )
    return dict(zip(listed, numbers, strict=True))


def data_config(flags: FlagValues, default: DataConfig) -> DataConfig:
    """The `DataConfig` of the flags; what is not given comes from `default`."""
    wanted = default.features
    if flags.feature_names:
        wanted = parse_features(flags.feature_names, flags.feature_sizes)
    elif flags.feature_sizes:
        raise UserError("--feature_sizes is given without --feature_names.")
    frames = {
        "count": default.frames.count if flags.frames is None else flags.frames or None,
        "method": flags.frame_selection or default.frames.method,
        "skip_first": default.frames.skip_first
        if flags.skip_first_frames is None
        else flags.skip_first_frames,
    }
    if flags.frame_features is not None:
        level = "frame" if flags.frame_features else "video"
        if level != default.level:
            raise UserError(
                f"{flags.model} is a {default.level}-level model: --frame_features="
                f"{flags.frame_features} contradicts it; leave the flag out."
            )
    return DataConfig(
        level=default.level,
        features=wanted,
        num_classes=flags.num_classes,
        max_frames=flags.max_frames,
        frames=FrameSelection(**frames),
        float_features=default.float_features,
    )


def training_config(flags: FlagValues) -> TrainingConfig:
    """The `TrainingConfig` of the flags."""
    values = {name: flags[name].value for name in TrainingConfig.__dataclass_fields__}
    values["optimizer_args"] = parse_arguments(flags.optimizer_args, "--optimizer_args")
    return TrainingConfig(**values)


def given(flags: FlagValues, name: str) -> bool:
    """Whether the user (or a recipe) set the flag."""
    return bool(flags[name].present)
