"""What an analysis needs of something with checkpoints: a `Run` of this library, a `Suite` of others."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from qfl_interp.errors import QflError, nearest
from qfl_interp.recipes import loss_unit
from qfl_interp.runs.analyses import analyses, analysis
from qfl_interp.runs.table import Table
from qfl_interp.runs.workplace import TableElsewhere, enter, workplace
from qfl_interp.seeding import generator

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from qfl_interp.data.task import Task
    from qfl_interp.models.build import HookedModel

# "all", "last", "log:20", "every:100", "1000,2000", one step, or a sequence of steps.
Steps = str | int | list[int] | tuple[int, ...]
TABLES_FOLDER = "analyses"
# Held-out examples that the loss of a checkpoint is measured on where nothing else says how many.
_N_VALIDATION: Final = 1_000


class Validation(NamedTuple):
    """How the loss of a series is measured on held-out examples.

    Attributes:
        n_examples: At most so many of the validation split.
        seed: Draws them.
        loss: Its name, as in `TrainConfig.loss`.
    """

    n_examples: int
    seed: int
    loss: str = "cross_entropy"


class Checkpoints(abc.ABC):
    """Models of one training, by step, with the task they are examined on and a place for tables.

    Every registered analysis is a method, other packages' too: `run.probe("carry")` is `probe(run, "carry")`.

    Attributes:
        path: Its own folder, which messages name; what is computed lies here where it can be written.
    """

    path: Path

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The analysis of this name that an entry point registers, bound to these checkpoints."""
        if hasattr(type(self), name):  # a property that failed: say why
            return object.__getattribute__(self, name)
        known = () if name.startswith("_") else analyses()
        if name not in known:
            kind, near = type(self).__name__, nearest(name, dir(self)) if known else ""
            said = f" Registered analyses: {', '.join(sorted(known))}." if known else ""
            raise AttributeError(f"{kind} has no attribute {name!r}.{near}{said}", name=name, obj=self)
        return MethodType(analysis(name), self)

    def __dir__(self) -> list[str]:
        """The attributes, and the registered analyses, of which none is imported."""
        return sorted({*super().__dir__(), *analyses()})

    @property
    @abc.abstractmethod
    def run_id(self) -> str:
        """A name that tells it from every other, as a person reads it."""

    @property
    @abc.abstractmethod
    def task(self) -> Task:
        """What the models are examined on."""

    @property
    @abc.abstractmethod
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """The columns that say whose row it is: `run_id`, `config_hash`, `seed`."""

    @abc.abstractmethod
    def load_model(self, step: int | Literal["last"] = "last", *, device: str | torch.device = "cpu") -> HookedModel:
        """The model at a step. Raises `QflError` where the step was not saved or cannot be read."""

    def require_untrained(self) -> None:
        """Raise `QflError` where `untrained_model` cannot make one, before anything is computed; by default it can."""
        return None

    @abc.abstractmethod
    def untrained_model(self, index: int) -> tuple[HookedModel, int]:
        """A freshly initialised model of the same shape, on the CPU, and the seed of its weights.

        Args:
            index: Which one, from 0; the seed is `untrained_seed(index)`.
        """

    @abc.abstractmethod
    def flops(self, step: int) -> float:
        """Training FLOPs up to `step`; NaN where that is unknown."""

    def tokens(self, step: int) -> float:
        """Tokens trained on up to `step`; NaN where that is unknown, by default."""
        return math.nan

    def how_far(self, step: int) -> dict[str, float]:
        """The columns that say how far training was at a step: `flops`; where these are unknown, `tokens` if known."""
        flops, tokens = self.flops(step), self.tokens(step)
        return {"flops": flops} | ({"tokens": tokens} if math.isnan(flops) and not math.isnan(tokens) else {})

    @property
    def metrics(self) -> pd.DataFrame | None:
        """What training logged, one row a logged step, as `Run.metrics`; None where nothing of it is known."""
        return None

    @property
    def finished(self) -> bool:
        """Whether `metrics` are those of the whole training; True where there are none."""
        return True

    @property
    def validation(self) -> Validation:
        """How its loss is measured: as in training, where that is known."""
        loss = "cross_entropy" if self.task.d_out is None else "squared_error"
        return Validation(_N_VALIDATION, self.identity()["seed"], loss)

    @property
    def loss_unit(self) -> str:
        """What the trained loss is counted in, and so `train_loss` and `val_...loss...` of the metrics: "nats"."""
        return loss_unit(self.validation.loss)

    def card(self) -> dict[str, Any]:
        """What it is, as the head of a report says: plain values, and mappings of them."""
        flops, last = self.flops(self.steps[-1]), self.steps[-1]
        return {
            "run_id": self.run_id,
            "task": self.task.name,
            "length": self.task.length,
            "n_steps": last,
            "n_checkpoints": len(self.steps),
            "nominal_flops": None if math.isnan(flops) else flops,
            "seed": self.identity()["seed"],
        }

    @property
    def does_otherwise(self) -> str:
        """What its training did otherwise than the one it came from, in a few words; empty where it is no fork."""
        return ""

    def weights(self, step: int) -> str | None:
        """A digest of the weights at a step as they are on disk now; None where it cannot be told, by default.

        Table parts and stored activations keep it, and do not count once the weights are others.
        """
        return None

    def stored(self, step: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a checkpoint as they are stored, one after the other, their checksums checked where there are.

        By default those of the loaded model. Raises `QflError` where they cannot be read or are not what was written.
        """
        from qfl_interp.models.build import parameters_to_save

        yield from parameters_to_save(self.load_model(step)).items()

    def untrained_seed(self, index: int) -> int:
        """The seed of the weights of the untrained model number `index`; another series has others."""
        return int(generator(self.identity()["seed"], f"probe/untrained_{index:02d}").integers(2**31))

    @property
    def workplace(self) -> Path:
        """The folder that tables, activations and pages are written to: `path`, or the user's where that is read-only.

        The user's is `$QFL_HOME`, by default `~/.qfl_interp`; in it a sub-folder named by run id and place.
        """
        return workplace(self.path, self.run_id)

    def table(self, lens: str) -> Table:
        """The table of one analysis ("probe", "ablate", ...): parts in `path` are read, new ones in `workplace`."""
        own = Table(self.path / TABLES_FOLDER / lens, self.run_id, self.weights)
        place = self.workplace
        return own if place == self.path else TableElsewhere(own, place / TABLES_FOLDER / lens)

    def page(self, name: str) -> Path:
        """Where a page of this name belongs; the folder is made. Raises `QflError` where it cannot be."""
        enter(self.path, self.workplace)
        return self.workplace / name

    def resolve_steps(self, steps: Steps) -> list[int]:
        """The saved steps that `steps` names, ascending.

        Args:
            steps: "all"; "last"; "log:N" for about N log-spaced saved steps, first and last included; "every:N" for
                the saved multiples of N; "10,20" or a sequence for those; a number for one.

        Raises:
            QflError: A step was not saved (the nearest one is named), or nothing was.
            ValueError: The text is none of these.
        """
        saved = self.steps
        if not saved:
            raise QflError(f"{self.path} has no checkpoint yet. Train it first.")
        listed, known = listed_steps(steps, saved), set(saved)
        for step in listed:
            if step not in known:
                nearest = min(saved, key=lambda s: abs(s - step))
                raise QflError(
                    f"step {step} of {self.path} was not saved. The nearest saved step is {nearest}; "
                    f"{len(saved)} steps lie between {saved[0]} and {saved[-1]}."
                )
        return sorted(set(listed))


def __getattr__(name: str) -> Any:
    """`Series`, the old name of `Checkpoints`."""
    if name != "Series":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    text = f"{__name__}.Series is called Checkpoints now, and its old name goes in the next release."
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return Checkpoints


def listed_steps(steps: Steps, saved: Sequence[int]) -> list[int]:
    """The steps that the text or numbers name, saved or not."""
    if steps == "all":
        return list(saved)
    if steps == "last":
        return [saved[-1]]
    if isinstance(steps, str) and steps.startswith("log:") and steps[4:].isdigit() and int(steps[4:]) > 0:
        positions = np.log1p(saved)
        wanted = np.linspace(positions[0], positions[-1], int(steps[4:]))
        return [saved[int(np.abs(positions - w).argmin())] for w in wanted]
    if isinstance(steps, str) and steps.startswith("every:") and steps[6:].isdigit() and int(steps[6:]) > 0:
        return [step for step in saved if step % int(steps[6:]) == 0]
    if isinstance(steps, str):
        try:
            return [int(part) for part in steps.split(",")]
        except ValueError as error:
            raise ValueError(
                f"steps must be 'all', 'last', 'log:20', 'every:100' or '1000,2000', got {steps!r}."
            ) from error
    return [int(step) for step in ([steps] if isinstance(steps, (int, np.integer)) else steps)]
