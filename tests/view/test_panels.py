"""Views of the lenses' tables at a step: which there are, what they show, and what happens to what is bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import synthetic_tables as synthetic

import qfl_interp as qfl
from qfl_interp.analyses import step_table
from qfl_interp.analyses.lens import Lens
from qfl_interp.analyses.lenses.ablate_units.lens import AblateUnits
from qfl_interp.analyses.part_lens import PartLens
from qfl_interp.analyses.step_table import StepTable, _spread
from qfl_interp.analyses.view import panels
from qfl_interp.plots.panels import line_panel
from qfl_interp.runs.series import Checkpoints
from qfl_interp.runs.table import Table
from qfl_interp.tables import column, select

HOSTILE = "<img src=x onerror=alert(1)></script>"


class Tables(Checkpoints):
    """Steps and tables alone."""

    task = property(lambda self: qfl.load_task("linear_regression", length=4))  # no view of its models
    steps = property(lambda self: self._steps)
    run_id = "add16"

    def __init__(self, path: Path, steps: list[int]) -> None:
        self.path, self._steps = path, steps

    def identity(self):
        return {"run_id": self.run_id, "config_hash": "c0ffee", "seed": 0}

    def load_model(self, step="last", *, device="cpu"):
        raise AssertionError("no model is needed")

    def untrained_model(self, index):
        raise AssertionError("no model is needed")

    def flops(self, step):
        return step * synthetic.FLOPS_PER_STEP


def store(run: Checkpoints, lens: str, rows: pd.DataFrame, by: list[str], *, call: str = "0123abcd") -> None:
    """The rows as the lens keeps them: a part a checkpoint and value of `by`."""
    step = "eval_step" if lens == "transfer" else "step"
    keys = [*(["source"] if "source" in rows else []), step, *by]
    for values, part in rows.groupby(keys, sort=False):
        named = dict(zip(keys, values, strict=True))
        at = f"step_{named[step]:08d}" if named.get("source", "trained") == "trained" else "untrained_00"
        what = "-".join(str(named[name]) for name in by) or "all"
        run.table(lens).write(f"{at}-{what.replace('/', '_')}-{call}", part.assign(analysis=call))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing waits for the disk, and nothing that an earlier test read is remembered."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(step_table, "_KEPT", {})


def probed(feature: str = "carry") -> pd.DataFrame:
    """The probes of six checkpoints and one control."""
    rows = synthetic.probe(feature).assign(site="resid_post")
    return rows[rows["step"].isin((0, 12, 210, 235, 460, 716))]


@pytest.fixture
def run(tmp_path) -> Tables:
    """Tables of seven lenses."""
    made = Tables(tmp_path / "run", synthetic.checkpoint_steps())
    store(made, "probe", probed(), ["feature"])
    store(made, "probe", probed("first_operand"), ["feature"])
    store(made, "patch", synthetic.patch(), ["feature", "label", "component"])
    ablated = synthetic.ablate_over_steps()
    store(
        made, "ablate", ablated.assign(p_value_paired=0.01).drop(columns="p_value_holm", errors="ignore"), ["feature"]
    )
    store(made, "ablate_units", synthetic.ablate_units(), ["name"])
    store(made, "interchange", synthetic.interchange(), ["feature", "label"])
    store(made, "mdl", synthetic.mdl(), ["feature"])
    store(made, "transfer", synthetic.transfer(), ["feature"])
    return made


def said(figure: go.Figure) -> str:
    """All texts of a figure."""
    return " ".join(str(note.text) for note in figure.layout.annotations)


def heat(figure: go.Figure, number: int = 0) -> np.ndarray:
    """The colours of a figure's map; the one below holds crosses."""
    maps = [trace for trace in figure.data if trace.type == "heatmap" and trace.coloraxis]
    return np.asarray(maps[number].z, dtype=float)


def test_every_lens_with_rows_has_a_view_and_draws_each_of_its_steps_alone(run):
    found = {view.name: view for view in panels.views(run)}
    assert [*found] == [
        "probe", "transfer", "mdl", "ablate", "interchange", "patch", "patch/attribution", "ablate_units",
    ]  # fmt: skip
    for view in found.values():
        assert view.question.endswith("?")
        assert not view.needs_model
        for step in (view.steps[-1], view.steps[len(view.steps) // 2]):
            figure = view.draw(step)
            assert len(figure.data) > 0
            assert not figure.frames
            assert not figure.layout.sliders
            rows = view.table(step)
            assert set(rows["eval_step" if view.name == "transfer" else "step"]) == {step}, view.name


def test_attributions_are_offered_where_a_call_has_made_some(tmp_path):
    made = Tables(tmp_path / "run", synthetic.checkpoint_steps())
    by, rows = ["feature", "label", "component"], synthetic.patch(("resid_pre",))
    store(made, "patch", rows.assign(attribution=np.nan), by)
    assert [view.name for view in panels.views(made)] == ["patch"]
    # A later call, at fewer steps, with attributions, of the same label; and one without, of another.
    store(made, "patch", select(rows, step=210), by, call="0000beef")
    store(made, "patch", rows.assign(attribution=np.nan, label=5), by)
    maps, attributions = panels.views(made)
    assert (maps.name, attributions.name) == ("patch", "patch/attribution")
    assert maps.choices["label"] == [2, 5]
    assert attributions.choices["label"] == [2]
    assert (maps.at(716), attributions.at(716)) == (716, 210)
    (points,) = [trace for trace in attributions.draw(716).data if trace.mode == "markers"]
    np.testing.assert_allclose(points.y, select(rows, step=210)["attribution"], rtol=1e-3)


def test_a_map_has_the_values_of_its_step_in_the_colours_of_all(run):
    rows = select(probed(), source="trained")
    axes = []
    for step in (0, 210, 716):
        figure = panels.draw(run, "probe", step, feature="carry")
        of_step = select(rows, step=step).pivot(index="layer", columns="label", values="test_loss")
        np.testing.assert_allclose(heat(figure), np.log10(of_step.to_numpy()), atol=6e-4)  # four digits
        axes.append((figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax))
        assert f"step {step:,}" in said(figure)
    assert len(set(axes)) == 1
    pd.testing.assert_frame_equal(
        panels.table(run, "probe", 210, feature="carry")[["layer", "label", "test_loss"]],
        select(rows, step=210)[["layer", "label", "test_loss"]].reset_index(drop=True),
    )


def test_curves_mark_the_step_where_it_is(run):
    (view,) = [view for view in panels.views(run) if view.name == "mdl"]
    (line,) = [shape for shape in view.draw(210).layout.shapes if shape.name == "step"]
    assert line.x0 == pytest.approx(210 * synthetic.FLOPS_PER_STEP)


def test_of_a_step_without_rows_the_nearest_before_it_is_shown_and_said(run):
    kept = AblateUnits.kept(run)
    assert kept.steps == (210, 716)
    shown = panels.draw(run, "ablate_units", 715)
    assert "Nothing of step 715: this is step 210, the nearest before it that there is." in said(shown)
    np.testing.assert_array_equal(heat(shown), heat(panels.draw(run, "ablate_units", 210)))
    assert "this is step 210, the first that there is" in said(panels.draw(run, "ablate_units", 3))
    assert set(panels.table(run, "ablate_units", 715)["step"]) == {210}


def test_features_that_were_looked_at_at_other_steps_have_their_own_nearest_step(tmp_path):
    made = Tables(tmp_path / "run", [0, 10, 20])
    for feature, steps in (("carry", [0, 12]), ("first_operand", [3])):
        rows = synthetic.probe(feature).assign(site="resid_post")
        store(made, "probe", rows[rows["step"].isin(steps)], ["feature"])
    shown = panels.view(made, "probe")
    assert shown.steps == (0, 3, 12)
    assert [shown.at(12, feature=feature) for feature in ("carry", "first_operand")] == [12, 3]


def test_choices_depend_on_those_before_and_a_wrong_one_is_named(run):
    other = synthetic.patch().assign(feature="first_operand", label=9)
    store(run, "patch", other, ["feature", "label", "component"])
    shown = panels.view(run, "patch")
    (label,) = set(synthetic.patch()["label"])
    assert shown.choices == {"feature": ["carry", "first_operand"], "label": [label, 9]}
    assert shown.options(feature="first_operand") == {"feature": ["carry", "first_operand"], "label": [9]}
    assert shown.chosen(feature="first_operand", label=str(label)) == {"feature": "first_operand", "label": 9}
    with pytest.raises(qfl.QflError, match=r"carri.*Did you mean 'carry'"):
        shown.draw(716, feature="carri")
    with pytest.raises(qfl.QflError, match="choice of the view 'patch'"):
        shown.draw(716, layer=1)
    with pytest.raises(qfl.QflError, match=r"'ptch'"):
        panels.draw(run, "ptch", 716)


def test_of_several_calls_that_with_most_steps_is_shown(run):
    few = synthetic.ablate_units(steps=(716,))
    store(run, "ablate_units", few.assign(loss_increase=7.0), ["name"], call="ffff0000")
    assert set(panels.table(run, "ablate_units", 716)["analysis"]) == {"0123abcd"}
    more = synthetic.ablate_units(steps=(10, 210, 716))
    store(run, "ablate_units", more.assign(loss_increase=7.0), ["name"], call="ffff0000")
    assert set(panels.table(run, "ablate_units", 716)["analysis"]) == {"ffff0000"}


def test_nothing_is_read_for_the_list_and_little_for_a_figure(tmp_path, monkeypatch):
    made = Tables(tmp_path / "run", list(range(1000)))
    rows = synthetic.ablate_units(steps=(716,))
    part = rows.assign(analysis="0123abcd")
    for step in (0, 999):
        made.table("ablate_units").write(f"step_{step:08d}-z-0123abcd", part.assign(step=step))
    folder = made.table("ablate_units").folder
    for step in range(1, 999):  # names are all that is looked at
        (folder / f"_step_{step:08d}-z-0123abcd.json").write_text("{}")
    made.table("ablate_units").write("step_00000500-z-0123abcd", part.assign(step=500))
    read, manifest = [], Table._manifest
    monkeypatch.setattr(Table, "_manifest", lambda self, part: read.append(part) or manifest(self, part))
    (view,) = panels.views(made)
    assert len(view.steps) == 1000
    assert read == []
    figure = view.draw(500)
    assert "step 500" in said(figure)
    assert len(set(read)) <= 52


def test_a_spread_has_both_ends_and_is_dense_at_the_beginning():
    assert _spread(5, 48) == [0, 1, 2, 3, 4]
    chosen = _spread(1000, 48)
    assert (chosen[0], chosen[-1]) == (0, 999)
    assert len(chosen) <= 49
    assert chosen == sorted(set(chosen))
    assert np.median(chosen) < 100


def test_a_damaged_part_is_said_at_its_step_and_other_steps_are_shown(run):
    path = run.table("probe").folder / "step_00000210-carry-0123abcd.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(qfl.QflError, match=r"step_00000210-carry.*corrupted"):
        panels.draw(run, "probe", 210, feature="carry")
    assert "step 235" in said(panels.draw(run, "probe", 235, feature="carry"))
    assert "step 210" in said(panels.draw(run, "probe", 210, feature="first_operand"))


def test_parts_of_other_weights_do_not_count(run, monkeypatch):
    run.table("ablate_units").folder.joinpath("_step_00000716-z-0123abcd.json").unlink()
    monkeypatch.setattr(Tables, "weights", lambda self, step: "old" if step == 716 else None)
    part = synthetic.ablate_units(steps=(716,)).assign(analysis="0123abcd")
    run.table("ablate_units").write("step_00000716-z-0123abcd", part, steps=[716])
    assert panels.view(run, "ablate_units").table(716).shape[0] == len(part)
    monkeypatch.setattr(Tables, "weights", lambda self, step: "new" if step == 716 else None)
    with pytest.raises(qfl.QflError, match="nothing of step 716 that still counts"):
        panels.view(run, "ablate_units").table(716)


class Norms(PartLens):
    """As docs/new_lens.md: rows and a panel, and no word of views."""

    name, question = "norms", "How long?"

    def part(self, piece):
        return f"{piece.at}-all"

    def rows(self, shared, view, piece):
        raise AssertionError("nothing is computed")

    @staticmethod
    def panels_of(rows):
        return [line_panel(rows, "norm", by="layer", title="Norms", y_title="norm")]


class Bare(Norms):
    """Not even a panel."""

    name = "bare"
    panels_of = PartLens.panels_of


class Broken(Norms):
    """Another package's faults."""

    name = "broken"

    @classmethod
    def draw_at(cls, rows, step):
        raise ZeroDivisionError("a fault of its own")


class Plain(Norms):
    """A figure in plotly's own style."""

    name = "plain"

    @classmethod
    def draw_at(cls, rows, step):
        return go.Figure(go.Scatter(x=[1], y=[2]))


class Mute(Lens):
    """One that cannot even say what it has."""

    name, question = "mute", "Why?"

    @classmethod
    def views(cls, run):
        raise RuntimeError("no idea")


def test_lenses_of_others_are_there_with_nothing_to_write(tmp_path, monkeypatch, capsys):
    made = Tables(tmp_path / "run", [0, 10, 20])
    rows = [
        {"step": step, "flops": made.flops(step), "layer": layer, "norm": 1.0 + step, "token": HOSTILE, "run_id": "a"}
        for step in made.steps
        for layer in ("0", HOSTILE)
    ]
    for name in ("norms", "bare", "broken", "plain"):
        for step in made.steps:
            part = select(pd.DataFrame(rows), step=step).assign(analysis="x")
            made.table(name).write(f"step_{step:08d}-all", part)
    monkeypatch.setattr(panels, "lenses", lambda: (Mute, Norms, Bare, Broken, Plain))
    assert [view.name for view in panels.views(made)] == ["norms", "bare", "broken", "plain"]
    assert "lens 'mute' cannot say what it has" in capsys.readouterr().err
    assert "Nothing of step 15" in said(panels.draw(made, "plain", 15))
    curves = panels.draw(made, "norms", 10)
    assert [list(trace.y) for trace in curves.data] == [[11.0, 21.0]] * 2
    (line,) = [shape for shape in curves.layout.shapes if shape.name == "step"]
    assert line.x0 == pytest.approx(made.flops(10))
    assert "before the axis begins" in said(panels.draw(made, "norms", 0))
    (table,) = panels.draw(made, "bare", 10).data
    assert "&lt;img" in str(table.cells.values)
    assert "<img" not in str(table.cells.values)
    with pytest.raises(qfl.QflError, match=r"Broken cannot be drawn at step 10: ZeroDivisionError: a fault of its own"):
        panels.draw(made, "broken", 10)


def test_names_of_a_run_are_text_and_no_markup(tmp_path):
    made = Tables(tmp_path / "run", [716])
    for lens, rows, by in (
        ("probe", synthetic.probe().assign(site="resid_post", feature=HOSTILE), []),
        ("patch", synthetic.patch().assign(feature=HOSTILE, token=HOSTILE), ["label", "component"]),
    ):
        store(made, lens, rows[rows["step"] == 716], by)
        figure = panels.draw(made, lens, 716)
        assert "<img" not in figure.to_json()
        assert "&lt;img" in figure.to_json()


def test_holm_is_over_the_features_that_are_shown(run):
    kept = StepTable(run.table("ablate"), ["feature", "method"], ["feature"])
    assert kept.found() == (("method",), [(synthetic.ablate()["method"].iloc[0],)])
    figure = panels.draw(run, "ablate", 716)
    n = len(set(panels.table(run, "ablate", 716)["feature"]))
    p = column(panels.table(run, "ablate", 716), "p_value_paired")
    assert f"p = {min(p[0] * n, 1):.2g}" in said(figure)
