"""The lenses that entry points name, ours and other packages'."""

from __future__ import annotations

import functools
import sys

from analyses.lens import Lens
from qfl_interp.plugins import LENSES, load_all


@functools.cache
def lenses() -> tuple[type[Lens], ...]:
    """Every registered lens, in the order of a page; one that cannot be loaded is named on standard error, once."""
    found, faults = load_all(LENSES)
    for fault in faults:
        print(f"warning: {fault}", file=sys.stderr)
    return tuple(sorted(found.values(), key=lambda lens: (lens.order, lens.name)))
