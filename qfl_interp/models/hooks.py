"""The one hook interface: where an activation is (`Site`), what is done to it (`Intervention`), for how long.

Works on any model with TransformerLens hook points: its own models, and a `TransformerBridge` around a Hugging Face
model, whose points may show an activation in another shape than the module has (heads apart, for example): what is read
and written here is always the shape TransformerLens names. Nothing here knows a task.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel

# Short name -> hook point inside a block, as TransformerLens names them.
BLOCK_SITES = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "pattern": "attn.hook_pattern",
    "attn_scores": "attn.hook_attn_scores",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
}
# Activations [batch, head, query, key], whose second axis is not the position.
_BY_HEAD = ("pattern", "attn_scores")
# Hook points that exist but fire only where this config flag is on.
_GATED = {
    "hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
}


@dataclass(frozen=True)
class Site:
    """Where an activation is read or changed.

    Args:
        layer: Block, counted from 0; None for a hook point outside the blocks.
        name: A short name (`resid_post`, `attn_out`, `z`, ...) or, with `layer=None`, a full hook point name
            (`hook_embed`, `ln_final.hook_normalized`).
        positions: Token indices; None for all.

    Raises:
        ValueError: A layer below 0, an unknown short name, or positions of an activation whose second axis is
            the head.
    """

    layer: int | None
    name: str = "resid_post"
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layer is not None:
            if self.layer < 0:
                raise ValueError(f"layer must be at least 0, got {self.layer}. Layers count from 0.")
            if self.name not in BLOCK_SITES:
                near = difflib.get_close_matches(self.name, BLOCK_SITES, n=1)
                guess = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"name of a site in a block must be one of {list(BLOCK_SITES)}, got {self.name!r}.{guess} "
                    "For any other hook point give layer=None and its full name."
                )
        if self.positions is not None and self.name.endswith(_BY_HEAD):
            raise ValueError(
                f"positions must be None at {self.name!r}, which is [batch, head, query, key], got "
                f"{self.positions}. Select inside the function."
            )

    @property
    def hook_name(self) -> str:
        """The hook point's full name, as TransformerLens spells it."""
        return self.name if self.layer is None else f"blocks.{self.layer}.{BLOCK_SITES[self.name]}"


# The activation at a site's hook point -> what replaces it.
ActivationFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Intervention:
    """A change of one activation, as a value: install it with `interventions_on`.

    Args:
        site: Where.
        fn: The whole activation at the hook point in, its replacement out (the same shape). It sees every position and
            has to restrict itself to `site.positions`.
        label: What a person reads in a repr.
    """

    site: Site
    fn: ActivationFn
    label: str = "intervention"

    def __repr__(self) -> str:
        return f"<{self.label} at {self.site.hook_name}>"


def hook_point(model: HookedModel, name: str) -> HookPoint:
    """The model's hook point of this name, if it fires.

    Raises:
        QflError: There is none (the nearest are suggested), or a config flag keeps it from firing, or the model has no
            hook points at all.
    """
    return _checked_point(model, _hook_dict(model), name)


def _hook_dict(model: HookedModel) -> Mapping[str, HookPoint]:
    """All hook points by name, aliases included; a bridge makes this anew at every call."""
    points = getattr(model, "hook_dict", None)
    if points is None:
        raise QflError(
            f"{type(model).__name__} has no hook points. Give a TransformerLens model; wrap one of Hugging Face with "
            "qfl_interp.models.build.hooked_from_hf(model)."
        )
    return points


def _checked_point(model: HookedModel, points: Mapping[str, HookPoint], name: str) -> HookPoint:
    """The point of this name; raises as `hook_point` does."""
    config = getattr(model, "cfg", None)
    if name not in points:
        near = difflib.get_close_matches(name, points, n=3)
        n_layers = 1 + max((int(n.split(".")[1]) for n in points if n.startswith("blocks.")), default=-1)
        if name.endswith("hook_resid_mid") and getattr(config, "parallel_attn_mlp", False):
            why = " Its blocks run attention and MLP side by side, so there is no stream between them."
        else:
            why = f" It has {n_layers} layers, counted from 0."
        raise QflError(f"the model has no hook point {name!r}. Nearest: {', '.join(near) or 'none'}.{why}")
    flag = _GATED.get(name.rsplit(".", 1)[-1])
    if flag is not None and not getattr(config, flag, False):
        raise QflError(
            f"hook point {name!r} does not fire while cfg.{flag} is False. Call model.set_{flag}(True) first."
        )
    return points[name]


def _as_hook(intervention: Intervention, fired: list[bool], index: int) -> Callable[..., Tensor]:
    """A TransformerLens hook that applies the intervention and notes that it did."""

    def hook(activation: Tensor, *, hook: HookPoint) -> Tensor:
        fired[index] = True
        changed = intervention.fn(activation)
        if changed.shape != activation.shape:
            raise ValueError(
                f"{intervention!r} must return the activation's shape {tuple(activation.shape)}, "
                f"got {tuple(changed.shape)}."
            )
        return changed

    return hook


@contextmanager
def _hooked(point: HookPoint, hook: Callable[..., Tensor]) -> Iterator[None]:
    """The hook on the point, and only this one off it again.

    Through `add_hook`, not `register_forward_hook`: it shows and takes back the activation in the point's own shape,
    and the norms of a bridge look into `fwd_hooks` before they keep the graph through their inner points.
    """
    point.add_hook(hook)
    handle = point.fwd_hooks[-1]
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]


@contextmanager
def interventions_on(model: HookedModel, interventions: Sequence[Intervention]) -> Iterator[HookedModel]:
    """Install interventions for the length of a `with` block; they are always removed.

    They compose in the order of the list. Call the model itself inside the block: `fast_logits` and compiled callables
    do not see hooks (`fast_logits` refuses to run then).

    Args:
        model: Any model with TransformerLens hook points.
        interventions: What to install.

    Raises:
        QflError: A hook point does not exist or cannot fire; or the model ran inside the block and an intervention
            never fired (a run stopped early by `stop_at_layer`, for example): its result would have silently been that
            of a model without it.
    """
    named = _hook_dict(model)
    points = [_checked_point(model, named, intervention.site.hook_name) for intervention in interventions]
    fired = [False] * len(points)
    ran = [False]
    with ExitStack() as stack:
        stack.callback(model.register_forward_hook(lambda *_: ran.__setitem__(0, True)).remove)
        for index, (point, intervention) in enumerate(zip(points, interventions, strict=True)):
            stack.enter_context(_hooked(point, _as_hook(intervention, fired, index)))
        yield model
    if ran[0] and not all(fired):
        silent = [repr(i) for i, did in zip(interventions, fired, strict=True) if not did]
        raise QflError(
            f"the model ran, but these interventions never fired: {', '.join(silent)}. Their effect is not in the "
            "result. Does the run stop at an earlier layer, or this architecture not pass through that point?"
        )


@torch.no_grad()
def capture(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site], **forward_kwargs: Any
) -> dict[Site, Tensor]:
    """The activations at `sites` in one forward pass, as the hook points give them (`[batch, pos, ...]`).

    `site.positions` selects along the second axis. Raises `QflError` as `interventions_on` does.
    """
    captured: dict[Site, Tensor] = {}

    def reader(site: Site) -> Intervention:
        def read(activation: Tensor) -> Tensor:
            kept = activation if site.positions is None else activation[:, list(site.positions)]
            captured[site] = kept.detach().clone()
            return activation

        return Intervention(site, read, "capture")

    with interventions_on(model, [reader(site) for site in sites]):
        model(tokens, **forward_kwargs)
    return captured


def patch(site: Site, activation: Tensor) -> Intervention:
    """Write another run's activation at a site.

    Args:
        site: Where; `positions` None for every position.
        activation: What `capture` returned for this site: `[batch, pos or len(positions), ...]`.
    """

    def write(current: Tensor) -> Tensor:
        if site.positions is None:
            return activation.to(current)
        changed = current.clone()
        changed[:, list(site.positions)] = activation.to(current)
        return changed

    return Intervention(site, write, "patch")
