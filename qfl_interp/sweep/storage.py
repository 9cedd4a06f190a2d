"""The folder of a sweep, on this machine or on shared storage: a local path, NFS, s3://... through fsspec."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from qfl_interp.errors import QflError, StorageError
from qfl_interp.runs.checkpoint import storage_error, write_atomic
from qfl_interp.runs.folder_lock import LOCK, OWNER, FolderLock
from qfl_interp.sweep.mirror import mirrored, pull
from qfl_interp.sweep.remote import RemoteFolder
from qfl_interp.sweep.remote_lock import LOCK_FILE, RemoteLock

# Which extra of this package brings what a protocol needs.
_EXTRAS = {"s3": "s3", "s3a": "s3"}
PUSH_SECONDS = 60.0


class Storage:
    """A sweep's folder; paths are relative to it, with slashes.

    Attributes:
        folder: As given.
        is_local: Whether runs train in place.
        filesystem: The fsspec file system, for readers of Parquet
            (`pyarrow.parquet.ParquetDataset(f"{root}/results", filesystem=filesystem)`).
        root: The folder's path in it.

    Raises:
        QflError: The URL's protocol is unknown, or the package it needs is not installed.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.filesystem, root = _open(folder)
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        self._remote = RemoteFolder(self.filesystem, self.root, folder.rstrip("/"))

    @property
    def local_path(self) -> Path:
        """The folder on this machine; only where `is_local`."""
        assert self.is_local, f"{self.folder} is not local"
        return Path(self.root or "/")

    def require_writable(self) -> None:
        """Write a small file and delete it.

        Raises:
            StorageError: That fails; says why.
        """
        name = f".tmp-probe-{uuid.uuid4().hex[:8]}"
        self.write_bytes(name, b"qfl_interp")
        self.remove(name)

    def read_bytes(self, path: str) -> bytes:
        """The contents of a file.

        Raises:
            FileNotFoundError: It is not there.
            StorageError: The storage cannot be read, or a folder is in the file's place.
        """
        if not self.is_local:
            return self._remote.read(path)
        with _told_reading(self.local_path / path):
            return (self.local_path / path).read_bytes()

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all, replacing one that is there; its folders are made.

        Raises:
            StorageError: The storage is full or cannot be written; says why.
        """
        if not self.is_local:
            return self._remote.write(path, data)
        file = self.local_path / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(str(storage_error(error, file))) from error
        try:
            write_atomic(file, data)
        except QflError as error:
            raise StorageError(str(error)) from error

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return (self.local_path / path).exists() if self.is_local else self._remote.exists(path)

    def names(self) -> list[str]:
        """The sorted names of the files and folders in it, locks and half-written files left out."""
        if self.is_local:
            with _told_reading(self.local_path):
                found = sorted(p.name for p in self.local_path.iterdir()) if self.local_path.is_dir() else []
        else:
            found = self._remote.names()
        return [name for name in found if name not in (LOCK, OWNER, LOCK_FILE) and not name.startswith(".tmp-")]

    def existing_parent(self) -> Path:
        """The folder itself if it is there, else the nearest one above it that is; only where `is_local`."""
        here = self.local_path
        return next(path for path in (here, *here.parents) if path.is_dir())

    def glob(self, pattern: str) -> list[str]:
        """The sorted paths that match a pattern ("results/task=*/part-*.parquet").

        Raises:
            StorageError: A folder on the way is none, or cannot be listed.
        """
        if not self.is_local:
            return self._remote.glob(pattern)
        here = self.local_path
        with _told_reading(here):
            return sorted(found.relative_to(here).as_posix() for found in _matching(here, pattern.split("/")))

    def remove(self, path: str) -> None:
        """Delete a file, if it is there.

        Raises:
            StorageError: It cannot be deleted.
        """
        if not self.is_local:
            return self._remote.remove(path)
        try:
            (self.local_path / path).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(str(storage_error(error, self.local_path / path))) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        """Keep other sweeps off the folder: one at a time.

        A local lock is the operating system's and goes with the process. A remote one is a file that is renewed every
        30 s, and free 90 s after its owner died.

        Yields:
            A function to call now and then, which raises `QflError` if the lock was lost: deleted, or another's.

        Raises:
            QflError: Another sweep is running there.
            StorageError: The storage cannot be written.
        """
        if not self.is_local:
            with RemoteLock(self._remote) as held:
                yield held.check
            return
        with FolderLock(self.local_path, "another sweep is running on") as held:
            yield held.check

    def pull_run(self, path: str, into: Path) -> None:
        """Download the run in `path`, if there is one; of its checkpoints only whole ones. Not for local storage.

        Raises:
            StorageError: The storage cannot be read.
        """
        assert not self.is_local
        pull(self._remote, path, into)

    @contextlib.contextmanager
    def mirrored(self, path: str, scratch: Path, seconds: float = PUSH_SECONDS) -> Iterator[Path]:
        """A local folder to train the run `path` in.

        For local storage it is the run's own directory. Otherwise it is a copy below `scratch`, pulled first, pushed
        every `seconds` and at the end, also where the body raises; then it is deleted.

        Args:
            path: The run, relative to the sweep's folder.
            scratch: A local folder for copies; may be shared by processes and sweeps.
            seconds: Time between two pushes; what a killed worker did since the last one is computed again.

        Raises:
            QflError: Another process on this machine has a copy of the same run.
            StorageError: The storage cannot be read, or at the end, could not be written.
        """
        if self.is_local:
            yield self.local_path / path
            return
        # Folders of the same name in two sweeps do not meet.
        own = scratch / hashlib.sha256(self._remote.url.encode()).hexdigest()[:8] / path
        with mirrored(self._remote, path, own, seconds) as local:
            yield local


def _matching(folder: Path, pattern: list[str]) -> Iterator[Path]:
    """The paths that match; unlike `Path.glob`, a folder that cannot be listed is an error."""
    if not pattern:
        yield folder
        return
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in fnmatch.filter(names, pattern[0]):
        yield from _matching(folder / name, pattern[1:])


@contextlib.contextmanager
def _told_reading(place: Path) -> Iterator[None]:
    """Turn what the operating system says of a place into a `StorageError`; a missing one stays `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(
            f"{error.filename or place} cannot be read: {error.strerror}. Check what is there and its permissions; "
            "nothing was changed."
        ) from error


def _open(folder: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the folder's path in it."""
    if "://" not in folder:
        return fsspec.filesystem("file"), str(Path(folder).absolute())
    protocol = folder.split("://")[0]
    try:
        return fsspec.core.url_to_fs(folder)
    except ImportError as error:
        extra = f" Run: pip install 'qfl-interp[{_EXTRAS[protocol]}]'." if protocol in _EXTRAS else ""
        raise QflError(f"storage {folder} needs a package that is not installed: {error}.{extra}") from error
    except OSError as error:  # protocols that connect at once
        raise StorageError(f"storage {folder} cannot be reached: {error}. Check its address and yours.") from error
    except ValueError as error:
        raise QflError(
            f"storage {folder} cannot be opened: {error}. Give a local path, or a URL fsspec knows, such as s3://bucket/sweep."
        ) from error
