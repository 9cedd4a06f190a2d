"""What a call of POLCA will take: hours, memory and disk, told after a product and a few gradients were timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn

import pandas as pd
import torch

from qfl_interp.analyses.checkpoints import n_processes
from qfl_interp.analyses.lenses.polca.basis import LENS as BASIS
from qfl_interp.analyses.lenses.polca.basis import basis_rows, hessian_sample, memory_needed
from qfl_interp.analyses.lenses.polca.plan import Plan, direction_part
from qfl_interp.analyses.lenses.polca.trajectories import curves_bytes, missing_points, quantities, require_same_threads
from qfl_interp.analyses.result import Result
from qfl_interp.curvature import Hessian
from qfl_interp.curvature.token_gradients.project import MAX_BYTES
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import HookedModel, parameters_to_save
from qfl_interp.runs.run import Run
from qfl_interp.training.replay import Replay

# Hessian-vector products that a direction takes where none was found yet; an easy one takes half, a hard one thrice.
_PRODUCTS = 25
# Vectors of parameters that a process holds beside directions: its model and a copy in the plan's precision; where it
# trains again weights, gradients and two moments, and two states of weights and moments that are kept.
_MODELS, _TRAINING = 2, 4 + 2 * 3
# Examples whose gradients are timed.
_N_TIMED = 16


def estimate(plan: Plan, *, jobs: int = 1) -> Result:
    """What is left to do of a call, and what it costs on this machine: nothing is written.

    Returns:
        One row a kind of work: `work`, `n` (how often), `seconds` each, `hours` in all, over `jobs` processes where
        they share it. The title has the memory at the most, as if all that is large was held at once, and what the
        tables take on disk.

    Raises:
        QflError: It does not fit into memory, or a replay would be refused for its threads.
    """
    require_same_threads(plan, jobs)
    table, n = plan.run.table(BASIS), plan.n_directions
    parts = [direction_part(number, plan.basis_digest) for number in range(n)]
    found = [number for number, part in enumerate(parts) if table.has(part)]
    points = missing_points(plan)
    on_disk = plan.run.saved_steps if isinstance(plan.run, Run) else plan.run.steps
    together = n_processes(jobs, max(1, len(points)))
    vectors = _MODELS + (_TRAINING if isinstance(plan.run, Replay) else 0)
    needed = memory_needed(plan, jobs) + curves_bytes(plan)
    needed += together * (MAX_BYTES + vectors * len(plan.space) * plan.dtype.itemsize)
    what = f"{n} directions of {len(plan.space):,} parameters, curves and what finds them"
    require_memory(needed, available_bytes(plan.device), what, "Take fewer directions, examples or jobs, or float32.")
    model = plan.load(max((step for step in plan.basis_steps if step in on_disk), default=on_disk[0]))
    rows = []
    if isinstance(plan.run, Run) and (trained := _trained_again(plan, plan.run, on_disk, len(found) < n, bool(points))):
        logged = plan.run.metrics.iloc[-1]
        seconds = float(logged["seconds"]) / max(1.0, float(logged["step"]) - plan.run.config.first_step)
        rows.append(("updates trained again", trained, seconds, 1))
    if len(found) < n and plan.config.basis in ("hessian", "shuffled"):
        each = basis_rows(plan, found)["n_products"].mean() if found else _PRODUCTS
        rows.append(("Hessian products", round(each * (n - len(found))), _seconds_of_product(plan, model), 1))
    for quantity in dict.fromkeys(point.quantity for point in points):
        count = sum(point.quantity == quantity for point in points)
        each = _seconds_of_point(plan, model, quantity)
        rows.append((f"points of {quantity}", count, each, together))
    frame = pd.DataFrame(rows, columns=["work", "n", "seconds", "processes"])
    frame["hours"] = frame["n"] * frame["seconds"] / frame["processes"] / 3600
    frame = frame.drop(columns="processes").round({"seconds": 3, "hours": 3})
    size = plan.dtype.itemsize
    disk = size * ((n - len(found)) * len(plan.space) + len(points) * len(plan.scored()) * (n + 1))
    title = (
        f"POLCA of {plan.run.run_id} along {n} directions of {len(plan.space):,} parameters, "
        f"{len(plan.scored()):,} tokens at {len(plan.steps)} steps: about {frame['hours'].sum():.2f} hours, "
        f"{_size(needed)} of memory, {_size(disk)} on disk"
    )
    return Result(title, frame, frame, _no_figure)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"


def _no_figure(_: pd.DataFrame) -> NoReturn:
    raise QflError("an estimate has no figure. Leave out dry_run (--dry-run) to compute what it estimates.")


def _trained_again(plan: Plan, run: Run, on_disk: list[int], basis: bool, points: bool) -> int:
    """Updates that a replay makes: up to the last step that is not on disk, for the directions and for the points."""
    passes = [plan.basis_steps] * basis + [plan.steps] * points
    ends = [max((step for step in steps if step not in on_disk), default=run.config.first_step) for steps in passes]
    return sum(end - run.config.first_step for end in ends)


def _seconds_of_product(plan: Plan, model: HookedModel) -> float:
    _, scored = hessian_sample(plan)
    hessian = Hessian(TokenLoss(model, scored, dtype=plan.dtype))
    vector = torch.ones(len(plan.space), dtype=plan.dtype, device=plan.device)
    return _seconds(lambda: hessian.product(vector))


def _seconds_of_point(plan: Plan, model: HookedModel, quantity: str) -> float:
    """One point over all tokens, from that of a few examples."""
    shown = plan.examples[:_N_TIMED]
    scored = scored_tokens(plan.run.task.encode(shown))
    loss, parameters = TokenLoss(model, scored, dtype=plan.dtype), parameters_to_save(model)
    directions = torch.ones(plan.n_directions, len(plan.space), dtype=plan.dtype, device=plan.device)
    seconds = _seconds(lambda: quantities(loss, parameters, [directions], quantity))
    return seconds * len(plan.examples) / len(shown)


def _seconds(work: Callable[[], object]) -> float:
    """Of the second call; the first one warms up."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
