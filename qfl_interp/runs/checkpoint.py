"""One checkpoint on disk: whole or not there, checksummed, executing nothing when it is read.

A checkpoint is a directory with `model.safetensors`, perhaps `optimizer.safetensors`, and `checkpoint.json`, which
names the run's configuration, the step, and the size and SHA-256 of each file. It is written beside its place and
renamed into it, so that a killed writer leaves a temporary directory and never half a checkpoint.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import safetensors

from qfl_interp.errors import QflError
from qfl_interp.files import TEMPORARY, read_json, storage_error, write_flushed
from qfl_interp.files import write_atomic as write_atomic

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "qfl_interp checkpoint"
VERSION = 1
MODEL, OPTIMIZER, MANIFEST = "model.safetensors", "optimizer.safetensors", "checkpoint.json"
_FIELDS = {"format", "version", "step", "config_digest", "files"}
# In seconds: no writer takes that long for one file.
A_DAY = 86_400.0
ParsedT = TypeVar("ParsedT")


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    `step` counts the updates completed; the digest is of the run's `ModelConfig`, `TrainConfig` and task. The
    optimiser's state is None where it was not saved.
    """

    step: int
    config_digest: str
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None


def step_name(step: int) -> str:
    """The directory name of a step's checkpoint."""
    return f"step_{step:08d}"


def parse_step(name: str) -> int | None:
    """The step a directory name stands for, None where it is no checkpoint's."""
    digits = name.removeprefix("step_")
    step = int(digits) if digits.isdecimal() else None
    return step if step is not None and step_name(step) == name else None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` under `folder` as `step_XXXXXXXX`, replacing an earlier one of that step.

    Raises:
        QflError: The disk is full or the folder cannot be written; earlier checkpoints are intact.
    """
    import safetensors.torch

    final = folder / step_name(checkpoint.step)
    temporary = folder / f"{TEMPORARY}{final.name}-{uuid.uuid4().hex[:8]}"
    files = {MODEL: safetensors.torch.save(_plain(checkpoint.model))}
    if checkpoint.optimizer is not None:
        files[OPTIMIZER] = safetensors.torch.save(_plain(checkpoint.optimizer))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "step": checkpoint.step,
        "config_digest": checkpoint.config_digest,
        "files": {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()},
    }
    try:
        temporary.mkdir(parents=True)
        for name, data in files.items():
            write_flushed(temporary / name, data)
        write_flushed(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise storage_error(error, final) from error
    return final


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached contiguous copies on the CPU, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def remove_leftovers(folder: Path, name: str = "", *, older_than: float = 0.0) -> None:
    """Delete what writers that were killed left behind.

    Args:
        folder: Where.
        name: Only what was to become the file of this name; everything by default.
        older_than: Only what is older, in seconds: `A_DAY` where no lock tells that its writer is gone.
    """
    for path in folder.glob(f"{TEMPORARY}{glob.escape(name) + '-' if name else ''}*"):
        with contextlib.suppress(OSError):  # another process was faster, or it is not ours to delete
            if older_than and time.time() - path.lstat().st_mtime < older_than:
                continue
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The checked `checkpoint.json` of a checkpoint directory.

    Raises:
        QflError: It is missing, unreadable, or another program's.
    """
    file = path / MANIFEST
    try:
        manifest = read_json(file, dict, "The checkpoint is corrupted; use another step.")
    except FileNotFoundError as error:
        raise QflError(f"{path} is no checkpoint: it has no {MANIFEST}. Use another step.") from error
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise QflError(
            f"{file} was not written by this version of qfl_interp (format {VERSION}). "
            "Open it with the version that wrote it."
        )
    if manifest.get("step") != parse_step(path.name):
        raise QflError(
            f"{file} is of step {manifest.get('step')}, but its directory is named {path.name}. Use another step."
        )
    if not _is_whole(manifest):
        raise QflError(f"{file} does not have the fields that were written: corrupted. Use another step.")
    return manifest


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has exactly the fields that `save_checkpoint` writes, so that no changed name goes unseen."""
    if manifest.keys() != _FIELDS or not isinstance(manifest["files"], dict):
        return False
    files = manifest["files"]
    return files.keys() in ({MODEL}, {MODEL, OPTIMIZER}) and all(
        isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"} for entry in files.values()
    )


def _read_checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    """The bytes of a file, if they are those that were written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QflError(f"{path} cannot be read: {error}. Use another step.") from error
    if len(data) != entry["bytes"]:
        raise QflError(f"{path} has {len(data)} bytes, not the {entry['bytes']} written: truncated. Use another step.")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise QflError(f"{path} does not match its checksum: corrupted. Use another step.")
    return data


def load_checkpoint(path: Path, *, config_digest: str, with_optimizer: bool = False) -> Checkpoint:
    """Read and check one checkpoint directory.

    A checkpoint of another configuration is refused; the optimiser's state is read where there is one.

    Raises:
        QflError: Something is missing, truncated, corrupted, or of another run; names the file.
    """
    import safetensors.torch

    manifest, files = _read_files(path, config_digest, with_optimizer, safetensors.torch.load)
    return Checkpoint(manifest["step"], manifest["config_digest"], files[MODEL], files.get(OPTIMIZER))


def check_checkpoint(path: Path, *, config_digest: str) -> None:
    """Check one checkpoint directory, the optimiser's state included, without PyTorch. Raises as `load_checkpoint`."""
    _read_files(path, config_digest, True, safetensors.deserialize)


def _read_files(
    path: Path, config_digest: str, with_optimizer: bool, parse: Callable[[bytes], ParsedT]
) -> tuple[dict[str, Any], dict[str, ParsedT]]:
    """The manifest of a checkpoint directory and what `parse` makes of each file's bytes, all checked."""
    manifest = read_manifest(path)
    if manifest["config_digest"] != config_digest:
        raise QflError(
            f"{path} belongs to a run with another configuration (digest {manifest['config_digest']}, this run "
            f"{config_digest}). It was copied here from elsewhere, or config.json was; use another step."
        )
    files: dict[str, ParsedT] = {}
    for name in (MODEL, OPTIMIZER) if with_optimizer else (MODEL,):
        if name in manifest["files"]:
            try:
                files[name] = parse(_read_checked(path / name, manifest["files"][name]))
            except safetensors.SafetensorError as error:
                raise QflError(f"{path / name} is no safetensors file: {error}.") from error
    return manifest, files
