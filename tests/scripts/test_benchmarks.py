"""Every benchmark can be asked for a device; the command and the GPU's script refuse what they cannot do."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import _growth_cells, _peers, growth

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


@pytest.mark.parametrize("name", command.names())
def test_a_benchmark_takes_a_device_or_says_that_it_has_none(name):
    module = importlib.import_module(f"benchmarks.{name}")
    parameters = inspect.signature(module.run).parameters
    assert module.TITLE
    assert parameters["quick"].default is False
    assert ("device" in parameters) != getattr(module, "CPU_ONLY", False)
    assert "device" not in parameters or parameters["device"].default == "cpu"


def test_the_command_runs_one_and_writes_what_it_found(tmp_path, monkeypatch, capsys):
    words = ["taylor_coefficients", "--quick", "--device", "cpu", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    command.main()
    (written,) = tmp_path.glob("*.json")
    found = json.loads(written.read_text())["taylor_coefficients"]
    assert found["rows"][0]["name"] == "training step"
    assert found["versions"]["torch"] == torch.__version__
    assert "taylor_coefficients" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cuda"])
    with pytest.raises(SystemExit):
        command.main()
    assert "finds no CUDA device" in capsys.readouterr().err


def test_the_script_for_a_gpu_names_benchmarks_that_are_there_and_ends_in_time():
    text = SCRIPT.read_text()
    named = re.findall(r"^bench \d+ (\w+)", text, flags=re.MULTILINE)
    assert set(named) <= set(command.names())
    limits = [int(limit) for limit in re.findall(r"^(?:bench|part) (\d+) ", text, flags=re.MULTILINE)]
    assert sum(limits) < 480


def test_the_script_says_how_it_is_called():
    done = subprocess.run(["bash", str(SCRIPT), "--wrong"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "--device" in done.stdout


def test_exponents_by_hand():
    assert growth.exponent([10, 100, 1000], [3, 30, 300]) == pytest.approx(1)
    assert growth.exponent([2, 4], [5, 20]) == pytest.approx(2)
    assert math.isnan(growth.exponent([2], [5]))
    assert math.isnan(growth.exponent([2, 4], [0, 20])), "nothing was added"


def test_cells_cover_every_work_and_axis_and_a_log_gives_them_back(tmp_path):
    cells = growth.cells()
    assert len(set(cells)) == len(cells)
    for axis, (values, _) in growth.AXES.items():
        assert [cell.value for cell in cells if (cell.work, cell.axis) == ("train", axis)] == list(values)
        for work in ("probe", "patch", "ablate", "polca", "curvature"):
            found = [cell for cell in cells if (cell.work, cell.axis) == (work, axis)]
            assert len(found) >= 2
            assert all(getattr(cell.size, axis) in (cell.value, 0) for cell in found)
    log = tmp_path / "log"
    found = _growth_cells.Found(10, 1.5, 2.5, 0.25)
    log.write_text("".join(json.dumps([cell, found]) + "\n" for cell in cells[:3]))
    assert _growth_cells.read_log(log) == dict.fromkeys(cells[:3], found)
    assert _growth_cells.read_log(tmp_path / "none") == {}
    assert _growth_cells.measure_all(cells[:3], tmp_path, "cpu", log) == [found] * 3, "nothing is left to do"


def test_a_peer_that_finds_something_else_is_not_timed():
    def failing():
        raise ImportError("not here")

    makers = {"ours": lambda: lambda: 1.0, "torch": lambda: lambda: 1.0, "numpy": lambda: lambda: 2.0, "scipy": failing}
    case = _peers.Case("a case", makers, lambda one, other: abs(one - other), 0.5, 2)
    ours, same, other, missing = _peers._rows(case)
    assert ours["times_ours"] == 1
    assert same["cpu_s"] >= 0
    assert "differs from ours by 1" in other["reason"]
    assert "cpu_s" not in other
    assert missing["reason"] == "ImportError: not here"
