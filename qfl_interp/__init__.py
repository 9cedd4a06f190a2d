"""qfl_interp: watch small transformers learn algorithms.

The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.activations.store import ActivationStore
    from qfl_interp.config import ModelConfig, ProbeConfig, TrainConfig
    from qfl_interp.data.examples import ExampleStream, held_out
    from qfl_interp.data.fixed_task import FixedFeature, FixedTask
    from qfl_interp.data.registry import load_task, task_names
    from qfl_interp.data.task import Batch, Feature, Pairs, Task
    from qfl_interp.errors import QflError
    from qfl_interp.interventions.project_out import project_out
    from qfl_interp.models.build import build_model, hooked_from_hf
    from qfl_interp.models.fast_forward import fast_logits
    from qfl_interp.models.generate import generate_greedy
    from qfl_interp.models.hooks import Intervention, Site, capture, interventions_on, patch
    from qfl_interp.runs.run import Run
    from qfl_interp.runs.suite import Suite
    from qfl_interp.sweep import Execution, Sweep, SweepConfig, estimate_sweep, run_sweep, sweep_status
    from qfl_interp.training.train import DivergedError, branch, resume, train

__version__ = "0.1.0"

__all__ = [
    "ActivationStore",
    "Batch",
    "DivergedError",
    "ExampleStream",
    "Execution",
    "Feature",
    "FixedFeature",
    "FixedTask",
    "Intervention",
    "ModelConfig",
    "Pairs",
    "ProbeConfig",
    "QflError",
    "Run",
    "Site",
    "Suite",
    "Sweep",
    "SweepConfig",
    "Task",
    "TrainConfig",
    "branch",
    "build_model",
    "capture",
    "estimate_sweep",
    "fast_logits",
    "generate_greedy",
    "held_out",
    "hooked_from_hf",
    "interventions_on",
    "load_task",
    "patch",
    "project_out",
    "resume",
    "run_sweep",
    "sweep_status",
    "task_names",
    "train",
]

__getattr__, __dir__ = lazy_names(__name__, __all__)
