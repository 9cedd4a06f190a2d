"""Checkpoints that were not trained here, as a series like a `Run`: from folders, files, the hub or memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from qfl_interp.data.fixed_task import FixedTask
from qfl_interp.data.identity import task_identity
from qfl_interp.data.registry import task_class, task_names
from qfl_interp.data.task import Task
from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError
from qfl_interp.files import local_path
from qfl_interp.runs.file_digests import FileDigests
from qfl_interp.runs.series import Checkpoints
from qfl_interp.runs.sources.hugging_face import STEP_FOLDER, HuggingFace, step_folders
from qfl_interp.runs.sources.source import Source

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedModel


class Suite(Checkpoints):
    """A series of checkpoints with a task to examine them on, each from a `Source`.

    Open one with `Suite.open` or `Suite.from_hub`. Models are in float32 and evaluation mode. Tables lie in
    `out/<run_id>/`, and the id holds the suite's name, the task's and a digest of the model's configuration, the
    dataset and the tokens of a step: two suites of one name and configuration (trained from other seeds, say) need an
    `out` each.

    Pickled, it is its sources and its task: another process opens them again. The task's class has to be one that it
    can import.

    Args:
        name: What tables call it.
        sources: The checkpoint of each step.
        task: What the models are examined on.
        out: Folder for tables and stored activations.
        seed: Draws what the series itself draws: untrained models.
        tokens_per_step: Tokens of one training step, for `tokens` and `flops`.
        tokens_at: Tokens that training has seen at each step, where they are known one by one.

    Raises:
        QflError: The configuration cannot be read, or the task does not fit the model.
        ValueError: Both `tokens_per_step` and `tokens_at` are given, or `tokens_at` lacks a step.
    """

    def __init__(
        self,
        name: str,
        sources: Mapping[int, Source],
        task: Task,
        *,
        out: str | Path,
        seed: int = 0,
        tokens_per_step: int | None = None,
        tokens_at: Mapping[int, int] | None = None,
    ) -> None:
        self.name, self.sources, self.out, self.seed = name, dict(sorted(sources.items())), local_path(out), seed
        self.tokens_per_step = tokens_per_step
        self.tokens_at = None if tokens_at is None else dict(sorted(tokens_at.items()))
        _require_tokens(self.steps, tokens_per_step, self.tokens_at)
        self._task = task
        self._raw_config = self._first.read_config()
        _require_fit(task, self._first)
        self.path = self.out / self.run_id

    @classmethod
    def open(
        cls,
        folder: str | Path,
        task: Task,
        *,
        out: str | Path | None = None,
        seed: int = 0,
        tokens_per_step: int | None = None,
        pattern: str = STEP_FOLDER,
    ) -> Suite:
        """The suite in a folder: one sub-folder a step, each written by `save_pretrained`.

        Args:
            folder: Holds `step0`, `step_1000`, `checkpoint-500`, ...; other sub-folders are passed over.
            task: What the models are examined on.
            out: Folder for tables; `<folder>/qfl_interp` by default.
            seed: Draws untrained models.
            tokens_per_step: Tokens of one training step, for `flops`.
            pattern: Regular expression of a step folder's whole name; its first group is the step.

        Raises:
            QflError: There is no step folder, two have the same step, one is half-written, their configurations
                differ, or the task does not fit the model.
        """
        found = step_folders(Path(folder), pattern)
        sources = {step: HuggingFace(str(path)) for step, path in found.items()}
        out = Path(folder) / "qfl_interp" if out is None else out
        suite = cls(Path(folder).resolve().name, sources, task, out=out, seed=seed, tokens_per_step=tokens_per_step)
        for source in sources.values():
            suite._require_same_config(source)
        return suite

    @classmethod
    def from_hub(
        cls,
        repo: str,
        task: Task,
        steps: Sequence[int],
        *,
        out: str | Path,
        revision: str = "step{step}",
        seed: int = 0,
        tokens_per_step: int | None = None,
    ) -> Suite:
        """The suite of a hub repository that keeps one revision a step, as Pythia does.

        Weights are fetched when a step is loaded, into the Hugging Face cache. `HF_HUB_OFFLINE=1` keeps to that cache.
        Pickled ones (`.bin`) are read as tensors alone, as those of folders are, and that is said.

        Args:
            repo: The repository, as in "EleutherAI/pythia-70m".
            task: What the models are examined on.
            steps: Which steps; each is a download.
            out: Folder for tables.
            revision: The revision's name, with `{step}` in it.
            seed: Draws untrained models.
            tokens_per_step: Tokens of one training step, for `flops`; Pythia: 2_097_152.

        Raises:
            QflError: The first step's configuration cannot be fetched, or the task does not fit the model.
            ValueError: No step is given, or `revision` holds no `{step}`.
        """
        if "{step}" not in revision or not steps:
            raise ValueError(
                "revision must hold {step} and steps must name some, "
                f"got revision={revision!r} and {len(steps)} steps. Pythia's are 'step{{step}}' and 0 to 143000."
            )
        sources = {int(step): HuggingFace(repo, revision.format(step=int(step))) for step in steps}
        return cls(repo.replace("/", "--"), sources, task, out=out, seed=seed, tokens_per_step=tokens_per_step)

    @property
    def _first(self) -> Source:
        """The earliest checkpoint."""
        return self.sources[self.steps[0]]

    @property
    def task(self) -> Task:
        """What the models are examined on."""
        return self._task

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return list(self.sources)

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits that name the model's configuration."""
        return json_digest(self._raw_config)

    @property
    def run_id(self) -> str:
        """The suite's name, the task's, and a digest of the configuration, the dataset and the tokens of a step."""
        task = self._task
        registered = task.name in task_names() and type(task) is task_class(task.name)
        at = [task.length, task.options] if task.options else task.length
        content = task.digest if isinstance(task, FixedTask) else at if registered else task_identity(task)
        plain = re.sub(r"[^\w.-]+", "_", f"{self.name}-{task.name}")
        # Tables hold FLOPs: rows written without the tokens of a step must not come back when they are given.
        tokens = self.tokens_per_step if self.tokens_at is None else list(self.tokens_at.items())
        return f"{plain}-{json_digest([self._raw_config, task.name, content, tokens])}"

    @cached_property
    def n_parameters(self) -> int:
        """Trainable parameters, embeddings included, tied ones once."""
        return self._first.n_parameters()

    def identity(self) -> dict[str, Any]:
        """The columns that say whose row it is: `run_id`, `config_hash`, `seed`."""
        return {"run_id": self.run_id, "config_hash": self.config_hash, "seed": self.seed}

    def tokens(self, step: int) -> float:
        """Tokens that training has seen at `step`; NaN where that is unknown."""
        if self.tokens_at is not None:
            return float(self.tokens_at.get(step, math.nan))
        return math.nan if self.tokens_per_step is None else float(self.tokens_per_step * step)

    def flops(self, step: int) -> float:
        """Training FLOPs up to `step`: `6 n_parameters tokens(step)`; NaN where the tokens are unknown.

        References:
            Scaling Laws for Neural Language Models (arXiv 2001.08361), section 2.1, with embeddings counted.
        """
        tokens = self.tokens(step)
        return tokens if math.isnan(tokens) else 6.0 * self.n_parameters * tokens

    def load_model(self, step: int | Literal["last"] = "last", *, device: str | torch.device = "cpu") -> HookedModel:
        """The model at a step, in float32 and evaluation mode; its logits are those of the model that was saved.

        Raises:
            QflError: The step is not in the suite (the nearest one is named); its files are missing, truncated, of
                another configuration, or lack a weight or have another; or TransformerLens has no bridge for the
                architecture. Other steps stay usable.
        """
        source = self.sources[self.resolve_steps(step)[0]]
        self._require_same_config(source)
        return source.load(device)

    def weights(self, step: int) -> str | None:
        """A digest of a checkpoint's weights, or its commit on the hub; None where neither is on this machine.

        Files are read again only once size or times on disk have changed (`weights.json` beside the tables).
        """
        place = self.workplace if self.workplace.is_dir() else self.path
        return self.sources[self.resolve_steps(step)[0]].weights(FileDigests(place / "weights.json"))

    def stored(self, step: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a checkpoint as its source has them."""
        yield from self.sources[self.resolve_steps(step)[0]].stored()

    def untrained_model(self, index: int) -> tuple[HookedModel, int]:
        """A freshly initialised model of the suite's shape, on the CPU, and the seed of its weights.

        Raises:
            QflError: The suite's sources do not say how one is made.
        """
        seed = self.untrained_seed(index)
        return self._first.new_model(seed), seed

    def _require_same_config(self, source: Source) -> None:
        """Raise `QflError` unless the checkpoint is one of the same model as the first."""
        first, other = self._raw_config, source.read_config()
        differing = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        if differing:
            values = ", ".join(f"{key}: {first.get(key)!r} and {other.get(key)!r}" for key in differing)
            raise QflError(
                f"all checkpoints of a suite must have one configuration; {self._first} and {source} differ in "
                f"{values}. Open the checkpoints of each model as a suite of its own."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {"out": self.out.absolute(), "seed": self.seed, "tokens_per_step": self.tokens_per_step}
        settings["tokens_at"] = self.tokens_at
        return _reopen, (self.name, self.sources, self._task, settings)

    def __repr__(self) -> str:
        return f"Suite({self.name!r}: {self._first.architecture}, {len(self.steps)} steps, task {self.task!r})"


def _reopen(name: str, sources: Mapping[int, Source], task: Task, settings: dict[str, Any]) -> Suite:
    """A suite that was pickled."""
    return Suite(name, sources, task, **settings)


def _require_tokens(steps: Sequence[int], tokens_per_step: int | None, tokens_at: Mapping[int, int] | None) -> None:
    """Raise `ValueError` unless the tokens of each step are known once, or not at all."""
    if tokens_at is None:
        return
    if tokens_per_step is not None:
        raise ValueError(f"give tokens_per_step or tokens_at, got both: {tokens_per_step} and {dict(tokens_at)}.")
    if lacking := [step for step in steps if step not in tokens_at]:
        raise ValueError(f"tokens_at must say the tokens of every step, but lacks {lacking[:5]}.")


def _require_fit(task: Task, source: Source) -> None:
    """Raise `QflError` unless the model can read the task's sequences."""
    limits = source.limits()
    for what, needed, has in (
        ("token ids", task.d_vocab, limits.d_vocab),
        ("tokens in a sequence", task.n_ctx, limits.n_ctx),
    ):
        if has is not None and needed > has:
            raise QflError(
                f"task {task.name!r} has {needed} {what}, but the model of {source} takes {has}. "
                "Encode the dataset with the model's own tokenizer, in shorter sequences."
            )
