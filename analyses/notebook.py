"""Results in notebooks: the table and below it the figure; in a terminal the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from plotly.graph_objects import Figure

from qfl_interp.errors import QflError
from qfl_interp.plots.theme import figure_config

PLOTLY: Final = "application/vnd.plotly.v1+json"
# A figure with more is not put into a notebook unasked: it would be saved with it.
_MOST_BYTES: Final = 3_000_000


def show(text: str, table: str, draw: Callable[[], Figure]) -> None:
    """Show a result where IPython shows values: its text in a terminal, table and figure in a notebook.

    Args:
        text: Of the result.
        table: The same as HTML.
        draw: Draws its figure; called in a notebook alone.
    """
    from IPython.core.display_functions import display
    from IPython.core.getipython import get_ipython

    display({"text/plain": text, "text/html": table}, raw=True)
    if getattr(get_ipython(), "kernel", None) is not None:
        display(figure_bundle(draw), raw=True)


def figure_bundle(draw: Callable[[], Figure]) -> dict[str, Any]:
    """A figure as a notebook shows it, by type of its contents; a line of text where there is none or it is large."""
    try:
        figure = draw()
    except QflError as error:
        return {"text/plain": str(error)}
    text = str(figure.to_json())
    if len(text) > _MOST_BYTES:
        return {"text/plain": f"The figure takes {len(text) / 1e6:.1f} MB: .plot() shows it."}
    return {PLOTLY: json.loads(text) | {"config": figure_config(figure)}, "text/plain": "The figure: .plot()"}
