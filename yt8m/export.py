"""A trained model as files that serve: a SavedModel, and Keras' own format.

    OUTPUT_DIR/saved_model.pb, variables/    loads with TensorFlow alone
    OUTPUT_DIR/model.keras                   loads with Keras and this package
    OUTPUT_DIR/export.json                   the run's configuration, step, signatures
    OUTPUT_DIR/segment_label_ids.csv         if the run has one

If its weights are stored in fewer bytes (`yt8m.stored_weights`), there is no
`model.keras`, which would hold them as they were.

The SavedModel carries its input transform and has two signatures:

    serving_default   features as they are read, `num_frames`
                      -> `logits`, `predictions` [B, C], `embedding` if there is one
    serve_examples    `example_bytes` string [B], serialized records of the dataset
                      -> `video_id` [B], `class_indexes`, `predictions` [B, k]

A model that reads an embedding of the whole video takes it as `video_embedding` float32
[B, H] in the first; it has no second, as records do not hold it.

`export_mediapipe` writes another SavedModel, for MediaPipe's YouTube-8M graphs, with
`export_mediapipe.json` beside it. Its one signature, `serving_default`:

    rgb_and_audio     float32 [N, T, D], each frame's dequantised features, one after
                      the other, before any normalisation; D = 1024 + 128
    num_frames        int32 [N, 1]
                      -> `predictions` float32 [N, C], probabilities

What the graphs do (mediapipe/graphs/youtube8m, `local_video_model_inference.pbtxt`
and `yt8m_dataset_model_inference.pbtxt`): they load `/tmp/mediapipe/saved_model` by
the tag `serve`, find these names in capitals (`RGB_AND_AUDIO`, ...), and slide a
window of `segment_size` frames over the video, by `segment_size - overlap` in the
first, by one in the second. A window is [1, T, D] with `num_frames` [1, 1] = T; 32
are run together, the last batch padded with copies, and `predictions` cut into rows.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import yt8m
from yt8m import runs, schema, whole_files
from yt8m.config import DataConfig, RunConfig
from yt8m.data.files import describe
from yt8m.data.frames import scene_breaks, select_frames
from yt8m.data.records import parse_batch
from yt8m.data.video_embeddings import FEATURE as VIDEO_EMBEDDING
from yt8m.errors import UserError
from yt8m.model import FrameLevelModel, YT8MModel, forward, top_classes
from yt8m.runs import EXPORT_FILE, SEGMENT_CLASSES_FILE, Run
from yt8m.stored_weights import StoredWeights

log = logging.getLogger("yt8m")

KERAS_FILE = "model.keras"
# Another name than `EXPORT_FILE`: neither kind of export may replace the other, nor
# be taken for it.
MEDIAPIPE_FILE = "export_mediapipe.json"


def export(
    run: Run,
    output_dir: str,
    top_k: int = 20,
    method: str | None = None,
    check: Callable[[str], None] = lambda directory: None,
) -> None:
    """Writes `run`'s model to `output_dir`, replacing an earlier export there.

    All is written under a temporary name and renamed.

    Args:
        run: a restored run.
        output_dir: a new or empty directory, or one that holds an export.
        top_k: predictions that `serve_examples` gives for each record; all classes
            if there are fewer.
        method: of `yt8m.compression`; None stores the weights as they are.
        check: gets the directory before it is there under its name; may raise.

    Raises:
        UserError: `output_dir` holds something else or cannot be written, or Keras
            cannot save the model.
    """
    write_export(run, run.model, run.config.data, output_dir, top_k, method, check)


def write_export(
    run: Run,
    model: Any,
    data: DataConfig,
    output_dir: str,
    top_k: int,
    method: str | None,
    check: Callable[[str], None],
    **more: dict[str, Any],
) -> None:
    """As `export`, a model that is made of one or of several runs.

    Args:
        run: the only one or the first.
        model: called like a model; a Keras model if it is the run's own.
        data: what it reads.
        output_dir, top_k, method, check: as `export`.
        more: what `export.json` says of other runs.
    """
    module, signatures = serving_module(model, data, top_k, method)

    def write(directory: str) -> None:
        tf.saved_model.save(module, directory, signatures)
        if model is run.model and not method:
            _save_keras(run, directory)
        classes = os.path.join(run.directory, SEGMENT_CLASSES_FILE)
        if tf.io.gfile.exists(classes):
            tf.io.gfile.copy(classes, os.path.join(directory, SEGMENT_CLASSES_FILE))
        config = dataclasses.replace(run.config, data=data)
        if method:
            more["compression"] = {"method": method}
        path = os.path.join(directory, EXPORT_FILE)
        write_record(run, signatures, path, config=config, **more)
        check(directory)

    write_directory(output_dir, EXPORT_FILE, write)


def export_mediapipe(run: Run, output_dir: str) -> None:
    """Writes `run`'s model for MediaPipe's YouTube-8M graphs, as `export` writes.

    A model of other features than rgb 1024 and audio 128, in this order, is written
    with those it has, one after the other; a warning says that the graphs do not fit.

    Args:
        run: a restored run of a frame-level model.
        output_dir: as for `export`.

    Raises:
        UserError: the model is a video-level one, or `output_dir` holds something
            else or cannot be written.
    """
    data, name = run.config.data, run.config.model.name
    if data.level != "frame":
        raise UserError(
            f"{run.directory} holds {name}, a video-level model, but MediaPipe feeds "
            "frames; give the --train_dir of a frame-level model."
        )
    if VIDEO_EMBEDDING in run.model.input_names:
        raise UserError(
            f"{run.directory} holds {name}, which reads an embedding of the whole "
            "video; MediaPipe feeds frames alone."
        )
    if list(data.features.items()) != list(schema.FRAME_FEATURES.items()):
        log.warning(
            "%s takes frames of %s; MediaPipe's own graphs feed %s.",
            name,
            describe(data.features),
            describe(schema.FRAME_FEATURES),
        )
    module, signatures = mediapipe_module(run.model, data)

    def write(directory: str) -> None:
        tf.saved_model.save(module, directory, signatures)
        write_record(run, signatures, os.path.join(directory, MEDIAPIPE_FILE))

    write_directory(output_dir, MEDIAPIPE_FILE, write)


def write_directory(
    output_dir: str, record_file: str, write: Callable[[str], None]
) -> None:
    """Has `write` fill a directory under a temporary name, and renames that.

    Args:
        output_dir: a new or empty directory, or one with an earlier `record_file`,
            which is replaced.
        record_file: a file that `write` writes, by which the directory is known.
        write: gets the temporary directory.

    Raises:
        UserError: `output_dir` holds something else, or cannot be written.
    """
    output_dir = output_dir.rstrip("/")
    runs.refuse_brackets(output_dir)
    _refuse_foreign(output_dir, record_file)
    # A name of its own: another process, or one that was killed, may have left files.
    temporary = whole_files.temporary_name(output_dir)
    whole_files.make_directory(temporary)
    try:
        write(temporary)
        _replace(temporary, output_dir)
    except BaseException as e:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)
        if isinstance(e, OSError | tf.errors.OpError):
            reason = runs.reason(e)
            raise UserError(f"{output_dir} cannot be written: {reason}") from e
        raise


def _refuse_foreign(directory: str, record_file: str) -> None:
    exists = tf.io.gfile.exists(directory)
    if exists and not tf.io.gfile.isdir(directory):
        raise UserError(f"{directory} is a file; choose another --output_dir.")
    record = os.path.join(directory, record_file)
    if exists and tf.io.gfile.listdir(directory) and not tf.io.gfile.exists(record):
        raise UserError(
            f"{directory} is not empty and not an export of this kind (no "
            f"{record_file}); choose another --output_dir."
        )


def _replace(temporary: str, directory: str) -> None:
    """Moves an earlier export aside first, so that one of the two is always whole."""
    aside = f"{temporary}.replaced"
    if tf.io.gfile.exists(directory):
        tf.io.gfile.rename(directory, aside)
    tf.io.gfile.rename(temporary, directory)
    if tf.io.gfile.exists(aside):
        tf.io.gfile.rmtree(aside)


def _save_keras(run: Run, directory: str) -> None:
    try:
        run.model.save(os.path.join(directory, KERAS_FILE))
    except (NotImplementedError, TypeError, ValueError) as e:
        raise UserError(
            f"{run.config.model.name} cannot be saved as {KERAS_FILE}; its class needs "
            f"a `get_config` that Keras can write as JSON: {runs.reason(e)}"
        ) from e


def write_record(
    run: Run,
    signatures: dict[str, Any],
    path: str,
    config: RunConfig | None = None,
    **more: dict[str, Any],
) -> None:
    """Writes what a SavedModel was made of, and `more`, as JSON."""
    record = {
        "config": dataclasses.asdict(config or run.config),
        "step": run.checkpoint.step,
        "versions": {
            "yt8m": yt8m.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "signatures": {name: _describe(f) for name, f in signatures.items()},
        **more,
    }
    whole_files.write_file(path, json.dumps(record, indent=2) + "\n")


def serving_module(
    model: YT8MModel,
    data: DataConfig,
    top_k: int = 20,
    method: str | None = None,
) -> tuple[tf.Module, dict[str, Any]]:
    """What `tf.saved_model.save` takes: the variables, and the two signatures.

    Args:
        model: a built model.
        data: what it was trained to read; `serve_examples` parses records with it,
            and takes the frames that evaluation takes. Of a model trained on rated
            segments, it takes a record for one segment, whatever its length.
        top_k, method: as `export`.
    """
    parsed = dataclasses.replace(data, segments=False)  # ratings are not asked for
    weights = StoredWeights(model.variables, method)

    def compute(inputs):
        with weights.scope():
            return forward(model, inputs)

    @tf.function
    def serve_tensors(**inputs):
        outputs = compute(inputs)
        served = {
            "logits": outputs["logits"],
            "predictions": tf.sigmoid(outputs["logits"]),
        }
        if "embedding" in outputs:
            served["embedding"] = tf.cast(outputs["embedding"], tf.float32)
        return served

    @tf.function
    def serve_examples(example_bytes):
        keywords = (
            {"float_features": data.float_features} if data.level == "frame" else {}
        )
        batch, host = parse_batch(example_bytes, parsed, **keywords)
        classes, scores = top_classes(compute(batch)["logits"], top_k)
        return {
            "video_id": host["id"],
            "class_indexes": classes,
            "predictions": scores,
        }

    signatures = {
        "serving_default": serve_tensors.get_concrete_function(
            **_input_specs(model, data)
        ),
    }
    if VIDEO_EMBEDDING not in model.input_names:
        signatures["serve_examples"] = serve_examples.get_concrete_function(
            tf.TensorSpec([None], tf.string, "example_bytes")
        )
    return weights, signatures


def mediapipe_module(
    model: FrameLevelModel, data: DataConfig
) -> tuple[tf.Module, dict[str, Any]]:
    """As `serving_module`, with the signature that MediaPipe's graphs use.

    Args:
        model: a built model.
        data: what it was trained to read. Of the frames fed, those are taken that
            evaluation would take of such a video.
    """
    sizes = list(model.features.values())

    @tf.function
    def serve(rgb_and_audio, num_frames):
        # A count beyond the frames fed would read what is not there.
        most = tf.minimum(tf.shape(rgb_and_audio)[1], data.max_frames)
        available = tf.clip_by_value(tf.reshape(num_frames, [-1]), 0, most)
        breaks, threshold = None, data.frames.scene_threshold
        if threshold is not None:
            breaks = scene_breaks([rgb_and_audio], threshold, data.max_frames)
        indices, taken = select_frames(available, data.frames, None, breaks=breaks)
        frames = tf.gather(rgb_and_audio, indices, batch_dims=1)
        inputs = dict(zip(model.features, tf.split(frames, sizes, -1), strict=True))
        logits = forward(model, inputs | {"num_frames": taken})["logits"]
        return {"predictions": tf.sigmoid(logits)}

    signature = serve.get_concrete_function(
        tf.TensorSpec([None, None, sum(sizes)], tf.float32, "rgb_and_audio"),
        tf.TensorSpec([None, 1], tf.int32, "num_frames"),
    )
    return StoredWeights(model.variables), {"serving_default": signature}


def _input_specs(model: YT8MModel, data: DataConfig) -> dict[str, tf.TensorSpec]:
    """The inputs in the types in which the reader gives them."""
    specs = {}
    for name in model.input_names:
        if data.level == "video":  # where `num_frames` may be a feature
            specs[name] = tf.TensorSpec([None, data.features[name]], tf.float32, name)
        elif name == "num_frames":
            specs[name] = tf.TensorSpec([None], tf.int32, name)
        elif name == VIDEO_EMBEDDING:
            size = model.video_embedding_size
            specs[name] = tf.TensorSpec([None, size], tf.float32, name)
        else:
            dtype = tf.float32 if name in data.float_features else tf.uint8
            specs[name] = tf.TensorSpec([None, None, data.features[name]], dtype, name)
    return specs


def empty_video(model: YT8MModel, data: DataConfig) -> dict[str, tf.Tensor]:
    """What `model` reads, of one video of one frame, all zeros."""
    return {
        name: tf.zeros([1 if size is None else size for size in spec.shape], spec.dtype)
        for name, spec in _input_specs(model, data).items()
    }


def _describe(signature: Any) -> dict[str, dict[str, str]]:
    """Names of a signature's inputs and outputs, each with its type and shape."""

    def text(spec: Any) -> str:
        dims = ["?" if d is None else str(d) for d in spec.shape]
        return f"{spec.dtype.name} [{', '.join(dims)}]"

    positional, inputs = signature.structured_input_signature
    inputs = {**{s.name: s for s in positional}, **inputs}
    outputs = signature.structured_outputs
    return {
        "inputs": {name: text(spec) for name, spec in inputs.items()},
        "outputs": {name: text(spec) for name, spec in outputs.items()},
    }
