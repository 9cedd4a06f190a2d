"""The rows of a sweep on disk: Parquet parts by task, each named after its own checksum, which reading checks.

`results/task=addition/part-ID-SHA.parquet`: SHA is the start of the file's SHA-256, as `sha256sum` prints it.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qfl_interp.errors import QflError
from qfl_interp.sweep.storage import Storage

RESULTS = "results"
# Column -> type in the Parquet files; "task" is the partition.
COLUMNS: dict[str, str] = {
    "length": "int64", "task_options": "str", "budget_flops": "float64",
    "style": "str", "d_model": "int64", "n_layers": "int64", "n_heads": "int64",
    "lr": "float64", "batch_size": "int64", "seed": "int64", "schedule": "str", "weight_decay": "float64",
    "n_steps": "int64", "flops": "float64", "actual_flops": "float64", "n_parameters": "int64",
    "val_loss": "float64", "val_exact": "float64", "val_loss_answer": "float64", "val_exact_answer": "float64",
    "val_pass": "float64", "val_pass_answer": "float64", "n_val": "int64",
    "seconds": "float64", "status": "str", "error": "str", "attempts": "int64", "group_size": "int64",
    "device": "str", "configuration": "str", "run_id": "str", "path": "str", "finished_at": "str",
}  # fmt: skip
# How runs end, the better first: a run that finished once has finished, whatever a clock says of its other rows. One
# that diverged is a result too, and is not trained again; a failed one is.
OUTCOMES = ("finished", "diverged", "failed")
_ARROW = {"int64": pa.int64(), "float64": pa.float64(), "str": pa.large_string()}
_SHA_DIGITS = 16
# Listings tried while the sweep that runs there puts its parts together.
_TRIES = 3


class Part(NamedTuple):
    """A file of rows; `checked` is False where an earlier version wrote it without a checksum in its name."""

    path: str
    rows: pa.Table
    checked: bool


def part_paths(storage: Storage) -> list[str]:
    """The sorted paths of all parts, relative to the sweep's folder.

    Raises:
        QflError: A folder of them is no folder or cannot be listed.
    """
    return storage.glob(f"{RESULTS}/task=*/part-*.parquet")


def part_task(path: str) -> str:
    """The task of a part's rows: its folder's name says it."""
    return path.split("/")[1].removeprefix("task=")


def write_part(storage: Storage, task: str, rows: pd.DataFrame) -> None:
    """Write rows of one task as a new part.

    Raises:
        StorageError: The storage is full or cannot be written.
    """
    data = rows.reindex(columns=list(COLUMNS)).astype(COLUMNS).to_parquet(index=False)
    storage.write_bytes(f"{RESULTS}/task={task}/part-{uuid.uuid4().hex[:12]}-{_sha(data)}.parquet", data)


def read_part(storage: Storage, path: str) -> Part:
    """One part's rows, with a column `task`; NaN is null.

    Raises:
        FileNotFoundError: It is not there (any more).
        QflError: It is not what was written, or its columns are not `COLUMNS`; names the file.
    """
    data = storage.read_bytes(path)
    pieces = path.rpartition("/")[2].removesuffix(".parquet").split("-")
    checked = len(pieces) == 3
    if checked and _sha(data) != pieces[2]:
        raise _damaged(storage, path, "it does not match the checksum in its name, so it is not what was written")
    task = part_task(path)
    try:
        rows = _typed(pq.read_table(io.BytesIO(data)))
        wrong = _first_wrong(rows, task)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError, OverflowError) as error:
        raise _damaged(storage, path, " ".join(str(error).split())) from error
    if wrong:
        raise _damaged(storage, path, wrong)
    return Part(path, rows.add_column(0, "task", pa.array([task] * len(rows), pa.large_string())), checked)


def read_rows(storage: Storage) -> pa.Table | None:
    """The row that counts of every run, with a column `task` before `COLUMNS`; None before any run has ended.

    Raises:
        QflError: A part is damaged or cannot be read; names it.
    """
    for _ in range(_TRIES):
        try:
            parts = [read_part(storage, path).rows for path in part_paths(storage)]
        except FileNotFoundError:  # the sweep that runs there has just put its parts together into others
            continue
        if not parts:
            return None
        rows = pa.concat_tables(parts)
        found = latest(rows.select(["task", "run_id", "status", "finished_at"]).to_pandas())
        return rows.take(pa.array(found.index))
    raise QflError(f"the parts of {storage.folder}/{RESULTS} were replaced while they were read. Ask once more.")


def latest(rows: pd.DataFrame) -> pd.DataFrame:
    """The row of each run that counts: of its best outcome (`OUTCOMES`) the last one by `finished_at`.

    The outcome comes before the clock: a failed attempt from a machine whose clock is ahead hides no finished run.
    """
    rank = rows["status"].map(lambda outcome: -OUTCOMES.index(outcome))
    ordered = rows.assign(_rank=rank).sort_values(["_rank", "finished_at"], kind="stable").drop(columns="_rank")
    return ordered.drop_duplicates([name for name in ("task", "run_id") if name in rows], keep="last")


def _typed(table: pa.Table) -> pa.Table:
    """The columns of a part in their types, every value valid."""
    if "task_options" not in table.column_names:  # rows of before tasks had options
        table = table.append_column("task_options", pa.array([""] * len(table), pa.large_string()))
    if sorted(table.column_names) != sorted(COLUMNS):
        odd = set(table.column_names) ^ set(COLUMNS)
        raise ValueError(
            f"its columns are not those that were written ({', '.join(sorted(odd)) or 'one is there twice'})"
        )
    for name, kind in COLUMNS.items():
        found = table.schema.field(name).type
        if found != _ARROW[kind] and not (kind == "str" and found == pa.string()):
            raise ValueError(f"its column {name} must hold {kind}, got {found}")
    table.validate(full=True)
    return table.select(list(COLUMNS)).cast(pa.schema([(name, _ARROW[kind]) for name, kind in COLUMNS.items()]))


def _first_wrong(rows: pa.Table, task: str) -> str:
    """What is wrong with the values of a part; empty where nothing is."""
    for name, kind in COLUMNS.items():
        if kind != "float64" and rows[name].null_count:
            return f"its column {name} has rows without a value"
    strange = [name for name in rows["status"].unique().to_pylist() if name not in OUTCOMES]
    if strange:
        return f"its column status must hold one of {', '.join(OUTCOMES)}, got {strange[0]!r}"
    foreign = next((name for name in rows["run_id"].to_pylist() if not name.startswith(task)), None)
    return f"it holds run {foreign!r}, which is not of the task {task!r} of its folder" if foreign else ""


def _damaged(storage: Storage, path: str, why: str) -> QflError:
    return QflError(
        f"{storage.folder}/{path} is damaged: {why}. Restore it, or delete it and call the sweep again: the rows of "
        "finished runs are made anew from their directories, and runs that diverged or failed are trained again."
    )


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_SHA_DIGITS]
