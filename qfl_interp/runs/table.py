"""Tidy tables of an analysis beside its run: one Parquet part per piece of work, written whole or not at all.

A lens' table is the folder `analyses/<lens>/` of the run: `<part>.parquet` files of the same columns, so that the
folder reads as one Parquet dataset, and for each part a `_<part>.json` with the checksums of its files, written last,
and perhaps a `_<part>.safetensors` (datasets pass over names that start with an underscore). A part that exists is work
that need not be done again, which makes every analysis resumable and safe to run in several processes.

A part's manifest names the run it is of and digests of the weights it was computed from. A part of another run, or of
weights that are not there any more, is not there for a lens: it is computed again and replaced. Parts that were written
before manifests said so are taken as they are.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet

from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.runs.checkpoint import A_DAY, remove_leftovers, storage_error, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

# Where a manifest says what its part comes from.
_ORIGIN = "origin"
# Parts whose rows are held as frames of their own while more are read.
_LOOSE = 64


def _unknown(_step: int) -> None:
    """Of weights that nobody can tell apart."""


@functools.cache
def _joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """All rows, in order; empty without any.

    A frame of few rows takes 30 times the memory of its numbers, so that only `_LOOSE` are held at a time.
    """
    joined: list[pd.DataFrame] = []
    loose: list[pd.DataFrame] = []
    for frame in frames:
        loose.append(frame)
        if len(loose) == _LOOSE:
            joined.append(pd.concat(loose, ignore_index=True))
            loose = []
    joined += loose
    return pd.concat(joined, ignore_index=True) if joined else pd.DataFrame()


def _sweep(folder: Path) -> None:
    """Delete what killed writers left a day ago; once a process."""
    remove_leftovers(folder, older_than=A_DAY)


class Table:
    """The parts of one lens' table.

    Args:
        folder: Where the parts are; made on the first write.
        run_id: Whose table it is; empty where nothing is checked.
        weights: The digest of a step's weights as they are now, None where it cannot be told; asked once a step.
    """

    def __init__(self, folder: Path, run_id: str = "", weights: Callable[[int], str | None] = _unknown) -> None:
        self.folder = folder
        self.run_id = run_id
        self.weights = functools.cache(weights)

    def __repr__(self) -> str:
        return f"Table({self.folder.name!r}, parts={len(self.parts())})"

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.parquet"

    def _tensors_path(self, part: str) -> Path:
        return self.folder / f"_{part}.safetensors"

    def _manifest_path(self, part: str) -> Path:
        return self.folder / f"_{part}.json"

    def _written(self) -> list[str]:
        """Names of all parts in the folder, sorted."""
        return sorted(path.stem.removeprefix("_") for path in self.folder.glob("_*.json"))

    def names(self) -> list[str]:
        """Names of the parts that were written, sorted, whether they still count or not: nothing is read."""
        return self._written()

    def parts(self) -> list[str]:
        """Names of the parts that are there, sorted."""
        return [part for part in self._written() if not self._foreign(part)]

    def has(self, part: str) -> bool:
        """Whether this piece of work is done, on the weights that are there now.

        Raises:
            QflError: Its manifest is corrupted.
        """
        return self._manifest_path(part).exists() and not self._foreign(part)

    def write(
        self,
        part: str,
        rows: pd.DataFrame,
        tensors: dict[str, Tensor] | None = None,
        *,
        steps: Sequence[int] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a part, and the tensors that belong to it, replacing an earlier one.

        Args:
            part: Its name.
            rows: Its rows.
            tensors: What is kept with them.
            steps: The checkpoints that its numbers come from.
            settings: What it was computed with, for whoever asks why another call does not find it; JSON values.

        Raises:
            QflError: The disk is full or the folder cannot be made; parts written before are intact.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.folder) from error
        _sweep(self.folder)
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        files = {self._path(part): buffer.getvalue()}
        if tensors is not None:
            import safetensors.torch

            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            files[self._tensors_path(part)] = safetensors.torch.save(plain)
        for path, data in files.items():
            write_atomic(path, data)
        manifest: dict[str, Any] = {path.name: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        if self.run_id:
            known = {str(step): self.weights(step) for step in sorted(set(steps))}
            weights = {step: digest for step, digest in known.items() if digest}
            manifest[_ORIGIN] = {"run": self.run_id, "weights": weights, "settings": dict(settings or {})}
        write_atomic(self._manifest_path(part), json.dumps(manifest, indent=1).encode())

    def settings(self) -> list[dict[str, Any]]:
        """What each part was computed with, where it says so."""
        origins = [self._manifest(part).get(_ORIGIN) or {} for part in Table.parts(self)]
        return [dict(origin["settings"]) for origin in origins if origin.get("settings")]

    def _advice(self, part: str) -> str:
        return f"Delete {self._manifest_path(part)} and run the analysis again: only this part is computed anew."

    def _manifest(self, part: str) -> dict[str, Any]:
        """The SHA-256 of each file of a part, by name; where it comes from, under `_ORIGIN`."""
        path = self._manifest_path(part)
        try:
            manifest = read_json(path, dict, self._advice(part))
        except FileNotFoundError as error:
            raise QflError(f"{path} cannot be read: it is not there. {self._advice(part)}") from error
        if self._path(part).name not in manifest:
            raise QflError(f"{path} does not list {self._path(part).name}: corrupted. {self._advice(part)}")
        return manifest

    def stamp(self, part: str) -> tuple[str, int, int]:
        """The file of a part's rows, and when and how large it was written: what changes when the file does.

        Raises:
            QflError: It is not there.
        """
        path = self._path(part)
        try:
            stat = path.stat()
        except OSError as error:
            raise QflError(f"{path} cannot be read: {error}. {self._advice(part)}") from error
        return str(path), stat.st_mtime_ns, stat.st_size

    def _foreign(self, part: str) -> str:
        """Why a part does not count: it is of another run, or of other weights; empty where it counts."""
        origin = self._manifest(part).get(_ORIGIN)
        if not self.run_id or origin is None:
            return ""
        try:
            run_id, weights = str(origin["run"]), dict(origin["weights"])
            changed = [step for step, digest in weights.items() if self.weights(int(step)) not in (digest, None)]
        except (KeyError, TypeError, ValueError) as error:
            path = self._manifest_path(part)
            raise QflError(f"{path} does not say where its part comes from: corrupted. {self._advice(part)}") from error
        if run_id != self.run_id:
            return f"{self._path(part)} is of the run {run_id}, not of {self.run_id}, as config.json has it"
        if changed:
            return f"{self._path(part)} was computed from other weights of step {', '.join(changed)} than are there now"
        return ""

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
            QflError: A part is missing or corrupted (names the file, and the one to delete), or of another run or other
                weights.
        """
        return _joined(map(self.read_part, self.parts() if parts is None else parts))

    def read_part(self, part: str) -> pd.DataFrame:
        """The rows of one part. Raises as `read` does."""
        self._require_own(part)
        read = pyarrow.parquet.ParquetFile(io.BytesIO(self._read_checked(self._path(part), part)))
        return read.read(use_threads=False).to_pandas()  # half the time of pandas' own way, of a small file

    def read_tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors written with a part.

        Raises:
            QflError: They are missing, corrupted, or of another run or other weights.
        """
        import safetensors.torch

        self._require_own(part)
        return safetensors.torch.load(self._read_checked(self._tensors_path(part), part))

    def _require_own(self, part: str) -> None:
        """Raise `QflError` for a part that does not count."""
        if why := self._foreign(part):
            raise QflError(f"{why}. Run the analysis again: this part is computed anew.")

    def verify(self) -> list[str]:
        """One sentence for each part that is not as it was written, or of another run or other weights."""
        problems = []
        for part in self._written():
            try:
                for name in self._manifest(part).keys() - {_ORIGIN}:
                    self._read_checked(self.folder / name, part)
                if why := self._foreign(part):
                    problems.append(f"{why}. Lenses compute it anew.")
            except QflError as error:
                problems.append(str(error))
        return problems
