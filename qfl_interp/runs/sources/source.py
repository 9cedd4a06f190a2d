"""What a suite needs of one checkpoint: where it is, what its model is, and that model with hook points."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from qfl_interp.models.build import parameters_to_save
from qfl_interp.runs.file_digests import FileDigests

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedModel


class Limits(NamedTuple):
    """What a model takes; None where its configuration does not say.

    Attributes:
        d_vocab: Token ids.
        n_ctx: Tokens in a sequence.
    """

    d_vocab: int | None
    n_ctx: int | None


class Source(abc.ABC):
    """The checkpoint of one step: a folder, a file, a revision, a model in memory.

    Its text (`str`) says where it is, for messages.
    """

    @abc.abstractmethod
    def read_config(self) -> dict[str, Any]:
        """What decides the model's shape, as JSON holds it: equal in all checkpoints of a suite, and part of its id.

        Raises:
            QflError: It cannot be read.
        """

    @property
    @abc.abstractmethod
    def architecture(self) -> str:
        """What the model is called: "gpt_neox", "HookedTransformer", the name of a class."""

    @abc.abstractmethod
    def limits(self) -> Limits:
        """What the model takes."""

    @abc.abstractmethod
    def n_parameters(self) -> int:
        """Trainable parameters, embeddings included, tied ones once."""

    @abc.abstractmethod
    def load(self, device: str | torch.device = "cpu") -> HookedModel:
        """The model, in float32 and evaluation mode, with hook points.

        Raises:
            QflError: It cannot be read, or lacks a weight of the model or has another.
        """

    def require_new(self) -> None:
        """Raise `QflError` where nothing says how a fresh model is made, before anything is computed."""
        return None

    @abc.abstractmethod
    def new_model(self, seed: int) -> HookedModel:
        """A freshly initialised model of the same shape, on the CPU, its weights decided by the seed alone.

        Raises:
            QflError: Nothing says how one is made.
        """

    @abc.abstractmethod
    def weights(self, files: FileDigests) -> str | None:
        """A digest of the weights as they are now; None where it cannot be told. `files` reads files for it."""

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors as they are stored, one after the other; by default those of the loaded model.

        Raises:
            QflError: They cannot be read, or are not what a checksum says.
        """
        yield from parameters_to_save(self.load()).items()
