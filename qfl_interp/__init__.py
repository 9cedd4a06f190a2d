"""qfl_interp: watch small transformers learn algorithms.

The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qfl_interp.config import ModelConfig, ProbeConfig, TrainConfig
    from qfl_interp.data import ExampleStream, held_out
    from qfl_interp.errors import QflError
    from qfl_interp.fast_forward import fast_logits
    from qfl_interp.fixed_task import FixedFeature, FixedTask
    from qfl_interp.generate import generate_greedy
    from qfl_interp.hooks import Intervention, Site, capture, interventions_on, patch
    from qfl_interp.model import build_model, hooked_from_hf
    from qfl_interp.projection import project_out
    from qfl_interp.registry import load_task, task_names
    from qfl_interp.run import Run
    from qfl_interp.store import ActivationStore
    from qfl_interp.suite import Suite
    from qfl_interp.sweep import Execution, Sweep, SweepConfig, estimate_sweep, run_sweep, sweep_status
    from qfl_interp.task import Batch, Feature, Pairs, Task
    from qfl_interp.training import DivergedError, branch, resume, train

__version__ = "0.1.0"

# Public name -> the module that defines it.
_WHERE = {
    "ActivationStore": "store",
    "Batch": "task",
    "DivergedError": "training",
    "ExampleStream": "data",
    "Execution": "sweep",
    "Feature": "task",
    "FixedFeature": "fixed_task",
    "FixedTask": "fixed_task",
    "Intervention": "hooks",
    "ModelConfig": "config",
    "Pairs": "task",
    "ProbeConfig": "config",
    "QflError": "errors",
    "Run": "run",
    "Site": "hooks",
    "Suite": "suite",
    "Sweep": "sweep",
    "SweepConfig": "sweep",
    "Task": "task",
    "TrainConfig": "config",
    "branch": "training",
    "build_model": "model",
    "capture": "hooks",
    "estimate_sweep": "sweep",
    "fast_logits": "fast_forward",
    "generate_greedy": "generate",
    "held_out": "data",
    "hooked_from_hf": "model",
    "interventions_on": "hooks",
    "load_task": "registry",
    "patch": "hooks",
    "project_out": "projection",
    "task_names": "registry",
    "resume": "training",
    "run_sweep": "sweep",
    "sweep_status": "sweep",
    "train": "training",
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
