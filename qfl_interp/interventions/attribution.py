"""Attribution patching: every patch of a sweep at once, to first order, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.activations.spans import Place
from qfl_interp.interventions.pairs import Metric, PairScores, PatchPairs, contrast_logit_diff, end_scores, normalise
from qfl_interp.interventions.patching import NO_HEAD, resolve_places
from qfl_interp.models.build import HookedModel, model_device
from qfl_interp.models.hooks import Intervention, Site, interventions_on, read_activations
from qfl_interp.models.metrics import masked_loss
from qfl_interp.shapes import Tokens

# Below this share of the gap between the runs an effect's sign is not asked about.
SIGN_FLOOR = 0.01


@dataclass(frozen=True)
class AttributionScores:
    """Estimated effect of every patch on every pair.

    Attributes:
        component: What would be patched: a short name of `Site`.
        metric: What it would change.
        places: Layers, or layers and heads, along the first axis.
        effect: Estimate of the patched run's metric minus the corrupted run's.
        clean: Scores of the clean run.
        corrupted: Scores of the corrupted run.
    """

    component: str
    metric: Metric
    places: tuple[Place, ...]
    effect: Float[np.ndarray, "place pos pair"]
    clean: PairScores
    corrupted: PairScores

    def normalised(self) -> Float[np.ndarray, "place pos"]:
        """Means over pairs on the scale of `PatchScores.normalised`: 0 = corrupted, 1 = clean."""
        gap = self.clean.mean(self.metric) - self.corrupted.mean(self.metric)
        return normalise(self.effect.mean(axis=-1), np.array([[gap]]))


def attribution_patch(
    model: HookedModel,
    pairs: PatchPairs,
    *,
    component: str = "resid_pre",
    metric: Metric = "logit_diff",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    integrated: int = 0,
    chunk: int = 64,
) -> AttributionScores:
    """First-order estimates of `patch_sweep` for all layers (heads) and positions of a component.

    The effect of writing the clean activation `a'` over the corrupted `a` is taken as `(a' - a) . dm/da`, the gradient
    at the corrupted run. That is exact where the metric is linear in the activation, and poor where a nonlinearity
    between them saturates.

    Args:
        model: Any hooked model that gradients pass through.
        pairs: From `patch_pairs`.
        component: As for `patch_sweep`.
        metric: "logit_diff" or "loss"; exact match has no gradient.
        layers: Which blocks; all by default.
        heads: Which heads, for z, q, k and v; all by default.
        integrated: 0 takes the gradient at the corrupted run. k > 0 takes the mean gradient over k runs whose first
            residual streams lie on the straight line from the corrupted to the clean one (midpoints of k equal parts;
            the paper takes their right ends): k times the cost, and more accurate through saturation.
        chunk: Pairs of a forward and backward pass.

    Returns:
        Estimates at every position up to the last that a score depends on, the default positions of `patch_sweep`.

    Raises:
        ValueError: As `patch_sweep`; an unknown metric; `integrated` below 0; `chunk` below 1.

    References:
        Nanda 2023, Attribution patching; Syed et al. 2023 (arXiv 2310.10348), equation 1; `integrated`: Hanna et al.
        2024 (arXiv 2403.17806), EAP-IG, equation 3.
    """
    if metric not in ("logit_diff", "loss"):
        raise ValueError(f"metric must be 'logit_diff' or 'loss', which have a gradient, got {metric!r}.")
    if integrated < 0 or chunk < 1:
        raise ValueError(f"integrated must be at least 0 and chunk at least 1, got {integrated} and {chunk}.")
    places = resolve_places(model, pairs, component, layers, heads)
    used_layers, used_heads = (list(dict.fromkeys(column)) for column in zip(*places, strict=True))
    effect = np.empty((len(used_layers), len(used_heads), pairs.span.stop, len(pairs)))
    for pair in torch.arange(len(pairs)).split(chunk):
        estimates = _effects(model, pairs, pair, [Site(layer, component) for layer in used_layers], metric, integrated)
        for number, found in enumerate(estimates):
            by_head = found[..., None] if used_heads == [NO_HEAD] else found[..., used_heads]
            effect[number][..., pair.numpy()] = by_head.permute(2, 1, 0).cpu().numpy()
    clean, corrupted = (end_scores(model, pairs, tokens, chunk) for tokens in (pairs.clean, pairs.corrupted))
    flat = effect.reshape(len(places), pairs.span.stop, len(pairs))
    return AttributionScores(component, metric, places, flat, clean, corrupted)


def _effects(
    model: HookedModel, pairs: PatchPairs, pair: Tensor, sites: list[Site], metric: Metric, integrated: int
) -> Iterator[Float[Tensor, "pair pos *head"]]:
    """The estimates for some pairs, a site at a time, in float64."""
    device = model_device(model)
    clean, corrupted = (t[pair, : pairs.span.stop].to(device) for t in (pairs.clean, pairs.corrupted))
    first = Site(0, "resid_pre")
    wanted = list(dict.fromkeys([*sites, first]))
    target, current = read_activations(model, clean, wanted), read_activations(model, corrupted, wanted)
    shares = [(step + 0.5) / integrated for step in range(integrated)] or [0.0]
    total = {site: torch.zeros_like(current[site], dtype=torch.float64) for site in sites}
    for share in shares:
        begin = torch.lerp(current[first], target[first], share)
        for site, slope in _gradients(model, pairs, pair, corrupted, begin, sites, metric).items():
            total[site] += slope
    for site in sites:
        moved = (target[site] - current[site]).double()
        yield (moved * total[site]).sum(dim=-1) / len(shares)


def _gradients(
    model: HookedModel,
    pairs: PatchPairs,
    pair: Tensor,
    tokens: Tokens,
    begin: Float[Tensor, "pair pos d_model"],
    sites: list[Site],
    metric: Metric,
) -> dict[Site, Tensor]:
    """The metric's gradient at each site of a run whose residual stream starts as `begin`."""
    seen: dict[Site, Tensor] = {}

    def keep(site: Site) -> Intervention:
        return Intervention(site, lambda activation: seen.setdefault(site, activation), "keep")

    # A leaf of its own: gradients then pass through models whose parameters are frozen, and stop there.
    leaf = begin.detach().clone().requires_grad_()
    start = Intervention(Site(0, "resid_pre"), lambda activation: leaf.to(activation), "start")
    with torch.enable_grad(), interventions_on(model, [start, *(keep(site) for site in sites)]):
        logits = model(tokens)[:, pairs.span]
    with torch.enable_grad():
        # Pairs do not meet in a batch, so the gradient of the sum holds each pair's own.
        value = _metric_of_pairs(logits, pairs, pair, metric).sum()
    slopes = torch.autograd.grad(value, [seen[site] for site in sites], materialize_grads=True)
    return dict(zip(sites, slopes, strict=True))


def _metric_of_pairs(
    logits: Float[Tensor, "pair scored d_vocab"], pairs: PatchPairs, pair: Tensor, metric: Metric
) -> Float[Tensor, " pair"]:
    """The differentiable metrics of `PairScores`, in float64."""
    if metric == "logit_diff":
        return contrast_logit_diff(logits, pairs, pair)
    target = pairs.target[pair].to(logits.device)
    # `masked_loss` averages over a whole batch; a batch of one pair is that pair's mean.
    loss = "cross_entropy" if pairs.targets is None else "squared_error"
    rows = zip(logits, target, strict=True)
    return torch.stack([masked_loss(row[None].double(), kept[None], loss) for row, kept in rows])


class AttributionError(NamedTuple):
    """How far an estimated map is from the exact one.

    Attributes:
        pearson_r: Correlation over places and positions; NaN where either map is constant.
        max_abs_error: Largest difference; NaN where nothing is compared.
        sign_agreement: Share of effects of at least `SIGN_FLOOR` of the gap whose sign is right; NaN without any.
        n: Places and positions compared; 0 where the metric tells clean and corrupted runs apart nowhere.
    """

    pearson_r: float
    max_abs_error: float
    sign_agreement: float
    n: int


def attribution_error(
    exact: Float[np.ndarray, "place pos"], approx: Float[np.ndarray, "place_again pos_again"]
) -> AttributionError:
    """The estimate's error against exact patching, over the entries where a patch changes something.

    Entries that are exactly 0 in both maps (tokens before the runs differ) are left out: they would only flatter it.

    Args:
        exact: `PatchScores.normalised()`.
        approx: `AttributionScores.normalised()` of the same component, layers and heads.

    Raises:
        ValueError: The shapes differ.
    """
    if exact.shape != approx.shape:
        raise ValueError(
            f"exact and approx must be maps of the same places and positions, got {exact.shape} and {approx.shape}."
        )
    kept = np.isfinite(exact) & np.isfinite(approx) & ((exact != 0) | (approx != 0))
    x, y = exact[kept], approx[kept]
    varies = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    large = np.abs(x) >= SIGN_FLOOR
    return AttributionError(
        float(np.corrcoef(x, y)[0, 1]) if varies else float("nan"),
        float(np.abs(x - y).max(initial=0.0)) if len(x) else float("nan"),
        float((np.sign(x) == np.sign(y))[large].mean()) if large.any() else float("nan"),
        len(x),
    )
