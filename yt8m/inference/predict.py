"""From a model and a reader to a submission, without holding either in memory.

Reading, computing and writing overlap: tf.data reads ahead, the device computes, and
one thread formats and writes what the device is done with. Only the best `top_k`
classes of a video leave the device.
"""

import json
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from yt8m import runs
from yt8m.config import DataConfig, RunConfig
from yt8m.data.pipeline import Reader
from yt8m.errors import UserError
from yt8m.inference.submission import SubmissionWriter
from yt8m.model import YT8MModel, forward, top_classes
from yt8m.progress import Progress

# Batches computed but not yet written; a slow disk stops the device, not the memory.
_MAX_PENDING = 4


class ExportedModel:
    """A SavedModel written by `yt8m.export`, called like the model it was made from.

    Args:
        path: its directory.

    Attributes:
        config: what the model reads of each record.
        input_names: the keys of a batch that it takes.

    Raises:
        UserError: the directory holds no export, or one that cannot be loaded.
    """

    def __init__(self, path: str):
        self.path = path
        record = os.path.join(path, runs.EXPORT_FILE)
        try:
            with tf.io.gfile.GFile(record) as f:
                config = RunConfig.from_json(json.dumps(json.load(f)["config"]))
            self._loaded = tf.saved_model.load(path)
        except (OSError, ValueError, LookupError, tf.errors.OpError, UserError) as e:
            raise UserError(
                f"--saved_model={path} cannot be loaded: {runs.reason(e)}; give the "
                "--output_dir of an `export_model.py`."
            ) from e
        self.config: DataConfig = config.data
        self._signature = self._loaded.signatures["serving_default"]
        self._specs = self._signature.structured_input_signature[1]
        self.input_names = list(self._specs)

    def __call__(self, inputs: dict[str, Any], training: bool = False):
        """Logits float32 [B, C] (and the other outputs) of a batch."""
        for name, spec in self._specs.items():
            if inputs[name].dtype != spec.dtype:
                raise UserError(
                    f"--saved_model={self.path} takes {name} as {spec.dtype.name}, "
                    f"but the records hold {inputs[name].dtype.name}."
                )
        return self._signature(**inputs)


def load_saved_model(path: str) -> ExportedModel:
    """Loads what `export_model.py` wrote. Raises `UserError` if it cannot."""
    return ExportedModel(path)


def predict_function(
    model: YT8MModel | ExportedModel, top_k: int = 20
) -> Callable[[dict[str, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]]:
    """The compiled function from a batch to its best classes.

    Returns:
        A function of a reader's batch that gives classes int32 [B, k], best first,
        and their probabilities float32 [B, k], where k is `top_k` or, if there are
        fewer, the number of classes.
    """
    if top_k < 1:
        raise UserError(f"--top_k must be at least 1, not {top_k}.")

    @tf.function(reduce_retracing=True)
    def best(inputs):
        return top_classes(forward(model, inputs)["logits"], top_k)

    return lambda batch: best({name: batch[name] for name in model.input_names})


def predict(
    model: YT8MModel | ExportedModel,
    reader: Reader,
    output_file: str,
    top_k: int = 20,
    progress: Progress | None = None,
) -> int:
    """Writes the submission of a reader's videos, in the reader's order.

    The file appears when it is complete; an error or Ctrl-C leaves nothing behind.

    Args:
        model: a built model, or an exported one.
        reader: in file order (`seed=None`).
        output_file: CSV; gzipped if it ends in `.gz`; may be remote.
        top_k: pairs written for each video.
        progress: None shows one on standard error.

    Returns:
        The number of videos written.

    Raises:
        UserError: bad data, scores that are not finite, or a file that cannot be
            written.
    """
    function = predict_function(model, top_k)
    with (
        SubmissionWriter(output_file) as writer,
        progress or Progress(total=reader.num_examples) as progress,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        pending: deque[Future[int]] = deque()

        def write(ids: tf.Tensor, classes: tf.Tensor, scores: tf.Tensor) -> int:
            writer.write(ids.numpy(), classes.numpy(), scores.numpy())
            return len(scores)

        for batch, host in reader.batches():
            pending.append(thread.submit(write, host["id"], *function(batch)))
            while len(pending) > _MAX_PENDING or (pending and pending[0].done()):
                progress.update(pending.popleft().result())
        while pending:
            progress.update(pending.popleft().result())
    return writer.count
