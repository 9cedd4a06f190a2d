"""One item of the queue: a search trained, or a run trained, probed and ablated; what came out is kept."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from paper_carry import inner_carries
from paper_kept import Kept
from paper_queue import LEAST_RIGHT, Item, Queue, budget_name

import qfl_interp as qfl
from qfl_interp.analyses import ablate, emergence, interchange, probe
from qfl_interp.data.next_token import next_token_labels
from qfl_interp.errors import QflError
from qfl_interp.runs.provenance import device_name
from qfl_interp.sweep.jobs import JobSettings
from qfl_interp.sweep.pool import Pool
from qfl_interp.sweep.run_sweep import Execution, run_sweep
from qfl_interp.tables import column, distinct
from qfl_interp.training.session import DivergedError
from qfl_interp.training.train import train_planned

# A feature of more labels is taken out group by group, in so many groups.
MOST_LABELS: Final = 20
N_GROUPS: Final = 8
# Directions that the model writes along, and those of the probes, as the paper does; at the layers of the best probes.
METHODS: Final = ("written", "project_out")
# Trials of every control: of whole features, and of single labels.
TRIALS, TRIALS_BY_LABEL = 4, 1
# Pairs of an interchange: shares are near 0 or 1.
PAIRS: Final = 96
# Of every kind, of inner carries.
CARRY_PAIRS: Final = 60
# Parts of a run's compute between which the middle one is swapped, too.
CARRY_WINDOW: Final = (1 / 30, 1 / 2)
_METRICS = ("step", "flops", "seconds", "train_loss")
_PROBES = (
    "feature", "metric", "source", "model_seed", "step", "flops", "layer", "head", "label", "fitted", "train_loss",
    "test_loss", "test_score", "shuffled_test_loss", "majority_test_loss", "next_token",
)  # fmt: skip
# What is kept of the runs of a search.
_SEARCH = [
    "task", "length", "budget_flops", "d_model", "n_layers", "batch_size", "lr", "seed", "status", "n_steps",
    "val_loss", "val_loss_answer", "val_exact_answer", "seconds", "group_size", "run_id",
]  # fmt: skip

Say = Callable[[str], None]
MakePool = Callable[[JobSettings], Pool]


def work(
    queue: Queue, item: Item, out: Path, kept: Kept, say: Say, *, predicted: float, pool: MakePool | None = None
) -> None:
    """Do an item from where it stands, and keep its tables.

    Args:
        queue: Says what the item is.
        item: What to do.
        out: Where its runs are.
        kept: Takes its tables.
        say: Takes a line of progress.
        predicted: Minutes that its training will take, kept beside those it took.
        pool: Trains the runs of a search, here by default.

    Raises:
        QflError: It could not be trained or analysed; what is done so far stays in `out`.
    """
    start = time.monotonic()
    if item.kind != "run":
        table = _widths(queue, item, out) if item.kind == "widths" else _sweep(queue, item, out, pool)
        about = {"kind": item.kind, "task": item.entry.name, "length": item.entry.length, "budget_flops": item.budget}
        about |= {"predicted_minutes": predicted, **_made(start)}
        kept.write(item.name, about, {"search": table})
        return
    config = queue.run(item)
    try:
        run = train_planned(item.entry.task, config, out / config.run_id)
    except DivergedError as error:
        raise QflError(f"{item.name} diverged: {error}") from error
    say(f"{item.name}: trained")
    begun = kept.about(item.name) if item.name in kept.names() else {}
    if begun.get("run_id") == run.run_id:  # what was predicted when it began
        predicted = begun.get("predicted_minutes", predicted)
    about = {
        "kind": "run", "task": config.task, "length": config.length, "seed": item.seed, "across": item.across,
        "d_model": config.model.d_model, "n_layers": config.model.n_layers, "batch_size": config.batch_size,
        "lr": config.train.lr, "budget_flops": item.budget, "n_steps": config.n_steps, "run_id": run.run_id,
        "base_rate": run.task.baselines["base_rate"], "n_parameters": run.n_parameters, "n_val": config.n_val,
        "train_seconds": float(column(run.metrics, "seconds")[-1]), "predicted_minutes": predicted,
    }  # fmt: skip
    tables = {"metrics": kept_metrics(run.metrics)}
    kept.write(item.name, about | {"complete": False, **_made(start)}, tables)
    tables |= probed(queue, item, run)
    say(f"{item.name}: probed")
    if not item.across and column(tables["metrics"], "val_exact_answer")[-1] >= LEAST_RIGHT:
        kept.write(item.name, about | {"complete": False, **_made(start)}, tables)
        tables |= ablated(queue, item, run, tables["probe"], say)
    kept.write(item.name, about | {"complete": True, **_made(start)}, tables)


def _sweep(queue: Queue, item: Item, out: Path, pool: MakePool | None) -> pd.DataFrame:
    """The runs of a search of many, trained as a sweep: of one shape as a stack."""
    execution = Execution(workers=1, threads=1, stack=4)
    folder = str(out / f"{item.name}-{budget_name(item.budget)}")
    return run_sweep(queue.sweep(item), folder, execution, extend=True, progress=False, pool=pool).table()[_SEARCH]


def _widths(queue: Queue, item: Item, out: Path) -> pd.DataFrame:
    """The runs of a search over widths, trained one by one, where the run of the width that is chosen is looked for."""
    rows = []
    for config in queue.planned(item):
        about = {
            "task": config.task, "length": config.length, "budget_flops": item.budget, "d_model": config.model.d_model,
            "n_layers": config.model.n_layers, "batch_size": config.batch_size, "lr": config.train.lr,
            "seed": config.train.seed, "n_steps": config.n_steps, "group_size": 1, "run_id": config.run_id,
        }  # fmt: skip
        try:
            last = train_planned(item.entry.task, config, out / config.run_id).metrics.iloc[-1]
            scores = last[["val_loss", "val_loss_answer", "val_exact_answer", "seconds"]]
            rows.append(about | {"status": "finished", **scores.to_dict()})
        except DivergedError:
            rows.append(about | {"status": "diverged"})
    return pd.DataFrame(rows, columns=_SEARCH)


def probed(queue: Queue, item: Item, run: qfl.Run) -> dict[str, pd.DataFrame]:
    """The probes of a finished run: of its end, or, where it was watched while it trained, with verdicts."""
    how: dict[str, Any] = {"config": queue.probes, "progress": False}
    if item.across:
        return {"probe": _probe_rows(probe(run, None, "last", **how).rows)}
    # The checkpoints that the verdicts rest on: the last one is among them.
    found = emergence(run, steps="auto", **how)
    steps = [int(step) for step in distinct(run.table("emergence_curve").read(), "step")]
    return {"probe": _probe_rows(probe(run, None, sorted(steps), **how).rows), "emergence": found.rows}


def ablated(queue: Queue, item: Item, run: qfl.Run, probes: pd.DataFrame, say: Say) -> dict[str, pd.DataFrame]:
    """What taking features out at the run's end costs, whole and label by label, and what interchange does."""
    how: dict[str, Any] = {"config": queue.probes, "progress": False}
    whole = [ablate(run, method=method, n_trials=TRIALS, **how).rows for method in METHODS]
    tables = {"ablate": pd.concat(whole, ignore_index=True)}
    say(f"{item.name}: ablated")
    one_by_one = item.entry.interchanged if item.seed == 0 else ""
    parts = [
        ablate(run, name, labels=labels, method=method, n_trials=TRIALS_BY_LABEL, **how).rows
        for name, labels in label_groups(run, fitted_labels(probes), one_by_one)
        for method in (METHODS if name == item.entry.interchanged else METHODS[:1])
    ]
    tables["ablate_labels"] = pd.concat(parts, ignore_index=True)
    say(f"{item.name}: ablated by label")
    if item.entry.interchange:
        how |= {"labels": list(item.entry.interchange), "n_pairs": PAIRS, "n_random": 2}
        tables["interchange"] = interchange(run, item.entry.interchanged, **how).rows
        say(f"{item.name}: interchanged")
    if item.entry.carries:
        tables["carries"] = swapped_carries(run, item.entry.carries)
        say(f"{item.name}: carries swapped")
    return tables


def swapped_carries(run: qfl.Run, labels: tuple[int, ...]) -> pd.DataFrame:
    """Inner carries swapped at the run's end, the middle one at checkpoints before, too."""
    *before, last = run.steps
    early, late = (part * run.flops(last) for part in CARRY_WINDOW)
    steps = [step for step in before if early <= run.flops(step) <= late]
    over_compute = inner_carries(run, labels[len(labels) // 2 :][:1], steps, CARRY_PAIRS, ("own", "whole"))
    return pd.concat([over_compute, inner_carries(run, labels, [last], CARRY_PAIRS)], ignore_index=True)


def fitted_labels(probes: pd.DataFrame) -> dict[str, list[int]]:
    """For each feature the labels that probes of the final model could be fitted for."""
    trained = probes[(probes["source"] == "trained") & probes["fitted"]]
    trained = trained[trained["step"] == trained["step"].max()]
    return {str(name): sorted({int(label) for label in part["label"]}) for name, part in trained.groupby("feature")}


def label_groups(run: qfl.Run, fitted: dict[str, list[int]], one_by_one: str = "") -> list[tuple[str, list[int]]]:
    """What is taken out in one go: every label, or neighbours together where a feature has many.

    Labels that the very next token gives away are never together with others; the feature `one_by_one` is not grouped.
    """
    found = []
    for name, labels in fitted.items():
        given = set(next_token_labels(run.task, name))
        for part in ([x for x in labels if x not in given], [x for x in labels if x in given]):
            alone = name == one_by_one or run.task.feature(name).n_labels <= MOST_LABELS
            n = len(part) if alone else min(N_GROUPS, len(part))
            edges = [round(i * len(part) / n) for i in range(n + 1)] if n else []
            found += [(name, part[a:b]) for a, b in itertools.pairwise(edges)]
    return found


def kept_metrics(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of validations."""
    rows = metrics[metrics["val_loss_answer"].notna()]
    return pd.DataFrame(rows[[c for c in rows.columns if c in _METRICS or c.startswith("val_")]]).reset_index(drop=True)


def _probe_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """What is kept of a probe table: losses to float32."""
    kept = rows[[name for name in _PROBES if name in rows.columns]].copy()
    for name in kept.columns:
        if kept[name].dtype == "float64" and name != "flops":
            kept[name] = kept[name].astype("float32")
    return kept


def _made(start: float) -> dict[str, Any]:
    """How long an item took in this session, and where."""
    seconds = round(time.monotonic() - start, 1)
    return {"seconds": seconds, "device": device_name("cpu"), "threads": torch.get_num_threads()}
