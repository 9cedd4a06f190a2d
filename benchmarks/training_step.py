"""One training step on 16-bit addition: ours against the plain HookedTransformer and a plain PyTorch Llama.

Every variant does the same step on the same tokens: forward, mean cross-entropy over the 19 scored
positions, backward, clipping to norm 1, AdamW. Wall and processor times are medians over interleaved rounds; memory
is each variant's own process's.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._measuring import Seconds, isolated, timed, wait
from benchmarks._memory import held_mib, peak_mib
from qfl_interp.config import ModelConfig
from qfl_interp.models.build import build_hooked
from qfl_interp.models.fast_forward import compile_fast_logits, fast_logits

TITLE = "Training step (addition-16, 4 layers, 4 heads, batch 64)"

D_VOCAB, N_CTX, N_LAYERS, N_HEADS, BATCH = 5, 52, 4, 4, 64
SCORED = slice(32, 51)  # positions that predict `=`, the 17 sum bits and the end
VARIANTS = ("hooked", "llama", "ours", "ours_compiled")
LABELS = {
    "hooked": "HookedTransformer, all positions",
    "llama": "plain PyTorch Llama, fused attention",
    "ours": "fast_logits, fused AdamW",
    "ours_compiled": "fast_logits compiled, fused AdamW",
}


class _PlainBlock(nn.Module):
    """A Llama block as a user would write it."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(d_model, 1e-5), nn.RMSNorm(d_model, 1e-5)
        self.q, self.k, self.v, self.o = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(d_model, d_mlp, bias=False) for _ in range(2))
        self.down = nn.Linear(d_mlp, d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (proj(h).unflatten(-1, (N_HEADS, -1)).transpose(1, 2) for proj in (self.q, self.k, self.v))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class PlainLlama(nn.Module):
    """A Llama of the same size in plain PyTorch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(D_VOCAB, config.d_model)
        self.blocks = nn.ModuleList(_PlainBlock(config.d_model, config.d_mlp_used) for _ in range(N_LAYERS))
        self.norm = nn.RMSNorm(config.d_model, 1e-5)
        self.unembed = nn.Linear(config.d_model, D_VOCAB, bias=False)
        angle = torch.arange(N_CTX)[:, None] * 10_000.0 ** (
            -torch.arange(0, config.d_head_used, 2) / config.d_head_used
        )
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at all positions."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.unembed(self.norm(x))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def make_step(variant: str, d_model: int, device: str) -> Callable[[], None]:
    """A function that does one training step of the variant and waits for it."""
    config = ModelConfig(d_model=d_model, n_layers=N_LAYERS, n_heads=N_HEADS)
    torch.manual_seed(0)
    model: Any = PlainLlama(config) if variant == "llama" else build_hooked(config, d_vocab=D_VOCAB, n_ctx=N_CTX)
    nn.Module.to(model, device)  # HookedTransformer's own prints
    tokens = torch.randint(0, D_VOCAB, (BATCH, N_CTX), generator=torch.Generator().manual_seed(1)).to(device)
    targets = tokens[:, 1:][:, SCORED].flatten()
    scored = torch.arange(N_CTX)[SCORED].tolist()
    compiled = compile_fast_logits(model) if variant == "ours_compiled" else None
    ours = variant.startswith("ours")
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True if ours else None
    )

    def step() -> None:
        optimizer.zero_grad()
        if compiled is not None:
            logits = compiled(tokens, SCORED)
        elif ours:
            logits = fast_logits(model, tokens, SCORED)
        else:
            logits = model(tokens)[:, scored]
        F.cross_entropy(logits.flatten(0, 1), targets).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        wait()

    return step


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of median milliseconds and of memory growth, each beside the plain HookedTransformer's.

    Args:
        quick: One size, few rounds, nothing compiled.
        device: Of the models.
    """
    variants = VARIANTS[:3] if quick else VARIANTS
    rows = []
    for d_model in (16,) if quick else (16, 64, 256):
        times = _milliseconds(d_model, variants, device, n_rounds=5 if quick else 15)
        memory = {variant: isolated(device, _memory_mib, variant, d_model, device) for variant in variants}
        measured = (
            ("time", "ms", {variant: taken.wall for variant, taken in times.items()}),
            ("processor time", "ms", {variant: taken.cpu for variant, taken in times.items()}),
            ("peak memory", "MiB", memory),
        )
        for metric, unit, values in measured:
            for variant in variants:
                row = {"name": f"d_model {d_model}, {LABELS[variant]}, {metric}", "value": values[variant]}
                baselines = {f"times_less_than_{b}": values[b] / values[variant] for b in ("hooked", "llama")}
                rows.append({**row, "unit": unit, "d_model": d_model, "variant": variant, **baselines})
    return rows


def _milliseconds(d_model: int, variants: tuple[str, ...], device: str, n_rounds: int) -> dict[str, Seconds]:
    """Median times of a step by variant, milliseconds; a round times each variant three times in a row."""
    steps = {variant: make_step(variant, d_model, device) for variant in variants}
    with warnings.catch_warnings():
        warnings.simplefilter("default", RuntimeWarning)  # a failed compilation is said, and timed as it runs
        for step in steps.values():
            for _ in range(3):
                step()
    taken: dict[str, list[Seconds]] = {variant: [] for variant in variants}
    for _ in range(n_rounds):
        for variant, step in steps.items():
            step()  # brings its own weights back into the caches
            for _ in range(3):
                taken[variant].append(timed(step)[0])
    return {
        variant: Seconds(*(1e3 * statistics.median(of) for of in zip(*rounds, strict=True)))
        for variant, rounds in taken.items()
    }


def _memory_mib(variant: str, d_model: int, device: str) -> float:
    """What ten steps add to this process's peak memory (the device's peak on a GPU), in MiB."""
    # Libraries that load at the first step are not what a variant needs.
    make_step("llama", 8, device)()
    before = held_mib(device)
    step = make_step(variant, d_model, device)
    for _ in range(10):
        step()
    return peak_mib(device) - before
