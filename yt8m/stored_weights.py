"""The weights of a SavedModel in fewer bytes, which it expands as it is loaded.

A variable of a model becomes one of the forms of `yt8m.compression`, stored as a
variable of its own, and a resource that holds the weight in float32: programs that load
the SavedModel, TensorFlow Serving too, have it filled by the SavedModel's initializer.
So a call takes the time that it takes with the weights as they were; the memory too.
"""

import contextlib
import uuid
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from yt8m.compression import compress


class _Expanded(tf.saved_model.experimental.TrackableResource):
    """A float32 tensor that is computed anew whenever a SavedModel is loaded.

    Args:
        stored: the arrays of a form of `yt8m.compression`, but for `kept`, as
            variables; whoever saves this must track them.
    """

    def __init__(self, stored: dict[str, tf.Variable]):
        super().__init__()
        self._stored = stored
        self._shape = next(v.shape for name, v in stored.items() if name != "codebook")
        # Two models in one process must not share it.
        self._name = f"expanded_{uuid.uuid4().hex}"
        self._initialize()

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(
            dtype=tf.float32, shape=self._shape, shared_name=self._name
        )

    def _initialize(self):
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._expand())

    def _expand(self) -> tf.Tensor:
        """As `yt8m.compression.expand`."""
        if "codes" in self._stored:
            return tf.gather(
                self._stored["codebook"], tf.cast(self._stored["codes"], tf.int32)
            )
        (stored,) = self._stored.values()
        if "bfloat16" in self._stored:
            return tf.cast(tf.bitcast(stored, tf.bfloat16), tf.float32)
        return tf.cast(stored, tf.float32)

    def value(self) -> tf.Tensor:
        read = tf.raw_ops.ReadVariableOp(
            resource=self.resource_handle, dtype=tf.float32
        )
        return tf.ensure_shape(read, self._shape)


class StoredWeights(tf.Module):
    """A model's variables as they are stored, for `tf.saved_model.save` to track.

    Args:
        variables: Keras variables of a built model, as often as they are its.
        method: of `yt8m.compression`; None stores all of them as they are.

    Raises:
        UserError: a weight to be compressed is not finite.
    """

    def __init__(self, variables: Sequence[Any], method: str | None = None):
        super().__init__("stored_weights")
        self.kept, self.stored, self.expanded = [], [], []
        replaced: list[tuple[Any, _Expanded]] = []
        # A function: what an attribute holds is saved, and would be so twice.
        self._pairs = lambda: replaced
        for variable in variables:
            arrays = {"kept": None}
            if method:
                arrays = compress(keras.ops.convert_to_numpy(variable), method)
            if "kept" in arrays:
                self.kept.append(variable.value)
                continue
            stored = {
                name: tf.Variable(array, trainable=False, name=name)
                for name, array in arrays.items()
            }
            self.stored.extend(stored.values())
            self.expanded.append(_Expanded(stored))
            replaced.append((variable, self.expanded[-1]))

    def scope(self):
        """Where the model computes with the weights as they are stored."""
        if not self._pairs():
            return contextlib.nullcontext()
        return keras.StatelessScope(
            state_mapping=[(v, expanded.value()) for v, expanded in self._pairs()]
        )
