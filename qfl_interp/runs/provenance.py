"""Where a result comes from: versions, command, git commit, device. No host or user names."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qfl_interp.errors import redact_command

_PACKAGES = ("qfl-interp", "torch", "transformer-lens", "numpy", "scikit-learn")


def device_name(device: str | torch.device = "cpu") -> str:
    """The model of a processor and, for a CPU, its number of cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        stripped = {key.strip(): value.strip() for key, value in fields.items()}
        name = stripped.get("model name", name)
    return f"{name}, {os.cpu_count()} cores"


def git_commit(folder: Path) -> str | None:
    """The commit checked out around `folder`, with "+" where files differ from it; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number can depend on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    # Its own word has the build too, "2.13.0+cu130", which a wheel's metadata may leave out.
    return {"python": platform.python_version(), **found, "torch": str(torch.__version__)}


def session_record(device: str | torch.device) -> dict[str, Any]:
    """What is recorded each time a process works on a run."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "command": redact_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": git_commit(Path.cwd()),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
