"""Which of several runs differ by seed alone, and what each line over them is called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qfl_interp.errors import QflError
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints

# A line is named by at most so many settings; else by the folder.
_MOST_SETTINGS: Final = 3
# Follow from other settings and from the seed's own examples.
_DERIVED: Final = ("n_ctx_real", "last_step", "n_train")


@dataclass(frozen=True)
class Group:
    """Runs that differ by seed alone, in the order of their seeds; most often one.

    Attributes:
        name: Of its line; another one for each group.
        runs: At least one.
    """

    name: str
    runs: tuple[Checkpoints, ...]

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [int(run.identity()["seed"]) for run in self.runs]


def grouped(runs: Sequence[Checkpoints]) -> list[Group]:
    """The runs in groups of those whose configuration differs by `train.seed` alone, in the order of the first ones.

    Forks are compared by their parents' configuration where the parents are among the runs; else two forks of different
    runs are two groups. Nothing is known of what trained a suite or a recorded run: each is a group of its own.

    Raises:
        QflError: There is no run, one is given twice, or they are of several tasks or their losses in several units.
    """
    _require_comparable(runs)
    by_id = {run.run_id: run for run in runs if _config_known(run)}
    found: dict[str, list[Checkpoints]] = {}
    for index, run in enumerate(runs):
        key = _settings(run, by_id) if _config_known(run) else {"alone": index}
        found.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    members = [sorted(own, key=lambda run: run.identity()["seed"]) for own in found.values()]
    names = _names([own[0] for own in members], [len(own) for own in members])
    return [Group(name, tuple(own)) for name, own in zip(names, members, strict=True)]


def task_of(runs: Sequence[Checkpoints]) -> str:
    """The task of runs that are compared and its lengths, in words."""
    lengths = dict.fromkeys(run.config.length if isinstance(run, Run) else run.task.length for run in runs)
    return f"{_task_name(runs[0]).replace('_', ' ')} {', '.join(map(str, lengths))}"


def _require_comparable(runs: Sequence[Checkpoints]) -> None:
    """Raise `QflError` for runs that cannot be drawn over each other."""
    if not runs:
        raise QflError("compare needs at least one run, got none.")
    seen: dict[tuple[str, Path | None], Checkpoints] = {}
    for run in runs:
        key = (run.run_id, None if _config_known(run) else run.path)
        if key in seen:
            raise QflError(
                f"each run may be compared once, got {run.run_id} twice: {seen[key].path} and {run.path}. "
                "Leave one out."
            )
        seen[key] = run
    for what, of in (("one task", _task_name), ("losses in one unit", lambda run: run.loss_unit)):
        values: dict[str, list[str]] = {}
        for run in runs:
            values.setdefault(of(run), []).append(str(run.path))
        if len(values) > 1:
            said = "; ".join(f"{value} ({', '.join(paths)})" for value, paths in values.items())
            raise QflError(f"runs on one axis must have {what}, got {said}. Compare them apart.")


def _task_name(run: Checkpoints) -> str:
    """Of its task, which a run does not load for it."""
    return run.config.task if isinstance(run, Run) else run.task.name


def _config_known(run: Checkpoints) -> bool:
    """Whether its configuration says how it was trained."""
    return isinstance(run, Run) and run.config.recorded is None


def _settings(run: Checkpoints, by_id: Mapping[str, Checkpoints]) -> dict[str, Any]:
    """All that decides a run's numbers but its seed, and a fork's parent's likewise."""
    assert isinstance(run, Run)
    values = {name: value for name, value in run.config.to_dict().items() if name not in _DERIVED}
    values["train"] = {name: value for name, value in values["train"].items() if name != "seed"}
    if values["start"] and (parent := by_id.get(values["start"]["run_id"])):
        values["start"] = {"parent": _settings(parent, by_id), "step": values["start"]["step"]}
    return values


def _names(first: Sequence[Checkpoints], sizes: Sequence[int]) -> list[str]:
    """A name for the group of each of these runs: the few settings that differ, or the folders."""
    if all(_config_known(run) and not run.does_otherwise for run in first):
        flat = [_flat(_settings(run, {})) for run in first]
        paths = dict.fromkeys(path for one in flat for path in one)
        differ = [path for path in paths if len({json.dumps(one.get(path)) for one in flat}) > 1]
        if 0 < len(differ) <= _MOST_SETTINGS and not any(path.startswith("start") for path in differ):
            return [", ".join(_setting(path, one.get(path)) for path in differ) for one in flat]
    folders = [run.path.name for run in first]
    if len(set(folders)) < len(folders):
        folders = [f"{run.path.parent.name}/{run.path.name}" for run in first]
    if len(set(folders)) < len(folders):
        folders = [str(run.path) for run in first]
    pairs = zip(folders, first, strict=True)
    named = [f"{name}: {run.does_otherwise}" if run.does_otherwise else name for name, run in pairs]
    return [f"{name} and {size - 1} more" if size > 1 else name for name, size in zip(named, sizes, strict=True)]


def _setting(path: str, value: Any) -> str:
    """A setting in a few words: "lr 0.001"."""
    return f"{path.rpartition('.')[2]} {f'{value:g}' if isinstance(value, float) else value}"


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by the path to each."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{above}.{name}" if above else name
        found |= _flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found
