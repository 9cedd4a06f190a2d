"""Depth-first search: a connected graph and a start node to the order in which its nodes are visited."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qfl_interp.data.task import Feature
from qfl_interp.tasks._graph_kernels import depth_first
from qfl_interp.tasks._graphs import Answer, Graphs, GraphTask


class DepthFirstSearch(GraphTask):
    """Depth-first search from a start node, as in the quiet-features paper.

    The tokens are the start node, the E edges (lower node first, in lexicographic order), `=`, all n nodes in the order
    of their visit, `<EOS>` up to n(n-1) + n + 3: edge r at 1 + 2r, `=` at EQ = 1 + 2E, output node r at EQ + 1 + r.
    Unvisited neighbours are explored in decreasing number: those of a stack that is filled in increasing number and
    whose nodes are marked when they are taken.

    Features:
        adjacency_list: the n bits of the adjacency row of output node r, read at EQ + 1 + r, at that node.
        stack: n bits, the unvisited nodes on the stack after output node r is processed, r = 0..n-2, read at
            EQ + 1 + r. They are the unvisited neighbours of all visited nodes. The last row holds one node, the very
            next token.

    The reference's `queue` labels of this task are not reproduced: they follow a stack that marks nodes when they are
    put on it and visits low numbers first, so they do not describe the state behind the output. `stack` does. As in the
    reference, `=` is scored although the end of the edge list cannot be known: about 0.69 nats on that token at n = 11.

    References:
        arXiv 2505.03997, depth first search.

    Example:
        >>> task = DepthFirstSearch(length=4)
        >>> example = np.array([[2, 0, 1, 0, 1, 1, 0]])  # from C; edges AC, BC, BD
        >>> "".join(task.str_tokens(task.encode(example).tokens[0][:12]))
        'CACBCBD=CBDA'
        >>> task.features["stack"].labels(example).tolist()
        [[[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]]]
    """

    name = "depth_first_search"
    n_queries = 1
    paper_baseline = 11 / 13 * math.log(26)

    def _answer(self, graphs: Graphs) -> Answer:
        """All nodes by visit."""
        visiting, _ = depth_first(graphs.rows, graphs.queries[:, 0])
        return Answer(visiting, np.full(len(visiting), self.length))

    def _features(self) -> Sequence[Feature]:
        """The paper's adjacency list, and the true stack in place of its queue."""
        return [self._adjacency_list_feature(), self._frontier_feature("stack")]
