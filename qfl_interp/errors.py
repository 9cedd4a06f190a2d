"""The one exception for what a user can fix; the command line prints it without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QflError(Exception):
    """A user's set-up is at fault: a missing file, an unknown name, a corrupted checkpoint.

    The message says the rule, the value found, where, and what to do.
    """


class StorageError(QflError):
    """The place where results are kept is full, read-only or out of reach: no run of a sweep could be saved there."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> QflError:
    """The error for a name that is not among `known`, all valid ones: suggests the nearest and lists all.

    `what` is the kind of thing named, in the singular ("task", "feature").
    """
    names = sorted(known)
    return QflError(f"no {what} is named {name!r}.{nearest(name, names)} Known: {', '.join(names) or 'none'}.")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: " Did you mean 'train' or 'branch'?"; empty where nothing known is near."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in found)}?" if found else ""
