"""The pages of names: the public lists, and a page a room that mkdocstrings fills from the docstrings."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

from docsite.tables import code, table

ROOT = Path(__file__).resolve().parents[2]
# In the order of the layers; `cli` is the reference of commands.
ROOMS = (
    "data", "models", "runs", "training", "sweep", "activations", "probes", "interventions", "emergence", "curvature",
    "polca", "scaling", "homogeneous", "plots", "report", "testing",
)  # fmt: skip
_GROUND = (
    "errors", "config", "model_config", "train_config", "probe_config", "mlp_config", "recipes", "sites", "plugins",
    "seeding", "stats", "tables",
)  # fmt: skip
_GROUND_ENTRY = """# The ground

What every room stands on: errors, configurations, seeds, tables, statistics.
"""
_ENTRY = """# Names

`import qfl_interp as qfl` gives the names of the first table; they load when first used. The lenses are functions of a
run. Everything else is reached by its module, on the page of its room.
"""


def pages() -> dict[str, str]:
    """File name to Markdown."""
    rooms = {f"{room}.md": _page(f"qfl_interp.{room}", ROOT / "qfl_interp" / room) for room in ROOMS}
    ground = "\n".join(f"::: qfl_interp.{name}\n" for name in _GROUND)
    return {
        "index.md": _index(),
        "lenses.md": _lenses(),
        "ground.md": f"{_GROUND_ENTRY}\n{ground}",
        **rooms,
    }


def _listed(package: str) -> dict[str, str]:
    """The public names of a lazy package, each with where it is defined; submodules are left out."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    tests = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for test in tests for node in test.body if isinstance(node, ast.ImportFrom)]
    found = {alias.name: node.module or "" for node in imports for alias in node.names if node.module != package}
    return dict(sorted(found.items(), key=lambda one: one[0].lower()))


class _Name(NamedTuple):
    """Where a name is defined, and what it is in a sentence."""

    module: str
    first_line: str


def _defined(module: str, name: str) -> _Name:
    """A name followed through what packages import from their modules."""
    path = ROOT / module.replace(".", "/")
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    nodes = list(ast.walk(ast.parse(source.read_text())))
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _Name(module, (ast.get_docstring(node) or "").split("\n\n")[0])
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return _defined(node.module, name)
    raise LookupError(f"{module} has no {name}: its `if TYPE_CHECKING` names something that is not there.")


def _index() -> str:
    own, lenses = _listed("qfl_interp"), _listed("qfl_interp.analyses")

    def rows(names: dict[str, str]) -> list[tuple[str, str]]:
        found = {name: _defined(module, name) for name, module in names.items()}
        return [(f"[{code(name)}][{one.module}.{name}]", one.first_line) for name, one in found.items()]

    return (
        f"{_ENTRY}\n## qfl_interp\n\n{table(('name', 'what it is'), rows(own))}"
        f"\n## Lenses\n\n{table(('name', 'what it does'), rows(lenses))}"
    )


def _lenses() -> str:
    own = {name: module for name, module in _listed("qfl_interp").items() if module.startswith("qfl_interp.analyses.")}
    shown = "\n".join(f"::: {module}.{name}\n" for name, module in (_listed("qfl_interp.analyses") | own).items())
    kit = "\n".join(
        f"::: qfl_interp.analyses.{name}\n" for name in ("result", "lens", "part_lens", "models_at", "checkpoints")
    )
    return f"# Lenses\n\n{shown}\n## What a lens of your own is made of\n\n{kit}"


def _page(package: str, folder: Path) -> str:
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    modules = [path.relative_to(ROOT).with_suffix("").parts for path in sorted(folder.rglob("*.py"))]
    public = [".".join(parts) for parts in modules if not any(part.startswith("_") for part in parts)]
    return f"# {package}\n\n{about}\n\n" + "\n".join(f"::: {name}\n" for name in public)
