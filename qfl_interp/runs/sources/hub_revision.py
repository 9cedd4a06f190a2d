"""The checkpoint of one step on the Hugging Face hub, fetched when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.runs.config import CONFIG_FILE, FORMAT
from qfl_interp.runs.file_digests import FileDigests
from qfl_interp.runs.hub import client
from qfl_interp.runs.hub.sizes import wanted_files
from qfl_interp.runs.sources.hugging_face import HuggingFace, lacks
from qfl_interp.runs.sources.source import Limits, Source

if TYPE_CHECKING:
    from qfl_interp.models.build import TransformerBridge


@dataclass(frozen=True)
class HubRevision(Source):
    """A revision of a hub repository, pinned to a commit: a branch that moves later does not change it.

    Its configuration and weights are fetched into the Hugging Face cache, each when it is first needed, and read from
    there; nothing else of the repository is, and no code of it runs.

    Args:
        repo: "EleutherAI/pythia-70m".
        commit: The commit.
        name: The branch, the tag or the commit's title, for messages.
    """

    repo: str
    commit: str
    name: str

    def __str__(self) -> str:
        return f"{self.repo} at {self.name!r}"

    def read_config(self) -> dict[str, Any]:
        """What its `config.json` says of the model. Raises `QflError` where it cannot be fetched or read."""
        return self._configured().read_config()

    @property
    def architecture(self) -> str:
        """The model's type, as its configuration names it."""
        return self._configured().architecture

    def limits(self) -> Limits:
        """What the model takes, as its configuration says."""
        return self._configured().limits()

    def n_parameters(self) -> int:
        """Trainable parameters of the model of its configuration; nothing is allocated."""
        return self._configured().n_parameters()

    def load(self, device: str | torch.device = "cpu") -> TransformerBridge:
        """The model, fetched first where it is not in the cache.

        Raises:
            QflError: It cannot be fetched, or loaded.
        """
        return self.fetched().load(device)

    def new_model(self, seed: int) -> TransformerBridge:
        """A freshly initialised model of its configuration."""
        return self._configured().new_model(seed)

    def weights(self, files: FileDigests) -> str | None:
        """The commit."""
        return self.commit

    def stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of its files, fetched where they are not in the cache, each file held against the hub's name."""
        yield from self.fetched().stored()

    def fetched(self) -> HuggingFace:
        """The checkpoint in the cache of this machine, fetched where it is not there.

        Raises:
            QflError: It cannot be fetched, or has no weights.
        """
        there = client.cached_file(self.repo, self.commit, CONFIG_FILE)
        if there is not None and not lacks(there.parent):
            return self._at(there.parent)
        doing = f"fetching {self.name!r} of"
        files = wanted_files(client.list_files(self.repo, self.commit, doing))
        folder = client.fetch(self.repo, self.commit, [file.name for file in files], doing)
        if why := lacks(folder):
            raise QflError(f"{self} is no checkpoint that transformers reads: {why}. Take another revision.")
        return self._at(folder)

    def _configured(self) -> HuggingFace:
        """The same with its configuration there, and perhaps no weights."""
        folder = client.fetch(self.repo, self.commit, [CONFIG_FILE], f"fetching the configuration of {self.name!r} of")
        if read_json(folder / CONFIG_FILE, dict, "Fetch it again.").get("format") == FORMAT:
            raise QflError(f"{self.repo} holds a run of this library. Fetch it with `qfl pull {self.repo} FOLDER`.")
        return self._at(folder)

    def _at(self, folder: Path) -> HuggingFace:
        return HuggingFace(str(folder), str(self))
