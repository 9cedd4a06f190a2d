"""Breadth-first search: a connected graph and a start node to the order in which its nodes are visited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import no_type_check

import numpy as np

from qfl_interp.data.task import Feature
from qfl_interp.tasks._graphs import Answer, Graphs, GraphTask
from qfl_interp.tasks._kernels import kernel


@kernel
@no_type_check
def _breadth_first(rows, start):
    """Visiting order from each start node."""
    size, n = rows.shape
    order = np.empty((size, n), np.uint8)
    for i in range(size):
        order[i, 0] = start[i]
        marked, n_marked = np.int64(1) << start[i], 1
        for r in range(n):
            new = np.int64(rows[i, order[i, r]]) & ~marked
            marked |= new
            for v in range(n):
                if new >> v & 1:
                    order[i, n_marked] = v
                    n_marked += 1
    return order


class BreadthFirstSearch(GraphTask):
    """Breadth-first search from a start node, as in the quiet-features paper.

    The tokens are the start node, the E edges (lower node first, in lexicographic order), `=`, all n nodes in the order
    of their visit, `<EOS>` up to n(n-1) + n + 3: edge r at 1 + 2r, `=` at EQ = 1 + 2E, output node r at EQ + 1 + r.
    Neighbours join the queue in increasing number and are marked when they join.

    Features:
        adjacency_list: the n bits of the adjacency row of output node r, read at EQ + 1 + r, at that node.
        queue: n bits, the nodes in the queue after output node r is processed, r = 0..n-2, read at EQ + 1 + r. Row 0 is
            the start node's adjacency row; the last row holds one node, the very next token.

    `=` is scored although the end of the edge list cannot be known: about 0.69 nats on that token at n = 11.

    References:
        arXiv 2505.03997, breadth first search.

    Example:
        >>> task = BreadthFirstSearch(length=4)
        >>> example = np.array([[2, 0, 1, 0, 1, 1, 0]])  # from C; edges AC, BC, BD
        >>> "".join(task.str_tokens(task.encode(example).tokens[0][:12]))
        'CACBCBD=CABD'
        >>> task.features["queue"].labels(example).tolist()
        [[[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]]
    """

    name = "breadth_first_search"
    n_queries = 1
    paper_baseline = 11 / 13 * math.log(26)

    def _answer(self, graphs: Graphs) -> Answer:
        """All nodes by visit."""
        order = _breadth_first(graphs.rows, graphs.queries[:, 0])
        return Answer(order, np.full(len(order), self.length))

    def _features(self) -> Sequence[Feature]:
        """Both features the paper probes."""
        return [self._adjacency_list_feature(), self._frontier_feature("queue")]
