"""Speed and quality: what is counted is right, and the commands run."""

import ast
import dataclasses
import json
import math
import os
import pathlib
import re
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import device, quality
from benchmarks.__main__ import main
from benchmarks.stages import report
from benchmarks.stages import training as stages_training
from benchmarks.stages.timing import Row
from benchmarks.zoo import (
    embedded,
    real,
    results,
    rows,
    runs,
    tables,
    techniques,
    training,
    videos,
)
from yt8m import registry
from yt8m.data.synthetic import SyntheticConfig, generate_video
from yt8m.errors import UserError
from yt8m.layers.label_processing import read_correlation
from yt8m.metrics import gap
from yt8m.metrics.ranking import rank_top

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


@pytest.mark.parametrize("name", ["NetVLADModel", "DbofModel"])
def test_the_operations_are_those_of_the_graph_that_tensorflow_runs(name):
    case = stages_training.Case("", name, {**SIZES, "clusters": 6}, 4, 13)
    steps = stages_training.Steps(case, "float32")
    found = steps.products()
    # Products with a vector are not counted by hand.
    flops = sum(p.flops * n for p, n in found.items() if 1 not in p[1:4])
    assert flops == device.training_flops(steps.model, 13) * case.videos


def imported(*modules: str) -> dict[str, set[str]]:
    """The project's modules that these import on import, and what each of them does."""
    root = pathlib.Path(device.__file__).parent.parent
    waiting, seen = list(modules), {}
    while waiting:
        module = waiting.pop()
        path = root / f"{module.replace('.', '/')}.py"
        path = (
            path if path.exists() else root / module.replace(".", "/") / "__init__.py"
        )
        if module in seen or not path.exists():
            continue
        seen[module] = set()
        for node in ast.parse(path.read_text()).body:  # not inside of functions
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            else:
                continue
            seen[module].update(names)
            waiting += names
    return seen


def importing_tensorflow(*modules: str) -> list[str]:
    return [
        module
        for module, names in imported(*modules).items()
        if any(name.split(".")[0] == "tensorflow" for name in names)
    ]


def test_where_only_jax_is_installed_nothing_imports_tensorflow():
    speed = ("benchmarks.__main__", "benchmarks.device")
    assert not importing_tensorflow(*speed)
    reached = {"yt8m.model", "yt8m.training.optimizers", "frame_level_models"}
    assert reached <= imported(*speed).keys()


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


def test_everything_measured_takes_turns():
    calls = []
    case = device.Case("", {}, 1, 1, matrix=1, pool=1, rounds=2, seconds=0)
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    rates = device.repeated_rates(runs, lambda result: None, case)
    assert "".join(calls) == "ab" + "ab" + "abab"
    assert all(len(r) == 2 and (r > 0).all() for r in rates.values())


STAGE = re.compile(r"^\| (.*) \|$", re.M)


def stages_of(printed):
    """The cells of each line of the table after its head."""
    return [line.split(" | ") for line in STAGE.findall(printed)][2:]


def test_steps_are_measured_against_their_products(capsys, monkeypatch):
    kept = [c for c in stages_training.CASES if c.name in ("Logistic", "LSTM 2 x 1024")]
    monkeypatch.setattr(stages_training, "CASES", kept)
    assert main(["--device=cpu", "--quick", "--stages=steps"]) == 0
    out = capsys.readouterr().out
    assert "cores" in out and f"tensorflow {tf.__version__}" in out
    rows = stages_of(out)
    assert [cells[0] for cells in rows] == [
        f"{case.name}, step of 4, {precision}"
        for case in kept
        for precision in ("float32", "bfloat16")
    ]
    for _, rate, _, floor, share, wanted, met in rows:
        assert rate.endswith(" videos/s") and float(share) > 0
        assert "products" in floor and not (wanted + met).strip()


def test_readers_and_loops_are_measured_and_written_into_the_page(capsys, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- stages -->\nold\n<!-- end of stages -->\nafter\n")
    flags = ["--device=cpu", "--quick", f"--output={page}", "--noplot"]
    assert main([*flags, "--stages=readers,training,loops,memory,growth"]) == 0
    rows = stages_of(capsys.readouterr().out)
    text = page.read_text()
    assert text.startswith("before\n<!-- stages -->\n") and "old" not in text
    assert text.endswith("<!-- end of stages -->\nafter\n")
    assert stages_of(text) == rows and len(rows) == 11
    assert "its peak memory, 3 tiny shards" in [cells[0] for cells in rows]


def test_what_would_fail_at_the_end_is_refused_at_the_start(capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no place\n")
    for flag, said in (
        (f"--output={page}", "has no lines"),
        ("--rounds=0", "at least"),
    ):
        assert main(["--device=cpu", flag]) == 1
        error = capsys.readouterr().err
        assert flag.partition("=")[0] in error and said in error
        assert error.count("\n") == 1


def test_what_is_wanted_is_held_against_the_median():
    def row(**wanted):
        return Row("x", [1.0, 3.0, 2.0], shares=[0.1, 0.5, 0.4], **wanted)

    assert row().met is None
    assert row(bar=0.4).met and not row(bar=0.41).met
    assert row(least=2).met and not row(least=2.1).met
    assert row(most=2).met and not row(most=1.9).met
    assert not row(bar=0.4, least=2.1).met
    assert "| 0.40 | 0.40 of the floor | met |" in report.line(row(bar=0.4))


@pytest.mark.parametrize("flag", ["stages", "precisions"])
def test_unknown_stages_are_refused_in_one_line(flag, capsys):
    assert main(["--device=cpu", f"--{flag}=readrs"]) == 1
    error = capsys.readouterr().err
    assert f"--{flag}: unknown readrs" in error and error.count("\n") == 1


def test_without_arguments_the_command_lists_all_benchmarks(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name in (
        ".metrics",
        ".quality",
        ".reader",
        ".segment_inference",
        ".segment_scoring",
        ".segments",
        " --device=gpu",
    ):
        assert f"python -m benchmarks{name}" in out


def test_a_missing_package_is_said_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--device=cpu", "--backend=jax"]) == 1
    error = capsys.readouterr().err
    assert "jax is not installed" in error and error.count("\n") == 1


def test_a_missing_gpu_is_said_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert main(["--device=gpu"]) == 1
    error = capsys.readouterr().err
    assert "--device=gpu" in error and error.count("\n") == 1


def test_the_quality_benchmark_imports_no_tensorflow_either():
    assert not importing_tensorflow("benchmarks.quality", "benchmarks.zoo.runs")
    for part in sorted(pathlib.Path(videos.__file__).parent.glob("[!_]*.py")):
        assert not importing_tensorflow(f"benchmarks.zoo.{part.stem}"), part


def small_videos(**options):
    config = SyntheticConfig(
        num_classes=8,
        kinds=("static", "joint"),
        features={"rgb": 48, "audio": 32},
        max_frames=9,
        **options,
    )
    return config, videos.generate(config, "train", 40)


def test_videos_in_memory_are_those_of_the_generator_however_many_processes():
    config, found = small_videos(implied_labels=0.9, hidden_labels=0.6)
    again = videos.generate(config, "train", 203, processes=2)
    assert not np.array_equal(found.labels, found.truth)
    for row in (0, 7, 39):
        video = generate_video(config, "train", row)
        length = len(video.features["rgb"][:9])
        assert found.inputs["num_frames"][row] == length
        for part in (found, again):
            assert np.flatnonzero(part.labels[row]).tolist() == video.labels
            assert np.flatnonzero(part.truth[row]).tolist() == video.truth
            for name, values in video.features.items():
                np.testing.assert_array_equal(
                    part.inputs[name][row, :length], values[:9]
                )
                assert not part.inputs[name][row, length:].any()
    assert len(again.labels) == 203


def row(**changes):
    own = rows.Row("NetVLADModel", {"clusters": 2, "hidden_size": 6}, 0.01)
    return dataclasses.replace(own, batch_size=16, **changes)


def test_each_seed_trains_from_its_own_new_weights():
    config, train = small_videos()
    trained = training.Trained(row(), config.features, 8, steps=6)
    logits = []
    for seed in (1, 2, 1):
        (end,) = trained.epochs(train, seed)
        assert np.isfinite(end["loss"])
        assert int(trained.optimizer.iterations) == 6
        logits.append(trained.logits(train))
    assert logits[0].shape == (40, 8)
    assert np.abs(logits[0] - logits[1]).max() > 0.1
    np.testing.assert_allclose(logits[0], logits[2], atol=1e-4)


def test_parts_of_a_training_are_the_whole_and_show_every_video():
    config, train = small_videos()
    trained = training.Trained(row(), config.features, 8, steps=5)
    (_,) = trained.epochs(train, seed=0)
    whole = trained.logits(train)
    assert len(list(trained.epochs(train, seed=0, count=3))) == 3
    np.testing.assert_allclose(trained.logits(train), whole, atol=1e-4)
    drawn = training.Batches(train, [], 16, 5, 0).rows
    assert drawn.shape == (5, 16)
    assert sorted(drawn.ravel()[:40].tolist()) == list(range(40))
    batch, labels = training.Batches(train, ["rgb"], 16, 5, 0)[0]
    assert sorted(batch) == ["labels", "rgb"]
    np.testing.assert_array_equal(labels, train.labels[drawn[0]])


def test_averages_of_the_weights_are_scored_and_the_training_goes_on_without():
    config, train = small_videos()

    def trained(count, **optimizer_args):
        own = row(optimizer_args=optimizer_args)
        found = training.Trained(own, config.features, 8, steps=6)
        for _ in found.epochs(train, seed=0, count=count):
            scores = found.logits(train)
        return scores, [v.numpy() for v in found.learner.trainable_variables]

    plain, weights = trained(1)
    average, same = trained(1, use_ema=True, ema_momentum=0.9)
    assert np.abs(average - plain).max() > 1e-2
    latest, _ = trained(1, use_ema=True, ema_momentum=0.0)
    np.testing.assert_allclose(latest, plain, atol=1e-4)
    in_parts, same_too = trained(3, use_ema=True, ema_momentum=0.9)
    np.testing.assert_allclose(in_parts, average, atol=1e-4)
    for a, b, c in zip(weights, same, same_too, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4)
        np.testing.assert_allclose(c, a, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"features": ("rgb",)},
        {"features": ("audio",)},
        {"schedule": "constant"},
        {"optimizer_args": {"weight_decay": 1.0}},
        {"rate": 0.02},
    ],
    ids=str,
)
def test_the_settings_of_a_row_change_what_is_learnt(changes):
    config, train = small_videos()
    found = []
    for changed in (row(), row(**changes)):
        trained = training.Trained(changed, config.features, 8, steps=5)
        (_,) = trained.epochs(train, seed=0)
        found.append(trained.logits(train))
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_the_objective_has_auxiliary_losses_and_penalties():
    class Model(keras.Model):
        input_names, training_input_names = ["x"], ("labels",)

        def ensure_built(self):
            self.built = True
            return self

        def call(self, inputs, training=False):
            outputs = {"logits": inputs["x"]}
            if training:
                self.add_loss(keras.ops.convert_to_tensor(100.0))
                seen = keras.ops.cast(inputs["labels"], "float32")
                outputs |= {
                    "auxiliary_logits": [0 * inputs["x"]],
                    "penalty": seen[:, 0],
                }
            return outputs

    learner = training.Learner(Model(), row(deep_supervision_weight=0.5))
    x, y = np.zeros((2, 3), np.float32), np.array([[1, 0, 0], [0, 0, 0]], bool)
    outputs = learner({"x": x, "labels": y}, training=True)
    value = learner.compute_loss(y=y, y_pred=outputs)
    assert float(value) == pytest.approx(4.5 * math.log(2) + 0.5 + 100)
    assert learner({"x": x}).shape == (2, 3)


def test_every_registered_model_is_in_the_tables():
    for level, table in (("frame", rows.ROWS), ("video", rows.REAL_ROWS)):
        compared = {entry.model for entry in table.values()}
        own = {n for n in registry.names(level) if is_ours(n)}
        own.discard("ContextAwareModel")  # of segments: `benchmarks.localisation`
        assert own <= compared, f"no entry: {sorted(own - compared)}"


def is_ours(name: str) -> bool:
    return registry.get(name).cls.__module__.endswith("_level_models")


def test_the_tables_are_sound():
    for table in (rows.ROWS, rows.LABEL_ROWS, rows.REAL_ROWS, rows.FRAME_ROWS):
        for name, entry in table.items():
            assert "," not in name  # they part names in --models
            assert entry.family in rows.FAMILIES
            assert entry.traits <= set(rows.TRAITS)
            assert entry.rival is None or entry.rival in table
    assert rows.REAL_BASELINE in rows.REAL_ROWS
    assert runs.chosen(rows.ROWS, "NetVLADModel").keys() == {
        *("NetVLADModel", "NetVLADModel (rgb)", "NetVLADModel (audio)")
    }


def test_unknown_rows_are_refused_with_near_matches():
    with pytest.raises(UserError, match="Unknown row NetVLAD. Did you mean NetVLADM"):
        runs.chosen(rows.ROWS, "NetVLAD")


def result(row, seed, ap, gap=0.5, benchmark="kinds", **more):
    return {
        **{"benchmark": benchmark, "row": row, "seed": seed, "setting": {"a": 1}},
        **{"args": {}, "gap": gap, "ap": ap, "steps": 9, "where": "here", **more},
    }


def test_results_are_kept_and_only_what_is_missing_is_run(tmp_path):
    stored = results.Results(tmp_path / "new" / "results.jsonl")
    wanted = [result("A", 0, {}), result("A", 1, {}), result("B", 0, {})]
    asked = []

    def measure(name, seeds):
        asked.append((name, seeds))
        for seed in seeds:
            if name == "B":
                raise RuntimeError("no memory")
            yield {"gap": 0.25 + seed, "seconds": 1.0}

    stored.append(result("A", 0, {}, gap=0.75))
    assert runs.run_missing(stored, wanted, measure) == 1
    assert asked == [("A", [1]), ("B", [0])]
    assert [r["gap"] for r in stored.read("kinds", {"a": 1})] == [0.75, 1.25]
    assert not stored.read("kinds", {"a": 2})
    stored.append(result("A", 1, {}, gap=2.0))
    (first, second) = results.by_row(stored.read("kinds", {"a": 1}), ["A", "B"])["A"]
    assert (first["gap"], second["gap"]) == (0.75, 2.0)
    with open(stored.path, "a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match="line 4: not JSON"):
        stored.read("kinds", {"a": 1})


@dataclasses.dataclass
class Slow:
    """Measures nothing, in processes that other tests' fixtures do not reach."""

    seconds: float

    def __call__(self, name, seeds):
        time.sleep(self.seconds)
        for _ in seeds:
            yield {"gap": 0.5, "seconds": 1.0, "process": os.getpid()}


def test_rows_are_run_by_processes_until_the_time_is_over(tmp_path, capsys):
    stored = results.Results(tmp_path / "results.jsonl")
    wanted = [result("A", 0, {}), result("A", 1, {}), result("B", 0, {})]
    assert runs.run_missing(stored, wanted, Slow(60.0), 2, minutes=0.01) == 2
    assert "2 rows were stopped" in capsys.readouterr().out
    assert not stored.path.exists()
    assert runs.run_missing(stored, wanted, Slow(0.0), 2) == 0
    done = stored.read("kinds", {"a": 1})
    assert sorted((r["row"], r["seed"]) for r in done) == [("A", 0), ("A", 1), ("B", 0)]
    assert os.getpid() not in {r["process"] for r in done}


def test_processes_share_videos_through_files(tmp_path):
    config, train = small_videos()
    videos.save(train, str(tmp_path / "videos"))
    loaded = videos.load(str(tmp_path / "videos"))
    assert loaded.inputs.keys() == train.inputs.keys()
    for name, values in train.inputs.items():
        assert isinstance(loaded.inputs[name], np.memmap)
        np.testing.assert_array_equal(loaded.inputs[name], values)
    np.testing.assert_array_equal(loaded.labels, train.labels)
    np.testing.assert_array_equal(loaded.truth, train.truth)


def test_bars_are_met_or_missed_by_the_means_over_seeds():
    ap = {
        "FrameLevelLogisticModel": {"ordered": 0.4, "brief": 0.2, "joint": 0.5},
        "NetVLADModel": {"ordered": 0.5, "brief": 0.39, "joint": 0.8},
        "NetVLADModel (rgb)": {"ordered": 0.9, "brief": 0.9, "joint": 0.55},
        "NetVLADModel (audio)": {"ordered": 0.9, "brief": 0.9, "joint": 0.45},
        "DbofModel": {"ordered": 0.45, "brief": 0.6, "joint": 0.7},
        "LstmModel": {"ordered": 0.85, "brief": 0.3, "joint": 0.6},
    }
    found = {
        name: [
            result(name, seed, {k: v + shift for k, v in own.items()})
            for seed, shift in ((0, 0.01), (1, -0.01))
        ]
        for name, own in ap.items()
    }
    text = tables.kinds_bars(found)
    lines = {line.split(":")[0]: line for line in text.splitlines()}
    assert (
        "+0.350, met"
        in lines["- AP of ordered classes, recurrent and convolutional over orderless"]
    )
    assert "+0.190, missed" in lines["- AP of brief classes, vlad over average pooling"]
    assert "+0.400, met" in lines["- AP of brief classes, max over average pooling"]
    attention = lines["- AP of brief classes, attention over average pooling"]
    assert "not measured" in attention
    joint = lines["- AP of joint classes, two streams over the better one alone"]
    assert "+0.250, met" in joint
    assert "not measured" in text.splitlines()[-1]
    table = tables.kinds_table(found).splitlines()
    assert (
        table[0] == "| model | seeds | GAP | AP ordered | AP brief | AP joint | steps |"
    )
    assert table[3] == (
        "| NetVLADModel | 2 | 0.500 ± 0.000 | 0.500 ± 0.014 | 0.390 ± 0.014 "
        "| 0.800 ± 0.014 | 9 |"
    )


def test_the_gain_by_labels_is_that_of_the_best_head_over_the_best_plain_one():
    def arm(**gaps):
        return {
            name.replace("_", " "): [
                result(name, seed, {}, gap=gap, gap_given=gap)
                for seed, gap in enumerate(own)
            ]
            for name, own in gaps.items()
        }

    knowing = {"chain of 1 stage": arm(x=[0.84, 0.88])["x"]}
    plain = arm(logistic=[0.80, 0.82], mixture_of_2_experts=[0.7, 0.7])
    control = {"chain without labels": arm(x=[0.9, 0.9])["x"]}
    text = tables.labels_section({"together": knowing | plain | control})
    assert "+0.050 ± 0.014, met. chain of 1 stage over logistic." in text
    assert "not measured" in tables.labels_section({"together": plain})


def test_a_section_replaces_itself_and_leaves_the_others():
    text = tables.replace_section("# Title\n", "a", "one")
    text = tables.replace_section(text, "b", "two")
    text = tables.replace_section(text, "a", "three")
    assert text.splitlines()[0] == "# Title" and text.endswith("\n")
    assert "one" not in text and text.index("three") < text.index("two")
    for name, body in (("a", "three"), ("b", "two")):
        assert tables.replace_section(text, name, body) == text


def test_without_matplotlib_the_command_says_so_before_it_trains(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert quality.main(["--quick"]) == 1
    error = capsys.readouterr().err
    assert "pip install yt8m[plots]" in error and error.count("\n") == 1


def test_the_file_of_label_counts_is_read_by_the_layer_that_takes_it(tmp_path):
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)
    path = str(tmp_path / "correlation.npz")
    embedded.write_correlation(labels, path)
    # Of the 2 videos with class 1 both have class 0; of 3 with class 0, 2 have 1.
    wanted = [[0, 1, 0], [2 / 3, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(read_correlation(path), wanted, rtol=1e-6)


def test_the_bootstrap_resamples_the_same_videos_for_both():
    rng = np.random.default_rng(0)
    truth = rng.random((60, 30)) < 0.1
    truth[:, 0] = True
    scores = rng.normal(size=truth.shape).astype(np.float32)
    better = scores + 2 * truth

    def ranking(scores, rows=slice(None)):
        top = rank_top(scores[rows], truth[rows], 20)
        return real.Ranking(top.scores[:, :20], top.hits[:, :20], top.num_positives)

    ones = np.ones(60, int)
    assert ranking(scores).gap(ones) == pytest.approx(gap(scores, truth))
    counts = rng.integers(0, 4, 60)
    repeated = np.repeat(np.arange(60), counts)
    assert ranking(better).gap(counts) == pytest.approx(
        gap(better[repeated], truth[repeated]), abs=1e-6
    )
    low, high = real.bootstrap([ranking(better)], [ranking(scores)], 200)
    gain = gap(better, truth) - gap(scores, truth)
    assert 0 < low < gain < high
    assert real.bootstrap([ranking(scores)] * 2, [ranking(scores)], 20) == (0, 0)


def test_the_command_trains_writes_its_file_and_does_not_train_twice(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("benchmarks.zoo.videos.os.cpu_count", lambda: 1)
    flags = ["--kinds=static,brief", "--models=FrameLevelLogisticModel", "--seeds=2"]
    flags += ["--steps=3", "--videos=40", f"--results={tmp_path / 'r.jsonl'}"]
    flags += [f"--output={tmp_path / 'docs' / 'quality.md'}", "--noplot"]
    assert quality.main([*flags, "--only_table"]) == 1
    assert "has no results" in capsys.readouterr().err
    assert quality.main(flags) == 0
    text = (tmp_path / "docs" / "quality.md").read_text()
    assert text.startswith("# What each model can see")
    assert re.search(r"^\| FrameLevelLogisticModel \| 2 \| 0\.\d+ ± ", text, re.M)
    assert re.search(r"^\| logistic \| 2 \| 0\.\d+ ± ", text, re.M)
    assert f"tensorflow {tf.__version__}" in text and "cores" in text
    assert "seed 1: GAP" in capsys.readouterr().out
    assert quality.main(flags) == 0
    assert "seed 1: GAP" not in capsys.readouterr().out
    assert (tmp_path / "docs" / "quality.md").read_text() == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts=kinds,lables"], "Unknown part lables"),
        (["--processes=0"], "--processes must be at least 1"),
        (["--minutes=3"], "--minutes needs several --processes"),
        (["--kinds=statik"], "Unknown kind statik. Did you mean static"),
        (["--real"], "YT8M_DATA names no folder"),
        (["--real", "--arrays=/none.npz"], "/none.npz cannot be read"),
    ],
)
def test_what_is_asked_wrongly_is_one_clear_line(
    flags, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.delenv("YT8M_DATA", raising=False)
    results_flag = f"--results={tmp_path / 'r.jsonl'}"
    assert (
        quality.main(
            [
                *flags,
                "--models=LogisticModel" if "--real" in flags else "--seeds=1",
                "--noplot",
                results_flag,
            ]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def write_arrays(path):
    """40 videos to train on and 20 to score, of 5 classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("scored", 20)):
        labels = np.arange(count) % 5
        means = rng.normal(size=(count, 1024)).astype(np.float32) / 9
        means[np.arange(count), labels] += 1
        arrays |= {
            f"{part}_ids": np.array([f"{part[0]}{i:03d}" for i in range(count)]),
            f"{part}_labels": np.stack([np.arange(count), labels], axis=1),
            f"{part}_mean_rgb": means,
            f"{part}_mean_audio": means[:, :128],
        }
    np.savez(path, **arrays)


def test_real_videos_are_trained_on_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(real.schema, "NUM_CLASSES", 5)
    monkeypatch.setattr(real, "_RESAMPLES", 10)
    write_arrays(tmp_path / "arrays.npz")
    flags = ["--real", f"--arrays={tmp_path / 'arrays.npz'}", "--epochs=3"]
    flags += ["--seeds=2", f"--results={tmp_path / 'r.jsonl'}"]
    flags += [f"--output={tmp_path / 'quality.md'}"]
    small = {
        name: dataclasses.replace(rows.REAL_ROWS[name], batch_size=10)
        for name in ("starter_moe", "LogisticModel")
    }
    monkeypatch.setattr(real, "REAL_ROWS", small)
    assert quality.main(flags) == 0
    text = (tmp_path / "quality.md").read_text()
    assert "40 real videos to train on" in text and "20 others scored" in text
    assert re.search(r"^\| starter_moe \| 2 \| 0\.\d+ ± .* \| 3 \|$", text, re.M)
    assert re.search(
        r"^\| LogisticModel \| [+-]0\.\d+ \| [+-]\S+ to [+-]\S+ \|$", text, re.M
    )
    assert re.search(r"best single model over starter_moe: .*(met|missed)\.", text)
    rankings = list((tmp_path / "r").glob("real-*.npz"))
    assert len(rankings) == 4
    for path in rankings:  # the table can be written without them
        path.unlink()
    assert quality.main([*flags, "--only_table"]) == 0
    assert (tmp_path / "quality.md").read_text() == text
    assert quality.main([*flags, "--seeds=3"]) == 0  # of the third seed alone
    assert "| not kept |" in (tmp_path / "quality.md").read_text()
    frames = {
        "NetVLADModel": dataclasses.replace(
            row(), args={**row().args, "gating_probabilities": False}
        )
    }
    monkeypatch.setattr(real, "FRAME_ROWS", frames)
    assert quality.main([*flags, "--frames"]) == 0
    text = (tmp_path / "quality.md").read_text()
    assert "made up around the real means" in text and "starter_moe" in text


def test_techniques_an_ensemble_and_its_student_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(real.schema, "NUM_CLASSES", 5)
    write_arrays(tmp_path / "arrays.npz")

    def small(table, *names):
        return {n: dataclasses.replace(table[n], batch_size=10) for n in names}

    names = ("LogisticModel", "mixup", "cross entropy + soft ranking")
    techniques_ = small(rows.TECHNIQUES, *names)
    members = small(rows.MEMBERS, "LogisticModel", "ResNetLikeModel")
    students = {"LogisticModel": members["LogisticModel"]}
    for part, table in (
        ("techniques", techniques_),
        ("members", members),
        ("students", students),
    ):
        monkeypatch.setitem(techniques.PARTS, part, (table, techniques.PARTS[part][1]))
    monkeypatch.setattr(techniques, "MEMBERS", members)
    flags = ["--real", f"--arrays={tmp_path / 'arrays.npz'}", "--epochs=3"]
    flags += ["--parts=techniques,members,students", "--seeds=1"]
    flags += [f"--results={tmp_path / 'r.jsonl'}", f"--output={tmp_path / 'q.md'}"]
    assert quality.main(flags) == 0
    text = (tmp_path / "q.md").read_text()
    gaps = re.findall(r"^\| ([a-zA-Z].*?) \| 1 \| (0\.\d+) \|", text, re.M)
    found = dict(gaps[: len(names)])
    assert set(found) == set(names) and len(set(found.values())) == len(names)
    assert re.search(r"The mean of 2 members .*(met|missed)\.", text)
    assert re.search(r"LogisticModel, what its student gains .*(met|missed)\.", text)
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert quality.main(flags) == 0  # nothing is missing
    assert (tmp_path / "r.jsonl").read_text().splitlines() == lines
    for result in map(json.loads, lines):
        if result["benchmark"] == "students":
            assert result["gap"] != result["hard"]
            assert sum(result["weights"].values()) == pytest.approx(1, abs=0.01)


def test_weights_are_learned_that_leave_out_a_member_that_guesses():
    rng = np.random.default_rng(0)
    truth = rng.random((60, 30)) < 0.1
    good = truth + rng.normal(size=truth.shape) * 0.4
    scores = np.stack([good, rng.normal(size=truth.shape)]).astype(np.float32)
    weights = techniques.learn_weights(scores, truth)
    assert weights[0] > 0.7 and weights.sum() == pytest.approx(1)


def test_soft_labels_are_compared_with_hard_ones_that_mostly_miss(
    tmp_path, monkeypatch
):
    names = ("hard labels", "calibrated soft labels alone")
    chosen = {name: rows.CORRUPTED_ROWS[name] for name in names}
    monkeypatch.setattr(embedded, "CORRUPTED_ROWS", chosen)
    flags = ["--parts=corrupted", "--seeds=1", "--steps=6", "--videos=400", "--noplot"]
    flags += [f"--results={tmp_path / 'r.jsonl'}", f"--output={tmp_path / 'q.md'}"]
    assert quality.main(flags) == 0
    hard, soft = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert hard["gap"] != soft["gap"] and hard["recall"] == soft["recall"]
    assert 0.1 < hard["recall"] < 0.2 and 0.7 < hard["precision"] < 0.9
    text = (tmp_path / "q.md").read_text()
    assert re.search(r"^- calibrated soft labels alone: .*(met|missed)\.$", text, re.M)


def test_a_model_is_compared_in_both_precisions(tmp_path, monkeypatch):
    names = ("DbofModel (float32)", "DbofModel (bfloat16)")
    chosen = {name: rows.PRECISION_ROWS[name] for name in names}
    monkeypatch.setattr(embedded, "PRECISION_ROWS", chosen)
    flags = ["--parts=precision", "--seeds=1", "--steps=6", "--videos=400", "--noplot"]
    flags += ["--kinds=static", f"--results={tmp_path / 'r.jsonl'}"]
    flags += [f"--output={tmp_path / 'q.md'}"]
    assert quality.main(flags) == 0
    wide, narrow = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert wide["loss"] == pytest.approx(narrow["loss"], rel=0.02)
    assert wide["loss"] != narrow["loss"]
    text = (tmp_path / "q.md").read_text()
    assert re.search(r"^- DbofModel in bfloat16: .*(met|missed)\.$", text, re.M)
