"""Optimisers by name over a model's parameters: torch's own, their state as named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from qfl_interp.config import TrainConfig
from qfl_interp.recipes import OPTIMIZERS, setting_values

# A parameter's name and itself.
Named = list[tuple[str, nn.Parameter]]


class NamedOptimizer:
    """The optimiser that a configuration names, over the parameters of a model that are trained.

    "adamw", "adam" and "sgd" are torch's over everything, gains and embeddings included, as in the paper. "muon" is
    torch's over the matrices of the blocks and AdamW over the rest; its updates are scaled to AdamW's size
    (`match_rms_adamw`), so that one learning rate serves both.

    Args:
        model: Its parameters are changed in place.
        config: Names the optimiser.
        scales: Factors on the learning rate by parameter, 1 where none is given.

    References:
        AdamW: arXiv 1711.05101. Muon: Jordan et al. 2024; its scaling: arXiv 2502.16982.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, scales: Mapping[str, float] | None = None) -> None:
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._matrices = _Matrices(self._named) if config.optimizer == "muon" else None
        self._parts = _make(config, self._named, self._matrices, scales or {})

    def step(self, lr: float) -> None:
        """One update at a learning rate from the gradients that the parameters hold."""
        if self._matrices is not None:
            self._matrices.read()
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr * group["lr_scale"]
            part.step()
        if self._matrices is not None:
            self._matrices.write()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for _, parameter in self._named:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state as "<parameter>/<field>", such as "embed.W_E/exp_avg"; empty before the first update."""
        return {key: value for part in self._parts for key, value in named_state(part, self._of(part)).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` took."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            by_name.setdefault(name, {})[field] = value
        for part in self._parts:
            state = {i: by_name[name] for i, (name, _) in enumerate(self._of(part)) if name in by_name}
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})

    def _of(self, part: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
        """What one of the optimisers updates, in its order, by the names of the model's parameters."""
        known = {id(p): name for name, p in self._named + (self._matrices.named if self._matrices else [])}
        for group in part.param_groups:
            for parameter in group["params"]:
                yield known[id(parameter)], parameter


def named_state(optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """The tensors that an optimiser keeps of some parameters, as "<parameter>/<field>"."""
    return {
        f"{name}/{key}": value
        for name, parameter in named
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


class _Matrices:
    """The blocks' weights as plain matrices, (input, output) with heads side by side, which Muon orthogonalises."""

    def __init__(self, named: Named) -> None:
        self._own = [(name, p) for name, p in named if p.ndim >= 2 and name.startswith("blocks.")]
        self.named: Named = [(name, nn.Parameter(_as_matrix(name, p.detach()).clone())) for name, p in self._own]

    @torch.no_grad()
    def read(self) -> None:
        """Take the weights and gradients of the model."""
        for (name, own), (_, matrix) in zip(self._own, self.named, strict=True):
            matrix.copy_(_as_matrix(name, own))
            matrix.grad = None if own.grad is None else _as_matrix(name, own.grad).contiguous()

    @torch.no_grad()
    def write(self) -> None:
        """Give the model the weights."""
        for (name, own), (_, matrix) in zip(self._own, self.named, strict=True):
            own.copy_(_from_matrix(name, matrix, own.shape))


def _reads_stream(name: str) -> bool:
    """Whether a weight by heads is `[head, d_model, d_head]`; W_O alone is `[head, d_head, d_model]`."""
    return not name.endswith("W_O")


def _as_matrix(name: str, weight: Tensor) -> Tensor:
    """A weight with its heads side by side."""
    if weight.ndim == 2:
        return weight
    return weight.transpose(0, 1).flatten(1) if _reads_stream(name) else weight.flatten(0, 1)


def _from_matrix(name: str, matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `_as_matrix`."""
    if len(shape) == 2:
        return matrix
    return matrix.unflatten(1, (shape[0], -1)).transpose(0, 1) if _reads_stream(name) else matrix.view(*shape)


def _make(
    config: TrainConfig, named: Named, matrices: _Matrices | None, scales: Mapping[str, float]
) -> list[torch.optim.Optimizer]:
    """Torch's optimisers of a configuration."""
    own = setting_values(config.optimizer_options, OPTIMIZERS[config.optimizer])
    decay = {"lr": config.lr, "weight_decay": config.weight_decay}
    adam = {**decay, "betas": config.betas, "eps": config.adam_eps, "fused": True}
    make: dict[str, Callable[[Named], torch.optim.Optimizer]] = {
        "adamw": lambda over: torch.optim.AdamW(_groups(over, scales), **adam),
        "adam": lambda over: torch.optim.Adam(_groups(over, scales), **adam),
        "sgd": lambda over: torch.optim.SGD(_groups(over, scales), **decay, **own, fused=True),
        "muon": lambda over: torch.optim.Muon(_groups(over, scales), **decay, **own, adjust_lr_fn="match_rms_adamw"),
    }
    if matrices is None:
        return [make[config.optimizer](named)]
    taken = {name for name, _ in matrices.named}
    rest = [(name, p) for name, p in named if name not in taken]
    parts = [make["muon"](matrices.named)] if matrices.named else []
    return parts + ([make["adamw"](rest)] if rest else [])


def _groups(named: Named, scales: Mapping[str, float]) -> list[dict[str, object]]:
    """The parameters by the factor on their learning rate, in the order of their first."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault(scales.get(name, 1.0), []).append(parameter)
    return [{"params": parameters, "lr_scale": scale} for scale, parameters in groups.items()]
