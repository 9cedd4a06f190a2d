"""`qfl train --style homogeneous`, and sweeps of such networks."""

from __future__ import annotations

import sys

import pytest

import qfl_interp as qfl
from qfl_interp.cli import main as cli
from qfl_interp.errors import QflError
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.sweep.definition import Grid

SMALL = ["--steps", "4", "--batch-size", "8", "--draw", "batch", "--n-val", "8", "-q"]
NETWORK = ["--style", "homogeneous", "--d-model", "5", "--n-layers", "2", "--optimizer", "depthwise"]


@pytest.fixture
def call(monkeypatch, capsys):
    """The exit code and standard error of a command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["qfl", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, " ".join(capsys.readouterr().err.split())

    return run


def test_a_network_of_vectors_is_trained(tmp_path, call):
    out = ["--out", str(tmp_path / "run"), "--save-every", "3", "--optimizer-option", "edge_multiple=2"]
    assert call("train", "digits", *NETWORK, *SMALL, *out) == (0, "")
    run = qfl.Run.open(tmp_path / "run")
    assert run.config.model == MLPConfig(d_in=64, d_out=10, width=5, depth=3, width_exponent=2.0)
    assert run.config.train.optimizer_options["edge_multiple"] == 2
    assert run.steps == [0, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", *NETWORK, "--norm", "ln", "--n-heads", "2"], "no transformer's parts, got --n-heads, --norm"),
        (["addition", "--width-exponent", "1"], "--width-exponent is of --style homogeneous alone"),
        (["digits"], "needs a model that reads vectors"),
        (["addition", "--length", "4", "--style", "homogeneous"], "needs a model that reads tokens"),
        (["digits", *NETWORK, "--width-exponent", "-1"], "width_exponent must be finite and not negative"),
    ],
)
def test_options_of_other_styles_are_refused_by_name(tmp_path, call, arguments, message):
    code, text = call("train", *arguments, *SMALL, "--out", str(tmp_path / "run"))
    assert code != 0
    assert message in text
    assert not (tmp_path / "run").exists()


POINT = {"task": "digits", "budget_flops": 1e8, "d_model": 5, "n_layers": 2}


def test_a_grid_names_such_networks():
    grid = Grid.from_dict({**POINT, "style": "homogeneous", "d_in": 64, "d_out": 10, "lr": [0.1, 1.0]})
    assert {point.model for point in grid.points()} == {MLPConfig(64, 10, 5, 3)}
    assert [point.train.lr for point in grid.points()] == [0.1, 1.0]
    assert Grid.from_dict(grid.to_dict()) == grid
    with pytest.raises(QflError, match="style 'homogeneous' has no n_heads"):
        Grid.from_dict({**POINT, "style": "homogeneous", "d_in": 64, "d_out": 10, "n_heads": 2})
    with pytest.raises(QflError, match="style 'llama' has no d_in"):
        Grid.from_dict({**POINT, "d_model": 16, "d_in": 64})
    with pytest.raises(QflError, match="no such run is possible"):
        Grid.from_dict({**POINT, "style": "homogeneous"})
