"""Softmax, multilabel and regression probes against loops over scikit-learn, side by side on the same activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks._measuring import Seconds, timed
from benchmarks._streams import untrained
from qfl_interp.config import ModelConfig, ProbeConfig
from qfl_interp.data.registry import load_task
from qfl_interp.probes import fit_probes, shuffle_labels
from qfl_interp.probes.regression import fit_ridge_path

TITLE = "Probes of every kind: batched solvers against loops over scikit-learn"

C = 100.0
N_LAYERS, N_LABELS, D_MODEL = 4, 4, 64
N_CLASSES, N_OUTPUTS = 10, 8
PATH = (1e-4, 1e-2, 1.0, 100.0, 1e4)


class _Case(NamedTuple):
    """Training and test activations and labels of one feature."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def _split(x: torch.Tensor, y: torch.Tensor, n: int) -> _Case:
    return _Case(x[:, :, :n].contiguous(), y[:, :, :n], x[:, :, n:].contiguous(), y[:, :, n:])


def _planted(kind: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Made-up residual streams with a feature's values written along directions of their own.

    At every layer and label: a constant offset, 24 latents with power-law strengths, isotropic noise, and a
    direction for each class, output, or the number itself, whose strength grows over layers and labels.
    """
    rng = np.random.default_rng(0)
    if kind == "categorical":
        y = rng.integers(0, N_CLASSES, (1, N_LABELS, n))
        written = np.eye(N_CLASSES)[y[0]]
    elif kind == "multilabel":
        y = rng.integers(0, 2, (N_OUTPUTS, N_LABELS, n))
        written = y.transpose(1, 2, 0) - 0.5
    else:
        y = rng.integers(0, 100, (1, N_LABELS, n))
        written = y[0, :, :, None] / 50 - 1
    x = torch.empty(N_LAYERS, N_LABELS, n, D_MODEL)
    for layer in range(N_LAYERS):
        for label in range(N_LABELS):
            latent = rng.standard_normal((n, 24)) / np.sqrt(1 + np.arange(24))
            site = 2 * rng.standard_normal(D_MODEL) + latent @ rng.standard_normal((24, D_MODEL))
            site += 0.3 * rng.standard_normal((n, D_MODEL))
            strength = 2.5 * (layer + (label + 1) / N_LABELS) / N_LAYERS / np.sqrt(D_MODEL)
            site += strength * written[label] @ rng.standard_normal((written.shape[-1], D_MODEL))
            x[layer, label] = torch.from_numpy(site)
    return x, torch.from_numpy(y)


def _untrained(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream of an untrained 4-layer model where the digits of 3-digit sums are predicted."""
    task = load_task("decimal_addition", length=N_LABELS - 1)
    x, y = untrained(task, "digit", ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS), n)
    return x, y[None].long()


def _with_shuffled(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x, torch.cat([y, shuffle_labels(y, np.random.default_rng(1))])


def _ours(kind: str, case: _Case, path: bool, device: str) -> tuple[Seconds, np.ndarray]:
    """Seconds to fit and the loss on the test examples, of the last strength where there are several."""
    x, y, x_test, y_test = (part.to(device) for part in case)

    def fit(n: int) -> Any:
        if path:
            return fit_ridge_path(x[:, :, :n], y[:, :, :n], [1 / c for c in PATH])[-1]
        config = ProbeConfig(c=C)
        return fit_probes(kind, x[:, :, :n], y[:, :, :n], config, n_classes=N_CLASSES)  # type: ignore[arg-type]

    fit(200)  # threads started, libraries loaded
    seconds, probes = timed(lambda: fit(x.shape[2]))
    assert probes.converged.sum() == probes.fitted.sum()
    return seconds, probes.score(x_test, y_test).loss.cpu().numpy()


def _classifier(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> tuple[Seconds, float]:
    """One LogisticRegression with its default solver, which needs several times as long on two threads."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # it stops at max_iter on some sites
        seconds, model = timed(lambda: LogisticRegression(C=C, max_iter=1000).fit(x, y))
    return seconds, _log_loss(model, x_test, y_test)


def _exact_classifier(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> tuple[Seconds, float]:
    """One LogisticRegression at its optimum, as ours: the Newton solver in float64 to tol=1e-8."""
    from sklearn.linear_model import LogisticRegression

    mean = x.astype(np.float64).mean(0)  # centring only moves the intercept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its line search gives up at rounding level
        solver = LogisticRegression(C=C, max_iter=1000, solver="newton-cholesky", tol=1e-8)
        seconds, model = timed(lambda: solver.fit(x - mean, y))
    return seconds, _log_loss(model, x_test - mean, y_test)


def _log_loss(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Mean log loss in nats, over the examples whose class the model knows."""
    seen = np.isin(y, model.classes_)
    with np.errstate(divide="ignore"):
        logs = model.predict_log_proba(x[seen].astype(np.float64))
    at = np.searchsorted(model.classes_, y[seen])
    return float(-logs[np.arange(len(at)), at].mean())


def _least_squares(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> tuple[Seconds, float]:
    from sklearn.linear_model import LinearRegression

    seconds, model = timed(lambda: LinearRegression().fit(x.astype(np.float64), y))
    return seconds, float(((model.predict(x_test.astype(np.float64)) - y_test) ** 2).mean())


def _ridges(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> tuple[Seconds, float]:
    from sklearn.linear_model import Ridge

    seconds, models = timed(lambda: [Ridge(alpha=1 / c).fit(x.astype(np.float64), y) for c in PATH])
    return seconds, float(((models[-1].predict(x_test.astype(np.float64)) - y_test) ** 2).mean())


def _loop(fit: Callable[..., tuple[Seconds, float]], case: _Case) -> tuple[Seconds, np.ndarray]:
    """Seconds and test losses of one fit a layer, label and output; a label of one class is left out."""
    n_layers, n_labels = case.x.shape[:2]
    loss = np.full((n_layers, n_labels, len(case.y)), np.nan)
    cpu, wall = 0.0, 0.0
    for at in np.ndindex(*loss.shape):
        layer, label, output = at
        y, y_test = case.y[output, label].numpy(), case.y_test[output, label].numpy()
        if len(np.unique(y)) > 1:
            seconds, loss[at] = fit(case.x[layer, label].numpy(), y, case.x_test[layer, label].numpy(), y_test)
            cpu, wall = cpu + seconds.cpu, wall + seconds.wall
    return Seconds(cpu, wall), loss


def _compare(
    name: str, kind: str, fits: dict[str, Callable[..., tuple[Seconds, float]]], case: _Case, device: str
) -> list[dict[str, Any]]:
    """The rows of one kind on one sort of activations; ours is timed once before and once after theirs."""
    path = _ridges in fits.values()
    seconds, loss = _ours(kind, case, path, device)
    # scikit-learn takes no GPU: there, the same fit on the processor stands beside.
    on_cpu = {"ours on the processor": lambda: _ours(kind, case, path, "cpu")}
    loops = {f"loop over {who}": lambda fit=fit: _loop(fit, case) for who, fit in fits.items()}
    theirs = {who: work() for who, work in (loops if device == "cpu" else on_cpu).items()}
    best = min(seconds, _ours(kind, case, path, device)[0])
    label = f"{name}: {N_LAYERS} layers x {N_LABELS} labels x {len(case.y)} outputs x {case.x.shape[2]} examples"
    unit = "squared units" if kind == "scalar" else "nats"
    values = [
        ("ours", best.wall, "s"),
        ("ours, processor", best.cpu, "s"),
        ("test loss, lowest probe", float(np.nanmin(loss)), unit),
    ]
    for who, (their_seconds, their_loss) in theirs.items():
        apart = float(np.nanmax(np.abs(loss - their_loss)))
        values += [
            (who, their_seconds.wall, "s"),
            (f"{who}, processor", their_seconds.cpu, "s"),
            (f"speed-up over {who}", their_seconds.wall / best.wall, "x"),
            (f"speed-up over {who}, processor", their_seconds.cpu / best.cpu, "x"),
            (f"largest difference in test loss to {who}", apart, unit),
        ]
    return [{"name": row, "value": value, "unit": unit, "case": label} for row, value, unit in values]


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Fit seconds of both (ours: the better of two, around theirs), their ratio and the largest difference in loss.

    Softmax probes of 10 classes on the residual stream of an untrained model (badly conditioned: scikit-learn's
    default stops at 1,000 steps, short of the optimum) and on made-up ones from chance to nearly separable; 8 outputs
    of a multilabel feature; numbers by least squares and along a path of 5 ridge penalties. Classes and numbers come
    with a shuffled copy, as the probe lens fits them.

    Args:
        quick: Fewer examples.
        device: Where ours runs. On a GPU it stands beside ours on the processor instead of scikit-learn.
    """
    n = 1_000 if quick else 4_000
    classifiers = {"LogisticRegression": _classifier, "newton-cholesky to tol=1e-8": _exact_classifier}
    numbers = _with_shuffled(*_planted("scalar", n + 1_000))
    cases = (
        ("softmax, untrained model", "categorical", classifiers, _with_shuffled(*_untrained(n + 1_000))),
        ("softmax, made-up", "categorical", classifiers, _with_shuffled(*_planted("categorical", n + 1_000))),
        ("multilabel, made-up", "multilabel", classifiers, _planted("multilabel", n + 1_000)),
        ("least squares, made-up", "scalar", {"LinearRegression": _least_squares}, numbers),
        (f"{len(PATH)} ridge penalties, made-up", "scalar", {"Ridge": _ridges}, numbers),
    )
    return [row for name, kind, fits, data in cases for row in _compare(name, kind, fits, _split(*data, n), device)]
