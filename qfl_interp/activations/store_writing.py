"""Writing activations into a store's files: in batches, in place, counted by a manifest only once the disk has them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import filelock
import torch
from torch import Tensor

from qfl_interp.activations.spans import stream_spans
from qfl_interp.activations.store_entry import DTYPES, Entry, layer_sum
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel
from qfl_interp.runs.checkpoint import remove_leftovers, storage_error, write_atomic
from qfl_interp.shapes import Tokens

# Bytes between two saves of the manifests: what a killed capture has to do again at most.
_SAVE_EVERY = 256 * 2**20


class Pass(NamedTuple):
    """Work of one pass over the examples: these layers and positions, from example `start` on."""

    first: int
    last: int
    layers: tuple[int, ...]
    start: int


def plan_passes(work: dict[str, Entry], layers: tuple[int, ...]) -> dict[Pass, dict[str, Entry]]:
    """The entries that lack something, grouped by what one pass over the examples can write."""
    passes: dict[Pass, dict[str, Entry]] = {}
    for name, entry in work.items():
        lacking = entry.lacking(layers)
        start = min(entry.done.get(str(layer), 0) for layer in lacking)
        passes.setdefault(Pass(entry.first, entry.last, lacking, start), {})[name] = entry
    return passes


def run_pass(
    folder: Path,
    model: HookedModel,
    tokens: Tokens,
    todo: Pass,
    entries: dict[str, Entry],
    chunk: int,
    on_examples: Callable[[int, int], object],
) -> None:
    """Capture and write; a manifest counts examples only after the disk has them.

    Entries that are new have no shape yet. `on_examples` is called after each batch of `chunk` examples with how many
    of how many are done.

    Raises:
        QflError: The disk has too little room, or the model is not the one stored.
    """
    done, unsaved = todo.start, 0
    with contextlib.ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        names, rest = list(entries), tokens[todo.start :]
        for parts in stream_spans(model, rest, todo.first, todo.last, names=names, layers=todo.layers, chunk=chunk):
            if not files:
                entries = {name: _sized(folder, entry, parts[name][0]) for name, entry in entries.items()}
                _require_room(folder, todo, entries)
                files = {name: stack.enter_context(_opened(folder, entry)) for name, entry in entries.items()}
            for name, by_layer in parts.items():
                for layer, part in zip(todo.layers, by_layer, strict=True):
                    unsaved += _write(files[name], entries[name], layer, done, part)
            done += by_layer[0].shape[2]
            if unsaved >= _SAVE_EVERY or done == len(tokens):
                for name, file in files.items():
                    file.flush()
                    os.fsync(file.fileno())
                    entries[name] = entries[name].with_done(todo.layers, done)
                    if done == len(tokens):
                        entries[name] = _summed(file, entries[name], todo.layers)
                    text = json.dumps(dataclasses.asdict(entries[name]), indent=1)
                    write_atomic(folder / f"{entries[name].stem}.json", text.encode())
                unsaved = 0
            on_examples(done, len(tokens))


def _summed(file: BinaryIO, entry: Entry, layers: Sequence[int]) -> Entry:
    """The entry with the CRC-32 of layers that are whole."""
    return dataclasses.replace(entry, sums=entry.sums | {str(layer): layer_sum(file, entry, layer) for layer in layers})


def _sized(folder: Path, entry: Entry, part: Tensor) -> Entry:
    """The entry with the shape that the model gives; refuses a model of another shape than the stored one."""
    n_heads, d = part.shape[0], part.shape[3]
    if entry.done and (entry.n_heads, entry.d) != (n_heads, d):
        raise QflError(
            f"a key stands for one model, but {folder} holds {entry.site} with {entry.n_heads} x {entry.d} numbers a "
            f"position and this model gives {n_heads} x {d}. Use another key, or delete(key) first."
        )
    return dataclasses.replace(entry, n_heads=n_heads, d=d)


def _require_room(folder: Path, todo: Pass, entries: dict[str, Entry]) -> None:
    """Refuse a capture that the disk cannot hold, before it starts."""
    needed = sum(e.layer_bytes // e.n_examples * (e.n_examples - todo.start) for e in entries.values())
    needed *= len(todo.layers)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise QflError(
            f"these activations take {needed:,} bytes, but {folder} has {free:,} bytes free. Free some space, capture "
            "fewer layers, positions or examples, or use dtype='bfloat16'."
        )


def _opened(folder: Path, entry: Entry) -> BinaryIO:
    """The entry's file, open for writing; a new one has its whole length and takes no space yet."""
    path = folder / f"{entry.stem}.bin"
    if entry.done:
        return path.open("r+b")
    file = path.open("w+b")
    file.truncate(entry.n_layers * entry.layer_bytes)
    return file


def _write(file: BinaryIO, entry: Entry, layer: int, start: int, part: Tensor) -> int:
    """Write [head, pos, batch, d] of one layer from example `start` on, in place; bytes written."""
    data = part.to(DTYPES[entry.dtype]).contiguous().view(torch.uint8).flatten(2).numpy()
    n_heads, n_pos, n_bytes = data.shape
    row = entry.n_examples * entry.d * DTYPES[entry.dtype].itemsize
    for index, values in enumerate(data.reshape(n_heads * n_pos, n_bytes)):
        file.seek((layer * n_heads * n_pos + index) * row + start * row // entry.n_examples)
        file.write(values.data)
    return data.nbytes


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; waits for another process that captures here."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire()
        remove_leftovers(folder)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what failed when writing below the folder does."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, folder) from error
