"""The tables of docs/polca.md that the study of POLCA in its paper's regime fills."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pages import markdown
from polca_paper_runs import PLACES, SCALES, folders

from qfl_interp.tables import select

# By how much a reading must exceed chance to be shown, and how many are shown of each size.
_MORE, _SHOWN = 0.02, 6
_SECOND = "the paper's second order"
_ORDERS = ("first order", _SECOND, "exact second order", "path integral, trapezoid", "path integral")
# Those of the paper's table, and what stands for the truth.
_PAIRS = {
    "first, the paper's second": ("first", "paper"),
    "first, exact second": ("first", "second"),
    "first, path integral": ("first", "path"),
    "trapezoid, path integral": ("trapezoid", "path"),
}
_STRETCHES = {"all": "every", "closely": "closely", "short": "closely"}


def parts(rows: Mapping[str, pd.DataFrame], kept: Path) -> dict[str, str]:
    """Each table of the page by the name of its markers, from the rows of the CSVs by their names."""
    clusters = rows[""].sort_values("d_model", kind="stable", ignore_index=True)
    settings = {path.name: json.loads((path / "settings.json").read_text()) for path in folders(kept)}
    found = {
        "regime": _regime(clusters, settings),
        "agreement": _agreement(rows["_orders"], settings),
        "clusters": _clusters(clusters),
        "readings": _readings(_distinct(clusters)),
        "above": _above(_distinct(clusters)),
        "told": _told(clusters),
        "best": _best(rows["_best"]),
        "discriminant": _discriminant(rows["_discriminant"]),
        "movement": _movement(rows["_movement"]),
    }
    return {name: markdown(table) for name, table in found.items()}


def _regime(clusters: pd.DataFrame, settings: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """What part of the loss's fall each order ascribes to the directions."""
    own = select(clusters, scale="raw", carry="carry_in", clusters_entering="all")
    own = own[own["basis"].isin(["hessian", "sparse"]) & own["trajectory"].isin(_ORDERS)]
    shown = []
    for (d_model, _, stretch), some in own.groupby(["d_model", "basis", "stretch"], sort=False):
        n = some["seed"].nunique()
        shares = {order: _mean_of(select(some, trajectory=order)["captured"], n) for order in _ORDERS}
        row = _where(d_model, str(stretch), settings)
        shown.append(row | {"directions": int(some["directions"].iloc[0])} | shares | {"seeds": n})
    return pd.DataFrame(shown)


def _agreement(orders: pd.DataFrame, settings: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """How far orders' curves agree (Table 12): cosines, and the distance of the paper's two in nats; means, medians."""
    shown = []
    if len(orders):
        for (d_model, stretch), some in orders.sort_values("d_model", kind="stable").groupby(
            ["d_model", "stretch"], sort=False
        ):
            cosines = {name: _cosine(select(some, one=one, other=other)) for name, (one, other) in _PAIRS.items()}
            apart = select(some, one="first", other="paper")
            distance = f"{apart['l2'].mean():.2g}, {apart['l2_median'].mean():.2g}"
            where = _where(d_model, str(stretch), settings)
            shown.append(where | cosines | {"L2: first, the paper's second": distance})
    return pd.DataFrame(shown)


def _where(d_model: Any, stretch: str, settings: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The size, and the steps that are followed."""
    size = next(size for size in settings.values() if size["d_model"] == d_model)
    return {"d_model": d_model, "steps": _steps(size, stretch), "every": size[_STRETCHES[stretch]]}


def _cosine(pair: pd.DataFrame) -> str:
    """Of two orders, a row a direction: the mean, from where to where it lies, and of the median token."""
    mean, median = pair["cosine"], pair["cosine_median"].mean()
    return f"{mean.mean():.2f} ({mean.min():.2f} to {mean.max():.2f}), {median:.3f}" if len(pair) else "–"


def _mean_of(values: pd.Series, n: int) -> str:
    """Their mean; how many they are in brackets where they are fewer than `n`."""
    if values.isna().all():
        return "–"
    found = int(values.notna().sum())
    return f"{values.mean():.3g}" + (f" ({found} of {n})" if found < n else "")


def _steps(size: Mapping[str, int], stretch: str) -> str:
    """From where to where."""
    if stretch == "all":
        return f"0 to {size['n_steps']:,}"
    first, last = size["stretch"]  # type: ignore[misc]
    return f"{first:,} to {last if stretch == 'closely' else first + size['short']:,}"


def _over_all(clusters: pd.DataFrame) -> pd.DataFrame:
    """Carries into a place over all of training; along few directions the paper's second order alone."""
    own = select(clusters, stretch="all", carry="carry_in")
    return own[(own["basis"] != "sparse") | (own["trajectory"] == _SECOND)]


def _clusters(clusters: pd.DataFrame) -> pd.DataFrame:
    """The purest cluster in carries where clusters enter as the paper writes, and where all do; raw and scaled curves.

    Chance in brackets; means over the seeds that have such a cluster. Hidden: by the paper's tau, by the measured one,
    and in brackets on a plateau of one's own.
    """
    shown = []
    for (d_model, trajectory, basis), some in _over_all(clusters).groupby(
        ["d_model", "trajectory", "basis"], sort=False
    ):
        row = _curves(d_model, trajectory, basis)
        for scale in SCALES:
            there = select(some, scale=scale, clusters_entering="carries there")
            every = select(some, scale=scale, clusters_entering="all")
            row[f"{scale}: homogeneity"] = _beside([there["homogeneity"]], there["chance"])
            of_all = [every[name] for name in ("homogeneity", "recall", "f1")]
            row[f"{scale}: of all clusters"] = _beside(of_all, every["chance"])
            row[f"{scale}: clusters"] = there["clusters"].mean()
            row[f"{scale}: hidden"] = _beside([there["hidden"], there["hidden_tau"]], there["hidden_flat"])
        shown.append(row | {"seeds": some["seed"].nunique()})
    return pd.DataFrame(shown)


def _curves(d_model: Any, trajectory: Any, basis: Any) -> dict[str, Any]:
    """The size and the curves; the exact loss and its change have no directions."""
    return {"d_model": d_model, "trajectory": trajectory, "basis": "–" if "exact loss" in trajectory else basis}


def _beside(some: Sequence[pd.Series], chance: pd.Series) -> str:
    """Means, and in brackets what they are to be held against; of how many, where not of all; a dash where of none."""
    means = [float(one.mean()) for one in some]
    if np.isnan(means[0]):
        return "–"
    found = int(some[0].notna().sum())
    of = f", {found} of {len(some[0])}" if found < len(some[0]) else ""
    return f"{', '.join(f'{one:.2f}' for one in means)} ({f'{chance.mean():.2f}' if chance.notna().any() else '–'}{of})"


def _told(clusters: pd.DataFrame) -> pd.DataFrame:
    """How well one number of a token tells its carry: the final value along the best direction; chance in brackets."""
    own = select(_over_all(clusters), scale="raw", clusters_entering="all")
    shown = []
    for (d_model, trajectory, basis), some in own.groupby(["d_model", "trajectory", "basis"], sort=False):
        row = _curves(d_model, trajectory, basis)
        for place in PLACES.values():
            row[place] = _beside([some[f"auc_{place}"]], some[f"auc_chance_{place}"])
        for place in PLACES.values():
            row[f"{place}, falling"] = some[f"auc_falling_{place}"].mean()
        shown.append(row | {"seeds": some["seed"].nunique()})
    return pd.DataFrame(shown)


def _best(rows: pd.DataFrame) -> pd.DataFrame:
    """The direction that tells carries best, a row a training and place."""
    if rows.empty:
        return rows
    exact = [f"{area:.2f} ({chance:.2f})" for area, chance in zip(rows["auc_exact"], rows["chance_exact"], strict=True)]
    own = rows.assign(
        d_model=_width(rows), seed=rows["run"].str.extract(r"seed(\d+)")[0], exact=exact,
        falls=rows["falls"].map({True: "yes", False: "no"}),
    )  # fmt: skip
    names = {
        "d_model": "d_model", "seed": "seed", "place": "place", "step": "step", "auc": "auc", "falls": "mean falls",
        "exact": "exact loss, best of 8 times", "with_carry": "with a carry", "without": "without",
        "parted_at_tau": "parted at tau", "parted_at_measured": "at measured tau",
        "exact_apart": "exact losses apart", "turns_back": "turns back",
    }  # fmt: skip
    return own.sort_values(["d_model", "seed"], kind="stable")[list(names)].round(3).rename(columns=names)


def _distinct(clusters: pd.DataFrame) -> pd.DataFrame:
    """Without those readings that let other clusters in and find the same one: of them, that of the highest chance."""
    same = ["d_model", "seed", "stretch", "trajectory", "basis", "scale", "carry", "homogeneity", "recall"]
    found = clusters.dropna(subset="homogeneity").sort_values("chance", ascending=False, kind="stable")
    return found.drop_duplicates(same).sort_index()


def _readings(clusters: pd.DataFrame) -> pd.DataFrame:
    """How many numbers there are of each size, and how many exceed chance."""
    over = clusters["homogeneity"] - clusters["chance"]
    names = {"readings": "readings", "above": "above chance", "more": f"by more than {_MORE}"}
    counted = clusters.assign(readings=1, above=over > 0, more=over > _MORE)
    summed = counted.groupby("d_model", as_index=False)[list(names)].sum()
    share = (summed["above"] / summed["readings"]).map("{:.0%}".format)
    summed = summed.assign(above=summed["above"].astype(str) + " (" + share + ")").rename(columns=names)
    return summed.merge(clusters.groupby("d_model", as_index=False).agg(seeds=("seed", "nunique")))


def _above(clusters: pd.DataFrame) -> pd.DataFrame:
    """The readings that exceed chance most."""
    over = clusters.assign(over=clusters["homogeneity"] - clusters["chance"])
    most = (
        over[over["over"] > _MORE]
        .sort_values("over", ascending=False, kind="stable")
        .groupby("d_model", sort=False)
        .head(_SHOWN)
    )
    names = {
        "d_model": "d_model", "seed": "seed", "trajectory": "trajectory", "basis": "basis", "stretch": "steps",
        "scale": "curves", "carry": "carry", "clusters_entering": "clusters that enter", "homogeneity": "homogeneity",
        "chance": "chance", "recall": "recall", "f1": "F1",
    }  # fmt: skip
    carry = most["carry"].map({"carry_in": "into", "carry_out": "out of"})
    return most.assign(carry=carry).sort_values("d_model", kind="stable")[list(names)].rename(columns=names)


def _discriminant(rows: pd.DataFrame) -> pd.DataFrame:
    """What a discriminant tells of carries by place: of other tokens of its run, and of another seed's."""
    where = np.where(rows["run"] == rows["fitted_on"], "same run", "another seed")
    own = rows.assign(d_model=_width(rows), where=where).sort_values("d_model", kind="stable")
    shown = []
    for (d_model, features, fitted), some in own.groupby(["d_model", "features", "where"], sort=False):
        row = {
            "d_model": d_model, "features": features, "numbers": some["n_features"].iloc[0], "fitted on": fitted
        }  # fmt: skip
        for place in PLACES.values():
            here = select(some, place=place)
            if fitted == "same run":
                row[place] = _beside([here["auc"]], here["chance"])
            else:
                row[place] = f"{here['auc'].min():.2f} to {here['auc'].max():.2f} ({here['chance'].mean():.2f})"
        shown.append(row | {"runs": some["run"].nunique()})
    return pd.DataFrame(shown)


def _movement(rows: pd.DataFrame) -> pd.DataFrame:
    """How the parameters move along the directions of each basis, means over the seeds."""
    own = rows.assign(d_model=_width(rows))
    means = own.groupby(["d_model", "basis"], as_index=False).agg(
        turns_back=("turns_back", "mean"), way_kept=("way_kept", "mean"), walk_keeps=("walk_keeps", "mean"),
        seeds=("run", "nunique"),
    )  # fmt: skip
    return means.rename(
        columns={"turns_back": "turns back", "way_kept": "way kept", "walk_keeps": "a random walk keeps"}
    )


def _width(rows: pd.DataFrame) -> pd.Series:
    """The d_model of each row's run, by its name."""
    return rows["run"].str.extract(r"d(\d+)-")[0].astype(int)
