"""Runs, forks and seeds over each other: the mean over seeds by hand, what is one group, what is refused."""

from __future__ import annotations

import shutil

import lens_contract as contract
import numpy as np
import pytest
from conftest import tiny_train_config

import qfl_interp as qfl
from qfl_interp.analyses import compare, probe
from qfl_interp.analyses.lenses.emergence.tables import emergence_curve
from qfl_interp.analyses.pages.compare_columns import RESULT
from qfl_interp.analyses.pages.compare_groups import grouped
from qfl_interp.analyses.pages.seed_band import SeedCurve, over_seeds
from qfl_interp.tables import column, select
from qfl_interp.training.fork import fork

PROBES = qfl.ProbeConfig(n_train=60, n_test=40)


def test_mean_and_range_over_seeds_by_hand():
    one = SeedCurve(np.array([1.0, 100.0]), np.array([4.0, 2.0]))
    other = SeedCurve(np.array([0.1, 10.0, 1000.0]), np.array([9.0, 1.0, 5.0]))
    band = over_seeds([one, other])
    # In common: 1 to 100. At 10, half way between 1 and 100 in the logarithm, the first is at 3; the other is at
    # 9 - 8/2 = 5 at 1 and at 1 + 4/2 = 3 at 100.
    np.testing.assert_allclose(band.places, [1, 10, 100])
    np.testing.assert_allclose(band.mean, [(4 + 5) / 2, (3 + 1) / 2, (2 + 3) / 2])
    np.testing.assert_allclose(band.low, [4, 1, 2])
    np.testing.assert_allclose(band.high, [5, 3, 3])
    late = SeedCurve(np.array([200.0, 300.0]), np.array([1.0, 1.0]))
    assert [len(values) for values in over_seeds([one, late])] == [0, 0, 0, 0]


@pytest.mark.parametrize("places", [[0.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, np.nan], []])
def test_a_curve_that_cannot_be_interpolated_is_refused(places):
    with pytest.raises(ValueError, match="ascending places above 0"):
        over_seeds([SeedCurve(np.array(places), np.zeros(len(places)))])


@pytest.fixture(scope="module")
def runs(addition, model_config, tmp_path_factory) -> dict[str, qfl.Run]:
    """Two seeds of one configuration, the first one probed, and another learning rate."""
    folder = tmp_path_factory.mktemp("compared")
    changes = {"a0": {"seed": 0}, "a1": {"seed": 1}, "b0": {"seed": 0, "lr": 0.01}}
    config = {"n_steps": 6, "n_checkpoints": 4, "save_optimizer": True}
    made = {
        name: qfl.train(addition, model_config, tiny_train_config(**config | more), folder / name, progress=False)
        for name, more in changes.items()
    }
    probe(made["a0"], "carry", config=PROBES, n_untrained=1, progress=False)
    return made


def test_seeds_become_one_line_and_what_differs_names_it(runs):
    found = compare([runs["a1"], runs["b0"], str(runs["a0"].path)])
    assert [(group.name, group.seeds) for group in found.groups] == [("lr 0.001", [0, 1]), ("lr 0.01", [0])]
    rows = found.to_dataframe()
    own = runs["b0"].metrics.dropna(subset=["val_loss_answer"]).query("step > 0")
    of_b = select(rows, run_id=runs["b0"].run_id, quantity="val_loss_answer")
    assert of_b["value"].tolist() == own["val_loss_answer"].tolist()
    assert of_b["flops"].tolist() == own["flops"].tolist()
    pairs = [
        column(select(rows, run_id=runs[name].run_id, quantity="val_loss_answer"), "value") for name in "a0 a1".split()
    ]
    band = select(found.bands, quantity="val_loss_answer")
    np.testing.assert_allclose(column(band, "mean"), np.mean(pairs, axis=0))  # validated at the same steps
    np.testing.assert_allclose(column(band, "high"), np.max(pairs, axis=0))
    assert set(found.bands["n_seeds"]) == {2}
    for table, defined in RESULT.items():
        contract.check_columns(getattr(found, table).columns, defined)
    drawn = [trace for trace in found.figure.data if trace.showlegend is not False and trace.yaxis == "y"]
    assert [trace.name for trace in drawn] == ["lr 0.001 (seeds 0, 1)", "lr 0.01 (seed 0)"]
    assert list(drawn[0].y) == column(band, "mean").tolist()
    assert "lr 0.01" in repr(found)
    assert len(repr(found).splitlines()) < 10


def test_probes_that_exist_are_shown_and_no_others(runs):
    found = compare(list(runs.values()), "carry")
    curve = select(
        emergence_curve(probe(runs["a0"], "carry", config=PROBES, n_untrained=1, progress=False).rows), third="all"
    )
    rows = select(found.rows, quantity="probe_loss")
    assert rows["value"].tolist() == curve.query("step > 0")["geometric"].tolist()
    assert rows["baseline"].iloc[0] == curve["baseline_geometric"].iloc[0]
    assert set(rows["run_id"]) == {runs["a0"].run_id}
    assert [line.split()[0] for line in found.missing] == [str(runs[name].path) for name in ("a1", "b0")]
    assert "probes of 'carry'" in repr(found)
    assert len({trace.yaxis for trace in found.plot("carry").data}) == 3
    assert len({trace.yaxis for trace in compare(list(runs.values()), ()).figure.data}) == 2
    assert not (runs["b0"].path / "analyses").exists()
    with pytest.raises(qfl.QflError, match=r"no feature of this result is named 'carri'. Did you mean 'carry'"):
        found.plot("carri")
    with pytest.raises(qfl.QflError, match=r"no run has probes of 'sum' .*of any: carry\."):
        compare(list(runs.values()), "sum")
    with pytest.raises(TypeError, match="no option 'step'"):
        found.plot(step=3)


def test_probes_of_another_configuration_are_told_from_none(runs, tmp_path, monkeypatch):
    shutil.copytree(runs["b0"].path, tmp_path / "b0")
    other = qfl.Run.open(tmp_path / "b0")
    others = qfl.ProbeConfig(n_train=50, n_test=40, path=(0.1, 1.0), shuffled_control=False)
    probe(other, "carry", "last", config=others, n_untrained=1, progress=False)
    both = [runs["a0"], other]
    mine, theirs = "n_train=60, n_test=40", "path=(0.1, 1.0), n_train=50, n_test=40, shuffled_control=False"
    differing = "path=(0.1, 1.0), n_train=50, shuffled_control=False"
    assert compare(both, "carry", config=PROBES).missing == (
        f"{other.path} has probes of 'carry' with {differing}, "
        "the compared ones have path=(), n_train=60, shuffled_control=True: "
        f"compare(runs, 'carry', config=ProbeConfig({theirs})) draws those, "
        f"probe(run, 'carry', config=ProbeConfig({mine})) fits these.",
    )
    # What the line says to do does it: the other's are drawn, and the first run lacks them.
    swapped = compare(both, "carry", config=others)
    assert set(select(swapped.rows, quantity="probe_loss")["run_id"]) == {other.run_id}
    assert [line.split()[0] for line in swapped.missing] == [str(runs["a0"].path)]
    assert swapped.probes.lacking(runs["a0"], "carry", command=True).endswith(
        f": `qfl probe {runs['a0'].path} carry --path 0.1,1.0 --n-train 50 --n-test 40 --no-shuffled-control` fits "
        "these."
    )
    (none,) = compare([runs["a0"], runs["a1"]], "carry").missing
    assert none == (
        f"{runs['a1'].path} has no probes of 'carry': probe(run, 'carry', config=ProbeConfig({mine})) fits them."
    )
    with pytest.raises(
        qfl.QflError, match=r"of the compared ProbeConfig\(\); there are those of ProbeConfig\(n_train=60"
    ):
        compare(both, "carry", config=qfl.ProbeConfig())
    monkeypatch.setattr("qfl_interp.runs.table.Table.settings", lambda _: [])  # as tables of before: not recorded
    (unknown,) = compare(both, "carry", config=PROBES).missing
    assert "has probes of 'carry' of another configuration than the compared one" in unknown


def test_the_figure_is_drawn_anew_for_paper(runs):
    drawn = compare(list(runs.values()), ()).plot().at_width(317)
    assert drawn.layout["meta"]["width"] == 317


def test_forks_of_seeds_are_one_group_where_their_parents_are_there(runs, tmp_path):
    forks = [fork(runs[name], 1, tmp_path / f"fork-{name}", frozen=["embed"], progress=False) for name in ("a0", "a1")]
    alone, with_parents = grouped(forks), grouped([runs["a0"], runs["a1"], *forks])
    assert [group.seeds for group in alone] == [[0], [1]]
    assert [group.seeds for group in with_parents] == [[0, 1], [0, 1]]
    assert with_parents[1].name == "fork-a0: embed frozen and 1 more"


def test_what_cannot_be_compared_is_refused(runs, model_config, tmp_path):
    with pytest.raises(qfl.QflError, match="at least one run"):
        compare([])
    with pytest.raises(qfl.QflError, match=r"compared once, got .* twice"):
        compare([runs["a0"], runs["a0"].path])
    other = qfl.train(
        qfl.load_task("sparse_parity", 8),
        model_config,
        tiny_train_config(n_steps=2),
        tmp_path / "other",
        progress=False,
    )
    with pytest.raises(qfl.QflError, match=r"must have one task, got addition \(.*a0\); sparse_parity"):
        compare([runs["a0"], other])
