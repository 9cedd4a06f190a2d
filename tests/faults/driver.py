"""Work in a forked child that dies, or finds the disk full, at a chosen file operation; and once more afterwards."""

from __future__ import annotations

import json
import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from faults.operations import KILLED, Fault, Operations

from qfl_interp.errors import QflError
from qfl_interp.runs.config import METRICS_FILE
from qfl_interp.runs.run import PROVENANCE_FILE

Verdict = Literal["same", "named", "unnamed", "traceback", "silent"]
# From good to bad.
VERDICTS: tuple[Verdict, ...] = ("same", "named", "unnamed", "traceback", "silent")
_GROWING = {METRICS_FILE, PROVENANCE_FILE}
_TIMES = ("seconds", "tokens_per_s", "sha256")


class Outcome(NamedTuple):
    """How a child ended.

    Attributes:
        ended: "done", "killed", "refused" (a `QflError`) or "traceback" (any other exception).
        text: The error.
        operations: What was counted, where it was not killed.
    """

    ended: str
    text: str = ""
    operations: tuple[str, ...] = ()


class Work(NamedTuple):
    """A piece of work: `call` is given a folder that holds what `base` holds (nothing, where None)."""

    call: Callable[[Path], object]
    base: Path | None = None

    def fresh(self, folder: Path) -> Path:
        """A folder to begin in; what was there is gone."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.base is None:
            folder.mkdir()
        else:
            shutil.copytree(self.base, folder)
        return folder


def in_child(call: Callable[[], object], operations: Operations) -> Outcome:
    """Call in a forked child whose file operations are counted."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        _report(write, call, operations)
    os.close(write)
    with open(read, "rb") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == KILLED:
        return Outcome("killed")
    ended, text, names = json.loads(told) if told else ("traceback", f"the child ended with status {status}", [])
    return Outcome(ended, text, tuple(names))


def _report(pipe: int, call: Callable[[], object], operations: Operations) -> None:
    """What the child does: it never returns."""
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        operations.install()
        try:
            call()
            ended, text = "done", ""
        except QflError as error:
            ended, text = "refused", str(error)
        except BaseException:
            ended, text = "traceback", traceback.format_exc()
        os.write(pipe, json.dumps([ended, text, operations.names]).encode())
    finally:
        os._exit(0)


def fingerprint(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by file, but for times, provenance and locks.

    Nor does a temporary file of a writer that was killed count, where it is swept after a day only: beside a report,
    in tables and in stores.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not _passed_over(path, folder))
    return {str(path.relative_to(folder)): _kept(path) for path in files}


def _passed_over(path: Path, folder: Path) -> bool:
    unswept = {"analyses", "activations"} & {*path.relative_to(folder).parts}
    temporary = path.name.startswith(".tmp-") and (bool(unswept) or ".html-" in path.name)
    return path.name.endswith(".lock") or temporary


def _kept(path: Path) -> bytes:
    if path.name == PROVENANCE_FILE:
        return b""
    if path.name != METRICS_FILE:
        return path.read_bytes()
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return json.dumps([{key: row[key] for key in row.keys() - {*_TIMES}} for row in rows], sort_keys=True).encode()


def half_written(folder: Path, wanted: Mapping[str, bytes]) -> list[str]:
    """Files that are there without being what they are in the end, but for those that grow: metrics and stores."""
    names = [name for name in wanted if Path(name).name not in _GROWING and "activations" not in Path(name).parts]
    return [name for name in names if (folder / name).exists() and (folder / name).read_bytes() != wanted[name]]


class Faults:
    """Faults in one piece of work.

    Args:
        work: What is done; done here once without a fault, so that children find all modules loaded.
        folder: Where it is done, again and again; made.
    """

    def __init__(self, work: Work, folder: Path) -> None:
        self._work, self._folder = work, folder
        work.call(work.fresh(folder))
        self.wanted = fingerprint(folder)
        counted = self._child(None, "kill", fresh=True)
        assert counted.ended == "done", counted.text
        assert fingerprint(folder) == self.wanted, "two undisturbed calls differ"
        self.operations = counted.operations

    def _child(self, at: int | None, fault: Fault, *, fresh: bool = False) -> Outcome:
        folder = self._work.fresh(self._folder) if fresh else self._folder
        return in_child(lambda: self._work.call(folder), Operations(folder, at, fault))

    def verdict(self, at: int, fault: Fault) -> tuple[Verdict, str]:
        """How a fault at an operation ends, once the work was called again without it, and what was said.

        "same": with the bytes of undisturbed work, and no half file after the fault. "named": so too, and the first
        call said that the disk is full.
        """
        first = self._child(at, fault, fresh=True)
        if first.ended == "traceback":
            return "traceback", first.text
        assert fault != "kill" or first.ended == "killed", first
        if half := half_written(self._folder, self.wanted):
            return "silent", f"half files: {half}"
        second = self._child(None, fault)
        if second.ended != "done":
            return ("unnamed" if second.ended == "refused" else "traceback"), second.text
        found = fingerprint(self._folder)
        if found != self.wanted:
            differing = [name for name in found | self.wanted if found.get(name) != self.wanted.get(name)]
            return "silent", f"other bytes in {differing}"
        if first.ended == "refused":
            return ("named" if "the disk is full" in first.text else "unnamed"), first.text
        return "same", ""

    def verdicts(self, numbers: Iterable[int], fault: Fault) -> tuple[Counter[Verdict], list[str]]:
        """How often each verdict fell, and a line on each bad one."""
        counts: Counter[Verdict] = Counter()
        bad = []
        for at in numbers:
            verdict, text = self.verdict(at, fault)
            counts[verdict] += 1
            if verdict not in ("same", "named"):
                bad.append(f"{fault} at {at} ({self.operations[at]}): {verdict}: {text}")
        return counts, bad

    def some(self, n: int | None, seed: int) -> list[int]:
        """The numbers of `n` operations, drawn with a seed; of all, where None or more than there are."""
        numbers = range(len(self.operations))
        return [*numbers] if n is None or n >= len(numbers) else sorted(random.Random(seed).sample(numbers, n))
