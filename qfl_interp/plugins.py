"""Entry points: how tasks and analyses, ours and others', are found without the core naming one."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qfl_interp.errors import QflError

TASKS = "qfl_interp.tasks"
LENSES = "qfl_interp.lenses"
ANALYSES = "qfl_interp.analyses"
SWEEP_ANALYSES = "qfl_interp.sweep_analyses"
# Top-level packages of ours with common names, which a user's own files can shadow.
_OWN_PACKAGES = ("tasks", "analyses")


@functools.cache
def entry_points(group: str) -> Mapping[str, importlib.metadata.EntryPoint]:
    """The installed entry points of one group by name, nothing imported yet."""
    found = importlib.metadata.entry_points(group=group)
    return MappingProxyType({point.name: point for point in sorted(found, key=lambda p: p.name)})


def load_entry_point(group: str, name: str) -> Any:
    """The object an entry point names.

    Raises:
        QflError: Its module cannot be imported; says what shadows it where that is the cause.
    """
    point = entry_points(group)[name]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = point.module.split(".")[0]
        if package in _OWN_PACKAGES:
            module = __import__(package)
            where = Path(getattr(module, "__file__", None) or ".").resolve()
            if not getattr(module, "QFL_INTERP_PACKAGE", False):
                raise QflError(
                    f"the package {package!r} of qfl_interp is shadowed by {where}. "
                    "Rename that file or folder, or run from another directory."
                ) from error
        raise QflError(f"entry point {name!r} of {group} ({point.value}) cannot be loaded: {error}.") from error
