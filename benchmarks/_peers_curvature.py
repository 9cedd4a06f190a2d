"""Eigenpairs of a Hessian beside curvlinops and hessian-eigenthings, and Langevin chains beside devinterp.

The same loss, parameters and precision everywhere: the mean over the scored tokens of some addition problems. The model
is of style "gpt2": curvlinops takes forward-mode derivatives, which torch's SiLU has no second order of.
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qfl_interp as qfl
from qfl_interp.curvature import Hessian, SgldConfig, estimate_learning_coefficient, top_eigenpairs
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.data.task import Batch
from qfl_interp.models.build import build_model, model_on

TOL = 1e-3
BATCH, GAMMA, EPSILON = 64, 100.0, 1e-6


class _Setting(NamedTuple):
    """A model after some updates, its loss on some problems, and what the other libraries call with."""

    model: Any
    loss: TokenLoss
    batch: Batch
    tokens: Tensor
    scored: slice
    names: list[str]

    def mean_loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """The mean over the scored tokens, as a user would write it."""
        return F.cross_entropy(_Scored(model, self.scored)(tokens), self.targets(tokens))

    def targets(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.scored.start + 1 : self.scored.stop + 1].flatten()


class _Scored(nn.Module):
    """Logits where a token is scored, one row a token."""

    def __init__(self, model: nn.Module, scored: slice) -> None:
        super().__init__()
        self.model, self.scored = model, scored

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[:, self.scored].flatten(0, 1)


def _setting(device: str, n: int, n_updates: int) -> _Setting:
    task = qfl.load_task("addition", length=16)
    model = model_on(build_model(qfl.ModelConfig(d_model=32, n_layers=2, style="gpt2"), task, seed=0), device)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(n_updates):  # away from the start, whose spectrum is another
        batch = task.encode(task.sample(rng, 64))
        _update(model, optimizer, batch.tokens.to(device), batch.loss_mask.to(device))
    batch = task.encode(task.sample(rng, n))
    loss = TokenLoss(model, scored_tokens(batch))
    position = loss.scored.position
    scored = slice(int(position.min()), int(position.max()) + 1)
    return _Setting(model, loss, batch, batch.tokens.to(device), scored, list(loss.space.shapes))


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, mask: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(tokens)[:, :-1][mask[:, 1:]], tokens[:, 1:][mask[:, 1:]]).backward()
    optimizer.step()


def cases(device: str, quick: bool) -> Iterator[tuple[Any, ...]]:
    """Eigenpairs and chains: name, makers, difference, tolerance, rounds."""
    n, k, n_updates, rounds = (8, 1, 5, 1) if quick else (128, 5, 300, 3)
    setting = _setting(device, n, n_updates)
    pairs = _Pairs(setting, k)
    size = f"{len(setting.loss.space):,} parameters, {n} examples, float32"
    name = f"eigenpairs: {k} largest to a relative residual of {TOL}, {size}"
    yield name, pairs.makers(), lambda one, other: float(((one - other) / other).abs().max()), 1e-3, rounds
    chains = _Chains(setting, *((2, 4) if quick else (4, 100)))
    name = f"Langevin chains: {chains.n_chains} of {chains.n_steps} steps, batches of {chains.batch}, {size}"
    # The chains have noise of their own: means of the losses along them must agree within their spread.
    yield (
        name,
        chains.makers(),
        lambda one, other: float(abs(one.mean() / other.mean() - 1)),
        0.5 if quick else 0.05,
        rounds,
    )


class _Pairs:
    """The largest eigenvalues of a Hessian."""

    def __init__(self, setting: _Setting, k: int) -> None:
        self.setting, self.k = setting, k

    def makers(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        return {"ours": self.ours, "curvlinops": self.curvlinops, "hessian_eigenthings": self.eigenthings}

    def checked(self, values: Tensor, vectors: Tensor) -> Tensor:
        """The values, once the residuals are within the tolerance by our own products; rows are vectors."""
        hessian = Hessian(self.setting.loss)
        for value, vector in zip(values.double(), vectors.double(), strict=True):
            residual = (hessian.product(vector).double() - value * vector).norm() / value.abs() / vector.norm()
            assert residual <= 1.1 * TOL, f"relative residual {float(residual):.2g}"
        return values

    def ours(self) -> Callable[[], Any]:
        hessian = Hessian(self.setting.loss)

        def work() -> Tensor:
            return top_eigenpairs(hessian, self.k, tol=TOL, max_products=300).values

        found = top_eigenpairs(hessian, self.k, tol=TOL, max_products=300)
        self.checked(found.values, found.vectors)
        return work

    def curvlinops(self) -> Callable[[], Any]:
        from curvlinops import HessianLinearOperator
        from scipy.sparse.linalg import eigsh

        setting = self.setting
        model = _Scored(copy.deepcopy(setting.model), setting.scored)
        named = dict(model.model.named_parameters())
        params = [named[name] for name in setting.names]
        data = [(setting.tokens, setting.targets(setting.tokens))]
        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, data, check_deterministic=False)

        def solve() -> tuple[Tensor, Tensor]:
            options: Any = {"which": "LA", "tol": TOL}  # its stubs take tol for an integer
            values, vectors = eigsh(operator.to_scipy(), k=self.k, **options)
            return torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors[:, ::-1].T.copy())

        self.checked(*solve())
        return lambda: solve()[0]

    def eigenthings(self) -> Callable[[], Any]:
        """Its Lanczos runs as many steps as it is told: here the fewest, of tens, after which residuals are small."""
        from hessian_eigenthings import HessianOperator, lanczos, match_names

        setting = self.setting
        model = copy.deepcopy(setting.model)
        operator = HessianOperator(model, [setting.tokens], setting.mean_loss, param_filter=match_names(*setting.names))

        def solve(steps: int) -> Any:
            return lanczos(operator, k=self.k, max_iter=steps, tol=TOL, reorthogonalize=True, which="LA", seed=0)

        # Its vectors follow the model's order of parameters.
        shapes = {name: p.shape for name, p in model.named_parameters() if name in set(setting.names)}

        def ours(vectors: Tensor) -> Tensor:
            parts = dict(zip(shapes, vectors.split([shape.numel() for shape in shapes.values()], dim=1), strict=True))
            return torch.cat([parts[name] for name in setting.names], dim=1)

        tens = bisect.bisect_left(range(32), True, lo=1, key=lambda n: bool(solve(10 * n).converged.all()))
        steps = 10 * tens
        found = solve(steps)
        self.checked(found.eigenvalues, ours(found.eigenvectors))
        return lambda: solve(steps).eigenvalues


class _Chains:
    """Losses of the batches along Langevin chains, [chain, step]."""

    def __init__(self, setting: _Setting, n_chains: int, n_steps: int) -> None:
        self.setting, self.n_chains, self.n_steps = setting, n_chains, n_steps
        self.n = len(setting.tokens)
        self.batch = min(BATCH, self.n // 2)

    def makers(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        return {"ours": self.ours, "devinterp": self.devinterp}

    def ours(self) -> Callable[[], Any]:
        loss = self.setting.loss
        start = loss.space.flatten(loss.parameters())
        config = SgldConfig(EPSILON, GAMMA, self.n_chains, self.n_steps, 0, self.batch)

        def mean_loss(vector: Tensor, rows: Tensor) -> Tensor:
            part = TokenLoss(self.setting.model, scored_tokens(self.setting.batch.rows(rows)))
            return part(loss.space.unflatten(vector)).mean()

        return lambda: estimate_learning_coefficient(mean_loss, start, self.n, config).losses.numpy()

    def devinterp(self) -> Callable[[], Any]:
        from devinterp.optim.sgld import SGLD
        from devinterp.slt.sampler import sample_single_chain

        setting = self.setting
        rows = [{"input_ids": tokens} for tokens in setting.tokens.cpu()]
        how = {"lr": EPSILON, "localization": GAMMA, "nbeta": self.n / math.log(self.n)}

        def work() -> np.ndarray:
            losses = np.zeros((self.n_chains, self.n_steps))

            def note(loss: Tensor, chain: int, step: int, **_: Any) -> None:
                losses[chain, step] = float(loss)

            for chain in range(self.n_chains):
                sample_single_chain(
                    setting.model, rows, lambda model, data: (setting.mean_loss(model, data["input_ids"]), {}),
                    dict.fromkeys(setting.names), num_draws=self.n_steps, sampling_method=SGLD,
                    sampling_method_kwargs=how, chain=chain, seed=chain, dataloader_seed=chain,
                    device=str(setting.tokens.device), micro_callback=note, batch_size=self.batch,
                )  # fmt: skip
            return losses

        return work
