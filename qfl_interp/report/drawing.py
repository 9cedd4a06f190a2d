"""A figure that knows how it was drawn: it can be drawn for paper of another width, and shows itself anywhere.

Plotly's own text of a figure is all its numbers, hundreds of lines in a terminal. This one is a line; where neither a
notebook nor a browser can show the figure, it becomes a page on disk whose path is printed.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import plotly.graph_objects as go
import plotly.io as pio

from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.files import storage_error
from qfl_interp.plots.paper import name_figure, printed
from qfl_interp.plots.theme import drawn_at, figure_config, plain
from qfl_interp.report.writing import write_file
from qfl_interp.runs.workplace import home

# Plotly's renderers that make a picture, which has no use for a slider and buttons.
_PICTURES: Final = ("png", "jpeg", "jpg", "svg", "pdf")


class Drawing(go.Figure):
    """A plotly figure of ours; all of plotly's methods work on it."""

    # Plotly makes copies from a figure's fields alone: those have no way back.
    _draw: Callable[[], go.Figure] | None = None
    _name: str = ""
    _drawn_as: str = ""

    @classmethod
    def of(cls, draw: Callable[[], go.Figure], name: str = "") -> Drawing:
        """The figure that a function draws, named at its top.

        Args:
            draw: Draws it, at whatever width figures are drawn at when it is called.
            name: Whose it is, `Checkpoints.label`; without one the figure stays as it is drawn.
        """
        drawn = draw()
        figure = cls(name_figure(drawn, plain(name)) if name else drawn)
        figure._draw, figure._name = draw, name
        figure._drawn_as = figure._looks()
        return figure

    def at_width(self, width: int) -> Drawing:
        """The same figure drawn for paper of so many pixels; 96 are an inch.

        Raises:
            QflError: It was changed since it was drawn, or is a copy: what was changed would be lost.
        """
        if self._draw is None or self._looks() != self._drawn_as:
            raise QflError(
                "a figure of another width is drawn anew, and this one was changed since it was drawn, or is a copy: "
                "the changes would be lost. Draw it inside `with qfl_interp.plots.theme.drawn_at(pixels):` and change "
                "it then, or save it at its own width."
            )
        with drawn_at(width):
            return Drawing.of(self._draw, self._name)

    def _looks(self) -> str:
        """What tells it from a figure that was changed: the layout, and the looks of the curves but for their data."""
        drawn: Any = self.data
        traces = [
            {
                name: value
                for name, value in trace.to_plotly_json().items()
                if isinstance(value, str | int | float | dict)
            }
            for trace in drawn
        ]
        return digest(repr((self.layout.to_plotly_json(), traces)))

    def show(self, *args: Any, **kwargs: Any) -> None:
        """Show it in the notebook or the browser; where there is neither, write a page and print its path."""
        if args or kwargs or _can_show():
            super().show(*args, **kwargs)
        else:
            self._write()

    def _ipython_display_(self) -> None:
        """What IPython does with it: a notebook draws it, a terminal has it shown."""
        if _in_notebook() or os.environ.get("PLOTLY_RENDERER"):
            shown = printed(self) if pio.renderers.default in _PICTURES else self
            go.Figure._ipython_display_(shown)
        else:
            print(repr(self))
            self._write()

    def __repr__(self) -> str:
        """One line."""
        meta: Any = self.layout["meta"]
        kind = meta.get("filename", "figure") if isinstance(meta, dict) else "figure"
        of = f" of {self._name}" if self._name else ""
        steps = f", {len(self.frames)} steps" if self.frames else ""
        traces: Any = self.data
        return f"<figure {kind!r}{of}: {len(traces)} traces{steps}; .show(), or qfl.save_figure(figure, path)>"

    def _write(self) -> Path:
        """A page in the user's folder, its path printed."""
        meta: Any = self.layout["meta"]
        name = meta.get("filename", "figure") if isinstance(meta, dict) else "figure"
        folder = home() / "figures"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, folder) from error
        page = write_file(folder / f"{name}-{digest(self._looks())}.html", as_page(self))
        print(f"wrote {page}")
        return page


def as_page(figure: go.Figure) -> bytes:
    """A figure as a page that needs no other file."""
    return str(figure.to_html(include_plotlyjs=True, config=figure_config(figure))).encode()


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ not in ("NoneType", "TerminalInteractiveShell")


def _can_show() -> bool:
    """Whether a notebook, a renderer of the user's choice, or a browser on this screen can show a figure."""
    if (
        _in_notebook()
        or os.environ.get("PLOTLY_RENDERER")
        or pio.renderers.default not in ("browser", "plotly_mimetype", "")
    ):
        return True
    if sys.platform.startswith("linux"):
        has_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    else:
        has_screen = "SSH_CONNECTION" not in os.environ
    if not has_screen:
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
