"""The commands that entry points register, and the functions behind them: listed without importing any."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

import typer
import typer.core
import typer.main
from rich.markup import escape

from qfl_interp.cli.command import command_of, opens
from qfl_interp.cli.signature import docstring, imported, sections, signature
from qfl_interp.errors import QflError
from qfl_interp.plugins import LENSES, LoadedT, is_own, load_all, load_entry_point, warn


class _Source(NamedTuple):
    """An entry point, where its function is, and the function's docstring."""

    point: EntryPoint
    function: str
    doc: str

    def use(self, load: Callable[[str, str], Any]) -> Any:
        """What `load` makes of the function's module and name; QflError where it fails."""
        return load_entry_point(self.point.group, self.point.name, lambda point: load(point.module, self.function))


def add_commands(app: typer.Typer, *groups: str) -> None:
    """Add the commands of these groups' entry points; a bad one is named on standard error and left out.

    A function whose first parameter is a run or a sweep becomes a command, any other is one already.
    """
    taken = {str(c.name or c.callback.__name__) for c in app.registered_commands if c.callback}
    taken |= {str(group.name) for group in app.registered_groups}
    sources = [(group, name, source) for group in groups for name, source in _loaded(group, _source).items()]
    found: dict[str, _Source] = {}
    # Ours first, in whatever group: nobody's lens takes the place of a command that is documented.
    for group, name, source in sorted(sources, key=lambda one: not is_own(one[2].point)):
        if name.replace("_", "-") in taken:
            warn(f"{group} {name!r} ({source.point.value}) is left out: another command has this name.")
            continue
        found[name] = source
        taken.add(name.replace("_", "-"))
    for name, source in sorted(found.items()):
        app.command(name, cls=_OnDemand, help=_help(source), rich_help_panel="Analyses")(_maker(source))


def _loaded(group: str, load: Callable[[EntryPoint], LoadedT]) -> dict[str, LoadedT]:
    """The good entries of a group; the bad ones are named."""
    loaded, faults = load_all(group, load)
    for fault in faults:
        warn(fault)
    return loaded


def _source(point: EntryPoint) -> _Source:
    """An entry point of lenses names the module of the function of its own name, any other one a function."""
    function = point.name.replace("-", "_") if point.group == LENSES else point.attr
    return _Source(point, function, docstring(point.module, function))


def _maker(source: _Source) -> Callable[[], Callable[..., Any]]:
    """What makes the command of an entry point: of a function of a run or a sweep, or it is what is named."""

    def make() -> Callable[..., Any]:
        read = source.use(signature)
        if opens(read):
            return command_of(lambda: source.use(imported), read, source.doc, source.function)
        if source.point.group == LENSES:
            raise QflError(
                f"{source.point.value}: the first parameter of {source.function!r} must be Checkpoints or Run."
            )
        return load_entry_point(source.point.group, source.point.name)

    return make


def _help(source: _Source) -> str:
    """A docstring without its sections, but for examples of the command line; markup is a command's own."""
    parts = {title: re.sub(r"(?<!\n)\n(?=\S)", " ", text) for title, text in sections(source.doc).items()}
    titles = [title for title in ("Example", "Examples") if parts.get(title, "").startswith("`qfl ")]
    text = "\n\n".join([parts[""], *(f"{title}: {parts[title]}" for title in titles)])
    return escape(text) if source.point.group == LENSES else text


class _OnDemand(typer.core.TyperCommand):
    """A command that is made when its options are asked for: the list of all commands needs those of none."""

    def __init__(self, name: str | None, *, callback: Callable[[], Callable[..., Any]], **settings: Any) -> None:
        super().__init__(name, **settings)
        del self.params, self.callback  # found below
        self.make = callback

    @functools.cached_property
    def _made(self) -> Any:
        app = typer.Typer(add_completion=False)
        app.command(self.name)(self.make())
        return typer.main.get_command(app)

    @functools.cached_property
    def params(self) -> Any:  # type: ignore[override]
        """The options and arguments."""
        return self._made.params

    @functools.cached_property
    def callback(self) -> Any:  # type: ignore[override]
        """What it calls."""
        return self._made.callback
