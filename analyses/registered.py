"""The lenses that entry points name, ours and other packages'."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from qfl_interp.analyses.lens import Lens
from qfl_interp.plugins import LENSES, load_all


class Registered(NamedTuple):
    """What the entry points of lenses give.

    Attributes:
        lenses: In the order of a page.
        faults: A line on each entry point that gives none.
    """

    lenses: tuple[type[Lens], ...]
    faults: tuple[str, ...]


@functools.cache
def registered() -> Registered:
    """Every registered lens, as far as they can be loaded: one package's fault must not take the others away."""
    loaded, faults = load_all(LENSES)
    found = []
    for name, lens in loaded.items():
        wrong = _wrong(name.replace("-", "_"), lens)
        if wrong:
            faults.append(f"entry point {name!r} of {LENSES} is left out: {wrong}")
        else:
            found.append(lens)
    return Registered(tuple(sorted(found, key=lambda lens: (lens.order, lens.name))), tuple(faults))


def _wrong(name: str, lens: Any) -> str:
    """Why an entry point's object is no lens of this name; "" for a good one."""
    if not (isinstance(lens, type) and issubclass(lens, Lens)):
        return f"it must name a subclass of qfl_interp.analyses.lens.Lens, got {lens!r}."
    called = getattr(lens, "name", None)
    return "" if called == name else f"it must have the name of its lens, and {lens.__name__} has {called!r}."


def lenses() -> tuple[type[Lens], ...]:
    """The registered lenses."""
    return registered().lenses
