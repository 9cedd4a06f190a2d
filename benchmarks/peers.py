"""Patching, caching, eigenpairs and Langevin chains beside libraries that do the same, in an environment of their own.

The environment is made once, under `~/.cache/qfl_interp` or in the folder QFL_PEERS, with this one's versions of torch
and transformer-lens. In it, everything runs in one process of one thread, on the same model and data, the libraries
taking turns; that results are equal is asserted before anything is timed. What cannot be installed or run is a row with
the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qfl_interp.digests import digest

TITLE = "Beside other libraries, one thread: processor and wall seconds, best of interleaved rounds"

PACKAGES = (
    "nnsight==0.8.1",
    "pyvene==0.1.8",
    "devinterp==2.0.1",
    "curvlinops-for-pytorch==3.0.1",
    "hessian-eigenthings==1.0.0a5",
)
_ROOT = Path(__file__).parents[1]
_PINS = _ROOT / "requirements" / "constraints.txt"


def _pip_setting(name: str) -> list[str]:
    """What pip is told by its configuration, which uv does not read."""
    asked = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()


def environment() -> tuple[Path, dict[str, str]]:
    """The environment's interpreter, made where it is missing; what could not be installed, with the reason."""
    name = f"peers-{digest(*PACKAGES, _PINS.read_text())}"
    folder = Path(os.environ.get("QFL_PEERS") or Path.home() / ".cache" / "qfl_interp" / name)
    python, failed = folder / "bin" / "python", folder / "failed.json"
    if failed.exists():
        return python, json.loads(failed.read_text())
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
    links = [word for link in _pip_setting("find-links") for word in ("--find-links", link)]
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--system-certs", *links, "-c", str(_PINS)]
    subprocess.run([*install, "-e", str(_ROOT)], check=True)
    reasons = {}
    for package in PACKAGES:
        done = subprocess.run([*install, package], capture_output=True, text=True, check=False)
        if done.returncode:
            reasons[package] = done.stderr.strip()[-300:]
    # pyvene asks for one, and the registry's is built for a torch with CUDA: importing transformers then fails.
    subprocess.run([uv, "pip", "uninstall", "--quiet", "--python", str(python), "torchvision"], check=False)
    failed.write_text(json.dumps(reasons))
    return python, reasons


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of seconds, and how many times less ours take.

    Args:
        quick: Small sizes, one round.
        device: Of the models.
    """
    python, reasons = environment()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        words = ["-m", "benchmarks._peers", str(out), device] + (["quick"] if quick else [])
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run([str(python), "-W", "ignore", *words], cwd=_ROOT, check=True, env={**os.environ, **threads})
        rows = json.loads(out.read_text())
    return rows + [{"case": "not installed", "name": name, "reason": reason} for name, reason in reasons.items()]
