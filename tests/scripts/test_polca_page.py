"""docs/polca.md says of the study in the paper's regime what its tables do."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import polca_paper_runs as runs
import pytest
from polca_paper_page import parts
from polca_scores import CARRY_PLACES

from qfl_interp.polca.quality import restricted_homogeneity
from qfl_interp.tables import select

FIRST, TRAPEZOID = "first order", "path integral, trapezoid"


@pytest.fixture(scope="module")
def csvs():
    """The tables that the page is made of, by the end of their names."""
    names = ("", "_best", "_discriminant", "_movement", "_orders")
    return {name: pd.read_csv(runs.DOCS / f"polca_paper{name}.csv") for name in names}


@pytest.fixture(scope="module")
def says():
    """Asserts that the page says something, whatever the breaks of its lines."""
    page = " ".join((runs.DOCS / "polca.md").read_text().split())

    def said(*parts):
        for part in parts:
            assert part in page

    return said


def test_the_page_s_tables_are_those_of_its_csvs(csvs):
    page = (runs.DOCS / "polca.md").read_text()
    for name, table in parts(csvs, runs.KEPT).items():
        assert f"<!-- {name} -->\n{table}<!-- /{name} -->" in page


def test_a_study_without_orders_and_best_directions_has_its_other_tables(csvs):
    whole = parts(csvs, runs.KEPT)
    some = parts(csvs | {"_orders": pd.DataFrame(), "_best": pd.DataFrame()}, runs.KEPT)
    assert {name for name, table in whole.items() if some[name] != table} == {"agreement", "best"}


def _two(values, digits=2):
    """As the page writes two numbers."""
    return " and ".join(f"{value:.{digits}f}" for value in values)


def _span(values):
    """As the page writes from where to where numbers lie."""
    return f"{values.min():.2f} to {values.max():.2f}"


def test_the_page_says_of_orders_what_its_tables_do(csvs, says):
    all_rows = csvs[""].query("scale == 'raw' and carry == 'carry_in' and clusters_entering == 'all'")
    rows = all_rows.query("stretch == 'all'")
    captured = rows.groupby(["basis", "d_model", "trajectory"])["captured"].mean()
    share = {
        d_model: [captured["hessian", d_model, name] * 100 for name in (FIRST, TRAPEZOID)] for d_model in (64, 256, 512)
    }
    (small, middle, large) = ([f"{share[d_model][0]:.0f}", f"{share[d_model][1]:.1f}"] for d_model in (64, 256, 512))
    says(f"{large[0]} % of the loss's fall to the Hessian's 20 directions;", f"(trapezoid) ascribes {large[1]} %.")
    says(f"the trapezoid {large[1]} %; at 256 it is {' and '.join(middle)} %, at 64 {' and '.join(small)} %")
    own = rows.query("basis == 'hessian' and d_model == 512 and trajectory == @FIRST").set_index("seed")["captured"]
    says(f"({own[0] * 100:.0f} and {own[1] * 100:.0f} % in the two seeds)")
    near = all_rows.query("d_model == 512 and stretch == 'closely'").set_index("trajectory")["captured"] * 100
    says(f"{near[FIRST]:.0f} % against {near[TRAPEZOID]:.1f} % from step 1,000 to 1,400 at 512")
    moving = {
        d_model: _two([captured["trajectory", d_model, name] * 100 for name in (FIRST, TRAPEZOID)], 0)
        for d_model in (512, 256, 64)
    }
    says(f"training moves most: {moving[512]} % at 512, {moving[256]} % at 256, {moving[64]} % at 64")
    orders = csvs["_orders"].groupby(["one", "other", "stretch", "d_model"]).mean(numeric_only=True)
    against = orders.loc[("first", "paper")]
    mean, median = against["cosine"].round(2), against["cosine_median"].round(2)
    says(f"is {mean['all', 512]:.2f} at 512, {mean['all', 256]:.2f} at 256, {mean['all', 64]:.2f} at 64; the median")
    says(f"token has {median['all', 512]:.2f}, {median['all', 256]:.2f} and {median['all', 64]:.2f}.")
    says(f"(the median has {median['all', 512]:.2f}, {median['all', 256]:.2f} and {median['all', 64]:.2f}), some")
    says(f"cosine is {mean['all', 512]:.2f} at the paper's size, {mean['all', 256]:.2f} at 256 and")
    short = mean["short"]
    says(f"is {short[64]:.2f}, {short[256]:.2f} and, at the paper's size, {short[512]:.2f}:")
    says(f"the median token has {median['short'].min():.2f} to {median['short'].max():.2f}.")
    few = {d_model: [against[f"captured_{which}"]["all", d_model] * 100 for which in ("one", "other")]
           for d_model in (512, 256, 64)}  # fmt: skip
    few = {d_model: [*both, orders["captured_other"]["first", "trapezoid", "all", d_model] * 100]
           for d_model, both in few.items()}  # fmt: skip
    says("ascribes {:.0f} % at 512, the paper's second order {:.1f} %, the trapezoid {:.1f} %;".format(*few[512]))
    says("at 256 {:.0f}, {:.1f} and {:.1f} %, at 64 {:.0f}, {:.1f} and {:.1f} %.".format(*few[256], *few[64]))
    said = "(seed 0) the first order ascribes {:.0f} %, the paper's second order {:.1f} %."
    says(said.format(*few[512][:2]))
    times = [few[d_model][0] / few[d_model][1] for d_model in (512, 256, 64)]
    says("the first order ascribes {:.0f}, {:.0f} and {:.0f} times as much as the".format(*times))
    by_direction = csvs["_orders"].query(
        "d_model == 512 and stretch == 'short' and one == 'first' and other == 'paper'"
    )
    assert (by_direction["cosine"] > 0.99).sum() == 2
    says(f"near 1 along two directions of five, {by_direction['cosine'].min():.2f} along one")
    exact = orders.loc[("first", "second", "short", 512)]
    says(f"With the exact second order it is {exact['cosine']:.2f} at 512.")
    says(f"The first order ascribes {exact['captured_one'] * 100:.0f} % of the fall in these steps")
    path = orders.loc[("path", "second", "short", 512)]
    says(
        f"both second orders {path['captured_other'] * 100:.1f} %",
        f"the path integral {path['captured_one'] * 100:.1f} %.",
    )
    same = orders.loc[("trapezoid", "path")]
    says(f"cosine {same.loc[('all', 64), 'cosine']:.2f} (median {same.loc[('all', 64), 'cosine_median']:.3f}) every 50")
    says(f"{same.loc[('all', 256), 'cosine']:.3f} every 20 at 256 and {same.loc[('all', 512), 'cosine']:.3f} at 512;")
    totals = captured["hessian", 64, TRAPEZOID] * 100, captured["hessian", 64, "path integral"] * 100
    says("At 64 its total is not: {:.1f} % for {:.1f} %.".format(*totals))
    by_size = [same.loc[("short", d_model), "cosine"] for d_model in (64, 256, 512)]
    says(f"every 5 steps {by_size[0]:.2f}, {by_size[1]:.3f} and, at 512, {by_size[2]:.3f}.")


def test_the_page_says_of_clusters_what_its_tables_do(csvs, says):
    rows = csvs[""]
    into = rows.query("carry == 'carry_in'")
    assert not (into.query("scale == 'raw'").eval("homogeneity - chance") > 0).any()
    raw = into.query("scale == 'raw' and clusters_entering == 'carries there'").dropna(subset="homogeneity")
    says(f"none of {len(raw)} readings is above chance.")
    there = into.query("clusters_entering == 'carries there' and stretch == 'all' and scale == 'unit'")
    names = ["d_model", "seed", "trajectory", "basis"]
    one = there.set_index(names)[["homogeneity", "chance", "recall", "f1"]]
    pure, chance, recall, f1 = one.loc[(512, 0, FIRST, "hessian")]
    says(f"homogeneity {pure:.2f} (chance {chance:.2f}), recall {recall:.2f} and F1 {f1:.2f};")
    shown = {
        "the exact loss has {} ({})": (512, 0, "exact loss", "hessian"),
        "the purest has {} (chance {})": (512, 1, FIRST, "hessian"),
        "it is not there ({}, chance {})": (512, 0, TRAPEZOID, "hessian"),
        "random directions ({}, chance {})": (512, 0, FIRST, "random"),
        "makes none at 64 ({}, chance {})": (64, 0, FIRST, "hessian-prompt"),
        "nor at 256 ({}, chance {})": (256, 0, FIRST, "hessian-prompt"),
        "there random directions have one ({}, chance {})": (256, 0, TRAPEZOID, "random"),
    }
    for sentence, which in shown.items():
        says(sentence.format(*(f"{number:.2f}" for number in one.loc[which, ["homogeneity", "chance"]])))
    moving = one.loc[[(512, 0, FIRST, "trajectory"), (512, 0, TRAPEZOID, "trajectory")]]
    assert moving["homogeneity"].round(2).tolist() == [0.74, 0.74]
    says(f"one by either order (0.74, chance {_two(moving['chance'])}), with a third of the carries;")
    mixed = one.loc[[(64, 0, FIRST, "shuffled"), (64, 0, TRAPEZOID, "shuffled")]]
    says(f"at 64 shuffled ones by either order ({_two(mixed['homogeneity'])}, chance {_two(mixed['chance'])})")
    own = into.query("clusters_entering == 'carries there' and scale == 'unit'")
    over = own.assign(over=own["homogeneity"] - own["chance"]).set_index(names).sort_index()
    assert over.loc[(512, 1), "over"].max() < 0
    exact = over.loc[[(512, 0, "exact second order", "sparse")]].iloc[0]
    says(f"exact second order over 100 steps ({exact['homogeneity']:.2f}, chance {exact['chance']:.2f})")
    most = over.loc[(512, 0)].query("over > 0")
    named = most.drop(index=[(FIRST, "hessian"), (FIRST, "trajectory"), (TRAPEZOID, "trajectory"),
                             ("exact second order", "sparse")])  # fmt: skip
    assert {basis for _, basis in named.index} == {"parameters", "shuffled", "sparse"}
    assert set(named.query("basis == 'sparse'")["stretch"]) == {"short"}
    says(
        f"by {np.ceil(named['over'].max() * 100) / 100:.2f} at most, LCA, shuffled directions and the first order over"
    )
    assert moving["recall"].round(2).tolist() == [0.34, 0.33]
    middle = one.loc[(256, slice(None), FIRST, "hessian"), :].mean()
    says(
        f"by first order {middle['homogeneity']:.2f} (chance {middle['chance']:.2f}) in the mean of three seeds at 256"
    )
    kept = pd.read_parquet(runs.KEPT / "d512-seed0" / "all-hessian-first.parquet").query("scale == 'unit'")
    tokens = runs.tokens_of(runs.KEPT / "d512-seed0", len(kept["labels"].iloc[0]))
    carries, place = tokens["carry_in"].to_numpy(), tokens["place"].to_numpy()
    found = [restricted_homogeneity(own, carries, place, CARRY_PLACES) for own in kept["labels"]]
    at = int(np.nanargmax([one.homogeneity for one in found]))
    breaks = kept["break_steps"].iloc[at][found[at].cluster]
    says(f"break at step {breaks:,.0f} in the mean, {breaks - 1_000:.0f} after the paper's tau")
    out = rows.query("carry == 'carry_out' and clusters_entering == 'all' and stretch == 'all' and scale == 'unit'")
    out = out.set_index(names)[["homogeneity", "chance", "f1"]]
    pure, chance, f1 = out.loc[(512, 1, TRAPEZOID, "hessian")]
    says(f"{pure:.2f} (chance {chance:.2f}) and F1 {f1:.2f} where all may enter")
    pure, chance = out.loc[(256, 1, TRAPEZOID, "hessian"), ["homogeneity", "chance"]]
    says(f"At 256 one in seed 1 has {pure:.2f} (chance {chance:.2f})")
    every = into.query("clusters_entering == 'all' and stretch == 'all' and scale == 'raw' and basis == 'hessian'")
    mean = every.groupby(["trajectory", "d_model"])[["homogeneity", "recall", "f1"]].mean()
    pure, recall, f1 = (_two(mean[name][FIRST][[512, 256]]) for name in mean)
    exact = _two(mean["homogeneity"]["exact loss"][[512, 256]])
    says(f"{pure} at 512 and 256, recall {recall}, F1 {f1}, against {exact} of the exact loss")
    pure = every.query("trajectory == @FIRST and d_model > 64")
    assert (pure["chance_place_target"] >= pure["homogeneity"] - 0.01).all()
    hidden = rows.query("d_model == 512 and stretch == 'all' and basis in ('hessian', 'random', 'shuffled')")
    hidden = hidden[hidden["trajectory"].isin([FIRST, TRAPEZOID])]
    assert hidden.query("basis == 'hessian'")["hidden_tau"].max() == 0
    assert hidden.query("scale == 'raw'")["hidden"].max() == 0
    late = hidden.query("scale == 'unit'").groupby(["basis", "trajectory"])["hidden"].mean()
    says(f"{_two(late['hessian'][[FIRST, TRAPEZOID]])} in the mean of the seeds, for the paper's 0.307 and 0.355;")
    unit = hidden.query("scale == 'unit' and carry == 'carry_in' and clusters_entering == 'all'")
    counted = unit.assign(late=(unit["hidden"] * unit["clusters"]).round().astype(int))
    counts = counted.groupby(["basis", "trajectory"])[["late", "clusters"]].sum()
    counts = {of: f"{late} of {n}" for of, late, n in counts.itertuples()}
    says(f"unit curves {counts['hessian', FIRST]} (first order) and {counts['hessian', TRAPEZOID]} (trapezoid) break")
    assert counts["random", FIRST] == counts["random", TRAPEZOID]
    says(f"along random directions {counts['random', FIRST]} by either order, along shuffled ones")
    says(f"{counts['shuffled', FIRST]} and {counts['shuffled', TRAPEZOID]} (the paper's shares: 0.031 and 0.304)")
    paper = rows.query("d_model == 512 and stretch == 'all' and basis == 'sparse' and scale == 'unit'")
    paper = select(paper, trajectory="the paper's second order", carry="carry_in", clusters_entering="carries there")
    (paper,) = (row for _, row in paper.iterrows())
    late = round(paper["hidden"] * paper["clusters"])
    says(f"{late} of {paper['clusters']} breaks after step 1,000, none after the measured tau.")
    assert paper["hidden_tau"] == 0
    says(f"the best has {paper['homogeneity']:.2f} (chance {paper['chance']:.2f})")
    tau = csvs["_best"].groupby("run")["tau_measured"].first()
    ladder = tau[tau.index.str.startswith("d256")]
    says(f"as {tau['d512-seed0']:,} and {tau['d512-seed1']:,} at 512, {ladder.min():,} to {ladder.max():,} at 256,")


def test_the_page_says_how_many_readings_exceed_chance(csvs, says):
    shown = parts(csvs, runs.KEPT)["readings"]
    shares = sorted(int(share) for share in re.findall(r"\((\d+)%\)", shown))
    assert len(shares) == 3
    assert all(8 <= share <= 16 for share in shares)  # two to three times 5 %
    says(f"{shares[0]} to {shares[-1]} % exceed chance, two to three times the 5 %")


def test_the_page_says_of_single_directions_what_its_tables_do(csvs, says):
    rows = csvs[""].query("scale == 'raw' and carry == 'carry_in' and clusters_entering == 'all'")
    areas, every = ["auc_hundreds", "auc_tens"], rows.query("stretch == 'all'")
    told = every.groupby(["d_model", "trajectory", "basis"])[[*areas, "auc_falling_hundreds"]].mean()
    best = csvs["_best"].assign(d_model=csvs["_best"]["run"].str.extract(r"d(\d+)-")[0].astype(int))
    hundreds, tens, ladder, ladder_tens = (
        select(best, d_model=d_model, place=place) for d_model in (512, 256) for place in ("hundreds", "tens")
    )
    says(f"tells them with {told.loc[(512, TRAPEZOID, 'hessian')].iloc[0]:.2f} ({_two(hundreds['auc'])} by seed)")
    exact = told.loc[(512, "exact loss", "hessian")]
    says(f"{exact.iloc[0]:.2f} at the end; at the best of 8 times, in the next table, {_two(hundreds['auc_exact'])}")
    says(f"(chance {_two(hundreds['chance_exact'])})", f"not at the end ({exact['auc_tens']:.2f}), but at the best")
    says(f"curve {_two(hundreds['auc'])} in two seeds) where the loss at any one of 8 times hardly")
    says(f"hardly does ({_two(hundreds['auc_exact'])}; all 8 together")
    middle = told.loc[(256, TRAPEZOID, "hessian")]
    says(f"At 256 it is {middle['auc_hundreds']:.2f} against {_span(ladder['auc_exact'])}")
    assert [ladder["falls"].sum(), len(ladder)] == [1, 3]
    assert hundreds["falls"].all()
    assert tens["falls"].all()
    says(f"along those that fall {middle['auc_falling_hundreds']:.2f}.")
    says(f"{_two(tens['auc_exact'])} at 512, where the best direction has {_two(tens['auc'])}")
    small = select(best, d_model=64, place="tens").iloc[0]
    says(f"At 64 it does not: {small['auc_exact']:.2f} for {small['auc']:.2f}.")
    few = csvs[""].query("d_model == 512 and basis == 'sparse' and stretch == 'all' and trajectory == @TRAPEZOID")
    few = select(few, scale="raw", carry="carry_in", clusters_entering="all").iloc[0]
    says(f"one tells the tens with {few['auc_tens']:.2f} by trapezoid (chance {few['auc_chance_tens']:.2f})")
    assert few["auc_falling_tens"] < few["auc_tens"] - 0.1
    says(f"{_span(ladder_tens['auc_exact'])} at 256, where directions have {_span(ladder_tens['auc'])}")
    says(f"{_two(told.loc[(512, FIRST, 'hessian'), areas])}, {_two(told.loc[(256, FIRST, 'hessian'), areas])}.")
    near = rows.query("d_model == 512 and stretch == 'closely'").set_index("trajectory")[areas]
    says("the hundreds with {:.2f} and the tens with {:.2f}".format(*near.loc[TRAPEZOID]))
    says(f"at the end of it with {_two(near.loc['exact loss'])}")
    seed = every.query("seed == 0 and trajectory == @TRAPEZOID").set_index(["d_model", "basis"])[areas]
    random, hessian = (
        {size: _two(seed.loc[(size, basis)]) for size in (512, 256, 64)} for basis in ("random", "hessian")
    )
    says(f"{random[512]} at 512, seed 0, where the Hessian's tell {hessian[512]};")
    says(f"at 256, seed 0, {random[256]} for {hessian[256]};", f"at 64 {random[64]} for {hessian[64]}.")
    says(f"{hessian[512]} against {random[512]}; at 256 in the tens above all, at 64 not")
    shuffled = [_two(seed.loc[(d_model, "shuffled")]) for d_model in (256, 512)]
    says(
        f"Shuffled ones tell {shuffled[0]} at 256, {shuffled[1]} at 512, seed 0: there, of the tens, more than the loss"
    )
    says(f"more than the loss at its best ({tens['auc_exact'].iloc[0]:.2f}).")
    assert seed.loc[(512, "shuffled"), "auc_tens"] > tens["auc_exact"].max()
    says(f"in the tens shuffled ones tell more, {seed.loc[(512, 'shuffled'), 'auc_tens']:.2f}.")
    assert rows.query("basis == 'random' and d_model > 64")["captured"].max() < 1e-4


def test_the_page_says_of_the_best_directions_what_its_table_does(csvs, says):
    best = csvs["_best"]
    assert (np.sign(best["with_carry"]) == -np.sign(best["without"])).all()
    falls = (best["with_carry"] < 0).groupby(best["place"]).agg(["sum", "size"])
    said = {place: "{} of {}".format(*row) for place, row in zip(falls.index, falls.to_numpy(), strict=True)}
    says(f"Those with a carry fall in {said['hundreds']} runs in the hundreds, in {said['tens']} in the tens.")
    by_run = best.pivot(index="run", columns="place", values="step")
    assert (by_run["tens"] > by_run["hundreds"]).all()
    assert by_run.filter(like="d512", axis=0).to_numpy().tolist() == [[400, 1_800]] * 2
    apart = best.groupby("place")["exact_apart"].max()
    late = best[best["run"].str.startswith("d512") & (best["place"] == "tens")]["exact_apart_from_tau"].max()
    says(f"never more than {apart['hundreds']:.2f} nats apart, in the tens by up to {apart['tens']:.1f}, at 512 from")
    says(f"the paper's tau on by up to {late:.2f}.")
    own = best[best["run"].str.startswith("d512") & (best["place"] == "hundreds")]
    parted = _two((own["with_carry"] - own["without"]).abs())
    says(f"part by {parted} nats, of which {_two(own['parted_at_tau'])} are there at step 1,000")
    says(f"{_two(own['parted_at_measured'])} at the measured tau", f"with and without part by {parted} nats along it")
    ladder = best[best["run"].str.startswith("d256") & (best["place"] == "hundreds")]
    there = ladder["parted_at_measured"] / (ladder["with_carry"] - ladder["without"]).abs()
    says(f"At 256 {_two(100 * there.iloc[:2], 0)} % of it are there at the measured tau; in seed 2")
    assert there.iloc[2] > 1
    moved = csvs["_movement"].set_index(["run", "basis"])
    hessian = moved.loc[[("d512-seed0", "hessian"), ("d512-seed1", "hessian")]]
    back, kept, most = (_two(100 * values, 0) for values in (own["turns_back"], own["way_kept"], hessian["way_kept"]))
    says(f"training turns back in {back} % of the steps and keeps {kept} % of its way:")
    assert moved["walk_keeps"].round(2).nunique() == 1
    says(f"more than a random walk ({moved['walk_keeps'].mean():.0%})".replace("%", " %"))
    says(f"Hessian's directions in the median ({most} %)")
    random = moved.loc[("d512-seed0", "random")] * 100
    says(f"it drifts ({random['way_kept']:.0f} % in seed 0, turning back in {random['turns_back']:.0f} %)")


def test_the_page_says_of_discriminants_what_its_tables_do(csvs, says):
    found = csvs["_discriminant"].assign(d_model=csvs["_discriminant"]["run"].str.split("-").str[0])
    at_home = found["run"] == found["fitted_on"]
    mean = found[at_home].groupby(["features", "d_model"])["auc"]
    assert mean.mean()["exact loss"].max() < mean.mean()["slopes, hessian"].min()
    slopes = {d_model: found[at_home & (found["features"] == "slopes, hessian") & (found["d_model"] == d_model)]
              .groupby("place")["auc"].mean() for d_model in ("d512", "d256", "d64")}  # fmt: skip
    says(f"{_two(slopes['d512'])} at 512, {_two(slopes['d256'])} at 256, {_two(slopes['d64'])} at 64.")
    few = {name: found[at_home & (found["features"] == name) & (found["d_model"] == "d512")]
           .groupby("place")["auc"].mean()
           for name in ("exact loss", "slopes, median direction", "slopes, best direction")}  # fmt: skip
    assert (few["slopes, median direction"] <= few["exact loss"]).all()
    few = {name: _two(areas) for name, areas in few.items()}
    own = found[at_home & (found["features"] == "exact loss") & (found["place"] == "hundreds")].set_index("run")["auc"]
    says(f"all 8 together {_two(own[['d512-seed0', 'd512-seed1']])}). Along it")
    says(f"(at all 8 together: {_two(own[['d512-seed0', 'd512-seed1']])}); at the paper's size")
    says(f"From 8 numbers the exact loss tells {few['exact loss']} at 512, the median direction no more,")
    says(f"no more, {few['slopes, median direction']}, the best one {few['slopes, best direction']}.")
    own = found[at_home & (found["run"] == "d512-seed0")].set_index(["features", "place"])["auc"]
    says(f"{_two(own['slopes, random'])} at 512, seed 0, where the Hessian's know {_two(own['slopes, hessian'])}.")
    away = found[~at_home].groupby(["features", "d_model"])["auc"].agg(["min", "max"])
    span = {
        d_model: "{:.2f} and {:.2f}".format(*away.loc[("slopes, hessian", d_model)]) for d_model in ("d512", "d256")
    }
    says(f"is between {span['d512']} at 512 and between {span['d256']} at 256")
    slopes = found[~at_home & (found["features"] == "slopes, hessian")]
    wrong, right = (slopes["auc"] < 1 - slopes["chance"]).sum(), (slopes["auc"] > slopes["chance"]).sum()
    says(f"Of {len(slopes)} areas {wrong} are beyond chance on the wrong side, {right} on the right.")
    exact = found[~at_home & (found["features"] == "exact loss")].set_index("place")
    tens, hundreds = exact.loc["tens"], exact.loc["hundreds"]
    assert (tens["auc"] > tens["chance"]).all()
    says(f"in the tens ({tens['auc'].min():.2f} to {tens['auc'].max():.2f}), in the hundreds in two of eight pairs.")
    assert [(hundreds["auc"] > hundreds["chance"]).sum(), len(hundreds)] == [2, 8]
