"""The process of a job: `python -m ...job_process FOLDER OPENED WORDS...` calls `qfl WORDS...` and says how it goes.

It waits for the other jobs of its run. SIGTERM ends it as Ctrl-C ends the command, and so does the end of its run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import filelock

from qfl_interp.analyses.view.jobs import FAILED, FINISHED, RUNNING, STATE, STOPPED
from qfl_interp.errors import QflError
from qfl_interp.files import write_atomic

# Between two looks whether the run is there, and whether it is this job's turn.
_SECONDS: Final = 0.2


def main(folder: Path, opened: Path, words: list[str]) -> int:
    """Call the command once no other job of the run is at work; its exit status."""
    asked = threading.Event()

    def end(*_: Any) -> None:
        if not asked.is_set():  # once: it ends already, and may be writing
            asked.set()
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    threading.Thread(target=_watch, args=(opened,), daemon=True).start()
    state = FAILED
    try:
        with _turn(folder):
            _say(folder, RUNNING)
            from qfl_interp.cli.main import main as qfl

            sys.argv = ["qfl", *words]
            try:
                qfl()
                state = FINISHED
            except SystemExit as leaving:
                state = FINISHED if not leaving.code else FAILED
                return int(leaving.code) if isinstance(leaving.code, int) else bool(leaving.code)
    except KeyboardInterrupt:
        pass
    finally:
        asked_to = asked.is_set()
        asked.set()  # nothing interrupts what follows
        if asked_to and state != FINISHED:
            state = STOPPED
            there = "" if opened.exists() else f": {opened} is not there any more"
            print(f"stopped{there}. Finished parts are kept; started again, it goes on.", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        _say(folder, state, ended=time.time())
    return 0 if state == FINISHED else 1


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait for the other jobs of the run. Not as the lock itself waits: it would make the folder of a deleted run."""
    lock = filelock.FileLock(folder.parent / ".running", timeout=0)
    while folder.exists():
        try:
            lock.acquire()
            break
        except filelock.Timeout:
            time.sleep(_SECONDS)
    else:
        raise KeyboardInterrupt
    try:
        yield
    finally:
        lock.release()


def _watch(opened: Path) -> None:
    """End this process once what it looks at is deleted: it would write its folder anew."""
    while opened.exists():
        time.sleep(_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _say(folder: Path, state: str, **more: Any) -> None:
    """Keep the state, unless the folder is gone with its run."""
    with contextlib.suppress(QflError, OSError):
        write_atomic(folder / STATE, json.dumps({"state": state, **more}).encode())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
