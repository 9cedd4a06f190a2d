"""The store itself: which activations there are, capturing what is missing, mapping what is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from qfl_interp.activations.spans import CHUNK, SiteSpan, check_span
from qfl_interp.activations.store_entry import (
    DTYPES,
    VERSION,
    Entry,
    Request,
    StoreDtype,
    StoreKey,
    find_entries,
    key_path,
    map_span,
    read_entry,
)
from qfl_interp.activations.store_writing import locked, plan_passes, run_pass, writing
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel, layer_count
from qfl_interp.progress import progress_bar
from qfl_interp.runs.series import Checkpoints
from qfl_interp.runs.workplace import enter
from qfl_interp.shapes import Tokens


class ActivationStore:
    """Activations of chosen sites in a folder, float32 or bfloat16, captured unless they are there.

    Several processes may use one store: those that capture under the same key wait for each other.

    Args:
        folder: Where; made on the first capture. `store_of(run)` keeps them beside the run.
        first: A store's folder that is looked into before and never written.
    """

    def __init__(self, folder: str | Path, *, first: Path | None = None) -> None:
        self.folder = Path(folder)
        self._first = first

    def __repr__(self) -> str:
        rows = self.entries()
        n_keys = len(rows.drop_duplicates(["run_id", "step", "dataset"]))
        return (
            f"ActivationStore({str(self.folder)!r}: {len(rows)} layers of {n_keys} keys, {rows['mib'].sum():,.1f} MiB)"
        )

    def key_folder(self, key: StoreKey) -> Path:
        """The folder of a key.

        Raises:
            ValueError: A name is empty or starts with a dot, or the step is negative.
        """
        if key.step < 0 or not all(name and not name.startswith(".") for name in (key.run_id, key.dataset)):
            raise ValueError(
                f"a key must have names that do not start with a dot and a step of at least 0, got {tuple(key[:3])}. "
                'For example StoreKey(run.run_id, 1000, "probe/val/10000/seed0").'
            )
        return self.folder / self._inside(key)

    @staticmethod
    def _inside(key: StoreKey) -> Path:
        """Where a key is below a store's folder."""
        return key_path(*key[:3])

    def spans(
        self,
        key: StoreKey,
        load_model: Callable[[], HookedModel],
        tokens: Tokens,
        first: int,
        last: int,
        *,
        names: Sequence[str],
        layers: Sequence[int] | None = None,
        dtype: StoreDtype = "float32",
        chunk: int = CHUNK,
        progress: bool = True,
    ) -> dict[str, SiteSpan]:
        """The activations that `site_spans` gives, mapped from disk: `capture`, then a map of the files.

        Nothing is read before it is used, and a slice costs its own pages; evenly spaced layers (at a site with heads:
        layers in a row) are a view of the map, others a copy of the span in memory. Writing into a span changes this
        process's memory alone, never the file.

        The arguments and errors are those of `capture`. A stored span that is wider serves too, and layers come in the
        order they are asked for; `progress` draws a bar on standard error while capturing.
        """
        with progress_bar(enabled=progress) as bar:
            shown = bar.add_task("capturing", total=None, visible=False, detail=f"{key.dataset} at step {key.step}")

            def on_examples(n: int, total: int) -> None:
                bar.update(shown, completed=n, total=total, visible=True)

            request = Request(first, last, tuple(names), _chosen(layers), dtype)
            folder, entries = self._capture(key, load_model, tokens, request, chunk, on_examples)
        return {name: map_span(folder, entry, request) for name, entry in entries.items()}

    def capture(
        self,
        key: StoreKey,
        load_model: Callable[[], HookedModel],
        tokens: Tokens,
        first: int,
        last: int,
        *,
        names: Sequence[str],
        layers: Sequence[int] | None = None,
        dtype: StoreDtype = "float32",
        chunk: int = CHUNK,
        on_examples: Callable[[int, int], object] = lambda _n, _total: None,
    ) -> None:
        """Write the sites that are not there yet, in batches. Memory: one batch's forward pass and its activations.

        A capture that was killed goes on at its last save (one every 256 MiB). A layer that a stored site lacks is
        added over the positions stored; a span that no stored one covers is stored beside it.

        Args:
            key: Which model and data set.
            load_model: Called only if something is missing.
            tokens: Whole sequences; the same ones whenever this key is used.
            first: First position kept.
            last: Last position kept.
            names: Sites, as for `site_spans`.
            layers: Blocks; all by default.
            dtype: On disk. bfloat16 takes half the space and keeps 8 significant bits.
            chunk: Examples a batch.
            on_examples: Called after each batch with how many of how many examples are done.

        Raises:
            QflError: The key holds other tokens, other weights or another model; the disk has too little room (both
                sizes are named) or fails; a file was damaged; the model has no such hook point.
            ValueError: As `site_spans`; or another dtype.
        """
        request = Request(first, last, tuple(names), _chosen(layers), dtype)
        self._capture(key, load_model, tokens, request, chunk, on_examples)

    def _capture(
        self,
        key: StoreKey,
        load_model: Callable[[], HookedModel],
        tokens: Tokens,
        request: Request,
        chunk: int,
        on_examples: Callable[[int, int], object],
    ) -> tuple[Path, dict[str, Entry]]:
        """The whole entries of a request, by name, captured where they are not there; and the folder they are in."""
        check_span(tokens, request.first, request.last, request.names, request.layers)
        if request.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {request.dtype!r}.")
        folder = self.key_folder(key)
        numbers = tokens.cpu().double() if tokens.is_floating_point() else tokens.cpu().long()
        digest = hashlib.sha256(repr(tuple(tokens.shape)).encode() + numbers.numpy().tobytes()).hexdigest()
        if self._first is not None:
            with contextlib.suppress(QflError):  # damaged, or of other weights: captured anew in the other folder
                found = find_entries(self._first / self._inside(key), digest, key.weights, request)
                if _whole(found, request):
                    return self._first / self._inside(key), {name: entry for name, entry in found.items() if entry}
        found = find_entries(folder, digest, key.weights, request)
        if _whole(found, request):
            return folder, {name: entry for name, entry in found.items() if entry}
        enter((self._first or self.folder).parent, self.folder.parent)
        with locked(folder):
            # Another process may have captured them while this one waited.
            found = find_entries(folder, digest, key.weights, request)
            lacking = [name for name, entry in found.items() if not entry or entry.lacking(request.layers)]
            if lacking:
                model = load_model()
                layers = request.layers or tuple(range(layer_count(model)))
                blank = Entry(VERSION, *key[:3], digest, "", request.first, request.last, request.dtype, len(tokens),
                               layer_count(model), 1, 0, {}, key.weights)  # fmt: skip
                work = {name: found[name] or dataclasses.replace(blank, site=name) for name in lacking}
                for todo, entries in plan_passes(work, layers).items():
                    with writing(folder):
                        run_pass(folder, model, tokens, todo, entries, chunk, on_examples)
            found = find_entries(folder, digest, key.weights, request)
            return folder, {name: entry for name, entry in found.items() if entry}

    def entries(self) -> pd.DataFrame:
        """What is whole, one row a layer of a site.

        Columns: run_id, step, dataset, site, layer, first, last (positions, inclusive), n_examples, dtype, mib.

        Raises:
            QflError: A manifest cannot be read.
        """
        columns = ["run_id", "step", "dataset", "site", "layer", "first", "last", "n_examples", "dtype", "mib"]
        rows = []
        folders = [self.folder] if self._first is None else [self._first, self.folder]
        for path in (path for folder in folders for path in sorted(folder.glob("*/*/*/*.json"))):
            entry = read_entry(path)
            values = dataclasses.asdict(entry) | {"mib": entry.layer_bytes / 2**20}
            whole = sorted(int(layer) for layer, n in entry.done.items() if n == entry.n_examples)
            rows += [values | {"layer": layer} for layer in whole]
        return pd.DataFrame(rows, columns=columns)

    def verify(self) -> list[str]:
        """One sentence for each manifest that cannot be read and each layer that is not what was written."""
        problems = []
        for path in sorted(self.folder.glob("*/*/*/*.json")):
            try:
                entry = read_entry(path)
                for layer in sorted(int(layer) for layer in entry.sums):
                    map_span(path.parent, entry, Request(entry.first, entry.last, (entry.site,), (layer,), entry.dtype))
            except QflError as error:
                problems.append(str(error))
        return problems

    def delete(self, key: StoreKey) -> None:
        """Remove everything stored under a key; spans that are mapped stay readable.

        Raises:
            QflError: There is nothing under it.
        """
        folder = self.key_folder(key)
        if not folder.exists():
            known = self.entries()[["run_id", "step", "dataset"]].drop_duplicates()
            listed = ", ".join(str(tuple(row)) for row in known.to_numpy().tolist()) or "none"
            raise QflError(f"{self.folder} holds nothing under {tuple(key[:3])}. Its keys: {listed}.")
        shutil.rmtree(folder)


def store_of(run: Checkpoints) -> ActivationStore:
    """The store beside a run; where its folder cannot be written, that one is read and new ones are the user's."""
    own, place = run.path / "activations", run.workplace / "activations"
    return ActivationStore(own) if run.workplace == run.path else ActivationStore(place, first=own)


def _whole(found: Mapping[str, Entry | None], request: Request) -> bool:
    """Whether every name has an entry that lacks nothing."""
    return all(entry and not entry.lacking(request.layers) for entry in found.values())


def _chosen(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    """Layers as a value; None for all."""
    return None if layers is None else tuple(int(layer) for layer in layers)
