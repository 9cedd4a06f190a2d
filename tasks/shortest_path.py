"""Shortest path: a connected graph and two of its nodes to a path between them with as few edges as possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import no_type_check

import numpy as np
from jaxtyping import UInt8

from qfl_interp.data.task import Feature, Pairs
from qfl_interp.shapes import Examples
from qfl_interp.tasks._graphs import Answer, Graphs, GraphTask
from qfl_interp.tasks._kernels import kernel
from qfl_interp.tasks._pairs import pairs_by_edit

# Paths of more nodes are so rare in sampled graphs that pairs with one are drawn from graphs made for it.
_COMMON_NODES = 3


@kernel
@no_type_check
def _bidirectional(rows, queries):
    """Path from the first query node to the second, and its number of nodes."""
    size, n = rows.shape
    paths, lengths = np.zeros((size, n), np.uint8), np.empty(size, np.int64)
    # Of each side: nodes in the order they were discovered, the node each was discovered from, how far it is from the
    # query node, all as a mask.
    found, before, far = np.empty((2, n), np.int64), np.empty((2, n), np.int64), np.empty((2, n), np.int64)
    known, n_found, n_expanded = np.empty(2, np.int64), np.empty(2, np.int64), np.empty(2, np.int64)
    for i in range(size):
        for side in range(2):
            node = np.int64(queries[i, side])
            found[side, 0], far[side, node], known[side] = node, 0, 1 << node
            n_found[side], n_expanded[side] = 1, 0
        side, meeting = 1, -1
        while meeting < 0:
            side = 1 - side
            level_end = n_found[side]
            while meeting < 0 and n_expanded[side] < level_end:
                node = found[side, n_expanded[side]]
                n_expanded[side] += 1
                new = np.int64(rows[i, node]) & ~known[side]
                for v in range(n):
                    if new >> v & 1:
                        known[side] |= 1 << v
                        before[side, v], far[side, v] = node, far[side, node] + 1
                        found[side, n_found[side]] = v
                        n_found[side] += 1
                        if known[1 - side] >> v & 1:
                            meeting = v
                            break
        to_source, to_target = far[0, meeting], far[1, meeting]
        lengths[i] = to_source + to_target + 1
        node = meeting
        for at in range(to_source, -1, -1):
            paths[i, at] = node
            node = before[0, node]
        node = meeting
        for at in range(to_source, lengths[i]):
            paths[i, at] = node
            node = before[1, node]
    return paths, lengths


class ShortestPath(GraphTask):
    """A shortest path between two nodes, as in the quiet-features paper.

    The tokens are the source, the target (another node), the E edges (lower node first, in lexicographic order), `=`,
    the nodes of the path from source to target, `<EOS>` up to n(n-1) + n + 4: edge r at 2 + 2r, `=` at EQ = 2 + 2E,
    path node r at EQ + 1 + r. With several shortest paths the one that bidirectional breadth-first search finds is the
    answer: two searches alternate by whole levels, the source's first. Within a level nodes are expanded in the order
    of their discovery, neighbours in increasing number, and as soon as a node that is new to one side is known to the
    other, the ways from there to both ends are joined.

    Features:
        adjacency_list: the n bits of the adjacency row of path node r, read at EQ + 1 + r, at that node; r up to the
            last node of the path.
        adjacency_matrix: the n(n-1) bits of all rows without the diagonal, the same for every r up to the last node of
            the path, read at EQ + r, where path node r is predicted. The labels beyond the path hold the matrix too,
            but have no position.

    Most paths are short: label r exists only for paths of more than r nodes. As in the reference, `=` is scored
    although the end of the edge list cannot be known: about 0.69 nats on that token at n = 11.

    References:
        arXiv 2505.03997, shortest path.

    Example:
        >>> task = ShortestPath(length=4)
        >>> example = np.array([[3, 0, 1, 1, 0, 0, 1, 1]])  # from D to A; edges AB, AC, BD, CD
        >>> "".join(task.str_tokens(task.encode(example).tokens[0][:14]))
        'DAABACBDCD=DBA'
        >>> task.features["adjacency_list"].positions(example).tolist()
        [[11, 12, 13, -1]]
    """

    name = "shortest_path"
    n_queries = 2
    paper_baseline = math.log(27)

    def _sample_queries(self, rng: np.random.Generator, n: int) -> UInt8[np.ndarray, "batch query"]:
        """Two different nodes, each pair equally likely."""
        source = rng.integers(0, self.length, size=n, dtype=np.uint8)
        step = rng.integers(1, self.length, size=n, dtype=np.uint8)
        return np.stack([source, (source + step) % self.length], axis=1).astype(np.uint8)

    def _answer(self, graphs: Graphs) -> Answer:
        """The path."""
        return Answer(*_bidirectional(graphs.rows, graphs.queries))

    def _features(self) -> Sequence[Feature]:
        """What the paper probes but the queue, which the reference cannot compute for this task."""
        return [self._adjacency_list_feature(), self._adjacency_matrix_feature()]

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs of graphs that differ in the place of one edge; the query and the number of edges are the same.

        As for every graph task, but for `label` 3 and above source and target of the clean graphs are that many edges
        apart: sampled graphs whose nodes are put in layers, without the edges that skip one and with those that a path
        through all layers needs. They have fewer edges than sampled ones.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range, or no move of an edge changes it.
        """
        if label < _COMMON_NODES or label >= self.length:
            return super().sample_pairs(rng, n, feature, label)

        def sample(rng: np.random.Generator, n: int) -> Examples:
            return self._sample_far_apart(rng, n, label)

        return pairs_by_edit(self, rng, n, feature, label, self._move_edge, sample)

    def _sample_far_apart(self, rng: np.random.Generator, n: int, distance: int) -> Examples:
        """Sampled graphs in layers; nodes 0, 1, ... of a random order are the path and start one layer each."""
        present = self.sample(rng, n)[:, self.n_queries :]
        place = rng.random((n, self.length)).argsort(axis=1).argsort(axis=1)
        on_path = place <= distance
        layer = np.where(on_path, place, rng.integers(0, distance + 1, size=place.shape))
        u, v = np.triu_indices(self.length, 1)
        gap = np.abs(layer[:, u] - layer[:, v])
        path_edge = on_path[:, u] & on_path[:, v] & (gap == 1)
        side_edge = (on_path[:, u] != on_path[:, v]) & (gap == 0)
        edges = path_edge | side_edge | ((present == 1) & (gap <= 1))
        ends = [(place == 0).argmax(axis=1), (place == distance).argmax(axis=1)]
        return np.column_stack([*ends, edges]).astype(np.uint8)
