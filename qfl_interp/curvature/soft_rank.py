"""Soft ranks of features: how many directions their Gram matrix spreads over, without a threshold.

With `lambda_j` the eigenvalues of `K = X X'`, the Gram matrix of features `X` [example, d], and
`p_j = lambda_j / tr K`:

| name | formula | Rényi order |
| --- | --- | --- |
| `stable_rank` | `tr K / |K|_op` | infinity |
| `participation_ratio` | `(tr K)^2 / |K|_F^2` | 2 |
| `entropy_rank` | `exp(-sum p log p)` | 1 |
| `gradient_weighted` | `tr K tr(C K) / tr(C K^2)`, `C` the Gram matrix of the residuals | - |

`1 <= stable <= participation <= entropy <= rank` and `participation <= stable^2`; `stable <= gradient_weighted`. All
are invariant under `X -> c X Q` with `Q` orthogonal.

Marks as everywhere in this part of the library: that a soft rank variant occurs in the Taylor coefficients of a step is
said by the source [A]; which one is not known to us, and these four are our reconstruction [R].

References:
    D. Terjék, Feature Learning Beyond the Edge of Stability (arXiv 2502.13110).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Below this share of the features' norm what centring leaves is rounding; float64 keeps sixteen digits.
_ROUNDING = 1e-12
# How far a Gram matrix may be from symmetric and positive semidefinite, relative to its largest entry: float32 sums.
_GRAM = 1e-4


class SoftRanks(NamedTuple):
    """The soft ranks of one set of features that need no residuals.

    Attributes:
        stable_rank: `tr K / |K|_op`; the one called "soft rank" without a further word.
        participation_ratio: `(tr K)^2 / |K|_F^2`.
        entropy_rank: `exp(-sum p log p)`.
    """

    stable_rank: float
    participation_ratio: float
    entropy_rank: float


def soft_ranks(features: Float[Tensor, "example d"], *, centre: bool = False) -> SoftRanks:
    """The soft ranks of features, from the smaller of their Gram matrix and `X' X` (the same non-zero spectrum).

    Args:
        features: One row an example, on any device, in any precision; computed in float64.
        centre: Subtract the mean over examples first. Features of a deep homogeneous network, or of a residual stream,
            share a large common direction, which keeps the uncentred values near 1.

    Raises:
        ValueError: Fewer than 2 examples, an entry that is not finite, features that are all zero; with `centre` also
            features that are the same in every example.
    """
    if len(features) < 2:
        raise ValueError(
            f"features must hold at least 2 examples, got {len(features)}: of one example every rank is 1 and the "
            "centred ones do not exist. Take more examples."
        )
    x = _scaled(features, "features")
    if centre:
        # A common offset is larger than what is left, so the means are subtracted before anything is squared.
        length = float(x.norm())
        x = x - x.mean(dim=0)
        if float(x.norm()) <= _ROUNDING * length:
            raise ValueError(
                f"features must differ between examples to be centred, got {len(x)} rows that are the same. "
                "Take centre=False, or other examples."
            )
        x = x / x.abs().max()
    return _of_spectrum(torch.linalg.eigvalsh(x @ x.mT if len(x) <= x.shape[1] else x.mT @ x))


def gradient_weighted(
    gram: Float[Tensor, "example example"], residual_gram: Float[Tensor, "residual residual"]
) -> float:
    """`tr K tr(C K) / tr(C K^2)`: the soft rank of the features as the residuals see them.

    For the last layer alone and the squared error it is the inverse of the normalised sharpness along the step,
    exactly; over all residuals its smallest value is the stable rank, and `C` proportional to the identity gives the
    participation ratio.

    Args:
        gram: `K`, the Gram matrix of the last hidden layer's features.
        residual_gram: `C = B B'`, that of the loss's derivatives by the outputs.

    Raises:
        ValueError: Of either matrix: fewer than 2 examples, an entry that is not finite, all zeros, or not symmetric
            positive semidefinite; another number of examples; or residuals for which the features vanish
            (`C K^2 = 0`).
    """
    if residual_gram.shape != gram.shape:
        raise ValueError(
            f"residual_gram must have the gram's shape {tuple(gram.shape)}, got {tuple(residual_gram.shape)}. "
            "Form both from the same examples."
        )
    k, c = _gram(gram, "gram"), _gram(residual_gram, "residual_gram")
    ck = c @ k
    weighted = float((ck * k.mT).sum())
    if weighted <= 0:
        raise ValueError(
            "gradient_weighted needs residuals at examples whose features are not zero, got tr(C K^2) = "
            f"{weighted:.3g}. Take other examples."
        )
    return float(k.trace()) * float(ck.trace()) / weighted


def _scaled(matrix: Tensor, name: str) -> Tensor:
    """The matrix in float64 divided by its largest entry, so that no square overflows or vanishes."""
    values = matrix.detach().double()
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} must be finite, got {bad} of {values.numel()} entries that are not. Has it diverged?")
    if largest == 0:
        raise ValueError(f"{name} must have a non-zero entry, got {tuple(matrix.shape)} zeros: no rank exists.")
    return values / largest


def _gram(matrix: Tensor, name: str) -> Tensor:
    """A Gram matrix in float64, scaled and checked, its rounding asymmetry removed."""
    if len(matrix) < 2:
        raise ValueError(f"{name} must be of at least 2 examples, got {len(matrix)}. Take more examples.")
    values = _scaled(matrix, name)
    asymmetry = float((values - values.mT).abs().max())
    lowest = float(values.diagonal().min())
    if asymmetry > _GRAM or lowest < -_GRAM:
        raise ValueError(
            f"{name} must be symmetric and positive semidefinite, got an asymmetry of {asymmetry:.3g} and a lowest "
            f"diagonal entry of {lowest:.3g} of its largest entry. Pass features @ features.T."
        )
    return (values + values.mT) / 2


def _of_spectrum(eigenvalues: Float[Tensor, " eigenvalue"]) -> SoftRanks:
    """The soft ranks from eigenvalues in ascending order, the smallest of which may be below 0 by rounding."""
    top = float(eigenvalues[-1])
    if float(eigenvalues[0]) < -_GRAM * top:
        raise ValueError(
            f"gram must be positive semidefinite, got eigenvalues from {float(eigenvalues[0]):.3g} to {top:.3g} of its "
            "largest entry. Pass features @ features.T."
        )
    share = eigenvalues.clamp_min(0)
    share = share / share.sum()
    return SoftRanks(
        stable_rank=1 / float(share[-1]),
        participation_ratio=1 / float((share**2).sum()),
        entropy_rank=float(torch.exp(-torch.xlogy(share, share).sum())),
    )
