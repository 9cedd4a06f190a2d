"""From the kept tables of a training to rows: carries in clusters under each reading, and what a discriminant tells."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from polca_paper_runs import PLACES, auc, away, folders, orders_of, tables, tokens_of
from polca_scores import CARRY_PLACES, CHANCE, chance_homogeneity, shuffled_within
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from qfl_interp.polca.quality import PLACE_SHARE, adjusted_rand, restricted_homogeneity
from qfl_interp.tables import column, groups, select

# Which clusters enter: as the paper writes, more than 85 % of their carries in the tens and hundreds; more than 85 % of
# all their tokens there; or any.
Entering = Literal["carries there", "tokens there", "all"]
_FOLDS = 5
# Shuffles of the carries: of the clusters', and of a discriminant's, which is fitted for each.
SHUFFLES = {"clusters": 200, "discriminant": 40}


def carry_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row a curve, scale and reading: the purest cluster in carries, beside chance, and what is hidden."""
    orders = orders_of(folder)
    for _, table in tables(folder):
        for scale, rows in groups(table, "scale"):
            about = rows.iloc[0][["d_model", "lr", "seed", "stretch", "trajectory", "basis"]].to_dict()
            labels = [np.asarray(own, dtype=np.int64) for own in rows["labels"]]
            tokens = tokens_of(folder, len(labels[0]))
            place = column(tokens, "place").astype(np.int64)
            both = tokens.groupby(["place", "target"]).ngroup().to_numpy()
            shown = {
                **about,
                "n_tokens": len(tokens),
                "scale": scale,
                **_hidden(rows),
                **_told_by_one(rows),
                "captured": rows.iloc[0].get("captured", np.nan),
            }
            if len(orders) and about["trajectory"] == "the paper's second order":
                shown |= _first_against_second(orders, about["stretch"])
            n = SHUFFLES["clusters"]
            for carry, enter in itertools.product(("carry_in", "carry_out"), get_args(Entering)):
                having = tokens[carry].to_numpy(dtype=bool)
                seen = [entering(own, place, enter) for own in labels]
                yield {
                    **shown, "carry": carry, "clusters_entering": enter, **_best(labels, having, seen),
                    "chance_place": chance_homogeneity(labels, having, place, n, seen=seen),
                    "chance_place_target": chance_homogeneity(labels, having, place, n, among=both, seen=seen),
                }  # fmt: skip


def entering(labels: Int[np.ndarray, " token"], place: Int[np.ndarray, " token"], enter: Entering) -> np.ndarray:
    """Each token's place as the rule of the paper is to see it, so that it lets the clusters of a reading in."""
    if enter == "carries there":
        return place
    if enter == "all":
        return np.full(len(place), CARRY_PLACES[0])
    seen = np.full(len(place), -1)
    for cluster in np.unique(labels[labels >= 0]):
        if np.isin(place[labels == cluster], CARRY_PLACES).mean() > PLACE_SHARE:
            seen[labels == cluster] = CARRY_PLACES[0]
    return seen


def _best(labels: list[np.ndarray], carry: np.ndarray, seen: list[np.ndarray]) -> dict[str, float]:
    """The purest cluster over all directions, the next two directions', and the best adjusted Rand index."""
    found = [restricted_homogeneity(own, carry, at, CARRY_PLACES) for own, at in zip(labels, seen, strict=True)]
    tops = sorted(found, key=lambda one: -np.nan_to_num(one.homogeneity))
    below = [top.homogeneity for top in tops[1:3]] + [np.nan] * 2
    rand = pd.Series([adjusted_rand(own, carry.astype(np.int64)) for own in labels], dtype=float)
    return {
        "homogeneity": tops[0].homogeneity, "recall": tops[0].recall, "f1": tops[0].f1, "second": below[0],
        "third": below[1], "adjusted_rand": float(rand.max()),
    }  # fmt: skip


def _hidden(rows: pd.DataFrame) -> dict[str, float]:
    """The share of hidden breakthroughs by three rules: the paper's tau, a measured one, on a plateau of one's own."""
    found = {rule: np.concatenate(rows[f"hidden_{rule}"].tolist()) for rule in ("paper", "tau", "flat")}
    n = len(found["paper"])
    return {
        "clusters": n, "directions": len(rows), "directions_falling": int(rows["kept"].sum()),
        **{f"hidden_{rule}": float(np.mean(own)) if n else np.nan for rule, own in found.items()},
        "tau": int(rows["tau"].iloc[0]),
    }  # fmt: skip


def _told_by_one(rows: pd.DataFrame) -> dict[str, float]:
    """How well the final value along the best direction tells carries, by place, beside the best one by chance."""
    areas = {f"auc_{place}": away(telling_most(rows, place)[f"auc_{place}"]) for place in PLACES.values()}
    return areas | {(name := f"auc_chance_{place}"): float(rows[name].iloc[0]) for place in PLACES.values()}


def telling_most(rows: pd.DataFrame, place: str) -> pd.Series:
    """The row of the direction whose final projected loss tells the carries of a place best: the best of many."""
    return rows.iloc[int(np.nanargmax(away(column(rows, f"auc_{place}"))))]


def best_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row a place: the Hessian's direction that tells its carries best by the path integral (trapezoid).

    Where it was found; the mean final projected loss of tokens with and without a carry; and how far the means of their
    exact losses are apart at most, and at most from the paper's tau on.
    """
    way = "all-hessian-trapezoid"
    if not (folder / f"{way}.parquet").exists():
        return
    raw = select(pd.read_parquet(folder / f"{way}.parquet"), scale="raw")
    means, tau = (
        pd.read_parquet(folder / f"means-{way}.parquet"),
        json.loads((folder / "settings.json").read_text())["tau"],
    )
    for place in PLACES.values():
        best = telling_most(raw, place)
        own = select(means, place=place, direction=int(best["direction"])).pivot(index="step", columns="carry")
        apart = (own["exact_mean"][True] - own["exact_mean"][False]).abs()
        yield {
            "run": folder.name, "place": place, "direction": int(best["direction"]), "step": int(best["basis_step"]),
            "auc": away(best[f"auc_{place}"]), "with_carry": own["mean"][True].iloc[-1],
            "without": own["mean"][False].iloc[-1], "exact_apart": apart.max(), "apart_from_tau": apart.loc[tau:].max(),
        }  # fmt: skip


def _first_against_second(orders: pd.DataFrame, stretch: str) -> dict[str, float]:
    """Table 12 of the paper: means over tokens and directions."""
    own = orders.query("one == 'first' and other == 'paper' and stretch == @stretch")
    return {"cosine_first_second": float(own["cosine"].mean()), "l2_first_second": float(own["l2"].mean())}


def told(features: Float[np.ndarray, "token feature"], carry: Bool[np.ndarray, " token"], seed: int = 0) -> float:
    """How well a linear discriminant tells carries of tokens that it was not fitted on: mean AUC over the folds.

    The covariance is shrunk (Ledoit and Wolf); features are scaled by the training tokens. NaN where a fold would lack
    one of the two.
    """
    if min(carry.sum(), len(carry) - carry.sum()) < _FOLDS:
        return float("nan")
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(features, carry)
    return float(np.mean([told_elsewhere(features[a], carry[a], features[b], carry[b]) for a, b in folds]))


def told_elsewhere(
    features: Float[np.ndarray, "token feature"],
    carry: Bool[np.ndarray, " token"],
    other_features: Float[np.ndarray, "other feature"],
    other_carry: Bool[np.ndarray, " other"],
) -> float:
    """The AUC on other tokens of a discriminant that was fitted on the first; features scaled by the first."""
    scaler = StandardScaler().fit(features)
    model = make_pipeline(scaler, LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")).fit(features, carry)
    return auc(model.decision_function(other_features), other_carry)


def discriminant_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row a place and kind of features: what a discriminant tells of carries, and with labels shuffled."""
    for (name, own), (at, place) in itertools.product(_features(folder).items(), PLACES.items()):
        here = own.of_place(at)
        yield {
            "run": folder.name, "features": name, "n_features": here.values.shape[1], "place": place,
            "fitted_on": folder.name, **_beside_chance(partial(told, here.values), here),
        }  # fmt: skip


def across_rows(kept: Path) -> Iterator[dict[str, Any]]:
    """The same, fitted on the tokens of one seed and tried on those of another of the same size; features standardised.

    By chance: fitted on shuffled labels. Directions of two seeds correspond by their number, that is by the step they
    come from, and by their sign (towards where training ends).
    """
    pairs = itertools.permutations(folders(kept), 2)
    for one, other in ((a, b) for a, b in pairs if a.name.split("-")[0] == b.name.split("-")[0]):
        ours, theirs = _features(one), _features(other)
        shared = [name for name in ours if name in theirs]
        for name, (at, place) in itertools.product(shared, PLACES.items()):
            here, there = ours[name].of_place(at), theirs[name].of_place(at)
            fitted, tried = (StandardScaler().fit_transform(own.values) for own in (here, there))
            tell = partial(told_elsewhere, fitted, other_features=tried, other_carry=there.carry)
            yield {
                "run": other.name, "features": name, "n_features": fitted.shape[1], "place": place,
                "fitted_on": one.name, **_beside_chance(tell, here),
            }  # fmt: skip


@dataclass(frozen=True)
class _Features:
    """What a discriminant gets: numbers of tokens, where the tokens are, and what it is to tell."""

    values: Float[np.ndarray, "token feature"]
    place: Int[np.ndarray, " token"]
    carry: Bool[np.ndarray, " token"]
    target: np.ndarray  # a word a token

    def of_place(self, at: int) -> _Features:
        """Those of the tokens of one place."""
        here = self.place == at
        return _Features(self.values[here], self.place[here], self.carry[here], self.target[here])


def _beside_chance(tell: Callable[[np.ndarray], float], tokens: _Features) -> dict[str, float]:
    """What is told of the carries, and of carries shuffled among tokens of one target: what targets say remains."""
    mixed = shuffled_within(tokens.carry, pd.factorize(tokens.target)[0], SHUFFLES["discriminant"])
    return {"auc": tell(tokens.carry), "chance": float(np.quantile([tell(carry) for carry in mixed], CHANCE))}


def _features(folder: Path) -> dict[str, _Features]:
    """By name: slopes along the directions of a basis, and the exact loss at the same times."""
    found = {}
    for path in sorted(folder.glob("slopes-*.parquet")):
        table, basis = pd.read_parquet(path), path.stem.split("-")[2]
        tokens = (
            column(table, "place").astype(np.int64),
            table["carry_in"].to_numpy(dtype=bool),
            table["target"].to_numpy(),
        )
        values = table.filter(like=":")
        losses = values.filter(like="loss:")
        slopes = values.drop(columns=losses.columns)
        found[f"slopes, {basis}"] = _Features(slopes.to_numpy(dtype=np.float64), *tokens)
        if basis == "hessian":
            found["exact loss"] = _Features(losses.to_numpy(dtype=np.float64), *tokens)
    return found


def movement_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row a basis: how the parameters move along its directions, medians."""
    for path in sorted(folder.glob("moves-*.parquet")):
        way = movement(pd.read_parquet(path).drop(columns="step").to_numpy(dtype=np.float64))
        yield {"run": folder.name, "basis": path.stem.split("-")[2], **way.median().to_dict()}


def movement(coordinates: Float[np.ndarray, "time direction"]) -> pd.DataFrame:
    """How the parameters move, one row a direction.

    `net` is from the first point to the last, `gone` the way, `way_kept` their ratio; `turns_back` is how often a step
    goes against the last.
    """
    steps = np.diff(coordinates, axis=0)
    net, gone = np.abs(steps.sum(axis=0)), np.abs(steps).sum(axis=0)
    turns = np.mean(np.sign(steps[1:]) != np.sign(steps[:-1]), axis=0)
    return pd.DataFrame({"net": net, "gone": gone, "way_kept": net / gone, "turns_back": turns})
