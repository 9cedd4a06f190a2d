"""The configurations of models, training and probes; each in a file of its own, all of them from here."""

from qfl_interp.checked import Options as Options
from qfl_interp.model_config import PRESETS as PRESETS
from qfl_interp.model_config import Architecture as Architecture
from qfl_interp.model_config import ModelConfig as ModelConfig
from qfl_interp.probe_config import ProbeConfig as ProbeConfig
from qfl_interp.sites import PROBE_SITES as PROBE_SITES
from qfl_interp.train_config import Intervene as Intervene
from qfl_interp.train_config import TrainConfig as TrainConfig
