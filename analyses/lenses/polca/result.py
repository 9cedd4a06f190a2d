"""What POLCA of a run gives: the clusters, with their curves, names and scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from qfl_interp.analyses.lenses.polca.trajectories import Followed
from qfl_interp.analyses.result import Result
from qfl_interp.polca.clustering import Clusters, nearest_to_medoid
from qfl_interp.polca.quality import adjusted_rand, skill_scores
from qfl_interp.polca.trajectories import Trajectories
from qfl_interp.tables import column, select


@dataclass(frozen=True, repr=False)
class PolcaResult(Result):
    """The clusters of a run's tokens along directions of weight space; `rows` has one row a cluster.

    Attributes:
        curves: One row a direction, cluster and step: mean, medoid and quartiles of the clustered curves and of the
            tokens' exact loss, in nats.
        composition: One row a direction, cluster and value of a label: its share in the cluster, lift, tests.
        intervals: One row an interval between checkpoints: the loss change, and what the directions capture of it.
        directions: One row a direction: where it comes from, eigenvalue, residual.
        tokens: One row a token: place, target, context, feature labels; and the cluster of each along direction d in
            column `cluster_d` (-1: outlier, -2: left out because it does not fall).
        data: The trajectories.

    `plot()` draws the clusters, and where there is none the mean curves of all tokens.
    """

    curves: pd.DataFrame = field(repr=False)
    composition: pd.DataFrame = field(repr=False)
    intervals: pd.DataFrame = field(repr=False)
    directions: pd.DataFrame = field(repr=False)
    tokens: pd.DataFrame = field(repr=False)
    data: Followed = field(repr=False)
    clustered: Trajectories = field(repr=False)

    def tables(self) -> dict[str, pd.DataFrame]:
        """What `qfl polca --json` prints."""
        found = {"directions": self.directions, "intervals": self.intervals, "composition": self.composition}
        return {"clusters": self.rows} | found

    def nearest(self, direction: int, cluster: int, n: int = 10) -> pd.DataFrame:
        """The `n` tokens of a cluster nearest its medoid, itself first: context, target, labels.

        Raises:
            ValueError: There is no such direction or cluster.
        """
        labels = column(self.tokens, f"cluster_{direction}") if direction in self.clustered.directions else np.empty(0)
        found = select(self.rows, direction=direction, cluster=cluster)
        if found.empty:
            known = self.rows[["direction", "cluster"]].drop_duplicates().to_numpy().tolist()
            raise ValueError(f"direction and cluster must be one of {known}, got {[direction, cluster]}.")
        clusters = Clusters(labels.astype(np.int64), {cluster: int(column(found, "medoid")[0])}, True, 0)
        return self.tokens.iloc[nearest_to_medoid(self.clustered.of(direction), clusters, cluster, n)]

    def scores(self, label: str, value: object = True) -> pd.DataFrame:
        """How well each cluster stands for a label of the tokens that is known: one row a cluster.

        Args:
            label: A column of `tokens`: a feature's name, "place", "target", ...
            value: Which of its values a cluster should hold, and no other; True for a feature that is there or not.

        Returns:
            Columns `direction`, `cluster`, `n_tokens`; `homogeneity` (share of the cluster with the value), `recall`
            (share of the clustered tokens with the value that are in it), `f1`; `base_rate`, the share of all tokens
            with the value; and the direction's `adjusted_rand`, the agreement of all its clusters with all values of
            the label over the clustered tokens (those without the label are a group of their own).

        Raises:
            ValueError: There is no such label, or no token has the value.

        References:
            arXiv 2506.15872, section 4, Table 1; Hubert and Arabie (1985).
        """
        known = [str(name) for name in self.tokens if not str(name).startswith("cluster_")]
        if label not in known:
            raise ValueError(f"label must be one of {known}, got {label!r}.")
        having = self.tokens[label].eq(value).fillna(False).to_numpy(dtype=bool)
        if not having.any():
            values = self.tokens[label].dropna().drop_duplicates().tolist()[:10]
            raise ValueError(f"value must be one that a token's {label!r} has, such as {values}, got {value!r}.")
        groups = pd.factorize(self.tokens[label])[0]
        parts = []
        for direction in self.clustered.directions:
            labels = column(self.tokens, f"cluster_{direction}").astype(np.int64)
            own = skill_scores(labels, having)
            own.insert(0, "direction", direction)
            parts.append(own.assign(base_rate=having.mean(), adjusted_rand=adjusted_rand(labels, groups)))
        return pd.concat(parts, ignore_index=True)
