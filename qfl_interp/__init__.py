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
    from qfl_interp.activations.store import ActivationStore as ActivationStore
    from qfl_interp.analyses.pages.compare import compare as compare
    from qfl_interp.analyses.view.serve import view as view
    from qfl_interp.config import Intervene as Intervene
    from qfl_interp.config import ModelConfig as ModelConfig
    from qfl_interp.config import ProbeConfig as ProbeConfig
    from qfl_interp.config import TrainConfig as TrainConfig
    from qfl_interp.curvature.config import CurvatureConfig as CurvatureConfig
    from qfl_interp.curvature.config import SgldConfig as SgldConfig
    from qfl_interp.data.examples import ExampleStream as ExampleStream
    from qfl_interp.data.examples import held_out as held_out
    from qfl_interp.data.fixed_task import FixedFeature as FixedFeature
    from qfl_interp.data.fixed_task import FixedTask as FixedTask
    from qfl_interp.data.registry import load_task as load_task
    from qfl_interp.data.registry import register_task as register_task
    from qfl_interp.data.registry import task_names as task_names
    from qfl_interp.data.task import Batch as Batch
    from qfl_interp.data.task import Feature as Feature
    from qfl_interp.data.task import Pairs as Pairs
    from qfl_interp.data.task import Task as Task
    from qfl_interp.errors import QflError as QflError
    from qfl_interp.interventions.planes import project_out as project_out
    from qfl_interp.interventions.replace import mean as mean
    from qfl_interp.interventions.replace import resample as resample
    from qfl_interp.interventions.replace import zero as zero
    from qfl_interp.models.build import build_model as build_model
    from qfl_interp.models.build import hooked_from_hf as hooked_from_hf
    from qfl_interp.models.fast_forward import fast_logits as fast_logits
    from qfl_interp.models.generate import generate_greedy as generate_greedy
    from qfl_interp.models.hooks import Intervention as Intervention
    from qfl_interp.models.hooks import Site as Site
    from qfl_interp.models.hooks import capture as capture  # for a release: `read_activations` is its name
    from qfl_interp.models.hooks import interventions_on as interventions_on
    from qfl_interp.models.hooks import patch as patch  # likewise: `write_activation`
    from qfl_interp.models.hooks import read_activations as read_activations
    from qfl_interp.models.hooks import write_activation as write_activation
    from qfl_interp.polca.config import PolcaConfig as PolcaConfig
    from qfl_interp.recipes import register_loss as register_loss
    from qfl_interp.report.saving import save_figure as save_figure
    from qfl_interp.runs.run import Run as Run
    from qfl_interp.runs.series import Checkpoints as Checkpoints
    from qfl_interp.runs.suite import Suite as Suite
    from qfl_interp.runs.suite_check.check import check_suite as check_suite
    from qfl_interp.sweep import Execution as Execution
    from qfl_interp.sweep import Sweep as Sweep
    from qfl_interp.sweep import SweepConfig as SweepConfig
    from qfl_interp.sweep import estimate_sweep as estimate_sweep
    from qfl_interp.sweep import run_sweep as run_sweep
    from qfl_interp.sweep import sweep_status as sweep_status
    from qfl_interp.training.fork import branch as branch
    from qfl_interp.training.fork import fork as fork
    from qfl_interp.training.recorder import Recorder as Recorder
    from qfl_interp.training.replay import replay as replay
    from qfl_interp.training.session import DivergedError as DivergedError
    from qfl_interp.training.train import resume as resume
    from qfl_interp.training.train import train as train
    from qfl_interp.training.trainer_callback import RecorderCallback as RecorderCallback

__version__ = "0.2.0"


def _analyses() -> dict[str, Callable[[], Any]]:
    """The registered analyses as functions of a run or a model; a room or a name above goes before one of its name."""
    from qfl_interp.runs.analyses import analyses, analysis

    def load(name: str) -> Any:
        from qfl_interp.runs.takes_models import takes_models

        return takes_models(analysis(name))

    return {name: functools.partial(load, name) for name in analyses()}


__getattr__, __dir__ = lazy_names(__name__, _analyses)
