"""What each way costs: multiplications and additions in matrix products, for each parameter of the model."""

from __future__ import annotations

from qfl_interp.curvature.token_losses import ScoredTokens

# How many operations of "layers" take the time of one of "jvp", which moves more memory, and the time in which "layers"
# writes and reads a token's whole gradient. Of 2 to 50 directions, three-digit addition (d_model 32 to 512) and 16-bit
# addition (32 to 256) they choose the faster way everywhere, on one thread of an AMD EPYC.
_JVP_SLOWER, _GRADIENT = 1.45, 40


def layer_operations(scored: ScoredTokens, n_directions: int) -> float:
    """Of "layers": every token's own forward and backward pass, its gradients, and their products with directions."""
    n_read = int((scored.position + 1).sum())
    return 6 * n_read + 2 * n_directions * len(scored)


def jvp_operations(scored: ScoredTokens, n_directions: int) -> float:
    """Of "jvp": a forward pass of every sequence, and two more a direction, `x dW` and `dx W`."""
    return (2 + 4 * n_directions) * scored.tokens.numel()


def jvp_is_faster(scored: ScoredTokens, n_directions: int) -> bool:
    """Whether forward mode is the faster of the two ways: for few directions, more the more tokens a sequence has.

    Counted, not timed: the same call takes the same way, and gives the same bits, whatever else a machine does.
    """
    layers = layer_operations(scored, n_directions) + _GRADIENT * len(scored)
    return _JVP_SLOWER * jvp_operations(scored, n_directions) < layers
