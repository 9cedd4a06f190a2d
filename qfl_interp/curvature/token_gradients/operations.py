"""What each way costs: multiplications and additions in matrix products, for each parameter of the model."""

from __future__ import annotations

from qfl_interp.curvature.token_losses import ScoredTokens

# How many operations of "layers" take the time of one of "jvp", which moves more memory: with 1 to 50 directions and
# d_model 32 and 128 between 0.8 and 1.8 on one thread of an AMD EPYC.
_JVP_SLOWER = 1.3


def layer_operations(scored: ScoredTokens, n_directions: int) -> float:
    """Of "layers": every token's own forward and backward pass, its gradients, and their products with directions."""
    n_read = int((scored.position + 1).sum())
    return 6 * n_read + 2 * n_directions * len(scored)


def jvp_operations(scored: ScoredTokens, n_directions: int) -> float:
    """Of "jvp": a forward pass of every sequence, and two more a direction, `x dW` and `dx W`."""
    return (2 + 4 * n_directions) * scored.tokens.numel()


def jvp_is_faster(scored: ScoredTokens, n_directions: int) -> bool:
    """Whether forward mode is the faster of the two ways: for few directions, more the more tokens a sequence has."""
    return _JVP_SLOWER * jvp_operations(scored, n_directions) < layer_operations(scored, n_directions)
