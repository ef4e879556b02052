"""Models by name: register, create, list.

A model registers itself with one decorator and is found by its class name:

    @register(level="frame", paper="Miech et al. 2017, arXiv:1706.06905")
    class NetVLADModel(FrameLevelModel): ...

    create("NetVLADModel", clusters=128)
"""

import inspect
from dataclasses import dataclass
from typing import Any

import keras

from yt8m import user_code
from yt8m.argument_types import refuse_wrong_types
from yt8m.errors import UserError, as_raised, near_matches, reason

LEVELS = ("frame", "video")


@dataclass(frozen=True)
class Entry:
    """A registered model: its class, `frame` or `video` level, and its source."""

    cls: type
    level: str
    paper: str


_ENTRIES: dict[str, Entry] = {}


def register(level: str, paper: str | None = None):
    """Registers the decorated class under its own name.

    The class gets the attributes `level` and `paper`, and is registered with Keras
    too, so that saved models find it again.

    Args:
        level: `"frame"` or `"video"`; chooses the reader.
        paper: where the model is described, as a short citation.

    Raises:
        ValueError: for another level, no paper, or a name that is taken.
    """
    if isinstance(level, type) or paper is None:
        raise ValueError(
            'write @register(level="frame", paper="our own"), with your own values'
        )
    if level not in LEVELS:
        raise ValueError(f"`level` must be one of {LEVELS}. Received: level={level!r}")

    def decorate(cls: type) -> type:
        taken = _ENTRIES.get(cls.__name__)
        if taken is not None:
            raise ValueError(
                f"A model named {cls.__name__} is registered already, by "
                f"{inspect.getsourcefile(taken.cls)}. Give the class in "
                f"{inspect.getsourcefile(cls)} another name."
            )
        cls.level, cls.paper = level, paper
        keras.saving.register_keras_serializable(package="yt8m")(cls)
        _ENTRIES[cls.__name__] = Entry(cls, level, paper)
        return cls

    return decorate


def names(level: str | None = None) -> list[str]:
    """The registered names, sorted; of one level if `level` is given."""
    return sorted(n for n, e in _ENTRIES.items() if level in (None, e.level))


def get(name: str) -> Entry:
    """The entry of `name`. Raises `UserError` with near matches if there is none."""
    if name not in _ENTRIES:
        cls = user_code.find_class(name)
        if cls:
            raise UserError(
                f"{user_code.line_of(cls)}: {name} is not registered: write "
                "@register(level=..., paper=...), of yt8m.registry, above it."
            )
        raise UserError(f"Unknown model {name}. {near_matches(name, _ENTRIES)}")
    return _ENTRIES[name]


def arguments(cls: type) -> dict[str, Any]:
    """The constructor arguments of `cls` with their defaults, own class first."""
    found: dict[str, Any] = {}
    for owner in cls.__mro__:
        init = owner.__dict__.get("__init__")
        if owner is keras.Model or owner is keras.layers.Layer:
            break
        if init is None:
            continue
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def create(name: str, **args: Any):
    """Builds the model `name` with `args`.

    Raises:
        UserError: unknown model or argument (near matches are listed), or a value
            that the model's constructor refuses.
    """
    cls = get(name).cls
    taken = arguments(cls)
    known = [*taken, "dtype", "name"]
    for key in args:
        if key not in known:
            raise UserError(f"{name} has no argument {key}. {near_matches(key, known)}")
    for key, default in taken.items():
        if default is inspect.Parameter.empty and key not in args:
            raise UserError(f"{name} needs {key}: give --model_args={key}=...")
    refuse_wrong_types(f"--model_args of {name}", cls, args)
    try:
        return cls(**args)
    except (ValueError, TypeError) as e:
        raise _refused(name, args, e) from e


def create_built(name: str, **args: Any):
    """As `create`, with weights: some values are refused only when these are made."""
    model = create(name, **args)
    try:
        return model.ensure_built()
    except (ValueError, TypeError) as e:
        if not set(args) - {"num_classes", "features", "dtype"}:
            raise  # by default arguments, of which the user has said nothing
        raise _refused(name, args, e) from e


def _refused(name: str, args: dict[str, Any], error: Exception) -> UserError:
    given = ", ".join(f"{key}={value!r}" for key, value in args.items())
    said = user_code.explain(error) or reason(as_raised(error))
    return UserError(f"{name} cannot be built with {given}: {said}")


def create_part(what: str, classes: dict[str, type], name: str, args: dict[str, Any]):
    """Builds a part of a model, such as its head, by the part's name.

    Args:
        what: what it is, for messages.
        classes: the known ones, by name.
        name: a key of `classes`.
        args: of the constructor.

    Raises:
        UserError: unknown name or argument (near matches are listed).
    """
    if name not in classes:
        raise UserError(f"Unknown {what} {name}. {near_matches(name, classes)}")
    known = arguments(classes[name])
    for key in args:
        if key not in {*known, "dtype", "name"}:
            raise UserError(
                f"The {what} {name} has no argument {key}. {near_matches(key, known)}"
            )
    refuse_wrong_types(f"The {what} {name}", classes[name], args)
    return classes[name](**args)
