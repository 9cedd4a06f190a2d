"""The views for which a checkpoint's model is loaded: what it predicts, and where its heads look."""

from __future__ import annotations

from analyses.at_step import View
from qfl_interp.runs.series import Checkpoints


def model_views(run: Checkpoints) -> list[View]:
    """Those that apply to the run's models and task."""
    return []
