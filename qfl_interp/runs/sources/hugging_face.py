"""Hugging Face checkpoints on disk: reading configurations, loading weights."""

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
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from qfl_interp.errors import QflError
from qfl_interp.models.build import hooked_from_hf
from qfl_interp.models.hugging_face import named_settings, new_model, quiet
from qfl_interp.plugins import warn
from qfl_interp.runs.file_digests import FileDigests
from qfl_interp.runs.sources.source import Limits, Source

if TYPE_CHECKING:
    from qfl_interp.models.build import TransformerBridge

# Trainers write other .bin files too.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class HuggingFace(Source):
    """A folder that `save_pretrained` wrote.

    Its model is wrapped in a `TransformerBridge`, its attention written out whatever its files say; weights are not
    folded, so that logits are the model's own. Weights that are pickled (`.bin`) are read as tensors alone, and that is
    said.

    Args:
        folder: Where it is.
        label: What messages call it; the folder by default.
    """

    folder: str
    label: str = ""

    def __str__(self) -> str:
        return self.label or self.folder

    def read_config(self) -> dict[str, Any]:
        """What its `config.json` says, less what tells nothing about the model. Raises `QflError` if unreadable."""
        try:
            with quiet():
                values, _ = PretrainedConfig.get_config_dict(self.folder)
        except (OSError, ValueError) as error:
            raise QflError(f"the configuration of {self} cannot be read: {error}. Save or fetch it again.") from error
        if not values:
            raise QflError(f"{self} has no config.json. Save it with save_pretrained.")
        return named_settings(values)

    def config(self) -> PretrainedConfig:
        """Its configuration, as Hugging Face reads it. Raises `QflError` where transformers knows no such model."""
        with quiet():
            try:
                config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
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
        return limits_of(self.config())

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
        """A digest of the weight files; None where there are none."""
        return files.of(self.weight_files())

    def load_pretrained(self) -> PreTrainedModel:
        """The model of transformers, in float32 on the CPU, its attention written out. Raises as `load` does."""
        config = self.config()
        with quiet():
            try:
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    config=config,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    trust_remote_code=False,
                    output_loading_info=True,
                )
            except Exception as error:  # readers of four file formats raise what they like
                raise QflError(f"{self} cannot be loaded: {type(error).__name__}: {error}") from error
        if not any(path.suffix == ".safetensors" for path in self.weight_files()):
            warn(f"weights of {self} are pickled (.bin); PyTorch reads tensors alone from them. Safetensors are safer.")
        model, info = loaded
        # transformers draws absent weights at random and goes on.
        lacking = sorted({str(name) for key in ("missing_keys", "mismatched_keys") for name in info[key]})
        if lacking:
            raise QflError(
                f"{self} must hold every weight of its configuration, but lacks or misshapes {len(lacking)}: "
                f"{', '.join(lacking[:5])}. Save it again with save_pretrained."
            )
        # It drops what it does not know, less what its class knows to be of older versions.
        if more := sorted(map(str, info["unexpected_keys"])):
            raise QflError(
                f"{self} must hold no weight that its configuration does not have, but has {len(more)}: "
                f"{', '.join(more[:5])}. Is config.json of another model? Else save it again with save_pretrained."
            )
        return model

    def weight_files(self) -> list[Path]:
        """The files that hold its weights, sorted."""
        return sorted(path for pattern in _WEIGHTS for path in Path(self.folder).glob(pattern))

    def stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of its files; those in the hub's cache, which names them by SHA-256, are compared with that name.

        Raises:
            QflError: A file cannot be read, or is not the one that the hub has.
        """
        for path in self.weight_files():
            try:
                wanted = path.resolve().name
                if re.fullmatch("[0-9a-f]{64}", wanted):
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


def limits_of(config: PretrainedConfig) -> Limits:
    """What a model of this configuration takes."""
    text = config.get_text_config()
    return Limits(getattr(text, "vocab_size", None), getattr(text, "max_position_embeddings", None))


def lacks(folder: Path) -> str:
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
