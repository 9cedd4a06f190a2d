"""How much memory can still be had, and refusing work that needs more.

References:
    Linux: Documentation/filesystems/proc.rst (MemAvailable), Documentation/admin-guide/cgroup-v2.rst (memory.max).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from qfl_interp.errors import QflError

_MEMINFO, _OWN_GROUPS, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Of version 2, and of version 1: the limit, what is used, and what of it is page cache that is given back on demand.
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(device: str | torch.device = "cpu") -> int:
    """Memory that can still be had on a device, in bytes: of the machine, or less where a control group is limited.

    Containers and cluster jobs are killed at the limit of their group, whatever the machine has.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_machine(), *_group_limits()])


def require_memory(needed: int, available: int, what: str, remedy: str) -> None:
    """Raise `QflError` with both numbers of bytes unless the memory suffices.

    `what` needs it, in the plural; `remedy` is what to do: "Take fewer directions."
    """
    if needed > available:
        raise QflError(
            f"{what} need about {needed / 2**30:.2f} GiB of memory, more than the {available / 2**30:.2f} GiB that are "
            f"free. {remedy}"
        )


def _machine() -> int:
    """What the machine has left."""
    if _MEMINFO.exists():
        # Counts the page cache as available, which the free pages of `sysconf` do not.
        return 1024 * int(_fields(_MEMINFO)["MemAvailable:"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_limits() -> Iterator[int]:
    """What is left of the limit of each control group this process is in, down from the root."""
    for folder in _group_folders():
        for limit_file, used_file, cache in _GROUP_FILES:
            limit = folder / limit_file
            if limit.exists() and (text := limit.read_text().strip()) != "max":
                used = int((folder / used_file).read_text())
                yield max(0, int(text) - used + int(_fields(folder / "memory.stat").get(cache, 0)))


def _group_folders() -> Iterator[Path]:
    """Folders of the groups: those of version 2 ("0::/path") and of version 1's memory controller."""
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            root, inside = _GROUPS / controllers, Path(path.lstrip("/"))
            # Within a container the path may be the host's, and only the root is there.
            yield from (root / folder for folder in (*reversed(inside.parents), inside) if (root / folder).is_dir())


def _fields(file: Path) -> dict[str, str]:
    """The first two words of each line."""
    return {words[0]: words[1] for line in file.read_text().splitlines() if len(words := line.split()) > 1}
