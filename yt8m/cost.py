"""What a model costs: its parameters, and the operations that a video takes.

    cost = model_cost("NetVLADModel", {"clusters": 256}, frames=300)
    cost.parameters, cost.flops

The operations are read off the graph that TensorFlow traces for one video. Neither
weights nor frames get memory, so that models of any size can be asked for.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from yt8m import registry
from yt8m.data.video_embeddings import FEATURE as VIDEO_EMBEDDING
from yt8m.layers.constants import weights_follow
from yt8m.model import YT8MModel

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
_LOOPS = ("While", "StatelessWhile")
_CONVOLUTIONS = ("Conv2D", "Conv3D")
# How often a counter that moves by 1 passes the condition of a loop.
_COUNTS = {
    "Less": lambda start, end: end - start,
    "LessEqual": lambda start, end: end - start + 1,
    "Greater": lambda start, end: start - end,
    "GreaterEqual": lambda start, end: start - end + 1,
}
_SUMS = {"Add": np.add, "AddV2": np.add, "Sub": np.subtract}

Shape = tuple[int, ...]


class Product(NamedTuple):
    """Products of as many matrices [rows, summed] with matrices [summed, columns].

    Attributes:
        transposed: whether the left and the right matrices lie transposed in memory.
    """

    count: int
    rows: int
    summed: int
    columns: int
    transposed: tuple[bool, bool] = (False, False)

    @property
    def flops(self) -> int:
        return 2 * self.count * self.rows * self.summed * self.columns


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: numbers in its weights, those that are not trained included.
        flops: floating-point operations of a video's matrix products and convolutions,
            a product and its addition counted as two.
    """

    parameters: int
    flops: int


def parameters(model: YT8MModel) -> int:
    """The numbers in a model's weights, those that are not trained included."""
    return sum(math.prod(w.shape) for w in model.weights)


def flops(model: YT8MModel, frames: int) -> int:
    """The operations of inference for one video, see `Cost`.

    Args:
        model: any.
        frames: of the video; one that is classified by its means has none.

    Raises:
        ValueError: the graph does not tell how often a loop runs.
    """
    call = tf.function(lambda inputs: model(inputs)["logits"], autograph=False)
    graph = call.get_concrete_function(_signature(model, frames)).graph
    return _operations(graph, graph.outputs[0])


def model_cost(name: str, args: dict[str, Any], frames: int) -> Cost:
    """The cost of a model that is never built.

    Args:
        name: of a registered model.
        args: of its constructor; files that they name are not read.
        frames: of the video.

    Raises:
        UserError: unknown name or argument.
        ValueError: the graph does not tell how often a loop runs.
    """
    # In a graph of its own a variable is a node, without any value.
    with tf.Graph().as_default() as graph, weights_follow():
        model = registry.create(name, **args)
        inputs = {
            key: tf.compat.v1.placeholder(spec.dtype, spec.shape)
            for key, spec in _signature(model, frames).items()
        }
        logits = model(inputs)["logits"]
        return Cost(parameters(model), _operations(graph, logits))


def _signature(model: YT8MModel, frames: int) -> dict[str, tf.TensorSpec]:
    """The inputs of one video."""
    if model.level == "video":
        return {
            name: tf.TensorSpec([1, size], tf.float32)
            for name, size in model.features.items()
        }
    signature = {
        name: tf.TensorSpec([1, frames, size], tf.uint8)
        for name, size in model.features.items()
    }
    if VIDEO_EMBEDDING in model.input_names:
        size = model.video_embedding_size
        signature[VIDEO_EMBEDDING] = tf.TensorSpec([1, size], tf.float32)
    return signature | {"num_frames": tf.TensorSpec([1], tf.int32)}


def products(graph: tf.Graph, outputs: Sequence[tf.Tensor]) -> Counter[Product]:
    """The products of matrices that `outputs` need, and how often each is made.

    A convolution is the product with its kernel of what lies below it.

    Raises:
        ValueError: the graph does not tell how often a loop runs.
    """
    definition = graph.as_graph_def(add_shapes=True)
    functions = {f.signature.name: f for f in definition.library.function}
    names = [output.name for output in outputs]
    return _Body(definition.node, names, functions).products()


def _operations(graph: tf.Graph, output: tf.Tensor) -> int:
    return total_flops(products(graph, [output]))


def total_flops(found: Counter[Product]) -> int:
    return sum(product.flops * times for product, times in found.items())


class _Body:
    """A graph, or a function that it calls.

    Args:
        nodes: its operations.
        outputs: the names of its results; what they do not need is not counted.
        functions: those of the whole graph, by name.
        arguments: shape and, where it is a constant, value of each argument.
    """

    def __init__(self, nodes, outputs, functions, arguments=None):
        self.nodes = {node.name: node for node in nodes}
        self.outputs = outputs
        self.functions = functions
        self.arguments: dict[str, tuple[Shape, Any]] = arguments or {}

    def products(self) -> Counter[Product]:
        found: Counter[Product] = Counter()
        for node in self._needed():
            found.update(self._products_of(node))
        return found

    def _needed(self) -> Iterator[tf.compat.v1.NodeDef]:
        seen, queue = set(), list(self.outputs)
        while queue:
            name = queue.pop().lstrip("^").partition(":")[0]
            if name in self.nodes and name not in seen:
                seen.add(name)
                queue += self.nodes[name].input
                yield self.nodes[name]

    def _products_of(self, node) -> Counter[Product]:
        kind = node.op
        if kind == "Einsum":
            return self._of_einsum(node)
        if "MatMul" in kind:
            attributes = ("transpose_a", "transpose_b")
            if kind != "MatMul":
                attributes = ("adj_x", "adj_y")
            first, second = (bool(node.attr[name].b) for name in attributes)
            left, right = (self._shape(name) for name in node.input[:2])
            rows, summed = left[-1 if first else -2], left[-2 if first else -1]
            columns = right[-2 if second else -1]
            count = max(math.prod(left[:-2]), math.prod(right[:-2]))
            return Counter([Product(count, rows, summed, columns, (first, second))])
        if kind in _CONVOLUTIONS:
            # Each value of the output takes the kernel of its channel.
            kernel = math.prod(self._shape(node.input[1])[:-1])
            *places, channels = self._shape(node.name)
            return Counter([Product(1, math.prod(places), kernel, channels)])
        if kind == "DepthwiseConv2dNative":
            kernel = math.prod(self._shape(node.input[1])[:2])
            return Counter([Product(1, math.prod(self._shape(node.name)), kernel, 1)])
        if kind in _CALLS:
            return self._called(node, node.attr["f"].func).products()
        if kind in _BRANCHES:
            branches = [
                *(node.attr[a].func for a in ("then_branch", "else_branch")),
                *node.attr["branches"].list.func,
            ]
            found = [
                self._called(node, branch, first=1).products()
                for branch in branches
                if branch.name
            ]
            return max(found, key=total_flops)
        if kind in _LOOPS:
            body = self._called(node, node.attr["body"].func).products()
            times = self._repetitions(node) if total_flops(body) else 0
            return Counter({product: n * times for product, n in body.items()})
        return Counter()

    def _of_einsum(self, node) -> Counter[Product]:
        if len(node.input) < 2:
            return Counter()
        inputs, output = node.attr["equation"].s.decode().split("->")
        operands: list[dict[str, int]] = []
        for letters, name in zip(inputs.split(","), node.input, strict=True):
            before, _, after = letters.partition("...")
            shape, sizes = self._shape(name), {}
            sizes |= dict(zip(before, shape, strict=False))
            sizes |= dict(zip(after[::-1], shape[::-1], strict=False))
            # What "..." stands for, in one.
            if "..." in letters:
                own = len(shape) - len(before) - len(after)
                sizes["..."] = math.prod(shape[len(before) : len(before) + own])
            operands.append(sizes)
        left, right = operands
        kept = {*output.replace("...", ""), *(["..."] if "..." in output else [])}

        def size(wanted) -> int:
            both = {**left, **right}
            return math.prod(n for letter, n in both.items() if wanted(letter))

        return Counter(
            [
                Product(
                    size(lambda x: x in left and x in right and x in kept),
                    size(lambda x: x not in right and x in kept),
                    size(lambda x: x not in kept),
                    size(lambda x: x not in left and x in kept),
                )
            ]
        )

    def _called(self, node, function, first: int = 0) -> "_Body":
        """The function that a node calls with its inputs from the `first` on."""
        definition = self.functions[function.name]
        names = [argument.name for argument in definition.signature.input_arg]
        given = [name for name in node.input if not name.startswith("^")][first:]
        arguments = {
            name: (self._shape(value), self._value(value))
            for name, value in zip(names, given, strict=True)
        }
        outputs = list(definition.ret.values())
        return _Body(definition.node_def, outputs, self.functions, arguments)

    def _repetitions(self, node) -> int:
        """How often a loop runs: at most as it says, or until its counter is there."""
        limits = [self._value(node.input[1])]  # the most that `tf.while_loop` was given
        condition = self._called(node, node.attr["cond"].func)
        for compared in condition._needed():
            if compared.op in _COUNTS:
                start, end = (condition._value(name) for name in compared.input)
                if start is not None and end is not None:
                    limits.append(_COUNTS[compared.op](start, end))
        known = [int(n) for n in limits if n is not None and n >= 0]
        if not known:
            raise ValueError(
                f"The graph does not tell how often the loop {node.name} runs."
            )
        return min(known)

    def _shape(self, name: str) -> Shape:
        if name in self.arguments:
            return self.arguments[name][0]
        node, *port = name.split(":")
        shapes = self.nodes[node].attr["_output_shapes"].list.shape
        place = int(port[-1]) if port else 0
        if place >= len(shapes):
            return ()
        return tuple(dim.size for dim in shapes[place].dim)

    def _value(self, name: str) -> Any:
        """The numbers that `name` always is; None if they may vary."""
        if name in self.arguments:
            return self.arguments[name][1]
        node = self.nodes[name.partition(":")[0]]
        if node.op == "Const":
            return tf.make_ndarray(node.attr["value"].tensor)
        if node.op == "Identity":
            return self._value(node.input[0])
        if node.op == "Shape":
            return np.array(self._shape(node.input[0]))
        if node.op in _SUMS:
            parts = [self._value(part) for part in node.input[:2]]
            return None if any(p is None for p in parts) else _SUMS[node.op](*parts)
        if node.op == "StridedSlice" and node.attr["shrink_axis_mask"].i == 1:
            values, place = (self._value(part) for part in node.input[:2])
            if values is not None and place is not None and place.size == 1:
                return values[place.item()]
        return None
