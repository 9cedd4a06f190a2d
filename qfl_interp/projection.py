"""Projecting directions out of an activation, as an intervention: the paper's feature ablation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qfl_interp.edits import edit_at
from qfl_interp.hooks import Intervention, Site


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
        ValueError: Shapes do not fit, two labels of an example share a position, or the directions are zero, not
            finite or (joint) dependent.

    References:
        arXiv 2505.03997, feature ablation.
    """
    if offsets is None:
        offsets = torch.zeros(directions.shape[:-1], dtype=torch.float64, device=directions.device)
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
        w, b = unit.to(x), shift.to(x)
        along = torch.einsum("b l d, l k d -> b l k", x, w) if w.ndim == 3 else x @ w.mT
        back = torch.einsum("b l k, l k d -> b l d", along + b, w) if w.ndim == 3 else (along + b) @ w
        return x - epsilon * back

    return edit_at(site, remove, positions, label="project_out")
