"""Activation patching: which clean activation, written into the corrupted run, brings the clean answer back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.activations.spans import Place
from qfl_interp.interventions.edits import edit_at
from qfl_interp.interventions.pairs import (
    Metric,
    PairScores,
    PatchPairs,
    end_scores,
    normalise,
    score_pairs,
)
from qfl_interp.models.build import HookedModel, layer_count, model_device
from qfl_interp.models.forward import resumable, rows_logits
from qfl_interp.models.hooks import Intervention, Site, read_activations
from qfl_interp.shapes import Tokens
from qfl_interp.sites import HEAD_SITES, STREAM_SITES

# In `Place`: the activation of all heads, or one that has none. In `PatchScores.positions`: every position at once.
NO_HEAD = -1
ALL_POSITIONS = -1


@dataclass(frozen=True)
class PatchScores:
    """Scores of every pair under every patch.

    Attributes:
        component: What was patched: a short name of `Site`.
        places: Layers, or layers and heads, along the first axis.
        positions: Token indices along the second axis; `(ALL_POSITIONS,)` where every position was patched at once.
        logit_diff: As in `PairScores`, of the patched run.
        loss: Likewise.
        exact: Likewise.
        clean: Scores of the clean run.
        corrupted: Scores of the corrupted run.
    """

    component: str
    places: tuple[Place, ...]
    positions: tuple[int, ...]
    logit_diff: Float[np.ndarray, "place pos pair"]
    loss: Float[np.ndarray, "place pos pair"]
    exact: Bool[np.ndarray, "place pos pair"] | Float[np.ndarray, "place pos pair"]
    clean: PairScores
    corrupted: PairScores

    def normalised(self, metric: Metric = "logit_diff") -> Float[np.ndarray, "place pos"]:
        """Means over pairs on the scale where the corrupted run is 0 and the clean run 1; see `pairs.normalise`."""
        return self._normalised(metric, np.ones((len(self.clean.loss), 1)))[..., 0]

    def intervals(
        self, metric: Metric, rng: np.random.Generator, *, n_resamples: int = 1000, level: float = 0.95
    ) -> tuple[Float[np.ndarray, "place pos"], Float[np.ndarray, "place pos"]]:
        """Lower and upper ends of percentile bootstrap intervals of `normalised`, over pairs.

        A resample draws pairs; clean, corrupted and patched runs of a pair stay together. NaN where some resample
        cannot tell the clean runs from the corrupted ones.

        Args:
            metric: Which metric.
            rng: Draws the resamples.
            n_resamples: How many.
            level: Nominal coverage of each interval on its own.
        """
        n = len(self.clean.loss)
        drawn = self._normalised(metric, rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).T.astype(float))
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=-1)
        return low, high

    def _normalised(self, metric: Metric, weights: Float[np.ndarray, "pair draw"]) -> np.ndarray:
        """The normalised metric where each pair counts as often as `weights` says, `[place, pos, draw]`."""
        patched, clean, corrupted = (getattr(run, metric).astype(float) for run in (self, self.clean, self.corrupted))
        share = weights / weights.sum(axis=0)
        return normalise((patched - corrupted) @ share, (clean - corrupted) @ share)


def resolve_places(
    model: HookedModel,
    pairs: PatchPairs,
    component: str,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> tuple[Place, ...]:
    """Every layer (and head) of a component, checked; layers are the slow axis.

    Raises:
        ValueError: An unknown component, a layer or head that is not there, or heads of a component without heads.
    """
    if component not in STREAM_SITES + HEAD_SITES:
        raise ValueError(f"component must be one of {STREAM_SITES + HEAD_SITES}, got {component!r}.")
    chosen = _among("layers", layers, layer_count(model))
    if component in STREAM_SITES:
        if heads is not None:
            raise ValueError(f"heads go with one of {HEAD_SITES}, got heads={list(heads)} of {component!r}.")
        return tuple(Place(layer) for layer in chosen)
    # Asked of the activation itself: keys and values may have fewer heads than queries.
    site = Site(chosen[0], component)
    n_heads = read_activations(model, pairs.clean[:1].to(model_device(model)), [site])[site].shape[2]
    return tuple(Place(layer, head) for layer in chosen for head in _among("heads", heads, n_heads))


def _among(name: str, asked: Sequence[int] | None, n: int) -> list[int]:
    """The indices asked for, all of `range(n)` by default, checked."""
    chosen = list(range(n)) if asked is None else [int(i) for i in asked]
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= i < n for i in chosen):
        raise ValueError(f"{name} must be different numbers in [0, {n}), at least one, got {chosen}. Count from 0.")
    return chosen


class _Block(NamedTuple):
    """Some pairs with what their patches at every layer need.

    `tokens` and `resid` (before each layer; empty where the model cannot start there) are the corrupted run's, `source`
    the clean activations. `differs` is `[pair, pos]` or `[pair, pos, head]` by layer.
    """

    pair: Int[Tensor, " pair"]
    tokens: Tokens
    source: dict[int, Tensor]
    differs: dict[int, Tensor]
    resid: dict[int, Tensor]


def _capture_block(model: HookedModel, pairs: PatchPairs, pair: Tensor, component: str, layers: list[int]) -> _Block:
    """Both runs of some pairs, up to the last layer asked for."""
    device = model_device(model)
    clean, corrupted = (t[pair, : pairs.span.stop].to(device) for t in (pairs.clean, pairs.corrupted))
    early = {"stop_at_layer": max(layers) + 1} if resumable(model) else {}
    sites = [Site(layer, component) for layer in layers]
    starts = [Site(layer, "resid_pre") for layer in layers] if resumable(model) else []
    source = read_activations(model, clean, sites, **early)
    found = read_activations(model, corrupted, list(dict.fromkeys(sites + starts)), **early)
    return _Block(
        pair,
        corrupted,
        {layer: source[site] for layer, site in zip(layers, sites, strict=True)},
        {layer: (source[site] != found[site]).any(-1) for layer, site in zip(layers, sites, strict=True)},
        {layer: found[site] for layer, site in zip(layers, starts, strict=False)},
    )


def _acting(differs: Bool[Tensor, "pair pos *head"], where: Int[Tensor, "asked k"], heads: list[int]) -> Tensor:
    """The patches that change something, as indices `[patch, (head, pos, pair)]` into what was asked for.

    Both runs read the same tokens up to where the prompts first differ and compute the same numbers from them, to the
    bit: writing one over the other changes nothing.
    """
    chosen = differs[..., None] if heads == [NO_HEAD] else differs[..., heads]
    return chosen[:, where].any(2).permute(2, 1, 0).nonzero()


def _write_rows(site: Site, values: Float[Tensor, "row k *rest"], where: Tensor, heads: Tensor) -> Intervention:
    """Row r of a run gets `values[r]` at positions `where[r]`: of head `heads[r]` alone unless that is `NO_HEAD`."""

    def change(current: Tensor) -> Tensor:
        if values.ndim == 3:
            return values
        row, changed = torch.arange(len(values), device=values.device), current.clone()
        changed[row, :, heads] = values[row, :, heads]
        return changed

    return edit_at(site, change, where, label="patch")


class _Patches(NamedTuple):
    """Scores of some patches: their indices along the head, position and pair axes, and what each gave."""

    head: np.ndarray
    pos: np.ndarray
    pair: np.ndarray
    scores: PairScores


def _patched(
    model: HookedModel, pairs: PatchPairs, block: _Block, site: Site, where: Tensor, heads: list[int], chunk_rows: int
) -> Iterator[_Patches]:
    """The patches of one layer that change something, a forward pass at a time."""
    assert site.layer is not None
    head_ids = torch.tensor(heads, device=where.device)
    for part in _acting(block.differs[site.layer], where, heads).split(chunk_rows):
        head, pos, row = part.unbind(1)
        at = where[pos]
        write = _write_rows(site, block.source[site.layer][row[:, None], at], at, head_ids[head])
        start = (site.layer, block.resid[site.layer][row]) if block.resid else None
        logits = rows_logits(model, block.tokens[row], pairs.span, [write], start)
        pair = block.pair[row.cpu()]
        yield _Patches(head.cpu().numpy(), pos.cpu().numpy(), pair.numpy(), score_pairs(logits, pairs, pair))


def _positions(
    pairs: PatchPairs, positions: Sequence[int] | Literal["all"] | None, device: torch.device
) -> tuple[tuple[int, ...], Int[Tensor, "asked k"]]:
    """What the second axis of the scores is called, and the token indices that each entry writes to."""
    if positions == "all":
        return (ALL_POSITIONS,), torch.arange(pairs.span.stop, device=device)[None]
    asked = _among("positions", positions, pairs.span.stop)
    return tuple(asked), torch.tensor(asked, device=device)[:, None]


def patch_sweep(
    model: HookedModel,
    pairs: PatchPairs,
    *,
    component: str = "resid_pre",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Literal["all"] | None = None,
    heads: Sequence[int] | None = None,
    chunk_rows: int = 128,
) -> PatchScores:
    """Scores of the corrupted run with one clean activation patched in: every layer (and head) x position x pair.

    Patches of one layer share forward passes, one row of a batch each, which start at that layer from the corrupted
    run's residual stream where the model can (a `HookedTransformer`). Patches that write what is there already are
    not run: they score as the corrupted run does.

    Memory: the component and the residual stream of `chunk_rows` pairs at every layer, beside one forward pass of
    `chunk_rows` rows.

    Args:
        model: Any hooked model.
        pairs: From `patch_pairs`.
        component: "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out"; "z", "q", "k" or "v" by head.
        layers: Which blocks; all by default.
        positions: Token indices; by default all up to the last that a score depends on. "all" patches all positions
            at once, for a map of layers or heads alone.
        heads: Which heads, for z, q, k and v; all by default.
        chunk_rows: Rows of a forward pass at most.

    Raises:
        ValueError: An unknown component; a layer, position or head that is not there; heads of a component that has
            none.
        QflError: The model has no such hook point.

    References:
        Vig et al. 2020 (arXiv 2004.12265); Meng et al. 2022 (arXiv 2202.05262), causal tracing; Heimersheim and Nanda
        2024 (arXiv 2404.15255), "denoising".
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}.")
    places = resolve_places(model, pairs, component, layers, heads)
    used_layers, used_heads = (list(dict.fromkeys(column)) for column in zip(*places, strict=True))
    asked, where = _positions(pairs, positions, model_device(model))
    clean, corrupted = (end_scores(model, pairs, t, chunk_rows) for t in (pairs.clean, pairs.corrupted))
    shape = (len(used_layers), len(used_heads), len(asked), len(pairs))
    # What is not run scores as the corrupted run.
    scores = PairScores(*(np.broadcast_to(end, shape).copy() for end in corrupted))
    for pair in torch.arange(len(pairs)).split(chunk_rows):
        block = _capture_block(model, pairs, pair, component, used_layers)
        for number, layer in enumerate(used_layers):
            for part in _patched(model, pairs, block, Site(layer, component), where, used_heads, chunk_rows):
                for array, values in zip(scores, part.scores, strict=True):
                    array[number, part.head, part.pos, part.pair] = values
    logit_diff, loss, exact = (array.reshape(len(places), len(asked), len(pairs)) for array in scores)
    return PatchScores(component, places, asked, logit_diff, loss, exact, clean, corrupted)
