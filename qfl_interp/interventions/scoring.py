"""Does the model use a feature, a head, a neuron? Change its activations and score what is left, beside the controls.

Exact match is that of greedy decoding, from the one teacher-forced pass that also gives the loss (see `metrics`);
`answers` shows what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.data.task import Batch
from qfl_interp.interventions.controls import Control
from qfl_interp.interventions.edits import BatchRows, RowInterventions
from qfl_interp.interventions.replace import Method, activations_at, replace, replacement_by
from qfl_interp.interventions.streams import fast_at_streams, first_block, stream_changes
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import HookedModel, layer_count, model_device
from qfl_interp.models.fast_suffix import fast_suffix, suffix_logits
from qfl_interp.models.forward import logits_at, resumable, rows_logits
from qfl_interp.models.hooks import Intervention, Site
from qfl_interp.models.metrics import ExampleScores, evaluate, scored_span
from qfl_interp.seeding import generator
from qfl_interp.shapes import Resid, Tokens
from qfl_interp.sites import HEAD_SITES

# Of one example in `ExampleScores`: two losses and two counts of 8 bytes, two truths.
_BYTES_SCORED = 34


def intact(_rows: BatchRows) -> list[Intervention]:
    """No intervention: the model as it is."""
    return []


class Prefix(NamedTuple):
    """What every condition shares: the residual stream before block `layer`, of the untouched model."""

    layer: int
    resid: Resid


@torch.no_grad()
def shared_prefix(model: HookedModel, tokens: Tokens, layer: int, *, chunk: int = 256) -> Prefix | None:
    """The residual stream before a block for every example, kept on the model's device: `example * pos * d_model`.

    None where nothing is saved: before block 0, or a model that cannot start at a block (a `TransformerBridge`).
    """
    if layer <= 0 or not resumable(model):
        return None
    device = model_device(model)
    parts = [
        model(tokens[start : start + chunk].to(device), stop_at_layer=layer) for start in range(0, len(tokens), chunk)
    ]
    return Prefix(layer, torch.cat(parts))


@torch.no_grad()
def _logits_after(
    model: HookedModel, prefix: Prefix, rows: slice, positions: slice, interventions: Sequence[Intervention]
) -> Tensor:
    """Logits at `positions`, from the prefix on; interventions on its very stream are applied to it."""
    resid, later = prefix.resid[rows], []
    for intervention in interventions:
        if intervention.site.layer == prefix.layer - 1:
            resid = intervention.fn(resid)
        else:
            later.append(intervention)
    return rows_logits(model, None, positions, later, (prefix.layer, resid))


def score_interventions(
    model: HookedModel,
    batch: Batch,
    make: RowInterventions = intact,
    *,
    chunk: int = 256,
    prefix: Prefix | None = None,
) -> ExampleScores:
    """Loss and greedy exact match of every example under interventions.

    Args:
        model: Any hooked model.
        batch: What is scored.
        make: The interventions for the examples of each pass.
        chunk: Examples a forward pass.
        prefix: What `shared_prefix` returned for these examples: blocks before it are not run again. Interventions
            that act before it make a full pass.

    Raises:
        QflError: A hook point does not exist or did not fire.
    """

    def forward(tokens: Tensor, positions: slice, rows: slice) -> Tensor:
        made = make(rows)
        if prefix is not None and first_block(made) >= prefix.layer:
            return _logits_after(model, prefix, rows, positions, made).cpu()
        return logits_at(model, tokens, positions, made).cpu()

    return evaluate(forward, batch, chunk=chunk)


def score_ablation(
    model: HookedModel,
    batch: Batch,
    ablated: RowInterventions,
    controls: Mapping[str, Control],
    *,
    n_trials: int,
    rng: np.random.Generator,
    first: int = 0,
    chunk: int = 128,
) -> dict[str, list[ExampleScores]]:
    """Scores of every example: "intact", "ablated", and `n_trials` of each control, by its name.

    What lies before the first change is computed once for all conditions: blocks, and of a model that `is_fast`,
    changed at `resid_post`, tokens before `first` too. It stays in memory (`fast_suffix`, `shared_prefix`).

    Args:
        model: Any hooked model.
        batch: What is scored.
        ablated: The ablation.
        controls: Draws a trial of each control; those of `controls.plane_controls` for planes.
        n_trials: Trials of each control.
        rng: Decides them. A trial depends on its control's name and number alone, so that one more control or trial
            changes none.
        first: The first token that the ablation or a control changes.
        chunk: Examples a forward pass.

    Raises:
        QflError: A hook point does not exist or did not fire, a token before `first` was changed, or so many scores do
            not fit into memory.

    References:
        arXiv 2505.03997, feature ablation (32 trials).
    """
    needed = n_trials * max(len(controls), 1) * len(batch.tokens) * _BYTES_SCORED
    what = f"scores of {n_trials:,} trials of {len(controls)} controls on {len(batch.tokens):,} examples"
    require_memory(needed, available_bytes(), what, "Take fewer trials or examples.")
    seed = int(rng.integers(2**63))
    score = _scorer(model, batch, ablated(slice(0, 1)), first, chunk)
    scores = {"intact": [score(intact)], "ablated": [score(ablated)]}
    for name, draw in controls.items():
        trials = (generator(seed, f"control/{name}", trial) for trial in range(n_trials))
        scores[name] = [score(draw(trial)) for trial in trials]
    return scores


def _scorer(
    model: HookedModel, batch: Batch, made: Sequence[Intervention], first: int, chunk: int
) -> Callable[[RowInterventions], ExampleScores]:
    """Scores the batch under interventions, none of which acts before those that were made."""
    if not fast_at_streams(model, made):
        prefix = shared_prefix(model, batch.tokens, first_block(made), chunk=chunk)
        return lambda make: score_interventions(model, batch, make, chunk=chunk, prefix=prefix)
    first = min(first, scored_span(batch.loss_mask).start)
    suffix = fast_suffix(model, batch.tokens, first_block(made), first)

    def score(make: RowInterventions) -> ExampleScores:
        def forward(_tokens: Tensor, positions: slice, rows: slice) -> Tensor:
            return suffix_logits(suffix.rows(rows), positions, stream_changes(make(rows))).cpu()

        return evaluate(forward, batch, chunk=chunk, together=suffix.resid.device.type == "cpu")

    return score


class UnitScores(NamedTuple):
    """Scores of every example with one unit ablated at a time; `exact*` as in `ExampleScores`, losses in nats.

    Attributes:
        intact: The untouched model.
        layers: The blocks of the first axis.
        units: The heads or neurons of the second.
        loss: Mean over the example's scored tokens.
        loss_answer: The same over the answer alone.
        exact: Greedy exact match.
        exact_answer: The same over the answer alone.
    """

    intact: ExampleScores
    layers: tuple[int, ...]
    units: tuple[int, ...]
    loss: Float[np.ndarray, "layer unit example"]
    loss_answer: Float[np.ndarray, "layer unit example"]
    exact: Bool[np.ndarray, "layer unit example"] | Float[np.ndarray, "layer unit example"]
    exact_answer: Bool[np.ndarray, "layer unit example"] | Float[np.ndarray, "layer unit example"]


def score_units(
    model: HookedModel,
    batch: Batch,
    *,
    name: str = "z",
    method: Method = "mean",
    layers: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    positions: Int[Tensor, "example label"] | None = None,
    rng: np.random.Generator | None = None,
    chunk: int = 256,
) -> UnitScores:
    """Every head or neuron ablated on its own.

    Where the batch is smaller than `chunk`, several units share a forward pass, as rows. A layer's activations (for
    "mean" and "resample") and its residual stream are in memory at a time.

    Args:
        model: Any hooked model.
        batch: What is scored; means and donors come from it too.
        name: "z" for heads, "mlp_post" for neurons, or another site in a block.
        method: What takes a unit's place: zero, its mean over the examples at each position, or its value in
            another example.
        layers: Blocks; all by default.
        units: Heads or neurons; all by default.
        positions: Token index of each label in each example, where it is ablated; every token by default.
        rng: Draws the donors; "resample" needs it.
        chunk: Examples a forward pass.

    Raises:
        QflError: A layer or hook point does not exist.
        ValueError: No layer, an unknown method or unit; or "resample" without `rng`.
    """
    chosen = tuple(range(layer_count(model)) if layers is None else layers)
    if not chosen:
        raise ValueError("layers must name at least one block, got none. Leave it out for all of them.")
    rows: list[ExampleScores] = []
    for layer in chosen:
        site = Site(layer, name)
        # Zero needs no activations, only their shape.
        seen = slice(0, 1 if method == "zero" else None)
        where = None if positions is None else positions[seen]
        found = activations_at(model, batch.tokens[seen], [site], where, chunk=chunk)[site]
        if units is None:
            units = range(found.shape[-2] if name in HEAD_SITES else found.shape[-1])
        value = replacement_by(method, found, where, rng)
        prefix = shared_prefix(model, batch.tokens, layer, chunk=chunk)
        rows += _score_layer_units(model, batch, site, list(units), value, positions, prefix, chunk)
    assert units is not None
    n_examples = len(batch.tokens)

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(s, name) for s in rows]).reshape(len(chosen), len(units), n_examples)

    arrays = {key: column(key) for key in ("loss", "loss_answer", "exact", "exact_answer")}
    return UnitScores(score_interventions(model, batch, chunk=chunk), chosen, tuple(units), **arrays)


def _score_layer_units(
    model: HookedModel,
    batch: Batch,
    site: Site,
    units: list[int],
    value: Callable[[Tensor, Tensor], Tensor],
    positions: Tensor | None,
    prefix: Prefix | None,
    chunk: int,
) -> list[ExampleScores]:
    """Scores of one layer's units, in order; rows run over units and, within a unit, over examples."""
    n = len(batch.tokens)
    at_once = max(1, chunk // n)
    scores = []
    for start in range(0, len(units), at_once):
        group = torch.tensor(units[start : start + at_once])
        many = batch.rows(torch.arange(n).repeat(len(group)))
        ahead = prefix
        if prefix is not None and len(group) > 1:
            ahead = prefix._replace(resid=prefix.resid.repeat(len(group), 1, 1))

        def make(rows: BatchRows, group: Tensor = group) -> list[Intervention]:
            row = torch.arange(len(group) * n)[rows]
            where = None if positions is None else positions[row % n]
            return [replace(site, partial(value, row % n), where, units=group[row // n], label="unit")]

        scores.append(score_interventions(model, many, make, chunk=chunk, prefix=ahead))
    return scores
