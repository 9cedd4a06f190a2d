"""The library's shape: layers of imports, the public names, no side effects, examples that run."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import import_layers
import pytest

import qfl_interp as qfl
from qfl_interp import analyses

ROOT = Path(__file__).parents[1]
CORE = ROOT / "qfl_interp"


def test_the_core_keeps_its_layers():
    assert import_layers.violations(CORE) == []


@pytest.mark.parametrize(
    ("path", "source", "report"),
    [
        (
            "data/x.py",
            "from qfl_interp.tasks.addition import Addition",
            "data/x.py:1: the core imports qfl_interp.tasks.addition",
        ),
        (
            "data/x.py",
            "def f():\n    from qfl_interp import analyses",
            "data/x.py:2: the core imports qfl_interp.analyses",
        ),
        ("data/x.py", "import analyses", "data/x.py:1: the core imports analyses"),
        ("runs/x.py", "from qfl_interp.plots import theme", "runs/x.py:1: runs imports plots, a later room"),
        ("config.py", "from qfl_interp import data", "config.py:1: config imports data, a later room"),
        ("probes/x.py", "import transformer_lens.utils", "belongs in ['models/tl_version.py', "),
        ("models/x.py", "import transformer_lens", "belongs in ['models/tl_version.py', "),
        ("sweep/x.py", "import plotly", "x.py:1: plotly belongs in ['plots', 'report']"),
        ("runs/config.py", "import torch", "runs/config.py:1: torch at module level slows `qfl --help`"),
        ("utils.py", "", "utils.py: 'utils' is no room and no file of the ground"),
        ("data.py", "", "data.py: 'data' is no room and no file of the ground"),
        ("errors/x.py", "", "errors/x.py: 'errors' is no room and no file of the ground"),
    ],
)
def test_the_checker_reports_a_bad_file(tmp_path, path, source, report):
    target = tmp_path / path
    target.parent.mkdir(exist_ok=True)
    target.write_text(source)
    (found,) = import_layers.violations(tmp_path)
    assert report in found


def test_the_checker_lets_good_files_pass(tmp_path):
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "main.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
        "    from qfl_interp.training.train import train\n"
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tl_version.py").write_text(
        "import transformer_lens\nfrom qfl_interp.errors import QflError\n"
    )
    assert import_layers.violations(tmp_path) == []


@pytest.mark.parametrize("package", ["tasks", "analyses"])
def test_outer_packages_import_what_they_may(package):
    """Tasks see the task protocol alone; analyses reach a task by name."""
    for path in (ROOT / package).rglob("*.py"):
        for name, _ in import_layers._imported(import_layers.ast.parse(path.read_text())):
            top, *rest = name.split(".")
            room = ".".join(rest)
            assert top not in ("tasks", "analyses", "tests"), (path, name)
            if package == "tasks":
                allowed = (
                    "data.task", "data.task_options", "data.baselines", "shapes", "errors", "seeding", "digests",
                    "old_names",
                )  # fmt: skip
                own = rest[:1] == ["tasks"]
                assert top != "qfl_interp" or own or room in allowed, (path, name)
            else:
                assert top != "transformer_lens", (path, name)
                assert rest[:1] != ["tasks"], (path, name)


def test_transformer_lens_is_imported_in_few_places():
    """Which version is installed decides what there is: `qfl_interp.models.tl_version` hands it on."""
    beside = {"benchmarks", "tests"}  # they measure against it, and make models of it for tests
    found = set()
    for folder in ("qfl_interp", "tasks", "analyses", "scripts", *beside):
        for path in (ROOT / folder).rglob("*.py"):
            names = (name for name, _ in import_layers._imported(ast.parse(path.read_text())))
            if any(name.split(".")[0] == "transformer_lens" for name in names):
                found.add(path.relative_to(ROOT).as_posix())
    core = {path for path in found if path.split("/")[0] not in beside}
    assert core == {f"qfl_interp/{path}" for path in import_layers.ONLY_IN["transformer_lens"]}
    assert {path for path in found if path.startswith("tests/")} == {
        "tests/curvature/test_token_losses.py", "tests/models/test_bridge.py",
    }  # fmt: skip


def test_public_names_are_pinned_and_import():
    """Users rely on this list: a change belongs in the change notes."""
    assert sorted(qfl.__all__) == [
        "ActivationStore", "Batch", "Checkpoints", "CurvatureConfig", "DivergedError", "ExampleStream", "Execution",
        "Feature", "FixedFeature", "FixedTask", "Intervene", "Intervention", "ModelConfig", "Pairs", "PolcaConfig",
        "ProbeConfig", "QflError", "Recorder", "RecorderCallback", "Run", "SgldConfig", "Site", "Suite", "Sweep",
        "SweepConfig", "Task", "TrainConfig", "branch", "build_model", "capture", "check_suite", "compare",
        "estimate_sweep", "fast_logits", "fork", "generate_greedy", "held_out", "hooked_from_hf", "interventions_on",
        "load_task", "mean", "patch", "project_out", "read_activations", "register_loss", "register_task", "replay",
        "resample", "resume", "run_sweep", "save_figure", "sweep_status", "task_names", "train", "view",
        "write_activation", "zero",
    ]  # fmt: skip
    assert sorted(analyses.__all__) == [
        "ablate", "ablate_units", "across", "capture", "compare", "curvature", "edge", "emergence", "interchange",
        "mdl", "patch", "polca", "probe", "report", "scaling", "site", "timeline", "transfer", "validate",
    ]  # fmt: skip
    for package in (qfl, analyses):
        for name in package.__all__:
            assert callable(getattr(package, name)), name
    assert set(qfl.__all__) <= set(dir(qfl))
    with pytest.raises(AttributeError, match=r"'Trainer'. Did you mean .*'train'.*\? Public names: ActivationStore, "):
        _ = qfl.Trainer
    with pytest.raises(AttributeError, match=r"no attribute 'xyzzy'. Public names: "):
        _ = qfl.xyzzy


@pytest.mark.parametrize("room", import_layers.ROOMS)
def test_what_a_room_hands_on_is_there(room):
    module = importlib.import_module(f"qfl_interp.{room}")
    submodules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    source = importlib.util.find_spec(module.__name__).loader.get_source(module.__name__)
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    handed_on = [a.name for node in imports if node.module.startswith(f"qfl_interp.{room}.") for a in node.names]
    for name in handed_on:
        if name in submodules:
            importlib.import_module(f"qfl_interp.{room}.{name}")
        assert not isinstance(getattr(module, name), ModuleType), f"the module {name} hides the name"


@pytest.mark.parametrize("room", [*import_layers.ROOMS, *import_layers.OUTER])
def test_every_room_is_an_attribute_of_the_library(monkeypatch, room):
    monkeypatch.delattr(qfl, room, raising=False)
    assert getattr(qfl, room) is sys.modules[f"qfl_interp.{room}"]
    assert room in dir(qfl)
    assert room not in qfl.__all__


def test_importing_has_no_side_effect():
    """Neither heavy modules nor changed global state: warning filters, signals, environment, root logger."""
    code = """
import json, logging, os, signal, sys, warnings
def state():
    return (
        list(warnings.filters), signal.getsignal(signal.SIGINT), dict(os.environ), list(logging.root.handlers)
    )
before = state()
import qfl_interp, qfl_interp.config, qfl_interp.runs.config, qfl_interp.analyses, qfl_interp.tasks
after = state()
print(json.dumps([before == after, sorted({m.split(".")[0] for m in sys.modules})]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unchanged, modules = json.loads(done.stdout)
    assert unchanged
    assert not set(modules) & import_layers.HEAVY
    assert done.stderr == ""


def _with_examples() -> list[str]:
    found = []
    for package, inside in (("qfl_interp", ""), ("tasks", "qfl_interp."), ("analyses", "qfl_interp.")):
        files = [path for path in (ROOT / package).rglob("*.py") if ">>> " in path.read_text()]
        found += [inside + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return found


@pytest.mark.parametrize("name", sorted(_with_examples()))
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    assert result.attempted > 0, "an example that is not found is not run"


def test_type_checkers_may_use_what_a_package_hands_on():
    """A checker takes `from room import name` of a typed package as private: `name as name` hands it on."""
    for path in sorted((ROOT / "qfl_interp").rglob("__init__.py")):
        tree = ast.parse(path.read_text())
        if any(ast.unparse(node).startswith("__all__ = ") for node in tree.body):
            continue
        blocks = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.If))]
        imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
        own = [
            node for node in imports if str(node.module).startswith("qfl_interp") and node.module != "qfl_interp.lazy"
        ]
        private = [alias.name for node in own for alias in node.names if alias.asname != alias.name]
        assert private == [], f"{path}: {private}"
