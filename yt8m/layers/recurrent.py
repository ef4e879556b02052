"""Recurrent layers that stop at each video's last frame."""

import keras
from keras import ops

_EPSILON = 1e-5  # of the layer norms


class _Recurrent(keras.layers.Layer):
    """Base of the recurrent layers; a subclass defines the step and its gradient.

    The products with all frames are made at once, before the loop, and so is the
    gradient of the matrices, after it: two to three times as fast on a CPU as Keras's
    own layers, and it compiles with XLA.

    Args:
        cells: number of cells H.
        return_sequences: give h at every frame, not the last one alone.
        return_states: give the last states too.
        go_backwards: run from the last valid frame to the first.
        input_projection: without it the frames are what the gates get from them.

    Raises:
        ValueError: `cells` is not positive.
    """

    num_gates: int  # columns of H in the kernel

    def __init__(
        self,
        cells: int,
        return_sequences: bool = False,
        return_states: bool = False,
        go_backwards: bool = False,
        input_projection: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if cells < 1:
            raise ValueError(f"`cells` must be positive. Received: cells={cells}")
        self.supports_masking = True
        self.cells = cells
        self.return_sequences = return_sequences
        self.return_states = return_states
        self.go_backwards = go_backwards
        self.input_projection = input_projection

    def build(self, frames_shape, mask_shape=None):
        columns = self.num_gates * self.cells
        if not self.input_projection and frames_shape[-1] != columns:
            raise ValueError(
                f"Without `input_projection` the frames must have {columns} values, "
                f"{self.num_gates} for each of {self.cells} cells. Received: "
                f"{frames_shape[-1]}"
            )
        size = frames_shape[-1] if self.input_projection else 0
        self.kernel = self.add_weight(
            name="kernel",
            shape=(size + self.cells, columns),
            initializer="glorot_uniform",
        )
        self.bias = self.add_weight(
            name="bias", shape=(columns,), initializer=self._initial_bias
        )
        self.built = True

    def _initial_bias(self, shape, dtype=None):
        gates = [ops.full((self.cells,), value, dtype) for value in self.initial_bias]
        return ops.concatenate(gates)

    def call(self, frames, mask, training=False):
        length = ops.shape(frames)[1]
        x = ops.transpose(frames, (1, 0, 2))
        valid = ops.transpose(mask)[..., None]
        if frames.shape[1] is None or frames.shape[1] == 0:
            # One frame of padding, where a batch has no frame at all.
            x, valid = _at_least_one(x), _at_least_one(valid)
        size = frames.shape[-1] if self.input_projection else 0
        inputs = self._inputs(ops.matmul(x, self.kernel[:size]) if size else x)
        output, *last = _recurrence(self, inputs, self._weights(size), valid)
        if self.return_sequences:
            output = ops.transpose(output[:length], (1, 0, 2))
        output = ops.cast(output, self.compute_dtype)
        return (output, *last) if self.return_states else output

    def _inputs(self, products):
        """From the products with the frames to what the gates get from them."""
        return products + self.bias

    def _weights(self, size):
        """What a step needs: tensors, those that it multiplies with first."""
        raise NotImplementedError

    # A step, without the mask. States are tuples of [B, H]: h, and others.

    num_matrices: int  # of `_weights`

    def start(self, inputs):
        """The states before the first frame; the like of what the steps keep.

        That is zeros, for `step` and for the inner gradients of `step_back`.
        """
        raise NotImplementedError

    def step(self, x, states, weights):
        """The next states, and a tuple of what `step_back` needs beside them."""
        raise NotImplementedError

    def step_back(self, dstates, before, after, kept, weights, transposed):
        """The gradients of the states before, and of the step's inner values.

        The first of the latter is that of `x`. `transposed` are the matrices.
        """
        raise NotImplementedError

    def weight_gradients(self, inner, before, after, kept, weights):
        """From all frames' inner gradients [T, B, ...] to those of the weights."""
        raise NotImplementedError

    def compute_mask(self, frames, previous_mask=None):
        return None  # masks go by argument

    def compute_output_shape(self, frames_shape, mask_shape=None):
        batch = frames_shape[0]
        shape = (batch, self.cells)
        if self.return_sequences:
            shape = (*frames_shape[:-1], self.cells)
        if not self.return_states:
            return shape
        return (shape, *[(batch, self.cells)] * self.num_states)

    def get_config(self):
        return {
            **super().get_config(),
            "cells": self.cells,
            "return_sequences": self.return_sequences,
            "return_states": self.return_states,
            "go_backwards": self.go_backwards,
            "input_projection": self.input_projection,
        }


@keras.saving.register_keras_serializable(package="yt8m")
class LSTM(_Recurrent):
    """Long short-term memory, from the first valid frame to the last.

    With [i, j, f, o] = [x_t, h_{t-1}] W + b:
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(j);
    h_t = sigmoid(o) tanh(c_t); c_0 = h_0 = 0, and both stand still at padding.

    With layer norm, the parts of the gates and the cells are normalised apart:
    [i, j, f, o] = LN(x_t W_x) + LN(h_{t-1} W_h) + b; h_t = sigmoid(o) tanh(LN(c_t)).
    Each LN is over all its values, with a gain; that of the cells has an offset too.

    Args:
        cells: number of cells H.
        return_sequences: give h at every frame, not at the last valid one alone.
        return_states: give the last states too: h, c and the sum of all tanh(j).
        go_backwards: run from the last valid frame to the first.
        input_projection: without it the frames are x_t W_x, of 4 H values.
        layer_norm: see above.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        [B, H], zeros for a video without frames; or [B, T, H], where the padding
        repeats the last valid frame, or is zero if the layer runs backwards. With
        `return_states`, a tuple of that and of h, c and the sum, [B, H] each; c and
        the sum are float32.

    Weights (in the starter code's layout, so that its checkpoints can be taken over;
    there the 1 of the forget gates is added beside the bias):
        kernel: [D + H, 4 H], Glorot uniform as a whole; columns i, j, f, o.
        bias: [4 H]; starts at 1 for the forget gates f, which then keep what they
            have, and at 0 for the others.

    Reference:
        Hochreiter and Schmidhuber 1997, Neural Computation 9(8); Gers, Schmidhuber
        and Cummins 2000, Neural Computation 12(10) (forget gates); Ba, Kiros and
        Hinton 2016, arXiv:1607.06450, supplementary equations 20 to 22 (layer norm).
    """

    num_gates, num_states, num_matrices = 4, 3, 1
    initial_bias = (0, 0, 1, 0)

    def __init__(self, cells: int, layer_norm: bool = False, **kwargs):
        super().__init__(cells, **kwargs)
        self.layer_norm = layer_norm

    def build(self, frames_shape, mask_shape=None):
        super().build(frames_shape, mask_shape)

        def add(name, initializer, size):
            return self.add_weight(
                name=name, shape=(size,), initializer=initializer, autocast=False
            )

        if self.layer_norm:
            self.input_gain = add("input_gain", "ones", 4 * self.cells)
            self.recurrent_gain = add("recurrent_gain", "ones", 4 * self.cells)
            self.cell_gain = add("cell_gain", "ones", self.cells)
            self.cell_offset = add("cell_offset", "zeros", self.cells)

    def _inputs(self, products):
        if self.layer_norm:
            normal, _ = _normalize(products)
            products = ops.cast(normal * self.input_gain, products.dtype)
        return super()._inputs(products)

    def _weights(self, size):
        gains = []
        if self.layer_norm:
            gains = [self.recurrent_gain, self.cell_gain, self.cell_offset]
        # Copied, since TensorFlow takes variables apart from arguments.
        return [self.kernel[size:], *map(ops.copy, gains)]

    def start(self, inputs):
        # The cells add up over hundreds of frames: in float32 whatever the policy.
        zeros = ops.zeros_like(inputs[0, :, : self.cells], dtype="float32")
        states = (ops.cast(zeros, inputs.dtype), zeros)
        if self.return_states:
            states = (*states, zeros)
        gates = ops.zeros_like(inputs[0])
        if self.layer_norm:
            return states, (gates, gates), (gates, gates, zeros)
        return states, (gates,), (gates,)

    def step(self, x, states, weights):
        h, c, *total = states
        product = ops.matmul(h, weights[0])
        if self.layer_norm:
            normal, _ = _normalize(product)
            gates = ops.cast(x, "float32") + normal * weights[1]
        else:
            gates = ops.cast(x + product, "float32")
        i, j, f, o = ops.split(gates, 4, axis=-1)
        i, j, f, o = ops.sigmoid(i), ops.tanh(j), ops.sigmoid(f), ops.sigmoid(o)
        c = f * c + i * j
        h = ops.cast(o * ops.tanh(self._shown(c, weights)[0]), h.dtype)
        gates = ops.cast(ops.concatenate([i, j, f, o], axis=-1), x.dtype)
        states = (h, c, *[t + j for t in total])
        return states, (gates, product) if self.layer_norm else (gates,)

    def _shown(self, c, weights):
        """The cells as the output gates see them, and what is needed to go back."""
        if not self.layer_norm:
            return c, None
        normal, scale = _normalize(c)
        return normal * weights[2] + weights[3], (normal, scale)

    def step_back(self, dstates, before, after, kept, weights, transposed):
        dh, dc, *dtotal = dstates
        i, j, f, o = ops.split(ops.cast(kept[0], "float32"), 4, axis=-1)
        shown, norm = self._shown(after[1], weights)
        tanh = ops.tanh(shown)
        dshown = dh * o * (1 - tanh * tanh)
        if self.layer_norm:
            dc = dc + _normalize_back(dshown * weights[2], *norm)
        else:
            dc = dc + dshown
        dj = sum(dtotal, dc * i)
        dgates = [
            dc * j * i * (1 - i),
            dj * (1 - j * j),
            dc * before[1] * f * (1 - f),
            dh * tanh * o * (1 - o),
        ]
        dtype = kept[0].dtype
        dgates = ops.concatenate(dgates, axis=-1)
        dproduct = dgates
        if self.layer_norm:
            dproduct = _normalize_back(dgates * weights[1], *_normalize(kept[1]))
        dgates, dproduct = ops.cast(dgates, dtype), ops.cast(dproduct, dtype)
        dh = ops.cast(ops.matmul(dproduct, transposed[0]), "float32")
        inner = (dgates, dproduct, dshown) if self.layer_norm else (dgates,)
        return (dh, dc * f, *dtotal), inner

    def weight_gradients(self, inner, before, after, kept, weights):
        if not self.layer_norm:
            return [_product(before[0], inner[0])]
        dgates, dproduct, dshown = inner
        normal, _ = _normalize(kept[1])
        shown, _ = _normalize(after[1])
        return [
            _product(before[0], dproduct),
            ops.sum(ops.cast(dgates, "float32") * normal, axis=(0, 1)),
            ops.sum(dshown * shown, axis=(0, 1)),
            ops.sum(dshown, axis=(0, 1)),
        ]

    def get_config(self):
        return {**super().get_config(), "layer_norm": self.layer_norm}


@keras.saving.register_keras_serializable(package="yt8m")
class GRU(_Recurrent):
    """Gated recurrent units, from the first valid frame to the last.

    With [r, u] = sigmoid([x_t, h_{t-1}] W + b):
    j = tanh(x_t W_j + (r h_{t-1}) U_j + b_j);
    h_t = u h_{t-1} + (1 - u) j; h_0 = 0, and it stands still at padding.

    Args:
        cells: number of cells H.
        return_sequences: give h at every frame, not at the last valid one alone.
        return_states: give the last h too.
        go_backwards: run from the last valid frame to the first.
        input_projection: without it the frames are the products with x_t, of 3 H
            values.

    Call arguments:
        frames: [B, T, D]; padding may hold any finite value.
        mask: bool [B, T]; the valid frames come first.

    Returns:
        As `LSTM`; the only state is h, float32.

    Weights:
        kernel: [D + H, 3 H], Glorot uniform as a whole; columns r, u, j.
        bias: [3 H]; starts at 1 for the gates r and u, which then keep what they
            have, and at 0 for j.

    Reference:
        Cho et al. 2014, arXiv:1406.1078, equations 5 to 8 (its z is u).
    """

    num_gates, num_states, num_matrices = 3, 1, 2
    initial_bias = (1, 1, 0)

    def _weights(self, size):
        kernel, gates = self.kernel[size:], 2 * self.cells
        return [kernel[:, :gates], kernel[:, gates:]]

    def start(self, inputs):
        zeros = ops.zeros_like(inputs[0, :, : self.cells], dtype="float32")
        gates = ops.zeros_like(inputs[0])
        return (zeros,), (gates,), (gates,)

    def step(self, x, states, weights):
        (h,) = states
        x_gates, x_new = ops.split(x, [2 * self.cells], axis=-1)
        gates = x_gates + ops.matmul(ops.cast(h, x.dtype), weights[0])
        gates = ops.sigmoid(ops.cast(gates, "float32"))
        r, u = ops.split(gates, 2, axis=-1)
        j = x_new + ops.matmul(ops.cast(r * h, x.dtype), weights[1])
        j = ops.tanh(ops.cast(j, "float32"))
        kept = ops.cast(ops.concatenate([gates, j], axis=-1), x.dtype)
        return (u * h + (1 - u) * j,), (kept,)

    def step_back(self, dstates, before, after, kept, weights, transposed):
        ((dh,), (h,), (kept,)) = dstates, before, kept
        r, u, j = ops.split(ops.cast(kept, "float32"), 3, axis=-1)
        dj = dh * (1 - u) * (1 - j * j)
        dj = ops.cast(dj, kept.dtype)
        dreset = ops.cast(ops.matmul(dj, transposed[1]), "float32")
        dgates = [dreset * h * r * (1 - r), dh * (h - j) * u * (1 - u)]
        dgates = ops.cast(ops.concatenate(dgates, axis=-1), kept.dtype)
        back = ops.cast(ops.matmul(dgates, transposed[0]), "float32")
        inner = ops.concatenate([dgates, dj], axis=-1)
        return (dh * u + dreset * r + back,), (inner,)

    def weight_gradients(self, inner, before, after, kept, weights):
        dtype, gates = inner[0].dtype, 2 * self.cells
        r = ops.cast(kept[0][..., : self.cells], "float32")
        return [
            _product(ops.cast(before[0], dtype), inner[0][..., :gates]),
            _product(ops.cast(r * before[0], dtype), inner[0][..., gates:]),
        ]


CELLS = {"lstm": LSTM, "gru": GRU}


@keras.saving.register_keras_serializable(package="yt8m")
class Bidirectional(keras.layers.Layer):
    """Two recurrent layers, one in each direction, whose results are concatenated.

    The second begins at each video's last valid frame.

    Args:
        cell: `lstm` or `gru`.
        cells: H, of each direction.
        return_sequences, return_states, layer_norm: as `LSTM`.

    Call arguments:
        frames, mask: as `LSTM`.

    Returns:
        As `LSTM` or `GRU`, with 2 H in place of H.

    Raises:
        ValueError: as `create_recurrent`.

    Reference:
        Schuster and Paliwal 1997, IEEE Transactions on Signal Processing 45(11).
    """

    def __init__(
        self,
        cell: str,
        cells: int,
        return_sequences: bool = False,
        return_states: bool = False,
        layer_norm: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.cell = cell
        self.cells = cells
        self.return_sequences = return_sequences
        self.return_states = return_states
        self.layer_norm = layer_norm
        self.directions = [
            create_recurrent(
                cell,
                cells,
                layer_norm=layer_norm,
                return_sequences=return_sequences,
                return_states=return_states,
                go_backwards=name == "backward",
                dtype=self.dtype_policy,
                name=name,
            )
            for name in ("forward", "backward")
        ]

    def build(self, frames_shape, mask_shape=None):
        for layer in self.directions:
            layer.build(frames_shape, mask_shape)
        self.built = True

    def call(self, frames, mask, training=False):
        results = [layer(frames, mask) for layer in self.directions]
        if not self.return_states:
            return ops.concatenate(results, axis=-1)
        return tuple(
            ops.concatenate(pair, axis=-1) for pair in zip(*results, strict=True)
        )

    def compute_mask(self, frames, previous_mask=None):
        return None  # masks go by argument

    def compute_output_shape(self, frames_shape, mask_shape=None):
        shapes = self.directions[0].compute_output_shape(frames_shape)
        if self.return_states:
            return tuple((*shape[:-1], 2 * self.cells) for shape in shapes)
        return (*shapes[:-1], 2 * self.cells)

    def get_config(self):
        return {
            **super().get_config(),
            "cell": self.cell,
            "cells": self.cells,
            "return_sequences": self.return_sequences,
            "return_states": self.return_states,
            "layer_norm": self.layer_norm,
        }


def create_recurrent(
    cell: str, cells: int, bidirectional: bool = False, layer_norm: bool = False, **args
) -> keras.layers.Layer:
    """Builds a recurrent layer.

    Args:
        cell: `lstm` or `gru`.
        cells: number of cells H, of each direction.
        bidirectional: run both ways.
        layer_norm: of an LSTM.
        args: as of `LSTM` or `Bidirectional`.

    Raises:
        ValueError: another cell, or a GRU with layer norm.
    """
    if cell not in CELLS:
        raise ValueError(f"`cell` must be one of {', '.join(CELLS)}. Received: {cell}")
    if layer_norm and cell != "lstm":
        raise ValueError(f"`layer_norm` is for the cell lstm. Received: cell={cell}")
    if bidirectional:
        return Bidirectional(cell, cells, layer_norm=layer_norm, **args)
    if layer_norm:
        args["layer_norm"] = True
    return CELLS[cell](cells, **args)


def _at_least_one(x):
    """[T, ...], with a first row of zeros where T is 0."""
    missing = ops.cast(ops.equal(ops.shape(x)[0], 0), "int32")
    return ops.concatenate([ops.zeros((missing, *ops.shape(x)[1:]), x.dtype), x])


def _normalize(x):
    """(x - mean) / deviation over the last axis, and 1 / deviation, in float32."""
    x = ops.cast(x, "float32")
    x = x - ops.mean(x, axis=-1, keepdims=True)
    scale = ops.rsqrt(ops.mean(x * x, axis=-1, keepdims=True) + _EPSILON)
    return x * scale, scale


def _normalize_back(dnormal, normal, scale):
    """The gradient of x, from that of `_normalize(x)[0]` and its results."""
    share = ops.mean(dnormal * normal, axis=-1, keepdims=True)
    return scale * (
        dnormal - ops.mean(dnormal, axis=-1, keepdims=True) - normal * share
    )


def _product(x, y):
    """sum over T and B of x^T y, for [T, B, m] and [T, B, n]."""
    x = ops.transpose(ops.reshape(x, (-1, x.shape[-1])))
    return ops.matmul(x, ops.reshape(y, (-1, y.shape[-1])))


def _recurrence(layer, inputs, weights, valid):
    """The states of a recurrent layer.

    The gradient is written out, because automatic differentiation would add up the
    gradient of each matrix frame by frame, a product of few rows and a sum of its
    whole size each time.

    Args:
        layer: a `_Recurrent`, of which the steps are taken.
        inputs: [T, B, G H], what the frames and the bias give to the gates.
        weights: of the steps.
        valid: bool [T, B, 1].

    Returns:
        A list of h [T, B, H], which stands still where no frame is valid, or only the
        last one [B, H], and of the last states [B, H] if the layer returns them.
    """
    start, nothing, no_gradient = layer.start(inputs)
    frames = ops.arange(ops.shape(inputs)[0])
    reverse, with_sequence = layer.go_backwards, layer.return_sequences

    def keep(t, new, old):
        return tuple(ops.where(valid[t], a, b) for a, b in zip(new, old, strict=True))

    @ops.custom_gradient
    def run(inputs, *weights):
        def forward(carry, t):
            states, _ = carry
            new, kept = layer.step(inputs[t], states, weights)
            states = keep(t, new, states)
            return (states, kept), (states, kept)

        carry = (start, nothing)
        (last, _), (after, kept) = ops.scan(forward, carry, frames, reverse=reverse)

        def gradient(*arguments, upstream=None):
            # Each result's by itself, all in a tuple, or by name: as the backend does.
            if upstream is None:
                upstream = arguments
                if isinstance(upstream[0], list | tuple):
                    (upstream,) = upstream
            else:
                upstream = (upstream,)
            doutput, *end = upstream
            end = [ops.cast(d, "float32") for d in end or start]  # `start` is zero
            if not with_sequence:
                end[0] = end[0] + ops.cast(doutput, "float32")
            before = tuple(
                _shifted(first, states, reverse)
                for first, states in zip(start, after, strict=True)
            )
            transposed = [ops.transpose(w) for w in weights[: layer.num_matrices]]

            def backward(carry, t):
                dstates, _ = carry
                if with_sequence:
                    dh = dstates[0] + ops.cast(doutput[t], "float32")
                    dstates = (dh, *dstates[1:])
                dbefore, inner = layer.step_back(
                    dstates,
                    *([x[t] for x in values] for values in (before, after, kept)),
                    weights,
                    transposed,
                )
                inner = keep(t, inner, no_gradient)
                dstates = keep(t, dbefore, dstates)
                return (dstates, inner), (dstates, inner)

            carry = (tuple(end), no_gradient)
            _, (_, inner) = ops.scan(backward, carry, frames, reverse=not reverse)
            dweights = layer.weight_gradients(inner, before, after, kept, weights)
            return inner[0], *dweights

        output = after[0] if with_sequence else last[0]
        return (output, *last) if layer.return_states else output, gradient

    results = run(inputs, *weights)
    return results if layer.return_states else [results]


def _shifted(first, states, reverse):
    """The states [T, ...] before each frame, of the states after it."""
    if reverse:
        return ops.concatenate([states[1:], first[None]])
    return ops.concatenate([first[None], states[:-1]])
