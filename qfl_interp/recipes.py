"""The optimisers, schedules and losses that a training can name, and the settings of each; reads without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qfl_interp.checked import _shown, fitted, rule_of
from qfl_interp.errors import QflError, unknown_name


class Setting(NamedTuple):
    """One declared setting: its default, what it says, and where a number must lie (both ends included).

    A default of None leaves the setting out; `kind` is then what a given one is.
    """

    default: bool | int | float | None
    help: str
    low: float | None = None
    high: float | None = None
    kind: type = float


_MOMENTUM = Setting(0.0, "part of the last update's direction that is kept", 0.0, 0.999999)

# Optimiser -> its settings beside `lr`, `weight_decay` and, for Adam's family, `betas` and `adam_eps`.
OPTIMIZERS: dict[str, dict[str, Setting]] = {
    "adamw": {},
    "adam": {},
    "sgd": {"momentum": _MOMENTUM, "nesterov": Setting(False, "look ahead along the momentum (Nesterov)")},
    "muon": {
        "momentum": _MOMENTUM._replace(default=0.95),
        "nesterov": Setting(True, "look ahead along the momentum (Nesterov)"),
        "ns_steps": Setting(5, "Newton-Schulz iterations of the orthogonalisation", 1, 99),
    },
    "depthwise": {
        "norm_power": Setting(2, "2 cancels the squares of forward and backward norms, 1 the norms, 0 neither", 0, 2),
        "residual_power": Setting(1, "s: the power of the root mean squared residual", 0, 2),
        "depth_normalise": Setting(True, "divide by the depth"),
        "max_u": Setting(None, "cap on the relative change of a hidden layer's preactivations", 1e-9, 1e9),
        "edge_multiple": Setting(None, "the learning rate in units of the edge, lr lambda_P / 2", 1e-9, 1e9),
        "n_sharpness": Setting(128, "training examples of the sharpness behind edge_multiple", 2, 2**40),
    },
}
# Optimisers whose updates are made elsewhere: `module:class`, called as `training.updates.GradientUpdates` is.
UPDATES = {"depthwise": "qfl_interp.homogeneous.updates:DepthwiseUpdates"}
# What weight decay is by default: none but where the optimiser's own is decoupled.
DECAYS = {"adamw": 0.1, "muon": 0.1}

SCHEDULES: dict[str, dict[str, Setting]] = {
    "cosine": {},
    "wsd": {},
    "wsd_s": {
        "n_decays": Setting(3, "how often the rate decays; it returns to its peak after each but the last", 1, 999)
    },
    "constant": {},
    "linear": {},
    "ramp": {},
    "cdat": {"sigma": Setting(2.0, "the rate in units of the greedy one along the step; 2 is the edge", 1e-6, 1e6)},
}

# Loss -> what it is counted in.
LOSS_UNITS = {"cross_entropy": "nats", "squared_error": "half squared error", "hinge": "hinge loss"}
LOSSES = tuple(LOSS_UNITS)
_OWN_LOSSES: dict[str, Callable[..., Any]] = {}


def checked_settings(
    kind: str, name: str, given: Mapping[str, Any], declared: Mapping[str, Setting]
) -> dict[str, bool | int | float | str]:
    """The given settings of one optimiser or schedule, checked.

    Raises:
        QflError: One is unknown; the nearest names are suggested.
        ValueError: A value is of another type or out of its range.
    """
    found: dict[str, bool | int | float | str] = {}
    for key, value in given.items():
        if key not in declared:
            if not declared:
                raise QflError(f"{kind} {name!r} takes no settings, got {key}={value!r}. Leave it out.")
            raise unknown_name(f"setting of {kind} {name!r}", key, declared)
        default, text, low, high, type_ = declared[key]
        like = type_() if default is None else default
        made = fitted(value, like, low, high)
        if made is None:
            rule = rule_of(like, low, high)
            raise ValueError(f"{key} of {kind} {name!r} must be {rule}, got {_shown(value)}: {text}.")
        found[key] = made
    return found


def setting_values(given: Mapping[str, Any], declared: Mapping[str, Setting]) -> dict[str, Any]:
    """Every declared setting: as given, or its default."""
    return {name: given.get(name, setting.default) for name, setting in declared.items()}


def register_loss(loss: Callable[..., Any]) -> str:
    """Make a loss of one's own known under its module and name, which a run keeps.

    Args:
        loss: `(logits [token, d_vocab], targets [token]) -> losses [token]`, differentiable.

    Returns:
        The name, as `TrainConfig.loss` holds it.

    Raises:
        QflError: It has no name of its own, as a lambda.
    """
    qualname = getattr(loss, "__qualname__", "")
    if not qualname or "<lambda>" in qualname:
        raise QflError(f"a loss is known by its name, got {loss!r} without one. Write it as a function (def).")
    name = f"{loss.__module__}:{qualname}"
    _OWN_LOSSES[name] = loss
    return name


def own_loss(name: str) -> Callable[..., Any]:
    """The registered loss of this name.

    Raises:
        QflError: There is none in this process.
    """
    if name not in _OWN_LOSSES:
        raise QflError(
            f"loss {name!r} is a function of the user's that this process does not know. Call "
            "qfl_interp.register_loss(function) first, or train with TrainConfig(loss=function)."
        )
    return _OWN_LOSSES[name]


def loss_unit(name: str) -> str:
    """What a loss is counted in; of a function of one's own its name, without the module."""
    return LOSS_UNITS.get(name, name.rpartition(":")[2])


def require_loss(name: str) -> None:
    """Raise `QflError` where no loss has this name; a function's, `module:name`, may be registered later."""
    if name not in LOSSES and ":" not in name:
        raise unknown_name("loss", name, LOSSES)
