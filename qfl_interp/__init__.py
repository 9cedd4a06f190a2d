"""qfl_interp: watch small transformers learn algorithms.

The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

# Public name -> the module that defines it.
_WHERE = {
    "ActivationStore": "activations.store",
    "Batch": "data.task",
    "DivergedError": "training.train",
    "ExampleStream": "data.examples",
    "Execution": "sweep",
    "Feature": "data.task",
    "FixedFeature": "data.fixed_task",
    "FixedTask": "data.fixed_task",
    "Intervention": "models.hooks",
    "ModelConfig": "config",
    "Pairs": "data.task",
    "ProbeConfig": "config",
    "QflError": "errors",
    "Run": "runs.run",
    "Site": "models.hooks",
    "Suite": "runs.suite",
    "Sweep": "sweep",
    "SweepConfig": "sweep",
    "Task": "data.task",
    "TrainConfig": "config",
    "branch": "training.train",
    "build_model": "models.build",
    "capture": "models.hooks",
    "estimate_sweep": "sweep",
    "fast_logits": "models.fast_forward",
    "generate_greedy": "models.generate",
    "held_out": "data.examples",
    "hooked_from_hf": "models.build",
    "interventions_on": "models.hooks",
    "load_task": "data.registry",
    "patch": "models.hooks",
    "project_out": "interventions.project_out",
    "task_names": "data.registry",
    "resume": "training.train",
    "run_sweep": "sweep",
    "sweep_status": "sweep",
    "train": "training.train",
}

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


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name in _WHERE:
        value = getattr(importlib.import_module(f"qfl_interp.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'qfl_interp' has no attribute {name!r}. Public names: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return [*__all__, "__version__"]
