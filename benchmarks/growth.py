"""Processor seconds and peak memory of training and of lenses, as a run and a model grow; the exponents.

A cell is one work of one size in a process of its own, which begins with all imports done, on one thread. Along an axis
all else stays as it is. The task is sparse parity, whose labels are as many at every length. Peak memory is what the
process grew by beyond the imports.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._growth_cells import WORKS, Cell, Found, Size, measure_all
from benchmarks._measuring import in_process

TITLE = "Growth: processor seconds and peak memory of one thread, and their exponents"


class Axis(NamedTuple):
    """A field of `Size`, its values, and the size that all else has."""

    values: tuple[int, ...]
    base: Size


AXES = {
    "checkpoints": Axis((10, 100, 1000), Size(n_steps=1000, examples=32, context=16)),
    "examples": Axis((1_000, 10_000, 100_000), Size(context=24)),
    "d_model": Axis((16, 64, 256, 512), Size(examples=64, context=16)),
    "n_layers": Axis((1, 4, 16), Size(examples=64, context=16)),
    "context": Axis((16, 64, 256, 512), Size(examples=32)),
}
# Nothing that a timeline shows grows with the examples.
_NOT = {("timeline", "examples")} | {
    ("polca, curves", axis) for axis in AXES if axis not in ("checkpoints", "examples")
}
# Clustering needs memory for a share of all pairs of tokens; the others take many minutes there.
_MOST = {(work, "examples"): 10_000 for work in ("polca", "ablate", "curvature")} | {("polca", "context"): 256}


def cells(*, quick: bool = False) -> list[Cell]:
    """Every cell, a run's training before what looks at it.

    Along the examples training sees as many, in batches of 64, and lenses look at as many of one run. Every update has
    a checkpoint at 1,000 of them.
    """
    found = []
    for axis, (values, base) in AXES.items():
        for value in values[:2] if quick else values:
            size = base._replace(**{axis: 0 if axis == "checkpoints" and value == base.n_steps else value})
            training = size._replace(n_steps=max(1, value // 64)) if axis == "examples" else size
            # Runs of different lengths would have different probes.
            looked_at = f"{axis}-{values[0] if axis == 'examples' else value}"
            for work in WORKS:
                if (work, axis) not in _NOT and value <= _MOST.get((work, axis), value):
                    trains = work == "train"
                    run = f"{axis}-{value}" if trains else looked_at
                    found.append(Cell(work, axis, value, training if trains else size, run))
    return found


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of a straight line through the logarithms, by least squares; NaN without two positive values."""
    if len(x) < 2 or min(y) <= 0:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """One row a work and axis: seconds and MiB at each value, exponents over all of them and over the last two.

    QFL_GROWTH_LOG names a file that gets a line as each cell ends; a call that was stopped goes on from it.
    QFL_GROWTH_AXES names the axes, by default all: `checkpoints,context`.

    Args:
        quick: The first two values of each axis.
        device: Where to train and compute; memory is then the device's.
    """
    asked = os.environ.get("QFL_GROWTH_AXES", ",".join(AXES)).split(",")
    wanted = [cell for cell in cells(quick=quick) if cell.axis in asked]
    log = Path(os.environ.get("QFL_GROWTH_LOG", os.devnull))
    with tempfile.TemporaryDirectory() as folder:
        found: list[Found] = in_process(measure_all, wanted, Path(folder), device, log)
    rows = []
    for axis in AXES:
        for work in WORKS:
            of = [got for cell, got in zip(wanted, found, strict=True) if (cell.work, cell.axis) == (work, axis)]
            if of:
                rows.append(_row(work, axis, of))
    return rows


def _row(work: str, axis: str, found: list[Found]) -> dict[str, Any]:
    """A work along an axis."""
    x = [float(one.x) for one in found]
    cpu, mib = [one.cpu_s for one in found], [one.grown_mib for one in found]
    return {
        "work": work,
        "axis": axis,
        "values": " ".join(str(one.x) for one in found),
        "cpu_s": " ".join(f"{seconds:.3g}" for seconds in cpu),
        "wall_s": " ".join(f"{one.wall_s:.3g}" for one in found),
        "exponent": exponent(x, cpu),
        "last_two": exponent(x[-2:], cpu[-2:]),
        "grown_mib": " ".join(f"{grown:.3g}" for grown in mib),
        "mib_exponent": exponent(x, mib),
        "mib_last_two": exponent(x[-2:], mib[-2:]),
        "threads": 1,
    }
