"""A trained model as files that serve: a SavedModel, and Keras' own format.

    OUTPUT_DIR/saved_model.pb, variables/    loads with TensorFlow alone
    OUTPUT_DIR/model.keras                   loads with Keras and this package
    OUTPUT_DIR/export.json                   the run's configuration, step, signatures

The SavedModel carries its input transform and has two signatures:

    serving_default   features as they are read, `num_frames`
                      -> `logits`, `predictions` [B, C], `embedding` if there is one
    serve_examples    `example_bytes` string [B], serialized records of the dataset
                      -> `video_id` [B], `class_indexes`, `predictions` [B, k]
"""

import dataclasses
import json
import os
from typing import Any

import keras
import tensorflow as tf

import yt8m
from yt8m import runs
from yt8m.config import DataConfig
from yt8m.data.records import parse_batch
from yt8m.errors import UserError
from yt8m.model import YT8MModel, forward, top_classes
from yt8m.runs import EXPORT_FILE, Run

KERAS_FILE = "model.keras"


def export(run: Run, output_dir: str, top_k: int = 20) -> None:
    """Writes `run`'s model to `output_dir`, replacing an earlier export there.

    All is written under a temporary name and renamed.

    Args:
        run: a restored run.
        output_dir: a new or empty directory, or one that holds an export.
        top_k: predictions that `serve_examples` gives for each record; all classes
            if there are fewer.

    Raises:
        UserError: `output_dir` holds something else or cannot be written, or Keras
            cannot save the model.
    """
    output_dir = output_dir.rstrip("/")
    _refuse_foreign(output_dir)
    temporary = f"{output_dir}.exporting"
    runs.make_directory(temporary)
    try:
        _write(run, temporary, top_k)
        _replace(temporary, output_dir)
    except BaseException as e:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)
        if isinstance(e, OSError | tf.errors.OpError):
            reason = runs.reason(e)
            raise UserError(f"{output_dir} cannot be written: {reason}") from e
        raise


def _refuse_foreign(directory: str) -> None:
    exists = tf.io.gfile.exists(directory)
    if exists and not tf.io.gfile.isdir(directory):
        raise UserError(f"{directory} is a file; choose another --output_dir.")
    record = os.path.join(directory, EXPORT_FILE)
    if exists and tf.io.gfile.listdir(directory) and not tf.io.gfile.exists(record):
        raise UserError(
            f"{directory} is not empty and not an export (no {EXPORT_FILE}); choose "
            "another --output_dir."
        )


def _replace(temporary: str, directory: str) -> None:
    """Moves an earlier export aside first, so that one of the two is always whole."""
    aside = f"{directory}.replaced"
    if tf.io.gfile.exists(aside):  # left by a run that was killed here
        tf.io.gfile.rmtree(aside)
    if tf.io.gfile.exists(directory):
        tf.io.gfile.rename(directory, aside)
    tf.io.gfile.rename(temporary, directory)
    if tf.io.gfile.exists(aside):
        tf.io.gfile.rmtree(aside)


def _write(run: Run, directory: str, top_k: int) -> None:
    module, signatures = serving_module(run.model, run.config.data, top_k)
    tf.saved_model.save(module, directory, signatures)
    try:
        run.model.save(os.path.join(directory, KERAS_FILE))
    except (NotImplementedError, TypeError, ValueError) as e:
        raise UserError(
            f"{run.config.model.name} cannot be saved as {KERAS_FILE}; its class needs "
            f"a `get_config` that Keras can write as JSON: {runs.reason(e)}"
        ) from e
    record = {
        "config": dataclasses.asdict(run.config),
        "step": run.checkpoint.step,
        "versions": {
            "yt8m": yt8m.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "signatures": {name: _describe(f) for name, f in signatures.items()},
    }
    runs.write_file(
        os.path.join(directory, EXPORT_FILE), json.dumps(record, indent=2) + "\n"
    )


def serving_module(
    model: YT8MModel,
    data: DataConfig,
    top_k: int = 20,
) -> tuple[tf.Module, dict[str, Any]]:
    """What `tf.saved_model.save` takes: the variables, and the two signatures.

    Args:
        model: a built model.
        data: what it was trained to read; `serve_examples` parses records with it,
            and takes the frames that evaluation takes.
        top_k: as `export`.
    """

    @tf.function
    def serve_tensors(**inputs):
        outputs = forward(model, inputs)
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
        batch, host = parse_batch(example_bytes, data, **keywords)
        classes, scores = top_classes(forward(model, batch)["logits"], top_k)
        return {
            "video_id": host["id"],
            "class_indexes": classes,
            "predictions": scores,
        }

    signatures = {
        "serving_default": serve_tensors.get_concrete_function(
            **_input_specs(model, data)
        ),
        "serve_examples": serve_examples.get_concrete_function(
            tf.TensorSpec([None], tf.string, "example_bytes")
        ),
    }
    # The variables alone: Keras would add its own functions and metadata.
    module = tf.Module()
    module.variables_of_model = [v.value for v in model.variables]
    return module, signatures


def _input_specs(model: YT8MModel, data: DataConfig) -> dict[str, tf.TensorSpec]:
    """The inputs in the types in which the reader gives them."""
    specs = {}
    for name in model.input_names:
        if name == "num_frames":
            specs[name] = tf.TensorSpec([None], tf.int32, name)
        elif data.level == "video":
            specs[name] = tf.TensorSpec([None, data.features[name]], tf.float32, name)
        else:
            dtype = tf.float32 if name in data.float_features else tf.uint8
            specs[name] = tf.TensorSpec([None, None, data.features[name]], dtype, name)
    return specs


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
