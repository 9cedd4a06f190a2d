"""Batched logistic probes against a loop over scikit-learn, side by side on the same activations."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import numpy as np
import torch

from benchmarks._measuring import Seconds, isolated, timed
from benchmarks._memory import held_mib, peak_mib
from benchmarks._streams import untrained
from qfl_interp.config import ModelConfig
from qfl_interp.data.registry import load_task
from qfl_interp.probes import fit_logistic

TITLE = "Probes: one batched Newton solve against a loop over scikit-learn's LogisticRegression"

C = 100.0
N_LAYERS, N_LABELS, D_MODEL = 4, 16, 64


def _planted(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Made-up residual streams with the carries of addition planted in them.

    At every layer and label position: a constant offset, 24 latents with power-law strengths mixed in at
    random (12 input bits, 12 Gaussian), isotropic noise, and the carry of a random 16-bit addition along a
    direction of its own. Its strength grows over layers and positions, so that probes range from near chance
    to nearly separable.
    """
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (n, 2, N_LABELS))
    carry = np.zeros((N_LABELS, n), dtype=bool)
    for j in range(N_LABELS):
        before = carry[j - 1] if j else 0
        carry[j] = bits[:, 0, j] + bits[:, 1, j] + before >= 2
    x = torch.empty(N_LAYERS, N_LABELS, n, D_MODEL)
    for layer in range(N_LAYERS):
        for label in range(N_LABELS):
            seen = bits.reshape(n, -1)[:, rng.permutation(2 * N_LABELS)[:12]] - 0.5
            latent = np.concatenate([seen, rng.standard_normal((n, 12))], 1) / np.sqrt(1 + np.arange(24))
            site = 2 * rng.standard_normal(D_MODEL) + latent @ rng.standard_normal((24, D_MODEL))
            site += 0.3 * rng.standard_normal((n, D_MODEL))
            direction = rng.standard_normal(D_MODEL) / np.sqrt(D_MODEL)
            strength = 2.5 * (layer + label / N_LABELS) / N_LAYERS
            site += strength * np.outer(carry[label] - 0.5, direction)
            x[layer, label] = torch.from_numpy(site)
    return x, torch.from_numpy(carry)


def _untrained(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream of an untrained 4-layer model where the carries of 16-bit additions are read."""
    x, y = untrained(load_task("addition", N_LABELS), "carry", ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS), n)
    return x, y.bool()


def _ours(data: list[torch.Tensor], device: str) -> dict[str, Any]:
    """`Seconds` to fit, log losses on the test examples and peak extra memory."""
    x, y, x_test, y_test = (part.to(device) for part in data)
    fit_logistic(x[:1, :1, :100], y[None, :1, :100], c=C, max_iter=5)  # threads started, libraries loaded
    before = held_mib(device)
    seconds, probes = timed(lambda: fit_logistic(x, y[None], c=C, max_iter=100))
    memory = peak_mib(device) - before
    assert probes.converged.all()
    loss = probes.log_loss(x_test, y_test[None])[..., 0]
    return {"seconds": seconds, "loss": loss.cpu().numpy(), "mib": memory}


def _sklearn(
    x: torch.Tensor,
    y: torch.Tensor,
    x_test: torch.Tensor,
    y_test: torch.Tensor,
    exact: bool = False,
) -> dict[str, Any]:
    """The same by a loop over scikit-learn: its default solver, or its Newton solver in float64 at tol=1e-10.

    The default solver gets one thread: with two it takes several times as long on problems of this size.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    dtype = np.float64 if exact else np.float32
    options: dict[str, Any] = {"solver": "newton-cholesky", "tol": 1e-10} if exact else {}
    LogisticRegression(C=C, max_iter=1000).fit(x[0, 0, :100], y[0, :100])  # threads started, libraries loaded
    loss = np.empty(x.shape[:2])
    before, cpu, wall = held_mib(), 0.0, 0.0
    for layer in range(x.shape[0]):
        for label in range(x.shape[1]):
            data, labels = x[layer, label].numpy().astype(dtype, copy=False), y[label].numpy()
            model = LogisticRegression(C=C, max_iter=1000, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with threadpool_limits(None if exact else 1):
                    taken, _ = timed(lambda model=model, data=data, labels=labels: model.fit(data, labels))
                    cpu, wall = cpu + taken.cpu, wall + taken.wall
            logit = x_test[layer, label].numpy().astype(np.float64) @ model.coef_[0] + model.intercept_
            loss[layer, label] = np.logaddexp(0, np.where(y_test[label], -logit, logit)).mean()
    return {"seconds": Seconds(cpu, wall), "loss": loss, "mib": peak_mib() - before}


def _job(name: str, path: str, device: str) -> dict[str, Any]:
    """One contender, whose peak memory is above the bare data's."""
    data = torch.load(path)
    return _sklearn(*data, exact=name == "exact") if name in ("sklearn", "exact") else _ours(data, device)


def _compare(kind: str, n: int, labels: int, n_rounds: int, device: str) -> list[dict[str, Any]]:
    """The rows of one kind of activations."""
    # scikit-learn takes no GPU: there, the same solve on the processor stands beside.
    contenders = {"ours": device} | dict.fromkeys(
        ("sklearn", "exact") if device == "cpu" else ("ours on the CPU",), "cpu"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/activations.pt"
        x, y = (_untrained if kind == "untrained" else _planted)(n + 1_000)
        x, y = x[:, :labels], y[:labels]
        torch.save(tuple(t.clone() for t in (x[:, :, :n], y[:, :n], x[:, :, n:], y[:, n:])), path)
        rounds = [
            {who: isolated(device, _job, who, path, where) for who, where in contenders.items()}
            for _ in range(n_rounds)
        ]
    best = {who: min((r[who] for r in rounds), key=lambda row: row["seconds"]) for who in contenders}
    case = f"{kind}: {N_LAYERS} layers x {labels} positions x {n} examples x d_model {D_MODEL}"
    seconds = {who: best[who]["seconds"] for who in contenders}
    losses = best["ours"]["loss"]
    if device != "cpu":
        return _on_gpu(case, best["ours"], best["ours on the CPU"])
    exact = best["exact"]["loss"]
    off = {who: float(np.abs(best[who]["loss"] - exact).max()) for who in contenders}
    apart = float(np.abs(losses - best["sklearn"]["loss"]).max())
    titles = {
        "ours": "batched Newton",
        "sklearn": "scikit-learn loop, LogisticRegression(C=100, max_iter=1000)",
        "exact": "scikit-learn loop, newton-cholesky to tol=1e-10",
    }
    values = [
        *(
            (f"{title}, {of}", getattr(seconds[who], of), "s")
            for who, title in titles.items()
            for of in Seconds._fields
        ),
        *(
            (f"speed-up over {titles[who]}, {of}", getattr(seconds[who], of) / getattr(seconds["ours"], of), "x")
            for who in ("sklearn", "exact")
            for of in Seconds._fields
        ),
        ("test log loss, lowest probe", float(losses.min()), "nats"),
        ("test log loss, highest probe", float(losses.max()), "nats"),
        ("largest difference in test log loss, ours to scikit-learn", apart, "nats"),
        ("the same, ours to the exact optimum", off["ours"], "nats"),
        ("the same, scikit-learn to the exact optimum", off["sklearn"], "nats"),
        ("peak extra memory, ours", best["ours"]["mib"], "MiB"),
        ("peak extra memory, scikit-learn", best["sklearn"]["mib"], "MiB"),
    ]
    return [{"name": name, "value": value, "unit": unit, "case": case} for name, value, unit in values]


def _on_gpu(case: str, gpu: dict[str, Any], cpu: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of ours on both devices."""
    apart = float(np.abs(gpu["loss"] - cpu["loss"]).max())
    values = [
        ("batched Newton", gpu["seconds"].wall, "s"),
        ("batched Newton, on the processor", cpu["seconds"].wall, "s"),
        ("speed-up over the processor", cpu["seconds"].wall / gpu["seconds"].wall, "x"),
        ("largest difference in test log loss between them", apart, "nats"),
        ("peak extra memory", gpu["mib"], "MiB"),
    ]
    return [{"name": name, "value": value, "unit": unit, "case": case} for name, value, unit in values]


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Fit seconds (best of two interleaved rounds), their ratio, agreement and peak extra memory.

    Two kinds of activations: the residual stream of an untrained model on 16-bit addition (`_untrained`), and
    better conditioned made-up ones from chance to nearly separable (`_planted`).

    Args:
        quick: Fewer examples and positions, one round.
        device: Where ours runs. On a GPU it stands beside ours on the processor instead of scikit-learn.
    """
    n, labels, n_rounds = (2_000, 4, 1) if quick else (10_000, N_LABELS, 2)
    return [row for kind in ("untrained", "planted") for row in _compare(kind, n, labels, n_rounds, device)]
