"""The models of a series that a lens looks at: checkpoints, and untrained controls."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qfl_interp.models.build import HookedModel, model_on
from qfl_interp.runs.series import Checkpoints, Steps


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
    """The checkpoints that `steps` names and the untrained controls."""
    return [ModelAt(step) for step in run.resolve_steps(steps)] + [ModelAt(0, i) for i in range(n_untrained)]
