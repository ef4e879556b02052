"""Where a command computes: its `tf.distribute` strategy, and batches for each replica.

The devices of one machine are one_device or mirrored; several machines, each of which
runs the same command with TF_CONFIG in its environment, are multi_worker; a TPU is tpu.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m.config import Part
from yt8m.errors import UserError, near_matches

log = logging.getLogger("yt8m")

# Tasks of TF_CONFIG that train; `master` is the starter code's word for the chief.
_CHIEFS = ("chief", "master")


@dataclass(frozen=True)
class Cluster:
    """The processes of a job, as TF_CONFIG names them.

    Attributes:
        workers: addresses of those that train, the chief first.
        number: that of this process among them; None if it is the evaluator.
    """

    workers: tuple[str, ...]
    number: int | None


def read_cluster() -> Cluster | None:
    """The cluster of TF_CONFIG, or None if it names no more than this process.

    Raises:
        UserError: TF_CONFIG is malformed, or names parameter servers.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        config = json.loads(text)
        jobs = {job: list(hosts) for job, hosts in config.get("cluster", {}).items()}
        workers = [host for job in (*_CHIEFS, "worker") for host in jobs.get(job, [])]
        task = config.get("task", {})
        role, index = task.get("type"), int(task.get("index", 0))
    except (AttributeError, TypeError, ValueError) as e:
        raise UserError(f"TF_CONFIG={text} is not what TensorFlow reads: {e}.") from e
    if role == "ps" or jobs.get("ps"):
        raise UserError(
            "TF_CONFIG names parameter servers (ps), which are of no use here: every "
            "worker holds all weights. Leave them out of the cluster."
        )
    if len(workers) < 2 or role == "evaluator":
        return Cluster(tuple(workers), None) if role == "evaluator" else None
    first = 0 if role in _CHIEFS else sum(len(jobs.get(job, [])) for job in _CHIEFS)
    if role not in (*_CHIEFS, "worker") or not 0 <= index < len(jobs.get(role, [])):
        raise UserError(
            f"TF_CONFIG={text}: the task of this process, type {role!r} and index "
            f"{index}, is not in its cluster."
        )
    return Cluster(tuple(workers), first + index)


def refuse_workers(instead: str) -> None:
    """Raises `UserError` if TF_CONFIG makes this process one of several workers."""
    cluster = read_cluster()
    if cluster and cluster.number is not None:
        raise UserError(
            f"TF_CONFIG names {len(cluster.workers)} workers, but {instead}"
        )


def create_strategy(
    name: str = "auto",
    num_gpu: int | None = None,
    tpu: str | None = None,
    *,
    alone: bool = False,
) -> tf.distribute.Strategy:
    """The strategy called `name`; says in the log what was chosen and why.

    For several workers it must be made before TensorFlow computes anything.

    Args:
        name: `one_device` (a GPU if there is one), `mirrored` (all visible GPUs, or
            without any all logical CPU devices), `multi_worker`, `tpu`, or `auto`:
            the first there is of a TPU (`tpu`, TPU_NAME, or one in this machine),
            several workers in TF_CONFIG, several GPUs, one device.
        num_gpu: the most GPUs of this machine to use; None for all.
        tpu: `local`, or the name or address of a TPU.
        alone: whether TF_CONFIG is of no concern.

    Raises:
        UserError: an unknown name, a device that is not there, a TF_CONFIG that
            cannot be used, or one that comes too late.
    """
    if num_gpu is not None and num_gpu < 1:
        raise UserError(f"--num_gpu must be at least 1, not {num_gpu}.")
    creators = {
        "auto": lambda: _automatic(num_gpu, tpu, alone),
        "one_device": lambda: (_one_device(), "as asked"),
        "mirrored": lambda: (_mirrored(num_gpu), "as asked"),
        "multi_worker": lambda: (_multi_worker(read_cluster(), num_gpu), "as asked"),
        "tpu": lambda: (_tpu(tpu or os.environ.get("TPU_NAME", "local")), "as asked"),
    }
    if name not in creators:
        raise UserError(f"--strategy={name} is unknown. {near_matches(name, creators)}")
    if tpu and name not in ("auto", "tpu"):
        raise UserError(f"--tpu={tpu} contradicts --strategy={name}; give one of them.")
    strategy, why = creators[name]()
    workers = worker_count(strategy)
    if why:
        log.info(
            "Computing on %s%s: %s (%s).",
            ", ".join(device_names(strategy)),
            f" of each of {workers} workers" if workers > 1 else "",
            type(strategy).__name__,
            why,
        )
    return strategy


def _automatic(
    num_gpu: int | None, tpu: str | None, alone: bool
) -> tuple[tf.distribute.Strategy, str]:
    """The strategy for what there is, and why it is this one."""
    if tpu:
        return _tpu(tpu), f"--tpu={tpu}"
    named = os.environ.get("TPU_NAME")
    if named or tf.config.list_physical_devices("TPU"):
        try:
            return _tpu(named or "local"), "a TPU answers"
        except UserError as e:
            log.warning("%s Going on without.", e)
    cluster = None if alone else read_cluster()
    if cluster and cluster.number is not None:
        return _multi_worker(cluster, num_gpu), "the workers of TF_CONFIG"
    gpus = tf.config.list_logical_devices("GPU")[:num_gpu]
    if len(gpus) > 1:
        return _mirrored(num_gpu), "several GPUs"
    return _one_device(), "one GPU" if gpus else ""  # nothing that was to be chosen


def _one_device() -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/cpu:0")


def _mirrored(num_gpu: int | None) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")[:num_gpu]
    devices = gpus or tf.config.list_logical_devices("CPU")
    # Without GPUs the collectives of a process are for one number of devices only.
    reduction = None if gpus else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(
        [device.name for device in devices], cross_device_ops=reduction
    )


def _multi_worker(
    cluster: Cluster | None, num_gpu: int | None
) -> tf.distribute.Strategy:
    if cluster is None or cluster.number is None:
        raise UserError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, with at "
            "least two workers and this process as one of them."
        )
    # The chief is the first worker: all processes number them alike.
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.number,
        rpc_layer="grpc",
    )
    try:
        if num_gpu:
            gpus = tf.config.list_physical_devices("GPU")
            tf.config.set_visible_devices(gpus[:num_gpu], "GPU")
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError as e:
        if "startup" not in str(e):  # "must be configured at program startup"
            raise
        raise UserError(
            "TensorFlow was used before the workers were connected: a strategy of "
            "several workers must be the first thing that a program makes."
        ) from e


def _tpu(name: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ImportError, OSError, RuntimeError, ValueError, tf.errors.OpError) as e:
        said = (getattr(e, "message", None) or str(e)).strip() or repr(e)
        raise UserError(
            f"No TPU answers to --tpu={name}: {said.splitlines()[0][:200]}"
        ) from e


# --- what a strategy is --------------------------------------------------------------


def part_of(strategy: tf.distribute.Strategy) -> Part:
    """The replicas that this process feeds, among those of the whole job."""
    total = strategy.num_replicas_in_sync
    count = total // worker_count(strategy)
    return Part(_worker_number(strategy) * count, count, total)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes what only one of the workers may."""
    return _worker_number(strategy) == 0


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """The number of processes that run the command together."""
    if not _has_workers(strategy):
        return 1
    return strategy.cluster_resolver.cluster_spec().num_tasks("worker")


def device_names(strategy: tf.distribute.Strategy) -> list[str]:
    """The devices that this process feeds, as `GPU:0`."""
    devices = strategy.extended.worker_devices
    return [d[d.rindex("device:") + len("device:") :] for d in devices]


def wants_static_shapes(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether all batches must have one shape."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def on_the_host(strategy: tf.distribute.Strategy) -> bool:
    """Whether all is computed by the one processor that reads the batches."""
    if not isinstance(strategy, tf.distribute.OneDeviceStrategy):
        return False
    return on_processors(strategy)


def on_processors(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether the results are in the host's memory: no replica has an accelerator.

    Args:
        strategy: None for the default device.
    """
    if strategy is None:
        return not tf.config.list_logical_devices("GPU")
    specs = map(tf.DeviceSpec.from_string, strategy.extended.worker_devices)
    return all(spec.device_type == "CPU" for spec in specs)


def _has_workers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _worker_number(strategy: tf.distribute.Strategy) -> int:
    return strategy.cluster_resolver.task_id if _has_workers(strategy) else 0


# --- batches for each replica --------------------------------------------------------


class EachReplica:
    """A compiled function of a batch, which every replica runs on a batch of its own.

    A batch is never cut: its rows are computed together, as they are on one device, so
    that no bit of a result depends on the number of replicas. Of several workers, each
    computes its part, and all get all results: they must call it together, with the
    same batches.

    Args:
        function: of a dictionary of tensors [B, ...]; gives tensors [B, ...], in
            tuples or dictionaries. It reads variables, but writes none.
        strategy: under whose scope they were made; None for the default device.
        rows: batches are padded with rows of zeros to this B where shapes must be
            static; no batch has more.
    """

    def __init__(
        self,
        function: Callable[[dict[str, tf.Tensor]], Any],
        strategy: tf.distribute.Strategy | None = None,
        rows: int | None = None,
    ):
        self._strategy = strategy
        self._part = part_of(strategy) if strategy else Part()
        self._rows = rows if wants_static_shapes(strategy) else None
        self._one = tf.function(function)
        self._all = tf.function(lambda batches: self._run(function, batches))
        self._traced = False

    def map(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Lazily turns (anything, batch) into (the same, results), in order.

        Where the batch is None, so are the results.
        """
        if self._part.total == 1 and not self._rows:
            for kept, batch in batches:
                yield kept, None if batch is None else self._call(self._one, batch)
            return
        group, filled = [], 0
        for kept, batch in batches:
            group.append((kept, batch))
            filled += batch is not None
            if filled == self._part.total:
                yield from self._compute(group)
                group, filled = [], 0
        yield from self._compute(group)

    def _compute(self, group: list[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        batches = [batch for _, batch in group if batch is not None]
        results = iter(self._results(batches) if batches else ())
        for kept, batch in group:
            yield kept, None if batch is None else next(results)

    def _results(self, batches: list[dict[str, tf.Tensor]]) -> list[Any]:
        """The results of at most one batch for each replica."""
        sizes = [_rows_of(batch) for batch in batches]
        if self._rows:
            batches = [_pad(batch, self._rows) for batch in batches]
        # Replicas without a batch repeat the last, and nobody looks at what they find.
        idle = self._part.total - len(batches)
        batches = batches + batches[-1:] * idle
        outputs = self._call(self._all, batches)
        if self._part.count < self._part.total:  # of all replicas, one after the other
            ends = np.cumsum([_rows_of(batch) for batch in batches])
            outputs = [
                tf.nest.map_structure(lambda x, a=a, b=b: x[a:b], outputs)
                for a, b in zip([0, *ends], ends, strict=False)
            ]
        if self._rows:
            outputs = [
                tf.nest.map_structure(lambda x, n=size: x[:n], output)
                for output, size in zip(outputs, sizes, strict=False)
            ]
        return outputs[: len(sizes)]

    def _call(self, function: tf.types.experimental.GenericFunction, inputs) -> Any:
        """`function` of inputs, traced once, for any number of rows and frames.

        TensorFlow rewrites a graph of known shapes in other ways than one of unknown
        shapes: a result would depend on whether its batch was the first of a replica.
        """
        if not self._traced and not self._rows:
            function.get_concrete_function(tf.nest.map_structure(_any_rows, inputs))
            self._traced = True
        return function(inputs)

    def _run(self, function: Callable[[dict[str, tf.Tensor]], Any], batches) -> Any:
        """What the replicas of this process find, a list; of several workers, what all
        replicas find, one after the other."""
        strategy = self._strategy
        inputs = strategy.experimental_distribute_values_from_function(
            lambda context: batches[context.replica_id_in_sync_group]
        )
        outputs = strategy.run(function, args=(inputs,))
        if self._part.count < self._part.total:
            return tf.nest.map_structure(lambda x: strategy.gather(x, axis=0), outputs)
        return [
            tf.nest.map_structure(
                lambda x, i=i: strategy.experimental_local_results(x)[i], outputs
            )
            for i in range(self._part.count)
        ]


def _rows_of(batch: dict[str, tf.Tensor]) -> int:
    return int(next(iter(batch.values())).shape[0])


def _any_rows(x: Any) -> tf.TensorSpec:
    """What [B, D] and [B, T, D] are for any B and T."""
    x = tf.convert_to_tensor(x)
    return tf.TensorSpec([None] * max(x.shape.rank - 1, 1) + x.shape[1:][-1:], x.dtype)


def _pad(batch: dict[str, tf.Tensor], rows: int) -> dict[str, tf.Tensor]:
    """`batch` with rows of zeros up to `rows`."""
    return {
        name: tf.pad(x, [[0, rows - x.shape[0]]] + [[0, 0]] * (x.shape.rank - 1))
        for name, x in batch.items()
    }
