"""Result tables -> plotly figures. Nothing here loads a file or computes a statistic."""

from __future__ import annotations

from plotly.graph_objects import Figure

from qfl_interp.plots.ablation import ablation_figure
from qfl_interp.plots.heatmap import probe_heatmap
from qfl_interp.plots.overview import leads_figure, losses_figure
from qfl_interp.plots.panels import Legend, Panel, Transition, stack_panels
from qfl_interp.plots.theme import figure_config
from qfl_interp.plots.timeline import exact_panel, feature_panel, loss_figure, loss_panel, timeline_figure

__all__ = [
    "Figure",
    "Legend",
    "Panel",
    "Transition",
    "ablation_figure",
    "exact_panel",
    "feature_panel",
    "figure_config",
    "leads_figure",
    "loss_figure",
    "loss_panel",
    "losses_figure",
    "probe_heatmap",
    "stack_panels",
    "timeline_figure",
]
