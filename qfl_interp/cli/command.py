"""A command made of a function of a run or a sweep: signature, docstring and configurations say all there is to say.

A parameter is the option of its name, a configuration among them the options of its fields. Of several values it is an
option of the singular that is repeated, or an argument if it may be given by position; in a configuration, numbers with
commas between them. The docstring's `Args` has the help, and another word where there is one: `n_pairs (--pairs): ...`.
Parameters of one word are one option.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from qfl_interp.cli.output import AsJson, Device, RunPath, SweepFolder, print_json
from qfl_interp.cli.signature import OPENED, Said, said
from qfl_interp.errors import QflError

# From the values of a command's options to what the function gets; None where that is its own default.
Take = Callable[[Mapping[str, Any]], Any]
# Parameters that mean the same to every function.
_COMMON: dict[str, Any] = {
    "features": Annotated[
        list[str] | None, typer.Argument(metavar="[FEATURE]...", help="Features; the task's usual ones by default.")
    ],
    "steps": Annotated[
        str,
        typer.Option(
            "--steps",
            "--step",
            help="all, last, log:20, every:100, 130, or 1000,2000; for verdicts also auto.",
        ),
    ],
    "jobs": Annotated[int, typer.Option("--jobs", "-j", help="Checkpoints at a time, each in a process of its own.")],
    "device": Device,
}
_RUNS_AND_FEATURES = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]... [FEATURE]...",
        help="More runs, which are compared with the first; and features, the task's usual ones by default.",
    ),
]
_REPLAY = Annotated[
    int | None,
    typer.Option(
        min=1, help="Look at every so many steps; training repeats those that it did not save, to the same bits."
    ),
]
_ENDINGS = "A page (.html), a picture (.png, .svg, .pdf), or plotly's .json."
_WIDTH = Annotated[
    float | None, typer.Option(help="Inches that the figure is wide on paper: 3.3 for a column, 7 for a page.")
]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def opens(read: Signature) -> bool:
    """Whether a command can open the function's first parameter: a run or a sweep."""
    first = next(iter(read.parameters.values()), None)
    return first is not None and bool(_first_opened(first))


def command_of(load: Callable[[], Callable[..., Any]], read: Signature, doc: str, name: str) -> Callable[..., None]:
    """The command of a function, for Typer.

    Args:
        load: Imports the function.
        read: Its signature; the first parameter is a run or a sweep.
        doc: Its docstring.
        name: Its name; `NAME.html` in the run is the page of a figure.

    Raises:
        QflError: A parameter without a default has a type that no option can give, or an option has two defaults.
    """
    first, *own = read.parameters.values()
    options: dict[str, Parameter] = {}
    texts = said(doc)
    takes = {p.name: _take(options, p, texts.get(p.name, Said())) for p in own}
    if "out" not in takes:
        is_figure = getattr(read.return_annotation, "__name__", read.return_annotation) == "Figure"
        text = f"The page; {name}.html in the run by default." if is_figure else "Also draw the figure into this file."
        options["--out"] = _keyword("out", Annotated[Path | None, typer.Option(help=f"{text} {_ENDINGS}")], None)
        options["--width"] = _keyword("width", _WIDTH, None)
    kind, several = _first_opened(first), any(get_origin(kind) is Sequence for kind in _kinds(first.annotation))
    if several:
        options["features"] = _keyword("features", _RUNS_AND_FEATURES, None)
    subject = _keyword(first.name, SweepFolder if kind == "Sweep" else RunPath, Parameter.empty)
    if kind == "Checkpoints":
        options["--replay"] = _keyword("replay", _REPLAY, None)
    parameters = [subject, *options.values(), _keyword("as_json", AsJson, False)]

    def command(**given: Any) -> None:
        page = None if "out" in takes else given["out"]
        if page is not None:
            _require_file(page, given["width"])
        opened = _open(kind, given[first.name])
        others: list[str] = []
        if several:
            given["features"], others = _runs_among(given["features"] or [], opened)
        values = {parameter: take(given) for parameter, take in takes.items() if take is not None}
        if given.get("replay") is not None:
            from qfl_interp.training.replay import replay

            opened = replay(opened, given["replay"])
        looked_at = [opened, *(_open(kind, path) for path in others)] if others else opened
        found = load()(looked_at, **{parameter: value for parameter, value in values.items() if value is not None})
        beside = functools.partial(_beside, opened, given[first.name], f"{name}.html")
        _show(found, page, beside, width=given.get("width"), as_json=given["as_json"])

    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what inspect reads
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _keyword(name: str, kind: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def _opened(kind: Any) -> str:
    """The name of a class that a command opens by its path; empty for another type."""
    name = getattr(kind, "__name__", "")
    return name if name in OPENED else ""


def _first_opened(first: Parameter) -> str:
    """The name of the class that a command opens for a function's first parameter, or for each of several of it."""
    return next(filter(None, map(_opened, _kinds(first.annotation))), "")


def _runs_among(words: Sequence[str], opened: Any) -> tuple[list[str] | None, list[str]]:
    """Words that name features, None where there are none, and words that name other runs, which have a path."""
    from qfl_interp.runs.opening import is_checkpoints

    paths = [w for w in words if "/" in w or (is_checkpoints(w) and w not in opened.task.features)]
    return [word for word in words if word not in paths] or None, paths


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation allows, but for None."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else [annotation]
    return [kind for kind in kinds if kind is not type(None)]


def _typed(kinds: Sequence[Any]) -> Any:
    """The type of one value on the command line: a path before words before text and numbers; None if there is none."""
    paths = [Path for kind in kinds if kind is Path or _opened(kind)]
    words = [kind for kind in kinds if get_origin(kind) is Literal]
    return next(iter([*paths, *words, *(kind for kind in kinds if kind in (bool, int, float, str))]), None)


def _take(options: dict[str, Parameter], own: Parameter, text: Said) -> Take | None:
    """Add the options of a parameter; None where it has none."""
    config = next((kind for kind in _kinds(own.annotation) if dataclasses.is_dataclass(kind)), None)
    if config is not None:
        return _configuration(options, own, config, text)
    if own.name == "progress":
        options["--quiet"] = _keyword("quiet", _QUIET, False)
        return lambda given: not given["quiet"]
    if own.name in _COMMON:
        options[own.name] = _keyword(own.name, _COMMON[own.name], own.default)
        return lambda given: given[own.name]
    return _option(options, own, text)


def _configuration(options: dict[str, Parameter], own: Parameter, config: Any, text: Said) -> Take:
    """Add the options of a configuration's fields, and a switch where its absence means that something is not done."""
    switch = None
    if own.default is None and own.name != "config":
        switch = _option(options, own.replace(annotation=bool, default=False), text)
    kinds, texts, takes = get_type_hints(config), said(config.__doc__), {}
    for field in dataclasses.fields(config):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = getattr(own.default, field.name, default)
        parameter = _keyword(
            field.name, kinds[field.name], Parameter.empty if default is dataclasses.MISSING else default
        )
        takes[field.name] = _option(options, parameter, texts.get(field.name, Said()), by_commas=True)

    def take(given: Mapping[str, Any]) -> Any:
        if switch is not None and not switch(given):
            return None
        values = {name: take(given) for name, take in takes.items() if take is not None}
        return config(**{name: value for name, value in values.items() if value is not None})

    return take


def _option(options: dict[str, Parameter], own: Parameter, text: Said, *, by_commas: bool = False) -> Take | None:
    """Add the option of a parameter, or none where its type is none of the command line's."""
    several = [get_args(kind)[0] for kind in _kinds(own.annotation) if get_origin(kind) in (list, tuple, Sequence)]
    kinds = _kinds(several[0] if several else own.annotation)
    kind, default = _typed(kinds), own.default
    if kind is None and default is Parameter.empty:
        raise QflError(f"no option can give the parameter {own.name!r}: it needs a default.")
    if kind is None:
        return None
    repeated, typed = bool(several) and not by_commas, kind | None if default is None else kind
    if several:
        typed, default = (list[kind] | None, None) if repeated else (str, ",".join(map(str, default or ())))
    # `labels` is said once for each, --label 3 --label 4; `sharpness` is no plural.
    singular = own.name if own.name.endswith("ss") else own.name.removesuffix("s")
    spelled = (singular if repeated else own.name).replace("_", "-")
    word, *others = text.words or (f"--{spelled}",)
    switch = f"{word}/--no-{word[2:]}" if kind is bool and default is True else word
    info: Any = typer.Option(switch, *others, help=escape(text.text))
    if several and own.kind is not Parameter.KEYWORD_ONLY:
        info = typer.Argument(metavar=f"[{spelled.upper()}]...", help=escape(text.text))
    added = _keyword(own.name, Annotated[typed, info], default)
    option = options.setdefault(word, added)
    if option is not added:
        if option.default != default:
            raise QflError(f"{word} would have two defaults, {option.default!r} and {default!r}.")
        (shared,) = option.annotation.__metadata__
        shared.help = " ".join(dict.fromkeys([shared.help, info.help]))
    opened = next(filter(None, map(_opened, kinds)), None)

    def take(given: Mapping[str, Any]) -> Any:
        value = given[option.name]
        if several and not repeated:
            return _numbers(word, value, kind) or None
        if repeated:
            return [_open(opened, one) if opened else one for one in value or ()] or None
        return _open(opened, value) if opened and value else value

    return take


def _numbers(word: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"{word} must be numbers with commas between them, got {text!r}. Try 0.01,1,100.") from error


def _open(kind: str, path: Any) -> Any:
    """The run, suite or sweep at a path."""
    if kind == "Sweep":
        from qfl_interp.sweep import Sweep

        return Sweep.open(path)
    if kind == "Checkpoints":
        from qfl_interp.runs.opening import open_checkpoints

        return open_checkpoints(path)
    from qfl_interp.runs.run import Run

    return Run.open(path)


def _beside(opened: Any, path: Any, name: str) -> Path:
    """Where a page goes that no `--out` names: beside what it shows."""
    return opened.page(name) if hasattr(opened, "page") else Path(path, name)


def _show(found: Any, page: Path | None, default: Callable[[], Path], *, width: float | None, as_json: bool) -> None:
    """A result's summary for people, every row for programs, its figure on a page; where a figure or a page is."""
    if hasattr(found, "write_html"):
        found = _write(found, page or default(), width)
    if isinstance(found, Path):
        print_json({"page": found}) if as_json else print(f"wrote {found}")
        return
    tables = getattr(found, "tables", None)
    if not as_json:
        print(found)
    elif tables is None:
        print_json(found.to_dataframe().to_dict("records"))
    else:
        print_json({name: table.to_dict("records") for name, table in tables().items()})
    if page is not None:
        page = _write(found.plot(), page, width)
        if not as_json:
            print(f"wrote {page}")


def _require_file(file: Path, width: float | None) -> None:
    """Raise `QflError` unless a figure can be written there: before anything is computed."""
    from qfl_interp.report.saving import require_figure_file

    try:
        require_figure_file(file, width)
    except ValueError as error:
        raise QflError(str(error)) from error


def _write(figure: Any, file: Path, width: float | None) -> Path:
    """The figure as what the file's ending says."""
    from qfl_interp.report.saving import save_figure

    return save_figure(figure, file, width_inches=width)
