"""Every benchmark can be asked for a device; the command and the GPU's script refuse what they cannot do."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command

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
