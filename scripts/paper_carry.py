"""Does addition use its inner carries? One carry's own direction swapped between runs that agree in everything else.

Carry r is read on the token of sum bit r, and goes along with that token and with both operands' bits r: the mean
activation differs with it even where the model holds no carry at all. Its *own* direction is what a linear model
with all of them finds for the carry. From r = 1 on a carry is not linear in the three bits, so they can be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

import qfl_interp as qfl
from qfl_interp.data.examples import held_out
from qfl_interp.interventions.edits import edit_at
from qfl_interp.interventions.interchange import swap_subspace
from qfl_interp.models.build import HookedModel
from qfl_interp.models.hooks import Intervention, Site, interventions_on, read_activations
from qfl_interp.seeding import generator

# Directions are found on the first of the test examples; pairs are of the others, half of them with different carries.
N_FITTED, N_OTHERS, N_PAIRS = 1_000, 1_000, 200
# Before and after a block's MLP.
NAMES: Final = ("resid_mid", "resid_post")
CONDITIONS: Final = ("own", "rest", "mean", "random", "whole")
_BATCH: Final = 500


class Column(NamedTuple):
    """A carry, and what stands beside it, of every example.

    Attributes:
        carry: Out of bit r.
        bits: Bit r of both operands and of the sum.
        above: Bit r + 1 of both operands, which with the carry make the next token; no column at the last carry.
        position: Where the carry is read.
    """

    carry: Int[np.ndarray, " example"]
    bits: Int[np.ndarray, "example 3"]
    above: Int[np.ndarray, "example bit"]
    position: int


class CarryPairs(NamedTuple):
    """Base and source examples that agree in the bits above the carry and differ in those beside it.

    Attributes:
        base: Of each pair.
        source: Of each pair.
        differ: Whether their carries do.
    """

    base: Int[np.ndarray, " pair"]
    source: Int[np.ndarray, " pair"]
    differ: Bool[np.ndarray, " pair"]


def column_of(task: qfl.Task, examples: np.ndarray, label: int) -> Column:
    """A carry of addition, and what stands beside it.

    Raises:
        ValueError: It is the first one, which is linear in the bits beside it.
    """
    if label < 1:
        raise ValueError(
            f"a carry must be the second or a later one, got label {label}: the first is linear in its bits."
        )
    names = ("carry", "first_operand", "second_operand")
    carries, first, second = (np.asarray(task.feature(name).labels(examples)).astype(int) for name in names)
    sums = first[:, label] ^ second[:, label] ^ carries[:, label - 1]
    return Column(
        carry=carries[:, label],
        bits=np.stack([first[:, label], second[:, label], sums], axis=1),
        above=np.concatenate([bits[:, label + 1 : label + 2] for bits in (first, second)], axis=1),
        position=int(np.asarray(task.feature("carry").positions(examples))[0, label]),
    )


def own_direction(
    activations: Float[Tensor, "example d_model"],
    carry: Int[np.ndarray, " example"],
    beside: Int[np.ndarray, "example bit"],
) -> Float[Tensor, " d_model"]:
    """The carry's coefficient where activations are regressed on it and on bits beside it, by least squares."""
    given = np.column_stack([np.ones(len(carry)), beside, carry]).astype(float)
    return torch.linalg.lstsq(torch.from_numpy(given), activations.double()).solution[-1]


def carry_pairs(column: Column, first: int, n: int, rng: np.random.Generator) -> CarryPairs:
    """Pairs of examples from `first` on, half of them with different carries and half with the same."""
    at = np.arange(first, len(column.carry))
    bases = rng.choice(at, n, replace=False)
    differ = np.arange(n) < n // 2
    sources = []
    for base, other in zip(bases, differ, strict=True):
        fits = (column.above[at] == column.above[base]).all(axis=1) & (column.bits[at] != column.bits[base]).any(axis=1)
        sources.append(rng.choice(at[fits & ((column.carry[at] != column.carry[base]) == other)]))
    return CarryPairs(bases, np.array(sources), differ)


def inner_carries(
    run: qfl.Run,
    labels: Sequence[int],
    steps: Sequence[int],
    *,
    conditions: Sequence[str] = CONDITIONS,
    n_pairs: int = N_PAIRS,
) -> pd.DataFrame:
    """What becomes of the next sum bit when a carry's own direction is swapped.

    Operand bits above the carry agree in a pair, so that the next bit follows from the carry alone: where the carries
    differ a swap of what the model takes for the carry changes it, where they are the same it does not, whatever else
    is different. Conditions: "own", the carry's own direction; "rest", all but that; "mean", the difference of class
    means; "random", a random direction; "whole", the whole activation.

    Args:
        run: Of addition.
        labels: Carries, from 1.
        steps: Checkpoints.
        conditions: What is swapped.
        n_pairs: Pairs, half of them with different carries.

    Returns:
        One row a step, label, site and condition, twice: for pairs whose carries differ and for the others. `changed`
        is the share whose next bit is another one after the swap, `right` the share where it is what operands and
        swapped carry give, `intact` the share that is right before.

    Raises:
        ValueError: A label is below 1.

    References:
        Geiger et al. 2021 (arXiv 2106.02997), interchange interventions.
    """
    task, seed, n_layers = run.task, run.config.train.seed, run.config.model.n_layers
    examples = held_out(task, "test", N_FITTED + N_OTHERS, seed=seed, stream="inner carries")
    tokens = task.encode(examples).tokens
    columns = {label: column_of(task, examples, label) for label in labels}
    end = 1 + max(column.position for column in columns.values())
    sites = [Site(layer, name) for layer in range(n_layers) for name in NAMES]
    rows = []
    for step in steps:
        model = run.load_model(step)
        activations = _read(model, tokens[:, :end], sites, [column.position for column in columns.values()])
        for index, (label, column) in enumerate(columns.items()):
            rng = generator(seed, f"inner carries/{label}", step)
            pairs = carry_pairs(column, N_FITTED, n_pairs, rng)
            swaps = _Swaps(model, tokens, column, pairs)
            at = {"step": step, "flops": run.flops(step), "label": label}
            for site in sites:
                rows += [at | row for row in swaps.rows(site, activations[site][:, index], conditions, rng)]
    return pd.DataFrame(rows)


def _read(
    model: HookedModel, tokens: Tensor, sites: Sequence[Site], positions: Sequence[int]
) -> Mapping[Site, Float[Tensor, "example label d_model"]]:
    """Activations of every example at some positions."""
    at = {site: Site(site.layer, site.name, tuple(positions)) for site in sites}
    parts = [read_activations(model, part, list(at.values())) for part in tokens.split(_BATCH)]
    return {site: torch.cat([part[at[site]] for part in parts]) for site in sites}


class _Swaps:
    """The next bit of the base runs of some pairs, under swaps."""

    def __init__(self, model: HookedModel, tokens: Tensor, column: Column, pairs: CarryPairs) -> None:
        self.model, self.column, self.pairs = model, column, pairs
        # A swap is at the last token, and what is before it stays: keys and values of that are computed once.
        own = tokens[pairs.base, : column.position + 1]
        self.last = own[:, -1:]
        self.before_it = TransformerLensKeyValueCache.init_cache(model.cfg, own.device, len(own))
        with torch.no_grad():
            model(own[:, :-1], past_kv_cache=self.before_it, attention_mask=torch.ones_like(own[:, :-1]))
        self.before_it.freeze()
        # Which token stands for a bit: the sum bit read here is a token itself.
        there = tokens[:, column.position].numpy()
        self.bit_tokens = [int(there[column.bits[:, 2] == bit][0]) for bit in (0, 1)]
        self.before = self._next_bit()

    def rows(
        self,
        site: Site,
        activations: Float[Tensor, "example d_model"],
        conditions: Sequence[str],
        rng: np.random.Generator,
    ) -> list[dict[str, Any]]:
        """What the conditions do at a site."""
        above, carry = self.column.above[self.pairs.base].sum(axis=1), self.column.carry
        before, right = ((above + carry[which]) % 2 for which in (self.pairs.base, self.pairs.source))
        swaps, found = self._swaps(site, activations, rng), []
        for condition in conditions:
            after = self._next_bit(swaps[condition])
            for differ in (True, False):
                where = self.pairs.differ == differ
                found.append({
                    "layer": site.layer, "site": site.name, "swapped": condition, "carries_differ": differ,
                    "n_pairs": int(where.sum()), "intact": float((self.before == before)[where].mean()),
                    "changed": float((after != self.before)[where].mean()),
                    "right": float((after == right)[where].mean()),
                })  # fmt: skip
        return found

    def _swaps(self, site: Site, activations: Tensor, rng: np.random.Generator) -> dict[str, Intervention]:
        """Every condition's change of the base runs."""
        fitted, carry = activations[:N_FITTED].double(), self.column.carry[:N_FITTED]
        own = own_direction(fitted, carry, np.hstack([self.column.bits, self.column.above])[:N_FITTED])
        of_one, of_zero = (fitted[torch.from_numpy(carry == value)] for value in (1, 0))
        random = torch.from_numpy(rng.standard_normal(len(own)))
        directions = {"own": own, "mean": of_one.mean(dim=0) - of_zero.mean(dim=0), "random": random}
        source, unit = activations[self.pairs.source][:, None], own / own.norm()
        at = torch.zeros(len(source), 1, dtype=torch.int64)  # of the one token of a pass

        def rest(x: Tensor) -> Tensor:
            return source + ((x - source) @ unit.to(x))[..., None] * unit.to(x)

        swaps = {name: swap_subspace(site, row[None], source, at) for name, row in directions.items()}
        return swaps | {"rest": edit_at(site, rest, at), "whole": edit_at(site, lambda _: source, at)}

    def _next_bit(self, *swap: Intervention) -> Int[np.ndarray, " pair"]:
        """The likelier of the two bits as the next token."""
        with torch.no_grad(), interventions_on(self.model, swap):
            mask = torch.ones_like(self.last)
            logits = self.model(self.last, past_kv_cache=self.before_it, attention_mask=mask)[:, 0]
        return logits[:, self.bit_tokens].argmax(dim=-1).numpy()
