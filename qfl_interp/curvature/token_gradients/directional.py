"""First and second derivatives along directions by forward mode: any hooked model, no weight gradient is formed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.token_losses import TokenLoss
from qfl_interp.models.build import layer_count
from qfl_interp.shapes import compact_repr

# Sequences in a chunk, where memory allows: enough rows for matrix products to be fast.
_SEQUENCES = 64


class TokenProjections(NamedTuple):
    """Every scored token's loss and its derivative along every direction.

    Attributes:
        gradients: `<b, dL(x) / dtheta>`, nats per unit of length along b.
        losses: L(x), nats.
    """

    gradients: Float[Tensor, "token direction"]
    losses: Float[Tensor, " token"]

    __repr__ = compact_repr


def jvp_projections(
    loss: TokenLoss,
    parameters: Mapping[str, Tensor],
    directions: Float[Tensor, "direction parameter"],
    *,
    max_bytes: int,
) -> TokenProjections:
    """Losses and derivatives along directions; arguments as for `project_gradients`, checked."""
    gradients = _along(loss, parameters, directions, order=1, max_bytes=max_bytes)
    return TokenProjections(gradients, loss.values(parameters))


def jvp_curvature(
    loss: TokenLoss,
    parameters: Mapping[str, Tensor],
    directions: Float[Tensor, "direction parameter"],
    *,
    max_bytes: int,
) -> Float[Tensor, "token direction"]:
    """Second derivatives along directions; arguments as for `project_curvature`, checked."""
    return _along(loss, parameters, directions, order=2, max_bytes=max_bytes)


def _along(
    loss: TokenLoss, parameters: Mapping[str, Tensor], directions: Tensor, *, order: int, max_bytes: int
) -> Float[Tensor, "token direction"]:
    """Derivatives of an order along directions, some sequences and some directions at a time."""
    weights, sequence = len(loss.space) * loss.dtype.itemsize, _bytes_per_sequence(loss) << order
    n_directions = min(len(directions), max(1, max_bytes // (weights + _SEQUENCES * sequence)))
    n_sequences = max(1, (max_bytes // n_directions - weights) // sequence)
    rows = []
    for part in loss.chunks(n_sequences):
        function: Callable[[Any], Tensor] = part

        def along(direction: Tensor, function: Callable[[Any], Tensor] = function) -> Tensor:
            tangent = loss.space.unflatten(direction)
            for _ in range(order):
                function = _derivative(function, tangent)
            return function(dict(parameters))

        columns = [torch.func.vmap(along)(some) for some in directions.split(n_directions)]
        rows.append(torch.cat(columns).t())
    return torch.cat(rows)


def _derivative(function: Callable[[Any], Tensor], tangent: Mapping[str, Tensor]) -> Callable[[Any], Tensor]:
    """The function's derivative along `tangent`, again a function of the parameters."""
    return lambda parameters: torch.func.jvp(function, (parameters,), (dict(tangent),))[1]


def _bytes_per_sequence(loss: TokenLoss) -> int:
    """Working memory of one sequence's activations, as measured: what lives at once, without its derivatives."""
    layer_count(loss.model)  # raises for a model without a configuration
    cfg: Any = loss.model.cfg
    n_pos = loss.scored.tokens.shape[1]
    widest = cfg.d_vocab + 2 * cfg.d_model + (cfg.d_mlp or 0) + cfg.n_heads * n_pos
    return 8 * n_pos * widest * loss.dtype.itemsize
