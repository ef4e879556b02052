"""Finds a command, parses its flags, runs it, and prints a user's error as one line.

YT8M_TRACEBACK=1 in the environment shows where it was raised.

Exit status: 0 done, 1 an error (one line on stderr), 2 a wrong command line, 130 or
143 stopped by Ctrl-C or SIGTERM after saving.
"""

import contextlib
import importlib
import importlib.util
import itertools
import logging
import os
import pkgutil
import re
import signal
import sys
import tempfile
import traceback
from typing import NoReturn

from absl import flags as absl_flags

from yt8m import __version__, user_code
from yt8m.cli import recipes
from yt8m.errors import UserError, as_raised, near_matches

_INTERNAL = ("flags", "main")


class Interrupted(int):
    """The exit status of a command that Ctrl-C cut short, wherever it was."""


def command_names() -> list[str]:
    """The commands: the modules of this package, with dashes for underscores."""
    folder = os.path.dirname(__file__)
    modules = (m.name for m in pkgutil.iter_modules([folder]))
    return sorted(m.replace("_", "-") for m in modules if m not in _INTERNAL)


def run(command: str, arguments: list[str]) -> int:
    """Runs `yt8m COMMAND ARGUMENTS` in this process and returns its exit status."""
    _start_logging()
    with contextlib.suppress(ValueError):  # not the main thread: no signals there
        # So that what is being written is cleaned up; the trainer saves instead.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    module = importlib.import_module(f"yt8m.cli.{command.replace('-', '_')}")
    flags = absl_flags.FlagValues()
    absl_flags.DEFINE_bool(
        "help", False, "Shows this help.", short_name="h", flag_values=flags
    )
    module.define(flags)
    try:
        _refuse_forgotten_values(flags, arguments)
        rest = flags([command, *arguments])[1:]
        if flags["help"].value:
            print(_help(command, module, flags))
            return 0
        wanted = getattr(module, "POSITIONAL", ())
        if len(rest) > len(wanted):
            raise UserError(_stray(rest[len(wanted)], flags, arguments))
        if len(rest) < len(wanted):
            raise UserError(f"Give {wanted[len(rest)]}; see --help.")
        import_tensorflow()
        recipes.follow(flags, module.define)
        _prepare_paths(flags, getattr(module, "LOCAL", ()))
        return module.run(flags, *rest) or 0
    except absl_flags.Error as e:
        print(f"{command}: {_one_line(e)} See --help.", file=sys.stderr)
        return 2
    except UserError as e:
        if os.environ.get("YT8M_TRACEBACK"):
            traceback.print_exc()
        print(f"{command}: {_one_line(e)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        said = user_code.explain(e)
        if said is None or os.environ.get("YT8M_TRACEBACK"):
            raise
        print(f"{command}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return Interrupted(128 + signal.SIGINT)


def _refuse_forgotten_values(
    flags: absl_flags.FlagValues, arguments: list[str]
) -> None:
    """Raises an error for a flag that would take the next flag for its value.

    absl takes `--train_dir --model=X` for a run directory named `--model=X`.
    """
    for word, following in itertools.pairwise([*arguments, "--"]):
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in flags or flags[name].boolean:
            continue
        if (value if equals else following).startswith("--"):
            of_file = re.search(r"\b(file|folder|directory)\b", flags[name].help, re.I)
            what = of_file[1].upper() if of_file else "VALUE"
            raise absl_flags.Error(
                f"--{name} has no value: write --{name}={what}. It is: "
                f"{flags[name].help.strip()}"
            )


def _stray(word: str, flags: absl_flags.FlagValues, arguments: list[str]) -> str:
    """What to say of a word that is no flag."""
    before = arguments[arguments.index(word) - 1].lstrip("-")
    if arguments.index(word) and before in flags and flags[before].boolean:
        return f"--{before} takes no second word: write --{before}={word}."
    said = f"{word!r} is not a flag; flags are written --name=value"
    pattern = next((n for n in sorted(flags) if n.endswith("data_pattern")), None)
    if pattern and os.path.exists(word):
        files = f"{word.rstrip('/')}/*.tfrecord" if os.path.isdir(word) else word
        return f"{said}: --{pattern}='{files}'."
    return f"{said}."


def leave(status: int) -> NoReturn:
    """Ends the process with what `run` returned; after an interruption at once.

    TensorFlow's threads are at work then, and crash now and then while Python takes
    itself down around them.
    """
    if isinstance(status, Interrupted):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


class _ErrorStream(logging.Handler):
    """Writes plain lines to what is `sys.stderr` at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        # On a terminal a progress bar may stand on the line; it is drawn again.
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(clear + self.format(record), file=sys.stderr)


def _start_logging() -> None:
    log = logging.getLogger("yt8m")
    if not log.handlers:
        log.addHandler(_ErrorStream())
        log.setLevel(logging.INFO)
    log.propagate = False  # some package may have given the root logger a handler


def import_tensorflow() -> None:
    """Imports TensorFlow without its start-up notes, which bury what is worth reading.

    They are written by C++ to file descriptor 2, some before any setting is read; if
    the import fails, they are shown.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
        except BaseException:
            notes.seek(0)
            os.write(saved, notes.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _prepare_paths(flags: absl_flags.FlagValues, local: tuple[str, ...]) -> None:
    """Loads the file systems that paths need; shards on web servers when listed.

    Args:
        flags: of the command.
        local: the flags that the command allows no such path.
    """
    from yt8m import remote

    for name in flags:
        value = flags[name].value
        if isinstance(value, str) and name not in local and not remote.is_url(value):
            remote.prepare(value, f"--{name}")


def _one_line(error: Exception) -> str:
    return " ".join(str(as_raised(error)).split())


def _help(command: str, module, flags: absl_flags.FlagValues) -> str:
    lines = [f"yt8m {command}: {module.__doc__.strip()}", "", "Flags:"]
    for name in sorted(flags):
        flag = flags[name]
        if flag.name == name and name != "help":  # not an alias
            default = "" if flag.default in (None, "") else f" (default {flag.default})"
            lines += [f"  --{name}", f"      {' '.join(flag.help.split())}{default}"]
    return "\n".join(lines)


def main() -> None:
    """The console entry `yt8m`."""
    names = command_names()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(f"yt8m {__version__}. Commands (each has --help):")
        for name in names:
            module = importlib.util.find_spec(f"yt8m.cli.{name.replace('-', '_')}")
            print(f"  {name:20s} {_first_line(module.origin)}")
        sys.exit(0 if len(sys.argv) > 1 else 2)
    if sys.argv[1] in ("--version", "-V"):
        print(f"yt8m {__version__}")
        sys.exit(0)
    command = sys.argv[1]
    if command not in names:
        print(
            f"yt8m: unknown command {command}. {near_matches(command, names)}",
            file=sys.stderr,
        )
        sys.exit(2)
    leave(run(command, sys.argv[2:]))


def _first_line(path: str) -> str:
    """The first line of a module's docstring, without importing the module."""
    with open(path) as f:
        return f.readline().strip().strip('"')
