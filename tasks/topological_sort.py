"""Topological sort: an acyclic directed graph to an order of its nodes in which every edge points forward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from qfl_interp.data.task import Feature
from qfl_interp.tasks._graph_kernels import depth_first
from qfl_interp.tasks._graphs import Answer, Graphs, GraphTask


class TopologicalSort(GraphTask):
    """Topological sort by depth-first search, as in the quiet-features paper.

    The tokens are the E edges (tail first, in the lexicographic order of the pairs with the lower node first), `=`, all
    n nodes in order, `<EOS>` up to n(n-1) + n + 3, one more than the longest text (as in the reference): edge r at 2r,
    `=` at EQ = 2E, output node r at EQ + 1 + r. Edges of a connected undirected graph point forward in a uniform random
    order of the nodes. The answer is the reverse of the finishing order of a depth-first search from roots 0, 1, ...,
    n-1 that explores out-neighbours in decreasing number.

    Features:
        adjacency_list: the n bits of the out-neighbours of output node r, read at EQ + 1 + r, at that node. The
            last row is empty.
        adjacency_matrix: the n(n-1) bits of the directed matrix row by row without its diagonal, the same for every r,
            read at EQ + r, where output node r is predicted.

    As in the reference, `=` is scored although the end of the edge list cannot be known: about 0.69 nats on that token
    at n = 11.

    References:
        arXiv 2505.03997, topological sort.

    Example:
        >>> task = TopologicalSort(length=4)
        >>> example = np.array([[0, 2, 0, 1, 2, 0]])  # edges CA, BC, DB
        >>> "".join(task.str_tokens(task.encode(example).tokens[0][:11]))
        'CABCDB=DBCA'
        >>> task.features["adjacency_list"].labels(example).tolist()
        [[[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]]
    """

    name = "topological_sort"
    directed = True
    paper_baseline = math.log(27)

    @property
    def n_ctx(self) -> int:
        """One pad more than the longest text needs."""
        return super().n_ctx + 1

    def _directions(
        self, rng: np.random.Generator, present: UInt8[np.ndarray, "batch pair"]
    ) -> UInt8[np.ndarray, "batch pair"]:
        """Every edge points forward in a random order of the nodes."""
        place = rng.random((len(present), self.length))
        u, v = np.triu_indices(self.length, 1)
        return present << (place[:, u] > place[:, v])

    def _answer(self, graphs: Graphs) -> Answer:
        """All nodes, the last to finish first."""
        _, finishing = depth_first(graphs.rows, np.zeros(len(graphs.rows), dtype=np.uint8))
        return Answer(np.ascontiguousarray(finishing[:, ::-1]), np.full(len(finishing), self.length))

    def _features(self) -> Sequence[Feature]:
        """Both features the paper probes."""
        return [self._adjacency_list_feature(), self._adjacency_matrix_feature()]
