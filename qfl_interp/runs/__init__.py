"""What lies on disk: a run's configuration, checkpoints and tables, and other people's suites of checkpoints.

`series` is what any of them offers an analysis (`Checkpoints`); `run` and `suite` are the two there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.runs.config import RunConfig as RunConfig
    from qfl_interp.runs.run import Run as Run
    from qfl_interp.runs.series import Checkpoints as Checkpoints
    from qfl_interp.runs.suite import Suite as Suite
    from qfl_interp.runs.table import Table as Table

__getattr__, __dir__ = lazy_names(__name__)
