"""Capturing activations in memory and to disk against `run_with_cache`; reading one position back against all."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from transformer_lens.utilities.components_utils import get_act_name

from benchmarks._measuring import in_process, timed
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


def _capture(way: str, names: list[str], n: int, n_rounds: int, device: str) -> dict[str, float]:
    """Seconds of the best round, and the first one's growth of memory beyond what was resident before, in MiB."""
    model = model_on(build_hooked(ModelConfig(d_model=64, n_layers=4), d_vocab=5, n_ctx=N_CTX), device)
    tokens = torch.randint(0, 5, (n, N_CTX), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore(folder)
        calls: dict[str, Callable[[int, torch.Tensor], object]] = {
            "cache": lambda _round, part: _cached(model, part, names),
            "memory": lambda _round, part: site_spans(model, part, FIRST, LAST, names=names, chunk=CHUNK),
            "disk": lambda round_, part: store.capture(
                StoreKey("benchmark", round_, "random"), lambda: model, part, FIRST, LAST, names=names
            ),
        }
        calls[way](n_rounds, tokens[:CHUNK])
        before = held_mib(device)
        seconds, grown = [], 0.0
        for number in range(n_rounds):
            seconds.append(timed(lambda number=number: calls[way](number, tokens))[0])
            grown = grown or peak_mib(device) - before
    return {"seconds": min(seconds), "grown_mib": grown}


def _read(what: str, folder: str, n: int) -> dict[str, float]:
    """Milliseconds and growth of resident memory of summing a part of what is stored, from a map just made."""
    tokens = torch.randint(0, 5, (n, N_CTX), generator=torch.Generator().manual_seed(0))
    model = build_hooked(ModelConfig(d_model=64, n_layers=4), d_vocab=5, n_ctx=N_CTX)
    key, store = StoreKey("benchmark", 0, "random"), ActivationStore(folder)
    store.capture(key, lambda: model, tokens, FIRST, LAST, names=["resid_post"])
    seconds, grown = [], 0.0
    for _ in range(3):
        before = held_mib()
        start = time.perf_counter()
        span = store.spans(key, lambda: model, tokens, FIRST, LAST, names=["resid_post"], progress=False)["resid_post"]
        (span.values[:, 5] if what == "position" else span.values).sum()
        seconds.append(time.perf_counter() - start)
        grown = grown or peak_mib() - before
    return {"seconds": min(seconds), "grown_mib": grown}


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Examples a second and growth of peak memory of each way to capture; milliseconds and growth of each read.

    Every case runs in a process of its own. "times" is the speed relative to `run_with_cache` of the same sites, or of
    the read of everything.

    Args:
        quick: A tenth of the examples, one round.
        device: Of the model; its own memory is then what grows. Reading back takes none.
    """
    n, n_rounds = (1000, 1) if quick else (10_000, 3)
    rows = []
    for sites in SITES:
        found = {way: in_process(_capture, way, SITES[sites], n, n_rounds, device) for way in WAYS}
        rows += [
            {
                "name": f"{sites}: {WAYS[way]}",
                "value": n / f["seconds"],
                "unit": "examples/s",
                "grown_mib": f["grown_mib"],
                "times": found["cache"]["seconds"] / f["seconds"],
            }
            for way, f in found.items()
        ]
    with tempfile.TemporaryDirectory() as folder:
        in_process(_read, "all", folder, n)
        found = {what: in_process(_read, what, folder, n) for what in READS}
    rows += [
        {
            "name": f"read back: {READS[what]}",
            "value": 1e3 * f["seconds"],
            "unit": "ms",
            "grown_mib": f["grown_mib"],
            "times": found["all"]["seconds"] / f["seconds"],
        }
        for what, f in found.items()
    ]
    return rows
