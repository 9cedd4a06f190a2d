"""Logistic probes at all layers, labels and outputs of one feature, as one batched convex problem."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from qfl_interp.probes.newton import Solution, solve
from qfl_interp.probes.result import (
    Activations,
    ExampleMask,
    Labels,
    LogisticProbes,
    ProbeScores,
    check_examples,
    mean_scores,
)
from qfl_interp.probes.sites import Site, centred, for_each

# Float64 working memory for the sites solved together; larger chunks are not faster on a CPU.
CHUNK_BYTES = 64 * 2**20
# With no warm start every fourth example is solved first, roughly: most of the way at a quarter of the cost.
_PART = 4
_PART_GAP = 1e-4


def _sites_at_once(n_examples: int, d_model: int, n_outputs: int, n_workers: int, n_sites: int) -> int:
    """How many sites a worker solves together: its share of `CHUNK_BYTES`, yet some for every worker.

    A site takes its data, and about 10 vectors and 4 matrices an output.
    """
    n_columns = d_model + 1
    per_site = 8 * (n_examples * (n_columns + 10 * n_outputs) + 4 * n_outputs * n_columns**2)
    return max(1, min(CHUNK_BYTES // (per_site * n_workers), math.ceil(n_sites / n_workers)))


def _signs(
    y: Labels, example_mask: ExampleMask | None
) -> tuple[Int8[Tensor, "label output example"], Bool[Tensor, "label output"]]:
    """+1 for class 1, -1 for class 0, 0 where masked; and where both classes occur."""
    sign = (2 * y.to(torch.int8) - 1).transpose(0, 1)
    if example_mask is not None:
        sign = sign * example_mask[:, None, :]
    return sign, (sign > 0).any(-1) & (sign < 0).any(-1)


def _dot_means(
    weight: Float[Tensor, "site output d_model"], means: Float[Tensor, "site d_model"]
) -> Float[Tensor, "site output"]:
    """The logit that centring takes away, and the intercept has to give back."""
    return torch.einsum("sod,sd->so", weight, means)


def _check_settings(x: Activations, y: Labels, c: float, max_iter: int, init: LogisticProbes | None) -> None:
    """Raise ValueError unless the settings are in range and `init` holds such probes."""
    if not (math.isfinite(c) and c > 0):
        raise ValueError(f"c must be positive and finite, got {c}. The paper uses 100.")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}. 100 is plenty.")
    shape = (*x.shape[:2], y.shape[0], x.shape[3])
    if init is not None and init.weight.shape != shape:
        raise ValueError(
            f"init must hold probes [layer, label, output, d_model] = {shape}, got "
            f"{tuple(init.weight.shape)}. Start from probes of the same feature and model, or leave it out."
        )


def _fit_sites(
    x: Activations,
    sites: list[Site],
    sign: Int8[Tensor, "site output example"],
    fitted: Bool[Tensor, "site output"],
    init: Float[Tensor, "site output column"] | None,
    c: float,
    max_iter: int,
    example_mask: ExampleMask | None,
) -> Solution:
    """The probes of some sites; without `init` they start from the solution of a part of the examples."""
    z, means = centred(x, sites, example_mask)
    if init is not None:
        start = init.clone()
        start[..., -1] += _dot_means(init[..., :-1], means)
    else:
        start = z.new_zeros(*fitted.shape, z.shape[2])
        some = sign[..., ::_PART]
        if some.shape[-1] >= 4 * z.shape[2]:
            both = (some > 0).any(-1) & (some < 0).any(-1)
            part = z[:, ::_PART]
            goal = {"c": _PART * c, "max_iter": max_iter, "gap": _PART_GAP}
            start = solve(part, some.to(z.dtype), start, both, **goal).coef
    found = solve(z, sign.to(z.dtype), start, fitted, c=c, max_iter=max_iter)
    coef = found.coef * fitted[..., None]
    coef[..., -1] -= _dot_means(coef[..., :-1], means)
    return found._replace(coef=coef)


def fit_logistic(
    x: Activations,
    y: Labels,
    *,
    c: float,
    max_iter: int,
    init: LogisticProbes | None = None,
    example_mask: ExampleMask | None = None,
) -> LogisticProbes:
    """Logistic regressions with L2 penalty, one a layer, label and output, each at its own optimum.

    Each minimises `c * sum_i log_loss_i + ||w||^2 / 2` in nats, the intercept unpenalised: scikit-learn's
    `LogisticRegression(C=c)`. All arithmetic is in float64, whatever the dtype of `x`, so that badly scaled
    or correlated coordinates cost no accuracy. The same input gives the same bits on the same machine
    with the same number of threads (`torch.get_num_threads`, the cores that are used).

    Memory beyond the arguments and the result: about 1.3 `CHUNK_BYTES` (64 MiB) in all, or, where a layer and
    label needs more than its thread's share, `8 n_example (2 d_model + 10 n_output) + 32 n_output d_model^2`
    bytes a thread.

    Args:
        x: Activations, one row an example; any strides (nothing is made contiguous), CPU or CUDA.
        y: Labels 0 or 1. Outputs share the activations: those of a multilabel feature, and shuffled copies of
            the labels, which cost little beside the real ones.
        c: Inverse L2 strength, positive. The paper uses 100.
        max_iter: Newton steps at most, at least 1; 2 to 12 are the rule.
        init: Probes to start from where they beat the base rate: those of the previous checkpoint. The
            optimum is the same, only the way is shorter.
        example_mask: True where an example has this label; all have it by default.

    Raises:
        ValueError: Shapes that do not fit, a label other than 0 or 1, an activation that is not finite (with
            its place), or `c` or `max_iter` out of range.

    References:
        Quiet Feature Learning (arXiv 2505.03997), linear probes: C = 100.
    """
    check_examples(x, y, example_mask)
    _check_settings(x, y, c, max_iter, init)
    n_layers, n_labels, n_examples, d_model = x.shape
    shape = (n_layers, n_labels, y.shape[0])
    sign, fitted = _signs(y, example_mask)
    coef = torch.zeros(*shape, d_model + 1, dtype=torch.float64, device=x.device)
    loss, accuracy = torch.zeros_like(coef[..., 0]), torch.zeros_like(coef[..., 0])
    converged = torch.zeros(shape, dtype=torch.bool, device=x.device)
    n_iter = torch.zeros(shape, dtype=torch.int64, device=x.device)
    all_sites = [(layer, label) for layer in range(n_layers) for label in range(n_labels)]
    n_workers = torch.get_num_threads() if x.device.type == "cpu" else 1
    chunk = _sites_at_once(n_examples, d_model, y.shape[0], n_workers, len(all_sites))
    chunks = [all_sites[first : first + chunk] for first in range(0, len(all_sites), chunk)]

    def fit(sites: list[Site]) -> None:
        at = tuple(torch.tensor(index, device=x.device) for index in zip(*sites, strict=True))
        part = None if init is None else torch.cat([init.weight[at], init.intercept[at][..., None]], -1)
        found = _fit_sites(x, sites, sign[at[1]], fitted[at[1]], part, c, max_iter, example_mask)
        coef[at], converged[at], n_iter[at] = found.coef, found.converged, found.n_iter
        mask = None if example_mask is None else example_mask[at[1]]
        loss[at], accuracy[at] = (value[0] for value in mean_scores(found.wrong_logit[None], mask))

    for_each(fit, chunks, n_workers)
    everywhere = fitted.expand(shape).clone()
    train = ProbeScores(*(value.masked_fill(~everywhere, torch.nan) for value in (loss, accuracy)))
    return LogisticProbes(coef[..., :-1], coef[..., -1], everywhere, converged, n_iter, train)
