"""The names that tasks and analyses had before 0.2, `tasks` and `analyses`, which still import in a checkout.

Each is the module of today under another name: nothing is loaded twice, no class exists twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Today(Loader):
    """Gives the module of today for its old name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of today, which loads."""
        module = importlib.import_module(f"qfl_interp.{spec.name}")
        # The import of the old name would leave its spec in the module.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Put back what the import has set; the module has run."""
        spec = module.__spec__
        assert spec is not None
        module.__spec__ = spec.loader_state


class _Below(MetaPathFinder):
    """Finds the modules of a package under its old name."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Of a module below the package."""
        if not fullname.startswith(f"{self.package}."):
            return None
        # What is not there is said by its old name.
        found = importlib.util.find_spec(f"qfl_interp.{fullname}")
        return found and ModuleSpec(fullname, _Today(), is_package=found.submodule_search_locations is not None)


def serve(package: str) -> None:
    """Let a package that is being imported as `package` be `qfl_interp.<package>`, and its modules likewise."""
    sys.modules[package] = importlib.import_module(f"qfl_interp.{package}")
    sys.meta_path.insert(0, _Below(package))
