"""The layers and labels that probes are fitted at: their activations, and work on many of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.probes.result import Activations, ExampleMask
from qfl_interp.threads import on_every_core

# A layer and a label: one problem of a fit, a "site" below.
LayerLabel = tuple[int, int]
# Float64 working memory for the sites solved together; larger chunks are not faster on a CPU.
CHUNK_BYTES = 64 * 2**20


def for_each_site(fit: Callable[[list[LayerLabel]], None], x: Activations, site_bytes: int) -> None:
    """Run `fit` on all sites of `x`, on every core, several at once where they share `CHUNK_BYTES`.

    `site_bytes` is the working memory of one. On a GPU one thread feeds it.
    """
    sites = [(layer, label) for layer in range(x.shape[0]) for label in range(x.shape[1])]
    on_cpu = x.device.type == "cpu"
    n_workers = torch.get_num_threads() if on_cpu else 1
    at_once = max(1, min(CHUNK_BYTES // (site_bytes * n_workers), math.ceil(len(sites) / n_workers)))
    chunks = [sites[first : first + at_once] for first in range(0, len(sites), at_once)]
    for _ in on_every_core(fit, chunks) if on_cpu else map(fit, chunks):
        pass


def _require_finite(x: Float[Tensor, "example d_model"], kept: Tensor | None, layer: int, label: int) -> None:
    """Raise with the place of the first value that is not finite."""
    bad = ~x.isfinite()
    if kept is not None:
        bad &= kept[:, None]
    if bad.any():
        example, coordinate = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"activations must be finite, got {float(x[example, coordinate])} at layer {layer}, "
            f"label {label}, example {example}, coordinate {coordinate}. "
            "The forward pass overflowed or the model has diverged."
        )


def centred(
    x: Activations, sites: list[LayerLabel], example_mask: ExampleMask | None
) -> tuple[Float[Tensor, "site example column"], Float[Tensor, "site d_model"]]:
    """The sites' activations less their means, with a column of ones; and the means. Masked rows are 0."""
    n_examples, d_model = x.shape[2:]
    z = torch.empty(len(sites), n_examples, d_model + 1, dtype=torch.float64, device=x.device)
    means = torch.empty(len(sites), d_model, dtype=torch.float64, device=x.device)
    for k, (layer, label) in enumerate(sites):
        site = x[layer, label]
        kept = None if example_mask is None else example_mask[label]
        used = site if kept is None else site[kept]
        means[k] = used.mean(0, dtype=torch.float64) if len(used) else 0.0
        if not means[k].isfinite().all():  # one value that is not finite shows in the mean
            _require_finite(site, kept, layer, label)
        torch.sub(site, means[k], out=z[k, :, :-1])
        z[k, :, -1] = 1
        if kept is not None:
            z[k, ~kept] = 0
    return z, means
