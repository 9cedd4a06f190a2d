"""Tensors by name from files that others wrote: safetensors, and pickles of tensors alone; whole or in shards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from qfl_interp.errors import QflError

SAFE, PICKLED = (".safetensors",), (".pt", ".pth", ".bin", ".ckpt")
# Where training scripts keep the state dict among other things.
_ENTRIES = ("model", "state_dict", "model_state_dict", "model_state", "module")
# What trainers write into a checkpoint's folder beside its weights.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "*.safetensors", "*.pt", "*.pth", "*.bin", "*.ckpt")
_OTHERS = ("optim", "sched", "rng", "scaler", "training_args", "trainer_state")


def is_other(name: str) -> bool:
    """Whether a file or folder of this name holds something else of training than weights."""
    return any(word in name.lower() for word in _OTHERS)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint: itself, or those of its folder: the shards, or the one file.

    Raises:
        QflError: The folder has none, several that are not shards of one, or an index that names one that is not there.
    """
    if not path.is_dir():
        return [path]
    indices = sorted(path.glob("*.index.json"))
    if indices:
        names = sorted(set(_weight_map(indices[0]).values()))
        if absent := [name for name in names if not (path / name).exists()]:
            raise QflError(f"{path} lacks {len(absent)} of its {len(names)} shards: {', '.join(absent[:5])}.")
        return [path / name for name in names]
    for pattern in _WEIGHTS:
        found = [p for p in sorted(path.glob(pattern)) if not is_other(p.name)]
        if len(found) > 1:
            raise QflError(
                f"{path} must hold one file of weights, or shards and their index, got {len(found)}: "
                f"{', '.join(p.name for p in found[:5])}. Give the file itself."
            )
        if found:
            return found
    raise QflError(f"{path} holds no weights. Expected a file like model.safetensors, pytorch_model.bin or model.pt.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, on the CPU, as it was saved.

    In a pickle it may be one entry among others (`{"model": ..., "optimizer": ..., "step": ...}`).

    Raises:
        QflError: A file is not there, is truncated, holds something else than tensors, or lacks one that the index of
            its shards names.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        found = _read(file)
        if twice := sorted(tensors.keys() & found.keys()):
            raise QflError(f"{file} has {twice[0]!r}, which another shard of {path} has too.")
        tensors |= found
    index = next(iter(sorted(path.glob("*.index.json"))), None) if path.is_dir() else None
    if index is not None:
        named = _weight_map(index)
        if named.keys() != tensors.keys():
            lacking, more = sorted(named.keys() - tensors.keys()), sorted(tensors.keys() - named.keys())
            raise QflError(f"shards of {path} do not hold what {index.name} says: without {lacking}, and also {more}.")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor to shard, as an index has it."""
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        return {str(name): str(shard) for name, shard in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise QflError(f"{index} cannot be read: {error}. It should say in which shard each tensor is.") from error


def _read(file: Path) -> dict[str, Tensor]:
    """The state dict in one file."""
    if not file.exists():
        raise QflError(f"{file} is not there. Save or fetch it again.")
    try:
        if file.suffix in SAFE:
            return safetensors.torch.load_file(file)
        held = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # Not torch's own words: they say how to run what is in there.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise QflError(
            f"{file} holds more than tensors{f' ({asked.group(1)})' if asked else ', or is damaged'}, and is not read: "
            "a pickle can run code. Save model.state_dict() alone, best as safetensors."
        ) from error
    except Exception as error:  # two formats' readers raise what they like
        raise QflError(f"{file} cannot be read, it may be truncated: {type(error).__name__}: {error}") from error
    return _state_dict(held, file)


def _state_dict(held: Any, file: Path) -> dict[str, Tensor]:
    """The state dict among what a pickle held."""
    if _is_state_dict(held):
        return dict(held)
    entries = [name for name in _ENTRIES if isinstance(held, Mapping) and _is_state_dict(held.get(name))]
    if len(entries) != 1:
        holds = ", ".join(map(str, held)) if isinstance(held, Mapping) else type(held).__name__
        raise QflError(
            f"{file} must hold a state dict, or one under {', '.join(_ENTRIES)}; it holds {holds[:200]}. Save "
            "model.state_dict() alone."
        )
    return dict(held[entries[0]])


def _is_state_dict(held: Any) -> bool:
    """Whether it is tensors by name."""
    return (
        isinstance(held, Mapping)
        and len(held) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items())
    )
