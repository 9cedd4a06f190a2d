"""The trainings of docs/tasks.toml: their settings, and one of them run."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pages import DOCS

import qfl_interp as qfl


def read_settings() -> list[dict[str, Any]]:
    """One table of settings a task, in the file's order, the defaults filled in."""
    study = tomllib.loads((DOCS / "tasks.toml").read_text())
    return [study["defaults"] | entry for entry in study["task"]]


def train_as(settings: dict[str, Any], task: qfl.Task, seed: int, out: Path, **others: Any) -> qfl.Run:
    """The finished run of a task with these settings; it goes on where it was killed.

    Args:
        settings: One of `read_settings`.
        task: What is learned, as a rule the task that the settings name.
        seed: Of the training.
        out: The run's directory.
        others: Fields of `TrainConfig` that the settings do not decide, or decide otherwise.
    """
    named = ("budget_flops", "lr", "batch_size", "weight_decay", "schedule", "n_val", "n_checkpoints")
    config = {name: settings[name] for name in named} | {"seed": seed, "eval_fraction": 0.01} | others
    model = qfl.ModelConfig(d_model=settings["d_model"], n_layers=settings["n_layers"])
    return qfl.train(task, model, qfl.TrainConfig(**config), out, resume=True, progress=False)
