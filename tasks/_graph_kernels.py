"""The loops of the graph tasks: raw rows to bit masks, prompts to raw rows and back, depth-first search.

A graph is one bit mask a node: bit v of row u says that there is an edge from u to v.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from qfl_interp.tasks._kernels import kernel

EQUALS, EOS = 26, 27

# Why a row or a prompt is refused; 0 is none. The kernels write these numbers.
BAD_QUERY, SAME_QUERY, BAD_EDGE, DISCONNECTED, CYCLE, BAD_PROMPT, BAD_ORDER = range(1, 8)


@kernel
@no_type_check
def _is_connected(rows):
    """Whether every node of one undirected graph can be reached from node 0."""
    n = len(rows)
    reached, before = 1, 0
    while reached != before:
        before = reached
        for u in range(n):
            if reached >> u & 1:
                reached |= np.int64(rows[u])
    return reached == (1 << n) - 1


@kernel
@no_type_check
def _has_cycle(rows):
    """Whether one directed graph has a cycle: nodes with no edge to any that is left are taken away until none is."""
    n = len(rows)
    left, before = (1 << n) - 1, 0
    while left != before:
        before = left
        for u in range(n):
            if np.int64(rows[u]) & left == 0:
                left &= ~(1 << u)
    return left != 0


@kernel
@no_type_check
def parse(raw, n, n_queries, directed):
    """Rows, undirected rows, numbers of edges and the first fault (0: none) of raw rows."""
    size = len(raw)
    rows, undirected = np.zeros((size, n), np.uint32), np.zeros((size, n), np.uint32)
    n_edges, faults = np.zeros(size, np.int64), np.zeros(size, np.uint8)
    for i in range(size):
        largest, column = 0, n_queries
        for u in range(n):
            for v in range(u + 1, n):
                code = np.int64(raw[i, column])
                column += 1
                largest = max(largest, code)
                # No branch on the edge: it is a coin flip, which a processor cannot foresee.
                edge, forward = np.int64(code != 0), np.int64(code == 1)
                back = edge - forward if directed else edge
                n_edges[i] += edge
                undirected[i, u] |= np.uint32(edge << v)
                undirected[i, v] |= np.uint32(edge << u)
                rows[i, u] |= np.uint32(forward << v)
                rows[i, v] |= np.uint32(back << u)
        if n_queries and raw[i, :n_queries].max() >= n:
            faults[i] = BAD_QUERY
        elif n_queries == 2 and raw[i, 0] == raw[i, 1]:
            faults[i] = SAME_QUERY
        elif largest > 1 + directed:
            faults[i] = BAD_EDGE
        elif not _is_connected(undirected[i]):
            faults[i] = DISCONNECTED
        elif directed and _has_cycle(rows[i]):
            faults[i] = CYCLE
    return rows, undirected, n_edges, faults


@kernel
@no_type_check
def write_tokens(raw, n_queries, n, nodes, lengths, n_ctx):
    """Token ids, and the indices of `=`."""
    size = len(raw)
    tokens, equals = np.empty((size, n_ctx), np.int64), np.empty(size, np.int64)
    for i in range(size):
        for q in range(n_queries):
            tokens[i, q] = raw[i, q]
        at = column = n_queries
        for u in range(n):
            for v in range(u + 1, n):
                # Written always and overwritten where there is no edge.
                code = raw[i, column]
                column += 1
                tokens[i, at] = v if code == 2 else u
                tokens[i, at + 1] = u if code == 2 else v
                at += 2 * np.int64(code != 0)
        equals[i] = at
        tokens[i, at] = EQUALS
        for r in range(lengths[i]):
            tokens[i, at + 1 + r] = nodes[i, r]
        tokens[i, at + 1 + lengths[i] :] = EOS
    return tokens, equals


@kernel
@no_type_check
def read_prompts(ids, n_queries, n, directed):
    """Raw rows of prompts and the first fault (0: none) of each."""
    size, width = ids.shape
    raw, faults = np.zeros((size, n_queries + n * (n - 1) // 2), np.uint8), np.zeros(size, np.uint8)
    for i in range(size):
        at = 0
        while at < n_queries and at < width and 0 <= ids[i, at] < n:
            raw[i, at] = ids[i, at]
            at += 1
        if at < n_queries:
            faults[i] = BAD_PROMPT
        last = -1
        while faults[i] == 0 and not (at < width and ids[i, at] == EQUALS):
            if at + 1 >= width or not (0 <= ids[i, at] < n and 0 <= ids[i, at + 1] < n):
                faults[i] = BAD_PROMPT
                break
            tail, head = ids[i, at], ids[i, at + 1]
            u, v = min(tail, head), max(tail, head)
            pair = u * n - u * (u + 1) // 2 + v - u - 1
            if u == v or pair <= last or (tail > head and not directed):
                faults[i] = BAD_ORDER
                break
            raw[i, n_queries + pair] = 1 if tail < head else 2
            last = pair
            at += 2
    return raw, faults


@kernel
@no_type_check
def edges_present(rows):
    """1 for every pair u < v, in lexicographic order, that is an edge."""
    size, n = rows.shape
    present = np.empty((size, n * (n - 1) // 2), np.uint8)
    for i in range(size):
        column = 0
        for u in range(n):
            for v in range(u + 1, n):
                present[i, column] = rows[i, u] >> v & 1
                column += 1
    return present


@kernel
@no_type_check
def unpack(masks, n):
    """Bit v of every mask at index v of a new last axis."""
    size, n_labels = masks.shape
    bits = np.empty((size, n_labels, n), np.uint8)
    for i in range(size):
        for r in range(n_labels):
            for v in range(n):
                bits[i, r, v] = masks[i, r] >> v & 1
    return bits


@kernel
@no_type_check
def rows_of(rows, nodes, lengths):
    """The row of every output node; no bits beyond the output."""
    masks = np.zeros(nodes.shape, np.uint32)
    for i in range(len(nodes)):
        for r in range(lengths[i]):
            masks[i, r] = rows[i, nodes[i, r]]
    return masks


@kernel
@no_type_check
def frontier(rows, nodes):
    """Nodes that are not among the first r + 1 outputs but next to one of them, for every r but the last."""
    size, n = nodes.shape
    masks = np.empty((size, n - 1), np.uint32)
    for i in range(size):
        reached, visited = np.uint32(0), np.uint32(0)
        for r in range(n - 1):
            visited |= np.uint32(1 << nodes[i, r])
            reached |= rows[i, nodes[i, r]]
            masks[i, r] = reached & ~visited
    return masks


@kernel
@no_type_check
def depth_first(rows, first):
    """Visiting order and finishing order of a depth-first search that tries neighbours in decreasing number.

    Roots are `first[i]`, then 0, 1, ... where not yet visited.
    """
    size, n = rows.shape
    visiting, finishing = np.empty((size, n), np.uint8), np.empty((size, n), np.uint8)
    path = np.empty(n, np.int64)
    for i in range(size):
        unvisited = (1 << n) - 1
        n_visited, n_finished = 0, 0
        for candidate in range(-1, n):
            root = np.int64(first[i]) if candidate < 0 else candidate
            depth, node = 0, root if unvisited >> root & 1 else -1
            while node >= 0 or depth:
                if node >= 0:
                    unvisited &= ~(1 << node)
                    visiting[i, n_visited] = node
                    n_visited += 1
                    path[depth] = node
                    depth += 1
                new = np.int64(rows[i, path[depth - 1]]) & unvisited
                node = n - 1 if new else -1
                while node >= 0 and not new >> node & 1:
                    node -= 1
                if node < 0:
                    depth -= 1
                    finishing[i, n_finished] = path[depth]
                    n_finished += 1
    return visiting, finishing
