"""Names of a package that load on first use, so that importing the package costs nothing."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from qfl_interp.errors import nearest


def lazy_names(
    package: str, others: Callable[[], Mapping[str, Callable[[], Any]]] = dict
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that loads each of its public names when it is first asked for.

    The public names are those that the package imports under `if TYPE_CHECKING`: type checkers and this function read
    there which module defines each. `from package import room` makes a submodule a name, which is no part of `__all__`.

        if TYPE_CHECKING:
            from package.module import name

        __getattr__, __dir__ = lazy_names(__name__)

    A name must differ from the submodules of the package: importing a submodule sets it as an attribute.

    Args:
        package: Its name.
        others: What finds further names, which are no part of `__all__`, and what each is made by; asked when none of
            the public names is meant.

    Returns:
        The two functions; an unknown name raises AttributeError, which suggests the nearest and lists the public ones.
    """

    @functools.cache
    def modules() -> dict[str, str]:
        """Name to the module it is imported from: constants, classes, functions, then submodules."""
        loader: Any = sys.modules[package].__loader__
        tests = [node for node in ast.parse(loader.get_source(package)).body if isinstance(node, ast.If)]
        imports = [node for test in tests if ast.unparse(test.test) == "TYPE_CHECKING" for node in test.body]
        found = {a.name: n.module or "" for n in imports if isinstance(n, ast.ImportFrom) for a in n.names}
        order = sorted(found, key=lambda name: (found[name] == package, not name.isupper(), name[0].islower(), name))
        return {name: found[name] for name in order}

    def load(name: str) -> Any:
        where = modules()
        if name == "__all__":
            return [known for known, module in where.items() if module != package]
        if name not in where and not name.startswith("_") and (make := others().get(name)):
            setattr(sys.modules[package], name, make())
            return getattr(sys.modules[package], name)
        if name not in where:
            known = f"{nearest(name, [*where, *others()])} Public names: {', '.join(where)}."
            raise AttributeError(f"module {package!r} has no attribute {name!r}.{known}")
        submodule = where[name] == package
        found = importlib.import_module(f"{package}.{name}" if submodule else where[name])
        value = found if submodule else getattr(found, name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return list(dict.fromkeys([*modules(), *others(), "__all__", *own]))

    return load, listed
