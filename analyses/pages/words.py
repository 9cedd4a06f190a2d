"""What the report says in words beside its sections: how numbers were computed, limits, how to cite."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Final

METHODS: Final = """\
- **Compute** is the nominal budget at each step, `6 (12 n_layers d_model^2 + n_layers n_ctx d_model)` FLOPs
  a token as the paper counts; that of a plain pass with padding and the real widths stands
  beside it in the run's card. Step 0 has no place on a logarithmic axis and is left out of the timeline.
- **Loss and exact match** are measured on a fixed validation set that shares no example with training,
  twice: as the paper counts (from the `=` sign on) and over the answer alone.
"""

LIMITS: Final = """\
- One run is one seed: a transition moves between seeds, and the ranges here do not cover that.
- The paper's figures compare final models over compute budgets; this report follows one run over its
  training steps.
"""

CITATION: Final = """\
Please cite the paper whose method this is: *Quiet Feature Learning in Algorithmic Tasks*,
https://arxiv.org/abs/2505.03997 (arXiv 2505.03997).
"""


def one_list(parts: Iterable[str]) -> str:
    """Lists of items, each as a lens or this module has them, as one list."""
    return "\n".join(inspect.cleandoc(part) for part in parts if part)
