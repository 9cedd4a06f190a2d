"""What a model of transformer blocks costs, told from its sizes; the only place with these formulas."""

from __future__ import annotations


def nominal_flops(*, d_model: int, n_layers: int, n_ctx: float, attn_only: bool = False) -> float:
    """Nominal training FLOPs of one token, forward and backward, as the quiet-features paper counts.

    `6 F` with `F = 12 n_layers d_model^2 + n_layers n_ctx d_model`. Weights per layer count as `12 d_model^2` whatever
    the real MLP width is, and as `4 d_model^2`, attention's, where there is no MLP, of which the paper has no model;
    embedding, unembedding and padding are left out.

    Args:
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        n_ctx: Mean number of *real* tokens of a sequence, through the first end-of-sequence token.
        attn_only: Whether the blocks have no MLP.

    References:
        arXiv 2505.03997, compute accounting.
    """
    return 6.0 * ((4 if attn_only else 12) * n_layers * d_model**2 + n_layers * n_ctx * d_model)


def matrix_flops(*, weights: int, n_layers: int, d_heads: int, n_ctx: int) -> float:
    """FLOPs of the matrix products of one token of an update, with the real widths and the padding.

    Three times the forward pass (backward counts twice); a multiply-add is two FLOPs. Counts attention over the full
    square (the causal half is not deducted) and the unembedding at every position: the model's cost on a padded batch,
    whatever an implementation saves. Norms, activations and the optimiser are left out.

    Args:
        weights: Numbers in the matrices that a token is multiplied with: those of the blocks and the unembedding.
        n_layers: Number of blocks.
        d_heads: Width of all heads of a block together.
        n_ctx: Padded tokens of a sequence.
    """
    return 3.0 * 2.0 * (weights + n_layers * 2 * n_ctx * d_heads)


def kept_numbers(*, d_model: int, d_heads: int, n_heads: int, n_layers: int, mlp: int, d_vocab: int) -> int:
    """About how many numbers of one token a forward pass keeps for the backward pass.

    `mlp` is the number of a block's MLP matrices times its hidden width.
    """
    return n_layers * (4 * (d_model + d_heads) + mlp + n_heads) + 2 * d_model + min(d_model, d_vocab)
