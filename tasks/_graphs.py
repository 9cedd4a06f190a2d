"""What the graph tasks share: raw rows and their check, layout of the tokens, features read at the output."""

from __future__ import annotations

import abc
import functools
import string
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Integer, UInt8, UInt32, UInt64

from qfl_interp.data.baselines import measured_base_rate
from qfl_interp.data.task import NO_POSITION, Batch, Feature, Pairs, Task
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._graph_kernels import (
    BAD_EDGE,
    BAD_ORDER,
    BAD_PROMPT,
    BAD_QUERY,
    CYCLE,
    DISCONNECTED,
    SAME_QUERY,
    edges_present,
    frontier,
    parse,
    read_prompts,
    rows_of,
    unpack,
    write_tokens,
)
from qfl_interp.tasks._graph_sampling import canonical_words, sample_connected
from qfl_interp.tasks._layout import check_rows, scored_between
from qfl_interp.tasks._pairs import pairs_by_edit

# Of each fault the kernels report.
_RULES = {
    BAD_QUERY: "every query node must be a node of the graph, in [0, {n})",
    SAME_QUERY: "the query nodes must differ",
    BAD_EDGE: "every entry after the query must be {codes}",
    DISCONNECTED: "the graph must be connected",
    CYCLE: "the directed edges must have no cycle",
    BAD_PROMPT: "a prompt must be {n_queries} query nodes, then pairs of nodes, then '=', all nodes in [0, {n})",
    BAD_ORDER: "edges must join two different nodes and be in lexicographic order without repeats{lower_first}",
}


class Graphs(NamedTuple):
    """Raw rows taken apart.

    `rows` holds the neighbours of each node, out-neighbours where edges have a direction; `undirected` those whatever
    the direction.
    """

    queries: UInt8[np.ndarray, "batch query"]
    rows: UInt32[np.ndarray, "batch node"]
    undirected: UInt32[np.ndarray, "batch node"]
    n_edges: Int64[np.ndarray, " batch"]


class Answer(NamedTuple):
    """Output nodes, 0 beyond each example's number of them."""

    nodes: UInt8[np.ndarray, "batch output"]
    lengths: Int64[np.ndarray, " batch"]


class GraphTask(Task):
    """A problem on a connected graph of `length` nodes, uniform over isomorphism classes, numbered at random.

    A raw example is the query nodes (none, one or two), then one entry for every pair of nodes u < v in lexicographic
    order: 0 for no edge, 1 for an edge; where edges have a direction 1 leads from u to v and 2 from v to u. Its tokens
    are letters (`A` is node 0): the query nodes, the edges in that order as two nodes each, `=`, the output, `<EOS>` up
    to `n_ctx`. So edge r has its two nodes at `n_queries + 2r` and one further on, and `=` is at `n_queries + 2E` with
    E edges: it moves from example to example, and with it the positions of most features.

    Equal graphs up to the numbers of their nodes share a split, whatever the query and the directions.

    Attributes:
        n_queries: Query nodes before the edges.
        directed: Whether edges have a direction; then they must have no cycle.
        paper_baseline: The paper's random line, in nats per scored token.
    """

    vocabulary = (*string.ascii_uppercase, "=", "<EOS>")
    lengths = (3, 26)
    default_length = 11
    n_queries: ClassVar[int] = 0
    directed: ClassVar[bool] = False
    paper_baseline: ClassVar[float]

    @abc.abstractmethod
    def _answer(self, graphs: Graphs) -> Answer:
        """The output of every example."""

    @property
    def n_output(self) -> int:
        """Output tokens at most."""
        return self.length

    @property
    def n_ctx(self) -> int:
        """Query, every possible edge, `=`, the longest output, `<EOS>`."""
        return self.n_queries + self.length * (self.length - 1) + 1 + self.n_output + 1

    @functools.cached_property
    def baselines(self) -> Mapping[str, float]:
        """The paper's line, and the best constant guess for each answer token as measured on examples."""
        return {"paper": self.paper_baseline, "base_rate": measured_base_rate(self)}

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` connected graphs, uniform over isomorphism classes and numbered at random, with random queries."""
        present = edges_present(sample_connected(rng, n, self.length))
        return np.hstack([self._sample_queries(rng, n), self._directions(rng, present)])

    def _sample_queries(self, rng: np.random.Generator, n: int) -> UInt8[np.ndarray, "batch query"]:
        """Uniform query nodes."""
        return rng.integers(0, self.length, size=(n, self.n_queries), dtype=np.uint8)

    def _directions(
        self, rng: np.random.Generator, present: UInt8[np.ndarray, "batch pair"]
    ) -> UInt8[np.ndarray, "batch pair"]:
        """Entries of a raw row from the edges."""
        del rng
        return present

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows have the wrong width, a query node or an entry is out of range, two query nodes are
                the same, a graph is not connected, or its directed edges have a cycle.
        """
        graphs = self._graphs(examples)
        answer = self._answer(graphs)
        raw = self._raw(examples)
        ids, equals = write_tokens(raw, self.n_queries, self.length, answer.nodes, answer.lengths, self.n_ctx)
        at = torch.from_numpy(equals)
        mask = scored_between(at, at + 1 + torch.from_numpy(answer.lengths), self.n_ctx)
        return Batch(torch.from_numpy(ids), mask)

    def decode(self, tokens: Tokens) -> Examples:
        """The graphs and queries that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not query nodes, edges in lexicographic order (the lower node first where edges have
                no direction), `=`; or `encode` would refuse its graph.
        """
        ids = tokens.cpu().long().contiguous().numpy()
        raw, faults = read_prompts(ids, self.n_queries, self.length, self.directed)
        self._refuse(faults, "prompt", ids)
        self._graphs(raw)
        return raw

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """An isomorphism invariant of the undirected graph."""
        return canonical_words(self._graphs(examples).undirected)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs of graphs that differ in the place of one edge; the query and the number of edges are the same.

        The edges between the old place and the new one move by one place in the prompt. Labels other than `label`, and
        the output, may change with it.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range, or no move of an edge changes it.
        """
        return pairs_by_edit(self, rng, n, feature, label, self._move_edge)

    def _move_edge(self, rng: np.random.Generator, clean: Examples) -> Examples:
        """One edge of every graph moved to another pair of nodes; unchanged where that would break the graph."""
        every = np.arange(len(clean))
        absent = clean[:, self.n_queries :] == 0
        keys = rng.random(absent.shape)
        removed, added = (np.where(at, keys, -1.0).argmax(axis=1) + self.n_queries for at in (~absent, absent))
        moved = clean.copy()
        moved[every, removed] = 0
        moved[every, added] = rng.integers(1, 2 + self.directed, size=len(clean))
        broken = (self._parsed(moved)[1] != 0) | ~absent.any(axis=1)
        return np.where(broken[:, None], clean, moved)

    def _output_feature(
        self,
        name: str,
        first: int,
        n_labels: int,
        labels: Callable[[Examples], UInt8[np.ndarray, "batch label output"]],
        description: str,
        *,
        by_default: bool = True,
    ) -> Feature:
        """A feature with a label at each output node, read from `first` tokens after `=` on; none beyond the output."""

        def positions(examples: Examples) -> Int64[np.ndarray, "batch label"]:
            graphs, place = self._graphs(examples), np.arange(n_labels)
            at = (self.n_queries + 2 * graphs.n_edges + first)[:, None] + place
            return np.where(place < self._answer(graphs).lengths[:, None], at, NO_POSITION)

        return Feature(name, "multilabel", n_labels, labels, positions, description, by_default)

    def _adjacency_list_feature(self) -> Feature:
        """The row of each output node, read at that node."""
        out = "out-" if self.directed else ""
        text = f"the {out}neighbours of output node r, where that node is read"
        return self._output_feature("adjacency_list", 1, self.length, self._adjacency_list, text)

    def _adjacency_matrix_feature(self) -> Feature:
        """All rows without the diagonal, read where each output node is predicted."""
        text = "the whole adjacency matrix without its diagonal, where output node r is predicted"
        labels = self._adjacency_matrix
        return self._output_feature("adjacency_matrix", 0, self.length, labels, text, by_default=False)

    def _frontier_feature(self, name: str) -> Feature:
        """The nodes next to be visited, read at each output node."""
        text = f"the unvisited nodes on the {name} once output node r is processed, where that node is read"
        return self._output_feature(name, 1, self.length - 1, self._frontier, text)

    def _adjacency_list(self, examples: Examples) -> UInt8[np.ndarray, "batch label node"]:
        """Rows of the output nodes."""
        graphs = self._graphs(examples)
        answer = self._answer(graphs)
        return unpack(rows_of(graphs.rows, answer.nodes, answer.lengths), self.length)

    def _adjacency_matrix(self, examples: Examples) -> UInt8[np.ndarray, "batch label entry"]:
        """The matrix row by row without its diagonal, the same at every label."""
        n = self.length
        entries = unpack(self._graphs(examples).rows, n).reshape(len(examples), n * n)
        # Without the first entry, every (n + 1)-th one is on the diagonal.
        matrix = entries[:, 1:].reshape(len(examples), n - 1, n + 1)[:, :, :n].reshape(len(examples), 1, n * (n - 1))
        return np.broadcast_to(matrix, (len(examples), n, n * (n - 1)))

    def _frontier(self, examples: Examples) -> UInt8[np.ndarray, "batch label node"]:
        """Unvisited neighbours of the nodes visited so far."""
        graphs = self._graphs(examples)
        return unpack(frontier(graphs.rows, self._answer(graphs).nodes), self.length)

    def _raw(self, examples: Examples) -> UInt8[np.ndarray, "batch raw"]:
        """The rows as bytes."""
        width = self.n_queries + self.length * (self.length - 1) // 2
        rule = f"{width} small integers, {self.n_queries} query nodes, then one entry a pair of nodes"
        check_rows(self, examples, width, 255, rule)
        return np.ascontiguousarray(examples, dtype=np.uint8)

    def _parsed(self, examples: Examples) -> tuple[Graphs, UInt8[np.ndarray, " batch"]]:
        """The graphs of raw rows, and the first fault of each."""
        raw = self._raw(examples)
        rows, undirected, n_edges, faults = parse(raw, self.length, self.n_queries, self.directed)
        return Graphs(raw[:, : self.n_queries], rows, undirected, n_edges), faults

    def _graphs(self, examples: Examples) -> Graphs:
        """The graphs of raw rows, all checked: a kernel given a bad one may read beyond its arrays."""
        graphs, faults = self._parsed(examples)
        self._refuse(faults, "example", examples)
        return graphs

    def _refuse(
        self, faults: UInt8[np.ndarray, " batch"], noun: str, found: Integer[np.ndarray, "batch value"]
    ) -> None:
        """Raise for the first row with a fault, if there is one."""
        if not faults.any():
            return
        row = int(np.flatnonzero(faults)[0])
        rule = _RULES[int(faults[row])].format(
            n=self.length,
            n_queries=self.n_queries,
            codes="0 (no edge), 1 (u to v) or 2 (v to u)" if self.directed else "0 (no edge) or 1 (edge)",
            lower_first="" if self.directed else ", the lower node first",
        )
        raise ValueError(f"{rule}; {noun} {row} of {self!r} is {found[row].tolist()}.")
