"""Figures as files, by the file's ending: pages, pictures for papers, data."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import plotly.graph_objects as go

from qfl_interp.errors import QflError
from qfl_interp.plots.paper import printed
from qfl_interp.plots.theme import PIXELS_PER_INCH
from qfl_interp.report.drawing import Drawing, as_page
from qfl_interp.report.writing import require_no_folder, write_file

# Dots in an inch of a PNG.
_DPI: Final = 300
# What kaleido makes, through a Chromium.
PICTURES: Final = (".png", ".svg", ".pdf")
ENDINGS: Final = (".html", *PICTURES, ".json")
_INCHES: Final = (2.0, 20.0)


def save_figure(figure: go.Figure, path: str | os.PathLike[str], *, width_inches: float | None = None) -> Path:
    """Write a figure to a file, whole or not at all: a page, a picture, or plotly's JSON, by the file's ending.

    Letters are 7 to 9 pt at every width; a figure of ours is drawn anew for it, so that legends and titles fit.

    Example:
        `qfl.save_figure(run.probe("carry").plot(), "carry.pdf", width_inches=3.3)`

    Args:
        figure: Of a result's `plot()`, of `timeline`, or any of plotly's.
        path: Its ending is .html, .png (300 dots an inch), .svg, .pdf or .json.
        width_inches: Of the picture, 3.3 for a column and 7 for a page; None: as the figure was drawn.

    Returns:
        The path.

    Raises:
        QflError: Another ending, a figure that was changed after it was drawn and is asked for at another width, no
            kaleido or Chromium to make pictures with, or a file that cannot be written.
        ValueError: `width_inches` is not from 2 to 20.
    """
    ending = require_figure_file(path, width_inches)
    drawn = figure if width_inches is None else _at_width(figure, width_inches)
    if ending == ".html":
        return write_file(path, as_page(drawn))
    if ending == ".json":
        return write_file(path, str(drawn.to_json()).encode())
    return write_file(path, _picture(drawn, ending[1:]))


def require_figure_file(path: str | os.PathLike[str], width_inches: float | None = None) -> str:
    """The ending of a figure's file in small letters, if a figure can be written to it: asked before one is computed.

    Raises:
        QflError: Another ending, a folder, or a picture without kaleido.
        ValueError: `width_inches` is not from 2 to 20.
    """
    target, (low, high) = Path(path), _INCHES
    require_no_folder(target)
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        raise QflError(
            f"the ending of a figure's file says what it is, got {target.name!r}. End it in {', '.join(ENDINGS)}."
        )
    if width_inches is not None and not low <= width_inches <= high:
        raise ValueError(
            f"width_inches must be from {low:g} to {high:g}, got {width_inches}. A column of a page has 3.3."
        )
    if ending in PICTURES and importlib.util.find_spec("kaleido") is None:
        raise QflError(
            "pictures are made by kaleido, which is not installed. Install it: pip install 'qfl-interp[figures]'; "
            "or write a page: end the file in .html."
        )
    return ending


def _at_width(figure: go.Figure, inches: float) -> go.Figure:
    """The figure drawn for paper of this width."""
    width = round(inches * PIXELS_PER_INCH)
    if isinstance(figure, Drawing):
        return figure.at_width(width)
    return go.Figure(figure).update_layout(width=width)


def _picture(figure: go.Figure, kind: str) -> bytes:
    """The figure without its controls as kaleido draws it."""
    shown = printed(figure)
    meta: Any = shown.layout["meta"]
    size = meta if isinstance(meta, dict) else {}
    width, height = shown.layout["width"] or size.get("width"), shown.layout["height"]
    make: Callable[..., bytes] = shown.to_image
    try:
        return make(format=kind, width=width, height=height, scale=_DPI / PIXELS_PER_INCH if kind == "png" else 1)
    except Exception as error:  # kaleido's own, which may not be there to be named
        said = f"{type(error).__name__} {error}"
        if "chrome" in said.lower() or "browser" in said.lower():
            raise QflError(
                "pictures are made through a Chrome or Chromium, and none was found or started: "
                f"{' '.join(said.split())[:200]}. Install one: plotly_get_chrome, or your system's package chromium; "
                "or write a page: end the file in .html."
            ) from error
        raise
