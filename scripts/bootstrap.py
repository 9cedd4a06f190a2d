"""Make `.venv` and install the project into it with the pinned versions, with nothing but Python's standard library.

uv does the work where it can be installed (about 20 s); otherwise pip does (about 90 s). Called by the Makefile:

    python3 scripts/bootstrap.py EXTRA [EXTRA ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
UV = "uv==0.13.9"
MINIMUM = (3, 11)


def run(*command: str | Path, quiet: bool = False) -> bool:
    """True where the command ended with exit status 0."""
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run([str(part) for part in command], cwd=ROOT, stdout=output, stderr=output).returncode == 0


def pip_setting(name: str) -> list[str]:
    """What the user's pip configuration or environment says for `name`, which uv does not read by itself."""
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value is None:
        found = subprocess.run(
            [PYTHON, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False
        )
        value = found.stdout
    return value.split()


def install(extras: list[str]) -> bool:
    """Install the project, editable, with `extras`; uv first, then pip."""
    target = f".[{','.join(extras)}]" if extras else "."
    arguments = ["-c", str(CONSTRAINTS), "-e", target]
    if run(PYTHON, "-m", "pip", "install", "--quiet", UV, quiet=True):
        links = [part for link in pip_setting("find-links") for part in ("--find-links", link)]
        indexes = [part for url in pip_setting("index-url") for part in ("--index-url", url)]
        command = [PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "--system-certs", *links, *indexes]
        if run(*command, *arguments):
            return True
        print("uv could not install the project; trying pip.", file=sys.stderr)
    return run(PYTHON, "-m", "pip", "install", *arguments)


def main() -> int:
    """Create the environment, install, and say what to do if it fails."""
    if sys.version_info < MINIMUM:
        print(
            f"qfl_interp needs Python {MINIMUM[0]}.{MINIMUM[1]} or newer, found {sys.version.split()[0]}. "
            "Call make with another interpreter: make PYTHON=python3.12",
            file=sys.stderr,
        )
        return 1
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    return 0 if install(sys.argv[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
