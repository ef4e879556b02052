"""What training does to the features of a batch: noise, and parts that are zeroed.

Every video's draws follow from the seed, the step and its row in the global batch, so
that neither a resume nor the number of replicas changes them. Crops and the bootstrap,
which choose frames, are the reader's (`yt8m.data.frames`).
"""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from yt8m.config import TrainingConfig
from yt8m.layers.preprocessing import dequantize
from yt8m.training.mixup import mix

_NOISE, _DIMENSIONS, _MODALITY, _WHICH = range(4)


def is_augmented(settings: TrainingConfig) -> bool:
    """Whether `augment` does anything."""
    return bool(
        settings.feature_noise or settings.feature_dropout or settings.modality_dropout
    )


def as_trained_on(
    batch: dict[str, tf.Tensor],
    features: Iterable[str],
    settings: TrainingConfig,
    step: Any,
) -> dict[str, tf.Tensor]:
    """What a model sees of a replica's batch in training: augmented, then mixed.

    Args:
        batch: the replica's slice, as the reader gives it.
        features: names of the features.
        settings: those of training.
        step: int64, the steps taken before.
    """
    if is_augmented(settings):
        rows = _global_rows(tf.shape(batch["labels"])[0])
        batch = augment(batch, features, settings, step, rows)
    if settings.mixup:
        # Drawn anew for each step and replica, and alike when a run is resumed.
        replicas = tf.distribute.get_replica_context()
        number = tf.cast(replicas.replica_id_in_sync_group, tf.int64)
        seed = tf.stack([settings.seed + 1_000_003 * number, step])
        batch = mix(batch, settings.mixup, seed)
    return batch


def _global_rows(size: tf.Tensor) -> tf.Tensor:
    """The rows of the global batch that this replica has, given their number."""
    replicas = tf.distribute.get_replica_context()
    count, number = replicas.num_replicas_in_sync, replicas.replica_id_in_sync_group
    if count == 1:
        return tf.range(size)
    # A sum is what every strategy can do.
    sizes = tf.one_hot(number, count, dtype=tf.int32) * size
    sizes = replicas.all_reduce(tf.distribute.ReduceOp.SUM, sizes)
    before = tf.reduce_sum(tf.where(tf.range(count) < number, sizes, 0))
    return before + tf.range(size)


def augment(
    batch: dict[str, tf.Tensor],
    features: Iterable[str],
    settings: TrainingConfig,
    step: Any,
    rows: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Adds noise to the features, then zeroes dimensions, then whole features.

    `feature_noise` is the deviation of normal noise, drawn for each number.
    `feature_dropout` is the probability with which a dimension of a video is zero in
    all of its frames. `modality_dropout` is the probability with which one feature
    of a video, any of them alike, is zero in all of its frames. What is kept is not
    scaled up: models normalise what they see.

    Args:
        batch: a batch as the reader gives it; bytes are dequantised first.
        features: names of the features, [B, size] or [B, T, size].
        settings: those of training.
        step: number of the step.
        rows: int32 [B], the videos' places in the global batch.

    Returns:
        A batch of the same shapes, whose features are float32. Padding may hold noise.

    Reference:
        Ostyakov et al. 2018, arXiv:1809.04403, section 4 (random subsets of features).
    """
    features = list(features)

    def keys(stream, feature=0):
        key = tf.constant(stream * 1000 + feature, tf.uint32)
        for part in (settings.seed & 0xFFFFFFFF, step, rows):
            key = _scramble(key ^ tf.cast(part, tf.uint32))
        return key

    # Of a feature that does not exist, where none is dropped.
    dropped = tf.where(
        uniform(keys(_MODALITY), [1]) < settings.modality_dropout,
        tf.cast(uniform(keys(_WHICH), [1]) * len(features), tf.int32),
        len(features),
    )
    augmented = dict(batch)
    for number, name in enumerate(features):
        x = dequantize(batch[name], "float32")
        size = x.shape[-1]
        if settings.feature_noise:
            noise = normal(keys(_NOISE, number), tf.shape(x)[1:])
            x += settings.feature_noise * noise
        kept = dropped != number
        if settings.feature_dropout:
            draws = uniform(keys(_DIMENSIONS, number), [size])
            kept &= draws >= settings.feature_dropout
        kept = kept[:, None] if x.shape.rank == 3 else kept
        # Selected, not multiplied: padding may hold anything.
        augmented[name] = tf.where(kept, x, 0.0)
    return augmented


def uniform(keys: tf.Tensor, shape: Any) -> tf.Tensor:
    """Draws from (0, 1) for each key, the same whatever the other keys are.

    The bits are a hash of the key and of the number's place. TensorFlow's generators
    draw a tensor from one key: each replica would have to draw the whole global batch.

    Args:
        keys: uint32 [B].
        shape: of the draws of each key.

    Returns:
        float32 [B, *shape], of 23 random bits.
    """
    shape = tf.convert_to_tensor(shape, tf.int32)
    places = tf.range(tf.reduce_prod(shape))
    bits = _scramble(_scramble(tf.cast(places, tf.uint32))[None, :] ^ keys[:, None])
    # As many bits as float32 can hold with a half more, so that 1 is never reached.
    high = tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32)
    draws = (high + 0.5) * 2.0**-23
    return tf.reshape(draws, tf.concat([tf.shape(keys), shape], axis=0))


def normal(keys: tf.Tensor, shape: Any) -> tf.Tensor:
    """Draws from the standard normal distribution; otherwise as `uniform`."""
    return tf.math.ndtri(uniform(keys, shape))


def _scramble(x: tf.Tensor) -> tf.Tensor:
    """A one-to-one mapping of uint32 in which every bit in moves every bit out.

    Reference:
        Appleby 2011, MurmurHash3 (the finaliser, after a step of the golden ratio).
    """
    x += tf.constant(0x9E3779B9, tf.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x ^= tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))
        x *= tf.constant(factor, tf.uint32)
    return x
