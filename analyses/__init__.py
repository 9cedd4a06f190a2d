"""The lenses on a run: each reads the run, writes a tidy table beside it, and returns a result to look at.

    from analyses import probe, transfer, mdl, emergence, patch, interchange, ablate, ablate_units, polca, curvature
    from analyses import timeline, report

The functions load on first use. Each lens has a module of its own: what it computes, its figure, its table.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyses.lenses.ablate.lens import ablate
    from analyses.lenses.ablate_units.lens import ablate_units
    from analyses.lenses.capture.lens import capture
    from analyses.lenses.curvature.lens import curvature
    from analyses.lenses.emergence.lens import emergence
    from analyses.lenses.interchange.lens import interchange
    from analyses.lenses.mdl.lens import mdl
    from analyses.lenses.patch.lens import patch
    from analyses.lenses.polca.lens import polca
    from analyses.lenses.probe.lens import probe
    from analyses.lenses.transfer.lens import transfer
    from analyses.pages.report import report
    from analyses.pages.timeline import timeline
    from analyses.sweeps.across import across
    from analyses.sweeps.scaling import scaling

# Lets qfl_interp tell this package from a user's own analyses.py that shadows it.
QFL_INTERP_PACKAGE = True

# Modules are named apart from their functions, so that importing one never hides the other.
_WHERE = {
    "ablate": "lenses.ablate.lens",
    "ablate_units": "lenses.ablate_units.lens",
    "across": "sweeps.across",
    "capture": "lenses.capture.lens",
    "curvature": "lenses.curvature.lens",
    "emergence": "lenses.emergence.lens",
    "interchange": "lenses.interchange.lens",
    "mdl": "lenses.mdl.lens",
    "patch": "lenses.patch.lens",
    "polca": "lenses.polca.lens",
    "probe": "lenses.probe.lens",
    "report": "pages.report",
    "scaling": "sweeps.scaling",
    "timeline": "pages.timeline",
    "transfer": "lenses.transfer.lens",
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
