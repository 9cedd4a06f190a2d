"""Minimum spanning tree: the edges of a connected graph to those that Kruskal's algorithm keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import no_type_check

import numpy as np
from jaxtyping import Int64

from qfl_interp.data.task import NO_POSITION, Feature
from qfl_interp.shapes import Examples
from qfl_interp.tasks._graphs import Answer, Graphs, GraphTask
from qfl_interp.tasks._kernels import kernel


@kernel
@no_type_check
def _kruskal(rows):
    """Nodes of the kept edges, and for every edge by its place in the prompt whether it is kept."""
    size, n = rows.shape
    tree = np.empty((size, 2 * (n - 1)), np.uint8)
    kept = np.zeros((size, n * (n - 1) // 2), np.uint8)
    component = np.empty(n, np.int64)
    for i in range(size):
        for u in range(n):
            component[u] = 1 << u
        place, n_written = 0, 0
        for u in range(n):
            for v in range(u + 1, n):
                edge = np.int64(rows[i, u]) >> v & 1
                if edge and not component[u] >> v & 1:
                    kept[i, place] = 1
                    tree[i, n_written], tree[i, n_written + 1] = u, v
                    n_written += 2
                    joined = component[u] | component[v]
                    for w in range(n):
                        if joined >> w & 1:
                            component[w] = joined
                place += edge
    return tree, kept


class MinSpanningTree(GraphTask):
    """Kruskal's algorithm with equal weights, as in the quiet-features paper.

    The tokens are the E edges (lower node first, in lexicographic order), `=`, the two nodes of each of the n - 1 edges
    of the tree, `<EOS>` up to n(n-1) + 2n + 1, one more than the longest text (as in the reference): edge r at 2r, `=`
    at EQ = 2E, tree edge j at EQ + 1 + 2j. Edges are gone through in the order of the prompt; one is kept if it joins
    two components.

    Features:
        is_tree_edge: whether the r-th edge of the prompt is kept, r = 0..n(n-1)/2 - 1, read at its second node, 2r + 1.
            This goes beyond the paper, which names no feature for this task. The first two edges are always kept, and
            edges past the middle of the list of pairs hardly ever are: there are no pairs of examples for those labels.

    As in the reference, `=` is scored although the end of the edge list cannot be known: about 0.69 nats on that token
    at n = 11.

    References:
        arXiv 2505.03997, minimum spanning tree.

    Example:
        >>> task = MinSpanningTree(length=4)
        >>> example = np.array([[1, 1, 0, 1, 1, 0]])  # edges AB, AC, BC, BD
        >>> "".join(task.str_tokens(task.encode(example).tokens[0][:15]))
        'ABACBCBD=ABACBD'
        >>> task.features["is_tree_edge"].labels(example).tolist()
        [[1, 1, 0, 1, 0, 0]]
    """

    name = "min_spanning_tree"
    paper_baseline = math.log(27)

    @property
    def n_output(self) -> int:
        """Two nodes for each edge of the tree."""
        return 2 * (self.length - 1)

    @property
    def n_ctx(self) -> int:
        """One pad more than the longest text needs."""
        return super().n_ctx + 1

    def _answer(self, graphs: Graphs) -> Answer:
        """The edges of the tree."""
        tree, _ = _kruskal(graphs.rows)
        return Answer(tree, np.full(len(tree), self.n_output))

    def _features(self) -> Sequence[Feature]:
        """Our own; the paper has none."""
        return [
            Feature(
                name="is_tree_edge",
                kind="binary",
                n_labels=self.length * (self.length - 1) // 2,
                labels=lambda examples: _kruskal(self._graphs(examples).rows)[1],
                positions=self._edge_positions,
                description="whether edge r of the prompt joins two components, where its second node is read",
            )
        ]

    def _edge_positions(self, examples: Examples) -> Int64[np.ndarray, "batch label"]:
        """The second node of every edge; none beyond the last."""
        n_edges = self._graphs(examples).n_edges[:, None]
        place = np.arange(self.length * (self.length - 1) // 2)
        return np.where(place < n_edges, 2 * place + 1, NO_POSITION)
