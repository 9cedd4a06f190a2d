"""Parallel greedy decoding against one token at a time, with and without TransformerLens's cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformer_lens import HookedTransformer

import qfl_interp as qfl
from benchmarks._measuring import interleaved
from qfl_interp.interventions.planes import project_out
from qfl_interp.models.build import build_model
from qfl_interp.models.generate import decode_greedy, generate_greedy
from qfl_interp.models.hooks import Intervention, Site, interventions_on

TITLE = "Greedy decoding of answers, batched, intact and under an ablation"

# Logits closer than this may change order between batch shapes, in float32.
_TIE = 1e-3


@torch.no_grad()
def _one_at_a_time(model: HookedTransformer, prompts: torch.Tensor, n_new: int) -> torch.Tensor:
    """The whole prefix again for every token."""
    tokens = prompts
    for _ in range(n_new):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


def _unsettled(model: HookedTransformer, prompts: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
    """`decode_greedy`, which passes an example no more once all of it is settled: no intervention here is aligned."""
    tokens = torch.cat([prompts, guess], dim=1)
    free = (torch.arange(tokens.shape[1], device=tokens.device) >= prompts.shape[1]).expand_as(tokens)
    return decode_greedy(lambda part, _rows: model(part), tokens, free)


def _cached(model: HookedTransformer, prompts: torch.Tensor, n_new: int) -> torch.Tensor:
    """TransformerLens's own decoding, with its cache."""
    written = model.generate(
        prompts,
        max_new_tokens=n_new,
        do_sample=False,
        stop_at_eos=False,
        use_past_kv_cache=True,
        return_type="tokens",
        verbose=False,
    )
    assert isinstance(written, torch.Tensor)
    return written


@torch.no_grad()
def _check_same(model: HookedTransformer, ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """Assert that both wrote the same, but for ties within rounding; how many examples such a tie parts."""
    apart = torch.nonzero((ours != theirs).any(dim=1)).flatten()
    for example in apart.tolist():
        first = int((ours[example] != theirs[example]).nonzero()[0])
        best = model(ours[example : example + 1, :first])[0, -1].topk(2).values
        assert float(best[0] - best[1]) < _TIE, f"example {example} differs at token {first}"
    return len(apart)


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Processor and wall seconds to write the answers of a batch, ratios of the former, and how many passes they took.

    An untrained 4-layer model of width 64 on the prompts of 16-bit additions. The guess is what the intact model
    writes, as a reference answer is for a trained one: right in the intact rows, mostly right under a mild ablation
    (10 % of a direction's component taken out after block 1 at every token), half wrong under a full one. A trained
    model's errors under an ablation end sooner: they do not scramble what follows. Without a guess the prompt's last
    token is repeated.

    Args:
        quick: A small batch, one round.
        device: Of the model.
    """
    n, rounds = (32, 1) if quick else (512, 2)
    task = qfl.load_task("addition", 16)
    model = build_model(qfl.ModelConfig(d_model=64, n_layers=4), task, seed=0)
    model.to(device, print_details=False)
    batch = task.encode(task.sample(np.random.default_rng(0), n))
    start = int(batch.loss_mask[0].nonzero()[0]) + 1
    prompts, n_new = batch.tokens[:, :start].to(device), task.n_ctx - start
    guess = _one_at_a_time(model, prompts, n_new)[:, start:]
    direction = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).to(device)
    rows = []
    for case, epsilon in {"intact": 0.0, "mildly ablated": 0.1, "ablated": 1.0}.items():
        changes = [project_out(Site(1), direction, epsilon=epsilon)] if epsilon else []
        with interventions_on(model, changes):
            rows += _compare(model, prompts, n_new, guess, rounds, f"{case}: {n} prompts, {n_new} new tokens")
    return rows


def _compare(
    model: HookedTransformer, prompts: torch.Tensor, n_new: int, guess: torch.Tensor, rounds: int, case: str
) -> list[dict[str, Any]]:
    """A row a way, with whatever is installed on the model."""
    contenders: dict[str, Callable[[], torch.Tensor]] = {
        "ours, with the guess": lambda: generate_greedy(model, prompts, n_new=n_new, guess=guess),
        "ours, without a guess": lambda: generate_greedy(model, prompts, n_new=n_new),
        "ours, with the guess, unsettled examples alone": lambda: _unsettled(model, prompts, guess),
        "one token at a time": lambda: _one_at_a_time(model, prompts, n_new),
        "HookedTransformer.generate, cached": lambda: _cached(model, prompts, n_new),
    }
    passes, parted = {}, 0
    written = _one_at_a_time(model, prompts, n_new)
    for name, work in contenders.items():
        count = [0]
        with interventions_on(model, [Intervention(Site(0), lambda x, count=count: _counted(x, count))]):
            parted = max(parted, _check_same(model, work(), written))
        passes[name] = count[0]
    right = float((guess == written[:, prompts.shape[1] :]).float().mean())
    seconds = interleaved(contenders, rounds)
    ours = seconds["ours, with the guess"].cpu
    return [
        {"case": case, "name": name, "cpu_s": taken.cpu, "wall_s": taken.wall, "times_ours": taken.cpu / ours,
         "passes": passes[name], "guess_right": right, "parted_by_ties": parted}
        for name, taken in seconds.items()
    ]  # fmt: skip


def _counted(x: torch.Tensor, count: list[int]) -> torch.Tensor:
    """The activation as it is; one more pass."""
    count[0] += 1
    return x
