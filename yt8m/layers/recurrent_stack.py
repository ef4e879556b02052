"""Stacks of recurrent layers and what is read out of them."""

from typing import Any

import keras
from keras import ops

from yt8m.layers.attention import AttentionPooling
from yt8m.layers.dropout import Dropout
from yt8m.layers.recurrent import create_recurrent
from yt8m.layers.simple_poolings import AveragePooling, MaxPooling

_OF_STATES = ("last", "memory", "states")


@keras.saving.register_keras_serializable(package="yt8m")
class LinearPooling(keras.layers.Layer):
    """The sum of the frames with weights that rise with time: sum_t (t / N) x_t.

    Args:
        max_frames: N.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first, and t is 1 for the first.

    Returns:
        [B, D]; zeros for a video without frames.

    Raises:
        ValueError: `max_frames` is not positive.

    Reference:
        Simple_LSTM (2017), beside BoF_4096 and LSTM_MoE: section 4.2, equations 1
        and 2.
    """

    def __init__(self, max_frames: int = 300, **kwargs):
        super().__init__(**kwargs)
        if max_frames < 1:
            raise ValueError(
                f"`max_frames` must be positive. Received: max_frames={max_frames}"
            )
        self.supports_masking = True
        self.max_frames = max_frames

    def call(self, frames, mask, training=False):
        weights = rising_weights(mask, self.max_frames)
        weights = ops.cast(weights[:, None, :], frames.dtype)
        return ops.matmul(weights, frames)[:, 0]

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        return (frames_shape[0], frames_shape[-1])

    def get_config(self):
        return {**super().get_config(), "max_frames": self.max_frames}


def rising_weights(mask: Any, last: Any) -> Any:
    """1 / last, 2 / last, ... at the valid frames: float32 [B, T] from bool [B, T]."""
    places = ops.arange(1, ops.shape(mask)[1] + 1, dtype="float32")
    return ops.where(mask, places / ops.cast(last, "float32"), 0.0)


# From frames [B, T, D] and a mask to [B, D].
_READ_OUTS = {
    "linear": LinearPooling,
    "mean": AveragePooling,
    "max": MaxPooling,
    "attention": AttentionPooling,
}


def _create_read_out(name, dtype, **args):
    if name == "attention":
        args["attentions"] = 1
    return _READ_OUTS[name](**args, dtype=dtype, name=name)


@keras.saving.register_keras_serializable(package="yt8m")
class RecurrentPooling(keras.layers.Layer):
    """A stack of LSTMs or GRUs over the frames, pooled to one vector.

    Each layer reads what the one below gives: its states h after dropout, to which a
    residual connection adds that layer's own input, or joins it. The read-outs are

    | name | of the top layer |
    | --- | --- |
    | last | h at the last valid frame |
    | memory | the LSTM's cells c there |
    | states | h and, of an LSTM, c there, of all layers |
    | linear | sum_t (t / max_frames) y_t, t = 1, 2, ... |
    | mean, max | the mean and the maximum of the valid y_t |
    | attention | their mean with the weights of `AttentionPooling` |

    where y is what the layer gives, h its states alone.

    Args:
        cell: `lstm` or `gru`.
        cells: H, of each layer and direction.
        layers: how many are stacked.
        bidirectional_layers: the lowest so many run both ways, with 2 H states.
        residual: `add` (the input of another size through a matrix), `concatenate`, or
            None.
        layer_norm: of the LSTMs.
        dropout: the share dropped of what each layer gives, or of the states read out.
        read_out: see above.
        max_frames: of the linear read-out; the number of frames that videos have.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        [B, H'] with H' by the read-out; zeros for a video without frames.

    Raises:
        ValueError: a count that is not positive, or a name that is unknown or not for
            this cell.

    Reference:
        Wang et al. 2017, arXiv:1706.05150 (memory); Li et al. 2017, arXiv:1707.04555
        (attention). The linear read-out is that of Simple_LSTM (2017), beside
        BoF_4096 and LSTM_MoE: section 4.2, equations 1 and 2.
    """

    def __init__(
        self,
        cell: str = "lstm",
        cells: int = 1024,
        layers: int = 2,
        bidirectional_layers: int = 0,
        residual: str | None = None,
        layer_norm: bool = False,
        dropout: float = 0.0,
        read_out: str = "last",
        max_frames: int = 300,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if layers < 1:
            raise ValueError(f"`layers` must be positive. Received: layers={layers}")
        if not 0 <= bidirectional_layers <= layers:
            raise ValueError(
                f"`bidirectional_layers` must be in 0 to {layers}, all layers. "
                f"Received: bidirectional_layers={bidirectional_layers}"
            )
        if residual not in (None, "add", "concatenate"):
            raise ValueError(
                "`residual` must be add, concatenate or None. "
                f"Received: residual={residual}"
            )
        known = (*_OF_STATES, *_READ_OUTS)
        if read_out not in known or (read_out == "memory" and cell != "lstm"):
            raise ValueError(
                f"`read_out` must be one of {', '.join(known)} (memory with the cell "
                f"lstm alone). Received: read_out={read_out}, cell={cell}"
            )
        self.supports_masking = True
        self.cell = cell
        self.cells = cells
        self.layers = layers
        self.bidirectional_layers = bidirectional_layers
        self.residual = residual
        self.layer_norm = layer_norm
        self.dropout = dropout
        self.read_out = read_out
        self.max_frames = max_frames
        of_states = read_out in _OF_STATES
        self.stack = [
            create_recurrent(
                cell,
                cells,
                bidirectional=i < bidirectional_layers,
                layer_norm=layer_norm,
                return_sequences=i + 1 < layers or not of_states,
                return_states=True,
                dtype=self.dtype_policy,
                name=f"{cell}_{i}",
            )
            for i in range(layers)
        ]
        # One for each use, so that each draws its own numbers.
        self.drops = [
            Dropout(dropout, dtype=self.dtype_policy, name=f"dropout_{i}")
            for i in range(layers)
        ]
        if not of_states:
            args = {"max_frames": max_frames} if read_out == "linear" else {}
            self.reader = _create_read_out(read_out, self.dtype_policy, **args)

    def build(self, frames_shape, mask_shape=None):
        shape = tuple(frames_shape)
        self.shortcuts = []
        for i, layer in enumerate(self.stack):
            layer.build(shape)
            size = self.cells * (2 if i < self.bidirectional_layers else 1)
            if self.residual == "add" and self._gives_frames(i):
                options = {"dtype": self.dtype_policy, "name": f"shortcut_{i}"}
                shortcut = keras.layers.Identity(**options)
                if shape[-1] != size:
                    shortcut = keras.layers.Dense(size, use_bias=False, **options)
                shortcut.build(shape)
                self.shortcuts.append(shortcut)
            if self.residual == "concatenate":
                size += shape[-1]
            shape = (*shape[:-1], size)
        if self.read_out not in _OF_STATES:
            self.reader.build(shape)
        self.built = True

    def _gives_frames(self, i):
        return i + 1 < self.layers or self.read_out not in _OF_STATES

    def call(self, frames, mask, training=False):
        states = []
        for i, layer in enumerate(self.stack):
            below = frames
            frames, *last = layer(below, mask)
            states.append(last[:2])  # h and, of an LSTM, c
            if not self._gives_frames(i):
                break
            frames = self.drops[i](frames, training=training)
            if self.residual == "add":
                frames = frames + self.shortcuts[i](below)
            elif self.residual == "concatenate":
                frames = ops.concatenate([below, frames], axis=-1)
        if self.read_out not in _OF_STATES:
            return self.reader(frames, mask)
        read = {
            "last": states[-1][:1],
            "memory": states[-1][1:],
            "states": sum(states, []),
        }[self.read_out]
        pooled = [ops.cast(state, self.compute_dtype) for state in read]
        pooled = ops.concatenate(pooled, axis=-1)
        return self.drops[-1](pooled, training=training)

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        size, states = frames_shape[-1], []
        for i in range(self.layers):
            own = self.cells * (2 if i < self.bidirectional_layers else 1)
            states.append(own)
            size = own + (size if self.residual == "concatenate" else 0)
        read = {"last": states[-1], "memory": states[-1]}
        read["states"] = sum(states) * (2 if self.cell == "lstm" else 1)
        return (frames_shape[0], read.get(self.read_out, size))

    def get_config(self):
        return {
            **super().get_config(),
            "cell": self.cell,
            "cells": self.cells,
            "layers": self.layers,
            "bidirectional_layers": self.bidirectional_layers,
            "residual": self.residual,
            "layer_norm": self.layer_norm,
            "dropout": self.dropout,
            "read_out": self.read_out,
            "max_frames": self.max_frames,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class FastForwardPooling(keras.layers.Layer):
    """A deep stack of LSTMs or GRUs, with a linear path beside them.

    With f_1 = W_1 x and f_k = W_k [f_{k-1}, h_{k-1}] + b_k, layer k takes f_k, without
    another product, as what its gates get from below. Layers 1, 3, ... run forward,
    layers 2, 4, ... backward.

    Args:
        cell: `lstm` or `gru`.
        cells: H, of each layer.
        layers: how many are stacked.
        read_out: `max` over the frames of the top layer's f and h, or `attention` over
            its h.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        [B, 5 H] for the maximum of LSTMs, [B, 4 H] for that of GRUs, [B, H] for
        attention; zeros for a video without frames.

    Raises:
        ValueError: as `RecurrentPooling`.

    Reference:
        Zhou et al. 2016, arXiv:1606.04199, section 3 (the connections); Li et al.
        2017, arXiv:1707.04555, section 2.3 (for videos).
    """

    def __init__(
        self,
        cell: str = "lstm",
        cells: int = 512,
        layers: int = 7,
        read_out: str = "max",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if layers < 1:
            raise ValueError(f"`layers` must be positive. Received: layers={layers}")
        if read_out not in ("max", "attention"):
            raise ValueError(
                f"`read_out` must be max or attention. Received: read_out={read_out}"
            )
        self.supports_masking = True
        self.cell = cell
        self.cells = cells
        self.layers = layers
        self.read_out = read_out
        self.stack = [
            create_recurrent(
                cell,
                cells,
                return_sequences=True,
                go_backwards=i % 2 == 1,
                input_projection=False,
                dtype=self.dtype_policy,
                name=f"{cell}_{i}",
            )
            for i in range(layers)
        ]
        self.paths = [
            keras.layers.Dense(
                self.stack[i].num_gates * cells,
                use_bias=i > 0,
                # Frames have norm 1, which Glorot's variance would lose.
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.5)
                if i == 0
                else "glorot_uniform",
                dtype=self.dtype_policy,
                name=f"path_{i}",
            )
            for i in range(layers)
        ]
        self.reader = _create_read_out(read_out, self.dtype_policy)

    def build(self, frames_shape, mask_shape=None):
        *start, size = frames_shape
        for path, layer in zip(self.paths, self.stack, strict=True):
            path.build((*start, size))
            layer.build((*start, path.units))
            size = path.units + self.cells
        if self.read_out == "attention":
            size = self.cells
        self.reader.build((*start, size))
        self.built = True

    def call(self, frames, mask, training=False):
        for path, layer in zip(self.paths, self.stack, strict=True):
            forwarded = path(frames)
            states = layer(forwarded, mask)
            frames = ops.concatenate([forwarded, states], axis=-1)
        return self.reader(states if self.read_out == "attention" else frames, mask)

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        forwarded = 0 if self.read_out == "attention" else self.paths[-1].units
        return (frames_shape[0], forwarded + self.cells)

    def get_config(self):
        return {
            **super().get_config(),
            "cell": self.cell,
            "cells": self.cells,
            "layers": self.layers,
            "read_out": self.read_out,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class ContextMemoryLSTM(keras.layers.Layer):
    """LSTMs whose last states, inputs and outputs together encode the video.

    | read-out | result |
    | --- | --- |
    | last | [c_T, h_T] |
    | memory_inputs | [c_T, h_T, M], M = sum_t x_t |
    | memory_inputs_outputs | [c_T, h_T, M, O], O = sum_t g_t |

    where g_t = tanh(j) is what an LSTM would add to its cells (see `LSTM`), and all but
    M are of the top layer. The paper's words have O as the sum of the outputs h_t.

    Args:
        cells: H, of each layer.
        layers: how many are stacked.
        read_out: see above.
        outputs: what O sums: `candidates` (g, the paper's formula) or `states` (h).
        layer_norm: see `LSTM`.
        dropout: the share dropped of what each layer gives: of h to the next layer, and
            of c_T, h_T and O at the top.

    Call arguments:
        frames: x [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        [B, 2 H], [B, 2 H + D] or [B, 3 H + D], by the read-out; zeros for a video
        without frames.

    Raises:
        ValueError: a count that is not positive, or an unknown name.

    Reference:
        Na et al. 2017, arXiv:1706.07960, section 2.2.1 and equations 1 to 6.
    """

    def __init__(
        self,
        cells: int = 1152,
        layers: int = 1,
        read_out: str = "last",
        outputs: str = "candidates",
        layer_norm: bool = False,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if layers < 1:
            raise ValueError(f"`layers` must be positive. Received: layers={layers}")
        for name, value, known in (
            ("read_out", read_out, ("last", "memory_inputs", "memory_inputs_outputs")),
            ("outputs", outputs, ("candidates", "states")),
        ):
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)}. "
                    f"Received: {name}={value}"
                )
        self.supports_masking = True
        self.cells = cells
        self.layers = layers
        self.read_out = read_out
        self.outputs = outputs
        self.layer_norm = layer_norm
        self.dropout = dropout
        self._sums_states = read_out == "memory_inputs_outputs" and outputs == "states"
        self.stack = [
            create_recurrent(
                "lstm",
                cells,
                layer_norm=layer_norm,
                return_sequences=i + 1 < layers or self._sums_states,
                return_states=True,
                dtype=self.dtype_policy,
                name=f"lstm_{i}",
            )
            for i in range(layers)
        ]
        self.drops = [
            Dropout(dropout, dtype=self.dtype_policy, name=f"dropout_{i}")
            for i in range(layers)
        ]

    def build(self, frames_shape, mask_shape=None):
        shape = tuple(frames_shape)
        for layer in self.stack:
            layer.build(shape)
            shape = (*shape[:-1], self.cells)
        self.built = True

    def call(self, frames, mask, training=False):
        x = frames
        for layer, drop in zip(self.stack, self.drops, strict=True):
            given, h, c, total = layer(x, mask)
            if layer is not self.stack[-1]:
                x = drop(given, training=training)
        if self._sums_states:
            total = _masked_sum(given, mask)
        parts = [c, h]
        if self.read_out == "memory_inputs_outputs":
            parts.append(total)
        parts = [ops.cast(part, self.compute_dtype) for part in parts]
        read = self.drops[-1](ops.concatenate(parts, axis=-1), training=training)
        if self.read_out == "last":
            return read
        ends, outputs = read[:, : 2 * self.cells], read[:, 2 * self.cells :]
        return ops.concatenate([ends, _masked_sum(frames, mask), outputs], axis=-1)

    def compute_mask(self, frames, previous_mask=None):
        return None  # no axis of frames is left

    def compute_output_shape(self, frames_shape, mask_shape=None):
        sums = {"last": 0, "memory_inputs": frames_shape[-1]}
        size = sums.get(self.read_out, frames_shape[-1] + self.cells)
        return (frames_shape[0], 2 * self.cells + size)

    def get_config(self):
        return {
            **super().get_config(),
            "cells": self.cells,
            "layers": self.layers,
            "read_out": self.read_out,
            "outputs": self.outputs,
            "layer_norm": self.layer_norm,
            "dropout": self.dropout,
        }


def _masked_sum(x, mask):
    return ops.matmul(ops.cast(mask, x.dtype)[:, None, :], x)[:, 0]
