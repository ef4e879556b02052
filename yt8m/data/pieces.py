"""Large batches parsed some examples at a time, into the place of the whole."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# At once: of frames, some 40 MB of strings, and as much of what is made of them.
_EXAMPLES = 128
# By their bytes, types of which a row is copied in the fewest steps; nothing is
# computed with their values.
_WORDS = {16: tf.complex128, 8: tf.int64, 4: tf.int32, 2: tf.int16, 1: tf.uint8}


def parse_in_pieces(
    parse: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Any],
    serialized: tf.Tensor,
    rows: tf.Tensor,
    number: tf.Tensor,
    most_frames: int,
) -> Any:
    """What `parse` makes of all examples, without their strings of frames at one time.

    Those take as much memory as the frames themselves, and so would pieces that lie
    beside the whole. Each piece is therefore written into the whole.

    Args:
        parse: gives tensors whose first axis is that of the examples; those of three
            axes are frames [B, T, size]. Must not depend on other examples.
        serialized: string [B].
        rows: int32 [B], the second argument of `parse`.
        number: a scalar, its third.
        most_frames: no example has a larger T.

    Returns:
        The same structure of all examples; T is the longest of the pieces' own.
    """
    parse = tf.function(parse, autograph=False).get_concrete_function(
        tf.TensorSpec([None], serialized.dtype),
        tf.TensorSpec([None], rows.dtype),
        tf.TensorSpec([], number.dtype),
    )
    specs = tf.nest.flatten(parse.structured_outputs)
    total = tf.size(serialized)
    pieces = tf.maximum(-(-total // _EXAMPLES), 1)  # one of no examples, too
    wholes = [_whole(spec, total, pieces, most_frames) for spec in specs]

    def add(piece, longest, wholes):
        first = piece * _EXAMPLES
        end = tf.minimum(first + _EXAMPLES, total)
        values = tf.nest.flatten(parse(serialized[first:end], rows[first:end], number))
        lengths = [tf.shape(v)[1] for v in values if _holds_frames(v)]
        written = []
        for whole, value in zip(wholes, values, strict=True):
            if _holds_frames(value):
                whole = _write_frames(whole, first, end, value, most_frames)
            else:
                whole = whole.write(piece, value)
            written.append(whole)
        return piece + 1, tf.reduce_max([longest, *lengths]), written

    # One after the other: what two of them wrote into would be copied.
    _, longest, wholes = tf.while_loop(
        lambda piece, *_: piece < pieces, add, (0, 0, wholes), parallel_iterations=1
    )
    results = [
        _frames_of(whole, spec, longest, most_frames)
        if _holds_frames(spec)
        else whole.concat()
        for spec, whole in zip(specs, wholes, strict=True)
    ]
    return tf.nest.pack_sequence_as(parse.structured_outputs, results)


def _holds_frames(x: Any) -> bool:
    return x.shape.rank == 3


def _word(spec: tf.TensorSpec, most_frames: int) -> tuple[int, tf.DType]:
    """How many words the frames of an example are, and of which type."""
    size = most_frames * spec.shape[2] * spec.dtype.size
    length = next(length for length in _WORDS if size % length == 0)
    return size // length, _WORDS[length]


def _whole(
    spec: tf.TensorSpec, total: tf.Tensor, pieces: tf.Tensor, most_frames: int
) -> tf.Tensor | tf.TensorArray:
    """Where the pieces go: frames as words [B, words], others one after the other."""
    if _holds_frames(spec):
        words, dtype = _word(spec, most_frames)
        return tf.raw_ops.Empty(shape=[total, words], dtype=dtype)
    shape = [None, *spec.shape[1:]]
    return tf.TensorArray(spec.dtype, pieces, infer_shape=False, element_shape=shape)


def _write_frames(
    whole: tf.Tensor, first: tf.Tensor, end: tf.Tensor, frames: Any, most_frames: int
) -> tf.Tensor:
    padding = most_frames - tf.shape(frames)[1]
    frames = tf.pad(frames, [[0, 0], [0, padding], [0, 0]])
    words, dtype = _word(frames, most_frames)
    shape = [end - first, words]
    if dtype.size > frames.dtype.size:
        shape.append(dtype.size // frames.dtype.size)
    # In place, as nothing else holds the whole.
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=whole,
        begin=[first, 0],
        end=[end, words],
        strides=[1, 1],
        value=tf.bitcast(tf.reshape(frames, shape), dtype),
    )


def _frames_of(
    whole: tf.Tensor, spec: tf.TensorSpec, longest: tf.Tensor, most_frames: int
) -> tf.Tensor:
    """The frames, without those that no example has; a copy only if there are some."""
    frames = tf.bitcast(whole, spec.dtype)
    frames = tf.reshape(frames, [-1, most_frames, spec.shape[2]])
    if spec.shape[1] is not None:  # padded to that length
        return frames
    return tf.cond(
        longest < most_frames, lambda: frames[:, :longest], lambda: tf.identity(frames)
    )
