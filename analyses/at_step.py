"""What there is to see of a run at one step: a `View`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.errors import unknown_name
from qfl_interp.plots.panels import mark_step
from qfl_interp.plots.theme import FONT_SIZE, VERMILLION, grow, plain, text_at
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import select

# Pixels of a line of text below a figure.
_LINE: Final = 20


@dataclass(frozen=True)
class View:
    """Something to see of a run at a step.

    Attributes:
        name: Of the view among those of a run: the lens', or behind it a slash and what else it shows.
        title: What a person reads.
        question: What it answers, in one line.
        steps: Where it exists, ascending.
        drawn: The figure at one of these steps, with a value for each choice.
        rows: The table behind it, likewise.
        found: The names of its choices, and the values of each that exist together; read on demand.
        steps_of: Those of `steps` at which there is something of the chosen values; None for all.
        needs_model: Whether a checkpoint is loaded for it, which takes seconds.
        over_training: Whether it shows the whole training, with the step marked.
    """

    name: str
    title: str
    question: str
    steps: tuple[int, ...]
    drawn: Callable[[int, Mapping[str, Any]], Figure]
    rows: Callable[[int, Mapping[str, Any]], pd.DataFrame]
    found: Callable[[], tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]] = lambda: ((), [()])
    steps_of: Callable[[Mapping[str, Any]], Sequence[int]] | None = None
    needs_model: bool = False
    over_training: bool = False

    @cached_property
    def _found(self) -> tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]:
        return self.found()

    @property
    def choices(self) -> dict[str, list[Any]]:
        """What can be chosen: the values of each name, the default first. Reads a part of the table for each kind."""
        names, together = self._found
        return {name: list(dict.fromkeys(one[at] for one in together)) for at, name in enumerate(names)}

    def options(self, **chosen: Any) -> dict[str, list[Any]]:
        """As `choices`, of each name only the values that exist with what is chosen of the names before it."""
        return self._narrowed(chosen)[1]

    def chosen(self, **chosen: Any) -> dict[str, Any]:
        """A value for each choice: the one given where it exists with those before it, else the first that does.

        Values may be given as text, as a URL has them.

        Raises:
            QflError: There is no such choice, or no such value of one; names those there are.
        """
        known = self.choices
        for name, value in chosen.items():
            if name not in known:
                raise unknown_name(f"choice of the view {self.name!r}", name, known)
            if value is not None and str(value) not in map(str, known[name]):
                raise unknown_name(f"{name} of the view {self.name!r}", str(value), map(str, known[name]))
        return self._narrowed(chosen)[0]

    def _narrowed(self, chosen: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """A value for each choice, and the values there are of each beside those before it."""
        names, together = self._found
        values, options = {}, {}
        for at, name in enumerate(names):
            options[name] = list(dict.fromkeys(one[at] for one in together))
            wanted = str(chosen.get(name))
            values[name] = next((value for value in options[name] if str(value) == wanted), options[name][0])
            together = [one for one in together if one[at] == values[name]]
        return values, options

    def at(self, step: int, **chosen: Any) -> int:
        """The step that is shown for one: itself, else the nearest before it that there is, else the first."""
        steps = self.steps if self.steps_of is None else self.steps_of(self.chosen(**chosen))
        return nearest(steps, step)

    def draw(self, step: int, **chosen: Any) -> Figure:
        """The figure; of a step that the view does not have, that of the nearest one before it, which it says.

        Raises:
            QflError: As `chosen`; or what it is drawn from is damaged.
        """
        shown = self.at(step, **chosen)
        figure = self.drawn(shown, self.chosen(**chosen))
        return figure if shown == step else _said(figure, _instead(step, shown))

    def table(self, step: int, **chosen: Any) -> pd.DataFrame:
        """The rows behind the figure, with their own step. Raises as `draw` does."""
        return self.rows(self.at(step, **chosen), self.chosen(**chosen))


def nearest(steps: Sequence[int], step: int) -> int:
    """The last of ascending steps that is not after one; the first where all are."""
    return int(steps[max(int(np.searchsorted(steps, step, side="right")) - 1, 0)])


def _instead(step: int, shown: int) -> str:
    """That another step is shown."""
    which = "nearest before it" if shown < step else "first"
    return f"Nothing of step {step:,}: this is step {shown:,}, the {which} that there is."


def _said(figure: Figure, text: str) -> Figure:
    """The figure with a line at its lower edge, for which it grows: legends stand at the upper one."""
    layout: Any = figure.layout
    # Plotly's own, of a figure in another style.
    below = 80 if layout.margin.b is None else layout.margin.b
    figure.update_layout(margin={"b": below}, height=layout.height or 450)
    if isinstance(layout.meta, Mapping) and "height" in layout.meta:
        grow(figure, _LINE)
    else:
        figure.update_layout(margin={"b": below + _LINE}, height=layout.height + _LINE)
    look = {"font": {"size": FONT_SIZE, "color": VERMILLION}, "name": "instead"}
    figure.add_annotation(text_at(f"<b>{plain(text)}</b>", y=0, yshift=-below - _LINE + 2, **look))
    return figure


def titled(name: str) -> str:
    """A view's name as a person reads it: "ablate_units" becomes "Ablate units"."""
    return name.replace("_", " ").capitalize()


def curves_view(
    name: str,
    question: str,
    run: Checkpoints,
    draw: Callable[[Mapping[str, Any]], Figure],
    rows: Callable[[Mapping[str, Any]], pd.DataFrame],
    found: Callable[[], tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]] = lambda: ((), [()]),
    *,
    title: str = "",
) -> View:
    """A view of curves over the whole training, which `draw` makes of panels, with the step marked; it has every step.

    The table behind it is what `rows` gives, of the step where it has a column of steps.
    """

    def drawn(step: int, chosen: Mapping[str, Any]) -> Figure:
        return mark_step(draw(chosen), step, {"step": step, "tokens": run.tokens(step), "flops": run.flops(step)})

    def of_step(step: int, chosen: Mapping[str, Any]) -> pd.DataFrame:
        every = rows(chosen)
        return select(every, step=step) if "step" in every else every

    return View(name, title or titled(name), question, tuple(run.steps), drawn, of_step, found, over_training=True)
