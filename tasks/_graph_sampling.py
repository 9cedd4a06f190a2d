"""Random connected graphs, uniform over isomorphism classes, and an isomorphism invariant.

A batch of graphs is an array of bit masks, `[batch, node]` of uint32: bit v of row u is 1 where {u, v} is an edge.

Why the draw is exactly uniform. Let the permutations s of n nodes act on the labelled graphs. Consider all pairs (s, g)
with s(g) = g. An isomorphism class has n! / |Aut| labelled graphs, and each of them is in |Aut| pairs: every class is
in exactly n! pairs (this is Burnside's lemma), so a uniform pair holds a uniform class. To draw a pair:

1. s(g) = g exactly where g is a union of orbits of s on node pairs. With c orbits that leaves 2^c graphs, and c depends
   on the cycle type of s only: for cycle lengths l_i it is sum_i floor(l_i / 2) + sum_{i<j} gcd(l_i, l_j). There are
   n! / z permutations of a type, z = prod_k k^(m_k) m_k! with m_k cycles of length k. So the type is drawn with
   probability proportional to 2^c n! / z; these integers sum to n! times the number of graphs on n nodes up to
   isomorphism.
2. The permutation is uniform among those of its type: its cycles are laid over a random order of the nodes. Then the
   pair is uniform, and the labelling too: all labelled graphs of a class have equally many automorphisms.
3. Each orbit becomes edges or not with probability 1/2.

Unconnected graphs are thrown away together with their type, which leaves the connected classes uniform (98.8 % are
connected at 11 nodes). One 64-bit number draws the type against exact integer thresholds: each probability is off by
less than 2^-64, all of them together by less than 2^-52. Orders and orbits are drawn without error.

References:
    J. D. Dixon and H. S. Wilf, The random selection of unlabeled graphs, Journal of Algorithms 4 (1983) 205-213.
    OEIS A000088 (graphs) and A001349 (connected graphs).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import UInt16, UInt32, UInt64

from qfl_interp.tasks._kernels import kernel

MIN_NODES, MAX_NODES = 2, 26

# Graphs drawn at once: bounds the memory of the random numbers.
_BLOCK = 16_384

# An order of nodes takes two 64-bit ranks: one for its first 13 places, one for the places after.
_SPLIT = 13


class _CycleTypes(NamedTuple):
    """Cycle types by falling probability, and what drawing graphs from them needs.

    A 64-bit number draws the type whose index is the number of thresholds that do not exceed it.
    """

    thresholds: UInt64[np.ndarray, " threshold"]
    orbits: UInt16[np.ndarray, "type pair"]


def _partitions(n: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `n` as a sum of falling parts, none above `largest`."""
    if n == 0:
        yield ()
    for part in range(min(n, largest), 0, -1):
        for rest in _partitions(n - part, part):
            yield (part, *rest)


def _weight(cycles: tuple[int, ...]) -> int:
    """Pairs of a permutation of this cycle type and a graph that it leaves as it is."""
    c = sum(length // 2 for length in cycles)
    c += sum(math.gcd(a, b) for i, a in enumerate(cycles) for b in cycles[:i])
    z = math.prod(k ** cycles.count(k) * math.factorial(cycles.count(k)) for k in set(cycles))
    return 2**c * math.factorial(sum(cycles)) // z


def _pair_orbits(cycles: tuple[int, ...]) -> UInt16[np.ndarray, " pair"]:
    """Number of the orbit of each node pair u > v, in the order (1, 0), (2, 0), (2, 1), (3, 0), ...

    Nodes are numbered along the cycles.
    """
    of_node = np.repeat(np.arange(len(cycles)), cycles)
    offset = np.concatenate([np.arange(length) for length in cycles])
    u, v = np.tril_indices(sum(cycles), -1)
    lengths = np.array(cycles)
    a, b = of_node[u], of_node[v]
    # In two cycles, offsets move in step and wrap at either length; in one, the distance around the cycle is kept.
    step = (offset[u] - offset[v]) % np.gcd(lengths[a], lengths[b])
    step = np.where(a == b, np.minimum(step, lengths[a] - step), step)
    key = (a * len(cycles) + b) * sum(cycles) + step
    return np.unique(key, return_inverse=True)[1].astype(np.uint16)


@functools.cache
def _cycle_types(n_nodes: int) -> _CycleTypes:
    """Thresholds and orbits of every cycle type that a 64-bit number can draw."""
    types = sorted(_partitions(n_nodes, n_nodes), key=_weight, reverse=True)
    cumulative = list(itertools.accumulate(map(_weight, types)))
    ends = [(weight << 64) // cumulative[-1] for weight in cumulative]
    drawable = [t for t, (start, end) in enumerate(itertools.pairwise([0, *ends])) if start < end]
    # The last end is 2^64, which no number reaches.
    thresholds = np.array([ends[t] for t in drawable[:-1]], dtype=np.uint64)
    return _CycleTypes(thresholds, np.stack([_pair_orbits(types[t]) for t in drawable]))


@kernel
@no_type_check
def _lay_out(order, last, first):
    """Fills `order` with the order of nodes that two ranks stand for (a Fisher-Yates shuffle)."""
    n = len(order)
    for u in range(n):
        order[u] = u
    rank = last if n > _SPLIT else first
    for size in range(n, 1, -1):
        if size == _SPLIT:
            rank = first
        at = rank % np.uint64(size)
        rank //= np.uint64(size)
        order[size - 1], order[at] = order[at], order[size - 1]


@kernel
@no_type_check
def _is_connected(rows):
    """Whether every node can be reached from node 0.

    The same loop is in `_graph_kernels`: compiled kernels on disk are not renewed when one in another file changes.
    """
    n = len(rows)
    reached, before = np.uint32(1), np.uint32(0)
    while reached != before:
        before = reached
        for u in range(n):
            if (reached >> np.uint32(u)) & np.uint32(1):
                reached |= rows[u]
    return reached == (np.uint64(1) << np.uint64(n)) - np.uint64(1)


@kernel
@no_type_check
def _keep_connected(types, coins, last, first, orbits, graphs):
    """Builds candidates one after another into `graphs` and keeps the connected ones; returns how many it kept."""
    n = graphs.shape[1]
    order = np.empty(n, np.uint32)
    kept = 0
    for i in range(len(types)):
        if kept == len(graphs):
            break
        _lay_out(order, last[i], first[i])
        rows, orbit = graphs[kept], orbits[types[i]]
        rows[:] = 0
        pair = 0
        for a in range(n):
            for b in range(a):
                word, bit = orbit[pair] >> 6, np.uint64(orbit[pair] & 63)
                coin = np.uint32((coins[i, word] >> bit) & np.uint64(1))
                rows[order[a]] |= coin << order[b]
                rows[order[b]] |= coin << order[a]
                pair += 1
        kept += _is_connected(rows)
    return kept


def _fill(rng: np.random.Generator, n_candidates: int, graphs: UInt32[np.ndarray, "batch node"]) -> int:
    """Draws candidates and writes the connected ones into `graphs` until it is full; returns how many it wrote."""
    n_nodes = graphs.shape[1]
    types = _cycle_types(n_nodes)
    n_words = -(-math.comb(n_nodes, 2) // 64)
    draws = rng.integers(2**64 - 1, size=(n_candidates, 1 + n_words), dtype=np.uint64, endpoint=True)
    last = rng.integers(math.perm(n_nodes, max(n_nodes - _SPLIT, 0)), size=n_candidates, dtype=np.uint64)
    first = rng.integers(math.factorial(min(n_nodes, _SPLIT)), size=n_candidates, dtype=np.uint64)
    drawn = np.searchsorted(types.thresholds, draws[:, 0], side="right")
    return _keep_connected(drawn, draws[:, 1:], last, first, types.orbits, graphs)


def sample_connected(rng: np.random.Generator, n: int, n_nodes: int) -> UInt32[np.ndarray, "batch node"]:
    """`n` connected graphs of 2 to 26 nodes, uniform over isomorphism classes and, given the class, over labellings.

    Returns:
        Neighbours as bit masks: bit v of row u is 1 where {u, v} is an edge.

    Raises:
        ValueError: `n_nodes` is out of range.

    Example:
        >>> sample_connected(np.random.default_rng(0), 1, 2).tolist()
        [[2, 1]]
    """
    if not MIN_NODES <= n_nodes <= MAX_NODES:
        raise ValueError(f"n_nodes must lie in [{MIN_NODES}, {MAX_NODES}], got {n_nodes}.")
    graphs = np.empty((n, n_nodes), dtype=np.uint32)
    filled = 0
    while filled < n:
        missing = n - filled
        # A few more than are missing: at 11 nodes and more the first round then nearly always suffices.
        filled += _fill(rng, min(missing + missing // 32 + 8, _BLOCK), graphs[filled:])
    return graphs


@kernel
@no_type_check
def _mixed(word):
    """A 64-bit number scrambled one to one (the finalizer of splitmix64)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@kernel
@no_type_check
def _n_ones(mask):
    """Ones among 32 bits."""
    mask = mask - ((mask >> np.uint32(1)) & np.uint32(0x55555555))
    mask = (mask & np.uint32(0x33333333)) + ((mask >> np.uint32(2)) & np.uint32(0x33333333))
    mask = (mask + (mask >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return np.uint32(mask * np.uint32(0x01010101)) >> np.uint32(24)


@kernel
@no_type_check
def _refine(graphs, words):
    """Three rounds of colour refinement of each graph; see `canonical_words`."""
    n = graphs.shape[1]
    pairs = np.zeros((n, n), np.uint64)
    colours, refined = np.empty(n, np.uint64), np.empty(n, np.uint64)
    for i in range(len(graphs)):
        rows = graphs[i]
        for u in range(n):
            for v in range(u):
                joined = np.uint64((rows[u] >> np.uint32(v)) & np.uint32(1))
                shared = np.uint64(_n_ones(rows[u] & rows[v]))
                pairs[u, v] = pairs[v, u] = (np.uint64(2) * shared + joined) * np.uint64(0x9E3779B97F4A7C15)
        colours[:] = 0
        for _ in range(3):
            for u in range(n):
                colour = colours[u]
                for v in range(n):
                    if v != u:
                        colour += _mixed(colours[v] ^ pairs[u, v])
                refined[u] = _mixed(colour)
            colours, refined = refined, colours
        words[i] = colours.sum()


def canonical_words(adjacency: UInt32[np.ndarray, "batch node"]) -> UInt64[np.ndarray, "batch word"]:
    """One 64-bit word for each graph, equal for every relabelling and rarely equal for other graphs.

    A pair of nodes is marked by whether it is an edge and how many neighbours it shares. Three times, each node's
    colour becomes a hash of its colour and of the multiset of (colour, mark) over all other nodes; the word is a hash
    of the multiset of colours. Multisets are hashed as sums modulo 2^64, so the numbering of the nodes does not enter.

    All connected graphs on up to 8 nodes get different words. Some larger graphs share one: strongly regular graphs
    with equal parameters do, of which the smallest two are on 16 nodes. Only compare words of graphs with equally many
    nodes.

    Example:
        >>> path, renamed, triangle = [2, 5, 2], [6, 1, 1], [6, 5, 3]
        >>> words = canonical_words(np.array([path, renamed, triangle], dtype=np.uint32))[:, 0]
        >>> bool(words[0] == words[1]), bool(words[0] == words[2])
        (True, False)
    """
    words = np.empty((len(adjacency), 1), dtype=np.uint64)
    _refine(adjacency, words[:, 0])
    return words
