"""POLCA: the change of every token's loss along single directions of weight space, its clusters, its breakthroughs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.polca.basis import hessian_directions as hessian_directions
    from qfl_interp.polca.breakthroughs import cluster_breakthroughs as cluster_breakthroughs
    from qfl_interp.polca.clustering import Clusters as Clusters
    from qfl_interp.polca.clustering import cluster_direction as cluster_direction
    from qfl_interp.polca.config import PolcaConfig as PolcaConfig
    from qfl_interp.polca.decomposition import Decomposition as Decomposition
    from qfl_interp.polca.decomposition import Segment as Segment
    from qfl_interp.polca.decomposition import decompose as decompose
    from qfl_interp.polca.trajectories import Trajectories as Trajectories

__getattr__, __dir__ = lazy_names(__name__)
