"""A small JSON file that names a suite: its checkpoints, its dataset or task, and where its tables lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qfl_interp.data.fixed_task import FixedTask
from qfl_interp.data.registry import load_task
from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.files import local_path, read_json, write_atomic
from qfl_interp.runs.suite import Suite

FORMAT, VERSION = "qfl_interp suite", 1
_ADVICE = "Write it again with `qfl suite open`."
# What `Suite.open` and `Suite.from_hub` are called with, beside the place, the task and `out`.
_SETTINGS = {
    "folder": {"config", "pattern", "tokens_per_step", "seed"},
    "repo": {"steps", "stage", "pattern", "history", "tokens_per_step", "seed"},
}


def write_suite_file(
    path: str | Path,
    *,
    folder: str | Path | None = None,
    repo: str | None = None,
    dataset: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
    tables: str | Path | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> Suite:
    """Open a suite and write the file that opens it again.

    Paths inside the folder of the file are kept relative to it, so that both can move together. Of a repository the
    steps are kept that there are now, so that the suite stays what it is when others are added.

    Args:
        path: The file.
        folder: Holds the checkpoints.
        repo: Or the hub repository that does.
        dataset: A file of `FixedTask.save`.
        task: Or a registered task: "name", "length" (None: its usual one) and "options".
        tables: Where tables lie; by default `qfl_interp` in the folder, or beside the file for a repository.
        config: The JSON file of a `HookedTransformer`'s configuration, where the folder holds its state dicts.
        **settings: Of `Suite.open` or `Suite.from_hub`; those that are None are left out.

    Raises:
        QflError: The suite cannot be opened, the dataset not be read, or the file not be written.
        ValueError: Not exactly one of folder and repo, and of dataset and task, is given.
    """
    file = local_path(path).absolute()
    for one, other, names in ((folder, repo, "a folder and a repository"), (dataset, task, "a dataset and a task")):
        if (one is None) == (other is None):
            raise ValueError(f"a suite needs one of {names}, got {'neither' if one is None else 'both'}.")
    home = file.parent
    values: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    values |= {"folder": _kept(folder, home)} if folder is not None else {"repo": repo}
    if dataset is not None:
        values["dataset"] = {"path": _kept(dataset, home), "digest": FixedTask.load(dataset).digest}
    else:
        assert task is not None
        values["task"] = {"length": None, "options": {}, **task}
    values |= {} if tables is None else {"tables": _kept(tables, home)}
    values |= {} if config is None else {"config": _kept(config, home)}
    values |= {name: value for name, value in settings.items() if value is not None}
    suite = _opened(values, file, progress=True)
    values |= {} if repo is None else {"steps": suite.steps}
    write_atomic(file, json.dumps(values, indent=1).encode())
    return suite


def open_suite_file(path: str | Path) -> Suite:
    """The suite that a file names.

    Raises:
        QflError: The file cannot be read or is none of a suite; the dataset was changed since; or as `Suite.open`.
    """
    file = local_path(path).absolute()
    try:
        values: dict[str, Any] = read_json(file, dict, _ADVICE)
    except FileNotFoundError as error:
        raise QflError(f"{file} does not exist. {_ADVICE}") from error
    if values.get("format") != FORMAT or values.get("version") != VERSION:
        raise QflError(f"{file} is no suite file of this version of qfl_interp (suite format {VERSION}). {_ADVICE}")
    return _opened(values, file, progress=False)


def _kept(path: str | Path, home: Path) -> str:
    """A path as the file keeps it."""
    absolute = local_path(path).absolute()
    return str(absolute.relative_to(home)) if absolute.is_relative_to(home) else str(absolute)


def _opened(values: Mapping[str, Any], file: Path, *, progress: bool) -> Suite:
    """The suite of a file's values; whatever is wrong with them names the file."""
    home, kind = file.parent, "folder" if "folder" in values else "repo"
    known = {"format", "version", "folder", "repo", "dataset", "task", "tables"} | _SETTINGS[kind]
    if unknown := sorted(set(values) - known):
        raise QflError(f"{file} has entries that a suite of a {kind} does not take: {unknown}. {_ADVICE}")
    settings = {name: values[name] for name in values if name in _SETTINGS[kind]}
    tables = home / values["tables"] if "tables" in values else None
    task = _task(values, file)
    try:
        if kind == "folder":
            settings |= {"config": home / values["config"]} if "config" in values else {}
            return Suite.open(home / values["folder"], task, out=tables, **settings)
        out = tables or home / "qfl_interp"
        return Suite.from_hub(values["repo"], task, out=out, progress=progress, **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise QflError(f"{file} does not name a suite: {error}. {_ADVICE}") from error


def _task(values: Mapping[str, Any], file: Path) -> Task:
    """The dataset of a file, as it was when the file was written, or its registered task."""
    try:
        if "task" in values:
            return load_task(values["task"]["name"], values["task"]["length"], **values["task"]["options"])
        dataset, digest = file.parent / values["dataset"]["path"], values["dataset"]["digest"]
    except (KeyError, TypeError) as error:
        raise QflError(f"{file} names neither a dataset nor a task: {error!r}. {_ADVICE}") from error
    task = FixedTask.load(dataset)
    if task.digest != digest:
        raise QflError(
            f"{dataset} is another dataset than when {file} was written (digest {task.digest}, then {digest}). Restore "
            "it, or write a suite file of this one with `qfl suite open`."
        )
    return task
