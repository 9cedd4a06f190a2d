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

from benchmarks._measuring import interleaved
from qfl_interp.models.build import model_device

TITLE = "Patching: batched sweeps and attribution against TransformerLens's patching loops"

LABEL = 3


def _trained(quick: bool, device: str) -> tuple[Any, Any]:
    """A model trained on addition (until it adds, in the full run), and pairs that differ in one carry."""
    import qfl_interp as qfl
    from qfl_interp.interventions.pairs import patch_pairs

    task = qfl.load_task("addition", length=4 if quick else 16)
    steps, n_layers = (30, 2) if quick else (350, 4)
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


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Seconds of each sweep (best of interleaved rounds), ratios, agreement; and attribution's time and error.

    The maps are compared before anything is timed. A speed-up is one in processor seconds.

    Args:
        quick: A short run on short problems, few pairs, one round.
        device: Of the model.
    """
    model, pairs = _trained(quick, device)
    size = f"{model.cfg.n_layers} layers, {pairs.span.stop} positions, {len(pairs)} pairs, d_model 64"
    rows = []
    for component in ("resid_pre", "mlp_out", "z"):
        case = f"{component}: {size}"
        rows += [{"case": case, **row} for row in _compare(model, pairs, component, 1 if quick else 2)]
    return rows


def _compare(model: Any, pairs: Any, component: str, n_rounds: int) -> list[dict[str, Any]]:
    """A row a way to a component's map, ours first."""
    from qfl_interp.interventions.attribution import attribution_error, attribution_patch
    from qfl_interp.interventions.patching import patch_sweep

    ours = "patch_sweep"
    maps = {"transformer_lens.patching, a pass a place": lambda: _per_place(model, pairs, component)}
    estimates = {
        f"attribution, {f'{steps} integrated gradients' if steps else 'one gradient'}": (
            lambda steps=steps: attribution_patch(model, pairs, component=component, integrated=steps)
        )
        for steps in (0, 5)
    }
    works = {ours: lambda: patch_sweep(model, pairs, component=component), **maps, **estimates}
    scores = patch_sweep(model, pairs, component=component)
    corrupted, exact = scores.corrupted.mean("logit_diff"), scores.normalised()
    gap = scores.clean.mean("logit_diff") - corrupted
    agreement: dict[str, dict[str, float]] = {
        name: {"largest_difference": float(np.abs((work() - corrupted) / gap - exact).max())}
        for name, work in maps.items()
    }
    for name, work in estimates.items():
        error = attribution_error(exact, work().normalised())
        agreement[name] = {"largest_difference": error.max_abs_error, "correlation": error.pearson_r}
    taken = interleaved(works, n_rounds)
    return [
        {
            "name": name,
            "cpu_s": t.cpu,
            "wall_s": t.wall,
            "times_ours": t.cpu / taken[ours].cpu,
            **agreement.get(name, {}),
        }
        for name, t in taken.items()
    ]
