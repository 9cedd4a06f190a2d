"""Losses of checkpoints without a log: those that training logged; verdicts on them are the run's own, on any axis."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas as pd
import pytest

import qfl_interp as qfl
from qfl_interp.analyses import emergence, timeline, validate
from qfl_interp.analyses.loss_curve import LossCurve, known_loss_curve, loss_curve
from qfl_interp.analyses.transition import loss_transition, shaded_transition
from qfl_interp.data.fixed_task import FixedTask
from qfl_interp.plots.axes import FLOPS, STEPS, TOKENS
from tests.helpers_suite import tiny_text_task

QUIET = {"progress": False}
PROBES = qfl.ProbeConfig(n_train=60, n_test=40)
# Of the tiny run: the planted loss leaves its plateau after the first and arrives by the second.
LEAVES, ARRIVES = 12, 27


class Unlogged(qfl.Checkpoints):
    """The checkpoints of a run as somebody else's: without its log, and with what is known of its compute."""

    def __init__(self, run: qfl.Run, path, *, flops=False, tokens=0, log: pd.DataFrame | None = None) -> None:
        self.run, self.path, self._flops, self._tokens, self._log = run, path, flops, tokens, log

    run_id = property(lambda self: self.run.run_id)
    task = property(lambda self: self.run.task)
    steps = property(lambda self: self.run.steps)
    metrics = property(lambda self: self._log)
    validation = property(lambda self: self.run.validation)

    def identity(self):
        return self.run.identity()

    def load_model(self, step="last", *, device="cpu"):
        return self.run.load_model(step, device=device)

    def untrained_model(self, index):
        return self.run.untrained_model(index)

    def weights(self, step):
        return self.run.weights(step)

    def flops(self, step):
        return self.run.flops(step) if self._flops else math.nan

    def tokens(self, step):
        return float(self._tokens * step) if self._tokens else math.nan


@pytest.fixture(scope="module")
def probed(tiny_run, tmp_path_factory):
    """A run whose probes are fitted."""
    run = qfl.Run.open(shutil.copytree(tiny_run.path, tmp_path_factory.mktemp("loss_curve") / "run"))
    emergence(run, "carry", config=PROBES, n_resamples=20, **QUIET)
    return run


def without_log(run, folder, **known):
    """A series of the run's checkpoints with the same probes; what is known of compute decides the table's columns."""
    shutil.copytree(run.path / "analyses" / "probe", folder / "analyses" / "probe")
    return Unlogged(run, folder, **known)


def test_checkpoints_lose_what_training_logged(run_copy):
    found = validate(run_copy, **QUIET).to_dataframe().set_index("step")
    logged = run_copy.metrics.dropna(subset=["val_loss"]).set_index("step")
    both = sorted({*found.index} & {*logged.index})
    names = [name for name in logged if name.startswith("val_")]
    assert len(both) >= 3
    assert names == [name for name in found if name.startswith("val_")]
    np.testing.assert_allclose(found.loc[both, names], logged.loc[both, names], rtol=1e-6)
    assert found["val_loss"].nunique() == len(found)
    assert (found["n_val"] == run_copy.config.n_val).all()
    assert not validate(run_copy, "last", n=8, **QUIET).rows["val_loss"].isin(found["val_loss"]).any()


def test_the_curve_of_a_log_is_the_log_and_nothing_is_computed(tiny_run):
    curve = loss_curve(tiny_run, **QUIET)
    assert (curve.logged, curve.final, curve.key, curve.axis) == (True, True, "", FLOPS)
    pd.testing.assert_frame_equal(curve.rows, tiny_run.metrics)
    assert not (tiny_run.path / "analyses" / "validate").exists()


def test_a_curve_that_is_not_measured_yet_is_not_shaded(tiny_run, tmp_path):
    series = Unlogged(tiny_run, tmp_path)
    assert known_loss_curve(series) is None
    assert shaded_transition(series) is None
    measured = loss_curve(series, **QUIET)
    known = known_loss_curve(series)
    assert known is not None
    pd.testing.assert_frame_equal(known.rows, measured.rows)
    assert not measured.logged


def test_a_checkpoint_that_cannot_be_read_is_named_with_what_to_do(tiny_run, tmp_path, monkeypatch):
    series, bad = Unlogged(tiny_run, tmp_path), tiny_run.steps[2]
    load = series.load_model

    def damaged(step="last", *, device="cpu"):
        if step == bad:
            raise qfl.QflError(f"step {bad} cannot be read.")
        return load(step, device=device)

    monkeypatch.setattr(series, "load_model", damaged)
    with pytest.raises(qfl.QflError, match=rf"step {bad} cannot be read\.\n.*move it out of the folder, or open"):
        loss_curve(series, **QUIET)
    others = [step for step in series.steps if step != bad]
    assert validate(series, others, **QUIET).rows["val_loss"].notna().all()


def planted(series: qfl.Checkpoints) -> pd.DataFrame:
    """A loss at each checkpoint that stands at chance, and falls between `LEAVES` and `ARRIVES`."""
    steps, chance = np.array(series.steps), series.task.baselines["base_rate"]
    loss = np.interp(steps, [LEAVES, ARRIVES], [chance, 0.05 * chance])
    columns = {"step": steps, "val_loss": loss, "val_loss_answer": loss, "val_exact": 0.0, "val_exact_answer": 0.0}
    return pd.DataFrame(columns | pd.DataFrame([series.how_far(step) for step in series.steps]).to_dict("list"))


@pytest.mark.parametrize(
    ("known", "axis"),
    [({"flops": True}, FLOPS), ({"tokens": 24}, TOKENS), ({}, STEPS)],
    ids=["FLOPs", "tokens", "steps"],
)
def test_verdicts_on_a_suite_are_the_runs_own_on_any_axis(probed, tmp_path, monkeypatch, known, axis):
    """FLOPs, tokens and steps are proportional: decades of one are decades of another."""
    how = {"config": PROBES, "ratio": 0.999, "n_resamples": 60, **QUIET}
    (tmp_path / "logged").mkdir()
    as_run = without_log(probed, tmp_path / "logged", flops=True, log=planted(Unlogged(probed, tmp_path, flops=True)))
    own = emergence(as_run, "carry", **how).rows
    series = Unlogged(probed, tmp_path / "series", **known)
    if axis is FLOPS:
        shutil.copytree(probed.path / "analyses" / "probe", series.path / "analyses" / "probe")
    measured = type("Measured", (), {"rows": planted(series)})
    monkeypatch.setattr("qfl_interp.analyses.loss_curve.validate", lambda *_, **__: measured)
    result = emergence(series, "carry", **how)
    rows = result.rows

    assert own["transition_found"].all()
    assert np.isfinite(own["lead_log10"]).any()
    assert rows["verdict"].tolist() == own["verdict"].tolist()
    for name in ("lead_log10", "lead_low", "lead_high", "bootstrap_low", "bootstrap_high", "fraction_at_start"):
        np.testing.assert_allclose(rows[name], own[name], rtol=1e-9, atol=1e-9, err_msg=name)
    places = {FLOPS: probed.flops(1), TOKENS: 24.0, STEPS: 1.0}
    for stem in ("onset", "transition_start", "transition_end"):
        wanted = own[f"{stem}_flops"] * places[axis] / probed.flops(1)
        np.testing.assert_allclose(rows[f"{stem}_{axis.column}"], wanted, rtol=1e-9, err_msg=stem)
    assert [name for name in rows if name.startswith("onset_") and name in ("onset_flops", "onset_tokens")] == (
        [] if axis is STEPS else [f"onset_{axis.column}"]
    )
    assert (f"leads in decades of {axis.words}" in repr(result)) == (axis is not FLOPS)
    figure = result.plot()
    assert figure.layout.xaxis.title.text == axis.title
    assert min(figure.data[0].x) == pytest.approx(places[axis] * min(s for s in series.steps if s))


def test_a_checkpoint_that_comes_later_makes_another_verdict(probed, tmp_path, monkeypatch):
    """A verdict that is kept must not stand for a curve that has grown or changed."""
    series = without_log(probed, tmp_path, flops=True)
    rows = planted(series)
    digests = []
    for change in (0.0, 0.0, 0.5):
        last = rows.index == rows.index[-1]
        measured = rows.assign(val_loss_answer=rows["val_loss_answer"] + change * last)
        monkeypatch.setattr(
            "qfl_interp.analyses.loss_curve.validate", lambda *_, found=measured, **__: type("R", (), {"rows": found})
        )
        how = {"config": PROBES, "n_resamples": 5, **QUIET}
        digests.append(set(emergence(series, "carry", "log:4", **how).rows["analysis"]))
    assert digests[0] == digests[1]
    assert digests[0].isdisjoint(digests[2])


def curve_of(losses, **columns) -> LossCurve:
    rows = pd.DataFrame({"step": range(len(losses)), "flops": math.nan, "val_loss_answer": losses} | columns)
    return LossCurve(rows, logged=False, final=True, unit="nats")


def test_too_few_checkpoints_and_no_random_baseline_are_said():
    task = tiny_text_task()
    few = loss_transition(curve_of([2.0, 1.0, 0.5]), task)
    assert not few.found
    assert few.reason == "2 checkpoints after step 0, and a transition needs at least 3"
    without = FixedTask("bare", task._tokens, task._loss_mask, task._fixed, baselines={})
    losses = [2.0] * 9 + [0.1] * 12
    assert loss_transition(curve_of(losses), without).found
    assert "no random baseline: the whole curve was searched" in loss_transition(curve_of(losses), without).reason
    assert "baseline" not in loss_transition(curve_of(losses), task).reason


def test_a_diverged_checkpoint_is_named(run_copy, tmp_path, monkeypatch):
    series = Unlogged(run_copy, tmp_path)
    scores = {"loss": math.nan, "loss_answer": math.nan}
    monkeypatch.setattr("qfl_interp.analyses.lenses.validate.lens.validation_scores", lambda *_: scores)
    with pytest.raises(qfl.QflError, match=r"val_loss of .* at step 40 is nan.*Leave this step out"):
        validate(series, "last", **QUIET)
    with pytest.raises(ValueError, match="n, the number of validation examples, must be at least 1, got 0"):
        validate(series, "last", n=0, **QUIET)


def test_another_series_beside_one(probed, tmp_path):
    """Its losses are measured where it kept no log, and drawn over the same axis."""
    figure = timeline(
        probed, "carry", beside=[Unlogged(probed, tmp_path / "other", flops=True)], config=PROBES, **QUIET
    )
    (drawn, *_) = [trace for trace in figure.data if trace.name == "other"]
    assert len(drawn.x) == len(probed.steps) - 1
    with pytest.raises(ValueError, match=r"over flops.*over step"):
        timeline(probed, "carry", beside=[Unlogged(probed, tmp_path / "steps")], config=PROBES, **QUIET)
