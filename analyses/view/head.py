"""What stands above the figures: which run is shown, what it is, or what to do where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash import html

from qfl_interp.analyses.view.index import Entry
from qfl_interp.analyses.view.layout import button


def of(chosen: Sequence[str], entries: Sequence[Entry], folder: Path) -> Any:
    """The head of the page.

    Args:
        chosen: Keys of what is shown.
        entries: The list.
        folder: What it is of.
    """
    known = {entry.key: entry for entry in entries}
    if not entries and not chosen:
        return _empty(folder)
    if not chosen:
        return [
            html.H1("Choose a run"),
            html.P("A click on a run shows it; check boxes lay several over each other.", className="hint"),
        ]
    if len(chosen) == 1:
        entry = known.get(chosen[0])
        return _gone(chosen[0], folder) if entry is None else _one(entry)
    lines = [
        html.Li(
            [_open(key), *([_badge(known[key])] if key in known else [html.Span("gone", className="badge damaged")])]
        )
        for key in chosen
    ]
    return [html.H1(f"{len(chosen)} runs over each other"), html.Ul(lines, className="chosen")]


def _empty(folder: Path) -> Any:
    return [
        html.H1("No runs here yet"),
        html.P(["There is no run, suite or sweep below ", html.Code(str(folder)), ". Train one:"]),
        html.Pre(f"qfl train addition --length 16 --budget 3e12 --out {folder / 'add16'}"),
        html.P("It appears here while it trains. Another folder: qfl view FOLDER.", className="hint"),
    ]


def _gone(key: str, folder: Path) -> Any:
    return [
        html.H1(key),
        html.P(f"It is not below {folder} any more: it was moved or deleted. Choose another run.", className="fault"),
    ]


def _one(entry: Entry) -> Any:
    facts = [entry.task, entry.size, "" if entry.seed is None else f"seed {entry.seed}", entry.run_id]
    title = [html.H1([entry.name, " ", _badge(entry)])]
    line = [html.P(" · ".join(fact for fact in facts if fact), className="facts")]
    if entry.fault:
        return [*title, html.P(entry.fault, className="fault")]
    if entry.kind == "sweep":
        show = button("Show its runs", look="link", search=f"{entry.key}/")
        return [*title, *line, html.P(["A sweep is a folder of runs. ", show], className="hint")]
    return [*title, *line]


def _open(key: str) -> Any:
    return button(key, look="link", title="Show this run alone", run=key)


def _badge(entry: Entry) -> Any:
    return html.Span(entry.state, className=f"badge {entry.state}")
