"""The one hook interface: where an activation is (`Site`), what is done to it (`Intervention`), for how long.

Works on any model with TransformerLens hook points: its own models, and a `TransformerBridge` around a Hugging Face
model, whose points may show an activation in another shape than the module has (heads apart, for example): what is read
and written here is always the shape TransformerLens names. Nothing here knows a task.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.errors import QflError, nearest
from qfl_interp.models.build import HookedModel
from qfl_interp.models.hooked_config import GATED
from qfl_interp.shapes import Tokens
from qfl_interp.sites import SITES, SiteKind, site_kind

if TYPE_CHECKING:
    from qfl_interp.models.tl_version import HookPoint


@dataclass(frozen=True)
class Site:
    """Where an activation is read or changed.

    Args:
        layer: Block, counted from 0; None for a hook point outside the blocks.
        name: A short name of `qfl_interp.sites.SITES` (`resid_post`, `attn_out`, `z`, ...) or, with `layer=None`, a
            full hook point name (`hook_embed`, `ln_final.hook_normalized`).
        positions: Token indices; None for all.

    Raises:
        ValueError: A layer below 0, an unknown short name, no position at all, or positions of an activation whose
            second axis is the head.
    """

    layer: int | None
    name: str = "resid_post"
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layer is not None:
            if self.layer < 0:
                raise ValueError(f"layer must be at least 0, got {self.layer}. Layers count from 0.")
            if self.name not in SITES:
                raise ValueError(
                    f"name of a site in a block must be one of {list(SITES)}, got {self.name!r}."
                    f"{nearest(self.name, SITES)} For any other hook point give layer=None and its full name."
                )
        if self.positions is not None and len(self.positions) == 0:
            raise ValueError("positions must hold at least one token index, got none: nothing would be done.")
        if self.positions is not None and self.kind is not None and not self.kind.has_positions:
            raise ValueError(
                f"positions must be None at {self.name!r}, which is {self.kind.shape}, got {self.positions}. "
                "Select inside the function."
            )

    @property
    def kind(self) -> SiteKind | None:
        """Its entry in the table of sites; None for a hook point that is not in a block or not in the table."""
        return site_kind(self.name)

    @property
    def hook_name(self) -> str:
        """The hook point's full name, as TransformerLens spells it."""
        return self.name if self.layer is None else f"blocks.{self.layer}.{SITES[self.name].hook}"


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
    # A block without an MLP has these points all the same; nothing passes them.
    silent = getattr(config, "attn_only", False) and name.endswith(("hook_mlp_out", "hook_mlp_in"))
    if name not in points or silent:
        n_layers = 1 + max((int(n.split(".")[1]) for n in points if n.startswith("blocks.")), default=-1)
        if name.endswith("hook_resid_mid") and getattr(config, "parallel_attn_mlp", False):
            why = " Its blocks run attention and MLP side by side, so there is no stream between them."
        elif silent or (getattr(config, "attn_only", False) and (".mlp." in name or name.endswith("hook_resid_mid"))):
            why = " Its blocks have no MLP."
        else:
            why = f" It has {n_layers} layers, counted from 0."
        raise QflError(f"the model has no hook point {name!r}.{'' if silent else nearest(name, points)}{why}")
    flag = GATED.get(name.rsplit(".", 1)[-1])
    if flag is not None and not getattr(config, flag, False):
        raise QflError(
            f"hook point {name!r} does not fire while cfg.{flag} is False. Call model.set_{flag}(True) first."
        )
    return points[name]


def _as_hook(intervention: Intervention, fired: set[int], index: int) -> Callable[..., Tensor]:
    """A TransformerLens hook that applies the intervention and notes that it did."""

    def hook(activation: Tensor, *, hook: HookPoint) -> Tensor:
        fired.add(index)
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
        QflError: A hook point does not exist or cannot fire; or in some pass of the model inside the block an
            intervention did not fire (one stopped early by `stop_at_layer`, for example): its result would have
            silently been that of a model without it.
    """
    named = _hook_dict(model)
    points = [_checked_point(model, named, intervention.site.hook_name) for intervention in interventions]
    fired: set[int] = set()  # in the pass that is going on
    silent: set[int] = set()  # in some pass that ended
    every = range(len(points))
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(lambda *_: fired.clear()).remove)
        stack.callback(model.register_forward_hook(lambda *_: silent.update({*every} - fired)).remove)
        for index, (point, intervention) in enumerate(zip(points, interventions, strict=True)):
            stack.enter_context(_hooked(point, _as_hook(intervention, fired, index)))
        yield model
    if silent:
        listed = ", ".join(repr(interventions[index]) for index in sorted(silent))
        raise QflError(
            f"the model ran, but in a pass of it these interventions never fired: {listed}. Their effect is not in its "
            "result. Does the run stop at an earlier layer, or this architecture not pass through that point?"
        )


@torch.no_grad()
def read_activations(
    model: HookedModel, tokens: Tokens, sites: Sequence[Site], **forward_kwargs: Any
) -> dict[Site, Tensor]:
    """The activations at `sites` in one forward pass, as the hook points give them: `[batch, pos, ...]`.

    `interventions.replace.activations_at` reads many examples, each at positions of its own.

    Args:
        model: Any model with TransformerLens hook points.
        tokens: The batch, on the model's device.
        sites: Where; `site.positions` selects along the second axis.
        **forward_kwargs: For the model, such as `stop_at_layer`.

    Returns:
        A copy for each site, on the model's device, without gradients.

    Raises:
        QflError: As `interventions_on`.
    """
    found: dict[Site, Tensor] = {}

    def reader(site: Site) -> Intervention:
        def read(activation: Tensor) -> Tensor:
            kept = activation if site.positions is None else activation[:, list(site.positions)]
            found[site] = kept.detach().clone()
            return activation

        return Intervention(site, read, "read")

    with interventions_on(model, [reader(site) for site in sites]):
        model(tokens, **forward_kwargs)
    return found


def write_activation(site: Site, activation: Float[Tensor, "batch place *rest"]) -> Intervention:
    """The intervention that puts a given activation, another run's for example, in a site's place.

    Args:
        site: Where; `positions` None for every position.
        activation: What `read_activations` returned for this site: `[batch, pos or len(positions), ...]`; a batch of 1
            is written into every example.

    Raises:
        ValueError: In the pass: it has another shape than what it replaces.
    """

    def write(current: Tensor) -> Tensor:
        place = current if site.positions is None else current[:, list(site.positions)]
        if activation.shape[1:] != place.shape[1:] or activation.shape[0] not in (1, place.shape[0]):
            raise ValueError(
                f"an activation written at {site.hook_name} must have the shape {tuple(place.shape)} of what it "
                f"replaces, got {tuple(activation.shape)}. Read it at the same site of as many examples."
            )
        given = activation.to(current).expand_as(place)
        if site.positions is None:
            return given
        changed = current.clone()
        changed[:, list(site.positions)] = given
        return changed

    return Intervention(site, write, "write")


def capture(model: HookedModel, tokens: Tokens, sites: Sequence[Site], **forward_kwargs: Any) -> dict[Site, Tensor]:
    """Old name of `read_activations`; a lens is called `capture` too."""
    _renamed("qfl.capture", "qfl.read_activations", "qfl_interp.analyses.capture")
    return read_activations(model, tokens, sites, **forward_kwargs)


def patch(site: Site, activation: Tensor) -> Intervention:
    """Old name of `write_activation`; a lens is called `patch` too."""
    _renamed("qfl.patch", "qfl.write_activation", "qfl_interp.analyses.patch")
    return write_activation(site, activation)


def _renamed(old: str, new: str, lens: str) -> None:
    """Warn whoever called a function by its old name."""
    text = f"{old} is called {new} now, and its old name goes in the next release. The lens {lens} keeps its name."
    warnings.warn(text, DeprecationWarning, stacklevel=3)
