"""Errors that a user can mend.

The commands print a `UserError` as one line and exit with status 1; anything else
is a defect of ours and keeps its traceback.
"""

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the message is one line that names what and how."""


class DataError(UserError):
    """A file or record that cannot be used; the message names it."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """Returns "Did you mean A or B? Known: A, B, C." for an unknown `name`.

    Matching ignores case, so that `netvladmodel` finds `NetVLADModel`.
    """
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(by_lower[c] for c in close)}? " if close else ""
    return f"{hint}Known: {', '.join(known) or 'none'}."


def as_raised(error: Exception) -> Exception:
    """The error as it was, where graphs or Keras's layers have added their traceback.

    They raise one of the same type whose text has the first one's last line.
    """
    first = error.__context__
    if error.__cause__ is not None or not isinstance(first, type(error)):
        return error
    last_line = str(first).strip().split("\n")[-1].strip()
    return as_raised(first) if last_line in str(error) else error


def reason(error: Exception) -> str:
    """The first line of an error's own words, without TensorFlow's node names."""
    message = (getattr(error, "message", None) or str(error)).strip()
    message = re.sub(r"\{\{[^}]*\}\} ?| ?\[Op:\w*\].*", "", message)
    return message.splitlines()[0][:300] if message else repr(error)
