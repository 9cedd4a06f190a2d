"""Linear probes: what they read in a model's activations, solved in batches, with their controls."""

from qfl_interp.probes.controls import ConstantScores, majority_scores, shuffle_labels
from qfl_interp.probes.kinds import PROBE_LOSS, Validation, fit_probes, load_probes
from qfl_interp.probes.logistic import LogisticProbes, fit_logistic
from qfl_interp.probes.mean_shift import mean_shift
from qfl_interp.probes.online_code import OnlineCode, online_code
from qfl_interp.probes.pooling import Pooled, pool_labels, share_labels
from qfl_interp.probes.regression import RegressionProbes, fit_regression
from qfl_interp.probes.result import ProbePlanes, Probes, ProbeScores, independent
from qfl_interp.probes.softmax import SoftmaxProbes, fit_softmax
