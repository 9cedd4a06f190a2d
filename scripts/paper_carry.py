"""Does addition use its inner carries? A carry's direction swapped between runs that differ, or not, in the carry.

Carry r is read on the token of sum bit r, and goes along with that token and with both operands' bits r: the mean
activation differs with it even where the model holds no carry at all. Its *own* direction is its coefficient in a
linear model of the activation that has these bits, too. (From r = 1 on it is not linear in them. With the carry *into*
bit r it is, and the same direction comes out; pairs whose carries out of it differ tell which of the two is meant.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

import qfl_interp as qfl
from qfl_interp.data.examples import held_out
from qfl_interp.interventions.edits import edit_at
from qfl_interp.interventions.interchange import swap_subspace
from qfl_interp.interventions.planes import project_out
from qfl_interp.models.build import HookedModel
from qfl_interp.models.forward import rows_logits
from qfl_interp.models.hooks import Intervention, Site, read_activations
from qfl_interp.seeding import generator

# Directions are found on the first of the test examples, pairs are of the others.
N_FITTED, N_OTHERS = 1_000, 1_000
# Before and after a block's MLP.
NAMES: Final = ("resid_mid", "resid_post")
# Kinds of pairs, by what differs: the carry, and how many of the operands' bits r + 1. The next bit is their parity.
KINDS: Final = {"carry": (True, 0), "neither": (False, 0), "bit": (False, 1), "both": (True, 1)}
CONDITIONS: Final = ("own", "rest", "bit", "mean", "random", "whole", "cut own", "cut probe")
_BATCH: Final = 500

NextBit = Callable[[Sequence[Intervention]], Int[np.ndarray, " pair"]]


class Column(NamedTuple):
    """A carry, and what stands beside it, of every example.

    Attributes:
        carry: Out of bit r.
        bits: Bit r of both operands and of the sum.
        above: Bit r + 1 of both operands, which with the carry make the next bit.
        position: Where the carry is read, the token of sum bit r.
    """

    carry: Int[np.ndarray, " example"]
    bits: Int[np.ndarray, "example 3"]
    above: Int[np.ndarray, "example 2"]
    position: int

    @property
    def next_bit(self) -> Int[np.ndarray, " example"]:
        """Sum bit r + 1, which the model has to say at `position`."""
        return (self.carry + self.above.sum(axis=1)) % 2

    def first(self, n: int) -> Column:
        """The first examples."""
        return Column(self.carry[:n], self.bits[:n], self.above[:n], self.position)


class CarryPairs(NamedTuple):
    """Base and source examples that differ in the bits beside a carry, and in what their kind says.

    Attributes:
        base: Of each pair.
        source: Of each pair.
        kind: One of `KINDS`.
    """

    base: Int[np.ndarray, " pair"]
    source: Int[np.ndarray, " pair"]
    kind: np.ndarray


def column_of(task: qfl.Task, examples: np.ndarray, label: int) -> Column:
    """A carry of addition, and what stands beside it.

    Raises:
        ValueError: It is the first one, which is linear in the bits beside it, or the last, the next bit itself.
    """
    if not 1 <= label < task.feature("carry").n_labels - 1:
        raise ValueError(f"a carry must be an inner one, neither the first nor the last, got label {label}.")
    names = ("carry", "first_operand", "second_operand")
    carries, first, second = (np.asarray(task.feature(name).labels(examples)).astype(int) for name in names)
    sums = first[:, label] ^ second[:, label] ^ carries[:, label - 1]
    return Column(
        carry=carries[:, label],
        bits=np.stack([first[:, label], second[:, label], sums], axis=1),
        above=np.stack([first[:, label + 1], second[:, label + 1]], axis=1),
        position=int(np.asarray(task.feature("carry").positions(examples))[0, label]),
    )


def carry_pairs(column: Column, first: int, n: int, rng: np.random.Generator) -> CarryPairs:
    """`n` pairs of every kind, of examples from `first` on."""
    at = np.arange(first, len(column.carry))
    bases, kinds = rng.choice(at, n * len(KINDS), replace=False), np.repeat(list(KINDS), n)
    sources = []
    for base, kind in zip(bases, kinds, strict=True):
        differs, n_above = KINDS[kind]
        fits = (column.carry[at] != column.carry[base]) == differs
        fits &= (column.above[at] != column.above[base]).sum(axis=1) == n_above
        fits &= (column.bits[at] != column.bits[base]).any(axis=1)
        sources.append(rng.choice(at[fits]))
    return CarryPairs(bases, np.array(sources), kinds)


def directions_of(
    activations: Float[Tensor, "example d_model"], column: Column, rng: np.random.Generator
) -> dict[str, Float[Tensor, " d_model"]]:
    """Directions for a carry at one place.

    "own" is the carry's coefficient where activations are regressed on it, the bits beside and the operands' bits
    above, "bit" that of the first operand's bit above; "mean" the difference of class means; "probe" the weights that
    read the carry, by least squares; "random" a Gaussian vector.
    """
    exact = activations.double()
    given = np.column_stack([np.ones(len(column.carry)), column.bits, column.above, column.carry]).astype(float)
    found = torch.linalg.lstsq(torch.from_numpy(given), exact).solution
    one, zero = (exact[torch.from_numpy(column.carry == value)].mean(dim=0) for value in (1, 0))
    random = torch.from_numpy(rng.standard_normal(exact.shape[1]))
    return {
        "own": found[-1],
        "bit": found[-3],
        "mean": one - zero,
        "probe": _readout(exact, column.carry)[1:],
        "random": random,
    }


def read_share(
    activations: Float[Tensor, "example d_model"], labels: Int[np.ndarray, " example"], n_fitted: int
) -> float:
    """The share of labels 0 and 1 that least squares on the first examples reads right on the others."""
    weights = _readout(activations[:n_fitted].double(), labels[:n_fitted])
    said = activations[n_fitted:].double() @ weights[1:] + weights[0] > 0.5
    return float((said.numpy() == labels[n_fitted:]).mean())


def _readout(activations: Float[Tensor, "example d_model"], labels: Int[np.ndarray, " example"]) -> Tensor:
    """Constant and weights that read labels; the shortest where several do (an activation may have a constant part)."""
    given = torch.cat([torch.ones(len(activations), 1, dtype=torch.float64), activations], dim=1)
    return torch.linalg.lstsq(given, torch.from_numpy(labels).double(), driver="gelsd").solution


def swaps_of(
    site: Site,
    directions: Mapping[str, Float[Tensor, " d_model"]],
    source: Float[Tensor, "pair 1 d_model"],
    mean: Float[Tensor, " d_model"],
    position: int,
) -> dict[str, Intervention]:
    """What every condition does to the base runs at one position.

    "rest" swaps everything but the own direction, "whole" everything; "cut" sets what lies along a direction to its
    mean; the others swap along the direction of their name.
    """
    at = torch.full((len(source), 1), position)
    own = (directions["own"] / directions["own"].norm()).to(source)
    named = {name: swap_subspace(site, row[None], source, at) for name, row in directions.items() if name != "probe"}
    rest = edit_at(site, lambda x: source + ((x - source) @ own)[..., None] * own, at, label="swap_rest")
    whole = edit_at(site, lambda _: source, at, label="swap")
    cuts = {
        f"cut {name}": project_out(site, row[None, None], offsets=-(row @ mean.to(row))[None, None], positions=at)
        for name, row in directions.items()
        if name in ("own", "probe")
    }
    return named | cuts | {"rest": rest, "whole": whole}


def swap_rows(
    swaps: Mapping[str, Intervention],
    before: Int[np.ndarray, " pair"],
    column: Column,
    pairs: CarryPairs,
    next_bit: NextBit,
) -> list[dict[str, Any]]:
    """What the next bit does under each of some swaps, by kind of pair; `before` is the bit without any.

    `changed` is the share of pairs whose next bit is another one than before, `right` the share where it is the
    source's, `intact` the share that is right before.
    """
    own, swapped = column.next_bit[pairs.base], column.next_bit[pairs.source]
    rows = []
    for name, swap in swaps.items():
        after = next_bit([swap])
        for kind in KINDS:
            of = pairs.kind == kind
            shares = {"changed": after != before, "right": after == swapped, "intact": before == own}
            rows.append(
                {"swapped": name, "pairs": kind, "n_pairs": int(of.sum())}
                | {share: float(hits[of].mean()) for share, hits in shares.items()}
            )
    return rows


def inner_carries(
    run: qfl.Run, labels: Sequence[int], steps: Sequence[int], n_pairs: int, conditions: Sequence[str] = CONDITIONS
) -> pd.DataFrame:
    """What becomes of the next sum bit when a carry is swapped, before and after every block's MLP.

    The next bit is the parity of the carry and the operands' two bits above it. Pairs by what differs of these: the
    "carry", "neither", a "bit", or "both", in which case the next bits are the same. All differ in the bits beside.

    Args:
        run: Of addition.
        labels: Inner carries.
        steps: Checkpoints.
        n_pairs: Pairs of every kind.
        conditions: What is swapped or cut: those of `swaps_of`.

    Returns:
        One row a step, label, site, condition and kind of pair, as `swap_rows`; with `carry_read` and `next_read`, the
        shares of carries and of next bits that least squares reads there (both on examples of their own).

    Raises:
        ValueError: A label is the first or the last, or there are too few held-out examples of so short a task.

    References:
        Geiger et al. 2021 (arXiv 2106.02997), interchange interventions.
    """
    task, seed, n_layers = run.task, run.config.train.seed, run.config.model.n_layers
    examples = held_out(task, "test", N_FITTED + N_OTHERS, seed=seed, stream="inner carries")
    if len(examples) < N_FITTED + N_OTHERS:
        raise ValueError(
            f"directions and pairs need {N_FITTED + N_OTHERS} held-out examples, got {len(examples)} at length "
            f"{task.length}: take a longer task."
        )
    tokens = task.encode(examples).tokens
    columns = {label: column_of(task, examples, label) for label in labels}
    sites = [Site(layer, name) for layer in range(n_layers) for name in NAMES]
    rows = []
    for step in steps:
        model = run.load_model(step)
        activations = _read(model, tokens, sites, [column.position for column in columns.values()])
        for index, (label, column) in enumerate(columns.items()):
            rng = generator(seed, f"inner carries/{label}", step)
            pairs = carry_pairs(column, N_FITTED, n_pairs, rng)
            next_bit = _next_bit(model, n_layers, tokens, column, pairs)
            before = next_bit([])
            for site in sites:
                here = activations[site][:, index]
                found = directions_of(here[:N_FITTED], column.first(N_FITTED), rng)
                swaps = swaps_of(site, found, here[pairs.source][:, None], here[:N_FITTED].mean(dim=0), column.position)
                at = {"step": step, "flops": run.flops(step), "label": label, "layer": site.layer, "site": site.name}
                at |= {
                    "carry_read": read_share(here, column.carry, N_FITTED),
                    "next_read": read_share(here, column.next_bit, N_FITTED),
                }
                rows += [
                    at | row for row in swap_rows({c: swaps[c] for c in conditions}, before, column, pairs, next_bit)
                ]
    return pd.DataFrame(rows)


def _read(
    model: HookedModel, tokens: Tensor, sites: Sequence[Site], positions: Sequence[int]
) -> Mapping[Site, Float[Tensor, "example label d_model"]]:
    """Activations of every example at some positions."""
    at = {site: Site(site.layer, site.name, tuple(positions)) for site in sites}
    before = tokens[:, : max(positions) + 1]
    parts = [read_activations(model, part, list(at.values())) for part in before.split(_BATCH)]
    return {site: torch.cat([part[at[site]] for part in parts]) for site in sites}


def _next_bit(model: HookedModel, n_layers: int, tokens: Tensor, column: Column, pairs: CarryPairs) -> NextBit:
    """The likelier of the two bits as the next token of the base runs, under interventions at the carry's token.

    A pass begins at the block in which the first of them is.
    """
    own = tokens[pairs.base, : column.position + 1]
    there = tokens[:, column.position].numpy()  # the sum bit read there is a token itself
    bits = [int(there[column.bits[:, 2] == bit][0]) for bit in (0, 1)]
    before = [Site(layer, "resid_pre") for layer in range(n_layers)]
    streams = list(read_activations(model, own, before).values())
    last = slice(column.position, column.position + 1)

    def next_bit(interventions: Sequence[Intervention]) -> Int[np.ndarray, " pair"]:
        layer = min((i.site.layer or 0 for i in interventions), default=0)
        logits = rows_logits(model, own, last, interventions, start=(layer, streams[layer]))[:, 0]
        return logits[:, bits].argmax(dim=-1).numpy()

    return next_bit
