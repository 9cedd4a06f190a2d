"""One figure of every kind, on made-up tables, as functions that draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from plotly import graph_objects as go

from qfl_interp.analyses.lenses.ablate.figure import ablation_figure, ablation_over_steps_figure
from qfl_interp.analyses.lenses.ablate_units.figure import units_figure
from qfl_interp.analyses.lenses.curvature.figure import curvature_figure
from qfl_interp.analyses.lenses.curvature.ranks_figure import soft_rank_figure
from qfl_interp.analyses.lenses.edge import figure as edge_looks
from qfl_interp.analyses.lenses.edge.figure import edge_figure
from qfl_interp.analyses.lenses.emergence.figure import emergence_figure, feature_panels, shading
from qfl_interp.analyses.lenses.interchange.figure import interchange_figure, interchange_panel
from qfl_interp.analyses.lenses.mdl.figure import mdl_figure, mdl_panel
from qfl_interp.analyses.lenses.patch.attribution_figure import attribution_figure
from qfl_interp.analyses.lenses.patch.figure import patch_figure
from qfl_interp.analyses.lenses.patch.panel import patch_panel
from qfl_interp.analyses.lenses.polca.captured_figure import captured_figure
from qfl_interp.analyses.lenses.polca.composition_figure import composition_figure
from qfl_interp.analyses.lenses.polca.figure import polca_figure, polca_panel
from qfl_interp.analyses.lenses.polca.means_figure import means_figure
from qfl_interp.analyses.lenses.probe.figure import probe_heatmap
from qfl_interp.analyses.lenses.transfer.figure import transfer_figure
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.analyses.sweeps.across_figure import across_figure
from qfl_interp.analyses.sweeps.scaling_figure import scaling_figure
from qfl_interp.plots.panels import Shade
from tests import synthetic_tables as tables
from tests.analyses import test_across, test_curvature_figures, test_polca_figures, test_polca_means

LAST = tables.N_STEPS


def timeline() -> go.Figure:
    """Every lens' panels."""
    panels = [
        *feature_panels(tables.emergence_curve(), tables.emergence()),
        patch_panel(tables.patch(), "carry", 2),
        interchange_panel(tables.interchange(), "carry", 2),
        mdl_panel(tables.mdl(), "carry"),
        polca_panel(test_polca_figures.curves(), test_polca_figures.clusters(), 1),
    ]
    others = {f"seed {seed}, probe's directions taken out": tables.metrics() for seed in (1, 2, 3)}
    return timeline_figure(tables.metrics(), panels, shading(tables.emergence()), beside=others)


def across() -> go.Figure:
    """Four features over budgets."""
    grid, curves, verdicts, losses = test_across.GRID, [], [], []
    for feature in ("first_operand", "carry", "max_ending_here", "is_prev_negative"):
        for place, (third, onset) in enumerate({"beginning": 1e10, "middle": 1e11, "end": 1e13}.items()):
            values = np.where(grid > onset, 0.01, 0.5)
            names = {"task": "addition", "length": 16, "feature": feature, "metric": "log_loss", "third": third}
            levels = {"baseline_clean": 0.6 + place / 100, "baseline_paper": 0.5, "n_seeds": 2, "n_labels": 5}
            ends = {"geometric": values, "geometric_low": values * 0.9, "geometric_high": values * 1.2}
            curves.append(pd.DataFrame({"budget_flops": grid, **ends, **names, **levels}))
            verdicts.append(names | test_across.planted([onset, onset]))
    named = {"task": "addition", "length": 16, "loss": 0.6, "loss_low": 0.5, "loss_high": 0.7}
    losses = pd.DataFrame({"budget_flops": grid, **named, "n_seeds": 2, "base_rate": 0.655})
    return across_figure(pd.concat(curves), pd.DataFrame(verdicts), losses)


def scaling() -> go.Figure:
    """Five tasks, two shapes, a law."""
    budgets = 10.0 ** np.arange(9, 13.1, 0.5)
    tasks = ["addition", "maximum_subarray", "breadth_first_search", "majority_of_majorities", "sparse_parity"]
    runs, lines = [], []
    for task in tasks:
        of = {"task": task, "length": 16, "lr": 1e-3, "batch_size": 64}
        loss = 0.6 * (budgets / 1e9) ** -0.2
        for d_model, n_layers in ((16, 2), (64, 4), (128, 8)):
            shape = {"d_model": d_model, "n_layers": n_layers, "seed": 0}
            runs.append(pd.DataFrame({"budget_flops": budgets, "loss": loss * d_model / 40, **of, **shape}))
        lines.append(pd.DataFrame({"budget_flops": budgets, "loss": loss, "task": task, "length": 16}))
    found = pd.concat(runs).assign(exact=0.4, **{"pass": 0.01})
    best = found[found["d_model"] == 16].assign(n_seeds=2)
    for name in ("loss", "exact", "pass"):
        best = best.assign(**{f"{name}_low": best[name] * 0.9, f"{name}_high": best[name] * 1.1})
    notes = pd.DataFrame({"task": tasks, "length": 16, "base_rate": 0.69, "paper": 0.5, "floor": 1e-3})
    note = "transition 3×10¹⁰ to 1×10¹¹ FLOPs\nbreaks the power law (p = 0.03)"
    notes = notes.assign(transition_start=3e10, transition_end=1e11, note=note)
    return scaling_figure(found, best, pd.concat(lines).assign(kind="power law"), notes)


def edge() -> go.Figure:
    """Every column that its figure draws."""
    steps = np.array([0, 1, 10, 100, 1000])
    rows = pd.DataFrame({"step": steps, "flops": steps * 1e8})
    for name, _, _ in (*edge_looks._RATIOS, *edge_looks._RANKS):
        rows[name] = 1.0 + steps / 500
    return edge_figure(rows)


def ablation_of(*features: str) -> go.Figure:
    """All conditions of several features at the last step."""
    one = tables.ablate_over_steps().query(f"step == {LAST} and feature == 'carry'")
    return ablation_figure(pd.concat([one.assign(feature=feature) for feature in features]))


def probe_of(low: float, high: float, **options: Any) -> go.Figure:
    """Losses from one value to another."""
    rows = tables.probe().query(f"step == {LAST}")
    losses = np.geomspace(low, high, len(rows))
    return probe_heatmap(rows.assign(test_loss=losses, test_score=1 - losses / 9), "carry", **options)


def patch_of(tokens: Sequence[str]) -> go.Figure:
    """Patches of a prompt, at each position, and of heads at every position at once."""
    one = tables.patch(("resid_pre",), (LAST,)).query("position == 1")
    rows = [one.assign(position=at, token=token) for at, token in enumerate(tokens)]
    heads = [one.assign(component="heads", position=-1, token="", head=head) for head in range(4)]
    return patch_figure(pd.concat([*rows, *heads], ignore_index=True))


def _late_polca() -> go.Figure:
    return polca_figure(
        test_polca_figures.curves(), test_polca_figures.clusters(), transition=Shade(2e11, 1e12, "loss transition")
    )


FIGURES: dict[str, Callable[[], go.Figure]] = {
    "timeline": timeline,
    "emergence": lambda: emergence_figure(tables.metrics(), tables.emergence_curve(), tables.emergence()),
    "probe": lambda: probe_heatmap(tables.probe(), "carry"),
    "probe, few labels": lambda: probe_heatmap(tables.probe().query("label < 6 and layer < 2"), "carry"),
    "probe, losses far apart": lambda: probe_of(2.5e-4, 0.12),
    "probe, shuffled": lambda: probe_of(1e-3, 0.6, beside="shuffled"),
    "patch": lambda: patch_figure(tables.patch()),
    "patch of 51 tokens": lambda: patch_of("·" * 16 + "+" + "·" * 16 + "=" + "·" * 17),
    "patch of 60 digits": lambda: patch_of("0123456789" * 6),
    "patch of 40 words": lambda: patch_of(["word", "another", " the", "."] * 10),
    "patch heads": lambda: patch_figure(tables.patch(("z",), (LAST,))),
    "attribution": lambda: attribution_figure(tables.patch()),
    "interchange": lambda: interchange_figure(tables.interchange(labels=(0, 1, 2, 3))),
    "transfer": lambda: transfer_figure(tables.transfer()),
    "mdl": lambda: mdl_figure(tables.mdl()),
    "ablation": lambda: ablation_figure(tables.ablate(), counts=("answer", "paper")),
    "ablation, all": lambda: ablation_figure(tables.ablate_over_steps().query(f"step == {LAST}")),
    "ablation, three features": lambda: ablation_of("first_operand", "carry", "carry_without_next_token"),
    "ablation, six features": lambda: ablation_of(*[f"{name}_of_vertices" for name in "abcde"], "adjacency_matrix"),
    "ablation over steps": lambda: ablation_over_steps_figure(tables.ablate_over_steps()),
    "heads": lambda: units_figure(tables.ablate_units()),
    "neurons": lambda: units_figure(tables.ablate_units("mlp_post")),
    "polca": _late_polca,
    "polca means": lambda: means_figure(test_polca_means.means()),
    "polca captured": lambda: captured_figure(test_polca_figures.intervals()),
    "polca composition": lambda: composition_figure(test_polca_figures.composition(), test_polca_figures.clusters()),
    "curvature": lambda: curvature_figure(test_curvature_figures.sampled(), test_curvature_figures.ranks()),
    "soft ranks": lambda: soft_rank_figure(test_curvature_figures.ranks()),
    "edge": edge,
    "across": across,
    "scaling": scaling,
}
