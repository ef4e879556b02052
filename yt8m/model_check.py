"""What a user's model must keep to, looked at before anything is trained.

A mistake in it would else come up as an error of some layer, or not at all. Shipped
models are tested for the same, and pass without being looked at.
"""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from yt8m import registry, user_code
from yt8m.errors import UserError
from yt8m.model import (
    EmbeddingModel,
    FrameLevelModel,
    HeadModel,
    PoolingModel,
    VideoLevelModel,
    YT8MModel,
)

log = logging.getLogger("yt8m")

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


@contextlib.contextmanager
def watched_variables() -> Iterator[list[tuple[tf.Variable, str]]]:
    """Within the block, the variables that a user's own lines make, with the line.

    What a layer of ours makes, wherever it is called, is not among them.
    """
    made: list[tuple[tf.Variable, str]] = []

    def creator(make, **kwargs):
        variable = make(**kwargs)
        line = user_code.line_that_runs()
        if line:
            made.append((variable, line))
        return variable

    with tf.variable_creator_scope(creator):
        yield made


def build(
    model: YT8MModel,
    args: dict[str, Any] | None = None,
    made: Iterable[tuple[tf.Variable, str]] = (),
    restored: bool = False,
) -> YT8MModel:
    """Creates the weights of a user's model, and looks at what it computes.

    Args:
        model: as its constructor made it.
        args: what the constructor was given.
        made: of `watched_variables`, within which the model was made and this is
            called.
        restored: its weights come from a checkpoint: what leaves them right, and only
            the `.keras` file of an export wrong, is a warning.

    Raises:
        UserError: it cannot be built, returns something else than a model must, loses
            an argument, or has a variable that would be neither trained nor saved.
    """
    cls = type(model)
    where = f"{user_code.line_of(cls)}: {cls.__name__}"
    _check_arguments(model, where, args or {}, restored)
    try:
        model.ensure_built()
        _refuse_unsaved(model, made)
        outputs = _traced(model, model)
    except UserError:
        raise
    except Exception as e:
        if isinstance(model, HeadModel) and not hasattr(model, "classifier"):
            raise UserError(
                f"{where} has no head: its `build(self, input_shapes)` must call "
                "`super().build(input_shapes)`."
            ) from e
        _check_parts(model, where)
        raise _said(e, where) from e
    _check_parts(model, where)
    _check_outputs(outputs, model.num_classes, f"{where} returns")
    # Where replicas share the variables, or labels are read, training alone can tell.
    shared = tf.distribute.get_strategy().num_replicas_in_sync > 1
    if not shared and not model.training_input_names:
        try:
            outputs = _traced(model, functools.partial(model, training=True))
        except UserError:
            raise
        except Exception as e:
            _refuse_unsaved(model, made)
            raise _said(e, where) from e
        _check_outputs(outputs, model.num_classes, f"{where} returns in training")
    if not restored:
        _warn_of_norms(model, where)
    return model


def _warn_of_norms(model: YT8MModel, where: str) -> None:
    """Says what Keras's batch norm does where some of a batch is not there."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            log.warning(
                "%s: the layer %s of Keras gives NaN for an empty batch, which one of "
                "several replicas may have for its part of the last one (so may "
                "--gradient_accumulation_steps), and sees the padding unless it gets "
                "a mask; yt8m.layers.normalization.BatchNormalization does neither.",
                where,
                layer.name,
            )
            return


def _traced(model: YT8MModel, call: Callable[[dict[str, Any]], Any]) -> Any:
    """What `call` makes of a batch, as tensors of a graph that never runs.

    So that trying a model moves neither its random draws nor its batch statistics.
    """
    inputs, returned = model.example_inputs(batch=_BATCH), []

    def trace() -> None:
        returned.append(call(inputs))

    tf.function(trace, autograph=False).get_concrete_function()
    return returned[-1]


def _said(error: Exception, where: str) -> UserError:
    return UserError(
        user_code.explain(error) or f"{where}: {user_code.describe(error)}"
    )


def _check_arguments(
    model: YT8MModel, where: str, args: dict[str, Any], restored: bool
) -> None:
    """Raises `UserError` if a constructor's argument did not reach its place."""
    if not hasattr(model, "feature_sizes"):
        raise UserError(
            f"{where}: its constructor must begin with `super().__init__(**kwargs)`."
        )
    found = {"num_classes": model.num_classes, "features": model.features}
    for name, value in found.items():
        if args.get(name, value) != value:
            raise UserError(
                f"{where}: its constructor must pass all of `**kwargs` on by "
                f"`super().__init__(**kwargs)`; {name} is {value}, not {args[name]}."
            )
    cls = type(model)
    if cls.get_config is not YT8MModel.get_config:
        return
    for name, default in registry.arguments(cls).items():
        if not hasattr(model, name):
            raise UserError(
                f"{where} keeps no attribute of its argument {name}, by which an "
                f"export knows its value: set `self.{name} = {name}` in __init__."
            )
        kept, kinds = getattr(model, name), (keras.layers.Layer, keras.Variable)
        if isinstance(kept, kinds) and not isinstance(args.get(name, default), kinds):
            kind = type(kept).__name__
            said = (
                f"{where} keeps a {kind} as `{name}`, where an export looks for the "
                f"value of its argument {name}: set `self.{name} = {name}` in "
                f"__init__, and give the {kind} another name."
            )
            if not restored:
                raise UserError(said)
            log.warning("%s", said)


def _check_parts(model: YT8MModel, where: str) -> None:
    """Raises `UserError` for a vector that is none, between the input and the head."""
    if isinstance(model, EmbeddingModel):
        name = "embed"
    elif isinstance(model, PoolingModel) and type(model).call is FrameLevelModel.call:
        name = "pool"
    else:
        return

    def call(inputs: dict[str, Any]) -> Any:
        seen = model.preprocess(inputs)
        return getattr(model, name)(*(seen if isinstance(seen, tuple) else (seen,)))

    try:
        vector = _traced(model, call)
    except Exception:
        return  # said already, by the call of the whole
    if not _is_of(vector, (_BATCH, None)):
        raise UserError(
            f"{where}.{name} must return one vector a video, [batch, size]; of "
            f"{_BATCH} videos it returns {_shape(vector)}."
        )


def _check_outputs(outputs: Any, num_classes: int, said: str) -> None:
    if not isinstance(outputs, dict) or "logits" not in outputs:
        found = type(outputs).__name__
        if isinstance(outputs, dict):
            found = f"one of {', '.join(map(str, outputs)) or 'nothing'}"
        raise UserError(f"{said} {found}; it must be a dictionary with `logits`.")
    logits = outputs["logits"]
    if not _is_of(logits, (_BATCH, num_classes)):
        raise UserError(
            f"{said} logits {_shape(logits)} of {_BATCH} videos; they must be "
            f"[batch, num_classes], {[_BATCH, num_classes]} here."
        )
    dtype = keras.backend.standardize_dtype(logits.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise UserError(f"{said} logits of type {dtype}; they must be floats.")
    embedding = outputs.get("embedding")
    if embedding is not None and not _is_of(embedding, (_BATCH, None)):
        raise UserError(
            f"{said} an `embedding` {_shape(embedding)} of {_BATCH} videos; it must be "
            "one vector a video, [batch, size]."
        )


def _shape(tensor: Any) -> Any:
    """The shape as a list, or what there is instead of a tensor."""
    shape = getattr(tensor, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:  # a graph may not know it
        return type(tensor).__name__
    return list(shape)


def _is_of(tensor: Any, wanted: tuple[int | None, ...]) -> bool:
    """Whether the shape is as wanted, None in either being any size."""
    found = _shape(tensor)
    if not isinstance(found, list):
        return hasattr(tensor, "shape")
    return len(found) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(found, wanted, strict=True)
    )


def _refuse_unsaved(model: YT8MModel, made: Iterable[tuple[tf.Variable, str]]) -> None:
    """Raises `UserError` for a variable that is not among those of the model."""
    known = [*model.variables, *model.metrics_variables]
    saved = {id(v if isinstance(v, tf.Variable) else v.value) for v in known}
    for variable, line in made:
        # Whole numbers are the states of random draws, such as Keras's own.
        if id(variable) not in saved and variable.dtype.is_floating:
            raise UserError(
                f"{line}: a variable {variable.shape.as_list()} is made here that "
                "Keras neither trains nor saves: make it by `self.add_weight`, or its "
                "layer as an attribute of the model, in __init__ or build."
            )
