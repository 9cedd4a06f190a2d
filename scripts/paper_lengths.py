"""Train the quiet-features paper's tasks at its own lengths, item by item, and keep what comes out as small tables.

    python scripts/paper_lengths.py                       # go on with the queue of sweeps/paper_lengths.toml
    python scripts/paper_lengths.py --status              # what is kept, what the rest will take on this machine
    python scripts/paper_lengths.py --items NAME ...      # these items alone, in this order
    python scripts/paper_lengths.py --minutes 120         # start nothing that would end later
    python scripts/paper_lengths.py --keep [--figures]    # remake docs/paper_lengths.csv, tables of docs/tasks.md

One process trains one item at a time on one thread; start as many as there are cores. Items in work are locked, a run
that was stopped goes on from its resume point as long as its folder is there, and what is finished lies in
docs/paper_lengths/: commit that folder, and any other machine goes on from there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from pages import DOCS, fill, markdown, save
from paper_kept import CSV, MOST_BYTES, Kept
from paper_page import Pages
from paper_queue import Item, Queue
from paper_work import MakePool, work

from qfl_interp.errors import QflError
from qfl_interp.runs.folder_lock import FolderLock
from qfl_interp.sweep.calibration import CostModel, calibrate
from qfl_interp.sweep.plan import PlannedRun

OUT = Path("runs/paper_lengths")


def measured(queue: Queue, items: list[Item]) -> CostModel:
    """The cost of updates on this machine as it is now, some seconds of measuring."""
    return calibrate([PlannedRun(config) for item in items for config in queue.planned(item)])


def minutes(queue: Queue, item: Item, cost: CostModel) -> float:
    """Predicted minutes of training an item."""
    return sum(cost.run_seconds(PlannedRun(config)) for config in queue.planned(item)) / 60


def status(queue: Queue, kept: Kept) -> str:
    """The queue as a table: predicted minutes of what is to be trained, measured ones of what is kept."""
    items = queue.items()
    todo = [item for item in items if not queue.done(item)]
    cost = measured(queue, todo) if todo else None
    rows = []
    for item in items:
        shape = {} if item.kind != "run" else queue.shape(item.entry) or {}
        row = {"item": item.name, "shape": " ".join(f"{k} {v:g}" for k, v in shape.items())}
        if queue.done(item):
            about = kept.about(item.name)
            row |= {"state": "kept", "training (minutes)": about.get("train_seconds", about["seconds"]) / 60}
        else:
            assert cost is not None
            row |= {"state": "ready" if queue.ready(item) else "waits for its search"}
            row |= {"training (minutes)": minutes(queue, item, cost)}
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def next_item(queue: Queue, names: list[str], passed: set[str]) -> Item | None:
    """The first item that is ready and not kept, and not passed over."""
    items = {item.name: item for item in queue.items()}
    for name in names or items:
        item = items.get(name)
        if item is not None and name not in passed and not queue.done(item) and queue.ready(item):
            return item
    return None


def go_on(queue: Queue, kept: Kept, names: list[str], out: Path, until: float, pool: MakePool | None = None) -> None:
    """Work on the queue until it is empty, or nothing is left that ends before `until`; `pool` as in `work`."""
    passed: set[str] = set()
    while (item := next_item(queue, names, passed)) is not None:
        takes = minutes(queue, item, measured(queue, [item]))
        if time.monotonic() + 60 * takes > until:
            _say(f"{item.name}: passed over, {takes:.0f} minutes are too many")
            passed.add(item.name)
            continue
        try:
            with FolderLock(out / "locks" / item.name, "works on this item"):
                if not queue.done(item):
                    _say(f"{item.name}: begun, about {takes:.0f} minutes of training")
                    work(queue, item, out, kept, _say, predicted=takes, pool=pool)
                    _say(f"{item.name}: kept, {kept.n_bytes() / 2**20:.1f} MiB in all")
        except (QflError, ValueError) as error:  # one bad item does not stop the queue
            _say(f"{item.name}: passed over: {error}")
            passed.add(item.name)


def keep(queue: Queue, kept: Kept, *, figures: bool = False) -> None:
    """Remake what is made of the kept tables: docs/paper_lengths.csv, the tables of docs/tasks.md, and its figure."""
    if kept.n_bytes() > MOST_BYTES:
        raise SystemExit(f"{kept.folder} has {kept.n_bytes():,} bytes, above {MOST_BYTES:,}. Keep fewer columns.")
    CSV.write_text(kept.csv())
    fill(DOCS / "tasks.md", Pages(queue, kept).parts())
    if figures:
        draw(queue, kept)


def draw(queue: Queue, kept: Kept) -> None:
    """The figure of the kept tables."""
    figure = Pages(queue, kept).figure()
    if figure is not None:
        save(figure, "paper-lengths", width=760)


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def main() -> None:
    """Go on with the queue, or say where it stands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", nargs="*", default=[], metavar="NAME", help="only these, in this order")
    parser.add_argument("--status", action="store_true", help="print the queue and end")
    parser.add_argument("--keep", action="store_true", help="remake what is made of the kept tables and end")
    parser.add_argument("--figures", action="store_true", help="with --keep: draw docs/figures/paper-lengths.png too")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing that would end later")
    parser.add_argument("--out", type=Path, default=OUT, help="where the runs are while they are made")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept()
    queue = Queue(kept)
    unknown = set(arguments.items) - {item.name for item in queue.items()}
    if unknown:
        raise SystemExit(f"no items {sorted(unknown)}. There are {', '.join(item.name for item in queue.items())}.")
    if arguments.status:
        print(status(queue, kept))
    elif not arguments.keep:
        go_on(queue, kept, arguments.items, arguments.out, time.monotonic() + 60 * arguments.minutes)
        keep(queue, kept)
    else:
        keep(queue, kept, figures=arguments.figures)


if __name__ == "__main__":
    main()
