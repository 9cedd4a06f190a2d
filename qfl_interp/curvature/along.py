"""The loss along one step: Taylor coefficients, curvature, sharpness relative to the step, and angles."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.hessian import SymmetricOperator


class AlongStep(NamedTuple):
    """The quadratic model `L(theta + s d) = c0 + c1 s + c2 s^2` of the loss along a step d.

    Attributes:
        norm: `|d|`.
        curvature: `d' H d / |d|^2`; NaN for a step of length 0.
        c1: `<g, d>`.
        c2: `d' H d / 2`.
        sharpness: `2 c2 / |c1|`. The model raises the loss at the end of the step (s = 1) where c1 is below 0 and
            this is above 2: beyond the edge of stability along the step. NaN where c1 is 0.
    """

    norm: float
    curvature: float
    c1: float
    c2: float
    sharpness: float


def along_step(
    hessian: SymmetricOperator, gradient: Float[Tensor, " parameter"], step: Float[Tensor, " parameter"]
) -> AlongStep:
    """The loss along a step by one product with the Hessian; sums in float64.

    Raises:
        ValueError: The step or the gradient does not have as many entries as the Hessian has rows.
    """
    if not len(gradient) == len(step) == len(hessian):
        raise ValueError(
            f"gradient and step must have {len(hessian)} entries, as many as the Hessian has rows, got {len(gradient)} "
            f"and {len(step)}. Take all three at one model."
        )
    step = step.double()
    norm = float(step.norm())
    c1 = float(gradient.double().to(step.device) @ step)
    if norm == 0:
        return AlongStep(0.0, math.nan, c1, 0.0, math.nan)
    # A unit vector: the step's own square may be below what float32 can hold.
    unit = step / norm
    curvature = float(unit @ hessian.product(unit).to(step.device).double())
    c2 = curvature * norm**2 / 2
    return AlongStep(norm, curvature, c1, c2, step_sharpness(c1, c2))


def step_sharpness(c1: float, c2: float) -> float:
    """`S = 2 c2 / |c1|` of the quadratic model `c0 + c1 s + c2 s^2` along a step [R]; NaN where there is no slope.

    Above 2 the model raises the loss at s = 1; below 0 there is no edge.
    """
    return 2 * c2 / abs(c1) if c1 else math.nan


def cosine(one: Float[Tensor, " parameter"], other: Float[Tensor, " parameter"]) -> float:
    """The cosine of the angle between two vectors, in float64; NaN where one of them is zero."""
    one, other = one.double(), other.double().to(one.device)
    lengths = float(one.norm()) * float(other.norm())
    return max(-1.0, min(1.0, float(one @ other) / lengths)) if lengths else math.nan
