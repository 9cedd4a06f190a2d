"""The one exception for what a user can fix; the command line prints it without a traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# `user:password@` of a URL; words of an option whose value is nobody's to read.
# A path folds `//` to `/`.
_LOGIN = re.compile(r"(\w+://?)[^/@\s'\"]+@")
_SECRET = {"password", "passwd", "token", "secret", "key", "apikey", "credential", "credentials"}


def redact(text: str) -> str:
    """The text without the logins of its URLs."""
    return _LOGIN.sub(r"\1***@", text)


def redact_command(words: Sequence[str]) -> list[str]:
    """A command line without the logins of URLs and without values of options like `--token` or `--api-key`."""
    shown, hide = [], False
    for word in words:
        option, equals, _ = word.partition("=")
        secret = option.startswith("-") and not _SECRET.isdisjoint(re.split(r"[-_]", option.lower()))
        shown.append("***" if hide else f"{option}=***" if secret and equals else redact(word))
        hide = secret and not equals
    return shown


class QflError(Exception):
    """A user's set-up is at fault: a missing file, an unknown name, a corrupted checkpoint.

    The message says the rule, the value found, where, and what to do; logins in URLs are left out of it.
    """

    def __str__(self) -> str:
        return redact(super().__str__())


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
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(n) for n in found)}?" if found else ""
