"""Maximal-update parametrisation: what initial weights and learning rates are multiplied with at a width.

With `m = d_model / mup_base`, in the formulation without multipliers in the forward pass (Table 3 of the paper):

| parameters | initial weights | learning rate, Adam | learning rate, SGD |
| --- | --- | --- | --- |
| embedding, learned positions | 1 | 1 | m |
| gains, shifts, biases inside the model | - | 1 | m |
| matrices of the blocks | 1 / sqrt(m) | 1 / m | 1 |
| unembedding | 1 / m | 1 / m | 1 / m |
| unembedding's bias | - | 1 | 1 |

Each is relative to the model of the base width. Where a head's width grows with the model's, attention scores are
divided by it instead of by its root. A tied unembedding is the embedding over `m` (Table 8). Decoupled weight decay
shrinks with the learning rate; divide a group's by its multiplier to keep their product the same at every width.

References:
    Yang et al. (2022), arXiv 2203.03466, Tables 3 and 8, definition 4.1 and appendix B.1.
"""

from __future__ import annotations

from collections.abc import Iterable

from qfl_interp.config import ModelConfig
from qfl_interp.model_kinds import AnyModelConfig

_INPUT = ("W_E", "W_pos")


def initial_multiplier(config: ModelConfig, matrix: str) -> float:
    """What a matrix' initial spread is, relative to the model of the base width; 1 in the standard parametrisation.

    `matrix` is the last part of its name, such as "W_in".
    """
    if matrix in _INPUT:
        return 1.0
    return 1 / config.width_ratio if matrix == "W_U" else config.width_ratio**-0.5


def lr_multipliers(config: AnyModelConfig, names: Iterable[str], *, rule: str = "adam") -> dict[str, float]:
    """What the learning rate of each parameter is multiplied with; 1 for all in the standard parametrisation.

    Args:
        config: The model's.
        names: Of its parameters (`dict(model.named_parameters())`).
        rule: "adam" for optimisers whose update has a size of its own (Adam, AdamW), "sgd" for those whose update is
            proportional to the gradient, with or without momentum.

    Raises:
        ValueError: The rule is unknown.

    Example:
        >>> config = ModelConfig(d_model=256, n_layers=1, mup_base=64)
        >>> lr_multipliers(config, ["embed.W_E", "blocks.0.mlp.W_in", "blocks.0.ln1.w"])
        {'embed.W_E': 1.0, 'blocks.0.mlp.W_in': 0.25, 'blocks.0.ln1.w': 1.0}
    """
    if rule not in ("adam", "sgd"):
        raise ValueError(f"rule must be 'adam' or 'sgd', got {rule!r}. It is the kind of the optimiser's update.")
    ratio = config.width_ratio if isinstance(config, ModelConfig) else 1.0
    return {name: _multiplier(name.rpartition(".")[2], ratio, rule == "sgd") for name in names}


def _multiplier(parameter: str, ratio: float, sgd: bool) -> float:
    """A parameter's, by the last part of its name."""
    if parameter == "W_U":
        return 1 / ratio
    if parameter == "b_U":
        return 1.0
    if parameter.startswith("W_") and parameter not in _INPUT:
        return 1.0 if sgd else 1 / ratio
    return ratio if sgd else 1.0
