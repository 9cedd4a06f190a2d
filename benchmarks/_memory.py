"""Peak memory of this process, from Linux's own counters; NaN elsewhere."""

from __future__ import annotations

from pathlib import Path


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
