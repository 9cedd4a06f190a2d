"""What an ablation is compared with: as much taken out or moved at the same places, without the feature's directions.

Three controls: random directions, another feature's directions, and random vectors exactly as long as the ablation's
changes. An effect that they share is that of the disturbance, not of the feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qfl_interp.interventions.edits import BatchRows, RowInterventions, edit_at
from qfl_interp.interventions.planes import Planes, plane_ablation
from qfl_interp.interventions.streams import run_under
from qfl_interp.models.build import HookedModel
from qfl_interp.models.hooks import Intervention, Site
from qfl_interp.shapes import Tokens

# Draws one trial of a control.
Control = Callable[[np.random.Generator], RowInterventions]


@torch.no_grad()
def plane_means(
    model: HookedModel, tokens: Tokens, planes: Planes, *, chunk: int = 256
) -> Float[Tensor, "row d_model"]:
    """Mean activation at each row's layer and tokens over the examples that have them, float64; zero where none has.

    Args:
        model: Any hooked model.
        tokens: The examples that the planes' positions belong to.
        planes: Their layers, tokens and site.
        chunk: Examples a pass.

    Raises:
        QflError: The model has no such hook point.
    """
    total = torch.zeros(len(planes.layers), planes.directions.shape[-1], dtype=torch.float64)

    def summed(layer: int, positions: Int[Tensor, "example row place"]) -> Intervention:
        example, there = torch.arange(len(positions))[:, None], positions >= 0

        def read(activation: Tensor) -> Tensor:
            for row in np.flatnonzero(planes.layers == layer):
                x = activation[example, positions[:, row].clamp_min(0)].cpu().double()
                total[row, : x.shape[-1]] += (x * there[:, row, :, None]).sum(dim=(0, 1))
            return activation

        return Intervention(Site(layer, planes.name), read, "summed")

    layers = [int(layer) for layer in np.unique(planes.layers)]
    for start in range(0, len(tokens), chunk):
        rows = slice(start, start + chunk)
        run_under(model, tokens[rows], [summed(layer, planes.positions[rows]) for layer in layers])
    count = (planes.positions >= 0).sum(dim=(0, 2))
    return total / count.clamp_min(1)[:, None]


def through_means(
    planes: Planes, directions: Float[Tensor, "row k d_model"], means: Float[Tensor, "row d_model"]
) -> Planes:
    """The planes with other directions, through the mean activation: what is taken out is the variation along them."""
    offsets = -torch.einsum("r k d, r d -> r k", directions.to(means), means)
    return planes._replace(directions=directions.to(means), offsets=offsets)


def random_planes(planes: Planes, means: Float[Tensor, "row d_model"], rng: np.random.Generator) -> Planes:
    """Planes of the same number, layers and positions in random directions, through the mean activation.

    Directions are independent Gaussian ones of unit norm, and `b = -w . mean`, so that the control takes out the
    activation's variation along `w` without shifting its mean (the paper keeps the trained offset, which also shifts).
    """
    drawn = torch.from_numpy(rng.standard_normal(tuple(planes.directions.shape))).to(means)
    # A layer narrower than the widest one is filled up with zeros: nothing varies there.
    drawn = drawn * ((means != 0) | (planes.directions != 0).any(dim=1))[:, None]
    return through_means(planes, drawn / drawn.norm(dim=-1, keepdim=True), means)


def feature_planes(
    planes: Planes,
    pool: Mapping[int, Float[Tensor, "direction d_model"]],
    means: Float[Tensor, "row d_model"],
    rng: np.random.Generator,
) -> Planes:
    """Planes of the same number, layers and positions along other features' directions, through the mean activation.

    Unlike random ones these point where the model's activations vary. Rows that are projected out jointly get different
    directions.

    `pool` holds other features' probe weights by the layer they were fitted at; a place draws without replacement.

    Raises:
        ValueError: A layer's pool holds fewer directions than one place needs.
    """
    unit = torch.zeros_like(planes.directions, dtype=means.dtype)
    for rows in planes.together():
        layer = int(planes.layers[rows[0]])
        kept = planes.kept[rows]
        offered = pool.get(layer, torch.empty(0, unit.shape[-1]))
        if len(offered) < int(kept.sum()):
            raise ValueError(
                f"pool must hold at least {int(kept.sum())} directions of layer {layer}, which one place projects out, "
                f"got {len(offered)}. Add other features' probes or leave this control out."
            )
        drawn = offered[torch.from_numpy(rng.permutation(len(offered))[: int(kept.sum())])].to(unit)
        chosen = torch.zeros_like(unit[rows])
        chosen[kept] = drawn / drawn.norm(dim=-1, keepdim=True)
        unit[rows] = chosen
    return through_means(planes, unit, means)


class Moves(NamedTuple):
    """How far one intervention moved an activation.

    `positions` are the tokens it changed in each example, -1 beyond the last, and `size` the Euclidean length of the
    change there over everything a token holds, whose `shape` is `(d_model,)` or `(head, d_head)`.
    """

    site: Site
    positions: Int[Tensor, "example move"]
    size: Float[Tensor, "example move"]
    shape: tuple[int, ...]


@torch.no_grad()
def moves_made(model: HookedModel, tokens: Tokens, make: RowInterventions, *, chunk: int = 256) -> list[Moves]:
    """How far each of the interventions moves the activations of each example, in the order they are installed.

    One number a token and intervention is kept.

    Raises:
        QflError: A hook point does not exist or did not fire.
    """
    parts: list[list[Tensor]] = []
    shapes: dict[int, tuple[int, ...]] = {}
    sites: list[Site] = []

    def watched(index: int, intervention: Intervention, into: list[Tensor]) -> Intervention:
        def fn(x: Tensor) -> Tensor:
            changed = intervention.fn(x)
            into.append((changed - x).flatten(2).norm(dim=-1).cpu())
            shapes[index] = tuple(x.shape[2:])
            return changed

        return Intervention(intervention.site, fn, "watched")

    for start in range(0, len(tokens), chunk):
        rows = slice(start, min(start + chunk, len(tokens)))
        made = make(rows)
        sites = [intervention.site for intervention in made]
        sizes: list[list[Tensor]] = [[] for _ in made]
        watchers = [watched(i, intervention, sizes[i]) for i, intervention in enumerate(made)]
        run_under(model, tokens[rows], watchers)
        parts.append([torch.cat(size) for size in sizes])
    return [
        _where_moved(site, torch.cat(size), shapes[index])
        for index, (site, size) in enumerate(zip(sites, zip(*parts, strict=True), strict=True))
    ]


def _where_moved(site: Site, size: Float[Tensor, "example pos"], shape: tuple[int, ...]) -> Moves:
    """Sizes at every token -> the tokens with a change, side by side."""
    moved = size > 0
    most = int(moved.sum(dim=1).max())
    # A stable sort puts the moved tokens first and keeps their order.
    positions = (~moved).int().sort(dim=1, stable=True).indices[:, :most]
    size = size.gather(1, positions)
    return Moves(site, torch.where(size > 0, positions, -1), size, shape)


def same_norm(moves: Sequence[Moves], rng: np.random.Generator) -> RowInterventions:
    """Random vectors added where an ablation changed something, each exactly as long as its change there.

    Directions are independent and uniform for every example and token. Holds one vector for each of them, float32.
    """
    drawn = []
    for move in moves:
        noise = torch.from_numpy(rng.standard_normal((*move.size.shape, int(np.prod(move.shape))), dtype=np.float32))
        drawn.append((noise * (move.size / noise.norm(dim=-1))[..., None]).unflatten(-1, move.shape))

    def make(rows: BatchRows) -> list[Intervention]:
        return [
            _add(move.site, vectors[rows], move.positions[rows]) for move, vectors in zip(moves, drawn, strict=True)
        ]

    return make


def _add(site: Site, vectors: Tensor, positions: Int[Tensor, "batch move"]) -> Intervention:
    """An intervention that adds a vector to an activation at each of the positions."""
    return edit_at(Site(site.layer, site.name), lambda x: x + vectors.to(x), positions, label="same_norm")


def plane_controls(
    planes: Planes,
    means: Float[Tensor, "row d_model"],
    *,
    moves: Sequence[Moves] | None = None,
    pool: Mapping[int, Float[Tensor, "direction d_model"]] | None = None,
    epsilon: float = 1.0,
) -> dict[str, Control]:
    """The controls of a projection by name: "random", and where their needs are given "feature" and "same_norm".

    Args:
        planes: What the ablation projects out.
        means: As for `random_planes`: `plane_means`.
        moves: What the ablation did, for "same_norm".
        pool: Other features' directions, for "feature".
        epsilon: The ablation's strength.
    """
    controls: dict[str, Control] = {
        "random": lambda rng: plane_ablation(random_planes(planes, means, rng), epsilon=epsilon)
    }
    if pool is not None:
        controls["feature"] = lambda rng: plane_ablation(feature_planes(planes, pool, means, rng), epsilon=epsilon)
    if moves is not None:
        controls["same_norm"] = lambda rng: same_norm(moves, rng)
    return controls
