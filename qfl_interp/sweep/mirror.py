"""A run that trains on this machine and is kept on remote storage: pulled first, pushed now and then and at the end.

What is remote can be resumed at any moment, also where a push was killed half-way: a checkpoint's manifest is uploaded
after its other files, checkpoints in the order of their steps and resume points after all of them, and an older resume
point is deleted only when a newer one is there.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import filelock

from qfl_interp.errors import QflError, StorageError
from qfl_interp.runs.checkpoint import MANIFEST, parse_step
from qfl_interp.runs.config import CONFIG_FILE, RunConfig
from qfl_interp.runs.folder_lock import LOCK, OWNER
from qfl_interp.runs.run import CHECKPOINTS
from qfl_interp.sweep.remote import RemoteFolder

_RESUME, _TEMPORARY = "resume", ".tmp-"


class _Point(NamedTuple):
    """A checkpoint or a resume point."""

    folder: str
    step: int
    name: str


def _point(name: str) -> _Point | None:
    """The checkpoint or resume point that a path in a run lies in, None where it lies in none."""
    parts = PurePosixPath(name).parts
    if len(parts) < 2 or parts[0] not in (CHECKPOINTS, _RESUME):
        return None
    step = parse_step(parts[1])
    return None if step is None else _Point(parts[0], step, f"{parts[0]}/{parts[1]}")


def _is_private(name: str) -> bool:
    """Locks and half-written files: no part of a run."""
    return any(part in (LOCK, OWNER) or part.startswith(_TEMPORARY) for part in PurePosixPath(name).parts)


def pull(remote: RemoteFolder, path: str, into: Path) -> None:
    """Download a run directory, without checkpoints that were never uploaded whole; nothing where there is none.

    The local folder `into` is empty or not there.

    Raises:
        StorageError: The storage cannot be read.
    """
    there = remote.find(path)
    wanted = {}
    for name in there:
        point = _point(name)
        if not _is_private(name) and (point is None or f"{point.name}/{MANIFEST}" in there):
            wanted[f"{path}/{name}"] = str(into / name)
            (into / name).parent.mkdir(parents=True, exist_ok=True)
    remote.download(wanted)


class Pusher:
    """Uploads one run directory again and again, each time what is new."""

    def __init__(self, remote: RemoteFolder, path: str, source: Path) -> None:
        self._remote, self._path, self._source = remote, path, source
        # What is known to be remote: contents of manifests by point, size and time of other files by name.
        self._sent: dict[str, object] | None = None

    def push(self) -> None:
        """Upload what is new and delete the points that a newer state has replaced.

        Raises:
            StorageError: The storage is full or cannot be written; what was whole there still is.
        """
        there = self._remote.find(self._path)
        # The points are listed before the metrics are read, which then hold the rows of at least these steps.
        points = sorted({p for f in self._source.glob(f"*/*/{MANIFEST}") if (p := _point(self._name(f)))})
        if self._sent is None:
            self._sent = self._whole_remote_points(points, there)
        for name in self._other_files():
            self._send_file(name)
        whole = [point for point in points if self._send_point(point, there)]
        if len(whole) == len(points):
            self._remove_replaced(whole, there)

    def _name(self, file: Path) -> str:
        """A file's path in the run, with slashes."""
        return file.relative_to(self._source).as_posix()

    def _whole_remote_points(self, points: list[_Point], there: dict[str, int]) -> dict[str, object]:
        """The manifests that storage has of the local points."""
        manifests = [f"{point.name}/{MANIFEST}" for point in points]
        wanted = [f"{self._path}/{name}" for name in manifests if name in there]
        found = self._remote.read_many(wanted)
        return {name.removeprefix(f"{self._path}/").removesuffix(f"/{MANIFEST}"): data for name, data in found.items()}

    def _other_files(self) -> list[str]:
        """Everything but points and private files; the configuration first, which makes the directory a run."""
        names = [self._name(file) for file in self._source.rglob("*") if file.is_file()]
        return sorted((n for n in names if not _is_private(n) and not _point(n)), key=lambda n: (n != CONFIG_FILE, n))

    def _send_file(self, name: str) -> None:
        """Upload a file that changed since the last push."""
        assert self._sent is not None
        file = self._source / name
        with contextlib.suppress(FileNotFoundError):  # replaced or deleted meanwhile: the next push sees how it is then
            stat = file.stat()
            state = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            if self._sent.get(name) != state:
                self._remote.write(f"{self._path}/{name}", file.read_bytes())
                self._sent[name] = state

    def _send_point(self, point: _Point, there: dict[str, int]) -> bool:
        """Upload a checkpoint or resume point if storage has another or none; whether it is whole there now."""
        assert self._sent is not None
        folder, remote = self._source / point.name, f"{self._path}/{point.name}"
        try:
            files = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and not _is_private(f.name)}
        except FileNotFoundError:
            return False
        if MANIFEST not in files:
            return False
        same_sizes = all(there.get(f"{point.name}/{name}") == len(data) for name, data in files.items())
        manifest = files.pop(MANIFEST)
        if self._sent.get(point.name) == manifest and same_sizes:
            return True
        if f"{point.name}/{MANIFEST}" in there:
            self._remote.remove(f"{remote}/{MANIFEST}")
        for name, data in files.items():
            self._remote.write(f"{remote}/{name}", data)
        self._remote.write(f"{remote}/{MANIFEST}", manifest)
        self._sent[point.name] = manifest
        return True

    def _remove_replaced(self, whole: list[_Point], there: dict[str, int]) -> None:
        """Delete remote points gone from here: older resume points, and all others once the run is complete."""
        final = RunConfig.read(self._source).last_step if whole else None
        complete = any(p.folder == CHECKPOINTS and p.step == final for p in whole)
        latest = max((p.step for p in whole if p.folder == _RESUME), default=-1)
        gone = {p for name in there if (p := _point(name))} - set(whole)
        for point in gone:
            if complete or (point.folder == _RESUME and point.step < latest):
                names = [name for name in there if name.startswith(f"{point.name}/")]
                # The manifest first: what is deleted half-way is no whole checkpoint.
                for name in sorted(names, key=lambda n: not n.endswith(MANIFEST)):
                    self._remote.remove(f"{self._path}/{name}")
                if self._sent is not None:
                    self._sent.pop(point.name, None)


@contextlib.contextmanager
def mirrored(remote: RemoteFolder, path: str, local: Path, seconds: float) -> Iterator[Path]:
    """A local copy of a remote run to train in.

    What is in `local` of a killed process is deleted; it is gone at the end. `seconds` pass between two pushes.

    Raises:
        QflError: Another process on this machine has the copy.
        StorageError: The storage cannot be read or written; raised at the end for what could not be saved.
    """
    local.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(local.with_name(f"{local.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise QflError(f"another process trains in {local}, a copy of {remote.url}/{path}. Wait for it.") from error
    try:
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir()
        pull(remote, path, local)
        with _pushed(Pusher(remote, path, local), seconds):
            yield local
    finally:
        shutil.rmtree(local, ignore_errors=True)
        lock.release()


@contextlib.contextmanager
def _pushed(pusher: Pusher, seconds: float) -> Iterator[None]:
    """Push every `seconds` and at the end, whether or not the body raises."""
    stop = threading.Event()

    def keep_pushing() -> None:
        while not stop.wait(seconds):
            with contextlib.suppress(StorageError):  # tried again; the last push is the one that counts
                pusher.push()

    thread = threading.Thread(target=keep_pushing, daemon=True, name="qfl-sweep-mirror")
    thread.start()
    try:
        yield
    except BaseException as error:
        stop.set()
        thread.join()
        try:
            pusher.push()
        except StorageError as failed:
            if isinstance(error, Exception):
                raise failed from error
        raise
    stop.set()
    thread.join()
    pusher.push()
