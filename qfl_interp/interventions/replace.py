"""Replacing activations by zero, by their mean or by another example's: ablations as values, of heads and neurons too.

All of them are `x <- (1 - eps) x + eps r` with a replacement `r`, at per-example positions or at every token.
Projecting directions out is `planes.project_out`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qfl_interp.interventions.edits import edit_at, require_strength
from qfl_interp.models.build import HookedModel, model_device
from qfl_interp.models.hooks import Intervention, Site, read_activations
from qfl_interp.shapes import Tokens

Method = Literal["zero", "mean", "resample"]


def zero(
    site: Site,
    positions: Int[Tensor, "#batch label"] | None = None,
    *,
    units: Sequence[int] | None = None,
    epsilon: float = 1.0,
) -> Intervention:
    """Zero ablation: `x <- (1 - eps) x`.

    Args:
        site: Where.
        positions: Token index of each label in each example, negative where there is none; by default every token, or
            those of the site.
        units: Heads of q, k, v and z, or entries of the last axis (neurons of mlp_post); all by default.
        epsilon: Strength; 1 replaces, 0 changes nothing.

    Raises:
        ValueError: A site without tokens; two labels of an example share a position; no unit; `epsilon` not finite.
    """
    return replace(site, lambda x: torch.zeros_like(x), positions, units=units, epsilon=epsilon, label="zero")


def mean(
    site: Site,
    value: Float[Tensor, "place ..."],
    positions: Int[Tensor, "#batch label"] | None = None,
    *,
    units: Sequence[int] | None = None,
    epsilon: float = 1.0,
) -> Intervention:
    """Mean ablation: `x <- (1 - eps) x + eps mean`.

    `value` takes the activation's place, for each label; without `positions` for each token of the site. `mean_of`
    computes it. The other arguments and the errors are those of `zero`, and a `ValueError` for a `value` that does not
    fit the activation.
    """
    return replace(site, lambda x: value.to(x)[None], positions, units=units, epsilon=epsilon, label="mean")


def resample(
    site: Site,
    donors: Float[Tensor, "batch place ..."],
    positions: Int[Tensor, "#batch label"] | None = None,
    *,
    units: Sequence[int] | None = None,
    epsilon: float = 1.0,
) -> Intervention:
    """Resample ablation: `x <- (1 - eps) x + eps (the activation of another example)`.

    `donors` take the activation's place in each example of the pass: rows of what `donors_of` returns. The other
    arguments are those of `zero`.

    Raises:
        ValueError: As for `zero`; or `donors` do not fit the activation.

    References:
        Chan et al. (2022), Causal scrubbing.
    """
    return replace(site, lambda x: donors.to(x), positions, units=units, epsilon=epsilon, label="resample")


def replace(
    site: Site,
    value: Callable[[Tensor], Tensor],
    positions: Int[Tensor, "#batch label"] | None = None,
    *,
    units: Sequence[int] | Int[Tensor, " batch"] | None = None,
    epsilon: float = 1.0,
    label: str = "replace",
) -> Intervention:
    """The intervention `x <- (1 - eps) x + eps value(x)` on some units: what the ablations above have in common.

    `value` takes the activation `[batch, place, ...]` to its replacement; a batch axis of 1 is repeated. `units` are
    the same in every example, or, as a tensor, one unit for each example of the pass. The other arguments are those of
    `zero`; `label` is what the intervention's repr says.

    Raises:
        ValueError: As for `zero`; or, in the pass, a replacement of another shape or a unit that is not there.
    """
    kind = site.kind
    if kind is not None and not kind.has_positions:
        raise ValueError(
            f"site of an ablation must hold an entry a token, got {site.name!r}, which is {kind.shape}. "
            "Ablate the head at 'z', or write an Intervention of your own."
        )
    require_strength(epsilon)
    if units is not None and len(units) == 0:
        raise ValueError("units must name at least one head or entry, got none: nothing would be done. None is all.")
    axis = -2 if kind is not None and kind.has_heads else -1

    def change(x: Tensor) -> Tensor:
        given = value(x)
        if given.shape[1:] != x.shape[1:] or given.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"a replacement at {site.hook_name} must have the activation's shape {tuple(x.shape)}, got "
                f"{tuple(given.shape)}. Collect it at the same positions of the same examples."
            )
        blended = given if epsilon == 1 else (1 - epsilon) * x + epsilon * given
        return blended.expand_as(x) if units is None else torch.where(_is_unit(x, units, axis, site), blended, x)

    return edit_at(site, change, positions, label=label)


def _is_unit(x: Tensor, units: Sequence[int] | Tensor, axis: int, site: Site) -> Tensor:
    """Which entries belong to the units, broadcastable to the activation."""
    n_units = x.shape[axis]
    chosen = units if isinstance(units, Tensor) else torch.tensor(list(units), dtype=torch.long)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < n_units:
        raise ValueError(
            f"units at {site.hook_name} must lie in [0, {n_units}), got {chosen.tolist()}. "
            "Units are heads of q, k, v and z, and otherwise entries of the last axis."
        )
    chosen = chosen.to(x.device)
    order = torch.arange(n_units, device=x.device)
    if isinstance(units, Tensor):
        is_unit = (order == chosen[:, None]).view(-1, *([1] * (x.ndim - 1 + axis)), n_units)
    else:
        is_unit = torch.isin(order, chosen)
    return is_unit[..., None] if axis == -2 else is_unit


@torch.no_grad()
def activations_at(
    model: HookedModel,
    tokens: Tokens,
    sites: Sequence[Site],
    positions: Int[Tensor, "example label"] | None = None,
    *,
    chunk: int = 256,
) -> dict[Site, Tensor]:
    """Activations at several sites in one pass over the examples: `[example, label, ...]`, on the CPU.

    Args:
        model: Any hooked model.
        tokens: The examples.
        sites: Where.
        positions: Token index of each label in each example; zeros where it is negative. By default every token (or
            those of a site).
        chunk: Examples a pass; beyond the result one chunk's activations are in memory.

    Raises:
        QflError: The model has no such hook point.
    """
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for start in range(0, len(tokens), chunk):
        found = read_activations(model, tokens[start : start + chunk].to(model_device(model)), sites)
        for site, x in found.items():
            parts[site].append(x.cpu() if positions is None else _gathered(x.cpu(), positions[start : start + chunk]))
    return {site: torch.cat(part) for site, part in parts.items()}


def _gathered(x: Tensor, positions: Tensor) -> Tensor:
    """The activation `[batch, pos, ...]` at each example's positions, zero where there is none."""
    taken = x[torch.arange(len(x))[:, None], positions.clamp_min(0)]
    return taken * (positions >= 0).view(*positions.shape, *([1] * (x.ndim - 2)))


def mean_of(
    activations: Float[Tensor, "example place ..."], positions: Int[Tensor, "example place"] | None = None
) -> Float[Tensor, "place ..."]:
    """What `mean` writes: the mean over the examples that have the label, computed in float64; zero where none has.

    Args:
        activations: What `activations_at` returned.
        positions: What it was asked for; by default every example has every place.
    """
    total = activations.double().sum(dim=0)
    if positions is None:
        return (total / len(activations)).to(activations)
    count = (positions >= 0).sum(dim=0).clamp_min(1)
    return (total / count.view(-1, *([1] * (total.ndim - 1)))).to(activations)


def donors_of(
    activations: Float[Tensor, "example place ..."],
    rng: np.random.Generator,
    positions: Int[Tensor, "example place"] | None = None,
) -> Float[Tensor, "example place ..."]:
    """For each example another one's activations, from a random derangement of the examples that have the label.

    Labels that the same examples have share a derangement: their donor is one example.

    Args:
        activations: What `activations_at` returned.
        rng: Draws the derangements.
        positions: What it was asked for; by default every example has every place.

    Raises:
        ValueError: A label that a single example has.
    """
    if positions is None:
        return activations[torch.from_numpy(derangement(len(activations), rng))]
    given = activations.clone()
    patterns, which = torch.unique(positions >= 0, dim=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        have = torch.nonzero(patterns[:, number]).flatten()
        if len(have):
            giver = have[torch.from_numpy(derangement(len(have), rng))]
            labels = torch.nonzero(which == number).flatten()
            given[have[:, None], labels] = activations[giver[:, None], labels]
    return given


def replacement_by(
    method: Method,
    activations: Float[Tensor, "example place ..."],
    positions: Int[Tensor, "example place"] | None = None,
    rng: np.random.Generator | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """What takes an activation's place, for `replace`: (indices of examples, the activation there) -> replacement.

    `activations` is what `activations_at` returned for the examples and `positions`, not read for "zero"; `rng` draws
    the donors of "resample".

    Raises:
        ValueError: An unknown method; or "resample" without `rng`.
    """
    if method == "zero":
        return lambda _, x: torch.zeros_like(x)
    if method == "mean":
        average = mean_of(activations, positions)[None]
        return lambda _, x: average.to(x)
    if method != "resample":
        raise ValueError(f"method must be 'zero', 'mean' or 'resample', got {method!r}.")
    if rng is None:
        raise ValueError("rng must be given for method 'resample', got None. Pass a numpy Generator.")
    given = donors_of(activations, rng, positions)
    return lambda examples, x: given[examples].to(x)


def derangement(n: int, rng: np.random.Generator) -> Int[np.ndarray, " example"]:
    """A uniformly random permutation of `n` things that leaves none in its place.

    Permutations are drawn until one does, e = 2.7 times on average.

    Raises:
        ValueError: `n` is 1, which has none.
    """
    if n == 1:
        raise ValueError("a derangement needs at least two examples (or none), got 1. Resample from more examples.")
    while True:
        drawn = rng.permutation(n)
        if not bool((drawn == np.arange(n)).any()):
            return drawn
