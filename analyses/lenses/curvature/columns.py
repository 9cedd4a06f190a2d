"""What the columns of the tables of curvature are: docs/curvature.md has the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import ANALYSIS, COUNT, LOSS_UNIT, RUN, Column, Columns, how_far


def _eigenvalue(name: str, text: str) -> dict[str, Column]:
    """A largest eigenvalue, and how well it was found."""
    return {
        name: Column(text),
        f"{name}_residual": Column(f"|H v - value v| / |value| of {name}"),
        f"{name}_converged": Column(f"whether {name} is within `tol`, with a larger eigenvalue ruled out at 99 %"),
        f"{name}_products": Column(f"Hessian products that {name} took", COUNT),
    }


def _along(name: str, what: str) -> dict[str, Column]:
    """The loss along a step d, and the step's angles."""
    return {
        f"{name}_norm": Column(f"|d| of {what}"),
        f"{name}_curvature": Column(f"d'H d / |d|^2 along {what}"),
        f"{name}_c1": Column(f"slope <g, d> of the loss along {what}", LOSS_UNIT),
        f"{name}_c2": Column(f"d'H d / 2 along {what}", LOSS_UNIT),
        f"{name}_sharpness": Column(f"2 c2 / |c1| along {what}; above 2 the quadratic model rises at its end"),
        f"cos_gradient_{name}": Column(f"cosine of -g and {what}"),
        f"cos_{name}_cumulative": Column(f"cosine of {what} and the way from the first saved checkpoint"),
        f"cos_preconditioned_{name}": Column(f"cosine of -P g and {what}, P Adam's preconditioner"),
    }


# theta is the checkpoint, g and H gradient and Hessian of the trained loss there.
CURVATURE: Final[Columns] = {
    **RUN,
    **how_far(),
    **ANALYSIS,
    "step_to": Column("the next saved checkpoint, to which the step d leads; NaN after the last", COUNT),
    "n_examples": Column("training examples that the loss is the mean over", COUNT),
    "n_tokens": Column("scored tokens of them", COUNT),
    "loss": Column("mean loss a scored token of them, as it is trained", LOSS_UNIT),
    "gradient_norm": Column("|g|"),
    "weight_norm": Column("|theta|"),
    **_eigenvalue("sharpness", "largest eigenvalue of H, algebraically"),
    **_along("step", "the step to the next saved checkpoint"),
    "moments": Column(
        'Adam\'s moments: "saved", "no update yet", "not saved", "unreadable", "not AdamW\'s" or "unknown" (a suite)'
    ),
    "lr": Column("learning rate of the update after this checkpoint (at the last, of the last update)"),
    "edge": Column("2 / lr: a larger sharpness is unstable under plain descent"),
    "sharpness_over_edge": Column("sharpness over edge", "ratio"),
    **_eigenvalue("preconditioned_sharpness", "largest eigenvalue of P^(1/2) H P^(1/2), P Adam's preconditioner"),
    "adam_edge": Column("(2 + 2 beta1) / ((1 - beta1) lr), the edge of Adam with a preconditioner held fixed"),
    "preconditioned_over_edge": Column("preconditioned_sharpness over adam_edge", "ratio"),
    **_along("update", "the single next update"),
}
SOFT_RANKS: Final[Columns] = {
    "layer": Column("block, from 0; of the stream after it"),
    "position": Column("token position, from 0; -1: all positions that predict a scored token together"),
    "n_samples": Column("activations that the rank is of", COUNT),
    "stable_rank": Column("1 / max p, p the shares of the eigenvalues of the activations' Gram matrix"),
    "participation_ratio": Column("1 / sum p^2"),
    "entropy_rank": Column("exp(-sum p log p)"),
    "stable_rank_centred": Column("stable rank after the mean over examples is subtracted; NaN if all are the same"),
    "participation_ratio_centred": Column("participation ratio after that"),
    **RUN,
    **how_far(),
    **ANALYSIS,
}
LEARNING_COEFFICIENT: Final[Columns] = {
    **RUN,
    **how_far(),
    **ANALYSIS,
    "learning_coefficient": Column("n beta (E[L] - L(theta)) of chains that sample near the checkpoint"),
    "learning_coefficient_std": Column("standard deviation of it over the chains"),
    "learning_coefficient_drift": Column("how much higher it is from the second half of the draws than from the first"),
    "n_chains": Column("chains", COUNT),
    "n_finite_chains": Column("chains that stayed finite, which the values are over", COUNT),
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {
    "curvature": CURVATURE,
    "soft_ranks": SOFT_RANKS,
    "learning_coefficient": LEARNING_COEFFICIENT,
}
# What a call gives: the learning coefficient beside the rest, where it was sampled.
RESULT: Final[Mapping[str, Columns]] = {
    "rows": {
        **CURVATURE,
        **{
            name: column._replace(only="where the learning coefficient was sampled")
            for name, column in LEARNING_COEFFICIENT.items()
            if name not in CURVATURE
        },
    },
    "ranks": SOFT_RANKS,
}
