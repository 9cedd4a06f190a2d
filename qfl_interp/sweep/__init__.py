"""Sweeps over compute budgets: defined in TOML, trained on one machine or on Ray, asked through one table."""

from qfl_interp.sweep.definition import Grid, SweepConfig
from qfl_interp.sweep.run_sweep import Estimate, Execution, estimate_sweep, run_sweep
from qfl_interp.sweep.status import SweepStatus, duration, sweep_status
from qfl_interp.sweep.sweep import Sweep
