"""Every answer token's gradient along few directions: the way the library chooses beside per-token gradients.

As `token_projection`, which has 50 directions, in its setting and on 16-bit addition (llama style, 2 layers), whose
sequences have more tokens that are scored. "Per-token gradients" is `torch.func.vmap` of `torch.func.grad` at the
chunk that was fastest on a small part; the library's other way stands beside the one it chose. All run in turns, and
times are the better of two rounds. Processor seconds, which other programs on the machine disturb less, are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.token_projection import MAIN, ROUNDS, Setting, case_of, fastest_chunk, per_token_gradients
from qfl_interp.config import ModelConfig
from qfl_interp.curvature.token_gradients import project_gradients
from qfl_interp.curvature.token_gradients.operations import jvp_is_faster

TITLE = "Per-token gradients along few directions"

# With problems.
SETTINGS = (
    (MAIN, 100),
    (Setting("addition", 16, ModelConfig(d_model=32, n_layers=2, n_heads=4)), 40),
    (Setting("addition", 16, ModelConfig(d_model=128, n_layers=2, n_heads=4)), 20),
)
FEW = (1, 4, 16, 50)


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of processor seconds and agreement, one a setting and number of directions.

    Args:
        quick: Few problems, one number of directions.
        device: Of the models.
    """
    few = FEW[:1] if quick else FEW
    return [_row(setting, 4 if quick else n, k, device) for setting, n in SETTINGS for k in few]


def _row(setting: Setting, n_problems: int, n_directions: int, device: str) -> dict[str, Any]:
    """The ways in turns."""
    case = case_of(n_problems, n_directions, device, setting)
    chunk = fastest_chunk(case)
    taken, other = ("jvp", "layers") if jvp_is_faster(case.loss.scored, n_directions) else ("layers", "jvp")
    ways: list[Callable[[], Tensor]] = [
        lambda: project_gradients(*case).gradients,
        lambda: per_token_gradients(case, chunk),
        lambda: project_gradients(*case, method=other).gradients,
    ]
    found = [way() for way in ways]
    cpu = [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for index, way in enumerate(ways):
            start = time.process_time()
            way().cpu()
            cpu[index] = min(cpu[index], time.process_time() - start)
    return {
        "name": f"{setting.task}-{setting.length}, d_model {setting.model.d_model}",
        "directions": n_directions,
        "way": taken,
        "value": cpu[0],
        "unit": "CPU s",
        "per_token_gradients": cpu[1],
        "times_less": cpu[1] / cpu[0],
        "other_way": cpu[2],
        "other_over_taken": cpu[2] / cpu[0],
        "tokens": len(case.loss),
        "tokens_a_chunk": chunk,
        "disagreement": float((found[0] - found[1]).abs().max() / found[1].abs().max()),
    }
