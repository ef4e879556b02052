"""What a user's model must keep to, looked at before anything is trained.

A mistake in it would else come up as an error of some layer, or not at all. Shipped
models are tested for the same, and pass without being looked at.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from yt8m import registry, user_code
from yt8m.errors import UserError
from yt8m.model import (
    EmbeddingModel,
    FrameLevelModel,
    PoolingModel,
    VideoLevelModel,
    YT8MModel,
)

_BATCH = 3  # videos in a batch that is tried
_BASES = {
    "frame": (FrameLevelModel, "FrameLevelModel or PoolingModel"),
    "video": (VideoLevelModel, "VideoLevelModel or EmbeddingModel"),
}
# What a subclass of the first defines, and what it is called with.
_METHODS = (
    (PoolingModel, "pool", ("frames", "mask")),
    (EmbeddingModel, "embed", ("video",)),
    (FrameLevelModel, "classify", ("frames", "mask")),
    (VideoLevelModel, "classify", ("video",)),
)
_OPTIONAL = ("embed",)


def check_class(cls: type) -> None:
    """Raises `UserError` for a registered class that cannot be a model of its level."""
    where = f"{user_code.line_of(cls)}: {cls.__name__}"
    base, advice = _BASES[cls.level]
    if not issubclass(cls, base):
        raise UserError(
            f"{where} is registered at the level {cls.level!r}: derive it from "
            f"{advice} of yt8m.model."
        )
    arguments = registry.arguments(cls)
    init = inspect.signature(cls.__init__).parameters.values()
    if "features" not in arguments or not any(
        p.kind in (p.VAR_KEYWORD,) or p.name == "dtype" for p in init
    ):
        raise UserError(
            f"{where}: its constructor must take `**kwargs` and pass them on by "
            "`super().__init__(**kwargs)`."
        )
    for owner, name, inputs in _METHODS:
        if not issubclass(cls, owner):
            continue
        method = getattr(cls, name)
        wanted = f"`{name}(self, {', '.join(inputs)}, training=False)`"
        if method is getattr(owner, name):
            # It may define instead what calls the method.
            calls = cls.classify is owner.classify and cls.call is owner.call
            if calls and name not in _OPTIONAL:
                raise UserError(f"{where} must define {wanted}.")
            continue
        try:
            inspect.signature(method).bind(None, *inputs, training=False)
        except TypeError as e:
            raise UserError(f"{where} must define {wanted}: {e}.") from e
        break


def build(model: YT8MModel) -> YT8MModel:
    """Creates the weights of a user's model, and looks at what it computes.

    Raises:
        UserError: it cannot be built, returns something else than a model must, or
            holds a variable that would be neither trained nor saved.
    """
    cls = type(model)
    where = f"{user_code.line_of(cls)}: {cls.__name__}"
    if not hasattr(model, "feature_sizes"):
        raise UserError(
            f"{where}: its constructor must begin with `super().__init__(**kwargs)`."
        )
    try:
        model.ensure_built()
        outputs = model(model.example_inputs(batch=_BATCH))
    except UserError:
        raise
    except Exception as e:
        _check_parts(model, where)
        said = user_code.explain(e) or f"{where}: {user_code.describe(e)}"
        raise UserError(said) from e
    _check_parts(model, where)
    _check_outputs(outputs, model.num_classes, f"{where} returns")
    if cls.get_config is YT8MModel.get_config:
        for name in registry.arguments(cls):
            if not hasattr(model, name):
                raise UserError(
                    f"{where} keeps no attribute of its argument {name}, by which an "
                    f"export knows its value: set `self.{name} = {name}` in __init__."
                )
    for layer, name in _untracked(model):
        owner = "" if layer is model else f" in its layer {layer.name}"
        raise UserError(
            f"{where} keeps a tf.Variable as `{name}`{owner}, which Keras neither "
            "trains nor saves: make it by `self.add_weight`."
        )
    return model


def _check_parts(model: YT8MModel, where: str) -> None:
    """Raises `UserError` for a vector that is none, between the input and the head."""
    inputs = model.example_inputs(batch=_BATCH)
    if isinstance(model, PoolingModel):
        name, arguments = "pool", lambda: model.preprocess(inputs)
    elif isinstance(model, EmbeddingModel):
        name, arguments = "embed", lambda: (model.preprocess(inputs),)
    else:
        return
    if type(model).call is not FrameLevelModel.call and name == "pool":
        return
    try:
        vector = getattr(model, name)(*arguments())
    except Exception:
        return  # said already, by the call of the whole
    shape = getattr(vector, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != _BATCH:
        found = type(vector).__name__ if shape is None else f"{list(shape)}"
        raise UserError(
            f"{where}.{name} must return one vector a video, [batch, size]; of "
            f"{_BATCH} videos it returns {found}."
        )


def _check_outputs(outputs: Any, num_classes: int, said: str) -> None:
    if not isinstance(outputs, dict) or "logits" not in outputs:
        found = type(outputs).__name__
        if isinstance(outputs, dict):
            found = f"one of {', '.join(map(str, outputs)) or 'nothing'}"
        raise UserError(f"{said} {found}; it must be a dictionary with `logits`.")
    logits = outputs["logits"]
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (_BATCH, num_classes):
        raise UserError(
            f"{said} logits {list(shape)} of {_BATCH} videos; they must be "
            f"[batch, num_classes], {[_BATCH, num_classes]} here."
        )
    dtype = keras.backend.standardize_dtype(logits.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise UserError(f"{said} logits of type {dtype}; they must be floats.")


def _untracked(model: YT8MModel) -> Iterator[tuple[Any, str]]:
    """Each layer with the name of an attribute that holds a bare `tf.Variable`."""
    for layer in model._flatten_layers():
        for name, value in vars(layer).items():
            values = value if isinstance(value, list | tuple) else [value]
            if not name.startswith("_") and any(
                isinstance(v, tf.Variable) for v in values
            ):
                yield layer, name
