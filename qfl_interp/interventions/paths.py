"""Path patching: what a sender tells a receiver directly, all else between them held at the corrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.interventions.pairs import Metric, PairScores, PatchPairs, end_scores, normalise, score_pairs
from qfl_interp.interventions.patching import resolve_places
from qfl_interp.models.build import HookedModel, layer_count, model_device
from qfl_interp.models.forward import resumable, rows_logits
from qfl_interp.models.hooks import Intervention, Site, interventions_on, read_activations
from qfl_interp.shapes import Tokens
from qfl_interp.sites import HEAD_SITES

SENDERS = ("z", "attn_out", "mlp_out")
RECEIVERS = ("q", "k", "v", "mlp_pre", "resid_post")


@dataclass(frozen=True)
class Node:
    """One end of a path: a site with its positions, and one head of it where it has heads.

    Args:
        site: A sender is at "z", "attn_out" or "mlp_out"; a receiver at "q", "k", "v", "mlp_pre" (all that the MLP
            reads, both halves of a gated one) or "resid_post".
        head: For z, q, k and v.

    Raises:
        ValueError: A site that is neither; a head missing, or given where there is none.
    """

    site: Site
    head: int | None = None

    def __post_init__(self) -> None:
        name = self.site.name
        if self.site.layer is None or name not in SENDERS + RECEIVERS:
            raise ValueError(
                f"an end of a path must be in a block, a sender {SENDERS} or a receiver {RECEIVERS}, got {name!r}."
            )
        if (self.head is not None) != (name in HEAD_SITES):
            raise ValueError(f"head must be given at {HEAD_SITES} and only there, got {self.head} at {name!r}.")

    @property
    def layer(self) -> int:
        """The block, counted from 0."""
        assert self.site.layer is not None
        return self.site.layer


class PathScores(NamedTuple):
    """Scores of every pair with one sender's path patched.

    Attributes:
        senders: Along the first axis.
        logit_diff: As in `PairScores`.
        loss: Likewise.
        exact: Likewise.
        clean: Scores of the clean run.
        corrupted: Scores of the corrupted run.
    """

    senders: tuple[Node, ...]
    logit_diff: Float[np.ndarray, "sender pair"]
    loss: Float[np.ndarray, "sender pair"]
    exact: Bool[np.ndarray, "sender pair"] | Float[np.ndarray, "sender pair"]
    clean: PairScores
    corrupted: PairScores

    def normalised(self, metric: Metric = "logit_diff") -> Float[np.ndarray, " sender"]:
        """Means over pairs where the corrupted run is 0 and the clean run 1; see `pairs.normalise`."""
        low = self.corrupted.mean(metric)
        return normalise(getattr(self, metric).mean(axis=-1) - low, np.array([self.clean.mean(metric) - low]))


Receivers = Sequence[Node] | Literal["logits"]


def path_patch(
    model: HookedModel,
    pairs: PatchPairs,
    senders: Sequence[Node],
    receivers: Receivers,
    *,
    through_mlps: bool = False,
    chunk_rows: int = 128,
) -> PathScores:
    """Scores of the corrupted run in which the receivers alone see a sender's clean activation; a row for each sender.

    Two runs on the corrupted tokens. In the first, the sender has its clean activation, every other head's z and every
    other MLP's output are held at their corrupted values, and the receivers' activations are noted. In the second only
    those are written, and all that follows them is computed anew. With "logits" the first run's logits are scored.

    Args:
        model: Any hooked model.
        pairs: From `patch_pairs`.
        senders: Each is patched on its own; see `head_senders` for all heads.
        receivers: Written together, as one; or "logits".
        through_mlps: Let the first run's MLPs respond, so that a path may pass through them (the paper's choice); by
            default the path is the direct one along the residual stream.
        chunk_rows: Rows of a forward pass at most: a row for each sender and pair.

    Raises:
        ValueError: No sender or receiver; one that cannot send or receive; a sender that does not come before every
            receiver; a layer, head or position that is not there.
        QflError: The model has no such hook point.

    References:
        Wang et al. 2022 (arXiv 2211.00593), appendix B, with clean and corrupted swapped; Goldowsky-Dill et al. 2023
        (arXiv 2304.05969).
    """
    ends: list[Node] = [] if receivers == "logits" else list(receivers)
    if receivers != "logits" and not ends:
        raise ValueError("receivers must hold at least one node or be 'logits', got none.")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}.")
    _check(model, pairs, senders, ends)
    at = [node.layer for node in ends] or [layer_count(model) - 1]
    layers = range(min(at), max(at) + 1)
    parts: list[PairScores] = []
    for row in torch.arange(len(senders) * len(pairs)).split(chunk_rows):
        sender, pair = row // len(pairs), row % len(pairs)
        frozen = _freeze(model, pairs, senders, (sender, pair), layers, through_mlps)
        if ends:
            writes = _deliver(model, frozen, ends, layers[-1])
            logits = rows_logits(model, frozen.tokens, pairs.span, writes, frozen.start)
        else:
            logits = rows_logits(model, frozen.tokens, pairs.span, frozen.held)
        parts.append(score_pairs(logits, pairs, pair))
    logit_diff, loss, exact = (
        np.concatenate(column).reshape(len(senders), len(pairs)) for column in zip(*parts, strict=True)
    )
    clean, corrupted = (end_scores(model, pairs, tokens, chunk_rows) for tokens in (pairs.clean, pairs.corrupted))
    return PathScores(tuple(senders), logit_diff, loss, exact, clean, corrupted)


def head_senders(model: HookedModel, pairs: PatchPairs, receivers: Receivers) -> list[Node]:
    """Every head with a path to all of `receivers`, at all positions: the senders of the usual sweep.

    Args:
        model: Any hooked model.
        pairs: Any, to ask the model how many heads it has.
        receivers: As for `path_patch`.
    """
    heads = [Node(Site(place.layer, "z"), place.head) for place in resolve_places(model, pairs, "z")]
    ends = [] if receivers == "logits" else list(receivers)
    return [head for head in heads if all(_order(model, head) < _order(model, node) for node in ends)]


def _order(model: HookedModel, node: Node) -> float:
    """When a node writes to the residual stream, or reads it: a sender reaches the receivers with a larger number."""
    parallel = bool(getattr(getattr(model, "cfg", None), "parallel_attn_mlp", False))
    # Reads are half a step before the write of the same sublayer; side by side, the MLP reads what attention does.
    step = {"z": 0, "attn_out": 0, "mlp_out": 1, "q": -0.5, "k": -0.5, "v": -0.5, "mlp_pre": 0.5, "resid_post": 1.5}
    return 2 * node.layer + (-0.5 if parallel and node.site.name == "mlp_pre" else step[node.site.name])


class _Frozen(NamedTuple):
    """The first run of some rows.

    `held` are the sender's clean activation and corrupted ones for all others, `start` the first receiver's layer and
    the corrupted stream before it, where the second run starts.
    """

    tokens: Tokens
    held: list[Intervention]
    start: tuple[int, Tensor]


def _freeze(
    model: HookedModel,
    pairs: PatchPairs,
    senders: Sequence[Node],
    rows: tuple[Int[Tensor, " row"], Int[Tensor, " row"]],
    layers: range,
    through_mlps: bool,
) -> _Frozen:
    """What the first run needs: `rows` says the sender and the pair of each, `layers` the receivers' first and last."""
    sender, (unique, inverse) = rows[0], rows[1].unique(return_inverse=True)
    device = model_device(model)
    clean, corrupted = (t[unique, : pairs.span.stop].to(device) for t in (pairs.clean, pairs.corrupted))
    upstream = range(layers.stop)
    frozen = [Site(layer, "z") for layer in upstream]
    if not through_mlps and not getattr(getattr(model, "cfg", None), "attn_only", False):
        frozen += [Site(layer, "mlp_out") for layer in upstream]
    first = Site(layers.start, "resid_pre")
    early = {"stop_at_layer": layers.stop} if resumable(model) else {}
    sending = list(dict.fromkeys(Site(node.layer, node.site.name) for node in senders))
    base = read_activations(model, corrupted, [*frozen, first], **early)
    source = read_activations(model, clean, sending, **early)
    held = []
    for site in dict.fromkeys([*frozen, *sending]):
        kept = base[site][inverse] if site in frozen else None
        if site in sending:
            masks = [_mask(node, source[site], sends=site == Site(node.layer, node.site.name)) for node in senders]
            held.append(_hold(site, kept, source[site][inverse], torch.stack(masks)[sender]))
        else:
            assert kept is not None
            held.append(Intervention(site, lambda _, kept=kept: kept, "hold"))
    return _Frozen(corrupted[inverse], held, (layers.start, base[first][inverse]))


def _mask(node: Node, activation: Float[Tensor, "row pos *rest"], *, sends: bool = True) -> Bool[Tensor, "pos ..."]:
    """Where a node's activation is: its positions, of its head; nowhere unless it `sends`."""
    n_pos = activation.shape[1]
    chosen = torch.zeros(n_pos, dtype=torch.bool, device=activation.device)
    if sends:
        chosen[slice(None) if node.site.positions is None else list(node.site.positions)] = True
    if activation.ndim == 3:
        return chosen
    return chosen[:, None] & (torch.arange(activation.shape[2], device=activation.device) == (node.head or 0))


def _hold(site: Site, base: Tensor | None, source: Tensor, mask: Bool[Tensor, "#row pos *head"]) -> Intervention:
    """`source` where the mask is True; elsewhere `base`, or by default what the run computes."""

    def fn(current: Tensor) -> Tensor:
        return torch.where(mask[..., None], source, current if base is None else base)

    return Intervention(site, fn, "path")


def _receiving_sites(model: HookedModel, node: Node) -> list[Site]:
    """Where a receiver's activation is noted and written: a gated MLP reads through two hook points."""
    linear = f"blocks.{node.layer}.mlp.hook_pre_linear"
    second = node.site.name == "mlp_pre" and linear in model.hook_dict
    return [Site(node.layer, node.site.name), *([Site(None, linear)] if second else [])]


def _deliver(model: HookedModel, frozen: _Frozen, receivers: Sequence[Node], last: int) -> list[Intervention]:
    """The first run up to the last receiver, and the writes of the second."""
    at = [(node, site) for node in receivers for site in _receiving_sites(model, node)]
    early = {"stop_at_layer": last + 1} if resumable(model) else {}
    with interventions_on(model, frozen.held):
        received = read_activations(model, frozen.tokens, list(dict.fromkeys(site for _, site in at)), **early)
    return [_hold(site, None, received[site], _mask(node, received[site])[None]) for node, site in at]


def _check(model: HookedModel, pairs: PatchPairs, senders: Sequence[Node], receivers: Sequence[Node]) -> None:
    """Raise ValueError unless every sender has a path to every receiver and all of them are there."""
    if not senders:
        raise ValueError("senders must hold at least one node, got none. `head_senders` lists all heads with a path.")
    for role, nodes, names in (("sender", senders, SENDERS), ("receiver", receivers, RECEIVERS)):
        for node in nodes:
            if node.site.name not in names:
                raise ValueError(f"a {role} must be at one of {names}, got {node.site.name!r} in layer {node.layer}.")
            heads = None if node.head is None else [node.head]
            component = "resid_pre" if node.site.name == "mlp_pre" else node.site.name
            resolve_places(model, pairs, component, [node.layer], heads)
            beyond = [p for p in node.site.positions or () if not 0 <= p < pairs.span.stop]
            if beyond:
                raise ValueError(
                    f"positions of a {role} must lie in [0, {pairs.span.stop}), got {beyond}. "
                    "No score depends on later ones."
                )
    for node in receivers:
        late = [sender for sender in senders if _order(model, sender) >= _order(model, node)]
        if late:
            raise ValueError(
                f"a sender must come before every receiver, got {late[0].site.hook_name} and {node.site.hook_name}: "
                "there is no path between them. `head_senders` lists the heads that have one."
            )
