"""Training beyond the edge of stability: run the experiments of docs/edge_of_stability.md, and fill its tables.

    python scripts/study_edge.py runs/edge [--experiments E2 E4 grid E1] [--jobs 2] [--mnist PATH] [--write]

Every training is one row in the folder's table; those that are there are not run again, so that the command can be
stopped and repeated. `--write` puts the rows into docs/edge_of_stability.csv, the tables between the markers of the
page, and the figures into docs/figures/ (needs `pip install kaleido` and a Chromium). `--mnist` takes a folder of IDX
files or an .npz file, on which the experiments run instead of on scikit-learn's digits; it does not go with `--write`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pages import fill, markdown

from qfl_interp.homogeneous.config import RULES, MLPConfig, MLPTrainConfig
from qfl_interp.homogeneous.depthwise import relative_updates
from qfl_interp.homogeneous.images import Labelled, digits, mnist
from qfl_interp.homogeneous.minibatch import run_minibatch
from qfl_interp.homogeneous.mlp import HomogeneousMLP
from qfl_interp.homogeneous.training import MLPRun, train_mlp
from qfl_interp.plots.edge import edge_maps
from qfl_interp.results import Table
from qfl_interp.tables import column, records, select

DOCS = Path(__file__).resolve().parent.parent / "docs"
SCALE, WIDTH = 1.5, 960
SEEDS = (0, 1, 2)
# Train accuracy of a training that learned.
LEARNED = 0.9
PATTERNS = {2: "quadratic", 1: "linear", 0: "constant"}
# The width m of the quadratic pattern at depth 4; the other patterns get about as many weights.
MATCHED_DEPTH, MATCHED_WIDTH = 4, 64


class Cell(NamedTuple):
    """One training of an experiment.

    Attributes:
        experiment: Which.
        rule: A key of `RULES`.
        shape: Fields of `MLPConfig` beside sizes of the data.
        train: Fields of `MLPTrainConfig` beside those of the rule.
        n_train: Training examples, from the first on; 0 for all.
    """

    experiment: str
    rule: str
    shape: dict[str, Any]
    train: dict[str, Any]
    n_train: int = 0

    def name(self, data: str) -> str:
        """The part of the table that holds its row."""
        return hashlib.sha256(json.dumps([data, *self], sort_keys=True).encode()).hexdigest()[:16]


def matched_width(r: int, data: Labelled) -> int:
    """The width m at which pattern r has about as many weights as the quadratic one."""

    def weights(r: int, width: int) -> int:
        return MLPConfig(data.train_x.shape[1], data.n_classes, width, MATCHED_DEPTH, r).n_parameters

    wanted = weights(2, MATCHED_WIDTH)
    return min(range(1, 20 * MATCHED_WIDTH), key=lambda width: abs(weights(r, width) - wanted))


def cells(experiment: str, data: Labelled) -> Iterator[Cell]:
    """The trainings of an experiment, first seed first."""
    for seed in SEEDS:
        for rule, shape, train, n_train in _trainings(experiment, data):
            yield Cell(experiment, rule, shape, train | {"seed": seed}, n_train)


def _trainings(experiment: str, data: Labelled) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], int]]:
    """Rule, fields of `MLPConfig` and of `MLPTrainConfig`, and the number of training examples, for one seed."""
    rules = ("none", "s=1", "s=2")
    if experiment == "E2":
        widths = {r: matched_width(r, data) for r in PATTERNS}
        for r, rule, q in ((r, rule, q) for r in PATTERNS for rule in rules for q in (4, 8, 16, 32)):
            train = {"n_steps": 160, "edge_multiple": q, "schedule": "warmup", "log_every": 4}
            yield rule, {"depth": MATCHED_DEPTH, "width": widths[r], "width_exponent": r}, train, 0
    elif experiment == "E4":
        for rule, q in ((rule, q) for rule in ("none", "s=2") for q in (1, 1.5, 2)):
            train = {"n_steps": 500, "edge_multiple": q, "loss": "mse", "batch_size": 256, "n_sharpness": 256,
                     "log_every": 10}  # fmt: skip
            yield rule, {"depth": 4, "width": 32, "width_exponent": 2}, train, 256
    elif experiment == "grid":
        for depth, r, rule, q in (
            (d, r, rule, q) for d in (3, 4, 6) for r in PATTERNS for rule in rules for q in (2, 4, 8, 16)
        ):
            train = {"n_steps": 120, "edge_multiple": q, "schedule": "warmup", "log_every": 10}
            yield rule, {"depth": depth, "width": 16, "width_exponent": r}, train, 0
    elif experiment == "E1":
        for loss, depth, r, rule, q in (
            (loss, depth, r, rule, q)
            for loss in ("cross_entropy", "mse")
            for depth, r in ((d, r) for d in (4, 8, 16) for r in (0, 1, 2))
            for rule in rules
            for q in (4, 16, 64)
        ):
            shape = {"depth": depth, "width": {4: 16, 8: 8, 16: 4}[depth] * {0: 4, 1: 2, 2: 1}[r], "width_exponent": r}
            yield rule, shape, {"n_steps": 40, "edge_multiple": q, "loss": loss, "log_every": 10}, 0
    else:
        raise SystemExit(f"no experiment is named {experiment!r}; known: E1, E2, E4, grid.")


def load(path: str) -> Labelled:
    """The data set: scikit-learn's digits, or a copy of MNIST."""
    return mnist(Path(path)) if path else digits()


def run_cell(cell: Cell, path: str) -> dict[str, Any]:
    """Train, and say what came of it in one row."""
    data = load(path)
    if cell.n_train:
        data = data._replace(train_x=data.train_x[: cell.n_train], train_y=data.train_y[: cell.n_train])
    shape = MLPConfig(d_in=data.train_x.shape[1], d_out=data.n_classes, **cell.shape)
    config = MLPTrainConfig(**cell.train, **RULES[cell.rule])
    run = train_mlp(shape, config, data)
    start = {"experiment": cell.experiment, "data": data.name, "loss": config.loss, "depth": shape.depth,
             "r": shape.width_exponent, "width": shape.width, "n_parameters": shape.n_parameters, "rule": cell.rule,
             "q": config.edge_multiple, "seed": config.seed}  # fmt: skip
    return start | summary(run)


def summary(run: MLPRun) -> dict[str, Any]:
    """How a training ended, and the second half of its logged steps."""
    last = records(run.evaluations)[-1]
    ended = run.ending.status
    steps = run.steps
    # What a diverged run's last evaluation says is of a time before; NaN says that there is nothing to say.
    names = ("train_loss", "train_accuracy", "test_accuracy", "soft_rank", "lambda_h", "lambda_p", "edge_ratio_p")
    row = {name: math.nan if ended == "diverged" else last[name] for name in names}
    late = pd.DataFrame(steps.loc[column(steps, "step") >= column(steps, "step").max() / 2])
    ratio = column(late, "edge_ratio")
    return {
        "status": ended, "stopped": run.ending.step, "lr": run.lr, **row,
        "edge_along_step": float(np.median(ratio)), "share_beyond": float((ratio > 1).mean()),
        "share_raising": float((column(late, "loss_after") > column(late, "c0")).mean()),
        "gauss_newton_share": float(np.median(column(late, "gauss_newton") / column(late, "c2"))),
        "spike": float(column(steps, "c0").max() / column(steps, "c0")[0]),
    }  # fmt: skip


def run_all(folder: Path, experiments: list[str], jobs: int, path: str) -> pd.DataFrame:
    """Every training that is not there yet, in processes; the rows of all."""
    table = Table(folder / "rows")
    data = load(path)
    todo = {cell.name(data.name): cell for experiment in experiments for cell in cells(experiment, data)}
    missing = {part: cell for part, cell in todo.items() if not table.has(part)}
    print(f"{len(todo) - len(missing)} of {len(todo)} trainings are there", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(run_cell, cell, path): part for part, cell in missing.items()}
        for count, done in enumerate(as_completed(running), 1):
            row = done.result()
            table.write(running[done], pd.DataFrame([row]))
            print(count, {k: row[k] for k in ("experiment", "depth", "r", "rule", "q", "seed", "status")}, flush=True)
    return table.read(list(todo))


def over_seeds(rows: pd.DataFrame, keys: list[str]) -> list[dict[str, Any]]:
    """One record for each combination of keys: how many trainings, diverged, learned, and medians over the others."""
    found = []
    for at, group in rows.groupby(keys, sort=False):
        alive = pd.DataFrame(group.loc[group["status"] != "diverged"])
        record = dict(zip(keys, at, strict=True)) | {"n": len(group), "diverged": len(group) - len(alive)}
        record["learned"] = int((alive["train_accuracy"] > LEARNED).sum())
        numbers = [name for name in alive.columns if name not in keys and alive[name].dtype.kind == "f"]
        found.append(record | {name: float(alive[name].median()) if len(alive) else math.nan for name in numbers})
    return found


def warm_up_table(rows: pd.DataFrame) -> str:
    """E2: a row a pattern and rule, a column a learning rate."""
    found = over_seeds(select(rows, experiment="E2"), ["r", "rule", "q"])
    lines: dict[tuple[float, str], dict[str, Any]] = {}
    for one in found:
        line = lines.setdefault((one["r"], one["rule"]), {"r": f"{one['r']:g}", "rule": one["rule"]})
        if one["diverged"]:
            text = f"diverged {one['diverged']}/{one['n']}"
        elif not one["learned"]:
            text = f"finite, learned 0/{one['n']}"
        else:
            spike = f", spike {one['spike']:.1f}x" if one["spike"] > 1.05 else ""
            some = f"learned {one['learned']}/{one['n']}: " if one["learned"] < one["n"] else ""
            text = (
                f"{some}{one['train_loss']:.2g}, {one['test_accuracy']:.3f}, {one['soft_rank']:.2f}, "
                f"{one['edge_ratio_p']:.2g}{spike}"
            )
        line[f"q={one['q']:g}"] = text
    return markdown(pd.DataFrame(list(lines.values())))


def along_table(rows: pd.DataFrame) -> str:
    """E3: the quadratic model along the steps of E2's trainings with r = 2 that learned."""
    own = select(rows, experiment="E2", r=2.0)
    found = over_seeds(pd.DataFrame(own.loc[own["train_accuracy"] > LEARNED]), ["rule", "q"])
    return markdown(pd.DataFrame([
        {"rule": one["rule"], "q": f"{one['q']:g}", "median lr S / 2": f"{one['edge_along_step']:.2f}",
         "steps above 1": f"{one['share_beyond']:.0%}", "steps that raise their own batch's loss":
         f"{one['share_raising']:.0%}", "Gauss-Newton share of c2": f"{one['gauss_newton_share']:.2f}",
         "learned": f"{one['n']}/{len(SEEDS)}"}
        for one in found
    ]))  # fmt: skip


def full_batch_table(rows: pd.DataFrame) -> str:
    """E4."""
    own = select(rows, experiment="E4")
    found = over_seeds(own.assign(product=own["lambda_p"] * own["soft_rank"] ** 2), ["q", "rule"])
    return markdown(pd.DataFrame([
        {"q": f"{one['q']:g}", "rule": one["rule"], "lr lambda_P / 2 at the end": f"{one['edge_ratio_p']:.2f}",
         "soft rank": f"{one['soft_rank']:.2f}", "lambda_P soft rank^2":
         f"{one['product']:.2f}", "train loss": f"{one['train_loss']:.2g}"}
        for one in found
    ]))  # fmt: skip


def initial_updates(data: Labelled) -> pd.DataFrame:
    """E5: by pattern and seed, the first relative changes of the hidden layers' preactivations over layer 1's."""
    found = []
    for r, seed in ((r, seed) for r in sorted(PATTERNS) for seed in SEEDS):
        shape = MLPConfig(data.train_x.shape[1], data.n_classes, 32, 8, r)
        model = HomogeneousMLP(shape, seed=seed)
        batch = run_minibatch(model, data.train_x[:128], data.train_y[:128], "cross_entropy")
        first, *others = relative_updates(batch, (1.0,) * shape.depth, 1.0)[: shape.n_layers]
        found.append({"r": r, "seed": seed, "mean": float(np.mean(others)) / first,
                      "smallest": min(others) / first, "largest": max(others) / first})  # fmt: skip
    return pd.DataFrame(found)


def pattern_table(data: Labelled) -> str:
    """E5: the mean over layers and seeds, and the range."""
    by = initial_updates(data).groupby("r")
    table = by.agg(mean=("mean", "mean"), smallest=("smallest", "min"), largest=("largest", "max"))
    return markdown(table.reset_index())


def explosion_table(rows: pd.DataFrame) -> str:
    """E1: the learning rates at which trainings diverged, how many of the seeds, and when."""
    lines = []
    for (loss, depth, r), group in select(rows, experiment="E1").groupby(["loss", "depth", "r"], sort=False):
        line: dict[str, Any] = {"loss": loss, "l": depth, "r": f"{r:g}"}
        for rule, part in group.groupby("rule", sort=False):
            texts = []
            for q, trainings in part.groupby("q"):
                stopped = trainings.loc[trainings["status"] == "diverged", "stopped"]
                if len(stopped):
                    low, high = stopped.min(), stopped.max()
                    at = f"step {low}" if low == high else f"steps {low} to {high}"
                    texts.append(f"q={q:g} ({len(stopped)}/{len(trainings)}, {at})")
            line[str(rule)] = ", ".join(texts) or "never"
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def maps(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """The grid's cells for a figure: the median over seeds of one number, and how many seeds diverged."""
    cells = []
    for one in over_seeds(select(rows, experiment="grid"), ["r", "rule", "depth", "q"]):
        lost = f"× {one['diverged']}/{one['n']}" if one["diverged"] else ""
        number = "" if math.isnan(one[value]) else f"{one[value]:.2f}"
        panel = f"{PATTERNS[int(one['r'])]} widths, {one['rule']}"
        cells.append({"panel": panel, "x": f"{one['q']:g}", "y": f"{one['depth']}", "value": one[value],
                      "note": "  ".join(t for t in (number, lost) if t)})  # fmt: skip
    return pd.DataFrame(cells)


def write(rows: pd.DataFrame) -> None:
    """The rows, tables and figures of the page."""
    rows.to_csv(DOCS / "edge_of_stability.csv", index=False, float_format="%.6g")
    tables = {"E1": explosion_table, "E2": warm_up_table, "E3": along_table, "E4": full_batch_table}
    filled = {name: table(rows) for name, table in tables.items()}
    fill(DOCS / "edge_of_stability.md", filled | {"E5": pattern_table(digits())})
    # A row a pattern, a column a rule.
    axes: dict[str, Any] = {"x": "learning rate in edges, q", "y": "depth", "n_columns": 3}
    for value, title, low, high in (
        ("train_accuracy", "train accuracy", 0.0, 1.0), ("soft_rank", "soft rank", 1.0, None),
    ):  # fmt: skip
        name = f"edge-{value.replace('_', '-')}"
        figure = edge_maps(maps(rows, value), **axes, value=title, filename=name, low=low, high=high)
        figure.write_image(DOCS / "figures" / f"{name}.png", scale=SCALE, width=WIDTH)


def main() -> None:
    """Run, and write if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the rows are kept")
    parser.add_argument("--experiments", nargs="*", default=["E2", "E4", "grid", "E1"])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--mnist", default="", help="a folder of IDX files, or an .npz file")
    parser.add_argument("--write", action="store_true", help="fill docs/edge_of_stability.md and its figures")
    arguments = parser.parse_args()
    if arguments.write and arguments.mnist:
        parser.error("--write fills a page about scikit-learn's digits: leave out --mnist")
    rows = run_all(arguments.folder, arguments.experiments, arguments.jobs, arguments.mnist)
    if arguments.write:
        write(rows)


if __name__ == "__main__":
    main()
