"""What a sweep is: grids of tasks, sizes, budgets and seeds, read from TOML and checked before anything runs."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from qfl_interp.checked import Options, _int, _options, _plain, _shown
from qfl_interp.config import ModelConfig, TrainConfig
from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.mlp_config import MLPConfig, homogeneous_config
from qfl_interp.model_kinds import AnyModelConfig

# The axes of a grid in the order in which they vary, the last one fastest.
AXES = ("task", "length", "budget_flops", "d_model", "n_layers", "batch_size", "lr", "seed")
_DEFAULT_AXES: dict[str, tuple[Any, ...]] = {"length": (None,), "batch_size": (64,), "lr": (1e-3,), "seed": (0,)}
# A sweep compares final models: few validations on as many examples, and of the checkpoints the first and the last.
_DEFAULT_SETTINGS: dict[str, Any] = {"n_checkpoints": 2, "eval_fraction": 0.1, "n_val": 1_000}
# What tasks are made with beside their length: a table whose entries are axes too.
_OPTIONS = "task_options"
_MODEL = {f.name for f in dataclasses.fields(ModelConfig)} - set(AXES)
_HOMOGENEOUS = {f.name for f in dataclasses.fields(MLPConfig)} - {"width", "depth"}
_TRAIN = {f.name for f in dataclasses.fields(TrainConfig)} - set(AXES) - {"n_steps"}

Keep = Literal["final", "all"]


class Point(NamedTuple):
    """One point of a grid: what to train, before the task says how many steps that is.

    A length of None is the task's default; `train.budget_flops` is the nominal budget; `task_options` are checked when
    the task is made.
    """

    task: str
    length: int | None
    model: AnyModelConfig
    train: TrainConfig
    task_options: Options = Options()


@dataclass(frozen=True)
class Grid:
    """Every combination of its axes.

    Args:
        axes: A tuple of values for each of `AXES`; "length" may hold None, the task's default.
        settings: Other fields of `ModelConfig` and `TrainConfig`, the same at every point; with style "homogeneous"
            those of `MLPConfig`: `d_in` and `d_out`, the length and the classes of the task, and more.
        task_options: Further axes, a tuple of values each: what the tasks are made with beside their length.

    Raises:
        QflError: An axis or a setting is unknown or empty, or a value does not fit.
    """

    axes: Mapping[str, tuple[Any, ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    task_options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Grid:
        """The grid of a table of a sweep file: axes are values or lists of them, all else is a setting."""
        axes, settings, options = dict(_DEFAULT_AXES), dict(_DEFAULT_SETTINGS), {}
        for name, value in values.items():
            if name in AXES:
                axes[name] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
                wanted = str if name == "task" else (int, float)
                words = ("all",) if name == "batch_size" else ()
                strange = [
                    v for v in axes[name] if (not isinstance(v, wanted) or isinstance(v, bool)) and v not in words
                ]
                if strange:
                    kind = "names" if name == "task" else "numbers"
                    raise QflError(f"axis {name!r} of a grid must hold {kind}, got {strange[0]!r}.")
            elif name == _OPTIONS:
                options = _option_axes(value)
            elif name in _MODEL | _HOMOGENEOUS | _TRAIN:
                settings[name] = tuple(value) if isinstance(value, list) else value
            else:
                raise unknown_name("key of a grid", name, [*AXES, _OPTIONS, *_MODEL, *_HOMOGENEOUS, *_TRAIN])
        missing = [name for name in AXES if name not in axes]
        if missing:
            raise QflError(f"a grid must say {', '.join(missing)}, got {', '.join(values) or 'nothing'}.")
        return Grid({name: axes[name] for name in AXES}, settings, options)

    def __post_init__(self) -> None:
        for name, value in (("axes", self.axes), ("settings", self.settings), (_OPTIONS, self.task_options)):
            if not isinstance(value, Mapping):
                raise QflError(f"{name} of a grid must be a table, got {_shown(value)}.")
        if missing := [name for name in AXES if name not in self.axes]:
            raise QflError(f"axes of a grid must hold {', '.join(missing)}, got {', '.join(self.axes) or 'none'}.")
        object.__setattr__(self, _OPTIONS, _option_axes(self.task_options))
        for name, values in [*self.axes.items(), *self.task_options.items()]:
            if not values:
                raise QflError(f"axis {name!r} of a grid must hold at least one value, got none: the grid is empty.")
            if len(set(values)) < len(values):
                raise QflError(f"axis {name!r} of a grid must hold different values, got {list(values)}.")
        for _ in self.points():  # every combination is checked as its configurations are made
            pass

    def points(self) -> Iterator[Point]:
        """Every combination, in the order of `AXES`.

        Raises:
            QflError: A combination is no possible configuration; says which.
        """
        model_settings = {name: value for name, value in self.settings.items() if name in _MODEL | _HOMOGENEOUS}
        train_settings = {name: value for name, value in self.settings.items() if name in _TRAIN}
        axes = [*((name, self.axes[name]) for name in AXES), *self.task_options.items()]
        for values in itertools.product(*(values for _, values in axes)):
            at = {name: value for (name, _), value in zip(axes[: len(AXES)], values[: len(AXES)], strict=True)}
            options = dict(zip(self.task_options, values[len(AXES) :], strict=True))
            try:
                model = _model(d_model=at["d_model"], n_layers=at["n_layers"], **model_settings)
                train = TrainConfig(
                    **{name: at[name] for name in ("budget_flops", "batch_size", "lr", "seed")}, **train_settings
                )
            except (ValueError, TypeError) as error:
                where = ", ".join(f"{name} {value}" for name, value in at.items() if value is not None)
                raise QflError(f"no such run is possible ({where}): {error}") from error
            yield Point(at["task"], at["length"], model, train, Options(options))

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, every default filled in."""
        axes = {name: [v for v in values if v is not None] for name, values in self.axes.items()}
        options = {_OPTIONS: {name: list(values) for name, values in self.task_options.items()}}
        settings = dict(self.settings) | (options if self.task_options else {})
        return {name: values for name, values in axes.items() if values} | settings


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: the runs of several grids, each once.

    Args:
        name: What people call it.
        grids: The grids; a run in several of them is trained once.
        min_steps: Combinations with fewer updates are left out. The paper keeps those of one update, whatever that
            costs: with 1 a budget below one update is one update.
        max_steps: Combinations with more updates are left out; the paper's 100,000.
        keep: "final": of a finished run the final weights and the rows of its validations; "all": every checkpoint and
            every row.

    Raises:
        QflError: There is no grid, or a value does not fit.

    Example:
        >>> config = SweepConfig.from_dict({"name": "tiny", "grid": [
        ...     {"task": "addition", "length": 4, "budget_flops": [1e9, 1e10], "d_model": 16, "n_layers": [2, 4]}]})
        >>> len(list(config.points()))
        4
    """

    name: str
    grids: tuple[Grid, ...]
    min_steps: int = 10
    max_steps: int = 100_000
    keep: Keep = "final"

    def __post_init__(self) -> None:
        for name in ("min_steps", "max_steps"):
            value = _plain(getattr(self, name))
            try:
                object.__setattr__(self, name, _int(value))
            except TypeError as error:
                raise QflError(f"{name} of a sweep must be {error}, got {_shown(value)}.") from error
        for name, fits, what in (
            ("name", isinstance(self.name, str), "a text"),
            ("keep", isinstance(self.keep, str) and self.keep in get_args(Keep), f"one of {get_args(Keep)}"),
            ("grids", _all_grids(self.grids), "a tuple of Grid"),
        ):
            if not fits:
                raise QflError(f"{name} of a sweep must be {what}, got {_shown(getattr(self, name))}.")
        object.__setattr__(self, "name", str(self.name))
        if not self.name.strip(".") or "/" in self.name:
            raise QflError(f"name of a sweep must be a word without '/', got {self.name!r}.")
        if not self.grids:
            raise QflError(f"sweep {self.name!r} has no grid. Add a [[grid]] table with task, budget_flops, ...")
        if not 1 <= self.min_steps <= self.max_steps:
            raise QflError(f"min_steps and max_steps must be 1 <= min <= max, got {self.min_steps}, {self.max_steps}.")

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SweepConfig:
        """The sweep of a parsed file: top-level keys, `defaults` for all grids, a list `grid`.

        Raises:
            QflError: A key is unknown (the nearest are suggested), a grid is empty or a shape impossible.
        """
        known = {f.name for f in dataclasses.fields(SweepConfig)} - {"grids"} | {"grid", "defaults"}
        for name in values:
            if name not in known:
                raise unknown_name("key of a sweep", name, known)
        defaults, tables = values.get("defaults", {}), values.get("grid", [])
        is_list = isinstance(tables, Sequence) and all(isinstance(table, Mapping) for table in tables)
        if not isinstance(defaults, Mapping) or not is_list:
            raise QflError("a sweep's grids are tables [[grid]], and what they share is a table [defaults].")
        for name, kind in (("name", str), ("min_steps", int), ("max_steps", int)):
            if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
                word = "a string" if kind is str else "an integer"
                raise QflError(f"{name} of a sweep must be {word}, got {values[name]!r}.")
        grids = []
        for number, table in enumerate(tables, start=1):
            try:
                grids.append(Grid.from_dict({**defaults, **table}))
            except QflError as error:
                raise QflError(f"grid {number}: {error}") from error
        top = {name: value for name, value in values.items() if name not in ("defaults", "grid")}
        if "name" not in top:
            raise QflError("a sweep must have a name. Begin its file with a line name = ...")
        if top.get("keep", "final") not in get_args(Keep):
            raise QflError(f"keep must be one of {get_args(Keep)}, got {top['keep']!r}.")
        return SweepConfig(grids=tuple(grids), **top)

    @staticmethod
    def from_toml(path: str | Path) -> SweepConfig:
        """The sweep of a TOML file, named after the file where it does not say.

        Raises:
            QflError: The file cannot be read or does not fit; names the file.
        """
        file = Path(path)
        try:
            values = tomllib.loads(file.read_text())
        except FileNotFoundError as error:
            raise QflError(f"{file} does not exist. sweeps/small.toml is one to start from.") from error
        except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
            raise QflError(f"{file} cannot be read as TOML: {error}") from error
        try:
            return SweepConfig.from_dict({"name": file.stem, **values})
        except QflError as error:
            raise QflError(f"{file}: {error}") from error

    def points(self) -> Iterator[Point]:
        """The points of all grids, one after the other."""
        return itertools.chain.from_iterable(grid.points() for grid in self.grids)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, every default filled in."""
        top = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "grids"}
        return {**top, "grid": [grid.to_dict() for grid in self.grids]}

    def digest(self) -> str:
        """Twelve hexadecimal digits that name the definition: the SHA-256 of its sorted JSON."""
        return json_digest(self.to_dict())


def _model(**settings: Any) -> AnyModelConfig:
    """The model of a point. Raises `ValueError` or `TypeError` where a setting does not fit its style."""
    kind = settings.get("style")
    others = {name: value for name, value in settings.items() if name != "style"}
    known = _HOMOGENEOUS | {"d_model", "n_layers"} if kind == MLPConfig.kind else _MODEL | set(AXES)
    if foreign := sorted(others.keys() - known):
        raise ValueError(f"style {kind or 'llama'!r} has no {', '.join(foreign)}. Leave it out.")
    return homogeneous_config(**others) if kind == MLPConfig.kind else ModelConfig(**settings)


def _option_axes(value: Any) -> dict[str, tuple[Any, ...]]:
    """The axes of a table of task options: values, or lists of them, by name."""
    if not isinstance(value, Mapping):
        raise QflError(f"{_OPTIONS} of a grid must be a table, as task_options = {{k = [3, 4]}}, got {_shown(value)}.")
    found: dict[str, tuple[Any, ...]] = {}
    for name, given in value.items():
        values = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        try:
            found[name] = tuple(_options({name: one})[name] for one in values)
        except TypeError as error:
            raise QflError(f"{_OPTIONS} of a grid must be {error}, got {_shown(given)} for {_shown(name)}.") from error
    return found


def _all_grids(value: Any) -> bool:
    """Whether it is a tuple of grids."""
    return isinstance(value, tuple) and all(isinstance(grid, Grid) for grid in value)
