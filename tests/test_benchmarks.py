"""The speed of training on a device: what is counted is right, and the command runs."""

import ast
import math
import pathlib
import re

import keras
import pytest
import tensorflow as tf

from benchmarks import device
from benchmarks.__main__ import main
from yt8m import losses, registry
from yt8m.model import forward

SIZES = {"num_classes": 11, "features": {"rgb": 7, "audio": 3}, "hidden_size": 5}


def built(name, **args):
    return registry.create(name, **SIZES, **args).ensure_built()


def test_the_operations_of_netvlad_are_those_counted_by_hand():
    model = built("NetVLADModel", clusters=6, num_mixtures=2)  # and 3 of audio
    frames = 2 * (13 * 7 * 6 + 13 * 3 * 3)  # assignments and sums, 13 frames
    weights = (7 * 6 + 3 * 3) * 5 + 5 * 5  # the hidden layer and its gate
    weights += 5 * 11 * 3 + 5 * 11 * 2 + 11 * 11  # gates, experts, last gate
    assert device.training_flops(model, 13) == 2 * (2 * frames + 3 * weights)


def test_the_operations_of_netvlad_without_gates_and_audio_are_fewer():
    model = registry.create(
        "NetVLADModel",
        **{**SIZES, "features": {"rgb": 7}},
        clusters=6,
        num_mixtures=4,
        gating=False,
        gating_probabilities=False,
    ).ensure_built()
    frames, weights = 2 * (13 * 7 * 6), 7 * 6 * 5 + 5 * 11 * 9
    assert device.training_flops(model, 13) == 2 * (2 * frames + 3 * weights)


def test_the_operations_of_dbof_are_those_counted_by_hand():
    model = built("DbofModel", clusters=6)
    frames, weights = 13 * (7 + 3) * 6, 6 * 5 + 5 * 11 * 5
    assert device.training_flops(model, 13) == 2 * (2 * frames + 3 * weights)


def operations(op: tf.Operation) -> int:
    """2 m n k of a product of matrices; 0 of all else, as of products with a vector."""
    if op.type == "Einsum":
        letters = op.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {}
        for names, value in zip(letters, op.inputs, strict=True):
            sizes |= dict(zip(names, value.shape, strict=True))
        return 2 * math.prod(sizes.values())
    if op.type not in ("MatMul", "BatchMatMulV2", "BatchMatMulV3"):
        return 0
    transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    inner, shape = op.inputs[0].shape[-2 if transposed else -1], op.outputs[0].shape
    return 0 if 1 in (inner, *shape[-2:]) else 2 * inner * shape.num_elements()


@pytest.mark.parametrize("name", ["NetVLADModel", "DbofModel"])
def test_the_operations_are_those_of_the_graph_that_tensorflow_runs(name):
    model = built(name, clusters=6)
    case = device.Case(name, {}, 4, 13, matrix=1, pool=1, rounds=1, seconds=0)
    engine = device.TensorFlowEngine("cpu", jit_compile=False)
    batch = engine.unstack(device.generated_batches(model, case))[0]
    loss = losses.create("CrossEntropyLoss")

    @tf.function
    def gradients(batch):
        with tf.GradientTape() as tape:
            value = loss(batch["labels"], forward(model, batch, training=True))
        return tape.gradient(value, [v.value for v in model.trainable_variables])

    # What the gradients need; TensorFlow drops the rest before it runs.
    graph, needed = gradients.get_concrete_function(batch).graph, set()
    waiting = [output.op for output in graph.outputs]
    while waiting:
        op = waiting.pop()
        if op not in needed:
            needed.add(op)
            waiting += [value.op for value in op.inputs]
    counted = sum(operations(op) for op in needed)
    assert counted == device.training_flops(model, case.frames) * case.videos


def test_where_only_jax_is_installed_nothing_imports_tensorflow():
    root = pathlib.Path(device.__file__).parent.parent
    waiting, seen = ["benchmarks.__main__", "benchmarks.device"], set()
    while waiting:
        module = waiting.pop()
        path = root / f"{module.replace('.', '/')}.py"
        path = (
            path if path.exists() else root / module.replace(".", "/") / "__init__.py"
        )
        if module in seen or not path.exists():
            continue
        seen.add(module)
        for node in ast.parse(path.read_text()).body:  # not inside of functions
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            else:
                continue
            assert not any(n.split(".")[0] == "tensorflow" for n in names), path
            waiting += names
    assert {"yt8m.model", "yt8m.training.optimizers", "frame_level_models"} <= seen


def test_generated_batches_look_like_those_of_the_reader():
    model = built("DbofModel", clusters=6)
    case = device.Case("DbofModel", {}, 4, 13, matrix=1, pool=3, rounds=1, seconds=0)
    batches = device.generated_batches(model, case)
    assert {name: (v.shape, str(v.dtype)) for name, v in batches.items()} == {
        "rgb": ((3, 4, 13, 7), "uint8"),
        "audio": ((3, 4, 13, 3), "uint8"),
        "num_frames": ((3, 4), "int32"),
        "labels": ((3, 4, 11), "bool"),
    }
    assert (batches["num_frames"] == 13).all()
    assert 0 < batches["labels"].mean() < 1


def test_batches_from_the_host_come_in_turn_without_end():
    engine = device.TensorFlowEngine("cpu", jit_compile=False)
    stream = engine.stream({"x": tf.constant([[1], [2], [3]], tf.uint8)})
    assert [next(stream)["x"].numpy().tolist() for _ in range(5)] == [
        *([1], [2], [3]),
        *([1], [2]),
    ]


def test_everything_measured_takes_turns():
    calls = []
    case = device.Case("", {}, 1, 1, matrix=1, pool=1, rounds=2, seconds=0)
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    rates = device.repeated_rates(runs, lambda result: None, case)
    assert "".join(calls) == "ab" + "ab" + "abab"
    assert all(len(r) == 2 and (r > 0).all() for r in rates.values())


def test_a_step_moves_the_weights_and_its_loss_falls():
    model = built("NetVLADModel", clusters=6)
    case = device.Case("NetVLADModel", {}, 4, 13, matrix=1, pool=1, rounds=1, seconds=0)
    engine = device.TensorFlowEngine("cpu", jit_compile=False)
    batch = engine.unstack(device.generated_batches(model, case))[0]
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    step = engine.train_step(model, optimizer, losses.create("CrossEntropyLoss"))
    values = [float(step(batch)) for _ in range(20)]
    assert values[-1] < values[0]


def test_the_command_measures_each_model_in_each_precision(capsys):
    assert main(["--device=cpu", "--quick"]) == 0
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    assert "cores" in first and f"tensorflow {tf.__version__}" in first
    assert re.findall(r"^`(\w+)`, (\w+),", out, re.M) == [
        (model, precision)
        for model in ("NetVLADModel", "DbofModel")
        for precision in ("bfloat16", "float32")
    ]
    for label, shares in (
        ("products", 0),
        ("copies", 0),
        ("data on the device", 1),
        ("data from the host", 2),
    ):
        rows = re.findall(rf"^\| {label}.*", out, re.M)
        assert len(rows) == 4
        for row in rows:
            cells = [c.strip() for c in row.strip("|").split("|")]
            assert float(cells[1].replace(",", "")) > 0
            assert [float(c) > 0 for c in cells[3:] if c] == [True] * shares


def test_without_arguments_the_command_lists_all_benchmarks(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name in (".metrics", ".quality", ".reader", ".segments", " --device=gpu"):
        assert f"python -m benchmarks{name}" in out


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_missing_package_is_said_in_one_line(backend, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--device=cpu", f"--backend={backend}"]) == 1
    error = capsys.readouterr().err
    assert f"{backend} is not installed" in error and error.count("\n") == 1


def test_a_missing_gpu_is_said_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert main(["--device=gpu"]) == 1
    error = capsys.readouterr().err
    assert "--device=gpu" in error and error.count("\n") == 1
