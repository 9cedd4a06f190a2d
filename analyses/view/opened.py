"""Runs that were opened and what was drawn of them, kept until their files change; nothing here computes a lens."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.pages.shown import Shown, is_curve
from qfl_interp.analyses.pages.timeline_figure import training_panels
from qfl_interp.analyses.view.index import CHECKPOINTS, Index, Stamp, stamps
from qfl_interp.errors import QflError
from qfl_interp.plots.panels import Panel, panel_rows
from qfl_interp.plots.paper import name_figure
from qfl_interp.plots.theme import plain
from qfl_interp.runs.config import CONFIG_FILE, METRICS_FILE
from qfl_interp.runs.opening import open_checkpoints
from qfl_interp.runs.series import Checkpoints

if TYPE_CHECKING:
    from qfl_interp.analyses.sweeps.scaling import Scaling

FoundT = TypeVar("FoundT")
# Runs and drawings that are kept.
_MOST: Final = 64


class Timeline(NamedTuple):
    """What the page shows of one run over its training.

    Attributes:
        figure: Loss, exact match and every lens that was computed.
        table: Gives the points of its curves, which a figure that is drawn each second does not need as a table.
        faults: A line on each lens that cannot be shown.
        steps: Of the checkpoints, ascending.
        places: Where each is on the figure's axis.
        texts: Each as a person reads it.
    """

    figure: Figure
    table: Callable[[], pd.DataFrame]
    faults: tuple[str, ...]
    steps: list[int]
    places: list[float]
    texts: list[str]


class _Slot:
    """A value, what it was made for, and who makes it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stamp: Any = None
        self.value: Any = None


class Kept:
    """Values by key, made again once their stamp differs; the least used go first. Safe to ask from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()

    def get(self, key: Hashable, stamp: Any, make: Callable[[], FoundT]) -> FoundT:
        """The value that was made for this key and stamp, or what `make` returns.

        A second viewer of the same waits for the first one's; what others ask for is not held up.
        """
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > _MOST:
                self._slots.popitem(last=False)
        with slot.lock:
            if slot.stamp is None or slot.stamp != stamp:
                slot.value = make()
                slot.stamp = stamp
            return slot.value


class Opened:
    """The runs and suites of an index by key.

    Args:
        index: What lies below the folder; nothing else is opened.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.kept = Kept()

    def run(self, key: str) -> Checkpoints:
        """The run or suite of a key.

        Raises:
            QflError: It is not there any more, is damaged, or is a sweep.
        """
        path = self.path(key)
        named_by = path if path.is_file() else path / CONFIG_FILE
        return self.kept.get(("run", key), stamps([named_by]), lambda: open_checkpoints(path))

    def path(self, key: str) -> Path:
        """Where the run of a key is. Raises `QflError` where it is not there any more."""
        path = self._index.path(key)
        if path is None or not path.exists():
            raise QflError(
                f"{key} is not below {self._index.folder} any more: it was moved or deleted. Choose another run."
            )
        return path

    def stamp(self, key: str, *, rows: bool = False) -> Stamp:
        """What changes when a checkpoint or a table of a run does; with `rows` also when training logs a row.

        Of a sweep it changes when a run of it ends.

        Raises:
            QflError: It is not there any more, or damaged.
        """
        path = self.path(key)
        if self.is_sweep(key):
            return stamps([path / "sweep.json", path / "state.json"])
        run = self.run(key)
        tables = run.table("timeline").folder.parent
        folders = sorted(one for one in tables.glob("*") if one.is_dir()) if tables.is_dir() else []
        logged = [path / METRICS_FILE] if rows else []
        return stamps([path / CONFIG_FILE, path / CHECKPOINTS, tables, *folders, *logged])

    def is_sweep(self, key: str) -> bool:
        """Whether a key names a sweep, which has budgets where a run has steps."""
        return self._index.is_sweep(key)

    def scaling(self, key: str) -> Scaling:
        """The scaling curves of a sweep. Raises `QflError` where no run of it has finished, or it is damaged."""
        from qfl_interp.analyses.sweeps.scaling import scaling  # SciPy's fits take a second to load
        from qfl_interp.sweep.sweep import Sweep

        path = self.path(key)
        return self.kept.get(("scaling", key), self.stamp(key), lambda: scaling(Sweep.open(path)))

    def timeline(self, key: str) -> Timeline:
        """A run over its training. Raises `QflError` where it cannot be opened or its loss is not known."""
        return self.kept.get(("timeline", key), self.stamp(key, rows=True), lambda: _timeline(self.run(key)))


def _timeline(run: Checkpoints) -> Timeline:
    faults = []
    try:
        features = tuple(run.task.features)
    except QflError as error:  # its task is not registered here: the loss is known all the same
        features = ()
        faults.append(str(error))
    page = Page(run, features, config=None, progress=False, compute=False)
    shown = Shown(page)
    # A panel of a single step is no curve: a view shows it.
    panels = shown.ask_each(lambda lens: [panel for panel in lens.panels(page) if is_curve(panel)], Panel)
    figure = shown.timeline(panels)

    def table() -> pd.DataFrame:
        logged = training_panels(shown.losses.rows, unit=run.loss_unit)
        return panel_rows([*logged, *(panel for own in panels.values() for panel in own)])

    axis, steps = shown.losses.axis, run.steps
    places = [{"step": float(step), **run.how_far(step)}[axis.column] for step in steps]
    texts = ["" if axis.column == "step" else axis.text(place) for place in places]
    figure = name_figure(figure, plain(run.label))
    return Timeline(figure, table, (*faults, *shown.faults), steps, places, texts)
