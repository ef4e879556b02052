"""Predicts the labels of shards: Kaggle submissions, segments, listings, embeddings.

    python inference.py --train_dir=/tmp/netvlad \\
        --input_data_pattern='test*.tfrecord' --output_file=submission.csv

Segments of 5 frames, for the submission of 2019:

    python inference.py --train_dir=/tmp/netvlad --segment_labels \\
        --segment_label_ids_file=segment_label_ids.csv \\
        --input_data_pattern='test*.tfrecord' --output_file=segments.csv

With what the winners of 2019 did: windows shifted by up to 2 s, without the segments
that nobody rated, times the video's own probability:

    python inference.py --train_dir=/tmp/netvlad --segment_labels \\
        --segment_shifts=-2,-1,0,1,2 --segment_drop_first=6 --segment_drop_last=2 \\
        --video_predictions=video.predictions --video_cutoff=0.0002 \\
        --input_data_pattern='test*.tfrecord' --output_file=segments.csv

In ten processes, each with its own part of the files; writes
scores-00003-of-00010.csv, and `yt8m merge` joins the ten:

    python inference.py --train_dir=/tmp/netvlad --num_shards=10 --shard_index=3 \\
        --input_data_pattern='test*.tfrecord' --output_file=scores.csv

Predictions to keep, for ensembles and distillation: the 100 best classes of each video,
in a folder that joins them to records by id (`yt8m merge` makes a submission of it):

    python inference.py --train_dir=/tmp/netvlad \\
        --input_data_pattern='train*.tfrecord' --output_file=train.predictions

Embeddings, on which video-level models train with --feature_names=embedding:

    python inference.py --train_dir=/tmp/netvlad --output=embeddings \\
        --input_data_pattern='train*.tfrecord' --output_file=train.tfrecord

Flags of the model may be repeated; they are checked against the run, which knows them.
"""

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from yt8m import schema
from yt8m.cli import flags as shared
from yt8m.config import DataConfig, FrameSelection, RunConfig
from yt8m.errors import UserError

log = logging.getLogger("yt8m")

_LISTED_OF_A_SEGMENT = 3
_STORED_OF_A_VIDEO = 100
_OF_SEGMENTS = (
    "segment_max_pred",
    "segment_label_ids_file",
    "segment_stride",
    "segment_shifts",
    "segment_average",
    "segment_drop_first",
    "segment_drop_last",
    "video_predictions",
    "video_power",
    "video_cutoff",
    "class_relevance",
)


# What these flags name is read; and what a run or an export is made of.
_FILES_READ = ("vocabulary", "segment_label_ids_file", "video_predictions")
_FILES_READ += ("video_embeddings", "class_relevance", "input_model_tgz")
_FILES_READ += ("model_module",)
_FILES_OF_MODELS = ("config.json", "checkpoints", "metrics.csv", "records.json")
_FILES_OF_MODELS += ("events", "eval", "eval-segments", "segment_label_ids.csv")
_FILES_OF_MODELS += ("export.json", "saved_model.pb", "variables", "model.keras")


def define(flags: shared.FlagValues) -> None:
    shared.train_dir(flags)
    shared.checkpoint(flags)
    shared.batch_size(flags, 512, "Videos in a batch; does not change the result.")
    shared.bad_records(flags)
    shared.strategy(flags)
    shared.eval_frames(flags)
    shared.video_embeddings(flags)
    shared.top_k(
        flags,
        "Predictions written for each video; in a folder NAME.predictions "
        f"{_STORED_OF_A_VIDEO} unless given, and all classes if there are no more; of "
        f"segments, those listed by --names ({_LISTED_OF_A_SEGMENT} of each unless "
        "given).",
    )
    string = absl_flags.DEFINE_string
    string(
        "saved_model",
        None,
        "Directory of an exported model, to be used instead of --train_dir.",
        flag_values=flags,
    )
    string(
        "input_model_tgz",
        "",
        "A model bundle, to be used instead of --train_dir.",
        flag_values=flags,
    )
    string(
        "untar_model_dir",
        "",
        "Where it is unpacked and kept (default: a temporary directory).",
        flag_values=flags,
    )
    string(
        "output_model_tgz",
        "",
        "Also write the model, weights and configuration, as one file.",
        flag_values=flags,
    )
    string(
        "input_data_pattern",
        "",
        "Shards to predict: globs, separated by commas; @FILE is a list of them.",
        flag_values=flags,
    )
    string(
        "output_file",
        "",
        "The file to write; a submission is gzipped if it ends in .gz. A name that "
        "ends in .predictions is a folder of stored predictions.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "output",
        "predictions",
        ["predictions", "embeddings"],
        "What to write; embeddings are what the classifier sees of a video, as a "
        "TFRecord file of video-level records; or, where --output_file ends in "
        ".embeddings, a folder for --video_embeddings.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "embedding",
        "embedding",
        ["embedding", "layer_outputs"],
        "Which output is written as embeddings: what the classifier sees, or, of an "
        "LSTM, the last outputs of all layers side by side.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "output_format",
        None,
        ["csv", "tfrecord"],
        "csv is Kaggle's (the default); tfrecord, for --segment_labels, keeps the "
        "scores, for `yt8m merge` and ensembles (the default with --num_shards).",
        flag_values=flags,
    )
    shared.model(
        flags,
        "Predicts each 5 seconds of the videos, and ranks them for each class.",
    )
    shared.segment_max_pred(flags)
    shared.segment_label_ids_file(
        flags, "to rank", "those of the rated segments that the run saw"
    )
    _define_segments(flags)
    _define_shards(flags)
    string(
        "names",
        None,
        "Also write a listing for people: .csv, or .json for an object a line. Of "
        "segments, a timeline.",
        flag_values=flags,
    )
    shared.vocabulary(flags, "A vocabulary.csv with the names of the classes.")


def _define_segments(flags: shared.FlagValues) -> None:
    """Flags of --segment_labels alone; `_OF_SEGMENTS` names them."""
    integer, string = absl_flags.DEFINE_integer, absl_flags.DEFINE_string
    integer(
        "segment_stride",
        schema.SEGMENT_FRAMES,
        "Seconds from one segment's start to the next.",
        1,
        flag_values=flags,
    )
    absl_flags.DEFINE_list(
        "segment_shifts",
        ["0"],
        "A segment's score is the mean over windows shifted by these seconds, as "
        "-2,-1,0,1,2, within the video.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "segment_average",
        "probabilities",
        ["probabilities", "logits"],
        "Of what that mean is.",
        flag_values=flags,
    )
    for name, place, number in (("first", "start", 6), ("last", "end", 2)):
        integer(
            f"segment_drop_{name}",
            0,
            f"Segments of 5 seconds left out at the {place} of each video; of the "
            f"dataset's the {name} {number} never were rated.",
            0,
            flag_values=flags,
        )
    string(
        "video_predictions",
        None,
        "A folder NAME.predictions of the videos: the score of a segment is its "
        "probability times the video's.",
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "video_power", 1.0, "Power of the video's probability.", flag_values=flags
    )
    absl_flags.DEFINE_float(
        "video_cutoff",
        0.0,
        "Classes of a video whose probability is below this are not ranked there.",
        flag_values=flags,
    )
    string(
        "class_relevance",
        None,
        "A last step before the ranking: a table Class,Other,Weight (.csv), or a "
        "Python file that defines class_relevance(candidates) (.py).",
        flag_values=flags,
    )


def _define_shards(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_integer(
        "num_shards",
        1,
        "Parts into which the input files are divided.",
        1,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "shard_index",
        None,
        "The part that is predicted here, from 0. Its number is added to the names of "
        "the files that are written, as in NAME-00003-of-00010.csv, unless they hold "
        "it.",
        0,
        flag_values=flags,
    )


def run(flags: shared.FlagValues) -> int:
    _take_off_slash(flags)
    if not flags.input_model_tgz:
        return _predict(flags)
    from yt8m.inference import bundle

    if flags.saved_model or (shared.given(flags, "train_dir") and flags.train_dir):
        raise UserError(
            "--input_model_tgz brings its own model: leave out --train_dir and "
            "--saved_model."
        )
    with tempfile.TemporaryDirectory() as temporary:
        directory = flags.untar_model_dir or os.path.join(temporary, "model")
        flags.train_dir = bundle.read_bundle(flags.input_model_tgz, directory)
        return _predict(flags)


def _predict(flags: shared.FlagValues) -> int:
    from yt8m import distribution
    from yt8m.data import pipeline, video_embeddings
    from yt8m.data.predictions import ENDING
    from yt8m.inference import embeddings, predict

    shared.require(flags, "input_data_pattern", "No data to predict")
    shared.require(flags, "output_file", "No file to write")
    _refuse_contradictions(flags)
    files = pipeline.list_files(flags.input_data_pattern, "--input_data_pattern")
    shard = (flags.num_shards, flags.shard_index or 0)
    files = predict.shard_files(files, *shard)
    output_file = predict.shard_path(flags.output_file, *shard)
    names = predict.shard_path(flags.names, *shard) if flags.names else None
    stored = output_file.endswith(ENDING)
    folder = output_file.endswith(video_embeddings.ENDING)
    _prepare_outputs(flags, output_file, names, files, stored or folder)

    listing_file = _listing(flags, names)
    together = flags.strategy == "auto" and flags.num_shards == 1
    if together or flags.strategy == "multi_worker":
        distribution.refuse_workers(
            "a prediction is written by one process: give each worker a part of the "
            "files by --num_shards and --shard_index (`yt8m merge` joins the results)."
        )
    strategy = distribution.create_strategy(
        flags.strategy, flags.num_gpu, flags.tpu, alone=True
    )
    with strategy.scope():
        model, config, origin = _load(flags)
    data = config.data
    shared.warn_of_segments(flags, config)
    _check_vocabulary(flags, data.num_classes)
    data, options, most_frames = _data_read(flags, data, origin)
    if flags.segment_labels:
        classes = _segment_classes(flags, data.num_classes)
        steps = _segment_options(flags), _rescoring(flags, classes)
    reader = pipeline.Reader(
        pipeline.check_files(files, data, wanted_by=origin),
        data,
        batch_size=flags.batch_size,
        on_bad_record=flags.on_bad_record,
        num_readers=flags.num_readers,
        needs_id=True,
        static_frames=distribution.wants_static_shapes(strategy),
        video_embeddings=shared.open_video_embeddings(
            flags, config.model.name, config.model.args
        ),
        **options,
    )
    with listing_file as listing:
        if flags.segment_labels:
            said = _write_segments(
                flags,
                model,
                reader,
                classes,
                steps,
                most_frames,
                listing,
                output_file,
                strategy,
            )
        elif flags.output == "embeddings":
            count, size = embeddings.write_embeddings(
                model,
                reader,
                output_file,
                strategy=strategy,
                output=flags.embedding,
                written_by=origin,
            )
            said = f"{count} embeddings of {size} numbers made"
            if not folder:
                said = (
                    f"{count} embeddings made (--feature_names={embeddings.FEATURE} "
                    f"--feature_sizes={size})"
                )
        else:
            more = stored and not shared.given(flags, "top_k")
            count = predict.predict(
                model,
                reader,
                output_file,
                top_k=_STORED_OF_A_VIDEO if more else flags.top_k,
                listing=listing,
                strategy=strategy,
                written_by=origin,
            )
            said = f"{count} videos predicted"
    shared.report_left_out(reader)
    print(f"{said} by {origin}: {output_file}")
    return 0


def _data_read(
    flags: shared.FlagValues, data: DataConfig, origin: str
) -> tuple[DataConfig, dict[str, Any], int | None]:
    """What is read of a run's data, the reader's options, and the most frames that the
    model takes of a segment (None: all)."""
    # A model that was trained on segments predicts whole videos too.
    data, options = shared.evaluated_data(
        flags, dataclasses.replace(data, segments=False)
    )
    most_frames = data.frames.evaluated().count
    if flags.segment_labels:
        if data.level != "frame":
            raise UserError(
                f"--segment_labels needs a frame-level model; {origin} is of a "
                "video-level one, which sees no frames."
            )
        if data.frames.scene_threshold is not None:
            raise UserError(
                f"{origin} takes a frame of each scene (--scene_threshold="
                f"{data.frames.scene_threshold}); segments have none: leave out "
                "--segment_labels."
            )
        data = dataclasses.replace(data, frames=FrameSelection())  # skips none
    if flags.output == "embeddings":  # also of videos with classes that are new
        data = dataclasses.replace(data, num_classes=schema.MOST_CLASSES)
    return data, options, most_frames


def _take_off_slash(flags: shared.FlagValues) -> None:
    """Lets a folder's name end in a slash; raises an error where a file is wanted."""
    from yt8m.data import predictions, video_embeddings

    given = flags.output_file or ""
    path, folders = given.rstrip("/"), (predictions.ENDING, video_embeddings.ENDING)
    if path != given and not path.endswith(folders):
        raise UserError(
            f"--output_file={given} is a folder: give the name of a file in it."
        )
    flags["output_file"].value = path


def _prepare_outputs(
    flags: shared.FlagValues,
    output_file: str,
    names: str | None,
    files: Sequence[str],
    is_folder: bool,
) -> None:
    """Looks, before anything is computed, whether the outputs can be written."""
    from yt8m import whole_files

    _refuse_output(flags, "output_file", output_file, files, is_folder)
    _refuse_output(flags, "names", names, files)
    _refuse_output(flags, "output_model_tgz", flags.output_model_tgz, files)
    for path in filter(None, (output_file, names, flags.output_model_tgz)):
        whole_files.make_directory(os.path.dirname(path) or ".")


def _refuse_output(
    flags: shared.FlagValues,
    name: str,
    path: str | None,
    files: Sequence[str],
    is_folder: bool = False,
) -> None:
    """Raises `UserError` for an output that would replace what is not a prediction.

    Args:
        flags: of this command.
        name: of the flag of the output.
        path: of the output; none if it is empty.
        files: the shards to predict.
        is_folder: whether the output is one.
    """
    import tensorflow as tf

    if not path:
        return
    if tf.io.gfile.isdir(path) and not is_folder:
        raise UserError(f"{path} is a directory; give --{name} a name.")
    real = os.path.realpath(path)
    if real in map(os.path.realpath, files):
        raise UserError(
            f"--{name}={path} is one of the shards to predict, which it would "
            "replace; give it another name."
        )
    for read in _FILES_READ:
        value = flags[read].value
        if value and os.path.realpath(value) == real:
            raise UserError(
                f"--{name}={path} is the file of --{read}, which it would replace; "
                "give it another name."
            )
    model = os.path.realpath(flags.saved_model or flags.train_dir or ".")
    inside = os.path.relpath(real, model).split(os.sep)[0]
    if inside in _FILES_OF_MODELS:
        raise UserError(
            f"--{name}={path} is a file of the model in {model}, which it would "
            "replace; give it another name."
        )


def _refuse_contradictions(flags: shared.FlagValues) -> None:
    """Raises `UserError` for flags that make no sense together."""

    def refuse(wrong: bool, text: str) -> None:
        if wrong:
            raise UserError(text)

    from yt8m.data import video_embeddings
    from yt8m.data.predictions import ENDING

    folder = flags.output_file.endswith(video_embeddings.ENDING)
    embeddings = flags.output == "embeddings"
    stored = flags.output_file.endswith(ENDING)
    refuse(
        stored and (embeddings or flags.segment_labels or bool(flags.output_format)),
        f"--output_file={flags.output_file}: the folder of predictions of videos that "
        f"{ENDING} names goes with none of --output=embeddings, --segment_labels and "
        "--output_format.",
    )
    refuse(
        folder and not embeddings,
        f"--output_file={flags.output_file} is a folder of embeddings: give "
        "--output=embeddings, or choose another name.",
    )
    refuse(
        folder and flags.output_format == "tfrecord",
        f"--output_format=tfrecord: {flags.output_file} is a folder of embeddings; a "
        "file of records has another name.",
    )
    refuse(
        shared.given(flags, "embedding") and not embeddings,
        f"--embedding={flags.embedding} is of --output=embeddings: give that.",
    )
    refuse(
        flags.num_shards > 1 and flags.shard_index is None,
        f"--num_shards={flags.num_shards}: give --shard_index, the part to predict "
        f"here, 0 .. {flags.num_shards - 1}.",
    )
    for names, needed in (
        (_OF_SEGMENTS, "segment_labels"),
        (("video_power", "video_cutoff"), "video_predictions"),
        (("segment_average",), "segment_shifts"),
    ):
        for name in names:
            missing = not shared.given(flags, needed) or not flags[needed].value
            refuse(
                shared.given(flags, name) and missing,
                f"--{name} is given without --{needed}.",
            )
    for name in ("segment_labels", "names", "top_k"):
        refuse(
            embeddings and shared.given(flags, name) and bool(flags[name].value),
            f"--{name} is of no use to --output=embeddings; leave it out.",
        )
    refuse(
        flags.segment_labels and flags.eval_frames == "random",
        "--eval_frames=random: the frames of a segment are not drawn; leave it out.",
    )
    refuse(
        bool(flags.names) != bool(flags.vocabulary),
        "--names, the listing to write, and --vocabulary, the file with the names, "
        "must be given together.",
    )
    refuse(
        bool(flags.output_model_tgz and flags.saved_model),
        "--output_model_tgz bundles a run: give --train_dir, not --saved_model.",
    )
    refuse(
        bool(flags.untar_model_dir and not flags.input_model_tgz),
        "--untar_model_dir is given without --input_model_tgz.",
    )
    refuse(
        flags.names == flags.output_file,
        f"--names and --output_file are both {flags.names}.",
    )
    refuse(
        embeddings and flags.output_format == "csv",
        "--output_format=csv: embeddings are written as a TFRecord file only.",
    )
    refuse(
        flags.output_format == "tfrecord" and not (flags.segment_labels or embeddings),
        "--output_format=tfrecord needs --segment_labels: the CSV of videos holds all "
        "scores.",
    )
    refuse(
        flags.output_format == "csv" and flags.segment_labels and flags.num_shards > 1,
        "--output_format=csv: a CSV of segments holds no scores by which those of "
        f"{flags.num_shards} shards could be merged; leave it out.",
    )
    for name in ("train_dir", "checkpoint"):
        if flags.saved_model and shared.given(flags, name):
            log.warning("--%s has no effect beside --saved_model.", name)
    if flags.segment_labels and shared.given(flags, "top_k") and not flags.names:
        log.warning(
            "--top_k=%d has no effect on segments: each class ranks all of them.",
            flags.top_k,
        )


def _load(flags: shared.FlagValues) -> tuple[Any, RunConfig, str]:
    """The model, its run's configuration, and the name of where it comes from."""
    from yt8m import runs
    from yt8m.inference import bundle, predict

    if flags.saved_model:
        exported = predict.load_saved_model(flags.saved_model)
        runs.load_registries()
        shared.check_repeated(flags, exported.run_config)
        return exported, exported.run_config, flags.saved_model
    directory = shared.run_directory(flags)
    config = runs.read_config(directory, flags.model_module)
    runs.load_registries(config.model.module)
    shared.check_repeated(flags, config)
    run = runs.load_run(directory, flags.checkpoint, flags.model_module)
    if flags.output_model_tgz:
        bundle.write_bundle(run, flags.output_model_tgz)
    return run.model, run.config, run.checkpoint.path


def _segment_classes(flags: shared.FlagValues, num_classes: int) -> Any:
    """The classes to rank, ascending: of the flag's file, or of the run's own.

    Raises:
        UserError: there is neither, or a class that the model does not have.
    """
    import numpy as np
    import tensorflow as tf

    from yt8m import runs
    from yt8m.data.segments import load_class_ids

    path = flags.segment_label_ids_file
    if not path:
        directory = flags.saved_model or flags.train_dir
        path = os.path.join(directory, runs.SEGMENT_CLASSES_FILE)
        if not tf.io.gfile.exists(path):
            raise UserError(
                "Which classes to rank is not known: give --segment_label_ids_file, "
                "which `yt8m count --segments --output_file=...` writes from rated "
                "shards, or score the run on them with `eval.py --segment_labels`."
            )
    classes = np.unique(load_class_ids(path))
    if classes[-1] >= num_classes:
        raise UserError(
            f"{path}: class {classes[-1]} is not one of the model's {num_classes}."
        )
    log.info("%d classes of segments, from %s.", len(classes), path)
    return classes


def _segment_options(flags: shared.FlagValues) -> Any:
    """Which segments, from which windows."""
    from yt8m.inference.windows import SegmentOptions

    try:
        shifts = tuple(int(shift) for shift in flags.segment_shifts)
    except ValueError:
        raise UserError(
            f"--segment_shifts={','.join(flags.segment_shifts)} must be whole seconds, "
            "separated by commas."
        ) from None
    return SegmentOptions(
        stride=flags.segment_stride,
        shifts=shifts,
        average=flags.segment_average,
        drop_first=flags.segment_drop_first,
        drop_last=flags.segment_drop_last,
    )


def _rescoring(flags: shared.FlagValues, classes: Any) -> Any:
    """The steps between logits and ranking, or None."""
    from yt8m.inference.class_relevance import load_class_relevance
    from yt8m.inference.rescoring import Rescoring, VideoPrior

    if not flags.video_predictions and not flags.class_relevance:
        return None
    prior = relevance = None
    if flags.video_predictions:
        prior = VideoPrior(
            flags.video_predictions, classes, flags.video_power, flags.video_cutoff
        )
    if flags.class_relevance:
        relevance = load_class_relevance(flags.class_relevance, classes)
    return Rescoring(classes, prior, relevance)


def _check_vocabulary(flags: shared.FlagValues, num_classes: int) -> None:
    """Warns of a vocabulary of another release."""
    from yt8m.data.vocabulary import load_vocabulary

    if flags.names:
        vocabulary = load_vocabulary(flags.vocabulary)
        shared.warn_of_vocabulary(flags, vocabulary, num_classes)


def _listing(flags: shared.FlagValues, path: str | None) -> Any:
    """The listing of --names in the file `path`, or a context of None."""
    if not path:
        return contextlib.nullcontext()
    from yt8m.data.vocabulary import load_vocabulary
    from yt8m.inference import listing

    return listing.ListingWriter(
        path,
        load_vocabulary(flags.vocabulary).name,
        segments=flags.segment_labels,
    )


def _write_segments(
    flags: shared.FlagValues,
    model: Any,
    reader: Any,
    classes: Any,
    steps: tuple[Any, Any],
    most_frames: int | None,
    listing: Any,
    output_file: str,
    strategy: Any,
) -> str:
    """Ranks the segments, writes the ranking, and says what was done.

    `steps` are which segments from which windows, and what comes after their logits.
    """
    from yt8m.inference import predict
    from yt8m.inference.segments import SegmentRanking

    ranking = SegmentRanking(classes, limit=flags.segment_max_pred)
    options, rescoring = steps
    count = predict.predict_segments(
        model,
        reader,
        ranking,
        options=options,
        rescoring=rescoring,
        most_frames=most_frames,
        context_frames=flags.segment_context_frames,
        listing=listing,
        listed=flags.top_k if shared.given(flags, "top_k") else _LISTED_OF_A_SEGMENT,
        strategy=strategy,
    )
    if not ranking.num_segments:
        raise UserError(
            f"None of the {count} videos has a segment to rank; "
            f"--segment_drop_first={flags.segment_drop_first} and "
            f"--segment_drop_last={flags.segment_drop_last} leave out that many of "
            "each, and one has 5 frames."
        )
    said = f"{ranking.num_segments} segments of {count} videos predicted"
    if flags.output_format == "tfrecord" or flags.num_shards > 1:
        ranking.write(output_file)
        return f"{said}, with scores for `yt8m merge`,"
    ranking.write_csv(output_file)
    return said
