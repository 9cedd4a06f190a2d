"""A dataset of one's own as one file: arrays in safetensors, the rest as JSON in its header; nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from qfl_interp.data.dataset import FixedFeature
from qfl_interp.errors import QflError
from qfl_interp.files import local_path, write_atomic

FORMAT, VERSION = "qfl_interp dataset", 1
_ADVICE = "Save it again with task.save(path)."
_ARRAY, _MAPPING, _FEATURE = "array", "mapping", "feature"

MadeT = TypeVar("MadeT", bound="DatasetFile")


class DatasetFile:
    """What a `FixedTask` does with files: all that it was made with goes in, and its digest."""

    @property
    def digest(self) -> str:
        """Names the dataset."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write the dataset to a file, whole or not at all: tokens, scored tokens, features, pairs, vocabulary.

        The file is of safetensors; its header names the digest, which `load` checks.

        Raises:
            QflError: It cannot be written.
        """
        reduced: Any = self.__reduce__()
        make, given = reduced
        arrays: dict[str, np.ndarray] = {}
        values = {
            "given": _packed(list(given), "given", arrays),
            "settings": _packed(make.keywords, "settings", arrays),
        }
        head = {"format": FORMAT, "version": VERSION, "digest": self.digest, **values}
        target = local_path(path)
        write_atomic(target, save(arrays, metadata={"dataset": json.dumps(head)}))
        return target

    @classmethod
    def load(cls: type[MadeT], path: str | Path) -> MadeT:
        """The dataset in a file that `save` wrote.

        Raises:
            QflError: It cannot be read, was not written by `save`, or was changed since.
        """
        file = local_path(path)
        arrays, head = _read(file)
        make: Any = cls
        try:
            given, settings = (_unpacked(head[name], arrays) for name in ("given", "settings"))
            task = make(*given, **settings)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise QflError(f"{file} holds no dataset that can be made: {error}. {_ADVICE}") from error
        if task.digest != head.get("digest"):
            raise QflError(f"{file} was changed since it was saved: its digest is not that of its contents. {_ADVICE}")
        return task


def _read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, and what its header says."""
    try:
        with safe_open(file, framework="np") as opened:
            head = json.loads((opened.metadata() or {}).get("dataset", "null"))
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise QflError(f"the dataset {file} cannot be read: {error}. {_ADVICE}") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
        raise QflError(f"{file} is no dataset of this version of qfl_interp (dataset format {VERSION}). {_ADVICE}")
    return arrays, head


def _packed(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON has it, its arrays put into `arrays` under their places."""
    if isinstance(value, (np.ndarray, Tensor)):
        arrays[place] = np.ascontiguousarray(value)
        return {_ARRAY: place}
    if isinstance(value, FixedFeature):
        own = {of.name: getattr(value, of.name) for of in fields(FixedFeature)}
        return {_FEATURE: _packed(own, place, arrays)[_MAPPING]}
    if isinstance(value, Mapping):
        return {_MAPPING: {str(name): _packed(one, f"{place}/{name}", arrays) for name, one in value.items()}}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_packed(one, f"{place}/{number}", arrays) for number, one in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What was packed."""
    if isinstance(value, list):
        return [_unpacked(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, own),) = value.items()
    if kind == _ARRAY:
        return arrays[own]
    found = {name: _unpacked(one, arrays) for name, one in own.items()}
    return FixedFeature(**found) if kind == _FEATURE else found
