"""All flags that several commands share, and how they become configurations.

Names and meanings are those of the YouTube-8M starter code wherever it has one.
"""

import ast
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags as absl_flags

from yt8m import remote, schema
from yt8m.config import (
    LR_SCHEDULES,
    ON_MISSING_SOFT_LABELS,
    PRECISIONS,
    SELECTION_METHODS,
    DataConfig,
    FrameSelection,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from yt8m.data import eigenvalues
from yt8m.errors import UserError, near_matches

log = logging.getLogger("yt8m")

FlagValues = absl_flags.FlagValues

EVAL_FRAMES = ("even", "random", "all")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")

# The starter code's and the 2017 winner's flags for what is an argument of a model
# here: the argument, its type, and the models that have such a flag (None: all).
_DBOF, _LSTM, _NETVLAD = ("DbofModel",), ("LstmModel",), ("NetVLADModel",)
_NEXTVLAD = ("NeXtVLADModel", "MixtureNeXtVLADModel")
SPELLINGS: dict[str, tuple[str, type, tuple[str, ...] | None]] = {
    "video_level_classifier_model": ("head", str, None),
    "moe_num_mixtures": ("num_mixtures", int, None),
    "moe_l2": ("l2_penalty", float, None),
    "moe_prob_gating": ("gating_probabilities", bool, None),
    "dbof_cluster_size": ("clusters", int, _DBOF),
    "dbof_hidden_size": ("hidden_size", int, _DBOF),
    "dbof_pooling_method": ("pooling", str, _DBOF),
    "dbof_activation": ("activation", str, _DBOF),
    "dbof_add_batch_norm": ("add_batch_norm", bool, _DBOF),
    "lstm_cells": ("cells", int, _LSTM),
    "lstm_layers": ("layers", int, _LSTM),
    "netvlad_cluster_size": ("clusters", int, _NETVLAD),
    "netvlad_hidden_size": ("hidden_size", int, _NETVLAD),
    "netvlad_relu": ("relu", bool, _NETVLAD),
    "netvlad_add_batch_norm": ("add_batch_norm", bool, _NETVLAD),
    "gating": ("gating", bool, _NETVLAD),
    "pca_eigenvalues": ("pca_eigenvalues", str, _NEXTVLAD),
    "normalization": ("normalization", str, None),
    "pooling": ("pooling", str, None),
    "pooling_args": ("pooling_args", dict, None),
    "head": ("head", str, None),
    "head_args": ("head_args", dict, None),
    "label_processing": ("label_processing", str, None),
    "label_processing_args": ("label_processing_args", dict, None),
}

# Arguments that a mixture's branches have, and not the mixture.
_OF_BRANCHES = ("pca_eigenvalues", "head", "head_args", "num_mixtures", "l2_penalty")
_OF_BRANCHES += ("gating_probabilities", "label_processing", "label_processing_args")

_OF_TEACHER = ("teacher_checkpoint", "distillation_weight", "temperature")
_OF_TEACHER += ("on_missing_soft_labels",)
EMBEDDING_SIZE = "video_embedding_size"  # argument of a model that reads them
_OF_FRAMES = ("frames", "frame_selection", "sample_random_frames", "max_frames")
_OF_FRAMES += ("skip_first_frames", "scene_threshold")
_OF_INIT = ("init_checkpoint", "new_classifier")


def train_dir(flags: FlagValues, help: str = "The run directory.") -> None:
    absl_flags.DEFINE_string("train_dir", "/tmp/yt8m_model/", help, flag_values=flags)


def model_module(flags: FlagValues) -> None:
    absl_flags.DEFINE_string(
        "model_module",
        None,
        "A Python file with models of your own, registered by "
        "@yt8m.registry.register; a run knows its file, unless that was moved.",
        flag_values=flags,
    )


def run_directory(flags: FlagValues) -> str:
    """The directory of --train_dir, without a slash at its end.

    Raises:
        UserError: it is empty.
    """
    require(flags, "train_dir", "No run directory")
    return flags.train_dir.rstrip("/") or "/"


def checkpoint(flags: FlagValues) -> None:
    absl_flags.DEFINE_string(
        "checkpoint",
        "latest",
        "Which checkpoint: latest, best (by validation: GAP, or mAP of segments), or a "
        "step number.",
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


def strategy(flags: FlagValues) -> None:
    """Flags that say where to compute."""
    absl_flags.DEFINE_enum(
        "strategy",
        "auto",
        STRATEGIES,
        "Where to compute; auto: a TPU if there is one, the machines of TF_CONFIG, all "
        "GPUs, or else one device.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "num_gpu", None, "GPUs to use, at most.", 1, flag_values=flags
    )
    absl_flags.DEFINE_string(
        "tpu", None, "The TPU's name, or `local`.", flag_values=flags
    )


def top_k(flags: FlagValues, help: str) -> None:
    absl_flags.DEFINE_integer("top_k", 20, help, 1, flag_values=flags)


def batch_size(flags: FlagValues, default: int, help: str) -> None:
    help += " Of a run that trained in smaller batches: as many as there."
    absl_flags.DEFINE_integer("batch_size", default, help, 1, flag_values=flags)


def weights(flags: FlagValues, of: str) -> None:
    absl_flags.DEFINE_string(
        "weights",
        "",
        f"Weights of the {of}, separated by commas (default: equal ones).",
        flag_values=flags,
    )


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


def prepare_output(flags: FlagValues, name: str, inputs: Iterable[str] = ()) -> None:
    """Checks that the file of the flag `name` can be written, before the work is done.

    Makes its folder. A name that ends in `.predictions` is a folder itself.

    Args:
        flags: of the command; nothing is done if the flag is empty.
        name: of the flag.
        inputs: paths of what is read, which it must not replace.

    Raises:
        UserError: it is an input, or a folder, or cannot be written there.
    """
    import tensorflow as tf

    from yt8m import whole_files
    from yt8m.data.predictions import ENDING, is_predictions

    path = flags[name].value
    if not path:
        return
    said = f"--{name}={path}"
    if remote.is_url(path):
        raise UserError(f"{said}: nothing can be written to a web server.")
    if os.path.realpath(path) in {os.path.realpath(p) for p in inputs if p}:
        raise UserError(
            f"{said} is also an input, which it would replace; choose another name."
        )
    if path.endswith("/") and not path.rstrip("/").endswith(ENDING):
        raise UserError(f"{said} is a folder: give the name of a file in it.")
    path = flags[name].value = path.rstrip("/")
    if tf.io.gfile.isdir(path) and not is_predictions(path):
        raise UserError(
            f"{said} exists and is no folder of predictions; choose another name."
            if path.endswith(ENDING)
            else f"{said} is a folder: give the name of a file in it."
        )
    try:
        whole_files.make_directory(os.path.dirname(path) or ".")
    except UserError as e:
        raise UserError(f"{said} cannot be written: {e}") from e


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
    """Says how many bad records `readers` left out, how many had no soft labels."""
    count = sum(len(reader.bad_records) for reader in readers if reader)
    if count:
        log.warning("%d bad record(s) were left out; each is named above.", count)
    for reader in readers:
        if reader and reader.soft_labels:
            reader.soft_labels.report_missing()


def segment_max_pred(flags: FlagValues) -> None:
    absl_flags.DEFINE_integer(
        "segment_max_pred",
        schema.MAX_SEGMENTS_PER_CLASS,
        "The most segments of a class.",
        1,
        flag_values=flags,
    )


def segment_label_ids_file(flags: FlagValues, what: str, default: str) -> None:
    """The file of the classes of segments: `what` is done with them."""
    absl_flags.DEFINE_string(
        "segment_label_ids_file",
        None,
        f"The classes {what}: a file or URL with the header Index and a class a line "
        f"(default: {default}).",
        flag_values=flags,
    )


def eval_frames(flags: FlagValues) -> None:
    absl_flags.DEFINE_enum(
        "eval_frames",
        None,
        EVAL_FRAMES,
        "Which frames of a video are taken, if the model was trained on some of them: "
        "as many, evenly spaced; as many, drawn as in training but always the same; "
        "or all (default: the model's own, of most models even).",
        flag_values=flags,
    )


def video_embeddings(flags: FlagValues) -> None:
    absl_flags.DEFINE_string(
        "video_embeddings",
        TrainingConfig.video_embeddings,
        "Folders of embeddings of the whole videos, separated by commas, for a model "
        "that sees a segment in its video (written by `inference.py "
        "--output=embeddings --output_file=NAME.embeddings`; default: the run's own).",
        flag_values=flags,
    )


def open_video_embeddings(flags: FlagValues, model: str, args: dict[str, Any]):
    """The `VideoEmbeddings` that a model reads beside its frames, or None.

    Raises:
        UserError: it reads none and they are given, or the other way round, or they
            are of another size.
    """
    from yt8m import registry
    from yt8m.data.video_embeddings import VideoEmbeddings

    known = args
    if model in registry.names():  # that of an export may be in a file elsewhere
        known = registry.arguments(registry.get(model).cls)
    reads = EMBEDDING_SIZE in known
    size = args.get(EMBEDDING_SIZE)
    if not flags.video_embeddings:
        if size or (reads and size is None):
            raise UserError(
                f"{model} sees segments in their videos: give --video_embeddings, what "
                "`inference.py --output=embeddings --output_file=NAME.embeddings` "
                "writes."
            )
        return None
    if not reads or size == 0:
        raise UserError(f"--video_embeddings: {model} reads none; leave it out.")
    found = VideoEmbeddings(flags.video_embeddings)
    if size and size != found.size:
        raise UserError(
            f"--video_embeddings={flags.video_embeddings} has embeddings of "
            f"{found.size} numbers, and {model} reads {size}."
        )
    return found


def warn_of_vocabulary(flags: FlagValues, vocabulary, num_classes: int) -> None:
    """Warns of a vocabulary with classes that the model lacks, of another release."""
    last = max(vocabulary.names, default=-1)
    if last >= num_classes:
        log.warning(
            "--vocabulary=%s names class %d, but there are %d classes: if it is of "
            "another release of the dataset, its names are wrong.",
            flags.vocabulary,
            last,
            num_classes,
        )


def vocabulary(flags: FlagValues, help: str) -> None:
    absl_flags.DEFINE_string("vocabulary", None, help, flag_values=flags)


def model(
    flags: FlagValues,
    segments: str = "Examples are the rated segments of 5 frames, not videos.",
) -> None:
    """Flags that choose the model and its input.

    Args:
        flags: where they are defined.
        segments: what --segment_labels does.
    """
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
    model_module(flags)
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
    absl_flags.DEFINE_alias("iterations", "frames", flag_values=flags)
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
    absl_flags.DEFINE_float(
        "scene_threshold",
        None,
        "Takes only the middle frame of each scene, which ends where the cosine "
        "distance of neighbouring frames is above this.",
        0.0,
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "sample_random_frames",
        None,
        "True is --frame_selection=random, False is --frame_selection=contiguous.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool("segment_labels", False, segments, flag_values=flags)
    integer(
        "segment_context_frames",
        DataConfig.segment_context_frames,
        "Frames before and after a segment that the model sees with it, fewer where "
        "the video begins or ends (default: 0, or as the run was trained).",
        0,
        flag_values=flags,
    )
    define = {
        str: absl_flags.DEFINE_string,
        int: absl_flags.DEFINE_integer,
        float: absl_flags.DEFINE_float,
        bool: absl_flags.DEFINE_bool,
        dict: absl_flags.DEFINE_string,  # name=value,name=value
    }
    for name, (argument, kind, models) in SPELLINGS.items():
        owner = f" of {', '.join(models)}" if models else ""
        define[kind](
            name,
            None,
            f"A spelling of --model_args={argument}=...{owner}.",
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

    string(
        "train_data_pattern",
        "",
        "Training shards: globs, separated by commas; @FILE is a list of them.",
    )
    string("eval_data_pattern", "", "Validation shards, scored while training.")
    integer("batch_size", "Videos in the batch of each replica (GPU, core).", 1)
    absl_flags.DEFINE_integer(
        "global_batch_size",
        None,
        "Videos in the batch of all replicas together, instead of --batch_size.",
        1,
        flag_values=flags,
    )
    integer("num_epochs", "Passes over the data; 0: no limit.")
    integer("max_steps", "Step at which to stop; 0: no limit.")
    integer("seed", "Seed of weights, order and sampling.")
    integer("shuffle_window", "Records shuffled together; 0: the reader's choice.")
    string("label_loss", TrainingConfig.label_loss, "The loss, by name.")
    string("label_loss_args", "", "Its arguments, as name=value,name=value.")
    absl_flags.DEFINE_string(
        "class_counts",
        None,
        "A spelling of --label_loss_args=class_counts=...: the file of "
        "`yt8m count --per_class=FILE`, for ClassBalancedCrossEntropyLoss.",
        flag_values=flags,
    )
    number("regularization_penalty", "Factor of the model's penalties.")
    number(
        "deep_supervision_weight",
        "Factor of the mean loss of a model's auxiliary classifiers.",
    )
    string(
        "optimizer",
        TrainingConfig.optimizer,
        "Adam, AdamW, SGD, Momentum, RMSProp, Adagrad.",
    )
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
    integer("gradient_accumulation_steps", "Parts in which a batch is computed.", 1)
    number("mixup", "Alpha of mixup's Beta distribution; 0: no mixup.")
    distillation(flags)
    fine_tuning(flags)
    string(
        "crop",
        TrainingConfig.crop,
        "Trains on a stretch of each video at a random place: this share of its frames "
        "(0.5: half of the video), or a share drawn between two (0.3,1).",
    )
    number(
        "frame_bootstrap",
        "Draws the frames again with replacement, in the order of time: this share of "
        "their number; 0: off.",
    )
    number("feature_noise", "Deviation of normal noise on all features; 0: off.")
    number(
        "feature_dropout",
        "Share of the dimensions that are zeroed, of each video others; 0: off.",
    )
    number(
        "modality_dropout",
        "Share of the videos of which one feature, such as audio, is zeroed; 0: off.",
    )
    number("ema_decay", "Decay of moving averages of the weights; 0: none.")
    integer("steps_per_loop", "Steps of each call of the device; 0: about a second.")
    for name, help in (
        ("sync_batch_norm", "Takes batch statistics over all replicas."),
        ("jit_compile", "Compiles the step with XLA."),
    ):
        absl_flags.DEFINE_bool(
            name, getattr(TrainingConfig, name), help, flag_values=flags
        )
    number("save_checkpoint_minutes", "Minutes between checkpoints; 0: off.")
    integer("save_checkpoint_steps", "Steps between checkpoints; 0: off.")
    absl_flags.DEFINE_alias(
        "export_model_steps", "save_checkpoint_steps", flag_values=flags
    )
    integer("keep_checkpoints", "Latest checkpoints kept, beside the best.", 1)
    integer("eval_steps", "Steps between validations; 0: at the end only.")
    integer(
        "early_stopping",
        "Stops after this many validations without a better GAP, or, of segments, a "
        "better mAP; 0: never.",
    )
    integer("log_steps", "Steps between reports.", 1)


def distillation(flags: FlagValues) -> None:
    """Flags of a teacher; each is a field of `TrainingConfig`."""
    absl_flags.DEFINE_string(
        "teacher",
        TrainingConfig.teacher,
        "What teaches the model: the --train_dir of a trained run, or a folder of "
        "predictions of the training videos.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "teacher_checkpoint",
        TrainingConfig.teacher_checkpoint,
        "Which checkpoint of the run: latest or best when training begins, or a step.",
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "distillation_weight",
        TrainingConfig.distillation_weight,
        "Weight of the loss with the teacher's soft labels, 0 to 1; the loss with the "
        "labels has the rest.",
        0.0,
        1.0,
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "temperature",
        TrainingConfig.temperature,
        "What the logits of teacher and model are divided by in that loss.",
        0.0,
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "on_missing_soft_labels",
        TrainingConfig.on_missing_soft_labels,
        ON_MISSING_SOFT_LABELS,
        "What to do about a video that the predictions lack: stop and name it, or take "
        "its own labels, and report how many there were.",
        flag_values=flags,
    )


def fine_tuning(flags: FlagValues) -> None:
    """Flags of runs that go on from another's weights, as those on segments do; each
    is a field of `TrainingConfig`."""
    string = absl_flags.DEFINE_string
    string(
        "init_from",
        TrainingConfig.init_from,
        "Begins with the weights of a trained run (its --train_dir), wherever they fit "
        "by name and shape; a classifier of another number of classes is new.",
        flag_values=flags,
    )
    string(
        "init_checkpoint",
        TrainingConfig.init_checkpoint,
        "Which checkpoint of it: latest or best when training begins, or a step.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "new_classifier",
        TrainingConfig.new_classifier,
        "Leaves the classifier of --init_from out, for another list of classes.",
        flag_values=flags,
    )
    string(
        "freeze",
        TrainingConfig.freeze,
        "Weights that stay as they are: patterns separated by commas, each a path "
        "within the model or the beginning of one, as in pool_0,hidden or pool_*.",
        flag_values=flags,
    )
    string(
        "learning_rate_multipliers",
        TrainingConfig.learning_rate_multipliers,
        "Factors of the learning rate, as pattern=factor,pattern=factor: "
        "segment_encoder=0.5.",
        flag_values=flags,
    )
    string(
        "only_classes",
        TrainingConfig.only_classes,
        "Trains on the videos alone that have one of the classes in this file (header "
        "Index, a class a line, as segment_label_ids.csv).",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "mined_negatives",
        TrainingConfig.mined_negatives,
        "Classes that nobody rated of a segment, and its video does not have, that "
        "count as negatives: those that the model is surest of.",
        0,
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "mined_negative_weight",
        TrainingConfig.mined_negative_weight,
        "Weight of each of these; a rating has 1.",
        0.0,
        flag_values=flags,
    )


# --- from flags to configurations ----------------------------------------------------


def parse_arguments(text: str, flag: str) -> dict[str, Any]:
    """Reads `name=value,name=value`, or a JSON object.

    Values are Python literals; anything else is a string. Commas inside brackets or
    quotes do not separate. A run keeps arguments as JSON: tuples are lists from the
    first, so that they are the same when it goes on.

    Raises:
        UserError: a part without `=`, a name given twice, or a value that JSON has not.
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
    try:
        return _in_json(found)
    except TypeError as e:
        raise UserError(f"{flag}={text} cannot be kept with the run: {e}.") from e


def _in_json(value: Any) -> Any:
    """`value` as it is after it was written and read."""
    return json.loads(json.dumps(value))


def format_arguments(arguments: dict[str, Any]) -> str:
    """The text that `parse_arguments` reads as these arguments."""
    return ",".join(f"{name}={value!r}" for name, value in arguments.items())


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
            # With its size given, a shard that lacks it says what it holds.
            raise UserError(
                f"The size of {', '.join(unknown)} is unknown; give --feature_sizes, "
                f"one for each of --feature_names={names}. "
                f"{near_matches(unknown[0], known)}"
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


def model_args(flags: FlagValues) -> dict[str, Any]:
    """The arguments of the model; eigenvalues on a web server are downloaded.

    Raises:
        UserError: as `given_model_args`, or they cannot be had.
    """
    args = given_model_args(flags)
    for owner in (args, args.get("branch_args")):
        url = isinstance(owner, dict) and owner.get("pca_eigenvalues")
        if isinstance(url, str) and remote.is_url(url):
            owner["pca_eigenvalues"] = eigenvalues.download(url)
    return args


def given_model_args(flags: FlagValues) -> dict[str, Any]:
    """The arguments of the model in --model_args and in the flags that spell them.

    Raises:
        UserError: a flag of another model, or an argument given twice.
    """
    args = parse_arguments(flags.model_args or "", "--model_args")
    origin = dict.fromkeys(args, "--model_args")
    for name, (argument, kind, models) in SPELLINGS.items():
        value = flags[name].value
        if value is None:
            continue
        if kind is dict:
            value = parse_arguments(value, f"--{name}")
        if models and flags.model not in models:
            raise UserError(
                f"--{name} is a flag of {', '.join(models)}, not of {flags.model}; "
                "--list_models shows the arguments of each."
            )
        if argument in args:
            raise UserError(f"{origin[argument]} and --{name} both set {argument}.")
        args[argument], origin[argument] = value, f"--{name}"
    if flags.model == "MixtureNeXtVLADModel":
        of_branches = {n: args.pop(n) for n in _OF_BRANCHES if n in args}
        if of_branches:
            args["branch_args"] = (args.get("branch_args") or {}) | of_branches
    return args


def any_model_args_given(flags: FlagValues) -> bool:
    """Whether the user (or a recipe) set an argument of the model."""
    return any(given(flags, name) for name in ("model_args", *SPELLINGS))


def model_config(flags: FlagValues, stored: ModelConfig | None) -> ModelConfig:
    """The model of the flags; what is not given is as `stored`."""
    args = model_args(flags)
    if stored and stored.name == flags.model and not any_model_args_given(flags):
        args = stored.args
    module = flags.model_module
    return ModelConfig(flags.model, args, module and os.path.abspath(module))


def take_over(flags: FlagValues, stored: RunConfig, but: Sequence[str] = ()) -> None:
    """Flags that were not given, and are not in `but`, get the values of a run."""
    values = {
        **dataclasses.asdict(stored.training),
        "model": stored.model.name,
        "model_module": stored.model.module,
        "num_classes": stored.data.num_classes,
        "max_frames": stored.data.max_frames,
        "segment_labels": stored.data.segments,
        "segment_context_frames": stored.data.segment_context_frames,
    }
    for name, value in values.items():
        own = name not in flags or given(flags, name) or name in but
        if not own and not name.endswith("_args"):
            flags[name].value = value


def take_over_for_scoring(flags: FlagValues, stored: RunConfig) -> None:
    """As `take_over`, for a command that scores: what training left out is not left
    out, and batches are smaller only if those of the training were."""
    take_over(flags, stored, but=("batch_size", "on_bad_record"))
    if not given(flags, "batch_size"):
        # A model that trained in small batches may be too large for others.
        flags.batch_size = min(flags.batch_size, stored.training.batch_size)


def check_repeated(flags: FlagValues, stored: RunConfig) -> None:
    """Checks flags of the model that are given again for a run that knows them.

    Raises:
        UserError: one differs from the run's; names both values.
    """
    from yt8m import registry  # which imports Keras

    segments = flags.segment_labels  # of this command, not of the run
    take_over_for_scoring(flags, stored)
    flags.segment_labels = False
    data = dataclasses.replace(stored.data, segments=False)
    if not stored.data.segments:  # it says nothing of the frames around them
        widened = flags.segment_context_frames
        data = dataclasses.replace(data, segment_context_frames=widened)
    again = dataclasses.replace(
        stored,
        model=dataclasses.replace(model_config(flags, None), args=stored.model.args),
        data=data_config(flags, data),
    )
    flags.segment_labels = segments
    advice = "leave the flag out, the run knows it."
    dataclasses.replace(stored, data=data).refuse_changes(again, advice)
    # An export needs no class; that of its model may be in a file which is not here.
    known = dict(stored.model.args)
    if stored.model.name in registry.names():
        known = registry.arguments(registry.get(stored.model.name).cls) | known
    for name, value in model_args(flags).items():
        if name not in known or _in_json(known[name]) != value:
            was = f"{name}={known[name]}" if name in known else f"no argument {name}"
            raise UserError(f"The run was started with {was}, not {name}={value}.")


def warn_of_segments(flags: FlagValues, config: RunConfig) -> None:
    """Says where a run of segments is given whole videos."""
    if config.data.segments and not flags.segment_labels:
        log.warning(
            "The run was trained on segments; these are whole videos. Give "
            "--segment_labels for the segments in them."
        )


def evaluated_data(flags: FlagValues, data: DataConfig) -> tuple[DataConfig, dict]:
    """What evaluation and inference read of a run's data, by --eval_frames.

    Returns:
        The configuration, and the options that the reader gets for it.
    """
    if flags.eval_frames == "random":
        return data, {"frame_seed": 0}
    if flags.eval_frames:
        frames = dataclasses.replace(data.frames, evaluation=flags.eval_frames)
        return dataclasses.replace(data, frames=frames), {}
    return data, {}


def _warn_of_frames(flags: FlagValues) -> None:
    """Says which flags are of frames, where a model sees none."""
    for name in _OF_FRAMES:
        if name in flags and given(flags, name):
            log.warning("--%s has no effect: %s sees no frames.", name, flags.model)


def _held(flags: FlagValues) -> str:
    """What the first shard of the flags holds, for a message; empty if unknown."""
    from yt8m.data.files import describe, list_files, sniff_first

    for name in ("train_data_pattern", "eval_data_pattern", "input_data_pattern"):
        if name in flags and flags[name].value:
            try:
                path, found = sniff_first(list_files(flags[name].value, f"--{name}"))
            except UserError:
                continue  # what is wrong there is not what is to be said
            sizes = {n: size for n, (_, size) in found.features.items()}
            return f" {path} holds {describe(sizes)}."
    return ""


def data_config(flags: FlagValues, default: DataConfig) -> DataConfig:
    """The `DataConfig` of the flags; what is not given comes from `default`."""
    wanted = default.features
    if flags.feature_names:
        try:
            wanted = parse_features(flags.feature_names, flags.feature_sizes)
        except UserError as e:
            raise UserError(f"{e}{_held(flags)}") from e
    elif flags.feature_sizes:
        raise UserError("--feature_sizes is given without --feature_names.")
    method = flags.frame_selection
    if flags.sample_random_frames is not None:
        if method:
            raise UserError(
                "--sample_random_frames and --frame_selection say the same; give one."
            )
        method = "random" if flags.sample_random_frames else "contiguous"
    frames = {
        "count": default.frames.count if flags.frames is None else flags.frames or None,
        "method": method or default.frames.method,
        "skip_first": default.frames.skip_first
        if flags.skip_first_frames is None
        else flags.skip_first_frames,
        "evaluation": default.frames.evaluation,
        "scene_threshold": default.frames.scene_threshold
        if flags.scene_threshold is None
        else flags.scene_threshold,
    }
    if default.level == "video":
        _warn_of_frames(flags)
    elif method and frames["count"] is None:
        name = "frame_selection" if flags.frame_selection else "sample_random_frames"
        log.warning(
            "--%s has no effect: %s takes all frames; give --frames.", name, flags.model
        )
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
        segments=flags.segment_labels,
        segment_context_frames=flags.segment_context_frames,
    )


def training_config(flags: FlagValues) -> TrainingConfig:
    """The `TrainingConfig` of the flags.

    Raises:
        UserError: a value that is refused, or flags of a teacher without one.
    """
    values = {name: flags[name].value for name in TrainingConfig.__dataclass_fields__}
    for name in ("label_loss_args", "optimizer_args"):
        values[name] = parse_arguments(flags[name].value, f"--{name}")
    if flags.class_counts:
        if "class_counts" in values["label_loss_args"]:
            raise UserError(
                "--label_loss_args and --class_counts both set class_counts."
            )
        values["label_loss_args"]["class_counts"] = flags.class_counts
    alone = [name for name in _OF_TEACHER if given(flags, name)]
    if alone and not flags.teacher:
        raise UserError(
            f"--{alone[0]} is of a teacher: give --teacher, a trained run or a folder "
            "of predictions."
        )
    alone = [name for name in _OF_INIT if given(flags, name) and flags[name].value]
    if alone and not flags.init_from:
        raise UserError(f"--{alone[0]} is of --init_from: give that, a trained run.")
    decays = flags.lr_schedule == "exponential"
    for name, used, wanted in (
        ("mined_negative_weight", flags.mined_negatives, "--mined_negatives"),
        ("learning_rate_decay", decays, "--lr_schedule=exponential"),
        ("learning_rate_decay_examples", decays, "--lr_schedule=exponential"),
    ):
        if given(flags, name) and not used:
            log.warning("--%s has no effect without %s.", name, wanted)
    return TrainingConfig(**values)


def parse_weights(flags: FlagValues, count: int) -> list[float] | None:
    """The weights of --weights, divided by their sum; None if it is not given.

    Args:
        flags: of a command with --weights.
        count: how many there must be.

    Raises:
        UserError: another number of them, or one that is negative or no number.
    """
    if not flags.weights:
        return None
    try:
        found = [float(w) for w in flags.weights.split(",")]
    except ValueError:
        found = []
    if len(found) != count or not all(0 <= w < float("inf") for w in found):
        raise UserError(
            f"--weights={flags.weights} must be {count} numbers that are not negative, "
            "separated by commas."
        )
    if not sum(found):
        raise UserError(f"--weights={flags.weights}: one must be positive.")
    return [w / sum(found) for w in found]


def given(flags: FlagValues, name: str) -> bool:
    """Whether the user (or a recipe) set the flag."""
    return bool(flags[name].present)
