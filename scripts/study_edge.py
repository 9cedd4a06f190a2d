"""Training beyond the edge of stability: run the experiments of docs/edge_of_stability.md, and fill its tables.

    python scripts/study_edge.py runs/edge [--experiments E2 E4 ...] [--jobs 2] [--mnist PATH] [--write]

Every training is one row in the folder's table; those that are there are not run again, so that the command can be
stopped and repeated. `--write` puts the rows into docs/edge_of_stability.csv, where those of experiments that were not
asked for stay, the tables between the markers of the page, and the figures into docs/figures/ (needs `pip install
kaleido` and a Chromium). `--mnist` takes a folder of IDX
files or an .npz file, on which the experiments run instead of on scikit-learn's digits; it does not go with `--write`.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import edge_tables as tables
import pandas as pd
import torch
from edge_experiments import EXPERIMENTS, PATTERNS, cells, data_name, load, run_cell, untrained
from figures.edge import edge_maps
from pages import DOCS, fill, markdown, save

from qfl_interp.runs.table import Table

ROWS, PAGE = DOCS / "edge_of_stability.csv", DOCS / "edge_of_stability.md"
WIDTH = 960


def run_all(folder: Path, experiments: list[str], jobs: int, path: str) -> pd.DataFrame:
    """Every training that is not there yet, in processes; the rows of all."""
    table = Table(folder / "rows")
    task, data = load(path), data_name(path)
    todo = {cell.name(data): cell for experiment in experiments for cell in cells(experiment, task)}
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


def run_untrained(folder: Path) -> pd.DataFrame:
    """A row a width pattern about untrained networks, those that are not there yet computed."""
    table = Table(folder / "untrained")
    for r in sorted(PATTERNS):
        if not table.has(f"r{r}"):
            table.write(f"r{r}", pd.DataFrame([untrained(r, load(""))]))
    return table.read([f"r{r}" for r in sorted(PATTERNS)])


def merged(rows: pd.DataFrame, page: pd.DataFrame) -> pd.DataFrame:
    """The rows of the page's table, those of the experiments that were run now taken from now."""
    kept = page.loc[~page["experiment"].isin(rows["experiment"])]
    order = {name: place for place, name in enumerate(EXPERIMENTS)}
    both = pd.concat([kept, rows[page.columns]], ignore_index=True)
    return both.sort_values("experiment", key=lambda names: names.map(order), kind="stable")


def write(rows: pd.DataFrame, before: pd.DataFrame) -> None:
    """The rows, tables and figures of the page; `before` is of the untrained networks."""
    rows = merged(rows, pd.read_csv(ROWS))
    rows.to_csv(ROWS, index=False, float_format="%.6g")
    own = {"E1": tables.explosion_table, "E3": tables.along_table, "E4": tables.full_batch_table,
           "E5-trained": tables.pattern_table}  # fmt: skip
    parts = {name: tables.outcome_table(rows, name) for name in tables.OF_OUTCOMES}
    fill(PAGE, parts | {name: table(rows) for name, table in own.items()} | {"E5": markdown(before)})
    draw(rows)


def draw(rows: pd.DataFrame) -> None:
    """The figures of the page's rows: a row a pattern, a column a rule."""
    axes: dict[str, Any] = {"x": "learning rate in edges, q", "y": "depth", "n_columns": 3}
    for value, title, low, high in (
        ("train_accuracy", "train accuracy", 0.0, 1.0), ("soft_rank", "soft rank", 1.0, None),
    ):  # fmt: skip
        name = f"edge-{value.replace('_', '-')}"
        figure = edge_maps(tables.maps(rows, value), **axes, value=title, filename=name, low=low, high=high)
        save(figure, name, width=WIDTH)


def main() -> None:
    """Run, and write if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the rows are kept")
    parser.add_argument("--experiments", nargs="*", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--mnist", default="", help="a folder of IDX files, or an .npz file")
    parser.add_argument("--write", action="store_true", help="fill docs/edge_of_stability.md and its figures")
    arguments = parser.parse_args()
    if arguments.write and arguments.mnist:
        parser.error("--write fills a page about scikit-learn's digits: leave out --mnist")
    rows = run_all(arguments.folder, arguments.experiments, arguments.jobs, arguments.mnist)
    if arguments.write:
        write(rows, run_untrained(arguments.folder))


if __name__ == "__main__":
    main()
