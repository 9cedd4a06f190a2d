"""Checkpoints that are state dicts: files and folders of tensors by name, with what makes their model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qfl_interp.errors import QflError
from qfl_interp.models.build import model_on
from qfl_interp.runs.file_digests import FileDigests
from qfl_interp.runs.sources.builders import Builder
from qfl_interp.runs.sources.keys import fill
from qfl_interp.runs.sources.modules import as_hooked
from qfl_interp.runs.sources.source import Limits, Source
from qfl_interp.runs.sources.tensors import read_tensors, weight_files

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedModel


@dataclass(frozen=True)
class StateDict(Source):
    """A file of a state dict, or a folder with one or with its shards.

    Args:
        path: Where it is.
        builder: Makes its model.
    """

    path: Path
    builder: Builder

    def __str__(self) -> str:
        return str(self.path)

    def read_config(self) -> dict[str, Any]:
        """The builder's."""
        return self.builder.described.config

    @property
    def architecture(self) -> str:
        """What the builder's model is called."""
        return self.builder.described.architecture

    def limits(self) -> Limits:
        """What the builder's model takes."""
        return self.builder.described.limits

    def n_parameters(self) -> int:
        """Trainable parameters of the builder's model."""
        return self.builder.described.n_parameters

    def load(self, device: str | torch.device = "cpu") -> HookedModel:
        """The builder's model with the weights of the file, compared key by key.

        Raises:
            QflError: A file is missing, truncated or holds something else, the weights do not fit, or the model has no
                hook points.
        """
        module = self.builder.make(0)
        fill(module, read_tensors(self.path), str(self))
        return model_on(as_hooked(module), device)

    def stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the file or files."""
        yield from read_tensors(self.path).items()

    def require_new(self) -> None:
        """Raise `QflError` where the builder makes one model whatever the seed."""
        self.builder.require_draws()

    def new_model(self, seed: int) -> HookedModel:
        """What the builder makes of a seed."""
        return as_hooked(self.builder.make(seed))

    def weights(self, files: FileDigests) -> str | None:
        """A digest of the files."""
        try:
            return files.of(weight_files(self.path))
        except QflError:  # whoever loads it is told
            return None
