"""Quiet and loud across the budgets of a sweep: a small real one, and planted curves whose verdicts are known."""

from __future__ import annotations

import json
import pickle
from multiprocessing.reduction import ForkingPickler

import lens_contract as contract
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_train_config
from typer.testing import CliRunner

import qfl_interp as qfl
from qfl_interp.analyses import emergence
from qfl_interp.analyses.sweeps.across import across
from qfl_interp.analyses.sweeps.across_columns import RESULT
from qfl_interp.analyses.sweeps.across_figure import across_figure
from qfl_interp.analyses.sweeps.across_verdicts import Transitions, verdict_across
from qfl_interp.cli.sweep import build_sweep_app
from qfl_interp.emergence.transition import find_transition
from qfl_interp.errors import QflError
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import DEFINITION, definition_json
from qfl_interp.sweep.parts import write_part
from qfl_interp.sweep.plan import plan_sweep
from qfl_interp.sweep.records import make_record
from qfl_interp.sweep.storage import Storage
from qfl_interp.sweep.sweep import Sweep
from qfl_interp.tables import select

CONFIG = qfl.ProbeConfig(n_train=150, n_test=60)
OPTIONS = {"config": CONFIG, "progress": False}
BUDGETS = [3e7, 6e7, 1.5e8]
THIRDS = ("beginning", "middle", "end", "all")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    """Additions of 4 bits: two shapes, two seeds, three budgets; the larger shape failed at the smallest budget."""
    folder = tmp_path_factory.mktemp("across") / "sweep"
    settings = {"task": "addition", "length": 4, "batch_size": 16, "n_val": 32, "seed": [0, 1], "lr": 3e-3}
    config = SweepConfig.from_dict(
        {
            "name": "tiny",
            "min_steps": 4,
            "grid": [settings | {"budget_flops": BUDGETS, "d_model": [8, 16], "n_layers": 2}],
        }
    )
    storage = Storage(str(folder))
    storage.write_bytes(DEFINITION, definition_json(config))
    rows = []
    for planned in plan_sweep(config).runs:
        made = planned.config
        known = {"device": "cpu", "attempts": 1, "group_size": 1}
        if made.model.d_model == 16 and planned.budget_flops == BUDGETS[0]:
            rows.append(make_record(planned, "failed", **known, error="no luck"))
            continue
        task = qfl.load_task(made.task, made.length)
        run = qfl.train(task, made.model, made.train, folder / planned.path, progress=False)
        rows.append(make_record(planned, "finished", **known, run=run))
    write_part(storage, "addition", pd.DataFrame(rows))
    return Sweep.open(folder)


def untouched_rows(sweep, found, feature="carry"):
    """The probe tables as the runs' folders hold them, one row a place and label."""
    runs = [sweep.run(run_id) for run_id in found.runs["run_id"]]
    tables = [
        run.table("probe").read().assign(budget_flops=b)
        for run, b in zip(runs, found.runs["budget_flops"], strict=True)
    ]
    return select(pd.concat(tables), feature=feature)


def best_places(rows):
    """Test loss of each label's best place by training loss, in the order of the labels."""
    fitted = rows[rows["fitted"]]
    return fitted.loc[fitted.groupby("label")["train_loss"].idxmin()].sort_values("label")["test_loss"].to_numpy()


def third_of(losses, third):
    """The geometric mean of a third, as the paper splits."""
    n = len(losses)
    ends = {"beginning": (0, n // 3), "middle": (n // 3, 2 * n // 3), "end": (2 * n // 3, n), "all": (0, n)}
    first, last = ends[third]
    return float(np.prod(losses[first:last]) ** (1 / (last - first)))


@pytest.fixture(scope="module")
def found(sweep):
    return across(sweep, "carry", d_model=8, n_layers=2, **OPTIONS)


def test_curves_are_means_over_seeds_of_the_probe_tables(sweep, found):
    rows = untouched_rows(sweep, found)
    trained, untrained = rows[rows["source"] == "trained"], rows[rows["source"] == "untrained"]
    assert len(trained["run_id"].unique()) == 6
    controls = [best_places(part) for _, part in untrained.groupby("model_seed")]
    assert len(controls) == 2
    by_test = [
        part[part["fitted"]].groupby("label")["test_loss"].min().to_numpy()
        for _, part in untrained.groupby("model_seed")
    ]
    for row in found.curves.itertuples():
        losses = [
            third_of(best_places(part), row.third)
            for _, part in trained[trained["budget_flops"] == row.budget_flops].groupby("run_id")
        ]
        assert len(losses) == row.n_seeds == 2
        np.testing.assert_allclose(
            [row.geometric, row.geometric_low, row.geometric_high], [np.mean(losses), min(losses), max(losses)]
        )
        clean = np.mean([third_of(control, row.third) for control in controls])
        assert row.baseline_clean == pytest.approx(clean)
        assert row.baseline_paper == pytest.approx(third_of(np.sqrt(by_test[0] * by_test[1]), row.third))
    assert set(found.curves["third"]) == set(THIRDS)
    assert len(found.curves) == 12


def test_every_column_is_defined(found):
    for table, defined in RESULT.items():
        contract.check_columns(getattr(found, table).columns, defined)
        assert "not defined" not in repr(found.columns_help(table))


def test_the_figure_names_sweep_task_and_seeds(found):
    (line,) = [text for text in found.plot().layout.annotations if text.name == "run"]
    assert line.text == "addition length 4 · seeds 0, 1 · sweep tiny"


def test_losses_are_those_of_the_records(sweep, found):
    records = sweep.table()
    matched = records[records["d_model"] == 8].groupby("budget_flops")["val_loss_answer"]
    np.testing.assert_allclose(found.losses["loss"], matched.mean())
    np.testing.assert_allclose(found.losses["loss_high"], matched.max())
    assert found.losses["budget_flops"].tolist() == BUDGETS


def test_the_default_shape_is_the_best_at_the_largest_budget(sweep, found):
    records = sweep.table()
    largest = records[records["budget_flops"] == BUDGETS[-1]].groupby("d_model")["val_loss"].mean()
    chosen = across(sweep, "carry", **OPTIONS)
    assert set(chosen.rows["d_model"]) == {int(largest.idxmin())}
    assert set(chosen.runs["d_model"]) == {int(largest.idxmin())}


@pytest.mark.slow
def test_budgets_without_a_finished_run_are_named(sweep):
    found = across(sweep, "carry", d_model=16, n_layers=2, **OPTIONS)
    assert found.left_out.to_dict("records") == [{"task": "addition", "length": 4, "budget_flops": BUDGETS[0]}]
    assert "none finished at 3e+07" in repr(found)
    assert sorted(set(found.curves["budget_flops"])) == BUDGETS[1:]
    # Two budgets hold no plateau and fall.
    assert not found.rows["transition_found"].any()
    assert "2 budgets are too few" in found.rows["transition_reason"].iloc[0]
    assert set(found.rows["verdict"]) <= {"not learned", "no transition"}


def test_a_second_call_fits_nothing(sweep, found, monkeypatch):
    monkeypatch.setattr(
        "qfl_interp.analyses.lenses.probe.fitting.fit_probes", lambda *a, **k: pytest.fail("fitted again")
    )
    again = across(sweep, "carry", d_model=8, n_layers=2, **OPTIONS)
    pd.testing.assert_frame_equal(again.rows, found.rows)


@pytest.mark.slow
def test_the_figure_is_of_all_features_or_of_one(sweep):
    features = ["carry", "first_operand"]
    found = across(sweep, features, d_model=8, n_layers=2, **OPTIONS)

    def shown(**options) -> list[str]:
        texts = [str(text.text) for text in found.plot(**options).layout.annotations]
        return [name for name in features if any(name.replace("_", " ") in text for text in texts)]

    assert shown(baseline="paper") == features
    assert shown(feature=features[-1]) == features[-1:]


@pytest.mark.slow
def test_what_goes_to_other_processes_survives_the_journey(sweep, monkeypatch):
    """Runs as paths, the work as a function of the module: each item done by copies that were pickled."""
    done = []

    def elsewhere(items, prepare, work, *, label, jobs, progress):
        assert jobs == 2
        for item in items:
            there, what = pickle.loads(ForkingPickler.dumps((work, item)))
            there(prepare(), what)
            done.append(what.run.run_id)

    monkeypatch.setattr("qfl_interp.analyses.sweeps.across.over_checkpoints", elsewhere)
    found = across(sweep, "first_operand", d_model=8, n_layers=2, jobs=2, **OPTIONS)
    assert done == found.runs["run_id"].tolist()
    assert np.isfinite(found.curves["geometric"]).all()


@pytest.mark.slow
def test_the_protocol_within_a_run_stands_beside(sweep, tiny_run, tmp_path):
    task, options = qfl.load_task("addition", 4), {"n_steps": 6, "n_checkpoints": 4}
    trained = [
        qfl.train(task, qfl.ModelConfig(8, 2), tiny_train_config(seed=s, **options), tmp_path / f"{s}", progress=False)
        for s in (0, 1)
    ]
    found = across(sweep, "carry", d_model=8, n_layers=2, within=trained, **OPTIONS).rows
    tables = [emergence(run, "carry", config=CONFIG, progress=False).to_dataframe() for run in trained]
    for row in found.itertuples():
        verdicts = [select(table, third=row.third)["verdict"].iloc[0] for table in tables]
        assert row.within_runs == 2
        assert row.within_verdict == ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    with pytest.raises(QflError, match=r"addition 4\), and .* has addition 6"):
        across(sweep, "carry", within=tiny_run, **OPTIONS)


@pytest.mark.slow
def test_the_command_gives_the_same_rows(sweep, found, tmp_path):
    page = tmp_path / "across.html"
    probes = ["--n-train", str(CONFIG.n_train), "--n-test", str(CONFIG.n_test), "--quiet"]
    shape = ["--d-model", "8", "--n-layers", "2", "--out", str(page), "--json"]
    answer = CliRunner().invoke(
        build_sweep_app(), ["emergence", str(sweep.path), "carry", *probes, *shape], catch_exceptions=False
    )
    rows = json.loads(answer.stdout)
    assert [row["third"] for row in rows] == found.rows["third"].tolist()
    np.testing.assert_array_equal([row["baseline_paper"] for row in rows], found.rows["baseline_paper"])
    assert "plotly" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": "carrry"}, QflError, "carry"),
        ({"task": "sorting"}, QflError, "sorting"),
        ({"d_model": 64, "n_layers": 2}, QflError, "8 x 2, 16 x 2"),
        ({"d_model": 8}, ValueError, "Give both or neither"),
        ({"target_budget": 4e7}, QflError, "nearest is 3e\\+07"),
        ({"n_untrained": 0}, ValueError, "n_untrained must be at least 1"),
    ],
)
def test_bad_arguments(sweep, arguments, error, message):
    with pytest.raises(error, match=message):
        across(sweep, **arguments, **OPTIONS)


def test_one_budget_is_refused(sweep, tmp_path):
    storage = Storage(str(tmp_path))
    storage.write_bytes(DEFINITION, definition_json(sweep.config))
    rows = sweep.table()
    write_part(storage, "addition", rows[rows["budget_flops"] == BUDGETS[1]])
    with pytest.raises(QflError, match="finished runs at 2 budgets"):
        across(Sweep.open(tmp_path), "carry", **OPTIONS)


# Planted curves: a loss that stays at 0.65 to 1e11 FLOPs and is gone at 1e12, on a grid of half decades.
GRID = 10.0 ** np.arange(9, 13.1, 0.5)


def planted(onsets: list[float], *, falls: float = 1e11, seeds_fall: list[float] | None = None) -> dict:
    """The verdict on a feature whose probe loss goes from 0.5 to 0.01 just after each seed's onset."""
    metric = np.array([np.where(GRID > onset, 0.01, 0.5) for onset in onsets])
    loss = [np.where(GRID > at, 1e-3, 0.65) for at in (seeds_fall or [falls] * len(onsets))]
    transitions = [find_transition(GRID, part, chance_loss=0.65, min_plateau_points=2) for part in loss]
    mean = find_transition(GRID, np.mean(loss, axis=0), chance_loss=0.65, min_plateau_points=2)
    curve = pd.DataFrame(
        {"budget_flops": GRID, "geometric": metric.mean(axis=0), "baseline_clean": 0.6, "baseline_paper": 0.5}
    )
    of_seeds = pd.concat(
        [pd.DataFrame({"seed": s, "budget_flops": GRID, "geometric": row}) for s, row in enumerate(metric)]
    )
    return verdict_across(curve, of_seeds, Transitions(mean, dict(enumerate(transitions)), 1.0))


def test_a_feature_before_the_fall_is_quiet():
    row = planted([1e9, 1e9, 1e9])
    assert (row["verdict"], row["certain"], row["seed_verdicts"]) == ("quiet", True, "3 quiet")
    # Linear in log budget from 0.5 at 1e9 to 0.01 at 10^9.5; the threshold is half of 0.6.
    crossing = 9 + 0.5 * (0.5 - 0.3) / (0.5 - 0.01)
    assert row["lead_log10"] == pytest.approx(11 - crossing)
    assert (row["lead_low"], row["lead_high"]) == pytest.approx((11 - 9.5, 11.5 - 9))
    assert row["onset_flops_paper_baseline"] == pytest.approx(10 ** (9 + 0.5 * (0.5 - 0.25) / (0.5 - 0.01)))
    assert row["lead_seed_low"] == pytest.approx(row["lead_seed_high"])


def test_one_other_seed_makes_a_verdict_uncertain_and_widens_the_range():
    row = planted([1e9, 1e9, 1e12])
    assert row["seed_verdicts"] == "2 quiet, 1 loud"
    assert not row["certain"]
    assert row["lead_low"] == pytest.approx(11 - 12.5)
    assert row["lead_high"] == pytest.approx(11.5 - 9)
    leads = [11 - (9 + 0.5 * 0.2 / 0.49)] * 2 + [11 - (12 + 0.5 * 0.2 / 0.49)]
    half = 4.302652729749464 * np.std(leads, ddof=1) / np.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert row["lead_seed_low"] == pytest.approx(np.mean(leads) - half)
    assert row["lead_seed_high"] == pytest.approx(np.mean(leads) + half)


def test_a_seed_that_does_not_learn_makes_a_verdict_uncertain():
    row = planted([1e9, 1e9, 1e14])
    assert (row["verdict"], row["seed_verdicts"]) == ("quiet", "2 quiet, 1 not learned")
    assert row["lead_low"] > 0
    assert not row["certain"]


def test_each_seed_is_held_against_its_own_transition():
    row = planted([1e10, 1e12], seeds_fall=[1e11, 10**12.5])
    assert row["seed_verdicts"] == "2 quiet"


def test_a_feature_after_the_fall_or_never():
    assert planted([1e12, 1e12])["verdict"] == "loud"
    row = planted([1e14, 1e14])
    assert (row["verdict"], row["certain"]) == ("not learned", True)
    assert np.isnan(row["lead_log10"])


def test_the_figure_shows_curves_baselines_and_transition():
    curves, verdicts = [], []
    for place, (third, onset) in enumerate({"beginning": 1e10, "middle": 1e11, "end": 1e13, "all": 1e11}.items()):
        values = np.where(GRID > onset, 0.01, 0.5)
        names = {"task": "addition", "length": 16, "feature": "carry", "metric": "log_loss", "third": third}
        levels = {"baseline_clean": 0.6 + place / 100, "baseline_paper": 0.5, "n_seeds": 2, "n_labels": 5}
        ends = {"geometric": values, "geometric_low": values * 0.9, "geometric_high": values * 1.2}
        curves.append(pd.DataFrame({"budget_flops": GRID, **ends, **names, **levels}))
        verdicts.append(names | planted([onset, onset]))
    losses = pd.DataFrame({"task": "addition", "length": 16, "budget_flops": GRID, "loss": 0.6, "loss_low": 0.5})
    losses = losses.assign(loss_high=0.7, n_seeds=2, base_rate=0.655)
    figure = across_figure(pd.concat(curves), pd.DataFrame(verdicts), losses)
    drawn = {t.name: t for t in figure.data if t.x[0] is not None}
    assert "all labels" not in drawn
    for third, symbol, color in [("beginning", "circle", "#1B7FBF"), ("end", "triangle-up", "#029E73")]:
        rows = select(pd.concat(curves), third=third)
        np.testing.assert_array_equal(drawn[third].x, GRID)
        np.testing.assert_array_equal(drawn[third].y, rows["geometric"])
        np.testing.assert_allclose(drawn[third].error_y.array, 0.2 * rows["geometric"])
        np.testing.assert_allclose(drawn[third].error_y.arrayminus, 0.1 * rows["geometric"])
        assert (drawn[third].marker.symbol, drawn[third].line.color) == (symbol, color)
        level = drawn[f"{third}, untrained model"]
        assert set(level.y) == set(rows["baseline_clean"])
        assert (level.line.dash, level.line.color) == ("dot", color)
    assert figure.layout.xaxis2.type == figure.layout.yaxis2.type == "log"
    bands = [shape for shape in figure.layout.shapes if shape.name == "transition"]
    assert [(shape.x0, shape.x1) for shape in bands] == [(1e11, 10**11.5)] * 2
    assert {shape.x0 for shape in figure.layout.shapes if shape.name == "threshold"} == {10**11.5}
    paper = across_figure(pd.concat(curves), pd.DataFrame(verdicts), losses, baseline="paper")
    assert {t.y[0] for t in paper.data if t.name == "end, untrained model"} == {0.5}
