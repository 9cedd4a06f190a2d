"""How far beyond the edge of stability steps are, and the soft rank of the last features, over compute."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.lines import curve, finite, level, over_training, places, value_range
from qfl_interp.plots.panels import Legend, Panel, stack_panels
from qfl_interp.plots.theme import PURPLE, STEEL, VERMILLION
from qfl_interp.tables import column

_RATIOS = (
    ("edge_ratio", "along the step, lr S / 2", STEEL), ("edge_ratio_p", "as the rule sees it, lr λ_P / 2", VERMILLION),
    ("edge_ratio_h", "plain, lr λ_H / 2", PURPLE),
)  # fmt: skip


_RANKS = (("soft_rank", "chosen", STEEL), ("gradient_weighted", "gradient-weighted", PURPLE))


def edge_panels(rows: pd.DataFrame) -> list[Panel]:
    """Learning rates in units of the edge, and soft ranks, over compute."""
    shown = over_training(rows)
    panels = []
    ratios = _curves(shown, _RATIOS)
    if ratios:
        edge = level(places(shown), 1.0, "1")
        panels.append(
            Panel(
                title="In units of the edge of stability",
                subtitle="above 1: beyond it",
                traces=(*ratios, edge),
                y_title="lr λ / 2",
                y_range=value_range(*ratios, include=(0.0, 1.0), below=0.05, above=0.08),
                legend=Legend("edge"),
            )
        )
    ranks = _curves(shown, _RANKS)
    if ranks:
        ends = value_range(*ranks, include=(1.0,), below=0.05, above=0.08)
        panels.append(
            Panel(
                title="Soft rank of the last hidden features",
                traces=tuple(ranks),
                y_title="rank",
                y_range=ends,
                legend=Legend("soft rank"),
            )
        )
    return panels


def _curves(shown: pd.DataFrame, looks: Sequence[tuple[str, str, str]]) -> list[go.Scatter]:
    """Those of the columns that hold something."""
    held = [look for look in looks if look[0] in shown and len(finite(column(shown, look[0])))]
    return [curve(shown.dropna(subset=[name]), name, text, color, size=4) for name, text, color in held]


def edge_figure(rows: pd.DataFrame) -> go.Figure:
    """The panels, one below the other."""
    return stack_panels(edge_panels(rows), None, filename="edge")
