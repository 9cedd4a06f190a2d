"""Clusters of tokens whose trajectories along one direction look alike: the paper's filters, then HDBSCAN.

A direction is kept only if its mean trajectory falls from the first to the last time (one that rises is oscillation,
not learning), and of it only the tokens that fall. Kinds whose values stand each for themselves (`POINTWISE`) have no
such filter. What HDBSCAN finds dense is a cluster, the rest are outliers.

References:
    arXiv 2506.15872, sections 3.3 and 4.1. Campello, Moulavi and Sander (2013), for HDBSCAN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from qfl_interp.memory import available_bytes, require_memory

OUTLIER = -1
DROPPED = -2
# The paper's 150 of 5,000 tokens.
MIN_CLUSTER_SHARE = 0.03
MIN_CLUSTER_SIZE = 5
# Up to so many tokens HDBSCAN may hold all pairwise distances (0.8 GB, and as much again while it works), which is
# ten times faster than its k-d tree at 500 checkpoints.
_MAX_PAIRWISE = 10_000
# MiB of distances at a time where only their sums are wanted.
_WORKING_MIB = 64


@dataclass(frozen=True, repr=False)
class Clusters:
    """The clusters of one direction.

    Attributes:
        labels: Cluster of each token, counted from 0 in the order of their sizes, the largest first; `OUTLIER`, or
            `DROPPED` where the token or the whole direction was left out because it does not fall.
        medoids: The token of each cluster whose distances to the cluster's other tokens have the smallest sum.
        kept: Whether the direction was clustered: its mean falls.
        n_falling: Tokens that end below where they start.
    """

    labels: Int[np.ndarray, " token"]
    medoids: Mapping[int, int]
    kept: bool
    n_falling: int

    def __len__(self) -> int:
        """How many clusters there are."""
        return len(self.medoids)

    def __repr__(self) -> str:
        if not self.kept:
            return f"Clusters(none: the mean does not fall; {self.n_falling} of {len(self.labels)} tokens do)"
        sizes = [int(np.sum(self.labels == cluster)) for cluster in self.medoids]
        rest = f"{np.sum(self.labels == OUTLIER)} outliers, {np.sum(self.labels == DROPPED)} dropped"
        return f"Clusters({len(sizes)} of sizes {sizes}, {rest})"

    def tokens(self, cluster: int) -> Int[np.ndarray, " member"]:
        """The tokens of a cluster.

        Raises:
            ValueError: There is no such cluster.
        """
        if cluster not in self.medoids:
            raise ValueError(f"cluster must be one of {list(self.medoids)}, got {cluster}.")
        return np.flatnonzero(self.labels == cluster)


def cluster_direction(
    curves: Float[np.ndarray, "token time"],
    *,
    min_cluster_size: int | None = None,
    min_samples: int | None = None,
    only_falling: bool = True,
) -> Clusters:
    """The clusters among curves of one direction.

    Args:
        curves: One trajectory a token, compared by Euclidean distance.
        min_cluster_size: Fewest tokens of a cluster, at least 2. By default 3 % of all tokens (the paper's 150 of
            5,000), at least 5.
        min_samples: How many tokens (itself included) must be near one for it to count as dense; more give fewer,
            denser clusters. By default a fifteenth of the tokens that are clustered.
        only_falling: Apply the paper's two filters.

    Returns:
        The clusters; none where the mean does not fall, too few tokens are left, or no part of them is denser than
        the rest (HDBSCAN never takes all of them for one cluster). The same curves give the same clusters.

    Raises:
        ValueError: A curve is not finite, there are fewer than 2 times, or a size is out of range.
        QflError: So many tokens do not fit into memory, which by default grows with their number squared.
    """
    size = default_cluster_size(len(curves)) if min_cluster_size is None else min_cluster_size
    _check(curves, size, min_samples)
    falling = curves[:, -1] < curves[:, 0]
    n_falling = int(falling.sum())
    kept = not only_falling or bool(curves[:, -1].mean() < curves[:, 0].mean())
    labels = np.full(len(curves), DROPPED)
    if not kept:
        return Clusters(labels, {}, False, n_falling)
    used = np.flatnonzero(falling) if only_falling else np.arange(len(curves))
    labels[used] = _hdbscan(curves[used], size, min_samples)
    medoids = {cluster: _medoid(curves, labels == cluster) for cluster in range(int(labels.max(initial=-1)) + 1)}
    return Clusters(labels, medoids, True, n_falling)


def nearest_to_medoid(
    curves: Float[np.ndarray, "token time"], clusters: Clusters, cluster: int, n: int
) -> Int[np.ndarray, " nearest"]:
    """The `n` tokens of a cluster whose curves are nearest its medoid's, itself first: what the cluster is like."""
    members = clusters.tokens(cluster)
    medoid = clusters.medoids[cluster]
    distance = np.linalg.norm(curves[members] - curves[medoid], axis=1)
    # Another token with the very same curve must not come before the medoid.
    return members[np.lexsort((members != medoid, distance))[:n]]


def default_cluster_size(n_tokens: int) -> int:
    """Fewest tokens of a cluster by default, among so many evaluated tokens."""
    return max(MIN_CLUSTER_SIZE, round(MIN_CLUSTER_SHARE * n_tokens))


def _check(curves: Float[np.ndarray, "token time"], min_cluster_size: int, min_samples: int | None) -> None:
    """Raise `ValueError` on curves or sizes that cannot be clustered."""
    if curves.shape[1] < 2 or len(curves) == 0:
        raise ValueError(f"curves must hold at least 1 token and 2 times, got shape {curves.shape}.")
    bad = np.argwhere(~np.isfinite(curves))
    if len(bad):
        token, time = (int(i) for i in bad[0])
        raise ValueError(f"curves must be finite, got {curves[token, time]} of token {token} at time {time}.")
    if min_cluster_size < 2:
        raise ValueError(
            f"min_cluster_size must be at least 2, got {min_cluster_size}: every token would be a cluster."
        )
    if min_samples is not None and min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, got {min_samples}.")


def _hdbscan(
    curves: Float[np.ndarray, "used time"], min_cluster_size: int, min_samples: int | None
) -> Int[np.ndarray, " used"]:
    """Labels of the curves, clusters numbered by size."""
    from sklearn.cluster import HDBSCAN  # a second, and finished tables have their clusters

    n_tokens = len(curves)
    samples = max(1, n_tokens // 15) if min_samples is None else min_samples
    if n_tokens < max(min_cluster_size, samples):
        return np.full(n_tokens, OUTLIER)
    # All distances and a copy, or every token's nearest and how far they are.
    needed = 16 * n_tokens * (n_tokens if n_tokens <= _MAX_PAIRWISE else samples)
    what = f"clusters of {n_tokens:,} tokens by {samples:,} neighbours of each"
    require_memory(needed, available_bytes(), what, "Take fewer examples or a smaller min_samples.")
    found = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=samples,
        algorithm="brute" if n_tokens <= _MAX_PAIRWISE else "kd_tree",
        # Left to itself this version warns; its default is the string "warn", which pyright takes for the type.
        copy=True,  # pyright: ignore[reportArgumentType]
    ).fit(curves.astype(np.float64))
    return _by_size(found.labels_)


def _by_size(labels: Int[np.ndarray, " used"]) -> Int[np.ndarray, " used"]:
    """The same clusters numbered from the largest to the smallest; of equal ones the one with the first token first."""
    names, first, sizes = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    renamed = np.full(len(labels), OUTLIER)
    for number, name in enumerate(names[np.lexsort((first, -sizes))]):
        renamed[labels == name] = number
    return renamed


def _medoid(curves: Float[np.ndarray, "token time"], members: Bool[np.ndarray, " token"]) -> int:
    """The member with the smallest summed distance to the others."""
    from sklearn.metrics import pairwise_distances_chunked  # as above

    inside = curves[members].astype(np.float64)
    sums = pairwise_distances_chunked(
        inside, reduce_func=lambda distances, _: distances.sum(axis=1), working_memory=_WORKING_MIB
    )
    return int(np.flatnonzero(members)[np.argmin(np.concatenate(list(sums)))])
