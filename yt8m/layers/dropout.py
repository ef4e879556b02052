"""Dropout whose draws belong to the run: the same after a resume.

Keras's own random state cannot be moved by the replicas of a strategy together, and all
of them would draw the same numbers.
"""

import contextlib
import contextvars
from typing import Any

import keras
import numpy as np
from keras import ops

_REPLICA = contextvars.ContextVar("replica", default=0)


@contextlib.contextmanager
def drawing_for(replica: Any):
    """Within the block, layers draw the random numbers of this replica.

    Args:
        replica: its number, an integer or an integer tensor.
    """
    token = _REPLICA.set(replica)
    try:
        yield
    finally:
        _REPLICA.reset(token)


class SeedGenerator(keras.random.SeedGenerator):
    """A seed for each call: of the layer, the number of the call and the replica.

    Its state is one of the model's variables, so that checkpoints keep it.
    """

    def __init__(self, seed: int | None = None, name: str = "seed_generator"):
        # Not the parent's, which would make a variable of its own.
        self.name = name
        self._initial_seed = seed
        if seed is None:
            seed = int(np.random.randint(1 << 30))  # of `set_random_seed`
        self.state = keras.Variable(
            np.array([seed, 0]),
            dtype=keras.random.SeedGenerator(0).state.dtype,  # the backend's own
            trainable=False,
            aggregation="only_first_replica",
            name="seed_generator_state",
        )

    def next(self, ordered: bool = True) -> Any:
        state = ops.convert_to_tensor(self.state)
        call = ops.convert_to_tensor([0, 1], state.dtype)
        self.state.assign(state + call)
        replica = ops.cast(_REPLICA.get(), state.dtype)
        return state + replica * ops.convert_to_tensor([1_000_003, 0], state.dtype)


@keras.saving.register_keras_serializable(package="yt8m")
class Dropout(keras.layers.Layer):
    """Zeroes a share of the values in training, and scales the others up.

    Args:
        rate: the share that is dropped, in [0, 1).
        over_frames: the same values are dropped in all frames of a video.

    Call arguments:
        x: [B, ..., D]; [B, T, D] with `over_frames`.

    Reference:
        Srivastava et al. 2014, JMLR 15.
    """

    def __init__(self, rate: float, over_frames: bool = False, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}")
        self.supports_masking = True
        self.rate = rate
        self.over_frames = over_frames
        if rate > 0:
            self.seed_generator = SeedGenerator()

    def call(self, x, training=False):
        if not training or self.rate == 0:
            return x
        shape = ops.shape(x)
        if self.over_frames:
            shape = (shape[0], 1, shape[2])
        draws = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        scale = ops.where(draws < self.rate, 0.0, 1.0 / (1.0 - self.rate))
        return x * ops.cast(scale, x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "over_frames": self.over_frames,
        }
