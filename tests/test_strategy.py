"""The strategy: what is chosen, why, and what one line says when there is none."""

import json

import pytest
import tensorflow as tf

from yt8m.cli import flags as shared
from yt8m.config import Part
from yt8m.distribution import (
    Cluster,
    create_strategy,
    device_names,
    is_chief,
    on_the_host,
    part_of,
    read_cluster,
    refuse_workers,
    wants_static_shapes,
    worker_count,
)
from yt8m.errors import UserError

CPUS = [f"CPU:{i}" for i in range(4)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, caplog):
    caplog.set_level("INFO", "yt8m")
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def set_cluster(monkeypatch):
    def set_cluster(role, index, **jobs):
        config = {"cluster": jobs, "task": {"type": role, "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))

    return set_cluster


def test_without_accelerators_auto_is_the_one_device_and_has_nothing_to_say(caplog):
    strategy = create_strategy()
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert device_names(strategy) == ["CPU:0"]
    assert not [r for r in caplog.records if r.name == "yt8m"]


def test_mirrored_without_gpus_takes_all_logical_cpus(caplog):
    strategy = create_strategy("mirrored", num_gpu=1)
    assert device_names(strategy) == CPUS
    assert "CPU:0, CPU:1, CPU:2, CPU:3: MirroredStrategy (as asked)" in caplog.text
    assert part_of(strategy) == Part(0, 4, 4)
    assert is_chief(strategy) and worker_count(strategy) == 1
    assert not wants_static_shapes(strategy)


def test_one_device_is_all_of_its_job():
    strategy = create_strategy("one_device")
    assert part_of(strategy) == Part() == Part(0, 1, 1)
    assert is_chief(strategy) and worker_count(strategy) == 1


def fake_gpus(monkeypatch, count):
    """Logical CPUs that go by the name of GPUs."""
    cpus = tf.config.list_logical_devices("CPU")
    found = {"GPU": cpus[:count], "CPU": cpus}
    monkeypatch.setattr(tf.config, "list_logical_devices", found.__getitem__)


@pytest.mark.parametrize(
    "gpus, most, devices, why",
    [
        (4, None, CPUS, "several GPUs"),
        (4, 3, CPUS[:3], "several GPUs"),
        (4, 1, CPUS[:1], "one GPU"),
        (2, 8, CPUS[:2], "several GPUs"),
        (1, None, CPUS[:1], "one GPU"),
    ],
)
def test_auto_takes_all_gpus_or_as_many_as_are_wanted(
    monkeypatch, caplog, gpus, most, devices, why
):
    fake_gpus(monkeypatch, gpus)
    strategy = create_strategy("auto", most)
    assert device_names(strategy) == devices
    assert isinstance(strategy, tf.distribute.MirroredStrategy) == (len(devices) > 1)
    assert f"({why})" in caplog.text


def test_mirrored_and_one_device_take_gpus_before_cpus(monkeypatch):
    fake_gpus(monkeypatch, 3)
    assert device_names(create_strategy("mirrored", 2)) == CPUS[:2]
    assert device_names(create_strategy("one_device", 2)) == CPUS[:1]


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"name": "miror"}, "--strategy=miror is unknown. Did you mean mirrored"),
        ({"num_gpu": 0}, "--num_gpu must be at least 1, not 0"),
        ({"name": "mirrored", "tpu": "a"}, "--tpu=a contradicts --strategy=mirrored"),
        ({"name": "multi_worker"}, "needs the environment variable TF_CONFIG"),
    ],
)
def test_what_cannot_be_is_refused(arguments, text):
    with pytest.raises(UserError, match=text):
        create_strategy(**arguments)


def test_the_flag_knows_the_names_that_the_strategy_knows():
    with pytest.raises(UserError) as caught:
        create_strategy("?")
    assert str(caught.value).endswith(f"Known: {', '.join(sorted(shared.STRATEGIES))}.")


# --- TPUs ----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"name": "tpu"}, {"tpu": "local"}])
def test_where_there_is_no_tpu_one_line_says_so(arguments):
    with pytest.raises(UserError, match="^No TPU answers to --tpu=local: ") as caught:
        create_strategy(**arguments)
    assert "\n" not in str(caught.value)
    assert tf.constant(1).numpy() == 1  # TensorFlow goes on


def test_auto_goes_on_without_a_tpu_that_does_not_answer(monkeypatch, caplog):
    def refuse(name):
        raise ValueError(f"Could not look up {name}.\nMore of it.")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", refuse)
    monkeypatch.setenv("TPU_NAME", "pod")
    assert isinstance(create_strategy(), tf.distribute.OneDeviceStrategy)
    said = "No TPU answers to --tpu=pod: Could not look up pod. Going on without."
    assert said in caplog.text
    with pytest.raises(UserError, match="No TPU answers to --tpu=pod"):
        create_strategy("tpu")
    with pytest.raises(UserError, match="No TPU answers to --tpu=other"):
        create_strategy(tpu="other")


# --- workers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "role, index, jobs, number",
    [
        ("worker", 0, {"worker": ["a", "b"]}, 0),
        ("worker", 1, {"worker": ["a", "b"]}, 1),
        ("chief", 0, {"chief": ["c"], "worker": ["a", "b"]}, 0),
        ("worker", 1, {"chief": ["c"], "worker": ["a", "b"], "ps": []}, 2),
        ("master", 0, {"master": ["c"], "worker": ["a"]}, 0),
        ("worker", 0, {"worker": ["a"], "master": ["c"]}, 1),
        ("evaluator", 0, {"chief": ["c"], "worker": ["a"], "evaluator": ["e"]}, None),
    ],
)
def test_workers_are_numbered_from_the_chief_on(set_cluster, role, index, jobs, number):
    set_cluster(role, index, **jobs)
    chief = jobs.get("chief", jobs.get("master", []))
    assert read_cluster() == Cluster((*chief, *jobs["worker"]), number)


def test_one_worker_is_no_cluster(set_cluster):
    assert read_cluster() is None
    for role in ("chief", "worker", "master"):
        set_cluster(role, 0, **{role: ["a"]})
        assert read_cluster() is None
        assert worker_count(create_strategy()) == 1
        refuse_workers("not here")
    with pytest.raises(UserError, match="at least two workers"):
        create_strategy("multi_worker")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"cluster": 1}', '{"cluster": {"worker": 2}}', '{"task": []}'],
)
def test_a_malformed_tf_config_is_shown_in_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="^TF_CONFIG=.* is not what") as caught:
        create_strategy()
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("role, index", [("worker", 2), ("chief", 0), (None, 0)])
def test_a_task_outside_of_the_cluster_is_refused(set_cluster, role, index):
    set_cluster(role, index, worker=["a", "b"])
    with pytest.raises(UserError, match=f"type {role!r} and index {index}, is not in"):
        create_strategy()


@pytest.mark.parametrize("role", ["ps", "worker"])
def test_parameter_servers_are_refused(set_cluster, role):
    set_cluster(role, 0, worker=["a", "b"], ps=["p"])
    with pytest.raises(UserError, match="parameter servers"):
        create_strategy()


def test_the_evaluator_computes_by_itself(set_cluster):
    set_cluster("evaluator", 0, chief=["c"], worker=["a"], evaluator=["e"])
    assert worker_count(create_strategy()) == 1
    refuse_workers("not here")
    with pytest.raises(UserError, match="this process as one of them"):
        create_strategy("multi_worker")


def test_workers_are_refused_or_ignored_where_one_process_works(set_cluster):
    set_cluster("worker", 1, worker=["a", "b", "c"])
    with pytest.raises(UserError, match="TF_CONFIG names 3 workers, but do so"):
        refuse_workers("do so")
    assert worker_count(create_strategy(alone=True)) == 1


@pytest.mark.parametrize("name", ["auto", "multi_worker"])
def test_workers_that_come_after_the_first_operation_are_told_so(set_cluster, name):
    assert tf.constant(1).numpy() == 1
    set_cluster("worker", 0, worker=["localhost:1", "localhost:2"])
    with pytest.raises(UserError, match="must be the first thing that a program"):
        create_strategy(name)


def test_only_one_processor_reads_where_it_computes():
    assert on_the_host(tf.distribute.OneDeviceStrategy("/cpu:0"))
    for other in (
        tf.distribute.get_strategy(),
        tf.distribute.OneDeviceStrategy("/gpu:0"),
        tf.distribute.MirroredStrategy(["/cpu:0"]),
    ):
        assert not on_the_host(other)
