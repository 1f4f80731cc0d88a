"""The one exception that a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that names the file or field and the mend; the command line exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not among the known ones, with the nearest of them.

    Args:
        kind: what the name should name, such as "method".
        name: what the user wrote.
        known: the names that exist.

    Returns:
        The error to raise.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
