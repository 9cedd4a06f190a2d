"""Scaling of loss with compute: power laws, whether the loss leaves them, and where on the budget axis it falls."""

from qfl_interp.scaling.across import AcrossTransition as AcrossTransition
from qfl_interp.scaling.across import Crossing as Crossing
from qfl_interp.scaling.across import across_transition as across_transition
from qfl_interp.scaling.across import crossing as crossing
from qfl_interp.scaling.deviation import Comparison as Comparison
from qfl_interp.scaling.deviation import LackOfFit as LackOfFit
from qfl_interp.scaling.deviation import compare_laws as compare_laws
from qfl_interp.scaling.deviation import lack_of_fit as lack_of_fit
from qfl_interp.scaling.laws import BrokenPowerLaw as BrokenPowerLaw
from qfl_interp.scaling.laws import PowerLaw as PowerLaw
from qfl_interp.scaling.laws import fit_broken_power_law as fit_broken_power_law
from qfl_interp.scaling.laws import fit_power_law as fit_power_law
