"""The lenses on a run: each reads the run, writes a tidy table beside it, and returns a result to look at.

    from analyses import probe, emergence, ablate, timeline, report

The functions load on first use. Each lens has a module of its own: what it computes, its figure, its table.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyses.ablation import ablate
    from analyses.emerging import emergence, timeline
    from analyses.probing import probe
    from analyses.reporting import report

# Lets qfl_interp tell this package from a user's own analyses.py that shadows it.
QFL_INTERP_PACKAGE = True

# Modules are named apart from their functions, so that importing one never hides the other.
_WHERE = {
    "ablate": "ablation",
    "emergence": "emerging",
    "probe": "probing",
    "report": "reporting",
    "timeline": "emerging",
}

__all__ = ["ablate", "emergence", "probe", "report", "timeline"]


def __getattr__(name: str) -> Any:
    """Load a lens from its module."""
    if name in _WHERE:
        value = getattr(importlib.import_module(f"analyses.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'analyses' has no attribute {name!r}. Lenses: {', '.join(__all__)}.")
