"""How much of the loss's change the directions of a POLCA basis capture, over compute."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import TRAINING_AXES
from qfl_interp.plots.lines import STEP, curve, level, over_training, places, value_range
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, Shade, stack_panels
from qfl_interp.plots.theme import PURPLE, STEEL, VERMILLION
from qfl_interp.tables import column

# Fractions outside are drawn at the edge: where the loss hardly changes they mean little.
_LIMITS: Final = (-0.5, 1.5)
# Diameters in pixels of the smallest and largest change's point.
_SIZES: Final = (4.0, 11.0)


def captured_figure(intervals: pd.DataFrame, *, transition: Shade | None = None, unit: str = "nats") -> go.Figure:
    """The mean loss's change since the first checkpoint with the part the basis captures, and the share by interval.

    An interval stands at its end. Points of the lower panel are as large as the interval's change of the loss; those
    outside the panel stand at its edge as arrows.

    Args:
        intervals: Table "polca_intervals": step_from, step_to, flops_from, flops_to, loss_change, captured,
            captured_fraction; one row an interval.
        transition: Of the validation loss, shaded; None for none.
        unit: What the loss is counted in.

    Raises:
        ValueError: There is no row, several of one interval, or none that ends after step 0.
    """
    require_rows(intervals, "polca", (), ("step_from", "step_to"))
    rows = intervals.sort_values("step_to")
    ends = {axis.column: rows[f"{axis.column}_to"] for axis in TRAINING_AXES if f"{axis.column}_to" in rows}
    shown = over_training(rows.assign(**ends, change=rows["loss_change"].cumsum(), part=rows["captured"].cumsum()))
    return stack_panels(
        [_change_panel(shown, unit), _fraction_panel(shown, unit)], transition, filename="polca_captured"
    )


def _change_panel(rows: pd.DataFrame, unit: str) -> Panel:
    """Change of the loss since the first checkpoint, and its captured part."""
    how = {"hover": f"%{{y:.3f}} {unit} · {STEP}", "beside": ("step_to",)}
    whole = curve(rows, "change", "mean loss over the tokens", PURPLE, width=2.2, **how)
    part = curve(rows, "part", "captured by the directions together", VERMILLION, width=1.8, dash="dash", **how)
    change, captured = column(rows, "change")[-1], column(rows, "part")[-1]
    share = f", {captured / change:.0%} captured in all" if change else ""
    return Panel(
        title="Change of the loss",
        subtitle=f"since the first checkpoint{share}",
        traces=(whole, part),
        y_title="nats per token" if unit == "nats" else unit,
        y_range=value_range(whole, part),
        legend=Legend("change"),
    )


def _fraction_panel(rows: pd.DataFrame, unit: str) -> Panel:
    rows = rows.dropna(subset=["captured_fraction"])
    fraction, size = column(rows, "captured_fraction"), np.abs(column(rows, "loss_change"))
    low, high = _LIMITS
    symbols = np.where(fraction > high, "triangle-up-open", np.where(fraction < low, "triangle-down-open", "circle"))
    sizes = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * np.sqrt(size / size.max(initial=1e-300))
    points = curve(
        rows.assign(shown=np.clip(fraction, low, high)),
        "shown",
        "captured share",
        STEEL,
        hover=f"%{{customdata[0]:.1%}}: %{{customdata[1]:.2e}} of %{{customdata[2]:.2e}} {unit} · steps "
        "%{customdata[3]:,} to %{customdata[4]:,}",
        beside=("captured_fraction", "captured", "loss_change", "step_from", "step_to"),
        width=0,
        size=_SIZES[0],
        showlegend=False,
    ).update(marker={"symbol": symbols, "size": sizes, "opacity": 0.85})
    levels = [level(places(rows), value, f"{value:.0%}") for value in (0.0, 1.0)] if len(rows) else []
    return Panel(
        title="Captured share of each interval's change",
        subtitle="points as large as the change; arrows: beyond the panel",
        traces=(*levels, points),
        y_title="share",
        y_range=(low - 0.1, high + 0.1),
        height=120,
    )
