"""Where a result comes from: versions, command, git commit, device. No host or user names."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qfl_interp.errors import QflError, redact_command
from qfl_interp.files import read_json
from qfl_interp.sealed import sealed_json, unsealed

if TYPE_CHECKING:
    import torch

_ADVICE = "Restore or delete it; no number depends on it."
_PACKAGES = ("qfl-interp", "torch", "transformer-lens", "numpy", "scikit-learn")


class Sessions(NamedTuple):
    """What a run's file says of its sessions, one record each; `checked` is False where it has no checksum."""

    records: list[dict[str, Any]]
    checked: bool


def sessions_json(records: Sequence[dict[str, Any]], config_digest: str) -> bytes:
    """The text of that file: the records, whose they are, and a checksum."""
    return sealed_json({"config_digest": config_digest, "sessions": list(records)})


def read_sessions(path: Path, config_digest: str) -> Sessions:
    """The sessions in a run's file; none where it is not there. Earlier versions wrote a list without a checksum.

    Raises:
        QflError: It is not what was written, or another run's; names the file.
    """
    try:
        found = read_json(path, object, _ADVICE)
    except FileNotFoundError:
        return Sessions([], checked=True)
    if isinstance(found, list):
        if not found or not all(isinstance(record, dict) and "started" in record for record in found):
            raise QflError(f"{path} must hold a list of records: corrupted. {_ADVICE}")
        return Sessions(found, checked=False)
    record = unsealed(found) if isinstance(found, dict) else None
    if record is None or not record.checked:
        raise QflError(f"{path} does not match its checksum: corrupted. {_ADVICE}")
    if record.values["config_digest"] != config_digest:
        raise QflError(
            f"{path} is of another run (configuration {record.values['config_digest']}, not {config_digest}): was it "
            f"or config.json replaced? {_ADVICE}"
        )
    return Sessions(record.values["sessions"], checked=True)


def device_name(device: str | torch.device = "cpu") -> str:
    """The model of a processor and, for a CPU, its number of cores."""
    import torch

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
    import torch

    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    # Its own word has the build too, "2.13.0+cu130", which a wheel's metadata may leave out.
    return {"python": platform.python_version(), **found, "torch": str(torch.__version__)}


def session_record(device: str | torch.device) -> dict[str, Any]:
    """What is recorded each time a process works on a run."""
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "command": redact_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": git_commit(Path.cwd()),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
