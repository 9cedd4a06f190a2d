"""Sweeps over compute budgets: defined in TOML, trained on one machine or on Ray, asked through one table."""

from qfl_interp.sweep.definition import Grid as Grid
from qfl_interp.sweep.definition import SweepConfig as SweepConfig
from qfl_interp.sweep.run_sweep import Estimate as Estimate
from qfl_interp.sweep.run_sweep import Execution as Execution
from qfl_interp.sweep.run_sweep import estimate_sweep as estimate_sweep
from qfl_interp.sweep.run_sweep import run_sweep as run_sweep
from qfl_interp.sweep.status import SweepStatus as SweepStatus
from qfl_interp.sweep.status import duration as duration
from qfl_interp.sweep.status import sweep_status as sweep_status
from qfl_interp.sweep.sweep import Sweep as Sweep
