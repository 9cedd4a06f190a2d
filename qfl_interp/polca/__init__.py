"""POLCA: the change of every token's loss along single directions of weight space, its clusters, its breakthroughs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.polca.basis import hessian_directions
    from qfl_interp.polca.breakthroughs import cluster_breakthroughs
    from qfl_interp.polca.clustering import Clusters, cluster_direction
    from qfl_interp.polca.config import PolcaConfig
    from qfl_interp.polca.decomposition import Decomposition, Segment, decompose
    from qfl_interp.polca.trajectories import Trajectories

__getattr__, __dir__ = lazy_names(__name__)
