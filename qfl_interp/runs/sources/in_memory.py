"""Checkpoints that are models in memory."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qfl_interp.errors import QflError
from qfl_interp.models.build import hooked_from_hf, is_hooked_transformer, model_on
from qfl_interp.runs.file_digests import FileDigests
from qfl_interp.runs.sources import hugging_face
from qfl_interp.runs.sources.builders import Builder, FromConfig
from qfl_interp.runs.sources.modules import Described, as_hooked, copied, describe, digest_of, hugging_face_config
from qfl_interp.runs.sources.source import Limits, Source

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedModel


@dataclass(frozen=True, eq=False)
class InMemory(Source):
    """A model; a copy of it is looked at, so that training may go on.

    Args:
        model: With hook points, or a causal language model of transformers.
        name: What messages call it.
        builder: Makes fresh models where the model's configuration does not say how.
    """

    model: nn.Module
    name: str
    builder: Builder | None = None

    def __str__(self) -> str:
        return self.name

    @cached_property
    def _described(self) -> Described:
        return describe(self.model)

    def read_config(self) -> dict[str, Any]:
        """The model's configuration; its class and its tensors' shapes where it has none."""
        return self._described.config

    @property
    def architecture(self) -> str:
        """Its type of transformers, or the name of its class."""
        return self._described.architecture

    def limits(self) -> Limits:
        """What its configuration says."""
        return self._described.limits

    def n_parameters(self) -> int:
        """Its trainable parameters, tied ones once."""
        return self._described.n_parameters

    def load(self, device: str | torch.device = "cpu") -> HookedModel:
        """A copy of the model as it is now, in float32 and evaluation mode, wrapped where it is of transformers."""
        return model_on(as_hooked(copied(self.model)), device)

    def require_new(self) -> None:
        """Raise `QflError` where nothing says how a fresh model is made."""
        known = self.builder or hugging_face_config(self.model) or is_hooked_transformer(self.model)  # pyright: ignore
        if not known:
            raise QflError(
                f"nothing says how a fresh {type(self.model).__name__} is made, for untrained controls. Give build=, a "
                "function that returns one (Suite.from_models), or take n_untrained=0."
            )
        if self.builder is not None:
            self.builder.require_draws()

    def new_model(self, seed: int) -> HookedModel:
        """A fresh model: of the builder, else of the configuration. Raises as `require_new` does."""
        if self.builder is None and (config := hugging_face_config(self.model)) is not None:
            # transformers writes the attention into the configuration, which is the user's model's.
            return hooked_from_hf(hugging_face.new_model(copy.deepcopy(config), seed))
        if self.builder is None:
            self.require_new()
        builder = self.builder or FromConfig(json.dumps(self.read_config(), sort_keys=True))
        return as_hooked(builder.make(seed))

    def weights(self, files: FileDigests) -> str | None:
        """A digest of its tensors as they are now."""
        return digest_of(self.model)
