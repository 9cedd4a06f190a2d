"""The five graph algorithms and their features in plain Python and networkx, one example at a time."""

from __future__ import annotations

import itertools
from collections import deque
from typing import NamedTuple

import networkx as nx
import numpy as np

Edges = list[tuple[int, int]]
Bits = list[list[int]]


class Expected(NamedTuple):
    """Output nodes, and for each feature its labels and where they are read counted from `=`."""

    output: list[int]
    features: dict[str, tuple[list, list[int]]]


class Raw(NamedTuple):
    """A raw row as a person would write it: edges (tail, head) in the order of the pairs."""

    query: list[int]
    edges: Edges


def read(row: list[int], n_nodes: int, n_queries: int) -> Raw:
    pairs = itertools.combinations(range(n_nodes), 2)
    edges = [(u, v) if code == 1 else (v, u) for (u, v), code in zip(pairs, row[n_queries:], strict=True) if code]
    return Raw(list(row[:n_queries]), edges)


def write(raw: Raw, n_nodes: int) -> list[int]:
    edges = set(raw.edges)
    pairs = itertools.combinations(range(n_nodes), 2)
    return raw.query + [1 if (u, v) in edges else 2 if (v, u) in edges else 0 for u, v in pairs]


def neighbours(edges: Edges, n_nodes: int, directed: bool = False) -> list[list[int]]:
    """In increasing number."""
    found: list[set[int]] = [set() for _ in range(n_nodes)]
    for u, v in edges:
        found[u].add(v)
        if not directed:
            found[v].add(u)
    return [sorted(s) for s in found]


def bits(nodes, n_nodes: int) -> list[int]:
    found = [0] * n_nodes
    for v in nodes:
        found[v] = 1
    return found


def adjacency_list(output: list[int], near: list[list[int]]) -> tuple[Bits, list[int]]:
    return [bits(near[v], len(near)) for v in output], list(range(1, 1 + len(output)))


def adjacency_matrix(output: list[int], near: list[list[int]]) -> tuple[list[np.ndarray], list[int]]:
    rows = [bits(nodes, len(near)) for nodes in near]
    row = [bit for u, whole in enumerate(rows) for bit in whole[:u] + whole[u + 1 :]]
    return [np.array(row)] * len(output), list(range(len(output)))


def breadth_first(query: list[int], edges: Edges, n_nodes: int) -> Expected:
    near = neighbours(edges, n_nodes)
    queue, marked, output, queues = deque(query), set(query), [], []
    while queue:
        node = queue.popleft()
        output.append(node)
        for v in near[node]:
            if v not in marked:
                marked.add(v)
                queue.append(v)
        queues.append(bits(queue, n_nodes))
    features = {"adjacency_list": adjacency_list(output, near), "queue": (queues[:-1], list(range(1, n_nodes)))}
    return Expected(output, features)


def depth_first(query: list[int], edges: Edges, n_nodes: int) -> Expected:
    near = neighbours(edges, n_nodes)
    stack, visited, output, stacks = list(query), set(), [], []
    while stack:
        node = stack.pop()
        if node in visited:
            continue
        visited.add(node)
        output.append(node)
        stack += [v for v in near[node] if v not in visited]
        stacks.append(bits(set(stack) - visited, n_nodes))
    features = {"adjacency_list": adjacency_list(output, near), "stack": (stacks[:-1], list(range(1, n_nodes)))}
    return Expected(output, features)


def min_spanning_tree(query: list[int], edges: Edges, n_nodes: int) -> Expected:
    component = {v: {v} for v in range(n_nodes)}
    kept = []
    for u, v in edges:
        kept.append(int(component[u] is not component[v]))
        if kept[-1]:
            component[u] |= component[v]
            component.update(dict.fromkeys(component[v], component[u]))
    output = [v for edge, keep in zip(edges, kept, strict=True) if keep for v in edge]
    equals = 2 * len(edges)
    return Expected(output, {"is_tree_edge": (kept, [2 * r + 1 - equals for r in range(len(edges))])})


def shortest_path(query: list[int], edges: Edges, n_nodes: int) -> Expected:
    near = neighbours(edges, n_nodes)
    came_from: list[dict[int, int | None]] = [{query[0]: None}, {query[1]: None}]
    levels = [[query[0]], [query[1]]]
    meeting = None
    for side in itertools.cycle((0, 1)):
        level, levels[side] = levels[side], []
        for node, v in ((u, v) for u in level for v in near[u]):
            if v in came_from[side]:
                continue
            came_from[side][v] = node
            levels[side].append(v)
            if v in came_from[1 - side]:
                meeting = v
                break
        if meeting is not None:
            break
    chains = []
    for back in came_from:
        chains.append([meeting])
        while back[chains[-1][-1]] is not None:
            chains[-1].append(back[chains[-1][-1]])
    output = chains[0][::-1] + chains[1][1:]
    features = {"adjacency_list": adjacency_list(output, near), "adjacency_matrix": adjacency_matrix(output, near)}
    return Expected(output, features)


def topological_sort(query: list[int], edges: Edges, n_nodes: int) -> Expected:
    near = neighbours(edges, n_nodes, directed=True)
    finished: list[int] = []

    def visit(node: int) -> None:
        for v in reversed(near[node]):
            if v not in finished:
                visit(v)
        finished.append(node)

    for root in range(n_nodes):
        if root not in finished:
            visit(root)
    output = finished[::-1]
    features = {"adjacency_list": adjacency_list(output, near), "adjacency_matrix": adjacency_matrix(output, near)}
    return Expected(output, features)


def networkx_agrees(name: str, raw: Raw, n_nodes: int, output: list[int]) -> bool:
    """Whether networkx gives this output (or, where it has rules of its own, calls it valid)."""
    graph = nx.DiGraph() if name == "topological_sort" else nx.Graph()
    graph.add_nodes_from(range(n_nodes))
    graph.add_edges_from(raw.edges)
    if name == "breadth_first_search":
        edges = nx.bfs_edges(graph, raw.query[0], sort_neighbors=sorted)
        return output == raw.query + [v for _, v in edges]
    if name == "depth_first_search":
        edges = nx.dfs_edges(graph, raw.query[0], sort_neighbors=lambda nodes: sorted(nodes, reverse=True))
        return output == raw.query + [v for _, v in edges]
    if name == "min_spanning_tree":
        return output == [v for e in nx.minimum_spanning_edges(graph, "kruskal", data=False) for v in e]
    if name == "shortest_path":
        ends = [output[0], output[-1]] == raw.query
        steps = all(graph.has_edge(u, v) for u, v in itertools.pairwise(output))
        return ends and steps and len(output) == 1 + nx.shortest_path_length(graph, raw.query[0], raw.query[1])
    place = {v: i for i, v in enumerate(output)}
    ordered = sorted(output) == list(range(n_nodes)) and all(place[u] < place[v] for u, v in graph.edges)
    return ordered and nx.is_directed_acyclic_graph(graph)


ORACLES = {
    "breadth_first_search": breadth_first,
    "depth_first_search": depth_first,
    "min_spanning_tree": min_spanning_tree,
    "shortest_path": shortest_path,
    "topological_sort": topological_sort,
}
N_QUERIES = {
    "breadth_first_search": 1,
    "depth_first_search": 1,
    "min_spanning_tree": 0,
    "shortest_path": 2,
    "topological_sort": 0,
}


def relabelled(edges: Edges, names) -> Edges:
    """In prompt order."""
    return sorted((min(names[u], names[v]), max(names[u], names[v])) for u, v in edges)


def isomorphism_classes(n_nodes: int) -> list[list[Edges]]:
    """Every connected graph on numbered nodes, in classes of the same graph under all numberings."""
    pairs = list(itertools.combinations(range(n_nodes), 2))
    seen: set[tuple] = set()
    classes = []
    for chosen in itertools.product((0, 1), repeat=len(pairs)):
        edges = list(itertools.compress(pairs, chosen))
        graph = nx.Graph(edges)
        if tuple(edges) in seen or len(graph) < n_nodes or not nx.is_connected(graph):
            continue
        same = {tuple(relabelled(edges, names)) for names in itertools.permutations(range(n_nodes))}
        seen |= same
        classes.append([list(member) for member in sorted(same)])
    return classes


def every_example(name: str, n_nodes: int) -> dict[tuple[int, ...], float]:
    """The probability of every raw row: uniform over isomorphism classes, then numberings, then queries."""
    classes = isomorphism_classes(n_nodes)
    queries = list(itertools.permutations(range(n_nodes), N_QUERIES[name]))
    orders = list(itertools.permutations(range(n_nodes))) if name == "topological_sort" else [range(n_nodes)]
    found: dict[tuple[int, ...], float] = {}
    for edges, size in ((edges, len(members)) for members in classes for edges in members):
        probability = 1 / (len(classes) * size * len(queries) * len(orders))
        for query, order in itertools.product(queries, orders):
            directed = [(u, v) if order[u] < order[v] else (v, u) for u, v in edges]
            row = tuple(write(Raw(list(query), directed), n_nodes))
            found[row] = found.get(row, 0.0) + probability
    return found
