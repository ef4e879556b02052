"""Values of arguments against the types that constructors declare.

Values of flags such as `--model_args` are Python literals; one of a wrong type is
refused here by name, before some layer fails on it.
"""

import collections.abc
import inspect
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any

from yt8m.errors import UserError

_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a word",
    type(None): "None",
}


def refuse_wrong_types(
    what: str, cls: type, args: dict[str, Any], by_default: bool = False
) -> None:
    """Raises `UserError` for a value that a constructor's argument cannot take.

    Args:
        what: what is built, for the message.
        cls: its class.
        args: the values by name; names that `cls` does not have are left alone.
        by_default: whether an argument without annotation is judged by its default, as
            those of Keras's optimisers, where None stands for a number. A user's own
            constructor may take more than its default tells.
    """
    declared = _declared(cls, by_default)
    for name, value in args.items():
        annotation = declared.get(name, Any)
        if not fits(value, annotation):
            raise UserError(
                f"{what}: {name}={value} must be {in_words(annotation)}, not of type "
                f"{type(value).__name__}."
            )


def fits(value: Any, annotation: Any) -> bool:
    """Whether `value` may be of the type `annotation`; what is not known here, may."""
    origin = typing.get_origin(annotation) or annotation
    inner = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin in (None, type(None)):
        return value is None
    if origin is bool:
        return value is None or isinstance(value, numbers.Integral) and value in (0, 1)
    if origin is int:
        return isinstance(value, numbers.Integral)
    if origin is float:
        return isinstance(value, numbers.Real)
    if origin is str:
        return isinstance(value, str)
    if origin in _MAPPINGS:
        return isinstance(value, collections.abc.Mapping)
    if origin in _SEQUENCES:
        return isinstance(value, list | tuple) and _fit_each(value, inner)
    return True


def _fit_each(values: Any, inner: tuple[Any, ...]) -> bool:
    if len(inner) > 1 and inner[-1] is not Ellipsis:  # tuple[int, str]
        pairs = zip(values, inner, strict=False)
        return len(values) == len(inner) and all(fits(v, one) for v, one in pairs)
    return all(fits(v, inner[0]) for v in values) if inner else True


def in_words(annotation: Any) -> str:
    """The values that `annotation` allows, for a person."""
    origin = typing.get_origin(annotation) or annotation
    inner = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(one) for one in inner)
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin in _MAPPINGS:
        return "a dictionary"
    if origin in _SEQUENCES:
        of = sorted({in_words(one) for one in inner if one is not Ellipsis})
        return f"a list, each of it {' or '.join(of)}" if of else "a list"
    return _WORDS.get(origin, getattr(origin, "__name__", str(origin)))


def _declared(cls: type, by_default: bool) -> dict[str, Any]:
    """The type of each constructor argument, that of the class itself first."""
    found: dict[str, Any] = {}
    for owner in cls.__mro__:
        init = owner.__dict__.get("__init__")
        if inspect.isfunction(init):
            for name, annotation in _declared_by(init, by_default).items():
                found.setdefault(name, annotation)
    return found


def _declared_by(init: Callable[..., None], by_default: bool) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(init)
    except (NameError, TypeError):  # of a user's class: a name that is not there
        hints = {}
    found = {}
    for name, parameter in inspect.signature(init).parameters.items():
        default = parameter.default
        if name in hints:
            found[name] = hints[name]
            if default is None:  # as in `size: int = None`
                found[name] = hints[name] | None
        elif not by_default:
            continue
        elif isinstance(default, bool):
            found[name] = bool
        elif isinstance(default, int | float):
            found[name] = float
        elif default is None and name != "name":  # numbers, in the optimisers
            found[name] = float | None
    return found
