"""Checkpoints of a Hugging Face causal language model, from folders or hub revisions, as a series like a `Run`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PretrainedConfig

from qfl_interp.data.fixed_task import FixedTask
from qfl_interp.data.identity import task_identity
from qfl_interp.data.registry import task_class, task_names
from qfl_interp.data.task import Task
from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError
from qfl_interp.files import local_path
from qfl_interp.models.build import hooked_from_hf
from qfl_interp.runs.file_digests import FileDigests
from qfl_interp.runs.hf_checkpoints import STEP_FOLDER, Source, count_parameters, load_source, new_model, step_folders
from qfl_interp.runs.series import Checkpoints

if TYPE_CHECKING:
    from qfl_interp.models.build import TransformerBridge


class Suite(Checkpoints):
    """A series of Hugging Face checkpoints with a task to examine them on.

    Open one with `Suite.open` or `Suite.from_hub`. Models are wrapped in a `TransformerBridge`, in float32 and
    evaluation mode, their attention written out whatever their files say; weights are not folded, so that logits are
    the model's own. Weights that are pickled (`.bin`) are read as tensors alone, and that is said. Tables lie in
    `out/<run_id>/`, and the id holds the suite's name, the task's and a digest of the model's configuration, the
    dataset and `tokens_per_step`: two suites of one name and configuration (trained from other seeds, say) need an
    `out` each.

    Pickled, it is its sources and its task: another process opens them again. The task's class has to be one that it
    can import.

    Args:
        name: What tables call it.
        sources: The checkpoint of each step.
        task: What the models are examined on.
        out: Folder for tables and stored activations.
        seed: Draws what the series itself draws: untrained models.
        tokens_per_step: Tokens of one training step, for `flops`.

    Raises:
        QflError: The configuration cannot be read, or the task does not fit the model.
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
    ) -> None:
        self.name, self.sources, self.out, self.seed = name, dict(sorted(sources.items())), local_path(out), seed
        self.tokens_per_step = tokens_per_step
        self._task = task
        self._raw_config = self._first.read_config()
        _require_fit(task, self.config, self._first)
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
        sources = {step: Source(str(path)) for step, path in found.items()}
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
        sources = {int(step): Source(repo, revision.format(step=int(step))) for step in steps}
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

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration, as Hugging Face reads it."""
        return self._first.config()

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
        return f"{plain}-{json_digest([self._raw_config, task.name, content, self.tokens_per_step])}"

    @cached_property
    def n_parameters(self) -> int:
        """Trainable parameters, embeddings included, tied ones once."""
        return count_parameters(self.config)

    def identity(self) -> dict[str, Any]:
        """The columns that say whose row it is: `run_id`, `config_hash`, `seed`."""
        return {"run_id": self.run_id, "config_hash": self.config_hash, "seed": self.seed}

    def flops(self, step: int) -> float:
        """Training FLOPs up to `step`: `6 n_parameters tokens_per_step step`; NaN where `tokens_per_step` is unknown.

        References:
            Scaling Laws for Neural Language Models (arXiv 2001.08361), section 2.1, with embeddings counted.
        """
        if self.tokens_per_step is None:
            return math.nan
        return 6.0 * self.n_parameters * self.tokens_per_step * step

    def card(self) -> dict[str, Any]:
        """As of every series, with parameters and the model's configuration."""
        own = {"n_parameters": self.n_parameters, "tokens_per_step": self.tokens_per_step}
        return {**super().card(), **own, "model": self._raw_config}

    def load_model(
        self, step: int | Literal["last"] = "last", *, device: str | torch.device = "cpu"
    ) -> TransformerBridge:
        """The model at a step, in float32 and evaluation mode; its logits are those of the Hugging Face model.

        Raises:
            QflError: The step is not in the suite (the nearest one is named); its files are missing, truncated, of
                another configuration or lack a weight; or TransformerLens has no bridge for the architecture. Other
                steps stay usable.
        """
        source = self.sources[self.resolve_steps(step)[0]]
        self._require_same_config(source)
        return hooked_from_hf(load_source(source, device))

    def weights(self, step: int) -> str | None:
        """The digest of a checkpoint's weight files, or its commit on the hub; None where neither is on this machine.

        Files are read again only once size or times on disk have changed (`weights.json` beside the tables).
        """
        source = self.sources[self.resolve_steps(step)[0]]
        if source.revision is not None:
            return source.cached_commit()
        place = self.workplace if self.workplace.is_dir() else self.path
        return FileDigests(place / "weights.json").of(source.weight_files())

    def untrained_model(self, index: int) -> tuple[TransformerBridge, int]:
        """A freshly initialised model of the suite's shape, on the CPU, and the seed of its weights."""
        seed = self.untrained_seed(index)
        return hooked_from_hf(new_model(self.config, seed)), seed

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
        return _reopen, (self.name, self.sources, self._task, settings)

    def __repr__(self) -> str:
        return f"Suite({self.name!r}: {self.config.model_type}, {len(self.steps)} steps, task {self.task!r})"


def _reopen(name: str, sources: Mapping[int, Source], task: Task, settings: dict[str, Any]) -> Suite:
    """A suite that was pickled."""
    return Suite(name, sources, task, **settings)


def _require_fit(task: Task, config: PretrainedConfig, source: Source) -> None:
    """Raise `QflError` unless the model can read the task's sequences."""
    text = config.get_text_config()
    for what, needed, has in (
        ("token ids", task.d_vocab, getattr(text, "vocab_size", None)),
        ("tokens in a sequence", task.n_ctx, getattr(text, "max_position_embeddings", None)),
    ):
        if has is not None and needed > has:
            raise QflError(
                f"task {task.name!r} has {needed} {what}, but the model of {source} takes {has}. "
                "Encode the dataset with the model's own tokenizer, in shorter sequences."
            )
