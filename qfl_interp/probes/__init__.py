"""Linear probes: what they read in a model's activations, solved in batches, with their controls."""

from qfl_interp.probes.controls import ConstantScores as ConstantScores
from qfl_interp.probes.controls import majority_scores as majority_scores
from qfl_interp.probes.controls import shuffle_labels as shuffle_labels
from qfl_interp.probes.kinds import PROBE_LOSS as PROBE_LOSS
from qfl_interp.probes.kinds import Validation as Validation
from qfl_interp.probes.kinds import fit_probes as fit_probes
from qfl_interp.probes.kinds import load_probes as load_probes
from qfl_interp.probes.logistic import LogisticProbes as LogisticProbes
from qfl_interp.probes.logistic import fit_logistic as fit_logistic
from qfl_interp.probes.mean_shift import mean_shift as mean_shift
from qfl_interp.probes.online_code import OnlineCode as OnlineCode
from qfl_interp.probes.online_code import online_code as online_code
from qfl_interp.probes.pooling import Pooled as Pooled
from qfl_interp.probes.pooling import pool_labels as pool_labels
from qfl_interp.probes.pooling import share_labels as share_labels
from qfl_interp.probes.regression import RegressionProbes as RegressionProbes
from qfl_interp.probes.regression import fit_regression as fit_regression
from qfl_interp.probes.result import ProbePlanes as ProbePlanes
from qfl_interp.probes.result import Probes as Probes
from qfl_interp.probes.result import ProbeScores as ProbeScores
from qfl_interp.probes.result import independent as independent
from qfl_interp.probes.softmax import SoftmaxProbes as SoftmaxProbes
from qfl_interp.probes.softmax import fit_softmax as fit_softmax
