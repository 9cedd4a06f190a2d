"""Affine planes of probes and projecting out what crosses them, as an intervention: the paper's feature ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from qfl_interp.interventions.edits import BatchRows, RowInterventions, edit_at, require_strength
from qfl_interp.models.hooks import Intervention, Site
from qfl_interp.probes.result import independent_rows


def affine_projection(
    directions: Float[Tensor, "*label k d_model"], offsets: Float[Tensor, "*label k"]
) -> tuple[Float[Tensor, "*label k d_model"], Float[Tensor, "*label k"]]:
    """Orthonormal rows and offsets with the same solution set `{x: W x + b = 0}`.

    From the reduced QR decomposition of W': W = R' Q', so `W x + b = 0` where `Q' x + R'^-1 b = 0`. For one row this is
    `w / |w|` and `b / |w|`.

    Raises:
        ValueError: A direction is zero or the directions are linearly dependent.
    """
    rows = directions.double()
    if rows.shape[-2] > rows.shape[-1]:
        raise _unusable(directions)
    q, r = torch.linalg.qr(rows.mT)
    # What each row adds to the ones before it, against its own length: rows may differ in scale.
    added = r.diagonal(dim1=-2, dim2=-1).abs()
    if not bool(torch.isfinite(rows).all()) or bool((added <= 1e-9 * rows.norm(dim=-1)).any()):
        raise _unusable(directions)
    shifted = torch.linalg.solve_triangular(r.mT, offsets.double().unsqueeze(-1), upper=False).squeeze(-1)
    return q.mT, shifted


def _unusable(directions: Tensor) -> ValueError:
    """The error for directions that span less than they count."""
    return ValueError(
        "directions must be finite and linearly independent; found a zero, dependent or non-finite row in "
        f"{tuple(directions.shape)}. Drop redundant directions (softmax probes: leave one class out)."
    )


def _check_planes(directions: Tensor, offsets: Tensor, positions: Tensor | None) -> None:
    """Raise ValueError unless the shapes of `project_out`'s arguments fit; broadcasting would hide a mistake."""
    if (directions.ndim == 3) != (positions is not None):
        raise ValueError(
            "positions go with directions of shape [label, k, d_model] and only with them, "
            f"got directions {tuple(directions.shape)} and positions "
            f"{None if positions is None else tuple(positions.shape)}."
        )
    if 0 in directions.shape:
        raise ValueError(
            f"directions must hold at least one row, got {tuple(directions.shape)}: nothing would be removed."
        )
    if offsets.shape != directions.shape[:-1]:
        raise ValueError(
            f"offsets must hold one number a direction, {tuple(directions.shape[:-1])}, got {tuple(offsets.shape)}."
        )
    if positions is None:
        return
    if positions.shape[1] != len(directions):
        raise ValueError(
            f"positions must have a column for each of {len(directions)} labels, got {tuple(positions.shape)}."
        )


def project_out(
    site: Site,
    directions: Float[Tensor, "*label k d_model"],
    *,
    offsets: Float[Tensor, "*label k"] | None = None,
    positions: Int[Tensor, "#batch label"] | None = None,
    epsilon: float = 1.0,
    joint: bool = True,
) -> Intervention:
    """Remove directions from the activation at a site: `x <- x - eps sum_v (w_v . x + b_v) w_v`.

    With one direction of unit norm and its probe's offset, eps = 1 moves the activation onto the probe's decision
    plane.

    Args:
        site: Where.
        directions: `[k, d_model]`: the same directions at `site.positions`; or `[label, k, d_model]`: the directions of
            each label, at that label's column of `positions`.
        offsets: The probes' intercepts, on the scale of `directions`; zero by default.
        positions: `[batch, label]`, or `[1, label]` for the same positions in every example; negative where an example
            has no such label. Needed with `[label, k, d_model]`, and only then.
        epsilon: Strength; 1 removes the component, 0 changes nothing.
        joint: Use an orthonormal basis of the directions and the joint offset, so that `W x + b = 0` holds afterwards.
            False sums over the separately normalised rows as the paper's code does, which over-subtracts where rows
            are correlated. With one direction both are the same.

    Raises:
        ValueError: Shapes do not fit, two labels of an example share a position, or the directions are none, zero,
            not finite or (joint) dependent; or `epsilon` is not finite.

    References:
        arXiv 2505.03997, feature ablation.
    """
    if offsets is None:
        offsets = torch.zeros(directions.shape[:-1], dtype=torch.float64, device=directions.device)
    require_strength(epsilon)
    _check_planes(directions, offsets, positions)
    if joint:
        unit, shift = affine_projection(directions, offsets)
    else:
        norm = directions.double().norm(dim=-1, keepdim=True)
        if not bool((norm > 0).all() & norm.isfinite().all()):
            raise _unusable(directions)
        unit, shift = directions.double() / norm, offsets.double() / norm.squeeze(-1)

    def remove(x: Tensor) -> Tensor:
        """`x` with the component taken out; x is [..., d_model], or [batch, label, d_model] for 3-D directions."""
        w, b = cut_to(unit, x.shape[-1]).to(x), shift.to(x)
        along = torch.einsum("b l d, l k d -> b l k", x, w) if w.ndim == 3 else x @ w.mT
        back = torch.einsum("b l k, l k d -> b l d", along + b, w) if w.ndim == 3 else (along + b) @ w
        return x - epsilon * back

    return edit_at(site, remove, positions, label="project_out")


def cut_to(directions: Tensor, width: int) -> Tensor:
    """Directions without the zeros that fill a narrower layer up to the widest (`activations.site_spans`)."""
    beyond = directions[..., width:]
    return directions[..., :width] if beyond.numel() and not bool(beyond.any()) else directions


class Planes(NamedTuple):
    """What is projected out: rows of affine planes `w . x + b = 0`, each at one layer and some tokens an example.

    A label's planes at the k best layers are k rows of the same positions; a pooled probe is one row a layer whose
    planes act at many tokens.

    Attributes:
        directions: Probe weights `w`; a row's k outputs are projected out jointly.
        offsets: Probe intercepts `b` on the same scale.
        layers: The block whose activation is changed, for each row.
        positions: Token indices of each row in each example; negative where there is none.
        kept: Which of a row's planes count: an output whose probe could not be fitted has no direction.
        name: The site in the block, one with d_model entries a token.
    """

    directions: Float[Tensor, "row k d_model"]
    offsets: Float[Tensor, "row k"]
    layers: Int[np.ndarray, " row"]
    positions: Int[Tensor, "example row token"]
    kept: Bool[Tensor, "row k"]
    name: str = "resid_post"

    def together(self) -> list[list[int]]:
        """The rows that are projected out as one: those of one layer with, in every example, the same positions.

        Rows without a plane that counts are left out. Sorted by layer.
        """
        groups: dict[tuple[int, bytes], list[int]] = {}
        for row in torch.nonzero(self.kept.any(dim=1)).flatten().tolist():
            place = (int(self.layers[row]), self.positions[:, row].numpy().tobytes())
            groups.setdefault(place, []).append(row)
        return sorted(groups.values(), key=lambda rows: (self.layers[rows[0]], rows))


def joined(parts: Sequence[Planes]) -> Planes:
    """The rows of several planes of one site, one part after the other."""
    k = max(part.kept.shape[1] for part in parts)
    n_tokens = max(part.positions.shape[2] for part in parts)

    def padded(values: Tensor, axis: int, size: int, fill: float = 0.0) -> Tensor:
        shape = list(values.shape)
        shape[axis] = size - shape[axis]
        return torch.cat([values, values.new_full(shape, fill)], dim=axis) if shape[axis] else values

    return Planes(
        torch.cat([padded(part.directions, 1, k) for part in parts]),
        torch.cat([padded(part.offsets, 1, k) for part in parts]),
        np.concatenate([part.layers for part in parts]),
        torch.cat([padded(part.positions, 2, n_tokens, -1) for part in parts], dim=1),
        torch.cat([padded(part.kept, 1, k) for part in parts]),
        parts[0].name,
    )


def independent_planes(planes: Planes) -> Planes:
    """Without the planes whose direction is zero or a combination of those before it at the same place."""
    kept = planes.kept.clone()
    for rows in planes.together():
        at = [(row, int(k)) for row in rows for k in planes.kept[row].nonzero().flatten()]
        independent = set(independent_rows(torch.stack([planes.directions[place] for place in at])))
        for number, place in enumerate(at):
            kept[place] = number in independent
    return planes._replace(kept=kept)


def _as_tensor(positions: Tensor | np.ndarray) -> Tensor:
    """Positions as a tensor of its own; a task may hand out arrays that torch must not write to."""
    return positions.clone() if isinstance(positions, Tensor) else torch.from_numpy(positions.astype(np.int64))


def _chosen(layers: np.ndarray, n_layers: int) -> Tensor:
    """The layers as an index, checked."""
    if layers.size and not 0 <= layers.min() <= layers.max() < n_layers:
        raise ValueError(
            f"layers must lie in [0, {n_layers}), got {layers.min()} to {layers.max()}. Leave out labels without a "
            "fitted probe."
        )
    return torch.from_numpy(layers.astype(np.int64).reshape(-1))


def probe_planes(
    weight: Float[Tensor, "layer label k d_model"],
    intercept: Float[Tensor, "layer label k"],
    fitted: Bool[Tensor, "layer label k"],
    *,
    layers: Integer[np.ndarray, "label top"],
    positions: Integer[np.ndarray | Tensor, "example label"],
    name: str = "resid_post",
) -> Planes:
    """Each label's probes at its own layers and position: rows run over labels, and within a label over its layers.

    Args:
        weight: Probe weights of every block.
        intercept: Their intercepts.
        fitted: Which outputs have a probe.
        layers: The blocks at which each label is projected out, the k best for example.
        positions: Token index of each label in each example; negative where there is none.
        name: The site the probes read.

    Raises:
        ValueError: A layer that the probes do not have.
    """
    chosen = _chosen(layers, len(weight))
    label = torch.arange(layers.shape[0]).repeat_interleave(layers.shape[1])
    return Planes(
        weight[chosen, label],
        intercept[chosen, label],
        chosen.numpy(),
        _as_tensor(positions)[:, label, None],
        fitted[chosen, label],
        name,
    )


def pooled_planes(
    weight: Float[Tensor, "layer k d_model"],
    intercept: Float[Tensor, "layer k"],
    fitted: Bool[Tensor, "layer k"],
    *,
    layers: Integer[np.ndarray, " top"],
    positions: Integer[np.ndarray | Tensor, "example label"],
    name: str = "resid_post",
) -> Planes:
    """One probe a layer, at every token from each example's first label position to its last: one row a layer.

    Args:
        weight: Weights of a probe that was fitted over all positions, of every block.
        intercept: Its intercepts.
        fitted: Which outputs have a probe.
        layers: The blocks at which it is projected out.
        positions: Token index of each label in each example; negative where there is none.
        name: The site the probe reads.

    Raises:
        ValueError: A layer that the probes do not have.

    References:
        arXiv 2505.03997, feature ablation with one direction for all positions.
    """
    chosen = _chosen(layers, len(weight))
    tokens = _from_first_to_last(_as_tensor(positions))[:, None].expand(-1, len(chosen), -1)
    return Planes(weight[chosen], intercept[chosen], chosen.numpy(), tokens, fitted[chosen], name)


def _from_first_to_last(positions: Int[Tensor, "example label"]) -> Int[Tensor, "example token"]:
    """Every token index between an example's first and last label, -1 beyond them."""
    there = positions >= 0
    last = positions.amax(dim=1, keepdim=True)
    first = torch.where(there, positions, last).amin(dim=1, keepdim=True)
    tokens = first + torch.arange(int((last - first).max()) + 1)
    return torch.where((tokens <= last) & (last >= 0), tokens, -1)


def plane_ablation(planes: Planes, *, epsilon: float = 1.0) -> RowInterventions:
    """The interventions that project planes out, for any rows of the batch the positions belong to.

    Rows that share a layer and, in every example, their positions are projected out jointly, all others on their own.

    Args:
        planes: What is projected out.
        epsilon: Strength; 1 removes the component, 0 changes nothing.

    Raises:
        ValueError: No plane counts.
    """
    places: dict[tuple[int, int], list[list[int]]] = {}
    for rows in planes.together():
        places.setdefault((int(planes.layers[rows[0]]), int(planes.kept[rows].sum())), []).append(rows)
    if not places:
        raise ValueError(f"kept must hold at least one plane, got none of {planes.kept.numel()}. Fit probes first.")
    n_tokens = planes.positions.shape[2]
    stacked = {
        place: (
            torch.stack([planes.directions[rows][planes.kept[rows]] for rows in groups]).repeat_interleave(n_tokens, 0),
            torch.stack([planes.offsets[rows][planes.kept[rows]] for rows in groups]).repeat_interleave(n_tokens, 0),
            planes.positions[:, [rows[0] for rows in groups]].flatten(1),
        )
        for place, groups in sorted(places.items())
    }

    def make(rows: BatchRows) -> list[Intervention]:
        return [
            project_out(Site(layer, planes.name), w, offsets=b, positions=positions[rows], epsilon=epsilon)
            for (layer, _), (w, b, positions) in stacked.items()
        ]

    return make
