"""Where a run computes: the `tf.distribute` strategy."""

import tensorflow as tf


def create_strategy() -> tf.distribute.Strategy:
    """The strategy of this process: its one device, a GPU if there is one."""
    gpus = tf.config.list_logical_devices("GPU")
    return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/cpu:0")
