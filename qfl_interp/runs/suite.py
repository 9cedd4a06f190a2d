"""Checkpoints that were not trained here, as a series like a `Run`: from folders, files, the hub or memory."""

from __future__ import annotations

import atexit
import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from qfl_interp.data.fixed_task import FixedTask
from qfl_interp.data.identity import task_identity
from qfl_interp.data.registry import is_installed
from qfl_interp.data.task import Task
from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError
from qfl_interp.files import local_path
from qfl_interp.runs.file_digests import FileDigests
from qfl_interp.runs.hub.announce import announce, fetch_all
from qfl_interp.runs.hub.names import tokens_at
from qfl_interp.runs.hub.revisions import list_revisions
from qfl_interp.runs.scratch import scratch_folder
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.runs.sources.builders import builder_of
from qfl_interp.runs.sources.folder import find_checkpoints
from qfl_interp.runs.sources.hub_revision import HubRevision
from qfl_interp.runs.sources.in_memory import InMemory
from qfl_interp.runs.sources.source import Source
from qfl_interp.runs.sources.state_dicts import StateDict

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedModel


class Suite(Checkpoints):
    """A series of checkpoints with a task to examine them on, each from a `Source`.

    Open one with `Suite.open`, `from_hub`, `from_state_dicts` or `from_models`. Models are in float32 and evaluation
    mode. Tables lie in `out/<run_id>/`, and the id holds the suite's name, the task's and a digest of the model's
    configuration, the dataset and the tokens of a step: two suites of one name and configuration (trained from other
    seeds, say) need an `out` each.

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
        ValueError: There is no source, a step is negative, both `tokens_per_step` and `tokens_at` are given, or
            `tokens_at` lacks a step.
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
        if not self.sources:
            raise ValueError("a suite must have a step, got none. Give at least one checkpoint.")
        if self.steps[0] < 0:
            raise ValueError(f"a step is the number of updates done, at least 0, got {self.steps[0]}.")
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
        pattern: str | None = None,
        build: Callable[[], nn.Module] | None = None,
        config: Any = None,
    ) -> Suite:
        """The suite in a folder: a sub-folder or a file a step.

        Sub-folders that `save_pretrained` or a `Trainer` wrote are read as they are. With `build` or `config` all are
        state dicts, as `from_state_dicts` reads them. Names that say tokens (`stage1-step150-tokens1B`) give FLOPs.

        Args:
            folder: Holds `step0`, `step_1000`, `checkpoint-500`, `step300.pt`, `model_step_300.safetensors`, ...; what
                has other names is passed over.
            task: What the models are examined on.
            out: Folder for tables; `<folder>/qfl_interp` by default.
            seed: Draws untrained models.
            tokens_per_step: Tokens of one training step, for `flops`; by default as names have it.
            pattern: Regular expression of a checkpoint's whole name, a file's with or without its ending; its group
                `step`, or else its first, is the step, its group `tokens` the tokens ("4B", "2097152").
            build: Returns the model of the state dicts.
            config: Or the model's configuration of transformer_lens.

        Raises:
            QflError: There is no checkpoint, two have the same step, they are of several series, one is half-written,
                their configurations differ, or the task does not fit the model.
            ValueError: The pattern has no group, or one that matches no number.
        """
        builder = None if build is None and config is None else builder_of(build, config)
        found = find_checkpoints(Path(folder), pattern, builder)
        out = Path(folder) / "qfl_interp" if out is None else out
        tokens = found if tokens_per_step is None else found._replace(tokens_per_step=tokens_per_step, tokens_at=None)
        suite = cls(
            Path(folder).resolve().name, found.sources, task, out=out, seed=seed,
            tokens_per_step=tokens.tokens_per_step, tokens_at=tokens.tokens_at,
        )  # fmt: skip
        for source in found.sources.values():
            suite._require_same_config(source)
        return suite

    @classmethod
    def from_state_dicts(
        cls,
        paths: Mapping[int, str | Path],
        task: Task,
        *,
        build: Callable[[], nn.Module] | None = None,
        config: Any = None,
        out: str | Path | None = None,
        name: str | None = None,
        seed: int = 0,
        tokens_per_step: int | None = None,
    ) -> Suite:
        """The suite of state dicts, with what makes their model.

        A file is `.safetensors`, or a pickle (`.pt`, `.pth`, `.bin`, `.ckpt`) of tensors alone, in which the state dict
        may be one entry (`model`, `state_dict`, ...) of several; nothing else in it is executed. A folder holds one
        such file or shards with their index. Every tensor is compared with the model by name and shape.

        Args:
            paths: File or folder of each step.
            task: What the models are examined on.
            build: Returns the model, without arguments: a `HookedTransformer`, a model of transformers, or a module of
                your own with hook points (docs/any_model.md). Fresh weights are drawn from torch's global generator.
                With `jobs` above 1 it has to be importable.
            config: Or a `HookedTransformerConfig`, its fields as a mapping, or a JSON file of them.
            out: Folder for tables; `qfl_interp` beside the first file by default.
            name: What tables call it; by default the folder of the first file.
            seed: Draws untrained models.
            tokens_per_step: Tokens of one training step, for `flops`.

        Raises:
            QflError: The model cannot be built, or the task does not fit it. Files are read when a step is loaded.
            TypeError: Neither `build` nor `config` is given, or both.
            ValueError: There is no step.
        """
        builder = builder_of(build, config)
        sources = {int(step): StateDict(local_path(path), builder) for step, path in paths.items()}
        first = next(iter(sources.values()), None)
        beside = Path() if first is None else first.path.absolute().parent
        out = beside / "qfl_interp" if out is None else out
        return cls(name or beside.name, sources, task, out=out, seed=seed, tokens_per_step=tokens_per_step)

    @classmethod
    def from_models(
        cls,
        models: Mapping[int, nn.Module],
        task: Task,
        *,
        build: Callable[[], nn.Module] | None = None,
        out: str | Path | None = None,
        name: str = "models",
        seed: int = 0,
        tokens_per_step: int | None = None,
    ) -> Suite:
        """The suite of models in memory, by step.

        Copies are looked at, so that a model may be trained on; its weights are those at the time of a call. With
        `jobs` above 1 the models travel to other processes.

        Args:
            models: `HookedTransformer`s, bridges, models of transformers, or modules of your own with hook points.
            task: What they are examined on.
            build: Returns a fresh model, for untrained controls; by default the first model's configuration does.
            out: Folder for tables; by default a temporary one, gone when this process ends.
            name: What tables call it.
            seed: Draws untrained models.
            tokens_per_step: Tokens of one training step, for `flops`.

        Raises:
            QflError: One object stands at two steps, the models differ in their configurations, or the task does not
                fit them.
            ValueError: There is no step.
        """
        seen: dict[int, int] = {}
        for step, model in models.items():
            if not isinstance(model, nn.Module):
                raise TypeError(f"a model must be a torch.nn.Module, got a {type(model).__name__} at step {step}.")
            if id(model) in seen:
                raise QflError(
                    f"steps {seen[id(model)]} and {step} are one object, whose weights are those of now. Keep a "
                    "copy.deepcopy(model) of each step."
                )
            seen[id(model)] = step
        builder = None if build is None else builder_of(build, None)
        named = {int(step): (type(model).__name__, model) for step, model in models.items()}
        sources = {
            step: InMemory(model, f"the {kind} of step {step}", builder) for step, (kind, model) in named.items()
        }
        suite = cls(
            name, sources, task, out=_scratch() if out is None else out, seed=seed, tokens_per_step=tokens_per_step
        )
        for source in sources.values():
            suite._require_same_config(source)
        return suite

    @classmethod
    def from_hub(
        cls,
        repo: str,
        task: Task,
        steps: Steps = "log:20",
        *,
        out: str | Path,
        stage: str | None = None,
        pattern: str | None = None,
        history: str | None = None,
        seed: int = 0,
        tokens_per_step: int | None = None,
        fetch: bool = False,
        progress: bool = True,
    ) -> Suite:
        """The suite of a hub repository that keeps one revision a step, as Pythia, OLMo, SmolLM and others do.

        Branches and tags are listed, their names read, and each is pinned to its commit. One line on standard error
        says what there is and how much is to be fetched: configuration and weights, safetensors before pickles, less
        what the Hugging Face cache has. `HF_HUB_OFFLINE=1` keeps to that cache and to what `out` remembers of the last
        listing. Of several stages, ingredients or seeds one is taken, and what is left out is said.

        Args:
            repo: The repository, as in "EleutherAI/pythia-70m".
            task: What the models are examined on.
            steps: Which ones, of all that are there.
            out: Folder for tables.
            stage: The series to take, as its names have it ("stage2-ingredient1", "seed-default"); by default the one
                without a stage, else stage 1, else the one of most revisions.
            pattern: Regular expression of a revision's whole name, for others: its group `step` is the step, `tokens`
                the tokens ("4B"), and all other named groups together are the stage.
            history: A branch whose commits are the checkpoints, their steps in the titles, as Pico and `Trainer` push.
            seed: Draws untrained models.
            tokens_per_step: Tokens of one training step, for `flops`. By default as the names have it, to three digits,
                where they say tokens in proportion to steps (it is said), and step by step where they say others;
                Pythia's say none, and it is 2_097_152.
            fetch: Fetch all of them now, and not each when it is loaded. One that cannot be is named, the others stay
                usable.
            progress: Say what is there and draw a bar on standard error.

        Raises:
            QflError: The hub cannot be reached; there is no such repository, revision, step or stage, or no access;
                the first step's configuration cannot be fetched, or the task does not fit the model.
            ValueError: The pattern has no group `step`, or the text names no steps.
        """
        listing = list_revisions(repo, local_path(out), stage=stage, pattern=pattern, history=history)
        revisions = listing.choose(steps)
        tokens = tokens_per_step or listing.tokens_per_step
        announce(listing, revisions, tokens if tokens_per_step is None else None, progress=progress)
        sources = {r.named.step: HubRevision(repo, r.commit, r.name) for r in revisions}
        name = "--".join(filter(None, [*repo.split("/"), history, listing.series]))
        # What the names say step by step, where that is not in proportion: a batch that grew.
        by_step = tokens_at([r.named for r in revisions]) if tokens is None else None
        suite = cls(name, sources, task, out=out, seed=seed, tokens_per_step=tokens, tokens_at=by_step)
        if fetch:
            fetch_all({step: source.fetched for step, source in sources.items()}, progress=progress)
        return suite

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
        at = [task.length, task.options] if task.options else task.length
        content = task.digest if isinstance(task, FixedTask) else at if is_installed(task) else task_identity(task)
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
        """Tokens that training has seen at `step`, in proportion between two of `tokens_at`; NaN where unknown."""
        if self.tokens_at is not None:
            return float(np.interp(step, [*self.tokens_at], [*self.tokens_at.values()], left=math.nan, right=math.nan))
        return math.nan if self.tokens_per_step is None else float(self.tokens_per_step * step)

    def flops(self, step: int) -> float:
        """Training FLOPs up to `step`: `6 n_parameters tokens(step)`; NaN where the tokens are unknown.

        References:
            Scaling Laws for Neural Language Models (arXiv 2001.08361), section 2.1, with embeddings counted.
        """
        tokens = self.tokens(step)
        return tokens if math.isnan(tokens) else 6.0 * self.n_parameters * tokens

    def card(self) -> dict[str, Any]:
        """As of every series, with parameters and the model's configuration."""
        own = {"n_parameters": self.n_parameters, "tokens_per_step": self.tokens_per_step}
        return {**super().card(), **own, "model": self._raw_config}

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

    def require_untrained(self) -> None:
        """Raise `QflError` where the sources do not say how a fresh model is made."""
        self._first.require_new()

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


@cache
def _scratch() -> Path:
    """A folder that is gone when this process ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_folder("qfl_models_"))


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
