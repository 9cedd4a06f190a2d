"""The runs, suite files and sweeps below a folder, and how far each run is: found and read without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.runs.config import CONFIG_FILE, METRICS_FILE, is_foreign_config

Kind = Literal["run", "suite", "sweep"]
# Of suite files that are listed.
SUITE_SUFFIX: Final = ".suite"
_SWEEP_FILE: Final = "sweep.json"
# What lies in a run's folder and holds no run: thousands of files that need no look.
_INSIDE: Final = {"checkpoints", "resume", "analyses", "activations", "jobs"}
# Enough of a metrics file's end to hold its last line.
_TAIL_BYTES: Final = 4096


class Place(NamedTuple):
    """Something that can be looked at.

    Attributes:
        kind: What it is.
        path: The folder of a run or a sweep, the file of a suite.
    """

    kind: Kind
    path: Path


def places(folder: Path) -> list[Place]:
    """Every run, suite file and sweep below a folder, at any depth, by path; a folder that cannot be read is empty.

    A folder with metrics and without a configuration is a damaged run.
    """
    return sorted(_below(folder), key=lambda place: place.path)


def _below(folder: Path) -> Iterator[Place]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError:
        return
    names = {entry.name for entry in entries}
    is_run = METRICS_FILE in names or (CONFIG_FILE in names and not is_foreign_config(folder / CONFIG_FILE))
    if is_run:
        yield Place("run", folder)
    elif _SWEEP_FILE in names:
        yield Place("sweep", folder)
    for entry in entries:
        if entry.name.endswith(SUITE_SUFFIX) and entry.is_file():
            yield Place("suite", Path(entry.path))
        elif entry.is_dir(follow_symlinks=False) and not (is_run and entry.name in _INSIDE):
            yield from _below(Path(entry.path))


def last_metrics(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics file, without reading the rest; empty where there is none.

    Raises:
        QflError: The file or the row cannot be read; names the file.
    """
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")
        row = json.loads(lines[-2]) if len(lines) > 1 else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise QflError(f"{path} is damaged: {error}. `qfl verify {path.parent}` says more.") from error
    shown = ("step", "flops", "val_loss", "val_exact")
    if not isinstance(row, dict) or any(type(row[name]) not in (int, float) for name in shown if name in row):
        raise QflError(f"{path} is damaged: its last row is none. `qfl verify {path.parent}` says more.")
    return row
