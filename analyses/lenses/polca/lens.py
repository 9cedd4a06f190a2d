"""POLCA of a run: along which directions of weight space do which tokens learn, when, and does their own loss show it?

A call is planned once (`plan`); directions and losses along them come from `basis` and `trajectories`, clusters from
`grouping`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from plotly.graph_objects import Figure

from qfl_interp.analyses.at_step import View, curves_view
from qfl_interp.analyses.checkpoints import require_jobs
from qfl_interp.analyses.lens import Lens, Page
from qfl_interp.analyses.lenses.polca.captured_figure import captured_figure
from qfl_interp.analyses.lenses.polca.clusters import telling
from qfl_interp.analyses.lenses.polca.columns import RESULT, TABLES, token_columns
from qfl_interp.analyses.lenses.polca.estimate import estimate
from qfl_interp.analyses.lenses.polca.figure import polca_figure, polca_panel
from qfl_interp.analyses.lenses.polca.grouping import Grouping
from qfl_interp.analyses.lenses.polca.means_figure import means_figure
from qfl_interp.analyses.lenses.polca.plan import CurveKind, Plan, Settings
from qfl_interp.analyses.lenses.polca.result import PolcaResult
from qfl_interp.analyses.lenses.polca.section import polca_sections
from qfl_interp.analyses.lenses.polca.tables import CLUSTERS, COMPOSITION, CURVES, INTERVALS, stored
from qfl_interp.analyses.lenses.polca.trajectories import follow
from qfl_interp.analyses.result import Result
from qfl_interp.analyses.transition import shaded_transition
from qfl_interp.errors import QflError
from qfl_interp.plots.panels import Panel
from qfl_interp.polca.breakthroughs import BreakRule
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.report.page import Section
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import column, select

_SUMMARY = (
    "direction", "basis_step", "cluster", "n_tokens", "name", "f1", "fall", "break_step", "hidden", "in_flat",
    "stability",
)  # fmt: skip


class Polca(Lens):
    """Clusters of tokens whose loss falls together along a direction of weight space."""

    name = "polca"
    question = "Which tokens learn together along one direction of weight space, and does their own loss show it?"
    tables, result = TABLES, RESULT
    order = 90

    @classmethod
    def views(cls, run: Checkpoints) -> list[View]:
        """The clusters of one direction over the training; without any, what the directions capture."""
        if not run.table(INTERVALS).names():
            return []

        def draw(chosen: Mapping[str, Any]) -> Figure:
            found, how = stored(run), {"transition": shaded_transition(run), "unit": run.task.loss_unit}
            if found is None:
                raise QflError(
                    f"the tables of POLCA in {run.workplace} hold no finished call on projected losses. Run "
                    f"`qfl polca {run.path}` to its end: what is there is not computed twice."
                )
            if found.clusters.empty:
                return captured_figure(found.intervals, **how)
            return polca_figure(found.curves, found.clusters, chosen["direction"], **how)

        def rows(chosen: Mapping[str, Any]) -> pd.DataFrame:
            found = stored(run)
            if found is None:
                return pd.DataFrame()
            return found.intervals if found.clusters.empty else select(found.curves, **chosen)

        def directions() -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
            found = stored(run)
            if found is None or found.clusters.empty:
                return (), [()]
            return ("direction",), [(one,) for one in telling(found.clusters)]

        return [curves_view(cls.name, cls.question, run, draw, rows, directions, title="POLCA")]

    @classmethod
    def panels(cls, page: Page) -> list[Panel]:
        """The clusters of the most telling direction."""
        found = stored(page.run)
        if found is None or found.clusters.empty:
            return []
        return [polca_panel(found.curves, found.clusters, telling(found.clusters)[0], page.run.task.loss_unit)]

    @classmethod
    def sections(cls, page: Page) -> list[Section]:
        found = stored(page.run)
        if found is None:
            return []
        return polca_sections(found, transition=shaded_transition(page.run), unit=page.run.task.loss_unit)


def polca(
    run: Checkpoints,
    steps: Steps = "all",
    *,
    config: PolcaConfig | None = None,
    curves: CurveKind = "projected",
    min_cluster_size: int | None = None,
    min_samples: int | None = None,
    rule: BreakRule = "paper",
    span: int | None = None,
    tau: int | None = None,
    resamples: int = 20,
    dry_run: bool = False,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Find tokens whose loss falls together along one direction of weight space, perhaps while their loss looks flat.

    The lens clusters them, and dates and names the clusters. A call skips what the run's tables have already
    (directions, gradients, clusters).

    Examples:
        `qfl polca runs/add16`,
        `qfl polca runs/add16 --basis-steps log:40 --out polca.html`,
        `qfl polca runs/add16 --curves exact_loss` (a baseline)

    Args:
        run: What to look at.
        steps: The checkpoints, as in `probe`; at least 3, and more show more.
        config: Directions, accuracy, examples.
        curves: What is clustered: the losses "projected" on the directions, or a baseline of the paper: a token's
            "exact_loss", its "loss_change" from checkpoint to checkpoint, or its "fisher" information along each
            direction. LCA is `config` with basis "parameters", first-order POLCA with accuracy "first".
        min_cluster_size: Fewest tokens of a cluster; 3 % of all by default, at least 5.
        min_samples: As in HDBSCAN; a fifteenth of the clustered tokens by default.
        rule: Which turn of a curve is its breakthrough: "paper" (the largest second difference, where a fall ends),
            "down" (the smallest, where it begins), "absolute".
        span: Over how many steps a turn is measured; 1 % of the way from the first step to the last by default, as in
            the paper.
        tau: The step after which the exact loss counts as flat; measured by default.
        resamples: Subsets of the tokens that a cluster's stability is measured on; 0 for none.
        dry_run: Compute nothing, but say what is left to do: hours, memory, disk.
        jobs: Pieces of work at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw bars on standard error.

    Returns:
        A `PolcaResult`, of one row a cluster: `direction`, `basis_step`, `eigenvalue`; `name`, the label that describes
        it best, with its `f1` and `p_value_holm`; `n_tokens`, `share` of all; `medoid` and its context; `fall` of the
        mean curve in nats; `break_step` (mean over the tokens), whether it is `hidden` (after `tau_step`, where the
        exact loss of all tokens is flat for good: the paper's verdict) or `in_flat` (most of its tokens break within a
        stretch in which the exact loss of the cluster itself is flat: a plateau, unless `learned_share` of them do
        where nothing is left of it); `jump_share`, how many tokens break with the mean curve; `stability` (Jaccard,
        over subsets) and `silhouette`.

    Raises:
        QflError: Unknown step, fewer than 3, checkpoints of different shapes, a loss that is not finite (names the
            step; what was computed before is kept), or a basis that does not fit into memory.
        ValueError: A setting is out of its range, the span leaves no checkpoint far enough from both ends, or there are
            more directions than parameters.

    References:
        Hidden Breakthroughs in Language Model Training (arXiv 2506.15872).
    """
    require_jobs(jobs)
    settings = Settings(curves, min_cluster_size, min_samples, rule, span, tau, resamples)
    plan = Plan.of(run, steps, config=config, settings=settings, device=device)
    if dry_run:
        return estimate(plan, jobs=jobs)
    grouping = Grouping.of(plan, follow(plan, jobs=jobs, progress=progress))
    grouping.write(progress=progress)
    return _result(grouping)


def _result(grouping: Grouping) -> PolcaResult:
    """What is in the tables, together."""
    plan, data, directions = grouping.plan, grouping.followed, grouping.curves.directions
    run, tokens = plan.run, grouping.labels.copy()
    parts = [grouping.part(direction) for direction in directions]
    clusters, curves, composition = (run.table(name).read(parts) for name in (CLUSTERS, CURVES, COMPOSITION))
    for direction, part in zip(directions, parts, strict=True):
        tokens[f"cluster_{direction}"] = run.table(CLUSTERS).read_tensors(part)["labels"].numpy()

    how: dict[str, Any] = {"transition": shaded_transition(run), "unit": run.task.loss_unit}

    def draw_means(_: pd.DataFrame) -> Figure:
        return means_figure(grouping.means(), **how)

    return PolcaResult(
        _title(grouping, len(clusters)),
        clusters.filter(list(_SUMMARY)),
        clusters,
        draw_means if clusters.empty else functools.partial(polca_figure, curves, **how),
        curves,
        composition,
        data.intervals,
        data.directions,
        tokens,
        data,
        grouping.curves,
        columns={**RESULT, "tokens": token_columns(run.task.features, map(str, tokens))},
        of=run.label,
    )


def _title(grouping: Grouping, n_clusters: int) -> str:
    """What was found, what the directions capture, and which of them are vague."""
    plan, data = grouping.plan, grouping.followed
    captured, change = column(data.intervals, "captured").sum(), column(data.intervals, "loss_change").sum()
    # Of a loss that hardly changes, a share says nothing.
    part = f", {captured / change:.1%} of it" if change and abs(captured / change) < 100 else ""
    unit = plan.run.task.loss_unit
    title = (
        f"POLCA of {plan.run.run_id}: {n_clusters} clusters along {len(grouping.curves.directions)} directions "
        f"({plan.settings.curves}, basis {plan.config.basis}); the loss changes by {change:.3g} {unit}, along them by "
        f"{captured:.3g}{part}"
    )
    vague = data.directions.loc[~data.directions["converged"].astype(bool)]
    if len(vague):
        title += (
            f"; {len(vague)} of {len(data.directions)} eigenvectors did not converge "
            f"(residual up to {column(vague, 'residual').max():.1g}, max_products {plan.config.max_products})"
        )
    return title
