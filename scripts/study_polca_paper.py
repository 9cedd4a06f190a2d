"""POLCA in the regime of its paper: trainings, tables and figures, stage by stage.

    python scripts/study_polca_paper.py train                 # one run a seed, under --runs
    python scripts/study_polca_paper.py follow --dry-run      # hours, memory and disk of what a stage has left to do
    python scripts/study_polca_paper.py follow                # the Hessian's directions; first order, trapezoid
    python scripts/study_polca_paper.py path                  # the path integral with points in between
    python scripts/study_polca_paper.py orders                # the paper's second order beside others, few directions
    python scripts/study_polca_paper.py short                 # the exact one too, every 5th step of 100
    python scripts/study_polca_paper.py closely               # every 5th step of one stretch
    python scripts/study_polca_paper.py bases                 # random, shuffled, trajectory, largest parameters
    python scripts/study_polca_paper.py readings              # the Hessian of a loss that counts the prompt's tokens
    python scripts/study_polca_paper.py tables                # docs/polca_paper*.csv, docs/polca.md of what is kept
    python scripts/study_polca_paper.py figure                # docs/figures/polca-paper-RUN.png

Every stage takes --size (paper, ladder, small) and --seeds, goes on where it was stopped, and keeps small tables under
docs/polca_paper/. Whatever is trained again must repeat itself to the bit: stay on one machine and thread count from
"train" to the last stage that follows, or train anew. Once a stage is done its tables are enough. Each trains once
more what it looks at and what was not kept; "train --save-every 20" keeps it all, 8 GB a seed at the paper's size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pages import DOCS, fill, save
from plotly.subplots import make_subplots
from polca_paper_page import parts
from polca_paper_runs import (
    KEPT,
    PLACES,
    SIZES,
    Size,
    compare_orders,
    folders,
    is_kept,
    kept_folder,
    orders_of,
    plan_of,
    run_way,
    train_config,
    trained,
    ways,
)
from polca_paper_scores import across_rows, best_rows, carry_rows, discriminant_rows, movement_rows, telling_most

import qfl_interp as qfl
from qfl_interp.analyses.lenses.polca.estimate import estimate
from qfl_interp.analyses.lenses.polca.trajectories import compute_points
from qfl_interp.plots.theme import GREY, SERIES, template
from qfl_interp.tables import column, select
from qfl_interp.training.replay import replay
from qfl_interp.training.train import plan_run
from qfl_interp.training.trainee import Trainee

COMPARING = ("orders", "short")
FOLLOWING = ("follow", *COMPARING, "closely", "bases", "path", "readings")
# Updates that are timed for an estimate of the training.
_TIMED = 3


def train(size: Size, seeds: Iterable[int], runs: Path, *, save_every: int, dry_run: bool) -> None:
    """Train a run a seed, or say how long it takes."""
    for seed in seeds:
        if not dry_run:
            print(trained(size, seed, runs, save_every), flush=True)
            continue
        task = qfl.load_task("decimal_addition", 3)
        model = qfl.ModelConfig(d_model=size.d_model, n_layers=size.n_layers, n_heads=size.n_heads, style="gpt2")
        trainee = Trainee(task, plan_run(task, model, train_config(size, seed)), "cpu")
        trainee.update()
        started = time.perf_counter()
        for _ in range(_TIMED):
            trainee.update()
        each = (time.perf_counter() - started) / _TIMED
        print(
            f"train {size.name(seed)}: {size.n_steps} updates of {each:.2f} s: {size.n_steps * each / 3600:.2f} hours"
        )


def stage(name: str, size: Size, seeds: Iterable[int], runs: Path, kept: Path, *, jobs: int, dry_run: bool) -> None:
    """Follow what a stage follows, or say what is left of it and what that takes."""
    for seed in seeds:
        path = runs / size.name(seed)
        if not (path / "config.json").exists():
            raise SystemExit(f"{path} must be a run, and there is none. Train first: study_polca_paper.py train.")
        run = qfl.Run.open(path)
        if not run.finished:
            raise SystemExit(f"{path} must be trained to its end: study_polca_paper.py train goes on with it.")
        todo = list(ways(size, name))
        # One for all ways: steps that were not saved are trained once.
        source = replay(run, size.distance(todo[0].stretch))
        left = [way for way in todo if not is_kept(way, kept / size.name(seed))]
        if dry_run:
            for way in left:
                print(f"{way.name}, alone: {estimate(plan_of(size, way, source), jobs=jobs).title}", flush=True)
            print(f"{run.run_id}: {len(todo) - len(left)} of {len(todo)} are kept; what others share is done once")
            continue
        folder = kept_folder(size, run, kept)
        # A token's gradient serves all bases.
        if left:
            compute_points([plan_of(size, way, source) for way in left], jobs=jobs)
        for way in todo:
            run_way(size, way, source, folder)
            print(f"{run.run_id}: {way.name} is kept", flush=True)
        if name in COMPARING:
            compare_orders(size, name, source, folder)


def write_tables(kept: Path, docs: Path, jobs: int = 1) -> dict[str, pd.DataFrame]:
    """All rows from what is kept, one file a table, trainings shared between processes; returned by their names."""
    found = folders(kept)
    if not found:
        raise SystemExit(f"{kept} must hold tables of at least one training, got none. Run a stage that follows first.")
    if jobs > 1:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            each = list(pool.map(_rows, found))
    else:
        each = [_rows(folder) for folder in found]
    rows = {name: pd.concat([own[name] for own in each]) for name in each[0]}
    rows["_orders"] = pd.concat([orders_of(folder) for folder in found])
    rows["_discriminant"] = pd.concat([rows["_discriminant"], pd.DataFrame(across_rows(kept))])
    for name, table in rows.items():
        if len(table):
            table.to_csv(docs / f"polca_paper{name}.csv", index=False, float_format="%.6g")
    return rows


def _rows(folder: Path) -> dict[str, pd.DataFrame]:
    """Those of one training, by the name of their file."""
    return {
        "": pd.DataFrame(carry_rows(folder)), "_discriminant": pd.DataFrame(discriminant_rows(folder)),
        "_movement": pd.DataFrame(movement_rows(folder)), "_best": pd.DataFrame(best_rows(folder)),
    }  # fmt: skip


def why_figure(folder: Path) -> go.Figure:
    """Carry against none, for each place along the direction that tells them best by the path integral (trapezoid).

    Columns: the projected loss, dotted by first order; the exact loss; where the parameters are along the direction,
    and along random ones.
    """
    names = {"path": "all-hessian-trapezoid", "first": "all-hessian-first"}
    raw = select(pd.read_parquet(folder / f"{names['path']}.parquet"), scale="raw")
    best = {place: int(telling_most(raw, place)["direction"]) for place in PLACES.values()}
    what = ("along direction {}", "exact loss", "way along direction {}")
    titles = [f"{place}: {one.format(direction)}" for place, direction in best.items() for one in what]
    figure = make_subplots(2, 3, subplot_titles=titles, horizontal_spacing=0.07, vertical_spacing=0.12)
    for row, (place, direction) in enumerate(best.items(), start=1):
        means = {
            accuracy: select(pd.read_parquet(folder / f"means-{name}.parquet"), place=place, direction=direction)
            for accuracy, name in names.items()
        }
        for carry, (color, _) in zip((False, True), SERIES, strict=False):
            own, label = select(means["path"], carry=carry), f"{'' if carry else 'no '}carry"
            for col, prefix in ((1, ""), (2, "exact_")):
                for trace in _band(own, prefix, color, label, first=(row, col) == (1, 1)):
                    figure.add_trace(trace, row, col)
            first, line = select(means["first"], carry=carry), {"color": color, "dash": "dot"}
            figure.add_trace(
                go.Scatter(
                    x=first["step"], y=first["mean"], name=f"{label}, first order", mode="lines", line=line,
                    showlegend=row == 1,
                ), row, 1,
            )  # fmt: skip
        for trace in _ways_along(folder, direction):
            figure.add_trace(trace, row, 3)
        for col, title in ((1, "nats"), (2, "nats"), (3, "length")):
            figure.update_yaxes(title=title, row=row, col=col)
    figure.update_xaxes(title="training step", row=2)
    size = folder.name.removeprefix("d").replace("-seed", ", seed ")
    random = "; grey: random directions" if (folder / "moves-all-random-first.parquet").exists() else ""
    figure.update_layout(
        template=template(), width=1050, height=620, legend={"orientation": "h", "y": -0.14},
        title=f"d_model {size}: path integral (trapezoid), means and quartiles over the tokens{random}",
    )  # fmt: skip
    return figure


def _ways_along(folder: Path, direction: int) -> Iterator[go.Scatter]:
    """Where the parameters are along random directions, and along the one, from where they began."""
    for basis, color, width in (("random", GREY, 1), ("hessian", SERIES[2][0], 2)):
        path = folder / f"moves-all-{basis}-first.parquet"
        if not path.exists():
            continue
        moves = pd.read_parquet(path)
        for one in [str(direction)] if basis == "hessian" else moves.columns.drop("step"):
            line = {"color": color, "width": width}
            gone = moves[one] - moves[one].iloc[0]
            yield go.Scatter(x=moves["step"], y=gone, line=line, mode="lines", showlegend=False)


def _band(rows: pd.DataFrame, prefix: str, color: str, label: str, *, first: bool) -> list[go.Scatter]:
    """A mean curve over its quartiles."""
    steps = column(rows, "step")
    low, high = column(rows, f"{prefix}q25"), column(rows, f"{prefix}q75")
    look: dict[str, Any] = {"legendgroup": label, "mode": "lines", "line": {"color": color}}
    outline = {"x": np.concatenate([steps, steps[::-1]]), "y": np.concatenate([high, low[::-1]])}
    area = look | {"line": {"width": 0}, "fillcolor": color, "fill": "toself", "opacity": 0.3, "showlegend": False}
    return [
        go.Scatter(**outline, **area),
        go.Scatter(x=steps, y=column(rows, f"{prefix}mean"), name=label, showlegend=first, **look),
    ]  # fmt: skip


def main(arguments: list[str] | None = None, sizes: dict[str, Size] = SIZES, draw: Callable[..., None] = save) -> None:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="study_polca_paper.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("train", *FOLLOWING, "tables", "figure"))
    parser.add_argument("--size", choices=tuple(sizes), default=next(iter(sizes)))
    parser.add_argument("--seeds", help="comma-separated; the size's own by default")
    parser.add_argument("--runs", type=Path, default=Path("runs/polca_paper"))
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the CSVs go")
    parser.add_argument("--save-every", type=int, default=0, help="train: keep weights at every so many steps")
    parser.add_argument("--jobs", type=int, default=1, help="processes: of points, if weights were kept; of tables")
    parser.add_argument("--dry-run", action="store_true", help="say what is left to do and what it takes")
    asked = parser.parse_args(arguments)
    size = sizes[asked.size]
    seeds = tuple(int(seed) for seed in asked.seeds.split(",")) if asked.seeds else size.seeds
    if asked.stage == "train":
        train(size, seeds, asked.runs, save_every=asked.save_every, dry_run=asked.dry_run)
    elif asked.stage in FOLLOWING:
        stage(asked.stage, size, seeds, asked.runs, asked.kept, jobs=asked.jobs, dry_run=asked.dry_run)
    elif asked.stage == "tables":
        fill(asked.docs / "polca.md", parts(write_tables(asked.kept, asked.docs, asked.jobs), asked.kept))
    else:
        for seed in seeds:
            draw(why_figure(asked.kept / size.name(seed)), f"polca-paper-{size.name(seed)}")


if __name__ == "__main__":
    main()
