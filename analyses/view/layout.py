"""The page without anything in it: what callbacks and the scripts of `assets/` fill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from dash import dcc, html

from qfl_interp.analyses.view.index import STATES
from qfl_interp.plots.theme import template_json

# Milliseconds between two looks at what has changed.
LOOK_EVERY: Final = 1_000
# plotly's toolbar would cover legends: what it does is in the card's buttons, a drag or a double click.
GRAPH_CONFIG: Final[Any] = {
    "displayModeBar": False,
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
}


def page(folder: Path) -> Any:
    """The skeleton of the page over a folder."""
    return html.Div(
        [
            dcc.Store(id="address"),  # as the address bar has it, "?run=..."
            dcc.Store(id="chosen", data=[]),  # the keys of the runs in it
            dcc.Store(id="open-view", data=""),
            dcc.Store(id="step", data=None),
            dcc.Store(id="choices", data={}),
            dcc.Store(id="feature", data=""),
            dcc.Store(id="theme", data="light"),
            dcc.Store(id="rows"),  # the list, as JSON ...
            dcc.Store(id="rows-seen"),  # ... and which one: it is long, and goes to the page alone
            dcc.Store(id="pulse", data=""),  # changes when a file of a chosen run does ...
            dcc.Store(id="tables-pulse", data=""),  # ... that is not the log of its training
            dcc.Store(id="tabs"),
            *(dcc.Store(id=name) for name in ("startable", "jobs", "ask", "asked")),  # lenses in the background
            *(dcc.Store(id=f"drawn-{what}") for what in ("list", "line", "tabs", "search", "lenses")),
            dcc.Store(id="templates", data={name: json.loads(template_json(dark)) for name, dark in _THEMES}),
            dcc.Interval(id="tick", interval=LOOK_EVERY),
            _header(folder),
            html.Div([_aside(), _main()], className="columns"),
        ],
        id="app",
    )


_THEMES: Final = (("light", False), ("dark", True))


def _header(folder: Path) -> Any:
    return html.Header(
        [
            html.Button("Runs", id="toggle-list", className="only-narrow", title="Show or hide the list of runs"),
            html.Span("qfl view", className="brand"),
            html.Span(str(folder), className="folder", title=str(folder)),
            html.Button("Dark", id="toggle-theme", title="Light or dark page"),
        ]
    )


def button(text: str, *, title: str = "", look: str = "", **says: str) -> Any:
    """A button that the page's script finds by what it says: `run="a"` is its attribute `data-run`."""
    data: dict[str, Any] = {f"data-{name}": value for name, value in says.items()}
    return html.Button(text, title=title, className=look, **data)


def _aside() -> Any:
    chips = [button(state, look="chip", state=state) for state in STATES]
    return html.Aside(
        [
            html.Div(
                html.Label(
                    [
                        html.Span("Search runs", className="unseen"),
                        dcc.Input(
                            id="search", type="search", placeholder="Search task, path, seed …", autoComplete="off"
                        ),
                    ]
                ),
                className="search",
            ),
            html.Div(chips, id="states", className="chips"),
            html.Div(id="count", className="count"),
            html.Div(id="runs", className="runs", role="list"),
        ],
        id="list",
    )


def _main() -> Any:
    return html.Main(
        [
            html.Div(id="head", children=html.P("Looking for runs …", className="hint")),
            html.P("Reading the run …", id="busy", className="hint", hidden=True),
            html.Div(id="step-bar", className="step-bar", hidden=True),
            html.Section(
                [html.H2("Over training", id="timeline-title"), *_figure("timeline")],
                id="timeline-card",
                className="card",
                hidden=True,
            ),
            html.Section(
                [html.Div(id="view-tabs", className="tabs", role="tablist"), *_figure("view")],
                id="view-card",
                className="card",
                hidden=True,
            ),
            html.Section(
                [
                    html.H2("Lenses"),
                    html.P("Each runs in a process of its own, also when this page is closed.", className="hint small"),
                    html.Div(id="lenses"),
                ],
                id="lenses-card",
                className="card",
                hidden=True,
            ),
        ]
    )


def _figure(name: str) -> list[Any]:
    """A figure, what is said of it, what can be chosen, and what it can be saved as."""
    graph = dcc.Graph(id=f"{name}-graph", figure={"data": [], "layout": {}}, config=GRAPH_CONFIG)
    saves = [
        button(kind.upper(), title=f"Save as {kind.upper()} at paper size", save=kind, of=name)
        for kind in ("svg", "png")
    ]
    table = html.A("CSV", id=f"{name}-csv", href="#", title="Save the rows behind the figure")
    return [
        html.Div(id=f"{name}-choices", className="choices"),
        html.Div(id=f"{name}-note", className="note"),
        dcc.Loading(
            [dcc.Store(id=f"{name}-data"), html.Div(html.Div(graph, className="plot"), className="scroll")],
            delay_show=500,
            type="dot",
            overlay_style={"visibility": "visible", "opacity": 0.5},
        ),
        html.P(["Save: ", *saves, table], className="saves", id=f"{name}-saves"),
    ]
