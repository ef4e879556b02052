"""The floor of a step: its own products of matrices, made by themselves."""

import functools
import time
from collections import Counter
from collections.abc import Callable

import tensorflow as tf

from yt8m.cost import Product, products, total_flops

_SECONDS = 0.1  # about how long each product is timed
_LEAST_SHARE = 0.01  # of all operations, below which a product is not timed itself


def step_products(
    gradients: Callable[[dict[str, tf.Tensor]], list[tf.Tensor]],
    batch: dict[str, tf.TensorSpec],
) -> Counter[Product]:
    """The products that a step's gradients need.

    Args:
        gradients: of the weights, from a batch.
        batch: of which all sizes are known.
    """
    function = tf.function(gradients, autograph=False)
    graph = function.get_concrete_function(batch).graph
    return products(graph, graph.outputs)


def seconds_of(found: Counter[Product], dtype: str) -> float:
    """How long these products take, one after the other, each on matrices of noise.

    The smallest, and products with vectors, take as long by their operations as the
    others.
    """
    total, timed, spent = total_flops(found), 0, 0.0
    for product, times in found.items():
        whole = product.flops * times
        if whole < _LEAST_SHARE * total or 1 in product[1:4]:
            continue
        spent += times * _seconds(product, dtype)
        timed += whole
    return spent * total / timed


def _seconds(product: Product, dtype: str) -> float:
    left, right, multiply = _operands(product, dtype)

    def run() -> float:
        start = time.perf_counter()
        multiply(left, right).numpy()
        return time.perf_counter() - start

    run()
    spent = [run()]
    while sum(spent) < _SECONDS:
        spent.append(run())
    return sorted(spent)[len(spent) // 2]


@functools.lru_cache(maxsize=4)  # matrices of up to 1 GB
def _operands(product: Product, dtype: str):
    first, second = product.transposed
    count, rows, summed, columns = product[:4]
    shapes = (
        (count, *((summed, rows) if first else (rows, summed))),
        (count, *((columns, summed) if second else (summed, columns))),
    )
    left, right = (
        tf.cast(tf.random.stateless_normal(s if count > 1 else s[1:], (0, 0)), dtype)
        for s in shapes
    )

    @tf.function(autograph=False)
    def multiply(left, right):
        product = tf.matmul(left, right, transpose_a=first, transpose_b=second)
        return product[..., 0, 0]  # which waits for it, and copies nothing

    return left, right, multiply
