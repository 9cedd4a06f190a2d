"""How well clusters of tokens stand for carries: the rows of docs/polca.md's tables on 3-digit addition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

import qfl_interp as qfl
from qfl_interp.analyses.lenses.polca.result import PolcaResult
from qfl_interp.polca.breakthroughs import plateau_after
from qfl_interp.polca.quality import PLACE_SHARE, adjusted_rand, restricted_homogeneity, skill_scores
from qfl_interp.polca.trajectories import POINTWISE
from qfl_interp.tables import column

# The paper's tens and hundreds, of thousands, hundreds, tens and ones.
CARRY_PLACES = (1, 2)
# Shuffles of the carries, and the quantile of the best homogeneity among them that is called chance.
SHUFFLES, CHANCE = 200, 0.95
# Columns of docs/polca_decimal.csv beside what was clustered, in the order of the page's table.
SCORES = ("homogeneity", "by chance", "recall", "f1", "second", "third", "best_f1", "adjusted_rand", "clusters",
          "hidden", "captured")  # fmt: skip


def best_carry(found: PolcaResult) -> dict[str, float]:
    """The purest cluster in carries that is not one place's by construction, over all directions."""
    carry = found.tokens["carry"].fillna(False).to_numpy(dtype=bool)
    place = column(found.tokens, "place").astype(np.int64)
    names = [name for name in found.tokens if str(name).startswith("cluster_")]
    labels = [column(found.tokens, name).astype(np.int64) for name in names]
    return {
        **purest(labels, carry, [place] * len(labels)),
        "by chance": chance_homogeneity(labels, carry, place),
        "best_f1": max((float(column(skill_scores(own, carry), "f1").max(initial=0.0)) for own in labels), default=0.0),
    }


def purest(labels: Sequence[np.ndarray], carry: np.ndarray, places: Sequence[np.ndarray]) -> dict[str, float]:
    """The purest cluster over all directions, the next two directions', and the best adjusted Rand index."""
    found = [restricted_homogeneity(own, carry, at, CARRY_PLACES) for own, at in zip(labels, places, strict=True)]
    tops = sorted(found, key=lambda one: -np.nan_to_num(one.homogeneity))
    below = [top.homogeneity for top in tops[1:3]] + [np.nan] * 2
    rand = pd.Series([adjusted_rand(own, carry.astype(np.int64)) for own in labels], dtype=float)
    return {
        "homogeneity": tops[0].homogeneity, "recall": tops[0].recall, "f1": tops[0].f1, "second": below[0],
        "third": below[1], "adjusted_rand": float(rand.max()),
    }  # fmt: skip


def chance_homogeneity(
    labels: Sequence[np.ndarray], carry: np.ndarray, place: np.ndarray, shuffles: int = SHUFFLES
) -> float:
    """What 95 % of shuffled carries stay below as the best homogeneity of all these clusters.

    Carries are shuffled among the tokens of one place, so that each place keeps its share of them. NaN where no cluster
    counts in any shuffle.
    """
    clusters = [own == cluster for own in labels for cluster in np.unique(own[own >= 0])]
    if not clusters:
        return float("nan")
    inside = np.array(clusters, dtype=np.float64)
    rng, shuffled = np.random.default_rng(0), np.tile(carry, (shuffles, 1))
    for at in np.unique(place):
        shuffled[:, place == at] = rng.permuted(shuffled[:, place == at], axis=1)
    having, within = inside @ shuffled.T, (inside * np.isin(place, CARRY_PLACES)) @ shuffled.T
    counts = within > PLACE_SHARE * having
    best = np.where(counts, having / inside.sum(axis=1, keepdims=True), np.nan)
    best = np.nanmax(best[:, counts.any(axis=0)], axis=0, initial=np.nan)
    return float(np.nanquantile(best, CHANCE)) if len(best) else float("nan")


def shuffled_within(carry: np.ndarray, among: np.ndarray, shuffles: int) -> Iterator[np.ndarray]:
    """The carries, so many times, shuffled among the tokens of one number of `among`."""
    rng = np.random.default_rng(0)
    for _ in range(shuffles):
        mixed = carry.copy()
        for one in np.unique(among):
            mixed[among == one] = rng.permutation(mixed[among == one])
        yield mixed


def scores(name: str, run: qfl.Run, found: PolcaResult, samples: int | None) -> dict[str, Any]:
    """One row of the tables on 3-digit addition."""
    clusters = found.to_dataframe()
    losses = found.data.losses.double().numpy().mean(axis=1)
    return {
        "trajectory": name,
        "min_samples": "tokens / 15" if samples is None else str(samples),
        "seed": run.config.train.seed,
        **best_carry(found),
        "clusters": len(clusters),
        "hidden": mean_of(clusters, "hidden"),
        "captured": captured_share(found.intervals)
        if found.clustered.kind not in ("exact_loss", *POINTWISE)
        else float("nan"),
        "silhouette": mean_of(clusters, "silhouette"),
        "jump_share": mean_of(clusters, "jump_share"),
        "tau": plateau_after(losses, run.steps),
    }


def captured_share(intervals: pd.DataFrame) -> float:
    """Part of the loss's fall that the directions have."""
    return float(np.sum(column(intervals, "captured")) / np.sum(column(intervals, "loss_change")))


def mean_of(clusters: pd.DataFrame, name: str) -> float:
    """A column's mean over the clusters that have it, NaN where none has."""
    return float(clusters[name].astype(float).mean()) if len(clusters) else float("nan")
