"""The lenses that entry points name, ours and other packages'."""

from __future__ import annotations

import functools
import sys

from analyses.lens import Lens
from qfl_interp.errors import QflError
from qfl_interp.plugins import LENSES, entry_points, load_entry_point


@functools.cache
def lenses() -> tuple[type[Lens], ...]:
    """Every registered lens, in the order of a page; one that cannot be loaded is named on standard error, once."""
    found = []
    for name in entry_points(LENSES):
        try:
            found.append(load_entry_point(LENSES, name))
        except QflError as error:  # another package's fault must not take every lens away
            print(f"warning: {error}", file=sys.stderr)
    return tuple(sorted(found, key=lambda lens: (lens.order, lens.name)))
