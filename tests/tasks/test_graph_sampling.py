"""Uniform sampling of connected graphs against full lists, Polya counting and networkx."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from qfl_interp.tasks._graph_sampling import (
    _cycle_types,
    _fill,
    _lay_out,
    _pair_orbits,
    _partitions,
    _weight,
    canonical_words,
    sample_connected,
)

_N_GRAPHS = (1, 2, 4, 11, 34, 156, 1044, 12346, 274668, 12005168, 1018997864)  # OEIS A000088 from n = 1
_N_CONNECTED = (1, 1, 2, 6, 21, 112, 853, 11117, 261080, 11716571, 1006700565)  # OEIS A001349 from n = 1


def _chi_square_fits(observed, expected) -> bool:
    """Below the 0.999 quantile, rare cells pooled."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    assert observed.sum() == pytest.approx(expected.sum())
    rare = expected < 10
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    assert len(expected) > 1
    return ((observed - expected) ** 2 / expected).sum() < chi2.ppf(0.999, len(expected) - 1)


def _masks(graph: nx.Graph) -> np.ndarray:
    """A networkx graph on nodes 0, 1, ... as bit masks."""
    return np.array([sum(1 << v for v in graph[u]) for u in range(len(graph))], dtype=np.uint32)


def _as_networkx(rows: np.ndarray) -> nx.Graph:
    n = len(rows)
    return nx.from_numpy_array(np.array([[int(rows[u]) >> v & 1 for v in range(n)] for u in range(n)]))


def _bits(graphs: np.ndarray) -> np.ndarray:
    """`[batch, node, node]` of zeros and ones."""
    return (graphs[:, :, None] >> np.arange(graphs.shape[1], dtype=np.uint32)) & 1


def _codes(graphs: np.ndarray) -> np.ndarray:
    """Edges as the bits of one number, pairs in the order of itertools.combinations."""
    pairs = itertools.combinations(range(graphs.shape[1]), 2)
    return sum(((graphs[:, u] >> v) & 1).astype(np.int64) << k for k, (u, v) in enumerate(pairs))


@functools.cache
def _smallest_code(n: int) -> np.ndarray:
    """The smallest code among all relabellings, for every labelled graph on n nodes: brute force."""
    pairs = list(itertools.combinations(range(n), 2))
    index = {frozenset(pair): k for k, pair in enumerate(pairs)}
    codes = np.arange(2 ** len(pairs))
    smallest = codes.copy()
    for p in itertools.permutations(range(n)):
        moved = np.zeros_like(codes)
        for k, (u, v) in enumerate(pairs):
            moved |= ((codes >> k) & 1) << index[frozenset((p[u], p[v]))]
        np.minimum(smallest, moved, out=smallest)
    return smallest


@functools.cache
def _connected_classes(n: int) -> np.ndarray:
    """Smallest codes of the connected graphs on n nodes."""
    pairs = list(itertools.combinations(range(n), 2))
    found = []
    for code in np.unique(_smallest_code(n)):
        graph = nx.empty_graph(n)
        graph.add_edges_from(pair for k, pair in enumerate(pairs) if code >> k & 1)
        found += [code] if nx.is_connected(graph) else []
    return np.array(found)


@functools.cache
def _atlas(n: int) -> list[nx.Graph]:
    """All connected graphs on n nodes, up to isomorphism (networkx, up to 7 nodes)."""
    return [graph for graph in nx.graph_atlas_g() if len(graph) == n and nx.is_connected(graph)]


# --- weights, thresholds, orbits ---


@pytest.mark.parametrize("n", range(1, 12))
def test_weights_sum_to_the_number_of_graphs(n):
    assert sum(map(_weight, _partitions(n, n))) == math.factorial(n) * _N_GRAPHS[n - 1]


def _cycles_of(p: tuple[int, ...]) -> tuple[int, ...]:
    graph = nx.empty_graph(len(p))
    graph.add_edges_from(enumerate(p))
    return tuple(sorted(map(len, nx.connected_components(graph)), reverse=True))


def _brute_force_orbits(p: tuple[int, ...]) -> list[set[tuple[int, int]]]:
    """Orbits of a permutation on pairs (u, v) with u > v."""
    pairs = nx.Graph()
    pairs.add_edges_from(
        ((u, v), (max(p[u], p[v]), min(p[u], p[v]))) for u, v in itertools.product(range(len(p)), repeat=2) if u > v
    )
    return list(nx.connected_components(pairs))


@pytest.mark.parametrize("n", [3, 5, 6])
def test_thresholds_are_the_exact_probabilities_to_64_bits(n):
    pairs_of_type, type_of_orbits = Counter(), {}
    for p in itertools.permutations(range(n)):
        cycles = _cycles_of(p)
        pairs_of_type[cycles] += 2 ** len(_brute_force_orbits(p))
        type_of_orbits[tuple(_pair_orbits(cycles).tolist())] = cycles
    types = _cycle_types(n)
    drawn = [type_of_orbits[tuple(orbits)] for orbits in types.orbits.tolist()]
    assert len(drawn) == len(set(drawn)) == len(pairs_of_type) == len(types.thresholds) + 1
    ends = [0, *map(int, types.thresholds), 2**64]
    for cycles, (start, end) in zip(drawn, itertools.pairwise(ends), strict=True):
        exact = Fraction(pairs_of_type[cycles], sum(pairs_of_type.values()))
        assert abs(Fraction(end - start, 2**64) - exact) < Fraction(1, 2**64)


@pytest.mark.parametrize("n", [2, 6, 9])
def test_pair_orbits_are_those_of_a_permutation(n):
    pairs = [(u, v) for u in range(n) for v in range(u)]
    for cycles in _partitions(n, n):
        p, start = list(range(n)), 0
        for length in cycles:
            for i in range(length):
                p[start + i] = start + (i + 1) % length
            start += length
        orbits = _pair_orbits(cycles)
        ours = {frozenset(pair for pair, o in zip(pairs, orbits, strict=True) if o == k) for k in set(orbits.tolist())}
        assert ours == set(map(frozenset, _brute_force_orbits(tuple(p))))
        assert set(orbits.tolist()) == set(range(len(ours)))


def test_rare_types_are_dropped_only_below_2_to_the_minus_64():
    types = _cycle_types(26)
    assert (np.diff(types.thresholds.astype(object)) > 0).all()
    assert int(types.thresholds[0]) > 2**64 * (1 - 1e-4)  # the identity
    assert (types.orbits[0] == np.arange(325)).all()
    assert len(types.orbits) < sum(1 for _ in _partitions(26, 26)) == 2436


# --- orders of the nodes ---


def _order(n: int, last: int, first: int) -> tuple[int, ...]:
    order = np.empty(n, np.uint32)
    _lay_out(order, np.uint64(last), np.uint64(first))
    return tuple(order.tolist())


@pytest.mark.parametrize("n", [2, 5])
def test_every_rank_is_another_order(n):
    orders = {_order(n, 0, rank) for rank in range(math.factorial(n))}
    assert orders == set(itertools.permutations(range(n)))


def test_two_ranks_make_the_order_of_many_nodes():
    ends = {_order(15, last, 0)[13:] for last in range(15 * 14)}
    assert ends == set(itertools.permutations(range(15), 2))
    rng = np.random.default_rng(0)
    n_draws, counts = 20_000, np.zeros((26, 26), int)
    for _ in range(n_draws):
        order = _order(26, rng.integers(math.perm(26, 13)), rng.integers(math.factorial(13)))
        counts[np.arange(26), order] += 1
    assert (counts.sum(axis=0) == n_draws).all()
    # A table with both margins fixed has 25 * 25 degrees of freedom.
    expected = n_draws / 26
    statistic = ((counts - expected) ** 2 / expected).sum() * 25 / 26
    assert chi2.ppf(0.001, 625) < statistic < chi2.ppf(0.999, 625)


# --- uniformity over all small graphs ---


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_all_connected_classes_are_equally_frequent(n):
    classes = _connected_classes(n)
    assert len(classes) == _N_CONNECTED[n - 1]
    found = _smallest_code(n)[_codes(sample_connected(np.random.default_rng(n), 100_000, n))]
    counts = np.array([(found == smallest).sum() for smallest in classes])
    assert counts.sum() == len(found)
    assert _chi_square_fits(counts, np.full(len(classes), len(found) / len(classes)))


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_all_labellings_of_a_class_are_equally_frequent(n):
    smallest, classes = _smallest_code(n), _connected_classes(n)
    labelled = np.flatnonzero(np.isin(smallest, classes))
    n_labellings = np.bincount(smallest)[smallest[labelled]]
    n_draws = 500_000
    counts = np.bincount(_codes(sample_connected(np.random.default_rng(10 + n), n_draws, n)), minlength=len(smallest))
    assert counts.sum() == counts[labelled].sum()
    assert _chi_square_fits(counts[labelled], n_draws / len(classes) / n_labellings)


def test_paths_on_four_nodes_have_twelve_equally_frequent_labellings():
    graphs = sample_connected(np.random.default_rng(3), 60_000, 4)
    degrees = np.sort(_bits(graphs).sum(axis=2), axis=1)
    paths = _codes(graphs[(degrees == [1, 1, 2, 2]).all(axis=1)])
    counts = np.unique(paths, return_counts=True)[1]
    assert len(counts) == 12
    assert _chi_square_fits(counts, np.full(12, len(paths) / 12))


@pytest.mark.parametrize("n", [3, 5, 6, 8, 11])
def test_share_of_connected_candidates(n):
    n_candidates = 400_000
    kept = _fill(np.random.default_rng(n), n_candidates, np.empty((n_candidates, n), np.uint32))
    share = _N_CONNECTED[n - 1] / _N_GRAPHS[n - 1]
    assert abs(kept / n_candidates - share) < 4 * math.sqrt(share * (1 - share) / n_candidates)


def test_degree_sequences_on_seven_nodes():
    expected = Counter(tuple(sorted(d for _, d in graph.degree)) for graph in _atlas(7))
    assert sum(expected.values()) == 853
    graphs = sample_connected(np.random.default_rng(7), 200_000, 7)
    sequences, counts = np.unique(np.sort(_bits(graphs).sum(axis=2), axis=1), axis=0, return_counts=True)
    observed = dict(zip(map(tuple, sequences.tolist()), counts.tolist(), strict=True))
    assert observed.keys() == expected.keys()
    assert _chi_square_fits(
        [observed[sequence] for sequence in expected], [len(graphs) * k / 853 for k in expected.values()]
    )


# --- eleven nodes against Polya counting ---
# Polynomials in x are object arrays of exact integers, coefficient e at index e.


def _cycle_lengths(n: int, largest: int | None = None):
    """Cycle types of n as tuples, written for the tests alone."""
    largest = n if largest is None else largest
    if n == 0:
        return [()]
    return [(k, *rest) for k in range(1, min(n, largest) + 1) for rest in _cycle_lengths(n - k, k)]


def _class_size(cycles) -> int:
    """Permutations of a cycle type."""
    z = math.prod(cycles) * math.prod(math.factorial(m) for m in Counter(cycles).values())
    return math.factorial(sum(cycles)) // z


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.convolve(a, b)


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = max(len(a), len(b))
    return np.pad(a, (0, size - len(a))) + np.pad(b, (0, size - len(b)))


def _one_plus(power: int) -> np.ndarray:
    """1 + x^power."""
    return np.array([1] + [0] * (power - 1) + [1], dtype=object)


def _spread(a: np.ndarray, step: int) -> np.ndarray:
    """a(x^step)."""
    out = np.zeros((len(a) - 1) * step + 1, dtype=object)
    out[::step] = a
    return out


def _moebius(n: int) -> int:
    primes = [p for p in range(2, n + 1) if n % p == 0 and all(p % q for q in range(2, p))]
    return 0 if any(n % (p * p) == 0 for p in primes) else (-1) ** len(primes)


def _exactly_divided(a: np.ndarray, by: int) -> np.ndarray:
    assert not (a % by).any()
    return a // by


_ONE = np.array([1], dtype=object)


@functools.cache
def _edge_polynomial(n: int) -> np.ndarray:
    """Coefficient e: graphs on n nodes with e edges up to isomorphism, from the cycle index of the pair group."""
    total = np.zeros(1, dtype=object)
    for cycles in _cycle_lengths(n):
        product = _ONE
        for i, a in enumerate(cycles):
            for _ in range((a - 1) // 2):
                product = _times(product, _one_plus(a))
            if a % 2 == 0:
                product = _times(product, _one_plus(a // 2))
            for b in cycles[:i]:
                for _ in range(math.gcd(a, b)):
                    product = _times(product, _one_plus(math.lcm(a, b)))
        total = _add(total, product * _class_size(cycles))
    return _exactly_divided(total, math.factorial(n))


@functools.cache
def _log_edge_polynomial(n: int) -> np.ndarray:
    """n times the coefficient of y^n in log(1 + sum_n y^n P_n(x)), with P_n the edge polynomial."""
    total = n * _edge_polynomial(n)
    for k in range(1, n):
        total = _add(total, -_times(_log_edge_polynomial(k), _edge_polynomial(n - k)))
    return total


@functools.cache
def _connected_edge_polynomial(n: int) -> np.ndarray:
    """The same for connected graphs: the inverse Euler transform."""
    total = np.zeros(1, dtype=object)
    for d in range(1, n + 1):
        if n % d == 0:
            total = _add(total, _moebius(d) * _spread(_log_edge_polynomial(n // d), d))
    return _exactly_divided(total, n)


@functools.cache
def _degree_polynomial(n: int) -> np.ndarray:
    """Coefficient d: nodes of degree d, summed over the graphs on n nodes up to isomorphism.

    By the same pairs of a permutation and a graph it fixes: an orbit of pairs adds the same number of edges to every
    node of a cycle that it touches.
    """
    total = np.zeros(1, dtype=object)
    for cycles in _cycle_lengths(n):
        n_orbits = sum(a // 2 for a in cycles) + sum(math.gcd(a, b) for a, b in itertools.combinations(cycles, 2))
        for i, a in enumerate(cycles):
            product, touched = _ONE, a // 2
            for _ in range((a - 1) // 2):
                product = _times(product, _one_plus(2))
            if a % 2 == 0:
                product = _times(product, _one_plus(1))
            for b in cycles[:i] + cycles[i + 1 :]:
                touched += math.gcd(a, b)
                for _ in range(math.gcd(a, b)):
                    product = _times(product, _one_plus(b // math.gcd(a, b)))
            total = _add(total, product * (a * 2 ** (n_orbits - touched) * _class_size(cycles)))
    return _exactly_divided(total, math.factorial(n))


@functools.cache
def _component_degree_polynomial(n: int) -> np.ndarray:
    """E_n in sum_n y^n D_n(x) = (sum_n y^n |G_n|) (sum_n y^n E_n(x)), with D_n the degree polynomial.

    A connected graph on h nodes adds its degrees once for each of its copies, so E_n sums over all h that divide n.
    """
    total = _degree_polynomial(n)
    for k in range(1, n):
        total = _add(total, -_component_degree_polynomial(k) * _N_GRAPHS[n - k - 1])
    return total


@functools.cache
def _connected_degree_polynomial(n: int) -> np.ndarray:
    """Coefficient d: nodes of degree d, summed over the connected graphs on n nodes up to isomorphism."""
    total = np.zeros(1, dtype=object)
    for d in range(1, n + 1):
        if n % d == 0:
            total = _add(total, _moebius(d) * _component_degree_polynomial(n // d))
    return total


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 6, 7])
def test_the_counting_of_these_tests_agrees_with_the_atlas(n):
    edges = Counter(graph.number_of_edges() for graph in _atlas(n))
    assert dict(enumerate(_connected_edge_polynomial(n))) == {e: edges[e] for e in range(math.comb(n, 2) + 1)}
    degrees = Counter(d for graph in _atlas(n) for _, d in graph.degree)
    assert dict(enumerate(_connected_degree_polynomial(n))) == {d: degrees[d] for d in range(n)}


@functools.cache
def _eleven() -> np.ndarray:
    return _bits(sample_connected(np.random.default_rng(11), 300_000, 11))


def test_edge_counts_on_eleven_nodes():
    graphs = _edge_polynomial(11)
    exact = _connected_edge_polynomial(11)
    assert graphs.sum() == 1_018_997_864
    assert exact.sum() == 1_006_700_565
    p = (exact / exact.sum()).astype(float)
    edges = _eleven().sum(axis=(1, 2)) // 2
    n = len(edges)
    assert _chi_square_fits(np.bincount(edges, minlength=56), n * p)
    mean = p @ np.arange(56)
    moments = [p @ (np.arange(56) - mean) ** k for k in (2, 4)]
    assert mean == pytest.approx(27.6, abs=0.05)
    assert math.sqrt(moments[0]) == pytest.approx(3.7, abs=0.05)
    assert abs(edges.mean() - mean) < 4 * math.sqrt(moments[0] / n)
    assert abs(edges.var() - moments[0]) < 4 * math.sqrt((moments[1] - moments[0] ** 2) / n)


def test_degrees_on_eleven_nodes():
    exact = _connected_degree_polynomial(11)
    assert exact.sum() == 11 * 1_006_700_565
    assert exact @ np.arange(11) == 2 * (_connected_edge_polynomial(11) @ np.arange(56))
    degrees = _eleven().sum(axis=2)
    assert exact[0] == 0
    assert degrees.min() > 0
    for d in range(1, 11):
        n_of_degree = (degrees == d).sum(axis=1)
        error = n_of_degree.std() / math.sqrt(len(degrees))
        assert abs(n_of_degree.mean() - exact[d] / 1_006_700_565) < 4 * error, d


def test_no_label_is_preferred_on_eleven_nodes():
    pairs = _eleven().mean(axis=0)[np.triu_indices(11, 1)]
    # Edges of one graph are nearly independent coins: 55 means with their common mean removed.
    statistic = ((pairs - pairs.mean()) ** 2).sum() * len(_eleven()) * 4
    assert chi2.ppf(0.001, 54) < statistic < chi2.ppf(0.999, 54)


# --- any number of nodes ---


@pytest.mark.parametrize("n_nodes", [2, 3, 12, 13, 14, 25, 26])
def test_graphs_are_simple_and_connected(n_nodes):
    graphs = sample_connected(np.random.default_rng(0), 100, n_nodes)
    assert graphs.shape == (100, n_nodes)
    assert graphs.dtype == np.uint32
    assert (graphs >> np.uint32(n_nodes) == 0).all()
    bits = _bits(graphs)
    assert (bits == bits.transpose(0, 2, 1)).all()
    assert not bits[:, range(n_nodes), range(n_nodes)].any()
    assert all(nx.is_connected(_as_networkx(rows)) for rows in graphs)


def test_the_largest_graphs_are_independent_coins():
    bits = _bits(sample_connected(np.random.default_rng(26), 20_000, 26))
    # Fewer than one in ten thousand graphs on 26 nodes is symmetric or unconnected.
    edges = bits.sum(axis=(1, 2)) // 2
    assert _chi_square_fits(np.bincount(edges, minlength=326), len(bits) * binom.pmf(np.arange(326), 325, 0.5))
    pairs = bits[:, *np.triu_indices(26, 1)].mean(axis=0)
    statistic = ((pairs - 0.5) ** 2).sum() * len(bits) * 4
    assert chi2.ppf(0.001, 325) < statistic < chi2.ppf(0.999, 325)


def test_graphs_on_two_nodes_are_the_edge():
    assert sample_connected(np.random.default_rng(0), 3, 2).tolist() == [[2, 1]] * 3


def test_the_seed_decides():
    draws = [sample_connected(np.random.default_rng(seed), 50, 11) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any(axis=1).all()


@pytest.mark.parametrize("n", [0, 1, 50_000])
def test_any_number_of_graphs(n):
    graphs = sample_connected(np.random.default_rng(0), n, 11)
    assert graphs.shape == (n, 11)
    assert (graphs != 0).all()
    assert canonical_words(graphs).shape == (n, 1)
    # One in a thousand million is drawn twice, so blocks do not repeat.
    assert len(np.unique(canonical_words(graphs))) >= n - 20


@pytest.mark.parametrize("n_nodes", [1, 27])
def test_number_of_nodes_out_of_range(n_nodes):
    with pytest.raises(ValueError, match=rf"n_nodes must lie in \[2, 26\], got {n_nodes}"):
        sample_connected(np.random.default_rng(0), 1, n_nodes)


# --- the invariant ---


@given(st.integers(2, 26), st.floats(0, 1), st.integers(0, 2**32))
def test_words_do_not_depend_on_the_numbering(n, density, seed):
    rng = np.random.default_rng(seed)
    bits = np.triu(rng.random((n, n)) < density, 1)
    bits |= bits.T
    order = rng.permutation(n)
    both = np.stack([bits, bits[np.ix_(order, order)]]).astype(np.uint32)
    words = canonical_words((both << np.arange(n, dtype=np.uint32)).sum(axis=2, dtype=np.uint32))
    assert (words[0] == words[1]).all()
    if n > 2:
        u, v = rng.choice(n, 2, replace=False)
        both[1, u, v] ^= 1
        both[1, v, u] ^= 1
        changed = canonical_words((both << np.arange(n, dtype=np.uint32)).sum(axis=2, dtype=np.uint32))
        assert (changed[0] != changed[1]).all()  # another number of edges


@pytest.mark.parametrize("n", range(2, 8))
def test_words_tell_all_graphs_of_the_atlas_apart(n):
    words = canonical_words(np.stack([_masks(graph) for graph in _atlas(n)]))
    assert len(np.unique(words)) == len(words) == _N_CONNECTED[n - 1]


def test_every_class_on_eight_nodes_is_drawn_and_has_its_own_word():
    # Isomorphic graphs share a word, so this many words are this many classes. Chance of missing one: 2e-8.
    words = canonical_words(sample_connected(np.random.default_rng(8), 300_000, 8))
    assert len(np.unique(words)) == _N_CONNECTED[7]


def test_words_repeat_as_often_as_classes_on_eleven_nodes():
    rng, n_draws = np.random.default_rng(0), 1_000_000
    words = np.concatenate([canonical_words(sample_connected(rng, n_draws // 4, 11)) for _ in range(4)])
    counts = np.unique(words, return_counts=True)[1]
    # Pairs of draws of one class, as for birthdays. Collisions and a draw that prefers some classes both add to them.
    expected = math.comb(n_draws, 2) / _N_CONNECTED[10]
    assert abs((counts * (counts - 1) // 2).sum() - expected) < 4 * math.sqrt(expected)


def test_strongly_regular_graphs_share_a_word():
    rook = nx.convert_node_labels_to_integers(nx.line_graph(nx.complete_bipartite_graph(4, 4)))
    shrikhande = nx.empty_graph(16)
    for u, (i, j) in itertools.product(range(16), [(0, 1), (1, 0), (1, 1)]):
        shrikhande.add_edge(u, (u // 4 + i) % 4 * 4 + (u + j) % 4)
    assert not nx.is_isomorphic(rook, shrikhande)
    words = canonical_words(np.stack([_masks(rook), _masks(shrikhande)]))
    assert words[0] == words[1]


def test_words_see_several_steps_away():
    # Two legs on a long path, d apart: two rounds of refinement cannot tell 7, 8 and 9 apart.
    caterpillars = [nx.path_graph(24) for _ in range(9)]
    for d, graph in enumerate(caterpillars, start=1):
        graph.add_edges_from([(7, 24), (7 + d, 25)])
    words = canonical_words(np.stack([_masks(graph) for graph in caterpillars]))
    assert len(np.unique(words)) == len(words)


def test_regular_graphs_that_plain_colour_refinement_confuses():
    hexagon, triangles = nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
    words = canonical_words(np.stack([_masks(hexagon), _masks(triangles)]))
    assert words[0] != words[1]
