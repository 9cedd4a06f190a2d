"""What the columns of POLCA's tables are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from qfl_interp.columns import ANALYSIS, COUNT, FRACTION, LOSS_UNIT, RUN, STEP, Column, Columns, how_far
from qfl_interp.data.task import Feature

_DIRECTION: Final = {"direction": Column("direction of weight space, from 0")}
_OF_CLUSTER: Final[Columns] = {
    **_DIRECTION,
    "basis_step": Column("the checkpoint that the direction comes from", COUNT),
    **ANALYSIS,
}
_CLUSTER: Final = {"cluster": Column("cluster along the direction, from 0, the largest first")}
_BASIS: Final = {
    "basis": Column('where directions come from, as `PolcaConfig.basis`: "hessian", "random", "probe" and others')
}

BASIS: Final[Columns] = {
    **_DIRECTION,
    **_BASIS,
    **how_far(of="the checkpoint that it comes from"),
    "eigenvalue": Column("of the Hessian of the mean loss there; NaN of directions that are no eigenvectors"),
    "residual": Column("relative residual of the eigenvector"),
    "converged": Column("whether it is within the solver's tolerance"),
    "n_products": Column("Hessian products that the solver took", COUNT),
    **RUN,
    **ANALYSIS,
}
NODES: Final[Columns] = {
    **_DIRECTION,
    "quantity": Column('what is projected there: "gradients" or "curvature"'),
    **STEP,
    "step_to": Column("the checkpoint at the other end of the interval", COUNT),
    "share": Column("how far along the interval the point lies", FRACTION),
    "mean": Column("mean over the tokens of the projection on the direction"),
    "coordinate": Column("the weights' coordinate along the direction, from the first checkpoint"),
    **RUN,
    **_BASIS,
    **ANALYSIS,
}
CLUSTERS: Final[Columns] = {
    "eigenvalue": Column("of the direction; NaN where it is no eigenvector"),
    **_CLUSTER,
    "break_step": Column("mean over the tokens of the step at which each one's curve breaks", COUNT),
    "break_q25": Column("lower quartile of those steps", COUNT),
    "break_q75": Column("upper quartile of those steps", COUNT),
    "tau_step": Column("the step after which the exact loss of all tokens is flat for good", COUNT),
    "hidden": Column("whether break_step lies after tau_step: the paper's verdict"),
    "in_flat_share": Column(
        "share of the tokens that break within a stretch in which the cluster's loss is flat", FRACTION
    ),
    "in_flat": Column("whether more than half of them do"),
    "learned_share": Column("share of the tokens that break where nothing is left to learn", FRACTION),
    "curve_break_step": Column("step at which the cluster's mean curve breaks", COUNT),
    "jump_share": Column("share of the tokens that break within `span` steps of the mean curve", FRACTION),
    **{
        name: column._replace(text=column.text.replace("the checkpoint", "break_step"))
        for name, column in how_far("break_{}", step=False).items()
    },
    "name": Column("the label's value that describes the cluster best"),
    "best_label": Column("that label"),
    "f1": Column("how well it describes the cluster: 2 n_inside / (|cluster| + |label|)"),
    "p_value_holm": Column("Fisher's exact test of it, Holm-corrected over all values of all labels"),
    "n_tokens": Column("tokens of the cluster", COUNT),
    "share": Column("share of all tokens that are in it", FRACTION),
    "medoid": Column("number of its most central token"),
    "medoid_context": Column("the tokens before that one, and it"),
    "medoid_target": Column("that token"),
    "fall": Column("fall of the cluster's mean curve from the first step to the last", LOSS_UNIT),
    "silhouette": Column("how far the cluster is apart from the others, from -1 to 1"),
    "stability": Column("Jaccard index with the clusters of subsets of the tokens; NaN without resamples", FRACTION),
    "span": Column("over how many steps a turn of a curve is measured", COUNT),
    "curves": Column('what is clustered: "projected", "exact_loss", "loss_change" or "fisher"'),
    **RUN,
    **_OF_CLUSTER,
}
CURVES: Final[Columns] = {
    **_CLUSTER,
    **how_far(),
    "n_tokens": Column("tokens of the cluster", COUNT),
    "mean": Column("mean over the tokens of the clustered curve", LOSS_UNIT),
    "medoid": Column("that curve of the most central token", LOSS_UNIT),
    "q25": Column("lower quartile over the tokens of that curve", LOSS_UNIT),
    "q75": Column("upper quartile over the tokens of that curve", LOSS_UNIT),
    "exact_mean": Column("mean over the tokens of their exact loss", LOSS_UNIT),
    "exact_q25": Column("lower quartile over the tokens of their exact loss", LOSS_UNIT),
    "exact_q75": Column("upper quartile over the tokens of their exact loss", LOSS_UNIT),
    "name": Column("the label's value that describes the cluster best"),
    **RUN,
    **_OF_CLUSTER,
}
COMPOSITION: Final[Columns] = {
    **_CLUSTER,
    "label": Column("what of a token: a feature, its place, its target or the token before"),
    "value": Column("one of the label's values, as text"),
    "name": Column("both, as label=value"),
    "n_inside": Column("tokens of the cluster with the value", COUNT),
    "share": Column("share of the cluster's tokens with it", FRACTION),
    "share_outside": Column("share of the other tokens with it", FRACTION),
    "share_all": Column("share of all tokens with it", FRACTION),
    "lift": Column("share over share_all", "ratio"),
    "f1": Column("how well it describes the cluster: 2 n_inside / (|cluster| + |label|)"),
    "p_value": Column("Fisher's exact test that a random set of the cluster's size has as many of them"),
    "p_value_holm": Column("p_value, Holm-corrected over all rows of the direction"),
    **RUN,
    **_OF_CLUSTER,
}
INTERVALS: Final[Columns] = {
    "step_from": Column("updates completed at the interval's first checkpoint", COUNT),
    "step_to": Column("updates completed at its last", COUNT),
    **how_far("{}_from", step=False, of="the first"),
    **how_far("{}_to", step=False, of="the last"),
    "loss_change": Column("change of the tokens' mean exact loss over the interval", LOSS_UNIT),
    "captured": Column("part of it that the movement along the directions explains", LOSS_UNIT),
    "captured_fraction": Column("captured over loss_change; NaN where the loss does not change", "ratio"),
    "n_guarded": Column('directions in which accuracy "paper" could not form its ratio', COUNT),
    **RUN,
    **ANALYSIS,
    "curves": Column('what is clustered: "projected", "exact_loss", "loss_change" or "fisher"'),
    **_BASIS,
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {
    "polca_basis": BASIS,
    "polca_nodes": NODES,
    "polca_clusters": CLUSTERS,
    "polca_curves": CURVES,
    "polca_composition": COMPOSITION,
    "polca_intervals": INTERVALS,
}
RESULT: Final[Mapping[str, Columns]] = {
    "rows": CLUSTERS,
    "curves": CURVES,
    "composition": COMPOSITION,
    "intervals": {name: column for name, column in INTERVALS.items() if name not in ("analysis", "curves", "basis")},
    "directions": {
        **BASIS,
        "orthogonality": Column("largest |<b_i, b_j> - (i = j)| over j; 0 in an orthonormal basis"),
    },
}
# Of the tokens, whatever the task.
_TOKENS: Final[Columns] = {
    "example": Column("number of the example, from 0"),
    "place": Column("the token's place among those of its example that are scored, from 0"),
    "target": Column("the token, as a person reads it"),
    "previous": Column("the token before it"),
    "context": Column("the example up to there"),
}
_CLUSTER_OF: Final = Column("the token's cluster along direction {}; -1: outlier, -2: left out, as it does not fall")


def token_columns(features: Mapping[str, Feature], names: Iterable[str]) -> Columns:
    """The columns of the table of tokens: those of every task, a task's features, clusters along each direction.

    Args:
        features: The task's.
        names: The table's columns.
    """
    by_column = {f"feature {name}" if name in _TOKENS else name: of for name, of in features.items()}
    return {name: _TOKENS[name] if name in _TOKENS else _of_token(by_column, name) for name in names}


def _of_token(features: Mapping[str, Feature], name: str) -> Column:
    """A feature's column, whose label a number in brackets may say, or that of a direction's clusters."""
    stem, _, label = name.removesuffix("]").partition("[")
    if stem not in features:
        return _CLUSTER_OF._replace(text=_CLUSTER_OF.text.format(name.removeprefix("cluster_")))
    feature, which = features[stem], f"label {label} of the" if label else "the"
    said = feature.description.rstrip(".")
    return Column(f"{which} feature {feature.name}, read where the token is predicted: {said}; missing without a label")
