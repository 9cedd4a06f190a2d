"""Lenses that run in the background, each a process of its own, with its state in the run's workplace.

Every viewer of a run sees its jobs in the folder `jobs`, and they go on when all viewers have ended. A job whose
process is gone is over, whatever its files say.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import filelock

from qfl_interp.cli.options import Option, options_of, words_of
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.files import storage_error, write_atomic
from qfl_interp.plugins import LENSES, entry_points
from qfl_interp.progress import PROGRESS_FILE
from qfl_interp.runs.folder_lock import process_mark, runs
from qfl_interp.runs.series import Checkpoints

JOBS: Final = "jobs"
# Of a job: what was started, by the viewer; how far it is, by its process; what it printed.
STARTED, STATE, PROGRESS, LOG = "started.json", "state.json", "progress.json", "log.txt"
# There once somebody asked it to end.
STOP: Final = "stop"
QUEUED, RUNNING, FINISHED, FAILED, STOPPED = "queued", "running", "finished", "failed", "stopped"
_LINES: Final = 20
_TAIL_BYTES: Final = 16_384
_STYLE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Done(NamedTuple):
    """How far a job is with what it does now.

    Attributes:
        what: The work, as its bar calls it.
        done: Of `total`.
        total: None where that is not known.
        detail: What was done last.
    """

    what: str
    done: float
    total: float | None
    detail: str


class Job(NamedTuple):
    """A lens on a run, in the background.

    Attributes:
        lens: Its name.
        state: "queued" behind another job of this run, "running", "finished", "failed" or "stopped".
        command: What it was called with, as on a command line.
        started: When it was asked for, seconds since 1970.
        ended: When it ended; None before, and where its process ended without saying so.
        progress: How far it is, or was; None where no bar said so yet.
        lines: The end of what it printed; of one that failed, the error is last.
    """

    lens: str
    state: str
    command: tuple[str, ...]
    started: float
    ended: float | None
    progress: Done | None
    lines: str

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is computed any more."""
        return self.state in (FINISHED, FAILED, STOPPED)


def startable(run: Checkpoints) -> dict[str, list[Option]]:
    """The lenses that can be started, with their options, as the command line has them."""
    return {name.replace("-", "_"): options_of(name) for name in entry_points(LENSES)}


def start(run: Checkpoints, lens: str, options: Mapping[str, Any] | None = None, *, path: Path | None = None) -> Job:
    """Start a lens on a run in a process of its own, and return at once.

    It is the command of the lens: what is in the table already is not computed again, and a call that was stopped goes
    on. Jobs of one run are done one after the other.

    Args:
        run: What to look at.
        lens: Its name.
        options: By name, as `Option` has them; what is left out has its default.
        path: What the command line opens; the run's folder by default, of a suite its file.

    Raises:
        QflError: There is no such lens or option, a value is none of the option's, this lens runs on this run already,
            or the folder cannot be written.
    """
    opened = (path or run.path).absolute()
    folder = _folder(run, lens)
    command = words_of(lens, opened, options or {})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".starting", timeout=10):
            before = _read(folder, lens)
            if before is not None and not before.is_over:
                raise QflError(f"{lens} of {run.path} is {before.state} already. Stop it first, or wait for its end.")
            for name in (STATE, PROGRESS, STOP, STARTED):
                (folder / name).unlink(missing_ok=True)
            process = _spawn(folder, opened, command)
            said = {"command": command, "at": time.time(), "process": process_mark(process.pid)}
            write_atomic(folder / STARTED, json.dumps(said).encode())
    except OSError as error:
        raise storage_error(error, folder) from error
    found = _read(folder, lens)
    assert found is not None
    return found


def stop(run: Checkpoints, lens: str) -> None:
    """Ask a job to end, as Ctrl-C does; what it finished is kept. Nothing happens where none runs.

    Raises:
        QflError: There is no such lens, or the run's folder cannot be written.
    """
    folder = _folder(run, lens)
    process = _load(folder / STARTED).get("process")
    if isinstance(process, dict) and runs(process):
        # First: a process that has hardly begun ends without a word.
        write_atomic(folder / STOP, b"")
        os.kill(int(process["pid"]), signal.SIGTERM)


def jobs(run: Checkpoints) -> list[Job]:
    """The last job of each lens on a run, the newest first; none where the run is not there any more."""
    try:
        names = [path.name for path in (run.workplace / JOBS).iterdir() if path.is_dir()]
    except OSError:
        return []
    found = [_read(run.workplace / JOBS / name, name) for name in names]
    return sorted((job for job in found if job is not None), key=lambda job: -job.started)


def _folder(run: Checkpoints, lens: str) -> Path:
    """Where a lens' job has its files. Raises `QflError` where there is no such lens: names come from a browser."""
    if lens.replace("_", "-") not in entry_points(LENSES):
        raise unknown_name("lens", lens, startable(run))
    return run.workplace / JOBS / lens.replace("-", "_")


def _spawn(folder: Path, opened: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """The process of a job, in a session of its own: it gets no Ctrl-C of the viewer's, and outlives it."""
    # What this process can import, the job can, a lens that lies beside a notebook too.
    paths = os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, PROGRESS_FILE: str(folder / PROGRESS)}
    with open(folder / LOG, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.job_process", str(folder), str(opened), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or an ended one would stay in the system's list
    return process


def _read(folder: Path, lens: str) -> Job | None:
    """The job in a folder; None where there is none."""
    started, said = _load(folder / STARTED), _load(folder / STATE)
    try:
        command, at, process = tuple(map(str, started["command"])), float(started["at"]), started["process"]
    except (KeyError, TypeError, ValueError):
        return None
    state, ended, lines = said.get("state", QUEUED), said.get("ended"), _tail(folder / LOG)
    if state in (QUEUED, RUNNING) and not runs(process):
        # Once more: it may have ended, and said how, since its state was read.
        said = _load(folder / STATE)
        state, ended = said.get("state", QUEUED), said.get("ended")
        if state in (QUEUED, RUNNING) and (folder / STOP).exists():
            state, lines = STOPPED, f"{lines}\nstopped"
        elif state in (QUEUED, RUNNING):
            state, ended = FAILED, None
            lines += "\nIts process is gone: it was killed, or the machine was. Start it again to go on."
    return Job(lens, str(state), command, at, ended, _progress(folder), lines.strip())


def _progress(folder: Path) -> Done | None:
    """How far a job is."""
    said = _load(folder / PROGRESS)
    try:
        total = None if said["total"] is None else float(said["total"])
        return Done(str(said["what"]), float(said["done"]), total, str(said["detail"]))
    except (KeyError, TypeError, ValueError):
        return None


def _load(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _tail(path: Path) -> str:
    """The last lines of a log, without the codes of a terminal."""
    try:
        with open(path, "rb") as file:
            file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(_STYLE.sub("", text).rstrip().splitlines()[-_LINES:])
