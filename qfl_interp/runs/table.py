"""Tidy tables of an analysis beside its run: one Parquet part per piece of work, written whole or not at all.

A lens' table is the folder `analyses/<lens>/` of the run: `<part>.parquet` files of the same columns, so that the
folder reads as one Parquet dataset, and for each part a `_<part>.json` with the checksums of its files, written last,
and perhaps a `_<part>.safetensors` (datasets pass over names that start with an underscore). A part that exists is work
that need not be done again, which makes every analysis resumable and safe to run in several processes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import safetensors.torch
from torch import Tensor

from qfl_interp.errors import QflError
from qfl_interp.runs.checkpoint import write_atomic


class Table:
    """The parts of one lens' table.

    Args:
        folder: Where the parts are; made on the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Table({self.folder.name!r}, parts={len(self.parts())})"

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.parquet"

    def _tensors_path(self, part: str) -> Path:
        return self.folder / f"_{part}.safetensors"

    def _manifest_path(self, part: str) -> Path:
        return self.folder / f"_{part}.json"

    def parts(self) -> list[str]:
        """Names of the parts that are there, sorted."""
        return sorted(path.stem.removeprefix("_") for path in self.folder.glob("_*.json"))

    def has(self, part: str) -> bool:
        """Whether this piece of work is done."""
        return self._manifest_path(part).exists()

    def write(self, part: str, rows: pd.DataFrame, tensors: dict[str, Tensor] | None = None) -> None:
        """Write a part, and the tensors that belong to it, replacing an earlier one.

        Raises:
            QflError: The disk is full; parts written before are intact.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        files = {self._path(part): buffer.getvalue()}
        if tensors is not None:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            files[self._tensors_path(part)] = safetensors.torch.save(plain)
        for path, data in files.items():
            write_atomic(path, data)
        manifest = {path.name: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        write_atomic(self._manifest_path(part), json.dumps(manifest, indent=1).encode())

    def _advice(self, part: str) -> str:
        return f"Delete {self._manifest_path(part)} and run the analysis again: only this part is computed anew."

    def _manifest(self, part: str) -> dict[str, str]:
        """The SHA-256 of each file of a part, by name."""
        path = self._manifest_path(part)
        try:
            manifest = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise QflError(f"{path} cannot be read: {error}. {self._advice(part)}") from error
        if not isinstance(manifest, dict) or self._path(part).name not in manifest:
            raise QflError(f"{path} does not list {self._path(part).name}: corrupted. {self._advice(part)}")
        return manifest

    def _read_checked(self, path: Path, part: str) -> bytes:
        """The bytes of one file of a part, if they are those that were written."""
        wanted = self._manifest(part).get(path.name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise QflError(f"{path} cannot be read: {error}. {self._advice(part)}") from error
        if hashlib.sha256(data).hexdigest() != wanted:
            raise QflError(f"{path} does not match its checksum: corrupted. {self._advice(part)}")
        return data

    def read(self, parts: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of `parts`, in their order (of all parts by default); empty where there are none.

        Raises:
            QflError: A part is missing or corrupted; names the file, and the one to delete.
        """
        frames = [
            pd.read_parquet(io.BytesIO(self._read_checked(self._path(part), part)))
            for part in (self.parts() if parts is None else parts)
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def read_tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors written with a part.

        Raises:
            QflError: They are missing or corrupted.
        """
        return safetensors.torch.load(self._read_checked(self._tensors_path(part), part))

    def verify(self) -> list[str]:
        """One sentence for each part that is not as it was written."""
        problems = []
        for part in self.parts():
            try:
                for name in self._manifest(part):
                    self._read_checked(self.folder / name, part)
            except QflError as error:
                problems.append(str(error))
        return problems
