"""Which file of the core may import which: the layers of the library, checked on the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# A module imports from its own layer or an earlier one. A name stands for the module or for a whole package.
LAYERS = (
    ("errors", "shapes", "config", "task", "seeding", "metrics", "progress", "interrupt", "tables", "soft_rank"),
    ("plugins", "registry", "compute", "schedule", "data", "baselines", "generate", "fused_ops", "stats", "memory"),
    (
        "model",
        "hooks",
        "parameter_space",
        "token_losses",
        "fast_support",
        "fast_forward",
        "aggregation",
        "transition",
        "onset",
        "scaling",
        "pass_until",
    ),
    ("checkpoint", "results", "provenance", "run_config", "loggers", "edits", "projection", "forward"),
    ("activations", "store", "controls", "curvature", "token_gradients"),
    ("run", "run_writer", "series", "probes", "ablate", "ablations", "emergence"),
    ("pairs", "patching", "interchange", "attribution", "paths", "polca", "homogeneous"),
    ("dataset", "fixed_task", "hf_checkpoints", "suite"),
    ("run_session", "training_loop", "training", "stacked"),
    ("sweep",),
    ("plots", "report"),
    ("cli",),
)
# Third-party packages that only some modules may import, at any depth.
ONLY_IN = {
    "transformer_lens": {"model", "hooks"},
    "transformers": {"model", "suite", "hf_checkpoints"},
    "plotly": {"plots"},
    "sklearn": {"transition", "polca", "homogeneous"},
    "IPython": {"cli"},
    "typer": {"cli"},
    "tensorboard": set(),
    "wandb": set(),
}
# What `qfl --help` reads: these load no package that takes long to import, at module level.
LIGHT = ("errors", "config", "plugins", "run_config", "cli")
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
OTHERS = ("tasks", "analyses", "tests", "benchmarks")
CORE = "qfl_interp"


def _module(path: Path, root: Path) -> str:
    """The first name below the core: "model", "plots", ..."""
    return path.relative_to(root).with_suffix("").parts[0]


def _imported(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported module by its full name, with the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            name = node.module or ""
            # `from qfl_interp import checkpoint` names a module, `from qfl_interp.errors import X` does not.
            yield from ((f"{name}.{alias.name}" if name == CORE else name, node) for alias in node.names)


def _deferred(tree: ast.Module) -> set[ast.stmt]:
    """Statements that importing the module does not run: in functions, or under TYPE_CHECKING."""
    bodies = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    bodies += [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {inner for body in bodies for inner in ast.walk(body) if isinstance(inner, ast.stmt)}


def violations(root: Path) -> list[str]:
    """One sentence for each import below `root` that breaks a rule; `root` is the core's folder."""
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    found = []
    for path in sorted(root.rglob("*.py")):
        module = _module(path, root)
        tree = ast.parse(path.read_text())
        deferred = _deferred(tree)
        if module != "__init__" and module not in layer:
            found.append(f"{path.name}: module {module!r} is in no layer")
            continue
        for name, statement in _imported(tree):
            top, *rest = name.split(".")
            place = f"{path.relative_to(root)}:{statement.lineno}"
            if top in OTHERS:
                found.append(f"{place}: the core imports {name}")
            if top in ONLY_IN and module not in ONLY_IN[top]:
                found.append(f"{place}: {top} belongs in {sorted(ONLY_IN[top])}")
            if module in LIGHT and top in HEAVY and statement not in deferred:
                found.append(f"{place}: {top} at module level slows `qfl --help`")
            if top == CORE and module != "__init__" and rest and layer.get(rest[0], -1) > layer[module]:
                found.append(f"{place}: layer {layer[module]} imports {rest[0]} of layer {layer[rest[0]]}")
    return found
