"""qfl_interp: watch small transformers learn algorithms.

The names below load on first use, so that importing the package costs nothing. So do the registered analyses,
`qfl_interp.probe(run)`, which are methods of a run too, `run.probe()`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    # Reached as attributes (`qfl.probes`), but no part of `from qfl_interp import *`.
    from qfl_interp import activations as activations
    from qfl_interp import analyses as analyses
    from qfl_interp import cli as cli
    from qfl_interp import curvature as curvature
    from qfl_interp import data as data
    from qfl_interp import emergence as emergence
    from qfl_interp import homogeneous as homogeneous
    from qfl_interp import interventions as interventions
    from qfl_interp import models as models
    from qfl_interp import plots as plots
    from qfl_interp import polca as polca
    from qfl_interp import probes as probes
    from qfl_interp import report as report
    from qfl_interp import runs as runs
    from qfl_interp import scaling as scaling
    from qfl_interp import sweep as sweep
    from qfl_interp import tasks as tasks
    from qfl_interp import testing as testing
    from qfl_interp import training as training
    from qfl_interp.activations.store import ActivationStore
    from qfl_interp.analyses.pages.compare import compare
    from qfl_interp.analyses.view.serve import view
    from qfl_interp.config import Intervene, ModelConfig, ProbeConfig, TrainConfig
    from qfl_interp.curvature.config import CurvatureConfig, SgldConfig
    from qfl_interp.data.examples import ExampleStream, held_out
    from qfl_interp.data.fixed_task import FixedFeature, FixedTask
    from qfl_interp.data.registry import load_task, register_task, task_names
    from qfl_interp.data.task import Batch, Feature, Pairs, Task
    from qfl_interp.errors import QflError
    from qfl_interp.interventions.planes import project_out
    from qfl_interp.interventions.replace import mean, resample, zero
    from qfl_interp.models.build import build_model, hooked_from_hf
    from qfl_interp.models.fast_forward import fast_logits
    from qfl_interp.models.generate import generate_greedy
    from qfl_interp.models.hooks import (
        Intervention,
        Site,
        capture,  # for a release: `read_activations` is its name
        interventions_on,
        patch,  # likewise: `write_activation`
        read_activations,
        write_activation,
    )
    from qfl_interp.polca.config import PolcaConfig
    from qfl_interp.recipes import register_loss
    from qfl_interp.report.saving import save_figure
    from qfl_interp.runs.run import Run
    from qfl_interp.runs.series import Checkpoints
    from qfl_interp.runs.suite import Suite
    from qfl_interp.runs.suite_check.check import check_suite
    from qfl_interp.sweep import Execution, Sweep, SweepConfig, estimate_sweep, run_sweep, sweep_status
    from qfl_interp.training.fork import branch, fork
    from qfl_interp.training.recorder import Recorder
    from qfl_interp.training.replay import replay
    from qfl_interp.training.session import DivergedError
    from qfl_interp.training.train import resume, train
    from qfl_interp.training.trainer_callback import RecorderCallback

__version__ = "0.2.0"


def _analyses() -> dict[str, Callable[[], Any]]:
    """The registered analyses as functions of a run or a model; a room or a name above goes before one of its name."""
    from qfl_interp.runs.analyses import analyses, analysis

    def load(name: str) -> Any:
        from qfl_interp.runs.takes_models import takes_models

        return takes_models(analysis(name))

    return {name: functools.partial(load, name) for name in analyses()}


__getattr__, __dir__ = lazy_names(__name__, _analyses)
