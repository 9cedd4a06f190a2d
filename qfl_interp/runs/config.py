"""What names a run, as `config.json` keeps it; reads without torch, so that listing many runs is quick."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qfl_interp.config import Intervene, Options, TrainConfig
from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.model_kinds import AnyModelConfig, model_config_from_dict
from qfl_interp.runs.flops import actual_flops_per_step, flops_per_step
from qfl_interp.runs.steps import checkpoint_steps, evaluation_steps

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
TASK_FILE = "task.json"
FORMAT = "qfl_interp run"
VERSION = 1

# Validation examples where the configuration does not say how many. The same examples are used at every validation, so
# that few of them shift a curve rather than shake it.
_LEAST_N_VAL, _MOST_N_VAL = 128, 1_000


@dataclass(frozen=True)
class Start:
    """Where a fork begins: a checkpoint of another run.

    It counts on from the parent's `step`.
    """

    run_id: str
    step: int


@dataclass(frozen=True)
class Fork:
    """What a run that goes on from another one's checkpoint does otherwise, beside its `TrainConfig`.

    Args:
        clock_start: The step from which the schedule counts: the parent's, where the schedule is.
        clock_steps: Over how many steps it runs.
        frozen: Modules that are not trained, by name ("embed", "blocks.0.attn").
        rolled_back: Modules that start from an older checkpoint of the parent: name to step.
        intervene: What is installed while it trains.
    """

    clock_start: int
    clock_steps: int
    frozen: tuple[str, ...] = ()
    rolled_back: Options = Options()  # noqa: RUF009 -- never changed
    intervene: Intervene | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        values = {"clock_start": self.clock_start, "clock_steps": self.clock_steps, "frozen": list(self.frozen)}
        spec = None if self.intervene is None else self.intervene.to_dict()
        return values | {"rolled_back": dict(self.rolled_back), "intervene": spec}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Fork:
        """The fork that `to_dict` wrote; raises `KeyError` or `QflError` where a field is missing or does not fit."""
        spec = values["intervene"]
        return cls(
            values["clock_start"], values["clock_steps"], tuple(values["frozen"]), Options(values["rolled_back"]),
            None if spec is None else Intervene.from_dict(spec),
        )  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """What is known of a training loop of the user's own; `TrainConfig` says nothing of its optimiser and batches.

    Args:
        tokens_per_step: Tokens that an update reads; None: nobody said.
    """

    tokens_per_step: int | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers, and the sizes that follow from it.

    Args:
        task: Registered name.
        length: The task's length.
        model: Shape, or the model that was given.
        train: Optimisation and data.
        first_step: Step of the initial weights: 0, or the parent's step for a fork.
        last_step: Step of the final weights.
        n_ctx: Padded tokens of a sequence.
        n_ctx_real: Mean real tokens of a sequence, over the first 128 validation examples.
        d_vocab: Size of the vocabulary.
        start: The parent of a fork.
        task_options: What the task was made with beside its length.
        n_train: Problems of the fixed training set, of a run that has one.
        fork: What a run that goes on from another one does otherwise.
        d_out: Of a real-valued task: the numbers that are predicted at a position; `d_vocab` is the width of a token.
        recorded: Of a run that a loop of the user's own has trained. Of `train` only the steps, checkpoints,
            validations and the seed then mean something: that seed draws the evaluation sets, not the weights.
    """

    task: str
    length: int
    model: AnyModelConfig
    train: TrainConfig
    first_step: int
    last_step: int
    n_ctx: int
    n_ctx_real: float
    d_vocab: int
    start: Start | None = None
    task_options: Options = Options()  # noqa: RUF009 -- never changed
    n_train: int | None = None
    fork: Fork | None = None
    d_out: int | None = None
    recorded: Recorded | None = None

    @property
    def n_steps(self) -> int:
        """Updates of this run."""
        return self.last_step - self.first_step

    @property
    def batch_size(self) -> int:
        """Examples of an update: as configured, or the whole training set."""
        size = self.train.batch_size if self.train.batch_size != "all" else self.n_train
        assert size is not None
        return size

    @property
    def steps_to_save(self) -> list[int]:
        """The steps that get a checkpoint, ascending."""
        steps = checkpoint_steps(self.n_steps, self.train.n_checkpoints, self.train.save_every)
        return [self.first_step + step for step in steps]

    @property
    def n_validations(self) -> int:
        """Validations of this run, those of its first and last step included."""
        return len(evaluation_steps(self.n_steps, self.train.eval_fraction)) + 1

    @property
    def n_val(self) -> int:
        """Examples in the validation set: as configured, or as many as a tenth of training's work pays for.

        Counted as a third of an update's work an example, which its forward pass is; never fewer than 128 or more than
        1,000.
        """
        if self.train.n_val is not None:
            return self.train.n_val
        affordable = 0.1 * 3 * self.n_steps * self.batch_size / self.n_validations
        return min(max(int(affordable), _LEAST_N_VAL), _MOST_N_VAL)

    @property
    def n_parameters(self) -> int:
        """Trainable parameters of the model."""
        out = {} if self.d_out is None else {"d_out": self.d_out}
        return self.model.n_parameters(d_vocab=self.d_vocab, n_ctx=self.n_ctx, **out)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that an update reads, padding included; NaN of a recorded run that does not say."""
        if self.recorded is None:
            return self.batch_size * self.n_ctx
        known = self.recorded.tokens_per_step
        return math.nan if known is None else known

    @property
    def flops_per_step(self) -> float:
        """Nominal FLOPs of an update, as the paper counts; of a recorded run `tokens_per_step` times a token's."""
        if self.recorded is not None:
            return self.tokens_per_step * self.model.nominal_flops(self.n_ctx_real)
        return flops_per_step(self.model, batch_size=self.batch_size, n_ctx=self.n_ctx_real)

    @property
    def actual_flops_per_step(self) -> float:
        """FLOPs of the matrix products of an update, padding and real widths included."""
        sizes = {"n_ctx": self.n_ctx, "d_vocab": self.d_vocab}
        if self.recorded is not None:
            return self.tokens_per_step * self.model.matrix_flops(**sizes)
        return actual_flops_per_step(self.model, batch_size=self.batch_size, **sizes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; the later ones where they say something: runs of before keep their names."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"model": self.model.to_dict(), "train": self.train.to_dict()}
        values["start"] = asdict(self.start) if self.start else None
        options, n_train = values.pop("task_options"), values.pop("n_train")
        values |= {"task_options": dict(options)} if options else {}
        fork = values.pop("fork")
        values |= {"n_train": n_train} if n_train is not None else {}
        if self.d_out is None:
            del values["d_out"]
        recorded = values.pop("recorded")
        values |= {"recorded": asdict(recorded)} if recorded is not None else {}
        return values | ({"fork": fork.to_dict()} if fork is not None else {})

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the run: the SHA-256 of its sorted JSON."""
        return json_digest(self.to_dict())

    @property
    def run_id(self) -> str:
        """Task, length and digest, as a person reads it."""
        return f"{self.task}{self.length}-{self.digest}"

    def to_json(self) -> bytes:
        """The text of `config.json`."""
        head = {"format": FORMAT, "version": VERSION, "run_id": self.run_id}
        return json.dumps(head | self.to_dict(), indent=1).encode()

    @staticmethod
    def read(run: Path) -> RunConfig:
        """The configuration of a run directory.

        Raises:
            QflError: It is no run, or its configuration is corrupted or of another version.
        """
        if run.is_file():
            raise QflError(
                f"{run} is no run: it is a file, and a run is a directory. Give the folder that holds config.json."
            )
        path = run / CONFIG_FILE
        try:
            values: dict[str, Any] = read_json(path, dict, "Restore it: it names the run.")
        except FileNotFoundError as error:
            what = "has no config.json" if run.is_dir() else "does not exist"
            raise QflError(f"{run} is no run: it {what}. `qfl runs` lists the runs below a folder.") from error
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            raise QflError(
                f"{path} was not written by this version of qfl_interp (run format {VERSION}). "
                "Open it with the version that wrote it."
            )
        try:
            named = values.pop("run_id")
            del values["format"], values["version"]
            values["model"] = model_config_from_dict(values["model"])
            values["train"] = TrainConfig.from_dict(values["train"])
            values["start"] = Start(**values["start"]) if values["start"] else None
            values["task_options"] = Options(values.get("task_options", {}))
            values["fork"] = Fork.from_dict(values["fork"]) if values.get("fork") else None
            values["recorded"] = Recorded(**values["recorded"]) if values.get("recorded") is not None else None
            config = RunConfig(**values)
            if config.train.batch_size == "all" and type(config.n_train) is not int:
                raise QflError(f"n_train must be an integer with batch_size 'all', got {config.n_train!r}.")
        except (AttributeError, TypeError, KeyError, ValueError, QflError) as error:
            raise QflError(f"{path} is corrupted: {error}") from error
        if config.run_id != named:
            raise QflError(f"{path} was edited: it is named {named}, but its values are those of {config.run_id}.")
        return config


def is_foreign_config(file: Path) -> bool:
    """Whether a `config.json` is a model's of transformers."""
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "format" not in values and ("model_type" in values or "architectures" in values)
