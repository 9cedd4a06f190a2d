"""The queue of sweeps/paper_lengths.toml: its items in order, and what each waits for."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paper_kept import Kept

import qfl_interp as qfl
from qfl_interp.config import Options
from qfl_interp.runs.config import RunConfig
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.plan import plan_sweep, task_at
from qfl_interp.training.train import plan_run

QUEUE = Path(__file__).resolve().parent.parent / "sweeps" / "paper_lengths.toml"
SEARCHES = ("rates", "widths", "seeds")
# A run is solved from this share of right answers on, and has just begun between these parts of the base rate.
SOLVED, BEGUN, HALF = 0.95, 0.95, 0.5
# With a smaller share there is nothing to lose: no ablation.
LEAST_RIGHT = 0.1
# What the searches choose, and runs of one task share.
SHAPE = ("d_model", "batch_size", "lr")
# Where no search has chosen yet.
_USUAL: dict[str, Any] = {"d_model": 64, "batch_size": 8, "lr": 3e-3}
# A kept run.
Row = dict[str, Any]


class Entry(NamedTuple):
    """A task of the queue.

    Attributes:
        name: The task's.
        length: Its length.
        chosen: Width, batch size and learning rate, where no search has to find them.
        search: FLOPs of a run of its searches, where not the common ones.
        lucky: Whether one seed says little, so that a third search, over learning rates and seeds, chooses.
        first: The budget that stands for the first stage's.
        window: Where the paper draws the transition, FLOPs; empty where it draws none.
        paper: The paper's verdict on each feature it names.
        drops: The points of exact match that the paper's ablation of a feature costs.
        interchanged: The feature whose labels are interchanged at a run's end.
        interchange: Those labels.
        carries: Inner carries of addition that are swapped along their own directions.
    """

    name: str
    length: int
    chosen: dict[str, Any] = {}  # noqa: RUF012  # never changed
    search: float | None = None
    lucky: bool = False
    first: float | None = None
    window: tuple[float, ...] = ()
    paper: dict[str, str] = {}  # noqa: RUF012  # never changed
    drops: dict[str, float] = {}  # noqa: RUF012  # never changed
    interchanged: str = ""
    interchange: tuple[int, ...] = ()
    carries: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """What its items begin with."""
        return f"{self.name}-{self.length}"

    @property
    def task(self) -> qfl.Task:
        """The task, made once."""
        return task_at(self.name, self.length, Options())


class Item(NamedTuple):
    """One piece of work: a search (`kind` one of `SEARCHES`) or a run (`kind` "run").

    Attributes:
        entry: Its task.
        kind: What it is.
        budget: FLOPs of a run, or of each run of the search.
        seed: Of the run.
        across: Whether only the final model is probed.
    """

    entry: Entry
    kind: str
    budget: float
    seed: int = 0
    across: bool = False

    @property
    def name(self) -> str:
        """Unique: the folder of its tables."""
        if self.kind in SEARCHES:
            return f"{self.entry.label}-{self.kind}"
        return f"{self.entry.label}-{budget_name(self.budget)}-s{self.seed}"


def budget_name(budget: float) -> str:
    """A budget as names say it: "3e12"."""
    mantissa, exponent = f"{budget:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


class Queue:
    """The definition, beside what is kept."""

    def __init__(self, kept: Kept, path: Path = QUEUE) -> None:
        self.kept = kept
        self.settings: dict[str, Any] = tomllib.loads(path.read_text())
        self.entries = [Entry(**{k: _plain(v) for k, v in one.items()}) for one in self.settings["task"]]

    @property
    def probes(self) -> qfl.ProbeConfig:
        """How features are probed."""
        return qfl.ProbeConfig(**self.settings["probes"])

    def items(self) -> list[Item]:
        """Everything there may be to do, in order; what waits for a condition is in it, too."""
        rows, found = self.kept.rows(), []
        for kind in SEARCHES:
            for entry in self.entries:
                if not entry.chosen and (entry.lucky or kind != "seeds"):
                    found.append(Item(entry, kind, self._search_budget(entry, kind)))
        seen = {entry.label: self.seen(rows, entry) for entry in self.entries}
        for stage in self.settings["stage"]:
            for entry in self.entries:
                for budget in stage["budgets"]:
                    found += self._runs(entry, stage, budget, seen[entry.label])
        once = {item.name: item for item in reversed(found)}
        return [item for item in found if once[item.name] is item]

    def seen(self, rows: list[Row], entry: Entry) -> dict[float, Row]:
        """The task's runs of seed 0 that were watched while they trained, of its shape, by their budgets."""
        own = [r for r in rows if (r["task"], r["length"], r["seed"]) == (*entry[:2], 0) and not r["across"]]
        return {row["budget_flops"]: row for row in of_shape(own, self.shape(entry))}

    def _search_budget(self, entry: Entry, kind: str) -> float:
        """FLOPs of each run of a search."""
        return self.settings[kind]["budget_flops"] if entry.search is None else entry.search

    def _runs(self, entry: Entry, stage: dict[str, Any], budget: float | str, seen: dict[float, Row]) -> list[Item]:
        """The runs of a stage at one budget, where its condition holds of what was `seen`."""
        when, across = stage.get("when", ""), stage.get("across", False)
        solved = any(row["exact_match"] >= SOLVED for row in seen.values())
        if "transition" in (budget, when):
            # While seed 0 may still go to a larger budget the one that counts is not known.
            if not seen or not (solved or self._largest in seen):
                return []
            chosen = verdict_budget(seen)
            if not (math.isfinite(seen[chosen]["transition_start"]) or (budget == "transition" and entry.paper)):
                return []
            budget = chosen if budget == "transition" else budget
        assert isinstance(budget, float)
        if stage is self.settings["stage"][0] and entry.first is not None:
            budget = entry.first
        if when == "not solved" and any(row["exact_match"] >= SOLVED for b, row in seen.items() if b < budget):
            return []
        if when == "just begun" and not (self._largest in seen and just_begun(seen[self._largest])):
            return []
        return [Item(entry, "run", budget, seed, across) for seed in stage["seeds"]]

    @property
    def _largest(self) -> float:
        """The budget to which every task goes that is not solved before."""
        return max(b for stage in self.settings["stage"] if stage.get("when") == "not solved" for b in stage["budgets"])

    @property
    def curve(self) -> set[float]:
        """The budgets of a curve across compute that every seed has."""
        return {
            b for stage in self.settings["stage"] if stage.get("across") and stage.get("when") for b in stage["budgets"]
        }

    def done(self, item: Item) -> bool:
        """Whether the item is kept, of the budget and of the shape that the searches chose."""
        if not self.kept.has(item.name):
            return False
        shape, about = self.shape(item.entry), self.kept.about(item.name)
        if item.kind != "run":
            return about["budget_flops"] == item.budget
        enough = item.across or not about["across"]  # one that was watched does for one that need not be
        return enough and (shape is None or shape == {name: about[name] for name in SHAPE})

    def shape(self, entry: Entry) -> dict[str, Any] | None:
        """Width, batch size and learning rate: as chosen, or of the search's best run; None before it is made."""
        if entry.chosen:
            return dict(entry.chosen)
        return self.best(entry, "seeds" if entry.lucky else "widths")

    def best(self, entry: Entry, kind: str) -> dict[str, Any] | None:
        """The search's shape with the lowest mean validation loss over the answer; None before it is kept."""
        table = self.kept.search(f"{entry.label}-{kind}")
        if table is None:
            return None
        d_model, batch_size, lr = table.groupby(list(SHAPE))["val_loss_answer"].mean().idxmin()
        return {"d_model": int(d_model), "batch_size": int(batch_size), "lr": float(lr)}

    def ready(self, item: Item) -> bool:
        """Whether what it is made from is kept."""
        if item.kind == "run":
            return self.shape(item.entry) is not None
        return item.kind != "widths" or self.best(item.entry, "rates") is not None

    def sweep(self, item: Item) -> SweepConfig:
        """The search of an item, of rates or of seeds."""
        at = self.settings[item.kind] | {"task": item.entry.name, "length": item.entry.length}
        grid = self.settings["defaults"] | at | {"budget_flops": item.budget}
        return SweepConfig.from_dict({"name": item.name, "min_steps": 1, "max_steps": 10**7, "grid": [grid]})

    def run(self, item: Item) -> RunConfig:
        """The run of an item; of the search's usual shape while the task's own is not known."""
        return self._run_of_shape(item, self.shape(item.entry) or _USUAL)

    def _run_of_shape(self, item: Item, shape: dict[str, Any]) -> RunConfig:
        """The run of an item's budget and seed, of any shape."""
        train = {name: shape[name] for name in ("batch_size", "lr")} | {"budget_flops": item.budget, "seed": item.seed}
        settings = {"n_checkpoints": 2} if item.across else self.settings["run"]
        model = qfl.ModelConfig(d_model=shape["d_model"], **self.settings["defaults"])
        return plan_run(item.entry.task, model, qfl.TrainConfig(**train, **settings), allow_overshoot=True)

    def planned(self, item: Item) -> Sequence[RunConfig]:
        """The runs that an item trains."""
        if item.kind == "run":
            return [self.run(item)]
        if item.kind == "widths":
            at = self.best(item.entry, "rates") or _USUAL
            return [self._run_of_shape(item, at | {"d_model": width}) for width in self.settings["widths"]["d_model"]]
        return [run.config for run in plan_sweep(self.sweep(item)).runs]


def of_shape(rows: list[Row], shape: dict[str, Any] | None) -> list[Row]:
    """The runs of a shape; those of the last one while it is not chosen yet."""
    if shape is None and rows:
        shape = {name: rows[-1][name] for name in SHAPE}
    return [row for row in rows if shape == {name: row[name] for name in SHAPE}]


def verdict_budget(seen: dict[float, Row]) -> float:
    """The budget that verdicts are of: the smallest whose run has a whole transition, else any, else the largest.

    Args:
        seen: A task's runs of seed 0 by their budgets, which increase.
    """
    found = [budget for budget, row in seen.items() if math.isfinite(row["transition_start"])]
    whole = [budget for budget in found if seen[budget]["complete_transition"]]
    return (whole or found[::-1] or list(seen)[::-1])[0]


def just_begun(row: Row) -> bool:
    """Whether a run's loss has left the base rate, and less than half of the way to 0 is behind it."""
    return HALF * row["base_rate"] < row["final_loss"] < BEGUN * row["base_rate"]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
