"""Scaling of loss with compute: power laws, whether the loss leaves them, and where on the budget axis it falls."""

from qfl_interp.scaling.across import AcrossTransition, Crossing, across_transition, crossing
from qfl_interp.scaling.deviation import Comparison, LackOfFit, compare_laws, lack_of_fit
from qfl_interp.scaling.laws import BrokenPowerLaw, PowerLaw, fit_broken_power_law, fit_power_law
