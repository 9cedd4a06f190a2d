"""What the columns are of tables "edge", one row a checkpoint, and "edge_layers", one row a checkpoint and layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import ANALYSIS, COUNT, FRACTION, LOSS_UNIT, RUN, Column, Columns, how_far

_STEP: Final = "not of the last checkpoint, which no step follows"
_SHARPNESS: Final = "at checkpoints whose sharpness is measured"

EDGE: Final[Columns] = {
    "train_loss": Column("mean loss of the samples that are trained on", LOSS_UNIT),
    "train_accuracy": Column("share of them that is classified rightly", FRACTION),
    "test_loss": Column('mean loss of the splits "val" and "test" together', LOSS_UNIT),
    "test_accuracy": Column("share of them that is classified rightly", FRACTION),
    "lambda_h": Column("largest eigenvalue of the Hessian on the sample", only=_SHARPNESS),
    "residual_h": Column("relative residual of that eigenvalue", only=_SHARPNESS),
    "converged_h": Column("whether it is within the solver's tolerance", only=_SHARPNESS),
    "lambda_p": Column("largest eigenvalue of the Hessian preconditioned by xi: what the rule sees", only=_SHARPNESS),
    "residual_p": Column("relative residual of that eigenvalue", only=_SHARPNESS),
    "converged_p": Column("whether it is within the solver's tolerance", only=_SHARPNESS),
    "n_sharpness": Column("training samples of the sharpness and the soft ranks", COUNT, _SHARPNESS),
    "soft_rank": Column("rank of the last hidden features on them, the one that is asked for", only=_SHARPNESS),
    "gradient_weighted": Column("rank of the last hidden features weighted by gradients", only=_SHARPNESS),
    "c0": Column("loss of the next step's batch before it", LOSS_UNIT, _STEP),
    "lr": Column("learning rate of the step that training took from here; at the last, of the one that led there"),
    "c1": Column("slope of that batch's loss along the step", only=_STEP),
    "c2": Column("half the curvature of that batch's loss along the step", only=_STEP),
    "gauss_newton": Column("part of c2 that features at rest give", only=_STEP),
    "feature_motion": Column("part of c2 that the features' motion gives", only=_STEP),
    "step_sharpness": Column("S = 2 c2 / |c1|", only=_STEP),
    "edge_ratio": Column("lr S / 2; above 1 the step is beyond the edge along itself", "ratio", _STEP),
    "loss_after": Column("loss of that batch after the step", LOSS_UNIT, _STEP),
    "edge_ratio_h": Column("lr lambda_h / 2", "ratio"),
    "edge_ratio_p": Column("lr lambda_p / 2; above 1 is beyond the edge of the rule", "ratio"),
    **how_far(),
    "measured": Column("whether the sharpness was to be measured"),
    **ANALYSIS,
    **RUN,
}
LAYERS: Final[Columns] = {
    "layer": Column("weight matrix, from 0"),
    "xi": Column("factor of the layer's step"),
    "u": Column("relative change of the layer's preactivations by its own update", "ratio"),
    "rho": Column("alignment of features and backward vectors, from 0 to 1"),
    "cumulative_cosine": Column("cosine between the update and the way from the initial weights; NaN at first"),
    "weight_norm": Column("Frobenius norm of the matrix"),
    "stable_rank": Column("1 / max p of the features the layer reads, p the shares of their Gram matrix's eigenvalues"),
    "participation_ratio": Column("1 / sum p^2 of them"),
    "entropy_rank": Column("exp(-sum p log p) of them"),
    "centred_stable_rank": Column("stable rank after the mean over examples is subtracted; NaN if all are the same"),
    "centred_participation_ratio": Column("participation ratio after that"),
    **how_far(),
    "measured": Column("whether the sharpness was to be measured"),
    **ANALYSIS,
    **RUN,
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"edge": EDGE, "edge_layers": LAYERS}
RESULT: Final[Mapping[str, Columns]] = {"rows": EDGE, "layers": LAYERS}
