"""Weights into a module, key by key: what is missing, left over or of another shape is named, and nothing is dropped.

Buffers are loaded and compared like parameters, with two rules. Masks and rotary tables of transformer_lens follow from
the configuration: they may be missing, and are compared where they are there. What the file has and the module keeps
outside its state dict (a buffer that is not persistent) is compared too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qfl_interp.errors import QflError
from qfl_interp.models.build import is_hooked_transformer

# What DistributedDataParallel, torch.compile and wrapping trainers put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Buffers of attention that a configuration of transformer_lens decides.
_MASKS, _CONSTANTS, _ROTARY = ("mask",), ("IGNORE",), ("rotary_sin", "rotary_cos")
_DERIVED = (*_MASKS, *_CONSTANTS, *_ROTARY)


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy saved tensors into a module, in its precision, after all of them were compared with it by name.

    Names may all begin with what a wrapper put there (`module.`, `_orig_mod.`, `model.`). Of tied weights one name is
    enough; where a file has both, they must be equal.

    Args:
        module: Fresh, without hook points of a bridge.
        tensors: What a file held.
        where: The file, for messages.

    Raises:
        QflError: A tensor is missing, left over, of another shape or kind, not the one that the configuration decides,
            or not equal to the one it is tied to; all are named, and the module is unchanged.
    """
    wanted = module.state_dict(keep_vars=True)
    given = _without_prefix(tensors, wanted)
    derived = {name for name in wanted if is_hooked_transformer(module) and name.rpartition(".")[2] in _DERIVED}  # pyright: ignore[reportArgumentType]
    missing = {name for name in wanted.keys() - given.keys() if name not in derived}
    groups: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        groups.setdefault(id(tensor), []).append(name)
    tied = [names for names in groups.values() if len(names) > 1]
    present = {name for names in tied if any(name in given for name in names) for name in names}
    faults = [f"{name}: missing" for name in sorted(missing - present)]
    buffers, ignored = dict(module.named_buffers()), getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    for name in sorted(given.keys() - wanted.keys()):
        if name in buffers:
            faults += _differing(name, given[name], buffers[name])
        elif not any(re.search(pattern, name) for pattern in ignored):
            faults.append(f"{name}: not in this model")
    for name in sorted(wanted.keys() & given.keys()):
        found, want = given[name], wanted[name]
        if name in derived:
            faults += _derived_faults(module, name, found, want)
        elif found.shape != want.shape:
            faults.append(f"{name}: shape {tuple(found.shape)} instead of {tuple(want.shape)}")
        elif found.is_floating_point() != want.is_floating_point():
            faults.append(f"{name}: dtype {found.dtype} instead of {want.dtype}")
    for names in tied:
        held = [name for name in names if name in given]
        if any(not torch.equal(given[held[0]], given[name]) for name in held[1:]):
            faults.append(f"{' and '.join(held)}: tied in this model, and not equal")
    if faults:
        raise QflError(
            f"weights of {where} do not fit the model, {len(faults)} mismatches:\n  " + "\n  ".join(faults) + "\n"
            "Build the model that was saved."
        )
    for name in wanted.keys() & given.keys() - derived:
        wanted[name].copy_(given[name])


def _without_prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors by the module's names: without the prefixes of wrappers that all names have, and the module's not."""
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            everywhere = bool(tensors) and all(name.startswith(prefix) for name in tensors)
            if everywhere and not any(name.startswith(prefix) for name in wanted):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _derived_faults(module: nn.Module, name: str, found: Tensor, want: Tensor) -> list[str]:
    """What is wrong with a buffer that the configuration decides."""
    kind = name.rpartition(".")[2]
    if kind in _ROTARY:  # longer in some versions of transformer_lens than in others
        n = min(len(found), len(want))
        return _differing(name, found[:n], want[:n])
    if kind in _CONSTANTS:
        return [] if bool(torch.isneginf(found) | (found <= -1e4)) else [f"{name}: {found.item()} instead of -inf"]
    if found.numel() == 0:
        return []
    n = found.shape[-1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    attention = module.get_submodule(name.rpartition(".")[0])
    if getattr(attention, "attn_type", "global") == "local":
        causal = causal.triu(1 - int(getattr(module.cfg, "window_size", n)))  # pyright: ignore
    return _differing(name, found, causal)


def _differing(name: str, found: Tensor, want: Tensor) -> list[str]:
    """A fault where a buffer is not what the model computes, to the precision it was saved in."""
    if found.shape != want.shape:
        return [f"{name}: shape {tuple(found.shape)} instead of {tuple(want.shape)}"]
    coarse = max(torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0 for t in (found, want))
    if torch.allclose(found.double(), want.double(), rtol=4 * coarse, atol=4 * coarse):
        return []
    return [f"{name}: other values than the configuration of this model gives"]
