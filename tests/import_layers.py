"""Which room of the core may import which: one ordered list, checked on the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# The ground: files at the top of the core, which import each other and nothing else of it.
GROUND = (
    "errors",
    "files",
    "sites",
    "digests",
    "sealed",
    "lazy",
    "shapes",
    "checked",
    "recipes",
    "model_sizes",
    "mlp_config",
    "model_config",
    "train_config",
    "probe_config",
    "hf_model_config",
    "config",
    "model_kinds",
    "plugins",
    "seeding",
    "tables",
    "columns",
    "stats",
    "progress",
    "threads",
    "memory",
    "processes",
    "old_names",
)
# A room imports from itself and from earlier ones.
ROOMS = (
    "data",
    "testing",
    "models",
    "runs",
    "activations",
    "probes",
    "interventions",
    "curvature",
    "training",
    "sweep",
    "emergence",
    "scaling",
    "polca",
    "homogeneous",
    "plots",
    "report",
    "cli",
)
# Third-party packages that only some rooms or files may import, at any depth.
ONLY_IN = {
    "transformer_lens": ("models/tl_version.py", "models/hooked_transformer.py", "models/hooked_layers.py"),
    "transformers": (
        "models/build.py",
        "models/hugging_face.py",
        "runs/sources/hugging_face.py",
        "training/trainer_callback.py",
    ),
    "huggingface_hub": ("runs/hub/client.py",),
    "plotly": ("plots", "report"),
    "sklearn": ("emergence", "polca"),
    "IPython": ("cli",),
    "typer": ("cli",),
    "tensorboard": (),
    "wandb": (),
}
# What `qfl --help` reads: these load no package that takes long to import, at module level.
LIGHT = (
    "errors.py",
    "sites.py",
    "digests.py",
    "lazy.py",
    "recipes.py",
    "config.py",
    "mlp_config.py",
    "hf_model_config.py",
    "model_kinds.py",
    "plugins.py",
    "runs/config.py",
    "cli",
)
HEAVY = {
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "transformer_lens",
    "plotly",
    "pyarrow",
    "safetensors",
    "IPython",
}
OTHERS = ("tests", "benchmarks")
# Packages in the core's folder that are no part of it: links to folders beside it.
OUTER = ("tasks", "analyses")
CORE = "qfl_interp"


def _imported(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported module by its full name, with the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            name = node.module or ""
            # `from qfl_interp import plots` names a room, `from qfl_interp.errors import X` does not.
            yield from ((f"{name}.{alias.name}" if name == CORE else name, node) for alias in node.names)


def _deferred(tree: ast.Module) -> set[ast.stmt]:
    """Statements that importing the module does not run: in functions, or under TYPE_CHECKING."""
    bodies = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    bodies += [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {inner for body in bodies for inner in ast.walk(body) if isinstance(inner, ast.stmt)}


def violations(root: Path) -> list[str]:
    """One sentence for each import below `root` that breaks a rule; `root` is the core's folder."""
    floor = dict.fromkeys(GROUND, 0) | {room: number for number, room in enumerate(ROOMS, start=1)}
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        room = inside.with_suffix("").parts[0]
        if room in OUTER:
            continue
        tree = ast.parse(path.read_text())
        deferred = _deferred(tree)
        if room != "__init__" and (room not in floor or (len(inside.parts) == 1) != (room in GROUND)):
            found.append(f"{inside}: {room!r} is no room and no file of the ground")
            continue
        for name, statement in _imported(tree):
            top, *rest = name.split(".")
            place = f"{inside}:{statement.lineno}"
            if room != "__init__" and (top in OTHERS or top in OUTER or (top == CORE and rest and rest[0] in OUTER)):
                found.append(f"{place}: the core imports {name}")
            if top in ONLY_IN and not _within(inside, ONLY_IN[top]):
                found.append(f"{place}: {top} belongs in {list(ONLY_IN[top])}")
            if _within(inside, LIGHT) and top in HEAVY and statement not in deferred:
                found.append(f"{place}: {top} at module level slows `qfl --help`")
            if top == CORE and room != "__init__" and rest and floor.get(rest[0], -1) > floor[room]:
                found.append(f"{place}: {room} imports {rest[0]}, a later room")
    return found


def _within(path: Path, places: tuple[str, ...]) -> bool:
    """Whether a file is one of these, or in one of these rooms."""
    return path.parts[0] in places or path.as_posix() in places
