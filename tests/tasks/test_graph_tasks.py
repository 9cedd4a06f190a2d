"""The graph tasks against the golden vectors, plain-Python and networkx oracles, and exact small distributions."""

from __future__ import annotations

import functools
import itertools
import math
import string

import numpy as np
import pytest
import torch
from graph_oracles import (
    N_QUERIES,
    ORACLES,
    Raw,
    every_example,
    isomorphism_classes,
    networkx_agrees,
    read,
    relabelled,
    write,
)
from helpers import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

import qfl_interp as qfl

TASKS = list(ORACLES)
FILES = {
    "breadth_first_search": "graph_breadth_first_search",
    "depth_first_search": "graph_depth_first_search",
    "min_spanning_tree": "graph_min_spanning_tree_kruskal",
    "shortest_path": "graph_path",
    "topological_sort": "graph_topological_sort",
}
# The reference's queue of a depth-first search describes another search; ours is the true stack.
SKIPPED = {("depth_first_search", "queue"), ("shortest_path", "queue")}
GROUPS = [(name, group) for name in TASKS for group in golden(FILES[name])["groups"]]

every_task = pytest.mark.parametrize("name", TASKS)


@functools.cache
def load(name, length=None):
    return qfl.load_task(name, length)


def check_labels(feature, examples, expected):
    """Labels and read positions against (labels, positions) of each example; no position beyond those."""
    labels, positions = feature.labels(examples), feature.positions(examples)
    wanted, wanted_at = np.zeros_like(labels), np.full_like(positions, -1)
    for i, (rows, at) in enumerate(expected):
        wanted[i, : len(rows)], wanted_at[i, : len(at)] = rows, at
    np.testing.assert_array_equal(positions, wanted_at)
    present = positions >= 0
    np.testing.assert_array_equal(labels[present], wanted[present])
    if feature.name != "adjacency_matrix":
        assert not labels[~present].any()


def check_against_oracle(task, examples, networkx_step=1):
    """Texts, masks, labels and positions of these examples; networkx looks at every `networkx_step`-th."""
    n, n_queries = task.length, N_QUERIES[task.name]
    batch = task.encode(examples)
    expected_of = {name: [] for name in task.features}
    for i, (row, tokens, mask) in enumerate(
        zip(examples.tolist(), batch.tokens.tolist(), batch.loss_mask.tolist(), strict=True)
    ):
        raw = read(row, n, n_queries)
        expected = ORACLES[task.name](raw.query, raw.edges, n)
        equals = n_queries + 2 * len(raw.edges)
        text = [*raw.query, *itertools.chain.from_iterable(raw.edges), 26, *expected.output]
        n_pads = task.n_ctx - len(text)
        assert tokens == text + [27] * n_pads
        assert mask == [False] * equals + [True] * (len(text) + 1 - equals) + [False] * (n_pads - 1)
        if i % networkx_step == 0:
            assert networkx_agrees(task.name, raw, n, expected.output)
        for name, (labels, offsets) in expected.features.items():
            expected_of[name].append((labels, [equals + offset for offset in offsets]))
    for name, expected in expected_of.items():
        check_labels(task.features[name], examples, expected)
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)


@pytest.mark.parametrize(("name", "group"), GROUPS, ids=[f"{n}-{g['kind']}-{g['length']}" for n, g in GROUPS])
def test_golden(name, group):
    task = load(name, group["number_of_nodes"])
    ids = torch.tensor([e["ids"] for e in group["examples"]])
    examples = task.decode(ids)
    for row, e in zip(examples.tolist(), group["examples"], strict=True):
        raw = read(row, task.length, N_QUERIES[name])
        assert raw.query == e["query"]
        assert [v for edge in raw.edges for v in edge] == e["edges_in_text"]
        assert [v for edge in raw.edges for v in sorted(edge)] == e["input"]
    batch = task.encode(examples)
    assert batch.tokens.tolist() == ids.tolist()
    assert batch.loss_mask.tolist() == [[bool(m) for m in e["loss_mask"]] for e in group["examples"]]
    assert ["".join(task.str_tokens(row)) for row in batch.tokens] == [e["text"] for e in group["examples"]]
    assert task.n_ctx == group["sequence_tokens"]
    for key in golden(FILES[name])["features"]:
        if (name, key) in SKIPPED:
            continue
        expected = []
        for found in (e["features"][key] for e in group["examples"]):
            texts = found["labels"] if "labels" in found else [found["row"]] * found["n_rows"]
            expected.append(([[int(c) for c in text] for text in texts], found["token_index"]))
        check_labels(task.features[key], examples, expected)


def test_vocabulary_is_the_reference_one():
    assert golden("graph_path")["vocab"] == {token: i for i, token in enumerate(load("shortest_path").vocabulary)}


@every_task
@pytest.mark.parametrize("n_nodes", [3, 4, 5])
def test_all_small_graphs(name, n_nodes):
    rows = np.array(list(every_example(name, n_nodes)), dtype=np.uint8)
    # Of the many orientations and pairs of ends on 5 nodes, about 5,000: every graph with some of them.
    check_against_oracle(load(name, n_nodes), rows[:: 1 + len(rows) // 5000], networkx_step=3)


@every_task
@pytest.mark.parametrize(
    ("n_nodes", "n"), [(11, 500), pytest.param(11, 10_000, marks=pytest.mark.slow), (17, 100), (26, 100)]
)
def test_random_graphs(name, n_nodes, n):
    task = load(name, n_nodes)
    check_against_oracle(task, task.sample(np.random.default_rng(n_nodes), n), networkx_step=10)


def band(rng, n_nodes):
    """A long graph: nodes 0 and 3, 1 and 4, ... are joined, and others up to 4 apart at random."""
    near = [(u, v) for u, v in itertools.combinations(range(n_nodes), 2) if v - u <= 4]
    return [(u, v) for u, v in near if v - u == 3 or u + v in (1, 3) or rng.random() < 0.4]


@every_task
@pytest.mark.parametrize("n_nodes", [11, 26])
def test_special_graphs_under_many_numberings(name, n_nodes):
    rng = np.random.default_rng(0)
    last = n_nodes - 1
    path, star = [(v, v + 1) for v in range(last)], [(0, v) for v in range(1, n_nodes)]
    graphs = [path, [*path, (0, last)], star, list(itertools.combinations(range(n_nodes), 2))] * 5
    rows = []
    for edges in [*graphs, *(band(rng, n_nodes) for _ in range(100))]:
        names = rng.permutation(n_nodes).tolist()
        query = [names[0], names[-1]][: N_QUERIES[name]]
        rows.append(write(Raw(query, relabelled(edges, names)), n_nodes))
    check_against_oracle(load(name, n_nodes), np.array(rows), networkx_step=2)


@pytest.mark.parametrize(
    ("name", "n_ctx"),
    [
        ("breadth_first_search", (124, 12, 679)),
        ("depth_first_search", (124, 12, 679)),
        ("min_spanning_tree", (133, 13, 703)),
        ("shortest_path", (125, 13, 680)),
        ("topological_sort", (124, 12, 679)),
    ],
)
def test_n_ctx(name, n_ctx):
    assert (load(name).n_ctx, load(name, 3).n_ctx, load(name, 26).n_ctx) == n_ctx
    assert load(name).length == 11


def test_which_features_are_looked_at_by_default():
    shown = {name: [f.name for f in load(name).features.values() if f.by_default] for name in TASKS}
    hidden = {name: [f.name for f in load(name).features.values() if not f.by_default] for name in TASKS}
    assert shown == {
        "breadth_first_search": ["adjacency_list", "queue"],
        "depth_first_search": ["adjacency_list", "stack"],
        "min_spanning_tree": ["is_tree_edge"],
        "shortest_path": ["adjacency_list"],
        "topological_sort": ["adjacency_list"],
    }
    assert hidden == {name: ["adjacency_matrix"] if name in TASKS[3:] else [] for name in TASKS}


@every_task
def test_no_examples(name):
    task = load(name)
    none = task.sample(np.random.default_rng(0), 0)
    batch = task.encode(none)
    assert batch.tokens.shape == batch.loss_mask.shape == (0, task.n_ctx)
    np.testing.assert_array_equal(task.decode(batch.tokens), none)
    assert len(task.canonical(none)) == 0
    for feature in task.features.values():
        assert feature.labels(none).shape[:2] == feature.positions(none).shape == (0, feature.n_labels)


@every_task
def test_any_integer_type_will_do(name):
    task = load(name, 6)
    examples = task.sample(np.random.default_rng(0), 20)
    assert examples.dtype == np.uint8
    for kind in (np.int64, np.int8, np.uint16):
        assert torch.equal(task.encode(examples.astype(kind)).tokens, task.encode(examples).tokens)
    strided = np.asfortranarray(examples)
    assert torch.equal(task.encode(strided).tokens, task.encode(examples).tokens)
    assert (task.decode(task.encode(examples).tokens.int()) == examples).all()


@every_task
@pytest.mark.parametrize("n_nodes", [3, 4])
def test_sampling_has_the_exact_distribution(name, n_nodes):
    expected = every_example(name, n_nodes)
    n = 40_000
    rows, counts = np.unique(load(name, n_nodes).sample(np.random.default_rng(1), n), axis=0, return_counts=True)
    found = {tuple(row): count for row, count in zip(rows.tolist(), counts, strict=True)}
    assert found.keys() <= expected.keys()
    statistic = sum((found.get(row, 0) - n * p) ** 2 / (n * p) for row, p in expected.items())
    assert statistic < chi2.ppf(0.999, len(expected) - 1)


@every_task
def test_base_rate_is_the_best_constant_guess(name):
    task = load(name, 4)
    share: dict[int, dict[int, float]] = {}
    for row, probability in every_example(name, 4).items():
        raw = read(list(row), 4, N_QUERIES[name])
        for place, token in enumerate([*ORACLES[name](raw.query, raw.edges, 4).output, 27]):
            at_place = share.setdefault(place, {})
            at_place[token] = at_place.get(token, 0.0) + probability
    n_tokens = sum(p for at_place in share.values() for p in at_place.values())
    nats = -sum(p * math.log(p / sum(at.values())) for at in share.values() for p in at.values())
    # Four standard errors of a mean of 32,768 terms whose spread is below 1 nat.
    assert task.baselines["base_rate"] == pytest.approx(nats / n_tokens, abs=4 / math.sqrt(32_768))


@pytest.mark.parametrize(
    ("name", "paper"), [(name, 2.7569 if name in TASKS[:2] else 3.2958) for name in TASKS], ids=TASKS
)
def test_paper_line(name, paper):
    assert load(name, 4).baselines["paper"] == pytest.approx(paper, abs=5e-5)


@settings(max_examples=40)
@given(name=st.sampled_from(TASKS), n_nodes=st.integers(3, 12), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_relabelled_graphs_are_the_same_problem(name, n_nodes, seed, data):
    task = load(name, n_nodes)
    rng = np.random.default_rng(seed)
    (row,) = task.sample(rng, 1).tolist()
    raw = read(row, n_nodes, N_QUERIES[name])
    names = data.draw(st.permutations(range(n_nodes)))
    # With another query and, where edges have a direction, another one of those: up to the new number.
    query = list(data.draw(st.permutations(range(n_nodes))))[: N_QUERIES[name]]
    other = write(Raw(query, relabelled(raw.edges, names)), n_nodes)
    np.testing.assert_array_equal(*task.canonical(np.array([row, other]))[:, None])


@every_task
def test_other_graphs_are_other_problems(name):
    classes = isomorphism_classes(5)
    query = [3, 1][: N_QUERIES[name]]
    rows = [[write(Raw(query, edges), 5) for edges in members] for members in classes]
    words = [np.unique(load(name, 5).canonical(np.array(members))) for members in rows]
    assert [len(w) for w in words] == [1] * 21
    assert len(np.unique(np.concatenate(words))) == 21


# The last one has many complete graphs, in which no edge can move.
PAIR_CASES = [
    *[("breadth_first_search", 8, "adjacency_list", r) for r in (0, 4, 7)],
    *[("breadth_first_search", 8, "queue", r) for r in (0, 3, 6)],
    *[("depth_first_search", 8, "adjacency_list", r) for r in (0, 4, 7)],
    *[("depth_first_search", 8, "stack", r) for r in (0, 3, 6)],
    *[("min_spanning_tree", 8, "is_tree_edge", r) for r in (2, 5, 9)],
    *[("shortest_path", 8, f, r) for f in ("adjacency_list", "adjacency_matrix") for r in (0, 1, 2, 3, 5, 6)],
    *[("topological_sort", 8, f, r) for f in ("adjacency_list", "adjacency_matrix") for r in (0, 4, 6)],
    ("min_spanning_tree", 4, "is_tree_edge", 2),
]


@pytest.mark.parametrize(("name", "n_nodes", "feature", "label"), PAIR_CASES)
def test_pairs_move_one_edge(name, n_nodes, feature, label):
    task, n_queries = load(name, n_nodes), N_QUERIES[name]
    clean, corrupted = task.sample_pairs(np.random.default_rng(1), 100, feature, label)
    assert clean.shape == corrupted.shape == (100, n_queries + math.comb(n_nodes, 2))
    np.testing.assert_array_equal(clean[:, :n_queries], corrupted[:, :n_queries])
    changed = clean[:, n_queries:].astype(int) - corrupted[:, n_queries:]
    was, now = clean[:, n_queries:] != 0, corrupted[:, n_queries:] != 0
    assert ((was & ~now).sum(axis=1) == 1).all()
    assert ((~was & now).sum(axis=1) == 1).all()
    assert ((changed != 0).sum(axis=1) == 2).all()
    found = task.features[feature]
    before, after = found.labels(clean)[:, label], found.labels(corrupted)[:, label]
    assert (before != after).reshape(100, -1).any(axis=1).all()
    at = found.positions(clean)[:, label]
    np.testing.assert_array_equal(at, found.positions(corrupted)[:, label])
    assert (at >= 0).all()
    assert torch.equal(task.encode(clean).loss_mask[:, :6], task.encode(corrupted).loss_mask[:, :6])
    check_against_oracle(task, clean)


def test_pairs_of_long_paths_start_that_far_apart():
    task = load("shortest_path")
    for label in (3, 6, 9):
        clean = task.sample_pairs(np.random.default_rng(0), 200, "adjacency_list", label).clean
        lengths = (task.features["adjacency_list"].positions(clean) >= 0).sum(axis=1)
        np.testing.assert_array_equal(lengths, label + 1)
        # Both ends are any nodes: 11 sources, each expected 18 times.
        counts = np.bincount(clean[:, 0], minlength=11)
        assert ((counts - 200 / 11) ** 2 / (200 / 11)).sum() < chi2.ppf(0.999, 10)


@pytest.mark.parametrize(
    ("name", "n_nodes", "feature", "label"),
    [
        ("min_spanning_tree", 6, "is_tree_edge", 0),
        ("min_spanning_tree", 4, "is_tree_edge", 5),
        ("shortest_path", 6, "adjacency_list", 5),
        ("topological_sort", 6, "adjacency_list", 5),
    ],
)
def test_labels_that_no_move_changes(name, n_nodes, feature, label):
    with pytest.raises(ValueError, match=rf"no change that was tried alters label {label} of {feature} of"):
        load(name, n_nodes).sample_pairs(np.random.default_rng(0), 3, feature, label)


@every_task
def test_pairs_of_unknown_features_and_labels(name):
    task = load(name, 5)
    feature = next(iter(task.features.values()))
    for label in (-1, feature.n_labels):
        with pytest.raises(ValueError, match=rf"label of {feature.name} must lie in \[0, {feature.n_labels}\)"):
            task.sample_pairs(np.random.default_rng(0), 1, feature.name, label)
    with pytest.raises(qfl.QflError, match="nothing"):
        task.sample_pairs(np.random.default_rng(0), 1, "nothing", 0)


@every_task
@pytest.mark.parametrize("length", [2, 27])
def test_length_out_of_range(name, length):
    with pytest.raises(ValueError, match=rf"length of task '{name}' must be an integer in \[3, 26\]"):
        qfl.load_task(name, length=length)


# Pairs of 4 nodes: 01 02 03 12 13 23.
@pytest.mark.parametrize(
    ("name", "row", "rule"),
    [
        ("min_spanning_tree", [1, 1, 1, 0, 0], r"must be rows of 6 small integers.* got shape \(1, 5\)"),
        ("min_spanning_tree", [1, 1, 257, 0, 0, 0], r"values in \[0, 257\]"),
        ("min_spanning_tree", [1, 1, -1, 0, 0, 0], r"values in \[-1, 1\]"),
        ("min_spanning_tree", [1, 1, 2, 0, 0, 0], r"must be 0 \(no edge\) or 1 \(edge\); example 0 of .* is \[1, 1, 2"),
        ("topological_sort", [1, 1, 3, 0, 0, 0], r"must be 0 \(no edge\), 1 \(u to v\) or 2 \(v to u\)"),
        ("min_spanning_tree", [1, 1, 0, 1, 0, 0], r"the graph must be connected; example 0 .* \[1, 1, 0, 1, 0, 0\]"),
        ("topological_sort", [1, 0, 0, 0, 0, 1], "the graph must be connected"),
        ("topological_sort", [1, 2, 1, 1, 0, 0], "the directed edges must have no cycle"),
        ("breadth_first_search", [4, 1, 1, 1, 0, 0, 0], r"every query node must be a node of the graph, in \[0, 4\)"),
        ("depth_first_search", [4, 1, 1, 1, 0, 0, 0], r"every query node must be a node of the graph, in \[0, 4\)"),
        ("shortest_path", [0, 4, 1, 1, 1, 0, 0, 0], r"every query node must be a node of the graph, in \[0, 4\)"),
        ("shortest_path", [2, 2, 1, 1, 1, 0, 0, 0], "the query nodes must differ"),
    ],
)
def test_bad_examples(name, row, rule):
    task = load(name, 4)
    for use in (task.encode, task.canonical, *(f.labels for f in task.features.values())):
        with pytest.raises(ValueError, match=rule):
            use(np.array([row]))


def test_the_first_bad_example_is_named():
    rows = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1], [1, 1, 2, 0, 0, 0]])
    with pytest.raises(ValueError, match="the graph must be connected; example 1"):
        load("min_spanning_tree", 4).encode(rows)


def prompt(text):
    return torch.tensor([[(string.ascii_uppercase + "=").index(c) for c in text]])


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("min_spanning_tree", "ABACAD", r"a prompt must be 0 query nodes, then pairs of nodes, then '='"),
        ("min_spanning_tree", "ABACA=", "a prompt must be"),
        ("min_spanning_tree", "ABACAE=", r"all nodes in \[0, 4\); prompt 0 of"),
        ("min_spanning_tree", "EAABAC=", "a prompt must be"),
        (
            "min_spanning_tree",
            "ACABAD=",
            "be in lexicographic order without repeats, the lower node first",
        ),
        ("min_spanning_tree", "ABABACAD=", "be in lexicographic order"),
        ("min_spanning_tree", "ABACDA=", "be in lexicographic order"),
        ("min_spanning_tree", "AAABACAD=", "edges must join two different nodes"),
        ("min_spanning_tree", "ABACBBBC=", "edges must join two different nodes"),
        ("topological_sort", "ABACBBBC=", "edges must join two different nodes"),
        ("min_spanning_tree", "ABAC=", "the graph must be connected"),
        (
            "topological_sort",
            "ABCAACDA=",
            "be in lexicographic order without repeats; prompt 0",
        ),
        ("topological_sort", "ABCAADBC=", "the directed edges must have no cycle"),
        ("breadth_first_search", "EABACAD=", "a prompt must be 1 query nodes"),
        ("breadth_first_search", "=ABACAD=", "a prompt must be 1 query nodes"),
        ("shortest_path", "AAABACAD=", "the query nodes must differ"),
        ("shortest_path", "A", "a prompt must be 2 query nodes"),
    ],
)
def test_bad_prompts(name, text, rule):
    with pytest.raises(ValueError, match=rule):
        load(name, 4).decode(prompt(text))


def test_negative_tokens_are_no_prompt():
    tokens = prompt("ABACAD=")
    tokens[0, 3] = -1
    with pytest.raises(ValueError, match="a prompt must be"):
        load("min_spanning_tree", 4).decode(tokens)


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("min_spanning_tree", "ABACAD=", [1, 1, 1, 0, 0, 0]),
        ("topological_sort", "BACAADBC=", [2, 2, 1, 1, 0, 0]),
        ("breadth_first_search", "DABACAD=", [3, 1, 1, 1, 0, 0, 0]),
        ("shortest_path", "DBABACAD=", [3, 1, 1, 1, 1, 0, 0, 0]),
    ],
)
def test_prompts_without_an_answer_are_read(name, text, row):
    assert load(name, 4).decode(prompt(text)).tolist() == [row]


def test_a_moved_directed_edge_may_point_either_way():
    task = load("topological_sort", 6)
    clean = task.sample(np.random.default_rng(0), 400)
    moved = task._move_edge(np.random.default_rng(1), clean)
    added = moved[(clean == 0) & (moved != 0)]
    assert 0.3 < (added == 1).mean() < 0.7
    task.encode(moved)  # none has a cycle or falls apart
