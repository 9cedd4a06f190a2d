"""When the loss moves, when a feature is learned, and which came first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.emergence.onset import Onset, find_onset
    from qfl_interp.emergence.transition import Transition, find_transition
    from qfl_interp.emergence.verdict import Verdict, classify, lead_interval_bootstrap, lead_interval_seeds

__getattr__, __dir__ = lazy_names(__name__)
