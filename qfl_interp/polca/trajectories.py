"""What is clustered: one curve over training for every token and direction, projected losses and their baselines alike.

Token by token, a POLCA trajectory is the loss that training saved along one direction so far. The paper compares it
with curves that need no direction (the exact loss and its change) and with others along one (the Fisher information,
first order alone, LCA). All have the form of `Trajectories`, so that everything after it treats them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

TrajectoryKind = Literal["polca", "exact_loss", "loss_change", "fisher", "first_order", "lca"]
# Kinds whose value at one time stands for itself: whether the curve ends below its start says nothing about learning.
POINTWISE: tuple[TrajectoryKind, ...] = ("loss_change", "fisher")
# The direction's name of a kind that has none.
NO_DIRECTION = -1


@dataclass(frozen=True, repr=False)
class Trajectories:
    """Curves over training, one for each direction and token.

    Attributes:
        kind: What the values are. In nats: "polca", "first_order" and "lca" are losses projected on a direction,
            cumulative from 0; "exact_loss" is the token's loss; "loss_change" its change since the time before.
            "fisher" is the squared slope along the direction.
        steps: The training step of each time, increasing.
        values: One curve for each direction and token.
        directions: Name of each direction, an index of the basis; `NO_DIRECTION` alone where the kind has none.
    """

    kind: TrajectoryKind
    steps: tuple[int, ...]
    values: Float[np.ndarray, "direction token time"]
    directions: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that names and steps fit the values.

        Raises:
            ValueError: They do not, the steps do not increase, or a value is not finite.
        """
        n_directions, _, n_times = self.values.shape
        if (len(self.directions), len(self.steps)) != (n_directions, n_times):
            raise ValueError(
                f"directions and steps must name the first and the last axis of values {self.values.shape}, "
                f"got {len(self.directions)} directions and {len(self.steps)} steps."
            )
        if len(set(self.directions)) < n_directions:
            raise ValueError(f"directions must have different names, got {list(self.directions)}.")
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError(f"steps must increase, got {list(self.steps)}. Sort the checkpoints.")
        bad = np.argwhere(~np.isfinite(self.values))
        if len(bad):
            direction, token, time = (int(i) for i in bad[0])
            raise ValueError(
                f"values must be finite, got {self.values[direction, token, time]} of token {token} along direction "
                f"{self.directions[direction]} at step {self.steps[time]}. Leave out steps at which the run diverged."
            )

    def __repr__(self) -> str:
        n_directions, n_tokens, n_times = self.values.shape
        span = f"{n_times} steps {self.steps[0]}..{self.steps[-1]}" if n_times else "no steps"
        return f"Trajectories({self.kind}: {n_directions} directions, {n_tokens} tokens, {span})"

    def of(self, direction: int) -> Float[np.ndarray, "token time"]:
        """The curves along the direction of this name.

        Raises:
            ValueError: There is no such direction.
        """
        if direction not in self.directions:
            raise ValueError(f"direction must be one of {list(self.directions)}, got {direction}.")
        return self.values[self.directions.index(direction)]


def exact_loss(losses: Float[np.ndarray, "time token"], steps: Sequence[int]) -> Trajectories:
    """The tokens' own losses in nats, the baseline that needs no direction."""
    return Trajectories("exact_loss", _integers(steps), np.ascontiguousarray(losses.T)[None], (NO_DIRECTION,))


def loss_change(losses: Float[np.ndarray, "time token"], steps: Sequence[int]) -> Trajectories:
    """The change of the tokens' losses since the time before, in nats; it has no value at the first time."""
    changes = np.ascontiguousarray(np.diff(losses, axis=0).T)
    return Trajectories("loss_change", _integers(steps)[1:], changes[None], (NO_DIRECTION,))


def fisher(gradients: Float[np.ndarray, "time token direction"], steps: Sequence[int]) -> Trajectories:
    """The Fisher information of each token projected on each direction, `<b, g(x)>^2`, from slopes in nats a unit."""
    values = np.square(np.ascontiguousarray(gradients.transpose(2, 1, 0)))
    return Trajectories("fisher", _integers(steps), values, tuple(range(gradients.shape[2])))


def _integers(names: Sequence[int]) -> tuple[int, ...]:
    """Plain integers, also of NumPy's."""
    return tuple(int(name) for name in names)
