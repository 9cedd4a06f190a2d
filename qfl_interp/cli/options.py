"""What a command takes, for whoever calls it from a page: its options as plain values, and its words from values."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Union, get_args, get_origin

import typer.main

from qfl_interp.errors import QflError, unknown_name

# Of every command: what is opened, and where it says what.
_NOT_SHOWN: Final = ("run", "out", "as_json", "quiet", "replay", "help")


class Option(NamedTuple):
    """An option of a command, or an argument behind what it opens.

    Attributes:
        name: Of the parameter.
        kind: "flag", "int", "float", "text", "choice", or "list" of texts.
        default: What is meant where it is not given; None where the function decides.
        help: What the docstring says of it.
        values: Of a choice.
        words: On the command line: the option, and of a flag that can be refused its opposite; empty of an argument.
    """

    name: str
    kind: str
    default: Any
    help: str
    values: tuple[str, ...]
    words: tuple[str, ...]


@functools.cache
def _commands() -> Mapping[str, Any]:
    """The commands of `qfl` by name, those of other packages too."""
    from qfl_interp.cli.main import build_app

    found: Any = typer.main.get_command(build_app())
    return found.commands


def _command(name: str) -> Any:
    """The command of a lens or another analysis. Raises `QflError` where there is none."""
    spelled = name.replace("_", "-")
    known = {one: command for one, command in _commands().items() if hasattr(command, "make")}
    if spelled not in known:
        raise unknown_name("analysis", spelled, known)
    return known[spelled]


def options_of(name: str) -> list[Option]:
    """The options of a command that opens a run, in the order of its help, without those on where results go.

    Args:
        name: Of the lens or of its command.

    Raises:
        QflError: There is no such command.
    """
    command = _command(name)
    given = inspect.signature(command.make()).parameters
    return [_option(one, given[one.name].annotation) for one in command.params if one.name not in _NOT_SHOWN]


def words_of(name: str, opened: Path, values: Mapping[str, Any]) -> list[str]:
    """The command line, without `qfl`, that calls a command on what is opened; what is not given is left out.

    Args:
        name: Of the lens or of its command.
        opened: The run, or the suite's file.
        values: By the names of options; texts are taken as a person types them, of a list with blanks or commas.

    Raises:
        QflError: There is no such command or option, or a value is none that the option takes.
    """
    command, known = _command(name), {one.name: one for one in options_of(name)}
    words, behind = [], []
    for given, value in values.items():
        if given not in known:
            raise unknown_name(f"option of {name}", given, known)
        one = known[given]
        if value in (None, "", []) or value == one.default:
            continue
        if one.kind == "flag":
            words += [word for word, on in zip(one.words, (True, False), strict=False) if on is _is_on(value)]
        elif one.kind == "list":
            listed = value.replace(",", " ").split() if isinstance(value, str) else [str(part) for part in value]
            words += [f"{one.words[0]}={part}" for part in listed] if one.words else []
            behind += [] if one.words else listed
        else:
            # In one word with its option: a value that begins with a dash is no option of its own.
            words.append(f"{one.words[0]}={value}")
    if any(parameter.name == "quiet" for parameter in command.params):
        words.append("--quiet")
    words += ["--", str(opened), *behind]
    try:
        command.make_context(str(command.name), list(words))
    except Exception as error:  # Typer has taken in the library whose errors these are: they have no public name
        said = getattr(error, "format_message", None)
        if said is None:
            raise
        raise QflError(f"{name}: {said()}") from error
    return [str(command.name), *words]


def _option(one: Any, annotation: Any) -> Option:
    """A parameter of a command as plain values."""
    default = None if callable(one.default) else one.default
    if not isinstance(default, (bool, int, float, str, type(None))):
        default = None
    kind, values = _kind(annotation)
    is_argument = not any(word.startswith("-") for word in one.opts)
    words = () if is_argument else tuple(_longest(opts) for opts in (one.opts, one.secondary_opts) if opts)
    return Option(str(one.name), kind, default, str(one.help or ""), values, words)


def _kind(annotation: Any) -> tuple[str, tuple[str, ...]]:
    """What an option's type is called, and the values of a choice."""
    typed = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    if get_origin(typed) in (Union, types.UnionType):
        typed = next(kind for kind in get_args(typed) if kind is not type(None))
    if get_origin(typed) is Literal:
        return "choice", tuple(map(str, get_args(typed)))
    if get_origin(typed) is list:
        return "list", ()
    return {bool: "flag", int: "int", float: "float"}.get(typed, "text"), ()


def _longest(words: Sequence[str]) -> str:
    """The spelled-out one."""
    return max(words, key=len)


def _is_on(value: Any) -> bool:
    """Whether a flag's value, perhaps a text, says yes."""
    return value if isinstance(value, bool) else str(value).lower() in ("1", "true", "yes", "on")
