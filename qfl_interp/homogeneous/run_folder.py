"""The directory of a homogeneous network's training: configuration, checkpoints, tables, how it ended.

`config.json`, `checkpoints/step_XXXXXXXX/` (safetensors with checksums), `tables/{steps,layers,evaluations}/` (Parquet,
one part a checkpoint) and, at the end, `result.json`. Every file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.homogeneous.config import MLPConfig, MLPTrainConfig
from qfl_interp.homogeneous.images import Labelled
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.claimed import ClaimedFolder
from qfl_interp.runs.config import CONFIG_FILE
from qfl_interp.runs.run import CHECKPOINTS
from qfl_interp.runs.table import Table

RESULT_FILE, TABLES = "result.json", "tables"
FORMAT, VERSION = "qfl_interp homogeneous run", 1
# Tables of a run.
TABLE_NAMES = ("steps", "layers", "evaluations")

TableRows = dict[str, list[dict[str, Any]]]


class Ending(NamedTuple):
    """How a training ended.

    Attributes:
        status: "finished"; "diverged" (a loss that is not finite, or above the limit); "converged" (a batch was fitted
            exactly, which leaves no direction); "dead" (a layer's features or backward vectors were all zero).
        step: Updates completed.
    """

    status: str
    step: int


class Saved(NamedTuple):
    """Where a training can go on: what a checkpoint holds, and the rows before it."""

    step: int
    weights: dict[str, Tensor]
    rows: TableRows


class RunFolder(ClaimedFolder):
    """One training's directory, locked while it is open; use as a context manager.

    Model, training, the data's name and bytes, and the name of the user's rule ("" for the configuration's) name the
    run.

    Raises:
        QflError: The directory holds something else or a run of another configuration, or another process is in it.
    """

    def __init__(self, path: Path, model: MLPConfig, train: MLPTrainConfig, data: Labelled, rule: str = "") -> None:
        named = {
            "format": FORMAT, "version": VERSION, "model": model.to_dict(), "train": train.to_dict(),
            "data": {"name": data.name, "digest": data_digest(data)}, "rule": rule,
        }  # fmt: skip
        self._model, self._train = model, train
        self._text = json.dumps(named, indent=1, sort_keys=True).encode()
        super().__init__(path, {CONFIG_FILE: self._text}, CHECKPOINTS)
        self.digest = digest(self._text)

    def _check(self) -> None:
        """Raise `QflError` where the run that is there is another one."""
        if (self.path / CONFIG_FILE).read_bytes() != self._text:
            raise QflError(
                f"{self.path} holds a run with another configuration, data set or rule, or its {CONFIG_FILE} is "
                "damaged. Compare it, or train into another directory; nothing was changed."
            )

    def table(self, name: str) -> Table:
        """One of the run's tables."""
        return Table(self.path / TABLES / name)

    def save(self, step: int, weights: Mapping[str, Tensor], rows: TableRows) -> None:
        """The rows since the checkpoint before, then the checkpoint, so that a checkpoint has all rows before it."""
        for name in TABLE_NAMES:
            if rows[name]:
                self.table(name).write(ckpt.step_name(step), pd.DataFrame(rows[name]))
        ckpt.save_checkpoint(self.path / CHECKPOINTS, ckpt.Checkpoint(step, self.digest, dict(weights), None))

    def latest(self) -> Saved | None:
        """The last checkpoint that is whole, and all rows before it are; None where there is none.

        One that is damaged is warned of: training from an earlier one gives the same numbers again.
        """
        for folder in sorted((self.path / CHECKPOINTS).glob("step_*"), key=lambda p: p.name, reverse=True):
            try:
                saved = ckpt.load_checkpoint(folder, config_digest=self.digest)
                rows = self._rows(saved.step)
                self._require_whole(saved.step, rows)
            except QflError as error:
                warnings.warn(f"{error} Training goes on from an earlier checkpoint.", stacklevel=3)
                continue
            return Saved(saved.step, saved.model, rows)
        return None

    def _require_whole(self, step: int, rows: TableRows) -> None:
        """Raise `QflError` where a row is missing that was written before the checkpoint of a step."""
        every = self._train.eval_every
        logged = list(range(0, step, self._train.log_every))
        measured = {0, *(range(every, min(step + 1, self._train.n_steps), every) if every else ())}
        wanted = {"steps": logged, "layers": [at for at in logged for _ in range(self._model.depth)]}
        missing = [name for name, at in wanted.items() if [row["step"] for row in rows[name]] != at]
        if not measured <= {row["step"] for row in rows["evaluations"]}:
            missing.append("evaluations")
        if missing:
            where = self.path / TABLES / missing[0]
            raise QflError(f"{where} lacks rows that were written before step {step}.")

    def _rows(self, up_to: int) -> TableRows:
        """What the tables hold of the checkpoints up to a step."""
        found: TableRows = {}
        for name in TABLE_NAMES:
            table = self.table(name)
            parts = [part for part in table.parts() if (ckpt.parse_step(part) or 0) <= up_to]
            found[name] = [{str(k): v for k, v in row.items()} for row in table.read(parts).to_dict("records")]
        return found

    def reopen(self) -> None:
        """Forget how it ended: what was there then is damaged, and is trained again."""
        (self.path / RESULT_FILE).unlink(missing_ok=True)

    def end(self, ending: Ending, rows: TableRows) -> None:
        """Record how it ended and how many rows there are; the run is complete."""
        ckpt.write_atomic(self.path / RESULT_FILE, self._result(ending, rows))

    def ending(self) -> Ending | None:
        """How it ended; None where it has not, or where that is damaged, of which there is a warning."""
        path = self.path / RESULT_FILE
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_bytes())
            ending = Ending(found["status"], found["step"])
            whole = found["sha256"] == _sealed(ending, found["rows"])
        except (ValueError, TypeError, KeyError):
            whole = False
        if whole:
            return ending
        warnings.warn(f"{path} is damaged. Training goes on from the last checkpoint.", stacklevel=3)
        return None

    def is_complete(self, ending: Ending, saved: Saved | None) -> bool:
        """Whether what is saved is the end of the training, with every row; a warning where it is not."""
        if saved is not None and (self.path / RESULT_FILE).read_bytes() == self._result(ending, saved.rows):
            return saved.step == ending.step
        warnings.warn(f"{self.path} lacks rows of its end. It is trained again from where it is whole.", stacklevel=3)
        return False

    @staticmethod
    def _result(ending: Ending, rows: TableRows) -> bytes:
        """What the file of the result holds."""
        counts = {name: len(rows[name]) for name in TABLE_NAMES}
        return json.dumps(ending._asdict() | {"rows": counts, "sha256": _sealed(ending, counts)}).encode()


def _sealed(ending: Ending, counts: Mapping[str, int]) -> str:
    """A checksum of a result."""
    return hashlib.sha256(json.dumps([ending, counts], sort_keys=True).encode()).hexdigest()


def data_digest(data: Labelled) -> str:
    """Twelve hexadecimal digits of the data's bytes."""
    parts = (data.train_x, data.train_y, data.test_x, data.test_y)
    return digest(*(x for p in parts for x in (f"{p.dtype}{tuple(p.shape)}", p.contiguous().numpy().data)))
