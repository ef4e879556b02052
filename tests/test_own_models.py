"""A user's own models: each mistake is one line that names file, line and remedy."""

import pathlib
import re
import shutil
import sys

import keras
import numpy as np
import pytest

from test_main_road import FEATURES, command, shards, train_flags  # noqa: F401
from yt8m import model_check, registry, runs, user_code
from yt8m.argument_types import fits, in_words, refuse_wrong_types
from yt8m.config import DataConfig, ModelConfig
from yt8m.errors import UserError

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
        "keeps a tf.Variable as `scale`.*make it by `self.add_weight`",
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
    path = write_module(tmp_path, body, **place)
    with pytest.raises(Exception) as caught:
        build(path, place.get("level", "frame"))
    error = caught.value
    text = str(error) if isinstance(error, UserError) else user_code.explain(error)
    assert text is not None and "\n" not in text and str(path) in text
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
    ],
)
def test_a_file_that_does_not_load_is_named_with_its_line(tmp_path, text, said):
    path = tmp_path / f"own_{next(counter)}.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        runs.load_registries(str(path))
    assert path.stem not in sys.modules


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file .*--model_module"):
        runs.load_registries(str(tmp_path / "own.py"))
    for name in ("own_text.txt", "numpy.py"):
        (tmp_path / name).write_text("")
        with pytest.raises(UserError, match="must be a Python file"):
            runs.load_registries(str(tmp_path / name))


def test_shipped_models_keep_to_the_rules():
    runs.load_registries()
    for name in registry.names():
        model_check.check_class(registry.get(name).cls)
    for name in ("MoeModel", "NetVLADModel"):
        entry = registry.get(name)
        data = DATA[entry.level]
        model = registry.create(name, num_classes=5, features=data.features)
        assert model_check.build(model) is model


def test_a_mistake_met_while_training_is_one_line_of_the_command(
    shards,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    body = (
        "def pool(self, frames, mask, training=False):\n"
        "    if training:\n"
        "        return masked_mean(frames, mask) @ ops.zeros((3, 3))\n"
        "    return masked_mean(frames, mask)\n"
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


def test_arguments_without_annotations_are_judged_by_their_defaults():
    adam = keras.optimizers.Adam
    refuse_wrong_types("Adam", adam, {"beta_1": 1, "amsgrad": True, "name": "a"})
    with pytest.raises(UserError, match="Adam: beta_1=fast must be a number"):
        refuse_wrong_types("Adam", adam, {"beta_1": "fast"})


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
