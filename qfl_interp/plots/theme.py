"""One look for every figure: template, colours, axes, number formats and export settings.

Colours are close to seaborn's colour-blind-safe palette. No figure names a colour that only works on white:
text, grid and background come from the template alone, so that a page can swap `template(dark=True)` in.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import sample_colorscale

# The first three have letters of the same widths, which `text_width` knows; one of them is on nearly every machine.
FONT_FAMILY: Final = "Arial, 'Liberation Sans', Helvetica, 'DejaVu Sans', sans-serif"
FONT_SIZE: Final = 12
# 7 inches at 96 pixels an inch: the width of a page's text block, so that 12 px letters print as 9 pt.
PAPER_WIDTH: Final = 672
# Pixels in an inch of an image.
PIXELS_PER_INCH: Final = 96
# Figures less wide than this have one column of panels and break their texts.
_NARROW: Final = 500
_WIDTH: ContextVar[int] = ContextVar("width", default=PAPER_WIDTH)

PURPLE: Final = "#8C63B8"
VERMILLION: Final = "#D55E00"
STEEL: Final = "#5B86AD"
GREY: Final = "#8A8F98"
BAND: Final = "rgba(140, 99, 184, 0.16)"


class SeriesStyle(NamedTuple):
    """How one series is drawn.

    Attributes:
        name: In the legend.
        color: Hex.
        symbol: Plotly's marker symbol.
        pattern: Plotly's hatching of bars.
        dash: Plotly's dash of lines.
    """

    name: str
    color: str
    symbol: str
    pattern: str = ""
    dash: str = "solid"


# As in the paper's figures: blue circle, orange square, green triangle.
THIRD_STYLES: Final[dict[str, SeriesStyle]] = {
    "beginning": SeriesStyle("beginning", "#1B7FBF", "circle"),
    "middle": SeriesStyle("middle", "#DE8F05", "square"),
    "end": SeriesStyle("end", "#029E73", "triangle-up"),
    "all": SeriesStyle("all labels", PURPLE, "diamond"),
}

# Colour and symbol of series that have no order, such as components and features.
SERIES: Final = (
    ("#1B7FBF", "circle"),
    ("#DE8F05", "square"),
    ("#029E73", "triangle-up"),
    # Darker than PURPLE, which the red-green blind cannot tell from the blue.
    ("#6A3D9A", "diamond"),
    (VERMILLION, "cross"),
    (STEEL, "triangle-down"),
    (GREY, "x"),
)
# Orange below 0, purple above: distinct to every kind of colour vision. 0 is a grey one can see on white.
DIVERGING: Final = [[0.0, "#8C4A00"], [0.25, "#E09B45"], [0.5, "#EEEEF1"], [0.75, "#A98BCB"], [1.0, "#542788"]]

_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def template(dark: bool = False) -> go.layout.Template:
    """The look of every figure, for white or for dark pages."""
    colors = ("#E4E7EB", "#A3ABB5", "#31373F", "#181B20") if dark else ("#22262B", "#5A626C", "#E6E8EB", "#FFFFFF")
    ink, muted, grid, paper = colors
    ticks = {"ticks": "outside", "ticklen": 4, "tickcolor": muted, "tickfont": {"size": FONT_SIZE - 1}}
    lines = {"showline": True, "linecolor": muted, "linewidth": 1, "gridcolor": grid, "gridwidth": 1, "zeroline": False}
    axis = {**lines, **ticks, "title": {"font": {"size": FONT_SIZE}, "standoff": 8}}
    button = {"bgcolor": grid, "bordercolor": grid, "font": {"color": ink}}
    layout = go.Layout(
        font={"family": FONT_FAMILY, "size": FONT_SIZE, "color": ink},
        paper_bgcolor=paper,
        plot_bgcolor=paper,
        colorway=[style.color for style in THIRD_STYLES.values()] + [VERMILLION, STEEL, GREY],
        xaxis=axis,
        yaxis=axis,
        legend={"bgcolor": "rgba(0,0,0,0)", "font": {"size": FONT_SIZE - 1}},
        hoverlabel={"bgcolor": paper, "bordercolor": muted, "font": {"color": ink, "size": FONT_SIZE - 1}},
        annotationdefaults={"showarrow": False, "font": {"color": ink}},
        updatemenudefaults=button,
        sliderdefaults={"bgcolor": grid, "bordercolor": grid, "tickcolor": muted, "activebgcolor": muted},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": muted, "activecolor": ink},
    )
    whiskers = go.Bar(error_y={"color": ink})
    return go.layout.Template(layout=layout, data={"bar": [whiskers]})


def page_width() -> int:
    """Pixels that the figures drawn now are wide on paper: `PAPER_WIDTH`, or what `drawn_at` says."""
    return _WIDTH.get()


def is_narrow() -> bool:
    """Whether the figures drawn now are for a column of a page (3.3 inches)."""
    return page_width() < _NARROW


@contextmanager
def drawn_at(width: int) -> Iterator[None]:
    """Figures drawn inside are made for paper of so many pixels: their texts, legends and columns of panels fit it."""
    before = _WIDTH.set(width)
    try:
        yield
    finally:
        _WIDTH.reset(before)


def new_figure(filename: str, height: int, margin: Mapping[str, int] | None = None) -> go.Figure:
    """An empty figure in the house style.

    Args:
        filename: Name of a downloaded image, without its ending.
        height: In pixels, of the plot area; without margins, of the whole figure. The width follows the page, and is
            `page_width()` in a downloaded image; a narrow figure is as wide on a page too.
        margin: Pixels left ("l"), right ("r"), above ("t") and below ("b") the plot area; by default plotly's.
    """
    whole = height + (margin["t"] + margin["b"] if margin else 0)
    meta = {"filename": filename, "width": page_width(), "height": whole}
    layout = {"template": template(), "height": whole, "autosize": True, "meta": meta}
    if is_narrow():
        layout |= {"width": page_width(), "autosize": False}
    return go.Figure(layout=layout | ({"margin": dict(margin)} if margin else {}))


def grow(figure: go.Figure, below: int = 0, *, above: int = 0) -> None:
    """More room below and above the plot area, in pixels."""
    layout = figure.layout.to_plotly_json()
    height, margin = layout["height"] + below + above, layout["margin"]
    meta = layout["meta"] | {"height": height}
    margin = margin | {"b": margin["b"] + below, "t": margin["t"] + above}
    figure.update_layout(height=height, margin=margin, meta=meta)


def text_at(text: str, x: float = 0.0, y: float = 1.0, **look: Any) -> dict[str, Any]:
    """A text on the figure as an annotation: it starts at `x` and stands on `y`, fractions of the plot area."""
    place = {"xref": "paper", "x": x, "xanchor": "left", "yref": "paper", "y": y, "yanchor": "bottom"}
    return {"text": text, **place, **look}


def figure_config(figure: go.Figure) -> dict[str, Any]:
    """What to hand to `figure.show(config=...)`: the modebar's camera saves an SVG, one of ours at paper size."""
    meta: Any = figure.layout["meta"] or {}
    return {
        "displaylogo": False,
        # plotly.js 4 offers to upload the figure to a server of its makers unless told not to.
        "showSendToCloud": False,
        "plotlyServerURL": "",
        "responsive": True,
        "toImageButtonOptions": {"format": "svg"} | (meta if isinstance(meta, dict) else {}),
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    }


def figure_json(figure: go.Figure) -> str:
    """The figure as JSON for Plotly.newPlot, without its template: a page brings its own."""
    spec = json.loads(str(figure.to_json()))
    spec["layout"].pop("template", None)
    return json.dumps(spec, separators=(",", ":"))


def template_json(dark: bool) -> str:
    """`template` as JSON."""
    return json.dumps(template(dark).to_plotly_json(), separators=(",", ":"))


def plain(text: object) -> str:
    """Text from a run, made safe for plotly's labels, which read some HTML tags."""
    return html.escape(str(text), quote=False)


def words(name: str) -> str:
    """A feature's or task's name as a person reads it: underscores become spaces."""
    return plain(name).replace("_", " ")


def ordered_colors(n: int) -> list[str]:
    """Colours of n series in an order, such as layers: dark to light, without ends that vanish on a page."""
    at = [0.12 + 0.7 * k / max(n - 1, 1) for k in range(n)]
    return [str(color) for color in sample_colorscale("Viridis", at)]


def format_power(value: float) -> str:
    """A number in scientific notation with two digits: 2.4e11 becomes "2.4×10¹¹"; 0 stays "0"."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def format_p(value: float) -> str:
    """A p-value as papers print it: two digits, "p < 0.001" below that, "" where there is none."""
    if not math.isfinite(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def holm_line(p_value: float, what: str = "") -> str:
    """A line of a hover text with a corrected p-value; "" where there is none."""
    return f"<br>{what}{format_p(p_value)} (Holm-corrected)" if math.isfinite(p_value) else ""


def short(values: Float[np.ndarray, ...]) -> list[Any]:
    """Nested lists of the values, rounded to what a colour and a hover text need; NaN becomes null."""
    rounded = [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.ravel().tolist()]
    return np.array(rounded, dtype=object).reshape(values.shape).tolist()


def visible(token: object) -> str:
    """A token's text for a label: blanks and line ends become signs one can see."""
    return plain(token).replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


def legend_row(x: float = 0.0, y: float = 1.0, **look: Any) -> dict[str, Any]:
    """A legend in a row that starts at `x` and stands on `y`, fractions of the plot area; a click takes a group."""
    place = {"x": x, "xanchor": "left", "y": y, "yanchor": "bottom", "orientation": "h"}
    groups = {"groupclick": "togglegroup", "tracegroupgap": 0}
    return {**place, **groups, "font": {"size": FONT_SIZE - 1}, "bgcolor": "rgba(0,0,0,0)", **look}


def stretch(start: float, end: float, **look: Any) -> dict[str, Any]:
    """A rectangle below the curves, as high as what `yref` says, or a line where both ends are one; as a shape."""
    kind = {"type": "rect", "layer": "below"} if end > start else {"type": "line"}
    return {**kind, "x0": start, "x1": end, "y0": 0, "y1": 1, **look}
