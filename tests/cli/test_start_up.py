"""What each command imports: nothing that takes long unless it computes with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import import_layers
import pytest

import qfl_interp as qfl
from qfl_interp.analyses import report

SLOW = {*import_layers.HEAVY, "transformers", "duckdb", "numba"}
FILES = {"numpy", "pandas", "pyarrow", "safetensors"}
PAGES = FILES | {"plotly", "torch"}
PROBES = "--n-train 60 --n-test 40 --quiet"

COMMANDS = {
    "--help": set(),
    "runs {folder}": set(),
    # Tasks encode into tensors, some compile their loops with numba, which looks for scipy.
    "tasks": {"numpy", "torch", "numba", "scipy"},
    "tasks addition": {"numpy", "torch"},
    "tasks addition --examples 2": {"numpy", "torch"},
    "verify {run}": FILES,
    "probe {run} " + PROBES: PAGES,
    "emergence {run} " + PROBES: PAGES,
    "timeline {run} " + PROBES: PAGES,
    "report {run} --n-trials 2 " + PROBES: PAGES,
}
LIBRARY = {
    "import qfl_interp": set(),
    "from qfl_interp import ModelConfig": set(),
    "from qfl_interp import Run; Run.open({run!r}).metrics": FILES,
    "from qfl_interp import load_task; load_task('addition')": {"numpy", "torch"},
}


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    """A copy of the tiny run with every table that its report needs."""
    folder = tmp_path_factory.mktemp("start_up") / "run"
    shutil.copytree(tiny_run.path, folder)
    run = qfl.Run.open(folder)
    report(run, config=qfl.ProbeConfig(n_train=60, n_test=40), n_trials=2, progress=False)
    return folder


def imported(code: str, *arguments: str) -> set[str]:
    """The slow packages that a fresh process has imported once it ran the code, which must succeed."""
    code += "\nimport json, sys\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return SLOW & {*json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_import_nothing_slow_that_they_do_not_need(finished, line):
    code = (
        "from qfl_interp.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    assert not leaving.code, leaving.code"
    )
    words = line.format(run=finished, folder=finished.parent).split()
    assert imported(code, *words) <= COMMANDS[line]


@pytest.mark.parametrize("code", LIBRARY)
def test_first_uses_of_the_library_import_nothing_slow_that_they_do_not_need(finished, code):
    assert imported(code.format(run=str(finished))) <= LIBRARY[code]


def test_what_computes_imports_what_it_computes_with(finished):
    """The other side: the check sees an import where there is one."""
    assert {"torch", "transformer_lens"} <= imported(
        f"import qfl_interp\nqfl_interp.Run.open({str(finished)!r}).load_model()"
    )
