"""Compiled loops of the gated unit and its gradient on a CPU, float32, number by number.

Write `@no_type_check` under each kernel, as in `kernels`.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

from qfl_interp.training.stacked.lanes import LOWEST_POWER, POWER_OF_TWO

_inner = numba.njit(error_model="numpy", fastmath={"contract"}, inline="always")
_kernel = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})

_LOG2_E = np.float32(np.log2(np.e))


@_inner
@no_type_check
def _power_of_two(x):
    """`2^x` to float32 rounding for x <= 0, and 0 below `2^-126`; not a number stays so."""
    held = LOWEST_POWER if x < LOWEST_POWER else x
    whole = np.rint(held)
    part = held - whole
    y = POWER_OF_TWO[0]
    for coefficient in POWER_OF_TWO[1:]:
        y = y * part + coefficient
    exponent = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return np.float32(0) if x < LOWEST_POWER else y * exponent.view(np.float32)


@_kernel
@no_type_check
def gated(gate_up, out):
    """`silu(gate) * up` of rows that hold `gate` and `up` side by side."""
    width = out.shape[1]
    for row in range(out.shape[0]):
        gate, up, into = gate_up[row, :width], gate_up[row, width:], out[row]
        for c in range(width):
            into[c] = gate[c] * _sigmoid(gate[c]) * up[c]


@_kernel
@no_type_check
def gated_backward(gate_up, dout, dgate_up):
    """Gradient of `gated`: `dgate = dout up s (1 + gate (1 - s))`, `dup = dout gate s` with `s = sigmoid(gate)`."""
    width = dout.shape[1]
    one = np.float32(1)
    for row in range(dout.shape[0]):
        gate, up, d = gate_up[row, :width], gate_up[row, width:], dout[row]
        dgate, dup = dgate_up[row, :width], dgate_up[row, width:]
        for c in range(width):
            s = _sigmoid(gate[c])
            dgate[c] = d[c] * up[c] * s * (one + gate[c] * (one - s))
            dup[c] = d[c] * gate[c] * s


@_inner
@no_type_check
def _sigmoid(x):
    """`1 / (1 + exp(-x))`, through the exponential of `-|x|`, which cannot overflow."""
    one = np.float32(1)
    small = _power_of_two(-abs(x) * _LOG2_E)
    return (one if x > 0 else small) / (one + small)
