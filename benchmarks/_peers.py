"""What `peers` runs in the environment of the other libraries: every case, its rows to a file.

python -m benchmarks._peers ROWS.json DEVICE [quick]
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import _peers_curvature, _peers_hooks
from benchmarks._measuring import interleaved

OURS = "ours"


class Case(NamedTuple):
    """One piece of work in several libraries.

    `makers` give, by library, a function that does it; called once, its result is checked against ours.
    """

    name: str
    makers: Mapping[str, Callable[[], Callable[[], Any]]]
    differs: Callable[[Any, Any], float]
    tolerance: float
    rounds: int


def _version(library: str) -> str:
    package = {"curvlinops": "curvlinops-for-pytorch", OURS: "qfl-interp"}.get(library, library)
    return importlib.metadata.version(package.replace("_", "-"))


def _rows(case: Case) -> Iterator[dict[str, Any]]:
    """A row a library; one that fails or finds something else says so, and is not timed."""
    works, found, reasons = {}, {}, {}
    for library, make in case.makers.items():
        try:
            work = make()
            found[library] = work()
            error = case.differs(found[library], found[OURS])
            if error > case.tolerance:
                raise AssertionError(f"its result differs from ours by {error:.2g}, more than {case.tolerance}")
            works[library] = work
        except Exception as reason:
            traceback.print_exc()
            reasons[library] = f"{type(reason).__name__}: {reason}"[:300]
    seconds = interleaved(works, case.rounds)
    for library in case.makers:
        row: dict[str, Any] = {"case": case.name, "name": library, "version": _version(library)}
        if library in seconds:
            taken = seconds[library]
            row |= {"cpu_s": taken.cpu, "wall_s": taken.wall, "times_ours": taken.cpu / seconds[OURS].cpu}
            row |= {"differs": case.differs(found[library], found[OURS])}
        yield row | ({"reason": reasons[library]} if library in reasons else {})


def main(out: Path, device: str, quick: bool) -> None:
    """Every case in turn; what was found is written as it is found."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for cases in (_peers_hooks.cases, _peers_curvature.cases):
        for case in cases(device, quick):
            rows += _rows(Case(*case))
            out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "quick" in sys.argv[3:])
