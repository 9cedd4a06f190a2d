"""The checkpoints that verdicts rest on: a coarse grid, then bisection round the onsets and the transition's start.

A third's onset is where its metric falls below the threshold for good. On the grid that lies between the last point
above and the next one. The saved checkpoint in the middle says in which half, and so on until no saved one lies
between. The same goes for both ends of the bootstrap's interval and for the transition's start. Verdict, lead and range
are then those of all checkpoints, as long as no metric rises above its threshold and falls again between two points of
the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import pandas as pd

from qfl_interp.plots.axes import TrainingAxis
from qfl_interp.runs.series import Checkpoints

# Points of the grid, evenly spaced in the logarithm of the step; fewer would miss a metric that rises again.
_COARSE: Final = 8


def steps_at_onsets(
    run: Checkpoints, axis: TrainingAxis, verdicts: Callable[[Sequence[int], bool], pd.DataFrame]
) -> list[int]:
    """The checkpoints that suffice, ascending.

    Args:
        run: What is looked at.
        axis: What verdicts are measured along.
        verdicts: The rows of all verdicts from these checkpoints alone; with their bootstrap where the flag says so.
    """
    saved = run.resolve_steps("all")
    chosen = {*run.resolve_steps(f"log:{_COARSE}")}
    for with_bootstrap in (False, True):  # the interval's ends are near the onsets, which need no bootstrap
        while due := _due(run, axis.column, saved, sorted(chosen), verdicts(sorted(chosen), with_bootstrap)):
            chosen |= due
    return sorted(chosen)


def _due(run: Checkpoints, axis: str, saved: Sequence[int], chosen: Sequence[int], verdicts: pd.DataFrame) -> set[int]:
    """The middle of the checkpoints between the two that enclose each place that matters."""
    places = [{"step": float(step), **run.how_far(step)}[axis] for step in chosen]
    due = set()
    for at in _places(verdicts, axis):
        after = int(np.searchsorted(places, at))
        if 0 < after < len(chosen):
            between = [step for step in saved if chosen[after - 1] < step < chosen[after]]
            due |= {*between[len(between) // 2 :][:1]}
    return due


def _places(verdicts: pd.DataFrame, axis: str) -> Iterator[float]:
    """Where onsets, the ends of their intervals and the transition's start are on the axis."""
    for row in verdicts.to_dict("records"):
        start = row[f"transition_start_{axis}"]
        leads = (row[f"bootstrap_{end}"] for end in ("low", "high"))  # infinite where resamples never learn it
        ends = (start / 10**lead for lead in leads if math.isfinite(lead))
        yield from (at for at in (row[f"onset_{axis}"], start, *ends) if math.isfinite(at))
