"""Where results of a run go whose own folder cannot be written: a folder of the user's.

It is `$QFL_HOME`, by default `~/.qfl_interp`, and in it one sub-folder a run: its id, and a digest of where it lies.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from multiprocessing.context import SpawnContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from qfl_interp.digests import digest
from qfl_interp.runs.checkpoint import storage_error
from qfl_interp.runs.table import Table

if TYPE_CHECKING:
    from torch import Tensor

HOME = "QFL_HOME"
# The place that was said in this process: once is enough.
_SAID: list[Path] = []
# In a worker, what says to all processes of the call whether one of them said it.
_SHARED: list[Synchronized[int]] = []


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder: in one that is not there yet, once it is made.

    False on a file system that is mounted read-only, whoever asks.
    """
    return os.access(next(path for path in (folder, *folder.parents) if path.exists()), os.W_OK | os.X_OK)


def home() -> Path:
    """The user's folder: `$QFL_HOME`, by default `~/.qfl_interp`."""
    return Path(os.environ.get(HOME) or Path.home() / ".qfl_interp").absolute()


def workplace(folder: Path, run_id: str) -> Path:
    """The folder that results of the run in `folder` are written to: its own, or the user's for it."""
    own = folder.absolute()
    if is_writable(own):
        return folder
    return home() / f"{quote(run_id, safe='')}-{digest(str(own.resolve()))}"


def enter(own: Path, place: Path) -> None:
    """Make the folder that is written to, and say so once a process where it is not the run's own.

    Raises:
        QflError: It cannot be made.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, place) from error
    if place != own and _is_first(place):
        text = f"note: {own} cannot be written, so results go to {place} (set {HOME} for another place)."
        print(text, file=sys.stderr)


def _is_first(place: Path) -> bool:
    """Whether nobody said the place yet, here or in the other workers of a call; from now on it counts as said."""
    if _SAID:
        return False
    _SAID.append(place)
    if not _SHARED:
        return True
    with _SHARED[0].get_lock():
        first, _SHARED[0].value = not _SHARED[0].value, 1
    return first


@contextlib.contextmanager
def said_once(processes: SpawnContext) -> Iterator[Synchronized[int]]:
    """Have workers say the place once among them, and this process know it after.

    Yields:
        What each worker gives to `share_said`.
    """
    said = processes.Value("b", bool(_SAID))
    try:
        yield said
    finally:
        if said.value and not _SAID:
            _SAID.append(Path())


def share_said(said: Synchronized[int]) -> None:
    """Make this process one of those that say the place once among them."""
    _SHARED[:] = [said]


class TableElsewhere(Table):
    """The table of a run whose folder cannot be written: parts of its own are read, new ones are the user's.

    Args:
        own: The table in the run's folder.
        folder: Where new parts are written.
    """

    def __init__(self, own: Table, folder: Path) -> None:
        super().__init__(folder, own.run_id, own.weights)
        self._own = own

    def names(self) -> list[str]:
        """As `Table.names`, of both places."""
        return sorted({*self._own.names(), *super().names()})

    def stamp(self, part: str) -> tuple[str, int, int]:
        """As `Table.stamp`, in the run's folder where it is there."""
        return self._own.stamp(part) if self._own.has(part) else super().stamp(part)

    def parts(self) -> list[str]:
        """Names of the parts that are in one of the two places, sorted."""
        return sorted({*self._own.parts(), *super().parts()})

    def has(self, part: str) -> bool:
        """As `Table.has`, in one of the two places."""
        return self._own.has(part) or super().has(part)

    def write(self, part: str, rows: pd.DataFrame, *others: Any, **options: Any) -> None:
        """As `Table.write`, into the user's folder."""
        enter(self._own.folder.parents[1], self.folder.parents[1])
        super().write(part, rows, *others, **options)

    def read_part(self, part: str) -> pd.DataFrame:
        """As `Table.read_part`, from the run's folder where it is there."""
        return self._own.read_part(part) if self._own.has(part) else super().read_part(part)

    def read_tensors(self, part: str) -> dict[str, Tensor]:
        """As `Table.read_tensors`, from the run's folder where it is there."""
        return self._own.read_tensors(part) if self._own.has(part) else super().read_tensors(part)

    def settings(self) -> list[dict[str, Any]]:
        """As `Table.settings`, of both places."""
        return self._own.settings() + super().settings()

    def verify(self) -> list[str]:
        """As `Table.verify`, of both places."""
        return self._own.verify() + super().verify()
