"""Every file of a run, damaged at random: does a reading give other numbers, or an error that names no file?"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from faults import workloads
from faults.driver import VERDICTS, Verdict
from faults.mutations import Makers, mutate, of_text, put

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.analyses.lenses.probe.data import probe_data, read_span, store_key
from qfl_interp.data.identity import task_identity

_STEP = 12
_CAPTURE = {"n": 24, "n_test": 8}


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        pattern: Where its files are, below the run.
        readings: What uses them.
        is_json: Whether one is a JSON document.
        is_text: Whether it consists of lines.
        partner: The ending of the file beside it that its checksum is tied to, which an error may name instead.
    """

    pattern: str
    readings: tuple[str, ...]
    is_json: bool = False
    is_text: bool = False
    partner: Callable[[Path], str] = lambda file: file.name


def _checkpoint(file: Path) -> str:
    return file.parent.name


def _part(file: Path) -> str:
    return file.stem.removeprefix("_")


FORMATS = {
    "config.json": Format("config.json", ("open", "weights", "verify", "table", "probe", "store"), True, True),
    "task.json": Format("task.json", ("open", "verify", "probe"), True, True),
    "metrics.jsonl": Format("metrics.jsonl", ("open", "verify"), is_text=True),
    "provenance.json": Format("provenance.json", ("provenance", "verify"), True, True),
    "checkpoint.json": Format("checkpoints/*/checkpoint.json", ("weights", "verify"), True, True, _checkpoint),
    "model.safetensors": Format("checkpoints/*/model.safetensors", ("weights", "verify"), partner=_checkpoint),
    "table part": Format("analyses/probe/*.parquet", ("table", "probe", "verify")),
    "table manifest": Format("analyses/probe/_*.json", ("table", "probe", "verify"), True, True, _part),
    "table tensors": Format("analyses/probe/_*.safetensors", ("table", "verify")),
    "activations": Format("activations/*/*/*/*.bin", ("store", "stored")),
    "store manifest": Format("activations/*/*/*/*.json", ("store", "stored"), True, True, lambda file: file.stem),
}
# Damage that every check of a file must see.
CERTAIN = {"truncate", "folder", "bomb", "empty"}


def build(folder: Path) -> tuple[Path, Path]:
    """A run with probes and stored activations, and another one like it; their folders."""
    runs = []
    for name, seed in (("one", 3), ("other", 4)):
        run = workloads.train(folder / name, n_checkpoints=3, n_steps=_STEP, seed=seed)
        _probe(run)
        analyses.capture(run, **_CAPTURE, progress=False)
        runs.append(run.path)
    return runs[0], runs[1]


def _probe(run: qfl.Run) -> Any:
    return analyses.probe(run, "carry", [0, _STEP], config=workloads.PROBES, n_untrained=1, progress=False).rows


def _opened(folder: Path) -> Any:
    run = qfl.Run.open(folder)
    return run.config, task_identity(run.task), run.metrics.to_json(double_precision=15)


def _weights(folder: Path) -> Any:
    run = qfl.Run.open(folder)
    loaded = {name: value.numpy().tobytes() for name, value in run.load_model().state_dict().items()}
    states = [run.load_checkpoint(step) for step in run.steps]
    return loaded, [(s.step, {name: value.numpy().tobytes() for name, value in s.model.items()}) for s in states]


def _table(parts: Sequence[str], folder: Path) -> Any:
    table = qfl.Run.open(folder).table("probe")
    tensors = [{name: value.numpy().tobytes() for name, value in table.read_tensors(part).items()} for part in parts]
    return table.read(parts).to_json(double_precision=15), tensors


def _spans(folder: Path) -> Any:
    run = qfl.Run.open(folder)
    config = qfl.ProbeConfig(n_train=_CAPTURE["n"], n_test=_CAPTURE["n_test"])
    store, found = qfl.ActivationStore(folder / "activations"), []
    for part, examples in probe_data(run, config)._asdict().items():
        if len(examples):
            tokens, key = run.task.encode(examples).tokens, store_key(run, _STEP, part, examples, config)
            span = read_span(run.task, examples)
            load = partial(run.load_model, _STEP)
            spans = store.spans(key, load, tokens, *span, names=["resid_post"], progress=False)
            found += [value.values.numpy().tobytes() for value in spans.values()]
    return found, store.entries().to_json()


def _verified(folder: Path) -> list[str]:
    found = qfl.Run.open(folder).verify()
    return [*found.problems, *found.unchecked]


class RunFiles:
    """A finished run whose files are damaged one at a time, read, and put back.

    Args:
        folder: The run; it is changed on the way.
        other: Another run with the same files.
    """

    def __init__(self, folder: Path, other: Path) -> None:
        self._folder, self._other = folder, other
        parts = qfl.Run.open(folder).table("probe").parts()
        self.readings: dict[str, Callable[[Path], Any]] = {
            "open": _opened,
            "weights": _weights,
            "verify": _verified,
            "provenance": lambda folder: qfl.Run.open(folder).provenance,
            "table": partial(_table, parts),
            "probe": lambda folder: _probe(qfl.Run.open(folder)).to_json(double_precision=15),
            "store": _spans,
            "stored": lambda folder: qfl.ActivationStore(folder / "activations").verify(),
        }
        self._before = {name: read(folder) for name, read in self.readings.items()}
        self._bytes = self._on_disk()

    def _on_disk(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self._folder.rglob("*") if path.is_file()}

    def _restore(self) -> None:
        """Put every file back as it was."""
        now = self._on_disk()
        for path in now.keys() - self._bytes.keys():
            path.unlink()
        for path, data in self._bytes.items():
            if now.get(path) != data:
                put(path, data)

    def _others(self, file: Path, pattern: str) -> list[bytes]:
        """What stands in such files of the other run, and in this run's own others."""
        files = [*self._other.glob(pattern), *(path for path in self._folder.glob(pattern) if path != file)]
        return [path.read_bytes() for path in files]

    def damage(self, name: str, n: int, seed: int) -> Counter[tuple[str, str, Verdict]]:
        """How often each reading of `n` mutations of a format's files ended in each way: (mutation, reading, verdict).

        The reading "worst" is the worst of each mutation's.
        """
        kind, rng = FORMATS[name], random.Random(f"{name} {seed}")
        files = sorted(self._folder.glob(kind.pattern))
        counts: Counter[tuple[str, str, Verdict]] = Counter()

        def more(data: bytes, rng: random.Random) -> Makers:
            makers: Makers = {"empty": lambda: b"", "another's": lambda: rng.choice(self._others(file, kind.pattern))}
            return makers | (of_text(data, rng) if kind.is_text else {})

        for _ in range(n):
            file = rng.choice(files)
            data = self._bytes[file]
            mutation = mutate(data, rng, is_json=kind.is_json, more=more)
            verdicts: list[Verdict] = []
            for reading in kind.readings:
                put(file, mutation.data)
                verdicts.append(self._verdict(reading, name, file))
                counts[mutation.kind, reading, verdicts[-1]] += 1
                self._restore()
            counts[mutation.kind, "worst", max(verdicts, key=VERDICTS.index)] += 1
        return counts

    def _verdict(self, reading: str, name: str, file: Path) -> Verdict:
        def is_named(text: str) -> bool:
            return file.name in text or FORMATS[name].partner(file) in text

        try:
            found = self.readings[reading](self._folder)
        except qfl.QflError as error:
            return "named" if is_named(str(error)) else "unnamed"
        except Exception:
            return "traceback"
        if found == self._before[reading]:
            return "same"
        if reading in ("verify", "stored"):
            return "named" if any(map(is_named, found)) else "unnamed"
        return "silent"
