"""The lenses on a run: each reads the run, writes a tidy table beside it, and returns a result to look at.

    from analyses import probe, transfer, mdl, emergence, patch, interchange, ablate, ablate_units, polca, curvature
    from analyses import timeline, report

The functions load on first use. Each lens has a module of its own: what it computes, its figure, its table.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyses.ablation import ablate
    from analyses.across_compute import across
    from analyses.capturing import capture
    from analyses.curving import curvature
    from analyses.decomposing import polca
    from analyses.describing import mdl
    from analyses.emerging import emergence
    from analyses.interchanging import interchange
    from analyses.patching import patch
    from analyses.probing import probe
    from analyses.reporting import report
    from analyses.scaling_laws import scaling
    from analyses.timelining import timeline
    from analyses.transferring import transfer
    from analyses.unit_ablation import ablate_units

# Lets qfl_interp tell this package from a user's own analyses.py that shadows it.
QFL_INTERP_PACKAGE = True

# Modules are named apart from their functions, so that importing one never hides the other.
_WHERE = {
    "ablate": "ablation",
    "ablate_units": "unit_ablation",
    "across": "across_compute",
    "capture": "capturing",
    "curvature": "curving",
    "emergence": "emerging",
    "interchange": "interchanging",
    "mdl": "describing",
    "patch": "patching",
    "polca": "decomposing",
    "probe": "probing",
    "report": "reporting",
    "scaling": "scaling_laws",
    "timeline": "timelining",
    "transfer": "transferring",
}

__all__ = [
    "ablate",
    "ablate_units",
    "across",
    "capture",
    "curvature",
    "emergence",
    "interchange",
    "mdl",
    "patch",
    "polca",
    "probe",
    "report",
    "scaling",
    "timeline",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Load a lens from its module."""
    if name in _WHERE:
        value = getattr(importlib.import_module(f"analyses.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'analyses' has no attribute {name!r}. Lenses: {', '.join(__all__)}.")
