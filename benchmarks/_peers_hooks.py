"""Patching and caching: the same model and places in TransformerLens, nnsight and pyvene.

The model is a `HookedTransformer`; nnsight and pyvene reach its hook points as modules, each in a copy of its own,
since they change what they wrap.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import torch
from torch import Tensor

import qfl_interp as qfl
from qfl_interp.activations.spans import site_spans
from qfl_interp.interventions.pairs import PatchPairs, patch_pairs
from qfl_interp.interventions.patching import patch_sweep
from qfl_interp.models.build import build_model, model_device, model_on

N_LAYERS, FIRST, LAST, CHUNK = 4, 33, 49, 500


def _model(device: str) -> Any:
    task = qfl.load_task("addition", 16)
    model = build_model(qfl.ModelConfig(d_model=64, n_layers=N_LAYERS), task, seed=0)
    return task, model_on(model, device)


def _furthest(one: Any, other: Any) -> float:
    """The largest difference, relative to the largest value."""
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    return float(np.abs(one - other).max() / np.abs(other).max())


def cases(device: str, quick: bool) -> Iterator[tuple[Any, ...]]:
    """Patching one place at a time, and caching: name, makers, difference, tolerance, rounds."""
    task, model = _model(device)
    n_pairs, n, rounds = (4, 500, 1) if quick else (32, 4000, 3)
    pairs = patch_pairs(task, task.sample_pairs(np.random.default_rng(0), n_pairs, "carry", 3))
    stop = 6 if quick else pairs.span.stop
    sweep = _Sweep(model, pairs, stop)
    name = f"patching: {N_LAYERS} layers x {stop} positions of resid_pre, {n_pairs} pairs, d_model 64"
    yield name, sweep.makers(), _furthest, 1e-4, rounds
    tokens = task.encode(task.sample(np.random.default_rng(1), n)).tokens
    caching = _Caching(model, tokens)
    name = f"caching: resid_post of {N_LAYERS} layers, positions {FIRST} to {LAST} of {n} examples, batches of {CHUNK}"
    yield name, caching.makers(), _furthest, 1e-5, rounds


class _Sweep:
    """The mean logit difference under the clean value at every layer and position, [layer, pos]."""

    def __init__(self, model: Any, pairs: PatchPairs, stop: int) -> None:
        self.model, self.pairs, self.stop = model, pairs, stop
        device = model_device(model)
        self.clean, self.corrupted = pairs.clean.to(device), pairs.corrupted.to(device)
        row, at = torch.arange(len(pairs)), pairs.contrast
        indices = (row, at, pairs.clean[row, at + 1], pairs.corrupted_answer[row, at + 1])
        self.row, self.at, self.towards, self.away = (index.to(device) for index in indices)

    def metric(self, logits: Tensor) -> Tensor:
        """The mean logit difference at the contrast."""
        at_contrast = logits[self.row, self.at]
        return (at_contrast[self.row, self.towards] - at_contrast[self.row, self.away]).mean()

    def makers(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        return {"ours": self.ours, "transformer_lens": self.lens, "nnsight": self.nnsight, "pyvene": self.pyvene}

    def places(self) -> list[tuple[int, int]]:
        return [(layer, pos) for layer in range(N_LAYERS) for pos in range(self.stop)]

    def ours(self) -> Callable[[], Any]:
        def work() -> np.ndarray:
            found = patch_sweep(self.model, self.pairs, component="resid_pre", positions=range(self.stop))
            return found.logit_diff.mean(axis=2)

        return work

    def lens(self) -> Callable[[], Any]:
        from transformer_lens import patching

        model = copy.deepcopy(self.model)

        @torch.no_grad()
        def work() -> np.ndarray:
            _, cache = model.run_with_cache(self.clean)
            with redirect_stderr(io.StringIO()):
                if self.stop == self.pairs.span.stop:
                    found = patching.get_act_patch_resid_pre(model, self.corrupted, cache, self.metric)
                    return found.cpu().numpy()[:, : self.stop]
                return np.array([[self._one(model, cache, *place)] for place in self.places()]).reshape(N_LAYERS, -1)

        return work

    def _one(self, model: Any, cache: Any, layer: int, pos: int) -> float:
        def write(x: Tensor, hook: Any) -> Tensor:
            x[:, pos] = cache[hook.name][:, pos]
            return x

        hooks = [(f"blocks.{layer}.hook_resid_pre", write)]
        return float(self.metric(model.run_with_hooks(self.corrupted, fwd_hooks=hooks)))

    def nnsight(self) -> Callable[[], Any]:
        import nnsight

        model = nnsight.NNsight(copy.deepcopy(self.model))
        corrupted, metric = self.corrupted, self.metric

        @torch.no_grad()
        def clean_values() -> list[Tensor]:
            saved = []
            with model.trace(self.clean):
                for layer in range(N_LAYERS):
                    saved.append(model.blocks[layer].hook_resid_pre.output.save())
            return saved

        @torch.no_grad()
        def work() -> np.ndarray:
            clean, found = clean_values(), []
            for layer, pos in self.places():
                value = clean[layer][:, pos]
                with model.trace(corrupted):
                    model.blocks[layer].hook_resid_pre.output[:, pos] = value
                    logits = model.output.save()
                found.append(float(metric(logits)))
            return np.array(found).reshape(N_LAYERS, -1)

        return work

    def pyvene(self) -> Callable[[], Any]:
        import pyvene

        names = [f"blocks[{layer}].hook_resid_pre.output" for layer in range(N_LAYERS)]
        model = _for_pyvene(copy.deepcopy(self.model), names)
        swaps = [
            pyvene.IntervenableModel(
                [{"layer": layer, "component": name, "intervention_type": pyvene.VanillaIntervention, "unit": "pos"}],
                model=model,
            )
            for layer, name in enumerate(names)
        ]

        @torch.no_grad()
        def work() -> np.ndarray:
            _, cache = model.run_with_cache(self.clean, names_filter=lambda name: name.endswith("resid_pre"))
            found = []
            for layer, pos in self.places():
                key = next(iter(swaps[layer].interventions))
                source = {key: cache[f"blocks.{layer}.hook_resid_pre"][:, pos : pos + 1]}
                _, logits = swaps[layer](
                    {"input": self.corrupted}, source_representations=source, unit_locations={"sources->base": pos}
                )
                found.append(float(self.metric(logits)))
            return np.array(found).reshape(N_LAYERS, -1)

        return work


def _for_pyvene(model: Any, names: list[str]) -> Any:
    """The model with what pyvene asks of one: its width by component, a config and a device."""
    from pyvene.models.modeling_utils import type_to_dimension_mapping

    type_to_dimension_mapping.setdefault(type(model), {}).update({name: ("d_model",) for name in names})
    object.__setattr__(model, "config", copy.copy(model.cfg))
    object.__setattr__(model.config, "name_or_path", "")
    object.__setattr__(model, "device", model_device(model))
    return model


class _Caching:
    """The residual stream behind each block at some positions, on the CPU, [layer, example, pos, d_model]."""

    def __init__(self, model: Any, tokens: Tensor) -> None:
        self.model, self.tokens, self.device = model, tokens, model_device(model)

    def makers(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        return {"ours": self.ours, "transformer_lens": self.lens, "nnsight": self.nnsight, "pyvene": self.pyvene}

    def _joined(self, batch: Callable[[Tensor], list[Tensor]]) -> Callable[[], Any]:
        """Each batch's activations cut and joined."""

        @torch.no_grad()
        def work() -> Tensor:
            kept: list[list[Tensor]] = [[] for _ in range(N_LAYERS)]
            for part in self.tokens.split(CHUNK):
                for layer, value in enumerate(batch(part.to(self.device))):
                    kept[layer].append(value[:, FIRST : LAST + 1].to("cpu", copy=True))
            return torch.stack([torch.cat(parts) for parts in kept])

        return work

    def ours(self) -> Callable[[], Any]:
        def work() -> Tensor:
            found = site_spans(self.model, self.tokens, FIRST, LAST, names=["resid_post"], chunk=CHUNK)
            return found["resid_post"].values.transpose(1, 2)

        return work

    def lens(self) -> Callable[[], Any]:
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(N_LAYERS)]

        def batch(part: Tensor) -> list[Tensor]:
            _, cache = self.model.run_with_cache(part, names_filter=names)
            return [cache[name] for name in names]

        return self._joined(batch)

    def nnsight(self) -> Callable[[], Any]:
        import nnsight

        model = nnsight.NNsight(copy.deepcopy(self.model))

        def batch(part: Tensor) -> list[Tensor]:
            saved = []
            with model.trace(part):
                for layer in range(N_LAYERS):
                    saved.append(model.blocks[layer].hook_resid_post.output.save())
            return saved

        return self._joined(batch)

    def pyvene(self) -> Callable[[], Any]:
        import pyvene

        names = [f"blocks[{layer}].hook_resid_post.output" for layer in range(N_LAYERS)]
        model = _for_pyvene(copy.deepcopy(self.model), names)
        collect = pyvene.IntervenableModel(
            [
                {
                    "layer": layer,
                    "component": name,
                    "intervention_type": pyvene.CollectIntervention,
                    "max_number_of_units": LAST + 1 - FIRST,
                }
                for layer, name in enumerate(names)
            ],
            model=model,
        )
        positions = list(range(FIRST, LAST + 1))

        @torch.no_grad()
        def work() -> Tensor:
            kept: list[list[Tensor]] = [[] for _ in range(N_LAYERS)]
            for part in self.tokens.split(CHUNK):
                where = {"base": [[positions] * len(part)] * N_LAYERS}
                (_, found), _ = collect({"input": part.to(self.device)}, unit_locations=where)
                for layer, value in enumerate(found):
                    kept[layer].append(value.reshape(len(part), len(positions), -1).cpu())
            return torch.stack([torch.cat(parts) for parts in kept])

        return work
