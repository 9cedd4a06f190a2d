"""Runs of one shape that differ in learning rate or seed, trained as one program: stacked weights, batched products.

Each is an ordinary run directory, equal to the run trained alone within float32 rounding.
"""

from __future__ import annotations

from qfl_interp.training.stacked.grouping import bytes_per_member as bytes_per_member
from qfl_interp.training.stacked.grouping import max_members as max_members
from qfl_interp.training.stacked.grouping import stack_key as stack_key
from qfl_interp.training.stacked.loop import train_stacked as train_stacked
