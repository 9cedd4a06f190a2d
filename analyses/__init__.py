"""The lenses on a run: each reads the run, writes a tidy table beside it, and returns a result to look at.

    from analyses import probe, transfer, mdl, emergence, patch, interchange, ablate, ablate_units, polca, curvature
    from analyses import validate, timeline, report

Each takes one model in memory too, with the task to look at it on: `probe(model, task=task)`. The functions load on
first use. Each lens has a module of its own: what it computes, its figure, its table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from analyses.lenses.ablate.lens import ablate
    from analyses.lenses.ablate_units.lens import ablate_units
    from analyses.lenses.capture.lens import capture
    from analyses.lenses.curvature.lens import curvature
    from analyses.lenses.edge.lens import edge
    from analyses.lenses.emergence.lens import emergence
    from analyses.lenses.interchange.lens import interchange
    from analyses.lenses.mdl.lens import mdl
    from analyses.lenses.patch.lens import patch
    from analyses.lenses.polca.lens import polca
    from analyses.lenses.probe.lens import probe
    from analyses.lenses.transfer.lens import transfer
    from analyses.lenses.validate.lens import validate
    from analyses.pages.compare import compare
    from analyses.pages.report import report
    from analyses.pages.site import site
    from analyses.pages.timeline import timeline
    from analyses.sweeps.across import across
    from analyses.sweeps.scaling import scaling

# Lets qfl_interp tell this package from a user's own analyses.py that shadows it.
QFL_INTERP_PACKAGE = True

__all__ = [
    "ablate",
    "ablate_units",
    "across",
    "capture",
    "compare",
    "curvature",
    "edge",
    "emergence",
    "interchange",
    "mdl",
    "patch",
    "polca",
    "probe",
    "report",
    "scaling",
    "site",
    "timeline",
    "transfer",
    "validate",
]

_load, __dir__ = lazy_names(__name__)


def __getattr__(name: str) -> Any:
    """A public name, which loads; an analysis takes models in memory."""
    found = _load(name)
    if not callable(found):
        return found
    from analyses.in_memory import takes_models

    globals()[name] = takes_models(found)
    return globals()[name]
