"""Hugging Face checkpoints on disk or on the hub: finding the steps, reading configurations, loading weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from qfl_interp.errors import QflError
from qfl_interp.models.build import hooked_from_hf
from qfl_interp.models.hugging_face import INCIDENTAL, new_model, quiet
from qfl_interp.plugins import warn
from qfl_interp.runs.file_digests import FileDigests
from qfl_interp.runs.sources.source import Limits, Source

if TYPE_CHECKING:
    from qfl_interp.models.build import TransformerBridge

# Names of step folders: step0, step_1000, step-1000, global_step5, checkpoint-500, iter_10.
STEP_FOLDER = r"(?:global_?step|step|checkpoint|ckpt|iteration|iter)[-_]?(\d+)"
# Trainers write other .bin files too.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class HuggingFace(Source):
    """A folder that `save_pretrained` wrote, or a hub repository with its branch, tag or commit.

    Its model is wrapped in a `TransformerBridge`, its attention written out whatever its files say; weights are not
    folded, so that logits are the model's own. Weights that are pickled (`.bin`) are read as tensors alone, and that is
    said.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name} at {self.revision!r}"

    def read_config(self) -> dict[str, Any]:
        """What its `config.json` says, less what tells nothing about the model. Raises `QflError` if unreadable."""
        try:
            with quiet():
                values, _ = PretrainedConfig.get_config_dict(self.name, revision=self.revision)
        except (OSError, ValueError) as error:
            raise QflError(f"the configuration of {self} cannot be read: {error}. Save or fetch it again.") from error
        if not values:
            raise QflError(f"{self} has no config.json. Save it with save_pretrained.")
        return {key: value for key, value in values.items() if key not in INCIDENTAL}

    def config(self) -> PretrainedConfig:
        """Its configuration, as Hugging Face reads it. Raises `QflError` where transformers knows no such model."""
        with quiet():
            try:
                config = AutoConfig.from_pretrained(self.name, revision=self.revision, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise QflError(f"{self} is no model that transformers knows: {error}") from error
        # A file that names an attention of its own would beat the argument of `from_pretrained`.
        config._attn_implementation = "eager"
        return config

    @property
    def architecture(self) -> str:
        """The model's type, as its configuration names it."""
        return str(self.read_config().get("model_type", "unknown"))

    def limits(self) -> Limits:
        """What the model takes, as its configuration says."""
        text = self.config().get_text_config()
        return Limits(getattr(text, "vocab_size", None), getattr(text, "max_position_embeddings", None))

    def n_parameters(self) -> int:
        """Trainable parameters of the model of its configuration; nothing is allocated."""
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config())
        return sum(p.numel() for p in model.parameters())

    def load(self, device: str | torch.device = "cpu") -> TransformerBridge:
        """The model; its logits are those of the Hugging Face model.

        Raises:
            QflError: A file is missing, truncated or no causal language model, a weight is absent, or TransformerLens
                has no bridge for the architecture.
        """
        model: Any = self.load_pretrained()  # its `to` is annotated as a function of itself
        return hooked_from_hf(model.to(device))

    def new_model(self, seed: int) -> TransformerBridge:
        """A freshly initialised model of its configuration."""
        return hooked_from_hf(new_model(self.config(), seed))

    def weights(self, files: FileDigests) -> str | None:
        """A digest of the weight files, or the commit on the hub; None where neither is on this machine."""
        return files.of(self.weight_files()) if self.revision is None else self.cached_commit()

    def load_pretrained(self) -> PreTrainedModel:
        """The model of transformers, in float32 on the CPU, its attention written out. Raises as `load` does."""
        config = self.config()
        with quiet():
            try:
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    self.name,
                    config=config,
                    revision=self.revision,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    trust_remote_code=False,
                    output_loading_info=True,
                )
            except Exception as error:  # readers of four file formats raise what they like
                raise QflError(f"{self} cannot be loaded: {type(error).__name__}: {error}") from error
        files = self.weight_files()  # a revision's are on this machine by now
        if files and not any(path.suffix == ".safetensors" for path in files):
            warn(f"weights of {self} are pickled (.bin); PyTorch reads tensors alone from them. Safetensors are safer.")
        model, info = loaded
        # transformers draws absent weights at random and goes on.
        lacking = sorted({str(name) for key in ("missing_keys", "mismatched_keys") for name in info[key]})
        if lacking:
            raise QflError(
                f"{self} must hold every weight of its configuration, but lacks or misshapes {len(lacking)}: "
                f"{', '.join(lacking[:5])}. Save it again with save_pretrained."
            )
        return model

    def weight_files(self) -> list[Path]:
        """Files on this machine that hold its weights, sorted: of a folder, or of a revision in the hub's cache."""
        folder = Path(self.name) if self.revision is None else self._cached()
        return sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)) if folder else []

    def stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of its files; those of a revision, which the hub names by SHA-256, are compared with that name.

        Raises:
            QflError: A file cannot be read, or is not the one that the hub has.
        """
        if not self.weight_files():  # of a revision that is not on this machine yet
            self.load_pretrained()
        for path in self.weight_files():
            try:
                wanted = path.resolve().name
                if self.revision is not None and re.fullmatch("[0-9a-f]{64}", wanted):
                    with path.open("rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                            raise QflError(f"{path} does not match its checksum: corrupted. Fetch it again.")
                if path.suffix == ".safetensors":
                    with safetensors.safe_open(path, "pt") as file:
                        yield from ((name, file.get_tensor(name)) for name in file.keys())
                else:
                    yield from torch.load(path, map_location="cpu", weights_only=True).items()
            except QflError:
                raise
            except Exception as error:  # readers of two file formats raise what they like
                raise QflError(f"{path} cannot be read: {type(error).__name__}: {error}. Fetch or save it.") from error

    def cached_commit(self) -> str | None:
        """The commit that the hub's cache on this machine holds for the revision; None where it holds none."""
        folder = self._cached()
        return folder.name if folder else None

    def _cached(self) -> Path | None:
        """The folder of that commit."""
        found = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
        return Path(found).parent if isinstance(found, str) else None


def step_folders(folder: Path, pattern: str) -> dict[int, Path]:
    """Step to its folder.

    The first group of `pattern`, which matches a folder's whole name, is the step; other sub-folders are passed over.

    Raises:
        QflError: There is none, two have the same step, or one is half-written.
        ValueError: The pattern has no group, or one that matches no number.
    """
    if not folder.is_dir():
        raise QflError(f"{folder} is no folder. Give the one that holds the step folders.")
    found: dict[int, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        match = re.fullmatch(pattern, path.name)
        if match is None:
            continue
        if not match.groups() or not str(match.group(1)).isdecimal():
            raise ValueError(
                f"pattern must have a first group that matches the step's digits, got {pattern!r}, which matches "
                f"{path.name!r}. For example: {STEP_FOLDER!r}."
            )
        step = int(match.group(1))
        if step in found:
            raise QflError(f"{folder} has step {step} twice: {found[step].name} and {path.name}. Move one away.")
        found[step] = path
    if not found:
        raise QflError(
            f"{folder} has no step folder. Expected names like step0, step_1000, step-1000, checkpoint-500 or iter_10; "
            "give pattern= for others."
        )
    broken = [f"{path.name} ({why})" for path in found.values() if (why := _lacks(path))]
    if broken:
        raise QflError(
            f"step folders of {folder} are half-written: {', '.join(broken)}. Save them again or delete them."
        )
    return found


def _lacks(folder: Path) -> str:
    """What a checkpoint folder lacks; empty where it is whole."""
    if not (folder / "config.json").exists():
        return "no config.json"
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError):
            return f"unreadable {index.name}"
        if absent := sorted(name for name in shards if not (folder / name).exists()):
            return f"no {absent[0]}"
    return "" if HuggingFace(str(folder)).weight_files() else "no weights"
