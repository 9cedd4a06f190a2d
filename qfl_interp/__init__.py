"""qfl_interp: watch small transformers learn algorithms.

The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp import activations as activations
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
    from qfl_interp import training as training
    from qfl_interp.activations.store import ActivationStore
    from qfl_interp.config import ModelConfig, ProbeConfig, TrainConfig
    from qfl_interp.curvature.config import CurvatureConfig, SgldConfig
    from qfl_interp.data.examples import ExampleStream, held_out
    from qfl_interp.data.fixed_task import FixedFeature, FixedTask
    from qfl_interp.data.registry import load_task, task_names
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
        capture,
        interventions_on,
        patch,
        read_activations,
        write_activation,
    )
    from qfl_interp.polca.config import PolcaConfig
    from qfl_interp.runs.run import Run
    from qfl_interp.runs.series import Checkpoints
    from qfl_interp.runs.suite import Suite
    from qfl_interp.sweep import Execution, Sweep, SweepConfig, estimate_sweep, run_sweep, sweep_status
    from qfl_interp.training.train import DivergedError, branch, resume, train

__version__ = "0.1.0"

__all__ = [
    "ActivationStore",
    "Batch",
    "Checkpoints",
    "CurvatureConfig",
    "DivergedError",
    "ExampleStream",
    "Execution",
    "Feature",
    "FixedFeature",
    "FixedTask",
    "Intervention",
    "ModelConfig",
    "Pairs",
    "PolcaConfig",
    "ProbeConfig",
    "QflError",
    "Run",
    "SgldConfig",
    "Site",
    "Suite",
    "Sweep",
    "SweepConfig",
    "Task",
    "TrainConfig",
    "branch",
    "build_model",
    "capture",  # for a release: `read_activations` is its name
    "estimate_sweep",
    "fast_logits",
    "generate_greedy",
    "held_out",
    "hooked_from_hf",
    "interventions_on",
    "load_task",
    "mean",
    "patch",  # likewise: `write_activation`
    "project_out",
    "read_activations",
    "resample",
    "resume",
    "run_sweep",
    "sweep_status",
    "task_names",
    "train",
    "write_activation",
    "zero",
]
# Reached as attributes (`qfl.probes`), but no part of `from qfl_interp import *`.
_ROOMS = [
    "activations", "cli", "curvature", "data", "emergence", "homogeneous", "interventions", "models", "plots", "polca",
    "probes", "report", "runs", "scaling", "sweep", "training",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(__name__, [*__all__, *_ROOMS])
