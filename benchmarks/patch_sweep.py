"""Activation patching in batched sweeps and by gradient, against plain TransformerLens, on the same pairs."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._measuring import timed
from qfl_interp.models.build import model_device

TITLE = "Patching: batched sweeps and attribution against TransformerLens's patching loops"

LABEL = 3


def _trained(quick: bool, device: str) -> tuple[Any, Any]:
    """A model trained on addition (to the end in the full run), and pairs that differ in one carry."""
    import qfl_interp as qfl
    from qfl_interp.interventions.pairs import patch_pairs

    task = qfl.load_task("addition", length=4 if quick else 16)
    steps, n_layers = (30, 2) if quick else (700, 4)
    with tempfile.TemporaryDirectory() as folder:
        run = qfl.train(
            task,
            qfl.ModelConfig(d_model=64, n_heads=4, n_layers=n_layers),
            qfl.TrainConfig(n_steps=steps, batch_size=64, n_checkpoints=2, n_val=64),
            Path(folder) / "run",
            device=device,
            progress=False,
        )
        model = run.load_model(run.steps[-1], device=device)
    drawn = task.sample_pairs(np.random.default_rng(0), 4 if quick else 32, "carry", LABEL)
    return model, patch_pairs(task, drawn)


def _seconds(job: Callable[[], Any], n_rounds: int) -> tuple[float, Any]:
    """Best time of some rounds, and what it gave."""
    return min((timed(job) for _ in range(n_rounds)), key=lambda found: found[0])


def _contrast(pairs: Any, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """The mean logit difference at the contrast, as TransformerLens's functions want it."""
    row = torch.arange(len(pairs))
    at = pairs.contrast
    towards, away = pairs.clean[row, at + 1], pairs.corrupted_answer[row, at + 1]
    row, at, towards, away = (index.to(device) for index in (row, at, towards, away))
    return lambda logits: (logits[row, at, towards] - logits[row, at, away]).mean()


@torch.no_grad()
def _per_place(model: Any, pairs: Any, component: str) -> np.ndarray:
    """TransformerLens's own sweep: a forward pass for each place and position, all pairs in its batch."""
    from transformer_lens import patching

    sweep = {
        "resid_pre": patching.get_act_patch_resid_pre,
        "mlp_out": patching.get_act_patch_mlp_out,
        "z": patching.get_act_patch_attn_head_out_by_pos,
    }[component]
    device = model_device(model)
    _, cache = model.run_with_cache(pairs.clean.to(device))
    with redirect_stderr(io.StringIO()):  # its progress bar
        found = sweep(model, pairs.corrupted.to(device), cache, _contrast(pairs, device))
    # Heads come as [layer, pos, head].
    return (found.movedim(2, 1).flatten(0, 1) if component == "z" else found).cpu().numpy()[:, : pairs.span.stop]


@torch.no_grad()
def _one_by_one(model: Any, pairs: Any) -> np.ndarray:
    """A forward pass for every layer, position and pair of the residual stream, as in a notebook's first version."""
    found, device = np.zeros((model.cfg.n_layers, pairs.span.stop)), model_device(model)
    for pair in range(len(pairs)):
        clean, corrupted = (part[pair : pair + 1].to(device) for part in (pairs.clean, pairs.corrupted))
        at = int(pairs.contrast[pair])
        towards, away = pairs.clean[pair, at + 1], pairs.corrupted_answer[pair, at + 1]
        _, cache = model.run_with_cache(clean)
        for layer in range(model.cfg.n_layers):
            name = f"blocks.{layer}.hook_resid_pre"
            for position in range(pairs.span.stop):

                def write(x: torch.Tensor, hook: Any, position: int = position, cache: Any = cache) -> torch.Tensor:
                    x[:, position] = cache[hook.name][:, position]
                    return x

                logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, write)])[0, at]
                found[layer, position] += float(logits[towards] - logits[away]) / len(pairs)
    return found


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Seconds of each sweep (best of interleaved rounds), ratios, agreement; and attribution's time and error.

    Args:
        quick: A short run on short problems, few pairs, one round.
        device: Of the model.
    """
    from qfl_interp.interventions.attribution import attribution_error, attribution_patch
    from qfl_interp.interventions.patching import patch_sweep

    model, pairs = _trained(quick, device)
    n_rounds, rows = 1 if quick else 2, []
    size = f"{model.cfg.n_layers} layers, {pairs.span.stop} positions, {len(pairs)} pairs, d_model 64"
    for component in ("resid_pre", "mlp_out", "z"):
        ours, scores = _seconds(lambda component=component: patch_sweep(model, pairs, component=component), n_rounds)
        theirs, found = _seconds(lambda component=component: _per_place(model, pairs, component), n_rounds)
        gap = scores.clean.mean("logit_diff") - scores.corrupted.mean("logit_diff")
        exact = scores.normalised()

        def off(values: np.ndarray, scores: Any = scores, gap: float = gap, exact: np.ndarray = exact) -> float:
            return float(np.abs((values - scores.corrupted.mean("logit_diff")) / gap - exact).max())

        rows += [
            ("patch_sweep", ours, "s", component),
            ("transformer_lens.patching, a pass a place", theirs, "s", component),
            ("speed-up over it", theirs / ours, "x", component),
            ("largest difference of the normalised maps", off(found), "", component),
        ]
        if component == "resid_pre":
            slow, single = _seconds(lambda: _one_by_one(model, pairs), 1)
            rows += [
                ("TransformerLens, a pass a single patch", slow, "s", component),
                ("speed-up over it", slow / ours, "x", component),
                ("largest difference of the normalised maps", off(single), "", component),
            ]
        for steps in (0, 5):
            seconds, estimate = _seconds(
                lambda component=component, steps=steps: attribution_patch(
                    model, pairs, component=component, integrated=steps
                ),
                n_rounds,
            )
            error = attribution_error(exact, estimate.normalised())
            kind = f"attribution, {steps} integrated gradients" if steps else "attribution, one gradient"
            rows += [
                (kind, seconds, "s", component),
                (f"{kind}: speed-up over patch_sweep", ours / seconds, "x", component),
                (f"{kind}: correlation with exact patching", error.pearson_r, "r", component),
                (f"{kind}: largest error of the normalised map", error.max_abs_error, "", component),
            ]
    return [{"name": name, "value": value, "unit": unit, "case": f"{case}: {size}"} for name, value, unit, case in rows]
