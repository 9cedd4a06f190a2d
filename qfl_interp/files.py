"""Files on disk: JSON that is what it should be, paths that are no URL, whole writes; or one error names the file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TypeVar

from qfl_interp.errors import QflError, StorageError

_KindT = TypeVar("_KindT", dict, list, object)
_NAMES = {dict: "an object", list: "a list", object: "JSON"}
# No file of this library comes near it.
_MOST_BYTES = 256 * 2**20
# How the name of a file begins that is not whole yet.
TEMPORARY = ".tmp-"


def read_json(path: Path, kind: type[_KindT], advice: str) -> _KindT:
    """The object or list in a file, or either (`object`); `advice` is what the error tells to do.

    Raises:
        FileNotFoundError: It is not there.
        QflError: It cannot be read, is no JSON, or holds something else; names the file.
    """
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise QflError(f"{path} must be a JSON file of at most {_MOST_BYTES:,} bytes, got {size:,}. {advice}")
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise QflError(f"{path} cannot be read: {error}. {advice}") from error
    if not isinstance(found, kind):
        raise QflError(f"{path} must hold {_NAMES[kind]}, got {type(found).__name__}. {advice}")
    return found


def local_path(path: str | Path) -> Path:
    """The path, if it is one of this machine's file systems.

    Raises:
        QflError: It is a URL, of which the file system would make a folder `s3:`.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise QflError(f"a path on this machine is needed here, got the URL {str(path)!r}. Only sweeps take URLs.")
    return Path(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside its place, flushed to the disk, then renamed into it.

    Raises:
        QflError: The disk is full, or a device stands there; nothing is left behind and an old file stays.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise QflError(f"{path} must be a file, and it is a device or a pipe: nothing was written. Name another.")
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        write_flushed(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # of a folder that is none there is nothing to delete
            temporary.unlink(missing_ok=True)
        raise storage_error(error, path) from error


def write_flushed(path: Path, data: bytes) -> None:
    """Write and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# Errors of the place itself: no other file could be written there either.
_STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def storage_error(error: OSError, path: Path) -> QflError:
    """What a user reads when writing to `path` fails: a `StorageError` where no other path there could do better."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent if path.parent.exists() else Path.cwd()).free
        return StorageError(
            f"the disk is full: writing {path} failed with {free:,} bytes free. What was saved before is intact. "
            "Free some space and resume."
        )
    kind = StorageError if error.errno in _STORAGE_FAULTS else QflError
    why = error.strerror or error  # whose own text names the file beside it that is written first
    return kind(f"writing {path} failed: {why}. What was saved before is intact.")
