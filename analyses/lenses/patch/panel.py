"""Patching over training: how far each layer's best patch restores the clean answer, as a panel of the timeline."""

from __future__ import annotations

import math
from typing import Any, Final

import pandas as pd

from qfl_interp.analyses.lenses.patch.figure import WIDEST
from qfl_interp.plots.lines import curve, finite, over_training
from qfl_interp.plots.panels import Legend, Panel
from qfl_interp.plots.theme import ordered_colors, visible, words
from qfl_interp.tables import groups, records, select

_MOST_LISTED: Final = 6
_HOVER: Final = "%{y:.3f} at “%{text}”, position %{customdata[1]} · step %{customdata[0]:,}"


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
    shown = over_training(chosen.sort_values("layer", kind="stable").dropna(subset=["logit_diff_normalised"]))
    layers = sorted(set(chosen["layer"]))
    # A deep model's legend names only some layers.
    stride = math.ceil(len(layers) / _MOST_LISTED)
    traces = []
    for index, (layer, color) in enumerate(zip(layers, ordered_colors(len(layers)), strict=True)):
        best = _best(select(shown, layer=layer))
        look: dict[str, Any] = {"showlegend": index % stride == 0, "legendgroup": f"patch: layer {layer}"}
        text = [visible(token) for token in best["token"]]
        look |= {"hover": _HOVER, "beside": ("step", "position"), "width": 1.8, "size": 5, "text": text}
        traces.append(curve(best, "logit_diff_normalised", f"layer {layer}", color, **look))
    return Panel(
        title=f"Patching {component}",
        subtitle=f"{words(feature)}, label {label}: best position of each layer, logit difference",
        traces=tuple(traces),
        y_title="normalised",
        y_range=(-0.04, 1.04 * min(float(finite(*traces).max(initial=1.0)), WIDEST)),
        height=140,
        legend=Legend("patched layers"),
    )


def _best(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each step the row with the highest normalised logit difference."""
    best = [part["logit_diff_normalised"].idxmax() for _, part in groups(rows.reset_index(drop=True), "step")]
    return rows.reset_index(drop=True).loc[best]
