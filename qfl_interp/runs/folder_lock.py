"""One writer at a time in a folder of this machine: the operating system's lock, and who holds it."""

from __future__ import annotations

import json
import os
import socket
import uuid
from pathlib import Path
from typing import Any

import filelock

from qfl_interp.errors import QflError
from qfl_interp.runs.checkpoint import storage_error, write_atomic

LOCK, OWNER = ".lock", ".owner.json"
_ADVICE = "Wait for it, or use another folder; nothing was changed."


class FolderLock:
    """The lock of a local folder; use as a context manager. `busy` says what another holder does there.

    The lock goes with the process, however it ends. Somebody may delete its file meanwhile: then its holder sees that
    at the next `check`, and another process of this machine sees the holder in `.owner.json`. (What is on another
    machine, or where the system does not tell when a process started, only the first sees.)

    Raises:
        QflError: On entering: another process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path, busy: str) -> None:
        self._folder, self._busy = folder, busy
        self._lock = filelock.FileLock(folder / LOCK, timeout=0)
        self._owner = {"id": uuid.uuid4().hex, **process_mark(os.getpid())}
        self._file: tuple[int, int] | None = None

    def __enter__(self) -> FolderLock:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout as error:
            raise QflError(f"{self._busy} {self._folder}. {_ADVICE}") from error
        except OSError as error:
            raise storage_error(error, self._folder) from error
        try:
            self._claim()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if _read(self._folder / OWNER) == self._owner:
            (self._folder / OWNER).unlink(missing_ok=True)
        self._lock.release()

    def check(self) -> None:
        """Raise if the lock's file is not the one that was locked.

        Raises:
            QflError: It was deleted or replaced.
        """
        if _identity(self._folder / LOCK) != self._file:
            raise QflError(
                f"the lock of {self._folder} was lost: its file {LOCK} was deleted or replaced, so that another "
                "process may write there. This one stops; what it saved is intact. Call it again to go on."
            )

    def _claim(self) -> None:
        """Say who holds the lock, unless that is another process that runs."""
        other = _read(self._folder / OWNER)
        if other is not None and runs(other):
            raise QflError(
                f"{self._busy} {self._folder}: process {other['pid']} of this machine, though its file {LOCK} was "
                f"deleted. {_ADVICE}"
            )
        write_atomic(self._folder / OWNER, json.dumps(self._owner).encode())
        self._file = _identity(self._folder / LOCK)


def process_mark(pid: int) -> dict[str, Any]:
    """What names a process of this machine among all that it ever has: `pid`, `host`, `started`."""
    return {"pid": pid, "host": socket.gethostname(), "started": _started(pid)}


def runs(owner: dict[str, Any]) -> bool:
    """Whether the process of a mark is known to run on this machine."""
    pid, started = owner.get("pid"), owner.get("started")
    if owner.get("host") != socket.gethostname() or type(pid) is not int or started is None:
        return False
    return _started(pid) == started


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None where the system does not say, or it has ended."""
    try:
        # The name, in parentheses, may hold spaces; of the fields after it the first is the state, the twentieth the
        # start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # ended, only that nobody has asked how
    except (OSError, IndexError):
        return None


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at a path, whatever its contents."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _read(path: Path) -> dict[str, Any] | None:
    """The owner that a file names; None where it names none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_claimed(folder: Path) -> bool:
    """Whether the folder names a process of this machine that writes there and still runs; the lock is not touched."""
    owner = _read(folder / OWNER)
    return owner is not None and runs(owner)


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder's lock at this moment."""
    if is_claimed(folder):
        return True
    if not (folder / LOCK).exists():
        return False
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # in a folder of somebody else's
        return False
