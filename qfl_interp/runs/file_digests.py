"""Digests of large files, remembered until size or times on disk change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.runs.checkpoint import write_atomic

# Of a file: size, when it was written and when its entry on disk changed (ns), SHA-256.
_Seen = list[int | str]


class FileDigests:
    """SHA-256 digests of files, and a JSON file that remembers them.

    A file is read again once its size or one of both times is another. Nobody sets the time of the entry by hand: a
    file that takes an older one's place is seen whatever its date.

    Args:
        memory: The JSON file; one that cannot be read or written is done without.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory

    def of(self, files: Sequence[Path]) -> str | None:
        """One digest of the names and contents of all files; None where there is none, or one cannot be read."""
        known = self._known()
        try:
            found = {str(path.absolute()): _seen(path, known.get(str(path.absolute()))) for path in files}
        except OSError:
            return None
        if any(known.get(name) != seen for name, seen in found.items()):
            self._remember(known | found)
        return digest(*(f"{Path(name).name} {seen[-1]}\n" for name, seen in found.items())) if found else None

    def _known(self) -> dict[str, _Seen]:
        """What was seen before, by path."""
        try:
            known = json.loads(self._memory.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _remember(self, known: dict[str, _Seen]) -> None:
        """Keep what was seen; a folder that is read only costs the next reader the time."""
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._memory, json.dumps(known, indent=1).encode())
        except (OSError, QflError):
            return


def _seen(path: Path, before: _Seen | None) -> _Seen:
    """What a file is now; its contents are read only where that is not what it was before."""
    stat = path.stat()
    now: _Seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    if before is not None and before[:3] == now:
        return before
    with path.open("rb") as file:
        return [*now, hashlib.file_digest(file, "sha256").hexdigest()]
