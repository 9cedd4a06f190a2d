"""Files on disk: JSON that is what it should be, and paths that are no URL; or one error names the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeVar

from qfl_interp.errors import QflError

_KindT = TypeVar("_KindT", dict, list, object)
_NAMES = {dict: "an object", list: "a list", object: "JSON"}
# No file of this library comes near it.
_MOST_BYTES = 256 * 2**20


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
