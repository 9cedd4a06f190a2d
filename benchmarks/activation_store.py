"""Capturing activations in memory and to disk against `run_with_cache`; reading one position back against all."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformer_lens.utilities.components_utils import get_act_name

from benchmarks._measuring import Seconds, in_process, interleaved
from benchmarks._memory import held_mib, peak_mib
from qfl_interp.activations.spans import site_spans
from qfl_interp.activations.store import ActivationStore
from qfl_interp.activations.store_entry import StoreKey
from qfl_interp.config import ModelConfig
from qfl_interp.models.build import build_hooked, model_device, model_on

TITLE = "Activations (4 layers, d_model 64, 4 heads, 50 tokens, positions 33 to 49, batches of 500)"

N_CTX, FIRST, LAST, CHUNK = 50, 33, 49, 500
SITES = {"resid_post": ["resid_post"], "resid_mid, attn_out, z": ["resid_mid", "attn_out", "z"]}
WAYS = {
    "cache": "run_with_cache, names_filter, then the positions",
    "memory": "site_spans",
    "disk": "ActivationStore, flushed to the disk",
}
READS = {"position": "one position of all layers", "all": "all of it"}


def _cached(model: Any, tokens: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """What a user would write: each batch's cache at the sites, cut and joined."""
    points = {(name, layer): get_act_name(name, layer) for name in names for layer in range(4)}
    kept: dict[tuple[str, int], list[torch.Tensor]] = {key: [] for key in points}
    with torch.no_grad():
        for part in tokens.split(CHUNK):
            _, cache = model.run_with_cache(part.to(model_device(model)), names_filter=list(points.values()))
            for key, point in points.items():
                kept[key].append(cache[point][:, FIRST : LAST + 1].to("cpu", copy=True))
    return {name: torch.stack([torch.cat(kept[name, layer]) for layer in range(4)]) for name in names}


def _calls(names: list[str], folder: str, n: int, device: str) -> dict[str, Callable[[int], object]]:
    """The ways to capture the first so many of `n` examples, warmed on a batch."""
    model = model_on(build_hooked(ModelConfig(d_model=64, n_layers=4), d_vocab=5, n_ctx=N_CTX), device)
    tokens = torch.randint(0, 5, (n, N_CTX), generator=torch.Generator().manual_seed(0))
    store, keys = ActivationStore(folder), itertools.count()

    def to_disk(n: int) -> object:
        key = StoreKey("benchmark", next(keys), "random")  # what is stored is not captured again
        return store.capture(key, lambda: model, tokens[:n], FIRST, LAST, names=names)

    return {
        "cache": lambda n: _cached(model, tokens[:n], names),
        "memory": lambda n: site_spans(model, tokens[:n], FIRST, LAST, names=names, chunk=CHUNK),
        "disk": to_disk,
    }


def _capture(names: list[str], n: int, n_rounds: int, device: str) -> dict[str, Seconds]:
    """The best of interleaved rounds of every way."""
    with tempfile.TemporaryDirectory() as folder:
        calls = _calls(names, folder, n, device)
        for call in calls.values():
            call(CHUNK)
        return interleaved({way: lambda call=call: call(n) for way, call in calls.items()}, n_rounds)


def _grown_mib(way: str, names: list[str], n: int, device: str) -> float:
    """A way's growth of memory beyond what was resident before."""
    with tempfile.TemporaryDirectory() as folder:
        call = _calls(names, folder, n, device)[way]
        call(CHUNK)
        before = held_mib(device)
        call(n)
        return peak_mib(device) - before


def _read(folder: str, n: int, n_rounds: int) -> dict[str, Seconds]:
    """The best of interleaved rounds of summing a part of what is stored, from a map just made."""
    return interleaved(_reads(folder, n), n_rounds)


def _read_grown_mib(what: str, folder: str, n: int) -> float:
    """A read's growth of memory."""
    read = _reads(folder, n)[what]
    before = held_mib()
    read()
    return peak_mib() - before


def _reads(folder: str, n: int) -> dict[str, Callable[[], object]]:
    """What is summed, by name; it is captured where it is not there."""
    tokens = torch.randint(0, 5, (n, N_CTX), generator=torch.Generator().manual_seed(0))
    model = build_hooked(ModelConfig(d_model=64, n_layers=4), d_vocab=5, n_ctx=N_CTX)
    key, store = StoreKey("benchmark", 0, "random"), ActivationStore(folder)
    store.capture(key, lambda: model, tokens, FIRST, LAST, names=["resid_post"])

    def values() -> torch.Tensor:
        spans = store.spans(key, lambda: model, tokens, FIRST, LAST, names=["resid_post"], progress=False)
        return spans["resid_post"].values

    return {"position": lambda: values()[:, 5].sum(), "all": lambda: values().sum()}


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Seconds and growth of peak memory of each way to capture 4,000 examples, and of each read.

    The ways take turns in one process; memory is measured in a process a way. They stand beside `run_with_cache` of the
    same sites, or the read of everything.

    Args:
        quick: A fourth of the examples, one round.
        device: Of the model; its own memory is then what grows. Reading back takes none.
    """
    n, n_rounds = (1000, 1) if quick else (4_000, 2)
    rows = []
    for sites, names in SITES.items():
        taken = in_process(_capture, names, n, n_rounds, device)
        for way, title in WAYS.items():
            grown = in_process(_grown_mib, way, names, n, device)
            rows.append(_row(f"{sites}: {title}", taken[way], taken["cache"], grown))
    with tempfile.TemporaryDirectory() as folder:
        taken = in_process(_read, folder, n, n_rounds)
        for what, title in READS.items():
            grown = in_process(_read_grown_mib, what, folder, n)
            rows.append(_row(f"read back: {title}", taken[what], taken["all"], grown))
    return rows


def _row(name: str, taken: Seconds, beside: Seconds, grown_mib: float) -> dict[str, Any]:
    """Seconds, and how many times less than what it stands beside."""
    return {
        "name": name,
        "cpu_s": taken.cpu,
        "wall_s": taken.wall,
        "times_less_cpu": beside.cpu / taken.cpu,
        "times_less_wall": beside.wall / taken.wall,
        "grown_mib": grown_mib,
    }
