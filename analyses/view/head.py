"""What stands above the figures: which run is shown, what it is, or what to do where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash import html


def of(chosen: Sequence[str], rows: Sequence[dict[str, Any]], folder: Path) -> Any:
    """The head of the page.

    Args:
        chosen: Keys of what is shown.
        rows: The list, as the page has it.
        folder: What it is of.
    """
    known = {row["key"]: row for row in rows}
    if not rows and not chosen:
        return _empty(folder)
    if not chosen:
        return [
            html.H1("Choose a run"),
            html.P("A click on a run shows it; check boxes lay several over each other.", className="hint"),
        ]
    if len(chosen) == 1:
        row = known.get(chosen[0])
        return _gone(chosen[0], folder) if row is None else _one(row)
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


def _one(row: dict[str, Any]) -> Any:
    facts = [row["task"], row["size"], "" if row["seed"] is None else f"seed {row['seed']}", row["run_id"]]
    title = [html.H1([row["name"], " ", _badge(row)])]
    line = [html.P(" · ".join(fact for fact in facts if fact), className="facts")]
    if row["fault"]:
        return [*title, html.P(row["fault"], className="fault")]
    if row["kind"] == "sweep":
        show = html.Button("Show its runs", className="link", **{"data-search": f"{row['key']}/"})
        return [*title, *line, html.P(["A sweep is a folder of runs. ", show], className="hint")]
    return [*title, *line]


def _open(key: str) -> Any:
    return html.Button(key, className="link", title="Show this run alone", **{"data-run": key})


def _badge(row: dict[str, Any]) -> Any:
    return html.Span(row["state"], className=f"badge {row['state']}")
