"""A page for every command of `qfl`: its help text, arguments and options, from the program itself."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import typer.main
from rich.text import Text

from docsite.tables import code, table
from qfl_interp.cli.main import build_app

_KINDS = {"str": "text", "int": "whole number", "float": "number", "Path": "path"}


def pages() -> dict[str, str]:
    """File name to Markdown: the list of all commands, and a page for each."""
    program = typer.main.get_command(build_app())
    found = {f"{name}.md": _page(name, command) for name, command in program.commands.items()}  # type: ignore[attr-defined]
    rows = [(f"[`qfl {name}`]({name}.md)", _text(command.help).split("\n")[0]) for name, command in _named(program)]
    about = _text(program.help)
    return {"index.md": f"# Commands\n\n{about}\n\n{table(('command', 'what it does'), rows)}", **found}


def _named(group: Any) -> Iterator[tuple[str, Any]]:
    yield from group.commands.items()


def _page(name: str, command: Any) -> str:
    parts = [f"# qfl {name}", _text(command.help)]
    if hasattr(command, "commands"):
        for below, one in _named(command):
            parts += [f"## qfl {name} {below}", _text(one.help), *_parameters(one, f"qfl {name} {below}")]
    else:
        parts += _parameters(command, f"qfl {name}")
    return "\n\n".join(parts) + "\n"


def _parameters(command: Any, call: str) -> list[str]:
    """The usage line, and a table of arguments and options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = " ".join(_metavar(p) for p in arguments)
    rows = [(code(_metavar(p)), "", "required" if p.required else "", _text(p.help)) for p in arguments]
    for p in command.params:
        if p.param_type_name == "option":
            names = ", ".join(code(word) for word in (*p.opts, *p.secondary_opts))
            rows.append((names, _values(p), "required" if p.required else _default(p), _text(p.help)))
    usage = f"```text\n{call} {words} [OPTIONS]\n```"
    return [usage, table(("option", "takes", "default", "meaning"), rows)]


def _metavar(parameter: Any) -> str:
    word = parameter.metavar or parameter.name.upper()
    return word if parameter.required or word.startswith("[") else f"[{word}]"


def _values(parameter: Any) -> str:
    """What an option takes: nothing for a switch."""
    if parameter.is_flag:
        return ""
    annotation = parameter.type_descriptor.annotation
    said = "repeated" in (parameter.help or "")
    several = " (may be repeated)" if getattr(parameter, "multiple", False) and not said else ""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(code(word) for word in inner)
    if parameter.metavar:
        return code(parameter.metavar) + several
    kind = inner[0] if inner else annotation
    return {"str": "text", "int": "whole number", "float": "number", "Path": "path"}.get(
        kind.__name__, kind.__name__
    ) + several


def _default(parameter: Any) -> str:
    value = parameter.default() if callable(parameter.default) else parameter.default
    if parameter.is_flag:
        return code((parameter.opts if value else parameter.secondary_opts or ["off"])[0])
    return (
        ""
        if value in (None, "", ())
        else code(", ".join(map(str, value)) if isinstance(value, list | tuple) else value)
    )


def _text(help_text: str | None) -> str:
    """A help text without Rich's markup."""
    return Text.from_markup(help_text or "").plain.strip()
