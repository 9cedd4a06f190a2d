"""A run directory that one process writes into: locked while it is open, and of no other run."""

from __future__ import annotations

import abc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from qfl_interp.errors import QflError
from qfl_interp.files import local_path
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import CONFIG_FILE
from qfl_interp.runs.folder_lock import LOCK, OWNER, FolderLock

# What a `with` statement gives: `typing.Self`, which the tests' type checker cannot read.
_Own = TypeVar("_Own", bound="ClaimedFolder")


class ClaimedFolder(abc.ABC):
    """Exclusive write access to a run directory; use as a context manager.

    The lock is the operating system's: it goes with the process, however the process ends. A directory made for work
    that failed before it saved a checkpoint is deleted again.

    `texts` are files that name the run and the text of each, `config.json` the last: a directory that has it is a run.
    A writer that was killed may have left files in its `subfolders`.

    Raises:
        QflError: The path is a URL; or, on entering, the directory holds something else or what `_check` refuses, or
            another process is training into it.
    """

    def __init__(self, path: Path, texts: Mapping[str, bytes], *subfolders: str) -> None:
        self.path = local_path(path)
        self._texts = texts
        self._swept = (path, *(path / name for name in subfolders))
        self._lock = FolderLock(path, "another process is training into")
        self._was_there = self._is_new = False

    def __enter__(self: _Own) -> _Own:
        if self.path.exists() and not self.path.is_dir():
            raise QflError(f"a run is saved into a directory, and {self.path} is a file. Choose another place.")
        if self.path.exists() and not (self.path / CONFIG_FILE).exists():
            self._require_empty()  # before a lock is put there
        self._was_there = self.path.exists()
        self._lock.__enter__()
        try:
            if (self.path / CONFIG_FILE).exists():
                self._check()
            else:
                self._make()
            for folder in self._swept:
                ckpt.remove_leftovers(folder)
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self._is_new and kind is not None and issubclass(kind, Exception):
            self._take_back()
        self._lock.__exit__()
        if self._is_new and not self._was_there and not any(self.path.iterdir()):
            self.path.rmdir()

    def _take_back(self) -> None:
        """Empty the directory that was made for work that has failed, unless something was saved."""
        if any(path.exists() and any(path.iterdir()) for path in self._swept[1:]):
            return
        for path in self.path.iterdir():
            if path.name not in (LOCK, OWNER):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.path / LOCK).unlink(missing_ok=True)

    def require_lock(self) -> None:
        """Raise `QflError` where the lock was lost, before anything is written: its file was deleted or replaced."""
        self._lock.check()

    @abc.abstractmethod
    def _check(self) -> None:
        """Raise `QflError` where the run that is there is another one."""

    def _require_empty(self) -> None:
        """Raise `QflError` where the directory, which holds no run, holds something else."""
        known = (LOCK, OWNER, *self._texts)
        others = sorted(p.name for p in self.path.iterdir() if p.name not in known and not p.name.startswith(".tmp-"))
        if others:
            raise QflError(
                f"{self.path} is not empty and is no run (it holds {', '.join(others[:3])}). "
                "Train into a new directory."
            )

    def _make(self) -> None:
        """Make the directory this run's."""
        self._require_empty()
        self._is_new = True
        for name, text in self._texts.items():
            ckpt.write_atomic(self.path / name, text)
