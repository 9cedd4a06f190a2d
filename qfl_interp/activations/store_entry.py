"""What a store holds of one site under one key: the manifest, the request it may answer, the map of its file."""

from __future__ import annotations

import dataclasses
import itertools
import math
import mmap
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple
from urllib.parse import quote

import torch

from qfl_interp.activations.spans import SiteSpan, places
from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.runs.checkpoint import step_name

StoreDtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VERSION = 1
# A private writable map as large as the file would count against memory without this flag (Python 3.13 names it).
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class StoreKey(NamedTuple):
    """Which activations: a model and a data set. The model need not be loaded to know.

    Attributes:
        run_id: Names the run and its configuration.
        step: The checkpoint's.
        dataset: Names the examples: whatever they depend on, such as split, number and seed.
        weights: The digest of the checkpoint's weights (`Checkpoints.weights`); empty where it is not known.
    """

    run_id: str
    step: int
    dataset: str
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """The manifest of one site's file.

    It holds the key, the SHA-256 of the tokens, the positions (inclusive) and the sizes: there is room for all layers
    of the model, `n_heads` is 1 at a site without heads, and `d` is the width of a head where there are heads. `done`
    says how many examples are written of each layer. `weights` is empty, and a layer has no CRC-32 in
    `sums`, in stores of before.
    """

    version: int
    run_id: str
    step: int
    dataset: str
    tokens: str
    site: str
    first: int
    last: int
    dtype: str
    n_examples: int
    n_layers: int
    n_heads: int
    d: int
    done: dict[str, int]
    weights: str = ""
    sums: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return f"{self.site}_{self.first}-{self.last}_{self.dtype}"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The axes [layer, head, pos, example, d]."""
        return self.n_layers, self.n_heads, self.last - self.first + 1, self.n_examples, self.d

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer."""
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    def lacking(self, layers: Sequence[int] | None) -> tuple[int, ...]:
        """Those of `layers` (of all, where None) that are not whole."""
        asked = range(self.n_layers) if layers is None else layers
        return tuple(layer for layer in asked if self.done.get(str(layer), 0) < self.n_examples)

    def with_done(self, layers: Sequence[int], n: int) -> Entry:
        """The manifest once `n` examples of `layers` are written."""
        return dataclasses.replace(self, done=self.done | {str(layer): n for layer in layers})


class Request(NamedTuple):
    """What a call wants; `layers` None for all."""

    first: int
    last: int
    names: tuple[str, ...]
    layers: tuple[int, ...] | None
    dtype: str


_READ_BYTES = 8 * 2**20
# Layers of files, as their size and time on disk were, whose sums this process has found right.
_FOUND_RIGHT: set[tuple[str, int, int, int]] = set()


def layer_sum(file: BinaryIO, entry: Entry, layer: int) -> int:
    """The CRC-32 of a layer's bytes; a few MiB of them are in memory at a time."""
    file.seek(layer * entry.layer_bytes)
    found, left = 0, entry.layer_bytes
    while data := file.read(min(left, _READ_BYTES)):
        found, left = zlib.crc32(data, found), left - len(data)
    return found


def _require_sum(path: Path, entry: Entry, layer: int) -> None:
    """Raise `QflError` where a layer's bytes are not those that were written; each is read once a process."""
    stat = path.stat()
    seen = (str(path), stat.st_size, stat.st_mtime_ns, layer)
    if seen in _FOUND_RIGHT or str(layer) not in entry.sums:
        return
    # Not through the map, whose pages would count as this process's memory.
    with path.open("rb") as file:
        right = layer_sum(file, entry, layer) == entry.sums[str(layer)]
    if not right:
        raise QflError(
            f"layer {layer} of {path} does not match its checksum: damaged. Delete the folder (store.delete(key)) and "
            "capture again."
        )
    _FOUND_RIGHT.add(seen)


def read_entry(path: Path) -> Entry:
    """One manifest, if it is what was written and its file has its size.

    Raises:
        QflError: It is not, or cannot be read.
    """
    advice = "Delete the folder (store.delete(key)) and capture again."
    try:
        entry = Entry(**read_json(path, dict, advice))
        size = path.with_suffix(".bin").stat().st_size
    except (OSError, TypeError) as error:
        raise QflError(f"{path} or the activations beside it cannot be read: {error}. {advice}") from error
    if entry.version != VERSION or entry.stem != path.stem:
        raise QflError(f"{path} was not written by this version of qfl_interp (store version {VERSION}). {advice}")
    if not _is_whole(entry) or key_path(entry.run_id, entry.step, entry.dataset).parts != path.parent.parts[-3:]:
        raise QflError(f"{path} does not have the fields that were written, or is of another key: damaged. {advice}")
    if size != entry.n_layers * entry.layer_bytes:
        raise QflError(
            f"{path.with_suffix('.bin')} must have {entry.n_layers * entry.layer_bytes:,} bytes, got {size:,}: "
            f"damaged. {advice}"
        )
    return entry


def _is_whole(entry: Entry) -> bool:
    """Whether the fields of a manifest are of their types, as JSON does not promise."""
    numbers = (entry.step, entry.n_examples, entry.n_layers, entry.n_heads, entry.d)
    if not all(type(number) is int and number >= 0 for number in numbers):
        return False
    return (
        all(isinstance(text, str) for text in (entry.run_id, entry.dataset, entry.tokens, entry.weights))
        and all(isinstance(of, dict) for of in (entry.done, entry.sums))
        and all(layer.isdecimal() and int(layer) < entry.n_layers for layer in entry.done | entry.sums)
        and all(type(n) is int and 0 <= n <= entry.n_examples for n in entry.done.values())
    )


def key_path(run_id: str, step: int, dataset: str) -> Path:
    """Where the activations of a key lie, below the store."""
    return Path(quote(run_id, safe=""), step_name(step), quote(dataset, safe=""))


def find_entries(folder: Path, digest: str, weights: str, request: Request) -> dict[str, Entry | None]:
    """For each name the stored entry that covers the request's positions and lacks the fewest of its layers.

    Raises:
        QflError: The folder holds activations of other tokens or other weights, or a manifest cannot be read.
    """
    stored = [read_entry(path) for path in sorted(folder.glob("*.json"))]
    for entry in stored:
        if entry.tokens != digest:
            raise QflError(
                f"a key stands for one data set, but {folder / entry.stem}.json holds those of other tokens (SHA-256 "
                f"{entry.tokens[:12]}..., now {digest[:12]}...). Name this data set otherwise, or delete(key) first."
            )
        if weights and entry.weights and entry.weights != weights:
            raise QflError(
                f"{folder / entry.stem}.json holds activations of other weights of this step (SHA-256 "
                f"{entry.weights[:12]}..., now {weights[:12]}...): the checkpoint was replaced. "
                "Delete the folder (delete(key)) and capture again."
            )
    found = {}
    for name in request.names:
        fits = [
            e
            for e in stored
            if (e.site, e.dtype) == (name, request.dtype) and e.first <= request.first and request.last <= e.last
        ]
        found[name] = min(fits, key=lambda e: len(e.lacking(request.layers)), default=None)
    return found


def map_span(folder: Path, entry: Entry, request: Request) -> SiteSpan:
    """The request's part of a stored entry, mapped: no page is read before it is used.

    The map is private: what is written into the span stays in this process's memory.
    """
    with (folder / f"{entry.stem}.bin").open("rb") as file:
        flags = mmap.MAP_PRIVATE | _NO_RESERVE
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    whole = torch.frombuffer(mapped, dtype=DTYPES[entry.dtype]).view(entry.shape)
    cut = whole[:, :, request.first - entry.first : request.last - entry.first + 1]
    layers = request.layers or tuple(range(entry.n_layers))
    steps = {after - before for before, after in itertools.pairwise(layers)} or {1}
    for layer in layers:
        _require_sum(folder / f"{entry.stem}.bin", entry, layer)
    even = len(steps) == 1 and min(steps) > 0
    picked = cut[layers[0] : layers[-1] + 1 : min(steps)] if even else cut[list(layers)]
    return SiteSpan(entry.site, places(entry.site, layers, entry.n_heads), request.first, picked.flatten(0, 1))
