"""Tidy tables of an analysis beside its run: one Parquet part per piece of work, written whole or not at all.

A lens' table is the folder `analyses/<lens>/` of the run; every file in it has the same columns, so the folder reads as
one Parquet dataset. A part that exists is work that need not be done again, which makes every analysis resumable and
safe to run in several processes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import safetensors.torch
from torch import Tensor

from qfl_interp.checkpoint import write_atomic
from qfl_interp.errors import QflError


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

    def parts(self) -> list[str]:
        """Names of the parts that are there, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.parquet") if not path.name.startswith("."))

    def has(self, part: str) -> bool:
        """Whether this piece of work is done."""
        return self._path(part).exists()

    def write(self, part: str, rows: pd.DataFrame, tensors: dict[str, Tensor] | None = None) -> None:
        """Write a part, and the tensors that belong to it, replacing an earlier one.

        Raises:
            QflError: The disk is full; parts written before are intact.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if tensors is not None:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            write_atomic(self._path(part).with_suffix(".safetensors"), safetensors.torch.save(plain))
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        write_atomic(self._path(part), buffer.getvalue())

    def read(self, parts: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of `parts`, in their order (of all parts by default); empty where there are none.

        Raises:
            QflError: A part is missing or corrupted; names the file to delete.
        """
        frames = []
        for part in self.parts() if parts is None else parts:
            try:
                frames.append(pd.read_parquet(self._path(part)))
            except (OSError, pa.ArrowException) as error:
                raise QflError(
                    f"{self._path(part)} cannot be read: {error}. Delete it and run the analysis again: "
                    "only this part is computed anew."
                ) from error
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def read_tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors written with a part.

        Raises:
            QflError: They are missing or corrupted.
        """
        path = self._path(part).with_suffix(".safetensors")
        try:
            return safetensors.torch.load(path.read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            raise QflError(f"{path} cannot be read: {error}. Delete {part}.* and run the analysis again.") from error
