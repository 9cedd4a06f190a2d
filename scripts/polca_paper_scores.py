"""From the kept tables of a training to rows: carries in clusters under each reading, and what a discriminant tells."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from polca_paper_runs import PLACES, auc, away, best_auc_by_chance, folders, orders_of, tables, tokens_of
from polca_scores import CARRY_PLACES, CHANCE, purest, shuffled_within
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from qfl_interp.polca.quality import PLACE_SHARE, clusters_in_places
from qfl_interp.tables import column, groups, select

# Which clusters enter: as the paper writes, more than 85 % of their carries in the tens and hundreds; more than 85 % of
# all their tokens there; or any.
Entering = Literal["carries there", "tokens there", "all"]
_FOLDS = 5
# Shuffles of the carries: of the clusters', and of a discriminant's, which is fitted for each; for each direction, too.
SHUFFLES = {"clusters": 200, "discriminant": 40, "directions": 20}


def carry_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row a curve, scale and reading: the purest cluster in carries, beside chance, and what is hidden."""
    orders, settings = orders_of(folder), json.loads((folder / "settings.json").read_text())
    known: dict[int, _Tokens] = {}
    for _, table in tables(folder):
        for scale, rows in groups(table, "scale"):
            about = rows.iloc[0][["d_model", "lr", "seed", "stretch", "trajectory", "basis"]].to_dict()
            labels = [np.asarray(own, dtype=np.int64) for own in rows["labels"]]
            n = len(labels[0])
            tokens = known[n] = known[n] if n in known else _Tokens.read(folder, n)
            shown = {
                **about,
                "n_tokens": n,
                "scale": scale,
                **_hidden(rows, after_tau=about["stretch"] != "all" and settings["stretch"][0] >= settings["tau"]),
                **_told_by_one(rows),
                "captured": rows.iloc[0].get("captured", np.nan),
            }
            if len(orders) and about["trajectory"] == "the paper's second order":
                shown |= _first_against_second(orders, about["stretch"])
            for carry, enter in itertools.product(tokens.carries, get_args(Entering)):
                having = tokens.carries[carry]
                seen = [entering(own, tokens.place, enter) for own in labels]
                let_in = clusters_that_enter(labels, having, seen)
                chance = {name: chance_purity(let_in, mixed) for name, mixed in tokens.shuffled[carry].items()}
                yield {
                    **shown, "carry": carry, "clusters_entering": enter, **purest(labels, having, seen),
                    "chance": max(chance.values()), **{f"chance_{among}": own for among, own in chance.items()},
                }  # fmt: skip


class _Tokens(NamedTuple):
    """What is known of tokens: places, carries into and out of them, and each of these shuffled."""

    place: Int[np.ndarray, " token"]
    carries: dict[str, Bool[np.ndarray, " token"]]
    shuffled: dict[str, dict[str, Bool[np.ndarray, "shuffle token"]]]

    @classmethod
    def read(cls, folder: Path, n: int) -> _Tokens:
        """Of a training where so many were followed; shuffled among tokens of one place, or of one place and target."""
        tokens = tokens_of(folder, n)
        carries = {name: tokens[name].to_numpy(dtype=bool) for name in ("carry_in", "carry_out")}
        among = {"place": column(tokens, "place").astype(np.int64),
                 "place_target": tokens.groupby(["place", "target"]).ngroup().to_numpy()}  # fmt: skip
        shuffled = {
            name: {of: np.array(list(shuffled_within(own, at, SHUFFLES["clusters"]))) for of, at in among.items()}
            for name, own in carries.items()
        }
        return cls(among["place"], carries, shuffled)


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


def clusters_that_enter(
    labels: Sequence[np.ndarray], carry: Bool[np.ndarray, " token"], seen: Sequence[np.ndarray]
) -> Bool[np.ndarray, "cluster token"]:
    """The members of those whose carries lie in the tens and hundreds."""
    found = [
        own == cluster
        for own, at in zip(labels, seen, strict=True)
        for cluster in clusters_in_places(own, carry, at, CARRY_PLACES)
    ]
    return np.array(found, dtype=bool).reshape(-1, len(carry))


def chance_purity(clusters: Bool[np.ndarray, "cluster token"], shuffled: Bool[np.ndarray, "shuffle token"]) -> float:
    """What 95 % of shuffled carries stay below as the share of carries in the purest of these clusters; NaN of none."""
    if not len(clusters):
        return float("nan")
    inside = clusters.astype(np.float64)
    shares = inside @ shuffled.T.astype(np.float64) / inside.sum(axis=1, keepdims=True)
    return float(np.quantile(shares.max(axis=0), CHANCE))


def _hidden(rows: pd.DataFrame, *, after_tau: bool) -> dict[str, float]:
    """The share of hidden breakthroughs by three rules: the paper's tau, a measured one, on a plateau of one's own.

    By the first there is no share where all that was followed lies after the paper's tau.
    """
    found = {rule: np.concatenate(rows[f"hidden_{rule}"].tolist()) for rule in ("paper", "tau", "flat")}
    n = len(found["paper"])
    shares = {rule: float(np.mean(own)) if n else np.nan for rule, own in found.items()}
    return {
        "clusters": n, "directions": len(rows), "directions_falling": int(rows["kept"].sum()),
        "hidden": np.nan if after_tau else shares["paper"], "hidden_tau": shares["tau"], "hidden_flat": shares["flat"],
        "tau": int(rows["tau"].iloc[0]),
    }  # fmt: skip


def _told_by_one(rows: pd.DataFrame) -> dict[str, float]:
    """How well the final value along the best direction tells carries, by place, beside the best one by chance.

    Likewise along the best of those that the method keeps, whose mean falls.
    """
    found = {}
    for place in PLACES.values():
        found[f"auc_{place}"] = away(telling_most(rows, place)[f"auc_{place}"])
        kept = rows[rows["kept"]]
        found[f"auc_falling_{place}"] = away(telling_most(kept, place)[f"auc_{place}"]) if len(kept) else np.nan
        found[f"auc_chance_{place}"] = float(rows[f"auc_chance_{place}"].iloc[0])
    return found


def telling_most(rows: pd.DataFrame, place: str) -> pd.Series:
    """The row of the direction whose final projected loss tells the carries of a place best: the best of many."""
    return rows.iloc[int(np.nanargmax(away(column(rows, f"auc_{place}"))))]


def best_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row a place: the Hessian's direction that tells its carries best by the path integral (trapezoid).

    Where it was found, and whether its mean falls (`falls`: the method keeps those alone, of which `auc_falling` is the
    best); the mean final projected loss of tokens with and without a carry, how far they have parted at the paper's tau
    and at the measured one, and how far the means of their exact losses are apart at most, over all and from the
    paper's tau on; how the parameters move along it; and how well the exact loss tells, at the best of few times.
    """
    way = "all-hessian-trapezoid"
    if not (folder / f"{way}.parquet").exists():
        return
    raw = select(pd.read_parquet(folder / f"{way}.parquet"), scale="raw")
    means = pd.read_parquet(folder / f"means-{way}.parquet")
    tau = json.loads((folder / "settings.json").read_text())["tau"]
    losses, told_by_one = _features(folder)["exact loss"], _told_by_one(raw)
    moves = movement(pd.read_parquet(folder / "moves-all-hessian-first.parquet").drop(columns="step").to_numpy())
    for at, place in PLACES.items():
        best = telling_most(raw, place)
        direction, measured = int(best["direction"]), int(best["tau"])
        own = select(means, place=place, direction=direction).pivot(index="step", columns="carry")
        exact = (own["exact_mean"][True] - own["exact_mean"][False]).abs()
        parted = (own["mean"][True] - own["mean"][False]).abs()
        here = losses.of_place(at)
        areas = [away(auc(values, here.carry)) for values in here.values.T]
        yield {
            "run": folder.name, "place": place, "direction": direction, "step": int(best["basis_step"]),
            "auc": away(best[f"auc_{place}"]), "falls": bool(best["kept"]),
            "auc_falling": told_by_one[f"auc_falling_{place}"], "auc_exact": max(areas),
            "chance_exact": best_auc_by_chance(here.values, here.carry, pd.factorize(here.target)[0]),
            "with_carry": own["mean"][True].iloc[-1], "without": own["mean"][False].iloc[-1],
            "tau_measured": measured, "parted_at_tau": parted.loc[:tau].iloc[-1],
            "parted_at_measured": parted.loc[:measured].iloc[-1], "exact_apart": exact.max(),
            "exact_apart_from_tau": exact.loc[tau:].max(), **moves.loc[direction, ["way_kept", "turns_back"]].to_dict(),
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
    """One row a place and kind of features: what a discriminant tells of carries, and with labels shuffled.

    The slopes along all directions are many more numbers than the exact losses at the same times. So also those along
    one direction: the best of all, chosen by the labels, and the median one.
    """
    features = _features(folder)
    for (name, own), (at, place) in itertools.product(features.items(), PLACES.items()):
        here = own.of_place(at)
        yield {
            "run": folder.name, "features": name, "n_features": here.values.shape[1], "place": place,
            "fitted_on": folder.name, **_beside_chance(partial(told, here.values), here),
        }  # fmt: skip
    own = features.get("slopes, hessian")
    if own is None:
        return
    n_directions = own.values.shape[1] // features["exact loss"].values.shape[1]
    for at, place in PLACES.items():
        here = own.of_place(at)
        each = [here.values[:, direction::n_directions] for direction in range(n_directions)]
        labels = [here.carry, *_shuffled_carries(here, "directions")]
        areas = np.array([[told(values, carry) for values in each] for carry in labels])
        for which, found in (("best", areas.max(axis=1)), ("median", np.median(areas, axis=1))):
            yield {
                "run": folder.name, "features": f"slopes, {which} direction", "n_features": each[0].shape[1],
                "place": place, "fitted_on": folder.name, "auc": found[0],
                "chance": float(np.quantile(found[1:], CHANCE)),
            }  # fmt: skip


def across_rows(kept: Path) -> Iterator[dict[str, Any]]:
    """The same, fitted on the tokens of one seed and tried on those of another of the same size; features standardised.

    By chance: fitted on shuffled labels, tried on true ones, and as far from 0.5 on either side. Directions of two
    seeds correspond by their number, that is by the step they come from, and by their sign (towards where training
    ends).
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
                "fitted_on": one.name, **_beside_chance(tell, here, of=away),
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


def _beside_chance(
    tell: Callable[[np.ndarray], float], tokens: _Features, of: Callable[[float], float] = float
) -> dict[str, float]:
    """What is told of the carries; and `of` what is told of shuffled ones, the best of 95 %."""
    chance = np.quantile([of(tell(carry)) for carry in _shuffled_carries(tokens)], CHANCE)
    return {"auc": tell(tokens.carry), "chance": float(chance)}


def _shuffled_carries(tokens: _Features, of: str = "discriminant") -> Iterator[np.ndarray]:
    """Carries shuffled among tokens of one target: what targets say of the carry remains."""
    return shuffled_within(tokens.carry, pd.factorize(tokens.target)[0], SHUFFLES[of])


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

    `net` is from the first point to the last, `gone` the way, `way_kept` their ratio; `walk_keeps` is what that would
    be in the median if each step went either way by chance; `turns_back` is how often a step goes against the last.
    """
    steps = np.diff(coordinates, axis=0)
    net, gone = np.abs(steps.sum(axis=0)), np.abs(steps).sum(axis=0)
    turns = np.mean(np.sign(steps[1:]) != np.sign(steps[:-1]), axis=0)
    # The sum of many steps of random signs is normal, and half of it lies within 0.6745 standard deviations.
    walk = norm.ppf(0.75) * np.linalg.norm(steps, axis=0) / gone
    return pd.DataFrame({"net": net, "gone": gone, "way_kept": net / gone, "walk_keeps": walk, "turns_back": turns})
