"""Make `.venv` and install the project into it with the pinned versions, with nothing but Python's standard library.

uv does the work where it can be installed (about 20 s); otherwise pip does (about 90 s). Called by the Makefile:

    python3 scripts/bootstrap.py EXTRA [EXTRA ...]

With `--transformer-lens VERSION` it makes `.venv-tl4` instead, with that version in place of the pinned one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
UV = "uv==0.13.9"
MINIMUM = (3, 11)


def run(*command: str | Path, quiet: bool = False) -> bool:
    """True where the command ended with exit status 0."""
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run([str(part) for part in command], cwd=ROOT, stdout=output, stderr=output).returncode == 0


def pip_setting(python: Path, name: str) -> list[str]:
    """What the user's pip configuration or environment says for `name`, which uv does not read by itself."""
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value is None:
        found = subprocess.run(
            [python, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False
        )
        value = found.stdout
    return value.split()


def install(python: Path, extras: list[str], constraints: Path) -> bool:
    """Install the project, editable, with `extras`; uv first, then pip."""
    target = f".[{','.join(extras)}]" if extras else "."
    arguments = ["-c", str(constraints), "-e", target]
    if run(python, "-m", "pip", "install", "--quiet", UV, quiet=True):
        links = [part for link in pip_setting(python, "find-links") for part in ("--find-links", link)]
        indexes = [part for url in pip_setting(python, "index-url") for part in ("--index-url", url)]
        command = [python, "-m", "uv", "pip", "install", "--python", python, "--system-certs", *links, *indexes]
        if run(*command, *arguments):
            return True
        print("uv could not install the project; trying pip.", file=sys.stderr)
    return run(python, "-m", "pip", "install", *arguments)


def constraints_with(folder: Path, version: str) -> Path:
    """The pinned versions with another one of transformer-lens, as a file in `folder`."""
    lines = CONSTRAINTS.read_text().splitlines()
    others = [line for line in lines if not line.startswith("transformer-lens==")]
    assert len(others) == len(lines) - 1, f"{CONSTRAINTS} must pin transformer-lens once"
    path = folder / "constraints.txt"
    path.write_text("\n".join([*others, f"transformer-lens=={version}", ""]))
    return path


def main() -> int:
    """Create the environment, install, and say what to do if it fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--transformer-lens", metavar="VERSION")
    chosen = parser.parse_args()
    if sys.version_info < MINIMUM:
        print(
            f"qfl_interp needs Python {MINIMUM[0]}.{MINIMUM[1]} or newer, found {sys.version.split()[0]}. "
            "Call make with another interpreter: make PYTHON=python3.12",
            file=sys.stderr,
        )
        return 1
    folder = ROOT / (".venv-tl4" if chosen.transformer_lens else ".venv")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    constraints = constraints_with(folder, chosen.transformer_lens) if chosen.transformer_lens else CONSTRAINTS
    return 0 if install(python, chosen.extras, constraints) else 1


if __name__ == "__main__":
    sys.exit(main())
