"""Other runs over a run's timeline: forks and their control on one compute axis."""

from __future__ import annotations

import json

from conftest import tiny_train_config
from typer.testing import CliRunner

import qfl_interp as qfl
from qfl_interp.analyses.pages.shown import _named
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.cli.main import build_app
from qfl_interp.training.fork import fork


def test_forks_are_drawn_over_their_parent_by_what_they_do(addition, model_config, tmp_path):
    config = tiny_train_config(n_steps=8, n_checkpoints=6, save_optimizer=True)
    parent = qfl.train(addition, model_config, config, tmp_path / "parent", progress=False)
    spec = qfl.Intervene("carry", kind="random", n_fit=100)
    other = fork(parent, 4, tmp_path / "control", intervene=spec, progress=False)
    frozen = fork(parent, 4, tmp_path / "still" / "parent", frozen=["embed"], progress=False)
    names = [_named(run, parent) for run in (other, frozen)]
    assert names == ["control: random carry", "still/parent: embed frozen"]
    beside = dict(zip(names, (other.metrics, frozen.metrics), strict=True))
    drawn = [t for t in timeline_figure(parent.metrics, beside=beside).data if t.name in names]
    assert [t.name for t in drawn] == names * 2
    own = other.metrics.dropna(subset=["val_loss_answer"])
    assert list(drawn[0].y) == own["val_loss_answer"].tolist()
    assert list(drawn[0].x) == own["flops"].tolist()
    assert min(drawn[0].x) == parent.flops(4)
    assert len({t.line.color for t in drawn}) == 2
    page = tmp_path / "page.html"
    arguments = ["timeline", str(parent.path), "--out", str(page), "--step", "log:3", "--quiet", "--n-train", "60"]
    arguments += ["--n-test", "40", "--beside", str(other.path), "--beside", str(frozen.path)]
    done = CliRunner().invoke(build_app(), arguments)
    assert done.exit_code == 0, done.output
    assert json.dumps(names[0]) in page.read_text()
