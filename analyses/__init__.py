"""The lenses on a run: each reads the run, writes a tidy table beside it, and returns a result to look at.

    from qfl_interp.analyses import probe, transfer, mdl, emergence, patch, interchange, ablate, ablate_units, polca
    from qfl_interp.analyses import curvature, validate, timeline, report, compare

Each takes one model in memory too, with the task to look at it on: `probe(model, task=task)`. The functions load on
first use. Each lens has a module of its own: what it computes, its figure, its table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.analyses.lenses.ablate.lens import ablate
    from qfl_interp.analyses.lenses.ablate_units.lens import ablate_units
    from qfl_interp.analyses.lenses.capture.lens import capture
    from qfl_interp.analyses.lenses.curvature.lens import curvature
    from qfl_interp.analyses.lenses.edge.lens import edge
    from qfl_interp.analyses.lenses.emergence.lens import emergence
    from qfl_interp.analyses.lenses.interchange.lens import interchange
    from qfl_interp.analyses.lenses.mdl.lens import mdl
    from qfl_interp.analyses.lenses.patch.lens import patch
    from qfl_interp.analyses.lenses.polca.lens import polca
    from qfl_interp.analyses.lenses.probe.lens import probe
    from qfl_interp.analyses.lenses.transfer.lens import transfer
    from qfl_interp.analyses.lenses.validate.lens import validate
    from qfl_interp.analyses.pages.compare import compare
    from qfl_interp.analyses.pages.report import report
    from qfl_interp.analyses.pages.site import site
    from qfl_interp.analyses.pages.timeline import timeline
    from qfl_interp.analyses.sweeps.across import across
    from qfl_interp.analyses.sweeps.scaling import scaling

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
    from qfl_interp.runs.takes_models import takes_models

    globals()[name] = takes_models(found)
    return globals()[name]


if __name__ == "analyses":  # from a checkout
    from qfl_interp.old_names import serve

    serve(__name__)
