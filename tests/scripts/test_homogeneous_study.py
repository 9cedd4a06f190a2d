"""The study of docs/edge_of_stability.md: its cells, its summaries and its figure."""

from __future__ import annotations

import math
from pathlib import Path

import edge_experiments as study
import edge_tables
import numpy as np
import pandas as pd
import pytest
import study_edge
import torch
from figures.edge import edge_maps

from qfl_interp.mlp_config import MLPConfig
from qfl_interp.models.mlp import HomogeneousMLP

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_cells_are_different_and_named_by_what_they_are():
    task = study.load("")
    every = [cell for name in study.EXPERIMENTS for cell in study.cells(name, task)]
    names = {cell.name("digits") for cell in every}
    assert len(names) == len(every)
    assert every[0].name("digits") == every[0].name("digits")
    assert not names & {cell.name("mnist") for cell in every}
    for n_pixels in (64, 784):
        widths = {r: study.matched_width(r, n_pixels, 10) for r in study.PATTERNS}
        sizes = [MLPConfig(n_pixels, 10, m, 4, r).size for r, m in widths.items()]
        assert max(sizes) / min(sizes) < 1.01
        assert widths[2] == study.MATCHED_WIDTH
    with pytest.raises(SystemExit, match="no experiment is named 'E9'"):
        list(study.cells("E9", task))


def test_a_cell_is_trained_and_summed_up():
    cell = study.Cell(
        "E4", "s=2", {"depth": 3, "width": 4, "width_exponent": 1},
        {"n_steps": 4, "edge_multiple": 1.0, "batch_size": 30, "n_sharpness": 20, "save_every": 1}, 40,
    )  # fmt: skip
    row = study.run_cell(cell, "")
    assert row == study.run_cell(cell, "")
    assert (row["data"], row["rule"], row["q"], row["status"], row["stopped"]) == ("digits", "s=2", 1.0, "finished", 4)
    assert row["n_parameters"] == 64 * 4 + 4 * 8 + 8 * 10


def test_a_summary_looks_at_the_second_half():
    nan = math.nan
    rows = pd.DataFrame({
        "step": [0, 1, 2, 3, 4], "c0": [2.0, 6.0, 1.0, 1.0, nan], "loss_after": [6.0, 1.0, 2.0, 0.5, nan],
        "edge_ratio": [9, 9, 2, 0.5, nan], "lr": [0.05, 0.1, 0.1, 0.1, 0.1],
        "gauss_newton": [1.0, 1, 1, 3, nan], "c2": [1.0, 1, 2, 4, nan],
    })  # fmt: skip
    names = ("train_loss", "train_accuracy", "test_accuracy", "soft_rank", "lambda_h", "lambda_p", "edge_ratio_p")
    rows = rows.assign(**dict.fromkeys(names, 1.5))
    found = study.summary(rows, "finished", 4, 0.5)
    assert (found["lr"], found["lambda_p"]) == (0.1, 1.5)
    assert found["spike"] == 3
    assert found["edge_along_step"] == 1.25
    assert found["share_beyond"] == 0.5
    assert found["share_raising"] == 0.5
    assert found["gauss_newton_share"] == 0.625
    lost = study.summary(rows, "diverged", 4, 0.5)
    assert math.isnan(lost["train_loss"])
    assert lost["status"] == "diverged"


def test_medians_leave_out_what_diverged():
    rows = pd.DataFrame({
        "rule": ["a", "a", "a", "b"], "q": [1.0] * 4, "status": ["finished", "diverged", "finished", "diverged"],
        "train_accuracy": [0.95, math.nan, 0.5, math.nan],
    })  # fmt: skip
    a, b = edge_tables.over_seeds(rows, ["rule", "q"])
    assert (a["n"], a["diverged"], a["learned"]) == (3, 1, 1)
    assert a["train_accuracy"] == pytest.approx(0.725)
    assert (b["n"], b["diverged"], b["learned"]) == (1, 1, 0)
    assert math.isnan(b["train_accuracy"])


def test_maps_show_each_number_where_it_belongs():
    rows = pd.DataFrame({
        "panel": ["one"] * 3 + ["two"], "x": ["1", "2", "2", "1"], "y": ["a", "a", "b", "b"],
        "value": [0.1, 0.2, math.nan, 0.4], "note": ["0.1", "0.2", "×", "0.4"],
    })  # fmt: skip
    figure = edge_maps(rows, x="q", y="depth", value="rank", filename="f", low=0.0)
    crossed, colours, _, second = figure.data
    as_numbers = np.array(colours.z, dtype=float)
    np.testing.assert_array_equal(as_numbers, [[0.1, 0.2], [math.nan, math.nan]])
    assert np.isnan(np.array(crossed.z, dtype=float)).tolist() == [[True, True], [False, False]]
    assert colours.text == (["0.1", "0.2"], ["", "×"]) or list(map(list, colours.text)) == [["0.1", "0.2"], ["", "×"]]
    assert np.array(second.z, dtype=float)[1, 0] == 0.4
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 0.4)
    below = edge_maps(rows, x="q", y="depth", value="rank", filename="f", n_columns=1).layout
    assert below.xaxis.domain == below.xaxis2.domain == (0, 1)
    assert figure.layout.xaxis2.domain != (0, 1)
    with pytest.raises(ValueError, match="one row a cell"):
        edge_maps(pd.concat([rows, rows]), x="q", y="depth", value="rank", filename="f")
    with pytest.raises(ValueError, match="at least one, got 0"):
        edge_maps(rows[:0], x="q", y="depth", value="rank", filename="f")


@pytest.mark.slow
def test_the_page_is_made_of_its_rows():
    """Every training of the study is one row of the page's table, and the page has its tables."""
    rows = pd.read_csv(ROOT / "docs" / "edge_of_stability.csv")
    assert set(rows["status"]) <= {"finished", "diverged", "dead", "converged"}
    task = study.load("")
    for name in study.EXPERIMENTS:
        own = rows[rows["experiment"] == name]
        wanted = sorted(
            (cell.rule, cell.shape["depth"], cell.shape["width"], cell.train["edge_multiple"], cell.train["seed"],
             cell.shape.get("activation", "abs"), cell.train.get("max_u") or 0.0, cell.train["n_steps"],
             cell.train.get("batch_size", 128), cell.train.get("loss", "cross_entropy"),
             cell.train.get("schedule", "constant"), cell.shape["width_exponent"])
            for cell in study.cells(name, task)
        )  # fmt: skip
        columns = ["rule", "depth", "width", "q", "seed", "activation", "max_u", "n_steps", "batch_size", "loss"]
        found = own.fillna({"max_u": 0.0})[[*columns, "schedule", "r"]]
        assert sorted(found.itertuples(index=False, name=None)) == wanted
    page = (ROOT / "docs" / "edge_of_stability.md").read_text()
    for name in ("E1", "E2", "E3", "E4", "E5", "E5-trained", "E6", "deep", "norm_power"):
        assert page.count(f"<!-- {name} -->\n|") == page.count(f"<!-- /{name} -->") == 1
    assert rows.loc[rows["status"] == "diverged", "train_loss"].isna().all()


def test_rows_of_other_experiments_stay():
    page = pd.DataFrame({"experiment": ["grid", "E2", "E1"], "q": [1, 2, 3]})
    found = study_edge.merged(pd.DataFrame({"experiment": ["E2", "E2"], "more": [0, 0], "q": [7, 8]}), page)
    assert found.to_dict("list") == {"experiment": ["E2", "E2", "grid", "E1"], "q": [7, 8, 1, 3]}


def test_tables_say_what_became_of_each_combination():
    alive = {"status": "finished", "train_accuracy": 0.95, "train_loss": 0.1, "test_accuracy": 0.9, "soft_rank": 1.5,
             "edge_ratio_p": 2.0, "spike": 1.0}  # fmt: skip
    lost = {"status": "diverged"} | {name: math.nan for name in alive if name != "status"}
    where = {"experiment": "E6", "depth": 4, "rule": "none"}
    rows = pd.DataFrame([
        where | {"q": 12.0, "max_u": math.nan} | lost, where | {"q": 12.0, "max_u": math.nan} | alive,
        where | {"q": 12.0, "max_u": 0.1} | alive, where | {"q": 12.0, "max_u": 0.1} | alive | {"soft_rank": 1.7},
        where | {"q": 32.0, "max_u": 0.1} | alive | {"train_accuracy": 0.2},
        where | {"q": 32.0, "max_u": 0.1} | alive | {"spike": 3.0},
    ])  # fmt: skip
    assert edge_tables.outcome_table(rows, "E6").splitlines() == [
        "| depth | q | rule | max_u=none | max_u=0.1 |",
        "| --- | --- | --- | --- | --- |",
        "| 4 | 12 | none | diverged 1/2 | 0.1, 0.900, 1.60, 2 |",
        "| 4 | 32 | none | – | learned 1/2: 0.1, 0.900, 1.50, 2, spike 2.0x |",
    ]
    patterns = rows.assign(experiment="E5", width=8, r=rows["max_u"].fillna(2.0))
    assert edge_tables.pattern_table(patterns[:4]).splitlines()[2] == (
        "| 4 | 8 | 12 | none | 0.95, diverged 1/2 | 0.95 |"
    )


def test_the_norm_of_features_varies_with_the_logarithm_of_depth_in_linear_widths(monkeypatch):
    """Against the prediction `sum k^-r`, at a small size; five standard errors of a variance."""
    monkeypatch.setattr(study, "NORM_DEPTH", 6)
    task = study.load("")
    for r in (0, 1):
        predicted = sum(k**-r for k in range(1, 7))
        assert study.norm_variance(r, task, 150) == pytest.approx(predicted, rel=5 * math.sqrt(2 / 149))


def test_quadratic_widths_even_out_the_first_updates():
    """Against the weights' own first step: the change of each layer's preactivations with its inputs as they were."""
    task = study.load("")
    table = study.initial_updates(task).set_index(["r", "seed"])
    model = HomogeneousMLP(MLPConfig(64, 10, 32, 8, 1), seed=2)
    x, y = study.first_samples(task, 128)
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), list(model.weights))
    changes, features = [], x
    weights = [weight.detach() for weight in model.weights]
    for gradient, weight, alpha in zip(gradients[:-1], weights, model.cfg.multipliers, strict=False):
        z = alpha * features @ weight.mT
        changes.append(float((alpha * features @ gradient.mT).norm() / z.norm()))
        features = z.abs()
    expected = np.array(changes[1:]) / changes[0]
    assert len(expected) == 6
    assert table.loc[(1, 2)].to_numpy() == pytest.approx([expected.mean(), expected.min(), expected.max()], rel=1e-4)
    means = table["mean"].groupby("r").mean()
    assert means[0] > 2 * means[1] > 3 * means[2]


# What the page says of its rows


@pytest.fixture(scope="module")
def rows():
    found = pd.read_csv(ROOT / "docs" / "edge_of_stability.csv")
    return found.assign(lost=found["status"] == "diverged", learned=found["train_accuracy"] > 0.9)


def counted(rows, what, **where):
    """How many, and of how many."""
    for name, value in where.items():
        rows = rows[rows[name].isin(value if isinstance(value, list) else [value])]
    return int(rows[what].sum()), len(rows)


def test_the_page_counts_explosions(rows):
    cold, warm, grid = (rows[rows["experiment"] == name] for name in ("E1", "E2", "grid"))
    entropy, squared = (cold[cold["loss"] == loss] for loss in ("cross_entropy", "squared_error"))
    assert [counted(entropy, "lost", rule="none", q=q) for q in (4, 16, 64)] == [(6, 27), (24, 27), (27, 27)]
    assert set(entropy[entropy["lost"] & (entropy["q"] == 4)]["depth"]) == {4, 8}
    late = entropy[entropy["lost"] & (entropy["q"] >= 16)]["stopped"]
    assert int((late > 5).sum()) == 1
    assert counted(entropy, "lost", rule=["s=1", "s=2"]) == (0, 162)
    assert counted(squared, "lost", rule="s=1") == (2, 81)
    assert counted(squared, "lost", rule="s=1", depth=16, q=64) == (2, 9)
    for rule in ("none", "s=2"):
        least = squared[squared["lost"] & (squared["rule"] == rule)].groupby("depth")["q"].min()
        assert (least[4], least[8]) == (4, 16)
        assert counted(squared, "lost", rule=rule, depth=8, q=[16, 64]) == (18, 18)
        assert counted(squared, "lost", rule=rule, depth=16, q=64) == (9, 9)
    assert counted(squared, "lost", rule="s=2", depth=4) == (27, 27)
    assert cold[cold["q"] >= 16]["train_accuracy"].max() < 0.22
    assert [counted(warm, "lost", rule="none", q=q) for q in (16, 32)] == [(7, 9), (9, 9)]
    assert [counted(warm, "lost", rule="none", q=8, r=r) for r in (2, 1, 0)] == [(2, 3), (0, 3), (0, 3)]
    assert counted(warm, "lost", rule=["s=1", "s=2"]) == (0, 72)
    assert [counted(warm, "learned", rule="s=2", q=q)[0] for q in (16, 32)] == [9, 3]
    assert [counted(warm, "learned", rule="s=1", q=q)[0] for q in (16, 32)] == [8, 1]
    assert [counted(grid, "lost", rule="none", q=2, r=r) for r in (0, 1, 2)] == [(4, 9), (2, 9), (0, 9)]
    assert [counted(grid, "learned", rule="s=1", q=8, r=r) for r in (0, 1, 2)] == [(2, 9), (8, 9), (9, 9)]


def above_plain(rows, q):
    """Of the pairs of one seed that both learned: in how many s=1 has the higher soft rank, and how many there are."""
    own = rows[rows["learned"] & (rows["q"] == q)]
    pairs = own.pivot(index=["depth", "r", "seed"], columns="rule", values="soft_rank")[["none", "s=1"]].dropna()
    return int((pairs["s=1"] > pairs["none"]).sum()), len(pairs)


def test_the_page_orders_soft_ranks_and_sharpness(rows):
    warm, grid = rows[rows["experiment"] == "E2"], rows[rows["experiment"] == "grid"]
    assert [above_plain(warm, q) for q in (4, 8, 16)] == [(9, 9), (7, 7), (2, 2)]
    assert [above_plain(grid, q) for q in (2, 4)] == [(0, 14), (0, 4)]
    learned = warm[warm["learned"]]
    best = learned[learned["rule"] == "none"].groupby("r")["soft_rank"].max()
    assert best.round(2).to_dict() == {0: 1.41, 1: 1.46, 2: 1.41}
    top = learned[(learned["rule"] == "s=1") & (learned["q"] == 16)].groupby("r")
    assert top["soft_rank"].min().round(2).to_dict() == {0: 1.72, 1: 1.70, 2: 1.64}
    assert top["soft_rank"].max().round(2).to_dict() == {0: 1.78, 1: 1.87, 2: 1.69}
    accuracies = top["test_accuracy"].min()[[0, 1]].min(), top["test_accuracy"].max()[2]
    assert accuracies == pytest.approx((0.953, 0.953), abs=5e-4)
    edge = learned[learned["q"] <= 16].assign(times=lambda t: t["edge_ratio_p"] / t["q"])
    scaled = edge[edge["rule"] == "s=1"]["times"]
    assert (round(scaled.min(), 2), round(scaled.max(), 1)) == (0.58, 1.8)
    others = edge[edge["rule"] != "s=1"]["edge_ratio_p"]
    assert (round(others.min(), 2), round(others.max(), 2)) == (0.17, 0.49)
    sharp = edge.groupby(["rule", "r", "q"])["lambda_h"].median()
    for rule in ("none", "s=2"):
        for r in (0, 1, 2):
            assert sharp[rule, r].is_monotonic_decreasing
    assert [round(float(sharp["s=1", 2, q]), 4) for q in (4, 16)] == [0.0192, 0.0034]
    assert [round(float(sharp["s=1", 1, q]), 4) for q in (4, 16)] == [0.0064, 0.0494]


def test_the_page_tells_of_caps_depth_and_first_powers(rows):
    capped = rows[rows["experiment"] == "E6"]
    assert counted(capped, "learned", max_u=0.1) == (12, 12)
    assert counted(capped[capped["max_u"].isna()], "learned") == (1, 12)
    assert [counted(capped, "learned", max_u=0.3, rule=rule) for rule in ("none", "s=1")] == [(0, 6), (3, 6)]
    tenth = capped[capped["max_u"] == 0.1]
    assert [round(x, 2) for x in (tenth["soft_rank"].min(), tenth["soft_rank"].max())] == [1.36, 1.64]
    assert round(tenth["train_accuracy"].min(), 3) == 0.946

    patterns = rows[rows["experiment"] == "E5"]
    assert round(patterns[patterns["depth"] == 16]["train_accuracy"].max(), 2) <= 0.44
    shallow = patterns[patterns["depth"] == 4]
    assert [counted(shallow, "learned", r=r) for r in (2, 1, 0)] == [(2, 3), (2, 3), (0, 3)]

    deep = rows[(rows["experiment"] == "deep") & (rows["activation"] == "abs")]
    plain, scaled = (deep[deep["rule"] == rule].set_index(["q", "seed"]) for rule in ("none", "s=1"))
    for q in (2, 4):
        own = plain.loc[q][~plain.loc[q]["lost"]]
        other = scaled.loc[q].loc[own.index]
        assert (own["train_loss"] < other["train_loss"]).all()
        assert (own["test_accuracy"] > other["test_accuracy"]).all()
        assert [int((own["soft_rank"] > other["soft_rank"]).sum()), len(own)] == {2: [3, 3], 4: [1, 2]}[q]
    for q in (6, 8):
        assert (plain.loc[q]["learned"].sum(), scaled.loc[q]["learned"].sum()) == (1, 3)
    relu = rows[(rows["experiment"] == "deep") & (rows["activation"] == "relu")].groupby("rule")["test_accuracy"]
    for rule, table in (("none", plain), ("s=1", scaled)):
        assert relu.min()[rule] > table.loc[4]["test_accuracy"].max()

    first = rows[rows["experiment"] == "norm_power"]
    assert [counted(first, "learned", depth=4, q=q)[0] for q in (4, 8, 12, 16, 32)] == [3, 2, 1, 0, 0]
    assert not first["lost"].any()

    squared = rows[rows["experiment"] == "E3"].groupby(["rule", "q"])["edge_along_step"].median()
    assert [round(float(squared["s=1", q]), 1) for q in (0.5, 1, 2)] == [1.0, 1.0, 1.3]
    assert squared[["none", "s=2"]].max() < 0.7


def test_medians_of_a_product_are_not_products_of_medians():
    """The full-batch table's `lambda_P soft rank^2`: of each training, then the median."""
    rows = pd.DataFrame({
        "experiment": "E4", "q": 1.0, "rule": "none", "seed": [0, 1, 2], "status": "finished", "train_accuracy": 1.0,
        "edge_ratio_p": 0.5, "train_loss": 0.1, "lambda_p": [1.0, 2.0, 3.0], "soft_rank": [3.0, 1.0, 2.0],
    })  # fmt: skip
    assert edge_tables.full_batch_table(rows).splitlines()[2] == "| 1 | none | 0.50 | 2.00 | 9.00 | 0.1 |"
