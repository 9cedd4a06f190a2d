"""Names of the source's rules as settings of the optimiser "depthwise".

Marks: [A] said in an abstract of the source, [S] in a third-party summary, [R] our reconstruction, [M] measured by us.

References:
    D. Terjék, Feature Learning Beyond the Edge of Stability (arXiv 2502.13110).
"""

from __future__ import annotations

from typing import Literal

Loss = Literal["cross_entropy", "squared_error"]
SoftRank = Literal["stable_rank", "participation_ratio", "entropy_rank", "gradient_weighted"]

# The rules of the source's experiments as `optimizer_options`: by name in figures and scripts.
RULES: dict[str, dict[str, int | bool]] = {
    "none": {"norm_power": 0, "residual_power": 0, "depth_normalise": False},
    "s=0": {"norm_power": 2, "residual_power": 0, "depth_normalise": True},
    "s=1": {"norm_power": 2, "residual_power": 1, "depth_normalise": True},
    "s=2": {"norm_power": 2, "residual_power": 2, "depth_normalise": True},
    "norm_power=1": {"norm_power": 1, "residual_power": 0, "depth_normalise": False},
}
