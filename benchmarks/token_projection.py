"""Every answer token's loss gradient along 50 directions in weight space: four ways to compute it, and its curvature.

The setting is POLCA's, smaller: three-digit addition, 3 layers, d_model 128, "gpt2" style, 1,250 problems or 5,000
answer tokens, float32. Each way runs in a process of its own, which first warms up on a few problems, so that peak
memory (above what the process held before, its result included) is that way's alone; times are the better of two rounds
of each. "Per-token gradients" is `torch.func.vmap` of `torch.func.grad` and one product of the stacked gradients with
the directions: with the chunk that was fastest on a small part, and with a large one. Times are compared with the first
row's; processor seconds, which other programs on the machine disturb less, are given beside. GFLOP counts
multiplications and additions of the matrix products alone. Agreement is the largest difference to one Jacobian-vector
product at a time, relative to the largest entry. The second derivatives of nested forward mode, which only it can give,
are measured along a fifth of the directions. The last row is a plain product of two square matrices, the most that this
machine gives to any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from benchmarks._measuring import isolated
from benchmarks._memory import held_mib, peak_mib
from qfl_interp.config import ModelConfig
from qfl_interp.curvature.token_gradients import project_curvature, project_gradients
from qfl_interp.curvature.token_gradients.operations import jvp_operations, layer_operations
from qfl_interp.curvature.token_losses import ScoredTokens, TokenLoss, scored_tokens
from qfl_interp.data.registry import load_task
from qfl_interp.models.build import build_model, model_on

TITLE = "Per-token gradients along directions (3 layers, d_model 128, decimal_addition)"

N_PROBLEMS, N_DIRECTIONS = 1250, 50
# Of every way the best of as many: the best of more rounds is lower, and would favour the ways that had them.
ROUNDS = 2
N_SQUARE, SQUARES = 2048, 10
CHUNKS, LARGE_CHUNK = (10, 25, 50, 100), 500
# What a way's products need of each of the model's parameters.
_OPERATIONS: dict[str, Callable[[ScoredTokens, int], float]] = {
    "layers": layer_operations,
    "per-token gradients": lambda scored, k: len(scored) * (6 * scored.tokens.shape[1] + 2 * k),
    "per-token gradients, large chunk": lambda scored, k: len(scored) * (6 * scored.tokens.shape[1] + 2 * k),
    "JVP, one by one": lambda scored, k: 6 * k * scored.tokens.numel(),
    "JVP, vmapped": jvp_operations,
}
CURVATURE = "nested JVP (second derivative)"
REFERENCE = "JVP, one by one"
WAYS = ("per-token gradients", "per-token gradients, large chunk", REFERENCE, "JVP, vmapped", CURVATURE, "layers")


class Case(NamedTuple):
    """A loss, where it is differentiated, and along what."""

    loss: TokenLoss
    theta: dict[str, Tensor]
    directions: Tensor


class Setting(NamedTuple):
    """A task and a model."""

    task: str
    length: int
    model: ModelConfig


MAIN = Setting("decimal_addition", 3, ModelConfig(d_model=128, n_layers=3, n_heads=4, style="gpt2"))


class _Measured(NamedTuple):
    """Seconds of a way, processor seconds, peak memory, tokens a chunk and what it found."""

    seconds: float
    cpu: float
    peak_mib: float
    chunk: int | None
    found: np.ndarray


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of seconds, peak memory and agreement, one a way.

    Args:
        quick: Few problems and directions.
        device: Of the model.
    """
    n_problems, n_directions = (24, 5) if quick else (N_PROBLEMS, N_DIRECTIONS)
    found = {way: isolated(device, _measure, way, n_problems, n_directions, device) for way in WAYS}
    case = case_of(n_problems, n_directions, device)
    return [*(_row(way, measured, found, case) for way, measured in found.items()), _product(device)]


def _product(device: str) -> dict[str, Any]:
    """The best of some products of two square matrices."""
    left, right = torch.randn(2, N_SQUARE, N_SQUARE, device=device)
    seconds = float("inf")
    for _ in range(SQUARES):
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # which a GPU waits for
        seconds = min(seconds, time.perf_counter() - start)
    gflop = 2 * N_SQUARE**3 / 1e9
    name = f"a matrix product, {N_SQUARE} x {N_SQUARE}"
    return {"name": name, "value": seconds, "unit": "s", "gflop": gflop, "gflop_per_s": gflop / seconds}


def _row(way: str, measured: _Measured, found: dict[str, _Measured], case: Case) -> dict[str, Any]:
    """What was measured of a way, beside the first, and its FLOPs."""
    first, reference = found[WAYS[0]], found[REFERENCE].found
    row = {"name": way, "value": measured.seconds, "unit": "s", "cpu_s": measured.cpu, "peak_mib": measured.peak_mib}
    if measured.chunk is not None:
        row["tokens_a_chunk"] = measured.chunk
    if way == CURVATURE:
        return row | {"directions": measured.found.shape[1]}
    gflop = _gflop(way, case)
    error = np.abs(measured.found - reference).max() / np.abs(reference).max()
    return row | {
        "times_faster": first.seconds / measured.seconds,
        "times_less_cpu": first.cpu / measured.cpu,
        "gflop": gflop,
        "gflop_per_s": gflop / measured.seconds,
        "disagreement": float(error),
        "directions": measured.found.shape[1],
    }


def _gflop(way: str, case: Case) -> float:
    """Multiplications and additions in matrix products, in thousand millions."""
    return _OPERATIONS[way](case.loss.scored, len(case.directions)) * len(case.loss.space) / 1e9


def case_of(n_problems: int, n_directions: int, device: str, setting: Setting = MAIN) -> Case:
    """A model at initialisation, problems and orthonormal directions, the same in every process."""
    task = load_task(setting.task, length=setting.length)
    model = model_on(build_model(setting.model, task), device)
    examples = task.sample(np.random.default_rng(0), n_problems)
    loss = TokenLoss(model, scored_tokens(task.encode(examples)))
    random = torch.randn(len(loss.space), n_directions, generator=torch.Generator().manual_seed(0))
    directions = torch.linalg.qr(random)[0].t().contiguous()
    return Case(loss, loss.parameters(), directions.to(device))


def _measure(way: str, n_problems: int, n_directions: int, device: str) -> _Measured:
    """One run of a way in this process, after a warm-up."""
    case = case_of(n_problems, n_directions, device)
    small = case_of(min(n_problems, 50), min(n_directions, 5), device)
    before = held_mib(device)
    chunk = None
    if way in ("per-token gradients", "per-token gradients, large chunk"):
        chunk = LARGE_CHUNK if way.endswith("large chunk") else fastest_chunk(case)
        work = lambda case: per_token_gradients(case, chunk)  # noqa: E731
    else:
        work = _WORK[way]
    work(small)
    if way == CURVATURE:
        case = case._replace(directions=case.directions[: max(1, n_directions // 5)])
    held_mib(device)
    seconds, cpu = float("inf"), float("inf")
    for _ in range(ROUNDS):
        start, start_cpu = time.perf_counter(), time.process_time()
        found = work(case).cpu()
        seconds = min(seconds, time.perf_counter() - start)
        cpu = min(cpu, time.process_time() - start_cpu)
    return _Measured(seconds, cpu, peak_mib(device) - before, chunk, found.numpy())


def fastest_chunk(case: Case) -> int:
    """The chunk with the least time a token on the first tokens."""
    seconds = {}
    for chunk in CHUNKS:
        part = case._replace(loss=next(case.loss.chunks(max(1, 2 * chunk // 4))))
        per_token_gradients(part, chunk)
        start = time.perf_counter()
        per_token_gradients(part, chunk).cpu()
        seconds[chunk] = (time.perf_counter() - start) / len(part.loss)
    return min(seconds, key=lambda chunk: seconds[chunk])


def per_token_gradients(case: Case, chunk: int) -> Tensor:
    """Gradients of `chunk` tokens at a time, each of the whole model, times the directions."""
    loss, theta, directions = case
    scored = loss.scored

    def one(parameters: dict[str, Tensor], tokens: Tensor, position: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(loss.model, parameters, (tokens[None],))[0]
        return functional.cross_entropy(logits.index_select(0, position[None]), target[None])

    gradients = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0))
    rows = []
    for start in range(0, len(scored), chunk):
        some = slice(start, start + chunk)
        found = gradients(theta, scored.tokens[scored.example[some]], scored.position[some], scored.target[some])
        rows.append(torch.cat([found[name].flatten(1) for name in loss.space.shapes], 1) @ directions.t())
    return torch.cat(rows)


def _one_by_one(case: Case) -> Tensor:
    """A Jacobian-vector product a direction, 64 sequences at a time, about as many as the vmapped ones take."""
    loss, theta, directions = case
    parts = list(loss.chunks(64))

    def along(direction: Tensor) -> Tensor:
        tangent = loss.space.unflatten(direction)
        return torch.cat([torch.func.jvp(part, (theta,), (tangent,))[1] for part in parts])

    return torch.stack([along(direction) for direction in directions], 1)


_WORK: dict[str, Callable[[Case], Tensor]] = {
    REFERENCE: _one_by_one,
    "JVP, vmapped": lambda case: project_gradients(*case, method="jvp").gradients,
    CURVATURE: lambda case: project_curvature(*case),
    "layers": lambda case: project_gradients(*case, method="layers").gradients,
}
