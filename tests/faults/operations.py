"""File operations that change something below a folder: counted, and made to go wrong from a chosen one on.

Meant for a forked child that is thrown away: what is patched stays patched. The bytes of a write reach the patched
`write` when Python's own buffer is flushed, as they reach the operating system.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

# Exit status of a child that died at its operation.
KILLED = 77
Fault = Literal["kill", "full disk"]
_FREEING = {"unlink", "rmdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_RANDOM = re.compile(r"-[0-9a-f]{8}$|(?<=^tmp)\w{8}(?=\.html$)")


class Operations:
    """The operations of this process below a folder, by name; at number `at`, from 0, the fault begins.

    Args:
        root: What lies elsewhere is not counted.
        at: The operation at which the fault begins; None for none.
        fault: "kill": the process dies before the operation, a write after half of its bytes. "full disk": this
            operation and all later ones that take space fail so, a write after half of its bytes.
    """

    def __init__(self, root: Path, at: int | None = None, fault: Fault = "kill") -> None:
        self.root, self.at, self.fault = str(root.resolve()), at, fault
        self.names: list[str] = []

    def before(self, name: str, path: Any, half: Callable[[], object] = lambda: None) -> None:
        """Count an operation on a path or a descriptor, or let it go wrong."""
        where = _place(path)
        if not (where + os.sep).startswith(self.root + os.sep) or (name == "mkdir" and os.path.isdir(where)):
            return
        self.names.append(f"{name} {_RANDOM.sub('', Path(where).name)}")
        if self.at is None or len(self.names) <= self.at:
            return
        if self.fault == "kill":
            half()
            os._exit(KILLED)
        if name not in _FREEING:
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    def install(self) -> None:
        """Patch this process, for good."""
        for name in ("replace", "rename", "mkdir", "unlink", "remove", "rmdir", "truncate", "ftruncate", "fsync"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        os.open = self._os_open(os.open)
        builtins.open = io.open = self._open(io.open)

    def _counted(self, name: str, true: Callable[..., Any]) -> Callable[..., Any]:
        label = "unlink" if name == "remove" else name

        def call(path: Any, *args: Any, dir_fd: int | None = None, **more: Any) -> Any:
            self.before(label, path if dir_fd is None else Path(_place(dir_fd)) / os.fsdecode(path))
            return true(path, *args, **more) if dir_fd is None else true(path, *args, dir_fd=dir_fd, **more)

        return call

    def _os_open(self, true: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if flags & _WRITING:
                self.before("open", path)
            return true(path, flags, *args, **more)

        return call

    def _open(self, true: Callable[..., Any]) -> Callable[..., Any]:
        def call(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return true(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if opener is None:  # an opener calls `os.open`
                self.before("open", file)
            raw = _File(file, mode.replace("b", "").replace("t", ""), opener=opener)
            raw.operations = self
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        return call


class _File(io.FileIO):
    """A file whose writes are counted; what is below Python's buffer."""

    operations: Operations

    def write(self, data: Any) -> int:
        data = bytes(data)
        self.operations.before("write", self.fileno(), lambda: super(_File, self).write(data[: len(data) // 2]))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self.operations.before("truncate", self.fileno())
        return super().truncate(size)


def _place(path: Any) -> str:
    """The absolute path of a path or of an open descriptor."""
    return os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
