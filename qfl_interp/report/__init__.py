"""Tables and figures of a run -> one HTML page that needs nothing else."""

from __future__ import annotations

from qfl_interp.report.curvature_section import CurvatureTables
from qfl_interp.report.page import Section, render_report, write_report
from qfl_interp.report.polca_section import PolcaTables
from qfl_interp.report.sections import standard_sections
from qfl_interp.report.words import Finding, findings

__all__ = [
    "CurvatureTables",
    "Finding",
    "PolcaTables",
    "Section",
    "findings",
    "render_report",
    "standard_sections",
    "write_report",
]
