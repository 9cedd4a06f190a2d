"""Patching over training: how far each layer's best patch restores the clean answer, as a panel of the timeline."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lenses.patch.figure import WIDEST
from qfl_interp.plots.panels import Legend, Panel, over_compute
from qfl_interp.plots.theme import ordered_colors, visible, words
from qfl_interp.tables import groups, records, select

_MOST_LISTED: Final = 6


def patch_panel(rows: pd.DataFrame, feature: str, label: int, *, component: str = "resid_pre") -> Panel:
    """Over compute, how much of the clean answer the best single patch of each layer restores; one line a layer.

    Args:
        rows: Table "patch".
        feature: Which feature's pairs.
        label: Which label's.
        component: What is patched; of heads, the best one counts.

    Raises:
        ValueError: The table has no such row.
    """
    chosen = select(rows, feature=feature, label=label, component=component)
    if chosen.empty:
        found = sorted({(r["feature"], r["label"], r["component"]) for r in records(rows)})
        raise ValueError(
            f"the patch table must have rows of feature {feature!r}, label {label} and component {component!r}, "
            f"got {found[:8]}. Patch it first, or choose one of those."
        )
    by_layer = groups(chosen.sort_values("layer", kind="stable"), "layer")
    colors = ordered_colors(len(by_layer))
    # A deep model's legend names only some layers.
    stride = math.ceil(len(by_layer) / _MOST_LISTED)
    traces = tuple(
        _best_of_layer(over_compute(part), int(layer), colors[index], listed=index % stride == 0)
        for index, (layer, part) in enumerate(by_layer)
    )
    values = np.concatenate([np.asarray(trace["y"], dtype=float) for trace in traces])
    highest = float(values[np.isfinite(values)].max(initial=1.0))
    return Panel(
        title=f"Patching {component}",
        subtitle=f"{words(feature)}, label {label}: best position of each layer, logit difference",
        traces=traces,
        y_title="normalised",
        y_range=(-0.04, 1.04 * min(highest, WIDEST)),
        height=140,
        legend=Legend("patched layers"),
    )


def _best_of_layer(rows: pd.DataFrame, layer: int, color: str, *, listed: bool) -> go.Scatter:
    """A layer's highest normalised logit difference at each step, with the place it is at."""
    defined = rows.dropna(subset=["logit_diff_normalised"])
    best = [max(records(part), key=_restored) for _, part in groups(defined, "step")]
    return go.Scatter(
        x=[row["flops"] for row in best],
        y=[row["logit_diff_normalised"] for row in best],
        customdata=[[row["step"], row["position"]] for row in best],
        text=[visible(row["token"]) for row in best],
        mode="lines+markers",
        name=f"layer {layer}",
        line={"color": color, "width": 1.8},
        marker={"size": 5, "color": color},
        showlegend=listed,
        legendgroup=f"patch: layer {layer}",
        hovertemplate="%{y:.3f} at “%{text}”, position %{customdata[1]} · step %{customdata[0]:,}"
        f"<extra>layer {layer}</extra>",
    )


def _restored(row: dict[str, Any]) -> float:
    """What the best position is chosen by."""
    return float(row["logit_diff_normalised"])
