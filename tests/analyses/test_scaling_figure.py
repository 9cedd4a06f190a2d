"""Scaling curves of made-up sweeps: numbers against pandas and the closed form, the figure's contents, bad input."""

from __future__ import annotations

import json
import math

import lens_contract as contract
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from typer.testing import CliRunner

import qfl_interp as qfl
from qfl_interp.analyses import scaling
from qfl_interp.analyses.sweeps.label import label_of
from qfl_interp.analyses.sweeps.scaling_columns import RESULT
from qfl_interp.analyses.sweeps.scaling_figure import scaling_figure
from qfl_interp.cli.sweep import build_sweep_app
from qfl_interp.errors import QflError
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import DEFINITION, definition_json
from qfl_interp.sweep.parts import write_part
from qfl_interp.sweep.storage import Storage
from qfl_interp.sweep.sweep import Sweep
from qfl_interp.tables import select
from tests import synthetic_sweep

RESAMPLES = 99
KEYS = ["d_model", "n_layers", "lr"]


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return synthetic_sweep.records()


@pytest.fixture(scope="module")
def sweep(records, tmp_path_factory) -> Sweep:
    return synthetic_sweep.write(tmp_path_factory.mktemp("scaling") / "sweep", records)


@pytest.fixture(scope="module")
def found(sweep):
    return scaling(sweep, n_resamples=RESAMPLES)


@pytest.fixture(scope="module")
def figure(found):
    return found.plot()


def brute_best(records, task, budget):
    """The finished rows of the configuration of lowest mean loss, of those with most of them."""
    means = {}
    for key, part in records[(records["task"] == task) & (records["budget_flops"] == budget)].groupby(KEYS):
        ended = part[part["status"] == "finished"]
        means[key] = ((-len(ended), ended["val_loss"].mean()), ended)
    return min(means.values(), key=lambda pair: pair[0])[1]


def test_rows_are_the_best_configurations(records, found):
    assert len(found.rows) == 3 * len(synthetic_sweep.BUDGETS)
    for row in found.rows.itertuples():
        best = brute_best(records, row.task, row.budget_flops)
        assert (row.d_model, row.n_layers, row.lr) == tuple(best[KEYS].iloc[0])
        assert row.n_seeds == len(best)
        for name, column in [("loss", "val_loss_answer"), ("exact", "val_exact_answer"), ("pass", "val_pass_answer")]:
            values = best[column].tolist()
            got = [getattr(row, name) if name != "pass" else found.rows.loc[row.Index, "pass"]]
            got += [found.rows.loc[row.Index, f"{name}_low"], found.rows.loc[row.Index, f"{name}_high"]]
            np.testing.assert_allclose(got, [math.fsum(values) / len(values), min(values), max(values)])


def test_every_column_is_defined(found):
    for table, defined in RESULT.items():
        if table != "summary":
            contract.check_columns(getattr(found, table).columns, defined)
        assert "not defined" not in repr(found.columns_help(table))
    assert found.columns_help("fits").columns["p_holm"].text.startswith("p_value, Holm-corrected")
    # Of the summary it is that of the fits, not of the rows.
    assert "different seeds" in found.columns_help("summary").columns["n_seeds"].text


def test_the_figure_names_sweep_tasks_and_seeds(sweep, figure):
    said = "addition length 16 · maximum subarray length 16 · sparse parity length 40 · seeds 0, 1, 2 · sweep made_up"
    (line,) = [text for text in figure.layout.annotations if text.name == "run"]
    assert line.text.replace("<br>", " · ") == said
    runs = pd.DataFrame({"task": ["addition"] * 7, "length": [8, 4, 4, 4, 4, 4, 4], "seed": [1, 1, 2, 3, 4, 5, 9]})
    assert label_of(sweep, runs) == "addition length 4, 8 · 6 seeds, 1 to 9 · sweep made_up"
    many = pd.DataFrame({"task": list("abcdef"), "length": 4, "seed": 7})
    assert label_of(sweep, many) == "6 tasks · seed 7 · sweep made_up"


def test_the_paper_takes_single_runs_with_the_equals_sign_scored(records, sweep):
    found = scaling(sweep, task="addition", count="paper", rule="paper", n_resamples=RESAMPLES)
    for row in found.rows.itertuples():
        there = records[(records["task"] == "addition") & (records["budget_flops"] == row.budget_flops)]
        assert row.loss == there["val_loss"].min()
        assert (row.n_seeds, row.loss_low, row.loss_high) == (1, row.loss, row.loss)
    (fit,) = found.fits.to_dict("records")
    assert fit["n_seeds"] == 1, "the best runs of several seeds are no seed's curve"
    # One run a budget leaves no spread between seeds: the bootstrap test takes over.
    assert (fit["test"], fit["p_value"]) == ("one break", fit["one_break_p"])
    assert math.isnan(fit["lack_of_fit_p"])


def test_without_a_floor_exponent_and_test_are_those_of_a_straight_line(sweep, records):
    found = scaling(sweep, task="maximum_subarray", irreducible=False, n_resamples=RESAMPLES)
    (fit,) = found.fits.to_dict("records")
    budgets = synthetic_sweep.BUDGETS
    parts = [brute_best(records, "maximum_subarray", budget)["val_loss_answer"].to_numpy() for budget in budgets]
    x = np.log(np.repeat(budgets, [len(part) for part in parts]))
    y = np.log(np.concatenate(parts))
    line = scipy.stats.linregress(x, y)
    half = scipy.stats.t.ppf(0.975, len(x) - 2) * line.stderr
    assert fit["exponent"] == pytest.approx(-line.slope)
    assert (fit["exponent_low"], fit["exponent_high"]) == pytest.approx((-line.slope - half, -line.slope + half))
    assert 0.10 < fit["exponent"] < 0.14
    pure = sum(((np.log(part) - np.log(part).mean()) ** 2).sum() for part in parts)
    rss = ((y - line.intercept - line.slope * x) ** 2).sum()
    df = len(budgets) - 2, len(x) - len(budgets)
    statistic = (rss - pure) / df[0] / (pure / df[1])
    assert fit["lack_of_fit"] == pytest.approx(statistic)
    assert fit["lack_of_fit_p_equal"] == pytest.approx(scipy.stats.f.sf(statistic, *df))
    assert fit["p_value"] == fit["lack_of_fit_p"]
    # A share of the resamples, the observed one among them.
    assert fit["p_value"] * (RESAMPLES + 1) == pytest.approx(round(fit["p_value"] * (RESAMPLES + 1)))
    assert 0.02 < fit["p_value"] <= 1


def test_losses_below_the_resolution_count_as_it(sweep, records):
    found = scaling(sweep, task="maximum_subarray", irreducible=False, resolution=1.0, n_resamples=RESAMPLES)
    budgets = synthetic_sweep.BUDGETS
    parts = [brute_best(records, "maximum_subarray", budget)["val_loss_answer"].to_numpy() for budget in budgets]
    losses = np.concatenate(parts)
    assert 0 < (losses < 1.0).sum() < losses.size
    x = np.log(np.repeat(budgets, [len(part) for part in parts]))
    line = scipy.stats.linregress(x, np.log(np.maximum(losses, 1.0)))
    assert found.fits["exponent"].iloc[0] == pytest.approx(-line.slope)
    assert found.rows["loss"].min() < 1.0, "the rows say what was measured"
    with pytest.raises(ValueError, match="resolution must be at least 0"):
        scaling(sweep, resolution=-1.0)


def test_verdicts_tell_the_laws_apart(found):
    fits = {row["task"]: row for row in found.fits.to_dict("records")}
    falling, power, flat = (fits[name] for name in ("addition", "maximum_subarray", "sparse_parity"))
    assert (falling["breaks"], power["breaks"], flat["breaks"]) == (True, False, False)
    assert falling["verdict"].startswith("breaks the power law (p = ")
    assert power["verdict"].startswith("no break shown (p = ")
    assert power["verdict"].endswith("; no transition; never half right")
    assert falling["transition_start"] <= 1e11 < falling["transition_end"] <= 1e12
    assert falling["grid_step_decades"] == pytest.approx(0.5)
    assert abs(falling["early_exponent"]) < 0.02 < falling["exponent"]
    assert math.isnan(power["transition_start"])
    # Holm over the three tests: the smallest p-value times three, the others at least their own.
    p_values = found.fits["p_value"].to_numpy()
    order = np.argsort(p_values)
    expected = np.maximum.accumulate(np.array([3, 2, 1]) * p_values[order]).clip(max=1)
    np.testing.assert_allclose(found.fits["p_holm"].to_numpy()[order], expected)


def test_half_right_is_interpolated_in_log_budget(found, records):
    fit = found.fits[found.fits["task"] == "addition"].iloc[0]
    crossings = []
    for seed in range(3):
        runs = [brute_best(records, "addition", budget) for budget in synthetic_sweep.BUDGETS]
        scores = [part[part["seed"] == seed]["val_exact_answer"].iloc[0] for part in runs]
        at = next(i for i, score in enumerate(scores) if score >= 0.5)
        share = (0.5 - scores[at - 1]) / (scores[at] - scores[at - 1])
        crossings.append(np.log10(synthetic_sweep.BUDGETS[at - 1]) + 0.5 * share)
    assert np.log10(fit["half_exact"]) == pytest.approx(np.mean(crossings))
    assert fit["half_exact_seeds"] == 3


def test_half_right_from_the_first_budget_is_not_never(records, tmp_path):
    late = records[(records["budget_flops"] > 1e12) & (records["task"] == "addition")]
    assert late["val_exact_answer"].min() > 0.5
    fit = scaling(synthetic_sweep.write(tmp_path / "late", late), n_resamples=RESAMPLES).fits.iloc[0]
    assert np.isnan(fit["half_exact"])
    assert (fit["half_exact_seeds"], fit["half_exact_first"]) == (0, 3)
    assert fit["verdict"].endswith("; half right from the first budget")


def test_of_a_real_valued_task_there_are_no_answers_and_another_unit(records, tmp_path):
    power = records[records["task"] == "maximum_subarray"].assign(task="linear_regression", length=4)
    for name in ("run_id", "path"):
        power[name] = power[name].str.replace("maximum_subarray16", "linear_regression4", regex=False)
    scores = [name for name in power if name.startswith(("val_exact", "val_pass"))]
    axes = {"budget_flops": synthetic_sweep.BUDGETS, "d_model": 8, "n_layers": 2, "lr": 1e-3, "batch_size": 64}
    grid = {"task": "linear_regression", "length": 4, "loss": "squared_error", **axes}
    storage = Storage(str(tmp_path))
    storage.write_bytes(DEFINITION, definition_json(SweepConfig.from_dict({"name": "real", "grid": [grid]})))
    write_part(storage, "linear_regression", power.assign(**dict.fromkeys(scores, np.nan)))
    found = scaling(Sweep.open(tmp_path), n_resamples=RESAMPLES)
    assert found.fits["verdict"].iloc[0].endswith("; no transition"), "not never half right: that is not known"
    assert np.isnan(found.fits["half_exact_first"].iloc[0])
    drawn = found.plot()
    texts = [text.text for text in drawn.layout.annotations]
    assert "half squared error" in texts
    assert not {"exact match", "pass probability", "validation loss (nats)"} & {*texts}
    assert "1 / validation examples" not in {trace.name for trace in drawn.data}
    assert {trace.yaxis for trace in drawn.data if trace.x[0] is not None} == {"y"}


def test_too_few_budgets_are_said_and_not_fitted(records, tmp_path):
    few = records[(records["budget_flops"] <= 1e10) & (records["task"] == "addition")]
    two = scaling(synthetic_sweep.write(tmp_path / "two", few[few["budget_flops"] <= 4e9]), n_resamples=RESAMPLES)
    fit = two.fits.iloc[0]
    assert fit["verdict"] == "power law not tested; no transition; never half right"
    assert "3 budgets" in fit["not_fitted"]
    one = scaling(synthetic_sweep.write(tmp_path / "one", few[few["budget_flops"] == 1e10]), n_resamples=RESAMPLES)
    assert len(one.rows) == 1
    assert [t.name for t in one.plot().data if t.name == "power law"] == []


def test_no_finished_run(records, tmp_path):
    failed = records[records["task"] == "addition"].head(4).assign(status="failed")
    with pytest.raises(QflError, match="no finished run to look at: 4 failed"):
        scaling(synthetic_sweep.write(tmp_path / "failed", failed))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": "answers"}, QflError, "answer"),
        ({"task": "additon"}, QflError, "addition"),
        ({"length": 99}, QflError, "length 99"),
        ({"rule": "median"}, QflError, "median"),
    ],
)
def test_bad_arguments(sweep, arguments, error, message):
    with pytest.raises(error, match=message):
        scaling(sweep, **arguments)


def panel(figure, number, name):
    """Traces with data of one name in the panel of axes `number`."""
    return [
        t for t in figure.data if t.name == name and t.x[0] is not None and t.yaxis == f"y{number}".replace("y1", "y")
    ]


@pytest.mark.parametrize(("row", "name"), list(enumerate(["loss", "exact", "pass"])))
def test_panels_show_the_best_line_with_its_range(figure, found, row, name):
    for index, task in enumerate(["addition", "maximum_subarray", "sparse_parity"]):
        best = select(found.rows, task=task)
        (line,) = panel(figure, 3 * index + row + 1, "best configuration (mean, range of seeds)")
        np.testing.assert_array_equal(line.x, best["budget_flops"])
        np.testing.assert_array_equal(line.y, best[name])
        np.testing.assert_allclose(line.error_y.array, best[f"{name}_high"] - best[name])
        np.testing.assert_allclose(line.error_y.arrayminus, best[name] - best[f"{name}_low"])
        axis = figure.layout[f"yaxis{3 * index + row + 1}".removesuffix("1" if index + row == 0 else "#")]
        assert axis.type == (None if name == "exact" else "log")


def test_every_finished_run_is_a_dot_near_its_budget(figure, records):
    for index, task in enumerate(["addition", "maximum_subarray", "sparse_parity"]):
        for d_model, n_layers in synthetic_sweep.SHAPES:
            shown = select(records, task=task, d_model=d_model, n_layers=n_layers, status="finished")
            (dots,) = panel(figure, 3 * index + 1, f"{d_model} × {n_layers}")
            assert sorted(dots.y) == sorted(shown["val_loss_answer"])
            budgets = dots.customdata[:, 0]
            assert np.abs(np.log10(dots.x / budgets)).max() < 0.25
            assert sorted(budgets) == sorted(shown["budget_flops"])
            assert "seed" in dots.hovertemplate


def test_levels_laws_and_transition(figure, found):
    task = qfl.load_task("addition", 16)
    (base_rate,) = panel(figure, 1, "best constant guess")
    (paper,) = panel(figure, 1, "paper's random line")
    assert set(base_rate.y) == {task.baselines["base_rate"]}
    assert set(paper.y) == {task.baselines["paper"]}
    assert (base_rate.line.dash, paper.line.dash) == ("dash", "dot")
    assert panel(figure, 7, "paper's random line") == []
    fit = found.fits.iloc[0]
    bands = [shape for shape in figure.layout.shapes if shape.name == "transition"]
    assert {(shape.x0, shape.x1) for shape in bands} == {(fit["transition_start"], fit["transition_end"])}
    assert [shape.xref for shape in bands] == ["x", "x2", "x3"]
    (floor,) = panel(figure, 3, "1 / validation examples")
    assert set(floor.y) == {1e-3}
    (law,) = panel(figure, 4, "power law")
    slope = np.polyfit(np.log(law.x), np.log(law.y), 1)[0]
    assert slope == pytest.approx(-0.12, abs=0.02)
    assert law.line.dash == "dot"
    titles = [a.text for a in figure.layout.annotations if a.text and "<b>" in a.text]
    assert [title.split("<b>")[1].split("</b>")[0] for title in titles] == [
        "addition",
        "maximum subarray",
        "sparse parity",
    ]
    assert "breaks the power law (p = 0.03)" in titles[0]


@pytest.mark.slow
def test_the_base_rate_is_no_chance_of_a_loss_that_scores_the_equals_sign(sweep):
    drawn = scaling(sweep, task="addition", count="paper", n_resamples=RESAMPLES).plot()
    assert panel(drawn, 1, "best constant guess") == []
    assert len(panel(drawn, 1, "paper's random line")) == 1


def test_columns_wrap_and_panels_do_not_overlap(found):
    """Six tasks: four columns, then two below them."""
    tasks = [f"task_{i}" for i in range(6)]
    notes = pd.DataFrame(
        {"task": tasks, "length": 4, "base_rate": 0.7, "paper": np.nan, "floor": 1e-3, "note": "a\nb\nc"}
    ).assign(transition_start=np.nan, transition_end=np.nan)
    best = pd.concat([select(found.rows, task="addition").assign(task=task, length=4) for task in tasks])
    runs = best.assign(seed=0)
    lines = pd.DataFrame({name: [] for name in ("task", "length", "kind", "budget_flops", "loss")})
    drawn = scaling_figure(runs, best, lines, notes)
    boxes = []
    for number in range(1, 19):
        suffix = "" if number == 1 else str(number)
        boxes.append((*drawn.layout[f"xaxis{suffix}"].domain, *drawn.layout[f"yaxis{suffix}"].domain))
    assert len({box[:2] for box in boxes}) == 4
    for i, a in enumerate(boxes):
        assert 0 <= a[0] < a[1] <= 1
        assert 0 <= a[2] < a[3] <= 1
        for b in boxes[:i]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]


@pytest.mark.slow
def test_the_command_prints_json_and_draws_a_page(sweep, tmp_path):
    page = tmp_path / "scaling.html"
    arguments = ["scaling", str(sweep.path), "--task", "addition", "--json", "--out", str(page)]
    result = CliRunner().invoke(build_sweep_app(), arguments, catch_exceptions=False)
    answer = json.loads(result.stdout)
    assert answer["fits"][0]["verdict"].startswith("breaks the power law")
    assert len(answer["rows"]) == len(synthetic_sweep.BUDGETS)
    assert "plotly" in page.read_text()
    helped = CliRunner().invoke(build_sweep_app(), ["emergence", "--help"], env={"COLUMNS": "160"})
    assert helped.exit_code == 0
    for option in ("--within", "--n-train", "--d-model", "--budget"):
        assert option in helped.stdout
