"""Activations where they are read: the sites, layers and positions asked for, and nothing else computed or kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.data.task import NO_POSITION
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import HookedModel, is_hooked_transformer, layer_count, model_device
from qfl_interp.models.fast_forward import fast_resid
from qfl_interp.models.forward import is_fast
from qfl_interp.models.hooks import Intervention, Site, interventions_on
from qfl_interp.shapes import Tokens
from qfl_interp.sites import PROBE_SITES, SITES
from qfl_interp.threads import on_every_core

# Examples a forward pass, where the caller does not say: what a core's cache holds of a small model's stream.
CHUNK = 64


class Place(NamedTuple):
    """Where in the model an activation is, given its site's name.

    Attributes:
        layer: Block, counted from 0.
        head: Head, counted from 0; -1 where the site has none.
    """

    layer: int
    head: int = -1


class ReadOut(NamedTuple):
    """Activations of one feature.

    Attributes:
        x: The activation at each place and each label's position; zeros where an example has no such label.
        present: Which examples have the label.
    """

    x: Float[Tensor, "place label example d"]
    present: Bool[Tensor, "label example"]


class SiteSpan(NamedTuple):
    """One site's activations over a stretch of positions.

    Attributes:
        name: The site's, as in `qfl_interp.models.hooks.Site`.
        places: Layers, in the order asked for; at a site with heads every head of each.
        first: Token index of the first position kept.
        values: On the CPU; in the model's dtype, or in the store's where they are mapped from its file.
    """

    name: str
    places: tuple[Place, ...]
    first: int
    values: Float[Tensor, "place pos example d"]

    def __repr__(self) -> str:
        n_places, n_pos, n_examples, d = self.values.shape
        return (
            f"SiteSpan({self.name!r}: {n_places} places, positions {self.first} to {self.first + n_pos - 1}, "
            f"{n_examples:,} examples, width {d}, {str(self.values.dtype).removeprefix('torch.')})"
        )

    def read(self, positions: Int[np.ndarray, "example label"]) -> ReadOut:
        """The activations at `positions`; a view where every example reads the same ones, in a row or all the same.

        Raises:
            ValueError: A position is outside the span, or the examples are not as many.
        """
        n_pos, n_examples = self.values.shape[1:3]
        if len(positions) != n_examples:
            raise ValueError(
                f"positions must have a row for each of the {n_examples} examples of {self.name!r}, got "
                f"{len(positions)}. Read with the examples that were captured."
            )
        present = positions != NO_POSITION
        last = self.first + n_pos - 1
        if present.any() and (positions[present].min() < self.first or positions[present].max() > last):
            raise ValueError(
                f"positions must lie in the span [{self.first}, {last}], got "
                f"[{positions[present].min()}, {positions[present].max()}]. Capture them first."
            )
        if present.all() and (positions == positions[:1]).all():
            index = positions[0] - self.first
            if (np.diff(index) == 1).all():
                x = self.values[:, index[0] : index[-1] + 1]
            elif (np.diff(index) == 0).all():
                x = self.values[:, index[0] : index[0] + 1].expand(-1, len(index), -1, -1)
            else:
                x = self.values[:, index]
            return ReadOut(x, torch.ones(x.shape[1:3], dtype=torch.bool))
        index = torch.from_numpy(np.where(present, positions - self.first, 0).T.copy())
        x = self.values[:, index, torch.arange(len(positions))]
        kept = torch.from_numpy(present.T.copy())
        return ReadOut(x * kept[..., None], kept)


def site_span(
    model: HookedModel,
    tokens: Tokens,
    first: int,
    last: int,
    *,
    name: str = "resid_post",
    layers: Sequence[int] | None = None,
    chunk: int = CHUNK,
) -> SiteSpan:
    """One site's activations of every example at the positions `first` to `last`, `[place, pos, example, d]`.

    `site_spans` of one name; arguments and errors are its.
    """
    return site_spans(model, tokens, first, last, names=(name,), layers=layers, chunk=chunk)[name]


def site_spans(
    model: HookedModel,
    tokens: Tokens,
    first: int,
    last: int,
    *,
    names: Sequence[str],
    layers: Sequence[int] | None = None,
    chunk: int = CHUNK,
) -> dict[str, SiteSpan]:
    """Several sites' activations of every example at the positions `first` to `last`, inclusive, by name, in memory.

    Only what is asked for is computed: no token after `last`, nothing after the last hook point that is read.
    `resid_post` of a model that `is_fast` accepts comes from `fast_resid`, everything else from one hooked pass, so
    that a site's values do not depend on which others are captured with it.

    Where layers differ in width, all are filled up with zeros to the width of the widest one.

    Memory: the result, `n_places (last - first + 1) examples d` numbers a name; one chunk's forward pass; and one
    chunk's share of the result once more. For more than fits take `qfl_interp.activations.store.ActivationStore`.

    Args:
        model: Any hooked model.
        tokens: Whole sequences.
        first: First position kept.
        last: Last position kept.
        names: Sites with a position: one or more of `qfl_interp.sites.PROBE_SITES`.
        layers: Blocks counted from 0, in the order they are wanted; all by default.
        chunk: Examples a forward pass.

    Raises:
        ValueError: The span is empty or outside the sequence; no examples; an unknown or repeated name or layer.
        QflError: The model has no such hook point, or its activation there is not [batch, pos, d] ([batch, pos, head,
            d_head] at a head's site), or the result does not fit into memory.
    """
    layers = range(layer_count(model)) if layers is None else layers
    kept: dict[str, Tensor] = {}
    start = 0
    for parts in stream_spans(model, tokens, first, last, names=names, layers=layers, chunk=chunk):
        for name, by_layer in parts.items():
            n_heads, n_pos, n_examples, d = by_layer[0].shape
            if name not in kept:
                needed = len(layers) * n_heads * n_pos * len(tokens) * d * by_layer[0].element_size()
                what = f"activations {name!r} of {len(layers)} layers at {n_pos} positions of {len(tokens):,} examples"
                require_memory(needed, available_bytes(), what, "Take fewer examples or layers, or an ActivationStore.")
                kept[name] = by_layer[0].new_empty(len(layers), n_heads, n_pos, len(tokens), d)
            for index, part in enumerate(by_layer):
                kept[name][index, :, :, start : start + n_examples] = part
        start += n_examples
    return {name: SiteSpan(name, places(name, layers, x.shape[1]), first, x.flatten(0, 1)) for name, x in kept.items()}


def places(name: str, layers: Sequence[int], n_heads: int) -> tuple[Place, ...]:
    """The places of a site in some layers, layer by layer; every head of each where the site has heads."""
    heads = range(n_heads) if SITES[name].has_heads else (-1,)
    return tuple(Place(layer, head) for layer in layers for head in heads)


def check_span(tokens: Tokens, first: int, last: int, names: Sequence[str], layers: Sequence[int] | None) -> None:
    """Refuse what cannot be captured of any model.

    Raises:
        ValueError: As `site_spans`, but for layers that the model does not have.
    """
    if not 0 <= first <= last < tokens.shape[1]:
        raise ValueError(f"first and last must satisfy 0 <= first <= last < {tokens.shape[1]}, got {first}, {last}.")
    if len(tokens) == 0:
        raise ValueError("tokens must hold at least one example, got 0. Draw some.")
    if not names or len(set(names)) < len(names) or not set(names) <= set(PROBE_SITES):
        raise ValueError(f"names must be one or more different ones of {list(PROBE_SITES)}, got {list(names)}.")
    if layers is not None and (not layers or len(set(layers)) < len(layers)):
        raise ValueError(f"layers must be one or more different ones, got {list(layers)}. Leave them out for all.")


def stream_spans(
    model: HookedModel,
    tokens: Tokens,
    first: int,
    last: int,
    *,
    names: Sequence[str],
    layers: Sequence[int],
    chunk: int = CHUNK,
) -> Iterator[dict[str, list[Float[Tensor, "head pos batch d"]]]]:
    """What `site_spans` collects, `chunk` examples at a time: by name, a tensor on the CPU for each layer.

    The first axis is 1 at a site without heads. Memory: one chunk's forward pass and what is yielded. Arguments and
    errors are those of `site_spans`; they are checked in this call, before the first chunk is asked for.
    """
    check_span(tokens, first, last, names, layers)
    n_layers = layer_count(model)
    if not all(0 <= layer < n_layers for layer in layers):
        raise ValueError(f"layers must lie in [0, {n_layers}), got {list(layers)}. Layers count from 0.")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    return _stream(model, tokens[:, : last + 1], first, list(names), list(layers), chunk)


def _stream(
    model: HookedModel, tokens: Tokens, first: int, names: list[str], layers: list[int], chunk: int
) -> Iterator[dict[str, list[Float[Tensor, "head pos batch d"]]]]:
    """The chunks; `tokens` end at the last position."""
    device = model_device(model)
    fast = model if "resid_post" in names and is_hooked_transformer(model) and is_fast(model) else None
    sites = [Site(layer, name) for layer in layers for name in names if fast is None or name != "resid_post"]

    width = getattr(model, "widest", 0)

    def read(part: Tensor) -> dict[str, list[Tensor]]:
        part = part.to(device)
        found = _read(model, part, sites, first) if sites else {}
        if fast is not None:
            resid = fast_resid(fast, part, layers, slice(first, part.shape[1]))
            found |= {Site(layer): resid[:, i].transpose(0, 1)[None] for i, layer in enumerate(layers)}
        return {name: [_filled(found[Site(layer, name)].cpu(), width) for layer in layers] for name in names}

    # Hooks belong to a model, not to a thread: only passes without any run side by side.
    together = not sites and device.type == "cpu"
    return on_every_core(read, tokens.split(chunk)) if together else map(read, tokens.split(chunk))


def _filled(x: Tensor, width: int) -> Tensor:
    """Activations with zeros behind them up to a width."""
    return torch.nn.functional.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x


class _AllRead(Exception):
    """Every site was read: the rest of the forward pass is not needed."""


# On `_read` and not on the generator, whose caller's gradient mode would change with it between two chunks.
@torch.no_grad()
def _read(model: HookedModel, tokens: Tokens, sites: Sequence[Site], first: int) -> dict[Site, Tensor]:
    """The activations from `first` on, [head, pos, batch, d]; the forward pass ends where the last one is read."""
    read: dict[Site, Tensor] = {}

    def reader(site: Site) -> Intervention:
        def take(activation: Tensor) -> Tensor:
            by_head = _by_head(site, activation, tokens)
            # A copy of its own: a view would keep the whole activation, and a model may add to it in place.
            read[site] = by_head[:, first:].permute(2, 1, 0, 3).clone(memory_format=torch.contiguous_format)
            if len(read) == len(sites):
                raise _AllRead
            return activation

        return Intervention(site, take, "read")

    with interventions_on(model, [reader(site) for site in sites]):
        try:
            model(tokens)
        except _AllRead:
            pass
    return read


def _by_head(site: Site, activation: Tensor, tokens: Tokens) -> Float[Tensor, "batch pos head d"]:
    """A hook point's activation with a head axis, of size 1 at a site without heads."""
    kind = SITES[site.name]
    if activation.shape[:2] != tokens.shape[:2] or activation.ndim != 1 + len(kind.axes):
        raise QflError(
            f"{site.name!r} must be {kind.shape} to be read by position, got {list(activation.shape)} for tokens "
            f"{list(tokens.shape)} at {site.hook_name}. This model keeps something else there: read another site."
        )
    return activation if kind.has_heads else activation[:, :, None]
