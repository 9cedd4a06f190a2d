"""How linear probes are fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qfl_interp.checked import _Config, _require
from qfl_interp.sites import PROBE_SITES


@dataclass(frozen=True)
class ProbeConfig(_Config):
    """How linear probes are fitted: by default the paper's logistic regression with L2 penalty, at every label.

    Args:
        c: Inverse L2 strength of probes of classes, scikit-learn's `C`; the paper uses 100. The objective is
            `c * sum(log loss) + ||w||^2 / 2`, the intercept unpenalised.
        alpha: Ridge penalty of probes of numbers, scikit-learn's; 0, as in the paper, is least squares. The objective
            is `sum(error^2) + alpha ||w||^2`.
        path: Inverse strengths to choose from instead, such as 0.01,1,100: each probe by its loss on validation
            examples. `alpha` is then `1 / c`. Empty: no choice.
        n_train: Examples the probes are fitted on, from a split the model never trains on.
        n_val: Validation examples of the choice, from the same split; none are drawn without a `path`.
        n_test: Examples they are scored on, from another such split.
        seed: Draws those examples and the shuffled labels.
        shuffled_control: Fit every probe once more on shuffled labels.
        max_iter: Newton iterations at most; the result reports a probe that has not converged by then.
        site: What probes read: a name of `qfl_interp.models.hooks.Site` such as "resid_post", "resid_mid", "attn_out",
            "mlp_out", or "z" for every head on its own.
        pooled: One probe for all labels of a feature instead of one for each: the paper's option.

    Raises:
        ValueError: A value is out of its range.
    """

    c: float = 100.0
    alpha: float = 0.0
    path: tuple[float, ...] = ()
    n_train: int = 10_000
    n_val: int = 2_000
    n_test: int = 1_000
    seed: int = 0
    shuffled_control: bool = True
    max_iter: int = 100
    site: str = "resid_post"
    pooled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(math.isfinite(self.c) and self.c > 0, "c must be positive and finite", self.c, "Paper: 100.")
        _require(math.isfinite(self.alpha) and self.alpha >= 0, "alpha must be finite and not negative", self.alpha, "")
        path = tuple(sorted(self.path))
        _require(
            all(math.isfinite(c) and c > 0 for c in path) and len(set(path)) == len(path),
            "path must hold different positive numbers",
            self.path,
            "Try (0.01, 1, 100).",
        )
        object.__setattr__(self, "path", path)
        for name in ("n_train", "n_val", "n_test", "max_iter"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "")
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")
        _require(self.site in PROBE_SITES, f"site must be one of {PROBE_SITES}", self.site, "")
