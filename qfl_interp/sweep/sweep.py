"""A sweep opened for reading: its runs as one table, asked by DuckDB, and the best at a budget or of a shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qfl_interp.errors import QflError, unknown_name
from qfl_interp.files import local_path
from qfl_interp.runs.run import Run
from qfl_interp.runs.workplace import enter, workplace
from qfl_interp.sweep.complete import read_all_rows
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import read_definition
from qfl_interp.sweep.parts import OUTCOMES
from qfl_interp.sweep.query import TIMEOUT_SECONDS, ask
from qfl_interp.sweep.storage import Storage
from qfl_interp.tables import column, distinct, select

RULES = ("mean", "paper")
# What tables show of a configuration; column `configuration` names it whole, and its runs differ in the seed only.
CONFIGURATION = ("style", "d_model", "n_layers", "n_heads", "lr", "batch_size", "schedule", "weight_decay")
_ORDER = ("task", "length", "task_options", "budget_flops", "d_model", "n_layers", "lr", "batch_size", "seed", "run_id")


class Sweep:
    """The results of a sweep, also while it runs: every question reads what is on disk then.

    Attributes:
        path: The folder as it was given: a local path, or an fsspec URL.
        config: The definition.
        storage: The folder's files.
    """

    def __init__(self, storage: Storage, config: SweepConfig) -> None:
        self.path = storage.folder
        self.config = config
        self.storage = storage

    @classmethod
    def open(cls, path: str | Path) -> Sweep:
        """The sweep in a folder, local or an fsspec URL.

        Raises:
            QflError: There is none, or it was written by another version.
        """
        storage = Storage(str(path))
        return cls(storage, read_definition(storage))

    def query(
        self,
        sql: str,
        parameters: dict[str, Any] | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        unrestricted: bool = False,
    ) -> pd.DataFrame:
        """What a DuckDB query answers on the view `runs`: one row a run, with the columns of `table`.

        The query reads the view and nothing else: no files, no extensions, 1 GB of memory, a minute of time.

        Args:
            sql: One SELECT statement; values as `$name`.
            parameters: The values.
            timeout_seconds: When it is stopped.
            unrestricted: Let it do whatever DuckDB can, such as `copy (...) to 'FILE'`, without a limit of time or
                memory; for queries that you trust.

        Raises:
            QflError: No run has ended yet, a part of the results is damaged or was deleted, or the query is refused,
                reaches a limit or is not one statement; says why.

        Example:
            `sweep.query("select task, min(val_loss) as loss from runs where status = 'finished' group by task")`
        """
        rows = read_all_rows(self.storage)
        if rows is None:
            raise QflError(
                f"sweep {self.path} has no results yet: no run has ended. `qfl sweep status` shows where it is."
            )
        return ask(rows, sql, parameters or {}, timeout_seconds=timeout_seconds, unrestricted=unrestricted)

    def table(self, task: str | None = None, length: int | None = None) -> pd.DataFrame:
        """One row a run, sorted by task, length, options, budget, shape, learning rate, batch and seed.

        Columns: task and `records.COLUMNS`. Losses are those of the final validation, in nats a token; NaN for a run
        that did not finish (`status` "diverged" or "failed", with `error`).

        Args:
            task: Only this one.
            length: Only this one.

        Raises:
            QflError: No run has ended yet, or none of this task or length.
        """
        where = {name: value for name, value in (("task", task), ("length", length)) if value is not None}
        condition = " and ".join(f"{name} = ${name}" for name in where) or "true"
        rows = self.query(f"select * from runs where {condition} order by {', '.join(_ORDER)}", where)
        if rows.empty:
            raise self._unknown(task, length)
        return rows

    def _unknown(self, task: str | None, length: int | None) -> QflError:
        """Why no row has this task and length."""
        known = self.query("select distinct task, length from runs order by all")
        if task is not None and task not in distinct(known, "task"):
            return unknown_name(f"task with a run in {self.path}", task, distinct(known, "task"))
        lengths = sorted(distinct(known if task is None else select(known, task=task), "length"))
        return QflError(
            f"no run in {self.path} has length {length}{f' of {task}' if task else ''}. "
            f"There are {', '.join(str(n) for n in lengths)}."
        )

    def best(
        self, budget_flops: float, *, task: str | None = None, length: int | None = None, rule: str = "mean"
    ) -> pd.DataFrame:
        """The runs of the configuration that does best at a budget, for each task, length and options that ran there.

        Args:
            budget_flops: A budget of the grid.
            task: Only this one.
            length: Only this one.
            rule: "mean": the configuration with the lowest mean over seeds of the final validation loss, all its
                finished runs. One with fewer finished seeds comes after all with more, so that luck with a few
                seeds does not win, and one with a diverged run after those without. "paper": the single run of
                lowest loss, which is optimistic.

        Returns:
            Rows of `table`, finished ones.

        Raises:
            QflError: No run had this budget (names the nearest), or none finished; also as `table`.

        References:
            Quiet Feature Learning, arXiv 2505.03997: per budget the run with the lowest final validation loss.
        """
        rows = self.table(task, length)
        budgets = column(rows, "budget_flops")
        at = np.isclose(budgets, budget_flops, rtol=1e-6, atol=0)
        if not at.any():
            known = np.unique(budgets)
            nearest = known[np.abs(np.log(known) - np.log(max(budget_flops, 1.0))).argmin()]
            raise QflError(
                f"no run in {self.path} had a budget of {budget_flops:g} FLOPs. The nearest is {nearest:g}; "
                f"there are {', '.join(f'{b:g}' for b in known)}."
            )
        there = pd.DataFrame(rows[at])
        found = _best_of(there, ["task", "length", "task_options"], rule)
        if found.empty:
            raise QflError(
                f"no run of {budget_flops:g} FLOPs in {self.path} has finished: {_counts(there)}. "
                "`qfl sweep status` says which are left."
            )
        return found

    def matched(
        self, d_model: int, n_layers: int, *, task: str | None = None, length: int | None = None, rule: str = "mean"
    ) -> pd.DataFrame:
        """The runs of one shape at every budget, for each task, length and options, at its best rate and batch there.

        With the shape of `best` at a target budget this is the paper's matched configurations.

        Args:
            d_model: The shape's width.
            n_layers: The shape's depth.
            task: Only this one.
            length: Only this one.
            rule: As in `best`, for each budget.

        Returns:
            Rows of `table`, finished ones; a budget at which no run of the shape finished has none.

        Raises:
            QflError: No run had this shape (lists those there are), or none finished; also as `table`.
        """
        rows = self.table(task, length)
        of_shape = select(rows, d_model=d_model, n_layers=n_layers)
        if of_shape.empty:
            shapes = sorted(set(zip(rows["d_model"].tolist(), rows["n_layers"].tolist(), strict=True)))
            known = ", ".join(f"{width} x {depth}" for width, depth in shapes)
            raise QflError(
                f"no run in {self.path} has d_model {d_model} and n_layers {n_layers}. "
                f"There are (d_model x n_layers) {known}."
            )
        found = _best_of(of_shape, ["task", "length", "task_options", "budget_flops"], rule)
        if found.empty:
            raise QflError(
                f"no run of this shape in {self.path} has finished: {_counts(of_shape)}. "
                "`qfl sweep status` says which are left."
            )
        return found

    def run(self, run_id: str, *, into: str | Path | None = None) -> Run:
        """The run of one row.

        Args:
            run_id: As in the table.
            into: For a sweep on remote storage: the local folder it is downloaded to.

        Raises:
            QflError: No row has this id, `into` is missing, or the run's directory is no run.
        """
        rows = self.query("select path from runs where run_id = $run_id", {"run_id": run_id})
        if rows.empty:
            nearest = "select run_id from runs order by levenshtein(run_id, $run_id), run_id limit 3"
            names = " or ".join(repr(name) for name in self.query(nearest, {"run_id": run_id})["run_id"].tolist())
            raise QflError(f"no run in {self.path} is named {run_id!r}. Did you mean {names}? sweep.table() lists all.")
        path = str(rows["path"].iloc[0])
        if self.storage.is_local:
            return Run.open(self.storage.local_path / path)
        if into is None:
            raise QflError(f"sweep {self.path} is remote: say where to download the run, run(run_id, into=FOLDER).")
        local = Path(into) / run_id
        self.storage.pull_run(path, local)
        return Run.open(local)

    def page(self, name: str) -> Path:
        """Where a page of this name belongs: the folder, or where that cannot be written, the user's for this sweep.

        Raises:
            QflError: The sweep is remote, or the user's folder cannot be made.
        """
        own = local_path(self.path)
        place = workplace(own, self.config.name)
        enter(own, place)
        return place / name

    def __repr__(self) -> str:
        try:
            found = read_all_rows(self.storage)
        except QflError as error:
            return f"Sweep({self.path!r}: {error})"
        if found is None:
            return f"Sweep({self.path!r}: no results yet)"
        rows = found.select(["task", "status"]).to_pandas()
        return f"Sweep({self.path!r}: {', '.join(sorted(set(rows['task'].tolist())))}; {_counts(rows)})"


def _best_of(rows: pd.DataFrame, group: list[str], rule: str) -> pd.DataFrame:
    """Within each group the finished rows of the best configuration, or the best row; the rows' order is kept."""
    if rule not in RULES:
        raise unknown_name("rule for the best configuration", rule, RULES)
    keys = [*group, "configuration"]
    rows = rows.assign(_bad=rows["status"] == "diverged")
    rows["_bad"] = rows.groupby(keys)["_bad"].transform("any")
    rows = select(rows, status="finished")
    if rule == "paper":
        found = rows.sort_values("val_loss", kind="stable").drop_duplicates(group).sort_index()
    else:
        by_configuration = rows.groupby(keys)["val_loss"]
        rows = rows.assign(_mean=by_configuration.transform("mean"), _fewer=-by_configuration.transform("size"))
        first = rows.sort_values(["_fewer", "_bad", "_mean"], kind="stable").drop_duplicates(group)[keys]
        found = rows.merge(first, on=keys).drop(columns=["_mean", "_fewer"])
    return found.drop(columns="_bad").reset_index(drop=True)


def _counts(rows: pd.DataFrame) -> str:
    """How many rows have each status: "12 finished, 1 diverged, 0 failed"."""
    return ", ".join(f"{len(select(rows, status=name))} {name}" for name in OUTCOMES)
