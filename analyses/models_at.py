"""The models of a series that a lens looks at: checkpoints, and untrained controls."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import HookedModel, model_on
from qfl_interp.runs.series import Checkpoints, Steps

# About what a list of untrained models and their rows takes for each.
_BYTES_LISTED = 2**10


class ModelAt(NamedTuple):
    """A model to look at: a checkpoint, or a freshly initialised one that serves as a control.

    Attributes:
        step: The checkpoint's; 0 for an untrained model.
        untrained: Number of the untrained model; -1 for a checkpoint.
    """

    step: int
    untrained: int = -1

    def __str__(self) -> str:
        return f"step_{self.step:08d}" if self.untrained < 0 else f"untrained_{self.untrained:02d}"

    @property
    def source(self) -> str:
        """What the tables call it."""
        return "trained" if self.untrained < 0 else "untrained"

    def load(self, run: Checkpoints, device: str | torch.device) -> HookedModel:
        """The model."""
        if self.untrained < 0:
            return run.load_model(self.step, device=device)
        return model_on(run.untrained_model(self.untrained)[0], device)

    def seed(self, run: Checkpoints) -> int:
        """The seed of its initial weights."""
        return int(run.identity()["seed"]) if self.untrained < 0 else run.untrained_seed(self.untrained)


def models_at(run: Checkpoints, steps: Steps, n_untrained: int = 0) -> list[ModelAt]:
    """The checkpoints that `steps` names and the untrained controls.

    Raises:
        QflError: A step was not saved, or so many controls would not even be listed.
        ValueError: `n_untrained` is negative, or `steps` names none.
    """
    if n_untrained < 0:
        raise ValueError(f"n_untrained must be at least 0, got {n_untrained}. 0 leaves the control out.")
    what = f"results of {n_untrained:,} untrained models"
    require_memory(n_untrained * _BYTES_LISTED, available_bytes(), what, "Take fewer.")
    if n_untrained:
        run.require_untrained()
    return [ModelAt(step) for step in run.resolve_steps(steps)] + [ModelAt(0, i) for i in range(n_untrained)]
