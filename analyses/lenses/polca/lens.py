"""POLCA of a run: along which directions of weight space do which tokens learn, when, and does their own loss show it?

Directions and trajectories come from `polca_trajectories`; here they are clustered, dated and named.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from analyses.checkpoints import over_checkpoints
from analyses.lenses.polca.figure import polca_figure
from analyses.lenses.polca.means_figure import polca_means_figure
from analyses.lenses.polca.result import PolcaResult
from analyses.lenses.polca.section import PolcaTables
from analyses.lenses.polca.trajectories import PolcaData, polca_gradients, polca_trajectories, require_followable
from qfl_interp.digests import digest
from qfl_interp.polca.breakthroughs import BreakRule, break_step, cluster_breakthroughs, flat, plateau_after
from qfl_interp.polca.clustering import Clusters, cluster_direction
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.polca.naming import UNNAMED, cluster_name, enrichment, token_labels
from qfl_interp.polca.quality import silhouette, stability
from qfl_interp.polca.trajectories import POINTWISE, Trajectories, exact_loss, fisher, loss_change
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import column, records, select

CLUSTERS, CURVES, COMPOSITION, INTERVALS = "polca_clusters", "polca_curves", "polca_composition", "polca_intervals"
# What is clustered: losses projected on the directions, or one of the paper's baselines.
CurveKind = Literal["projected", "exact_loss", "loss_change", "fisher"]
# Baselines that know no direction: as little as can be is computed for them.
_WITHOUT_DIRECTION = ("exact_loss", "loss_change")
# Part of the run over which a turn is measured: the paper's 100 of 10,000 steps.
_SPAN_SHARE = 0.01


class ClusterSettings(NamedTuple):
    """What decides clusters and verdicts beside the trajectories; see `polca`."""

    curves: CurveKind
    min_cluster_size: int | None
    min_samples: int | None
    rule: BreakRule
    span: int
    tau: int | None
    resamples: int


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
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> PolcaResult:
    """Find tokens whose loss falls together along one direction of weight space, perhaps while their loss looks flat.

    They are clustered, and the clusters dated and named. What is in the run's tables already (directions, gradients,
    clusters) is not computed again.

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
        jobs: Pieces of work at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw bars on standard error.

    Returns:
        One row a cluster: `direction`, `basis_step`, `eigenvalue`; `name`, the label that describes it best, with its
        `f1` and `p_value_holm`; `n_tokens`, `share` of all; `medoid` and its context; `fall` of the mean curve in nats;
        `break_step` (mean over the tokens), whether it is `hidden` (after `tau_step`, where the exact loss of all
        tokens is flat for good: the paper's verdict) or `in_flat` (most of its tokens break within a stretch in which
        the exact loss of the cluster itself is flat); `jump_share`, how many tokens break with the mean curve;
        `stability` (Jaccard, over subsets) and `silhouette`.

    Raises:
        QflError: As `polca_trajectories`.
        ValueError: A setting is out of its range, or the span leaves no checkpoint far enough from both ends.

    References:
        Hidden Breakthroughs in Language Model Training (arXiv 2506.15872).
    """
    config = config or PolcaConfig()
    for name, value, known in (("curves", curves, get_args(CurveKind)), ("rule", rule, get_args(BreakRule))):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}.")
    if curves in _WITHOUT_DIRECTION:
        own = {name: getattr(config, name) for name in ("n_examples", "seed", "double")}
        config = PolcaConfig(basis="random", n_directions=1, accuracy="first", **own)
    elif curves == "fisher":
        # Gradients at the checkpoints are all it needs.
        config = replace(config, accuracy="first")
    at = run.resolve_steps(steps)
    if span is None:
        span = max(1, round(_SPAN_SHARE * (at[-1] - at[0])))
    settings = ClusterSettings(curves, min_cluster_size, min_samples, rule, span, tau, resamples)
    require_followable(run, at, jobs)
    _require_usable(settings, at)
    how = {"jobs": jobs, "device": device, "progress": progress}
    data = polca_trajectories(run, at, config=config, **how)
    name = digest(json.dumps([config.to_dict(), at, settings], sort_keys=True))
    clustered = _curves(run, data, settings.curves)
    tokens = token_labels(run.task, data.examples, data.scored)
    shared = _Shared(data, clustered, tokens, data.losses.double().numpy()[-len(clustered.steps) :])
    table = run.table(CLUSTERS)
    parts = {direction: _part(direction, name) for direction in clustered.directions}
    missing = [direction for direction, part in parts.items() if not table.has(part)]
    work = functools.partial(_cluster_at, run, settings, name)
    # In this process: a direction takes seconds, and another one would have to read all trajectories again.
    over_checkpoints(missing, lambda: shared, work, label="clustering directions", progress=progress)
    intervals = data.intervals.assign(analysis=name, curves=settings.curves, basis=config.basis)
    if not run.table(INTERVALS).has(name):
        run.table(INTERVALS).write(name, intervals)
    return _result(run, shared, settings, parts)


def _require_usable(settings: ClusterSettings, steps: Sequence[int]) -> None:
    """Raise `ValueError` for settings that would fail only after the gradients of the whole run."""
    known: dict[str, tuple[int | None, int]] = {
        "min_cluster_size": (settings.min_cluster_size, 2),
        "min_samples": (settings.min_samples, 1),
        "tau": (settings.tau, 0),
        "resamples": (settings.resamples, 0),
    }
    for name, (value, least) in known.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    # Of a loss's change the first step has no value.
    own = steps[1:] if settings.curves == "loss_change" else steps
    break_step(np.zeros(len(own)), own, settings.span, rule=settings.rule)


def stored_polca(run: Checkpoints) -> PolcaTables | None:
    """The tables of one finished call on projected losses: of several the one with most intervals; None without any.

    Of equally many, one with the Hessian's directions comes first, and then the one with most directions.
    """
    intervals = select(run.table(INTERVALS).read(), curves="projected")
    if intervals.empty:
        return None
    rest = [run.table(name).read() for name in (CURVES, CLUSTERS, COMPOSITION)]
    calls = intervals.groupby("analysis", as_index=False).agg(n=("step_from", "size"), basis=("basis", "first"))
    n_directions = rest[1].groupby("analysis")["direction"].nunique() if len(rest[1]) else {}
    order = [(row["n"], row["basis"] == "hessian", n_directions.get(row["analysis"], 0)) for row in records(calls)]
    chosen = calls["analysis"].iloc[max(range(len(order)), key=order.__getitem__)]
    curves, clusters, composition = (select(t, analysis=chosen) if len(t) else t for t in rest)
    return PolcaTables(curves, clusters, composition, select(intervals, analysis=chosen))


def _part(direction: int, name: str) -> str:
    """The table part of a direction's clusters."""
    return f"direction_{max(direction, 0):04d}-{name}"


class _Shared(NamedTuple):
    """What the clusters of every direction need: curves, labels and exact losses at the curves' steps."""

    data: PolcaData
    curves: Trajectories
    labels: pd.DataFrame
    losses: Float[np.ndarray, "time token"]


def _curves(run: Checkpoints, data: PolcaData, kind: CurveKind) -> Trajectories:
    """What is clustered."""
    steps = data.trajectories.steps
    if kind == "projected":
        return data.trajectories
    if kind == "fisher":
        return fisher(polca_gradients(run, steps, data.config).numpy(), steps)
    losses = data.losses.double().numpy()
    return exact_loss(losses, steps) if kind == "exact_loss" else loss_change(losses, steps)


def _cluster_at(run: Checkpoints, settings: ClusterSettings, name: str, shared: _Shared, direction: int) -> None:
    """Cluster the tokens along one direction and write its rows; the table of clusters last, which says it is done."""
    curves = shared.curves.of(direction).astype(np.float64)
    grouped = functools.partial(
        cluster_direction,
        min_cluster_size=settings.min_cluster_size,
        min_samples=settings.min_samples,
        only_falling=shared.curves.kind not in POINTWISE,
    )
    found = grouped(curves)
    composition = enrichment(shared.labels, found.labels)
    rows = _cluster_rows(run, settings, shared, direction, found, composition)
    if settings.resamples:
        stable = stability(curves, found, resamples=settings.resamples, **grouped.keywords)
        rows["stability"] = [stable[cluster] for cluster in found.medoids]
    where = {"direction": direction, "basis_step": _basis_step(shared, direction), "analysis": name}
    part = _part(direction, name)
    for table, part_rows in (
        (CURVES, _curve_rows(run, shared, curves, found).merge(rows[["cluster", "name"]])),
        (COMPOSITION, composition[~composition["label"].str.contains(" & ")] if len(composition) else composition),
        (CLUSTERS, rows),
    ):
        tensors = {"labels": torch.from_numpy(found.labels)} if table == CLUSTERS else None
        run.table(table).write(part, part_rows.assign(**run.identity(), **where), tensors)


def _basis_step(shared: _Shared, direction: int) -> int:
    """The checkpoint a direction comes from; the first one where there is no direction."""
    found = select(shared.data.directions, direction=direction)
    return int(column(found, "step")[0]) if len(found) else shared.curves.steps[0]


def _cluster_rows(
    run: Checkpoints,
    settings: ClusterSettings,
    shared: _Shared,
    direction: int,
    found: Clusters,
    composition: pd.DataFrame,
) -> pd.DataFrame:
    """One row a cluster of a direction."""
    curves, steps = shared.curves.of(direction).astype(np.float64), shared.curves.steps
    everything = shared.losses.mean(axis=1)
    tau = plateau_after(everything, steps) if settings.tau is None else settings.tau
    separate = silhouette(curves, found.labels).clusters
    eigenvalue = select(shared.data.directions, direction=direction)
    rows = []
    for cluster, medoid in found.medoids.items():
        members = found.labels == cluster
        own = flat(shared.losses[:, members].mean(axis=1), steps)
        only = np.where(members, cluster, -1)
        (broken,) = cluster_breakthroughs(
            curves, only, steps, span=settings.span, tau=tau, stretches=own, rule=settings.rule
        ).to_dict("records")
        mean = curves[members].mean(axis=0)
        called = cluster_name(composition, cluster)
        best = select(composition, cluster=cluster, name=called)
        rows.append(
            {
                "eigenvalue": float(column(eigenvalue, "eigenvalue")[0]) if len(eigenvalue) else np.nan,
                **broken,
                "break_flops": run.flops(round(broken["break_step"])),
                "name": called,
                "best_label": str(best["label"].iloc[0]) if len(best) else UNNAMED,
                "f1": float(column(best, "f1")[0]) if len(best) else np.nan,
                "p_value_holm": float(column(best, "p_value_holm")[0]) if len(best) else np.nan,
                "n_tokens": int(members.sum()),
                "share": float(members.mean()),
                "medoid": medoid,
                "medoid_context": str(shared.labels["context"].iloc[medoid]),
                "medoid_target": str(shared.labels["target"].iloc[medoid]),
                "fall": float(mean[0] - mean[-1]),
                "silhouette": separate[cluster],
                "stability": np.nan,
                "span": settings.span,
                "curves": settings.curves,
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["cluster", "name"])


def _curve_rows(
    run: Checkpoints, shared: _Shared, curves: Float[np.ndarray, "token time"], found: Clusters
) -> pd.DataFrame:
    """One row a cluster and step."""
    steps = shared.curves.steps
    parts = []
    for cluster, medoid in found.medoids.items():
        inside, losses = curves[found.labels == cluster], shared.losses[:, found.labels == cluster]
        low, high = np.quantile(inside, [0.25, 0.75], axis=0)
        exact_low, exact_high = np.quantile(losses, [0.25, 0.75], axis=1)
        parts.append(
            pd.DataFrame(
                {
                    "cluster": cluster,
                    "step": steps,
                    "flops": [run.flops(step) for step in steps],
                    "n_tokens": len(inside),
                    "mean": inside.mean(axis=0),
                    "medoid": curves[medoid],
                    "q25": low,
                    "q75": high,
                    "exact_mean": losses.mean(axis=1),
                    "exact_q25": exact_low,
                    "exact_q75": exact_high,
                }
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"cluster": pd.Series(dtype="int64")})


def _mean_rows(run: Checkpoints, shared: _Shared, settings: ClusterSettings) -> pd.DataFrame:
    """One row a direction and step: the mean curve of all tokens, and their exact loss."""
    steps = shared.curves.steps
    rows = [
        {
            "direction": direction,
            "basis_step": _basis_step(shared, direction),
            "step": step,
            "flops": run.flops(step),
            "n_tokens": len(shared.labels),
            "curves": settings.curves,
            "mean": mean,
            "exact_mean": exact,
        }
        for direction in shared.curves.directions
        for step, mean, exact in zip(
            steps, shared.curves.of(direction).mean(axis=0, dtype=np.float64), shared.losses.mean(axis=1), strict=True
        )
    ]
    return pd.DataFrame(rows)


def _result(run: Checkpoints, shared: _Shared, settings: ClusterSettings, parts: dict[int, str]) -> PolcaResult:
    """What is in the tables, together."""
    data, tokens = shared.data, shared.labels.copy()
    clusters, curves, composition = (
        run.table(name).read(list(parts.values())) for name in (CLUSTERS, CURVES, COMPOSITION)
    )
    for direction, part in parts.items():
        tokens[f"cluster_{direction}"] = run.table(CLUSTERS).read_tensors(part)["labels"].numpy()
    captured, change = column(data.intervals, "captured").sum(), column(data.intervals, "loss_change").sum()
    # Of a loss that hardly changes, a share says nothing.
    part = f", {captured / change:.1%} of it" if change and abs(captured / change) < 100 else ""
    shown = ["direction", "basis_step", "cluster", "n_tokens", "name", "f1", "fall", "break_step", "hidden", "in_flat"]
    title = (
        f"POLCA of {run.run_id}: {len(clusters)} clusters along {len(parts)} directions ({settings.curves}, basis "
        f"{data.config.basis}); the loss changes by {change:.3g} nats, along them by {captured:.3g}{part}"
    )
    vague = data.directions.loc[~data.directions["converged"].astype(bool)]
    if len(vague):
        title += (
            f"; {len(vague)} of {len(data.directions)} eigenvectors did not converge "
            f"(residual up to {column(vague, 'residual').max():.1g}, max_products {data.config.max_products})"
        )
    return PolcaResult(
        title,
        clusters.filter([*shown, "stability"]),
        clusters,
        lambda: (
            polca_figure(curves, clusters) if len(clusters) else polca_means_figure(_mean_rows(run, shared, settings))
        ),
        curves,
        composition,
        data.intervals,
        data.directions,
        tokens,
        data,
        shared.curves,
    )
