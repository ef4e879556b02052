"""A mixture of many experts, of which each frame takes a few."""

from typing import Any

import keras
from keras import ops

from yt8m.layers.dropout import SeedGenerator
from yt8m.layers.normalization import mean_over_replicas


@keras.saving.register_keras_serializable(package="yt8m")
class SparseMixtureOfExperts(keras.layers.Layer):
    """Frame by frame, the sum of the k of E experts that a gate favours.

    h = x W_g + z softplus(x W_noise), z normal, in training; h = x W_g otherwise.
    The gates g are softmax(h) over the k highest h, and 0 at the others;
    y = sum_e g_e (relu(x U_e + a_e) V_e + b_e).

    In training it adds two losses, which keep all experts in use:
        importance_weight * CV(sum of g over the valid frames of the batch) and
        load_weight * CV(sum of P over the valid frames of the batch)^2,
    where CV is the standard deviation over experts by the mean, and P(x, e) is the
    probability that e is among the k highest, given a new draw of z_e alone:
    Phi((x W_g)_e - the k-th highest of the other h) / softplus(x W_noise)_e).

    Only what the gates choose is computed. The frames are sorted by expert into
    blocks of N k / E rows, N the frames of the batch; as many blocks as experts are
    full at most, and each expert has one at most that is not, so that 2 E blocks hold
    any choice, and no shape depends on it. That is 2 k / E of the products of
    all experts with all frames (an eighth at k = 4 of E = 64), for a copy of the
    experts' weights twice their size.

    Args:
        experts: number of experts E.
        active: k, those that a frame takes; fewer than E.
        hidden_size: of each expert's first layer.
        output_size: of its second, F.
        noisy: draw z in training; otherwise there is no W_noise, and no loss of the
            load.
        importance_weight, load_weight: of the losses.

    Attributes:
        synchronized: whether importance and load are those of the batch of all
            replicas, see `set_synchronized`; of the replica's own part otherwise.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T].

    Returns:
        [B, T, F]; zeros at padding.

    Reference:
        Shazeer et al. 2017, arXiv:1701.06538, sections 2.1 and 4 and appendix A
        (whose loss of the importance is of CV^2; here it is of CV, as printed for
        LSTM_MoE in the YouTube-8M challenge of 2017).
    """

    def __init__(
        self,
        experts: int = 64,
        active: int = 4,
        hidden_size: int = 1024,
        output_size: int = 1024,
        noisy: bool = True,
        importance_weight: float = 0.1,
        load_weight: float = 0.1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 < active < experts:
            raise ValueError(
                "`active` must be at least 1 and less than `experts`. "
                f"Received: active={active}, experts={experts}"
            )
        self.supports_masking = True
        self.experts = experts
        self.active = active
        self.hidden_size = hidden_size
        self.output_size = output_size
        self.noisy = noisy
        self.importance_weight = importance_weight
        self.load_weight = load_weight
        self.synchronized = False
        if noisy:
            self.seed_generator = SeedGenerator()

    def build(self, frames_shape, mask_shape=None):
        size, experts = frames_shape[-1], self.experts

        def add(name, shape, **kwargs):
            return self.add_weight(name=name, shape=shape, **kwargs)

        def glorot(rows, columns):
            # Of one expert; Keras would take the experts for rows as well.
            limit = (6 / (rows + columns)) ** 0.5
            return keras.initializers.RandomUniform(-limit, limit)

        # Zeros, so that all experts begin with the same load.
        self.gate_kernel = add(
            "gate_kernel", (size, experts), initializer="zeros", autocast=False
        )
        if self.noisy:
            self.noise_kernel = add(
                "noise_kernel", (size, experts), initializer="zeros", autocast=False
            )
        hidden, out = self.hidden_size, self.output_size
        self.hidden_kernel = add(
            "hidden_kernel",
            (experts, size, hidden),
            initializer=glorot(size, hidden),
        )
        self.hidden_bias = add("hidden_bias", (experts, hidden), initializer="zeros")
        self.output_kernel = add(
            "output_kernel",
            (experts, hidden, out),
            initializer=glorot(hidden, out),
        )
        self.output_bias = add("output_bias", (experts, out), initializer="zeros")
        self.built = True

    def call(self, frames, mask, training=False):
        size, (batch, length) = frames.shape[-1], ops.shape(frames)[:2]
        # Zeros, not garbage, which would be multiplied by gates of 0.
        x = ops.reshape(ops.where(mask[..., None], frames, 0), (-1, size))
        valid = ops.reshape(mask, (-1,))
        values, chosen = self._gate(x, valid, training)
        gates = ops.cast(ops.softmax(values, axis=-1), x.dtype)
        gates = ops.where(valid[:, None], gates, 0)
        y = self._experts_of(x, valid, chosen)
        y = ops.sum(gates[..., None] * y, axis=1)
        return ops.reshape(y, (batch, length, self.output_size))

    def _gate(self, x, valid, training):
        """The k highest of the gates' logits and their experts, both [N, k]."""
        x = ops.cast(x, "float32")
        clean = logits = ops.matmul(x, self.gate_kernel)
        if training and self.noisy:
            spread = ops.softplus(ops.matmul(x, self.noise_kernel))
            draws = keras.random.normal(
                ops.shape(clean), dtype="float32", seed=self.seed_generator
            )
            logits = clean + spread * draws
        highest, order = ops.top_k(logits, self.active + 1)
        values, chosen = highest[:, :-1], order[:, :-1]
        if training:
            gates = ops.softmax(values, axis=-1)[..., None]
            gates = ops.sum(gates * ops.one_hot(chosen, self.experts), axis=1)
            importance = variation(self._over_frames(gates, valid))
            loss = self.importance_weight * importance
            if self.noisy:
                # Without e itself, the k-th highest is one place lower if e is above.
                kth, next_one = highest[:, -2:-1], highest[:, -1:]
                others = ops.where(logits >= kth, next_one, kth)
                scaled = (clean - others) / spread
                stays = 0.5 * (1.0 + ops.erf(scaled * 0.5**0.5))
                load = variation(self._over_frames(stays, valid))
                loss += self.load_weight * ops.square(load)
            self.add_loss(loss)
        return values, chosen

    def _over_frames(self, x, valid):
        summed = ops.sum(ops.where(valid[:, None], x, 0.0), axis=0)
        # The mean of the replicas' sums varies as their sum does.
        return mean_over_replicas(summed) if self.synchronized else summed

    def _experts_of(self, x, valid, chosen):
        """What the chosen experts make of each frame: [N, k, F] from x [N, D]."""
        experts, size = self.experts, x.shape[-1]
        # Frames of the padding take an expert that there is not, E.
        chosen = ops.where(valid[:, None], ops.cast(chosen, "int32"), experts)
        pairs = ops.reshape(chosen, (-1,))  # [N k]
        took = ops.one_hot(pairs, experts, dtype="int32")
        counts = ops.sum(took, axis=0)
        # Of a pair: how many pairs before it took the same expert.
        before = ops.sum((ops.cumsum(took, axis=0) - took) * took, axis=-1)

        number = ops.shape(pairs)[0]
        rows = number // experts + 1  # of a block
        end = ops.cumsum((counts + rows - 1) // rows)  # of each expert's blocks
        blocks = 2 * experts
        first = (end - (counts + rows - 1) // rows) * rows
        first = ops.append(first, blocks * rows)  # padding: beyond the last block
        taken = pairs < experts
        place = ops.take(first, pairs) + ops.where(taken, before, 0)

        # The frame in each place, counted from 1; 0 where there is none.
        frame = 1 + ops.arange(number, dtype="int32") // self.active
        source = ops.scatter(place[:, None], frame, (blocks * rows + 1,))[:-1]
        padded = ops.pad(x, [[1, 0], [0, 0]])
        inputs = ops.reshape(ops.take(padded, source, axis=0), (blocks, -1, size))

        # Block b is of the first expert whose blocks end beyond it.
        block = ops.arange(blocks, dtype="int32")
        owner = ops.sum(ops.cast(block[:, None] >= end[None, :], "int32"), axis=-1)
        owner = ops.minimum(owner, experts - 1)

        def weights(variable, *shape):
            # Flat, as TensorFlow's gradient of a variable's own rows is not dense.
            rows = ops.reshape(ops.cast(variable, x.dtype), (experts, -1))
            return ops.reshape(ops.take(rows, owner, axis=0), (blocks, *shape))

        units, out = self.hidden_size, self.output_size
        hidden = ops.matmul(inputs, weights(self.hidden_kernel, size, units))
        hidden = ops.relu(hidden + weights(self.hidden_bias, 1, units))
        y = ops.matmul(hidden, weights(self.output_kernel, units, out))
        y = ops.reshape(y + weights(self.output_bias, 1, out), (-1, out))
        y = ops.take(y, ops.where(taken, place, 0), axis=0)
        return ops.reshape(y, (-1, self.active, out))

    def compute_mask(self, frames, previous_mask=None):
        return None  # masks go by argument

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (*frames_shape[:-1], self.output_size)

    def get_config(self):
        return {
            **super().get_config(),
            "experts": self.experts,
            "active": self.active,
            "hidden_size": self.hidden_size,
            "output_size": self.output_size,
            "noisy": self.noisy,
            "importance_weight": self.importance_weight,
            "load_weight": self.load_weight,
        }


def variation(x: Any) -> Any:
    """Coefficient of variation, the standard deviation of x [E] by its mean.

    Where all are equal, or all 0, it is 0 and has no gradient.
    """
    mean = ops.mean(x)
    variance = ops.mean(ops.square(x - mean))
    varied = variance > 0
    root = ops.sqrt(ops.where(varied, variance, 1.0))
    return ops.where(varied, root / ops.where(varied, mean, 1.0), 0.0)
