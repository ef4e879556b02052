"""Checkpoints: in the background, across strategies, with averages, cut short."""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from replicas import mirrored
from yt8m import runs, whole_files
from yt8m.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from yt8m.errors import UserError
from yt8m.layers.normalization import BatchNormalization

DATA = DataConfig("video", {"mean_rgb": 4}, num_classes=3)


class State:
    """A small model with batch norm and its optimiser; steps differ by replica."""

    def __init__(self, strategy=None, seed=0):
        keras.utils.set_random_seed(seed)
        self.strategy = strategy or tf.distribute.get_strategy()
        with self.strategy.scope():
            self.model = keras.Sequential(
                [keras.Input((3,)), keras.layers.Dense(2), BatchNormalization()]
            )
            self.optimizer = keras.optimizers.Adam(0.1)
            self.optimizer.build(self.model.trainable_variables)
        self.objects = {"model": self.model, "optimizer": self.optimizer}

    def step(self, jit_compile=False):
        variables = self.model.trainable_variables

        @tf.function(jit_compile=jit_compile)
        def replica_step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self.model(x, training=True) ** 3)
            gradients = tape.gradient(loss, [v.value for v in variables])
            self.optimizer.apply(gradients, variables)

        def batch(context):
            shift = context.replica_id_in_sync_group
            return tf.reshape(tf.range(12.0), [4, 3]) ** (1 + shift)

        inputs = self.strategy.experimental_distribute_values_from_function(batch)
        self.strategy.run(replica_step, args=(inputs,))

    def values(self):
        variables = [v for o in self.objects.values() for v in o.variables]
        return [v.numpy() for v in variables]


def save(checkpoints, state, step, **values):
    return checkpoints.save(state.objects, step, 8 * step, 8, **values)


def save_async(checkpoints, state, step, **values):
    return checkpoints.save_async(state.objects, step, 8 * step, 8, **values)


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def assert_trained(before, after):
    """All variables differ but the learning rate."""
    same = [np.array_equal(x, y) for x, y in zip(before, after, strict=True)]
    assert sum(same) == 1


@pytest.fixture
def held(monkeypatch):
    """Writing waits until the event is set."""
    event, write = threading.Event(), tf.train.Checkpoint.write

    def wait_and_write(self, path):
        assert event.wait(60)
        return write(self, path)

    monkeypatch.setattr(tf.train.Checkpoint, "write", wait_and_write)
    yield event
    event.set()


# --- in the background ---------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_values_are_those_of_the_save_whatever_follows(tmp_path, held, jit_compile):
    state, checkpoints = State(), runs.Checkpoints(str(tmp_path))
    state.step(jit_compile)
    saved = state.values()
    info = save_async(checkpoints, state, 1)
    state.step(jit_compile)
    for v in state.model.trainable_variables:
        v.assign_add(v)
    assert_trained(saved, state.values())
    assert checkpoints.list() == []
    held.set()
    checkpoints.wait()
    assert checkpoints.list() == [info]
    checkpoints.restore(info, state.objects)
    assert_equal(state.values(), saved)


def test_one_checkpoint_is_written_at_a_time_and_none_stays_in_memory(
    tmp_path, monkeypatch
):
    write, alive, at_once = tf.train.Checkpoint.write, weakref.WeakSet(), []

    def owners(most: int) -> int:
        # A thread may have said that it is done and not yet let go.
        for _ in range(100):
            gc.collect()
            if len({v.owner for v in alive}) <= most:
                break
            time.sleep(0.05)
        return len({v.owner for v in alive})

    def watched(self, path):
        at_once.append(owners(1))
        return write(self, path)

    def noted(objects):
        values = host_values(objects)
        for value in values["model"].values():
            value.owner = len(at_once)
            alive.add(value)
        return values

    host_values = runs._host_values
    monkeypatch.setattr(tf.train.Checkpoint, "write", watched)
    monkeypatch.setattr(runs, "_host_values", noted)
    state, checkpoints = State(), runs.Checkpoints(str(tmp_path), keep=5)
    for step in range(1, 5):
        save_async(checkpoints, state, step)
    checkpoints.wait()
    assert at_once == [1] * 4
    assert [c.step for c in checkpoints.list()] == [1, 2, 3, 4]
    assert not owners(0)


def test_the_second_save_waits_for_the_first(tmp_path, held):
    state, checkpoints = State(), runs.Checkpoints(str(tmp_path))
    save_async(checkpoints, state, 1)
    begun = threading.Thread(target=save_async, args=(checkpoints, state, 2))
    begun.start()
    begun.join(0.2)
    assert begun.is_alive()
    held.set()
    begun.join(60)
    checkpoints.wait()
    assert [c.step for c in checkpoints.list()] == [1, 2]


def test_what_goes_wrong_in_the_background_is_said_once(tmp_path, monkeypatch):
    state, checkpoints = State(), runs.Checkpoints(str(tmp_path))
    save(checkpoints, state, 1)

    def full(self, path):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    for then in (
        checkpoints.wait,
        lambda: save_async(checkpoints, state, 3),
        lambda: checkpoints.set_validation(2, {"gap": 0.5}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tf.train.Checkpoint, "write", full)
            save_async(checkpoints, state, 2)
            with pytest.raises(UserError, match="step 2.*No space.*is of step 1"):
                then()
    checkpoints.wait()
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]
    save(checkpoints, state, 4)
    assert [c.step for c in checkpoints.list()] == [1, 4]


def test_what_is_no_error_of_a_file_is_raised_as_it_is(tmp_path, monkeypatch):
    def broken(self, path):
        raise ZeroDivisionError

    monkeypatch.setattr(tf.train.Checkpoint, "write", broken)
    checkpoints = runs.Checkpoints(str(tmp_path))
    save_async(checkpoints, State(), 1)
    with pytest.raises(ZeroDivisionError):
        checkpoints.wait()
    assert checkpoints.list() == []


def test_a_step_whose_checkpoint_is_being_written_gets_its_validation(tmp_path, held):
    checkpoints = runs.Checkpoints(str(tmp_path))
    save_async(checkpoints, State(), 1)
    threading.Timer(0.1, held.set).start()
    checkpoints.set_validation(1, {"gap": 0.5})
    assert checkpoints.best().validation == {"gap": 0.5}


def python(program, *args, devices=4, **environment):
    """Starts `program` as a process of its own, after this file's definitions."""
    setup = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
devices = [tf.config.LogicalDeviceConfiguration()] * {devices}
tf.config.set_logical_device_configuration(cpu, devices)
from test_checkpoints import *
"""
    return subprocess.Popen(
        [sys.executable, "-c", setup + program, *map(str, args)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """The checkpoints and their state, after a process of four replicas failed."""
    program = """
import time
checkpoints = runs.Checkpoints(sys.argv[1])
state = State(mirrored(4), seed=1)
checkpoints.restore(checkpoints.find("1"), state.objects)
for v in (v for o in state.objects.values() for v in o.variables):
    replicas = state.strategy.experimental_local_results(v.value)
    assert_equal([r.numpy() for r in replicas], [v.numpy()] * 4)
save(checkpoints, state, 2)
write = tf.train.Checkpoint.write
def slow(self, path):
    time.sleep(1)
    return write(self, path)
tf.train.Checkpoint.write = slow
save_async(checkpoints, state, 3)
raise ValueError("the trainer failed")
"""
    directory = tmp_path_factory.mktemp("run")
    checkpoints, state = runs.Checkpoints(str(directory)), State(mirrored(2))
    state.step()
    save(checkpoints, state, 1)
    process = python(program, directory)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and "the trainer failed" in said, said
    return checkpoints, state


def test_a_process_that_fails_after_a_save_leaves_the_checkpoint_whole(failed):
    checkpoints, state = failed
    other = State(seed=2)
    checkpoints.restore(checkpoints.find("3"), other.objects)
    assert_equal(other.values(), state.values())


# --- cut short -----------------------------------------------------------------------


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    state, checkpoints = State(), runs.Checkpoints(str(tmp_path))
    save(checkpoints, state, 1)

    def full(path, text):
        raise UserError(f"{path} cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "write_file", full)
        with pytest.raises(UserError, match="step 2.*No space.*is of step 1"):
            save(checkpoints, state, 2)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]


def test_no_moment_of_a_save_leaves_half_a_checkpoint(tmp_path, monkeypatch):
    """Killed at each call that changes a file, also when the step is there already.

    A directory whose removal is cut short has lost the files of the state.
    """
    state, checkpoints = State(), runs.Checkpoints(str(tmp_path), keep=1)
    save(checkpoints, state, 1)

    class Killed(BaseException):
        pass

    rmtree = tf.io.gfile.rmtree
    calls = [(tf.train.Checkpoint, "write")]
    calls += [(tf.io.gfile, n) for n in ("makedirs", "remove", "rmtree", "rename")]

    def killed_after(count, step):
        left = [count]

        def counted(call):
            def patched(*args, **kwargs):
                left[0] -= 1
                if left[0] == -1 and call is rmtree:
                    for name in {*os.listdir(args[0])} - {runs.RECORD_FILE}:
                        os.remove(os.path.join(args[0], name))
                if left[0] < 0:
                    raise Killed
                return call(*args, **kwargs)

            return patched

        with monkeypatch.context() as patch:
            for owner, name in calls:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            save(checkpoints, state, step)

    for step in (1, 2):
        for count in range(100):
            with contextlib.suppress(Killed):
                killed_after(count, step)
                break
            for info in checkpoints.list():
                checkpoints.restore(info, state.objects)
            if step == 2:  # step 1 is not touched before step 2 is complete
                assert checkpoints.list()
        assert count > 3
        assert checkpoints.latest().step == step
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000002"]


def test_a_checkpoint_removed_while_they_are_listed_is_left_out(tmp_path, monkeypatch):
    checkpoints, state = runs.Checkpoints(str(tmp_path)), State()
    save(checkpoints, state, 1)
    gone = save(checkpoints, state, 2)
    found = tf.io.gfile.glob(os.path.join(checkpoints.directory, "*", "*.json"))
    runs._remove(gone.path)
    monkeypatch.setattr(tf.io.gfile, "glob", lambda pattern: found)
    assert [c.step for c in checkpoints.list()] == [1]


# --- the files -----------------------------------------------------------------------


def test_the_files_are_those_of_tensorflows_checkpoint_of_the_variables(tmp_path):
    state, checkpoints = State(), runs.Checkpoints(str(tmp_path))
    info = save(checkpoints, state, 1)
    places = {
        name: {f"{i:05d}": v.value for i, v in enumerate(owner.variables)}
        for name, owner in state.objects.items()
    }
    tf.train.Checkpoint(**places).write(str(tmp_path / "twin" / "state"))
    ours, twin = (
        tf.train.load_checkpoint(os.path.join(folder, "state"))
        for folder in (info.path, tmp_path / "twin")
    )
    shapes = ours.get_variable_to_shape_map()
    assert shapes == twin.get_variable_to_shape_map()
    assert ours.get_variable_to_dtype_map() == twin.get_variable_to_dtype_map()
    for key in shapes.keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}:
        np.testing.assert_array_equal(ours.get_tensor(key), twin.get_tensor(key))
    record = f"{runs.RECORD_FILE} state.data-00000-of-00001 state.index"
    assert sorted(os.listdir(info.path)) == record.split()
    status = tf.train.Checkpoint(**places).read(os.path.join(info.path, "state"))
    status.assert_consumed()


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    config = RunConfig(ModelConfig("LogisticModel"), DATA, TrainingConfig("train*"))
    runs.write_config(str(tmp_path), config)
    model = runs.build_model(config.model, DATA)
    folder = tmp_path / "checkpoints" / "step-00000003"
    places = {f"{i:05d}": v.value for i, v in enumerate(model.variables)}
    tf.train.Checkpoint(model=places).write(str(folder / "state"))
    record = {"step": 3, "examples": 24, "batch_size": 8, "validation": None}
    (folder / runs.RECORD_FILE).write_text(json.dumps(record))
    run = runs.load_run(str(tmp_path))
    assert (run.checkpoint.step, run.checkpoint.ema) == (3, False)
    assert_equal(
        [v.numpy() for v in run.model.variables], [v.numpy() for v in model.variables]
    )


def test_variables_of_any_kind_in_any_object_are_stored_also_remotely():
    kept = [
        tf.Variable([[1.5, -2.0]], dtype=tf.bfloat16),
        tf.Variable(1 << 40, dtype=tf.int64),
        tf.Variable(True),
        keras.Variable(np.array([1, 2], "uint8"), dtype="uint8"),
        keras.Variable(np.zeros((0, 3))),
    ]
    before = [v.numpy() for v in kept]
    checkpoints = runs.Checkpoints("ram://any/run")
    objects = {"any": SimpleNamespace(variables=kept)}
    info = checkpoints.save(objects, 1, 8, 8)
    for v in kept:
        v.assign(tf.zeros_like(v))
    assert [v.numpy().sum() for v in kept] == [0] * 5
    checkpoints.restore(info, objects)
    assert_equal([v.numpy() for v in kept], before)
    assert checkpoints.save(objects, 2, 16, 8) == checkpoints.latest()


# --- strategies ----------------------------------------------------------------------


@pytest.mark.parametrize("read", [1, 2])
@pytest.mark.parametrize("written", [1, 2])
def test_a_checkpoint_is_read_under_another_number_of_replicas(tmp_path, written, read):
    strategies = {1: None, 2: mirrored(2)}
    state = State(strategies[written])
    state.step()
    info = save(runs.Checkpoints(str(tmp_path)), state, 1)
    other = State(strategies[read], seed=1)
    runs.Checkpoints(str(tmp_path)).restore(info, other.objects)
    assert_equal(other.values(), state.values())
    for v in (v for o in other.objects.values() for v in o.variables):
        replicas = other.strategy.experimental_local_results(v.value)
        assert len(replicas) == read
        assert_equal([r.numpy() for r in replicas], [v.numpy()] * read)
    before = other.values()
    other.step()
    assert_trained(before, other.values())


def test_four_replicas_read_and_write_what_two_and_one_do(failed):
    checkpoints, state = failed
    one = State(seed=2)
    checkpoints.restore(checkpoints.find("2"), one.objects)
    assert_equal(one.values(), state.values())


@pytest.mark.parametrize("aggregation", ["mean", "sum", "only_first_replica"])
def test_what_replicas_keep_apart_is_stored_reduced(tmp_path, aggregation):
    strategy, checkpoints = mirrored(2), runs.Checkpoints(str(tmp_path))
    with strategy.scope():
        v = keras.Variable(0.0, aggregation=aggregation, synchronization="on_read")

    def assign():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        v.value.assign(tf.cast(2 + 2 * replica, tf.float32))

    strategy.run(assign)
    objects = {"any": SimpleNamespace(variables=[v])}
    info = checkpoints.save(objects, 1, 8, 8)
    strategy.run(lambda: v.value.assign(0.0))
    plain = tf.Variable(0.0)
    checkpoints.restore(info, {"any": SimpleNamespace(variables=[plain])})
    checkpoints.restore(info, objects)
    expected = {"mean": 3.0, "sum": 6.0, "only_first_replica": 2.0}[aggregation]
    assert plain.numpy() == v.numpy() == expected


def test_a_worker_that_is_not_the_chief_writes_and_removes_nothing(tmp_path):
    state = State()
    chief = runs.Checkpoints(str(tmp_path), keep=1)
    other = runs.Checkpoints(str(tmp_path), keep=1, writes=False)
    assert save(other, state, 1) == save_async(other, state, 1)
    assert os.listdir(tmp_path) == []
    info = save(chief, state, 1)
    cut_short = tmp_path / "checkpoints" / "step-00000002"
    cut_short.mkdir()
    assert save(other, state, 1) == info == other.latest()
    assert save_async(other, state, 3) == chief.save_async(state.objects, 3, 24, 8)
    chief.wait()
    assert not cut_short.exists()
    cut_short.mkdir()
    other.set_validation(3, {"gap": 0.5})
    other.wait()
    assert cut_short.exists() and other.best() is None


def test_two_workers_read_what_their_chief_writes(tmp_path):
    """Also a variable that takes both of them to be read."""
    program = """
strategy = tf.distribute.MultiWorkerMirroredStrategy()
task = strategy.cluster_resolver.task_id
checkpoints = runs.Checkpoints(sys.argv[1], writes=task == 0)
state = State(strategy)
with strategy.scope():
    apart = keras.Variable(0.0, aggregation="mean", synchronization="on_read")
apart.value.values[0].assign(4.0 * task)
state.objects["apart"] = SimpleNamespace(variables=[apart])
state.step()
saved = state.values()
info = save_async(checkpoints, state, 1)
state.step()
checkpoints.wait()
state.strategy.run(
    lambda: tf.distribute.get_replica_context().all_reduce("sum", tf.constant(1.0))
)
assert checkpoints.list() == [info]
checkpoints.restore(info, state.objects)
values = [v.value.values[0] for o in state.objects.values() for v in o.variables]
assert_equal([v.numpy() for v in values], [*saved[:-1], 2.0])
"""
    ports = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            found = stack.enter_context(socket.socket())
            found.bind(("localhost", 0))
            ports.append(f"localhost:{found.getsockname()[1]}")
    workers = []
    for i in range(2):
        job = {"cluster": {"worker": ports}, "task": {"type": "worker", "index": i}}
        job = json.dumps(job)
        workers.append(python(program, tmp_path, devices=1, TF_CONFIG=job))
    try:
        said = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], said
    checkpoints, one = runs.Checkpoints(str(tmp_path)), State(seed=1)
    checkpoints.restore(checkpoints.latest(), one.objects, partial=True)
    assert one.optimizer.iterations.numpy() == 1


# --- averages of the weights ---------------------------------------------------------


def test_evaluation_takes_the_averages_of_the_weights_where_there_are_some(tmp_path):
    config = RunConfig(ModelConfig("MoeModel"), DATA, TrainingConfig("train*"))
    runs.write_config(str(tmp_path), config)
    model = runs.build_model(config.model, DATA)
    checkpoints = runs.Checkpoints(str(tmp_path))
    weights = model.trainable_variables
    averages = [keras.Variable(v.value + 1.0, trainable=False) for v in weights]
    steps = tf.Variable(3.0)  # what the averages need beside themselves comes last
    objects = {"model": model, "ema": SimpleNamespace(variables=[*averages, steps])}
    plain = checkpoints.save({"model": model}, 1, 8, 8)
    averaged = checkpoints.save(objects, 2, 16, 8)
    assert [c.ema for c in checkpoints.list()] == [False, True]
    checkpoints.set_validation(2, {"gap": 0.5})
    assert checkpoints.best().ema

    for info, shift in ((plain, 0.0), (averaged, 1.0)):
        read = runs.load_run(str(tmp_path), str(info.step)).model
        for a, b in zip(read.trainable_variables, weights, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy() + np.float32(shift))
    checkpoints.restore(averaged, {"model": read}, partial=True)
    assert_equal([v.numpy() for v in read.variables], [v.numpy() for v in weights])
    with pytest.raises(UserError, match="does not fit"):
        checkpoints.restore(averaged, {"model": read})
    with pytest.raises(UserError, match="does not fit"):
        checkpoints.restore(plain, objects)


def test_a_damaged_record_is_named(tmp_path):
    checkpoints = runs.Checkpoints(str(tmp_path))
    first = save(checkpoints, State(), 1)
    record = os.path.join(save(checkpoints, State(), 2).path, "checkpoint.json")
    for text in ("{", "[]", '{"step": 2}', '{"step": "a", "examples": 1}'):
        with open(record, "w") as f:
            f.write(text)
        with pytest.raises(UserError, match=f"{record} is damaged.*remove"):
            checkpoints.latest()
    os.remove(record)  # as one that is being written
    assert checkpoints.list() == [first]
    (tmp_path / "checkpoints" / "step-notes.txt").write_text("a file of the user's")
    assert checkpoints.list() == [first]


def test_a_file_of_weights_that_is_cut_short_is_named(tmp_path):
    checkpoints = runs.Checkpoints(str(tmp_path))
    state = State()
    info = save(checkpoints, state, 1)
    for name in os.listdir(info.path):
        if not name.startswith("state"):
            continue
        path = os.path.join(info.path, name)
        with open(path, "rb") as f:
            whole = f.read()
        for size in (0, len(whole) // 2, len(whole) - 1):
            with open(path, "wb") as f:
                f.write(whole[:size])
            with pytest.raises(UserError, match=f"^The checkpoint {info.path} "):
                checkpoints.restore(info, state.objects)
        with open(path, "wb") as f:
            f.write(whole)
    checkpoints.restore(info, state.objects)


def test_weights_alone_are_called_so_where_training_would_go_on(tmp_path):
    checkpoints = runs.Checkpoints(str(tmp_path))
    state = State()
    info = checkpoints.save({"model": state.model}, 1, 8, 8)
    with pytest.raises(UserError, match="holds weights alone.*--init_from"):
        checkpoints.restore(info, state.objects)


@pytest.mark.parametrize("name", ["run[1]", "a\\b"])
def test_a_path_that_tensorflow_takes_for_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="reads no weights from a path with"):
        runs.Checkpoints(str(tmp_path / name))


@pytest.mark.parametrize("name", ["run*", "a run?", "{run}", "ru,n~"])
def test_other_odd_paths_hold_runs(tmp_path, name):
    checkpoints = runs.Checkpoints(str(tmp_path / name), keep=1)
    state = State()
    save(checkpoints, state, 1)
    state.step()
    trained = state.values()
    info = save(checkpoints, state, 2)
    assert checkpoints.list() == [info]
    state.step()
    checkpoints.restore(info, state.objects)
    assert_equal(trained, state.values())
