"""Several runs over each other: loss, exact match and probe losses on one axis of training; seeds as mean and band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from qfl_interp.analyses.lenses.probe.views import SCORES
from qfl_interp.analyses.pages.timeline_figure import loss_range
from qfl_interp.plots.axes import TrainingAxis
from qfl_interp.plots.lines import STEP, curve, level
from qfl_interp.plots.panels import Legend, Panel, stack_panels
from qfl_interp.plots.theme import SERIES, plain, words
from qfl_interp.tables import column, distinct, groups, select

# What is compared, as the column `quantity` of the tables calls it.
LOSS, EXACT, PROBE_LOSS = "val_loss_answer", "val_exact_answer", "probe_loss"
_DASHES: Final = ("solid", "dash", "dot", "dashdot")
_BAND_OPACITY: Final = 0.18


def compare_figure(
    rows: pd.DataFrame,
    bands: pd.DataFrame,
    axis: TrainingAxis,
    *,
    names: Mapping[str, str],
    unit: str = "nats",
    note: str = "",
    log_loss: bool = True,
) -> go.Figure:
    """A panel for the loss, one for exact match and one for each feature's probes; one colour and dash a group.

    A group of one seed is its own curve. Of several the thick line is the mean, the band reaches from the lowest to the
    highest of them, and thin lines are the seeds.

    Args:
        rows: Columns group, path, quantity, feature, metric, step, the axis', value, baseline: what was measured.
        bands: Columns group, quantity, feature, the axis', mean, low, high, n_seeds: of groups of several seeds.
        axis: What all is drawn over.
        names: What the legend calls each group.
        unit: What the loss is counted in.
        note: Above the first panel.
        log_loss: Whether losses have a logarithmic axis.
    """
    looks = {group: _look(index) for index, group in enumerate(names)}
    panels = []
    for quantity, of_quantity in groups(rows, "quantity"):
        for feature, shown in groups(of_quantity, "feature"):
            own = select(bands, quantity=quantity, feature=feature)
            traces = [
                trace
                for group, part in groups(shown, "group")
                for trace in _of_group(part, select(own, group=group), axis, names[group], *looks[group])
            ]
            panels.append(_panel(quantity, feature, shown, traces, unit, log_loss))
    return stack_panels(panels, None, filename="compare", note=note)


def _look(index: int) -> tuple[str, str]:
    """Colour and dash of a group; no two of the first 28 are alike."""
    return SERIES[index % len(SERIES)][0], _DASHES[index // len(SERIES) % len(_DASHES)]


def _panel(
    quantity: str, feature: str, rows: pd.DataFrame, traces: Sequence[go.Scatter], unit: str, log_loss: bool
) -> Panel:
    """The panel of one quantity."""
    look: dict[str, Any] = {"traces": tuple(traces), "legend": Legend("groups")}
    if quantity == EXACT:
        subtitle = "validation examples with every token of the answer right"
        return Panel("Exact match", subtitle=subtitle, y_title="fraction", y_range=(-0.04, 1.04), height=110, **look)
    look |= {"log_y": log_loss, "y_range": loss_range(*traces, log_y=log_loss)}
    if quantity == LOSS:
        y_title = "nats per token" if unit == "nats" else unit
        return Panel("Validation loss", subtitle="over the answer alone", y_title=y_title, **look)
    subtitle = "probe loss on held-out examples, geometric mean over labels; dotted: untrained model"
    return Panel(words(feature), subtitle=subtitle, y_title=SCORES[distinct(rows, "metric")[0]].loss_title, **look)


def _of_group(
    rows: pd.DataFrame, band: pd.DataFrame, axis: TrainingAxis, name: str, color: str, dash: str
) -> list[go.Scatter]:
    """The curves of one group, over what all groups are drawn over."""
    group, keep = plain(name), ["path", "step", "value", "baseline"]
    rows = rows.filter(list(dict.fromkeys([axis.column, *keep])))
    seeds = [part for _, part in groups(rows, "path")]
    alone, hover = len(seeds) == 1, f"%{{y:.4g}} · {STEP}"
    if alone:
        main = [curve(seeds[0], "value", group, color, dash=dash, size=4, hover=hover)]
    else:
        thin: dict[str, Any] = {"width": 0.8, "opacity": 0.45, "legendgroup": group, "showlegend": False}
        main = [curve(part, "value", group, color, dash=dash, hover="", **thin) for part in seeds]
    if not band.empty:
        fill = "rgba({}, {}, {}, {})".format(*hex_to_rgb(color), _BAND_OPACITY)
        edge: dict[str, Any] = {"width": 0, "mode": "lines", "legendgroup": group, "showlegend": False, "hover": ""}
        edge |= {"x": axis.column, "meta": {"over": axis.column}, "line": {"width": 0}}
        said = "%{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g}, %{customdata[2]} seeds)"
        mean: dict[str, Any] = {"x": axis.column, "meta": {"over": axis.column}, "beside": ("low", "high", "n_seeds")}
        main += [
            curve(band, "low", group, color, **edge),
            curve(band, "high", group, color, fill="tonexty", fillcolor=fill, **edge),
            curve(band, "mean", group, color, dash=dash, hover=said, width=2.4, **mean),
        ]
    elif not alone:
        main[0].update(showlegend=True)
    untrained = column(rows, "baseline")
    if pd.notna(untrained).any():
        over = column(rows, axis.column)
        main.append(level(over, float(pd.Series(untrained).mean()), group, color, opacity=0.6, legendgroup=group))
    return main
