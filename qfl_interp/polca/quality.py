"""How good clusters of tokens are: against a known skill, against each other, and when tokens are left out.

Labels count clusters from 0; negative ones are outliers and dropped tokens, as `clustering` gives them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Integer

from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.polca.clustering import Clusters, cluster_direction

# A cluster counts for the restricted homogeneity if more than this share of its tokens with the skill lie in the
# places asked for.
PLACE_SHARE = 0.85
# Silhouettes need all distances between tokens.
_MOST_TOKENS = 2000


def skill_scores(labels: Int[np.ndarray, " token"], skill: Bool[np.ndarray, " token"]) -> pd.DataFrame:
    """How well each cluster stands for a skill, one row a cluster.

    With c the tokens of a cluster, s those with the skill, and all the clustered tokens (outliers and dropped ones are
    in neither):

    - homogeneity: `|c & s| / |c|`, the share of the cluster that needs the skill (its precision);
    - recall: `|c & s| / |s & all|`, 0 where no clustered token has the skill;
    - f1: their harmonic mean, `2 |c & s| / (|c| + |s & all|)`.

    Returns:
        Columns `cluster`, `n_tokens`, `homogeneity`, `recall`, `f1`.

    References:
        arXiv 2506.15872, section 4, Table 1.
    """
    clustered = labels >= 0
    n_skill = int(np.sum(skill & clustered))
    rows = []
    for cluster in np.unique(labels[clustered]):
        inside = labels == cluster
        both, size = int(np.sum(inside & skill)), int(np.sum(inside))
        recall = both / n_skill if n_skill else 0.0
        rows.append((int(cluster), size, both / size, recall, 2 * both / (size + n_skill)))
    return pd.DataFrame(rows, columns=["cluster", "n_tokens", "homogeneity", "recall", "f1"])


class BestCluster(NamedTuple):
    """The cluster that is purest in a skill; `NO_CLUSTER` where no cluster counts.

    Attributes:
        cluster: Its number, -1 for none.
        homogeneity: Share of its tokens with the skill; NaN for none, as the other two.
        recall: Share of the clustered tokens with the skill that are in it.
        f1: The harmonic mean of both.
    """

    cluster: int
    homogeneity: float
    recall: float
    f1: float


NO_CLUSTER = BestCluster(-1, np.nan, np.nan, np.nan)


def clusters_in_places(
    labels: Int[np.ndarray, " token"],
    skill: Bool[np.ndarray, " token"],
    place: Integer[np.ndarray, " token"],
    places: Collection[int],
) -> list[int]:
    """The clusters that have tokens with the skill, more than 85 % of them in some places.

    References:
        arXiv 2506.15872, section 4.
    """
    wanted = np.isin(place, list(places))
    return [
        int(cluster)
        for cluster in np.unique(labels[labels >= 0])
        if np.any(having := (labels == cluster) & skill) and np.mean(wanted[having]) > PLACE_SHARE
    ]


def restricted_homogeneity(
    labels: Int[np.ndarray, " token"],
    skill: Bool[np.ndarray, " token"],
    place: Integer[np.ndarray, " token"],
    places: Collection[int],
) -> BestCluster:
    """The cluster with the highest homogeneity among those whose tokens with the skill lie in some places.

    A cluster of answers' first digits is pure in carries by construction, since such a digit *is* a carry. The paper's
    carry homogeneity therefore looks only at clusters in which more than 85 % of the carry tokens are in the tens or
    the hundreds.

    References:
        arXiv 2506.15872, section 4.
    """
    scores = skill_scores(labels, skill)
    scores = scores[scores["cluster"].isin(clusters_in_places(labels, skill, place, places))]
    if scores.empty:
        return NO_CLUSTER
    # Of equally pure clusters the one with the larger recall.
    best = scores.iloc[np.lexsort((scores["recall"], scores["homogeneity"]))[-1]]
    return BestCluster(int(best["cluster"]), float(best["homogeneity"]), float(best["recall"]), float(best["f1"]))


def adjusted_rand(labels: Int[np.ndarray, " token"], truth: Integer[np.ndarray, " token"]) -> float:
    """Agreement of the clusters with known groups over the clustered tokens: 1 for the same, 0 on average by chance.

    It says nothing about the tokens left out: state their share beside it. NaN where fewer than 2 are clustered.

    References:
        Hubert and Arabie (1985), Comparing partitions.
    """
    from sklearn.metrics import adjusted_rand_score  # a second, and finished tables have their numbers

    clustered = labels >= 0
    if clustered.sum() < 2:
        return float("nan")
    return float(adjusted_rand_score(truth[clustered], labels[clustered]))


def silhouettes(curves: Float[np.ndarray, "token time"], labels: Int[np.ndarray, " token"]) -> dict[int, float]:
    """How separate each cluster is, in [-1, 1]: how much nearer its tokens are to it than to the next one, on average.

    NaN with fewer than two clusters. Outliers and dropped tokens are left out; of more than `_MOST_TOKENS` a random
    sample stands for all, and a cluster of which nothing is in it is NaN.

    References:
        Rousseeuw (1987), Silhouettes.
    """
    from sklearn.metrics import silhouette_samples  # as in `adjusted_rand`

    names = [int(cluster) for cluster in np.unique(labels[labels >= 0])]
    used = np.flatnonzero(labels >= 0)
    if len(used) > _MOST_TOKENS:
        used = np.sort(np.random.default_rng(0).choice(used, _MOST_TOKENS, replace=False))
    found = labels[used]
    if not 2 <= len(np.unique(found)) < len(used):
        return dict.fromkeys(names, float("nan"))
    values = np.asarray(silhouette_samples(curves[used].astype(np.float64), found))
    inside = {name: values[found == name] for name in names}
    return {name: float(v.mean()) if len(v) else float("nan") for name, v in inside.items()}


def stability(
    curves: Float[np.ndarray, "token time"],
    clusters: Clusters,
    *,
    min_cluster_size: int | None = None,
    min_samples: int | None = None,
    only_falling: bool = True,
    resamples: int = 20,
    share: float = 0.8,
    seed: int = 0,
) -> dict[int, float]:
    """How well each cluster is found again among random subsets of the tokens, in [0, 1].

    Each subset is clustered anew, with sizes that shrink as it does. A cluster's score there is the largest Jaccard
    similarity `|a & b| / |a | b|` of its tokens in the subset with any cluster found, 0 where none is. The mean over
    the subsets is returned; Hennig reads 0.75 and more as a valid, stable cluster, below 0.6 as one not to trust.

    The clustering's settings are those that `clusters` was found with. Each of the `resamples` subsets holds a `share`
    of the tokens, drawn without replacement.

    Raises:
        ValueError: `share` is not in (0, 1], or there is no subset.
        QflError: The scores of so many subsets do not fit into memory.

    References:
        Hennig (2007), Cluster-wise assessment of cluster stability (its subsetting scheme).
    """
    if not 0 < share <= 1 or resamples < 1:
        raise ValueError(f"share must lie in (0, 1] and resamples be at least 1, got {share} and {resamples}.")
    needed = 8 * resamples * max(len(clusters.medoids), 1)
    require_memory(needed, available_bytes(), f"scores of {resamples:,} resamples", "Take fewer resamples.")
    rng = np.random.default_rng(seed)
    size = None if min_cluster_size is None else max(2, round(share * min_cluster_size))
    samples = None if min_samples is None else max(1, round(share * min_samples))
    found = {cluster: np.zeros(resamples) for cluster in clusters.medoids}
    for resample in range(resamples if found else 0):
        rows = np.sort(rng.choice(len(curves), round(share * len(curves)), replace=False))
        again = cluster_direction(curves[rows], min_cluster_size=size, min_samples=samples, only_falling=only_falling)
        for cluster, scores in found.items():
            scores[resample] = _best_jaccard(clusters.labels[rows] == cluster, again)
    return {cluster: float(scores.mean()) for cluster, scores in found.items()}


def _best_jaccard(inside: Bool[np.ndarray, " token"], clusters: Clusters) -> float:
    """The largest Jaccard similarity of a set of tokens with a cluster."""
    others = [clusters.labels == cluster for cluster in clusters.medoids]
    return max((float(np.sum(inside & other) / np.sum(inside | other)) for other in others), default=0.0)
