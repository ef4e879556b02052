"""Scalars for TensorBoard, written with TensorFlow alone.

`tf.summary.scalar` needs the package tensorboard, which recent TensorFlow does not
bring: it is needed for looking at events, not for writing them.
"""

from collections.abc import Mapping

import tensorflow as tf

# What TensorBoard's scalars plug-in looks for.
_METADATA = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
)


class EventWriter:
    """Appends scalars to an event file in `directory`; also a context manager."""

    def __init__(self, directory: str):
        self._writer = tf.summary.create_file_writer(directory)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes each of `values` under its name at `step`."""
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.write(name, tf.constant(value, tf.float32), step, _METADATA)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
