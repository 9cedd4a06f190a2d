"""A run whose every step has a checkpoint: those that were not saved are trained again, to the same bits."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import torch

from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.run import CHECKPOINTS, Run, Verification
from qfl_interp.training.trainee import Trainee

# Checkpoints that are kept in memory: both ends of an interval.
_KEPT = 2


class Replay(Run):
    """A run with checkpoints at every k-th step, for what looks at more of them than a disk holds.

    Training is bitwise reproducible, so a step that was not saved is made again from the nearest one before it that
    has the optimiser's state, else from the start. Steps in ascending order cost one training together; each step back
    costs the way from that checkpoint again. Nothing is written but what lenses write: the tables of the run itself.

    Every loss on the way must be the one that was logged, and every saved checkpoint that is passed the one on disk.

    Args:
        run: A run that was trained, or is being trained, on this machine.
        every: Its steps are the multiples of this, and those that were saved.
        device: Where to train again; it must be where the run was trained.

    Raises:
        QflError: `every` is below 1, or the run has no checkpoint or no metrics; where a step is trained again, another
            number of threads than the run's.
    """

    def __init__(self, run: Run, every: int = 1, *, device: str | torch.device = "cpu") -> None:
        super().__init__(run.path, run.config, run.task)
        if every < 1:
            raise QflError(f"every must be at least 1, got {every}. A replay has the steps 0, every, 2 every, ...")
        self.every, self.device = every, device
        saved = super().steps
        if not saved:
            raise QflError(f"{run.path} has no checkpoint yet: train it first. A replay goes on from checkpoints.")
        first, last = run.config.first_step, saved[-1]
        self._saved = saved
        self._steps = sorted({*saved, *range(-(-first // every) * every, last + 1, every)})
        logged = run.metrics.dropna(subset=["train_loss"]).set_index("step")["train_loss"]
        self._logged: dict[int, float] = logged.to_dict()
        self._trainee: Trainee | None = None
        self._kept: OrderedDict[int, ckpt.Checkpoint] = OrderedDict()

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint or get one by training again, ascending."""
        return list(self._steps)

    @property
    def saved_steps(self) -> list[int]:
        """Those that are on disk."""
        return list(self._saved)

    def load_checkpoint(self, step: int | Literal["last"], *, with_optimizer: bool = False) -> ckpt.Checkpoint:
        """One checkpoint: as it is on disk, or trained again.

        Raises:
            QflError: The step is not one of `steps`, or training does not repeat itself here: the step, both losses,
                and what may differ.
        """
        (step,) = self.resolve_steps(step)
        if step in self._saved:
            return super().load_checkpoint(step, with_optimizer=with_optimizer)
        if step not in self._kept:
            self._train_to(step)
        state = self._kept[step]
        return state if with_optimizer else state._replace(optimizer=None)

    def weights(self, step: int) -> str | None:
        """The SHA-256 of a saved checkpoint's weights; None of one that is trained again."""
        return super().weights(step) if step in self._saved else None

    def require_threads(self, here: int) -> None:
        """Raise `QflError` where training again on so many threads would give other bits than the run's: at once.

        On a CPU the number of threads decides how sums are split.
        """
        then = sorted({session["threads"] for session in self.provenance if "threads" in session})
        if torch.device(self.device).type == "cpu" and then and then != [here]:
            remedy = "train it again here" if len(then) > 1 else f"set OMP_NUM_THREADS={then[0]}"
            raise QflError(
                f"a replay must use as many threads as the training, got {here} where {self.path} was trained on "
                f"{' and '.join(map(str, then))}: {remedy}{'' if here > 1 else ', with jobs=1'}."
            )

    def verify(self) -> Verification:
        """Check the files of the run."""
        return Run(self.path, self.config, self.task).verify()

    def _train_to(self, step: int) -> None:
        """Train up to a step, from where the last call ended or from a checkpoint, and keep what is there."""
        before = max((s for s in self._saved if s <= step and self._has_state(s)), default=None)
        trainee = self._trainee
        if trainee is None or not (before or 0) <= trainee.step <= step:
            trainee = self._trainee = self._start(before)
        while trainee.step < step:
            done = trainee.update()
            self._require_logged(trainee.step, float(done.loss))
            if trainee.step in self._saved:
                self._require_saved(trainee)
        self._keep(trainee.state())

    def _start(self, step: int | None) -> Trainee:
        """Training as it was at a saved step; None: as it began."""
        given = self.config.model.weights is not None or self.config.start is not None
        if step is None and given:
            raise QflError(
                f"{self.path} began with weights that were given, and its checkpoint of step {self.config.first_step} "
                "is not there, or without the optimiser's state. Train it again with save_optimizer=True."
            )
        self.require_threads(torch.get_num_threads())
        trainee = Trainee(self.task, self.config, self.device)
        if self.config.train.compile:
            trainee.compile()
        if step is not None:
            state = super().load_checkpoint(step, with_optimizer=True)
            trainee.load(state._replace(optimizer=state.optimizer or {}))
        return trainee

    def _keep(self, state: ckpt.Checkpoint) -> None:
        """Copy a state, and drop the oldest of those kept."""
        parts = (state.model, state.optimizer or {})
        model, optimizer = ({name: t.detach().cpu().clone() for name, t in part.items()} for part in parts)
        self._kept[state.step] = state._replace(model=model, optimizer=optimizer)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _has_state(self, step: int) -> bool:
        """Whether training can go on from a saved checkpoint: the optimiser's state is there, or none is needed."""
        if step == self.config.first_step == 0:
            return True
        return (self.path / CHECKPOINTS / ckpt.step_name(step) / ckpt.OPTIMIZER).exists()

    def _require_logged(self, step: int, loss: float) -> None:
        """Raise `QflError` where the loss of an update is not the one that was logged."""
        logged = self._logged.get(step, loss)
        if logged != loss:
            self._trainee = None
            raise QflError(
                f"training must repeat itself to the bit, got the loss {loss!r} at step {step} of {self.path}, where "
                f"{logged!r} was logged. {self._where()}"
            )

    def _require_saved(self, trainee: Trainee) -> None:
        """Raise `QflError` where the weights of a saved checkpoint are not those on disk."""
        saved = super().load_checkpoint(trainee.step).model
        now = trainee.state().model
        wrong = [name for name, tensor in saved.items() if not torch.equal(tensor, now[name].detach().cpu())]
        if wrong:
            self._trainee = None
            raise QflError(
                f"training must repeat itself to the bit, got other weights at step {trainee.step} of {self.path} than "
                f"were saved: {', '.join(wrong[:3])}. {self._where()}"
            )

    def _where(self) -> str:
        """Where the run was trained and where it is replayed, for an error."""
        then = self.provenance[-1] if self.provenance else {}
        return (
            f"It was trained on {then.get('device', 'an unknown device')}, threads {then.get('threads', 'unknown')}; "
            f"here are {torch.get_num_threads()}. Replay it on the machine and thread count that trained it, or train "
            "it again here."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _replayed, (self.path.absolute(), self._given, self.every, str(self.device))

    def __repr__(self) -> str:
        return f"Replay({super().__repr__()}, every {self.every} steps)"


def replay(run: Run | str | Path, every: int = 1, *, device: str | torch.device = "cpu") -> Replay:
    """A run with checkpoints at every k-th step, those that were not saved trained again; see `Replay`.

    Example:
        `polca(qfl.replay("runs/add16", every=20), config=qfl.PolcaConfig(basis_steps="every:200"))`
    """
    if not isinstance(run, (Run, str, Path)):
        raise QflError(f"a replay needs a run that was trained here, got {run!r}: nothing says how that was trained.")
    return Replay(run if isinstance(run, Run) else Run.open(run), every, device=device)


def _replayed(path: Path, task: Task | None, every: int, device: str) -> Replay:
    """A replay that was pickled."""
    return Replay(Run.open(path, task=task), every, device=device)
