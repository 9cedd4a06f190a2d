"""Whose figures of a sweep are."""

from __future__ import annotations

from typing import Final

import pandas as pd

from qfl_interp.sweep.sweep import Sweep
from qfl_interp.tables import distinct, groups

# So many tasks or seeds are listed; of more the figure's panels have the names.
_MOST_LISTED: Final = 5


def label_of(sweep: Sweep, runs: pd.DataFrame) -> str:
    """Tasks, seeds and name, as figures are headed: "addition length 4, 8 · seeds 0, 1 · sweep tiny".

    Args:
        sweep: Whose runs.
        runs: Columns task, length, seed: the runs that are drawn.
    """
    tasks = [
        f"{name.replace('_', ' ')} length {', '.join(str(length) for length in sorted(distinct(part, 'length')))}"
        for name, part in groups(runs, "task")
    ]
    listed = tasks if len(tasks) <= _MOST_LISTED else [f"{len(tasks)} tasks"]
    seeds = sorted(distinct(runs, "seed"))
    if len(seeds) <= _MOST_LISTED:
        said = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    else:
        said = f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"
    return " · ".join([*listed, said, f"sweep {sweep.config.name}"])
