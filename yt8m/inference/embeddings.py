"""What a model's classifier sees of each video: records, or a folder to join by id."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from yt8m.data.files import sniff_first
from yt8m.data.pipeline import Reader
from yt8m.data.records import encode_video_record
from yt8m.data.video_embeddings import ENDING, EmbeddingsWriter
from yt8m.distribution import EachReplica
from yt8m.errors import DataError, UserError
from yt8m.inference.predict import ExportedModel, model_inputs, overlap
from yt8m.inference.replaced_file import ReplacedFile
from yt8m.model import YT8MModel, forward
from yt8m.progress import Progress

FEATURE = "embedding"


def write_embeddings(
    model: YT8MModel | ExportedModel,
    reader: Reader,
    output_file: str,
    progress: Progress | None = None,
    strategy: tf.distribute.Strategy | None = None,
    *,
    output: str = FEATURE,
    written_by: str = "",
) -> tuple[int, int]:
    """Writes the embeddings of a reader's videos as a TFRecord file, in its order.

    Each record is an Example with the id, the labels if the input has them, and the
    floats `embedding` [H]: any video-level model trains on it. The file appears when
    it is complete; an error or Ctrl-C leaves nothing behind.

    A name that ends in `.embeddings` is a folder instead, by which embeddings are
    joined to other records, see `yt8m.data.video_embeddings`; it has no labels.

    Args:
        model: a built model, or an exported one.
        reader: in file order (`seed=None`).
        output_file: records may be remote.
        progress: None shows one on standard error.
        strategy: as of `predict`.
        output: which of the model's outputs [B, H] is written.
        written_by: what a folder says of its origin.

    Returns:
        The number of videos written, and H.

    Raises:
        UserError: the model gives no embedding, bad data, embeddings that are not
            finite, or a file that cannot be written.
    """

    def embed(inputs):
        embedding = forward(model, inputs).get(output)
        return () if embedding is None else (tf.cast(embedding, tf.float32),)

    each = EachReplica(embed, strategy, reader.batch_size)
    batches = (
        ((host["id"], batch["labels"]), model_inputs(model, batch))
        for batch, host in reader.batches()
    )

    def results():
        for kept, outputs in each.map(batches):
            if not outputs:
                raise UserError(
                    f"The model gives no `{output}` beside its logits, so that "
                    "--output=embeddings has nothing to write."
                )
            yield *kept, *outputs

    if output_file.endswith(ENDING):
        file = _folder(output_file, written_by)
    else:
        file = _records(output_file, sniff_first(reader.files)[1].has_labels)
    size = 0
    with (
        file as write_batch,
        progress or Progress(total=reader.num_examples) as progress,
    ):

        def write(*result: tf.Tensor) -> int:
            nonlocal size
            ids, labels, embeddings = (values.numpy() for values in result)
            _refuse_not_finite(ids, embeddings)
            size = embeddings.shape[1]
            write_batch(ids, labels, embeddings)
            return len(ids)

        overlap(results(), write, progress)
        return progress.done, size


Write = Callable[[Sequence[bytes], np.ndarray, np.ndarray], None]


@contextlib.contextmanager
def _records(path: str, has_labels: bool) -> Iterator[Write]:
    """Writes ids, labels [n, C] and embeddings [n, H] as records."""
    with ReplacedFile(path, tf.io.TFRecordWriter) as file:

        def write(ids, labels, embeddings):
            for video_id, row, embedding in zip(ids, labels, embeddings, strict=True):
                classes = np.flatnonzero(row)
                # A batch does not tell no labels from none known.
                known = classes.size or has_labels
                file.write(
                    encode_video_record(
                        video_id, {FEATURE: embedding}, classes if known else None
                    )
                )

        yield write


@contextlib.contextmanager
def _folder(path: str, written_by: str) -> Iterator[Write]:
    """Writes ids and embeddings as a folder; the first ones tell their size."""
    writer = None
    with contextlib.ExitStack() as files:

        def write(ids, labels, embeddings):
            nonlocal writer
            if writer is None:
                size = embeddings.shape[1]
                writer = files.enter_context(EmbeddingsWriter(path, size, written_by))
            writer.write(ids, embeddings)

        yield write
        if writer is None:
            raise UserError(f"No video is left of which {path} could hold something.")


def _refuse_not_finite(ids: Sequence[bytes], embeddings: np.ndarray) -> None:
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        bad = ids[int(finite.argmin())].decode(errors="replace")
        raise DataError(
            f"The embedding of video {bad} is not finite; the model's weights or the "
            "video's features are not either."
        )
