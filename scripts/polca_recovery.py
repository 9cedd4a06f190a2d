"""When a feature can be told from projected losses: the clusters as they were at each time, against shuffled labels.

A cluster found with the whole of training says nothing about when its tokens could first be told apart. Here the curves
are cut off at a time, directions that come later are left out, and what is left is clustered anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer

from qfl_interp.plots.lines import curve, over_training
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel
from qfl_interp.plots.theme import GREY, PURPLE, STEEL, VERMILLION
from qfl_interp.polca.clustering import cluster_direction
from qfl_interp.polca.trajectories import POINTWISE, Trajectories
from qfl_interp.tables import distinct, select

# Quantile of the best correlation with shuffled labels that counts as reached by chance.
CHANCE = 0.95
# Colours in the order of the curves.
_COLORS: Final = (VERMILLION, PURPLE, STEEL, GREY)


def recovery(
    trajectories: Trajectories,
    found_at: Mapping[int, int],
    skill: Bool[np.ndarray, " token"],
    place: Integer[np.ndarray, " token"],
    known: Integer[np.ndarray, " token"],
    *,
    times: Sequence[int],
    n_shuffles: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How well a skill can be told from what was known at each time, and how well one could be told by chance.

    At each place the correlation over its tokens of the skill (0 or 1) with being in a cluster (Matthews' coefficient),
    or with the projected loss at that time, is taken at its largest absolute value over all clusters, or directions;
    the scores are the means over the places at which both kinds of tokens are. What can be said without the skill gives
    nothing: chance is what labels reach that are shuffled among the tokens of one place and one value of `known`, with
    as many clusters and directions to choose from.

    Args:
        trajectories: Projected losses, or a baseline.
        found_at: The step from which on each direction is known.
        skill: Whether the token needs the skill.
        place: The token's index among its example's.
        known: What gives no credit, as a number: the token to be predicted, say, or it together with the one before.
        times: At which of the steps; two checkpoints at least must lie before or at each.
        n_shuffles: Shuffled labels.
        seed: Draws them.

    Returns:
        One row a time: `step`, `n_directions` known by then, `n_clusters`; `clusters`, their score, in [0, 1], with
        `clusters_chance`, the 95 % quantile of shuffled labels, and `clusters_p_value`, the share of them that does as
        well (itself among them); and the same of `losses`. Without a cluster (or a direction) the score is 0.

    Raises:
        ValueError: A time has fewer than two steps up to it, or all tokens of each place are alike in the skill.
    """
    places = [at for at in (place == p for p in np.unique(place)) if len(np.unique(skill[at])) == 2]
    if not places:
        raise ValueError("skill must be both True and False at one place at least, got one kind only at every place.")
    rng = np.random.default_rng(seed)
    labels = np.stack([skill, *(_shuffled(skill, place, known, rng) for _ in range(n_shuffles))])
    rows = []
    for time in times:
        upto = int(np.searchsorted(trajectories.steps, time, side="right"))
        if upto < 2:
            raise ValueError(
                f"times must have at least two steps up to them, got {time} with steps from "
                f"{trajectories.steps[0]}. Ask for later ones."
            )
        found = [name for name in trajectories.directions if found_at[name] <= time]
        curves = [trajectories.of(name)[:, :upto].astype(np.float64) for name in found]
        falling = trajectories.kind not in POINTWISE
        found_in = [cluster_direction(curve, only_falling=falling).labels for curve in curves]
        members = [own == cluster for own in found_in for cluster in range(int(own.max(initial=-1)) + 1)]
        rows.append(
            {"step": time, "n_directions": len(found), "n_clusters": len(members)}
            | _scores("clusters", members, labels, places)
            | _scores("losses", [curve[:, -1] for curve in curves], labels, places)
        )
    return pd.DataFrame(rows)


def _shuffled(
    skill: Bool[np.ndarray, " token"],
    place: Integer[np.ndarray, " token"],
    known: Integer[np.ndarray, " token"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, " token"]:
    """The labels, shuffled among the tokens of one place and of what is known."""
    # Two orders that sort the tokens by place and what is known: each with ties as they come, and with ties at random.
    plain = np.lexsort((known, place))
    mixed = np.lexsort((rng.random(len(skill)), known, place))
    shuffled = np.empty_like(skill)
    shuffled[plain] = skill[mixed]
    return shuffled


def _scores(
    name: str,
    values: Sequence[np.ndarray],
    labels: Bool[np.ndarray, "labelling token"],
    places: Sequence[Bool[np.ndarray, " token"]],
) -> dict[str, float]:
    """Score of the true labels (the first) and what the shuffled ones reach."""
    best = np.zeros(len(labels))
    if values:
        table, known = np.stack(values).astype(np.float64), labels.astype(np.float64)
        # Pearson correlations [value, labelling] at each place, 0 where either is constant.
        found = [_standardised(table[:, at]) @ _standardised(known[:, at]).T for at in places]
        best = np.mean([np.abs(one).max(axis=0) for one in found], axis=0)
    chance = float(np.quantile(best[1:], CHANCE)) if len(best) > 1 else float("nan")
    return {name: float(best[0]), f"{name}_chance": chance, f"{name}_p_value": float(np.mean(best >= best[0]))}


def _standardised(rows: Float[np.ndarray, "row token"]) -> Float[np.ndarray, "row token"]:
    """Rows of mean 0 and length 1; zeros where a row is constant."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    constant = np.ptp(rows, axis=1, keepdims=True) == 0
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, length))


def recovery_panel(rows: pd.DataFrame, feature: str) -> Panel:
    """Correlation with a feature over compute, one line a way to tell it; dotted, what is reached by chance.

    Args:
        rows: way, step, flops, score, chance; one row a way (at most four) and step.
        feature: What is told.

    Raises:
        ValueError: There is no row, several of one way and step, none above 0 FLOPs, or more than four ways.
    """
    require_rows(rows, "recovery", (), ("way", "step"))
    ways = distinct(rows, "way")
    if len(ways) > len(_COLORS):
        raise ValueError(f"a panel shows at most {len(_COLORS)} ways, got {ways}.")
    traces = []
    for way, color in zip(ways, _COLORS, strict=False):
        drawn = over_training(select(rows, way=way))
        group, dotted = f"recovery: {way}", {"width": 1.0, "dash": "dot", "showlegend": False}
        traces += [
            curve(drawn, "score", way, color, hover="%{y:.2f}", customdata=None, legendgroup=group),
            curve(drawn, "chance", way, color, legendgroup=group, **dotted).update(name=None),
        ]
    return Panel(
        title=f"Unsupervised: does POLCA tell {feature}?",
        note="best correlation at each place, mean over the places; dotted: what 95 % of shuffled labels stay below",
        traces=tuple(traces),
        y_title="correlation",
        y_range=(-0.04, 1.04),
        legend=Legend("recovery"),
    )
