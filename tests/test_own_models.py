"""A user's own models: each mistake is one line that names file, line and remedy."""

import pathlib
import re
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from model_cases import OPTIONS, SMALL, one_a_family
from test_main_road import FEATURES, command, shards, train_flags  # noqa: F401
from yt8m import model_check, registry, runs, user_code
from yt8m.argument_types import fits, in_words, refuse_wrong_types
from yt8m.config import DataConfig, ModelConfig, TrainingConfig
from yt8m.errors import UserError
from yt8m.training.optimizers import ExamplesSchedule, create_optimizer

HEADER = """import keras
import tensorflow as tf
from keras import ops

from yt8m.layers.masking import masked_mean
from yt8m.model import EmbeddingModel, FrameLevelModel, PoolingModel, VideoLevelModel
from yt8m.registry import register


@register(level="{level}", paper="our own")
class {name}({base}):
"""
DATA = {
    "frame": DataConfig("frame", {"rgb": 8, "audio": 4}, num_classes=5),
    "video": DataConfig("video", {"mean_rgb": 8}, num_classes=5),
}
counter = iter(range(1000))


@pytest.fixture(autouse=True)
def forgotten():
    """The models of a test are not known to the next."""
    runs.load_registries()
    before, modules = dict(registry._ENTRIES), set(sys.modules)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


def write_module(folder, body: str, base="PoolingModel", level="frame", name="Own"):
    path = folder / f"own_{next(counter)}.py"
    text = HEADER.format(level=level, name=name, base=base)
    body = "\n".join(f"    {line}".rstrip() for line in body.strip().splitlines())
    path.write_text(f"{text}{body}\n")
    return path


def build(path, level="frame", **args):
    config = ModelConfig("Own", args, str(path))
    return runs.build_model(config, DATA[level])


POOL = """
def pool(self, frames, mask, training=False):
    return masked_mean(frames, mask)
"""
CLASSIFY = """
def build(self, shapes):
    self.dense = keras.layers.Dense(self.num_classes)
    self.built = True

def classify(self, video, training=False):
    return {"logits": self.dense(video)}
"""


def test_models_that_keep_to_the_rules_are_built(tmp_path):
    model = build(write_module(tmp_path, POOL))
    assert model.built and user_code.holds(type(model))
    name = "video"
    path = write_module(tmp_path, CLASSIFY, "VideoLevelModel", name, name="Own2")
    model = runs.build_model(ModelConfig("Own2", {}, str(path)), DATA[name])
    assert len(model.trainable_variables) == 2


# What Keras offers, and none of it a mistake.
RICH = """
def __init__(self, sizes=(4, 3), rate: float = 0.5, **kwargs):
    super().__init__(**kwargs)
    self.sizes, self.rate = sizes, rate
    self.layers_in_a_list = [keras.layers.Dense(size) for size in sizes]
    self.layers_by_name = {"norm": keras.layers.BatchNormalization()}
    self.dropout = keras.layers.Dropout(rate)
    self.recurrent = keras.layers.LSTM(3, dropout=0.1)
    self.attention = keras.layers.MultiHeadAttention(2, 2, dropout=0.1)
    self.sequence = keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.1)])
    self.scale = self.add_weight(shape=(12,), initializer="ones", name="scale")
    self.shift = keras.Variable(keras.ops.zeros(12))
    self.mean = keras.metrics.Mean()
    self.counter = tf.Variable(0, trainable=False)

def build(self, shapes):
    self.late = keras.layers.Dense(3)
    self.late.build((None, 12))
    super().build(shapes)

def pool(self, frames, mask, training=False):
    frames = ops.cast(frames, "float32") * ops.cast(self.scale, "float32")
    seen = self.attention(frames, frames, attention_mask=mask[:, None])
    x = masked_mean(frames, mask) + ops.cast(self.shift, "float32")
    if training:
        x += keras.random.normal(ops.shape(x))
    parts = [layer(self.dropout(x, training=training)) for layer in
             self.layers_in_a_list]
    parts += [self.layers_by_name["norm"](x, training=training), self.late(x)]
    parts += [self.recurrent(frames, mask=mask, training=training), self.sequence(x)]
    parts += [masked_mean(seen, mask)]
    return ops.concatenate([ops.cast(p, "float32") for p in parts], axis=-1)
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("devices", [None, 1, 2])
def test_what_keras_offers_is_no_mistake(tmp_path, precision, devices, caplog):
    config = ModelConfig("Own", {"rate": 0.2}, str(write_module(tmp_path, RICH)))
    strategy = tf.distribute.get_strategy()
    if devices:
        cpus = [f"CPU:{i}" for i in range(devices)]
        strategy = tf.distribute.MirroredStrategy(cpus)
    with strategy.scope():
        model = runs.build_model(config, DATA["frame"], precision)
    assert len(model.trainable_variables) > 20
    assert "yt8m.layers.normalization.BatchNormalization does neither" in caplog.text


def test_a_mistake_is_found_under_a_strategy_too(tmp_path):
    body, _, said = MISTAKES["a variable of TensorFlow"]
    path = write_module(tmp_path, body)
    with (
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope(),
        pytest.raises(UserError, match=said),
    ):
        build(path)


def test_looking_at_a_model_leaves_its_weights_as_they_were(tmp_path):
    path = write_module(tmp_path, RICH)
    runs.load_registries(str(path))
    args = {"num_classes": 5, "features": DATA["frame"].features}
    found = []
    for make in (
        lambda: build(path),
        lambda: registry.create("Own", **args).ensure_built(),
    ):
        keras.utils.set_random_seed(1)
        found.append([keras.ops.convert_to_numpy(v) for v in make().variables])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


MISTAKES = {
    "no pool": ("x = 1", {}, r"line \d+: Own must define `pool\(self, frames, mask"),
    "no classify": (
        "x = 1",
        {"base": "VideoLevelModel", "level": "video"},
        r"Own must define `classify\(self, video, training=False\)`",
    ),
    "signature": (
        "def pool(self, frames):\n    return frames",
        {},
        r"must define `pool\(self, frames, mask, training=False\)`",
    ),
    "embed's signature": (
        "def embed(self):\n    return 1",
        {"base": "EmbeddingModel", "level": "video"},
        r"must define `embed\(self, video, training=False\)`",
    ),
    "level": (POOL, {"level": "video"}, "registered at the level 'video': derive it"),
    "no model's class": ("x = 1", {"base": "keras.Model"}, "derive it from FrameLevel"),
    "no keywords": (
        f"def __init__(self, size=3):\n    super().__init__()\n{POOL}",
        {},
        r"its constructor must take `\*\*kwargs`",
    ),
    "frames left": (
        "def pool(self, frames, mask, training=False):\n    return frames",
        {},
        r"Own.pool must return one vector a video.*returns \[3, 2, 12\]",
    ),
    "nothing returned": (
        "def pool(self, frames, mask, training=False):\n    pass",
        {},
        "of 3 videos it returns NoneType",
    ),
    "one for all": (
        "def pool(self, frames, mask, training=False):\n"
        "    return ops.mean(frames, axis=(0, 1))[None]",
        {},
        r"it returns \[1, 12\]",
    ),
    "embed": (
        "def embed(self, video, training=False):\n    return video[:, None]",
        {"base": "EmbeddingModel", "level": "video"},
        r"Own.embed must return one vector.*returns \[3, 1, 8\]",
    ),
    "no dictionary": (
        "def classify(self, video, training=False):\n    return video",
        {"base": "VideoLevelModel", "level": "video"},
        "it must be a dictionary with `logits`",
    ),
    "no logits": (
        "def classify(self, video, training=False):\n    return {'scores': video}",
        {"base": "VideoLevelModel", "level": "video"},
        "returns one of scores; it must be a dictionary with `logits`",
    ),
    "logits of another size": (
        "def classify(self, video, training=False):\n    return {'logits': video}",
        {"base": "VideoLevelModel", "level": "video"},
        r"logits \[3, 8\] of 3 videos; they must be \[batch, num_classes\], \[3, 5\]",
    ),
    "logits of another type": (
        "def classify(self, video, training=False):\n"
        "    return {'logits': ops.cast(video[:, :5], 'int32')}",
        {"base": "VideoLevelModel", "level": "video"},
        "logits of type int32; they must be floats",
    ),
    "a variable of TensorFlow": (
        "def __init__(self, **kwargs):\n"
        "    super().__init__(**kwargs)\n"
        f"    self.scale = tf.Variable(1.0)\n{POOL}",
        {},
        r"line 14: a variable \[\] is made here that Keras neither trains nor saves: "
        "make it by `self.add_weight`",
    ),
    "a variable behind an underscore, in a dictionary": (
        "def build(self, shapes):\n"
        "    super().build(shapes)\n"
        f"    self._scales = {{'rgb': tf.Variable(tf.ones(3))}}\n{POOL}",
        {},
        r"line 14: a variable \[3\] is made here",
    ),
    "a variable of each call": (
        "def pool(self, frames, mask, training=False):\n"
        "    return masked_mean(frames, mask) * tf.Variable(tf.ones(12))",
        {},
        r"line 13: a variable \[12\] is made here",
    ),
    "a layer of each call": (
        "def pool(self, frames, mask, training=False):\n"
        "    return keras.layers.Dense(4)(masked_mean(frames, mask))",
        {},
        r"line 13: a variable \[12, 4\] is made here.*its layer as an attribute",
    ),
    "a layer that Keras does not see": (
        "def __init__(self, **kwargs):\n"
        "    super().__init__(**kwargs)\n"
        "    self.part = type('Part', (), {})()\n"
        "    self.part.dense = keras.layers.Dense(4)\n\n"
        "def pool(self, frames, mask, training=False):\n"
        "    return self.part.dense(masked_mean(frames, mask))",
        {},
        r"line 18: a variable \[12, 4\] is made here",
    ),
    "keywords that are not passed on": (
        f"def __init__(self, **kwargs):\n    super().__init__()\n{POOL}",
        {},
        r"must pass all of `\*\*kwargs` on.*num_classes is 3862, not 5",
    ),
    "a layer in the place of an argument": (
        "def __init__(self, hidden=3, **kwargs):\n"
        "    super().__init__(**kwargs)\n"
        f"    self.hidden = keras.layers.Dense(hidden)\n{POOL}",
        {},
        "keeps a Dense as `hidden`.*set `self.hidden = hidden` in __init__",
    ),
    "an argument without default": (
        "def __init__(self, size, **kwargs):\n"
        "    super().__init__(**kwargs)\n"
        f"    self.size = size\n{POOL}",
        {"unplaced": True},
        "Own needs size: give --model_args=size=",
    ),
    "the head not built": (
        f"def build(self, shapes):\n    self.built = True\n{POOL}",
        {},
        r"Own has no head: its `build\(self, input_shapes\)` must call",
    ),
    "frames left in training": (
        "def pool(self, frames, mask, training=False):\n"
        "    return frames if training else masked_mean(frames, mask)",
        {},
        r"Own returns in training logits",
    ),
    "an error in training": (
        "def pool(self, frames, mask, training=False):\n"
        "    return self.noisy(frames) if training else masked_mean(frames, mask)",
        {},
        "line 13: AttributeError: 'Own' object has no attribute 'noisy'",
    ),
    "an embedding of frames": (
        "def classify(self, frames, mask, training=False):\n"
        "    outputs = super().classify(frames, mask, training=training)\n"
        f"    return {{**outputs, 'embedding': frames}}\n{POOL}",
        {},
        r"returns an `embedding` \[3, 2, 12\] of 3 videos; it must be one vector",
    ),
    "an argument that is not kept": (
        "def __init__(self, size=3, **kwargs):\n"
        f"    super().__init__(**kwargs)\n{POOL}",
        {},
        "keeps no attribute of its argument size.*set `self.size = size`",
    ),
    "shapes that do not fit": (
        "def pool(self, frames, mask, training=False):\n"
        "    return ops.matmul(masked_mean(frames, mask), ops.zeros((7, 3)))",
        {},
        r"own_\d+.py, line 13: \w+Error: ",
    ),
    "a name that is not there": (
        "def pool(self, frames, mask, training=False):\n    return maskd_mean(frames)",
        {},
        r"own_\d+.py, line 13: NameError: name 'maskd_mean' is not defined",
    ),
    "an attribute that is not there": (
        "def pool(self, frames, mask, training=False):\n    return self.hiden(frames)",
        {},
        r"line 13: AttributeError: 'Own' object has no attribute 'hiden'",
    ),
    "an error of the constructor": (
        f"def __init__(self, **kwargs):\n    raise KeyError('x')\n{POOL}",
        {},
        "line 13: KeyError: 'x'",
    ),
    "the constructor of the base not called": (
        f"def __init__(self, **kwargs):\n    self.size = 1\n{POOL}",
        {},
        r"its constructor must begin with `super\(\).__init__\(\*\*kwargs\)`",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_model_is_one_line(tmp_path, mistake):
    body, place, said = MISTAKES[mistake]
    unplaced = place.get("unplaced", False)  # of the command line, not of the file
    where = {name: value for name, value in place.items() if name != "unplaced"}
    path = write_module(tmp_path, body, **where)
    with pytest.raises(Exception) as caught:
        build(path, place.get("level", "frame"))
    error = caught.value
    text = str(error) if isinstance(error, UserError) else user_code.explain(error)
    assert text is not None and "\n" not in text and (unplaced or str(path) in text)
    assert re.search(said, text), text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", r"own_\w+.py, line 1: SyntaxError: "),
        ("import numpy\nimport nonesuch\n", r"line 2: ModuleNotFoundError: No module"),
        ("x = 1\ny = x / 0\n", r"line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", r"line 2: SystemExit: 3"),
        ("x = 1\n", r"has no model: decorate its class with @yt8m.registry.register"),
        (
            "from yt8m.registry import register\n\n\n"
            "@register(level='frames', paper='')\nclass A:\n    pass\n",
            r"line 4: ValueError: `level` must be one of",
        ),
        (
            "from yt8m.registry import register\nfrom yt8m.model import PoolingModel\n"
            "\n\n@register(level='frame', paper='')\nclass MoeModel(PoolingModel):\n"
            "    pass\n",
            r"line 5: ValueError: A model named MoeModel is registered already",
        ),
        (
            "from yt8m.registry import register\n\n\n@register\nclass A:\n    pass\n",
            r'line 4: ValueError: write @register\(level="frame", paper="our own"\)',
        ),
    ],
)
def test_a_file_that_does_not_load_is_named_with_its_line(tmp_path, text, said):
    path = tmp_path / f"own_{next(counter)}.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        runs.load_registries(str(path))
    assert path.stem not in sys.modules


def test_a_file_may_import_others_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_own.py").write_text("CELLS = 3\n")
    path = tmp_path / f"own_{next(counter)}.py"
    path.write_text("from beside_own import CELLS\n")
    assert user_code.load(str(path), path.stem).CELLS == 3


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file .*--model_module"):
        runs.load_registries(str(tmp_path / "own.py"))
    for name in ("own_text.txt", "numpy.py"):
        (tmp_path / name).write_text("")
        with pytest.raises(UserError, match="must be a Python file"):
            runs.load_registries(str(tmp_path / name))


def test_a_run_is_not_lost_for_what_only_an_export_trips_over(tmp_path, caplog):
    body, _, said = MISTAKES["a layer in the place of an argument"]
    config = ModelConfig("Own", {}, str(write_module(tmp_path, body)))
    assert runs.build_model(config, DATA["frame"], restored=True).built
    assert re.search(said, caplog.text)


def test_a_head_that_is_not_used_need_not_be_built(tmp_path):
    body = (
        "def build(self, shapes):\n"
        "    self.dense = keras.layers.Dense(self.num_classes)\n"
        "    self.built = True\n\n"
        "def classify(self, frames, mask, training=False):\n"
        "    return {'logits': self.dense(masked_mean(frames, mask))}"
    )
    assert build(write_module(tmp_path, body)).built


def test_a_class_that_is_not_registered_is_named(tmp_path):
    path = write_module(tmp_path, f"{POOL}\n\n", name="Other")
    path.write_text(f"{path.read_text()}\n\nclass Own(Other):\n    pass\n")
    said = f"{re.escape(str(path))}, line 16: Own is not registered: write @register"
    with pytest.raises(UserError, match=said):
        build(path)


def test_arguments_of_flags_are_not_among_those_of_the_model():
    for name, flag in (("num_classes", "--num_classes"), ("dtype", "--precision")):
        with pytest.raises(UserError, match=f"{name} is set by the flag {flag}"):
            runs.build_model(ModelConfig("MoeModel", {name: 3}), DATA["video"])


def test_values_that_are_refused_as_weights_are_made_are_named(monkeypatch):
    def refuse(self):
        raise ValueError("`num_mixtures` of 3\nis no good.")

    runs.load_registries()
    cls = registry.get("MoeModel").cls
    monkeypatch.setattr(cls, "ensure_built", refuse)
    said = r"MoeModel cannot be built with num_mixtures=3.*: `num_mixtures` of 3$"
    with pytest.raises(UserError, match=said):
        runs.build_model(ModelConfig("MoeModel", {"num_mixtures": 3}), DATA["video"])
    with pytest.raises(ValueError, match="no good"):  # a bug of ours stays one
        runs.build_model(ModelConfig("MoeModel"), DATA["video"])


def test_a_copy_of_the_file_or_a_file_that_is_gone_is_the_one_loaded(tmp_path, caplog):
    path = write_module(tmp_path, POOL)
    build(path)
    copy = tmp_path / "bundle" / path.name
    copy.parent.mkdir()
    shutil.copy(path, copy)
    assert build(copy).built
    copy.write_text(f"{copy.read_text()}# another one\n")
    with pytest.raises(UserError, match="not that of a module in use"):
        build(copy)
    copy.unlink()
    with caplog.at_level("INFO"):
        assert build(copy).built
    assert f"{copy} is not there any more: {path} is taken" in caplog.text


def test_shipped_classes_keep_to_the_rules():
    runs.load_registries()
    for name in registry.names():
        model_check.check_class(registry.get(name).cls)


@pytest.mark.parametrize("name", one_a_family(sorted(OPTIONS)))
def test_shipped_models_keep_to_the_rules(name):
    runs.load_registries()
    data = DATA[registry.get(name).level]
    args = {**SMALL.get(name, {}), "num_classes": 5, "features": data.features}
    model = registry.create(name, **args)
    assert model_check.build(model, {**args, "dtype": "float32"}) is model


def test_a_mistake_met_while_training_is_one_line_of_the_command(
    shards,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    body = (  # how many frames there are is known of the model that is tried alone
        "def pool(self, frames, mask, training=False):\n"
        "    total = 0.0\n"
        "    for t in range(frames.shape[1]):\n"
        "        total += frames[:, t]\n"
        "    return total\n"
    )
    path = write_module(tmp_path, body)
    flags = train_flags(shards, tmp_path / "run", "--max_steps=2")
    flags[:2] = [f"--model_module={path}", "--model=Own"]
    assert command("train", *flags) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"train: {path}, line 14: ")
    monkeypatch.setenv("YT8M_TRACEBACK", "1")
    with pytest.raises(Exception, match="in"):
        command("train", *flags)


def test_a_file_that_was_moved_is_named_anew(
    shards,  # noqa: F811
    tmp_path,
    capsys,
):
    path = write_module(tmp_path, POOL)
    directory = tmp_path / "run"
    flags = train_flags(shards, directory, "--max_steps=2")
    flags[:2] = [f"--model_module={path}", "--model=Own"]
    assert command("train", *flags) == 0
    moved = tmp_path / "elsewhere" / path.name
    moved.parent.mkdir()
    shutil.move(path, moved)
    pattern = f"{shards}/validate/*.tfrecord"
    run, name = f"--train_dir={directory}", path.stem
    commands = {
        "eval": [f"--eval_data_pattern={pattern}", "--run_once"],
        "inference": [
            f"--input_data_pattern={pattern}",
            f"--output_file={tmp_path / 'x.csv'}",
        ],
        "export": [f"--output_dir={tmp_path / 'export'}"],
        "compress": [f"--output_dir={tmp_path / 'small'}", "--method=float16"],
        "average": [f"--output_dir={tmp_path / 'average'}", "--last=1"],
        "train": [*flags[2:-1], "--max_steps=3"],
    }

    def forget():
        sys.modules.pop(name, None)
        registry._ENTRIES.pop("Own", None)

    capsys.readouterr()
    for what, more in commands.items():
        forget()
        assert command(what, run, *more) == (what == "average" and 0 or 1), what
        if what != "average":
            said = capsys.readouterr().err
            assert f"There is no file {path} of models" in said
            assert "--model_module" in said
    shutil.rmtree(tmp_path / "average", ignore_errors=True)
    for what, more in commands.items():
        forget()
        assert command(what, run, f"--model_module={moved}", *more) == 0, what
    # From now on the run knows the new place.
    assert runs.read_config(str(directory)).model.module == str(moved)


def test_the_readmes_video_level_model_goes_the_whole_way(
    shards,  # noqa: F811
    tmp_path,
):
    readme = pathlib.Path(__file__).parent.parent / "README.md"
    code = readme.read_text().split("```python\n")[2].split("```")[0]
    module, directory = tmp_path / "own_video_models.py", tmp_path / "run"
    module.write_text(code)
    videos = f"{shards}/video/*.tfrecord"
    flags = [
        *(f"--model_module={module}", "--model=HiddenLayerModel"),
        *("--model_args=hidden_size=16", "--feature_sizes=32,32"),
        *("--feature_names=mean_rgb,mean_audio", "--num_classes=12"),
        *("--batch_size=16", "--max_steps=2", f"--train_data_pattern={videos}"),
    ]
    run = f"--train_dir={directory}"
    assert command("train", *flags, run) == 0
    assert command("eval", run, f"--eval_data_pattern={videos}", "--run_once") == 0
    output = f"--output_file={tmp_path / 'x.csv'}"
    assert command("inference", run, f"--input_data_pattern={videos}", output) == 0
    assert command("export", run, f"--output_dir={tmp_path / 'export'}") == 0


def test_the_class_may_have_changed_since_the_checkpoint(tmp_path):
    runs.load_registries()
    data = DATA["video"]
    model = runs.build_model(ModelConfig("LogisticModel"), data)
    checkpoints = runs.Checkpoints(str(tmp_path))
    info = checkpoints.save({"model": model}, 1, 8, 8)
    for other, said in (
        (keras.layers.Dense(5), r"has dense\w*/kernel \[8, 5\], not \[9, 5\]"),
        (keras.layers.Dense(5, use_bias=False), "has 2 variables, not 1"),
        (
            keras.Sequential([keras.layers.Dense(5), keras.layers.Dense(2)]),
            r"has 2 variables, not 4; \S+ \[5, 2\] is not among them",
        ),
    ):
        other.build((None, 9 if "kernel" in said else 8))
        with pytest.raises(UserError, match=said):
            checkpoints.restore(info, {"model": other}, partial=True)


@pytest.mark.parametrize(
    ("annotation", "fitting", "others", "words"),
    [
        (int, [3, True, np.int64(2)], ["3", 2.0, None], "a whole number"),
        (float, [3, 0.5], ["a", None, [1.0]], "a number"),
        (bool, [True, 0, 1], ["yes", 2, 0.5], "True or False"),
        (str, ["a"], [1, None], "a word"),
        (int | None, [None, 3], ["None", 1.5], "a whole number or None"),
        (tuple[int, ...], [(1, 2), [3], ()], [3, ("a",)], "a list, each of it a whole"),
        (tuple[int, float], [(1, 0.5)], [(1,), (0.5, 1)], "a list"),
        (list, [[1, "a"], ()], [1, "ab"], "a list"),
        (dict[str, int] | None, [{}, None], [[]], "a dictionary or None"),
        (object, [1, "a", None], [], "object"),
    ],
)
def test_values_of_the_types_that_are_declared_fit(annotation, fitting, others, words):
    assert all(fits(value, annotation) for value in fitting)
    assert not any(fits(value, annotation) for value in others)
    assert in_words(annotation).startswith(words)


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("NetVLADModel", {"clusters": "many"}, "clusters=many must be a whole number"),
        ("NetVLADModel", {"hidden_size": 1.5}, "hidden_size=1.5 must be a whole"),
        ("NetVLADModel", {"gating": "yes"}, "gating=yes must be True or False"),
        ("MoeModel", {"head": 3}, "head=3 must be a word, not of type int"),
        ("MoeModel", {"head_args": 3}, "head_args=3 must be a dictionary"),
        (
            "MoeModel",
            {"head_args": {"num_mixtures": "two"}},
            "num_mixtures=two must be a whole number",
        ),
    ],
)
def test_arguments_of_a_wrong_type_are_named(name, args, said):
    runs.load_registries()
    with pytest.raises(UserError, match=said):
        registry.create(name, num_classes=5, **args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"beta_1": "fast"}, "--optimizer_args of Adam: beta_1=fast must be a number"),
        ({"amsgrad": "yes"}, "amsgrad=yes must be True or False"),
        ({"clipnorm": "many"}, "clipnorm=many must be a number or None"),
        ({"weight_decay": "fast"}, "weight_decay=fast must be a number or None"),
        ({"learning_rate": 0.1}, "learning_rate=0.1 is a flag of its own"),
        ({"beta1": 0.5}, "Adam has no argument beta1. Did you mean beta_1"),
    ],
)
def test_arguments_of_optimisers_are_judged_by_their_defaults(args, said):
    def create(**args):
        config = TrainingConfig("train*", optimizer_args=args)
        return create_optimizer(config, ExamplesSchedule(config, 10))

    create(beta_1=1, amsgrad=True, weight_decay=None, clipnorm=2)
    with pytest.raises(UserError, match=said):
        create(**args)


def test_arguments_without_annotations_take_what_they_took():
    class Own:
        def __init__(self, gating=False, pooling="max", size=3, rate=None):
            pass

    args = {"gating": "before", "pooling": ["max"], "size": "large", "rate": "slow"}
    refuse_wrong_types("Own", Own, args)


def test_every_default_of_a_shipped_model_fits_its_declared_type():
    runs.load_registries()
    for name in registry.names():
        cls = registry.get(name).cls
        refuse_wrong_types(name, cls, registry.arguments(cls))


def test_files_of_class_relevance_are_explained_too(tmp_path):
    path = tmp_path / "own_relevance.py"
    path.write_text("def class_relevance(candidates):\n    return candidates.nothing\n")
    function = user_code.load(str(path), "own_relevance").class_relevance
    with pytest.raises(AttributeError) as caught:
        function(pathlib.Path())
    assert user_code.explain(caught.value).startswith(f"{path}, line 2: AttributeError")
    assert user_code.explain(ValueError("ours")) is None
