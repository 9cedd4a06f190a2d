"""One training run on disk: configuration, metrics by step, checkpoints, analysis tables.

What needs PyTorch, a task and a model, is imported where it is asked for: files are read and checked without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from qfl_interp.data.identity import differences, identity_in, task_identity
from qfl_interp.errors import QflError
from qfl_interp.files import local_path, read_json
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import METRICS_FILE, TASK_FILE, RunConfig
from qfl_interp.runs.folder_lock import is_held
from qfl_interp.runs.metrics import Metrics, read_metrics
from qfl_interp.runs.provenance import read_sessions
from qfl_interp.runs.series import TABLES_FOLDER, Checkpoints, Validation
from qfl_interp.runs.series import Steps as Steps

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qfl_interp.data.task import Task

CHECKPOINTS, RESUME, PROVENANCE_FILE = "checkpoints", "resume", "provenance.json"
# In the folder of checkpoints, where a sweep has kept the last one alone.
FINAL_ALONE = ".final_alone"
# What a run's card says of its last session, and of its last validation, where it was measured.
_SESSION = ("started", "device", "threads", "git_commit", "versions", "command")
_SCORES = ("val_loss", "val_exact", "val_loss_answer", "val_exact_answer")


@dataclass(frozen=True)
class Verification:
    """What `Run.verify` found.

    Attributes:
        good: Steps whose checkpoints are whole.
        problems: One sentence for each file that is not what it should be.
        finished: Whether training ended and its final checkpoint is whole.
        unchecked: One sentence for each file that has no checksum, as those of earlier versions.
    """

    good: tuple[int, ...]
    problems: tuple[str, ...]
    finished: bool
    unchecked: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems


class Run(Checkpoints):
    """A run directory, opened for reading.

    An analysis reads a run and writes tables beside it; it never changes a checkpoint. Pickled, it is its path: another
    process opens the directory again.

    Attributes:
        path: The directory.
        config: What names the run.
    """

    def __init__(self, path: Path, config: RunConfig, task: Task | None = None) -> None:
        self.path = path
        self.config = config
        self._given = task
        if task is not None:
            require_task(path, task, labels=True)

    @classmethod
    def open(cls, path: str | Path, *, task: Task | None = None) -> Run:
        """The run in a directory.

        Args:
            path: The directory.
            task: What it was trained on, where that is no registered task; by default the registered one of its name.

        Raises:
            QflError: It is no run, was written by another version, or was trained on another task than the one given.
        """
        folder = local_path(path)
        return cls(folder, RunConfig.read(folder), task)

    @property
    def run_id(self) -> str:
        """Task, length and a digest of the configuration."""
        return self.config.run_id

    def identity(self) -> dict[str, Any]:
        """The columns that say whose row it is: `run_id`, `config_hash`, `seed`."""
        return {"run_id": self.run_id, "config_hash": self.config.digest, "seed": self.config.train.seed}

    @cached_property
    def task(self) -> Task:
        """The task it was trained on.

        Raises:
            QflError: The registered task of this name is another one, or there is none: give it to `Run.open`.
        """
        if self._given is not None:
            return self._given
        from qfl_interp.data.registry import load_task, task_names

        if self.config.task not in task_names():
            known = task_record(self.path)
            was = f", the class {known['class']}" if known else ""
            raise QflError(
                f"{self.path} was trained on task {self.config.task!r}{was}, which is not registered here. Give it: "
                f"Run.open(path, task=...), or qfl_interp.register_task(class) first. Registered: "
                f"{', '.join(task_names())}."
            )
        task = load_task(self.config.task, self.config.length, **self.config.task_options)
        require_task(self.path, task, registered=True)
        return task

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending. Raises `QflError` where their folder cannot be read."""
        try:
            found = [ckpt.parse_step(name) for name in os.listdir(self.path / CHECKPOINTS)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise QflError(
                f"{self.path / CHECKPOINTS} must be a folder that can be read: {error.strerror}. Restore it, or its "
                "permissions."
            ) from error
        return sorted(step for step in found if step is not None)

    @property
    def saved_steps(self) -> list[int]:
        """Steps whose checkpoint is on disk, ascending: all of `steps`, but of a replay."""
        return self.steps

    @property
    def finished(self) -> bool:
        """Whether the final checkpoint is there."""
        return self.config.last_step in self.steps

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a logged step; validation columns are NaN on steps without a validation.

        Columns: step, flops (nominal), actual_flops, lr, train_loss, grad_norm, seconds, tokens_per_s; on validation
        steps val_loss, val_exact and val_pass (`=` scored, as in the paper), val_loss_answer, val_exact_answer and
        val_pass_answer. Losses in `loss_unit` a token, exact match (greedy) as a fraction; val_pass is the mean chance
        of writing a whole example rightly when sampling at temperature 1.

        Raises:
            QflError: A line is not what was written, or the file is missing or ends before the last checkpoint.
        """
        return pd.DataFrame(self.read_metrics().rows)

    def read_metrics(self) -> Metrics:
        """The rows of `metrics` as they stand in the file, checked. Raises as `metrics` does."""
        path, saved = self.path / METRICS_FILE, self.steps
        found = read_metrics(path, self.config.digest)
        if not found.checked and (self.path / TASK_FILE).exists():
            raise QflError(f"lines of {path} have lost their digests: corrupted. Restore the file.")
        last = found.rows[-1]["step"] if found.rows else None
        if saved and (last is None or last < saved[-1]) and not self._is_trained_again(last):
            ends = "is missing or empty" if last is None else f"ends at step {last}"
            raise QflError(
                f"{path} {ends}, but there is a checkpoint of step {saved[-1]}: its end was lost. Resume the run "
                "(`qfl resume`): what is missing is trained again, to the same bits; or restore the file."
            )
        return found

    def _is_trained_again(self, last: int | None) -> bool:
        """Whether training went back behind checkpoints of before, to `last`: now, or until it was stopped."""
        points = [ckpt.parse_step(path.name) for path in (self.path / RESUME).glob("step_*")]
        return is_held(self.path) or any(step is not None and step <= (last or 0) for step in points)

    @property
    def validation(self) -> Validation:
        """How training measured `val_...` columns. Those of a fork under an intervention have it installed."""
        return Validation(self.config.n_val, self.config.train.seed, self.config.train.loss_name)

    @property
    def does_otherwise(self) -> str:
        """Of a fork, its intervention or what is frozen, in a few words; empty of others."""
        fork = self.config.fork
        if fork is not None and fork.intervene is not None:
            return f"{fork.intervene.kind.replace('_', ' ')} {fork.intervene.feature}"
        return f"{', '.join(fork.frozen)} frozen" if fork is not None and fork.frozen else ""

    def card(self) -> dict[str, Any]:
        """What it is and where it comes from: its last metrics, model, training, and the last session's machine."""
        config, metrics = self.config, self.metrics
        validated = metrics.dropna(subset=["val_loss"]) if "val_loss" in metrics else metrics
        last = validated.iloc[-1]
        session = self.provenance[-1] if self.provenance else {}
        return {
            "run_id": self.run_id,
            "task": config.task,
            "length": config.length,
            "n_parameters": self.n_parameters,
            "n_steps": config.n_steps,
            "step": int(last["step"]),
            "budget_flops": config.train.budget_flops or math.nan,
            "nominal_flops": float(last["flops"]),
            "actual_flops": float(last["actual_flops"]),
            "seconds": float(last["seconds"]),
            **{name: float(last[name]) for name in _SCORES if name in last},
            "seed": config.train.seed,
            "model": config.model.to_dict(),
            "train": config.train.to_dict()
            if config.recorded is None
            else {"recorded": dataclasses.asdict(config.recorded)},
            **{name: session.get(name) for name in _SESSION},
        }

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """One record a training session: versions, command, git commit, device.

        Raises:
            QflError: The file is not what was written.
        """
        return read_sessions(self.path / PROVENANCE_FILE, self.config.digest).records

    @property
    def n_parameters(self) -> int:
        """Trainable parameters."""
        return self.config.n_parameters

    def flops(self, step: int) -> float:
        """Nominal training FLOPs up to `step`, as the paper counts."""
        return step * self.config.flops_per_step

    def actual_flops(self, step: int) -> float:
        """FLOPs of the matrix products up to `step`, padding and real widths included."""
        return step * self.config.actual_flops_per_step

    def load_model(self, step: int | Literal["last"] = "last", *, device: str | torch.device = "cpu") -> Any:
        """The model at a step: a `HookedTransformer`, or the bridge around a Hugging Face model that was recorded.

        Raises:
            QflError: The step was not saved (the nearest one is named), or its checkpoint is truncated, corrupted or
                foreign; other steps stay usable.
        """
        from qfl_interp.models.build import build_loaded, model_on, reads_vectors

        run, weights = self.config, self.load_checkpoint(step).model
        model = build_loaded(run.model, weights, d_vocab=run.d_vocab, n_ctx=run.n_ctx, d_out=run.d_out)
        if reads_vectors(model):
            assert self.task.samples is not None
            model.show(self.task.samples)
        return model_on(model, device)

    def untrained_model(self, index: int) -> tuple[Any, int]:
        """A freshly initialised model of this run's shape, on the CPU, and the seed of its weights."""
        from qfl_interp.models.build import build_model

        seed = self.untrained_seed(index)
        return build_model(self.config.model, self.task, seed=seed), seed

    def load_checkpoint(self, step: int | Literal["last"], *, with_optimizer: bool = False) -> ckpt.Checkpoint:
        """The checked contents of one checkpoint, as tensors by name. Raises `QflError` as `load_model` does."""
        path = self.path / CHECKPOINTS / ckpt.step_name(step) if isinstance(step, int) else None
        # A folder of a thousand checkpoints is not listed for each of them.
        if path is None or not path.is_dir():
            path = self.path / CHECKPOINTS / ckpt.step_name(*self.resolve_steps(step))
        return ckpt.load_checkpoint(path, config_digest=self.config.digest, with_optimizer=with_optimizer)

    def stored(self, step: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a checkpoint, its checksum checked."""
        yield from self.load_checkpoint(step).model.items()

    def weights(self, step: int) -> str | None:
        """The SHA-256 of a checkpoint's weights, as its manifest says; None where there is none."""
        try:
            return ckpt.read_manifest(self.path / CHECKPOINTS / ckpt.step_name(step))["files"][ckpt.MODEL]["sha256"]
        except QflError:
            return None

    def checkpoint_bytes(self) -> tuple[int, int]:
        """What all checkpoints take on disk, in bytes: the parameters, and the optimiser's state where it was saved."""
        folder = self.path / CHECKPOINTS
        parameters, optimiser = (
            sum(file.stat().st_size for file in folder.glob(f"step_*/{name}")) for name in (ckpt.MODEL, ckpt.OPTIMIZER)
        )
        return parameters, optimiser

    def verify(self) -> Verification:
        """Check every file of the run against its checksum; nothing is changed.

        Checkpoints, also those that the schedule asks for and that are not there, resume points, metrics, provenance,
        the task's record and tables; stored activations have `ActivationStore.verify`.
        """
        good, problems = [], []
        for step in self.steps:
            try:
                self._check_checkpoint(self.path / CHECKPOINTS / ckpt.step_name(step))
                good.append(step)
            except QflError as error:
                problems.append(str(error))
        foreign = [p for p in sorted((self.path / CHECKPOINTS).glob("[!.]*")) if ckpt.parse_step(p.name) is None]
        problems += [f"{path} is not a checkpoint of this run." for path in foreign]
        for path in sorted((self.path / RESUME).glob("step_*")):
            problems += _told(lambda path=path: self._check_checkpoint(path))
        for read in (lambda: self.metrics, lambda: self.provenance, lambda: task_record(self.path)):
            problems += _told(read)
        try:
            logged = read_metrics(self.path / METRICS_FILE, self.config.digest)
        except QflError:  # told above
            logged = None
        problems += [] if logged is None else self._not_saved(logged) + self._missing(logged)
        unchecked = self._unchecked(logged)
        for folder in sorted((self.path / TABLES_FOLDER).glob("*")):
            problems += self.table(folder.name).verify()
        return Verification(tuple(good), tuple(problems), self.config.last_step in good, tuple(unchecked))

    def _check_checkpoint(self, path: Path) -> None:
        ckpt.check_checkpoint(path, config_digest=self.config.digest)

    def _unchecked(self, logged: Metrics | None) -> list[str]:
        """A sentence on each file without a checksum."""
        old = "was written by an earlier version"
        found = (
            [] if logged is None or logged.checked else [f"{self.path / METRICS_FILE} {old}: lines without a checksum."]
        )
        with contextlib.suppress(QflError):  # told as a problem
            if not read_sessions(self.path / PROVENANCE_FILE, self.config.digest).checked:
                found.append(f"{self.path / PROVENANCE_FILE} {old}: no checksum.")
        if not (self.path / TASK_FILE).exists() and not (logged is not None and logged.checked and logged.rows):
            found.append(f"{self.path} {old}: it does not say what its task was.")
        return found

    def _missing(self, logged: Metrics) -> list[str]:
        """A sentence on each file that a run whose metrics have digests was given before them, and has not."""
        names = (TASK_FILE, PROVENANCE_FILE) if logged.checked and logged.rows else ()
        return [f"{self.path / name} is missing. Restore it." for name in names if not (self.path / name).exists()]

    def _not_saved(self, logged: Metrics) -> list[str]:
        """A sentence on the checkpoints that should be there: those of the schedule before the last logged step.

        The last one's rows are written before it is; it is missing where nothing trains on to it.
        """
        last, saved = logged.rows[-1]["step"] if logged.rows else -1, {*self.steps}
        at = [row["step"] for row in logged.rows]
        thinned = (self.path / CHECKPOINTS / FINAL_ALONE).exists() or any(b != a + 1 for a, b in itertools.pairwise(at))
        lost = [] if thinned else [step for step in self.config.steps_to_save if step < last and step not in saved]
        if last == self.config.last_step and last not in saved and not self._is_trained_again(last):
            lost.append(last)
        if not lost:
            return []
        shown = ", ".join(map(str, lost[:5])) + (", ..." if len(lost) > 5 else "")
        return [f"{self.path / CHECKPOINTS} has no checkpoint of {len(lost)} steps that were saved: {shown}."]

    def __reduce__(self) -> tuple[Any, ...]:
        # A task that was registered in this process is not in another, which gets it with the run.
        from qfl_interp.data.registry import registered_here

        own = any(task.name == self.config.task for task in registered_here())
        return _open, (self.path.absolute(), self.task if own else self._given)

    def __repr__(self) -> str:
        config = self.config
        try:
            saved = self.steps
        except QflError:  # whoever looks at them learns why
            saved = []
        state = "finished" if config.last_step in saved else "unfinished"
        return (
            f"Run({str(self.path)!r}: {config.task} length {config.length}, {config.model.n_layers} layers, "
            f"d_model {config.model.d_model}, seed {config.train.seed}, {state}, "
            f"{len(saved)} checkpoints to step {saved[-1] if saved else 0} of {config.last_step})"
        )


def _told(read: Callable[[], object]) -> list[str]:
    """What is wrong with what `read` reads."""
    try:
        read()
    except QflError as error:
        return [str(error)]
    return []


def _open(path: Path, task: Task | None) -> Run:
    """A run that was pickled."""
    return Run.open(path, task=task)


def task_record(run: Path) -> dict[str, Any] | None:
    """The identity of the task that a run directory was trained on; None where it does not say.

    Raises:
        QflError: The record cannot be read, or is not what was written.
    """
    path, advice = run / TASK_FILE, "Restore it: it says what the run was trained on."
    try:
        record = read_json(path, dict, advice)
    except FileNotFoundError:
        return None
    identity = identity_in(record)
    if identity is None:
        raise QflError(f"{path} does not match its checksum: corrupted. {advice}")
    return identity


def _has_digests(metrics: Path) -> bool:
    """Whether a version that wrote `task.json` has written a metrics file."""
    try:
        with metrics.open("rb") as file:
            return b'"sha256"' in file.readline()
    except OSError:
        return False


def require_task(run: Path, task: Task, *, registered: bool = False, labels: bool = False) -> None:
    """Raise unless a run directory was trained on this task; one that does not say so is taken as it is.

    Args:
        run: The directory.
        task: What is at hand.
        registered: It was found by its name: its class must be the run's too, and the run must say what it is.
        labels: Its features must be the run's too, whose tables would be shown for others.

    Raises:
        QflError: The run was trained on another task, or its record cannot be read or was lost.
    """
    found = task_record(run)
    if found is None:
        if registered and _has_digests(run / METRICS_FILE):
            raise QflError(
                f"{run / TASK_FILE} is missing: nothing says that {task!r} is what the run was trained on. Restore the "
                "file, or give the task: Run.open(path, task=...)."
            )
        return
    # The class of one that was given may have moved.
    wanted = task_identity(task, labels=labels) | ({} if registered else {"class": found["class"]})
    differing = differences(found, wanted)
    if differing:
        raise QflError(
            f"{run} was trained on another task than {task!r}: {'; '.join(differing)}. Open it with the task that it "
            f"was trained on: Run.open(path, task=...); or restore {TASK_FILE}, if that was changed."
        )
