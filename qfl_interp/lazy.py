"""Names of a package that load on first use, so that importing the package costs nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from qfl_interp.errors import nearest


def lazy_names(package: str, names: Sequence[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that loads each of its public names when it is first asked for.

    The package imports the names under `if TYPE_CHECKING`: type checkers and this function read there which module
    defines each. `from package import room` makes a submodule a name.

        if TYPE_CHECKING:
            from package.module import name

        __all__ = ["name"]
        __getattr__, __dir__ = lazy_names(__name__, __all__)

    A name must differ from the submodules of the package: importing a submodule sets it as an attribute.

    Args:
        package: The package's `__name__`.
        names: Its `__all__`.

    Returns:
        The two functions; an unknown name raises AttributeError, which suggests the nearest and lists the public ones.
    """

    def load(name: str) -> Any:
        module = sys.modules[package]
        if name not in names:
            known = f"{nearest(name, names)} Public names: {', '.join(names)}."
            raise AttributeError(f"module {package!r} has no attribute {name!r}.{known}")
        where = _modules(inspect.getsource(module))[name]
        submodule = where == package
        found = importlib.import_module(f"{package}.{name}" if submodule else where)
        value = found if submodule else getattr(found, name)
        setattr(module, name, value)
        return value

    def listed() -> list[str]:
        return [*names, *(name for name in vars(sys.modules[package]) if name.startswith("__"))]

    return load, listed


def _modules(source: str) -> dict[str, str]:
    """Name to the module it is imported from under `if TYPE_CHECKING`."""
    tests = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    imports = [node for test in tests if ast.unparse(test.test) == "TYPE_CHECKING" for node in test.body]
    return {a.asname or a.name: n.module or "" for n in imports if isinstance(n, ast.ImportFrom) for a in n.names}
