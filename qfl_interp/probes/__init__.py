"""Linear probes: what can be read off the residual stream, solved in batches, with their controls."""

from qfl_interp.probes.controls import shuffle_labels
from qfl_interp.probes.logistic import fit_logistic
from qfl_interp.probes.regression import RegressionProbes, RegressionScores, fit_regression
from qfl_interp.probes.result import LogisticProbes, ProbeScores

__all__ = [
    "LogisticProbes",
    "ProbeScores",
    "RegressionProbes",
    "RegressionScores",
    "fit_logistic",
    "fit_regression",
    "shuffle_labels",
]
