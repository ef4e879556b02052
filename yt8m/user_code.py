"""Code of the user's own: files of models or functions, and what goes wrong in them.

That is the user's to mend, so it is one line that names the file and its line; an
error of ours keeps its traceback.
"""

import importlib.util
import inspect
import os
import re
import sys
import traceback
from types import ModuleType
from typing import Any

from yt8m.errors import UserError, as_raised

_FILES: set[str] = set()  # that were loaded, as their code objects name them
_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of Keras's messages
_NODES = re.compile(r"\{\{[^}]*\}\} ?| ?\[Op:\w*\]( name: ?)?")  # of TensorFlow's
_OURS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")


def load(path: str, name: str) -> ModuleType:
    """Runs the Python file `path` as the module `name`.

    Raises:
        UserError: it cannot be read, or what it does fails; names the line.
    """
    path = os.path.abspath(path)
    if (folder := os.path.dirname(path)) not in sys.path:
        sys.path.append(folder)  # where other files of the user's are, to be imported
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError(f"{path} must be a Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    _FILES.add(path)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise UserError(explain(e) or f"{path}: {describe(e)}") from e
    return module


def holds(cls: type) -> bool:
    """Whether `cls` is from a user's file."""
    try:
        return inspect.getsourcefile(cls) in _FILES
    except (OSError, TypeError):  # made at a prompt, or in C
        return False


def line_of(cls: type) -> str:
    """`FILE, line N`: where `cls` is defined."""
    try:
        return f"{inspect.getsourcefile(cls)}, line {inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return cls.__module__


def find_class(name: str) -> type | None:
    """The class `name` of a user's file that was loaded; None if none has one."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) in _FILES:
            found = vars(module).get(name)
            if isinstance(found, type) and holds(found):
                return found
    return None


def is_loaded(module: ModuleType | None) -> bool:
    """Whether `module` is a user's file that was loaded."""
    return getattr(module, "__file__", None) in _FILES


def line_that_runs() -> str | None:
    """`FILE, line N`: the user's line that runs now; None if it has called code of
    ours, which does what is asked about."""
    frame = sys._getframe(2)  # what called the caller
    while frame is not None:
        path = frame.f_code.co_filename
        if path in _FILES:
            return f"{path}, line {frame.f_lineno}"
        if path.startswith(_OURS):
            return None
        frame = frame.f_back
    return None


def explain(error: BaseException) -> str | None:
    """One line about an error that came up in a user's file; None for any other."""
    place = line_that_led_to(error)
    return place and f"{place}: {describe(error)}"


def line_that_led_to(error: BaseException) -> str | None:
    """`FILE, line N`: the innermost line of a user's file on the way to `error`."""
    if isinstance(error, SyntaxError) and error.filename in _FILES:
        return f"{error.filename}, line {error.lineno}"
    seen: set[int] = set()
    one: Any = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        lines = [
            (frame.f_code.co_filename, line)
            for frame, line in traceback.walk_tb(one.__traceback__)
        ]
        # Of code that TensorFlow has rewritten into a graph, the message tells.
        lines += _LINE.findall(str(one))
        lines = [place for place in lines if place[0] in _FILES]
        if lines:
            return "{}, line {}".format(*lines[-1])
        one = one.__cause__ or one.__context__
    return None


def describe(error: BaseException) -> str:
    """`TYPE: MESSAGE` of an error, without what Keras and TensorFlow add to it."""
    error = as_raised(error)
    if isinstance(error, UserError):
        return str(error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(_NODES.sub("", _COLOURS.sub("", text)).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(": ")
