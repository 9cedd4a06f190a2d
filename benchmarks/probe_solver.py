"""Batched logistic probes against a loop over scikit-learn, side by side on the same activations."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch

TITLE = "Probes: one batched Newton solve against a loop over scikit-learn's LogisticRegression"

C = 100.0
N_LAYERS, N_LABELS, D_MODEL = 4, 16, 64


def activations(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual streams like those of a small transformer on addition, and the carries as labels.

    At every layer and label position: a constant offset, 24 latents with power-law strengths mixed in at
    random (12 input bits, 12 Gaussian), isotropic noise, and the carry of a random 16-bit addition along a
    direction of its own. Its strength grows over layers and positions, so that probes range from near chance
    to nearly separable.
    """
    rng = np.random.default_rng(seed)
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


def _peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _ours(x: torch.Tensor, y: torch.Tensor, x_test: torch.Tensor, y_test: torch.Tensor) -> dict[str, Any]:
    """Seconds to fit, log losses on the test examples and peak extra memory."""
    from qfl_interp.probes import fit_logistic

    fit_logistic(x[:1, :1, :100], y[None, :1, :100], c=C, max_iter=5)  # threads started, libraries loaded
    before, start = _peak_mib(), time.perf_counter()
    probes = fit_logistic(x, y[None], c=C, max_iter=100)
    seconds = time.perf_counter() - start
    memory = _peak_mib() - before
    assert probes.converged.all()
    loss = probes.log_loss(x_test, y_test[None])[..., 0]
    return {"seconds": seconds, "loss": loss.numpy(), "mib": memory}


def _sklearn(
    x: torch.Tensor,
    y: torch.Tensor,
    x_test: torch.Tensor,
    y_test: torch.Tensor,
    exact: bool = False,
) -> dict[str, Any]:
    """The same by a loop over scikit-learn; `exact` in float64 by its Newton solver at tol=1e-10."""
    from sklearn.linear_model import LogisticRegression

    dtype = np.float64 if exact else np.float32
    options: dict[str, Any] = {"solver": "newton-cholesky", "tol": 1e-10} if exact else {}
    LogisticRegression(C=C, max_iter=1000).fit(x[0, 0, :100], y[0, :100])  # threads started, libraries loaded
    loss = np.empty(x.shape[:2])
    before, seconds = _peak_mib(), 0.0
    for layer in range(x.shape[0]):
        for label in range(x.shape[1]):
            data = x[layer, label].numpy().astype(dtype, copy=False)
            model = LogisticRegression(C=C, max_iter=1000, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                start = time.perf_counter()
                model.fit(data, y[label].numpy())
                seconds += time.perf_counter() - start
            logit = x_test[layer, label].numpy().astype(np.float64) @ model.coef_[0] + model.intercept_
            loss[layer, label] = np.logaddexp(0, np.where(y_test[label], -logit, logit)).mean()
    return {"seconds": seconds, "loss": loss, "mib": _peak_mib() - before}


def _job(name: str, n: int, n_test: int, labels: int, pipe: Any) -> None:
    """One contender in a process of its own, so that peak memory is its own."""
    x, y = activations(n + n_test)
    x, y = x[:, :labels], y[:labels]
    data = x[:, :, :n].clone(), y[:, :n], x[:, :, n:], y[:, n:]
    del x
    if name == "ours":
        pipe.send(_ours(*data))
    elif name == "sklearn":
        pipe.send(_sklearn(*data))
    else:
        pipe.send(_sklearn(*data, exact=True))


def _in_process(*job: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_job, args=(*job, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Fit seconds (best of two interleaved rounds), their ratio, agreement and peak extra memory."""
    n, labels = (2_000, 4) if quick else (10_000, N_LABELS)
    contenders = ("ours", "sklearn")
    n_rounds = 1 if quick else 2
    rounds = [{name: _in_process(name, n, 1_000, labels) for name in contenders} for _ in range(n_rounds)]
    best = {name: min((r[name] for r in rounds), key=lambda row: row["seconds"]) for name in contenders}
    exact = _in_process("exact", n, 1_000, labels)["loss"]
    case = f"{N_LAYERS} layers x {labels} positions x {n} examples x d_model {D_MODEL}"
    seconds = {name: best[name]["seconds"] for name in contenders}
    losses = best["ours"]["loss"]
    off = {name: float(np.abs(best[name]["loss"] - exact).max()) for name in contenders}
    apart = float(np.abs(losses - best["sklearn"]["loss"]).max())
    values = [
        ("batched Newton", seconds["ours"], "s"),
        ("scikit-learn loop, max_iter=1000", seconds["sklearn"], "s"),
        ("speed-up over scikit-learn", seconds["sklearn"] / seconds["ours"], "x"),
        ("test log loss, lowest probe", float(losses.min()), "nats"),
        ("test log loss, highest probe", float(losses.max()), "nats"),
        ("largest difference in test log loss, ours to scikit-learn", apart, "nats"),
        ("the same, ours to the exact optimum", off["ours"], "nats"),
        ("the same, scikit-learn to the exact optimum", off["sklearn"], "nats"),
        ("peak extra memory, ours", best["ours"]["mib"], "MiB"),
        ("peak extra memory, scikit-learn", best["sklearn"]["mib"], "MiB"),
    ]
    return [{"name": name, "value": value, "unit": unit, "case": case} for name, value, unit in values]


if __name__ == "__main__":
    for row in run(quick="--quick" in sys.argv):
        print(f"{row['name']}: {row['value']:.4g} {row['unit']}")
