"""Result tables -> plotly figures. Nothing here loads a file or computes a statistic beyond a mean over labels."""

from __future__ import annotations

from plotly.graph_objects import Figure

from qfl_interp.plots.ablation import ablation_figure, ablation_over_steps_figure, ablation_panel
from qfl_interp.plots.across import across_figure
from qfl_interp.plots.attribution import attribution_figure
from qfl_interp.plots.curvature import curvature_figure, curvature_panels
from qfl_interp.plots.heatmap import probe_heatmap
from qfl_interp.plots.interchange import interchange_figure, interchange_panel
from qfl_interp.plots.mdl import mdl_figure, mdl_panel
from qfl_interp.plots.overview import leads_figure, losses_figure
from qfl_interp.plots.panels import Legend, Panel, Transition, stack_panels
from qfl_interp.plots.patch_lines import patch_panel
from qfl_interp.plots.patching import patch_figure
from qfl_interp.plots.polca import polca_figure, polca_panel
from qfl_interp.plots.polca_captured import captured_figure
from qfl_interp.plots.polca_clusters import telling as polca_telling
from qfl_interp.plots.polca_composition import composition_figure
from qfl_interp.plots.polca_means import polca_means_figure
from qfl_interp.plots.polca_recovery import recovery_panel
from qfl_interp.plots.scaling import scaling_figure
from qfl_interp.plots.soft_ranks import soft_rank_figure
from qfl_interp.plots.theme import figure_config
from qfl_interp.plots.timeline import exact_panel, feature_panel, loss_figure, loss_panel, timeline_figure
from qfl_interp.plots.transfer import transfer_figure
from qfl_interp.plots.units import units_figure

__all__ = [
    "Figure",
    "Legend",
    "Panel",
    "Transition",
    "ablation_figure",
    "ablation_over_steps_figure",
    "ablation_panel",
    "across_figure",
    "attribution_figure",
    "captured_figure",
    "composition_figure",
    "curvature_figure",
    "curvature_panels",
    "exact_panel",
    "feature_panel",
    "figure_config",
    "interchange_figure",
    "interchange_panel",
    "leads_figure",
    "loss_figure",
    "loss_panel",
    "losses_figure",
    "mdl_figure",
    "mdl_panel",
    "patch_figure",
    "patch_panel",
    "polca_figure",
    "polca_means_figure",
    "polca_panel",
    "polca_telling",
    "probe_heatmap",
    "recovery_panel",
    "scaling_figure",
    "soft_rank_figure",
    "stack_panels",
    "timeline_figure",
    "transfer_figure",
    "units_figure",
]
