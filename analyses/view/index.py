"""What lies below a folder, one entry a run, suite file or sweep: found quickly, and read again only where it changed.

Without torch: a thousand runs are listed before it is loaded.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import CONFIG_FILE, METRICS_FILE, RunConfig
from qfl_interp.runs.folder_lock import OWNER, is_claimed
from qfl_interp.runs.listing import Kind, Place, last_metrics, places

CHECKPOINTS: Final = "checkpoints"
STATES: Final = ("training", "finished", "stopped", "suite", "sweep", "damaged")
# Seconds for which the places that were found are not looked for again.
_LOOK_AGAIN: Final = 4.0
# Points of a sparkline; bytes of metrics up to which the whole file is read; of a larger one, so many in each sample.
_POINTS: Final = 32
_WHOLE_BYTES: Final = 1 << 22
_SAMPLE_BYTES: Final = 1 << 12
_NUMBER: Final = re.compile(rb"[-+.eE\d]+")

# Modification time and size of every file that an entry is read from; None where there is none.
Stamp = tuple[tuple[int, int] | None, ...]


class Entry(NamedTuple):
    """A line of the list.

    Attributes:
        key: The path below the folder, which names it in addresses; "." for the folder itself.
        kind: Run, suite file or sweep.
        name: What a person reads first.
        task: Task and length; of a suite where its checkpoints are.
        size: Of the model, in words; of a sweep its runs.
        state: One of `STATES`.
        step: Last step that was logged; None where nothing is known.
        n_steps: Last step of the training.
        loss: Last loss that was validated, in the run's unit; None where there is none.
        seed: Of the run.
        run_id: Of the run.
        spark: Losses over the logarithm of the step, both from 0 to 1, loss downwards.
        fault: Why it is damaged; empty of others.
        changed: When it last changed, in seconds since 1970.
    """

    key: str
    kind: Kind
    name: str
    task: str = ""
    size: str = ""
    state: str = "stopped"
    step: int | None = None
    n_steps: int | None = None
    loss: float | None = None
    seed: int | None = None
    run_id: str = ""
    spark: tuple[tuple[float, float], ...] = ()
    fault: str = ""
    changed: float = 0.0


class Index:
    """The entries below a folder, kept in memory until their files change; safe to ask from several threads.

    Args:
        folder: Where to look, at any depth. One that is a run itself is its only entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}
        self._looked = -math.inf
        self._entries: dict[str, tuple[Stamp, Entry]] = {}
        self._seen = uuid.uuid4().hex

    def entries(self, *, watch: Sequence[str] = (), anew: bool = False) -> list[Entry]:
        """Every entry, by path; arguments as of `look`."""
        return self.look(watch=watch, anew=anew)[0]

    def look(self, *, watch: Sequence[str] = (), anew: bool = False) -> tuple[list[Entry], str]:
        """Every entry, by path, and a text that is another one whenever they are others than before.

        Args:
            watch: Keys of which each call looks whether they changed, as it does of what is being trained.
            anew: Look at everything now, not only every few seconds.
        """
        with self._lock:
            everything = anew or time.monotonic() - self._looked > _LOOK_AGAIN
            if everything:
                found, self._looked = places(self.folder), time.monotonic()
                self._places = {key_of(place.path, self.folder): place for place in found}
            kept = self._entries
            self._entries = {}
            for key, place in self._places.items():
                old = kept.get(key)
                due = everything or old is None or key in watch or old[1].state == "training"
                if (new := _fresh(key, place, self.folder, old) if due else old) is not None:
                    self._entries[key] = new
            if self._entries != kept:
                self._seen = uuid.uuid4().hex  # of no other process either
            return [entry for _, entry in self._entries.values()], self._seen

    def is_sweep(self, key: str) -> bool:
        """Whether a key names a sweep."""
        self.path(key)  # looks for it, if it was not listed yet
        with self._lock:
            return key in self._entries and self._entries[key][1].kind == "sweep"

    def path(self, key: str) -> Path | None:
        """The place that a key names, if it was listed: no address reads anything else."""
        with self._lock:
            known = key in self._entries
        if not known:
            self.entries(anew=True)
            with self._lock:
                known = key in self._entries
        return self.folder / key if known else None


def _fresh(key: str, place: Place, folder: Path, old: tuple[Stamp, Entry] | None) -> tuple[Stamp, Entry] | None:
    """The entry as its files are now; None where it is gone."""
    if not place.path.exists():
        return None
    stamp = stamp_of(place)
    # A process that was killed says nothing: what is being trained is read again each time.
    if old is not None and old[0] == stamp and old[1].state != "training":
        return old
    return stamp, _READ[place.kind](key, place.path, folder)


def key_of(path: Path, folder: Path) -> str:
    """A place's name in addresses."""
    return path.relative_to(folder).as_posix()


def stamp_of(place: Place) -> Stamp:
    """What changes when an entry does."""
    names = {
        "run": (CONFIG_FILE, METRICS_FILE, CHECKPOINTS, OWNER),
        "suite": ("",),
        "sweep": ("sweep.json", "state.json"),
    }
    return stamps(place.path / name for name in names[place.kind])


def stamps(paths: Iterable[Path]) -> Stamp:
    """Modification time and size of files and folders."""
    found: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            stat = os.stat(path)
            found.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


def _run(key: str, path: Path, folder: Path) -> Entry:
    """The entry of a run directory."""
    name = folder.resolve().name if key == "." else key
    changed = _changed(path / METRICS_FILE, path / CONFIG_FILE)
    try:
        config = RunConfig.read(path)
        last = last_metrics(path / METRICS_FILE)
        curve = losses(path / METRICS_FILE)
        size = f"{config.n_parameters:,} parameters"
    except (QflError, RecursionError, ArithmeticError) as error:
        return Entry(key, "run", name, state="damaged", fault=str(error), changed=changed)
    done = (path / CHECKPOINTS / ckpt.step_name(config.last_step)).is_dir()
    return Entry(
        key,
        "run",
        name,
        task=f"{config.task} {config.length}",
        size=size,
        state="finished" if done else "training" if is_claimed(path) else "stopped",
        step=last.get("step"),
        n_steps=config.last_step,
        loss=curve[-1][1] if curve else None,
        seed=config.train.seed,
        run_id=config.run_id,
        spark=spark(curve),
        changed=changed,
    )


def _suite(key: str, path: Path, folder: Path) -> Entry:
    """The entry of a suite file."""
    changed = _changed(path)
    try:
        values = read_json(path, dict, "Write it again with `qfl suite open`.")
    except (QflError, FileNotFoundError) as error:
        return Entry(key, "suite", key, state="damaged", fault=str(error), changed=changed)
    place = str(values.get("folder", values.get("repo", "nothing")))
    return Entry(key, "suite", key, task=f"checkpoints of {place}", state="suite", changed=changed)


def _sweep(key: str, path: Path, folder: Path) -> Entry:
    """The entry of a sweep's folder."""
    name = folder.resolve().name if key == "." else key
    changed = _changed(path / "state.json", path / "sweep.json")
    try:
        values = read_json(path / "sweep.json", dict, f"`qfl sweep verify {path}` says more.")
        state = read_json(path / "state.json", dict, "") if (path / "state.json").exists() else {}
    except (QflError, FileNotFoundError) as error:
        return Entry(key, "sweep", name, state="damaged", fault=str(error), changed=changed)
    size = f"{state['done']} of {state['total']} runs" if {"done", "total"} <= state.keys() else ""
    return Entry(key, "sweep", name, task=str(values.get("name", "")), size=size, state="sweep", changed=changed)


_READ: Final[dict[Kind, Callable[[str, Path, Path], Entry]]] = {"run": _run, "suite": _suite, "sweep": _sweep}


def _changed(*paths: Path) -> float:
    """When one of the files last changed, in seconds since 1970."""
    return max((stamp[0] for stamp in stamps(paths) if stamp), default=0) / 1e9


def losses(path: Path) -> list[tuple[int, float]]:
    """Steps and losses of a metrics file, the validations' if there are any: all of a small file, samples of a large.

    Raises:
        QflError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size <= _WHOLE_BYTES:
                parts = [_sample(file, 0, size)]
            else:  # a row is shorter than a sample, and the last one counts
                at = [round(k * (size - _SAMPLE_BYTES) / (_POINTS - 1)) for k in range(_POINTS)]
                parts = [_sample(file, place, _SAMPLE_BYTES) for place in at]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise QflError(f"{path} cannot be read: {error}.") from error
    for name in (b"val_loss_answer", b"train_loss"):
        found = [pair for part in parts for pair in _logged(part, b'"%s": ' % name)]
        if len(found) > 1:
            break
    return found


def _logged(part: bytes, name: bytes) -> Iterator[tuple[int, float]]:
    """Steps and values of a name in some rows, evenly chosen: found by jumping, which reading JSON cannot."""
    places, at = [], part.find(name)
    while at >= 0:
        places.append(at)
        at = part.find(name, at + 1)
    chosen = {round(k * (len(places) - 1) / (_POINTS - 1)) for k in range(_POINTS)} if places else set()
    for place in (places[number] for number in sorted(chosen)):
        start = part.rfind(b'{"step": ', 0, place)
        step, value = _NUMBER.match(part, start + 9), _NUMBER.match(part, place + len(name))
        if start >= 0 and step and value:
            yield int(step[0]), float(value[0])


def _sample(file: Any, place: int, n_bytes: int) -> bytes:
    """Whole rows, but for the first one: half a number would be another one."""
    file.seek(place)
    part = file.read(n_bytes)
    return part[: part.rfind(b"\n") + 1]


def spark(curve: Sequence[tuple[int, float]]) -> tuple[tuple[float, float], ...]:
    """A loss over the logarithm of the step, both axes from 0 to 1, a high loss at 0."""
    good = [(math.log1p(step), loss) for step, loss in curve if math.isfinite(loss)]
    if len(good) < 2 or good[0][0] >= good[-1][0]:
        return ()
    start, width = good[0][0], good[-1][0] - good[0][0]
    high, low = max(loss for _, loss in good), min(loss for _, loss in good)
    height = (high - low) or 1.0
    return tuple((round((x - start) / width, 3), round((high - loss) / height, 3)) for x, loss in good)


def as_json(entries: Sequence[Entry]) -> str:
    """The entries for the page: plain values, what is not finite as null."""
    rows = [entry._asdict() for entry in entries]
    for row in rows:
        if row["loss"] is not None and not math.isfinite(row["loss"]):
            row["loss"] = None
    return json.dumps(rows, separators=(",", ":"))
