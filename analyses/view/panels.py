"""The views of a run: what every registered lens has of it at a step, and what its models do there."""

from __future__ import annotations

from typing import Any

import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.analyses.at_step import View
from qfl_interp.analyses.lens import Lens
from qfl_interp.analyses.registered import lenses
from qfl_interp.analyses.view.model_views import model_views
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.plugins import warn
from qfl_interp.runs.series import Checkpoints


def views(run: Checkpoints) -> list[View]:
    """What there is to see of a run: of each registered lens with rows of it, in their order, then of its models.

    Tables are listed, not read. A lens that cannot say what it has is named on standard error and left out.
    """
    return [*(view for lens in lenses() for view in _of(lens, run)), *model_views(run)]


def view(run: Checkpoints, name: str) -> View:
    """The view of this name.

    Raises:
        QflError: There is none, names those there are.
    """
    found = {one.name: one for one in views(run)}
    if name not in found:
        raise unknown_name(f"view of {run.path}", name, found)
    return found[name]


def draw(run: Checkpoints, name: str, step: int, **choices: Any) -> Figure:
    """The figure of a view at a step: without a slider, in the same colours at every step.

    Where the view has nothing of the step, it is that of the nearest step before it, which the figure says.

    Args:
        run: What is looked at.
        name: Of a view.
        step: Which one.
        **choices: A value for each of the view's choices, by default the first that there is.

    Raises:
        QflError: There is no such view or choice, a table is damaged, or the lens cannot draw it.
    """
    shown = view(run, name)
    try:
        return shown.draw(step, **choices)
    except QflError:
        raise
    except Exception as error:  # one lens' fault, perhaps another package's, must not take the page away
        raise QflError(f"{shown.title} cannot be drawn at step {step:,}: {type(error).__name__}: {error}") from error


def table(run: Checkpoints, name: str, step: int, **choices: Any) -> pd.DataFrame:
    """The rows behind that figure, with the step that they are of. Arguments and errors as of `draw`."""
    return view(run, name).table(step, **choices)


def _of(lens: type[Lens], run: Checkpoints) -> list[View]:
    """What a lens has of the run."""
    try:
        return lens.views(run)
    except Exception as error:  # as above
        warn(f"lens {lens.name!r} cannot say what it has of {run.path}: {type(error).__name__}: {error}")
        return []
