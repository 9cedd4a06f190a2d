"""The report's sections on POLCA: tokens whose loss falls together along a direction, and what the basis misses."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from qfl_interp.analyses.lenses.polca.captured_figure import captured_figure
from qfl_interp.analyses.lenses.polca.clusters import ending, on_plateau, telling
from qfl_interp.analyses.lenses.polca.composition_figure import composition_figure
from qfl_interp.analyses.lenses.polca.figure import polca_figure
from qfl_interp.analyses.lenses.polca.tables import Clustered
from qfl_interp.plots.panels import Shade
from qfl_interp.polca.naming import UNNAMED
from qfl_interp.report.page import Section
from qfl_interp.tables import column, distinct, select

_SHOWN: Final = 2
_CONTEXT_LETTERS: Final = 30
_MOST_ROWS: Final = 30
_COLUMNS: Final = {
    "direction": "direction",
    "basis_step": "basis step",
    "cluster": "cluster",
    "name": "name",
    "n_tokens": "tokens",
    "share": "share of all",
    "fall": "fall",
    "break_step": "break, step",
    "hidden": "hidden",
    "in_flat": "on a plateau",
    "f1": "F1",
    "p_value_holm": "p, Holm",
    "stability": "stability",
    "silhouette": "silhouette",
    "medoid_context": "medoid, end of its context",
    "medoid_target": "its token",
}


def polca_sections(tables: Clustered, *, transition: Shade | None = None, unit: str = "nats") -> list[Section]:
    """Curves by cluster with the table of clusters, their composition, and how much of the loss the basis captures.

    Args:
        tables: Of one analysis; clusters and their curves may be empty.
        transition: Of the validation loss, shaded; None for none.
        unit: What the loss is counted in.
    """
    downloads = {f"polca_{name}": table for name, table in tables._asdict().items() if not table.empty}
    captured = Section(
        "POLCA: what the directions capture",
        figure=captured_figure(tables.intervals, transition=transition, unit=unit),
        note="The loss change that all directions together account for, beside the whole. What is missing happened in "
        "directions that the basis does not have.",
    )
    if tables.clusters.empty:
        text = "No direction has a cluster of tokens whose projected loss falls together."
        return [Section("POLCA: hidden breakthroughs", text=text, downloads=downloads), captured]
    return [
        Section(
            "POLCA: hidden breakthroughs",
            text=_summary(tables.clusters),
            figure=polca_figure(tables.curves, tables.clusters, transition=transition, unit=unit),
            note="The part of each token's loss change that lies along one direction of weight space, summed over "
            "training, by cluster of tokens with like curves. A large marker is where a cluster's tokens break, the "
            "mean of their sharpest turns: filled if the exact loss is flat there. The dashed vertical line is the "
            "checkpoint that gave the direction.",
            table=_view(tables.clusters, unit),
            downloads=downloads,
        ),
        *_compositions(tables),
        captured,
    ]


def _summary(clusters: pd.DataFrame) -> str:
    """How many clusters there are, and how many break unseen."""
    n, of = len(clusters), len(distinct(clusters, "direction"))
    hidden = column(clusters, "hidden") > 0
    flat = on_plateau(clusters) & ~hidden
    named = sum(name != UNNAMED for name in clusters["name"])
    return (
        f"{_count(n, 'cluster')} along {_count(of, 'direction')}; {int(hidden.sum())} with a hidden break, "
        f"{int(flat.sum())} more with a break on an earlier plateau of the exact loss. {named} of {n} have a name: the "
        "label that fits the cluster's tokens best among those significantly over-represented."
        + (f" The table below shows {_MOST_ROWS} of them; `polca_clusters.csv` holds all." if n > _MOST_ROWS else "")
    )


def _count(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _view(clusters: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The table of clusters as a reader sees it, the most telling directions first and not more than a page of them."""
    order = {direction: place for place, direction in enumerate(telling(clusters))}
    ordered = clusters.assign(in_flat=on_plateau(clusters)).sort_values(
        ["direction", "n_tokens"], ascending=[True, False]
    )
    places = [order[int(direction)] for direction in column(ordered, "direction")]
    ordered = ordered.iloc[np.argsort(places, kind="stable")[:_MOST_ROWS]]
    contexts = [ending(str(context), _CONTEXT_LETTERS) for context in ordered["medoid_context"]]
    shown = ordered.assign(medoid_context=contexts)
    titles = _COLUMNS | {"fall": f"fall ({unit})"}
    return pd.DataFrame({title: shown[name] for name, title in titles.items()})


def _compositions(tables: Clustered) -> list[Section]:
    """What the clusters of the directions in the figure are made of."""
    note = (
        "Coloured: the share of the cluster's tokens with this value; grey: the share of all tokens. Bold: "
        "over-represented (Fisher's exact test, Holm's correction over all values, p < 0.05)."
    )
    return [
        Section(
            f"POLCA: composition of direction {direction}'s clusters",
            figure=composition_figure(tables.composition, tables.clusters, direction),
            note=note,
        )
        for direction in telling(tables.clusters)[:_SHOWN]
        if not select(tables.composition, direction=direction).empty
    ]
