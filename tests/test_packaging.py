"""What is uploaded: wheel and sdist hold one package, and work where neither a checkout nor its folder is near."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import hatch_build
import qfl_interp as qfl

ROOT = Path(__file__).parents[1]
# A user's files of these names, which must neither be run nor be in the way.
THEIRS = "raise RuntimeError('a file of the user')\n"
SCRIPT = """
import sys
import qfl_interp as qfl
from qfl_interp.analyses import probe
from qfl_interp.cli.main import main
from qfl_interp.tasks.addition import Addition

assert "site-packages" in qfl.__file__, qfl.__file__
task = qfl.load_task("addition", 4)
assert type(task) is Addition
model = qfl.ModelConfig(d_model=16, n_layers=1, n_heads=2)
run = qfl.train(task, model, qfl.TrainConfig(n_steps=4, batch_size=8, n_val=16), "run", progress=False)
found = probe(run, "carry", "last", config=qfl.ProbeConfig(n_train=60, n_test=40), n_untrained=1, progress=False)
assert found.rows["test_score"].between(0, 1).all() and len(found.rows)
for line in ("tasks addition", "probe run carry --n-train 60 --n-test 40 --json"):
    sys.argv = ["qfl", *line.split()]
    try:
        main()
    except SystemExit as leaving:
        assert not leaving.code
assert not {"tasks", "analyses"} & {*sys.modules}
"""


def test_the_version_is_said_once(monkeypatch, capsys):
    from qfl_interp.cli.main import main

    monkeypatch.setattr(sys, "argv", ["qfl", "--version"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert not leaving.value.code
    said = capsys.readouterr().out
    assert said.startswith(f"qfl-interp {qfl.__version__} (torch {version('torch')}, transformer-lens ")
    assert version("qfl-interp") == qfl.__version__, "installed before the version changed: install again"
    assert f"\nversion: {qfl.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == qfl.__version__


def test_each_entry_point_is_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = [value for group in project["entry-points"].values() for value in group.values()]
    assert len(points) > 30
    assert all(value.startswith(("qfl_interp.tasks.", "qfl_interp.analyses.")) for value in points)


def test_the_readmes_links_lead_to_the_release():
    text = "[docs/x.md](docs/x.md#a) ![p](p.png) [up](#up) [them](https://a.b/c)"
    found = hatch_build.readme(text, "https://github.com/o/r/", "1.2")
    home = "https://github.com/o/r"
    assert found.startswith(
        f"[docs/x.md]({home}/blob/v1.2/docs/x.md#a) ![p]({home}/raw/v1.2/p.png) [up](#up) [them](ht"
    )
    assert hatch_build.readme(text, "", "1.2").startswith("docs/x.md  [up](#up) [them](https://a.b/c)")
    shown = hatch_build.readme((ROOT / "README.md").read_text(), "", qfl.__version__)
    assert "](docs/" not in shown
    assert "](https://" in shown


def _python(*arguments: str | Path, cwd: Path, python: str | Path = sys.executable) -> str:
    """What a process that must succeed says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QFL_", "PYTEST"))}
    done = subprocess.run(
        [str(python), *map(str, arguments)], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with wheel and sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _python("-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


def _files(wheel: Path) -> dict[str, bytes]:
    """What a wheel installs and says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(names) == len({*names})
        return {name: archive.read(name) for name in names}


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file_of_the_package_once(built, tmp_path):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    files = _files(wheel)
    listed = subprocess.run(
        ["git", "ls-files", "qfl_interp", "tasks", "analyses"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    links = {"qfl_interp/tasks", "qfl_interp/analyses"}
    wanted = {name if name.startswith("qfl_interp/") else f"qfl_interp/{name}" for name in listed} - links
    assert {name for name in files if ".dist-info/" not in name} == wanted
    assert {"qfl_interp/py.typed", "qfl_interp/tasks/addition.py"} <= wanted
    assert any(name.endswith(".css") for name in wanted), "a report's style is no Python"
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if not member.isfile()]
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    _python("-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=source)
    (again,) = tmp_path.glob("*.whl")
    assert _files(again) == files


@pytest.mark.slow
def test_the_wheel_works_where_a_user_has_files_of_our_old_names(built, tmp_path):
    _python("-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (wheel,) = built.glob("*.whl")
    _python("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies of this environment, without what its own .pth files add: the checkout.
    site = _python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", python=python, cwd=tmp_path)
    (Path(site.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = tmp_path / "work"
    work.mkdir()
    for name in ("tasks", "analyses"):
        (work / f"{name}.py").write_text(THEIRS)

    def qfl_says(*arguments: str) -> str:
        return _python(python.with_name("qfl"), *arguments, python=python, cwd=work)

    assert qfl_says("--version").startswith(f"qfl-interp {qfl.__version__} (torch ")
    assert " ablate-units " in qfl_says("--help")
    said = _python("-c", SCRIPT, python=python, cwd=work)  # where the folder's own files come first
    assert "second_operand" in said, "a feature of the task"
    assert '"test_score"' in said
