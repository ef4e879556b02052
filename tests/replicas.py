"""Replicas on the logical CPU devices that `conftest.py` makes."""

import tensorflow as tf


def mirrored(count: int) -> tf.distribute.MirroredStrategy:
    """A strategy of `count` replicas, of which a process may make several.

    It goes without TensorFlow's collectives, whose keys begin anew with each strategy:
    in one process the second takes the first one's for its own.
    """
    devices = [d.name for d in tf.config.list_logical_devices("CPU")[:count]]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    assert strategy.num_replicas_in_sync == count
    return strategy
