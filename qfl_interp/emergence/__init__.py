"""When the loss moves, when a feature is learned, and which came first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.emergence.onset import Onset as Onset
    from qfl_interp.emergence.onset import find_onset as find_onset
    from qfl_interp.emergence.transition import Transition as Transition
    from qfl_interp.emergence.transition import find_transition as find_transition
    from qfl_interp.emergence.verdict import Verdict as Verdict
    from qfl_interp.emergence.verdict import classify as classify
    from qfl_interp.emergence.verdict import lead_interval_bootstrap as lead_interval_bootstrap
    from qfl_interp.emergence.verdict import lead_interval_seeds as lead_interval_seeds

__getattr__, __dir__ = lazy_names(__name__)
