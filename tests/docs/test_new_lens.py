"""The lens of docs/new_lens.md, installed as a package of its own: a command, a panel, a section, and no edit here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new_lens.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
_ALL = """
import json, sys
import qfl_interp as qfl
from qfl_interp.analyses import report, timeline
from qfl_interp.analyses.view.jobs import startable
from qfl_interp.analyses.view.panels import draw
run = qfl.Run.open(sys.argv[1])
how = {"config": qfl.ProbeConfig(n_train=64, n_test=64), "progress": False}
figure = timeline(run, "carry", "log:3", **how)
shown = draw(run, "weight_norms", run.steps[2])
print(json.dumps([note.text for drawn in (figure, shown) for note in drawn.layout.annotations]))
assert "weight_norms" in startable(run)
report(run, "carry", "log:3", n_trials=2, out=sys.argv[2], **how)
"""


@pytest.fixture
def package(tmp_path) -> Path:
    """The page's two files, and what installing them leaves: a folder of metadata beside the module."""
    python, _ = BLOCKS
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len((python + toml).splitlines()) < 80
    folder = tmp_path / "site"
    metadata = folder / "weight_norms-1.dist-info"
    metadata.mkdir(parents=True)
    (folder / "weight_norms.py").write_text(python)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: weight-norms\nVersion: 1\n")
    entry = toml[toml.index("[project.entry-points") :].replace('[project.entry-points."', "[").replace('"]', "]")
    (metadata / "entry_points.txt").write_text(entry.replace('"', ""))
    return folder


@pytest.mark.slow
def test_the_smallest_lens(package, run_copy, tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}

    def python(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    qfl = ("-c", "from qfl_interp.cli.main import main; main()")
    shown = python(*qfl, "--help")
    assert "weight-norms" in shown
    page = tmp_path / "norms.html"
    rows = json.loads(python(*qfl, "weight-norms", str(run_copy.path), "--out", str(page), "--json", "--quiet"))
    found = pd.DataFrame(rows)
    assert sorted(set(found["step"])) == run_copy.steps
    squares = sum(float(tensor.double().square().sum()) for tensor in run_copy.load_model("last").state_dict().values())
    last = found[found["step"] == run_copy.steps[-1]]
    assert set(last["layer"]) == {"layer 0", "layer 1", "outside the blocks"}
    assert 0 < np.sum(last["norm"] ** 2) <= squares * (1 + 1e-9)
    assert "Weight norm by layer" in page.read_text()
    report = tmp_path / "report.html"
    notes = json.loads(python("-c", _ALL, str(run_copy.path), str(report)).splitlines()[-1])
    assert sum("Weight norm by layer" in note for note in notes) == 2  # on the timeline, and in the page's view
    assert f"<b>step {run_copy.steps[2]}</b>" in notes
    assert "<h2>Weight norms<" in report.read_text()


@pytest.mark.slow
def test_the_page_tries_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module, tried = BLOCKS
    (tmp_path / "weight_norms.py").write_text(module)
    names = {}
    exec(compile(tried, "new_lens.md", "exec"), names)
    del sys.modules["weight_norms"]
    assert f"Weight norms of {names['run'].run_id}" in capsys.readouterr().out
    (trace,) = [one for one in names["norms"].plot().data if one.name == "layer 0"]
    (last,) = names["norms"].rows.query("layer == 'layer 0'")["norm"].tail(1)
    assert trace.y[-1] == pytest.approx(last)
