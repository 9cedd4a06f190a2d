"""One folder on remote storage, read and written through fsspec; what goes wrong is told as a `StorageError`."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem

from qfl_interp.errors import StorageError

# File systems that have no folders: what would make one makes a bucket, which is the user's to do.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2"})


class RemoteFolder:
    """A folder of an fsspec file system; paths are relative to it, with slashes.

    One object is written whole or not at all, as object stores do it. Nothing is read from fsspec's listing caches, so
    that what other machines wrote is seen.

    Its `url` is its name in messages; its `root` has no slash at the end.
    """

    def __init__(self, filesystem: AbstractFileSystem, root: str, url: str) -> None:
        self.filesystem, self.root, self.url = filesystem, root, url

    def full(self, path: str) -> str:
        """The path in the file system."""
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> bytes:
        """The contents of a file.

        Raises:
            FileNotFoundError: It is not there.
            StorageError: The storage cannot be read.
        """
        with self._told("reading", path, missing_is_an_error=False):
            data = self.filesystem.cat_file(self.full(path))
        assert isinstance(data, bytes)
        return data

    def read_many(self, paths: list[str]) -> dict[str, bytes]:
        """The contents of the files that are there, by path; several at a time where the file system can."""
        if not paths:
            return {}
        named = {self.full(path): path for path in paths}
        with self._told("reading", ""):
            found = self.filesystem.cat(list(named), on_error="omit")
        assert isinstance(found, dict)
        return {named[name]: data for name, data in found.items()}

    def write(self, path: str, data: bytes) -> None:
        """Write a file, replacing one that is there."""
        with self._told("writing", path):
            self._make_parent(path)
            self.filesystem.pipe_file(self.full(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it is there; whether it was written. File systems without this just write."""
        with self._told("writing", path):
            self._make_parent(path)
            try:
                self.filesystem.pipe_file(self.full(path), data, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError, ValueError):
                self.filesystem.pipe_file(self.full(path), data)
        return True

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        with self._told("reading", path):
            return self._fresh().exists(self.full(path))

    def find(self, path: str) -> dict[str, int]:
        """The size in bytes of every file below `path`, by its path relative to `path`."""
        start = self.full(path)
        with self._told("listing", path):
            try:
                found = self._fresh().find(start, detail=True)
            except FileNotFoundError:
                return {}
        assert isinstance(found, dict)
        sizes = {name.removeprefix(start).lstrip("/"): int(info["size"] or 0) for name, info in found.items()}
        strange = [name for name in sizes if ".." in PurePosixPath(name).parts]
        if strange:
            raise StorageError(f"{self.url}/{path} has a file named {strange[0]!r}, which leads out of it. Remove it.")
        return sizes

    def names(self) -> list[str]:
        """The sorted names of the files and folders in it."""
        with self._told("listing", ""):
            try:
                found = self._fresh().ls(self.root, detail=False)
            except FileNotFoundError:
                return []
        return sorted(
            {str(name).rstrip("/").rpartition("/")[2] for name in found if str(name).rstrip("/") != self.root}
        )

    def glob(self, pattern: str) -> list[str]:
        """The sorted paths that match a pattern."""
        with self._told("listing", pattern):
            found = self._fresh().glob(f"{glob.escape(self.root)}/{pattern}")
        return sorted(str(name).removeprefix(self.root).lstrip("/") for name in found)

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""
        with self._told("deleting", path), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.full(path))

    def download(self, files: dict[str, str]) -> None:
        """Copy files to this machine; `files` maps their paths here to local ones, whose folders exist."""
        if files:
            with self._told("reading", ""):
                self.filesystem.get([self.full(path) for path in files], list(files.values()))

    def _fresh(self) -> AbstractFileSystem:
        """The file system, its listings forgotten."""
        self.filesystem.invalidate_cache()
        return self.filesystem

    def _make_parent(self, path: str) -> None:
        """Make the folder of a file, where the file system has such."""
        protocol = self.filesystem.protocol
        if _OBJECT_STORES.isdisjoint((protocol,) if isinstance(protocol, str) else protocol):
            self.filesystem.makedirs(self.full(path).rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _told(self, doing: str, path: str, *, missing_is_an_error: bool = True) -> Iterator[None]:
        """Turn what a file system raises, each its own kind, into a `StorageError`."""
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not missing_is_an_error:
                raise
            place = f"{self.url}/{path}" if path else self.url
            raise StorageError(
                f"{doing} {place} failed: {type(error).__name__}: {error}. Check that the storage exists, has room "
                "and can be reached, and that your credentials allow this. What was saved before is intact."
            ) from error
