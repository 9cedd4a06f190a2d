"""Scratch folders that a killed process leaves behind for a day at most: each is locked for as long as it is used."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from qfl_interp.runs.checkpoint import A_DAY

_LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, deleted at the end; older ones of this prefix that no process uses any more go first."""
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_dead(old)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with filelock.FileLock(folder / _LOCK):
            yield folder


def _remove_dead(folder: Path) -> None:
    """Delete a scratch folder that is a day old and whose lock nobody holds."""
    with contextlib.suppress(OSError, filelock.Timeout):  # it is in use, another user's, or just deleted
        if not folder.is_symlink() and time.time() - folder.stat().st_mtime > A_DAY:
            with filelock.FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
