"""The clusters of tokens along every direction: found, dated, named, and kept beside the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from qfl_interp.analyses.checkpoints import over_checkpoints
from qfl_interp.analyses.lenses.polca.plan import Plan, Settings, direction_part
from qfl_interp.analyses.lenses.polca.tables import CLUSTERS, COMPOSITION, CURVES, INTERVALS
from qfl_interp.analyses.lenses.polca.trajectories import Followed, gradients_at
from qfl_interp.polca.breakthroughs import cluster_breakthroughs, flat, learned_step, plateau_after
from qfl_interp.polca.clustering import Clusters, cluster_direction
from qfl_interp.polca.naming import UNNAMED, cluster_name, enrichment, token_labels
from qfl_interp.polca.quality import silhouettes, stability
from qfl_interp.polca.trajectories import POINTWISE, Trajectories, exact_loss, fisher, loss_change
from qfl_interp.tables import column, select


class Grouping(NamedTuple):
    """What the clusters of every direction need.

    Attributes:
        plan: What is to be done.
        followed: The losses along the directions.
        curves: What is clustered, by direction.
        labels: What is known of each token.
        losses: The tokens' exact losses at the curves' steps.
    """

    plan: Plan
    followed: Followed
    curves: Trajectories
    labels: pd.DataFrame
    losses: Float[np.ndarray, "time token"]

    @classmethod
    def of(cls, plan: Plan, followed: Followed) -> Grouping:
        """The curves that the plan clusters, with what describes their clusters."""
        kind, steps, losses = plan.settings.curves, plan.steps, followed.losses.double().numpy()
        if kind == "projected":
            curves = followed.trajectories
        elif kind == "fisher":
            curves = fisher(gradients_at(plan).numpy(), steps)
        else:
            curves = exact_loss(losses, steps) if kind == "exact_loss" else loss_change(losses, steps)
        labels = token_labels(plan.run.task, followed.examples, followed.scored)
        return cls(plan, followed, curves, labels, losses[-len(curves.steps) :])

    def part(self, direction: int) -> str:
        """The table part of a direction's clusters."""
        return direction_part(direction, self.plan.digest)

    def write(self, *, progress: bool = True) -> None:
        """Cluster along the directions that are not in the run's tables yet."""
        plan, table = self.plan, self.plan.run.table(CLUSTERS)
        missing = [direction for direction in self.curves.directions if not table.has(self.part(direction))]
        # In this process: a direction takes seconds, and another one would have to read all trajectories again.
        over_checkpoints(missing, lambda: self, _cluster_along, label="clustering directions", progress=progress)
        intervals = plan.run.table(INTERVALS)
        if not intervals.has(plan.digest):
            how = {"analysis": plan.digest, "curves": plan.settings.curves, "basis": plan.config.basis}
            intervals.write(plan.digest, self.followed.intervals.assign(**how), steps=(*plan.sources, *plan.steps))

    def basis_step(self, direction: int) -> int:
        """The checkpoint a direction comes from; the first one where there is no direction."""
        found = select(self.followed.directions, direction=direction)
        return int(column(found, "step")[0]) if len(found) else self.curves.steps[0]

    def axis_columns(self) -> dict[str, list[float]]:
        """How far training was at each step of the curves, by column."""
        far = [self.plan.run.how_far(step) for step in self.curves.steps]
        return {name: [one[name] for one in far] for name in far[0]}

    def means(self) -> pd.DataFrame:
        """One row a direction and step: the mean curve of all tokens, and their exact loss."""
        steps, axis = self.curves.steps, self.axis_columns()
        parts = [
            pd.DataFrame(
                {
                    "direction": direction,
                    "basis_step": self.basis_step(direction),
                    "step": steps,
                    **axis,
                    "n_tokens": len(self.labels),
                    "curves": self.plan.settings.curves,
                    "mean": self.curves.of(direction).mean(axis=0, dtype=np.float64),
                    "exact_mean": self.losses.mean(axis=1),
                }
            )
            for direction in self.curves.directions
        ]
        return pd.concat(parts, ignore_index=True)


def _cluster_along(of: Grouping, direction: int) -> None:
    """Cluster the tokens along one direction and write its rows; the table of clusters last, which says it is done."""
    run, settings = of.plan.run, of.plan.settings
    curves = of.curves.of(direction).astype(np.float64)
    how: dict[str, Any] = {
        "min_cluster_size": settings.min_cluster_size,
        "min_samples": settings.min_samples,
        "only_falling": of.curves.kind not in POINTWISE,
    }
    found = cluster_direction(curves, **how)
    composition = enrichment(of.labels, found.labels)
    rows = _cluster_rows(of, direction, curves, found, composition)
    if settings.resamples:
        stable = stability(curves, found, resamples=settings.resamples, **how)
        rows["stability"] = [stable[cluster] for cluster in found.medoids]
    where = {"direction": direction, "basis_step": of.basis_step(direction), "analysis": of.plan.digest}
    for table, part_rows in (
        (CURVES, _curve_rows(of, curves, found).merge(rows[["cluster", "name"]])),
        (COMPOSITION, composition[~composition["label"].str.contains(" & ")] if len(composition) else composition),
        (CLUSTERS, rows),
    ):
        tensors = {"labels": torch.from_numpy(found.labels)} if table == CLUSTERS else None
        part_rows = part_rows.assign(**run.identity(), **where)
        run.table(table).write(of.part(direction), part_rows, tensors, steps=(*of.plan.sources, *of.plan.steps))


def _cluster_rows(
    of: Grouping, direction: int, curves: Float[np.ndarray, "token time"], found: Clusters, composition: pd.DataFrame
) -> pd.DataFrame:
    """One row a cluster of a direction."""
    settings = of.plan.settings
    verdicts = cluster_verdicts(curves, found.labels, of.losses, of.curves.steps, settings)
    separate = silhouettes(curves, found.labels)
    eigenvalue = select(of.followed.directions, direction=direction)
    rows = []
    for cluster, medoid in found.medoids.items():
        members = found.labels == cluster
        broken = verdicts[cluster]
        mean = curves[members].mean(axis=0)
        rows.append(
            {
                "eigenvalue": float(column(eigenvalue, "eigenvalue")[0]) if len(eigenvalue) else np.nan,
                **broken,
                **{f"break_{name}": far for name, far in of.plan.run.how_far(round(broken["break_step"])).items()},
                **_name(composition, cluster),
                "n_tokens": int(members.sum()),
                "share": float(members.mean()),
                "medoid": medoid,
                "medoid_context": str(of.labels["context"].iloc[medoid]),
                "medoid_target": str(of.labels["target"].iloc[medoid]),
                "fall": float(mean[0] - mean[-1]),
                "silhouette": separate[cluster],
                "stability": np.nan,
                "span": settings.span,
                "curves": settings.curves,
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["cluster", "name"])


def cluster_verdicts(
    curves: Float[np.ndarray, "token time"],
    labels: Int[np.ndarray, " token"],
    losses: Float[np.ndarray, "time token"],
    steps: Sequence[int],
    settings: Settings,
) -> dict[int, dict[str, Any]]:
    """When each cluster breaks, by its number; its own exact loss decides whether it is flat there.

    The values of a cluster are the columns of `cluster_breakthroughs`.
    """
    tau = plateau_after(losses.mean(axis=1), steps) if settings.tau is None else settings.tau
    verdicts = {}
    for cluster in np.unique(labels[labels >= 0]):
        members = labels == cluster
        own = losses[:, members].mean(axis=1)
        (broken,) = cluster_breakthroughs(
            curves,
            np.where(members, cluster, -1),
            steps,
            span=settings.span or 0,
            tau=tau,
            stretches=flat(own, steps),
            learned=learned_step(own, steps),
            rule=settings.rule,
        ).to_dict("records")
        verdicts[int(cluster)] = broken
    return verdicts


def _name(composition: pd.DataFrame, cluster: int) -> dict[str, Any]:
    """What a cluster is called, and how well that fits."""
    name = cluster_name(composition, cluster)
    best = select(composition, cluster=cluster, name=name)
    if best.empty:
        return {"name": name, "best_label": UNNAMED, "f1": np.nan, "p_value_holm": np.nan}
    scores = {score: float(column(best, score)[0]) for score in ("f1", "p_value_holm")}
    return {"name": name, "best_label": str(best["label"].iloc[0]), **scores}


def _curve_rows(of: Grouping, curves: Float[np.ndarray, "token time"], found: Clusters) -> pd.DataFrame:
    """One row a cluster and step."""
    steps, axis = of.curves.steps, of.axis_columns()
    parts = []
    for cluster, medoid in found.medoids.items():
        inside, losses = curves[found.labels == cluster], of.losses[:, found.labels == cluster]
        low, high = np.quantile(inside, [0.25, 0.75], axis=0)
        exact_low, exact_high = np.quantile(losses, [0.25, 0.75], axis=1)
        parts.append(
            pd.DataFrame(
                {
                    "cluster": cluster,
                    "step": steps,
                    **axis,
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
