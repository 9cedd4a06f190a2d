"""Peak memory of this process, from Linux's own counters (NaN elsewhere), or of a GPU, from torch's."""

from __future__ import annotations

from pathlib import Path

import torch


def status_mib(field: str) -> float:
    """A memory field of this process's status, in MiB."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(field + ":")), float("nan"))


def reset_peak_mib() -> float:
    """Resident memory now, in MiB; from here on VmHWM counts the peak anew."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return status_mib("VmRSS")


def held_mib(device: str = "cpu") -> float:
    """Memory held now, on the device, in MiB; from here on its peak counts anew."""
    if torch.device(device).type == "cpu":
        return reset_peak_mib()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**20


def peak_mib(device: str = "cpu") -> float:
    """The peak since `held_mib`, in MiB."""
    return status_mib("VmHWM") if torch.device(device).type == "cpu" else torch.cuda.max_memory_allocated() / 2**20
